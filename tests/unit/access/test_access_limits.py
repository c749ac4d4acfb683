"""Limits count what is open; refusals of unauthenticated peers become few records."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.limits import (
    MAX_REASONS,
    OTHER_REASONS,
    Limits,
    LimitSettings,
    RefusalAggregator,
    RefusalSummary,
)
from ironwork_server.core.errors import LimitExceeded
from ironwork_server.core.values import Principal

SMALL = LimitSettings(
    streams_per_principal=2,
    streams_per_workspace=3,
    requests_per_principal=2,
    requests_per_workspace=3,
    unary_per_principal=2,
    unary_per_workspace=3,
)
KINDS = ("stream", "request", "unary")
REASONS = {"stream": "OPEN_STREAMS", "request": "REQUESTS", "unary": "UNARY_CALLS"}
PREFIXES = {"stream": "streams", "request": "requests", "unary": "unary"}


def principal(name: str, workspace: str | None = "acme") -> Principal:
    return Principal(f"spiffe://td/{name}", "agent", workspace, datetime(2100, 1, 1, tzinfo=UTC))


def take(limits: Limits, kind: str, who: Principal) -> AbstractContextManager[None]:
    if kind == "stream":
        return limits.stream(who)
    method: Callable[..., AbstractContextManager[None]] = getattr(limits, kind)
    return method(who, who.workspace)


def refusal(limits: Limits, kind: str, who: Principal) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught, take(limits, kind, who):
        pass
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_principal_holds_as_many_as_its_limit_and_no_more(kind: str) -> None:
    """The refusal names the setting, its value and when to try again; giving one back helps."""
    limits = Limits(SMALL)
    with take(limits, kind, principal("a")):
        with take(limits, kind, principal("a")):
            error = refusal(limits, kind, principal("a"))
            assert error.reason == f"LIMIT_{REASONS[kind]}_PRINCIPAL"
            setting = f"limits.{PREFIXES[kind]}_per_principal"
            assert error.metadata == {"limit": setting, "value": "2"}
            assert setting in error.message
            assert error.retry_after_s is not None
            assert error.retry_after_s > 0
        with take(limits, kind, principal("a")):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_workspace_holds_as_many_as_its_limit_and_no_more(kind: str) -> None:
    """Principals of one workspace share its limit; another workspace has its own."""
    limits = Limits(SMALL)
    with ExitStack() as stack:
        for name in "abc":
            stack.enter_context(take(limits, kind, principal(name)))
        error = refusal(limits, kind, principal("d"))
        assert error.reason == f"LIMIT_{REASONS[kind]}_WORKSPACE"
        assert error.metadata == {"limit": f"limits.{PREFIXES[kind]}_per_workspace", "value": "3"}
        with take(limits, kind, principal("d", "globex")):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_principal_without_workspace_counts_for_itself_alone(kind: str) -> None:
    """An auditor belongs to no workspace, so only its own limit holds."""
    limits = Limits(SMALL)
    with ExitStack() as stack:
        for name in "abcde":
            stack.enter_context(take(limits, kind, principal(name, None)))
        stack.enter_context(take(limits, kind, principal("a", None)))
        assert refusal(limits, kind, principal("a", None)).reason.endswith("_PRINCIPAL")


def test_a_refusal_counts_nothing_and_what_fails_is_given_back() -> None:
    """However a call ends, its count ends with it, and memory holds only what is open."""
    limits = Limits(SMALL)
    with limits.stream(principal("a")), limits.stream(principal("a")):
        for _ in range(5):
            refusal(limits, "stream", principal("a"))
        assert limits.open_counts() == {"streams": 2, "requests": 0, "unary": 0}
    with pytest.raises(RuntimeError), limits.request(principal("a"), "acme"):
        raise RuntimeError
    assert not limits._counts


def test_the_kinds_are_counted_apart() -> None:
    """A full stream limit refuses no request and no unary call."""
    limits = Limits(LimitSettings(streams_per_principal=1))
    with (
        limits.stream(principal("a")),
        limits.request(principal("a"), "acme"),
        limits.unary(principal("a"), "acme"),
    ):
        assert limits.open_counts() == {"streams": 1, "requests": 1, "unary": 1}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=60))
def test_no_order_of_opening_and_closing_breaks_the_limits(steps: list[tuple[str, bool]]) -> None:
    """At every step what is open is within the limits, and at the end nothing is left."""
    limits = Limits(SMALL)
    held: dict[str, list[AbstractContextManager[None]]] = {"a": [], "b": []}
    for name, opens in steps:
        if opens:
            expected = len(held[name]) < 2 and sum(map(len, held.values())) < 3
            stream = limits.stream(principal(name))
            try:
                stream.__enter__()
            except LimitExceeded:
                assert not expected
            else:
                assert expected
                held[name].append(stream)
        elif held[name]:
            held[name].pop().__exit__(None, None, None)
        assert limits.open_counts()["streams"] == sum(map(len, held.values()))
    for streams in held.values():
        for stream in streams:
            stream.__exit__(None, None, None)
    assert not limits._counts


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8"])
def test_a_limit_that_is_no_positive_number_is_refused_by_name(value: object) -> None:
    """There is no unlimited: a setting is a whole number of at least 1."""
    with pytest.raises(AccessConfigurationError) as error:
        LimitSettings(requests_per_workspace=value)  # type: ignore[arg-type]
    assert error.value.source == "limits.requests_per_workspace"


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_flood_of_refusals_gives_one_summary_a_window() -> None:
    """The first is told of at once; the rest of a window together, when it has passed."""
    clock = Clock()
    aggregator = RefusalAggregator(window_s=10, clock=clock)
    assert aggregator.refused("CERTIFICATE_EXPIRED") == RefusalSummary("CERTIFICATE_EXPIRED", 1, 0)
    for _ in range(1000):
        assert aggregator.refused("CERTIFICATE_EXPIRED") is None
    clock.time += 9.9
    assert aggregator.refused("CERTIFICATE_EXPIRED") is None
    assert aggregator.due() == []
    clock.time += 0.1
    summary = aggregator.refused("CERTIFICATE_EXPIRED")
    assert summary == RefusalSummary("CERTIFICATE_EXPIRED", 1002, pytest.approx(10))
    assert aggregator.refused("CERTIFICATE_EXPIRED") is None


def test_reasons_are_counted_apart_and_flushed_without_a_further_refusal() -> None:
    """due() tells of windows that have ended, so that no count waits for the next attack."""
    clock = Clock()
    aggregator = RefusalAggregator(window_s=10, clock=clock)
    assert aggregator.refused("A") is not None
    assert aggregator.refused("B") is not None
    assert aggregator.refused("B") is None
    clock.time += 10
    assert aggregator.due() == [RefusalSummary("B", 1, 10)]
    assert aggregator.due() == []


def test_the_end_leaves_no_count_untold() -> None:
    """rest() tells of windows that have not ended too, once."""
    clock = Clock()
    aggregator = RefusalAggregator(window_s=10, clock=clock)
    for reason in "AAAB":
        aggregator.refused(reason)
    clock.time += 4
    assert aggregator.rest() == [RefusalSummary("A", 2, 4)]
    assert aggregator.rest() == []


def test_a_reason_that_falls_quiet_is_forgotten() -> None:
    """After a quiet window the next refusal is a first one again."""
    clock = Clock()
    aggregator = RefusalAggregator(window_s=10, clock=clock)
    aggregator.refused("A")
    clock.time += 10
    assert aggregator.due() == []
    assert not aggregator._windows
    assert aggregator.refused("A") == RefusalSummary("A", 1, 0)


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 15)), max_size=100))
def test_every_refusal_is_in_exactly_one_summary(steps: list[tuple[str, int]]) -> None:
    """No count is lost or told twice, and each reason has at most one summary in a window."""
    clock = Clock()
    aggregator = RefusalAggregator(window_s=10, clock=clock)
    told: list[tuple[float, RefusalSummary]] = []
    for reason, pause in steps:
        clock.time += pause
        summary = aggregator.refused(reason)
        if summary is not None:
            told.append((clock.time, summary))
    clock.time += 10
    told.extend((clock.time, summary) for summary in aggregator.due())
    for reason in "AB":
        mine = [(time, summary) for time, summary in told if summary.reason == reason]
        count = sum(1 for name, _ in steps if name == reason)
        assert sum(summary.count for _, summary in mine) == count
        times = [time for time, _ in mine]
        assert all(later - earlier >= 10 for earlier, later in pairwise(times))


def test_the_number_of_reasons_is_bounded() -> None:
    """Should reasons ever be many, the surplus is counted under one name."""
    aggregator = RefusalAggregator(clock=Clock())
    for number in range(MAX_REASONS):
        assert aggregator.refused(f"R{number}") is not None
    assert aggregator.refused("ONE_MORE") == RefusalSummary(OTHER_REASONS, 1, 0)
    assert aggregator.refused("AND_ANOTHER") is None
    assert len(aggregator._windows) == MAX_REASONS + 1
