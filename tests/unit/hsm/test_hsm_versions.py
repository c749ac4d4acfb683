"""Versions of a PKCS#11 master key: by what each wraps, and how one is destroyed."""

import os
from pathlib import Path

import pytest

from fixtures.nss import NewNssUri
from fixtures.softhsm import MakeToken, opened
from ironwork_hsm import (
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    VersionDestroyer,
)

CONTEXT = b"row"


async def test_versions_of_two_kinds_wrap_each_by_its_mechanism(make_token: MakeToken) -> None:
    """Where a newer version is another kind of key, each version wraps by what its kind can do, and
    each says so before.
    """
    token = make_token(with_key=True)
    async with opened(f"{token.uri}&ironwork-mechanism=hmac-sha256-derive", allow_missing=True) as (
        maker
    ):
        await maker.create_version()
    async with opened(token.uri) as backend:
        for version, mechanism in ((1, "aes-256-gcm"), (2, "hmac-sha256-derive")):
            assert await backend.mechanism_of(version) == mechanism
            await backend.check(version)
            wrapped = await backend.wrap(bytes(32), CONTEXT, version=version)
            assert (wrapped.key_version, wrapped.mechanism) == (version, mechanism)
            assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
        assert [one.mechanism for one in await backend.versions()] == [
            "aes-256-gcm",
            "hmac-sha256-derive",
        ]


async def test_a_version_of_another_kind_than_is_pinned_wraps_nothing(
    make_token: MakeToken,
) -> None:
    """A version that cannot do the pinned mechanism is listed without one, and refused."""
    token = make_token(with_key=True)
    pinned = f"{token.uri}&ironwork-mechanism=hmac-sha256-derive"
    async with opened(pinned, allow_missing=True) as backend:
        assert [one.mechanism for one in await backend.versions()] == [""]
        for call in (backend.mechanism_of(1), backend.wrap(bytes(32), b"", version=1)):
            with pytest.raises(ConfigurationError, match="create a new version"):
                await call


async def test_another_process_finds_a_new_version(make_token: MakeToken) -> None:
    """A backend that was open before a version was made unwraps and wraps with it as it is."""
    uri = make_token(with_key=True).uri
    async with opened(uri) as maker, opened(uri) as other:
        await maker.create_version()
        wrapped = await maker.wrap(bytes(32), CONTEXT)
        assert (wrapped.key_version, other.current_version) == (2, 1)
        assert await other.unwrap(wrapped, CONTEXT) == bytes(32)
        assert (await other.wrap(bytes(32), CONTEXT)).key_version == 1
        assert (await other.wrap(bytes(32), CONTEXT, version=2)).key_version == 2
        assert other.current_version == 2  # it has seen that


async def test_a_destroyed_version_opens_nothing(make_token: MakeToken) -> None:
    """Under the security officer's PIN a version goes for good; the others go on working."""
    token = make_token(with_key=True)
    async with opened(token.uri) as backend:
        assert isinstance(backend, VersionDestroyer)
        old = await backend.wrap(os.urandom(32), CONTEXT)
        await backend.create_version()
        new = await backend.wrap(bytes(32), CONTEXT)
        await backend.destroy_version(1, admin_pin_source=f"file:{token.so_pin_file}")
        with pytest.raises(KeyMissing):
            await backend.unwrap(old, CONTEXT)
        assert await backend.unwrap(new, CONTEXT) == bytes(32)
        assert [one.version for one in await backend.versions()] == [2]
    async with opened(token.uri) as again:
        with pytest.raises(KeyMissing):
            await again.unwrap(old, CONTEXT)


async def test_destroying_takes_the_officers_pin(make_token: MakeToken, tmp_path: Path) -> None:
    """The service's own PIN, under whatever name, a wrong one and none at all destroy nothing."""
    token = make_token(with_key=True)
    copy, wrong = tmp_path / "copy", tmp_path / "wrong"
    copy.write_bytes(token.pin_file.read_bytes())
    wrong.write_text("0000\n")
    for path in (copy, wrong):
        path.chmod(0o600)
    async with opened(token.uri) as backend:
        old = await backend.wrap(bytes(32), CONTEXT)
        await backend.create_version()
        for source, error in (
            (f"file:{token.pin_file}", ConfigurationError),
            (f"file:{copy}", PinRefused),
            (f"file:{wrong}", PinRefused),
            (f"file:{tmp_path / 'missing'}", ConfigurationError),
            ("", ConfigurationError),
        ):
            with pytest.raises(error):
                await backend.destroy_version(1, admin_pin_source=source)
            assert await backend.unwrap(old, CONTEXT) == bytes(32)


async def test_the_newest_version_is_not_destroyed(make_token: MakeToken) -> None:
    """Neither the newest version nor one that is not there is destroyed."""
    token = make_token(with_key=True)
    officer = f"file:{token.so_pin_file}"
    async with opened(token.uri) as backend:
        with pytest.raises(ConfigurationError, match="newest"):
            await backend.destroy_version(1, admin_pin_source=officer)
        with pytest.raises(KeyMissing):
            await backend.destroy_version(7, admin_pin_source=officer)
        await backend.check()


async def test_a_token_in_use_by_the_same_process_is_not_opened(make_token: MakeToken) -> None:
    """While something else of the process uses the token, its officer is not let in, and nothing
    is destroyed.
    """
    token = make_token(with_key=True)
    async with opened(token.uri) as backend, opened(token.uri_for("other"), allow_missing=True):
        await backend.create_version()
        with pytest.raises(HsmError):
            await backend.destroy_version(1, admin_pin_source=f"file:{token.so_pin_file}")
        assert [one.version for one in await backend.versions()] == [1, 2]


async def test_a_token_without_an_officer_destroys_nothing(
    nss_uri: NewNssUri, tmp_path: Path
) -> None:
    """NSS has no security officer once it has a PIN: nothing is destroyed there by us."""
    officer = tmp_path / "officer"
    officer.write_text("anything\n")
    officer.chmod(0o600)
    async with opened(nss_uri(), allow_missing=True) as backend:
        await backend.create_version()
        old = await backend.wrap(bytes(32), CONTEXT)
        await backend.create_version()
        with pytest.raises(HsmError):
            await backend.destroy_version(1, admin_pin_source=f"file:{officer}")
        assert await backend.unwrap(old, CONTEXT) == bytes(32)
