"""The contract of KeyWrapper and KeyCreator: every backend in fixtures/backends.py passes it."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from fixtures.backends import BACKENDS, Backend
from ironwork_hsm import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    HsmError,
    KeyCreator,
    KeyMissing,
    KeyWrapper,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.pkcs11.ladder import RUNGS

CONTEXT = b"workspace\x00key-7"
# A deadline that no passing test reaches, and one that no device can meet.
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)
IMPATIENT = BackendOptions(deadline_s=1e-6, slow_deadline_s=60)


@pytest.fixture(params=BACKENDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
async def backend(request: pytest.FixtureRequest, kind: Backend) -> AsyncIterator[KeyWrapper]:
    async with kind.open(request, PATIENT) as opened:
        yield opened


def flipped(data: bytes, *, every: bool = True) -> Iterator[bytes]:
    """data with one bit changed: every bit in turn, or one in each byte."""
    for bit in range(len(data) * 8):
        if every or bit % 8 == bit // 8 % 8:
            altered = bytearray(data)
            altered[bit // 8] ^= 1 << bit % 8
            yield bytes(altered)


async def test_round_trip(backend: KeyWrapper) -> None:
    """What was wrapped unwraps to the same 32 bytes, in a buffer that the caller can wipe."""
    data_key = os.urandom(32)
    wrapped = await backend.wrap(data_key, CONTEXT)
    opened = await backend.unwrap(wrapped, CONTEXT)
    assert opened == data_key
    assert isinstance(opened, bytearray)


async def test_wrap_takes_a_bytearray_and_leaves_it_alone(backend: KeyWrapper) -> None:
    """A data key may come in a bytearray, which its owner wipes, not the backend."""
    data_key = bytearray(os.urandom(32))
    before = bytes(data_key)
    wrapped = await backend.wrap(data_key, CONTEXT)
    assert data_key == before
    assert await backend.unwrap(wrapped, CONTEXT) == before


async def test_wrapped_key_says_what_made_it(backend: KeyWrapper, kind: Backend) -> None:
    """A wrapped key names the backend, the current version and the mechanism."""
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    assert wrapped.backend == backend.name
    assert wrapped.key_version == backend.current_version == kind.versions[-1]
    assert wrapped.mechanism == backend.mechanism


async def test_the_mechanism_is_the_one_that_the_device_offers(
    backend: KeyWrapper, kind: Backend
) -> None:
    """Where a backend has several mechanisms, it found the best that its device offers."""
    if kind.mechanism:
        assert backend.mechanism == kind.mechanism


async def test_name_holds_no_query(backend: KeyWrapper) -> None:
    """A backend's name is its URI's path: nothing of how it is reached."""
    assert "?" not in backend.name
    assert "pin" not in backend.name


async def test_two_wraps_of_one_key_differ(backend: KeyWrapper) -> None:
    """Wrapping is randomised: equal data keys cannot be told from their blobs."""
    data_key = os.urandom(32)
    first, second = [await backend.wrap(data_key, CONTEXT) for _ in range(2)]
    assert first.blob != second.blob


async def test_blob_hides_the_data_key(backend: KeyWrapper) -> None:
    """The data key is not in its blob, and a blob is not in a repr."""
    data_key = os.urandom(32)
    wrapped = await backend.wrap(data_key, CONTEXT)
    assert data_key not in wrapped.blob
    assert "blob" not in repr(wrapped)


async def test_only_whole_data_keys_are_wrapped(backend: KeyWrapper) -> None:
    """A data key has 32 bytes; any other length is refused."""
    for size in (0, 16, 31, 33, 64):
        with pytest.raises(ValueError, match="32 bytes"):
            await backend.wrap(bytes(size), CONTEXT)


async def test_any_context_binds(backend: KeyWrapper) -> None:
    """Empty, zero and long contexts bind like any other."""
    for context in (b"", b"\x00", b"x" * 4096):
        wrapped = await backend.wrap(bytes(32), context)
        assert await backend.unwrap(wrapped, context) == bytes(32)
        with pytest.raises(BlobRejected):
            await backend.unwrap(wrapped, context + b"\x00")


async def test_every_flipped_bit_of_the_blob_is_rejected(
    backend: KeyWrapper, kind: Backend
) -> None:
    """No bit of a blob can change without notice. AWS denies a ciphertext that was altered to name
    another key, which is told as the denial that it may as well be.
    """
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    denied = (ConfigurationError,) if wrapped.mechanism == "aws-kms" else ()
    for altered in flipped(wrapped.blob, every=kind.exhaustive):
        with pytest.raises((BlobRejected, *denied)):
            await backend.unwrap(dataclasses.replace(wrapped, blob=altered), CONTEXT)


async def test_every_flipped_bit_of_the_context_is_rejected(
    backend: KeyWrapper, kind: Backend
) -> None:
    """A blob opens in its own context only."""
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    for altered in flipped(CONTEXT, every=kind.exhaustive):
        with pytest.raises(BlobRejected):
            await backend.unwrap(wrapped, altered)


async def test_a_changed_label_is_rejected(backend: KeyWrapper) -> None:
    """Name, version and mechanism are bound into the blob: none can be rewritten, also not to
    another mechanism that exists.
    """
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    changes: list[dict[str, object]] = [
        {"backend": "pkcs11:token=another;object=master"},
        {"backend": ""},
        {"key_version": 0},
        {"key_version": -1},
        {"key_version": 2**32},
        {"mechanism": "aes-256-cbc"},
        {"mechanism": ""},
        {"blob": b""},
        {"blob": b"\x01"},
    ]
    changes += [{"mechanism": name} for name in RUNGS if name != wrapped.mechanism]
    for change in changes:
        with pytest.raises(BlobRejected):
            await backend.unwrap(dataclasses.replace(wrapped, **change), CONTEXT)


async def test_another_version_does_not_open(backend: KeyWrapper, kind: Backend) -> None:
    """A blob opens with the version that made it and no other."""
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    for version in kind.versions[:-1]:
        with pytest.raises(BlobRejected):
            await backend.unwrap(dataclasses.replace(wrapped, key_version=version), CONTEXT)


async def test_truncated_and_extended_blobs_are_rejected(backend: KeyWrapper) -> None:
    """A blob has one length."""
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    for blob in (wrapped.blob[:-1], wrapped.blob + b"\x00", wrapped.blob * 2):
        with pytest.raises(BlobRejected):
            await backend.unwrap(dataclasses.replace(wrapped, blob=blob), CONTEXT)


async def test_halves_of_two_blobs_do_not_join(backend: KeyWrapper, kind: Backend) -> None:
    """No cut of two blobs, at any byte, opens."""
    first, second = [await backend.wrap(os.urandom(32), CONTEXT) for _ in range(2)]
    for cut in range(1, len(first.blob), 1 if kind.exhaustive else 8):
        mixed = first.blob[:cut] + second.blob[cut:]
        if mixed in (first.blob, second.blob):
            continue  # what stands before or after the cut is the same in both
        with pytest.raises(BlobRejected):
            await backend.unwrap(dataclasses.replace(first, blob=mixed), CONTEXT)


async def test_unknown_version_is_missing(backend: KeyWrapper) -> None:
    """A version that the device does not hold is KeyMissing, not a rejected blob."""
    wrapped = await backend.wrap(os.urandom(32), CONTEXT)
    with pytest.raises(KeyMissing):
        await backend.unwrap(dataclasses.replace(wrapped, key_version=9), CONTEXT)


async def test_a_rejected_blob_does_no_harm(backend: KeyWrapper) -> None:
    """After any number of rejected blobs, good ones open still."""
    wrapped = await backend.wrap(bytes(32), CONTEXT)
    for _ in range(20):
        with pytest.raises(BlobRejected):
            await backend.unwrap(wrapped, b"wrong")
    assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
    await backend.check()


async def test_versions_oldest_first(backend: KeyWrapper, kind: Backend) -> None:
    """All versions are listed, oldest first, as secrets that never leave the device."""
    versions = await backend.versions()
    assert [version.version for version in versions] == list(kind.versions)
    for version in versions:
        assert version.sensitive
        assert not version.extractable
        assert version.never_extractable
        assert version.local == kind.vouches


async def test_each_version_wraps_when_it_is_asked_for(backend: KeyWrapper, kind: Backend) -> None:
    """The version that a call names wraps, and nothing of it is kept for other calls: without one
    it is the newest. Each says before by what it wraps, and does a round trip.
    """
    listed = {one.version: one.mechanism for one in await backend.versions()}
    for version in kind.versions:
        await backend.check(version)
        wrapped = await backend.wrap(bytes(32), CONTEXT, version=version)
        assert (wrapped.backend, wrapped.key_version) == (backend.name, version)
        assert wrapped.mechanism == await backend.mechanism_of(version) == listed[version]
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
        newest = await backend.wrap(bytes(32), CONTEXT)
        assert newest.key_version == backend.current_version == kind.versions[-1]


async def test_versions_that_are_asked_for_at_once_do_not_mix(
    backend: KeyWrapper, kind: Backend
) -> None:
    """Callers who name different versions at the same time each get their own."""

    async def one(number: int) -> None:
        version = kind.versions[number % len(kind.versions)]
        wrapped = await backend.wrap(bytes(32), CONTEXT, version=version)
        assert wrapped.key_version == version

    await asyncio.gather(*(one(number) for number in range(50)))


@pytest.mark.parametrize("version", [0, -1, 9, 2**32 - 1, 2**32, 2**40])
async def test_a_version_that_is_not_there_wraps_nothing(backend: KeyWrapper, version: int) -> None:
    """A version that the device does not hold, or that cannot be, is KeyMissing, and the others go
    on wrapping.
    """
    with pytest.raises(KeyMissing):
        await backend.wrap(bytes(32), CONTEXT, version=version)
    with pytest.raises(KeyMissing):
        await backend.check(version)
    assert (await backend.wrap(bytes(32), CONTEXT)).key_version == backend.current_version


async def test_a_backend_that_creates_keys_says_so(backend: KeyWrapper, kind: Backend) -> None:
    """Whether a backend creates keys can be told by isinstance."""
    assert isinstance(backend, KeyCreator) == kind.creates


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if kind.creates], ids=str)
async def test_a_created_version_is_current_at_once(
    request: pytest.FixtureRequest, kind: Backend
) -> None:
    """Wrap uses a new version as soon as it is created; older blobs open still."""
    async with kind.open(request, PATIENT) as backend:
        assert isinstance(backend, KeyCreator)
        old = await backend.wrap(bytes(32), CONTEXT)
        created = await backend.create_version()
        assert created.version == backend.current_version == kind.versions[-1] + 1
        new = await backend.wrap(bytes(32), CONTEXT)
        assert new.key_version == created.version
        assert await backend.unwrap(old, CONTEXT) == await backend.unwrap(new, CONTEXT) == bytes(32)


async def test_a_deadline_that_passes_is_unavailable(
    request: pytest.FixtureRequest, kind: Backend
) -> None:
    """A call that the device does not answer in its time is Unavailable, without foreign text, and
    others come after it. (A device may answer before any timer is looked at.)
    """
    late: list[Unavailable] = []
    async with kind.open(request, IMPATIENT) as backend:
        for _ in range(100):
            # Where no trial has found its mechanism yet, a device that is quick may refuse one.
            with suppress(ConfigurationError):
                try:
                    await backend.wrap(bytes(32), CONTEXT)
                except Unavailable as error:
                    late.append(error)
            if len(late) == 3:
                break
    assert [error.__cause__ for error in late] == [None] * 3


async def test_concurrent_calls_get_their_own_answers(backend: KeyWrapper) -> None:
    """Many calls at once never mix up their results."""

    async def one(number: int) -> None:
        data_key = number.to_bytes(32, "big")
        context = f"context {number}".encode()
        wrapped: WrappedKey = await backend.wrap(data_key, context)
        assert await backend.unwrap(wrapped, context) == data_key
        with pytest.raises(BlobRejected):
            await backend.unwrap(wrapped, b"another")

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_check_is_silent_on_a_sound_backend(backend: KeyWrapper) -> None:
    """check() returns where the device answers."""
    await backend.check()


async def test_a_closed_backend_refuses(backend: KeyWrapper) -> None:
    """After close every call is Unavailable; closing again is harmless."""
    wrapped = await backend.wrap(bytes(32), CONTEXT)
    await backend.close()
    await backend.close()
    with pytest.raises(Unavailable):
        await backend.wrap(bytes(32), CONTEXT)
    with pytest.raises(Unavailable):
        await backend.unwrap(wrapped, CONTEXT)
    with pytest.raises(Unavailable):
        await backend.check()


async def test_errors_carry_no_foreign_text(backend: KeyWrapper) -> None:
    """An error leads to no other exception, whose text or frames could hold a secret."""
    wrapped = await backend.wrap(bytes(32), CONTEXT)
    with pytest.raises(HsmError) as caught:
        await backend.unwrap(wrapped, b"wrong")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
