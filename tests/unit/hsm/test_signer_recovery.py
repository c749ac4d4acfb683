"""A signing key whose device failed, opened anew by its signer; on a SoftHSM of its own."""

from collections.abc import AsyncIterator

import pytest

from fixtures.hsm_faults import CLOSE_ALL_SESSIONS, CLOSE_SESSION, LOGOUT, Device
from fixtures.signing import LABEL, verify
from fixtures.softhsm import SoftHsm
from ironwork_hsm import (
    BackendOptions,
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    Recoverable,
    SignatureAlgorithm,
    Signer,
    Unavailable,
)
from ironwork_hsm.pkcs11.module import load_module
from ironwork_hsm.pkcs11.signing_keys import generate_signing_key
from ironwork_hsm.signers import open_signer


class RecoverableSigner(Signer, Recoverable):
    """What a PKCS#11 signer is."""


@pytest.fixture
async def signer(signing_device: Device) -> AsyncIterator[RecoverableSigner]:
    made = await open_signer(signing_device.uri, options=BackendOptions(lanes=2, deadline_s=30))
    assert isinstance(made, Recoverable)
    yield made  # type: ignore[misc]
    await made.close()


async def signs(signer: Signer) -> None:
    verify(signer.algorithm, signer.public_key, await signer.sign(b"a note"), b"a note")


@pytest.mark.parametrize("how", [LOGOUT, CLOSE_SESSION, CLOSE_ALL_SESSIONS])
async def test_what_was_open_is_opened_anew(
    signer: RecoverableSigner, signing_device: Device, how: int
) -> None:
    """Whatever ended sessions or login costs one signature; opened anew it signs, on every lane."""
    signing_device.set(once=how)
    with pytest.raises(HsmError):
        await signer.sign(b"a note")
    await signer.recover()
    for _ in range(8):
        await signs(signer)
    assert signing_device.get("logins") == 2


async def test_a_token_that_is_away_is_not_recovered(
    signer: RecoverableSigner, signing_device: Device
) -> None:
    """While the token is away opening it anew fails by a typed error; once it is back it works,
    with nobody's help but another attempt's.
    """
    signing_device.take_away(signing_device.folder)
    for _ in range(3):
        with pytest.raises((Unavailable, KeyMissing, ConfigurationError)):
            await signer.sign(b"a note")
        with pytest.raises((Unavailable, KeyMissing, ConfigurationError)):
            await signer.recover()
    signing_device.bring_back()
    await signer.recover()
    await signs(signer)


async def test_a_refused_pin_is_not_tried_again(
    signer: RecoverableSigner, signing_device: Device, softhsm: SoftHsm
) -> None:
    """The PIN that was changed is tried once; only a file that was written anew is tried again."""
    token = signing_device.token
    old, new = token.pin_file.read_text().strip(), "another-pin-000"
    found = load_module(softhsm.module).library.get_token(token_label=token.label)
    with found.open(rw=True, user_pin=old) as session:
        session.set_pin(old, new)
    await signs(signer)
    signing_device.set(once=LOGOUT)
    with pytest.raises(HsmError):
        await signer.sign(b"a note")
    for _ in range(4):
        with pytest.raises(PinRefused):
            await signer.recover()
    assert signing_device.get("refused") == 1
    token.pin_file.write_text(new + "\n")
    await signer.recover()
    await signs(signer)
    assert signing_device.get("refused") == 1


async def test_another_key_in_its_place_is_refused(
    signer: RecoverableSigner, signing_device: Device
) -> None:
    """A log's key is its identity: one with the same label and another public half does not sign on
    in its place, nor is a token without the key taken for one that is well.
    """
    for path in set(signing_device.folder.glob("*.object")):
        if path.name != "token.object":
            signing_device.take_away(path)
    with pytest.raises(KeyMissing):
        await signer.recover()
    token = load_module(signing_device.module).library.get_token(
        token_label=signing_device.token.label
    )
    with token.open(rw=True) as session:
        generate_signing_key(session, LABEL, SignatureAlgorithm.ED25519)
    with pytest.raises(ConfigurationError, match="another than before"):
        await signer.recover()
