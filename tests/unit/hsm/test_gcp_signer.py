"""The Google Cloud KMS signer beyond the contract: checksums, whose key, nothing twice."""

from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fixtures.gcp import KEY, SIGNING_KEY, Fault, GcpKms
from ironwork_hsm import ConfigurationError, HsmError, KeyMissing, Unavailable
from ironwork_hsm.signers import create_signing_key, open_signer

BOTH = pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())],
    ids=["ed25519", "ecdsa"],
)


def _set(name: str, value: Any) -> Any:
    return lambda message: setattr(message, name, value)


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        _set("signature_crc32c", 7),
        _set("signature", b"another"),
        _set("verified_data_crc32c", None),
        _set("verified_digest_crc32c", None),
        _set("name", f"{KEY}/cryptoKeyVersions/1"),
    ],
    ids=["checksum", "signature", "data", "digest", "name"],
)
async def test_an_answer_that_does_not_fit_is_no_signature(
    gcp_kms: GcpKms, key: Any, change: Any, request: pytest.FixtureRequest
) -> None:
    """What was altered, not verified, or made by another version is not given out, and nothing is
    signed twice.
    """
    gcp_kms.signing = key
    async with gcp_kms.opened_signer() as signer:
        gcp_kms.requests.clear()
        gcp_kms.next.append(Fault(change=change))
        name = request.node.callspec.id
        other = {"data-ecdsa", "digest-ed25519"}
        if name in other:  # the field of the other algorithm decides nothing
            await signer.sign(b"m")
        else:
            with pytest.raises(Unavailable, match="altered on its way"):
                await signer.sign(b"m")
        assert gcp_kms.methods() == ["AsymmetricSign"]


@pytest.mark.parametrize(
    "keys",
    [
        [ed25519.Ed25519PrivateKey.generate() for _ in range(2)],
        [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)],
    ],
    ids=["ed25519", "ecdsa"],
)
async def test_a_signature_of_another_key(gcp_kms: GcpKms, keys: list[Any]) -> None:
    """A signature that the public key read at the start does not verify is not given out."""
    gcp_kms.signing = keys[0]
    async with gcp_kms.opened_signer() as signer:
        gcp_kms.signing = keys[1]
        with pytest.raises(Unavailable, match="does not verify"):
            await signer.sign(b"m")


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ConfigurationError),
        (grpc.StatusCode.NOT_FOUND, KeyMissing),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
    ],
    ids=str,
)
async def test_a_signature_is_never_asked_for_twice(
    gcp_kms: GcpKms, code: grpc.StatusCode, ours: type[HsmError]
) -> None:
    """A fault is typed and not repeated: each signature is one operation in the device's log."""
    gcp_kms.signing = ed25519.Ed25519PrivateKey.generate()
    async with gcp_kms.opened_signer() as signer:
        assert "AsymmetricSign" not in gcp_kms.methods()
        gcp_kms.requests.clear()
        gcp_kms.next.append(Fault(code=code))
        with pytest.raises(ours):
            await signer.sign(b"m")
        assert gcp_kms.methods() == ["AsymmetricSign"]


async def test_a_missing_key(gcp_kms: GcpKms) -> None:
    """A key that is not there is KeyMissing; with allow_missing, as soon as it is needed."""
    with pytest.raises(KeyMissing):
        async with gcp_kms.opened_signer():
            pass
    async with gcp_kms.opened_signer(allow_missing=True) as signer:
        with pytest.raises(KeyMissing):
            _ = signer.public_key
        with pytest.raises(KeyMissing):
            _ = signer.algorithm
        with pytest.raises(KeyMissing):
            await signer.sign(b"m")


@pytest.mark.parametrize("pem", ["", "no key"])
async def test_a_public_key_that_is_none(gcp_kms: GcpKms, pem: str) -> None:
    """What cannot be read as a public key is refused at the start."""
    import google_crc32c

    def change(answer: Any) -> None:
        answer.pem, answer.pem_crc32c = pem, google_crc32c.value(pem.encode())

    gcp_kms.signing = ed25519.Ed25519PrivateKey.generate()
    gcp_kms.next.append(Fault(change=change))
    with pytest.raises(ConfigurationError, match="EC_SIGN_ED25519"):
        async with gcp_kms.opened_signer():
            pass


async def test_a_public_key_altered_on_its_way(gcp_kms: GcpKms) -> None:
    """A public key whose checksum does not fit is asked for again, and is right then."""
    gcp_kms.signing = ed25519.Ed25519PrivateKey.generate()
    gcp_kms.next.append(Fault(change=_set("pem_crc32c", 7)))
    async with gcp_kms.opened_signer() as signer:
        assert signer.public_key == gcp_kms.signing.public_key().public_bytes_raw()
        assert gcp_kms.methods() == ["GetPublicKey"] * 2


async def test_a_key_of_another_curve(gcp_kms: GcpKms) -> None:
    """P-384 cannot sign a checkpoint, so it is refused at the start."""
    gcp_kms.signing = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ConfigurationError, match="EC_SIGN_P256_SHA256"):
        async with gcp_kms.opened_signer():
            pass


async def test_uris_and_creation() -> None:
    """A signing key is named with its version, and made with the cloud's own tools."""
    for text in (
        f"gcpkms://{KEY}",
        f"gcpkms://{SIGNING_KEY}/",
        f"gcpkms://{KEY}/cryptoKeyVersions/0",
    ):
        with pytest.raises(ConfigurationError, match="cryptoKeyVersions/N"):
            await open_signer(text)
    with pytest.raises(ConfigurationError, match="own tools"):
        await create_signing_key(f"gcpkms://{SIGNING_KEY}")
