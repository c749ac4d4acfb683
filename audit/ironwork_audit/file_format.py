"""The file that says whose log a folder holds: `{"format":"ironwork-log/1","origin":"…"}`."""

import json
from typing import Final

from ironwork_audit import fields

FORMAT: Final = "ironwork-log/1"
MAX_HEADER_BYTES: Final = 1024


class WrongHeader(ValueError):
    """The line is not this format's header."""


def header(origin: str) -> bytes:
    """The line, with its line feed. FieldRefused for an origin that cannot be one."""
    fields.ORIGIN.check("origin", origin)
    document = {"format": FORMAT, "origin": origin}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def parse_header(line: bytes) -> str:
    """The origin that a line (with its line feed) names. Raises WrongHeader."""
    if len(line) > MAX_HEADER_BYTES:
        raise WrongHeader("it is too long for a header")
    try:
        document = json.loads(line)
        origin = str(document["origin"])
        if line != header(origin):
            raise WrongHeader(f"it is not a header of {FORMAT}")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WrongHeader(f"it is not a header of {FORMAT}") from None
    return origin
