"""Policy files are read within bounds, and split before Cedar's parser sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.access import policy_files
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.policy_files import MAX_FILES, PolicyFile, read_folder, split

POLICY = "permit (principal, action, resource);"


def parts(text: str) -> list[tuple[str, str]]:
    return [(policy.where, policy.text.strip()) for policy in split(PolicyFile("f", text))]


def test_semicolons_and_brackets_in_strings_and_comments_do_not_count() -> None:
    """Only a semicolon of the language ends a policy, and each has its line."""
    text = 'a "x;\\"{{;" // ;((\n;\n\n// note;\n  b;// end'
    assert parts(text) == [("f:1", 'a "x;\\"{{;" // ;((\n;'), ("f:5", "// note;\n  b;")]


def test_a_comment_ends_at_a_carriage_return_as_in_cedar() -> None:
    """What follows CR is code for Cedar, so its brackets count here too."""
    with pytest.raises(AccessConfigurationError, match="nested"):
        parts("// x\r" + "(" * 65)


def test_a_string_that_does_not_end_hides_nothing() -> None:
    """Brackets behind an unterminated quote, or an escaped line's end, count."""
    for text in ('"' + "(" * 65, '"\\\n' + "(" * 65 + '"'):
        with pytest.raises(AccessConfigurationError, match="nested"):
            parts(text)


def test_nesting_is_counted_for_each_policy_by_itself() -> None:
    """Sixty-four levels are allowed in each policy, however many policies there are."""
    deep = "(" * 64 + ")" * 64 + ";"
    assert len(parts(deep * 3)) == 3
    assert len(parts("if " * 64 + ";" + "if " * 64 + ";")) == 2


@given(st.text(st.sampled_from('ab"\\/;(){}[]\n\r if'), max_size=200))
def test_splitting_loses_nothing_but_trailing_blanks_and_comments(text: str) -> None:
    """The parts are the file, in order."""
    joined = "".join(policy.text for policy in split(PolicyFile("f", text)))
    assert text.startswith(joined)
    rest = text[len(joined) :]
    assert policy_files._begin(rest, 0) == len(rest)


def test_only_visible_cedar_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Editors' and mounts' hidden copies, folders, pipes and other names are passed over."""
    (tmp_path / "b.cedar").write_text("b;")
    (tmp_path / "a.cedar").write_text("a;")
    (tmp_path / ".a.cedar").write_text("hidden;")
    (tmp_path / "a.cedar~").write_text("backup;")
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "folder.cedar").mkdir()
    os.mkfifo(tmp_path / "pipe.cedar")
    assert read_folder(tmp_path) == (PolicyFile("a.cedar", "a;"), PolicyFile("b.cedar", "b;"))


def test_a_folder_that_is_missing_or_empty_is_an_error(tmp_path: Path) -> None:
    """Without policies everything would be denied, which is a mistake and not a policy."""
    with pytest.raises(AccessConfigurationError, match="cannot be read"):
        read_folder(tmp_path / "missing")
    with pytest.raises(AccessConfigurationError, match=r"0 files named \*\.cedar"):
        read_folder(tmp_path)


def test_a_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that vanishes or is forbidden between listing and reading is named."""
    (tmp_path / "a.cedar").write_text(POLICY)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AccessConfigurationError, match=r"a\.cedar.*Permission denied"):
        read_folder(tmp_path)


def test_number_and_size_of_files_are_bounded(tmp_path: Path) -> None:
    """A folder with too many files, or too large ones together, is refused."""
    half = "//" + " " * (policy_files.MAX_TOTAL_BYTES // 2)
    (tmp_path / "a.cedar").write_text(half)
    (tmp_path / "b.cedar").write_text(half)
    with pytest.raises(AccessConfigurationError, match=r"b\.cedar.*more than 1048576 bytes"):
        read_folder(tmp_path)
    for number in range(MAX_FILES):
        (tmp_path / f"{number}.cedar").write_text(POLICY)
    with pytest.raises(AccessConfigurationError, match="has 102 files"):
        read_folder(tmp_path)


def test_a_file_of_comments_alone_is_a_folder_without_policy(tmp_path: Path) -> None:
    """Files may be empty, but not all of them."""
    from ironwork_server.access.policy import CedarPolicy

    (tmp_path / "a.cedar").write_text("// nothing yet\n")
    with pytest.raises(AccessConfigurationError, match="no policy"):
        CedarPolicy.load(tmp_path)


def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are named by line."""
    (tmp_path / "a.cedar").write_bytes(b"// fine\n// \xff\n")
    with pytest.raises(AccessConfigurationError, match=r"a\.cedar:2: is not UTF-8"):
        read_folder(tmp_path)


HOSTILE = """
import sys, threading
from pathlib import Path
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.policy import CedarPolicy
def load():
    try:
        CedarPolicy.load(Path(sys.argv[1]))
    except AccessConfigurationError:
        pass
    print("alive")
thread = threading.Thread(target=load)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    "condition",
    [
        # Each of these, unbounded, overflows the stack of cedarpy 4.12.2 or comes near.
        "(" * 1000 + "true" + ")" * 1000,
        "[" * 1000 + "]" * 1000 + " == []",
        "if true then " * 10_000 + "true" + " else true" * 10_000,
        "// \r" + "(" * 1000 + "true" + ")" * 1000,
        # These pass our bounds, and the largest that do must not harm the parser.
        "(" * 60 + "true" + ")" * 60,
        "[" * 60 + "]" * 60 + " == []",
        "if true then " * 63 + "true" + " else true" * 63,
        "!" * 16_000 + "true",
        "-" * 16_000 + "1 > 0",
        "true&&" * 2_700 + "true",
        "true||" * 2_700 + "true",
        "1+" * 8_000 + "1 > 0",
        "1*" * 8_000 + "1 > 0",
        "principal" + ".a" * 8_000,
        "principal" + ".contains(1)" * 1_300,
    ],
    ids=lambda condition: f"{condition[:6]}-{len(condition)}",
)
def test_no_policy_can_take_the_process_down(tmp_path: Path, condition: str) -> None:
    """A hostile or clumsy policy is refused or loaded; the process that loads it lives."""
    text = f"permit (principal, action, resource) when {{ {condition} }};"
    (tmp_path / "a.cedar").write_text(text, newline="")
    result = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr
