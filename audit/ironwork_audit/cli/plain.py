"""What is said on standard error, without the libraries that colour it."""

import sys


def error(text: str) -> None:
    """One line on standard error."""
    print(printable(text), file=sys.stderr)  # noqa: T201  a command's error


def printable(text: str) -> str:
    r"""The text on one line, with what could play tricks on a terminal (controls, escapes, turns of
    direction) as `\x1b` or `\u202e`: a part of it may be of a record that somebody made up.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
