"""Moving data keys to another master key: all of them, once, on record, and never opened."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.backends import BACKENDS, Backend
from fixtures.migrated import NewStore
from fixtures.softhsm import MakeToken, TokenFiles, opened
from fixtures.wrapped_rows import (
    OPERATOR,
    CommandLog,
    create_pepper,
    open_command_log,
    opened_key,
    sealed_row,
)
from ironwork_hsm import BackendOptions, HsmError, KeyWrapper, PinRefused, Unavailable, WrappedKey
from ironwork_hsm.pkcs11 import Pkcs11KeyWrapper
from ironwork_server import store as stores
from ironwork_server.core.envelope import pepper_context
from ironwork_server.core.values import StoredKey, Swap
from ironwork_server.custody import rewrap
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.store import Store, StoreFailed

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"


@dataclass
class Scene:
    """Version 1 wraps everything, version 2 is switched on."""

    token: TokenFiles
    wrapper: Pkcs11KeyWrapper
    store: Store
    log: CommandLog

    async def rows(self, count: int) -> list[StoredKey]:
        """Rows under version 1."""
        return [
            await sealed_row(self.store, self.wrapper, KEY + b"%d" % n, version=1)
            for n in range(count)
        ]

    async def run(self, *wrappers: Any, **options: Any) -> Report:
        options = {"rate": 1e6, **options}
        rewrapper = Rewrapper(
            wrappers or [self.wrapper],
            options.pop("store", self.store),
            self.log.records,
            **options,
        )
        return await rewrapper.run()

    async def all_open(self, rows: list[StoredKey], version: int, *, backend: str = "") -> None:
        """Every row is under this version and opens to what it held."""
        for number, row in enumerate(rows):
            found = await self.store.get("acme", row.key_id)
            assert found is not None
            assert found.sealed.wrapped.key_version == version
            assert found.sealed.wrapped.backend == (backend or self.wrapper.name)
            assert found.sealed.ciphertext == row.sealed.ciphertext
            if not backend:
                opened = await opened_key(self.store, self.wrapper, row.key_id)
                assert opened == KEY + b"%d" % number


@pytest.fixture
async def scene(tmp_path: Path, make_token: MakeToken, new_store: NewStore) -> AsyncIterator[Scene]:
    token = make_token(with_key=True)
    store = stores.open_store(new_store(tmp_path / "keys.db"))
    log = open_command_log(tmp_path / "commands")
    async with opened(token.uri) as wrapper:
        await wrapper.create_version()
        await store.switch_on(wrapper.name, 2)
        yield Scene(token, wrapper, store, log)
    await log.journal.close()
    await store.close()


class Tampering:
    """A real wrapper (or store) of which some calls are replaced."""

    def __init__(self, real: Any, **replaced: Callable[..., Any]) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_everything_moves_and_still_opens(scene: Scene, monkeypatch: Any) -> None:
    """Every row and the pepper end under the switched version, and open to the same as before;
    a second run finds nothing to do.
    """
    monkeypatch.setattr(rewrap, "BATCH", 3)
    rows = await scene.rows(7)
    pepper = await create_pepper(scene.store, scene.wrapper, version=1)
    seen: list[int] = []
    report = await scene.run(progress=seen.append)
    assert report == Report(moved=7, pepper_moved=True)
    assert seen == [3, 3, 1]
    await scene.all_open(rows, 2)
    kept = await scene.store.pepper()
    assert kept is not None
    assert kept.key_version == 2
    assert await scene.wrapper.unwrap(kept, pepper_context()) == pepper
    assert await scene.run() == Report()


async def test_each_operation_is_on_record(scene: Scene) -> None:
    """Each row has an intent and an outcome for its unwrap and for its wrap, as the operator's,
    with the versions, the workspace and the key, joined by one correlation id.
    """
    (row,) = await scene.rows(1)
    await scene.run()
    entries = [entry for entry in scene.log.entries() if entry.event.operation != "hsm.probe"]
    told = [
        (one.event.operation, one.event.phase, one.event.details["master_key_version"])
        for one in entries
    ]
    assert told == [
        ("hsm.unwrap", "intent", 1),
        ("hsm.unwrap", "outcome", 1),
        ("hsm.wrap", "intent", 2),
        ("hsm.wrap", "outcome", 2),
    ]
    assert entries[1].event.intent_index == entries[0].sequence
    assert entries[3].event.intent_index == entries[2].sequence
    assert len({one.event.correlation_id for one in entries}) == 1
    assert {(one.event.principal, one.event.key_id) for one in entries} == {(OPERATOR, row.key_id)}
    assert {one.event.details["purpose"] for one in entries} == {"data-key"}


async def test_nothing_is_unwrapped_without_its_record(scene: Scene) -> None:
    """A log that cannot be written stops the run before the device is asked, and no row moves."""
    rows = await scene.rows(2)
    await scene.log.journal.close()
    with pytest.raises(Exception, match="audit"):
        await scene.run()
    await scene.all_open(rows, 1)


async def test_a_row_that_changes_meanwhile_is_left_as_it_is(scene: Scene) -> None:
    """A row that is deleted, or moved by somebody else, between its unwrap and its swap is counted
    and not written.
    """
    rows = await scene.rows(3)
    theirs = WrappedKey(scene.wrapper.name, 9, "aes-256-gcm", b"theirs")

    async def wrap(
        data_key: bytes, context: bytes, *, version: int | None = None, reference: str = ""
    ) -> WrappedKey:
        if not tampered:
            tampered.append(True)
            await scene.store.delete("acme", rows[0].key_id, replay=None)
            await scene.store.swap([Swap(rows[1].sequence, rows[1].sealed.wrapped, theirs)])
        return await scene.wrapper.wrap(data_key, context, version=version, reference=reference)

    tampered: list[bool] = []
    report = await scene.run(Tampering(scene.wrapper, wrap=wrap))
    assert report == Report(moved=1, overtaken=2)
    assert await scene.store.get("acme", rows[0].key_id) is None
    changed = await scene.store.get("acme", rows[1].key_id)
    assert changed is not None
    assert changed.sealed.wrapped == theirs


async def test_what_does_not_open_is_told_and_the_rest_moves(scene: Scene) -> None:
    """A damaged row, one of a backend that is not listed, and a pepper of a version that is gone
    stay; each is counted by its reason and named.
    """
    damaged, foreign, whole = await scene.rows(3)
    wrapped = damaged.sealed.wrapped
    await scene.store.swap(
        [
            Swap(damaged.sequence, wrapped, dataclasses.replace(wrapped, blob=b"\x01" * 61)),
            Swap(
                foreign.sequence,
                foreign.sealed.wrapped,
                dataclasses.replace(foreign.sealed.wrapped, backend="awskms:///k"),
            ),
        ]
    )
    await scene.store.create_pepper(dataclasses.replace(wrapped, key_version=7))
    report = await scene.run()
    assert report.moved == 1
    assert report.failed == {
        "KEY_RECORD_DAMAGED": 1,
        "MASTER_KEY_NOT_CONFIGURED": 1,
        "MASTER_KEY_VERSION_MISSING": 1,
    }
    assert report.examples == ["the pepper", damaged.name, foreign.name]
    found = await scene.store.get("acme", whole.key_id)
    assert found is not None
    assert found.sealed.wrapped.key_version == 2
    outcomes = {
        entry.event.reason for entry in scene.log.entries() if entry.event.phase == "outcome"
    }
    assert outcomes == {"", "KEY_RECORD_DAMAGED", "MASTER_KEY_VERSION_MISSING"}


@pytest.mark.parametrize(
    "planted",
    [{"mechanism": "no such mechanism"}, {"mechanism": "m" * 65}, {"key_version": -1}],
    ids=["form", "length", "version"],
)
async def test_a_row_that_cannot_be_told_of_is_left(scene: Scene, planted: dict[str, Any]) -> None:
    """A row (or the pepper) whose wrapping cannot be put on record stays, and the rest moves:
    whoever writes one such row to the database does not stop the others.
    """
    odd, _whole = await scene.rows(2)
    wrapped = dataclasses.replace(odd.sealed.wrapped, **planted)
    await scene.store.swap([Swap(odd.sequence, odd.sealed.wrapped, wrapped)])
    await scene.store.create_pepper(wrapped)
    report = await scene.run()
    assert (report.moved, report.pepper_moved) == (1, False)
    assert report.failed == {"KEY_RECORD_DAMAGED": 2}
    assert report.examples == ["the pepper", odd.name]


async def test_few_names_stand_for_many(scene: Scene) -> None:
    """However many rows fail, a report names ten."""
    report = Report()
    for number in range(30):
        report.fail("KEY_RECORD_DAMAGED", f"k{number}")
    assert (report.failed["KEY_RECORD_DAMAGED"], len(report.examples)) == (30, 10)


@pytest.mark.parametrize("step", ["unwrap", "wrap"])
@pytest.mark.parametrize("fault", [Unavailable("no"), PinRefused("no")], ids=["gone", "pin"])
async def test_a_failing_device_ends_the_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str, fault: HsmError
) -> None:
    """A device that stops answering ends the run with its error and an outcome for every intent;
    what had moved has moved, and the next run does the rest.
    """
    monkeypatch.setattr(rewrap, "BATCH", 2)
    rows = await scene.rows(6)
    calls: list[int] = []
    real = getattr(scene.wrapper, step)

    async def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise fault
        return await real(*arguments, **options)

    with pytest.raises(type(fault)):
        await scene.run(Tampering(scene.wrapper, **{step: failing}))
    entries = scene.log.entries()
    intents = {one.sequence for one in entries if one.event.phase == "intent"}
    assert intents == {one.event.intent_index for one in entries if one.event.phase == "outcome"}
    assert await scene.run() == Report(moved=4)
    await scene.all_open(rows, 2)


@pytest.mark.parametrize("written", [False, True], ids=["not-written", "written"])
async def test_a_swap_that_failed_is_done_again(scene: Scene, written: bool) -> None:
    """Where the store fails in a swap, whether or not it was written, the next run ends with every
    row moved once.
    """
    rows = await scene.rows(2)

    async def swap(swaps: list[Swap]) -> Any:
        if written:
            await scene.store.swap(swaps)
        raise StoreFailed

    with pytest.raises(StoreFailed):
        await scene.run(store=Tampering(scene.store, swap=swap))
    assert await scene.run() == Report(moved=0 if written else 2)
    await scene.all_open(rows, 2)


async def test_the_rate_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch the run rests until its rows have taken their time."""
    monkeypatch.setattr(rewrap, "BATCH", 2)
    await scene.rows(4)
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    await scene.run(rate=0.001, sleep=rest)
    assert len(rests) == 2
    assert all(1900 < seconds <= 2000 for seconds in rests)


async def test_data_keys_are_wiped(scene: Scene) -> None:
    """When a batch is over, no data key of it is left in its buffer, done or failed."""
    await scene.rows(2)
    held: list[bytearray] = []

    async def wrap(
        data_key: bytearray, context: bytes, *, version: int | None = None, reference: str = ""
    ) -> WrappedKey:
        held.append(data_key)
        assert any(data_key)
        if len(held) == 2:
            raise Unavailable("no")
        return await scene.wrapper.wrap(data_key, context, version=version)

    with pytest.raises(Unavailable):
        await scene.run(Tampering(scene.wrapper, wrap=wrap))
    assert len(held) == 2
    assert not any(map(any, held))


async def test_what_is_opened_late_is_wiped_too(scene: Scene) -> None:
    """Where one row ends a batch in a way that nobody foresaw, the data keys that come after it are
    waited for, and wiped.
    """
    await scene.rows(3)
    opened: list[bytearray] = []
    go = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, go.set)

    async def unwrap(*args: Any, **options: Any) -> bytearray:
        if not opened:
            opened.append(bytearray())
            raise RuntimeError("unforeseen")
        opened.append(bytearray())
        place = len(opened) - 1
        await go.wait()
        opened[place] = await scene.wrapper.unwrap(*args, **options)
        return opened[place]

    with pytest.raises(RuntimeError):
        await scene.run(Tampering(scene.wrapper, unwrap=unwrap))
    assert [len(each) for each in opened] == [0, 32, 32]
    assert not any(map(any, opened))


MOVED_TO = [
    kind for kind in BACKENDS if kind.name in ("softhsm", "nss", "awskms-moto", "gcpkms-server")
]


@pytest.mark.parametrize("kind", MOVED_TO, ids=str)
async def test_rows_move_to_the_first_backend(
    scene: Scene, request: pytest.FixtureRequest, kind: Backend
) -> None:
    """Rows of any listed backend go to the first one, the pepper too: that is how one moves to
    another token, another module or a KMS. They open there, and without the old one.
    """
    rows = await scene.rows(3)
    pepper = await create_pepper(scene.store, scene.wrapper, version=1)
    async with kind.open(request, BackendOptions(deadline_s=30, slow_deadline_s=60)) as second:
        report = await scene.run(second, scene.wrapper)
        assert report == Report(moved=3, pepper_moved=True)
        await scene.all_open(rows, kind.versions[-1], backend=second.name)
        for number, row in enumerate(rows):
            assert await opened_key(scene.store, second, row.key_id) == KEY + b"%d" % number
        kept = await scene.store.pepper()
        assert kept is not None
        assert await second.unwrap(kept, pepper_context()) == pepper


async def test_rows_of_a_fronted_backend_move(scene: Scene, make_token: MakeToken) -> None:
    """Behind an HSM process with several backends, rows of the older ones are opened by it too."""
    rows = await scene.rows(2)
    async with opened(make_token(with_key=True).uri) as second:
        both = {each.name: each for each in (second, scene.wrapper)}

        async def unwrap(wrapped: WrappedKey, *arguments: Any, **options: Any) -> bytearray:
            return await both[wrapped.backend].unwrap(wrapped, *arguments, **options)

        front = Tampering(second, unwrap=unwrap)
        front.names = frozenset(both)
        assert await scene.run(front) == Report(moved=2)
        await scene.all_open(rows, 1, backend=second.name)
        for number, row in enumerate(rows):
            assert await opened_key(scene.store, second, row.key_id) == KEY + b"%d" % number


async def test_two_runs_at_once_harm_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs, on two machines say, move every row once between them, and all open."""
    monkeypatch.setattr(rewrap, "BATCH", 2)
    rows = await scene.rows(8)
    log = open_command_log(tmp_path / "other")
    other: KeyWrapper
    async with opened(scene.token.uri) as other:
        second = Rewrapper([other], scene.store, log.records, rate=1e6)
        first, second_report = await asyncio.gather(scene.run(), second.run())
    await log.journal.close()
    assert first.moved + second_report.moved == 8
    await scene.all_open(rows, 2)
