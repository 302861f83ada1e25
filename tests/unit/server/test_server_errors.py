import pytest

from modelpack import errors as e
from modelpack.server.errors import translate


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (e.MalformedReferenceError("x"), 400),
        (e.InvalidInputError("tiny may mean any of a/tiny, b/tiny"), 400),
        (e.NotFoundError("x"), 404),
        (e.UntrustedError("x"), 403),
        # Files of whoever runs the server, which a client cannot mend.
        (e.MalformedPolicyError("x"), 500),
        (e.InvalidKeyError("x"), 500),
        (e.ModelpackError("x"), 500),
    ],
)
def test_an_error_has_the_status_of_whose_fault_it_is(error: e.ModelpackError, status: int):
    assert translate(error).status == status
