"""The misbehaviours: one table of what can be asked for, and the queue of what was asked for.

A behaviour reaches a request in one of four ways; the first that applies counts:
1. `Simulator.script(match, behaviour, times)`, in the order of scripting;
2. the request header `anthropic-simulator: {"status": 529}` (JSON, or a name of NAMED_BEHAVIOURS);
3. the behaviour that the key was registered with;
4. none: the simulator behaves.

Everything is plain data, so that the control endpoint and a keys file say it as JSON. To add a
misbehaviour: a field here, its effect in ironwork_simulator.player (or reply, for the answer).
"""

import dataclasses
import json
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from ironwork_simulator.plain import Invalid, read_dataclass

HEADER = "anthropic-simulator"
_MAX_RULES = 1_000

Cut = Literal[
    "close_before_head",  # FIN without a byte of an answer
    "reset_before_head",  # TCP RST without a byte of an answer
    "content_length",  # the head promises more bytes than come; FIN
    "chunked",  # whole chunks, but never the terminating one; FIN
    "mid_chunk",  # a chunk's size line promises more bytes than come; FIN
    "reset",  # TCP RST in the middle of the body
]
Close = Literal[
    "announced",  # `connection: close`, then close
    "after_response",  # closes the idle connection without having said so
    "before_next_request",  # resets the idle connection when the next request's first byte comes
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What is different about one answer. Times in seconds, sizes in bytes.

    "Parts" are what an answer's body is written in: events of a stream; for a unary body its two
    halves where a cut or a hold wants a middle, else the whole.

    The answer
      status: this status; 4xx and 5xx with Anthropic's error body, 3xx with `location`.
      error_type, message, details: instead of the status's own.
      retry_after_s: the header `retry-after`.
      answer: this text; answer_tokens: filler of this many tokens (of four characters).
      body, content_type: this body instead (latin-1), whatever the status.
      headers, without_headers: headers to add or replace, and to leave out.
      echo_key: the key that was presented, in header `x-echo`, in the answer's text, or in an
        error's message.
      huge_header: a header `x-huge` of this many bytes.
      fill: a body of this many bytes that look random and are always the same (filling.py).
      encoding: the body compressed, with its content-encoding; a stream event by event.
      raw: these bytes (latin-1) instead of an HTTP answer; then FIN.
    When
      early: answer as soon as the request's head is here, while its body still comes.
      first_byte_delay_s: wait before the head. pace_s: instead of the simulator's pace.
      hold, hold_at, hold_after: wait for the release of this hold: at "upload" before the body of
        the request is read (a client that leaves meanwhile is noticed only afterwards), at "head"
        before the answer's first byte, at "body" once hold_after parts of the body are written.
      hang: never answer.
    How
      framing: of a unary body: with its length, or chunked; of any: up to the connection's end.
      declared_length: this content-length, whatever the body's length is; then FIN.
      trailers: after the last chunk.
      interim: heads of these 1xx statuses before the answer's own.
      drip_head: write the head byte by byte.
      endless_headers: a head that never ends, for as long as the client takes it.
      error_after: after this many events, one `event: error` (error_type or overloaded_error) and
        the clean end of the stream.
      cut, cut_after: break off once this many parts are written (Cut).
      drip, drip_interval_s: write the body in pieces of this many bytes.
      close: what becomes of the connection (Close).
    """

    status: int | None = None
    error_type: str | None = None
    message: str | None = None
    details: Mapping[str, object] | None = None
    retry_after_s: int | None = None
    location: str | None = None
    answer: str | None = None
    answer_tokens: int | None = None
    body: str | None = None
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    without_headers: tuple[str, ...] = ()
    echo_key: Literal["header", "body", "error"] | None = None
    huge_header: int | None = None
    fill: int | None = None
    encoding: Literal["gzip", "deflate"] | None = None
    raw: str | None = None
    early: bool = False
    first_byte_delay_s: float = 0.0
    pace_s: float | None = None
    hold: str | None = None
    hold_at: Literal["upload", "head", "body"] = "head"
    hold_after: int = 1
    hang: bool = False
    framing: Literal["length", "chunked", "eof"] = "length"
    declared_length: int | None = None
    trailers: tuple[tuple[str, str], ...] = ()
    interim: tuple[int, ...] = ()
    drip_head: bool = False
    endless_headers: bool = False
    error_after: int | None = None
    cut: Cut | None = None
    cut_after: int = 1
    drip: int | None = None
    drip_interval_s: float = 0.0
    close: Close | None = None

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a name of NAMED_BEHAVIOURS or an object of this class's fields; Invalid names
        the field that is wrong.
        """
        if isinstance(value, str):
            if value not in NAMED_BEHAVIOURS:
                raise Invalid(f"behaviour: expected one of {', '.join(NAMED_BEHAVIOURS)}")
            value = NAMED_BEHAVIOURS[value]
        return read_dataclass(cls, value)

    @classmethod
    def from_header(cls, value: str) -> Self:
        """Read the request header `anthropic-simulator`."""
        if not value.lstrip().startswith("{"):
            return cls.from_json(value.strip())
        try:
            fields = json.loads(value)
        except ValueError:
            raise Invalid(f"{HEADER}: is not JSON") from None
        return cls.from_json(fields)


# The misbehaviours that a demo or a hand at the keyboard wants by name.
NAMED_BEHAVIOURS: Mapping[str, Mapping[str, object]] = types.MappingProxyType(
    {
        "rate-limited": {"status": 429, "retry_after_s": 7},
        "overloaded": {"status": 529},
        "server-error": {"status": 500},
        "gateway-timeout": {"status": 504},
        "mid-stream-error": {"error_after": 5},
        "slow-first-byte": {"first_byte_delay_s": 3.0},
        "hang": {"hang": True},
        "cut": {"cut": "chunked", "cut_after": 5},
        "reset": {"cut": "reset", "cut_after": 5},
        "echo-key": {"echo_key": "body"},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests a behaviour is for; what is None matches all.

    path is without the query; a `*` at its end matches any rest. header is (name, value), the name
    in any case.
    """

    key: str | None = dataclasses.field(default=None, repr=False)
    method: str | None = None
    path: str | None = None
    header: tuple[str, str] | None = None

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read an object of this class's fields; Invalid names the field that is wrong."""
        return read_dataclass(cls, value)

    def matches(
        self, *, key: str | None, method: str, path: str, headers: list[tuple[str, str]]
    ) -> bool:
        if self.key is not None and key != self.key:
            return False
        if self.method is not None and method != self.method:
            return False
        if self.path is not None and not _path_matches(self.path, path):
            return False
        if self.header is None:
            return True
        name, wanted = self.header
        return any(n.lower() == name.lower() and v == wanted for n, v in headers)


def _path_matches(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern


@dataclass(slots=True)
class _Rule:
    match: Match
    behaviour: Behaviour
    left: int | None


class Script:
    """The queue of scripted behaviours. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []

    def add(self, match: Match, behaviour: Behaviour, times: int | None) -> None:
        """Queue behaviour for the next `times` requests that match; None: for all to come."""
        if times is not None and times < 1:
            raise Invalid("times: must be at least 1, or null for all")
        with self._lock:
            if len(self._rules) >= _MAX_RULES:
                raise Invalid(f"at most {_MAX_RULES} behaviours can be queued")
            self._rules.append(_Rule(match, behaviour, times))

    def take(
        self, *, key: str | None, method: str, path: str, headers: list[tuple[str, str]]
    ) -> Behaviour | None:
        """The behaviour for this request, used up by it."""
        if not self._rules:
            return None
        with self._lock:
            for rule in self._rules:
                if not rule.match.matches(key=key, method=method, path=path, headers=headers):
                    continue
                if rule.left is not None:
                    rule.left -= 1
                    if rule.left == 0:
                        self._rules.remove(rule)
                return rule.behaviour
        return None

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()
