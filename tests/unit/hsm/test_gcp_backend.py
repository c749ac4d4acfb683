"""The Google Cloud KMS backend beyond the contract: checksums, faults, versions, and addresses."""

import asyncio
import base64
import logging
from typing import Any

import google_crc32c
import grpc
import pytest

from fixtures.gcp import KEY, Fault, GcpKms, State, serving
from ironwork_hsm import (
    BackendOptions,
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    Unavailable,
    VersionDestroyer,
)
from ironwork_hsm.gcp import backend as backend_module
from ironwork_hsm.gcp import caller as caller_module

CONTEXT = b"workspaces/acme key 7"
HASTY = BackendOptions(deadline_s=1.0, slow_deadline_s=60)
CODE = grpc.StatusCode


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(caller_module, "_PAUSE_S", 0)
    monkeypatch.setattr(backend_module, "_LOOK_S", 0)


def told(error: HsmError) -> bool:
    """Whether foreign text got into our error."""
    return "told" in str(error) or error.__context__ is not None or error.__cause__ is not None


@pytest.mark.parametrize(
    ("code", "ours", "attempts"),
    [
        (CODE.PERMISSION_DENIED, ConfigurationError, 1),
        (CODE.UNAUTHENTICATED, ConfigurationError, 1),
        (CODE.INVALID_ARGUMENT, ConfigurationError, 1),
        (CODE.NOT_FOUND, KeyMissing, 1),
        (CODE.FAILED_PRECONDITION, Unavailable, 1),
        (CODE.UNKNOWN, Unavailable, 1),
        (CODE.UNAVAILABLE, Unavailable, 3),
        (CODE.INTERNAL, Unavailable, 3),
        (CODE.ABORTED, Unavailable, 3),
        (CODE.DEADLINE_EXCEEDED, Unavailable, 3),
        (CODE.RESOURCE_EXHAUSTED, Busy, 3),
    ],
    ids=str,
)
async def test_errors_by_code(
    gcp_kms: GcpKms, code: grpc.StatusCode, ours: type[HsmError], attempts: int
) -> None:
    """gRPC's code decides which of our errors it is, and whether the request is repeated, at most
    twice; no text of Google's gets out.
    """
    async with gcp_kms.opened() as backend:
        gcp_kms.requests.clear()
        gcp_kms.next.extend([Fault(code=code)] * attempts)
        with pytest.raises(ours) as caught:
            await backend.wrap(bytes(32), CONTEXT)
        assert not told(caught.value)
        assert gcp_kms.methods() == ["Encrypt"] * attempts
        await backend.check()


async def test_a_passing_fault_is_mended_by_a_repeat(gcp_kms: GcpKms) -> None:
    """One UNAVAILABLE costs a repeat, and the right answer comes."""
    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        gcp_kms.next.append(Fault(code=CODE.UNAVAILABLE))
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32


def _set(name: str, value: Any) -> Any:
    return lambda message: setattr(message, name, value)


ENCRYPT_ANSWERS = {
    "ciphertext": _set("ciphertext", b"\x01" + bytes(60)),
    "ciphertext_crc32c": _set("ciphertext_crc32c", 7),
    "no ciphertext_crc32c": _set("ciphertext_crc32c", None),
    "verified_plaintext_crc32c": _set("verified_plaintext_crc32c", False),
    "verified_associated": _set("verified_additional_authenticated_data_crc32c", False),
}


@pytest.mark.parametrize("change", ENCRYPT_ANSWERS.values(), ids=ENCRYPT_ANSWERS)
async def test_a_checksum_that_does_not_fit_a_ciphertext(gcp_kms: GcpKms, change: Any) -> None:
    """An answer whose checksum is wrong, missing, or not confirmed is asked for again; three times
    wrong is Unavailable, and no blob comes of it.
    """
    async with gcp_kms.opened() as backend:
        gcp_kms.next.append(Fault(change=change))
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32
        gcp_kms.requests.clear()
        gcp_kms.next.extend([Fault(change=change)] * 3)
        with pytest.raises(Unavailable, match="altered on its way"):
            await backend.wrap(b"k" * 32, CONTEXT)
        assert gcp_kms.methods() == ["Encrypt"] * 3


DECRYPT_ANSWERS = {
    "plaintext": _set("plaintext", b"q" * 32),
    "plaintext_crc32c": _set("plaintext_crc32c", 7),
    "no plaintext_crc32c": _set("plaintext_crc32c", None),
}


@pytest.mark.parametrize("change", DECRYPT_ANSWERS.values(), ids=DECRYPT_ANSWERS)
async def test_a_checksum_that_does_not_fit_a_plaintext(gcp_kms: GcpKms, change: Any) -> None:
    """A plaintext whose checksum is wrong or missing is never handed on."""
    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        gcp_kms.next.append(Fault(change=change))
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32
        gcp_kms.next.extend([Fault(change=change)] * 3)
        with pytest.raises(Unavailable, match="altered on its way"):
            await backend.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize("field", ["ciphertext", "additional_authenticated_data"])
async def test_a_request_altered_on_its_way_rejects_no_blob(gcp_kms: GcpKms, field: str) -> None:
    """Google refuses a request that was altered with the code of a wrong blob; the blob counts as
    wrong only when it was refused twice.
    """
    alter = Fault(alter=_set(field, b"\x01" + bytes(60)))
    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        gcp_kms.next.append(alter)
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32
        gcp_kms.requests.clear()
        gcp_kms.next.extend([alter, alter])
        with pytest.raises(BlobRejected) as caught:
            await backend.unwrap(wrapped, CONTEXT)
        assert not told(caught.value)
        assert gcp_kms.methods() == ["Decrypt"] * 2


async def test_what_kms_sees(gcp_kms: GcpKms, caplog: pytest.LogCaptureFixture) -> None:
    """Every field goes with its checksum, under the version that the blob will name; logs get none
    of it.
    """
    caplog.set_level(logging.DEBUG)
    library = logging.getLogger("google.cloud.kms_v1")
    library.setLevel(logging.NOTSET)
    async with gcp_kms.opened() as backend:
        gcp_kms.requests.clear()
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        await backend.unwrap(wrapped, CONTEXT)
    assert not library.isEnabledFor(logging.DEBUG)
    assert base64.b64encode(b"k" * 32).decode() not in caplog.text
    (_, encrypt), (_, decrypt) = gcp_kms.requests
    assert encrypt.name == f"{KEY}/cryptoKeyVersions/1"
    assert decrypt.name == KEY
    assert encrypt.additional_authenticated_data == decrypt.additional_authenticated_data
    assert CONTEXT in encrypt.additional_authenticated_data
    for message, names in (
        (encrypt, ("plaintext_crc32c", "additional_authenticated_data_crc32c")),
        (decrypt, ("ciphertext_crc32c", "additional_authenticated_data_crc32c")),
    ):
        for name in names:
            assert getattr(message, name) is not None, name


@pytest.mark.parametrize(
    "fault",
    [
        Fault(change=_set("name", f"{KEY}/cryptoKeyVersions/2")),
        Fault(change=_set("name", "")),
    ],
    ids=["another version", "no name"],
)
async def test_an_answer_for_another_version(gcp_kms: GcpKms, fault: Fault) -> None:
    """A ciphertext of another version than was asked for is never stored."""
    async with gcp_kms.opened() as backend:
        gcp_kms.next.append(fault)
        with pytest.raises(Unavailable, match="another key"):
            await backend.wrap(bytes(32), CONTEXT)


async def test_a_hanging_kms_costs_a_deadline_and_no_more(gcp_kms: GcpKms) -> None:
    """A call that hangs is repeated within its deadline; two that hang are Unavailable at it."""
    async with gcp_kms.opened(HASTY) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        gcp_kms.next.append(Fault(hang=True))
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
        gcp_kms.next.extend([Fault(hang=True)] * 3)
        with pytest.raises(Unavailable):
            await backend.unwrap(wrapped, CONTEXT)
        gcp_kms.next.clear()
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)


async def test_closing_ends_calls_on_their_way(gcp_kms: GcpKms) -> None:
    """A call that is on its way when the backend closes is Unavailable, not cancelled."""
    async with gcp_kms.opened() as backend:
        gcp_kms.requests.clear()
        gcp_kms.next.append(Fault(hang=True))
        call = asyncio.create_task(backend.wrap(bytes(32), CONTEXT))
        async with asyncio.timeout(20):
            while not gcp_kms.requests:  # noqa: ASYNC110  the server is in this very loop
                await asyncio.sleep(0)
        await backend.close()
        with pytest.raises(Unavailable, match="closed"):
            await call


async def test_a_cancelled_call_stays_cancelled(gcp_kms: GcpKms) -> None:
    """A caller's own cancellation is not turned into an error, and frees its place."""
    options = BackendOptions(lanes=1, queue=1, deadline_s=20, slow_deadline_s=60)
    async with gcp_kms.opened(options) as backend:
        for _ in range(3):
            gcp_kms.requests.clear()
            gcp_kms.next.append(Fault(hang=True))
            call = asyncio.create_task(backend.wrap(bytes(32), CONTEXT))
            async with asyncio.timeout(20):
                while not gcp_kms.requests:  # noqa: ASYNC110  likewise
                    await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await backend.check()


async def test_calls_have_a_bound(gcp_kms: GcpKms) -> None:
    """One call more than lanes and queue hold is refused as busy at once."""
    options = BackendOptions(lanes=1, queue=2, deadline_s=1.0, slow_deadline_s=60)
    async with gcp_kms.opened(options) as backend:
        gcp_kms.next.extend([Fault(hang=True)] * 9)
        calls = [asyncio.create_task(backend.wrap(bytes(32), CONTEXT)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="busy"):
            await backend.wrap(bytes(32), CONTEXT)
        assert all(
            isinstance(error, Unavailable)
            for error in await asyncio.gather(*calls, return_exceptions=True)
        )


async def test_a_missing_key() -> None:
    """A key that is not there is KeyMissing; with allow_missing, as soon as it is needed."""
    async with serving() as kms:
        kms.exists = False
        with pytest.raises(KeyMissing):
            async with kms.opened():
                pass
        async with kms.opened(allow_missing=True) as backend:
            with pytest.raises(KeyMissing, match="keys create"):
                await backend.wrap(bytes(32), b"")
            for call in (backend.check(), backend.versions(), backend.create_version()):
                with pytest.raises(KeyMissing):
                    await call


async def test_a_disabled_version_gives_way_to_the_primary(gcp_kms: GcpKms) -> None:
    """A version that was disabled opens and wraps nothing; after the next check the version that
    Google calls primary wraps, also an older one.
    """
    gcp_kms.add_version()
    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        assert wrapped.key_version == 2
        gcp_kms.versions[2].state = State.DISABLED
        gcp_kms.primary = 1
        await backend.check()
        assert backend.current_version == 2
        with pytest.raises(Unavailable, match="disabled or destroyed"):
            await backend.wrap(bytes(32), CONTEXT)
        with pytest.raises(Unavailable, match="disabled or destroyed"):
            await backend.unwrap(wrapped, CONTEXT)
        await backend.check()
        assert (await backend.wrap(bytes(32), CONTEXT)).key_version == 1


async def test_googles_own_rotation_is_noticed(gcp_kms: GcpKms) -> None:
    """A version that Google made primary is current from the next check or list on; what the older
    wrapped opens still.
    """
    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        gcp_kms.add_version()
        await backend.check()
        assert backend.current_version == 2
        gcp_kms.add_version()
        await backend.versions()
        assert backend.current_version == 3
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)


async def test_an_older_primary_is_not_taken_back(gcp_kms: GcpKms) -> None:
    """After a rotation Google may tell the older primary version for hours; the newer stays."""
    async with gcp_kms.opened() as backend:
        await backend.create_version()
        gcp_kms.primary = 1
        await backend.check()
        assert backend.current_version == 2


async def test_versions_as_google_reports_them(gcp_kms: GcpKms) -> None:
    """Destroyed versions are left out, imported ones are not called local, over several pages."""
    gcp_kms.add_version(import_job="projects/p/…/importJobs/1")
    gcp_kms.add_version(state=State.DISABLED)
    gcp_kms.add_version(state=State.DESTROY_SCHEDULED)
    gcp_kms.add_version(state=State.DESTROYED)
    gcp_kms.add_version()
    async with gcp_kms.opened() as backend:
        versions = await backend.versions()
    assert [version.version for version in versions] == [1, 2, 3, 6]
    assert [version.local for version in versions] == [True, False, True, True]
    assert {version.label for version in versions} == {"master"}


async def test_a_new_version_may_take_its_time(gcp_kms: GcpKms) -> None:
    """A version that is being generated in an HSM becomes current once it is enabled."""
    gcp_kms.generation = 3
    async with gcp_kms.opened() as backend:
        gcp_kms.requests.clear()
        assert (await backend.create_version()).version == 2
        assert gcp_kms.methods() == [
            "CreateCryptoKeyVersion",
            *["GetCryptoKeyVersion"] * 3,
            "UpdateCryptoKeyPrimaryVersion",
        ]
        assert gcp_kms.primary == backend.current_version == 2


async def test_a_creation_is_never_repeated(gcp_kms: GcpKms) -> None:
    """A creation whose answer was lost is an error: a repeat would make a version too many."""
    async with gcp_kms.opened() as backend:
        gcp_kms.requests.clear()
        gcp_kms.next.append(Fault(code=CODE.UNAVAILABLE))
        with pytest.raises(Unavailable):
            await backend.create_version()
        assert gcp_kms.methods() == ["CreateCryptoKeyVersion"]
        assert backend.current_version == 1


async def test_a_destroyed_version_opens_nothing(gcp_kms: GcpKms) -> None:
    """An older version can be destroyed: it opens nothing and is listed no more."""
    async with gcp_kms.opened() as backend:
        assert isinstance(backend, VersionDestroyer)
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        await backend.create_version()
        await backend.destroy_version(1, admin_pin_source="")
        with pytest.raises(Unavailable, match="disabled or destroyed"):
            await backend.unwrap(wrapped, CONTEXT)
        assert [version.version for version in await backend.versions()] == [2]


async def test_what_is_not_destroyed(gcp_kms: GcpKms) -> None:
    """The current version is kept, a PIN has no place here, and a version that is not there is
    KeyMissing.
    """
    async with gcp_kms.opened() as backend:
        with pytest.raises(ConfigurationError, match="rotate first"):
            await backend.destroy_version(1, admin_pin_source="")
        with pytest.raises(ConfigurationError, match="no PIN"):
            await backend.destroy_version(2, admin_pin_source="file:/pin")
        for version in (0, 2, 2**32):
            with pytest.raises(KeyMissing):
                await backend.destroy_version(version, admin_pin_source="")
        await backend.check()


async def test_a_plaintext_of_another_length_is_no_data_key(gcp_kms: GcpKms) -> None:
    """What is not 32 bytes long is never handed on, whole as it may have come."""

    def shorten(answer: Any) -> None:
        answer.plaintext = bytes(31)
        answer.plaintext_crc32c = google_crc32c.value(bytes(31))

    async with gcp_kms.opened() as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        gcp_kms.next.append(Fault(change=shorten))
        with pytest.raises(Unavailable, match="another key"):
            await backend.unwrap(wrapped, CONTEXT)


async def test_a_generation_that_fails(gcp_kms: GcpKms) -> None:
    """A version that Google could not generate never becomes current."""
    gcp_kms.generation = 9
    async with gcp_kms.opened() as backend:
        gcp_kms.next.extend([Fault(), Fault(change=_set("state", State.GENERATION_FAILED))])
        with pytest.raises(Unavailable, match="did not generate"):
            await backend.create_version()
        assert backend.current_version == gcp_kms.primary == 1


async def test_versions_have_a_bound_and_are_this_keys(
    gcp_kms: GcpKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list without end, or with another key's version, is refused."""

    def another(answer: Any) -> None:
        answer.crypto_key_versions[0].name = f"{KEY}2/cryptoKeyVersions/1"

    async with gcp_kms.opened() as backend:
        gcp_kms.next.extend([Fault(), Fault(change=another)])
        with pytest.raises(Unavailable, match="another key"):
            await backend.versions()
        monkeypatch.setattr(backend_module, "MAX_VERSIONS", 0)
        with pytest.raises(Unavailable, match="over 0 versions"):
            await backend.versions()


async def test_check_finds_a_kms_that_errs(gcp_kms: GcpKms) -> None:
    """A KMS that does not give back what it encrypted does not pass the check, nor the start."""

    def lie(answer: Any) -> None:
        answer.plaintext = b"q" * 32
        answer.plaintext_crc32c = google_crc32c.value(b"q" * 32)

    async with gcp_kms.opened() as backend:
        gcp_kms.next.extend([Fault(), Fault(change=lie)])
        with pytest.raises(Unavailable, match="does not decrypt what it has just encrypted"):
            await backend.check()
    gcp_kms.next.extend([Fault(), Fault(change=lie)])
    with pytest.raises(Unavailable):
        async with gcp_kms.opened():
            pass


async def test_a_context_has_a_bound(gcp_kms: GcpKms) -> None:
    """A context that KMS would not take is refused before it is asked."""
    async with gcp_kms.opened() as backend:
        with pytest.raises(ValueError, match="at most 5000 bytes"):
            await backend.wrap(bytes(32), bytes(5001))
