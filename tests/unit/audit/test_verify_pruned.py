"""Verifying a log whose oldest entries were moved to an archive."""

import json
import shutil
from pathlib import Path

import pytest

from fixtures.tlog_made import (
    KEY,
    ORIGIN,
    call_event,
    made_entries,
    rendered,
    signed_checkpoint,
    write_log,
)
from ironwork_audit.cli.main import main
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import TilePath, leaf_hash, root_of
from ironwork_audit.verify import Verdict, verify
from ironwork_audit.verify_chunk import CHUNK_ENTRIES

SIZE = 4 * 256 + 90
BIG = CHUNK_ENTRIES + 3 * 256


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, made_entries(SIZE))
    return folder


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "log"))


def prune(folder: Path, bundles: int) -> None:
    for number in range(bundles):
        (folder / TilePath(None, number).path).unlink()
        (folder / TilePath(0, number).path).unlink()


def judged(folder: Path, **arguments: object) -> Verdict:
    return verify(FolderSource(folder), KEY, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("bundles", [1, 2, 3])
def test_what_is_there_is_checked(log: Path, bundles: int) -> None:
    """With leave to be pruned, a log is good from the first entry that is there, and says so."""
    prune(log, bundles)
    verdict = judged(log, pruned=True)
    assert verdict.finding is None
    assert verdict.pruned == 256 * bundles
    assert verdict.times is not None


def test_without_leave_it_is_bad(log: Path) -> None:
    """Entries that are missing are a finding, whoever took them; it says that the rest is good."""
    prune(log, 2)
    verdict = judged(log)
    assert verdict.finding is not None
    assert verdict.finding.index == 0
    assert "tile/0/000: no such file" in verdict.finding.what
    assert "all 512 entries before entry 512" in verdict.finding.what


def test_a_whole_log_is_not_pruned(log: Path) -> None:
    """Leave to be pruned changes nothing for a log that is whole."""
    assert judged(log, pruned=True) == judged(log)
    assert judged(log).pruned == 0


def test_only_the_oldest_may_be_missing(log: Path) -> None:
    """A gap after an entry that is there, and a log without its newest full bundle, are bad."""
    (log / TilePath(None, 2).path).unlink()
    finding = judged(log, pruned=True).finding
    assert finding is not None
    assert finding.index == 512
    (log / TilePath(None, 2).path).write_bytes(b"")
    prune(log, 2)
    (log / TilePath(None, 3).path).unlink()
    finding = judged(log, pruned=True).finding
    assert finding is not None
    assert finding.index == 0


def test_what_is_left_is_held_to_the_root(log: Path) -> None:
    """A flipped bit in what is there, or in the hash that stands for what is not, is found."""
    prune(log, 2)
    entries = log / TilePath(None, 3).path
    good = entries.read_bytes()
    entries.write_bytes(good.replace(b"WithKey", b"WithKez", 1))
    finding = judged(log, pruned=True).finding
    assert finding is not None
    assert finding.index == 768
    entries.write_bytes(good)
    above = log / TilePath(1, 0, 4).path
    hashes = bytearray(above.read_bytes())
    hashes[40] ^= 1
    above.write_bytes(hashes)
    finding = judged(log, pruned=True).finding
    assert finding is not None
    assert "not with the signed root" in finding.what
    above.unlink()
    finding = judged(log, pruned=True).finding
    assert finding is not None
    assert finding.index == 0


def test_a_checkpoint_from_within_what_is_missing(log: Path) -> None:
    """An older checkpoint is compared where that can be done, and is bad where it cannot."""
    entries = made_entries(SIZE)
    old = {
        size: signed_checkpoint(size, root_of([leaf_hash(entry) for entry in entries[:size]]))
        for size in (300, 512, 700)
    }
    prune(log, 2)
    assert judged(log, pruned=True, since=old[512]).finding is None
    assert judged(log, pruned=True, since=old[700]).finding is None
    finding = judged(log, pruned=True, since=old[300]).finding
    assert finding is not None
    assert "tile/0/001" in finding.what


def test_outcomes_of_intents_that_are_gone_are_counted(tmp_path: Path) -> None:
    """An outcome whose intent was moved away is no finding; one of an intent that is here and not
    its own still is.
    """
    entries = made_entries(SIZE)
    # Entry 512 is an outcome, of the intent 511, in every such log.
    write_log(tmp_path, entries)
    prune(tmp_path, 2)
    verdict = judged(tmp_path, pruned=True)
    assert (verdict.finding, verdict.unlinked) == (None, 1)
    entries[900] = rendered(call_event(900, 600), 900)
    shutil.rmtree(tmp_path / "tile")
    write_log(tmp_path, entries)
    prune(tmp_path, 2)
    finding = judged(tmp_path, pruned=True).finding
    assert finding is not None
    assert finding.index == 900


def test_several_chunks_and_processes(tmp_path: Path) -> None:
    """Where what is there begins in the second chunk, several processes find what one finds."""
    write_log(tmp_path, made_entries(BIG))
    prune(tmp_path, CHUNK_ENTRIES // 256 + 1)
    verdict = judged(tmp_path, pruned=True)
    assert (verdict.finding, verdict.pruned) == (None, CHUNK_ENTRIES + 256)
    prune_more = judged(tmp_path, pruned=True, workers=2)
    assert prune_more == verdict


def test_the_command_says_what_it_could_not_check(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` exits with 1 without --pruned and with 0 with it, and names what was not checked."""
    prune(log, 2)
    command = ["verify", str(log), "--key", str(KEY), "--workers", "1"]
    assert main(command) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"BAD {ORIGIN}: entry 0: " in said
    assert "NOT CHECKED: entries 0 to 511" in said
    assert main([*command, "--pruned"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT CHECKED: entries 0 to 511" in said
    assert "checked: the 602 entries from 512 on" in said
    assert "1 outcomes belong to intents that are not here" in said
    assert main([*command, "--pruned", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["pruned"], document["unlinked"]) == (512, 1)
