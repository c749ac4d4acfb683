"""A key that comes back in bytes that pass: found before its last byte is out (DESIGN 3).

What is looked for is what any key of this length and with these last four characters would be: the
constant prefix, visible ASCII to the end, the four characters. None of it is secret, and no
plaintext of the key is needed for it. A run of bytes that satisfies all of it is a candidate;
whoever holds the fingerprint judges it, and the search waits.

Held back is only the longest end of what came so far that more bytes could make a candidate: at
most the key's length less one, nearly always nothing.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ironwork_server.core.api_key import MIN_LENGTH, PREFIX
from ironwork_server.core.decoding import BoundedDecoder, UndecodableError

# Compressed bytes behind which no decoded byte is certain yet. An honest answer holds one piece of
# 16 KiB, and a few small ones behind it.
MAX_CODED_BYTES = 64 * 1024
# Work, not memory: a decoded answer is looked through and dropped. Files have 500 MB.
MAX_DECODED_BYTES = 8 * 1024**3

_TAIL = 4
_NOT_VISIBLE = re.compile(rb"[^\x21-\x7e]")
# What an unfinished prefix at the end of a piece looks like.
_BEGINNINGS = tuple(PREFIX[:size] for size in range(len(PREFIX) - 1, 0, -1))


class EchoScanner:
    """Bytes in, bytes out, in order and unchanged; stops at each candidate.

    Feed it while there is no candidate; `dismiss` one that is not the key.
    """

    def __init__(self, *, length: int, last_four: bytes) -> None:
        """The key's length in bytes and its last four characters, as its mask shows them. Raises
        ValueError for what no key has.
        """
        if length < MIN_LENGTH or len(last_four) != _TAIL:
            raise ValueError("no key is so short, or has such an end")
        self._length = length
        self._last_four = last_four
        # Begins with what may become the key; behind a candidate stands what came with it.
        self._held = b""
        self._has_candidate = False

    @property
    def held(self) -> int:
        """How many bytes are held back."""
        return len(self._held)

    @property
    def candidate(self) -> memoryview | None:
        """The bytes that may be the key; to be judged before anything else is done here."""
        return memoryview(self._held)[: self._length] if self._has_candidate else None

    def feed(self, piece: bytes) -> bytes:
        """What may pass now. Look at `candidate` afterwards. Raises ValueError at a candidate."""
        if self._has_candidate:
            raise ValueError("the candidate is not judged yet")
        if not self._held and PREFIX not in piece and not piece.endswith(_BEGINNINGS):
            return piece
        return self._scan(self._held + piece, 0)

    def dismiss(self) -> bytes:
        """The candidate is not the key: what may pass now. Another may follow."""
        if not self._has_candidate:
            raise ValueError("there is no candidate")
        return self._scan(self._held, 1)

    def finish(self) -> bytes:
        """The end: what was held back is not the whole key."""
        held, self._held = self._held, b""
        return held

    @property
    def holds_secret(self) -> bool:
        """Whether what is held back may be more of the key than its constant prefix."""
        return len(self._held) > len(PREFIX)

    def _scan(self, data: bytes, position: int) -> bytes:
        start = self._find(data, position)
        self._held = data[start:]
        self._has_candidate = len(self._held) >= self._length
        return data[:start]

    def _find(self, data: bytes, position: int) -> int:
        """Where the first run begins that is a candidate or may become one; else the end."""
        visible_to = position
        while (start := data.find(PREFIX, position)) >= 0:
            end = min(start + self._length, len(data))
            gap = _NOT_VISIBLE.search(data, max(start, visible_to), end)
            if gap is not None:
                # No key reaches over it, wherever before it one would begin.
                position = visible_to = gap.end()
                continue
            visible_to = end
            if self._last_four.startswith(data[start + self._length - _TAIL : end]):
                return start
            position = start + 1
        for beginning in _BEGINNINGS:
            if data.endswith(beginning):
                return len(data) - len(beginning)
        return len(data)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Bytes that may be the key. Going on with the iteration says that they are not."""

    value: memoryview = field(repr=False)


# Sees a body's bytes, without their content coding, as they pass. Raises nothing, keeps no piece.
Look = Callable[[bytes], None]


class EchoFilter(Protocol):
    """An answer's body on its way through the search."""

    def feed(self, chunk: bytes) -> Iterator[bytes | Candidate]:
        """Bytes that may pass, in order, and candidates. Consume it whole, or feed no more. An
        empty piece is a place to pause. Raises UndecodableError.
        """

    def finish(self) -> Iterator[bytes]:
        """The answer has ended as its framing says: the rest of it."""

    def abandon(self) -> Iterator[bytes]:
        """The answer broke off: the rest, unless it may be a key's secret part broken off."""


def look_away(_: bytes) -> None:
    """A Look that sees nothing."""


def echo_filter(
    content_encoding: bytes, scanner: EchoScanner, look: Look = look_away
) -> EchoFilter:
    """content_encoding: the header's value, several joined by commas, `b""` for none. look sees
    each decoded piece before anything of it passes: so a body is decoded once, for everybody.
    Raises UndecodableError for a coding that cannot be looked into (core.decoding.CODINGS can).
    """
    if content_encoding.strip().lower() in {b"", b"identity"}:
        return _PlainFilter(scanner, look)
    decoder = BoundedDecoder(content_encoding, max_bytes=MAX_DECODED_BYTES)
    return _CodedFilter(scanner, look, decoder)


class _PlainFilter:
    """What passes the scanner passes."""

    def __init__(self, scanner: EchoScanner, look: Look) -> None:
        self._scanner = scanner
        self._look = look

    def feed(self, chunk: bytes) -> Iterator[bytes | Candidate]:
        self._look(chunk)
        yield self._scanner.feed(chunk)
        while (candidate := self._scanner.candidate) is not None:
            yield Candidate(candidate)
            yield self._scanner.dismiss()

    def finish(self) -> Iterator[bytes]:
        yield self._scanner.finish()

    def abandon(self) -> Iterator[bytes]:
        if not self._scanner.holds_secret:
            yield self._scanner.finish()


class _CodedFilter:
    """Compressed chunks pass whole and untouched, each when all that it decodes to may pass."""

    def __init__(self, scanner: EchoScanner, look: Look, decoder: BoundedDecoder) -> None:
        self._scanner = scanner
        self._look = look
        self._decoder = decoder
        # Decoded bytes that passed the scanner.
        self._passed = 0
        # Each chunk held back, and where its decoded bytes end.
        self._chunks: list[tuple[bytes, int]] = []
        self._held = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | Candidate]:
        for piece in self._decoder.feed(chunk):
            self._look(piece)
            self._passed += len(self._scanner.feed(piece))
            while (candidate := self._scanner.candidate) is not None:
                yield Candidate(candidate)
                self._passed += len(self._scanner.dismiss())
            yield b""
        self._chunks.append((chunk, self._passed + self._scanner.held))
        self._held += len(chunk)
        while self._chunks and self._chunks[0][1] <= self._passed:
            ready, _ = self._chunks.pop(0)
            self._held -= len(ready)
            yield ready
        if self._held > MAX_CODED_BYTES:
            raise UndecodableError

    def finish(self) -> Iterator[bytes]:
        for chunk, _ in self._chunks:
            yield chunk

    def abandon(self) -> Iterator[bytes]:
        if not self._scanner.holds_secret:
            yield from self.finish()
