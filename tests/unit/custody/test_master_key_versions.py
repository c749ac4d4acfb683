"""Rotating and retiring the master key: what is switched on, what is refused, what is on record."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.migrated import NewStore
from fixtures.softhsm import MakeToken, TokenFiles, opened
from fixtures.stores import NOON, added, stored_key
from fixtures.wrapped_rows import (
    OPERATOR,
    CommandLog,
    create_pepper,
    open_command_log,
    opened_key,
    sealed_row,
)
from ironwork_hsm import (
    HsmError,
    KeyCreator,
    KeyMissing,
    KeyVersion,
    MechanismRefused,
    VersionDestroyer,
)
from ironwork_hsm import Unavailable as DeviceUnavailable
from ironwork_hsm.pkcs11 import Pkcs11KeyWrapper
from ironwork_server import store as stores
from ironwork_server.core.envelope import Binding
from ironwork_server.core.errors import PreconditionFailed, Unavailable
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import Action
from ironwork_server.custody.retire import destroy_version, retire_version
from ironwork_server.custody.rotate import rotate_master_key
from ironwork_server.custody.versions import follow
from ironwork_server.store import Store, StoreFailed

from .conftest import Custody

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"


@dataclass
class Scene:
    """One operator with a device, a store and a log, all real."""

    token: TokenFiles
    wrapper: Pkcs11KeyWrapper
    store: Store
    log: CommandLog

    async def rotate(self) -> int:
        return await rotate_master_key([self.wrapper], self.store, self.log.records)

    async def retire(self, version: int, *, wraps: bool = True) -> None:
        await retire_version(
            self.wrapper.name,
            version,
            self.store,
            self.log.records,
            wrapping=self.wrapper if wraps else None,
        )


@pytest.fixture
async def scene(tmp_path: Path, make_token: MakeToken, new_store: NewStore) -> AsyncIterator[Scene]:
    token = make_token(with_key=True)
    store = stores.open_store(new_store(tmp_path / "keys.db"))
    log = open_command_log(tmp_path / "commands")
    async with opened(token.uri) as wrapper:
        yield Scene(token, wrapper, store, log)
    await log.journal.close()
    await store.close()


class Fixed:
    """A device whose versions are not ours to make or destroy, and which may be broken."""

    name = "awskms:///alias/k"
    mechanism = "aws-kms"
    current_version = 1

    def __init__(self, *versions: int, fault: HsmError | None = None) -> None:
        self._versions = versions or (1,)
        self._fault = fault
        self.checked: list[int | None] = []

    async def versions(self) -> list[KeyVersion]:
        return [
            KeyVersion(
                one, "k", sensitive=True, extractable=False, never_extractable=True, local=True
            )
            for one in self._versions
        ]

    async def mechanism_of(self, version: int) -> str:
        if version not in self._versions:
            raise KeyMissing("there is no such version")
        return self.mechanism

    async def check(self, version: int | None = None) -> None:
        self.checked.append(version)
        if self._fault is not None:
            raise self._fault


async def test_a_rotation_makes_proves_and_switches_on(scene: Scene) -> None:
    """The next version is made in the device, does a round trip, and only then wraps; each step is
    on record as the operator's.
    """
    assert await scene.rotate() == 2
    assert await scene.store.switched_version(scene.wrapper.name) == 2
    assert scene.log.operations() == [
        ("hsm.generate", "intent", None),
        ("hsm.generate", "outcome", True),
        ("hsm.probe", "intent", None),
        ("hsm.probe", "outcome", True),
        ("master_key.switch", "event", True),
    ]
    made = scene.log.entries()[1].event
    assert (made.principal, made.role) == (OPERATOR, "operator")
    assert made.details["master_key_version"] == 2


async def test_a_broken_backend_stops_the_switch(scene: Scene) -> None:
    """Where one of the listed backends fails its round trip, the old version goes on wrapping; the
    next run switches on the version that was made, and makes no other.
    """
    broken = Fixed(fault=DeviceUnavailable("no answer"))
    wrappers = [scene.wrapper, broken]
    with pytest.raises(Unavailable) as failed:
        await rotate_master_key(wrappers, scene.store, scene.log.records)  # type: ignore[arg-type]
    assert failed.value.reason == "MASTER_KEY_UNAVAILABLE"
    assert broken.name in failed.value.message
    assert await scene.store.switched_version(scene.wrapper.name) == 1
    # A server that starts now holds to what is switched on.
    async with opened(scene.token.uri) as server:
        assert server.current_version == 2
        assert (await follow(server, scene.store)).version == 1
    assert await scene.rotate() == 2
    assert len(await scene.wrapper.versions()) == 2


async def test_a_device_without_a_mechanism_stops_the_switch(scene: Scene) -> None:
    """A device that refuses every mechanism is given up after a bounded number of trials."""
    refusing = Fixed(fault=MechanismRefused("no"))
    with pytest.raises(Unavailable):
        await rotate_master_key(
            [scene.wrapper, refusing],  # type: ignore[list-item]
            scene.store,
            scene.log.records,
        )
    reasons = [entry.event.reason for entry in scene.log.entries()]
    assert 1 < reasons.count("MECHANISM_REFUSED") <= 16


async def test_servers_follow_a_rotation_at_their_next_wrap(scene: Scene) -> None:
    """A server that was open before a rotation wraps with the new version from its next wrap on,
    and every other unwraps that, none having been told.
    """
    async with opened(scene.token.uri) as one, opened(scene.token.uri) as other:
        assert (await follow(one, scene.store)).version == 1
        await scene.rotate()
        assert (await follow(one, scene.store)).version == 2
        wrapped = await one.wrap(bytes(32), b"x", version=2)
        assert wrapped.key_version == 2
        assert await other.unwrap(wrapped, b"x") == bytes(32)


async def test_a_newer_version_in_the_device_wraps_nothing(scene: Scene) -> None:
    """What a server starts on stays in force when newer versions appear in the device, whoever made
    them; a server on a new store begins with the newest.
    """
    device = Fixed(1)
    assert not isinstance(device, KeyCreator | VersionDestroyer)
    assert (await follow(device, scene.store)).version == 1  # type: ignore[arg-type]
    newer = Fixed(1, 2)
    newer.current_version = 2
    assert (await follow(newer, scene.store)).version == 1  # type: ignore[arg-type]
    newer.name = "awskms:///alias/other"
    assert (await follow(newer, scene.store)).version == 2  # type: ignore[arg-type]


async def test_a_store_from_before_goes_on_with_what_its_rows_have(scene: Scene) -> None:
    """A store whose keys are under version 1, and in which none was ever switched on, stays with
    version 1 although the device holds a newer one by now.
    """
    await sealed_row(scene.store, scene.wrapper, KEY)
    await scene.wrapper.create_version()
    assert await scene.store.switched_version(scene.wrapper.name) is None
    assert (await follow(scene.wrapper, scene.store)).version == 1
    assert await scene.store.switched_version(scene.wrapper.name) == 1


async def test_a_version_that_was_made_elsewhere_is_switched_on(scene: Scene) -> None:
    """A device that makes no versions for us has its newest proven and switched on; where that is
    in force already, the operator is told what to do.
    """
    await scene.store.switch_on(Fixed.name, 1)
    device = Fixed(1, 2)
    arguments = ([device], scene.store, scene.log.records)
    assert await rotate_master_key(*arguments) == 2  # type: ignore[arg-type]
    assert device.checked == [2]
    with pytest.raises(PreconditionFailed, match="device's own"):
        await rotate_master_key(*arguments)  # type: ignore[arg-type]


async def test_without_a_master_key_there_is_nothing_to_rotate(
    scene: Scene, make_token: MakeToken
) -> None:
    """An empty token is told what comes first."""
    async with opened(make_token().uri, allow_missing=True) as empty:
        with pytest.raises(PreconditionFailed, match="master-key create"):
            await rotate_master_key([empty], scene.store, scene.log.records)
    assert scene.log.operations() == []


async def test_a_version_is_retired_when_nothing_needs_it(scene: Scene) -> None:
    """The version that wraps, one that wraps a row, and one that wraps the pepper are not retired;
    the refusal counts. A retired one is on record.
    """
    row = await sealed_row(scene.store, scene.wrapper, KEY)
    await create_pepper(scene.store, scene.wrapper)
    with pytest.raises(PreconditionFailed) as current:
        await scene.retire(1)
    assert current.value.reason == "MASTER_KEY_VERSION_CURRENT"
    await scene.rotate()
    with pytest.raises(PreconditionFailed, match="1 keys and the pepper") as needed:
        await scene.retire(1)
    assert needed.value.reason == "MASTER_KEY_VERSION_NEEDED"
    assert needed.value.metadata == {"count": "2"}
    await scene.store.delete("acme", row.key_id, replay=None)
    with pytest.raises(PreconditionFailed, match="wraps the pepper"):
        await scene.retire(1)
    with pytest.raises(PreconditionFailed) as switched:
        await scene.retire(2)
    assert switched.value.reason == "MASTER_KEY_VERSION_CURRENT"


async def test_a_late_writer_finds_its_version_retired(scene: Scene) -> None:
    """A key that was wrapped before the retirement and is written after it is not taken: there
    never is a row that a destroyed version wraps.
    """
    await scene.rotate()
    await scene.retire(1)
    assert scene.log.operations()[-1] == ("master_key.retire", "event", True)
    late = stored_key()
    wrapped = type(late.sealed.wrapped)(scene.wrapper.name, 1, "aes-256-gcm", b"late")
    sealed = type(late.sealed)(1, b"n" * 12, b"c" * 40, wrapped)
    with pytest.raises(Unavailable) as refused:
        await added(scene.store, stored_key(sealed=sealed))
    assert refused.value.reason == "MASTER_KEY_VERSION_RETIRED"


async def test_the_last_backend_of_old_can_be_retired_whole(scene: Scene) -> None:
    """A backend that no longer wraps may lose its current version too."""
    await scene.retire(1, wraps=False)
    assert [one.retired for one in await scene.store.wrappings()] == [True]


async def test_a_destroyed_version_makes_backups_unopenable(scene: Scene, tmp_path: Path) -> None:
    """A copy of the database from before does not open once its version is destroyed; the
    destruction has its intent and its outcome.
    """
    row = await sealed_row(scene.store, scene.wrapper, KEY)
    assert await opened_key(scene.store, scene.wrapper, row.key_id) == KEY
    await scene.rotate()
    await destroy_version(
        scene.wrapper,
        scene.wrapper.name,
        1,
        scene.log.records,
        admin_pin_source=f"file:{scene.token.so_pin_file}",
        settle_s=0,
    )
    with pytest.raises(KeyMissing):
        await opened_key(scene.store, scene.wrapper, row.key_id)
    assert scene.log.operations()[-2:] == [
        ("hsm.destroy", "intent", None),
        ("hsm.destroy", "outcome", True),
    ]


async def test_a_destruction_that_was_not_told_is_done(scene: Scene) -> None:
    """Run again after one that was killed between the device and its outcome, it ends well and asks
    nothing of the device; a version that never was is refused, on record.
    """
    await scene.rotate()
    await scene.rotate()
    pin = f"file:{scene.token.so_pin_file}"
    await scene.wrapper.destroy_version(1, admin_pin_source=pin)
    before = scene.log.operations()
    await destroy_version(
        scene.wrapper, scene.wrapper.name, 1, scene.log.records, admin_pin_source=pin, settle_s=0
    )
    assert scene.log.operations() == before
    with pytest.raises(HsmError):
        await destroy_version(
            scene.wrapper,
            scene.wrapper.name,
            9,
            scene.log.records,
            admin_pin_source=pin,
            settle_s=0,
        )
    assert scene.log.operations()[-1] == ("hsm.destroy", "outcome", False)


async def test_a_refused_destruction_is_on_record(scene: Scene) -> None:
    """A wrong administrator's PIN leaves an outcome that says so, and the version."""
    await scene.rotate()
    with pytest.raises(HsmError):
        await destroy_version(
            scene.wrapper,
            scene.wrapper.name,
            1,
            scene.log.records,
            admin_pin_source=f"file:{scene.token.pin_file}",
            settle_s=0,
        )
    assert scene.log.operations()[-1] == ("hsm.destroy", "outcome", False)
    assert len(await scene.wrapper.versions()) == 2


async def test_a_device_that_destroys_nothing_says_so(scene: Scene) -> None:
    """Where the device offers no destruction to us, nothing is asked of it or recorded."""
    with pytest.raises(PreconditionFailed) as refused:
        await destroy_version(
            Fixed(),  # type: ignore[arg-type]
            Fixed.name,
            1,
            scene.log.records,
            admin_pin_source="",
        )
    assert refused.value.reason == "MASTER_KEY_NOT_DESTROYED"
    assert scene.log.operations() == []


class Elsewhere(Fixed):
    """A device whose versions are made and destroyed by somebody else's commands."""

    create_command = "make one"

    def destroy_command(self, backend: str, version: int) -> str:
        return f"destroy {version} of {backend}"


async def test_what_is_done_elsewhere_is_said_as_a_command(scene: Scene) -> None:
    """Where versions are made and destroyed by another process' commands, a rotation that has none
    to switch on and a destruction name the command, and nothing is asked of the device.
    """
    device = Elsewhere()
    with pytest.raises(PreconditionFailed, match="make one") as made:
        await rotate_master_key([device], scene.store, scene.log.records)  # type: ignore[list-item]
    assert made.value.reason == "MASTER_KEY_NOT_CREATED"
    with pytest.raises(PreconditionFailed, match="destroy 1 of another") as kept:
        await destroy_version(
            device,  # type: ignore[arg-type]
            "another",
            1,
            scene.log.records,
            admin_pin_source="",
            settle_s=0,
        )
    assert kept.value.reason == "MASTER_KEY_NOT_DESTROYED"
    assert device.checked == []
    assert scene.log.operations() == []


async def test_nothing_is_made_without_its_record(scene: Scene) -> None:
    """A log that cannot be written stops a rotation before the device is asked."""
    await scene.log.journal.close()
    with pytest.raises(Unavailable):
        await scene.rotate()
    assert len(await scene.wrapper.versions()) == 1


async def test_a_switch_that_failed_switched_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store cannot take the switch, the old version wraps on; the next run ends it."""

    async def fail(backend: str, version: int) -> None:
        raise StoreFailed

    await scene.store.switch_on(scene.wrapper.name, 1)
    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "switch_on", fail)
        with pytest.raises(StoreFailed):
            await scene.rotate()
    assert await scene.store.switched_version(scene.wrapper.name) == 1
    assert await scene.rotate() == 2


async def test_a_key_waits_for_the_switched_version(custody: Custody) -> None:
    """Where the device does not hold the version that is switched on, no key is sealed under
    another one, and nothing is asked of the device.
    """
    await custody.store.switch_on(custody.wrapper.name, 7)
    binding = Binding("acme", "k", 1, NOON)
    with pytest.raises(Unavailable) as missing:
        async with custody.admit(Action.ADD_KEY) as permit:
            await custody.vault.seal(permit, Secret(bytearray(KEY)), binding)
    assert missing.value.reason == "MASTER_KEY_VERSION_MISSING"
    assert "hsm.wrap" not in [entry.event.operation for entry in custody.entries()]
