"""C2SP signed-note and the keys that check one (c2sp.org/signed-note, c2sp.org/tlog-cosignature).

Text and bytes only: no signature is made or checked here (`ironwork_audit.tlog.signed` checks).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

# Not part of the format, which asks for a limit that takes 16 signatures at least.
MAX_NOTE_BYTES: Final = 1 << 20
MAX_SIGNATURES: Final = 64

KEY_ID_BYTES: Final = 4
_DASH: Final = "\u2014 "
_ED25519_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_MAX_TIME: Final = 2**63 - 1
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_KEY_ID: Final = re.compile(r"[0-9a-f]{8}")


class BadNote(ValueError):
    """A note, signature line or key that is not of the format. Its text names the rule."""


class KeyType(IntEnum):
    """The signature types that this log uses (signed-note, "Signature types")."""

    ED25519 = 0x01
    ECDSA = 0x02
    COSIGNATURE_V1 = 0x04


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key by its name. public: the 32 bytes of RFC 8032 for Ed25519 and cosignatures, DER
    SubjectPublicKeyInfo for ECDSA.
    """

    name: str
    type: KeyType
    public: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.type is not KeyType.ECDSA and len(self.public) != _ED25519_BYTES:
            raise BadNote("key: an Ed25519 public key is 32 bytes long")
        if not self.public:
            raise BadNote("key: is empty")

    @property
    def key_id(self) -> bytes:
        """The 4 bytes before a signature: of SHA-256 over name ‖ 0x0A ‖ type ‖ key, or, for ECDSA,
        over the key alone.
        """
        named = self.name.encode() + b"\n" + bytes([self.type])
        prefix = b"" if self.type is KeyType.ECDSA else named
        return hashlib.sha256(prefix + self.public).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        """The verifier key: `name+hash+base64(type ‖ key)`."""
        encoded = base64.b64encode(bytes([self.type]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A verifier key's text, without a line end. BadNote where it is not one, or is of a type
        that this log does not use.
        """
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise BadNote("key: not of the form name+hash+key")
        name, key_id, encoded = parts
        if not _KEY_ID.fullmatch(key_id):
            raise BadNote("key: the hash is not 8 hexadecimal digits")
        data = from_base64(encoded, "key")
        if not data or data[0] not in set(KeyType):
            raise BadNote("key: not Ed25519, ECDSA or a cosigner's")
        key = cls(name, KeyType(data[0]), data[1:])
        if key.key_id.hex() != key_id:
            raise BadNote("key: the hash is not that of the name and the key")
        return key


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. key_id: 4 bytes. value: the signature, in its type's encoding."""

    name: str
    key_id: bytes
    value: bytes

    @classmethod
    def of(cls, key: VerifierKey, value: bytes) -> Self:
        """The line of this key's signature."""
        return cls(key.name, key.key_id, value)

    def is_of(self, key: VerifierKey) -> bool:
        """Whether name and id are this key's; says nothing of the signature."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True, slots=True)
class Note:
    """text: what is signed, with its last line feed. signatures: at least one."""

    text: str
    signatures: tuple[Signature, ...]


def format_note(text: str, signatures: Sequence[Signature]) -> bytes:
    """The note's bytes; BadNote where parse_note would not give the same back."""
    lines = []
    for signature in signatures:
        check_name(signature.name)
        encoded = base64.b64encode(signature.key_id + signature.value).decode()
        lines.append(f"{_DASH}{signature.name} {encoded}\n")
    data = f"{text}\n{''.join(lines)}".encode()
    if parse_note(data) != Note(text, tuple(signatures)):
        raise BadNote("note: the text cannot be told from the signatures")
    return data


def parse_note(data: bytes) -> Note:
    """The note, strictly. Nothing in it is to be believed before a signature is checked."""
    if len(data) > MAX_NOTE_BYTES:
        raise BadNote(f"note: longer than {MAX_NOTE_BYTES} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise BadNote("note: not UTF-8") from None
    if _CONTROL.search(whole):
        raise BadNote("note: holds a control character")
    text, blank, lines = whole.rpartition("\n\n")
    if not blank:
        raise BadNote("note: no blank line between text and signatures")
    if not lines.endswith("\n"):
        raise BadNote("note: does not end in a line feed")
    signatures = lines[:-1].split("\n")
    if len(signatures) > MAX_SIGNATURES:
        raise BadNote(f"note: more than {MAX_SIGNATURES} signatures")
    return Note(text + "\n", tuple(map(_parse_signature, signatures)))


def cosigned_message(text: str, timestamp: int) -> bytes:
    """What a witness signs (tlog-cosignature, "Ed25519 signed message"). timestamp: POSIX, s."""
    if not 0 <= timestamp <= _MAX_TIME:
        raise BadNote("cosignature: the time is not from 0 to 2**63 - 1")
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def pack_cosignature(timestamp: int, signature: bytes) -> bytes:
    """A cosignature line's value: the time as a big-endian uint64, then the 64 bytes."""
    if not 0 <= timestamp <= _MAX_TIME or len(signature) != _SIGNATURE_BYTES:
        raise BadNote("cosignature: not a time and 64 bytes")
    return timestamp.to_bytes(8, "big") + signature


def parse_cosignature(value: bytes) -> tuple[int, bytes]:
    """The time (POSIX, s) and the Ed25519 signature."""
    timestamp = int.from_bytes(value[:8], "big")
    if len(value) != 8 + _SIGNATURE_BYTES or timestamp > _MAX_TIME:
        raise BadNote("cosignature: not a time and 64 bytes")
    return timestamp, value[8:]


def check_name(name: str) -> None:
    """BadNote for what cannot be a key's name."""
    if not name or "+" in name or _CONTROL.search(name) or any(map(str.isspace, name)):
        raise BadNote("key: a name is not empty and has no spaces and no plus sign")


def from_base64(text: str, what: str) -> bytes:
    """Standard base64 (RFC 4648, section 4) in its one canonical form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadNote(f"{what}: not base64") from None
    if base64.b64encode(data).decode() != text:
        raise BadNote(f"{what}: not canonical base64")
    return data


def _parse_signature(line: str) -> Signature:
    parts = line.removeprefix(_DASH).split(" ")
    if not line.startswith(_DASH) or len(parts) != 2:
        raise BadNote("note: a signature line is not of the form — name base64")
    name, encoded = parts
    check_name(name)
    data = from_base64(encoded, "signature")
    if len(data) <= KEY_ID_BYTES:
        raise BadNote("signature: too short")
    return Signature(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])
