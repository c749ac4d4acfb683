"""What health knows of the HSM, and how it is brought back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ironwork_hsm import ConfigurationError
from ironwork_server.app.hsm_state import (
    FIRST_PAUSE_S,
    LAST_PAUSE_S,
    PROBE_INTERVAL_S,
    HsmState,
)
from ironwork_server.core.errors import Unavailable

DEADLINE_S = 20.0


def refused() -> Unavailable:
    return Unavailable("no", reason="MASTER_KEY_PIN_REFUSED")


class Probe:
    """Counts what it is asked for; fails as long as it is told to."""

    def __init__(self) -> None:
        self.checks = 0
        self.reopened = 0
        self.inside = 0
        self.failing: Exception | None = None
        self.reopening: Exception | None = None
        self.has_devices = True
        self.heals = False

    async def check(self) -> None:
        self.checks += 1
        self.inside += 1
        assert self.inside == 1, "two at once"
        await asyncio.sleep(0)
        self.inside -= 1
        if self.failing is not None:
            raise self.failing

    async def reopen(self) -> bool:
        self.reopened += 1
        if self.reopening is not None:
            raise self.reopening
        if self.heals:
            self.failing = None
        return self.has_devices


class Pauses:
    """Stands in for sleeping: every pause waits until the test has looked at it."""

    def __init__(self) -> None:
        self._begun: asyncio.Queue[float] = asyncio.Queue()
        self._over: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        self._begun.put_nowait(seconds)
        await self._over.get()

    async def next(self) -> float:
        """The next pause's length, once it has begun."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._begun.get()

    def end(self) -> None:
        self._over.put_nowait(None)


@asynccontextmanager
async def running(
    probe: Probe, chance: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[tuple[HsmState, Pauses]]:
    pauses = Pauses()
    state = HsmState(probe, pause=pauses, chance=chance)  # type: ignore[arg-type]
    task = asyncio.ensure_future(state.run())
    yield state, pauses
    task.cancel()
    await asyncio.wait([task])


async def test_a_healthy_hsm_is_never_probed() -> None:
    """Each probe is two operations in the HSM's log: none is made while all is well."""
    probe = Probe()
    async with running(probe) as (state, _):
        state.seen(True)
        for _ in range(3):
            await state.check()
            await asyncio.sleep(0)
    assert probe.checks == 0


async def test_a_suspicion_that_a_probe_clears_is_not_told() -> None:
    """One failed operation is no failed HSM: a probe decides, and at most one in two seconds."""
    probe = Probe()
    async with running(probe) as (state, pauses):
        state.seen(False)
        assert await pauses.next() == PROBE_INTERVAL_S
        for _ in range(3):
            state.seen(False)
        await state.check()
        assert (probe.checks, probe.reopened) == (1, 0)
        pauses.end()
        await pauses.next()
        await state.check()
        assert probe.checks == 2


async def test_what_opening_anew_mends_is_told_once() -> None:
    """A device that comes back at once was failing all the same: health hears of it, once."""
    probe = Probe()
    probe.failing, probe.heals = refused(), True
    async with running(probe) as (state, pauses):
        state.seen(False)
        assert await pauses.next() == PROBE_INTERVAL_S
        with pytest.raises(Unavailable) as told:
            await state.check()
        assert told.value.reason == "MASTER_KEY_PIN_REFUSED"
        await state.check()
    assert (probe.checks, probe.reopened) == (2, 1)


async def test_a_failing_device_is_tried_by_one_task_after_growing_pauses() -> None:
    """However many calls fail, one attempt is under way; pauses double up to a bound, and health
    says why until a probe succeeds.
    """
    probe = Probe()
    probe.failing = refused()
    async with running(probe) as (state, pauses):
        lengths = []
        for _ in range(6):
            for _ in range(100):
                state.seen(False)
            lengths.append(await pauses.next())
            with pytest.raises(Unavailable):
                await state.check()
            pauses.end()
        assert lengths == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
        assert (lengths[0], lengths[-1]) == (FIRST_PAUSE_S, LAST_PAUSE_S)
        probe.failing = None
        assert await pauses.next() == PROBE_INTERVAL_S
        with pytest.raises(Unavailable):
            await state.check()
        await state.check()


async def test_pauses_are_cut_by_chance() -> None:
    """Replicas that lost one HSM do not come back to it all at once."""
    probe = Probe()
    probe.failing = refused()
    async with running(probe, chance=lambda: 1.0) as (state, pauses):
        state.seen(False)
        assert await pauses.next() == FIRST_PAUSE_S / 2


async def test_what_cannot_be_opened_from_here_is_probed_only() -> None:
    """An HSM process or a cloud comes back by itself: one probe for each attempt."""
    probe = Probe()
    probe.failing, probe.has_devices = refused(), False
    async with running(probe) as (state, pauses):
        state.seen(False)
        await pauses.next()
    assert (probe.checks, probe.reopened) == (1, 1)


async def test_a_device_that_does_not_open_says_why() -> None:
    """Health has the reason of the last attempt, be it the probe's or the opening's."""
    probe = Probe()
    probe.failing = Unavailable("no", reason="MASTER_KEY_UNAVAILABLE")
    probe.reopening = refused()
    async with running(probe) as (state, pauses):
        state.seen(False)
        await pauses.next()
        with pytest.raises(Unavailable) as told:
            await state.check()
    assert told.value.reason == "MASTER_KEY_PIN_REFUSED"


async def test_a_configuration_that_cannot_work_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mechanism that the key cannot do is the master key's failure, in health as in a call."""
    probe = Probe()
    probe.failing = ConfigurationError("the pinned mechanism needs another key")
    async with running(probe) as (state, pauses):
        state.seen(False)
        await pauses.next()
        with pytest.raises(Unavailable) as told:
            await state.check()
    assert told.value.reason == "MASTER_KEY_UNAVAILABLE"
    assert not caplog.records


async def test_nothing_ends_the_task(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is told by its type, and the next attempt follows."""
    probe = Probe()
    probe.failing = ZeroDivisionError("secret text")
    async with running(probe) as (state, pauses):
        state.seen(False)
        await pauses.next()
        with pytest.raises(Unavailable) as told:
            await state.check()
        assert told.value.reason == "INTERNAL"
        probe.failing = None
        pauses.end()
        assert await pauses.next() == PROBE_INTERVAL_S
    assert {record.msg for record in caplog.records} == {"error.unexpected"}
    assert "secret text" not in caplog.text
