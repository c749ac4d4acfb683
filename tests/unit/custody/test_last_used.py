"""Uses are written in batches, and a store that fails them does not stop the next."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from fixtures.stores import stored_key
from ironwork_server.core.errors import DataLoss, IronworkError, Unavailable
from ironwork_server.core.values import KeyState
from ironwork_server.custody.last_used import UseRecorder

from .conftest import WORKSPACE, Custody
from .test_add_key import add
from .test_use_key import use


class Uses:
    """A store's record_uses and set_state, which may fail."""

    def __init__(self) -> None:
        self.error: IronworkError | None = None
        self.written: list[Mapping[tuple[str, str], datetime]] = []

    async def record_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        if self.error is not None:
            raise self.error
        self.written.append(uses)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("busy", reason="STORE_UNAVAILABLE"),
        DataLoss("damaged", reason="STORE_CORRUPT"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_failing_store_costs_one_batch_and_not_the_recorder(error: IronworkError) -> None:
    """Whatever of ours a write raises, that batch is forgotten and the next one is written."""
    store: Any = Uses()
    recorder = UseRecorder(store)
    recorder.note(stored_key(), rejected=False)
    store.error = error
    await recorder.flush()
    store.error = None
    key = stored_key()
    recorder.note(key, rejected=False)
    await recorder.flush()
    assert [set(uses) for uses in store.written] == [{(key.workspace, key.key_id)}]


async def test_a_use_is_noted_and_written(custody: Custody) -> None:
    """Last use, and Anthropic's 401, are in the store after the next flush."""
    await add(custody)
    custody.anthropic.status = 401
    await use(custody)
    await custody.uses.flush()
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    assert row.last_used_at is not None
    assert row.state is KeyState.REJECTED_BY_ANTHROPIC
    await use(custody)
    await custody.uses.flush()


async def test_notes_of_uses_are_bounded(custody: Custody, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than the bound are not noted; those that are there go on being."""
    monkeypatch.setattr("ironwork_server.custody.last_used.MAX_NOTED", 1)
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    recorder = UseRecorder(custody.store)
    recorder.note(row, rejected=False)
    recorder.note(replace(row, key_id="another"), rejected=True)
    recorder.note(row, rejected=False)
    assert len(recorder._uses) == 1
    assert not recorder._rejected


async def test_uses_that_cannot_be_written_are_said_and_forgotten(
    custody: Custody, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing store costs the note of a use, never a call; an idle flush writes nothing."""
    await custody.uses.flush()
    await add(custody)
    row = await custody.store.current(WORKSPACE)
    assert row is not None

    async def fail(uses: object) -> None:
        raise Unavailable("x", reason="STORE_UNAVAILABLE")

    custody.store.record_uses = fail  # type: ignore[method-assign]
    custody.uses.note(row, rejected=False)
    await custody.uses.flush()
    assert "uses.not_written" in caplog.messages


async def test_uses_are_written_at_intervals(custody: Custody) -> None:
    """The recorder flushes until it is cancelled."""
    recorder = UseRecorder(custody.store, interval_s=0.001)
    flushed = asyncio.Event()

    async def flush() -> None:
        flushed.set()

    recorder.flush = flush  # type: ignore[method-assign]
    running = asyncio.create_task(recorder.run())
    await flushed.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
