"""Break-glass: a copy of each data key for an offline key pair, should the HSM be lost (ADR 0023).

HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. `info` is a tag,
the recipient's id and the context that the master key's wrapping is bound to, so a copy opens for
its own row only. A copy is the encapsulated key (32 bytes), the ciphertext (32) and its tag (16).
"""

import hashlib
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from ironwork_server.core.envelope import DATA_KEY_LENGTH, wipe
from ironwork_server.core.values import BreakGlassCopy

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_TAG = b"ironwork/break-glass/v1"
MIN_PASSPHRASE = 12


class BreakGlassError(Exception):
    """A key file that cannot be used, or a copy that does not open; the text is for an operator."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """The public half. id: the first 32 hex digits of SHA-256 over its SubjectPublicKeyInfo."""

    id: str
    _key: X25519PublicKey

    @classmethod
    def of(cls, key: X25519PublicKey) -> Self:
        """The recipient with this key."""
        spki = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(hashlib.sha256(spki).hexdigest()[:32], key)

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Read a PEM public key (SubjectPublicKeyInfo). Raises BreakGlassError."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise BreakGlassError(_NO_PUBLIC_KEY) from None
        if not isinstance(key, X25519PublicKey):
            raise BreakGlassError(_NO_PUBLIC_KEY)
        return cls.of(key)

    @property
    def pem(self) -> bytes:
        """The public key as a file holds it."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def seal(self, data_key: bytes | bytearray, context: bytes) -> BreakGlassCopy:
        """A copy that opens with the private half and the same context only."""
        # The library takes bytes alone; this copy is of those that only the allocator overwrites.
        sealed = _SUITE.encrypt(bytes(data_key), self._key, info=_info(self.id, context))
        return BreakGlassCopy(self.id, sealed)


class RecoveryKey:
    """The private half, for as long as a command of break-glass runs."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.recipient = Recipient.of(key.public_key())

    @classmethod
    def generate(cls) -> Self:
        return cls(X25519PrivateKey.generate())

    @classmethod
    def parse(cls, pem: bytes, passphrase: bytes) -> Self:
        """Read an encrypted PKCS #8 PEM. Raises BreakGlassError, which never quotes it."""
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise BreakGlassError(
                "The private key does not open: the passphrase is wrong, or the file is none that "
                "`break-glass keygen` made."
            ) from None
        if not isinstance(key, X25519PrivateKey):
            raise BreakGlassError("The private key is no X25519 key.")
        return cls(key)

    def pem(self, passphrase: bytes) -> bytes:
        """Encrypted PKCS #8 PEM. Raises BreakGlassError for a short passphrase."""
        if len(passphrase) < MIN_PASSPHRASE:
            raise BreakGlassError(f"A passphrase has at least {MIN_PASSPHRASE} bytes.")
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )

    def open(self, copy: BreakGlassCopy, context: bytes) -> bytearray:
        """The data key, which the caller wipes. Raises BreakGlassError, also for what somebody
        sealed who did not know that a data key has 32 bytes: base mode lets anybody seal.
        """
        try:
            info = _info(self.recipient.id, context)
            opened = bytearray(_SUITE.decrypt(copy.sealed, self._key, info=info))
        except InvalidTag:
            raise BreakGlassError("The copy does not open: it was altered or moved.") from None
        if len(opened) != DATA_KEY_LENGTH:
            wipe(opened)
            raise BreakGlassError("The copy holds no data key: it was planted.")
        return opened


_NO_PUBLIC_KEY = "It holds no X25519 public key in PEM: make one with `break-glass keygen`."


def _info(recipient: str, context: bytes) -> bytes:
    """Each field after its length, so that no two lists look alike."""
    fields = (_TAG, recipient.encode("ascii"), context)
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
