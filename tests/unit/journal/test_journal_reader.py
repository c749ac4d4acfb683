"""Reading pages of the log while it grows."""

import threading
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.journal_events import NOW, ORIGIN, intent, made
from ironwork_audit import parse
from ironwork_audit.log import AppendLog
from ironwork_server.core.errors import DataLoss, Unavailable
from ironwork_server.journal import EntryFilter, FileJournal, JournalReader
from ironwork_server.journal import reader as reader_module

EVERYTHING = EntryFilter()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FileJournal]:
    journal = FileJournal.open(tmp_path / "j", ORIGIN, max_pending=10_000)
    yield journal
    await journal.close()


async def fill(journal: FileJournal, count: int, **changes: Any) -> None:
    for start in range(0, count, 50):
        numbers = range(start, min(start + 50, count))
        await journal.append(*[made(number, **changes) for number in numbers])


async def read_all(reader: JournalReader, wanted: EntryFilter, limit: int) -> tuple[list[int], int]:
    """The indexes of all pages, and how many pages it took."""
    indexes: list[int] = []
    after, pages = -1, 0
    while True:
        page = await reader.page(after_index=after, limit=limit, filter=wanted)
        pages += 1
        assert len(page.entries) <= limit
        for index, entry in page.entries:
            assert parse(entry).sequence == index
            indexes.append(index)
        if page.next_index is None:
            return indexes, pages
        assert page.next_index > after
        after = page.next_index


@pytest.mark.parametrize(("limit", "pages"), [(1000, 1), (300, 3), (100, 7), (7, 100)])
async def test_pages_together_are_the_whole_log(
    journal: FileJournal, limit: int, pages: int
) -> None:
    """Every entry stands on exactly one page, in order, with its exact bytes."""
    await fill(journal, 700)
    assert await read_all(journal.reader(), EVERYTHING, limit) == (list(range(700)), pages)


async def test_reading_begins_anywhere(journal: FileJournal) -> None:
    """A page begins right after after_index, in a bundle or in memory."""
    await fill(journal, 550)
    await journal.integrate()
    await fill(journal, 50)
    reader = journal.reader()
    for after in (-1, 0, 254, 255, 256, 511, 598):
        page = await reader.page(after_index=after, limit=1, filter=EVERYTHING)
        assert page.entries[0][0] == after + 1
    for after in (599, 10_000):
        page = await reader.page(after_index=after, limit=1, filter=EVERYTHING)
        assert (page.entries, page.next_index) == ((), None)


async def test_an_empty_log_is_one_empty_page(journal: FileJournal) -> None:
    """Nothing written, nothing read, nothing more to come."""
    page = await journal.reader().page(after_index=-1, limit=5, filter=EVERYTHING)
    assert (page.entries, page.next_index) == ((), None)


async def test_what_is_at_the_end_is_answered_without_a_thread(
    journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that has read everything asks at no cost, whatever the disk does."""

    def started(*_: object, **__: object) -> None:
        pytest.fail("a thread was started")

    await fill(journal, 3)
    monkeypatch.setattr(reader_module, "on_a_thread", started)
    for after in (2, 3, 99):
        page = await journal.reader().page(after_index=after, limit=10, filter=EVERYTHING)
        assert (page.entries, page.next_index) == ((), None)


async def test_a_reader_follows_the_journal(journal: FileJournal) -> None:
    """What was appended after the reader was made is read, from where it stopped."""
    reader = journal.reader()
    await fill(journal, 3)
    assert (await read_all(reader, EVERYTHING, 10))[0] == [0, 1, 2]
    await journal.append(made(3))
    page = await reader.page(after_index=2, limit=10, filter=EVERYTHING)
    assert [index for index, _ in page.entries] == [3]


async def test_offsets_are_found_again_after_a_restart(tmp_path: Path) -> None:
    """A journal opened anew is read as before."""
    journal = FileJournal.open(tmp_path / "j", ORIGIN)
    await fill(journal, 600)
    await journal.close()
    journal = FileJournal.open(tmp_path / "j", ORIGIN)
    assert (await read_all(journal.reader(), EVERYTHING, 90))[0] == list(range(600))
    await journal.close()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (EntryFilter(workspace="acme"), [0, 2, 3, 4, 5]),
        (EntryFilter(workspace="acm"), []),
        (EntryFilter(workspace="other"), [1]),
        (EntryFilter(key_id="k-2"), [2]),
        (EntryFilter(principal="spiffe://ironwork.test/ws/acme/b"), [3]),
        (EntryFilter(operation="hsm.unwrap"), [4]),
        (EntryFilter(workspace="acme", operation="AddKey", key_id="k-0"), [0]),
        (EntryFilter(workspace="other", key_id="k-2"), []),
        (EntryFilter(start_time=NOW + timedelta(seconds=5)), [5]),
        (EntryFilter(end_time=NOW + timedelta(seconds=1)), [0, 1, 2, 3, 4]),
        (EntryFilter(end_time=NOW), []),
        (EntryFilter(start_time=NOW + timedelta(microseconds=1)), [5]),
        (EntryFilter(start_time=NOW, end_time=NOW + timedelta(microseconds=1)), [0, 1, 2, 3, 4]),
        # A name that stands in another member of an entry does not match it.
        (EntryFilter(workspace="AddKey"), []),
        (EntryFilter(operation="acme"), []),
        (EntryFilter(workspace='"\\é\ud800'), []),
    ],
)
async def test_filters_combine(journal: FileJournal, wanted: EntryFilter, found: list[int]) -> None:
    """An entry is listed where everything that is set matches exactly; the end is exclusive."""
    await journal.append(
        made(0),
        made(1, workspace="other"),
        intent(2),
        made(3, principal="spiffe://ironwork.test/ws/acme/b"),
        made(4, operation="hsm.unwrap"),
        made(5, time=NOW + timedelta(seconds=5)),
    )
    assert (await read_all(journal.reader(), wanted, 10))[0] == found


async def test_the_work_for_one_page_is_bounded(
    journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that matches little gives short, even empty, pages, and a way to go on."""
    monkeypatch.setattr(reader_module, "MAX_SCANNED", 100)
    await fill(journal, 350)
    await journal.append(made(350, workspace="rare"))
    page = await journal.reader().page(
        after_index=-1, limit=10, filter=EntryFilter(workspace="rare")
    )
    assert (page.entries, page.next_index) == ([], 99)
    assert await read_all(journal.reader(), EntryFilter(workspace="rare"), 10) == ([350], 4)


async def test_the_bytes_of_one_page_are_bounded(
    journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of long entries ends early, so that an answer fits into a message."""
    monkeypatch.setattr(reader_module, "MAX_PAGE_BYTES", 2000)
    await fill(journal, 30)
    indexes, pages = await read_all(journal.reader(), EVERYTHING, 1000)
    assert indexes == list(range(30))
    assert pages > 5


async def test_a_page_s_arguments_are_checked(journal: FileJournal) -> None:
    """A limit is 1 to 1000, and no entry stands before the first."""
    for after, limit in ((-2, 1), (-1, 0), (-1, 1001)):
        with pytest.raises(ValueError, match="limit"):
            await journal.reader().page(after_index=after, limit=limit, filter=EVERYTHING)


async def test_a_file_that_cannot_be_read_is_unavailable(
    journal: FileJournal, tmp_path: Path
) -> None:
    """No foreign error leaves the reader."""
    await fill(journal, 300)
    await journal.integrate()
    (tmp_path / "j/tile/entries/000").rename(tmp_path / "away")
    with pytest.raises(Unavailable) as failed:
        await journal.reader().page(after_index=-1, limit=5, filter=EVERYTHING)
    assert failed.value.reason == "AUDIT_UNAVAILABLE"


@pytest.mark.parametrize("replacement", [b"", b"\0\x04text" * 256])
async def test_an_entry_that_changed_is_data_loss(
    journal: FileJournal, tmp_path: Path, replacement: bytes
) -> None:
    """What is not an entry any more is not passed off as one."""
    await fill(journal, 256)
    await journal.integrate()
    (tmp_path / "j/tile/entries/000").write_bytes(replacement)
    with pytest.raises(DataLoss) as failed:
        await journal.reader().page(after_index=-1, limit=5, filter=EntryFilter(start_time=NOW))
    assert failed.value.reason == "AUDIT_DAMAGED"


async def test_a_disk_that_hangs_holds_two_threads(
    journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that were given up on keep their places until they end, so that no number of calls
    takes every thread; when the disk answers, reading goes on.
    """
    await fill(journal, 3)
    reader, goes_on, begun = journal.reader(), threading.Event(), []
    real = AppendLog.read

    def hanging(log: AppendLog, start: int, limit: int) -> Sequence[bytes]:
        begun.append(start)
        goes_on.wait()
        return real(log, start, limit)

    monkeypatch.setattr(AppendLog, "read", hanging)
    monkeypatch.setattr(reader_module, "_DEADLINE_S", 0.05)
    for _ in range(4):
        with pytest.raises(Unavailable):
            await reader.page(after_index=-1, limit=1, filter=EVERYTHING)
    assert begun == [0, 0]
    goes_on.set()
    monkeypatch.setattr(reader_module, "_DEADLINE_S", 10.0)
    assert await read_all(reader, EVERYTHING, 10) == ([0, 1, 2], 1)


async def test_a_process_without_threads_gets_over_it(
    journal: FileJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no thread, as a container at its limit, reading and the tree are
    Unavailable, however often, and work again once it does.
    """
    await fill(journal, 10)
    reader = journal.reader()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(4):
            with pytest.raises(Unavailable):
                await reader.page(after_index=-1, limit=10, filter=EVERYTHING)
            with pytest.raises(Unavailable):
                await journal.integrate()
    assert len((await reader.page(after_index=-1, limit=10, filter=EVERYTHING)).entries) == 10
    assert (await journal.integrate()).size == 10
