"""Token usage, read from an answer's bytes while they pass.

Anthropic reports it in a message's top-level `usage`, in the events `message_start` and
`message_delta` of a stream (the latter's numbers are totals so far, not increments), and, for
count_tokens, as top-level `input_tokens`. Reading never changes, delays or fails an answer: what
is malformed, unknown or too large has no usage.
"""

import json
from collections.abc import Mapping
from typing import Protocol

from ironwork_server.core.json_fields import MalformedError, TopLevelMembers
from ironwork_server.core.sse import EventReader, EventTooLargeError
from ironwork_server.core.values import Usage

# A stream of 128,000 tokens, an event each, is about 25 MB.
MAX_DECODED_BYTES = 64 * 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024
MAX_MEMBER_BYTES = 64 * 1024
# Far more than a message of 128,000 tokens has; about a third of a second of looking.
MAX_STRUCTURE = 250_000
MAX_EVENT_LINES = 100_000

_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
_MAX_TOKENS = (1 << 63) - 1


class _Reader(Protocol):
    def feed(self, piece: bytes) -> None: ...

    def reported(self) -> Mapping[str, int]: ...


class UsageMeter:
    """Tell it the answer's type, feed it the body without its content coding; ask it at the end."""

    def __init__(self) -> None:
        self._reader: _Reader | None = None
        self._left = MAX_DECODED_BYTES

    def begin(self, content_type: bytes) -> None:
        """The value of the answer's header, `b""` where there is none."""
        self._reader = _reader_for(content_type)

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes. Never raises; holds about 1 MiB at most."""
        if self._reader is None:
            return
        self._left -= len(piece)
        if self._left < 0:
            self._reader = None
            return
        try:
            self._reader.feed(piece)
        except (MalformedError, EventTooLargeError):
            self._reader = None

    def usage(self) -> Usage | None:
        """What was reported so far; None where nothing was, or it could not be read."""
        if self._reader is None:
            return None
        try:
            reported = self._reader.reported()
        except MalformedError:
            return None
        return Usage(**reported) if reported else None


def _reader_for(content_type: bytes) -> _Reader | None:
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type == b"application/json":
        return _MessageReader()
    if media_type == b"text/event-stream":
        return _StreamReader()
    return None


class _MessageReader:
    """A whole answer: a message, or count_tokens' object."""

    def __init__(self) -> None:
        self._members = TopLevelMembers(
            (b"type", b"usage", b"input_tokens"),
            max_value=MAX_MEMBER_BYTES,
            max_structure=MAX_STRUCTURE,
        )

    def feed(self, piece: bytes) -> None:
        self._members.feed(piece)

    def reported(self) -> Mapping[str, int]:
        members = self._members.members or {}
        if members.get(b"type") == "message":
            return _tokens(members.get(b"usage"))
        if b"type" not in members:
            return _tokens({"input_tokens": members.get(b"input_tokens")})
        return {}


class _StreamReader:
    """A stream of events: the newest number of each kind counts."""

    def __init__(self) -> None:
        self._reported: dict[str, int] = {}
        self._events = EventReader(
            (b"message_start", b"message_delta"),
            self._on_event,
            max_event=MAX_EVENT_BYTES,
            max_lines=MAX_EVENT_LINES,
        )

    def feed(self, piece: bytes) -> None:
        self._events.feed(piece)

    def reported(self) -> Mapping[str, int]:
        return self._reported

    def _on_event(self, event: bytes, data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedError from None
        if event == b"message_start":
            value = _object(value).get("message")
        self._reported.update(_tokens(_object(value).get("usage")))


def _tokens(usage: object) -> dict[str, int]:
    """The numbers that a usage object reports; absent and null ones are not reported."""
    tokens: dict[str, int] = {}
    for name in _FIELDS:
        value = None if usage is None else _object(usage).get(name)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
            raise MalformedError
        tokens[name] = value
    return tokens


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise MalformedError
    return value
