"""Parts of the HSM process by themselves: settings, rates, the guard, the latch, the record."""

import asyncio
import errno
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ironwork_audit import INTENT, Event
from ironwork_audit.log import OperatingSystem
from ironwork_hsm import ConfigurationError, PinRefused, Unavailable
from ironwork_hsm.daemon import settings
from ironwork_hsm.daemon.hardening import overwriting
from ironwork_hsm.daemon.latch import PinLatch, latch_of
from ironwork_hsm.daemon.listener import RESERVED, Guard
from ironwork_hsm.daemon.rate import Rates
from ironwork_hsm.daemon.record import open_record
from ironwork_hsm.daemon.serve import name_of
from ironwork_hsm.remote.place import Peer

ENOUGH: Mapping[str, Any] = {
    "socket": "/run/ironwork-hsmd/hsm.sock",
    "allowed_uids": [1001, "root"],
    "backends": ["pkcs11:token=t;object=o?module-path=/x&pin-source=file:/y"],
    "state": "/var/lib/ironwork-hsmd",
    "record": {"folder": "/var/log/ironwork-hsmd", "origin": "hsm.acme.example/one"},
}


class FakeSession:
    """Where only its identity counts."""


def event() -> Event:
    return Event(phase=INTENT, operation="hsm.unwrap", correlation_id="c", time=datetime.now(UTC))


def test_settings_have_safe_defaults() -> None:
    """What is required is enough, and everything is bounded by default."""
    loaded = settings.from_values(ENOUGH)
    assert loaded.allowed_uids == {1001, 0}
    assert loaded.overwrite_freed is True
    assert loaded.signer is None
    assert (loaded.bounds.deadline_s, loaded.bounds.connections) == (3, 16)
    assert (loaded.bounds.operations_per_s, loaded.bounds.burst) == (1000, 2000)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pin": "secret-value"}, "pin"),
        ({"limits": {"unwraps": 1}}, "limits.unwraps"),
        ({"record": {"folder": "/x", "origin": "a", "x": 1}}, "record.x"),
        ({"limits": {"deadline_s": "secret-value"}}, "limits.deadline_s"),
        ({"limits": {"deadline_s": True}}, "limits.deadline_s"),
        ({"limits": {"connections": 0}}, "limits.connections"),
        ({"limits": 1}, "limits"),
        ({"socket": "relative"}, "socket"),
        ({"socket": "/" + "x" * 200}, "socket"),
        ({"socket": 1}, "socket"),
        ({"allowed_uids": []}, "allowed_uids"),
        ({"allowed_uids": ["secret-value"]}, "allowed_uids"),
        ({"allowed_uids": [-1]}, "allowed_uids"),
        ({"allowed_uids": [True]}, "allowed_uids"),
        ({"backends": []}, "backends"),
        ({"backends": "secret-value"}, "backends"),
        ({"backends": [1]}, "backends"),
        ({"signer": ""}, "signer"),
        ({"overwrite_freed": "secret-value"}, "overwrite_freed"),
        ({"record": {"folder": "/x", "origin": "Secret-Value"}}, "record.origin"),
        ({"record": {"folder": "/x", "origin": "a", "signing_key": 1}}, "record.signing_key"),
    ],
)
def test_wrong_settings_are_named_and_not_quoted(change: dict[str, Any], named: str) -> None:
    """An error says which setting is wrong, and never what it held."""
    with pytest.raises(ConfigurationError) as caught:
        settings.from_values({**ENOUGH, **change})
    assert named in str(caught.value).lower()
    assert "secret-value" not in str(caught.value).lower()


URI = "pkcs11:token={};object={}?module-path=/x&pin-source=file:/{}"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (URI.format("t", "record", "own"), "a backend's token"),
        (URI.format("own", "record", "y"), "a backend's PIN file"),
        (URI.format("log", "record", "own"), "the signer's token"),
        (URI.format("own", "record", "log"), "the signer's PIN file"),
        (URI.format("log", "log", "log"), "the key of signer"),
        ("unix:/run/hsm.sock", "a device's URI"),
    ],
)
def test_the_records_key_is_apart(uri: str, said: str) -> None:
    """Its token and PIN are not those of a master key, nor those of the signer, which signs
    whatever a client asks it to.
    """
    values = dict(ENOUGH) | {"signer": URI.format("log", "log", "log")}
    own = URI.format("own", "record", "own")
    loaded = settings.from_values({**values, "record": {**ENOUGH["record"], "signing_key": own}})
    assert loaded.record_key == own
    with pytest.raises(ConfigurationError, match=said):
        settings.from_values({**values, "record": {**ENOUGH["record"], "signing_key": uri}})


def test_a_settings_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """A missing, too large, or broken file is refused without quoting it."""
    path = tmp_path / "hsmd.toml"
    for content in (None, b"pin = secret", b"\xff", b"#" * 70000):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError) as caught:
            settings.load(path)
        assert "secret" not in str(caught.value)


def test_a_rate_holds_over_time() -> None:
    """A bucket gives its burst at once and then its rate; uids and sorts have their own."""
    now = 0.0
    rates = Rates(10, 5, clock=lambda: now)
    assert [rates.take(1, "keys") for _ in range(7)] == [True] * 5 + [False] * 2
    assert rates.take(2, "keys")
    assert rates.take(1, "signing")
    now = 0.3
    assert [rates.take(1, "keys") for _ in range(4)] == [True] * 3 + [False]
    now = 1000
    assert sum(rates.take(1, "keys") for _ in range(100)) == 5


def test_rates_are_bounded_in_number() -> None:
    """More uids than are kept apart get nothing, instead of memory."""
    rates = Rates(10, 5, clock=lambda: 0)
    assert sum(rates.take(uid, "keys") for uid in range(2000)) == 1024


def test_the_guard_lets_in_who_is_listed() -> None:
    """A uid off the list is refused before a byte of it is read; root and the process' own user
    come in for the status; nobody beyond the bound.
    """
    guard = Guard(frozenset({1001}), 1)
    sessions: list[Any] = [FakeSession() for _ in range(4)]
    assert guard.admit(sessions[0], Peer(1, 1002)) == "PEER_REFUSED"
    assert guard.admit(sessions[0], Peer(1, 1001)) is None
    assert guard.admit(sessions[1], Peer(1, os.geteuid())) is None
    assert guard.admit(sessions[2], Peer(1, 1001)) == "TOO_MANY_CONNECTIONS"
    guard.leave(sessions[2])
    guard.leave(sessions[0])
    assert guard.admit(sessions[3], Peer(1, 1001)) is None
    assert guard.may_use_keys(Peer(1, 1001))
    assert not guard.may_use_keys(Peer(1, 1002))
    assert guard.may_use_keys(Peer(1, os.geteuid())) == (os.geteuid() == 1001)


def test_no_user_takes_anothers_connections() -> None:
    """However many one user asks for, every other one, root and the process' own user come in."""
    own = os.geteuid()
    guard = Guard(frozenset({1001, 1002, own}), 9)

    def admitted(uid: int) -> int:
        sessions: list[Any] = [FakeSession() for _ in range(20)]
        return sum(guard.admit(session, Peer(1, uid)) is None for session in sessions)

    assert [admitted(1001), admitted(1002), admitted(own)] == [3, 3, 3 + RESERVED]
    assert admitted(0) == (0 if own == 0 else RESERVED)


def test_a_latch_holds_until_the_file_changes(tmp_path: Path) -> None:
    """It outlives the process, holds nothing of the PIN, and ends when the file is written anew,
    replaced or touched; a latch that cannot be read holds.
    """
    pin = tmp_path / "pin"
    pin.write_text("1234")
    latch = PinLatch(tmp_path, pin)
    assert not latch.is_set()
    latch.set(latch.identity())
    assert PinLatch(tmp_path, pin).is_set()
    (kept,) = tmp_path.glob("pin-refused-*")
    assert "1234" not in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0
    os.utime(pin)
    assert not latch.is_set()
    latch.clear()
    latch.set(latch.identity())
    pin.unlink()
    pin.write_text("1234")
    assert not latch.is_set()
    kept.write_text("{")
    assert latch.is_set()
    latch.clear()
    assert not latch.is_set()
    latch.clear()


def test_refusals_in_a_row_are_counted(tmp_path: Path) -> None:
    """A PIN file that is a new one at each start is not tried for ever: after two refusals in a row
    no file is, until an operator removes the latch, which the error names; a success begins anew.
    """
    pin = tmp_path / "pin"
    latch = PinLatch(tmp_path, pin)

    def try_once(refused: bool) -> None:
        pin.unlink(missing_ok=True)
        pin.write_text("1234")
        with latch.trying():
            if refused:
                raise PinRefused("no")

    with pytest.raises(PinRefused, match="no"):
        try_once(refused=True)
    try_once(refused=False)
    for _ in range(2):
        with pytest.raises(PinRefused, match="no"):
            try_once(refused=True)
    for _ in range(2):
        with pytest.raises(PinRefused, match=latch.path.name):
            try_once(refused=False)
    latch.path.unlink()
    try_once(refused=False)


def test_a_pin_file_has_one_latch_by_all_its_names(tmp_path: Path) -> None:
    """What was refused through a symbolic link is not tried by the file's own name, and two devices
    with the two names have one lock.
    """
    pin, link = tmp_path / "pin", tmp_path / "link"
    pin.write_text("1234")
    link.symlink_to(pin)
    uri = "pkcs11:token=t;object=o?module-path=/x&pin-source=file:"
    locks: dict[Path, asyncio.Lock] = {}
    one, other = (latch_of(tmp_path, f"{uri}{path}", locks) for path in (pin, link))
    assert one is not None
    assert other is not None
    one.set(one.identity())
    assert other.is_set()
    assert one.lock is other.lock


def test_a_latch_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    """Where the refusal cannot be remembered that is said, with the folder."""
    latch = PinLatch(tmp_path / "none", tmp_path / "pin")
    with pytest.raises(ConfigurationError, match="none"):
        latch.set(latch.identity())


def test_a_latch_that_cannot_be_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder that became read-only is told as what it is, and ends no device for good: only
    our own errors are tried again.
    """
    pin = tmp_path / "pin"
    pin.write_text("1234")
    latch = PinLatch(tmp_path, pin)
    latch.set(latch.identity())
    os.utime(pin)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ConfigurationError, match="Read-only"), latch.trying():
        pass


def test_a_device_behind_the_process_is_no_process() -> None:
    """Backends are devices' URIs."""
    with pytest.raises(ConfigurationError):
        name_of("unix:/run/x")
    assert name_of("awskms:///alias/x?region=eu-central-1") == "awskms:///alias/x"


def test_the_allocators_environment_keeps_other_tunables() -> None:
    """Freed memory is overwritten; what else was tuned stays."""
    made = overwriting({"GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.cpu.x86_ibt=on", "A": "b"})
    assert made["PYTHONMALLOC"] == "malloc"
    assert made["GLIBC_TUNABLES"] == (
        "glibc.cpu.x86_ibt=on:glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
    )
    assert made["A"] == "b"
    assert overwriting(made) == made


class SickDisk(OperatingSystem):
    """Syncs fail while `fails` is set."""

    fails = False

    def fdatasync(self, fd: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        super().fdatasync(fd)


async def test_a_failed_sync_is_the_end_of_the_record(tmp_path: Path) -> None:
    """After a failed sync nothing is acknowledged, also when the disk seems well again, until the
    process starts anew; then the record goes on, and says the truth of what it holds.
    """
    disk = SickDisk()
    record = open_record(tmp_path / "record", "hsm/one", file_system=disk)
    assert await record.append(event()) == 0
    disk.fails = True
    with pytest.raises(Unavailable):
        await record.append(event())
    assert record.problem is not None
    disk.fails = False
    with pytest.raises(Unavailable):
        await record.append(event())
    await record.close()
    again = open_record(tmp_path / "record", "hsm/one")
    assert await again.append(event()) >= 1
    assert again.problem is None
    await again.close()


async def test_a_record_settles_every_append_in_order(tmp_path: Path) -> None:
    """Many appends at once get consecutive indexes, in the order of submission; after its close
    the record refuses.
    """
    record = open_record(tmp_path / "deep" / "record", "hsm/one")
    indexes = await asyncio.gather(*(record.append(event(), event()) for _ in range(300)))
    assert indexes == list(range(0, 600, 2))
    with pytest.raises(ConfigurationError, match="in use"):
        open_record(tmp_path / "deep" / "record", "hsm/one")
    await record.close()
    with pytest.raises(Unavailable):
        await record.append(event())
    with pytest.raises(ConfigurationError, match="origin"):
        open_record(tmp_path / "deep" / "record", "hsm/two")
