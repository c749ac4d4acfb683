"""Probing the master key finds its mechanism, and every trial is in the log."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.journal_events import entries
from fixtures.models import MakeModel, through
from fixtures.softhsm import SharedToken, opened
from ironwork_hsm import MAX_TRIALS, HsmError, KeyMissing, MechanismRefused, PinRefused
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import Unavailable
from ironwork_server.custody.probe import MasterKeyProbe
from ironwork_server.journal import FileJournal

from .conftest import Custody


@dataclass
class Switched:
    """A store that has this version switched on, or none."""

    version: int | None = None

    async def switched_version(self, backend: str) -> int | None:
        return self.version

    async def first_version(self, backend: str, newest: int) -> int:
        raise NotImplementedError


class Refusing:
    """A wrapper whose device refuses its mechanism, as often as it is asked."""

    name = "pkcs11:token=t;object=o"
    current_version = 1
    mechanism = "aes-256-gcm"

    def __init__(self) -> None:
        self.asked = 0

    async def check(self, version: int | None = None) -> None:
        self.asked += 1
        raise MechanismRefused("no")


class Sick:
    """A wrapper whose device fails until it is opened anew, or for ever."""

    name = "pkcs11:token=sick;object=o"
    current_version = 1
    mechanism = "aes-256-gcm"

    def __init__(self, *, recovers: bool) -> None:
        self.sick = True
        self.recovers = recovers

    async def check(self, version: int | None = None) -> None:
        if self.sick:
            raise HsmUnavailable("gone")

    async def recover(self) -> None:
        if not self.recovers:
            raise PinRefused("no")
        self.sick = False


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FileJournal]:
    """A real journal in tmp_path/audit."""
    made = FileJournal.open(tmp_path / "audit", "ironwork.test/probe")
    yield made
    await made.close()


async def test_every_trial_of_a_mechanism_is_recorded(
    journal: FileJournal,
    tmp_path: Path,
    make_model: MakeModel,
    shared_token: SharedToken,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fall-back is an intent and an outcome for each mechanism, and a warning; never silent."""
    uri = through(shared_token("DEVICE_IV"), make_model("DEVICE_IV"), object_label="probed")
    async with opened(uri, allow_missing=True) as wrapper:
        await wrapper.create_version()
        with caplog.at_level(logging.WARNING):
            await MasterKeyProbe([wrapper], journal, Switched()).check()
        await MasterKeyProbe([wrapper], journal, Switched()).check()
    events = [entry.event for entry in entries(tmp_path / "audit")]
    assert {event.operation for event in events} == {"hsm.probe"}
    assert [
        (event.details["mechanism"], event.phase, event.success, event.reason) for event in events
    ] == [
        ("aes-256-gcm", "intent", None, ""),
        ("aes-256-gcm", "outcome", False, "MECHANISM_REFUSED"),
        ("aes-256-gcm-device-iv", "intent", None, ""),
        ("aes-256-gcm-device-iv", "outcome", True, ""),
        ("aes-256-gcm-device-iv", "intent", None, ""),
        ("aes-256-gcm-device-iv", "outcome", True, ""),
    ]
    (record,) = caplog.records
    assert record.msg == "hsm.mechanism_refused"
    assert vars(record)["mechanism"] == "aes-256-gcm"
    assert vars(record)["next_mechanism"] == "aes-256-gcm-device-iv"


class Emptied(Refusing):
    """A wrapper whose last version was taken away."""

    @property
    def current_version(self) -> int:  # type: ignore[override]
        raise KeyMissing("none")


async def test_a_wrapper_that_has_nothing_left_to_wrap_with(
    journal: FileJournal, tmp_path: Path
) -> None:
    """The backend's own words reach the start, which says how to mend it; health has its reason,
    and nothing is asked of its device.
    """
    wrapper = Emptied()
    probe = MasterKeyProbe([wrapper], journal, Switched())  # type: ignore[list-item]
    with pytest.raises(KeyMissing, match="none"):
        await probe.check()
    assert wrapper.asked == 0
    assert not list(entries(tmp_path / "audit"))


async def test_a_device_that_refuses_for_ever(journal: FileJournal, tmp_path: Path) -> None:
    """A wrapper that never settles does not hold up the start; each trial is recorded."""
    wrapper = Refusing()
    with pytest.raises(Unavailable) as caught:
        await MasterKeyProbe([wrapper], journal, Switched()).check()  # type: ignore[list-item]
    assert caught.value.reason == "MASTER_KEY_UNAVAILABLE"
    assert wrapper.asked == MAX_TRIALS
    assert len(list(entries(tmp_path / "audit"))) == 2 * MAX_TRIALS


async def test_a_configuration_that_cannot_work_ends_the_probe(
    journal: FileJournal, shared_token: SharedToken
) -> None:
    """Where the pinned mechanism does not fit the key, the probe says what to do."""
    uri = shared_token("contract").uri_for("probed")
    async with opened(uri, allow_missing=True) as wrapper:
        await wrapper.create_version()
    pinned = uri + "&ironwork-mechanism=hmac-sha256-derive"
    async with opened(pinned, allow_missing=True) as wrapper:
        with pytest.raises(HsmError, match="create a new version"):
            await MasterKeyProbe([wrapper], journal, Switched()).check()


async def test_a_device_that_failed_is_opened_anew_on_record(
    journal: FileJournal, tmp_path: Path
) -> None:
    """What failed the last check is opened anew, each device once, with an intent and an outcome;
    what is sound is left alone, and one that cannot be opened does not keep others from it.
    """
    locked, sick = Sick(recovers=False), Sick(recovers=True)
    sound = Sick(recovers=True)
    sound.sick = False
    probe = MasterKeyProbe([locked, sound, sick], journal, Switched())  # type: ignore[list-item]
    assert await probe.reopen() is False
    with pytest.raises(Unavailable) as failed:
        await probe.check()
    assert failed.value.reason == "MASTER_KEY_UNAVAILABLE"
    with pytest.raises(Unavailable) as refused:
        await probe.reopen()
    assert refused.value.reason == "MASTER_KEY_PIN_REFUSED"
    events = [entry.event for entry in entries(tmp_path / "audit")]
    opened = [event for event in events if event.operation == "hsm.open"]
    assert [(event.phase, event.success, event.reason) for event in opened] == [
        ("intent", None, ""),
        ("outcome", False, "MASTER_KEY_PIN_REFUSED"),
        ("intent", None, ""),
        ("outcome", True, ""),
    ]
    assert all(set(event.details) == {"backend"} for event in opened)
    locked.recovers = True
    with pytest.raises(Unavailable):
        await probe.check()
    assert await probe.reopen() is True
    await probe.check()


async def test_what_lies_elsewhere_is_not_opened_from_here(journal: FileJournal) -> None:
    """An HSM process and a cloud see to their devices themselves."""
    wrapper = Refusing()
    probe = MasterKeyProbe([wrapper], journal, Switched())  # type: ignore[list-item]
    with pytest.raises(Unavailable):
        await probe.check()
    assert await probe.reopen() is False


async def test_a_probe_is_on_record(custody: Custody) -> None:
    """A probe of the master key has an intent and an outcome, good or bad."""
    probe = MasterKeyProbe([custody.wrapper], custody.journal, custody.store)
    await probe.check()
    custody.wrapper.fault = HsmUnavailable("gone")
    with pytest.raises(Unavailable):
        await probe.check()
    shown = [(e.event.operation, e.event.phase, e.event.success) for e in custody.entries()]
    assert shown == [
        ("hsm.probe", "intent", None),
        ("hsm.probe", "outcome", True),
        ("hsm.probe", "intent", None),
        ("hsm.probe", "outcome", False),
    ]
