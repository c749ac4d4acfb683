"""The Gate's rules."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ironwork_server.access.limits import Limits, LimitSettings
from ironwork_server.core.errors import LimitExceeded, PermissionDenied, Unavailable
from ironwork_server.core.values import (
    Action,
    AuditEvent,
    AuditReference,
    Claims,
    Phase,
    Principal,
    Resource,
)
from ironwork_server.custody import gate as gate_module
from ironwork_server.custody.gate import Gate, Permit

from .conftest import Custody, a_principal


def _fail(phase: Phase, operation: str | None = None) -> object:
    def failing(event: AuditEvent) -> Exception | None:
        if event.phase is phase and operation in {None, event.operation}:
            return Unavailable("disk", reason="AUDIT_UNAVAILABLE")
        return None

    return failing


async def test_an_admission_is_recorded_before_and_after(custody: Custody) -> None:
    """An intent stands in the log before the act, and its outcome after it."""
    async with custody.admit(Action.LIST_MASKED) as permit:
        (intent,) = custody.entries()
        assert intent.event.phase == "intent"
        assert permit.intent.index == intent.sequence
    intent, outcome = custody.entries()
    assert outcome.event.phase == "outcome"
    assert outcome.event.intent_index == intent.sequence
    assert outcome.event.success is True
    assert intent.event.correlation_id == outcome.event.correlation_id


async def test_what_policy_denies_is_refused_and_recorded(custody: Custody) -> None:
    """A denied call gets PERMISSION_DENIED, an entry of its own, and no Permit."""
    custody.policy.allow = lambda *_: False
    with pytest.raises(PermissionDenied):
        async with custody.admit(Action.ADD_KEY):
            pytest.fail("admitted")
    (entry,) = custody.entries()
    assert (entry.event.phase, entry.event.reason) == ("event", "PERMISSION_DENIED")


async def test_who_may_never_do_it_is_refused_on_record(custody: Custody) -> None:
    """Refused before its request is read, a call stands in the log, on the own workspace."""
    principal = a_principal("agent")
    await custody.gate.check_ever(principal, Action.DELETE_KEY, Claims())
    assert custody.entries() == []
    custody.policy.ever = False
    with pytest.raises(PermissionDenied):
        await custody.gate.check_ever(principal, Action.DELETE_KEY, Claims())
    (entry,) = custody.entries()
    assert (entry.event.operation, entry.event.reason) == ("DeleteKey", "PERMISSION_DENIED")
    assert (entry.event.principal, entry.event.workspace) == (principal.spiffe_id, "acme")


async def test_an_expired_certificate_is_refused_whatever_the_policy(custody: Custody) -> None:
    """A principal whose certificate has expired may do nothing."""
    expired = Principal(
        "spiffe://test/a", "agent", "acme", datetime.now(UTC) - timedelta(seconds=1)
    )
    with pytest.raises(PermissionDenied):
        async with custody.admit(Action.WITH_KEY, principal=expired):
            pytest.fail("admitted")


async def test_a_limit_refuses_and_is_recorded(custody: Custody) -> None:
    """A call over a limit is refused with the limit's reason, which the log holds."""
    gate = Gate(
        policy=lambda: custody.policy,
        limits=Limits(LimitSettings(unary_per_principal=1)),
        journal=custody.journal,
    )
    principal, resource = a_principal(), Resource("acme")
    async with gate.admit(principal, Action.ADD_KEY, resource, Claims()):
        with pytest.raises(LimitExceeded):
            async with gate.admit(principal, Action.ADD_KEY, resource, Claims()):
                pytest.fail("admitted")
    async with gate.admit(principal, Action.ADD_KEY, resource, Claims()):
        pass
    assert [e.event.reason for e in custody.entries() if e.event.reason] == [
        "LIMIT_UNARY_CALLS_PRINCIPAL"
    ]


async def test_open_streams_are_counted_and_their_refusal_recorded(custody: Custody) -> None:
    """A stream over the limit is refused and recorded; a closed one gives its place back."""
    gate = Gate(
        policy=lambda: custody.policy,
        limits=Limits(LimitSettings(streams_per_principal=1)),
        journal=custody.journal,
    )
    principal = a_principal("agent")
    async with gate.stream(principal, Claims()):
        with pytest.raises(LimitExceeded):
            async with gate.stream(principal, Claims()):
                pytest.fail("opened")
    async with gate.stream(principal, Claims()):
        pass
    (entry,) = custody.entries()
    assert entry.event.reason == "LIMIT_OPEN_STREAMS_PRINCIPAL"


async def test_nothing_is_done_where_the_intent_cannot_be_written(custody: Custody) -> None:
    """Without a durable intent there is no Permit."""
    custody.journal.failing = _fail(Phase.INTENT)  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        async with custody.admit(Action.ADD_KEY):
            pytest.fail("admitted")


async def test_a_call_fails_where_its_outcome_is_not_written(custody: Custody) -> None:
    """An outcome that cannot be written fails the call, whose intent is on record."""
    custody.journal.failing = _fail(Phase.OUTCOME)  # type: ignore[assignment]
    with pytest.raises(Unavailable) as failed:
        async with custody.admit(Action.LIST_MASKED):
            pass
    assert failed.value.reason == "AUDIT_UNAVAILABLE"
    assert [e.event.phase for e in custody.entries()] == ["intent"]


async def test_a_call_fails_where_its_outcomes_write_is_not_confirmed(custody: Custody) -> None:
    """An outcome that was written but not confirmed fails the call all the same."""
    custody.journal.failing_after = _fail(Phase.OUTCOME)  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        async with custody.admit(Action.LIST_MASKED):
            pass
    assert [e.event.phase for e in custody.entries()] == ["intent", "outcome"]


async def test_an_outcome_that_hangs_fails_the_call(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for an outcome has a deadline."""
    monkeypatch.setattr(gate_module, "OUTCOME_DEADLINE_S", 0.01)
    release = asyncio.Event()
    real = custody.journal.append

    async def hang(*events: AuditEvent) -> object:
        if events[0].phase is Phase.OUTCOME:
            await release.wait()
        return await real(*events)

    custody.journal.append = hang  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable):
        async with custody.admit(Action.LIST_MASKED):
            pass
    release.set()


async def test_the_outcome_says_how_the_act_ended(custody: Custody) -> None:
    """Our errors are recorded by their reason, foreign ones as INTERNAL, a lost client as such."""
    for error, reason in (
        (PermissionDenied("no", reason="NO_KEY"), "NO_KEY"),
        (ValueError("secret text"), "INTERNAL"),
        (asyncio.CancelledError(), "DISCONNECTED"),
    ):
        with pytest.raises(type(error)):
            async with custody.admit(Action.LIST_MASKED):
                raise error
        assert custody.entries()[-1].event.reason == reason
        assert "secret text" not in custody.entries()[-1].text


async def test_the_outcome_is_written_although_the_task_is_cancelled(custody: Custody) -> None:
    """A task cancelled while its outcome is being written does not lose it."""
    entered, proceed = asyncio.Event(), asyncio.Event()
    real = custody.journal.append

    async def slow(*events: AuditEvent) -> object:
        if events[0].phase is Phase.OUTCOME:
            entered.set()
            await proceed.wait()
        return await real(*events)

    custody.journal.append = slow  # type: ignore[method-assign,assignment]

    async def act() -> None:
        async with custody.admit(Action.LIST_MASKED):
            pass

    task = asyncio.create_task(act())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    proceed.set()
    await custody.gate.settle()
    assert custody.entries()[-1].event.phase == "outcome"


async def test_an_outcome_lost_after_a_cancellation_is_loud(
    custody: Custody, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody waits for a lost outcome any more, the service's log tells of it."""
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def broken(*events: AuditEvent) -> object:
        if events[0].phase is Phase.INTENT:
            return [AuditReference("o", 0)]
        entered.set()
        await proceed.wait()
        raise Unavailable("disk", reason="AUDIT_UNAVAILABLE")

    custody.journal.append = broken  # type: ignore[method-assign,assignment]

    async def act() -> None:
        async with custody.admit(Action.LIST_MASKED):
            pass

    task = asyncio.create_task(act())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    proceed.set()
    await custody.gate.settle()
    assert "audit.outcome_lost" in caplog.messages


async def test_settling_waits_for_calls_that_are_under_way(custody: Custody) -> None:
    """A call is seen to its end, its outcome included."""
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def act() -> None:
        async with custody.admit(Action.LIST_MASKED):
            entered.set()
            await proceed.wait()

    task = asyncio.create_task(act())
    await entered.wait()
    settling = asyncio.create_task(custody.gate.settle())
    await asyncio.sleep(0)
    assert not settling.done()
    proceed.set()
    await settling
    assert custody.entries()[-1].event.phase == "outcome"
    await task


async def test_settling_with_nothing_under_way_returns_at_once(custody: Custody) -> None:
    """Shutdown waits for outcomes only where there are any."""
    await custody.gate.settle()


async def test_only_a_gate_makes_permits(custody: Custody) -> None:
    """A Permit cannot be made by hand."""
    with pytest.raises(TypeError, match="only a Gate"):
        Permit(
            object(),
            principal=a_principal(),
            action=Action.WITH_KEY,
            resource=Resource("acme"),
            correlation_id="x",
            intent=AuditReference("o", 0),
            claims=Claims(),
            journal=custody.journal,
        )


async def test_a_permit_is_worth_nothing_after_its_admission(custody: Custody) -> None:
    """A Permit kept beyond its call, or used for another action, opens nothing."""
    async with custody.admit(Action.ADD_KEY) as permit:
        permit.require(Action.ADD_KEY)
        with pytest.raises(PermissionDenied):
            permit.require(Action.WITH_KEY)
    with pytest.raises(PermissionDenied):
        permit.require(Action.ADD_KEY)


async def test_the_log_itself_is_in_no_workspace(custody: Custody) -> None:
    """A Permit for the audit log names no workspace to use a key of."""
    async with custody.admit(Action.READ_AUDIT) as permit:
        with pytest.raises(PermissionDenied):
            _ = permit.workspace


async def test_a_call_records_a_bounded_number_of_events(custody: Custody) -> None:
    """One call cannot fill the log's queue."""
    async with custody.admit(Action.LIST_MASKED) as permit:
        for _ in range(gate_module.MAX_RECORDS):
            permit.after(permit.event(Phase.EVENT, "test.event"))
        with pytest.raises(Unavailable):
            permit.after(permit.event(Phase.EVENT, "test.event"))


async def test_a_value_that_the_log_may_not_hold_is_left_out(
    custody: Custody, caplog: pytest.LogCaptureFixture
) -> None:
    """An odd value from Anthropic is dropped from the outcome, and the outcome is kept."""
    async with custody.admit(Action.LIST_MASKED) as permit:
        permit.note(organization_id="two\nlines", http_status=200)
    assert "two" not in custody.entries()[-1].text
    assert '"http_status":200' in custody.entries()[-1].text.replace(" ", "")
    assert "audit.detail_left_out" in caplog.messages


class Publishing:
    """What the gate asks of the log's publisher."""

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.sick = False
        self.late = False

    def require(self) -> None:
        if self.sick:
            raise Unavailable("sick", reason="CHECKPOINT_UNAVAILABLE")

    async def published(self, reference: AuditReference) -> None:
        self.indexes.append(reference.index)
        if self.late:
            raise Unavailable("late", reason="CHECKPOINT_UNAVAILABLE")


@pytest.mark.parametrize("action", [Action.ADD_KEY, Action.DELETE_KEY, Action.LIST_MASKED])
async def test_admin_calls_wait_for_their_checkpoint(
    custody: Custody, action: Action, caplog: pytest.LogCaptureFixture
) -> None:
    """AddKey and DeleteKey are acknowledged once their outcome is published; while nothing can be,
    they are refused before they act. Other calls do not wait. No outcome is called lost by that.
    """
    publishing = Publishing()
    gate = Gate(
        policy=lambda: custody.policy,
        limits=Limits(LimitSettings()),
        journal=custody.journal,
        publisher=publishing,
    )
    writes = action is not Action.LIST_MASKED
    async with gate.admit(a_principal(), action, Resource("acme"), Claims()):
        pass
    assert publishing.indexes == ([1] if writes else [])
    publishing.late = True
    if writes:
        with pytest.raises(Unavailable, match="late"):
            async with gate.admit(a_principal(), action, Resource("acme"), Claims()):
                pass
        assert "audit.outcome_lost" not in caplog.messages
        publishing.sick = True
        with pytest.raises(Unavailable, match="sick"):
            async with gate.admit(a_principal(), action, Resource("acme"), Claims()):
                pytest.fail("it acts")
        assert custody.entries()[-1].event.reason == "CHECKPOINT_UNAVAILABLE"
        return
    publishing.sick = True
    async with gate.admit(a_principal(), action, Resource("acme"), Claims()):
        pass


async def test_a_failed_admin_call_waits_for_nothing(custody: Custody) -> None:
    """What was not done need not be published before it is answered."""
    publishing = Publishing()
    gate = Gate(
        policy=lambda: custody.policy,
        limits=Limits(LimitSettings()),
        journal=custody.journal,
        publisher=publishing,
    )
    with pytest.raises(Unavailable, match="no"):
        async with gate.admit(a_principal(), Action.ADD_KEY, Resource("acme"), Claims()):
            raise Unavailable("no", reason="AUDIT_UNAVAILABLE")
    assert publishing.indexes == []
