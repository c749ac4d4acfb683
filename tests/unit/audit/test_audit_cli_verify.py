"""`ironwork-audit verify`: what it says, and with which exit code."""

import json
from pathlib import Path

import pytest

from fixtures.tlog_made import KEY, ORIGIN, WITNESS_KEY, made_entries, write_log
from ironwork_audit.cli.main import main

ENTRIES = made_entries(301)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_log(tmp_path / "log", ENTRIES, witness_time=1_795_435_200)
    return tmp_path / "log"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "log.vkey"
    path.write_text(f"{KEY}\n")
    return path


def test_a_good_log(log: Path, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the size, the times, and that no witness was asked for."""
    assert main(["verify", str(log), "--key", str(key_file), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert f"{ORIGIN}: 301 entries" in out
    assert "from 2026-11-23T12:00:00.000Z to 2026-11-23T12:00:00.300Z" in out
    assert "UNWITNESSED" in out


def test_a_witnessed_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its key, a witness and its time are told, and so is what grew since."""
    since = log.parent / "older"
    since.write_bytes((log / "checkpoint").read_bytes())
    write_log(log, made_entries(400), witness_time=1_795_435_200)
    arguments = ["verify", str(log), "--key", str(KEY), "--witness-key", str(WITNESS_KEY)]
    assert main([*arguments, "--since", str(since)]) == 0
    out = capsys.readouterr().out
    assert "entries witnessed by witness.test/w at 2026-11-23T12:00:00.000Z" in out
    assert "grown from the older checkpoint's 301 entries" in out
    assert "1 calls without an outcome" in out
    assert "UNWITNESSED" not in out


def test_a_bad_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, and the first bad entry by its index."""
    bundle = log / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"call-00000041", b"call-00000049", 1))
    assert main(["verify", str(log), "--key", str(KEY)]) == 1
    assert f"BAD  {ORIGIN}: entry 41: its bytes" in capsys.readouterr().out
    assert main(["verify", str(log), "--key", str(KEY), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["index"], document["size"]) == (False, 41, 301)


def test_as_json(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for programs."""
    arguments = ["verify", str(log), "--key", str(KEY), "--witness-key", str(WITNESS_KEY), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("root")
    assert document == {
        "ok": True,
        "origin": ORIGIN,
        "size": 301,
        "pruned": 0,
        "unlinked": 0,
        "unfinished": 0,
        "unsigned": 0,
        "first_time_ms": 1795435200000,
        "last_time_ms": 1795435200300,
        "since_size": None,
        "witnessed_size": 301,
        "witnesses": {"witness.test/w": 1795435200},
    }


def test_a_foreign_key(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log that is not signed by the key is bad as a whole."""
    foreign = str(type(KEY)("keys.test/b", KEY.type, KEY.public))
    assert main(["verify", str(log), "--key", foreign]) == 1
    assert "BAD  keys.test/b: not signed by keys.test/b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "{log}/nowhere", "--key", str(KEY)], "no such folder"),
        (["verify", "{log}/tile", "--key", str(KEY)], "no such file"),
        (["verify", "{log}", "--key", "nothing"], "neither a verifier key"),
        (["verify", "{log}", "--key", f"{KEY}x"], "key: not"),
        (["verify", "{log}", "--key", "{log}/checkpoint"], "key:"),
        (["verify", "{log}", "--key", str(KEY), "--witness-key", str(KEY)], "0x04"),
        (["verify", "{log}", "--key", str(KEY), "--since", "{log}/nothing"], "No such file"),
        (["verify", "{log}", "--key", str(WITNESS_KEY)], "a witness's key"),
        (["verify", "ftp://log", "--key", str(KEY)], "no such folder"),
        (["verify", "http:///x", "--key", str(KEY)], "not an http"),
        (["verify", "http://u@h/x", "--key", str(KEY)], "no user"),
    ],
)
def test_what_cannot_be_read(
    arguments: list[str], said: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and the reason on standard error: nothing was found out about the log."""
    given = [argument.replace("{log}", str(log)) for argument in arguments]
    assert main(given) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["verify"], ["verify", "log"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, as every command that is called wrongly."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: ironwork-audit" in capsys.readouterr().err
