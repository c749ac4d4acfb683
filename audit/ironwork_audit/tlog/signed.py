"""Checks the signatures of checkpoints. The only part of the format that needs `cryptography`."""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.tlog.note import (
    BadNote,
    KeyType,
    Note,
    Signature,
    VerifierKey,
    cosigned_message,
    parse_cosignature,
    parse_note,
)


class SignatureRefused(ValueError):
    """Not signed by the key that was asked for. Its text names the key."""


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's statement that this was the largest tree it had seen. timestamp: POSIX, s."""

    name: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint whose log signature was checked, with the cosignatures that were."""

    checkpoint: Checkpoint
    note: Note
    cosignatures: tuple[Cosignature, ...] = ()


def open_checkpoint(
    data: bytes, key: VerifierKey, witnesses: Sequence[VerifierKey] = ()
) -> SignedCheckpoint:
    """The checkpoint, once the log's key, and every witness that is given, has signed it.

    The origin must be the key's name. Raises SignatureRefused for a missing or wrong signature or
    a foreign origin, BadNote for what is no checkpoint.
    """
    note = parse_note(data)
    _verify(note, key)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != key.name:
        raise SignatureRefused(f"checkpoint: its origin is not the key's name, {key.name}")
    return SignedCheckpoint(
        checkpoint, note, tuple(cosignature_of(note, witness) for witness in witnesses)
    )


def cosignature_of(note: Note, key: VerifierKey) -> Cosignature:
    """The newest cosignature of this witness; all of them are checked. Raises SignatureRefused,
    BadNote.
    """
    if key.type is not KeyType.COSIGNATURE_V1:
        raise BadNote(f"key {key.name}: not a witness's key (type 0x04)")
    newest = 0
    for signature in _of(note, key):
        timestamp, value = parse_cosignature(signature.value)
        verify_signature(key, cosigned_message(note.text, timestamp), value)
        newest = max(newest, timestamp)
    return Cosignature(key.name, newest)


def verify_signature(key: VerifierKey, message: bytes, signature: bytes) -> None:
    """Check raw bytes. SignatureRefused where they do not fit; BadNote for a key of no use."""
    try:
        if key.type is KeyType.ECDSA:
            _p256(key).verify(signature, message, ec.ECDSA(SHA256()))
        else:
            ed25519.Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except InvalidSignature:
        raise SignatureRefused(f"the signature of {key.name} is wrong") from None


def _p256(key: VerifierKey) -> ec.EllipticCurvePublicKey:
    try:
        public = load_der_public_key(key.public)
    except (ValueError, UnsupportedAlgorithm):
        raise BadNote(f"key {key.name}: not a DER public key") from None
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return public
    raise BadNote(f"key {key.name}: not on the curve P-256")


def _verify(note: Note, key: VerifierKey) -> None:
    if key.type is KeyType.COSIGNATURE_V1:
        raise BadNote(f"key {key.name}: a witness's key, not a log's")
    for signature in _of(note, key):
        verify_signature(key, note.text.encode(), signature.value)


def _of(note: Note, key: VerifierKey) -> list[Signature]:
    """This key's signatures. All must be right: signed-note says to refuse a note with a wrong one
    of a known key.
    """
    found = [signature for signature in note.signatures if signature.is_of(key)]
    if not found:
        raise SignatureRefused(f"not signed by {key.name}")
    return found
