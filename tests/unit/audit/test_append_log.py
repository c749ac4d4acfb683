"""The log on disk: entries, tiles, starts."""

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.journal_disk import BROKEN, FULL, Disk, Unsynced
from fixtures.log_check import check_checkpoint, held, tiled
from ironwork_audit.log import (
    AppendLog,
    LogDamaged,
    LogInUse,
    LogUnusable,
    OperatingSystem,
    OriginDiffers,
    WriteFailed,
)
from ironwork_audit.tlog import (
    Checkpoint,
    Signature,
    consistency_proof,
    format_note,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

ORIGIN = "log.test/a"


def entry(index: int) -> bytes:
    return b'{"n":%d}' % index


def some(count: int) -> list[Callable[[int], bytes]]:
    return [entry] * count


def expected(count: int) -> list[bytes]:
    return [entry(index) for index in range(count)]


def unsigned(log: AppendLog) -> bytes:
    """A checkpoint of the tree in tiles, with bytes in the signature's place."""
    text = Checkpoint(ORIGIN, log.tree.size, log.tree.root).text
    return format_note(text, [Signature(ORIGIN, b"1234", b"no signature")])


def all_of(log: AppendLog) -> list[bytes]:
    found: list[bytes] = []
    while part := log.read(len(found), 100):
        found += part
    return found


class Sum:
    """A fold that counts entries and their bytes."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.count = 0

    def take(self, index: int, entry: bytes) -> None:
        if not entry.startswith(b"{"):
            raise ValueError("no entry")
        assert index == self.count
        self.seen.append(index)
        self.count += 1

    def dump(self) -> Callable[[], bytes]:
        count = self.count
        return lambda: b"%d" % count

    def load(self, data: bytes) -> None:
        self.count = int(data)

    def reset(self) -> None:
        self.count = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def log(folder: Path) -> Iterator[AppendLog]:
    log = AppendLog.open(folder, ORIGIN)
    yield log
    with contextlib.suppress(OSError):  # a test may have closed it
        log.close()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.booleans()), max_size=6))
def test_tiles_are_those_of_the_entries(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool, bool]]
) -> None:
    """However entries come in, are put into tiles and the log is opened again: the tiles are the
    format's, and every entry is read back under its index.
    """
    folder = tmp_path_factory.mktemp("steps") / "log"
    log = AppendLog.open(folder, ORIGIN, file_system=Unsynced())
    total = 0
    for count, integrated, reopened in steps:
        assert log.append(some(count)) == total
        total += count
        if integrated:
            assert log.integrate().size == total
        if reopened:
            log.close()
            log = AppendLog.open(folder, ORIGIN, file_system=Unsynced())
        assert all_of(log) == expected(total)
    log.close()
    assert tiled(folder) == expected(total)


def test_higher_tiles(log: AppendLog, folder: Path) -> None:
    """Past 65,536 entries there is a full tile of the second level and one of the third."""
    for _ in range(66):
        log.append(some(1000))
    tree = log.integrate()
    assert tree.size == 66_000
    assert (folder / "tile/1/000").is_file()
    assert (folder / "tile/2/000.p/1").is_file()
    assert len(tiled(folder)) == 66_000
    reader = log.hashes(66_000)
    proof = inclusion_proof(65_000, 66_000, reader)
    verify_inclusion(65_000, 66_000, leaf_hash(entry(65_000)), proof, tree.root)


def test_proofs_from_any_size(log: AppendLog, folder: Path) -> None:
    """A proof from a size at which no tile was ever written comes from a wider tile."""
    roots = []
    for _ in range(5):
        log.append(some(97))
        roots.append(log.integrate())
    head = log.tree
    for tree in roots:
        proof = consistency_proof(tree.size, head.size, log.hashes(head.size))
        verify_consistency(tree.size, head.size, tree.root, head.root, proof)
    for size in (1, 13, 200, 257, 400):
        proof = inclusion_proof(size - 1, size, log.hashes(size))
        assert len(proof) >= (size - 1).bit_count() - 1


def test_partial_tiles_go_when_the_full_one_is_there(log: AppendLog, folder: Path) -> None:
    """Partial tiles stay until the tile is full; then the full one serves for them."""
    for _ in range(3):
        log.append(some(100))
        log.integrate()
    names = {path.name for path in (folder / "tile/0").iterdir()}
    assert names == {"000", "001.p"}
    assert {path.name for path in (folder / "tile/0/001.p").iterdir()} == {"44"}
    assert {path.name for path in (folder / "tile/entries").iterdir()} == names


def test_write_ahead_files_take_turns_and_are_cut(log: AppendLog, folder: Path) -> None:
    """What is in tiles does not stay in the write-ahead files."""
    for _ in range(4):
        log.append(some(10))
        assert sum((folder / name).stat().st_size for name in ("pending.0", "pending.1"))
        log.integrate()
        assert not sum((folder / name).stat().st_size for name in ("pending.0", "pending.1"))


def test_integrating_nothing_writes_nothing(folder: Path) -> None:
    """An idle log is left alone."""
    disk = Disk()
    log = AppendLog.open(folder, ORIGIN, file_system=disk)
    log.append(some(3))
    log.integrate()
    calls = disk.calls.copy()
    log.integrate()
    assert disk.calls == calls
    log.close()


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


def test_appends_while_tiles_are_written(folder: Path) -> None:
    """An append does not wait for tiles, and its entries are in the next ones."""
    disk = Disk()
    log = AppendLog.open(folder, ORIGIN, file_system=disk)
    log.append(some(2))
    reached, go_on = threading.Event(), threading.Event()
    real = disk.rename

    def slow(source: Path, target: Path) -> None:
        reached.set()
        assert go_on.wait(60)
        real(source, target)

    disk.rename = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=log.integrate)
    thread.start()
    assert reached.wait(60)
    assert log.append(some(3)) == 2
    assert all_of(log) == expected(5)
    assert log.tree.size == 0
    go_on.set()
    thread.join(60)
    assert log.tree.size == 2
    assert held(folder) == expected(5)
    assert log.integrate().size == 5
    log.close()
    assert tiled(folder) == expected(5)


def test_too_much_that_waits_is_refused(log: AppendLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries without tiles are in memory, so there is a bound; it ends when they have tiles."""
    monkeypatch.setattr("ironwork_audit.log.engine.MAX_WAITING_BYTES", 1000)
    log.append(some(60))
    with pytest.raises(WriteFailed, match="wait") as full:
        log.append(some(60))
    assert not full.value.lasting
    log.integrate()
    assert log.append(some(1)) == log.size - 1


@pytest.mark.parametrize("bad", [b"two\nlines", b"x" * 65_536])
def test_what_cannot_be_an_entry_is_refused(log: AppendLog, bad: bytes) -> None:
    """An entry is one line of at most 65,535 bytes; nothing of its commit is written."""
    with pytest.raises(ValueError, match="entry"):
        log.append([entry, lambda _: bad])
    with pytest.raises(ValueError, match="commit"):
        log.append([lambda _: b"x" * 65_000] * 33)
    assert log.size == 0


def test_a_start_reads_the_snapshot_and_little_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold comes from the snapshot; only later entries are read."""
    monkeypatch.setattr("ironwork_audit.log.engine.SNAPSHOT_EVERY", 100)
    log = AppendLog.open(folder, ORIGIN, fold=Sum())
    for _ in range(4):
        log.append(some(60))
        log.integrate()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    AppendLog.open(copy, ORIGIN, fold=(fold := Sum())).close()
    assert fold.count == 240
    assert fold.seen == []  # the fourth step made it
    log.append(some(7))
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)
    AppendLog.open(copy, ORIGIN, fold=(fold := Sum())).close()
    assert fold.seen == list(range(240, 247))
    log.close()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{}\n", b'{"root": "", "size": 0}\nx', b"[" * 100_000, b"stale", b"forged"],
    ids=["missing", "empty", "no members", "no root", "deep", "of another log", "no hash"],
)
def test_a_snapshot_that_is_wrong_is_made_anew(folder: Path, content: bytes | None) -> None:
    """Whatever is wrong with the snapshot, the fold comes from the entries then."""
    log = AppendLog.open(folder, ORIGIN, fold=Sum())
    log.append(some(300))
    log.close()
    path = folder / "snapshot"
    if content is None:
        path.unlink()
    elif content == b"stale":
        other = AppendLog.open(folder.with_name("other"), ORIGIN, fold=Sum())
        other.append([lambda index: b'{"m":%d}' % index] * 300)
        other.close()
        shutil.copy(folder.with_name("other") / "snapshot", path)
    elif content == b"forged":
        path.write_bytes(path.read_bytes() + b"0")
    else:
        path.write_bytes(content)
    log = AppendLog.open(folder, ORIGIN, fold=(fold := Sum()))
    assert fold.seen == list(range(300))
    log.close()
    AppendLog.open(folder, ORIGIN, fold=(fold := Sum())).close()
    assert fold.seen == []


def flip(path: Path, at: int = 5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda folder: (folder / "state").unlink(), "state"),
        (lambda folder: flip(folder / "state"), "state"),
        (lambda folder: (folder / "origin").unlink(), "origin"),
        (lambda folder: flip(folder / "origin"), "origin"),
        (lambda folder: flip(folder / "checkpoint", 30), "checkpoint"),
        (lambda folder: (folder / "tile/0/001.p/44").unlink(), "tile/0/001.p/44"),
        (lambda folder: flip(folder / "tile/0/001.p/44"), "tile"),
        (lambda folder: flip(folder / "tile/1/000.p/1"), "tile"),
        (lambda folder: (folder / "tile/1/000.p/1").write_bytes(b""), "tile"),
        (lambda folder: flip(folder / "tile/entries/001.p/44"), "tile/entries/001.p/44"),
        (lambda folder: shutil.rmtree(folder / "tile"), "tile/1/000"),
    ],
)  # fmt: skip
def test_damage_refuses_to_open(folder: Path, damage: Callable[[Path], object], place: str) -> None:
    """A log that is not what was written is not gone on with, and the error names the file."""
    log = AppendLog.open(folder, ORIGIN)
    log.append(some(300))
    log.integrate()
    log.publish(unsigned(log))
    log.close()
    damage(folder)
    with pytest.raises(LogDamaged) as damaged:
        AppendLog.open(folder, ORIGIN)
    assert damaged.value.place.startswith(place)


def test_an_entry_that_was_changed_is_named(folder: Path) -> None:
    """Where entries are read at a start, each must be what the tree says."""
    log = AppendLog.open(folder, ORIGIN, fold=Sum())
    log.append(some(300))
    log.close()
    (folder / "snapshot").unlink()
    flip(folder / "tile/entries/000", 3)
    with pytest.raises(LogDamaged, match="entry 0 "):
        AppendLog.open(folder, ORIGIN, fold=Sum())
    (folder / "tile/entries/000").write_bytes(b"")
    with pytest.raises(LogDamaged, match="tile/entries/000"):
        AppendLog.open(folder, ORIGIN, fold=Sum())
    (folder / "tile/entries/000").unlink()
    with pytest.raises(LogDamaged, match="missing"):
        AppendLog.open(folder, ORIGIN, fold=Sum())


def test_a_log_that_was_rolled_back_is_refused(folder: Path) -> None:
    """A folder that is older than its own checkpoint has lost entries that were signed."""
    log = AppendLog.open(folder, ORIGIN)
    log.append(some(10))
    log.integrate()
    older = folder.with_name("older")
    shutil.copytree(folder, older)
    log.append(some(10))
    log.integrate()
    log.publish(unsigned(log))
    log.close()
    shutil.copy(folder / "checkpoint", older / "checkpoint")
    with pytest.raises(LogDamaged, match="signed for 20 entries, and 10 are here"):
        AppendLog.open(older, ORIGIN)


def test_a_checkpoint_of_other_entries_is_refused(folder: Path) -> None:
    """So is one whose checkpoint was signed for something else, or for another log."""
    log = AppendLog.open(folder, ORIGIN)
    log.append(some(10))
    log.integrate()
    note = [Signature(ORIGIN, b"1234", b"no signature")]
    for checkpoint, error in (
        (Checkpoint(ORIGIN, 7, b"x" * 32), LogDamaged),
        (Checkpoint("log.test/b", 10, log.tree.root), OriginDiffers),
    ):
        log.publish(format_note(checkpoint.text, note))
        log.close()
        with pytest.raises(error):
            AppendLog.open(folder, ORIGIN)
        (folder / "checkpoint").unlink()
        log = AppendLog.open(folder, ORIGIN)
    log.close()


def test_a_gap_in_the_write_ahead_files_is_damage(folder: Path) -> None:
    """Entries that were acknowledged and are gone are not passed over."""
    log = AppendLog.open(folder, ORIGIN)
    log.append(some(2))
    first = (folder / "pending.0").read_bytes()
    log.append(some(2))
    whole = (folder / "pending.0").read_bytes()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    log.close()
    (copy / "pending.0").write_bytes(whole[len(first) :])
    with pytest.raises(LogDamaged, match="missing"):
        AppendLog.open(copy, ORIGIN)


def test_a_cut_that_a_crash_undid_does_no_harm(folder: Path) -> None:
    """Write-ahead entries that are in tiles already are skipped, also where later ones are not
    beside them any more.
    """
    log = AppendLog.open(folder, ORIGIN)
    log.append(some(4))
    old = (folder / "pending.0").read_bytes()
    log.integrate()
    log.append(some(4))
    log.integrate()
    log.close()
    (folder / "pending.0").write_bytes(old)
    log = AppendLog.open(folder, ORIGIN)
    assert all_of(log) == expected(8)
    log.close()


def test_a_cut_that_a_crash_undid_costs_no_snapshot(folder: Path) -> None:
    """Write-ahead files that begin below the snapshot's size do not make it useless; one of other
    entries is no more taken than elsewhere.
    """
    log = AppendLog.open(folder, ORIGIN, fold=Sum())
    log.append(some(300))
    log.integrate()
    log.append(some(7))
    path = log._active._path
    old = path.read_bytes()
    log.close()
    path.write_bytes(old)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    AppendLog.open(copy, ORIGIN, fold=(fold := Sum())).close()
    assert (fold.seen, fold.count) == ([], 307)
    line = json.dumps(
        {"root": "00" * 32, "size": 305, "sha256": hashlib.sha256(b"305").hexdigest()}
    )
    (folder / "snapshot").write_bytes(line.encode() + b"\n305")
    AppendLog.open(folder, ORIGIN, fold=(fold := Sum())).close()
    assert fold.seen == list(range(307))


def test_a_snapshot_is_made_without_the_appends_lock(folder: Path) -> None:
    """While a fold's bytes are made, entries are appended; the bytes are of the state before."""

    class Slow(Sum):
        def dump(self) -> Callable[[], bytes]:
            made = super().dump()

            def make() -> bytes:
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(log.append, some(1)).result(timeout=30)
                return made()

            return make

    log = AppendLog.open(folder, ORIGIN, fold=Slow())
    log.append(some(5))
    log.close()
    assert (folder / "snapshot").read_bytes().endswith(b"\n5")
    AppendLog.open(folder, ORIGIN, fold=(fold := Sum())).close()
    assert fold.seen == [5]


def test_an_old_journal_is_refused(folder: Path) -> None:
    """A folder of the plain journal is not gone on with; the error says what to do."""
    folder.mkdir(mode=0o700)
    (folder / "journal.jsonl").write_text("")
    with pytest.raises(LogUnusable, match=r"audit\.folder to a new one"):
        AppendLog.open(folder, ORIGIN)


def test_one_process_at_a_time(log: AppendLog, folder: Path) -> None:
    """A second opener is told who holds the folder; another origin is refused."""
    with pytest.raises(LogInUse, match="in use by process"):
        AppendLog.open(folder, ORIGIN)
    log.close()
    with pytest.raises(OriginDiffers):
        AppendLog.open(folder, "log.test/b")
    AppendLog.open(folder, ORIGIN).close()
    with pytest.raises(WriteFailed, match="closed"):
        log.append(some(1))


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


def test_a_cut_that_fails_is_made_up_for(folder: Path) -> None:
    """While the write-ahead file cannot be cut, appends go on in the other."""
    disk = Disk()
    log = AppendLog.open(folder, ORIGIN, file_system=disk)
    disk.faults["ftruncate"] = FULL
    for _ in range(3):
        log.append(some(2))
        log.integrate()
    disk.faults.clear()
    log.append(some(2))
    log.integrate()
    log.append(some(2))
    log.integrate()
    assert all_of(log) == expected(10)
    log.close()
    assert tiled(folder) == expected(10)


def test_a_folder_s_own_id(folder: Path) -> None:
    """Each folder has an id of its own, which stays; one that was made before there were any gets
    one at its next start; what is no id is refused.
    """
    logs = [AppendLog.open(place, ORIGIN) for place in (folder, folder.with_name("other"))]
    ids = [log.folder_id for log in logs]
    for log in logs:
        log.close()
    assert ids[0] != ids[1]
    for stays in (True, False):
        if not stays:
            (folder / "id").unlink()
        log = AppendLog.open(folder, ORIGIN)
        log.close()
        assert (log.folder_id == ids[0]) is stays
        assert (folder / "id").read_text() == f"{log.folder_id}\n"
    (folder / "id").write_text("a")
    with pytest.raises(LogDamaged):
        AppendLog.open(folder, ORIGIN)


def test_the_tree_at_an_earlier_size(folder: Path) -> None:
    """The root of every size that is in tiles can be told, of greater ones not."""
    log = AppendLog.open(folder, ORIGIN)
    trees = [log.tree]
    for _ in range(6):
        log.append(some(50))
        trees.append(log.integrate())
    log.append(some(1))
    assert [log.tree_at(tree.size) for tree in trees] == trees
    assert log.tree_at(301) is None
    log.close()
