"""The log under kills and failing disks: what was acknowledged stays."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fixtures.append_log import ORIGIN, Sum, all_of, expected, some, unsigned
from fixtures.journal_disk import BROKEN, Disk, Unsynced
from fixtures.log_check import check_checkpoint, tiled
from ironwork_audit.log import (
    AppendLog,
    OperatingSystem,
    WriteFailed,
)


class Killed(BaseException):
    """The process ends here."""


class Kill(Unsynced):
    """Ends the process at the nth call, before or after it is done."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after

    def _step(self, call: Callable[[], object]) -> object:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        if self.left < 0:
            raise Killed
        result = call()
        if self.left == 0:
            raise Killed
        return result

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        half = data[: max(1, len(data) // 2)] if self.left == 1 and self.after else data
        return self._step(lambda: Unsynced.write(self, fd, half, offset))  # type: ignore[return-value]

    def fdatasync(self, fd: int) -> None:
        self._step(lambda: Unsynced.fdatasync(self, fd))

    def ftruncate(self, fd: int, length: int) -> None:
        self._step(lambda: Unsynced.ftruncate(self, fd, length))

    def rename(self, source: Path, target: Path) -> None:
        self._step(lambda: Unsynced.rename(self, source, target))

    def sync_folder(self, folder: Path) -> None:
        self._step(lambda: Unsynced.sync_folder(self, folder))


def life(folder: Path, disk: OperatingSystem, sizes: Sequence[int], done: list[int]) -> None:
    """A process's life; done: how many entries it had acknowledged."""
    log = AppendLog.open(folder, ORIGIN, file_system=disk, fold=Sum())
    done.append(log.size)
    try:
        for size in sizes:
            done.append(log.append(some(size)) + size)
            log.integrate()
            log.publish(unsigned(log))
        log.close()
    except Killed:
        log._release()  # as the system does
        raise


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_every_step_loses_nothing(tmp_path: Path, after: bool) -> None:
    """Wherever the process ends, between any two calls or within a write: the log opens, what was
    acknowledged is there, tiles and checkpoint are right, and the log goes on.
    """
    sizes = [3, 250, 10]
    start = tmp_path / "start"
    life(start, Unsynced(), [5], [])
    for at in range(1, 500):
        folder = tmp_path / "again"
        shutil.copytree(start, folder)
        done: list[int] = []
        killed = False
        try:
            life(folder, Kill(at, after=after), sizes, done)
        except Killed:
            killed = True
        log = AppendLog.open(folder, ORIGIN, fold=(fold := Sum()), file_system=Unsynced())
        assert log.size >= max(done, default=5)
        assert fold.count == log.size
        log.append(some(1))
        total = log.integrate().size
        log.publish(unsigned(log))
        log.close()
        assert tiled(folder) == expected(total)
        assert check_checkpoint(folder, ORIGIN) == total
        shutil.rmtree(folder)
        if not killed:
            return
    pytest.fail("the life has more steps than were tried")


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename", "sync_folder"])
@pytest.mark.parametrize("done", [False, True])
def test_a_failing_publisher(folder: Path, call: str, done: bool) -> None:
    """Tiles that cannot be written, or were and it was not said: what was acknowledged stays, a
    failed sync is not tried again, anything else is once the disk is well.
    """
    disk = Disk()
    log = AppendLog.open(folder, ORIGIN, file_system=disk)
    log.append(some(300))
    disk.faults[call] = BROKEN
    if done:
        disk.done.add(call)
        disk.partial = 100
    with pytest.raises(WriteFailed) as failed:
        log.integrate()
    lasting = call in {"fdatasync", "sync_folder"}
    assert failed.value.lasting is lasting
    assert "EIO" in failed.value.what
    disk.faults.clear()
    calls = disk.calls.copy()
    if lasting:
        for attempt in (log.integrate, lambda: log.append(some(1))):
            with pytest.raises(WriteFailed):
                attempt()
        assert disk.calls == calls
    else:
        assert log.append(some(1)) == 300
        assert log.integrate().size == 301
    total = log.size
    log.close()
    log = AppendLog.open(folder, ORIGIN)
    assert all_of(log) == expected(total)
    log.close()
    assert tiled(folder) == expected(total)


def test_a_start_that_was_broken_off_is_made_again(folder: Path) -> None:
    """A log that was only half made is made anew; it held nothing."""
    for at in range(1, 100):
        try:
            AppendLog.open(folder, ORIGIN, file_system=Kill(at, after=False)).close()
        except Killed:
            continue
        break
    assert at > 5
    assert tiled(folder) == []


def test_tiles_that_are_gone_end_it(log: AppendLog, folder: Path) -> None:
    """Where someone removed the tiles, none are written as if nothing were."""
    log.append(some(1))
    shutil.rmtree(folder / "tile")
    with pytest.raises(WriteFailed, match="gone") as gone:
        log.integrate()
    assert gone.value.lasting
