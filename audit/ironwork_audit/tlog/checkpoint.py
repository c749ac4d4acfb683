"""C2SP tlog-checkpoint: the text that a log signs (c2sp.org/tlog-checkpoint)."""

import base64
import re
from dataclasses import dataclass
from typing import Final, Self

from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.note import BadNote, from_base64
from ironwork_audit.tlog.tiles import MAX_SIZE

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
MAX_EXTENSIONS: Final = 64


class BadCheckpoint(BadNote):
    """A note's text that is not a checkpoint's. Its text names the rule."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head. origin: the log. size: entries. root: 32 bytes. extensions: opaque lines, which
    this log does not write.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise BadCheckpoint("checkpoint: the size is not from 0 to 2**63 - 1")
        if len(self.root) != HASH_BYTES:
            raise BadCheckpoint("checkpoint: the root is not 32 bytes long")
        if len(self.extensions) > MAX_EXTENSIONS:
            raise BadCheckpoint(f"checkpoint: more than {MAX_EXTENSIONS} extension lines")
        if any(not line or "\n" in line for line in (self.origin, *self.extensions)):
            raise BadCheckpoint("checkpoint: a line is empty")

    @property
    def text(self) -> str:
        """The note text, with its last line feed."""
        root = base64.b64encode(self.root).decode()
        lines = [self.origin, str(self.size), root, *self.extensions]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint of a note's text; BadCheckpoint unless `.text` gives the same."""
        *lines, last = text.split("\n")
        if last or len(lines) < 3:
            raise BadCheckpoint("checkpoint: not three lines at least, each with its line feed")
        origin, size, root, *extensions = lines
        if not _SIZE.fullmatch(size):
            raise BadCheckpoint("checkpoint: the size is not a decimal number")
        try:
            root_hash = from_base64(root, "checkpoint: the root")
        except BadNote as bad:
            raise BadCheckpoint(str(bad)) from None
        return cls(origin, int(size), root_hash, tuple(extensions))
