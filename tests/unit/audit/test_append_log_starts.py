"""A log that is opened: snapshots, damage, and whose folder it is."""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.append_log import ORIGIN, Sum, all_of, expected, some, unsigned
from ironwork_audit.log import (
    AppendLog,
    LogDamaged,
    LogInUse,
    LogUnusable,
    OriginDiffers,
    WriteFailed,
)
from ironwork_audit.tlog import (
    Checkpoint,
    Signature,
    format_note,
)


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
