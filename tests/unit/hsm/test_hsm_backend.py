"""The PKCS#11 backend on a real token: opening, login and keys."""

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pkcs11.exceptions
import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from fixtures.softhsm import MakeToken, SoftHsm, TokenFiles, opened
from ironwork_hsm import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    KeyMissing,
    KeyVersion,
    PinRefused,
    Unavailable,
    open_backend,
)
from ironwork_hsm.pkcs11.keys import generate_key
from ironwork_hsm.pkcs11.login import find_token
from ironwork_hsm.pkcs11.module import Module, load_module
from ironwork_hsm.uri import parse_pkcs11_uri

LONG = 30.0
CONTEXT = b"context"


def raw_token(softhsm: SoftHsm, token: TokenFiles) -> Any:
    return load_module(softhsm.module).library.get_token(token_label=token.label)


def make_key(softhsm: SoftHsm, token: TokenFiles, **changes: Any) -> None:
    """A key `master` that differs from a proper version 1 as said; attributes by their names."""
    settings: dict[str, Any] = {"id": b"\0\0\0\1", "bits": 256} | {
        name: changes.pop(name) for name in ("id", "bits") if name in changes
    }
    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    template |= {Attribute[name]: value for name, value in changes.items()}
    with raw_token(softhsm, token).open(rw=True, user_pin=pin_of(token)) as session:
        session.generate_key(
            KeyType.AES,
            settings["bits"],
            id=settings["id"],
            label="master",
            store=True,
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template=template,
        )


def pin_of(token: TokenFiles) -> str:
    return token.pin_file.read_text().strip()


def in_another_process(token: TokenFiles) -> None:
    """Create the next version of `master` as another process would."""
    script = """
import asyncio, sys
from ironwork_hsm import open_backend
async def main():
    backend = await open_backend(sys.argv[1], allow_missing=True)
    await backend.create_version()
    await backend.close()
asyncio.run(main())
"""
    subprocess.run(
        [sys.executable, "-c", script, token.uri],
        env=os.environ | token.env,
        check=True,
        timeout=60,
    )


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["", "azurekms:///secret", "file:/secret", "secret", "pkcs12:x?pin-value=secret"]
)
async def test_unknown_schemes(uri: str) -> None:
    """A scheme that this build does not know is refused with those that it knows, unquoted."""
    with pytest.raises(ConfigurationError, match="`pkcs11:`") as caught:
        await open_backend(uri)
    assert "secret" not in str(caught.value)


async def test_an_empty_token(make_token: MakeToken) -> None:
    """Without a master key nothing opens, and the error says which command creates one."""
    token = make_token()
    with pytest.raises(KeyMissing, match="ironwork-server master-key create"):
        await open_backend(token.uri)


async def test_an_empty_token_for_the_command_that_creates(make_token: MakeToken) -> None:
    """allow_missing opens an empty token, on which nothing works before a key is created."""
    async with opened(make_token().uri, allow_missing=True) as backend:
        assert list(await backend.versions()) == []
        with pytest.raises(KeyMissing):
            _ = backend.current_version
        with pytest.raises(KeyMissing):
            await backend.wrap(bytes(32), CONTEXT)
        with pytest.raises(KeyMissing):
            await backend.check()
        assert (await backend.create_version()).version == 1
        await backend.check()


async def test_the_current_version_is_the_greatest(make_token: MakeToken) -> None:
    """Opening again finds all versions; the greatest wraps."""
    token = make_token()
    async with opened(token.uri, allow_missing=True) as backend:
        for _ in range(3):
            await backend.create_version()
    async with opened(token.uri) as backend:
        assert backend.current_version == 3


async def test_a_token_that_is_not_there(make_token: MakeToken) -> None:
    """A token that does not exist is named by the URI's path alone."""
    uri = make_token().uri.replace("token=test-", "token=other-")
    with pytest.raises(ConfigurationError, match=r"No token in .* matches `pkcs11:token=other-"):
        await open_backend(uri)


async def test_by_serial_and_by_slot(softhsm: SoftHsm, make_token: MakeToken) -> None:
    """A token may be named by its serial or its slot instead of its label."""
    token = make_token(with_key=True)
    raw = raw_token(softhsm, token)
    for part in (f"serial={quote(raw.serial)}", f"slot-id={raw.slot.slot_id}"):
        async with opened(token.uri.replace(f"token={token.label}", part)) as backend:
            await backend.check()


@pytest.mark.parametrize(
    "part", ["manufacturer=Nobody", "model=None", "slot-description=x", "slot-manufacturer=x"]
)
async def test_every_attribute_must_match(make_token: MakeToken, part: str) -> None:
    """An attribute of the URI that the token does not have excludes it."""
    token = make_token(with_key=True)
    with pytest.raises(ConfigurationError, match="No token"):
        await open_backend(token.uri.replace(";object", f";{part};object"))


def test_two_tokens_of_one_label() -> None:
    """A URI that two tokens match is refused, and the error says what tells them apart."""

    def slot() -> Any:
        token = SimpleNamespace(label="t", serial=b"1", manufacturer_id="", model="")
        return SimpleNamespace(
            get_token=lambda: token, slot_id=1, manufacturer_id="", slot_description=""
        )

    def away() -> Any:
        raise pkcs11.exceptions.TokenNotPresent

    slots = [slot(), SimpleNamespace(get_token=away), slot()]
    library = SimpleNamespace(get_slots=lambda token_present: slots)
    uri = parse_pkcs11_uri("pkcs11:token=t;object=o?module-path=/m.so&pin-source=file:/pin")
    loaded = Module(path="/m.so", library=library, functions=None, pid=os.getpid())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="add `serial`"):
        find_token(loaded, uri)


# --- PIN and login -----------------------------------------------------------------------------


async def test_a_wrong_pin_is_tried_once(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused PIN is PinRefused after one try, however many lanes there are, and is not told."""
    token = make_token(with_key=True)
    right = token.pin_file.read_bytes()
    token.pin_file.write_bytes(b"wrong-pin\n")
    tries: list[int] = []
    login = Module.login

    def counted(self: Module, handle: int, pin: bytearray) -> None:
        tries.append(1)
        login(self, handle, pin)

    monkeypatch.setattr(Module, "login", counted)
    with pytest.raises(PinRefused) as caught:
        await open_backend(token.uri, options=BackendOptions(lanes=4))
    assert len(tries) == 1
    assert "wrong-pin" not in str(caught.value)
    assert caught.value.__context__ is None
    # Nothing of the refused try is left: no session, no half a login.
    token.pin_file.write_bytes(right)
    async with opened(token.uri) as backend:
        await backend.check()
    assert len(tries) == 2


async def test_an_open_pin_file_is_refused_before_the_token_is_asked(
    make_token: MakeToken,
) -> None:
    """A PIN file that others can read is not used."""
    token = make_token(with_key=True)
    token.pin_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await open_backend(token.uri)


async def test_backends_on_one_token_share_its_login(make_token: MakeToken) -> None:
    """Closing one backend does not log out another on the same token."""
    token = make_token(with_key=True)
    async with opened(token.uri) as first:
        async with opened(token.uri) as second:
            wrapped = await second.wrap(bytes(32), CONTEXT)
        assert await first.unwrap(wrapped, CONTEXT) == bytes(32)


async def test_the_last_one_out_logs_out(softhsm: SoftHsm, make_token: MakeToken) -> None:
    """After the last close the process is logged out: private keys are out of sight."""
    token = make_token(with_key=True)
    find = {Attribute.CLASS: ObjectClass.SECRET_KEY}
    async with opened(token.uri):
        with raw_token(softhsm, token).open() as session:
            assert len(list(session.get_objects(find))) == 1
    with raw_token(softhsm, token).open() as session:
        assert list(session.get_objects(find)) == []


async def test_one_token_one_pin_file(make_token: MakeToken) -> None:
    """A second backend on an open token must name the same PIN file: no PIN goes unchecked."""
    token = make_token(with_key=True)
    other = token.pin_file.with_name("other-pin")
    other.write_text("1234\n")
    other.chmod(0o600)
    async with opened(token.uri):
        with pytest.raises(ConfigurationError, match="another pin-source"):
            await open_backend(token.uri.replace(str(token.pin_file), str(other)))


async def test_a_login_of_other_code_is_not_trusted(
    softhsm: SoftHsm, make_token: MakeToken
) -> None:
    """Where other code has logged in, our PIN was not checked, so the backend does not open."""
    token = make_token(with_key=True)
    with (
        raw_token(softhsm, token).open(user_pin=pin_of(token)),
        pytest.raises(ConfigurationError, match="PIN was not checked"),
    ):
        await open_backend(token.uri)


# --- keys --------------------------------------------------------------------------------------


async def test_the_token_sees_a_key_that_cannot_leave(
    softhsm: SoftHsm, make_token: MakeToken
) -> None:
    """A created key is AES-256, lives in the token, only encrypts and decrypts, never leaves."""
    token = make_token()
    async with opened(token.uri, allow_missing=True) as backend:
        created = await backend.create_version()
        assert created == KeyVersion(
            version=1,
            label="master",
            sensitive=True,
            extractable=False,
            never_extractable=True,
            local=True,
            mechanism="aes-256-gcm",
        )
        with raw_token(softhsm, token).open() as session:
            (key,) = session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY})
            expected = {
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE_LEN: 32,
                Attribute.LABEL: "master",
                Attribute.ID: b"\x00\x00\x00\x01",
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.ALWAYS_SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.NEVER_EXTRACTABLE: True,
                Attribute.LOCAL: True,
                Attribute.ENCRYPT: True,
                Attribute.DECRYPT: True,
                Attribute.SIGN: False,
                Attribute.VERIFY: False,
                Attribute.WRAP: False,
                Attribute.UNWRAP: False,
                Attribute.DERIVE: False,
            }
            assert {attribute: key[attribute] for attribute in expected} == expected
            with pytest.raises(pkcs11.exceptions.AttributeSensitive):
                _ = key[Attribute.VALUE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"EXTRACTABLE": True}, "CKA_EXTRACTABLE True; it must be False"),
        ({"SENSITIVE": False}, "CKA_SENSITIVE False; it must be True"),
        ({"ENCRYPT": False}, "CKA_ENCRYPT False"),
        ({"DECRYPT": False}, "CKA_DECRYPT False"),
        ({"bits": 128}, "not AES-256"),
        ({"id": b"\x01"}, "CKA_ID that is no version"),
        ({"id": b"\0\0\0\0"}, "CKA_ID that is no version"),
        ({"id": b"\0\0\0\0\1"}, "CKA_ID that is no version"),
    ],
    ids=str,
)
async def test_unfit_keys_are_refused_at_open(
    softhsm: SoftHsm, make_token: MakeToken, changes: dict[str, Any], message: str
) -> None:
    """A key that could leave the token, or is no proper version, is refused by its attribute."""
    token = make_token()
    make_key(softhsm, token, **changes)
    with pytest.raises(ConfigurationError, match=message):
        await open_backend(token.uri)
    with pytest.raises(ConfigurationError, match=message):
        await open_backend(token.uri, allow_missing=True)


async def test_two_keys_of_one_version(softhsm: SoftHsm, make_token: MakeToken) -> None:
    """Two keys of one version cannot be told apart, so neither is used."""
    token = make_token()
    make_key(softhsm, token)
    make_key(softhsm, token)
    with pytest.raises(ConfigurationError, match="two keys"):
        await open_backend(token.uri)


async def test_keys_of_other_labels_do_not_count(make_token: MakeToken) -> None:
    """Two master keys in one token are two wrappers: neither opens the other's blobs."""
    token = make_token(with_key=True)
    async with opened(token.uri_for("other"), allow_missing=True) as other:
        await other.create_version()
        wrapped = await other.wrap(bytes(32), CONTEXT)
        async with opened(token.uri) as backend:
            with pytest.raises(BlobRejected):
                await backend.unwrap(wrapped, CONTEXT)


async def test_a_version_of_another_process_is_found(make_token: MakeToken) -> None:
    """A version that another process has made meanwhile opens its blobs at once."""
    token = make_token(with_key=True)
    async with opened(token.uri, lanes=2) as backend:
        await asyncio.to_thread(in_another_process, token)
        async with opened(token.uri) as fresh:
            wrapped = await fresh.wrap(bytes(32), CONTEXT)
        assert wrapped.key_version == 2
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
        assert [version.version for version in await backend.versions()] == [1, 2]
        assert backend.current_version == 2


async def test_versions_created_at_once_are_all_different(make_token: MakeToken) -> None:
    """Creations that meet give different versions, or are refused; never two of one."""
    async with opened(make_token().uri, allow_missing=True) as backend:
        results = await asyncio.gather(
            *(backend.create_version() for _ in range(6)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, BaseException)]
        made = [result.version for result in results if isinstance(result, KeyVersion)]
        assert all(isinstance(error, Unavailable) for error in refused)
        assert sorted(made) == [version.version for version in await backend.versions()]


def test_a_version_that_exists_is_not_made_again(softhsm: SoftHsm, make_token: MakeToken) -> None:
    """Where another process was first, our key of the same version is removed again."""
    token = make_token(with_key=True)
    with raw_token(softhsm, token).open(rw=True, user_pin=pin_of(token)) as session:
        with pytest.raises(Unavailable, match="version 1"):
            generate_key(session, "master", 1)
        assert len(list(session.get_objects({Attribute.LABEL: "master"}))) == 1
