"""What witnesses need of the log's folder, and what they signed kept in it.

checkpoint.witnessed  the newest checkpoint that a quorum has signed, with their signatures
witness/<key id>      the newest one that this witness has signed: where to go on after a restart
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from ironwork_audit.log import FileSystem, OperatingSystem, WriteFailed
from ironwork_audit.log.filesystem import sync_folder, write_file
from ironwork_audit.tlog import BadTile, TileReader, VerifierKey, consistency_proof
from ironwork_audit.witness import WITNESSED
from ironwork_audit.witness_submission import WitnessFailed
from ironwork_server.journal.aside import Aside

FOLDER: Final = "witness"
DEADLINE_S: Final = 5.0

T = TypeVar("T")


class Hashes(Protocol):
    """A journal whose tree can be read; see FileJournal."""

    def hashes(self, size: int) -> TileReader: ...


class WitnessFiles:
    """republish: puts a cosigned checkpoint in the place of the published one, where that is the
    same. No method blocks the loop: a disk that hangs is waited for no longer than DEADLINE_S.
    """

    def __init__(
        self,
        folder: Path,
        journal: Hashes,
        republish: Callable[[bytes], Awaitable[None]],
        *,
        file_system: FileSystem | None = None,
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._republish = republish
        self._file_system = file_system or OperatingSystem()
        self._aside = Aside("audit-witness")
        # Aside takes one call at a time.
        self._turn = asyncio.Lock()

    async def prove(self, old_size: int, size: int) -> Sequence[bytes]:
        """That the log's tree of old_size is a prefix of that of size. Raises WitnessFailed."""
        try:
            return await self._run(
                lambda: consistency_proof(old_size, size, self._journal.hashes(size))
            )
        except (OSError, BadTile, TimeoutError):
            raise WitnessFailed("WITNESS_PROOF_UNAVAILABLE") from None

    async def keep(self, key: VerifierKey, note: bytes) -> None:
        """Keep what this witness signed last. Raises OSError, TimeoutError."""
        await self._run(lambda: self._write(self._folder / FOLDER, key.key_id.hex(), note))

    async def publish(self, note: bytes) -> None:
        """Publish a witnessed checkpoint. Raises OSError, TimeoutError, Unavailable."""
        await self._run(lambda: self._write(self._folder, WITNESSED, note))
        await self._republish(note)

    def kept(self, key: VerifierKey) -> bytes | None:
        """What was kept for this witness; None where nothing was. Blocks. Raises OSError."""
        return _read(self._folder / FOLDER / key.key_id.hex())

    def witnessed(self) -> bytes | None:
        """The newest witnessed checkpoint; None where there is none. Blocks. Raises OSError."""
        return _read(self._folder / WITNESSED)

    def _write(self, folder: Path, name: str, note: bytes) -> None:
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                sync_folder(self._file_system, folder.parent)
            write_file(self._file_system, folder / name, note)
            sync_folder(self._file_system, folder)
        except WriteFailed as failed:
            # Each attempt writes a new file, and what is lost the witness says again.
            raise OSError(failed.what) from None

    async def _run(self, work: Callable[[], T]) -> T:
        async with asyncio.timeout(DEADLINE_S), self._turn:
            return await self._aside.run(work, deadline_s=DEADLINE_S)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
