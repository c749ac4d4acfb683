"""What a route answers, before it is played onto a connection."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.errors import ApiError
from ironwork_simulator.filling import compressed_parts, filling


@dataclass(slots=True)
class Reply:
    """A status, headers, and a body: of known bytes, or of the events of a stream.

    paces: how many of the simulator's paces a unary answer takes to think of. length: of the events
    in all, where they go with a content-length and not in chunks.
    """

    status: int
    content_type: str
    body: bytes = b""
    events: Iterable[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    paces: int = 1
    length: int | None = None


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


def replaces(behaviour: Behaviour) -> bool:
    """Whether a behaviour gives an answer of its own, whatever the request's body says."""
    own = behaviour.body is not None or behaviour.fill is not None or behaviour.raw is not None
    return own or behaviour.status not in {None, 200}


def overridden(behaviour: Behaviour, key: str | None, request_id: str) -> Reply | None:
    """The reply that a behaviour gives instead of the route's; None where it gives none."""
    if behaviour.body is not None:
        body = behaviour.body.encode("latin-1", "replace")
        return Reply(behaviour.status or 200, behaviour.content_type, body)
    if behaviour.fill is not None:
        events = filling(behaviour.fill)
        length = behaviour.fill
        return Reply(200, "application/octet-stream", events=events, length=length)
    if behaviour.status is None or behaviour.status == 200:
        return None
    if behaviour.location is not None or 300 <= behaviour.status < 400:
        return Reply(behaviour.status, "text/html", b"")
    if behaviour.status < 300:
        return Reply(behaviour.status, behaviour.content_type, b"")
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
    if behaviour.encoding is None:
        return replace(reply, headers=headers)
    headers.append(("content-encoding", behaviour.encoding))
    return replace(compressed(reply, behaviour.encoding), headers=headers)


def compressed(reply: Reply, encoding: str) -> Reply:
    """The reply with its body compressed; what is a stream can be read part by part."""
    if reply.events is not None:
        return replace(reply, events=compressed_parts(reply.events, encoding), length=None)
    return replace(reply, body=b"".join(compressed_parts([reply.body], encoding)))
