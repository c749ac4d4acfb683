"""Server-sent events out of a byte stream, cut anywhere (WHATWG HTML, section 9.2.6).

Only events of wanted types are kept; of all others nothing but where they end.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLargeError(Exception):
    """An event of a wanted type has more data than the bound."""


class EventReader:
    """Calls on_event(type, data) for each complete event of a wanted type.

    Holds at most max_event bytes of data and as much of an unfinished line. An event without a
    type is none that is wanted. Lines of unwanted events are dropped however long they are.
    """

    def __init__(
        self,
        wanted: Iterable[bytes],
        on_event: Callable[[bytes, bytes], None],
        *,
        max_event: int,
    ) -> None:
        self._wanted: Final = frozenset(wanted)
        self._unwanted: Final = _unwanted_events(self._wanted)
        self._on_event: Final = on_event
        self._max_event: Final = max_event
        self._line = bytearray()
        self._line_is_cut = False
        self._after_cr = False
        self._type = b""
        self._data: list[bytes] = []
        self._data_length = 0
        self._data_is_cut = False

    def feed(self, chunk: bytes) -> None:
        """Raises EventTooLargeError, and whatever on_event raises."""
        if not chunk:
            return
        # CR LF across two chunks is one line end: the CR has ended the line already.
        start = 1 if self._after_cr and chunk[0] == 0x0A else 0
        self._after_cr = chunk[-1] == 0x0D
        start = self._skip_unwanted(chunk, start)
        while (end := _LINE_END.search(chunk, start)) is not None:
            self._extend_line(chunk, start, end.start())
            self._end_line()
            start = self._skip_unwanted(chunk, end.end())
        self._extend_line(chunk, start, len(chunk))

    def _skip_unwanted(self, chunk: bytes, start: int) -> int:
        """Where the whole, unwanted events that begin at start end: nearly all of a stream, so
        the pattern's speed is this reader's.
        """
        if self._line or self._line_is_cut or self._type or self._data or self._data_is_cut:
            return start
        match = self._unwanted.match(chunk, start)
        return start if match is None else match.end()

    def _extend_line(self, chunk: bytes, start: int, end: int) -> None:
        room = self._max_event - len(self._line)
        if end - start > room:
            self._line_is_cut = True
            end = start + room
        self._line += chunk[start:end]

    def _end_line(self) -> None:
        line, is_cut = bytes(self._line), self._line_is_cut
        self._line.clear()
        self._line_is_cut = False
        if not line:
            self._dispatch()
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._type = b"" if is_cut else value
        elif field == b"data":
            self._add_data(value, is_cut=is_cut)

    def _add_data(self, value: bytes, *, is_cut: bool) -> None:
        if self._type and self._type not in self._wanted:
            return
        self._data_length += len(value) + 1
        if is_cut or self._data_length > self._max_event:
            self._data_is_cut = True
            self._data.clear()
            return
        self._data.append(value)

    def _dispatch(self) -> None:
        event, data, is_cut = self._type, self._data, self._data_is_cut
        self._type, self._data, self._data_length, self._data_is_cut = b"", [], 0, False
        if event not in self._wanted:
            return
        if is_cut:
            raise EventTooLargeError
        if data:
            self._on_event(event, b"\n".join(data))


def _unwanted_events(wanted: Iterable[bytes]) -> re.Pattern[bytes]:
    """Any number of whole events in the commonest spelling: a type that is not wanted, then data.

    Possessive, so that nothing is tried twice.
    """
    names = b"|".join(re.escape(name) for name in sorted(wanted))
    return re.compile(
        rb"(?:event: ?+(?!(?:" + names + rb")\n)[^\r\n]*+\n(?:data:[^\r\n]*+\n)*+\n)++"
    )
