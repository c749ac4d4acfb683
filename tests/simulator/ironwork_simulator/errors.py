"""Anthropic's errors: which type belongs to which status, and the body that carries them.

Source: Anthropic's API reference, "Errors"; the SDK's types.shared.ErrorResponse.
"""

import json
from collections.abc import Mapping

# status: (error.type, a message)
ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "There was an issue with the format or content of your request"),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "There is an issue with your billing or payment information"),
    403: (
        "permission_error",
        "Your API key does not have permission to use the specified resource",
    ),
    404: ("not_found_error", "Not Found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    409: ("conflict_error", "The request conflicts with another one"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit"),
    500: ("api_error", "Internal server error"),
    502: ("api_error", "Bad gateway"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}


class ApiError(Exception):
    """Raised where a request is refused; becomes a response with Anthropic's body."""

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        type_: str | None = None,
        details: Mapping[str, object] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        default_type, default_message = ERRORS.get(
            status, ("api_error" if status >= 500 else "invalid_request_error", "Error")
        )
        self.status = status
        self.message = message if message is not None else default_message
        self.type = type_ if type_ is not None else default_type
        self.details = details
        self.headers = headers
        super().__init__(f"{status} {self.type}")

    def body(self, request_id: str) -> bytes:
        """`{"type":"error","error":{"type","message","details"?},"request_id"}`."""
        return json.dumps(self.document(request_id), separators=(",", ":")).encode()

    def document(self, request_id: str | None) -> dict[str, object]:
        error: dict[str, object] = {"type": self.type, "message": self.message}
        if self.details is not None:
            error["details"] = dict(self.details)
        document: dict[str, object] = {"type": "error", "error": error}
        if request_id is not None:
            document["request_id"] = request_id
        return document
