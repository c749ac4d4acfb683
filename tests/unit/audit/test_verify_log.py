"""Verifying a log from its files: what is found, and that the first bad entry is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.tlog_made import (
    KEY,
    NOW,
    ORIGIN,
    WITNESS_KEY,
    call_event,
    made_entries,
    put,
    rendered,
    signed_checkpoint,
    write_log,
    write_tiles,
)
from ironwork_audit import OUTCOME
from ironwork_audit.event import to_timestamp
from ironwork_audit.source import FolderSource, NotThere, Unreadable
from ironwork_audit.tlog import (
    KeyType,
    TilePath,
    VerifierKey,
    leaf_hash,
    pack_bundle,
    parse_bundle,
    root_of,
)
from ironwork_audit.verify import Verdict, verify
from ironwork_audit.verify_chunk import CHUNK_ENTRIES, Found
from ironwork_audit.verify_levels import Levels

SIZE = 600
ENTRIES = made_entries(SIZE)
BIG = CHUNK_ENTRIES + 700
FIRST_MS = to_timestamp(NOW)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, ENTRIES, witness_time=1234)
    return folder


@pytest.fixture(scope="module")
def original_big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    write_log(folder, made_entries(BIG))
    return folder


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "log"))


@pytest.fixture
def big(original_big: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_big, tmp_path / "big"))


def judged(folder: Path, **arguments: object) -> Verdict:
    return verify(FolderSource(folder), KEY, **arguments)  # type: ignore[arg-type]


def found(folder: Path, **arguments: object) -> tuple[int | None, str]:
    """The finding that there must be."""
    finding = judged(folder, **arguments).finding
    assert finding is not None
    return finding.index, finding.what


def edit_bundle(folder: Path, tile: TilePath, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = folder / tile.path
    path.write_bytes(pack_bundle(change(parse_bundle(path.read_bytes(), tile.width))))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 513])
def test_a_whole_log(size: int, tmp_path: Path) -> None:
    """A log of any size verifies; its times and its unfinished calls are told."""
    write_log(tmp_path, ENTRIES[:size])
    verdict = judged(tmp_path)
    assert verdict.finding is None
    assert verdict.checkpoint is not None
    assert verdict.checkpoint.size == size
    assert verdict.unfinished == int(size > 0 and size % 2 == 0)
    assert verdict.times == ((FIRST_MS, FIRST_MS + size - 1) if size else None)


def test_progress_and_processes(big: Path) -> None:
    """Several processes find what one finds, and progress goes up to the whole."""
    told: list[tuple[int, int]] = []
    verdict = judged(big, workers=2, progress=lambda *step: told.append(step))
    assert verdict == judged(big)
    assert verdict.finding is None
    assert told == [(CHUNK_ENTRIES, BIG), (BIG, BIG)]


def test_a_flipped_byte_in_an_entry(log: Path) -> None:
    """One changed bit of one entry names that entry."""
    tile = TilePath(None, 1)

    def change(entries: list[bytes]) -> list[bytes]:
        entries[44] = entries[44].replace(b"spiffe", b"spiffd")
        return entries

    edit_bundle(log, tile, change)
    assert found(log) == (300, "its bytes are not those of its hash in tile/0/001")


def test_a_removed_entry(log: Path) -> None:
    """An entry taken out of its bundle is named, in the middle and at the end."""
    edit_bundle(log, TilePath(None, 2, 88), lambda entries: entries[:-1])
    assert found(log) == (599, "it is missing: tile/entries/002.p/88 ends before it")
    edit_bundle(log, TilePath(None, 0), lambda entries: entries[:7] + entries[8:])
    assert found(log)[0] == 7


def test_an_added_entry(log: Path) -> None:
    """Bytes after the last entry of a bundle are found."""
    path = log / TilePath(None, 2, 88).path
    path.write_bytes(path.read_bytes() + b"\0\1x")
    assert found(log) == (599, "bytes follow it in tile/entries/002.p/88")


def test_a_swapped_pair(log: Path) -> None:
    """Two entries in each other's place name the first of them."""

    def swap(entries: list[bytes]) -> list[bytes]:
        entries[9], entries[10] = entries[10], entries[9]
        return entries

    edit_bundle(log, TilePath(None, 1), swap)
    assert found(log)[0] == 265


def test_the_first_of_several(big: Path) -> None:
    """Of many bad entries, in whatever chunk, the first is named."""
    for index in (CHUNK_ENTRIES + 300, CHUNK_ENTRIES + 2, 5000, 700):
        flip(big / TilePath(None, index // 256).path, 40)
    index, _ = found(big, workers=2)
    assert index == 700 // 256 * 256


@pytest.mark.parametrize("part", ["tile/0/001", "tile/entries/001", "tile/1/000.p/2"])
def test_a_missing_file(log: Path, part: str) -> None:
    """A file of the signed tree that is not there is a finding, at the first entry under it."""
    (log / part).unlink()
    index, what = found(log)
    assert index == (0 if part.startswith("tile/1") else 256)
    assert "no such file" in what


def test_a_flipped_bit_in_each_tile(big: Path) -> None:
    """A changed hash in a tile of any level is found, and the entries under it are named."""
    places = {
        "tile/0/010": (32 * 5 + 1, 2565),
        "tile/1/000.p/66": (32 * 17, 17 * 256),
    }
    for path, (at, index) in places.items():
        flip(big / path, at)
        assert found(big)[0] == index
        flip(big / path, at)
    assert judged(big).finding is None


@pytest.mark.parametrize(
    ("path", "at", "index"), [("tile/1/000", 32 * 200, 200 * 256), ("tile/2/000.p/1", 0, 0)]
)
def test_tiles_of_the_second_level(path: str, at: int, index: int, tmp_path: Path) -> None:
    """A full tile above the leaves is read once it is full, and what is above it at the end."""
    bundle = root_of([leaf_hash(b"")] * 256)
    put(tmp_path, TilePath(1, 0), bundle * 256)
    put(tmp_path, TilePath(1, 1, 1), bundle)
    put(tmp_path, TilePath(2, 0, 1), root_of([bundle] * 256))
    flip(tmp_path / path, at)
    levels = Levels(FolderSource(tmp_path), 65536 + 256)

    def run() -> None:
        for _ in range(257):
            levels.add(bundle)
        levels.finish()

    with pytest.raises(Found) as caught:
        run()
    assert caught.value.finding.index == index


def test_a_rewrite_under_the_old_signature(log: Path) -> None:
    """A history made anew, tiles and all, does not have the signed root."""
    entries = [*ENTRIES[:300], rendered(call_event(300, 299, success=False), 300), *ENTRIES[301:]]
    write_tiles(log, entries)
    index, what = found(log)
    assert index is None
    assert "rewritten as a whole" in what


def test_a_rewrite_signed_with_our_own_key(log: Path, tmp_path: Path) -> None:
    """With the key a rewrite verifies by itself; an older checkpoint shows it."""
    old = signed_checkpoint(500, root_at(500))
    entries = [*ENTRIES[:300], rendered(call_event(300, 299, success=False), 300), *ENTRIES[301:]]
    write_log(log, entries)
    assert judged(log).finding is None
    index, what = found(log, since=old)
    assert index is None
    assert "first 500 entries" in what


def root_at(size: int) -> bytes:
    return root_of([leaf_hash(entry) for entry in ENTRIES[:size]])


def test_a_rolled_back_checkpoint(log: Path) -> None:
    """A truncated tail under a checkpoint of the past is found by a newer one, and so named."""
    newest = (log / "checkpoint").read_bytes()
    write_log(log, ENTRIES[:400])
    assert judged(log).finding is None
    index, what = found(log, since=newest)
    assert index == 400
    assert what.startswith("rolled back")


@pytest.mark.parametrize("size", [0, 1, 256, 500, 600])
def test_growth_since_an_older_checkpoint(log: Path, size: int) -> None:
    """A log that only grew verifies against any of its older checkpoints."""
    verdict = judged(log, since=signed_checkpoint(size, root_at(size)))
    assert (verdict.finding, verdict.since) == (None, size)


def test_signatures(log: Path, tmp_path: Path) -> None:
    """Another key, a changed checkpoint, a missing witness: each is found before anything else."""
    other = replace(KEY, public=b"x" * 32)
    assert verify(FolderSource(log), other).finding is not None
    assert judged(log, witnesses=[WITNESS_KEY]).cosignatures[0].timestamp == 1234
    stranger = VerifierKey("witness.test/x", KeyType.COSIGNATURE_V1, b"x" * 32)
    assert "not signed by witness.test/x" in found(log, witnesses=[stranger])[1]
    assert found(log, since=b"no checkpoint")[0] is None
    path = log / "checkpoint"
    path.write_bytes(path.read_bytes().replace(b"\n600\n", b"\n599\n"))
    assert found(log) == (None, f"the signature of {ORIGIN} is wrong")


def signed(folder: Path, entries: list[bytes]) -> Path:
    """A log that its operator signed, whatever is in it."""
    write_log(folder, entries)
    return folder


@pytest.mark.parametrize(
    ("index", "entry", "what"),
    [
        (300, ENTRIES[302], "metadata.sequence: is 302"),
        (300, ENTRIES[300].replace(b"keys.test/a", b"keys.test/b"), "this log's origin"),
        (301, b"{}", "entry"),
        (300, rendered(call_event(300, 298), 300), "is not an intent of the same call"),
        (300, rendered(call_event(300, 297), 300), "is not an intent of the same call"),
        (300, rendered(call_event(300, 0), 300), "is not an intent of the same call"),
        (300, rendered(call_event(300, 299, operation="AddKey"), 300), "of the same call"),
        (300, rendered(call_event(300, 300, phase=OUTCOME), 300), "of the same call"),
        (300, rendered(call_event(300, 301, phase=OUTCOME), 300), "of the same call"),
    ],
)
def test_what_an_operator_may_not_sign(index: int, entry: bytes, what: str, tmp_path: Path) -> None:
    """A signed log is still refused for entries out of sequence, of another log, of another form,
    or outcomes without their intent.
    """
    entries = [*ENTRIES[:index], entry, *ENTRIES[index + 1 : 400]]
    where, said = found(signed(tmp_path, entries))
    assert where == index
    assert what in said


def test_outcomes_across_chunks(tmp_path: Path) -> None:
    """An intent and its outcome need not be near; a second outcome of one intent is found."""
    entries = made_entries(BIG)
    at = CHUNK_ENTRIES + 5
    assert b'"phase":"intent"' in entries[at]
    late = rendered(call_event(at, 3, phase=OUTCOME), at)
    entries[at] = late
    entries[4] = rendered(call_event(4), 4)
    entries[at + 1] = rendered(call_event(at + 1), at + 1)
    write_log(tmp_path, entries)
    assert judged(tmp_path).finding is None
    entries[at + 2] = rendered(call_event(at + 2, 3, phase=OUTCOME), at + 2)
    write_log(tmp_path, entries)
    assert found(tmp_path)[0] == at + 2


def settled(index: int, intent: int, reason: str, **changes: object) -> bytes:
    return rendered(call_event(index, intent, success=False, reason=reason, **changes), index)


@pytest.mark.parametrize("at", [4, CHUNK_ENTRIES + 4])
def test_an_undecided_write_is_settled_by_a_second_outcome(at: int, tmp_path: Path) -> None:
    """What the store was found to hold stands under the same intent, near or far, also twice."""
    entries = made_entries(at + 8)
    entries[2] = settled(2, 1, "STORE_UNDECIDED")
    # A process that was killed left no outcome: then this is the first.
    entries[3] = rendered(call_event(3), 3)
    entries[4] = rendered(call_event(4), 4)
    entries[at + 1 : at + 5] = [
        settled(at + 1, 1, "ROW_ABSENT"),
        settled(at + 2, 1, "ROW_ABSENT"),
        settled(at + 3, 3, "ROW_PRESENT"),
        settled(at + 4, 3, "ROW_PRESENT"),
    ]
    entries[at + 5 :] = [rendered(call_event(i), i) for i in range(at + 5, at + 8)]
    write_log(tmp_path, entries)
    assert judged(tmp_path).finding is None


@pytest.mark.parametrize(
    ("first", "second", "changes"),
    [
        ("", "ROW_ABSENT", {}),
        ("STORE_UNDECIDED", "STORE_UNDECIDED", {}),
        ("STORE_UNDECIDED", "", {}),
        ("STORE_UNDECIDED", "ROW_ABSENT", {"operation": "AddKey"}),
    ],
)
def test_no_other_outcome_is_second(
    first: str, second: str, changes: dict[str, object], tmp_path: Path
) -> None:
    """A decided call has one outcome, and an undecided one no other than what settles it."""
    entries = made_entries(3)
    entries[2] = settled(2, 1, first)
    write_log(tmp_path, [*entries, settled(3, 1, second, **changes)])
    assert found(tmp_path)[0] == 3


def test_full_tiles_stand_for_partial_ones(log: Path) -> None:
    """A log that has grown since its checkpoint was read, and deleted partial tiles, verifies."""
    more = [*ENTRIES, *(rendered(call_event(i), i) for i in range(SIZE, 800))]
    checkpoint = (log / "checkpoint").read_bytes()
    shutil.rmtree(log / "tile")
    write_tiles(log, more)
    put(log, TilePath(1, 0, 2), (log / "tile/1/000.p/3").read_bytes()[:64])
    (log / "checkpoint").write_bytes(checkpoint)
    assert judged(log).finding is None


def test_what_cannot_be_read_is_no_finding(log: Path, tmp_path: Path) -> None:
    """No checkpoint, or a file that the system refuses: nothing can be said of the log."""
    (log / "tile/0/001").unlink()
    (log / "tile/0/001").mkdir()
    with pytest.raises(Unreadable):
        judged(log)
    (log / "checkpoint").unlink()
    with pytest.raises(NotThere):
        judged(log)
