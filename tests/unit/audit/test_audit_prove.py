"""Proofs: made from a few tiles, kept in a file, checked without the log."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.tlog_made import (
    KEY,
    call_event,
    made_entries,
    rendered,
    signed_checkpoint,
    write_log,
    write_tiles,
)
from ironwork_audit.cli.main import main
from ironwork_audit.prove import (
    NotProven,
    Proof,
    check,
    prove_consistency,
    prove_entry,
    prove_inclusion,
)
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import BadNote, leaf_hash, root_of
from ironwork_audit.tlog.proof_text import HEADER, ProofText

SIZE = 600
ENTRIES = made_entries(SIZE)
# The example of c2sp.org/tlog-proof, with fewer hashes and other extra data.
PUBLISHED = """c2sp.org/tlog-proof@v1
extra aGVsbG8=
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=

example.com/fancylog
109482
sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

— example.com/fancylog AAAAAAAA
""".encode()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, ENTRIES)
    return folder


def old_checkpoint(size: int) -> bytes:
    return signed_checkpoint(size, root_of([leaf_hash(entry) for entry in ENTRIES[:size]]))


def test_the_published_form() -> None:
    """The specification's example is read and written."""
    proof = ProofText.parse(PUBLISHED)
    assert proof.index == 73894
    assert len(proof.hashes) == 2
    assert proof.checkpoint.startswith(b"example.com/fancylog\n109482\n")
    assert proof.format() == PUBLISHED


@settings(deadline=None)  # a slow machine is no failure
@given(
    st.integers(0, 2**62),
    st.lists(st.binary(min_size=32, max_size=32), max_size=64),
    st.none() | st.binary(max_size=40),
)
def test_texts_are_read_as_they_were_written(
    index: int, hashes: list[bytes], extra: bytes | None
) -> None:
    """Index, hashes, extra data and the checkpoint's bytes come back."""
    proof = ProofText(index, tuple(hashes), b"o\n1\nr\n\nsignature\n", extra)
    assert ProofText.parse(proof.format()) == proof


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER.encode(),
        PUBLISHED.replace(b"@v1", b"@v2"),
        PUBLISHED.replace(b"index 73894\n", b""),
        PUBLISHED.replace(b"index 73894", b"index 073894"),
        PUBLISHED.replace(b"index 73894", b"index -1"),
        PUBLISHED.replace(b"PlQ=", b"PlR="),
        PUBLISHED.replace(b"gSKy", b""),
        PUBLISHED.replace(b"extra a", b"extra \xff"),
        PUBLISHED.replace(b"\n\n", b"\n"),
        PUBLISHED.replace(b"index", b"index 1\n" + b"A" * 43 + b"=\nindex"),
        PUBLISHED + b"x" * (2 << 20),
        f"{HEADER}\nindex 0\n{(('A' * 43) + '=' + chr(10)) * 65}\nx".encode(),
        b"[]",
        b"{}",
        b"1" * (3 << 20),
        b'{"type":"other","hashes":[],"checkpoint":"","index":0}',
        b'{"type":"inclusion","hashes":[],"checkpoint":"","index":true}',
        b'{"type":"inclusion","hashes":[1],"checkpoint":"","index":1}',
        b'{"type":"consistency","hashes":[],"checkpoint":""}',
        b"[" * 100_000,
    ],
)
def test_wrong_proofs_are_refused(data: bytes) -> None:
    """Anything but the one form of a proof is refused."""
    with pytest.raises(BadNote):
        Proof.parse(data)


@pytest.mark.parametrize("index", [0, 255, 256, 511, 512, 599])
def test_an_entry_is_proven(log: Path, index: int) -> None:
    """By index or by its bytes; the proof carries the entry and needs no log."""
    source = FolderSource(log)
    proof = prove_inclusion(source, KEY, index)
    assert proof == prove_entry(source, KEY, ENTRIES[index])
    for data in (proof.text(), proof.json()):
        again = Proof.parse(data)
        assert again == proof
        assert check(again, KEY).checkpoint.size == SIZE
        assert check(again, KEY, ENTRIES[index])
        with pytest.raises(NotProven):
            check(again, KEY, ENTRIES[index] + b" ")


@pytest.mark.parametrize("size", [0, 1, 256, 599, 600])
def test_growth_is_proven(log: Path, size: int) -> None:
    """From any older checkpoint, in a form that needs no log."""
    proof = prove_consistency(FolderSource(log), KEY, old_checkpoint(size))
    assert Proof.parse(proof.text()) == proof
    assert check(Proof.parse(proof.json()), KEY).checkpoint.size == SIZE


def test_what_is_not_so_is_not_proven(log: Path, tmp_path: Path) -> None:
    """Entries that are not there, other bytes, other histories, other keys, damaged files."""
    source = FolderSource(log)
    for index in (-1, SIZE):
        with pytest.raises(NotProven, match="not in the log"):
            prove_inclusion(source, KEY, index)
    with pytest.raises(NotProven, match="another one"):
        prove_entry(source, KEY, rendered(call_event(300, 299, success=False), 300))
    with pytest.raises(NotProven, match="not JSON"):
        prove_entry(source, KEY, b"no entry")
    with pytest.raises(NotProven, match="rolled back"):
        prove_consistency(source, KEY, signed_checkpoint(601, bytes(32)))
    with pytest.raises(NotProven, match="old root"):
        prove_consistency(source, KEY, signed_checkpoint(300, bytes(32)))
    with pytest.raises(BadNote):
        prove_consistency(source, KEY, b"no checkpoint")
    foreign = type(KEY)("keys.test/b", KEY.type, KEY.public)
    with pytest.raises(NotProven, match="not signed by"):
        prove_inclusion(source, foreign, 0)

    broken = Path(shutil.copytree(log, tmp_path / "broken"))
    write_tiles(broken, [*ENTRIES[:599], b"other"])
    with pytest.raises(NotProven, match="does not lead"):
        prove_inclusion(FolderSource(broken), KEY, 7)
    shutil.rmtree(broken / "tile/0")
    with pytest.raises(NotProven, match="no such file"):
        prove_inclusion(FolderSource(broken), KEY, 7)
    with pytest.raises(NotProven, match="no such file"):
        prove_consistency(FolderSource(broken), KEY, old_checkpoint(300))


def test_the_command(log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A proof goes to a file and is checked without the log; a wrong one exits with 1."""
    key = ["--key", str(KEY)]
    entry = tmp_path / "entry"
    entry.write_bytes(ENTRIES[41] + b"\n")
    old = tmp_path / "old"
    old.write_bytes(old_checkpoint(300))
    made = {}
    for name, arguments in {
        "index": ["41"],
        "entry": ["--entry", str(entry)],
        "json": ["41", "--json"],
        "since": ["--since", str(old)],
    }.items():
        assert main(["prove", str(log), *arguments, *key]) == 0
        made[name] = tmp_path / f"{name}.proof"
        made[name].write_text(capfd.readouterr().out)
    assert made["index"].read_bytes() == made["entry"].read_bytes()
    assert json.loads(made["json"].read_text())["index"] == 41
    for name in ("index", "json"):
        assert main(["prove", "--check", str(made[name]), *key]) == 0
        out = capfd.readouterr().out
        assert "entry 41 of 600" in out
        assert ENTRIES[41].decode() in out
    assert main(["prove", "--check", str(made["since"]), *key]) == 0
    assert "300 entries grew into 600, none changed" in capfd.readouterr().out

    bare = tmp_path / "bare"
    lines = made["index"].read_text().splitlines(keepends=True)
    bare.write_text("".join(line for line in lines if not line.startswith("extra ")))
    assert main(["prove", "--check", str(bare), "--entry", str(entry), *key]) == 0
    assert "entry 41 of 600" in capfd.readouterr().out
    assert main(["prove", "--check", str(bare), *key]) == 2
    assert "give its bytes" in capfd.readouterr().err
    entry.write_bytes(ENTRIES[42])
    assert main(["prove", "--check", str(bare), "--entry", str(entry), *key]) == 1
    assert "BAD  proof" in capfd.readouterr().out.replace("inclusion: the ", "")


def test_foreign_entries_are_shown_escaped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What some other log recorded does not drive the terminal."""
    write_log(tmp_path / "log", [b"\x1b]0;title\x07"])
    key = ["--key", str(KEY)]
    assert main(["prove", str(tmp_path / "log"), "0", *key]) == 0
    (tmp_path / "proof").write_text(capfd.readouterr().out)
    assert main(["prove", "--check", str(tmp_path / "proof"), *key]) == 0
    assert "\x1b]" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["prove"],
        ["prove", "log"],
        ["prove", "log", "1", "--since", "x"],
        ["prove", "log", "--check", "x"],
        ["prove", "--check", "nowhere"],
        ["prove", "1"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What does not go together, or is not there, exits with 2 and says what does."""
    assert main([*arguments, "--key", str(KEY)]) == 2
    assert capsys.readouterr().err.startswith("ironwork-audit: ")
