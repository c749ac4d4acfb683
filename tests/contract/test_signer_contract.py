"""The contract of Signer: every kind of signing key passes the same suite.

A further kind joins with a line in SIGNERS and an async context manager that opens it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fixtures.gcp import serving
from fixtures.hsmd import MakeHsmd
from fixtures.signing import LABEL, MakeSigningKey, verify
from fixtures.softhsm import MakeToken
from ironwork_hsm import BackendOptions, SignatureAlgorithm, Signer, Unavailable
from ironwork_hsm.signers import create_signing_key, open_signer

MESSAGE = b"example.org/keys/1\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

Open = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Signer]]


def softhsm_signer(algorithm: SignatureAlgorithm) -> Open:
    @asynccontextmanager
    async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Signer]:
        make_token: MakeToken = request.getfixturevalue("make_token")
        signer = await create_signing_key(
            make_token().uri_for(LABEL),
            algorithm=algorithm,
            options=BackendOptions(deadline_s=30),
        )
        try:
            yield signer
        finally:
            await signer.close()

    return opened


def gcp_signer(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Open:
    @asynccontextmanager
    async def opened(_: pytest.FixtureRequest) -> AsyncIterator[Signer]:
        async with serving() as kms:
            kms.signing = key
            async with kms.opened_signer() as signer:
                yield signer

    return opened


@asynccontextmanager
async def open_hsmd(request: pytest.FixtureRequest) -> AsyncIterator[Signer]:
    """The same key, held by the HSM process."""
    make_signing_key: MakeSigningKey = request.getfixturevalue("make_signing_key")
    make_hsmd: MakeHsmd = request.getfixturevalue("make_hsmd")
    hsmd = make_hsmd(signer=make_signing_key().uri)
    signer = await open_signer(hsmd.uri, options=BackendOptions(deadline_s=30))
    try:
        yield signer
    finally:
        await signer.close()


SIGNERS: dict[str, Open] = {
    "hsmd": open_hsmd,
    "pkcs11-softhsm-ed25519": softhsm_signer(SignatureAlgorithm.ED25519),
    "pkcs11-softhsm-ecdsa": softhsm_signer(SignatureAlgorithm.ECDSA_P256),
    "gcpkms-ed25519": gcp_signer(ed25519.Ed25519PrivateKey.generate()),
    "gcpkms-ecdsa": gcp_signer(ec.generate_private_key(ec.SECP256R1())),
}


@pytest.fixture(params=sorted(SIGNERS))
async def signer(request: pytest.FixtureRequest) -> AsyncIterator[Signer]:
    async with SIGNERS[request.param](request) as opened:
        yield opened


@pytest.mark.parametrize("message", [b"", MESSAGE, bytes(65536)], ids=["empty", "note", "long"])
async def test_signatures_verify(signer: Signer, message: bytes) -> None:
    """A signature verifies with the public key that the signer gives out, and nothing else."""
    signature = await signer.sign(message)
    verify(signer.algorithm, signer.public_key, signature, message)
    with pytest.raises(InvalidSignature):
        verify(signer.algorithm, signer.public_key, signature, message + b"\n")


async def test_signatures_have_their_format(signer: Signer) -> None:
    """Ed25519 gives 64 bytes; ECDSA gives DER, whose two numbers fit the curve."""
    signature = await signer.sign(MESSAGE, reference="call-1")
    if signer.algorithm is SignatureAlgorithm.ED25519:
        assert len(signature) == 64
        assert len(signer.public_key) == 32
    else:
        assert all(0 < number < 2**256 for number in decode_dss_signature(signature))


async def test_a_message_has_a_bound(signer: Signer) -> None:
    """What is signed is a note, not a file: over 64 KiB is refused."""
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        await signer.sign(bytes(65537))


async def test_name_holds_no_query(signer: Signer) -> None:
    """A signer's name is its URI's path: nothing of how it is reached."""
    assert "?" not in signer.name
    assert "pin" not in signer.name


async def test_concurrent_calls_get_their_own_signatures(signer: Signer) -> None:
    """Many calls at once never mix up their results."""
    messages = [f"checkpoint {number}".encode() for number in range(50)]
    signatures = await asyncio.gather(*(signer.sign(message) for message in messages))
    for message, signature in zip(messages, signatures, strict=True):
        verify(signer.algorithm, signer.public_key, signature, message)


async def test_a_closed_signer_refuses(signer: Signer) -> None:
    """After close every call is Unavailable; closing again is harmless."""
    await signer.close()
    await signer.close()
    with pytest.raises(Unavailable):
        await signer.sign(MESSAGE)
