"""Signing keys as objects of the token: how they are found, checked, generated and encoded.

A signing key is the one private key with the URI's label, and the public key with the same label
and CKA_ID beside it. Unlike a master key it has no versions: a log's key is its identity, and a
new one takes a new label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from ironwork_hsm.interface import ConfigurationError, SignatureAlgorithm, Unavailable
from ironwork_hsm.signatures import PublicKey, verifies

ED25519_BYTES = 32
_P256_POINT_BYTES = 65
_KEY_ID = b"\x00\x00\x00\x01"
_KEY_TYPES = {
    KeyType.EC_EDWARDS: SignatureAlgorithm.ED25519,
    KeyType.EC: SignatureAlgorithm.ECDSA_P256,
}
_GENERATORS = {
    SignatureAlgorithm.ED25519: Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
    SignatureAlgorithm.ECDSA_P256: Mechanism.EC_KEY_PAIR_GEN,
}
_SIGNERS = {
    SignatureAlgorithm.ED25519: Mechanism.EDDSA,
    SignatureAlgorithm.ECDSA_P256: Mechanism.ECDSA,
}
# CKA_EC_PARAMS. PKCS#11 3.0 section 2.3.1 allows a curve's name and its object identifier; SoftHSM
# 2.6 takes both for Ed25519, and other modules the identifier of RFC 8410 (1.3.101.112).
_CURVES = {
    SignatureAlgorithm.ED25519: bytes.fromhex("06032b6570"),
    SignatureAlgorithm.ECDSA_P256: encode_named_curve_parameters("secp256r1"),
}
_PRIVATE: Mapping[Attribute, object] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    # Said, not left to the module's defaults: this key does nothing but sign.
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_PUBLIC: Mapping[Attribute, object] = {
    Attribute.PRIVATE: False,
    Attribute.ENCRYPT: False,
    Attribute.WRAP: False,
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key as one session sees it. private: python-pkcs11's object, of that session only."""

    private: Any
    algorithm: SignatureAlgorithm
    public: PublicKey

    @property
    def public_bytes(self) -> bytes:
        """As Signer.public_key."""
        if isinstance(self.public, ed25519.Ed25519PublicKey):
            return self.public.public_bytes_raw()
        return self.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def find_signing_key(session: Any, label: str) -> SigningKey | None:
    """The key, or None. Raises ConfigurationError for one that must not be used."""
    # Lists at once: no other call may use the session while a search is open.
    private_keys = list(
        session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label})
    )
    if not private_keys:
        return None
    if len(private_keys) > 1:
        raise ConfigurationError(
            f"The token holds {len(private_keys)} private keys with label `{label}`; give the "
            "signing key a label of its own."
        )
    (private,) = private_keys
    algorithm = _checked_algorithm(private, label)
    public_keys = list(
        session.get_objects(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.LABEL: label,
                Attribute.ID: private[Attribute.ID],
            }
        )
    )
    if len(public_keys) != 1:
        raise ConfigurationError(
            f"Beside the signing key `{label}` the token must hold one public key with the same "
            f"label and CKA_ID; it holds {len(public_keys)}."
        )
    return SigningKey(private, algorithm, _public_key(public_keys[0], algorithm, label))


def offered_algorithm(token: Any) -> SignatureAlgorithm:
    """What a new key is made for: Ed25519 where the token has it, else ECDSA P-256."""
    mechanisms = token.slot.get_mechanisms()
    for algorithm in (SignatureAlgorithm.ED25519, SignatureAlgorithm.ECDSA_P256):
        if {_GENERATORS[algorithm], _SIGNERS[algorithm]} <= mechanisms:
            return algorithm
    raise ConfigurationError("The token offers neither Ed25519 nor ECDSA, so it cannot sign.")


def generate_signing_key(session: Any, label: str, algorithm: SignatureAlgorithm) -> None:
    """Generate the pair in the token; session is read-write. Raises ConfigurationError where the
    label is taken, also if another process took it meanwhile; then ours is gone again.
    """
    if find_signing_key(session, label) is not None:
        raise _taken(label)
    key_type = next(kind for kind, made in _KEY_TYPES.items() if made is algorithm)
    parameters = session.create_domain_parameters(
        key_type, {Attribute.EC_PARAMS: _CURVES[algorithm]}, local=True
    )
    public, private = parameters.generate_keypair(
        id=_KEY_ID,
        label=label,
        store=True,
        mechanism=_GENERATORS[algorithm],
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        public_template=dict(_PUBLIC),
        private_template=dict(_PRIVATE),
    )
    same = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label}
    if len(list(session.get_objects(same))) != 1:
        private.destroy()
        public.destroy()
        raise _taken(label)


def sign_once(key: SigningKey, message: bytes) -> bytes:
    """One C_Sign; the signature as Signer.sign gives it, and verified here: a device that errs, or
    a public key that is another's, must not put its name under anything.

    Raises Unavailable, PKCS11Error.
    """
    data = message
    if key.algorithm is SignatureAlgorithm.ECDSA_P256:
        data = _sha256(message)
    signature: bytes = key.private.sign(data, mechanism=_SIGNERS[key.algorithm])
    if key.algorithm is SignatureAlgorithm.ECDSA_P256:
        signature = _der(signature)
    if not verifies(key.public, signature, message):
        raise Unavailable("The HSM's signature does not verify with the public key beside it.")
    return signature


def _der(raw: bytes) -> bytes:
    """CKM_ECDSA's r and s, each half of raw (PKCS#11 2.40 section 2.3.1), as Dss-Sig-Value."""
    half = len(raw) // 2
    return encode_dss_signature(
        int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    )


def _sha256(message: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(message)
    return digest.finalize()


def _checked_algorithm(private: Any, label: str) -> SignatureAlgorithm:
    algorithm = _KEY_TYPES.get(private[Attribute.KEY_TYPE])
    if algorithm is None:
        raise ConfigurationError(
            f"The key `{label}` is neither Ed25519 nor ECDSA P-256, so it cannot sign here."
        )
    required = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True,
        Attribute.TOKEN: True,
    }
    for attribute, value in required.items():
        if private[attribute] is not value:
            raise ConfigurationError(
                f"The signing key `{label}` has CKA_{attribute.name} {not value}; it must be "
                f"{value}. Create another, under another label."
            )
    return algorithm


def _public_key(public: Any, algorithm: SignatureAlgorithm, label: str) -> PublicKey:
    """From CKA_EC_POINT: an OCTET STRING by the specification, its bare content in some modules."""
    size = ED25519_BYTES if algorithm is SignatureAlgorithm.ED25519 else _P256_POINT_BYTES
    point: bytes = public[Attribute.EC_POINT]
    if point[:2] == bytes((0x04, size)) and len(point) == size + 2:
        point = point[2:]
    try:
        if algorithm is SignatureAlgorithm.ED25519:
            return ed25519.Ed25519PublicKey.from_public_bytes(point)
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ConfigurationError(
            f"The public key `{label}` is no point of the curve that {algorithm} needs."
        ) from None


def _taken(label: str) -> ConfigurationError:
    return ConfigurationError(
        f"The token holds a signing key `{label}` already; it is kept. A new key takes a new label."
    )
