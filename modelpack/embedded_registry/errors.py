"""How the distribution API says no (distribution specification 1.1, "Error Codes")."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from modelpack.errors import (
    AccessDeniedError,
    DigestMismatchError,
    InsufficientDiskError,
    InvalidContentError,
    MalformedReferenceError,
    ModelpackError,
    NotFoundError,
    UnavailableError,
)


class RefusedError(Exception):
    """An answer that is no success: HTTP status, error code of the specification, and a sentence."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def response(self) -> JSONResponse:
        document = {"errors": [{"code": self.code, "message": str(self)}]}
        return JSONResponse(document, self.status, headers=dict(self.headers or {}))


def translate(error: ModelpackError) -> RefusedError:
    """What an error of the store means to a client that got no better explanation."""
    for kind, status, code in (
        (NotFoundError, 404, "NAME_UNKNOWN"),
        (MalformedReferenceError, 400, "NAME_INVALID"),
        (DigestMismatchError, 400, "DIGEST_INVALID"),
        (InvalidContentError, 400, "MANIFEST_INVALID"),
        (AccessDeniedError, 403, "DENIED"),
        # Not 500: a full disk is no reason to try again at once.
        (InsufficientDiskError, 507, "UNKNOWN"),
        (UnavailableError, 503, "UNAVAILABLE"),
    ):
        if isinstance(error, kind):
            return RefusedError(status, code, str(error))
    return RefusedError(500, "UNKNOWN", str(error))
