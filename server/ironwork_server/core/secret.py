"""The one type that holds a plaintext: owned, wiped by its owner, and silent everywhere else."""

from types import TracebackType
from typing import NoReturn, Self


def wipe(buffer: bytearray | memoryview) -> None:
    """Overwrite a buffer of bytes with zeros, in place.

    An assignment of equal length never moves the buffer, so no copy stays behind, and it works
    while a view of the buffer is lent. Raises TypeError for a read-only view.
    """
    buffer[:] = bytes(len(buffer))


class Secret:
    """Key material in a bytearray of its own.

    It shows itself nowhere: repr, str and format give a constant; it cannot be pickled, copied,
    hashed or compared. Whoever makes one wipes it (`with Secret(...) as key:`). `reveal` lends
    the buffer; a borrower neither keeps nor copies it.
    """

    __slots__ = ("_buffer",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._buffer = bytearray(value)

    def reveal(self) -> memoryview:
        """The bytes themselves, read-only, valid until wipe(). HAZMAT: never log, keep or copy."""
        return memoryview(self._buffer).toreadonly()

    def wipe(self) -> None:
        """Overwrite the bytes with zeros. Safe to call again."""
        wipe(self._buffer)

    def __len__(self) -> int:
        return len(self._buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "Secret(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("a Secret cannot be compared; compare fingerprints")

    __hash__ = None  # type: ignore[assignment]
