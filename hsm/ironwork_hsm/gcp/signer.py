"""The Google Cloud KMS Signer: one version of an asymmetric key, EC_SIGN_ED25519 or
EC_SIGN_P256_SHA256. The key is its owner's to make; Google gives its private half to nobody.
"""

import hashlib

import grpc
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from ironwork_hsm.gcp.caller import Caller
from ironwork_hsm.gcp.calls import public_key_pem, sign
from ironwork_hsm.gcp.uri import SCHEME, parse_gcp_signing_uri
from ironwork_hsm.interface import (
    MAX_MESSAGE_BYTES,
    BackendOptions,
    ConfigurationError,
    KeyMissing,
    SignatureAlgorithm,
    Unavailable,
)
from ironwork_hsm.signatures import PublicKey, verifies


class GcpKmsSigner:
    """Implements Signer. Made by open_gcp_signer, for the loop it was made on."""

    def __init__(
        self, version: str, options: BackendOptions, *, channel: grpc.aio.Channel | None = None
    ) -> None:
        """version: the key version's resource name. channel: for tests."""
        self._version = version
        self._options = options
        self._caller = Caller(options, channel=channel)
        self._public: PublicKey | None = None

    @property
    def name(self) -> str:
        return f"{SCHEME}://{self._version}"

    @property
    def algorithm(self) -> SignatureAlgorithm:
        """Raises KeyMissing where there is no key (opened with allow_missing)."""
        if isinstance(self._key(), ed25519.Ed25519PublicKey):
            return SignatureAlgorithm.ED25519
        return SignatureAlgorithm.ECDSA_P256

    @property
    def public_key(self) -> bytes:
        """Raises KeyMissing where there is no key (opened with allow_missing)."""
        key = self._key()
        if isinstance(key, ed25519.Ed25519PublicKey):
            return key.public_bytes_raw()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def start(self, *, allow_missing: bool) -> None:
        """Read the public key; signs nothing. Closes again what it opened where it fails."""
        try:
            await self._caller.open()
            try:
                pem = await self._caller.call(
                    lambda client, timeout: public_key_pem(client, self._version, timeout=timeout),
                    deadline_s=self._options.slow_deadline_s,
                )
            except KeyMissing:
                if not allow_missing:
                    raise
                return
            self._public = _usable(pem)
        except BaseException:
            await self.close()
            raise

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        """See Signer.sign. Never repeated, and verified before it is given out. Raises ValueError
        for a message over 64 KiB, KeyMissing, ConfigurationError, Unavailable.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message to sign has at most {MAX_MESSAGE_BYTES} bytes")
        key = self._key()
        hashed = isinstance(key, ec.EllipticCurvePublicKey)
        data = hashlib.sha256(message).digest() if hashed else message
        signature = await self._caller.call(
            lambda client, timeout: sign(
                client, self._version, data, hashed=hashed, timeout=timeout
            ),
            attempts=1,
        )
        if not verifies(key, signature, message):
            raise Unavailable("Google Cloud KMS gave a signature that its own key does not verify.")
        return signature

    async def close(self) -> None:
        """Close the channel. A second call does nothing."""
        await self._caller.close()

    def _key(self) -> PublicKey:
        if self._public is None:
            raise KeyMissing(f"Google Cloud KMS knows no signing key `{self.name}`.")
        return self._public


async def open_gcp_signer(
    uri: str,
    *,
    allow_missing: bool = False,
    options: BackendOptions | None = None,
    channel: grpc.aio.Channel | None = None,
) -> GcpKmsSigner:
    """Open the signing key at uri; see ironwork_hsm.signers.open_signer. channel: for tests."""
    signer = GcpKmsSigner(parse_gcp_signing_uri(uri), options or BackendOptions(), channel=channel)
    await signer.start(allow_missing=allow_missing)
    return signer


def _usable(pem: bytes) -> PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError:
        key = None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigurationError(
        "The signing key in Google Cloud KMS must be EC_SIGN_ED25519 or EC_SIGN_P256_SHA256."
    )
