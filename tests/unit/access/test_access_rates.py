"""Token buckets: how many calls in a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.access import rates
from ironwork_server.access.limits import BURST_S, Limits, LimitSettings
from ironwork_server.access.rates import Rates
from ironwork_server.core.errors import LimitExceeded

from .test_access_limits import principal


class Clock:
    """Seconds, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(min_value=0, max_value=5), max_size=80))
def test_no_rhythm_gets_more_than_the_rate_and_its_burst(pauses: list[float]) -> None:
    """Over any time, at most burst + rate × time calls pass."""
    clock, passed = Clock(), 0
    buckets = Rates(per_s=2, burst=5, clock=clock)
    for pause in pauses:
        clock.now += pause
        passed += buckets.take("a")
    assert passed <= 5 + 2 * clock.now + 1e-6
    assert passed >= min(5, len(pauses))


def test_each_has_its_own_and_time_fills_it() -> None:
    """One that has none left takes nothing of another's, and gets one more when its time comes."""
    clock = Clock()
    buckets = Rates(per_s=0.5, burst=2, clock=clock)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    clock.now = 1.9
    assert not buckets.take("a")
    clock.now = 2.0
    assert buckets.take("a")


def test_names_are_forgotten_when_they_are_full_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by who called lately; where all did, the rest share one bucket."""
    monkeypatch.setattr(rates, "MAX_NAMES", 2)
    clock = Clock()
    buckets = Rates(per_s=1, burst=1, clock=clock)
    assert buckets.take("a")
    assert buckets.take("b")
    assert buckets.take("c"), "the shared one"
    assert not buckets.take("d"), "which is empty now"
    clock.now = 10.0
    assert buckets.take("e")
    assert len(buckets._buckets) == 1


def test_a_principal_that_is_too_fast_is_told_the_setting() -> None:
    """The refusal names the limit; a second later calls pass again."""
    clock = Clock()
    limits = Limits(LimitSettings(rate_per_principal=2), clock=clock)
    for _ in range(2 * BURST_S):
        limits.rate(principal("a"))
    with pytest.raises(LimitExceeded) as error:
        limits.rate(principal("a"))
    assert error.value.reason == "LIMIT_RATE_PRINCIPAL"
    assert error.value.metadata == {"limit": "limits.rate_per_principal", "value": "2"}
    limits.rate(principal("b"))
    clock.now = 1.0
    limits.rate(principal("a"))
