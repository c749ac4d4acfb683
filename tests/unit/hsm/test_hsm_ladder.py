"""How a mechanism is chosen: by trials that the caller counts, on modules that refuse them."""

import dataclasses

import pytest

from fixtures.models import MakeModel, through
from fixtures.nss import NewNssUri
from fixtures.softhsm import SharedToken, opened
from ironwork_hsm import (
    BlobRejected,
    ConfigurationError,
    KeyWrapper,
    MechanismRefused,
    Unavailable,
    open_backend,
    settle,
)
from ironwork_hsm.pkcs11 import Pkcs11KeyWrapper, rung
from ironwork_hsm.pkcs11.keys import KeyKind
from ironwork_hsm.pkcs11.ladder import RUNGS, Ladder
from ironwork_hsm.pkcs11.rung import Trial

CONTEXT = b"context"
GCM, DEVICE_IV, APPENDED_IV, HMAC, CBC = RUNGS.values()


async def trials(backend: KeyWrapper) -> list[str]:
    """What check tries until one works."""
    tried = []
    for _ in RUNGS:
        tried.append(backend.mechanism)
        try:
            await backend.check()
        except MechanismRefused:
            continue
        break
    return tried


async def works(backend: Pkcs11KeyWrapper) -> None:
    wrapped = await backend.wrap(b"k" * 32, CONTEXT)
    assert wrapped.mechanism == backend.mechanism
    assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32


# --- the choice --------------------------------------------------------------------------------


def test_best_first() -> None:
    """The device's own GCM comes before what it can be made of, and derivation before CBC."""
    assert list(RUNGS) == [
        "aes-256-gcm",
        "aes-256-gcm-device-iv",
        "aes-256-gcm-appended-iv",
        "hmac-sha256-derive",
        "aes-256-cbc-seed",
    ]


def test_a_refused_mechanism_gives_way_to_the_next() -> None:
    """Each refusal is told, and leads to the next mechanism of the same kind of key."""
    ladder = Ladder(None)
    for refused, following in ((GCM, DEVICE_IV), (DEVICE_IV, APPENDED_IV), (APPENDED_IV, CBC)):
        with pytest.raises(MechanismRefused, match=f"{following.mechanism} is tried next"):
            ladder.settle(refused, Trial.REFUSED)
        assert ladder.rung(KeyKind.AES) is following
    with pytest.raises(ConfigurationError, match="aes-256-cbc-seed"):
        ladder.settle(CBC, Trial.REFUSED)
    assert ladder.rung(KeyKind.HMAC) is HMAC


def test_a_fault_never_leads_to_a_weaker_mechanism() -> None:
    """A device that fails is tried again by the same mechanism."""
    ladder = Ladder(None)
    ladder.settle(GCM, Trial.FAILS)
    assert ladder.rung(KeyKind.AES) is GCM


def test_what_has_worked_once_stays() -> None:
    """After a success a refusal is an error, and not a reason to fall back."""
    ladder = Ladder(None)
    ladder.settle(GCM, Trial.WORKS)
    with pytest.raises(ConfigurationError):
        ladder.settle(GCM, Trial.REFUSED)
    assert ladder.rung(KeyKind.AES) is GCM


def test_two_trials_at_once_go_down_one_rung() -> None:
    """A refusal that comes late, of a rung that was given up already, changes nothing more."""
    ladder = Ladder(None)
    for _ in range(2):
        with pytest.raises(MechanismRefused):
            ladder.settle(GCM, Trial.REFUSED)
    assert ladder.rung(KeyKind.AES) is DEVICE_IV


def test_a_pinned_mechanism_has_no_alternative() -> None:
    """Pinned is pinned: a refusal is an error, and keys of another kind do not wrap."""
    ladder = Ladder("hmac-sha256-derive")
    with pytest.raises(ConfigurationError, match="create a new version"):
        ladder.rung(KeyKind.AES)
    assert ladder.canary(GCM) is GCM
    with pytest.raises(ConfigurationError):
        ladder.settle(HMAC, Trial.REFUSED)
    assert ladder.rung(KeyKind.HMAC) is HMAC


def test_an_unknown_pin_is_refused_without_being_quoted() -> None:
    """What is pinned must be a mechanism; the error names those there are."""
    with pytest.raises(ConfigurationError, match="aes-256-gcm-device-iv") as caught:
        Ladder("secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pinned", "gcm", "hmac", "kind"),
    [
        (None, True, True, KeyKind.AES),
        (None, False, True, KeyKind.HMAC),
        (None, False, False, KeyKind.AES),
        ("aes-256-cbc-seed", True, True, KeyKind.AES),
        ("hmac-sha256-derive", True, True, KeyKind.HMAC),
    ],
)
def test_the_kind_of_a_new_key(pinned: str | None, gcm: bool, hmac: bool, kind: KeyKind) -> None:
    """A new key is of the kind that the pinned, or the best listed mechanism needs."""
    assert Ladder(pinned).new_kind(gcm=gcm, hmac=hmac) is kind


async def test_settling_ends() -> None:
    """A wrapper that refuses for ever does not hold up a start."""

    class Refusing:
        name = "refusing"

        async def check(self) -> None:
            raise MechanismRefused("no")

    with pytest.raises(ConfigurationError, match="refusing"):
        await settle(Refusing())  # type: ignore[arg-type]


# --- on real modules ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "tried"),
    [
        (["DEVICE_IV"], [GCM, DEVICE_IV]),
        (["APPENDED_IV"], [GCM, DEVICE_IV, APPENDED_IV]),
        (["NO_GCM"], [HMAC]),
        (["NO_GCM", "NO_HMAC"], [GCM, DEVICE_IV, APPENDED_IV, CBC]),
        (["NO_GCM", "LISTS_GCM"], [GCM, DEVICE_IV, APPENDED_IV, CBC]),
        # A device that leaves zeros as they are is passed over, though it makes a round trip.
        (["KEEPS_ZERO_IV"], [GCM, DEVICE_IV, APPENDED_IV, CBC]),
    ],
    ids=str,
)
async def test_each_mechanism_is_reached(
    make_model: MakeModel,
    shared_token: SharedToken,
    rules: list[str],
    tried: list[rung.Rung],
) -> None:
    """On a device that refuses what is better, one trial after the other leads to what works."""
    uri = through(shared_token("-".join(rules)), make_model(*rules))
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        assert await trials(backend) == [rung.mechanism for rung in tried]
        await works(backend)
        await backend.check()
    # Opened with its own trial, it finds the same.
    async with opened(uri) as backend:
        assert backend.mechanism == tried[-1].mechanism


async def test_a_device_that_offers_nothing(
    make_model: MakeModel, shared_token: SharedToken
) -> None:
    """Where every mechanism is refused, nothing opens, and the error says so."""
    rules = ("NO_GCM", "NO_HMAC", "NO_CBC")
    uri = through(shared_token("-".join(rules)), make_model(*rules))
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
    with pytest.raises(ConfigurationError, match="aes-256-cbc-seed"):
        await open_backend(uri)


async def test_a_wrap_before_any_trial_is_refused_and_not_weakened(
    make_model: MakeModel, shared_token: SharedToken
) -> None:
    """A wrap never falls back by itself: it fails by the mechanism that is in force."""
    token = shared_token("DEVICE_IV")
    uri = through(token, make_model("DEVICE_IV"), object_label="untried")
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        with pytest.raises(ConfigurationError):
            await backend.wrap(bytes(32), CONTEXT)
        assert backend.mechanism == "aes-256-gcm"


async def test_a_sick_device_is_not_a_refusal(
    shared_token: SharedToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the device fails the mechanism stays, and works when the device does."""
    uri = shared_token("contract").uri_for("sick")
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        with monkeypatch.context() as patch:
            patch.setattr(rung, "round_trip", lambda *_: Trial.FAILS)
            with pytest.raises(Unavailable):
                await backend.check()
        assert await trials(backend) == ["aes-256-gcm"]


@pytest.mark.parametrize("mechanism", ["aes-256-gcm-device-iv", "aes-256-gcm-appended-iv"])
async def test_pinning_what_the_device_does_not_do(
    shared_token: SharedToken, mechanism: str
) -> None:
    """A pinned mechanism that the device does not keep to never wraps, and nothing opens."""
    uri = shared_token("contract").uri_for(mechanism) + f"&ironwork-mechanism={mechanism}"
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        with pytest.raises(ConfigurationError):
            await backend.wrap(bytes(32), CONTEXT)
        with pytest.raises(ConfigurationError, match=mechanism):
            await backend.check()


async def test_an_unknown_pin_opens_nothing(shared_token: SharedToken) -> None:
    """A slip in the URI's mechanism is found before the device is asked."""
    with pytest.raises(ConfigurationError, match="`ironwork-mechanism` is none of"):
        await open_backend(shared_token("contract").uri + "&ironwork-mechanism=aes")


async def test_from_one_mechanism_to_another_by_a_new_version(shared_token: SharedToken) -> None:
    """Another kind of mechanism comes with a new version; blobs of the old one open still."""
    uri = shared_token("contract").uri_for("moving")
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        old = await backend.wrap(b"o" * 32, CONTEXT)
    pinned = uri + "&ironwork-mechanism=hmac-sha256-derive"
    with pytest.raises(ConfigurationError, match="create a new version"):
        await open_backend(pinned)
    async with opened(pinned, allow_missing=True) as backend:
        assert await backend.unwrap(old, CONTEXT) == b"o" * 32
        with pytest.raises(ConfigurationError, match="create a new version"):
            await backend.wrap(bytes(32), CONTEXT)
        await backend.create_version()
        await settle(backend)
        new = await backend.wrap(b"n" * 32, CONTEXT)
        assert (old.mechanism, old.key_version) == ("aes-256-gcm", 1)
        assert (new.mechanism, new.key_version) == ("hmac-sha256-derive", 2)
        assert await backend.unwrap(old, CONTEXT) == b"o" * 32
    async with opened(uri) as backend:
        assert backend.mechanism == "hmac-sha256-derive"
        assert await backend.unwrap(new, CONTEXT) == b"n" * 32


@pytest.mark.parametrize("mechanism", ["hmac-sha256-derive", "aes-256-cbc-seed"])
async def test_nss_does_the_others_too(nss_uri: NewNssUri, mechanism: str) -> None:
    """A second, unrelated module serves the lower mechanisms as it serves GCM."""
    uri = nss_uri() + f"&ironwork-mechanism={mechanism}"
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        assert await trials(backend) == [mechanism]
        await works(backend)


async def test_one_set_of_init_args_a_process(nss_uri: NewNssUri) -> None:
    """A library that is initialised already is not used with other arguments than it got."""
    uri = nss_uri()
    async with opened(uri, allow_missing=True):
        other = uri.partition("&ironwork-init-args=")[0]
        with pytest.raises(ConfigurationError, match="other ironwork-init-args"):
            await open_backend(other, allow_missing=True)


async def test_a_key_serves_its_own_kind_alone(shared_token: SharedToken) -> None:
    """A blob that names a mechanism of another kind of key is rejected before the device is asked,
    though a device may well compute an HMAC with an AES key.
    """
    async with opened(shared_token("contract").uri_for("kinds"), allow_missing=True) as backend:
        await backend.create_version()
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        relabelled = dataclasses.replace(wrapped, mechanism="hmac-sha256-derive")
        with pytest.raises(BlobRejected, match="another kind of master key"):
            await backend.unwrap(relabelled, CONTEXT)
