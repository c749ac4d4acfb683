"""The journal looks at its disk by itself: health tells what no append has met yet."""

import asyncio
from pathlib import Path

import pytest

from fixtures.journal_disk import FULL, READ_ONLY, Disk
from fixtures.journal_events import made, operations, until
from ironwork_server.journal import writer

from .test_journal_faults import Listener, opened, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.mark.parametrize(
    ("call", "code", "name"),
    [
        ("check_room", FULL, "ENOSPC"),
        ("check_room", READ_ONLY, "EROFS"),
        ("check_takes_writes", READ_ONLY, "EROFS"),
    ],
)
async def test_a_disk_that_takes_nothing_is_noticed_before_a_call_meets_it(
    folder: Path, call: str, code: int, name: str
) -> None:
    """Full or read-only: it resumes, and only then writes, when that has passed."""
    disk, listener = Disk(), Listener()
    journal = opened(folder, disk, listener)
    writes = disk.calls["write"]
    disk.faults[call] = code
    await until(lambda: not journal.healthy)
    assert listener.failures == [f"the disk takes nothing ({name})"]
    await refused(journal)
    assert disk.calls["write"] == writes
    disk.faults.clear()
    assert await asyncio.to_thread(listener.recovered.wait, 60)
    await journal.append(made(1))
    await journal.close()
    assert operations(folder) == ["journal.resumed", "AddKey"]


async def test_a_busy_journal_looks_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends that follow each other do not keep it from looking; what comes when the disk takes
    nothing is refused and not written, although its file would take it.
    """
    monkeypatch.setattr(writer, "LOOK_S", 3600.0)  # so that it looks where it is told to only
    disk, listener = Disk(), Listener()
    journal = opened(folder, disk, listener, probe_s=60)
    await journal.append(made(0))
    disk.faults["check_room"] = READ_ONLY
    await journal.append(made(1))
    journal._writer._looked_at -= 2 * writer.LOOK_S
    await refused(journal)
    assert listener.failures == ["the disk takes nothing (EROFS)"]
    disk.faults.clear()
    await journal.close()
    assert operations(folder) == ["AddKey", "AddKey"]
