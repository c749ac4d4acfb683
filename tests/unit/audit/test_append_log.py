"""The log on disk while it is open: entries, tiles, proofs."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.append_log import ORIGIN, all_of, entry, expected, some
from fixtures.journal_disk import FULL, Disk, Unsynced
from fixtures.log_check import held, tiled
from ironwork_audit.log import (
    AppendLog,
    WriteFailed,
)
from ironwork_audit.tlog import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)


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
