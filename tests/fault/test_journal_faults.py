"""The journal on a disk that fails. Fault pairs: failed and not written, failed but written; each
then reloads and checks the log.
"""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.journal_disk import BROKEN, FULL, READ_ONLY, Disk
from fixtures.journal_events import (
    ORIGIN,
    entries,
    intent,
    log_path,
    made,
    modes,
    operations,
    outcome,
    until,
)
from ironwork_server.core.errors import Unavailable
from ironwork_server.journal import FileJournal, JournalUnusable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def disk() -> Disk:
    return Disk()


class Listener:
    """Counts what the journal tells of its health; waits for the next of either."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.recovered = threading.Event()


async def refused(journal: FileJournal) -> None:
    with pytest.raises(Unavailable) as error:
        await journal.append(made(99))
    assert error.value.reason == "AUDIT_UNAVAILABLE"
    assert error.value.retry_after_s


def opened(folder: Path, disk: Disk, listener: Listener, probe_s: float = 0.01) -> FileJournal:
    return FileJournal.open(
        folder,
        ORIGIN,
        file_system=disk,
        on_failure=listener.failures.append,
        on_recovery=listener.recovered.set,
        probe_s=probe_s,
        deadline_s=60,
    )


def failing_write(code: int, partial: int) -> Callable[[Disk], None]:
    def switch(disk: Disk) -> None:
        disk.faults["write"] = code
        disk.partial = partial

    return switch


def failing_sync(code: int) -> Callable[[Disk], None]:
    def switch(disk: Disk) -> None:
        disk.faults["fdatasync"] = code

    return switch


def failing_cut(disk: Disk) -> None:
    disk.faults |= {"write": FULL, "ftruncate": BROKEN}
    disk.partial = 100


@pytest.mark.parametrize(
    ("fail", "names"),
    [
        (failing_write(BROKEN, 0), "EIO"),
        (failing_write(BROKEN, 100), "EIO"),
        (failing_write(READ_ONLY, 0), "EROFS"),
        (failing_write(FULL, 100), "ENOSPC"),
    ],
)
async def test_a_failed_write_leaves_nothing(
    folder: Path, disk: Disk, fail: Callable[[Disk], None], names: str
) -> None:
    """Failed and not written: the append fails, health knows why, the file is as it was, and a
    restart goes on from there.
    """
    listener = Listener()
    journal = opened(folder, disk, listener, probe_s=60)
    await journal.append(made(0))
    before = log_path(folder).read_bytes()
    fail(disk)
    await refused(journal)
    assert not journal.healthy
    assert names in str(journal.problem)
    assert len(listener.failures) == 1
    assert names in listener.failures[0]
    assert log_path(folder).read_bytes() == before
    await refused(journal)
    await journal.close()
    again = FileJournal.open(folder, ORIGIN)
    assert (await again.append(made(1)))[0].index == 1
    await again.close()
    assert operations(folder) == ["AddKey", "AddKey"]


@pytest.mark.parametrize("code", [BROKEN, FULL])
async def test_after_a_failed_sync_the_file_is_not_touched_again(
    folder: Path, disk: Disk, code: int
) -> None:
    """Failed but written: whatever the error, nothing is retried on the file, although the disk is
    well again; after a restart the log is whole, and the entry, being there, stays.
    """
    listener = Listener()
    journal = opened(folder, disk, listener)
    await journal.append(intent(0))
    failing_sync(code)(disk)
    await refused(journal)
    disk.faults.clear()
    calls = disk.calls.copy()
    assert journal._writer._pause() is None  # nothing is going to be tried again
    for _ in range(3):
        await refused(journal)
    await journal.close()
    assert disk.calls == calls
    assert len(listener.failures) == 1
    assert "fdatasync" in listener.failures[0]
    assert not listener.recovered.is_set()
    again = FileJournal.open(folder, ORIGIN)
    assert (await again.append(outcome(0, 0)))[0].index == 3
    await again.close()
    found = [(entry.sequence, entry.event.correlation_id) for entry in entries(folder)]
    assert found[0] == (0, "c-0")
    assert found[1] == (1, "c-99")
    assert operations(folder)[2] == "journal.unfinished"


async def test_a_start_writes_what_was_not_in_tiles_again(folder: Path, disk: Disk) -> None:
    """After a failed sync the kernel may take pages for clean that never reached the disk: a start
    writes what the write-ahead files hold into tiles of its own, and syncs those, before anything
    builds on it.
    """
    journal = opened(folder, disk, Listener())
    await journal.append(*[made(number) for number in range(3)])
    disk.faults["fdatasync"] = BROKEN
    await refused(journal)
    await journal.close()
    whole = log_path(folder).read_bytes()
    watching = Disk()
    again = FileJournal.open(folder, ORIGIN, file_system=watching)
    assert watching.calls["fdatasync"] >= 3  # the bundle, the tile, the state
    assert watching.calls["sync_folder"] >= 3
    assert log_path(folder).read_bytes() == b""
    await again.close()
    assert [entry.event.correlation_id for entry in entries(folder)] == [
        "c-0",
        "c-1",
        "c-2",
        "c-99",
    ]
    assert whole.count(b"\n") == 6


async def test_all_that_waits_fails_together(folder: Path, disk: Disk) -> None:
    """Every append that waited for the failed sync, or behind it, fails at once."""
    journal = opened(folder, disk, Listener())
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    assert await asyncio.to_thread(disk.holding.wait, 60)
    rest = [asyncio.create_task(journal.append(made(number))) for number in range(1, 90)]
    await until(lambda: journal._writer._pending == 90)
    disk.faults["fdatasync"] = BROKEN
    disk.hold.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert len({id(result) for result in results}) == 90  # each waiter has an error of its own
    assert journal._writer._pending == 0
    await journal.close()


async def test_a_full_disk_is_tried_again(folder: Path, disk: Disk) -> None:
    """When there is room again the journal resumes by itself, and says in the log how many events
    it had refused; no index is missing or used twice.
    """
    listener = Listener()
    journal = opened(folder, disk, listener)
    await journal.append(made(0))
    failing_write(FULL, 150)(disk)
    await refused(journal)
    await refused(journal)
    tries = disk.calls["write"]
    await until(lambda: disk.calls["write"] > tries + 2)
    assert not journal.healthy
    assert listener.failures == [journal.problem]
    disk.faults.clear()
    assert await asyncio.to_thread(listener.recovered.wait, 60)
    assert journal.healthy
    assert (await journal.append(made(1)))[0].index == 2
    await journal.close()
    assert operations(folder) == ["AddKey", "journal.resumed", "AddKey"]
    assert entries(folder)[1].event.details["count"] == 2
    assert [entry.sequence for entry in entries(folder)] == [0, 1, 2]


async def test_a_full_disk_that_then_breaks_is_given_up(folder: Path, disk: Disk) -> None:
    """A worse failure while waiting for room lasts until a restart."""
    listener = Listener()
    journal = opened(folder, disk, listener)
    failing_write(FULL, 0)(disk)
    await refused(journal)
    disk.faults["write"] = BROKEN
    await until(lambda: "EIO" in str(journal.problem))
    disk.faults.clear()
    calls = disk.calls.copy()
    await refused(journal)
    await journal.close()
    assert disk.calls == calls
    assert len(listener.failures) == 2


async def test_a_write_that_cannot_be_undone_is_final(folder: Path, disk: Disk) -> None:
    """Where the partial write stays, nothing is written after it; a restart cuts it off."""
    journal = opened(folder, disk, Listener())
    failing_cut(disk)
    await refused(journal)
    disk.faults.clear()
    await refused(journal)
    await journal.close()
    await FileJournal.open(folder, ORIGIN).close()
    assert operations(folder) == ["journal.recovered"]
    assert entries(folder)[0].event.details == {"bytes": 100}


async def test_short_writes_are_completed(folder: Path, disk: Disk) -> None:
    """A disk that takes seven bytes at a time gets all of them."""
    journal = opened(folder, disk, Listener())
    disk.most = 7
    await journal.append(made(0), made(1))
    await journal.close()
    assert len(entries(folder)) == 2


async def test_a_write_of_nothing_is_a_failure(folder: Path, disk: Disk) -> None:
    """A disk that takes nothing, without an error, does not hold the journal for ever."""
    journal = opened(folder, disk, Listener())
    disk.most = 0
    await refused(journal)
    await journal.close()


def delete(folder: Path) -> None:
    log_path(folder).unlink()


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    log_path(folder).rename(folder / "moved")


def replace(folder: Path) -> None:
    content = log_path(folder).read_bytes()
    (folder / "copy").write_bytes(content)
    (folder / "copy").rename(log_path(folder))


def cut(folder: Path) -> None:
    os.truncate(log_path(folder), log_path(folder).stat().st_size - 10)


def add_to(folder: Path) -> None:
    with log_path(folder).open("ab") as file:
        file.write(b"{}\n")


def hide_folder(folder: Path) -> None:
    folder.rename(folder.with_name("hidden"))
    folder.write_text("a file in its place")


@pytest.mark.parametrize("meddle", [delete, delete_folder, move, replace, cut, add_to, hide_folder])
async def test_a_file_that_was_meddled_with_is_noticed(
    folder: Path, disk: Disk, meddle: Callable[[Path], None]
) -> None:
    """Deleted, moved, replaced, cut or added to: nothing more is written, and health says so."""
    listener = Listener()
    journal = opened(folder, disk, listener)
    await journal.append(made(0))
    meddle(folder)
    writes = disk.calls["write"]
    await refused(journal)
    assert not journal.healthy
    assert listener.failures == [journal.problem]
    assert "file of the log" in listener.failures[0]
    assert disk.calls["write"] == writes
    await journal.close()


@pytest.mark.parametrize("call", ["write", "fdatasync", "ftruncate", "rename", "sync_folder"])
async def test_a_start_on_a_failing_disk_is_refused(folder: Path, disk: Disk, call: str) -> None:
    """A journal that could not be written is not opened; the error has no traceback to read."""
    await FileJournal.open(folder, ORIGIN).close()
    disk.faults[call] = BROKEN
    with pytest.raises(JournalUnusable, match="cannot be"):
        FileJournal.open(folder, ORIGIN, file_system=disk)
    await FileJournal.open(folder, ORIGIN).close()


async def test_a_start_that_cannot_note_what_it_found_is_refused(folder: Path) -> None:
    """Where `journal.unfinished` cannot be written the service does not start."""
    journal = FileJournal.open(folder, ORIGIN)
    await journal.append(intent(0))
    await journal.close()

    class FullAfterTheFirst(Disk):
        def ftruncate(self, fd: int, length: int) -> None:
            super().ftruncate(fd, length)
            self.faults["write"] = FULL

    with pytest.raises(JournalUnusable, match="ENOSPC"):
        FileJournal.open(folder, ORIGIN, file_system=FullAfterTheFirst())
    await FileJournal.open(folder, ORIGIN).close()
    assert operations(folder) == ["AddKey", "journal.unfinished"]


def test_a_lock_that_the_system_refuses_is_a_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has no locks, the journal is not opened without one."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ironwork_audit.log.folder.fcntl.flock", no_locks)
    with pytest.raises(JournalUnusable, match="No locks available"):
        FileJournal.open(folder, ORIGIN)


async def test_a_log_that_cannot_be_made_is_none(folder: Path, disk: Disk) -> None:
    """A disk that takes half of a new log's files leaves nothing that looks like a log."""
    disk.faults["write"] = FULL
    disk.partial = 3
    with pytest.raises(JournalUnusable):
        FileJournal.open(folder, ORIGIN, file_system=disk)
    assert "origin" not in modes(folder)
    await FileJournal.open(folder, ORIGIN).close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_error_of_our_own_in_the_writer_fails_closed(
    folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the writer's thread ever end by a mistake in it, every append is refused."""
    listener = Listener()
    journal = FileJournal.open(
        folder, ORIGIN, on_failure=listener.failures.append, deadline_s=0.2, file_system=disk
    )

    def mistake(*_: object) -> None:
        raise LookupError("a mistake")

    monkeypatch.setattr(journal._log, "append", mistake)
    await refused(journal)
    await until(lambda: not journal._writer._thread.is_alive())
    await refused(journal)
    assert listener.failures == ["the journal's writer stopped"]
    assert not journal.healthy
    await journal.close()


def test_a_real_limit_on_the_file_s_size(folder: Path) -> None:
    """The operating system's own refusal (RLIMIT_FSIZE): fail closed, whole after a restart."""
    code = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fixtures.journal_events import made, log_path
from ironwork_server.core.errors import Unavailable
from ironwork_server.journal import FileJournal

async def main():
    folder = Path(sys.argv[1])
    journal = FileJournal.open(folder, "keys.test/a", probe_s=60)
    await journal.append(made(0))
    size = log_path(folder).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    try:
        await journal.append(made(1))
    except Unavailable:
        assert "EFBIG" in journal.problem
        assert log_path(folder).stat().st_size == size
        sys.exit(7)

asyncio.run(main())
"""
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tests)], timeout=60, check=False
    )
    assert done.returncode == 7
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    assert operations(folder) == ["AddKey"]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """`kill -9` keeps the page cache, so this cuts it: of what was written since the last sync any
    part may be missing, and the log opens with every acknowledged entry.
    """
    folder = tmp_path_factory.mktemp("power") / "journal"
    disk = Disk()
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))

    async def run() -> int:
        journal = opened(folder, disk, Listener())
        for number, size in enumerate(sizes):
            await journal.append(*[made(number)] * size)
        disk.faults["fdatasync"] = BROKEN
        with pytest.raises(Unavailable):
            await journal.append(*[made(50)] * 3)
        await journal.close()
        return sum(sizes)

    acknowledged = asyncio.run(run())
    content = log_path(folder).read_bytes()
    kept = data.draw(st.integers(len(disk.synced), len(content)))
    zeros = data.draw(st.sampled_from([0, 1, 4096])) if kept < len(content) else 0
    log_path(folder).write_bytes(content[:kept] + b"\0" * zeros)
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    found = operations(folder)
    assert found[:acknowledged] == ["AddKey"] * acknowledged
    assert set(found[acknowledged:]) <= {"AddKey", "journal.recovered"}
