"""The PKCS#11 signer beyond the contract: whose key it takes, what it counts, what it survives."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pkcs11.exceptions as p11
import pytest
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from fixtures.signing import LABEL, MakeSigningKey, SigningKeyFiles, verify
from fixtures.softhsm import MakeToken, SoftHsm, TokenFiles, opened
from ironwork_hsm import (
    BackendOptions,
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    SignatureAlgorithm,
    Unavailable,
)
from ironwork_hsm.pkcs11 import softhsm as tool
from ironwork_hsm.pkcs11.module import load_module
from ironwork_hsm.pkcs11.signer import Pkcs11Signer, open_pkcs11_signer
from ironwork_hsm.pkcs11.signing_keys import (
    generate_signing_key,
    offered_algorithm,
)
from ironwork_hsm.signers import create_signing_key, open_signer

PATIENT = BackendOptions(lanes=2, deadline_s=30)
ONE = BackendOptions(lanes=1, deadline_s=30)
BOTH = pytest.mark.parametrize("algorithm", list(SignatureAlgorithm), ids=str)


def session_at(softhsm: SoftHsm, token: TokenFiles) -> Any:
    """A read-write session of our own, logged in; for use with no signer open."""
    found = load_module(softhsm.module).library.get_token(token_label=token.label)
    return found.open(rw=True, user_pin=token.pin_file.read_text().strip())


async def test_a_new_key_is_ed25519_where_the_module_has_it(make_token: MakeToken) -> None:
    """Without being told, the better-known algorithm is taken."""
    signer = await create_signing_key(make_token().uri_for(LABEL), options=PATIENT)
    assert signer.algorithm is SignatureAlgorithm.ED25519
    await signer.close()


class _Token:
    """A token with these mechanisms."""

    def __init__(self, mechanisms: set[Mechanism]) -> None:
        self.slot = self
        self._mechanisms = mechanisms

    def get_mechanisms(self) -> set[Mechanism]:
        return self._mechanisms


def test_a_module_without_edwards_curves_gets_ecdsa() -> None:
    """ECDSA P-256 is taken where Ed25519 cannot both be generated and used; without it, none."""
    ecdsa = {Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA}
    assert offered_algorithm(_Token(ecdsa)) is SignatureAlgorithm.ECDSA_P256
    assert offered_algorithm(_Token(ecdsa | {Mechanism.EDDSA})) is SignatureAlgorithm.ECDSA_P256
    with pytest.raises(ConfigurationError, match="neither Ed25519 nor ECDSA"):
        offered_algorithm(_Token({Mechanism.AES_GCM}))


@BOTH
async def test_the_key_never_leaves_and_only_signs(
    softhsm: SoftHsm, make_signing_key: MakeSigningKey, algorithm: SignatureAlgorithm
) -> None:
    """The private key is the device's own, sensitive, never extractable, and can only sign."""
    key = make_signing_key(algorithm)
    with session_at(softhsm, key.token) as session:
        (private,) = session.get_objects(
            {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: LABEL}
        )
        for attribute in ("SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL", "SIGN"):
            assert private[Attribute[attribute]] is True, attribute
        for attribute in ("EXTRACTABLE", "DECRYPT", "UNWRAP", "DERIVE"):
            assert private[Attribute[attribute]] is False, attribute


async def test_a_key_is_never_replaced(signing_key: SigningKeyFiles) -> None:
    """Creating where there is a key is refused, and the key that was there signs as before."""
    with pytest.raises(ConfigurationError, match="holds a signing key `log` already"):
        await create_signing_key(signing_key.uri, options=PATIENT)
    signer = await open_signer(signing_key.uri, options=PATIENT)
    verify(signer.algorithm, signer.public_key, await signer.sign(b"m"), b"m")
    await signer.close()


async def test_the_same_key_is_found_again(signing_key: SigningKeyFiles) -> None:
    """Two signers opened on one URI have the same public key."""
    first = await open_signer(signing_key.uri, options=PATIENT)
    second = await open_signer(signing_key.uri, options=PATIENT)
    assert first.public_key == second.public_key
    await first.close()
    verify(second.algorithm, first.public_key, await second.sign(b"m"), b"m")
    await second.close()


async def test_two_tokens_in_one_process(
    make_token: MakeToken, signing_key: SigningKeyFiles
) -> None:
    """Master key and signing key work side by side in one module, each under a PIN of its own, and
    closing one leaves the other logged in.
    """
    master = make_token(with_key=True)
    assert master.pin_file.read_bytes() != signing_key.token.pin_file.read_bytes()
    async with opened(master.uri) as wrapper:
        signer = await open_signer(signing_key.uri, options=PATIENT)
        wrapped = await wrapper.wrap(bytes(32), b"c")
        await signer.sign(b"m")
        await signer.close()
        assert await wrapper.unwrap(wrapped, b"c") == bytes(32)
        signer = await open_signer(signing_key.uri, options=PATIENT)
    await signer.sign(b"m")
    await signer.close()


async def test_a_missing_key(make_token: MakeToken) -> None:
    """Without a key, opening says so; opened with allow_missing, everything that needs it does."""
    uri = make_token().uri_for(LABEL)
    with pytest.raises(KeyMissing, match="create it first"):
        await open_signer(uri, options=PATIENT)
    signer = await open_signer(uri, allow_missing=True, options=PATIENT)
    with pytest.raises(KeyMissing):
        _ = signer.public_key
    with pytest.raises(KeyMissing):
        _ = signer.algorithm
    with pytest.raises(KeyMissing):
        await signer.sign(b"m")
    await signer.close()


async def test_a_wrong_pin(make_signing_key: MakeSigningKey, tmp_path: Path) -> None:
    """A wrong PIN is PinRefused, and not in the error."""
    key = make_signing_key()
    wrong = tmp_path / "pin"
    wrong.write_text("4711-not-the-pin\n")
    wrong.chmod(0o600)
    uri = tool.token_uri(key.token.label, LABEL, wrong)
    with pytest.raises(PinRefused) as caught:
        await open_signer(uri, options=PATIENT)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("uri", ["nonsense", "unknown:key", "awskms"], ids=str)
async def test_an_unknown_scheme(uri: str) -> None:
    """A URI of no known scheme is refused, by opening and by creating."""
    for function in (open_signer, create_signing_key):
        with pytest.raises(ConfigurationError, match="it knows `pkcs11:`"):
            await function(uri)


def _generate_rsa(session: Any) -> None:
    session.generate_keypair(KeyType.RSA, 2048, label=LABEL, id=b"\x01", store=True)


def _generate_p384(session: Any) -> None:
    from pkcs11.util.ec import encode_named_curve_parameters

    session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}, local=True
    ).generate_keypair(label=LABEL, id=b"\x01", store=True)


def _generate_extractable(session: Any) -> None:
    from pkcs11.util.ec import encode_named_curve_parameters

    session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    ).generate_keypair(
        label=LABEL,
        id=b"\x01",
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template={Attribute.EXTRACTABLE: True},
    )


def _generate_twice(session: Any) -> None:
    generate_signing_key(session, "another", SignatureAlgorithm.ED25519)
    generate_signing_key(session, LABEL, SignatureAlgorithm.ED25519)
    for found in list(session.get_objects({Attribute.LABEL: "another"})):
        found[Attribute.LABEL] = LABEL


def _without_public_half(session: Any) -> None:
    generate_signing_key(session, LABEL, SignatureAlgorithm.ED25519)
    half = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: LABEL}
    for found in list(session.get_objects(half)):
        found.destroy()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_generate_rsa, "neither Ed25519 nor ECDSA P-256"),
        (_generate_p384, "no point of the curve"),
        (_generate_extractable, "CKA_EXTRACTABLE True; it must be False"),
        (_generate_twice, "2 private keys with label"),
        (_without_public_half, "it holds 0"),
    ],
)
async def test_what_must_not_sign_is_refused(
    softhsm: SoftHsm, make_token: MakeToken, make: Any, reason: str
) -> None:
    """A key of another kind, one that can leave the device, and an ambiguous one are refused."""
    token = make_token()
    with session_at(softhsm, token) as session:
        make(session)
    with pytest.raises(ConfigurationError, match=reason):
        await open_signer(token.uri_for(LABEL), options=PATIENT)


async def test_a_public_key_that_is_anothers(softhsm: SoftHsm, make_token: MakeToken) -> None:
    """Where the public half beside the key belongs to another, no signature comes out."""
    token = make_token()
    with session_at(softhsm, token) as session:
        generate_signing_key(session, LABEL, SignatureAlgorithm.ED25519)
        generate_signing_key(session, "other", SignatureAlgorithm.ED25519)
        publics = {
            label: next(
                iter(
                    session.get_objects(
                        {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: label}
                    )
                )
            )
            for label in (LABEL, "other")
        }
        publics[LABEL].destroy()
        publics["other"][Attribute.LABEL] = LABEL
    signer = await open_signer(token.uri_for(LABEL), options=PATIENT)
    with pytest.raises(Unavailable, match="does not verify"):
        await signer.sign(b"m")
    await signer.close()


SPIED = """\
import asyncio, sys
from ironwork_hsm.signers import open_signer

async def main(uri):
    signer = await open_signer(uri)
    for _ in range(3):
        await signer.sign(b"m")
    await signer.close()

asyncio.run(main(*sys.argv[1:]))
"""


@BOTH
def test_one_operation_for_each_signature(
    softhsm: SoftHsm,
    make_signing_key: MakeSigningKey,
    algorithm: SignatureAlgorithm,
    tmp_path: Path,
) -> None:
    """The device's own record of three signatures is three operations; opening, checking and
    closing make none. (Each C_Sign stands there twice: first comes the question for its length.)
    """
    (spy,) = Path("/usr/lib").glob("*/pkcs11-spy.so")
    record = tmp_path / "spy.log"
    uri = make_signing_key(algorithm).uri.replace(str(softhsm.module), str(spy))
    subprocess.run(
        [sys.executable, "-c", SPIED, uri],
        env=os.environ | {"PKCS11SPY": str(softhsm.module), "PKCS11SPY_OUTPUT": str(record)},
        check=True,
        timeout=60,
    )
    lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
    called = [line.split()[-1] for line in lines if ": C_" in line]
    assert called.count("C_SignInit") == 3
    assert called.count("C_Sign") == 6
    assert not {"C_SignUpdate", "C_SignFinal", "C_Encrypt", "C_Decrypt"} & set(called)


class _Sick:
    """A private key whose device fails as told."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def sign(self, data: bytes, **_: Any) -> bytes:
        raise self._error


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (p11.ObjectHandleInvalid(), Unavailable),
        (p11.SessionHandleInvalid(), Unavailable),
        (p11.UserNotLoggedIn(), Unavailable),
        (p11.DeviceError(), Unavailable),
        (p11.PKCS11Error("CKR 0x80000001"), Unavailable),
        (p11.MechanismInvalid(), ConfigurationError),
        (p11.TemplateInconsistent(), ConfigurationError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_fault_is_typed_and_the_next_call_starts_afresh(
    signing_key: SigningKeyFiles, error: Exception, ours: type[HsmError]
) -> None:
    """A device's fault becomes ours, is not tried again, and costs the lane its session only."""
    signer = await open_pkcs11_signer(signing_key.uri, allow_missing=False, options=ONE)
    await _replace_key(signer, _Sick(error))
    with pytest.raises(ours) as caught:
        await signer.sign(b"m")
    assert caught.value.__context__ is None
    verify(signer.algorithm, signer.public_key, await signer.sign(b"m"), b"m")
    await signer.close()


async def _replace_key(signer: Pkcs11Signer, private: _Sick) -> None:
    import dataclasses

    def replace(lane: Any) -> None:
        lane.key = dataclasses.replace(lane.key, private=private)

    await signer._lanes.run(replace, deadline_s=30)


async def test_a_key_that_is_gone(softhsm: SoftHsm, signing_key: SigningKeyFiles) -> None:
    """A key destroyed under the signer is a fault first and then KeyMissing, never a signature."""
    signer = await open_signer(signing_key.uri, options=ONE)
    found = load_module(softhsm.module).library.get_token(token_label=signing_key.token.label)
    with found.open(rw=True) as session:
        for thing in list(session.get_objects({Attribute.LABEL: LABEL})):
            thing.destroy()
    with pytest.raises(Unavailable):
        await signer.sign(b"m")
    with pytest.raises(KeyMissing):
        await signer.sign(b"m")
    await signer.close()


CHILD = """\
import asyncio, sys
from ironwork_hsm.pkcs11.softhsm import use_config
from ironwork_hsm import open_backend, signers
from pathlib import Path

async def main(config, master, log):
    use_config(Path(config))
    wrapper = await open_backend(master, allow_missing=True)
    await wrapper.create_version()
    signer = await signers.create_signing_key(log)
    await signer.sign(b"m")
    await wrapper.check()
    await signer.close()
    await wrapper.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_second_token_beside_the_first(tmp_path: Path) -> None:
    """Two throw-away tokens under one configuration, with PINs of their own, serve one process."""
    (tmp_path / "log").mkdir()
    master = tool.create_token(tmp_path, "master token")
    log = tool.create_token(tmp_path / "log", "log token", object_label=LABEL, config=master.config)
    assert log.config == master.config
    assert log.pin_file.read_bytes() != master.pin_file.read_bytes()
    subprocess.run(
        [sys.executable, "-c", CHILD, str(master.config), master.uri, log.uri],
        check=True,
        timeout=60,
    )
