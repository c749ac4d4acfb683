"""Files that change while serving: noticed, taken whole, and loud when they are broken."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ironwork_server.access import reload
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.reload import Reloading, ReloadTimeout, signature_of

# Tests that step by hand call _poll() and never wait for the interval.
BY_HAND_S = 3600.0
DEADLINE_S = 30.0


class BrokenFile(Exception):
    """What the loader of these tests raises."""


class Told:
    """Callbacks that remember what they were told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.failures: list[Exception] = []
        self.failed = asyncio.Event()

    def success(self, old: str, new: str) -> None:
        self.changes.append((old, new))

    async def failure(self, error: Exception) -> None:
        await asyncio.sleep(0)
        self.failures.append(error)
        self.failed.set()


def text_of(path: Path) -> Callable[[], str]:
    def load() -> str:
        text = path.read_text()
        if "broken" in text:
            raise BrokenFile(text)
        return text

    return load


def replace(path: Path, text: str) -> None:
    """Replace a file by rename, as careful tools do."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


async def poll(reloading: Reloading[Any]) -> None:
    """One look at the files, and the callbacks that it caused."""
    await reloading._poll()
    if reloading._telling:
        await asyncio.wait(reloading._telling, timeout=DEADLINE_S)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """(event, component, problem) of every error that was logged."""
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "canary" not in str([record.__dict__ for record in records])
    return [(r.msg, r.__dict__["component"], r.__dict__["problem"]) for r in records]


@asynccontextmanager
async def watching(
    path: Path, *, interval_s: float = BY_HAND_S, told: Told | None = None
) -> AsyncIterator[tuple[Reloading[str], Told]]:
    told = told or Told()
    reloading = Reloading(
        text_of(path),
        [path],
        name="test",
        interval_s=interval_s,
        on_success=told.success,
        on_failure=told.failure,
    )
    async with reloading:
        yield reloading, told


@pytest.fixture(name="path")
def make_path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def test_nothing_starts_on_broken_files(path: Path) -> None:
    """The first load raises what load raises."""
    path.write_text("broken")
    with pytest.raises(BrokenFile):
        Reloading(text_of(path), [path], name="test")


async def test_a_change_is_noticed_while_serving(path: Path) -> None:
    """The watcher notices by itself; waiters and the callback hear of it."""
    async with watching(path, interval_s=0.01) as (reloading, told):
        assert (reloading.value, reloading.generation) == ("one", 0)
        replace(path, "two")
        async with asyncio.timeout(DEADLINE_S):
            assert await reloading.wait_newer(0) == 1
        assert reloading.value == "two"
    assert told.changes == [("one", "two")]


async def test_a_broken_file_keeps_the_old_value_and_is_told(path: Path) -> None:
    """The watcher goes on after a failure, and takes the mended file."""
    async with watching(path, interval_s=0.01) as (reloading, told):
        replace(path, "broken")
        async with asyncio.timeout(DEADLINE_S):
            await told.failed.wait()
        assert reloading.value == "one"
        assert isinstance(reloading.failed, BrokenFile)
        replace(path, "mended")
        async with asyncio.timeout(DEADLINE_S):
            await reloading.wait_newer(0)
        assert (reloading.value, reloading.failed) == ("mended", None)


def in_place_same_size_and_time(path: Path) -> None:
    state = path.stat()
    path.write_text("two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: replace(path, "two"),
        lambda path: path.write_text("two"),
        in_place_same_size_and_time,
    ],
    ids=["rename", "in place", "in place, size and time as before"],
)
async def test_every_way_of_changing_a_file_is_noticed(
    path: Path, change: Callable[[Path], object]
) -> None:
    """One poll after the change the value is new, however the file was changed."""
    async with watching(path) as (reloading, _):
        change(path)
        await poll(reloading)
        assert (reloading.value, reloading.generation) == ("two", 1)


async def test_a_kubernetes_symlink_swap_is_noticed(tmp_path: Path) -> None:
    """A mounted secret is a link to ..data/x, and ..data is swapped as a whole."""
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(f"version {version}")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "key").symlink_to("..data/key")
    async with watching(tmp_path / "key") as (reloading, _):
        assert reloading.value == "version 1"
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        await poll(reloading)
        assert reloading.value == "version 2"


async def test_a_file_written_anew_with_the_same_content_is_no_change(path: Path) -> None:
    """Only content and mode count: a touch reloads nothing."""
    async with watching(path) as (reloading, told):
        replace(path, "one")
        await poll(reloading)
        assert (reloading.generation, told.changes) == (0, [])


async def test_a_failure_is_told_once_for_each_state_of_the_files(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Loud, but not at every poll; another broken content is another failure."""
    async with watching(path) as (reloading, told):
        for broken in ("broken a canary", "broken b"):
            replace(path, broken)
            for _ in range(4):
                await poll(reloading)
        assert [str(error) for error in told.failures] == ["broken a canary", "broken b"]
        assert str(reloading.failed) == "broken b"
        assert logged(caplog) == [("reload.failed", "test", "BrokenFile")] * 2


async def test_our_own_errors_are_logged_in_full(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator reads in the log which file to mend, and where."""

    def load() -> str:
        if path.read_text() == "broken":
            raise AccessConfigurationError("roles.cedar:7", "cannot be parsed")
        return "good"

    async with Reloading(load, [path], name="test", interval_s=BY_HAND_S) as reloading:
        replace(path, "broken")
        await poll(reloading)
        await poll(reloading)
    assert logged(caplog) == [("reload.failed", "test", "roles.cedar:7: cannot be parsed")]


async def test_what_is_broken_for_one_poll_only_is_not_told(path: Path) -> None:
    """A certificate and its key are replaced one after the other: that is no failure."""
    async with watching(path) as (reloading, told):
        replace(path, "broken")
        await poll(reloading)
        assert reloading.failed is None
        replace(path, "two")
        await poll(reloading)
        assert (reloading.value, told.failures) == ("two", [])


async def test_files_that_are_put_back_are_well_again(path: Path) -> None:
    """With the old content the failure is over, and the value has not changed."""
    async with watching(path) as (reloading, told):
        for _ in range(2):
            replace(path, "broken")
            await poll(reloading)
            await poll(reloading)
            assert reloading.failed is not None
            replace(path, "one")
            await poll(reloading)
            assert (reloading.failed, reloading.generation) == (None, 0)
        # The same breakage, come again, is told again.
        assert len(told.failures) == 2


async def test_a_file_that_is_gone_is_a_failure(path: Path) -> None:
    """What load raises for a missing file is told like any other error."""
    async with watching(path) as (reloading, told):
        path.unlink()  # noqa: ASYNC240  a test's own tiny file
        await poll(reloading)
        await poll(reloading)
        assert isinstance(reloading.failed, FileNotFoundError)
        assert told.failures == [reloading.failed]
        assert reloading.value == "one"


async def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    """A value is made of files that belong together, not of old and new ones."""
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("old")
    second.write_text("old")
    loads: list[str] = []

    def load() -> str:
        value = first.read_text()
        if loads and second.read_text() == "old":
            # The second half of the change comes between the reading of the two files.
            second.write_text("new")
            first.write_text("new")
        value += second.read_text()
        loads.append(value)
        return value

    reloading = Reloading(load, [first, second], name="test", interval_s=BY_HAND_S)
    async with reloading:
        first.write_text("half")
        await poll(reloading)
    assert loads == ["oldold", "halfnew", "newnew"]
    assert (reloading.value, reloading.generation) == ("newnew", 1)


async def test_files_that_never_come_to_rest_are_taken_all_the_same(path: Path) -> None:
    """Reading again has a bound, so that endless change cannot hold a revocation back."""
    count = 0

    def load() -> int:
        nonlocal count
        count += 1
        path.write_text(str(count))
        return count

    async with Reloading(load, [path], name="test", interval_s=BY_HAND_S) as reloading:
        await poll(reloading)
        assert reloading.value == 1 + reload.SETTLE_TRIES


async def test_a_reading_that_hangs_is_a_failure_and_never_doubled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that hangs is told at once; when it answers, what was read is taken."""
    monkeypatch.setattr(reload, "LOAD_DEADLINE_S", 0.01)
    release = threading.Event()
    begun = []

    def load() -> str:
        text = path.read_text()
        if text != "one":
            begun.append(text)
            release.wait(DEADLINE_S)
        return text

    told = Told()
    reloading = Reloading(load, [path], name="test", interval_s=BY_HAND_S, on_failure=told.failure)
    async with reloading:
        replace(path, "two")
        try:
            for _ in range(3):
                await poll(reloading)
            assert isinstance(reloading.failed, ReloadTimeout)
            assert (reloading.value, len(told.failures)) == ("one", 1)
        finally:
            release.set()
        monkeypatch.setattr(reload, "LOAD_DEADLINE_S", DEADLINE_S)
        await poll(reloading)
        assert (reloading.value, reloading.failed, begun) == ("two", None, ["two"])


async def test_a_callback_that_fails_or_hangs_does_not_stop_the_watching(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The value is in force before anybody is told, and the next change is noticed."""
    monkeypatch.setattr(reload, "CALLBACK_DEADLINE_S", 0.01)

    def fail(_: str, __: str) -> None:
        raise RuntimeError("canary")

    async def hang(_: Exception) -> None:
        await asyncio.Event().wait()

    reloading = Reloading(
        text_of(path),
        [path],
        name="test",
        interval_s=BY_HAND_S,
        on_success=fail,
        on_failure=hang,
    )
    async with reloading:
        replace(path, "two")
        await poll(reloading)
        replace(path, "broken")
        await poll(reloading)
        await poll(reloading)
        assert isinstance(reloading.failed, BrokenFile)
        replace(path, "three")
        await poll(reloading)
        assert reloading.value == "three"
    assert logged(caplog) == [
        ("reload.callback_failed", "test", "RuntimeError"),
        ("reload.failed", "test", "BrokenFile"),
        ("reload.callback_failed", "test", "TimeoutError"),
        ("reload.callback_failed", "test", "RuntimeError"),
    ]


async def test_a_slow_callback_delays_no_revocation(path: Path) -> None:
    """While the audit log is slow, the next change is taken; stop() lets what began finish."""
    slow = asyncio.Event()
    told: list[str] = []

    async def record(_: str, new: str) -> None:
        await slow.wait()
        told.append(new)

    reloading = Reloading(
        text_of(path), [path], name="test", interval_s=BY_HAND_S, on_success=record
    )
    async with reloading:
        for text in ("two", "three"):
            replace(path, text)
            await reloading._poll()
            assert (reloading.value, told) == (text, [])
        slow.set()
    assert set(told) == {"two", "three"}


async def test_nothing_kills_the_watcher_unseen(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw is a failure like any other, and the next poll goes on."""

    def fail(_: object) -> bytes:
        raise MemoryError

    async with watching(path) as (reloading, told):
        with monkeypatch.context() as patch:
            patch.setattr(reload, "signature_of", fail)
            for _ in range(3):
                await poll(reloading)
        assert isinstance(reloading.failed, MemoryError)
        assert len(told.failures) == 1
        replace(path, "two")
        await poll(reloading)
        assert (reloading.value, reloading.failed) == ("two", None)


async def test_without_callbacks_the_value_and_the_failure_show_all_the_same(path: Path) -> None:
    """Callbacks are optional."""
    reloading = Reloading(text_of(path), [path], name="test", interval_s=BY_HAND_S)
    async with reloading:
        replace(path, "two")
        await poll(reloading)
        assert reloading.value == "two"
        replace(path, "broken")
        await poll(reloading)
        await poll(reloading)
        assert isinstance(reloading.failed, BrokenFile)


async def test_thousands_of_waiters_are_woken_by_one_change(path: Path) -> None:
    """Every open stream can wait for the policy to change."""
    async with watching(path) as (reloading, _):
        waiters = [asyncio.create_task(reloading.wait_newer(0)) for _ in range(5000)]
        await asyncio.sleep(0)
        replace(path, "two")
        await poll(reloading)
        async with asyncio.timeout(DEADLINE_S):
            assert set(await asyncio.gather(*waiters)) == {1}
        # Who comes late need not wait.
        assert await reloading.wait_newer(0) == 1


async def test_a_slow_reader_of_changes_gets_the_newest(path: Path) -> None:
    """changes() skips what is no longer in force, and nothing queues up."""
    async with watching(path) as (reloading, _):
        changes = reloading.changes()
        replace(path, "two")
        await poll(reloading)
        async with asyncio.timeout(DEADLINE_S):
            assert await anext(changes) == "two"
            for text in ("three", "four"):
                replace(path, text)
                await poll(reloading)
            assert await anext(changes) == "four"
            following = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            replace(path, "five")
            await poll(reloading)
            assert await following == "five"
        await changes.aclose()


async def test_start_and_stop_may_be_repeated(path: Path) -> None:
    """A stopped watcher leaves no task and no thread, keeps its value, and can start again."""
    async with watching(path, interval_s=0.001) as (reloading, _):
        await reloading.start()
        replace(path, "two")
        async with asyncio.timeout(DEADLINE_S):
            await reloading.wait_newer(0)
        await reloading.stop()
        await reloading.stop()
        assert reloading.value == "two"
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "reload-test"]
        await reloading.start()
        replace(path, "three")
        async with asyncio.timeout(DEADLINE_S):
            await reloading.wait_newer(1)


def test_a_folder_stands_for_its_visible_files(tmp_path: Path) -> None:
    """Adding, changing and removing a file changes the signature; hidden files do not count."""
    seen = [signature_of([tmp_path])]

    def differs() -> bool:
        seen.append(signature_of([tmp_path]))
        return seen[-1] != seen[-2]

    (tmp_path / "a").write_text("1")
    assert differs()
    (tmp_path / "a").write_text("2")
    assert differs()
    (tmp_path / "a").chmod(0o640)
    assert differs()
    (tmp_path / ".hidden").write_text("3")
    assert not differs()
    (tmp_path / "a").rename(tmp_path / "b")
    assert differs()
    (tmp_path / "b").unlink()
    assert differs()


def test_what_is_no_file_hangs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is not read, a missing file is a state of its own, an unreadable folder too."""
    path = tmp_path / "pipe"
    absent = signature_of([path])
    os.mkfifo(path)
    pipe = signature_of([path])
    path.unlink()
    path.write_text("")
    assert len({absent, pipe, signature_of([path])}) == 3
    readable = signature_of([tmp_path])

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert signature_of([tmp_path]) != readable
