"""How a key reaches the command: a prompt without echo, or stdin. Never an argument, which other
users of the machine could read.
"""

import getpass
import sys
import warnings
from typing import Final

from ironwork_client.errors import InvalidArgument, invalid

# A key has at most 256 bytes; blanks around it are forgiven, a file is not read to its end.
_MAX_INPUT: Final = 4096


def read_key() -> bytes:
    """The key, without blanks and line ends around it. Raises InvalidArgument, EOFError where the
    prompt was closed, and never repeats what was read.
    """
    return _prompted() if sys.stdin.isatty() else _piped()


def _prompted() -> bytes:
    with warnings.catch_warnings():
        # Where the terminal cannot switch its echo off, getpass warns and echoes: refuse instead.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            typed = getpass.getpass("API key (not shown): ")
        except getpass.GetPassWarning:
            raise _refused("cannot be typed unseen on this terminal; pipe it to stdin") from None
    return typed.strip().encode("utf-8", "replace")


def _piped() -> bytes:
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise _refused("is far too long to be one; pipe one line that holds the key only")
    key = data.strip()
    if b"\n" in key or b"\r" in key:
        raise _refused("must be alone on its line; pipe one line that holds the key only")
    return key


def _refused(description: str) -> InvalidArgument:
    return invalid("api_key", description, reason="API_KEY_MALFORMED")
