"""Proofs for outsiders: that an entry is in the log, that the log has only grown; and their check.

A proof is made from a few tiles, and checked against the signed checkpoint before it is given out.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any, Final, Self

from ironwork_audit.parse import NotAnEvent, parse
from ironwork_audit.source import NotThere, Source, read_checkpoint, read_entries, read_tile
from ironwork_audit.tlog.hashes import leaf_hash
from ironwork_audit.tlog.note import BadNote, VerifierKey, from_base64
from ironwork_audit.tlog.proof_text import HEADER, MAX_PROOF_BYTES, BadProofText, ProofText
from ironwork_audit.tlog.proofs import (
    ProofRefused,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from ironwork_audit.tlog.signed import SignatureRefused, SignedCheckpoint, open_checkpoint
from ironwork_audit.tlog.tiles import TILE_WIDTH, BadTile, TileReader, tile_at

INCLUSION: Final = "inclusion"
CONSISTENCY: Final = "consistency"


class NotProven(Exception):
    """What was to be proven is not so. The text says what is wrong, and is fit to be shown."""


@dataclass(frozen=True, slots=True)
class Proof:
    """kind: inclusion or consistency. hashes: as RFC 9162 orders them. checkpoint: the signed note.
    index, entry: of an inclusion; the entry may be left out. old: the older signed note of a
    consistency.
    """

    kind: str
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    index: int = 0
    entry: bytes | None = None
    old: bytes = b""

    def text(self) -> bytes:
        """An inclusion as C2SP tlog-proof, the entry as its extra data; a consistency, for which
        C2SP has no text, as JSON.
        """
        if self.kind == CONSISTENCY:
            return self.json()
        return ProofText(self.index, self.hashes, self.checkpoint, self.entry).format()

    def json(self) -> bytes:
        """One line of JSON."""
        document: dict[str, Any] = {
            "type": self.kind,
            "hashes": [base64.b64encode(item).decode() for item in self.hashes],
            "checkpoint": self.checkpoint.decode(),
        }
        if self.kind == INCLUSION:
            document["index"] = self.index
            if self.entry is not None:
                document["entry"] = base64.b64encode(self.entry).decode()
        else:
            document["old_checkpoint"] = self.old.decode()
        return json.dumps(document, ensure_ascii=False, sort_keys=True).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Either form. BadNote where it is neither."""
        if data.startswith(HEADER.encode()):
            text = ProofText.parse(data)
            return cls(INCLUSION, text.hashes, text.checkpoint, text.index, text.extra)
        if len(data) > MAX_PROOF_BYTES:
            raise BadProofText(f"proof: longer than {MAX_PROOF_BYTES} bytes")
        try:
            return cls._of_document(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadProofText("proof: neither a tlog-proof nor this program's JSON") from None

    @classmethod
    def _of_document(cls, document: dict[str, Any]) -> Self:
        hashes = tuple(from_base64(item, "proof") for item in document["hashes"])
        checkpoint = document["checkpoint"].encode()
        if document["type"] == CONSISTENCY:
            old = document["old_checkpoint"].encode()
            return cls(CONSISTENCY, hashes, checkpoint, old=old)
        if document["type"] != INCLUSION or type(document["index"]) is not int:
            raise TypeError
        entry = from_base64(document["entry"], "proof") if "entry" in document else None
        return cls(INCLUSION, hashes, checkpoint, document["index"], entry)


def prove_inclusion(source: Source, key: VerifierKey, index: int) -> Proof:
    """That entry `index` is in the log, under its newest checkpoint. Raises NotProven, Unreadable,
    BadNote.
    """
    note = read_checkpoint(source)
    checkpoint = _opened(note, key).checkpoint
    if not 0 <= index < checkpoint.size:
        raise NotProven(f"entry {index} is not in the log, which has {checkpoint.size} signed ones")
    bundle = tile_at(0, index // TILE_WIDTH, checkpoint.size).bundle
    try:
        entry = read_entries(source, bundle)[index % TILE_WIDTH]
        hashes = inclusion_proof(index, checkpoint.size, _reader(source, checkpoint.size))
    except (NotThere, BadTile) as error:
        raise NotProven(str(error)) from None
    proof = Proof(INCLUSION, tuple(hashes), note, index, entry)
    check(proof, key)
    return proof


def prove_entry(source: Source, key: VerifierKey, entry: bytes) -> Proof:
    """That these exact bytes are in the log, at the index that they name. As prove_inclusion."""
    try:
        index = parse(entry).sequence
    except NotAnEvent as refused:
        raise NotProven(str(refused)) from None
    proof = prove_inclusion(source, key, index)
    if proof.entry != entry:
        raise NotProven(f"the log's entry {index} is another one")
    return proof


def prove_consistency(source: Source, key: VerifierKey, old_note: bytes) -> Proof:
    """That the log has only grown since an older checkpoint. Raises NotProven, Unreadable and
    BadNote.
    """
    note = read_checkpoint(source)
    checkpoint, old = _opened(note, key).checkpoint, _opened(old_note, key).checkpoint
    if old.size > checkpoint.size:
        raise NotProven(
            f"rolled back: the older checkpoint has {old.size} entries, this one {checkpoint.size}"
        )
    try:
        reader = _reader(source, checkpoint.size)
        hashes = consistency_proof(old.size, checkpoint.size, reader)
    except (NotThere, BadTile) as error:
        raise NotProven(str(error)) from None
    proof = Proof(CONSISTENCY, tuple(hashes), note, old=old_note)
    check(proof, key)
    return proof


def check(proof: Proof, key: VerifierKey, entry: bytes | None = None) -> SignedCheckpoint:
    """Check a proof offline; the checkpoint that it is under. entry: the bytes in question, where
    they are not in the proof. Raises NotProven, BadNote.
    """
    opened = _opened(proof.checkpoint, key)
    checkpoint = opened.checkpoint
    entry = proof.entry if entry is None else entry
    try:
        if proof.kind == CONSISTENCY:
            old = _opened(proof.old, key).checkpoint
            verify_consistency(old.size, checkpoint.size, old.root, checkpoint.root, proof.hashes)
        elif entry is None:
            raise BadProofText("proof: the entry is not in it: give its bytes (--entry)")
        else:
            leaf = leaf_hash(entry)
            verify_inclusion(proof.index, checkpoint.size, leaf, proof.hashes, checkpoint.root)
    except ProofRefused as refused:
        raise NotProven(str(refused)) from None
    return opened


def _opened(note: bytes, key: VerifierKey) -> SignedCheckpoint:
    try:
        return open_checkpoint(note, key)
    except SignatureRefused as refused:
        raise NotProven(str(refused)) from None
    except BadNote as bad:
        raise BadNote(f"checkpoint: {bad}") from None


def _reader(source: Source, size: int) -> TileReader:
    return TileReader(size, lambda tile: read_tile(source, tile))
