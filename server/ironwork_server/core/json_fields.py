"""A few top-level members of a JSON object (RFC 8259) that passes in pieces.

The document is never kept: patterns run over strings and scalars, a counter follows the nesting,
and only the values of the wanted members are gathered, within a bound. What lies inside other
members is not checked, so a document can be read here that a parser would refuse; what is not an
object, or not complete, is not read.
"""

import json
import re
from collections.abc import Iterable
from typing import Final

# A long part at a position that changes nothing in the scanner's state. The repetitions of a group
# are bounded, since each takes memory until the match is over; the scanner goes on where one ended.
# Possessive ones would take none, but some releases of CPython 3.11, Debian 12's among them, match
# them wrongly (python/cpython#106052).
_STRING_PART = re.compile(rb'[^"\\]*(?:\\.[^"\\]*){0,256}', re.DOTALL)
_FLAT_PART = re.compile(rb'[^"{}\[\],]*')
_NESTED_PART = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]*(?:\\.[^"\\]*){0,16}"){0,256}', re.DOTALL)
_BLANK_PART = re.compile(rb"[ \t\r\n]*")

_MAX_NAME = 64
_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OBJECT_BEGINS, _OBJECT_ENDS = b"{}"
_BEGINS = b"{["
_STRUCTURE = b"{}[]"


class MalformedError(Exception):
    """No JSON object, a wanted member that is too long, or more structure than is looked at."""


class TopLevelMembers:
    """Reads the wanted members of one object; holds one name and one value.

    How the document is cut into pieces makes no difference.
    """

    def __init__(self, wanted: Iterable[bytes], *, max_value: int, max_structure: int) -> None:
        """wanted: names of fewer than 64 bytes, as they are spelled in JSON. max_value: bytes of
        one wanted member. max_structure: how many brackets and members are looked at.
        """
        self._wanted: Final = frozenset(wanted)
        self._max_value: Final = max_value
        self._structure_left = max_structure
        self._state = self._before
        self._name = bytearray()
        self._value = bytearray()
        self._keeps_value = False
        self._depth = 0
        self._escaped = False
        self._found: dict[bytes, object] = {}
        self._complete = False

    @property
    def members(self) -> dict[bytes, object] | None:
        """The wanted members that there are, the last of equal names; None while the object is
        not complete.
        """
        return self._found if self._complete else None

    def feed(self, chunk: bytes) -> None:
        """Raises MalformedError, after which the reader is of no use."""
        position = 0
        while position < len(chunk):
            position = self._state(chunk, position)

    # Each state takes what it can from a position on and returns where it stopped.

    def _before(self, chunk: bytes, position: int) -> int:
        position = _end(_BLANK_PART, chunk, position)
        if position < len(chunk):
            if chunk[position] != _OBJECT_BEGINS:
                raise MalformedError
            self._state = self._between_members
        return position + 1

    def _between_members(self, chunk: bytes, position: int) -> int:
        position = _end(_BLANK_PART, chunk, position)
        if position < len(chunk):
            if chunk[position] == _QUOTE:
                self._count_structure()
                self._name.clear()
                self._state = self._in_name
            elif chunk[position] == _OBJECT_ENDS:
                self._end_object()
            else:
                raise MalformedError
        return position + 1

    def _in_name(self, chunk: bytes, position: int) -> int:
        end, is_over = self._string_end(chunk, position)
        part = chunk[position : end - 1 if is_over else end]
        # A longer name is cut, and then equals none that is wanted.
        self._name += part[: _MAX_NAME - len(self._name)]
        if is_over:
            self._state = self._after_name
        return end

    def _after_name(self, chunk: bytes, position: int) -> int:
        position = _end(_BLANK_PART, chunk, position)
        if position < len(chunk):
            if chunk[position] != _COLON:
                raise MalformedError
            self._keeps_value = bytes(self._name) in self._wanted
            self._value.clear()
            self._state = self._in_value
        return position + 1

    def _in_value(self, chunk: bytes, position: int) -> int:
        end = _end(_NESTED_PART if self._depth else _FLAT_PART, chunk, position)
        if end == len(chunk):
            self._keep(chunk[position:end])
            return end
        mark = chunk[end]
        if self._depth == 0 and mark in {_COMMA, _OBJECT_ENDS}:
            self._keep(chunk[position:end])
            self._end_member()
            if mark == _OBJECT_ENDS:
                self._end_object()
            return end + 1
        if mark == _QUOTE:
            self._state = self._in_string
        elif mark in _STRUCTURE:
            self._count_structure()
            self._depth += 1 if mark in _BEGINS else -1
            if self._depth < 0:
                raise MalformedError
        else:
            # Only the bound on repetitions ended the part here.
            self._keep(chunk[position:end])
            return end
        self._keep(chunk[position : end + 1])
        return end + 1

    def _in_string(self, chunk: bytes, position: int) -> int:
        end, is_over = self._string_end(chunk, position)
        self._keep(chunk[position:end])
        if is_over:
            self._state = self._in_value
        return end

    def _after(self, chunk: bytes, position: int) -> int:
        if _end(_BLANK_PART, chunk, position) < len(chunk):
            raise MalformedError
        return len(chunk)

    # Steps of the states.

    def _string_end(self, chunk: bytes, position: int) -> tuple[int, bool]:
        """Where the string's part in this chunk ends, past its quote, and whether it is over."""
        if self._escaped:
            self._escaped = False
            return position + 1, False
        end = _end(_STRING_PART, chunk, position)
        if end == len(chunk):
            return end, False
        # A backslash that stops the pattern escapes what comes next, in this chunk or another.
        self._escaped = chunk[end] == _BACKSLASH
        return end + 1, not self._escaped

    def _keep(self, part: bytes) -> None:
        if self._keeps_value:
            if len(self._value) + len(part) > self._max_value:
                raise MalformedError
            self._value += part

    def _end_member(self) -> None:
        if self._keeps_value:
            try:
                self._found[bytes(self._name)] = json.loads(bytes(self._value))
            except (ValueError, RecursionError):
                raise MalformedError from None
        self._state = self._between_members

    def _end_object(self) -> None:
        self._complete = True
        self._state = self._after

    def _count_structure(self) -> None:
        self._structure_left -= 1
        if self._structure_left < 0:
            raise MalformedError


def _end(pattern: re.Pattern[bytes], chunk: bytes, position: int) -> int:
    """Where a pattern that matches everywhere, if only the empty string, ends."""
    match = pattern.match(chunk, position)
    return position if match is None else match.end()
