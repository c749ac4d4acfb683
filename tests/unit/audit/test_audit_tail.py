"""Following a log: what is new is shown, once, and a log that is not what it was is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.tlog_made import (
    KEY,
    LOG,
    call_event,
    made_entries,
    rendered,
    signed_checkpoint,
    write_log,
)
from ironwork_audit import EVENT
from ironwork_audit.cli.main import main
from ironwork_audit.follow import Follower
from ironwork_audit.select import BadEntry
from ironwork_audit.source import FolderSource, NotThere
from ironwork_audit.tlog import Checkpoint, Signature, format_note

ENTRIES = made_entries(600)


def follower(folder: Path, last: int = 10**9) -> Follower:
    return Follower(FolderSource(folder), KEY, last)


def test_what_is_new_comes_once(tmp_path: Path) -> None:
    """First the last few, then whatever is added, across bundles, each entry once and in order."""
    write_log(tmp_path, ENTRIES[:250])
    following = follower(tmp_path, last=3)
    assert list(following.news()) == list(enumerate(ENTRIES[247:250], 247))
    assert list(following.news()) == []
    write_log(tmp_path, ENTRIES[:255])
    assert list(following.news()) == list(enumerate(ENTRIES[250:255], 250))
    write_log(tmp_path, ENTRIES)
    assert list(following.news()) == list(enumerate(ENTRIES[255:], 255))


def test_an_interruption_loses_nothing(tmp_path: Path) -> None:
    """After a file could not be read, following goes on where it was."""
    write_log(tmp_path, ENTRIES)
    hidden = tmp_path / "tile/entries/001"
    following = follower(tmp_path)
    seen = []
    hidden.rename(tmp_path / "hidden")
    with pytest.raises(BadEntry):
        seen.extend(following.news())
    with pytest.raises(NotThere):
        Follower(FolderSource(tmp_path / "tile"), None, 1).news().__next__()
    (tmp_path / "hidden").rename(hidden)
    again = [index for index, _ in following.news()]
    assert again == list(range(256, 600))


def test_a_log_that_is_not_what_it_was(tmp_path: Path) -> None:
    """A rollback, a rewrite, foreign tiles, a changed entry, a foreign signature: each stops it."""
    write_log(tmp_path, ENTRIES[:300])
    following = follower(tmp_path)
    assert len(list(following.news())) == 300
    write_log(tmp_path, ENTRIES[:299])
    with pytest.raises(BadEntry, match="rolled back: from 300 entries to 299"):
        list(following.news())
    rewritten = [*ENTRIES[:10], rendered(call_event(10, 9, success=False), 10), *ENTRIES[11:400]]
    write_log(tmp_path, rewritten)
    with pytest.raises(BadEntry, match="first 300 entries"):
        list(following.news())
    write_log(tmp_path, ENTRIES[:400])
    assert len(list(following.news())) == 100
    (tmp_path / "checkpoint").write_bytes(signed_checkpoint(400, bytes(32)))
    with pytest.raises(BadEntry, match="root"):
        list(follower(tmp_path).news())
    write_log(tmp_path, ENTRIES[:400])
    bundle = tmp_path / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"call-00000041", b"call-00000049", 1))
    with pytest.raises(BadEntry, match="entry 41: its bytes"):
        list(follower(tmp_path).news())
    text = Checkpoint("keys.test/a", 1, bytes(32)).text
    wrong = format_note(text, [Signature.of(KEY, LOG.sign(b"other"))])
    (tmp_path / "checkpoint").write_bytes(wrong)
    with pytest.raises(BadEntry, match="signature"):
        list(follower(tmp_path).news())


def test_a_short_tile(tmp_path: Path) -> None:
    """A tile of a wrong length is a log that cannot be followed."""
    write_log(tmp_path, ENTRIES[:300])
    (tmp_path / "tile/0/000").write_bytes(b"short")
    with pytest.raises(BadEntry, match="256 hashes"):
        list(follower(tmp_path).news())


def test_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line for each call, when its outcome is there; intents only when asked for."""
    refused = call_event(4, phase=EVENT, operation="auth.refused", success=False, principal="")
    local = call_event(5, phase=EVENT, operation="policy.reload", principal="", peer="")
    entries = [*ENTRIES[:4], rendered(refused, 4), rendered(local, 5)]
    write_log(tmp_path, entries)
    assert main(["tail", str(tmp_path), "--no-follow", "--key", str(KEY)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.rpartition("#")[2] for line in lines] == ["0", "2", "4", "5"]
    assert lines[1] == (
        "2026-11-23T12:00:00.002Z ✓ WithKey        acme/k-1                 "
        "ironwork.test/ws/acme/agent/1 [build claude-code/2]  "
        "200 · COMPLETED · 10 in · 1 out · 900 ms · sk-ant-api…wxyz  #2"
    )
    assert " ✗ auth.refused" in lines[2]
    assert "ipv4:10.0.0.4:1028" in lines[2]
    assert " · policy.reload" in lines[3]
    assert "the service" in lines[3]
    assert main(["tail", str(tmp_path), "--no-follow", "--intents", "-n", "5"]) == 0
    assert " … WithKey" in capfd.readouterr().out


def test_entries_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--json gives the exact bytes, with filters."""
    write_log(tmp_path, ENTRIES)
    arguments = ["tail", str(tmp_path), "--no-follow", "--json", "--workspace", "globex", "-n", "9"]
    assert main(arguments) == 0
    expected = [entry for entry in ENTRIES[-9:] if b'"tenant_uid":"globex"' in entry]
    assert capfd.readouterr().out.encode().splitlines() == expected


def test_bad_endings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 1 for an entry that is none, 2 for a log that is not there or wrong arguments."""
    write_log(tmp_path, [ENTRIES[0], ENTRIES[1].replace(b"6003", b"6004")])
    assert main(["tail", str(tmp_path), "--no-follow"]) == 1
    assert "BAD  entry 1: " in capfd.readouterr().err
    assert main(["tail", str(tmp_path / "tile")]) == 2
    assert main(["tail", str(tmp_path), "-n", "-1"]) == 2


def test_it_follows(tmp_path: Path) -> None:
    """The program shows what is there, then what is added, waits for a checkpoint that is gone for
    a while, and ends with 1 when the log is rolled back.
    """
    write_log(tmp_path / "log", ENTRIES[:3])
    command = [sys.executable, "-c", "from ironwork_audit.cli.main import main; exit(main())"]
    with subprocess.Popen(
        [*command, "tail", str(tmp_path / "log"), "--json", "--key", str(KEY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline().strip() for _ in range(3)] == ENTRIES[:3]
        checkpoint = tmp_path / "log/checkpoint"
        checkpoint.rename(tmp_path / "gone")
        assert b"no such file; trying again" in process.stderr.readline()
        write_log(tmp_path / "log", ENTRIES[:5])
        assert [process.stdout.readline().strip() for _ in range(2)] == ENTRIES[3:5]
        write_log(tmp_path / "log", ENTRIES[:4])
        assert b"rolled back" in process.stderr.readline()
        assert process.wait(30) == 1


@pytest.mark.parametrize(
    "arguments", ["export {}", "tail {} --no-follow -n 600", "tail {} --no-follow -n 600 --json"]
)
def test_a_reader_that_leaves(arguments: str, tmp_path: Path) -> None:
    """`tail … | head -1` ends quietly, with 0: nothing bad was found."""
    write_log(tmp_path / "log", ENTRIES)
    command = f"{sys.executable} -c 'from ironwork_audit.cli.main import main; exit(main())'"
    line = f"set -o pipefail; {command} {arguments.format(tmp_path / 'log')} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1
