"""Errors that a client sees, always in OpenAI's shape."""

from __future__ import annotations

from typing import Final

import orjson

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "overloaded_error",
    431: "invalid_request_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Refuses a request. `param` names the field at fault, `code` is stable and machine-readable."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow

    def body(self) -> bytes:
        """The JSON body."""
        kind = _TYPES.get(self.status, "api_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that belong to this error."""
        extra: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            extra.append((b"retry-after", b"%d" % self.retry_after_s))
        if self.allow is not None:
            extra.append((b"allow", self.allow.encode("ascii")))
        return extra


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400 for a field with a wrong value."""
    return ApiError(400, message, code=code, param=param)
