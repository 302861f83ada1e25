"""How errors look to a client of the OpenAI API: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from typing import Any

from starlette.responses import JSONResponse

from modelpack.errors import (
    InsufficientResourcesError,
    InvalidContentError,
    InvalidInputError,
    InvalidKeyError,
    MalformedPolicyError,
    ModelpackError,
    NotFoundError,
    UnsupportedError,
    UntrustedError,
    WorkerCrashedError,
    WorkerError,
    WorkerTimeoutError,
)

# Clients retry 429 and 5xx by themselves, so those are kept for what may go better next time.
_STATUS: tuple[tuple[type[ModelpackError], int, str], ...] = (
    (NotFoundError, 404, "model_not_found"),
    (UntrustedError, 403, "model_untrusted"),
    (WorkerCrashedError, 503, "worker_crashed"),
    (WorkerTimeoutError, 504, "worker_timeout"),
    (InsufficientResourcesError, 503, "insufficient_resources"),
    (InvalidContentError, 422, "model_invalid"),
    (UnsupportedError, 422, "model_unsupported"),
    (WorkerError, 422, "model_refused"),
    # Our own files are no fault of the client.
    (MalformedPolicyError, 500, "policy_malformed"),
    (InvalidKeyError, 500, "key_invalid"),
    (InvalidInputError, 400, "invalid_request"),
)


class RequestRefusedError(Exception):
    """A request that the server does not carry out."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def describe(message: str, status: int, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The ``error`` object of the OpenAI API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"message": message, "type": kind, "param": param, "code": code}


def refuse(error: RequestRefusedError) -> JSONResponse:
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.status in (429, 503):
        headers["retry-after"] = "1"
    body = {"error": describe(str(error), error.status, code=error.code, param=error.param)}
    return JSONResponse(body, error.status, headers)


def translate(error: ModelpackError) -> RequestRefusedError:
    """What a client hears of an error of ours. The log lines of a crash stay in our own log."""
    message = str(error).partition("\n")[0]
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return RequestRefusedError(status, message, code=code)
    return RequestRefusedError(500, message, code=error.code)
