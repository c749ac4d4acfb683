"""The plain file's header."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit import FieldRefused, WrongHeader, header, parse_header


def test_a_header_names_format_and_origin() -> None:
    """The first line says which format follows, and whose log it is."""
    line = header("keys.test/a")
    assert line == b'{"format":"ironwork-log/1","origin":"keys.test/a"}\n'
    assert parse_header(line) == "keys.test/a"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null\n",
        b"{}\n",
        b'{"format":"ironwork-log/1","origin":"keys.test/a"}',
        b'{"format":"ironwork-log/2","origin":"keys.test/a"}\n',
        b'{"format":"ironwork-log/1","origin":"a b"}\n',
        b'{"format":"ironwork-log/1","origin":3}\n',
        b'{"origin":"keys.test/a","format":"ironwork-log/1"}\n',
        b"[" * 50_000,
    ],
)
def test_another_first_line_is_refused(line: bytes) -> None:
    """A header has one form; anything else is no journal of this format."""
    with pytest.raises(WrongHeader):
        parse_header(line)


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=100))
def test_foreign_bytes_are_only_ever_refused(line: bytes) -> None:
    """No first line makes the reader fail in any other way."""
    with pytest.raises(WrongHeader):
        parse_header(line)


def test_an_origin_that_cannot_be_one_makes_no_header() -> None:
    """The header's origin has the form of a C2SP origin."""
    with pytest.raises(FieldRefused):
        header("two words")
