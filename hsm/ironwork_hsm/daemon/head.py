"""The newest head of a record that was, or is about to be, signed: kept in the process' state.

A folder cannot tell that it is an older copy of itself, nor that another one is signed under its
name; `state`, which is apart from it, can (as the server's store does: ADR 0027). The head is kept
before it is signed, so that it is never older than the published one.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from ironwork_hsm.daemon.durable import replace_durably
from ironwork_hsm.interface import ConfigurationError, Unavailable
from ironwork_hsm.lanes import Lanes, keep

_DEADLINE_S: Final = 5.0
_MAX_BYTES: Final = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Head:
    """origin: the record's. folder_id: its folder's. size: entries. root: 64 hexadecimal digits."""

    origin: str
    folder_id: str
    size: int
    root: str


class HeadFile:
    """One record's. Belongs to one loop, which it never blocks; closed once."""

    def __init__(self, state: Path, origin: str) -> None:
        # A file name of fixed length for any origin.
        name = sha256(origin.encode()).hexdigest()[:32]
        self.path = state / f"record-head-{name}.json"
        self._lane: Lanes[None] = Lanes(
            setup=lambda: None, teardown=keep, translate=self._unusable, count=1, capacity=1
        )
        self._started = False

    async def load(self) -> Head | None:
        """What was kept; None where nothing was. Raises ConfigurationError for what we did not
        write, Unavailable.
        """
        return await self._run(self._load)

    async def keep(self, head: Head) -> None:
        """Keep this one, durably. Raises Unavailable."""
        await self._run(lambda: self._store(head))

    async def close(self) -> None:
        """End its thread."""
        await self._lane.close(deadline_s=_DEADLINE_S)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._started:
            self._started = True
            await self._lane.start(deadline_s=_DEADLINE_S)
        return await self._lane.run(lambda _: work(), deadline_s=_DEADLINE_S)

    def _load(self) -> Head | None:
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        found = json.loads(data)
        head = Head(**found)
        if (type(head.size), type(head.root), type(head.folder_id)) != (int, str, str):
            raise TypeError("a head's fields are a number and texts")
        return head

    def _store(self, head: Head) -> None:
        replace_durably(self.path, json.dumps(asdict(head)).encode("ascii"))

    def _unusable(self, error: Exception) -> ConfigurationError | Unavailable:
        if isinstance(error, OSError):
            return Unavailable(
                f"state: {self.path} cannot be used: {os.strerror(error.errno or 0)}."
            )
        return ConfigurationError(
            f"state: {self.path} is not what was written there; restore it, or, once you know that"
            " the record is its newest state (`ironwork-audit verify --since`), remove it."
        )
