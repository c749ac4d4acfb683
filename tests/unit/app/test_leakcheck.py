"""`leakcheck` finds a key in the forms that leaks take, and nothing else."""

import base64
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.cli import leakcheck as module
from ironwork_server.cli.leakcheck import PART_BYTES, search
from ironwork_server.cli.main import main

SECRET = "Qw8-Zx_7Lm3kTy5uVb9nRc2eHj6sDf4gPa1o0iWqEzXcVbNmKlJhGfDs"
KEY = f"sk-ant-api03-{SECRET}AAzz".encode()

FORMS = {
    "plain": lambda text: text,
    "hexadecimal": lambda text: text.hex().encode(),
    "UTF-16": lambda text: text.decode().encode("utf-16-le"),
    "percent-encoded": lambda text: b"".join(b"%%%02X" % byte for byte in text),
    "base64": base64.b64encode,
}


def found(path: Path, content: bytes, key: bytes = KEY) -> list[str]:
    """The forms that are found in a file with this content."""
    path.write_bytes(content)
    return [finding.form for finding in search(key, [path])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", ["", "x", "xx", "a longer beginning: "])
def test_each_form_is_found_wherever_it_begins(tmp_path: Path, form: str, before: str) -> None:
    """The key itself, in hexadecimal, UTF-16, percent-encoding and base64 at any alignment."""
    content = FORMS[form](before.encode() + KEY + b" and more")
    assert found(tmp_path / "file", content) == [form]


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("hexadecimal", KEY.hex().upper().encode()),
        ("UTF-16", KEY.decode().encode("utf-16-be") + b"\0x"),
        ("UTF-16", KEY.decode().encode("utf-16")),
        ("percent-encoded", "".join(f"%{byte:02x}" for byte in KEY).encode()),
        ("base64", base64.urlsafe_b64encode(KEY)),
    ],
)
def test_other_spellings_of_a_form_are_found(tmp_path: Path, form: str, content: bytes) -> None:
    """Upper and lower case, either byte order, either alphabet."""
    assert found(tmp_path / "file", content) == [form]


def test_a_key_that_needs_percent_encoding_is_found(tmp_path: Path) -> None:
    """Where a URL library encodes only what it must, too."""
    key = b"sk-ant-api03-" + b"a+b/c=d&" * 8 + b"AAzz"
    assert found(tmp_path / "file", quote(key.decode(), safe="").encode(), key) == [
        "percent-encoded"
    ]


def test_a_part_of_the_key_is_a_leak(tmp_path: Path) -> None:
    """Twelve of its secret bytes in a row count; eleven do not."""
    assert found(tmp_path / "file", SECRET[20 : 20 + PART_BYTES].encode()) == ["plain"]
    assert not found(tmp_path / "file", SECRET[20 : 20 + PART_BYTES - 1].encode())


def test_what_every_mask_shows_is_no_leak(tmp_path: Path) -> None:
    """The constant prefix and the last four characters are meant to be seen."""
    assert not found(tmp_path / "file", b"sk-ant-api03-...AAzz sk-ant-api03-" + b"x" * 50)


def test_other_keys_are_no_leak_of_this_one(tmp_path: Path) -> None:
    """Another key, random bytes and an empty file are not found."""
    other = b"sk-ant-api03-" + SECRET[::-1].encode() + b"AAzz"
    assert not found(tmp_path / "file", other + bytes(range(256)) * 50)
    assert not found(tmp_path / "file", b"")


@given(st.data())
def test_a_key_across_the_border_of_two_chunks_is_found(data: st.DataObject) -> None:
    """Files are read in parts, and a leak may lie across any border."""
    form = data.draw(st.sampled_from(sorted(FORMS)))
    needle = FORMS[form](SECRET[15:30].encode())
    chunk = data.draw(st.integers(len(needle) * 2, 256))
    place = data.draw(st.integers(0, 3 * chunk))
    file = io.BytesIO(b"." * place + needle + b"." * data.draw(st.integers(0, chunk)))

    class Opened:
        """A path that is this file."""

        def open(self, _: str) -> io.BytesIO:
            file.seek(0)
            return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        findings = search(KEY, [Opened()])  # type: ignore[list-item]
    assert [finding.form for finding in findings] == [form]


class Standard:
    """Standard input that is no terminal."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stdin(content)`: what standard input gives."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", Standard(content))

    return give


def test_the_command_names_file_and_form_and_exits_1(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding is named by its file and form, and the key is not shown."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file.log").write_bytes(b"x" + KEY)
    (tmp_path / "clean").write_text("nothing")
    stdin(KEY + b"\r\n")
    assert main(["leakcheck", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"FOUND (plain): {tmp_path / 'deep' / 'er' / 'file.log'}",
        "2 files searched, 1 findings",
    ]


def test_the_command_exits_0_where_nothing_is_found(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clean folder is exit code 0, and --json says what was searched, each file once."""
    (tmp_path / "clean").write_text("nothing")
    stdin(KEY)
    assert main(["leakcheck", "--json", str(tmp_path), str(tmp_path / "clean")]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": 1, "findings": []}


def test_a_file_that_is_given_twice_is_found_once(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file by its own name and by its folder's is one file, and what it holds is named once."""
    (tmp_path / "leak").write_bytes(KEY)
    stdin(KEY)
    assert main(["leakcheck", str(tmp_path), str(tmp_path / "leak")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"FOUND (plain): {tmp_path / 'leak'}",
        "1 files searched, 1 findings",
    ]


def test_json_names_findings(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json lists path and form of each."""
    (tmp_path / "leak").write_bytes(base64.b64encode(KEY))
    stdin(KEY)
    assert main(["leakcheck", "--json", str(tmp_path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == [{"path": str(tmp_path / "leak"), "form": "base64"}]


def test_at_a_terminal_the_key_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt without echo, never an argument."""
    monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.getpass, "getpass", lambda _: KEY.decode())
    (tmp_path / "leak").write_bytes(KEY)
    assert main(["leakcheck", str(tmp_path)]) == 1


@pytest.mark.parametrize("given_key", [b"", b"sk-ant-api03-short", b"\n" + KEY])
def test_what_is_no_whole_key_is_refused(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str], given_key: bytes
) -> None:
    """Too little to search for is an error, not a clean bill."""
    stdin(given_key)
    assert main(["leakcheck", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("ironwork-server: leakcheck: give a whole key")


def test_what_cannot_be_read_is_an_error(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that is not there fails the check, since nothing was looked at."""
    stdin(KEY)
    assert main(["leakcheck", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.endswith("does not exist.\n")


def test_a_file_that_is_renamed_before_it_is_read_is_searched_under_its_new_name(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running server's files come and go; what went away is looked for again, and found once."""
    (tmp_path / "tile.new").write_bytes(KEY)
    (tmp_path / "other").write_bytes(KEY)
    rename_after_listing(monkeypatch, tmp_path / "tile.new", tmp_path / "tile")
    stdin(KEY)
    assert main(["leakcheck", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"FOUND (plain): {tmp_path / 'other'}",
        f"FOUND (plain): {tmp_path / 'tile'}",
        "2 files searched, 2 findings",
    ]


def test_a_folder_whose_files_never_stay_is_no_clean_one(
    tmp_path: Path, stdin: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a listing never holds until it is read, that is said."""
    (tmp_path / "0").write_bytes(b"nothing")
    places = [tmp_path / str(number) for number in range(module.MAX_LISTINGS + 1)]
    for before, after in pairwise(places):
        rename_after_listing(monkeypatch, before, after)
    stdin(KEY)
    assert main(["leakcheck", str(tmp_path)]) == 1
    assert "files came and went" in capsys.readouterr().err


def rename_after_listing(monkeypatch: pytest.MonkeyPatch, before: Path, after: Path) -> None:
    """The first time that this name is in a listing it is renamed before anything is read."""
    listing = module._files

    def files(paths: Sequence[Path]) -> Iterator[Path]:
        found = list(listing(paths))
        if before in found:
            before.rename(after)
        yield from found

    monkeypatch.setattr(module, "_files", files)


def test_the_key_is_no_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no option that takes the key: arguments show in process lists."""
    with pytest.raises(SystemExit) as usage:
        main(["leakcheck", "--key", KEY.decode(), str(tmp_path)])
    assert usage.value.code == 2
    assert "--key" not in capsys.readouterr().out
