"""Keeping a log for years: what may be moved away, and what is proven by what was moved."""

import asyncio
import shutil
from pathlib import Path

import pytest

from fixtures.journal_disk import Unsynced
from fixtures.journal_events import made
from fixtures.log_faults_child import signed
from fixtures.tlog_made import KEY, ORIGIN
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import TilePath
from ironwork_audit.verify import verify
from ironwork_server.core.errors import OutOfRange
from ironwork_server.core.values import Phase
from ironwork_server.journal import EntryFilter, FileJournal, JournalError

FULL_TILES = 4


async def go_on(folder: Path, entries: int) -> None:
    """Open as a server does, append, sign and end."""
    journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced())
    for first in range(0, entries, 50):
        await journal.append(*[made(number) for number in range(first, first + 50)])
    await journal.publish(signed(await journal.integrate()))
    await journal.close()


async def with_a_deletion(folder: Path) -> None:
    journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced())
    intent = made(7, operation="DeleteKey", phase=Phase.INTENT)
    await journal.append(intent)
    gone = made(7, operation="DeleteKey", phase=Phase.OUTCOME, success=True, intent_index=0)
    await journal.append(gone)
    await journal.close()


async def check_reading(folder: Path) -> None:
    """What was removed cannot be read or proven, and the answer says from where on; what is there
    can.
    """
    journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced())
    reader = journal.reader()
    first, size = 256 * (FULL_TILES - 1), 256 * FULL_TILES
    for gone in (
        reader.page(after_index=-1, limit=1, filter=EntryFilter()),
        reader.page(after_index=first - 2, limit=1, filter=EntryFilter()),
        reader.inclusion(first - 1, size),
        reader.consistency(first - 1, size),
    ):
        with pytest.raises(OutOfRange) as refused:
            await gone
        assert (refused.value.reason, refused.value.code.name) == ("AUDIT_PRUNED", "OUT_OF_RANGE")
        assert refused.value.metadata == {"first_index": str(first)}
    kept = await reader.page(after_index=first - 1, limit=9, filter=EntryFilter())
    assert len(kept.entries) == 9
    assert await reader.inclusion(first, size)
    assert await reader.consistency(first, size)
    await journal.close()


def add_to_archive(folder: Path, archive: Path) -> None:
    """The checkpoint is read first and put there last; nothing that is there is written again."""
    archive.mkdir(exist_ok=True)
    checkpoint = (folder / "checkpoint").read_bytes()
    for path in sorted((folder / "tile").rglob("*")):
        target = archive / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (archive / "checkpoint").write_bytes(checkpoint)


def prune(folder: Path, tiles: int) -> None:
    """Remove the first full bundles and their tiles of level 0; higher levels stay."""
    for number in range(tiles):
        (folder / TilePath(None, number).path).unlink()
        (folder / TilePath(0, number).path).unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of more than four full tiles, ended in order; its first entries delete a key."""
    folder = tmp_path / "log"
    asyncio.run(with_a_deletion(folder))
    asyncio.run(go_on(folder, 256 * FULL_TILES + 150))
    return folder


def test_an_archive_is_a_log_of_its_own(folder: Path, tmp_path: Path) -> None:
    """What was copied, whenever, verifies alone, and each time as what it was, grown."""
    archive = tmp_path / "archive"
    add_to_archive(folder, archive)
    first = (archive / "checkpoint").read_bytes()
    assert verify(FolderSource(archive), KEY).finding is None
    asyncio.run(go_on(folder, 400))
    add_to_archive(folder, archive)
    verdict = verify(FolderSource(archive), KEY, since=first)
    assert verdict.finding is None
    assert verdict.since is not None


def test_what_is_archived_may_be_pruned(folder: Path, tmp_path: Path) -> None:
    """A log without its first full bundles and their tiles goes on, knows deleted keys, and its
    archive, with what came since, verifies from the first entry; alone it does not.
    """
    archive = tmp_path / "archive"
    add_to_archive(folder, archive)
    first = (archive / "checkpoint").read_bytes()
    prune(folder, FULL_TILES - 1)
    asyncio.run(go_on(folder, 400))
    journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced())
    assert journal.was_deleted("acme", "k-7")
    asyncio.run(journal.close())
    add_to_archive(folder, archive)
    assert verify(FolderSource(archive), KEY, since=first).finding is None
    finding = verify(FolderSource(folder), KEY).finding
    assert finding is not None
    assert "tile/0/000: no such file" in finding.what
    alone = verify(FolderSource(folder), KEY, pruned=True)
    assert alone.finding is None
    assert alone.pruned == 256 * (FULL_TILES - 1)
    asyncio.run(check_reading(folder))


def test_a_pruned_log_without_its_snapshot_is_refused(folder: Path) -> None:
    """What the entries imply is not known again without them: the start names the missing one."""
    prune(folder, 1)
    (folder / "snapshot").unlink()
    with pytest.raises(JournalError, match="tile/entries/000"):
        FileJournal.open(folder, ORIGIN, file_system=Unsynced())
