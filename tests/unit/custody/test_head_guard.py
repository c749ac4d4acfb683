"""One origin, one log: the store's newest head against a copied, an older or another folder."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.journal_events import made
from fixtures.migrated import NewStore
from fixtures.signing import SigningKeyFiles
from ironwork_audit.log import Tree
from ironwork_audit.tlog import Checkpoint, parse_note
from ironwork_hsm.signers import open_signer
from ironwork_server.core.errors import IronworkError, Unavailable
from ironwork_server.core.values import LogHead
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.custody.head_guard import HeadGuard
from ironwork_server.journal import FileJournal
from ironwork_server.store import Store, StoreUndecided, open_store

ORIGIN = "ironwork.test/guarded"


class SickHeads:
    """A real store whose next swaps fail: before they are done, after, or by saying no."""

    def __init__(self, real: Store) -> None:
        self._real = real
        self.faults: list[str] = []

    async def log_head(self, origin: str) -> LogHead | None:
        return await self._real.log_head(origin)

    async def swap_log_head(self, old: LogHead | None, new: LogHead) -> bool:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "no":
            return False
        if fault == "before":
            raise StoreUndecided
        done = await self._real.swap_log_head(old, new)
        if fault == "after":
            raise StoreUndecided
        return done


@pytest.fixture
async def heads(tmp_path: Path, new_store: NewStore) -> AsyncIterator[SickHeads]:
    store = open_store(new_store(tmp_path / "keys.db"))
    yield SickHeads(store)
    await store.close()


async def grow(journal: FileJournal, guard: HeadGuard | None = None) -> Tree:
    """One more entry; recorded where a guard is given."""
    await journal.append(made(0))
    tree = await journal.integrate()
    if guard is not None:
        await guard.record(tree)
    return tree


async def begun(folder: Path, heads: SickHeads) -> tuple[FileJournal, HeadGuard]:
    """The folder's log, open, as a start has it."""
    journal = FileJournal.open(folder, ORIGIN)
    guard = HeadGuard(journal, heads)
    try:
        await guard.begin()
    except IronworkError:
        await journal.close()
        raise
    return journal, guard


async def stored(heads: SickHeads) -> Tree | None:
    head = await heads.log_head(ORIGIN)
    return None if head is None else Tree(head.size, head.root)


async def refused(folder: Path, heads: SickHeads) -> str:
    with pytest.raises(Unavailable) as error:
        await begun(folder, heads)
    return error.value.reason


async def test_a_log_goes_on_from_its_head(tmp_path: Path, heads: SickHeads) -> None:
    """A start takes a log that is the stored head's, or has grown since; also past full tiles."""
    journal, guard = await begun(tmp_path / "log", heads)
    assert await stored(heads) == journal.tree
    await grow(journal, guard)
    for _ in range(5):
        await journal.append(*[made(0)] * 60)
        await journal.integrate()
    await journal.close()
    journal, guard = await begun(tmp_path / "log", heads)
    tree = await grow(journal, guard)
    assert (tree.size, await stored(heads)) == (302, tree)
    await journal.close()


async def test_an_older_copy_is_refused(tmp_path: Path, heads: SickHeads) -> None:
    """A whole copy that lacks signed entries does not start, nor when it has other ones instead;
    the newest folder does.
    """
    journal, guard = await begun(tmp_path / "log", heads)
    await grow(journal, guard)
    await journal.close()
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    journal, guard = await begun(tmp_path / "log", heads)
    newest = await grow(journal, guard)
    await journal.close()
    assert await refused(tmp_path / "old", heads) == "AUDIT_ROLLED_BACK"
    copy = FileJournal.open(tmp_path / "old", ORIGIN)
    for _ in range(3):
        await grow(copy)
    await copy.close()
    assert await refused(tmp_path / "old", heads) == "AUDIT_ROLLED_BACK"
    assert await stored(heads) == newest
    journal, _ = await begun(tmp_path / "log", heads)
    await journal.close()


async def test_another_folder_is_refused(tmp_path: Path, heads: SickHeads) -> None:
    """A second folder of a taken origin does not start, an empty one neither."""
    journal, _ = await begun(tmp_path / "log", heads)
    await journal.close()
    assert await refused(tmp_path / "new", heads) == "AUDIT_ORIGIN_TAKEN"
    (tmp_path / "log" / "id").unlink()
    assert await refused(tmp_path / "log", heads) == "AUDIT_ORIGIN_TAKEN"


@pytest.mark.parametrize("copied", [True, False], ids=["copy", "other folder"])
async def test_two_that_run_at_once(tmp_path: Path, heads: SickHeads, copied: bool) -> None:
    """Of two processes that sign one origin, begun before either could see the other, the second
    to record a head is stopped before it signs, for good; the first goes on.
    """
    if copied:
        journal, _ = await begun(tmp_path / "a", heads)
        await journal.close()
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = FileJournal.open(tmp_path / "a", ORIGIN)
    second = FileJournal.open(tmp_path / "b", ORIGIN)
    guards = HeadGuard(first, heads), HeadGuard(second, heads)
    if copied:
        for guard in guards:
            await guard.begin()
    await grow(first, guards[0])
    for _ in range(2):
        with pytest.raises(Unavailable) as error:
            await grow(second, guards[1])
        assert error.value.reason == "AUDIT_ORIGIN_TAKEN"
    with pytest.raises(Unavailable):
        guards[1].require()
    newest = await grow(first, guards[0])
    guards[0].require()
    assert await stored(heads) == newest
    await first.close()
    await second.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_store_that_did_not_answer(tmp_path: Path, heads: SickHeads, fault: str) -> None:
    """A write that failed, done or not, delays the head; the next one is recorded, and a start in
    between goes on.
    """
    journal, guard = await begun(tmp_path / "log", heads)
    heads.faults = [fault]
    with pytest.raises(StoreUndecided):
        await grow(journal, guard)
    assert await stored(heads) == await journal.tree_at(1 if fault == "after" else 0)
    tree = await grow(journal, guard)
    assert await stored(heads) == tree
    heads.faults = [fault]
    with pytest.raises(StoreUndecided):
        await grow(journal, guard)
    await journal.close()
    journal, guard = await begun(tmp_path / "log", heads)
    tree = await grow(journal, guard)
    assert await stored(heads) == tree
    await journal.close()


async def test_a_head_that_changes_meanwhile(tmp_path: Path, heads: SickHeads) -> None:
    """A second refusal in a row is worth another try, and is not the end."""
    journal, guard = await begun(tmp_path / "log", heads)
    heads.faults = ["no", "no"]
    with pytest.raises(Unavailable) as error:
        await grow(journal, guard)
    assert error.value.reason == "CHECKPOINT_UNAVAILABLE"
    guard.require()
    await grow(journal, guard)
    await journal.close()


async def test_an_older_database(tmp_path: Path, heads: SickHeads, new_store: NewStore) -> None:
    """A database that was put back, whose head is older or of which there is none, is gone on
    with.
    """
    journal, guard = await begun(tmp_path / "log", heads)
    await grow(journal, guard)
    shutil.copyfile(new_store(tmp_path / "new.db").removeprefix("sqlite:///"), tmp_path / "e.db")
    (tmp_path / "e.db").chmod(0o600)
    empty = open_store(f"sqlite:///{tmp_path / 'e.db'}")
    anew = HeadGuard(journal, empty)
    await anew.begin()
    older = await empty.log_head(ORIGIN)
    assert older is not None
    await grow(journal, guard)
    again = HeadGuard(journal, empty)
    await again.begin()
    tree = await grow(journal, again)
    assert await empty.log_head(ORIGIN) == LogHead(ORIGIN, journal.folder_id, tree.size, tree.root)
    await empty.close()
    await journal.close()


@pytest.mark.parametrize("running", [True, False], ids=["running", "start"])
async def test_a_database_that_was_put_back_is_told(
    tmp_path: Path, heads: SickHeads, caplog: pytest.LogCaptureFixture, running: bool
) -> None:
    """A store whose head is behind what was signed is an earlier one: keys that were deleted since
    are in it again. That is an alarm, while serving and at a start; nothing else of a store is.
    """
    journal, guard = await begun(tmp_path / "log", heads)
    earlier = await heads.log_head(ORIGIN)
    await grow(journal, guard)
    heads.faults = ["after"]
    with pytest.raises(StoreUndecided):
        await grow(journal, guard)
    newest = await grow(journal, guard)
    await HeadGuard(journal, heads).begin(newest.size)
    assert "store.restored" not in caplog.text
    assert earlier is not None
    assert await heads.swap_log_head(await heads.log_head(ORIGIN), earlier)
    if running:
        await grow(journal, guard)
    else:
        await HeadGuard(journal, heads).begin(newest.size)
    (told,) = [record for record in caplog.records if record.message == "store.restored"]
    assert (told.levelname, vars(told)["count"]) == ("ERROR", newest.size - earlier.size)
    await journal.close()


async def test_tiles_that_cannot_be_read(tmp_path: Path, heads: SickHeads) -> None:
    """A log that cannot be compared is not gone on with, and is no older copy for that."""
    journal, guard = await begun(tmp_path / "log", heads)
    await grow(journal, guard)
    shutil.rmtree(tmp_path / "log" / "tile" / "0")
    with pytest.raises(Unavailable) as error:
        await HeadGuard(journal, heads).begin()
    assert error.value.reason == "AUDIT_UNAVAILABLE"
    await journal.close()


async def test_nothing_is_signed_under_a_taken_origin(
    tmp_path: Path, heads: SickHeads, signing_key: SigningKeyFiles
) -> None:
    """The head is in the store before the checkpoint is signed; once the origin is another's,
    nothing is signed or published, and health and admin calls say why, at once and for good.
    """
    signer = await open_signer(signing_key.uri)
    journal = FileJournal.open(tmp_path / "log", ORIGIN)
    notes: list[bytes] = []
    checkpointer = Checkpointer(journal, signer, heads, on_checkpoint=notes.append)
    await checkpointer.resume()
    await journal.append(made(0))
    await checkpointer._look()
    head = await heads.log_head(ORIGIN)
    published = Checkpoint.parse(parse_note(notes[-1]).text)
    assert head is not None
    assert (head.size, head.root) == (published.size, published.root)
    stranger = LogHead(ORIGIN, "cd" * 16, 9, b"s" * 32)
    assert await heads.swap_log_head(head, stranger)
    size = journal.tree.size
    (reference,) = await journal.append(made(0))
    await checkpointer._look()
    assert len(notes) == 1
    assert journal.checkpoint() == notes[0]
    # The first signature's two records and the entry: nothing was signed since.
    assert journal.tree.size == size + 3
    assert await heads.log_head(ORIGIN) == stranger
    waiting = asyncio.ensure_future(checkpointer.published(reference))
    await asyncio.sleep(0)
    await checkpointer._look()
    for asked in (checkpointer.check(), waiting):
        with pytest.raises(Unavailable) as error:
            await asked
        assert error.value.reason == "AUDIT_ORIGIN_TAKEN"
    with pytest.raises(Unavailable) as error:
        checkpointer.require()
    assert error.value.reason == "AUDIT_ORIGIN_TAKEN"
    await journal.close()
    await signer.close()
