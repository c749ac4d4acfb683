"""What health knows of the HSM."""

import pytest

from ironwork_server.app.hsm_state import PROBE_INTERVAL_S, HsmState
from ironwork_server.core.errors import Unavailable


class Probe:
    """Counts the probes; fails while told to."""

    def __init__(self) -> None:
        self.count = 0
        self.failing = False

    async def check(self) -> None:
        self.count += 1
        if self.failing:
            raise Unavailable("no", reason="MASTER_KEY_PIN_REFUSED")


class Clock:
    """A monotonic clock that stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[HsmState, Probe, Clock]:
    probe, clock = Probe(), Clock()
    return HsmState(probe, clock=clock), probe, clock  # type: ignore[arg-type]


async def test_a_healthy_hsm_is_never_probed() -> None:
    """Each probe is two operations in the HSM's log: none is made while all is well."""
    state, probe, _ = made()
    for _ in range(3):
        await state.check()
    state.seen(True)
    await state.check()
    assert probe.count == 0


async def test_a_failing_hsm_is_probed_at_intervals() -> None:
    """After a failed operation health asks the device; between two probes it says what it knows."""
    state, probe, clock = made()
    state.seen(False)
    probe.failing = True
    with pytest.raises(Unavailable) as first:
        await state.check()
    assert first.value.reason == "MASTER_KEY_PIN_REFUSED"
    for _ in range(3):
        with pytest.raises(Unavailable) as between:
            await state.check()
        assert between.value.reason == "MASTER_KEY_UNAVAILABLE"
    assert probe.count == 1
    clock.now += PROBE_INTERVAL_S
    with pytest.raises(Unavailable):
        await state.check()
    assert probe.count == 2


async def test_a_probe_that_succeeds_ends_the_failure() -> None:
    """A device that answers again is healthy without any call of a client."""
    state, probe, clock = made()
    state.seen(False)
    await state.check()
    await state.check()
    assert probe.count == 1
    state.seen(False)
    clock.now += PROBE_INTERVAL_S
    await state.check()
    assert probe.count == 2


async def test_an_operation_that_succeeds_ends_the_failure() -> None:
    """The next good operation says that the HSM serves, without a probe."""
    state, probe, _ = made()
    state.seen(False)
    state.seen(True)
    await state.check()
    assert probe.count == 0
