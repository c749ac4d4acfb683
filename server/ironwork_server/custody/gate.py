"""The Gate: nothing is done, and nothing decrypted, without its record.

`admit` decides by policy and limits, makes the audit intent durable, and lends a Permit; the
outcome is recorded when the act is over, however it ended. A Permit is the only thing that the
vault accepts, and only a Gate can make one.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

from ironwork_audit import fits
from ironwork_server.access.limits import Limits
from ironwork_server.core.errors import (
    IronworkError,
    LimitExceeded,
    Unavailable,
    permission_denied,
)
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.ports import Journal, Policy
from ironwork_server.core.values import (
    Action,
    AuditEvent,
    AuditReference,
    Claims,
    Phase,
    Principal,
    Resource,
)
from ironwork_server.custody.refusals import Refusals
from ironwork_server.custody.uninterrupted import checkpoint, uninterrupted
from ironwork_server.store import REASON_UNDECIDED

log = logging.getLogger(__name__)

# One Claude request may cause a handful of HSM operations (a stale read is prepared again).
MAX_RECORDS = 16
# How long an outcome may take to reach the disk before the call is answered as failed.
OUTCOME_DEADLINE_S = 10.0

# Acknowledged only once a signed checkpoint covers their outcome.
PUBLISHED = frozenset({Action.ADD_KEY, Action.DELETE_KEY})

_MINT = object()


class Publisher(Protocol):
    """Publishes the log; both raise Unavailable."""

    def require(self) -> None:
        """Refuse while nothing can be published."""

    async def published(self, reference: AuditReference) -> None:
        """Wait until the entry is under a published checkpoint."""


class Permit:
    """Leave to do one thing, once, now: who, what, on which workspace, and under which record.

    Made by Gate.admit only, and worth nothing after it: `require` refuses a closed one.
    """

    def __init__(
        self,
        mint: object,
        *,
        principal: Principal,
        action: Action,
        resource: Resource,
        correlation_id: str,
        intent: AuditReference,
        claims: Claims,
        journal: Journal,
    ) -> None:
        if mint is not _MINT:
            raise TypeError("only a Gate makes a Permit")
        self.principal = principal
        self.action = action
        self.resource = resource
        self.correlation_id = correlation_id
        self.intent = intent
        self.claims = claims
        self._journal = journal
        self._open = True
        self._key_id = resource.key_id or ""
        self._details: dict[str, str | int] = {}
        self._pending: list[asyncio.Task[object]] = []

    @property
    def workspace(self) -> str:
        """The workspace acted on; every action but reading the log has one."""
        if self.resource.workspace is None:
            raise permission_denied()
        return self.resource.workspace

    def require(self, *actions: Action) -> None:
        """Refuse to go on unless this Permit is open and for one of these actions."""
        if not self._open or self.action not in actions:
            raise permission_denied()

    def note(self, *, key_id: str | None = None, **details: str | int) -> None:
        """Add to the outcome's record; names are ironwork_audit's allow list. A value that does
        not fit there (Anthropic sent something odd) is left out: the outcome must not be lost.
        """
        if key_id is not None:
            self._key_id = key_id
        for name, value in details.items():
            if fits(name, value):
                self._details[name] = value
            else:
                log.warning("audit.detail_left_out", extra={"component": name})

    def event(
        self,
        phase: Phase,
        operation: str,
        *,
        success: bool | None = None,
        reason: str = "",
        intent_index: int | None = None,
        key_id: str | None = None,
        details: dict[str, str | int] | None = None,
    ) -> AuditEvent:
        """An event of this call, with its principal, workspace and correlation id."""
        return AuditEvent(
            phase=phase,
            operation=operation,
            correlation_id=self.correlation_id,
            time=datetime.now(UTC),
            principal=self.principal.spiffe_id,
            role=self.principal.role,
            workspace=self.resource.workspace or "",
            key_id=self._key_id if key_id is None else key_id,
            claims=self.claims,
            success=success,
            reason=reason,
            details=details or {},
            intent_index=intent_index,
        )

    async def before(self, event: AuditEvent) -> AuditReference:
        """Make an intent durable; the act may follow when this returns. Whoever is cancelled
        meanwhile is so afterwards, where an outcome is recorded for what the log holds.
        """
        (reference,) = await uninterrupted(self._journal.append(event))
        return reference

    def after(self, event: AuditEvent) -> None:
        """Record an outcome without waiting for it; the Gate waits before the call is answered."""
        if len(self._pending) >= MAX_RECORDS:
            raise Unavailable("Too many records for one call.", reason="AUDIT_UNAVAILABLE")
        self._pending.append(asyncio.ensure_future(self._journal.append(event)))

    async def close(self, *, success: bool, reason: str) -> tuple[AuditEvent, AuditReference]:
        """Record the outcome and end the Permit; the Gate's to call. Gives the outcome and where
        it stands.
        """
        self._open = False
        outcome = self.event(
            Phase.OUTCOME,
            self.action.value,
            success=success,
            reason=reason,
            intent_index=self.intent.index,
            details=self._details,
        )
        written = asyncio.ensure_future(self._journal.append(outcome))
        self._pending.append(written)
        done, late = await asyncio.wait(self._pending, timeout=OUTCOME_DEADLINE_S)
        failed = [task for task in done if task.cancelled() or task.exception() is not None]
        if late or failed:
            raise Unavailable(
                "The audit log cannot record this call's outcome.", reason="AUDIT_UNAVAILABLE"
            )
        (reference,) = written.result()
        return outcome, reference


class Gate:
    """Policy, limits and the record, in that order, before anything else."""

    def __init__(
        self,
        *,
        policy: Callable[[], Policy],
        limits: Limits,
        journal: Journal,
        meter: Meter = SILENT,
        on_undecided: Callable[[AuditEvent], None] = lambda outcome: None,
        publisher: Publisher | None = None,
    ) -> None:
        """on_undecided: told of an outcome on record that says STORE_UNDECIDED. publisher: None
        where nothing is published, as in tests of something else.
        """
        self._on_undecided = on_undecided
        self._policy = policy
        self._limits = limits
        self._journal = journal
        self._publisher = publisher
        self._refusals = Refusals(journal)
        self._meter = meter
        # Done when its admission is over: a call is seen to its end also when its RPC has ended.
        self._open: set[asyncio.Future[None]] = set()
        # Outcomes still being written for calls whose task was cancelled; each ends by itself.
        self._closing: set[asyncio.Task[tuple[AuditEvent, AuditReference]]] = set()

    async def check(
        self, principal: Principal, action: Action, resource: Resource, claims: Claims
    ) -> None:
        """The policy's decision alone, for a stream's start; a refusal is recorded."""
        if self.permits(principal, action, resource):
            return
        error = permission_denied()
        await self._refuse(principal, action, resource, claims, error.reason)
        raise error

    async def check_ever(self, principal: Principal, action: Action, claims: Claims) -> None:
        """Refuse whom no policy permits this on anything, before its request is read; on record as
        a call on the principal's own workspace. PermissionDenied; Unavailable.
        """
        if self._policy().may_ever(principal, action):
            return
        error = permission_denied()
        await self._refuse(principal, action, Resource(principal.workspace), claims, error.reason)
        raise error

    def permits(self, principal: Principal, action: Action, resource: Resource) -> bool:
        """The policy's decision for a certificate that is still valid."""
        if principal.expires_at <= datetime.now(UTC):
            return False
        return self._policy().permits(principal, action, resource.workspace)

    @asynccontextmanager
    async def stream(self, principal: Principal, claims: Claims) -> AsyncIterator[None]:
        """A place among the open WithKey streams, and nothing else: `check` decides whether this
        one may be used, and each Claude request on it is admitted by itself.
        """
        own = Resource(principal.workspace)
        limit = self._limits.stream(principal)
        async with self._counted(limit, principal, Action.WITH_KEY, own, claims):
            yield

    @asynccontextmanager
    async def admit(
        self,
        principal: Principal,
        action: Action,
        resource: Resource,
        claims: Claims,
        **details: str | int,
    ) -> AsyncIterator[Permit]:
        """Decide, count, record the intent; lend a Permit; record the outcome.

        Raises PermissionDenied, LimitExceeded, or Unavailable (AUDIT_UNAVAILABLE), and then
        nothing was done. Where the outcome cannot be recorded, or an admin call's not published
        (CHECKPOINT_UNAVAILABLE), the call fails, although the act may have happened: the log then
        holds what is known of it.
        """
        await self.check(principal, action, resource, claims)
        await self._in_time(principal, action, resource, claims)
        limit = self._limit(principal, action, resource)
        async with self._counted(limit, principal, action, resource, claims):
            permit = await self._intend(principal, action, resource, claims, details)
            async with self._recorded(permit):
                if action in PUBLISHED and self._publisher is not None:
                    self._publisher.require()
                yield permit

    async def _in_time(
        self, principal: Principal, action: Action, resource: Resource, claims: Claims
    ) -> None:
        """The rate of calls; a refusal is recorded."""
        try:
            self._limits.rate(principal)
        except LimitExceeded as error:
            await self._refuse(principal, action, resource, claims, error.reason)
            raise

    @asynccontextmanager
    async def _counted(
        self,
        limit: AbstractContextManager[None],
        principal: Principal,
        action: Action,
        resource: Resource,
        claims: Claims,
    ) -> AsyncIterator[None]:
        """Hold a place under a limit; where there is none, the refusal is recorded."""
        with ExitStack() as held:
            try:
                held.enter_context(limit)
            except LimitExceeded as error:
                await self._refuse(principal, action, resource, claims, error.reason)
                raise
            yield

    def _limit(
        self, principal: Principal, action: Action, resource: Resource
    ) -> AbstractContextManager[None]:
        if action is Action.WITH_KEY:
            return self._limits.request(principal, resource.workspace)
        return self._limits.unary(principal, resource.workspace)

    async def _intend(
        self,
        principal: Principal,
        action: Action,
        resource: Resource,
        claims: Claims,
        details: dict[str, str | int],
    ) -> Permit:
        correlation_id = str(uuid.uuid4())
        event = AuditEvent(
            phase=Phase.INTENT,
            operation=action.value,
            correlation_id=correlation_id,
            time=datetime.now(UTC),
            principal=principal.spiffe_id,
            role=principal.role,
            workspace=resource.workspace or "",
            key_id=resource.key_id or "",
            claims=claims,
            details={"policy_version": self._policy().version, **details},
        )
        # A caller that goes now gets its outcome too: no intent is left open.
        (intent,) = await uninterrupted(self._journal.append(event))
        return Permit(
            _MINT,
            principal=principal,
            action=action,
            resource=resource,
            correlation_id=correlation_id,
            intent=intent,
            claims=claims,
            journal=self._journal,
        )

    @asynccontextmanager
    async def _recorded(self, permit: Permit) -> AsyncIterator[None]:
        over = asyncio.get_running_loop().create_future()
        self._open.add(over)
        try:
            async with self._with_outcome(permit):
                yield
        finally:
            self._open.discard(over)
            over.set_result(None)

    @asynccontextmanager
    async def _with_outcome(self, permit: Permit) -> AsyncIterator[None]:
        try:
            await checkpoint()
            yield
        except IronworkError as error:
            await self._close(permit, success=False, reason=error.reason)
            raise
        except asyncio.CancelledError:
            await self._close(permit, success=False, reason="DISCONNECTED")
            raise
        except BaseException:
            await self._close(permit, success=False, reason="INTERNAL")
            raise
        else:
            reference = await self._close(permit, success=True, reason="")
            if permit.action in PUBLISHED and self._publisher is not None:
                await self._publisher.published(reference)

    async def _close(self, permit: Permit, *, success: bool, reason: str) -> AuditReference:
        # The outcome is written also when the call's own task is being cancelled.
        closing = asyncio.ensure_future(permit.close(success=success, reason=reason))
        self._closing.add(closing)
        closing.add_done_callback(self._closed)
        _, reference = await asyncio.shield(closing)
        return reference

    def _closed(self, closing: asyncio.Task[tuple[AuditEvent, AuditReference]]) -> None:
        self._closing.discard(closing)
        if closing.cancelled() or closing.exception() is not None:
            log.error("audit.outcome_lost")
            return
        outcome, _ = closing.result()
        if outcome.reason == REASON_UNDECIDED:
            self._on_undecided(outcome)

    async def settle(self) -> None:
        """Wait until every call is over, its outcome written and refusals, too; for shutdown, when
        none begins.
        """
        if self._open:
            await asyncio.wait(self._open, timeout=OUTCOME_DEADLINE_S)
        if self._closing:
            await asyncio.wait(self._closing, timeout=OUTCOME_DEADLINE_S)
        await self._write(self._refusals.close)

    async def write_refusals(self) -> None:
        """Write what was counted of refusals that were too many; to be called at intervals."""
        await self._write(self._refusals.flush)

    async def _write(self, refusals: Callable[[], Awaitable[None]]) -> None:
        try:
            await refusals()
        except Unavailable:
            # Health says the same, and no call is served while the log cannot be written.
            log.error("audit.unavailable", extra={"reason": "refusals"})  # noqa: TRY400

    async def _refuse(
        self, principal: Principal, action: Action, resource: Resource, claims: Claims, reason: str
    ) -> None:
        self._meter.refused(reason)
        await self._refusals.record(
            AuditEvent(
                phase=Phase.EVENT,
                operation=action.value,
                correlation_id=str(uuid.uuid4()),
                time=datetime.now(UTC),
                principal=principal.spiffe_id,
                role=principal.role,
                workspace=resource.workspace or "",
                key_id=resource.key_id or "",
                claims=claims,
                success=False,
                reason=reason,
                details={"policy_version": self._policy().version},
            )
        )
