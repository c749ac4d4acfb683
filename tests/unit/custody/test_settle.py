"""Writes whose end nobody was told: the log says undecided, and then what the store holds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from fixtures.stores import Faults, make_faulty
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import Action, AuditEvent, Phase
from ironwork_server.custody.add_key import NewKey
from ironwork_server.custody.settle import Settler
from ironwork_server.journal import FileJournal
from unit.custody.conftest import WORKSPACE, Custody

KEY = b"sk-ant-api03-" + b"k" * 93 + b"AA"
SETTLED = {"ROW_PRESENT", "ROW_ABSENT"}

Half = Literal["before", "after"]


@pytest.fixture
def faults(custody: Custody) -> Faults:
    made = Faults()
    make_faulty(custody.store, made)
    return made


def fail_in(custody: Custody, faults: Faults, method: str, half: Half) -> None:
    """The device fails in this one write, before its commit or after."""
    real = getattr(custody.store, method)

    async def failing(*args: Any, **options: Any) -> Any:
        setattr(faults, half, True)
        try:
            return await real(*args, **options)
        finally:
            setattr(faults, half, False)

    setattr(custody.store, method, failing)


async def add(custody: Custody) -> str:
    """AddKey; the key's id."""
    async with custody.admit(Action.ADD_KEY) as permit:
        added = await custody.adder.add(permit, NewKey(KEY, "", "", False))
    return added.name.rpartition("/")[2]


async def delete(custody: Custody, key_id: str) -> None:
    async with custody.admit(Action.DELETE_KEY, key_id=key_id) as permit:
        await custody.deleter.delete(permit, key_id, cancel_in_flight=False, request_id="")


def outcomes(custody: Custody, operation: str) -> list[tuple[bool | None, str, str, int | None]]:
    """Of this operation: success, reason, key id and intent, in order."""
    return [
        (entry.event.success, entry.event.reason, entry.event.key_id, entry.event.intent_index)
        for entry in custody.entries()
        if entry.event.operation == operation and entry.event.phase == "outcome"
    ]


@asynccontextmanager
async def settling(
    custody: Custody, *, wanted: int = 1, **options: Any
) -> AsyncIterator[asyncio.Event]:
    """A settler at work; the event: it has written so much. Told by the Gate from here on."""
    settler = Settler(
        store=custody.store,
        journal=custody.journal,
        reader=custody.journal.reader(),
        retry_s=0.01,
        **options,
    )
    custody.gate._on_undecided = settler.undecided
    written, left = asyncio.Event(), wanted

    def seen(event: AuditEvent) -> None:
        nonlocal left
        left -= event.reason in SETTLED
        if left == 0:
            written.set()

    custody.journal.failing_after = seen
    running = asyncio.create_task(settler.run())
    try:
        async with asyncio.timeout(30):
            yield written
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("half", ["before", "after"])
async def test_a_deletion_whose_end_is_not_known_is_settled(
    custody: Custody, faults: Faults, half: Half
) -> None:
    """A deletion in which the device failed is called undecided, never failed; then the log says
    whether the row is there, and a key whose row is gone counts as deleted.
    """
    key_id = await add(custody)
    fail_in(custody, faults, "delete", half)
    async with settling(custody) as settled:
        with pytest.raises(Unavailable) as failed:
            await delete(custody, key_id)
        assert failed.value.reason == "STORE_UNDECIDED"
        await settled.wait()
    first, second = outcomes(custody, "DeleteKey")
    assert first[:3] == (False, "STORE_UNDECIDED", key_id)
    done = half == "after"
    assert second == (done, "ROW_ABSENT" if done else "ROW_PRESENT", key_id, first[3])
    assert custody.journal.was_deleted(WORKSPACE, key_id) is done


@pytest.mark.parametrize("half", ["before", "after"])
async def test_an_addition_whose_end_is_not_known_is_settled(
    custody: Custody, faults: Faults, half: Half
) -> None:
    """The same for a key that was being added."""
    fail_in(custody, faults, "add", half)
    async with settling(custody) as settled:
        with pytest.raises(Unavailable):
            await add(custody)
        await settled.wait()
    first, second = outcomes(custody, "AddKey")
    assert first[:2] == (False, "STORE_UNDECIDED")
    done = half == "after"
    assert second == (done, "ROW_PRESENT" if done else "ROW_ABSENT", first[2], first[3])


async def test_what_concerns_no_key_is_not_settled(custody: Custody, faults: Faults) -> None:
    """A call that was undecided before it had a key has nothing to be looked up."""
    faults.before = True
    async with settling(custody) as settled:
        with pytest.raises(Unavailable) as failed:
            await add(custody)
        assert failed.value.reason == "STORE_UNDECIDED"
        await asyncio.sleep(0.05)
        assert not settled.is_set()
    assert len(outcomes(custody, "AddKey")) == 1


async def test_a_settlement_is_tried_until_the_store_answers(
    custody: Custody, faults: Faults
) -> None:
    """While the store does not answer nothing is said, and later the truth."""
    key_id = await add(custody)
    fail_in(custody, faults, "delete", "after")
    real, tries = custody.store.settled, 0

    async def settled(workspace: str, key: str) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("x", reason="STORE_UNAVAILABLE")
        return await real(workspace, key)

    custody.store.settled = settled  # type: ignore[method-assign]
    async with settling(custody) as written:
        with pytest.raises(Unavailable):
            await delete(custody, key_id)
        await written.wait()
    assert tries == 3
    assert outcomes(custody, "DeleteKey")[-1][:2] == (True, "ROW_ABSENT")


async def test_a_start_settles_what_an_earlier_run_left(custody: Custody, faults: Faults) -> None:
    """What is undecided still, and a deletion that was killed before its outcome, is settled at the
    next start; what is decided, refused or settled is left alone, as is an addition that was killed
    before it had a key.
    """
    decided, undecided, killed = [await add_another(custody, number) for number in range(3)]
    await delete(custody, decided)
    fail_in(custody, faults, "delete", "before")
    with pytest.raises(Unavailable):
        await delete(custody, undecided)
    await intent(custody, "DeleteKey", killed)
    await intent(custody, "AddKey", "")
    await refusal(custody, killed)
    await start_again(custody)
    left = custody.journal.undecided
    async with settling(custody, wanted=2, left=left) as settled:
        await settled.wait()
    assert [end[:3] for end in outcomes(custody, "DeleteKey")] == [
        (True, "", decided),
        (False, "STORE_UNDECIDED", undecided),
        (False, "ROW_PRESENT", undecided),
        (False, "ROW_PRESENT", killed),
    ]
    await start_again(custody)
    assert custody.journal.undecided == ()


async def test_an_index_that_names_nothing_open_is_skipped(
    custody: Custody, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    """A forged snapshot's indexes, of no entry or of one that is decided, are said and passed over;
    what is undecided is settled all the same.
    """
    key_id = await add(custody)
    await intent(custody, "DeleteKey", key_id)
    await start_again(custody)
    left = [-5, 0, 1, 10_000, *custody.journal.undecided]
    async with settling(custody, left=left) as settled:
        await settled.wait()
    assert outcomes(custody, "DeleteKey") == [(False, "ROW_PRESENT", key_id, left[-1])]
    assert [record.message for record in caplog.records].count("settle.skipped") == 4


async def test_a_snapshot_keeps_what_is_undecided(custody: Custody, faults: Faults) -> None:
    """What is undecided is known after any number of starts, from the log's snapshot too."""
    key_id = await add(custody)
    fail_in(custody, faults, "delete", "before")
    with pytest.raises(Unavailable):
        await delete(custody, key_id)
    await start_again(custody)
    first = custody.journal.undecided
    await start_again(custody)
    assert custody.journal.undecided == first
    assert len(first) == 1


async def start_again(custody: Custody) -> None:
    """Close the journal and open it anew, as a restart does."""
    await custody.journal._real.close()
    custody.journal._real = FileJournal.open(custody.folder / "audit", "ironwork.test/custody")


async def add_another(custody: Custody, number: int) -> str:
    key = KEY[:-3] + str(number).encode() + KEY[-2:]
    async with custody.admit(Action.ADD_KEY) as permit:
        added = await custody.adder.add(permit, NewKey(key, "", "", False))
    return added.name.rpartition("/")[2]


async def intent(custody: Custody, operation: str, key_id: str) -> None:
    await custody.journal.append(
        AuditEvent(
            Phase.INTENT, operation, "c-1", datetime.now(UTC), workspace=WORKSPACE, key_id=key_id
        )
    )


async def refusal(custody: Custody, key_id: str) -> None:
    await custody.journal.append(
        AuditEvent(
            Phase.EVENT,
            "DeleteKey",
            "c-2",
            datetime.now(UTC),
            workspace=WORKSPACE,
            key_id=key_id,
            success=False,
            reason="PERMISSION_DENIED",
        )
    )
