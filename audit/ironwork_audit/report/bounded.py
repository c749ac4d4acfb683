"""Counting what comes in unknown variety, in bounded memory."""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

MOST_ROWS: Final = 10_000

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")


class Rows(Generic[Key, Row]):
    """A row for each key, up to MOST_ROWS of them; all keys after those share one row, `others`."""

    def __init__(self, make: Callable[[], Row], most: int = MOST_ROWS) -> None:
        self._make = make
        self._most = most
        self.rows: dict[Key, Row] = {}
        self.others: Row | None = None

    def __getitem__(self, key: Key) -> Row:
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) < self._most:
                row = self.rows[key] = self._make()
            else:
                row = self.others = self.others or self._make()
        return row


class Seen(Generic[Key]):
    """Which keys were there before; full, it says so, and every key counts as known."""

    def __init__(self, most: int = 10 * MOST_ROWS) -> None:
        self._most = most
        self._keys: set[Key] = set()

    @property
    def full(self) -> bool:
        return len(self._keys) >= self._most

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, key: Key) -> bool:
        """Whether it is new."""
        if key in self._keys or self.full:
            return False
        self._keys.add(key)
        return True
