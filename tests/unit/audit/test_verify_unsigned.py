"""A log that is being written: signed up to its checkpoint, and what follows is counted."""

import json
from pathlib import Path

import pytest

from fixtures.tlog_made import (
    KEY,
    ORIGIN,
    WITNESS_KEY,
    call_event,
    made_entries,
    made_entry,
    rendered,
    signed_checkpoint,
)
from ironwork_audit import OUTCOME
from ironwork_audit.cli.main import main
from ironwork_audit.log import AppendLog
from ironwork_audit.source import FolderSource
from ironwork_audit.verify import Verdict, verify


def judged(folder: Path) -> Verdict:
    return verify(FolderSource(folder), KEY)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """300 signed, 4 in tiles and unsigned, 5 in a write-ahead file."""
    folder = tmp_path / "log"
    log = AppendLog.open(folder, ORIGIN)
    log.append([made_entry] * 300)
    tree = log.integrate()
    log.publish(signed_checkpoint(tree.size, tree.root))
    log.append([made_entry] * 4)
    log.integrate()
    log.append([made_entry] * 3)
    log.append([made_entry] * 2)
    # As a crash leaves it: never closed, so nothing is put into tiles any more.
    return folder


def test_what_the_engine_wrote(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's log verifies; entries in tiles without a checkpoint and in write-ahead files
    are counted as not yet signed, and their calls go on from the signed ones.
    """
    verdict = judged(log)
    assert verdict.finding is None
    assert (verdict.unsigned, verdict.unfinished) == (9, 0)
    assert verdict.checkpoint is not None
    assert verdict.checkpoint.size == 300
    assert main(["verify", str(log), "--key", str(KEY)]) == 0
    assert "9 entries after it are durable and not yet signed" in capsys.readouterr().out
    assert WITNESS_KEY.name not in capsys.readouterr().out


def test_a_copy_without_the_engines_files(log: Path) -> None:
    """The published files alone verify."""
    for name in ("state", "pending.0", "pending.1"):
        (log / name).unlink()
    assert judged(log).finding is None
    assert judged(log).unsigned == 0


def test_a_torn_commit_is_no_entry(log: Path) -> None:
    """What a crash cut off in the middle was never acknowledged."""
    pending = max(log.glob("pending.*"), key=lambda path: path.stat().st_size)
    pending.write_bytes(pending.read_bytes()[:-10])
    assert (judged(log).finding, judged(log).unsigned) == (None, 7)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"sequence":305', b'"sequence":306', "damaged: pending"),
        (b'"first":304', b'"first":309', "entries are missing"),
    ],
)
def test_a_changed_write_ahead_file(old: bytes, new: bytes, what: str, log: Path) -> None:
    """A commit that is not what was written there is found."""
    pending = max(log.glob("pending.*"), key=lambda path: path.stat().st_size)
    content = pending.read_bytes()
    assert old in content
    pending.write_bytes(content.replace(old, new))
    finding = judged(log).finding
    assert finding is not None
    assert finding.index is None
    assert what in finding.what


def test_a_gap(log: Path) -> None:
    """Entries that are neither in tiles nor in a write-ahead file are missed."""
    state = log / "state"
    document = json.loads(state.read_text())
    state.write_text(json.dumps(document | {"size": 302}) + "\n")
    finding = judged(log).finding
    assert finding is not None
    assert "missing between" in finding.what
    for text in ("{}", "[]", "nothing"):
        state.write_text(text)
        finding = judged(log).finding
        assert finding is not None
        assert "`state`" in finding.what


def test_a_missing_unsigned_bundle(log: Path) -> None:
    """Unsigned entries whose bundle is gone are named."""
    (log / "tile/entries/001.p/48").unlink()
    finding = judged(log).finding
    assert finding is not None
    assert finding.index == 300


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (call_event(2, 1, phase=OUTCOME, operation="AddKey"), "not an intent of the same call"),
        (call_event(1), "not yet signed: metadata.sequence"),
    ],
)
def test_unsigned_entries_are_read(event, what: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Their index, form and links are checked as those of signed ones."""
    log = AppendLog.open(tmp_path, ORIGIN)
    log.append([made_entry] * 2)
    tree = log.integrate()
    log.publish(signed_checkpoint(tree.size, tree.root))
    index = 2 if event.phase == OUTCOME else 3
    log.append([lambda _: rendered(event, index)])
    finding = judged(tmp_path).finding
    assert finding is not None
    assert finding.index == 2
    assert what in finding.what
    log.close()


def test_a_log_in_motion(tmp_path: Path) -> None:
    """Verified after every step of its writer, a log is never found bad, and nothing durable is
    left out.
    """
    log = AppendLog.open(tmp_path, ORIGIN)
    entries = made_entries(80)
    for step in range(40):
        log.append([made_entry] * 2)
        if step % 2 == 0:
            tree = log.integrate()
        if step % 4 == 0:
            log.publish(signed_checkpoint(tree.size, tree.root))
        verdict = judged(tmp_path)
        assert verdict.finding is None
        assert verdict.checkpoint is not None
        assert verdict.checkpoint.size + verdict.unsigned == log.size
    assert log.read(0, 80) == entries
    log.close()
