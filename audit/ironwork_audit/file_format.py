"""The plain file that holds a log: a header line, then one line for each entry, in order.

The header is `{"format":"ironwork-journal/1","origin":"…"}`. JSON holds no raw line feed, so a line
feed ends an entry and nothing else does. A file's entry number n (from 0) has metadata.sequence n
and metadata.log_name of the header's origin.
"""

import json
from typing import Final

from ironwork_audit import fields

FORMAT: Final = "ironwork-journal/1"
MAX_HEADER_BYTES: Final = 1024


class WrongHeader(ValueError):
    """The first line is not this format's header."""


def header(origin: str) -> bytes:
    """The first line, with its line feed. FieldRefused for an origin that cannot be one."""
    fields.ORIGIN.check("origin", origin)
    document = {"format": FORMAT, "origin": origin}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def parse_header(line: bytes) -> str:
    """The origin that a first line (with its line feed) names. Raises WrongHeader."""
    if len(line) > MAX_HEADER_BYTES:
        raise WrongHeader("the first line is too long for a header")
    try:
        document = json.loads(line)
        origin = str(document["origin"])
        if line != header(origin):
            raise WrongHeader(f"the first line is not a header of {FORMAT}")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WrongHeader(f"the first line is not a header of {FORMAT}") from None
    return origin
