"""C2SP tlog-proof: an inclusion proof that can be kept in a file (c2sp.org/tlog-proof)."""

import base64
import re
from dataclasses import dataclass
from typing import Final, Self

from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.note import MAX_NOTE_BYTES, BadNote, from_base64
from ironwork_audit.tlog.proofs import MAX_PROOF_HASHES

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES: Final = 2 * MAX_NOTE_BYTES
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


class BadProofText(BadNote):
    """A text that is not a tlog-proof. Its text names the rule."""


@dataclass(frozen=True, slots=True)
class ProofText:
    """index: of the entry. hashes: from the leaf's sibling up. checkpoint: a signed note's bytes.
    extra: opaque and not authenticated; here the entry itself.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def format(self) -> bytes:
        """The proof's bytes."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(item).decode() for item in self.hashes]
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The proof, strictly; its checkpoint is not looked at."""
        if len(data) > MAX_PROOF_BYTES:
            raise BadProofText(f"proof: longer than {MAX_PROOF_BYTES} bytes")
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise BadProofText("proof: not ASCII before the checkpoint") from None
        if first != HEADER or not blank:
            raise BadProofText(f"proof: not a {HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = _decoded(lines.pop(0).removeprefix("extra "))
        match = _INDEX.fullmatch(lines[0]) if lines else None
        if match is None:
            raise BadProofText("proof: no line with the index")
        hashes = tuple(map(_decoded, lines[1:]))
        if len(hashes) > MAX_PROOF_HASHES or any(len(item) != HASH_BYTES for item in hashes):
            raise BadProofText(f"proof: not up to {MAX_PROOF_HASHES} hashes of 32 bytes")
        return cls(int(match[1]), hashes, checkpoint, extra)


def _decoded(text: str) -> bytes:
    try:
        return from_base64(text, "proof: a line")
    except BadNote as bad:
        raise BadProofText(str(bad)) from None
