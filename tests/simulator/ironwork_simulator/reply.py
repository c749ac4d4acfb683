"""What a route answers, before it is played onto a connection."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.errors import ApiError


@dataclass(slots=True)
class Reply:
    """A status, headers, and a body: of known bytes, or of the events of a stream.

    paces: how many of the simulator's paces a unary answer takes to think of.
    """

    status: int
    content_type: str
    body: bytes = b""
    events: Iterable[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    paces: int = 1


def refusal(error: ApiError, request_id: str) -> Reply:
    """An error as Anthropic answers it. 429 names when to come back."""
    headers = list(error.headers)
    names = {name for name, _ in headers}
    if error.status == 429 and "retry-after" not in names:
        headers.append(("retry-after", "30"))
    if error.status >= 400:
        retry = error.status in {408, 409, 429} or error.status >= 500
        headers.append(("x-should-retry", "true" if retry else "false"))
    return Reply(error.status, "application/json", error.body(request_id), headers=headers)


def overridden(behaviour: Behaviour, key: str | None, request_id: str) -> Reply | None:
    """The reply that a behaviour gives instead of the route's; None where it gives none."""
    if behaviour.body is not None:
        body = behaviour.body.encode("latin-1", "replace")
        return Reply(behaviour.status or 200, behaviour.content_type, body)
    if behaviour.status is None or behaviour.status == 200:
        return None
    if behaviour.location is not None or 300 <= behaviour.status < 400:
        return Reply(behaviour.status, "text/html", b"")
    message = behaviour.message
    if behaviour.echo_key == "error":
        message = f"invalid x-api-key: {key or ''}"
    retry_after = behaviour.retry_after_s
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    error = ApiError(
        behaviour.status,
        message,
        type_=behaviour.error_type,
        details=behaviour.details,
        headers=headers,
    )
    return refusal(error, request_id)


def dressed(reply: Reply, behaviour: Behaviour, key: str | None) -> Reply:
    """The reply with the headers that a behaviour adds (those it drops, the player drops)."""
    headers = [*reply.headers]
    if behaviour.location is not None:
        headers.append(("location", behaviour.location))
    if behaviour.retry_after_s is not None and "retry-after" not in dict(headers):
        headers.append(("retry-after", str(behaviour.retry_after_s)))
    if behaviour.echo_key == "header":
        headers.append(("x-echo", key or ""))
    if behaviour.huge_header is not None:
        headers.append(("x-huge", "a" * behaviour.huge_header))
    return replace(reply, headers=headers)
