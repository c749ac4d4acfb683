"""Break-glass copies are dropped where they are not needed, on record, and nowhere else."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.migrated import NewStore
from fixtures.softhsm import TokenFiles, opened
from fixtures.wrapped_rows import (
    CommandLog,
    create_pepper,
    open_command_log,
    opened_key,
    sealed_row,
)
from ironwork_hsm import HsmError
from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_hsm.pkcs11 import Pkcs11KeyWrapper
from ironwork_server import store as stores
from ironwork_server.core.envelope import wrap_context
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import StoredKey, Swap
from ironwork_server.custody import drop_copies
from ironwork_server.custody.break_glass import RecoveryKey
from ironwork_server.custody.drop_copies import CopyDropper
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.custody.vault import binding_of
from ironwork_server.store import Store

PAIR, OTHER = RecoveryKey.generate(), RecoveryKey.generate()
OLD = PAIR.recipient.id
KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"


class Replaced:
    """A real part, with some of its methods in other hands."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real, self._replaced = real, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._real, name)


@dataclasses.dataclass
class Scene:
    """rows and the pepper, all with copies for PAIR."""

    wrapper: Pkcs11KeyWrapper
    store: Store
    log: CommandLog
    rows: list[StoredKey]

    async def drop(self, *, wrapper: Any = None, store: Any = None, **options: Any) -> Report:
        report = Report()
        dropper = CopyDropper(
            [wrapper or self.wrapper],
            store or self.store,
            self.log.records,
            **{"rate": 1e6, **options},
        )
        await dropper.run(OLD, report)
        return report

    async def damage(self, row: StoredKey, **changes: Any) -> None:
        """Another wrapped key in its place, as somebody who can write to the database may."""
        wrapped = row.sealed.wrapped
        changed = dataclasses.replace(wrapped, **changes)
        assert await self.store.swap([Swap(row.sequence, wrapped, changed, None)]) == [True]

    def dropped(self) -> list[tuple[str, bool | None, str]]:
        """(phase, success, reason) of each drop on record."""
        return [
            (one.event.phase, one.event.success, one.event.reason)
            for one in self.log.entries()
            if one.event.operation == "break_glass.drop"
        ]


@pytest.fixture
async def scene(
    tmp_path: Path, keyed_token: TokenFiles, new_store: NewStore
) -> AsyncIterator[Scene]:
    store = stores.open_store(new_store(tmp_path / "copies.db"))
    log = open_command_log(tmp_path / "commands")
    async with opened(keyed_token.uri) as wrapper:
        rows = [await sealed_row(store, wrapper, KEY + b"%d" % n) for n in range(3)]
        await create_pepper(store, wrapper)
        recipient = PAIR.recipient
        await Rewrapper([wrapper], store, log.records, rate=1e6, recipient=recipient).run()
        moved = [await store.get("acme", row.key_id) for row in rows]
        yield Scene(wrapper, store, log, [row for row in moved if row is not None])
    await log.journal.close()
    await store.close()


async def test_copies_go_and_keys_stay(scene: Scene) -> None:
    """All copies of this recipient are dropped, the pepper's too, others' are not; each row was
    opened by the HSM before, and both are on record as one, the intent first.
    """
    row = scene.rows[0]
    theirs = OTHER.recipient.seal(b"e" * 32, wrap_context(binding_of(row)))
    wrapped = row.sealed.wrapped
    await scene.store.swap([Swap(row.sequence, wrapped, wrapped, theirs)])
    assert await scene.store.copies() == {OLD: 3, OTHER.recipient.id: 1}
    looked: list[int] = []
    assert await scene.drop(progress=looked.append) == Report(moved=2, pepper_moved=True)
    assert sum(looked) == 3
    assert await scene.store.copies() == {OTHER.recipient.id: 1}
    for number, each in enumerate(scene.rows):
        assert await opened_key(scene.store, scene.wrapper, each.key_id) == KEY + b"%d" % number
    last = scene.rows[2].key_id
    told = [one.event for one in scene.log.entries() if one.event.key_id == last][-4:]
    assert [(one.operation, one.phase) for one in told] == [
        ("hsm.unwrap", "intent"),
        ("hsm.unwrap", "outcome"),
        ("break_glass.drop", "intent"),
        ("break_glass.drop", "outcome"),
    ]
    assert len({one.correlation_id for one in told}) == 1
    assert told[-1].details == {"recipient": OLD, "purpose": "data-key"}
    assert await scene.drop() == Report(), "and then there is nothing to do"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blob": b"damaged"}, "KEY_RECORD_DAMAGED"),
        ({"key_version": 9}, "MASTER_KEY_VERSION_MISSING"),
        ({"backend": "pkcs11:token=lost;object=master"}, "MASTER_KEY_NOT_CONFIGURED"),
        ({"mechanism": "x" * 3000}, "KEY_RECORD_DAMAGED"),
    ],
)
async def test_the_last_way_to_a_key_stays(
    scene: Scene, changes: dict[str, Any], reason: str
) -> None:
    """A copy whose row the HSM does not open is not dropped, and is told by name: it is what the
    key can still be had by. The others go.
    """
    damaged = scene.rows[1]
    await scene.damage(damaged, **changes)
    report = await scene.drop()
    assert (report.moved, report.pepper_moved, report.failed) == (2, True, {reason: 1})
    assert report.examples == [f"workspaces/acme/keys/{damaged.key_id}"]
    (row,) = await scene.store.copied_for(OLD, after_sequence=0, limit=9)
    assert row.sequence == damaged.sequence
    assert row.copy is not None
    assert len(PAIR.open(row.copy, wrap_context(binding_of(damaged)))) == 32


async def test_a_device_that_fails_ends_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened before goes, what was not stays, no intent is left open, and the next run
    takes the rest.
    """
    monkeypatch.setattr(drop_copies, "BATCH", 1)
    unwraps = 0

    async def unwrap(*arguments: Any, **options: Any) -> bytearray:
        nonlocal unwraps
        unwraps += 1
        if unwraps > 2:
            raise HsmUnavailable("away")
        return await scene.wrapper.unwrap(*arguments, **options)

    with pytest.raises(HsmError):
        await scene.drop(wrapper=Replaced(scene.wrapper, unwrap=unwrap))
    assert await scene.store.copies() == {OLD: 2}
    phases = [one.event.phase for one in scene.log.entries()]
    assert phases.count("intent") == phases.count("outcome")
    assert await scene.drop() == Report(moved=2)


@pytest.mark.parametrize("written", [False, True])
async def test_a_drop_that_failed_is_run_again(scene: Scene, written: bool) -> None:
    """Whether the store had written it or not: the record says that it failed, and the next run
    leaves no copy.
    """

    async def drop(*arguments: Any) -> Any:
        if written:
            await scene.store.drop_copies(*arguments)
        raise Unavailable("x", reason="STORE_UNAVAILABLE")

    with pytest.raises(Unavailable):
        await scene.drop(store=Replaced(scene.store, drop_copies=drop))
    assert scene.dropped() == [("intent", None, ""), ("outcome", False, "STORE_UNAVAILABLE")]
    report = await scene.drop()
    assert (report.moved, report.pepper_moved) == (3, not written)
    assert await scene.store.copies() == {}


async def test_a_copy_that_became_another_s_stays(scene: Scene) -> None:
    """Where a row has a copy for somebody else by the time of the drop, that one stays."""
    row = scene.rows[0]

    async def unwrap(wrapped: Any, *arguments: Any, **options: Any) -> bytearray:
        theirs = OTHER.recipient.seal(b"e" * 32, b"")
        await scene.store.swap([Swap(row.sequence, wrapped, wrapped, theirs)])
        return await scene.wrapper.unwrap(wrapped, *arguments, **options)

    report = await scene.drop(wrapper=Replaced(scene.wrapper, unwrap=unwrap))
    assert (report.moved, report.overtaken) == (2, 1)
    assert await scene.store.copies() == {OTHER.recipient.id: 1}


async def test_drops_are_bounded_in_rate(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch it rests until the rate is kept."""
    monkeypatch.setattr(drop_copies, "BATCH", 2)
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    await scene.drop(rate=0.5, sleep=rest)
    assert len(rests) == 2
    assert 3 < rests[0] <= 4
    assert rests[1] <= 2
