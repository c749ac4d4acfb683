"""Refusals are on record, and cannot fill the log."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from ironwork_server.access.limits import BURST_S, Limits, LimitSettings
from ironwork_server.core.errors import LimitExceeded, PermissionDenied, Unavailable
from ironwork_server.core.values import Action, AuditEvent, Claims, Phase, Resource
from ironwork_server.custody import refusals as module
from ironwork_server.custody.gate import Gate
from ironwork_server.custody.refusals import BURST, WINDOW_S, Refusals

from .conftest import Custody, a_principal


class Clock:
    """Seconds, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(
    principal: str = "spiffe://test/agent", operation: str = "WithKey", **more: str
) -> AuditEvent:
    return AuditEvent(
        phase=Phase.EVENT,
        operation=operation,
        correlation_id="00000000-0000-4000-8000-000000000000",
        time=datetime.now(UTC),
        principal=principal,
        role="agent",
        workspace="acme",
        success=False,
        reason="PERMISSION_DENIED",
        claims=Claims(task="a task"),
        **more,  # type: ignore[arg-type]  # key_id
    )


def count_of(event: AuditEvent) -> int:
    return int(event.details.get("count", 1))


class Written:
    """A journal that keeps what is appended, or cannot be written."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.failing = False

    async def append(self, *events: AuditEvent) -> list[object]:
        if self.failing:
            raise Unavailable("disk", reason="AUDIT_UNAVAILABLE")
        self.events += events
        return []

    @property
    def total(self) -> int:
        return sum(map(count_of, self.events))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def refusals(written: Written, clock: Clock) -> Refusals:
    return Refusals(written, clock=clock)  # type: ignore[arg-type]  # append is all that is used


async def many(refusals: Refusals, count: int, **more: str) -> None:
    for _ in range(count):
        await refusals.record(refusal(**more))


async def test_ten_thousand_refusals_are_few_entries_and_one_count(
    refusals: Refusals, written: Written, clock: Clock
) -> None:
    """The first stand by themselves, and the window's first; the rest is one entry with the
    number. None is lost.
    """
    await many(refusals, 10_000)
    assert len(written.events) == BURST + 1
    await refusals.flush()
    assert len(written.events) == BURST + 1, "its window is open"
    clock.now = WINDOW_S
    await refusals.flush()
    assert (len(written.events), written.total) == (BURST + 2, 10_000)
    last = written.events[-1]
    assert (last.principal, last.operation, last.reason) == (
        "spiffe://test/agent", "WithKey", "PERMISSION_DENIED",
    )  # fmt: skip
    assert last.details["window_s"] == WINDOW_S
    assert (last.claims, last.key_id) == (Claims(), ""), "what differed among them is left out"


async def test_the_first_of_each_kind_is_written_at_once(
    refusals: Refusals, written: Written
) -> None:
    """Noise does not hide another operation, another reason, or another principal."""
    await many(refusals, 1_000)
    await refusals.record(refusal(operation="DeleteKey", key_id="key-1"))
    await refusals.record(refusal(principal="spiffe://test/other"))
    assert [event.operation for event in written.events[-2:]] == ["DeleteKey", "WithKey"]
    assert written.events[-2].key_id == "key-1"
    assert written.events[-1].principal == "spiffe://test/other"


async def test_a_flood_that_goes_on_is_written_once_a_window(
    refusals: Refusals, written: Written, clock: Clock
) -> None:
    """The log grows with time and not with the number; the total is right at the end."""
    total = 0
    for second in range(100):
        clock.now = float(second)
        await many(refusals, 50)
        total += 50
        if second % 3 == 0:
            await refusals.flush()
    await refusals.close()
    assert written.total == total
    assert len(written.events) <= BURST + 100 * module.PER_S + 100 / WINDOW_S + 3


async def test_a_quiet_principal_is_forgotten(refusals: Refusals, clock: Clock) -> None:
    """Memory holds who was refused lately."""
    await many(refusals, BURST + 2)
    for _ in range(3):
        clock.now += WINDOW_S
        await refusals.flush()
    assert not refusals._accounts


async def test_many_principals_share_the_last_place(
    refusals: Refusals, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number they are counted together, and none is lost."""
    monkeypatch.setattr(module, "MAX_PRINCIPALS", 1)
    for name in "abc":
        await many(refusals, BURST + 5, principal=f"spiffe://test/{name}")
    assert set(refusals._accounts) == {"spiffe://test/a", ""}
    await refusals.close()
    assert written.total == 3 * (BURST + 5)


async def test_counts_wait_for_a_log_that_cannot_be_written(
    refusals: Refusals, written: Written, clock: Clock
) -> None:
    """A failing disk loses no count, and what is over its bound fails like every call."""
    await many(refusals, 100)
    written.failing = True
    clock.now = WINDOW_S
    for _ in range(2):
        with pytest.raises(Unavailable):
            await refusals.flush()
    clock.now = WINDOW_S * 3
    with pytest.raises(Unavailable):
        await many(refusals, 100)
    written.failing = False
    await refusals.flush()
    await refusals.close()
    assert written.total >= 100


async def test_what_waits_is_bounded(
    refusals: Refusals,
    written: Written,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With so many counts waiting, each refusal needs the log again, and fails with it."""
    monkeypatch.setattr(module, "MAX_DUE", 1)
    monkeypatch.setattr(module, "PER_S", 0.0)
    await many(refusals, BURST + 2)
    clock.now = WINDOW_S
    refusals._rates._per_s = 0.0
    refusals._rates._buckets.clear()
    await many(refusals, BURST)
    await many(refusals, 1)
    assert len(refusals._due) == 1
    written.failing = True
    with pytest.raises(Unavailable):
        await many(refusals, 1)


async def test_the_gate_counts_what_is_too_much(custody: Custody) -> None:
    """A flood of forbidden calls leaves few entries, which the end of serving completes."""
    custody.policy.allow = lambda *_: False
    for _ in range(200):
        with pytest.raises(PermissionDenied):
            async with custody.admit(Action.ADD_KEY):
                pytest.fail("admitted")
    assert len(custody.entries()) <= BURST + 3
    await custody.gate.write_refusals()
    await custody.gate.settle()
    assert '"count":' in custody.entries()[-1].text


async def test_a_log_that_fails_is_told_when_refusals_are_written(
    custody: Custody, caplog: pytest.LogCaptureFixture
) -> None:
    """The writer of counts goes on: health says what is wrong."""
    custody.policy.allow = lambda *_: False
    for _ in range(BURST + 20):
        with pytest.raises(PermissionDenied):
            async with custody.admit(Action.ADD_KEY):
                pytest.fail("admitted")
    failing: Callable[[AuditEvent], Exception] = lambda _: Unavailable(  # noqa: E731
        "disk", reason="AUDIT_UNAVAILABLE"
    )
    custody.journal.failing = failing
    await custody.gate.settle()
    assert "audit.unavailable" in caplog.messages
    custody.journal.failing = lambda _: None


async def test_calls_beyond_the_rate_are_refused_and_on_record(custody: Custody) -> None:
    """Whatever a principal may do, it may not do it at any speed."""
    limits = Limits(LimitSettings(rate_per_principal=1), clock=lambda: 0.0)
    gate = Gate(policy=lambda: custody.policy, limits=limits, journal=custody.journal)
    resource, claims = Resource("acme"), Claims()
    for _ in range(BURST_S):
        async with gate.admit(a_principal(), Action.LIST_MASKED, resource, claims):
            pass
    with pytest.raises(LimitExceeded):
        async with gate.admit(a_principal(), Action.LIST_MASKED, resource, claims):
            pytest.fail("admitted")
    assert "LIMIT_RATE_PRINCIPAL" in custody.entries()[-1].text
    await gate.settle()
