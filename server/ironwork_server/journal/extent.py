"""How far a journal file is durable, and where in it an entry is found."""

from array import array
from collections.abc import Iterable
from typing import Final

# Every STEP-th entry's offset is kept: 8 bytes for each, 32 KiB for a million entries.
STEP: Final = 256


class Extent:
    """What is durable of a journal file: entries, and bytes with the header.

    One thread (the writer's) advances it; any thread reads it. `end` is replaced whole, and only
    after the offsets that it covers are in place.
    """

    def __init__(self, header_bytes: int) -> None:
        self._offsets = array("Q")
        self._end = (0, header_bytes)

    @property
    def end(self) -> tuple[int, int]:
        """How many entries are durable, and the file offset after the last of them."""
        return self._end

    def advance(self, lengths: Iterable[int]) -> None:
        """Add entries of these lengths in bytes, line feeds included."""
        count, offset = self._end
        for length in lengths:
            if count % STEP == 0:
                self._offsets.append(offset)
            count += 1
            offset += length
        self._end = (count, offset)

    def before(self, index: int) -> tuple[int, int]:
        """The nearest known entry at or before a durable one: its index and offset."""
        mark = index // STEP
        return mark * STEP, self._offsets[mark]
