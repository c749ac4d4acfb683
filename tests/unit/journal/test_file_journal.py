"""Appending: order, durability, group commit, deadlines, the folder."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.journal_disk import BROKEN, FULL, Disk
from fixtures.journal_events import (
    NOW,
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
from ironwork_audit import FieldRefused
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.ports import Journal
from ironwork_server.core.values import AuditReference
from ironwork_server.journal import (
    EntryFilter,
    FileJournal,
    JournalInUse,
    JournalUnusable,
    OriginDiffers,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def journal(folder: Path, disk: Disk) -> AsyncIterator[FileJournal]:
    journal = FileJournal.open(
        folder, ORIGIN, file_system=disk, clock=lambda: NOW, max_pending=100, deadline_s=60
    )
    yield journal
    disk.hold.set()
    await journal.close()


async def held(disk: Disk) -> None:
    """Until the writer waits inside fdatasync."""
    assert await asyncio.to_thread(disk.holding.wait, 60)


async def queued(journal: FileJournal, count: int) -> None:
    """Until this many events are pending."""
    await until(lambda: journal._writer._pending >= count)


async def test_an_append_says_where_its_events_stand(journal: FileJournal, folder: Path) -> None:
    """References are (origin, index); indexes are contiguous from 0, in the order of appending."""
    port: Journal = journal
    assert await port.append(made(0)) == [AuditReference(ORIGIN, 0)]
    assert await port.append(made(1), made(2)) == [
        AuditReference(ORIGIN, 1),
        AuditReference(ORIGIN, 2),
    ]
    assert await port.append() == ()
    found = entries(folder)
    assert [entry.sequence for entry in found] == [0, 1, 2]
    assert [entry.event.correlation_id for entry in found] == ["c-0", "c-1", "c-2"]
    assert {entry.origin for entry in found} == {port.origin} == {ORIGIN}


async def test_an_entry_holds_what_the_event_says(journal: FileJournal, folder: Path) -> None:
    """Every field of the core's event is in the entry."""
    given = outcome(
        1,
        0,
        role="key-admin",
        success=False,
        reason="KEY_EXISTS",
        details={"display_name": "CI", "master_key_version": 2},
    )
    await journal.append(intent(1), given)
    event = entries(folder)[1].event
    assert (event.phase, event.intent_index) == ("outcome", 0)
    assert (event.operation, event.correlation_id) == (given.operation, given.correlation_id)
    assert (event.principal, event.role) == (given.principal, given.role)
    assert (event.workspace, event.key_id) == (given.workspace, given.key_id)
    assert (event.task, event.agent, event.peer) == ("t", "a", "ipv4:127.0.0.1:4711")
    assert (event.success, event.reason) == (False, "KEY_EXISTS")
    assert dict(event.details) == given.details
    assert event.time == given.time


async def test_an_append_returns_only_after_the_sync(
    journal: FileJournal, disk: Disk, folder: Path
) -> None:
    """Until fdatasync has returned, nothing is acknowledged, readable or counted as deleted."""
    disk.hold.clear()
    await_it = asyncio.create_task(journal.append(intent(1), outcome(1, 0, operation="DeleteKey")))
    await held(disk)
    assert (
        log_path(folder).read_bytes().count(b"\n") == 3
    )  # it is written (a frame's head, two entries)...
    assert not await_it.done()  # ...and yet not durable
    page = await journal.reader().page(after_index=-1, limit=10, filter=EntryFilter())
    assert page.entries == ()
    assert not journal.was_deleted("acme", "k-1")
    disk.hold.set()
    assert len(await await_it) == 2
    assert journal.was_deleted("acme", "k-1")


async def test_concurrent_appends_share_a_sync(
    journal: FileJournal, disk: Disk, folder: Path
) -> None:
    """What comes during one sync goes with the next: 61 appends take two, in order."""
    before = disk.calls["fdatasync"]
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    await held(disk)
    rest = [asyncio.create_task(journal.append(made(number))) for number in range(1, 61)]
    await queued(journal, 61)
    disk.hold.set()
    await asyncio.gather(first, *rest)
    assert disk.calls["fdatasync"] - before == 2
    found = [entry.event.correlation_id for entry in entries(folder)]
    assert found == [f"c-{number}" for number in range(61)]


async def test_a_commit_is_bounded_and_keeps_an_append_together(
    journal: FileJournal, disk: Disk, folder: Path
) -> None:
    """At most 64 events share a sync, and one append's are never apart."""
    before = disk.calls["fdatasync"]
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    await held(disk)
    rest = [asyncio.create_task(journal.append(*[made(number)] * 30)) for number in range(1, 4)]
    await queued(journal, 91)
    disk.hold.set()
    await asyncio.gather(first, *rest)
    assert disk.calls["fdatasync"] - before == 3
    found = [entry.event.correlation_id for entry in entries(folder)]
    assert found == ["c-0"] + ["c-1"] * 30 + ["c-2"] * 30 + ["c-3"] * 30
    with pytest.raises(ValueError, match="at most 64"):
        await journal.append(*[made()] * 65)


async def test_a_cancelled_append_leaves_the_journal_whole(
    journal: FileJournal, disk: Disk, folder: Path
) -> None:
    """Cancelling who waits neither stops the writer nor leaves a gap; the entry may be there."""
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    await held(disk)
    waiting = asyncio.create_task(journal.append(made(1)))
    await queued(journal, 2)
    for task in (first, waiting):
        task.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    assert first.cancelled()
    assert waiting.cancelled()
    disk.hold.set()
    assert (await journal.append(made(2)))[0].index == 2
    assert [entry.sequence for entry in entries(folder)] == [0, 1, 2]
    assert journal.healthy


async def test_a_full_queue_refuses(journal: FileJournal, disk: Disk) -> None:
    """What waits is bounded: beyond it an append is refused at once, and what waits still goes."""
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    await held(disk)
    waiting = [asyncio.create_task(journal.append(*[made()] * 33)) for _ in range(3)]
    await queued(journal, 100)
    with pytest.raises(Unavailable) as refused:
        await journal.append(made(9))
    assert refused.value.reason == "AUDIT_UNAVAILABLE"
    disk.hold.set()
    await asyncio.gather(first, *waiting)
    assert await journal.append(made(9))


async def test_a_disk_that_hangs_is_given_up_on_in_time(tmp_path: Path, disk: Disk) -> None:
    """Past its deadline an append fails, later ones fail at once, health says so; all of it ends
    when the disk answers, and the entry is there once.
    """
    folder = tmp_path / "journal"
    journal = FileJournal.open(folder, ORIGIN, file_system=disk, deadline_s=0.05)
    disk.hold.clear()
    with pytest.raises(Unavailable):
        await journal.append(made(0))
    await until(lambda: not journal.healthy)
    assert journal.problem == "the disk does not answer"
    with pytest.raises(Unavailable):
        await journal.append(made(1))
    await journal.close()  # does not wait for ever either
    disk.hold.set()
    await asyncio.to_thread(journal._writer._thread.join, 60)
    await journal.close()
    assert [entry.event.correlation_id for entry in entries(folder)] == ["c-0"]


async def test_what_the_log_may_not_hold_is_refused_before_it_is_queued(
    journal: FileJournal, folder: Path
) -> None:
    """One wrong field and nothing of that append is written."""
    with pytest.raises(FieldRefused):
        await journal.append(made(0), made(1, details={"prompt": "hello"}))
    assert entries(folder) == []
    assert journal.healthy


async def test_deletions_are_remembered_over_a_restart(folder: Path) -> None:
    """Exactly the keys with a successful DeleteKey outcome count as deleted."""
    journal = FileJournal.open(folder, ORIGIN)
    await journal.append(
        *[intent(number, operation="DeleteKey") for number in range(4)],
        outcome(0, 0, operation="DeleteKey"),
        outcome(1, 1, operation="DeleteKey", success=False),
        outcome(2, 2, operation="AddKey"),
        made(4, operation="DeleteKey", success=True),
    )
    for _ in range(2):
        deleted = [number for number in range(5) if journal.was_deleted("acme", f"k-{number}")]
        assert deleted == [0]
        assert not journal.was_deleted("other", "k-0")
        await journal.close()
        journal = FileJournal.open(folder, ORIGIN)
    await journal.close()


async def test_closing_writes_what_waits(folder: Path, disk: Disk) -> None:
    """What was queued before closing is written; what comes after is refused."""
    journal = FileJournal.open(folder, ORIGIN, file_system=disk)
    disk.hold.clear()
    first = asyncio.create_task(journal.append(made(0)))
    await held(disk)
    second = asyncio.create_task(journal.append(made(1)))
    await queued(journal, 2)
    closing = asyncio.create_task(journal.close())
    await until(lambda: not journal.healthy)
    with pytest.raises(Unavailable):
        await journal.append(made(2))
    disk.hold.set()
    await asyncio.gather(first, second, closing)
    await journal.close()
    assert len(entries(folder)) == 2


def test_a_loop_that_is_gone_stops_nothing(folder: Path, disk: Disk) -> None:
    """An append whose event loop ended is nobody's; the journal serves the next loop."""
    journal = FileJournal.open(folder, ORIGIN, file_system=disk)

    async def start() -> None:
        disk.hold.clear()
        task = asyncio.create_task(journal.append(made(0)))
        await held(disk)
        task.cancel()

    asyncio.run(start())
    disk.hold.set()

    async def go_on() -> int:
        index = (await journal.append(made(1)))[0].index
        await journal.close()
        return index

    assert asyncio.run(go_on()) == 1


async def test_files_are_the_owner_s_alone(journal: FileJournal, folder: Path) -> None:
    """Folders have mode 0700, files 0600, whatever the umask allows."""
    await journal.append(made(0))
    await journal.integrate()
    await journal.publish(b"a note\n")
    everything = [folder, *folder.rglob("*")]  # noqa: ASYNC240 - nothing else runs
    for path in everything:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


async def test_a_new_log_s_files(journal: FileJournal, folder: Path) -> None:
    """A new log says whose it is, and nothing of its making is left over."""
    assert (folder / "origin").read_bytes() == (
        b'{"format":"ironwork-log/1","origin":"keys.test/a"}\n'
    )
    assert modes(folder).keys() == {
        ".", "id", "lock", "origin", "pending.0", "pending.1", "state", "tile"
    }  # fmt: skip
    assert journal.origin == ORIGIN


async def test_what_is_published(journal: FileJournal, folder: Path) -> None:
    """Entries become a tree on request, and its checkpoint replaces the one before."""
    assert journal.checkpoint() is None
    await journal.append(made(0), made(1))
    tree = await journal.integrate()
    assert tree.size == 2
    assert journal.hashes(2).node(1, 0) == tree.root
    for note in (b"first\n", b"second\n"):
        await journal.publish(note)
        assert journal.checkpoint() == note


async def test_only_the_signing_of_checkpoints_makes_none_due(journal: FileJournal) -> None:
    """Any entry makes a checkpoint due, but for a checkpoint's own."""
    await journal.append(made(0, operation="hsm.sign"))
    assert journal.due == 0
    await journal.append(made(1), made(2, operation="hsm.sign"))
    assert journal.due == 2


async def test_a_disk_that_hangs_in_a_tile(folder: Path, disk: Disk) -> None:
    """Past its deadline an integration fails, the next one at once; appends are not held up
    longer than the disk holds them, and the process can end.
    """
    journal = FileJournal.open(folder, ORIGIN, file_system=disk, deadline_s=0.1)
    await journal.append(made(0))
    disk.hold.clear()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await journal.integrate()
    disk.hold.set()
    await until(lambda: not journal._aside.busy)
    assert (await journal.integrate()).size == 1
    await journal.close()


async def test_closing_waits_for_tiles(folder: Path, disk: Disk) -> None:
    """Tiles that are being written when the journal closes are finished first; a disk that hangs is
    waited for within the deadline only, and the folder stays held.
    """
    journal = FileJournal.open(folder, ORIGIN, file_system=disk, deadline_s=30)
    await journal.append(made(0))
    disk.hold.clear()
    writing = asyncio.create_task(journal.integrate())
    await held(disk)
    writing.cancel()
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    disk.hold.set()
    await closing
    journal = FileJournal.open(folder, ORIGIN, file_system=disk, deadline_s=0.05)
    await journal.append(made(1))
    disk.hold.clear()
    with pytest.raises(Unavailable):
        await journal.integrate()
    await journal.close()
    with pytest.raises(JournalInUse):
        FileJournal.open(folder, ORIGIN)
    disk.hold.set()
    await until(lambda: not journal._aside.busy)


async def test_tiles_that_fail_for_good_stop_the_journal(folder: Path, disk: Disk) -> None:
    """After a failed sync of a tile nothing is written any more, and health says so."""
    failures: list[str] = []
    journal = FileJournal.open(folder, ORIGIN, file_system=disk, on_failure=failures.append)
    await journal.append(made(0))
    disk.faults["fdatasync"] = BROKEN
    with pytest.raises(Unavailable):
        await journal.integrate()
    disk.faults.clear()
    with pytest.raises(Unavailable):
        await journal.append(made(1))
    assert len(failures) == 1
    assert not journal.healthy
    await journal.close()
    journal = FileJournal.open(folder, ORIGIN)
    assert (await journal.append(made(1)))[0].index == 1
    await journal.close()


async def test_tiles_that_fail_for_now_do_not(folder: Path, disk: Disk) -> None:
    """Where there is no room for a tile, entries are durable all the same."""
    journal = FileJournal.open(folder, ORIGIN, file_system=disk)
    await journal.append(made(0))
    disk.faults["rename"] = FULL
    with pytest.raises(Unavailable):
        await journal.integrate()
    assert (await journal.append(made(1)))[0].index == 1
    disk.faults.clear()
    assert (await journal.integrate()).size == 2
    await journal.close()


async def test_one_process_holds_a_journal(journal: FileJournal, folder: Path) -> None:
    """A second opener is told who holds the folder, in the same process and in another."""
    with pytest.raises(JournalInUse, match=f"process {os.getpid()}"):
        FileJournal.open(folder, ORIGIN)
    code = (
        "import sys; from pathlib import Path\n"
        "from ironwork_server.journal import FileJournal, JournalInUse\n"
        "try: FileJournal.open(Path(sys.argv[1]), sys.argv[2])\n"
        "except JournalInUse: sys.exit(7)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(folder), ORIGIN], timeout=60
    )
    assert done.returncode == 7
    assert await journal.append(made(0))


async def test_closing_releases_the_folder(folder: Path) -> None:
    """After a close, and after a refused opening, the folder is free."""
    await FileJournal.open(folder, ORIGIN).close()
    with pytest.raises(OriginDiffers):
        FileJournal.open(folder, "keys.test/b")
    await FileJournal.open(folder, ORIGIN).close()


async def test_an_origin_stays(folder: Path) -> None:
    """A folder belongs to the origin that it was made for; the error names both."""
    await FileJournal.open(folder, ORIGIN).close()
    with pytest.raises(OriginDiffers, match=r"keys\.test/a.*keys\.test/b"):
        FileJournal.open(folder, "keys.test/b")


def test_an_origin_that_cannot_be_one_is_refused(folder: Path) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(JournalUnusable, match="origin"):
        FileJournal.open(folder, "two words")


def test_a_folder_open_to_others_is_refused(folder: Path) -> None:
    """The log names who does what: other users of the machine may not read it."""
    folder.mkdir()
    folder.chmod(0o750)
    with pytest.raises(JournalUnusable, match="chmod 700"):
        FileJournal.open(folder, ORIGIN)


async def test_a_file_open_to_others_is_refused(folder: Path) -> None:
    """So is a file that someone made readable; the error says how to mend it."""
    await FileJournal.open(folder, ORIGIN).close()
    log_path(folder).chmod(0o640)
    with pytest.raises(JournalUnusable, match="chmod 600"):
        FileJournal.open(folder, ORIGIN)


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """A link in the file's place is refused: nothing is written where it points."""
    folder.mkdir(mode=0o700)
    log_path(folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalUnusable):
        FileJournal.open(folder, ORIGIN)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """What the operating system refuses is said in its words, with the folder's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnusable, match="cannot be used"):
        FileJournal.open(tmp_path / "file" / "journal", ORIGIN)


async def test_intents_without_outcome_are_marked_once(folder: Path) -> None:
    """After a crash the log itself says which intents have no outcome, and says it once."""
    journal = FileJournal.open(folder, ORIGIN)
    await journal.append(*[intent(number) for number in range(30)])
    await journal.append(outcome(3, 3))
    await journal.close()
    for _ in range(2):
        await FileJournal.open(folder, ORIGIN).close()
    assert operations(folder).count("journal.unfinished") == 1
    marked = entries(folder)[-1].event
    assert marked.details["count"] == 29
    assert marked.details["first_indexes"] == "0,1,2," + ",".join(map(str, range(4, 21)))


async def test_a_journal_without_loose_ends_gets_no_mark(folder: Path) -> None:
    """A start after a clean end writes nothing."""
    journal = FileJournal.open(folder, ORIGIN)
    await journal.append(intent(0), outcome(0, 0))
    await journal.close()
    await FileJournal.open(folder, ORIGIN).close()
    assert len(entries(folder)) == 2
