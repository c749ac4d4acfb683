"""Server-sent events out of a byte stream, cut anywhere (WHATWG HTML, section 9.2.6).

Only events of wanted types are read, and only where the `event` line comes before the `data`, as
Anthropic writes them. All else, nearly the whole of a stream, is passed over by one search.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLargeError(Exception):
    """An event of a wanted type has more data than the bound, or they have too many lines."""


class EventReader:
    """Calls on_event(type, data) for each complete event of a wanted type.

    Holds at most max_event bytes of data and as much of an unfinished line. How the stream is cut
    into pieces makes no difference.
    """

    def __init__(
        self,
        wanted: Iterable[bytes],
        on_event: Callable[[bytes, bytes], None],
        *,
        max_event: int,
        max_lines: int,
    ) -> None:
        """max_event: bytes of one event's data. max_lines: lines of all wanted events together."""
        self._wanted: Final = frozenset(wanted)
        self._on_event: Final = on_event
        self._max_event: Final = max_event
        self._lines_left = max_lines
        names = b"|".join(re.escape(name) for name in sorted(self._wanted))
        # A literal at the pattern's beginning makes the search fast; that it begins a line is
        # looked up behind it.
        self._begins: Final = re.compile(
            rb"event(?<![^\r\n]event): ?+(?:" + names + rb")(?=[\r\n])"
        )
        # What may yet become an `event` line of a wanted type: a line's beginning, no longer.
        self._max_tail: Final = max(len(name) for name in self._wanted) + len(b"event: ")
        self._tail = b""
        self._is_mid_line = False
        # Of the event that is being read:
        self._is_reading = False
        self._line = bytearray()
        self._line_is_cut = False
        self._is_after_cr = False
        self._type = b""
        self._data: list[bytes] = []
        self._data_length = 0
        self._data_is_cut = False

    def feed(self, chunk: bytes) -> None:
        """Raises EventTooLargeError, and whatever on_event raises."""
        if self._tail:
            chunk, self._tail = self._tail + chunk, b""
        position = 0
        while position < len(chunk):
            position = (
                self._read(chunk, position) if self._is_reading else self._skip(chunk, position)
            )

    def _skip(self, chunk: bytes, position: int) -> int:
        """Pass over everything up to the next wanted event's first line."""
        if self._is_mid_line:
            line_end = _LINE_END.search(chunk, position)
            if line_end is None:
                return len(chunk)
            self._is_mid_line = False
            position = line_end.end()
        begins = self._begins.search(chunk, position)
        if begins is not None:
            self._is_reading = True
            return begins.start()
        line_start = max(position, chunk.rfind(b"\n") + 1, chunk.rfind(b"\r") + 1)
        if len(chunk) - line_start > self._max_tail:
            self._is_mid_line = True
        else:
            self._tail = chunk[line_start:]
        return len(chunk)

    def _read(self, chunk: bytes, position: int) -> int:
        """Take one line of the event, or its beginning."""
        if self._is_after_cr:
            # CR LF across two chunks is one line end: the CR has ended the line already.
            self._is_after_cr = False
            if chunk[position] == 0x0A:
                return position + 1
        line_end = _LINE_END.search(chunk, position)
        if line_end is None:
            self._extend_line(chunk, position, len(chunk))
            return len(chunk)
        self._extend_line(chunk, position, line_end.start())
        self._is_after_cr = line_end.end() == len(chunk) and chunk[-1] == 0x0D
        self._end_line()
        return line_end.end()

    def _extend_line(self, chunk: bytes, start: int, end: int) -> None:
        room = self._max_event - len(self._line)
        if end - start > room:
            self._line_is_cut = True
            end = start + room
        self._line += chunk[start:end]

    def _end_line(self) -> None:
        self._lines_left -= 1
        if self._lines_left < 0:
            raise EventTooLargeError
        line, is_cut = bytes(self._line), self._line_is_cut
        self._line.clear()
        self._line_is_cut = False
        if not line:
            self._end_event()
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._type = b"" if is_cut else value
        elif field == b"data":
            self._add_data(value, is_cut=is_cut)

    def _add_data(self, value: bytes, *, is_cut: bool) -> None:
        self._data_length += len(value) + 1
        if is_cut or self._data_length > self._max_event:
            self._data_is_cut = True
            self._data.clear()
        else:
            self._data.append(value)

    def _end_event(self) -> None:
        event, data, is_cut = self._type, self._data, self._data_is_cut
        self._type, self._data, self._data_length, self._data_is_cut = b"", [], 0, False
        self._is_reading = False
        if event not in self._wanted:
            return
        if is_cut:
            raise EventTooLargeError
        if data:
            self._on_event(event, b"\n".join(data))
