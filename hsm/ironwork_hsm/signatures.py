"""Public keys of signing keys and what they verify, whatever device signs. No device library."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


def verifies(public: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether signature is this key's over message: Ed25519 (RFC 8032), or ECDSA over SHA-256 of
    message, DER.
    """
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, message)
        else:
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
