"""Publishing the audit log: its tree put into tiles, its head signed by the HSM (ADR 0021).

One checkpoint at most a second after an entry, whatever number of entries it covers. Signing is
an HSM operation, so it has its own intent and outcome; they join the next checkpoint and are never
the reason for one, so an idle log does not grow.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from ironwork_audit.log import Tree
from ironwork_audit.publishing import (
    ATTEMPT_DEADLINE_S,
    INTERVAL_S,
    SIGN,
    KeyDiffers,
    Schedule,
    log_key,
    signed_note,
    signed_size,
)
from ironwork_audit.tlog import Checkpoint, VerifierKey, parse_note
from ironwork_audit.tlog.signed import SignatureRefused
from ironwork_hsm import HsmError, KeyMissing, PinRefused, Recoverable, Signer
from ironwork_server.core.described import described
from ironwork_server.core.errors import IronworkError, Unavailable
from ironwork_server.core.ports import HeadStore, Journal
from ironwork_server.core.values import AuditEvent, AuditReference, Phase
from ironwork_server.custody.head_guard import GuardedJournal, HeadGuard, taken
from ironwork_server.custody.uninterrupted import uninterrupted

log = logging.getLogger(__name__)

# How long an admin call waits for its checkpoint before it is answered as failed.
PUBLISH_DEADLINE_S: Final = 5.0
UNAVAILABLE: Final = "CHECKPOINT_UNAVAILABLE"

T = TypeVar("T")


class PublishedJournal(Journal, GuardedJournal, Protocol):
    """A journal whose entries become a tree. due: the index after the last entry that a checkpoint
    is due for; it only grows.
    """

    @property
    def due(self) -> int: ...

    async def integrate(self) -> Tree: ...

    async def publish(self, checkpoint: bytes) -> None: ...

    def checkpoint(self) -> bytes | None: ...


def verifier_key(origin: str, signer: Signer) -> VerifierKey:
    """The public half as C2SP writes it: its name is the log's origin."""
    return log_key(origin, signer.algorithm, signer.public_key)


class Checkpointer:
    """Runs beside the calls. on_checkpoint is given each published note: it neither blocks nor
    raises (a witness's client queues it).
    """

    def __init__(
        self,
        journal: PublishedJournal,
        signer: Signer,
        heads: HeadStore,
        *,
        on_checkpoint: Callable[[bytes], None] = lambda note: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = verifier_key(journal.origin, signer)
        self._journal = journal
        self._signer = signer
        self._guard = HeadGuard(journal, heads)
        self._on_checkpoint = on_checkpoint
        self._clock = clock
        # The journal writes one thing at a time; held while it does.
        self._writing = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._stopping = False
        self._schedule = Schedule()
        self._waiting: dict[asyncio.Future[None], int] = {}
        # In a row: the signer's own failures, and why the last attempt failed.
        self._sick = 0
        self._why = ""

    async def resume(self) -> None:
        """Begin where the published checkpoint ends: before the first of run(). Raises Unavailable:
        AUDIT_KEY_DIFFERS where it was not signed by this key, AUDIT_ORIGIN_TAKEN and
        AUDIT_ROLLED_BACK as HeadGuard says, what the store does not do; OSError.
        """
        try:
            self._schedule.size = signed_size(self._journal.checkpoint(), self.key)
        except KeyDiffers:
            raise Unavailable(
                "The audit log's checkpoint was not signed by audit.signing_key: set the setting"
                " back to the key that this log was begun with, or begin a new folder and origin.",
                reason="AUDIT_KEY_DIFFERS",
            ) from None
        await self._guard.begin(self._schedule.size)

    async def cosigned(self, note: bytes) -> None:
        """Publish the checkpoint anew with its witnesses' signatures; nothing where a newer one is
        published. Raises Unavailable.
        """
        async with self._writing:
            if Checkpoint.parse(parse_note(note).text).size == self._schedule.size:
                await self._journal.publish(note)

    def require(self) -> None:
        """Raises Unavailable while checkpoints fail: an admin call is refused before it acts."""
        self._guard.require()
        if self._schedule.failing:
            raise _unavailable()

    async def published(self, reference: AuditReference) -> None:
        """Wait until a checkpoint covers the entry. Raises Unavailable."""
        if reference.index < self._schedule.size:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = reference.index
        self._wanted.set()
        try:
            async with asyncio.timeout(PUBLISH_DEADLINE_S):
                await future
        except TimeoutError:
            raise self._refusal() from None
        finally:
            del self._waiting[future]

    async def check(self) -> None:
        """For health. Raises Unavailable, which says why, where an entry has waited for too long
        (publishing.LATE_S), and for good once another process has signed this origin.
        """
        self._guard.require()
        if self._schedule.is_late(self._clock()):
            raise Unavailable(
                "The audit log's checkpoint is late.", reason=self._why or UNAVAILABLE
            )

    async def run(self) -> None:
        """Publish until stop()."""
        while not self._stopping:
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._look()
        # What the service said at its end is published too.
        self._schedule.hurry()
        await self._look()

    def stop(self) -> None:
        """End run() after a last checkpoint."""
        self._stopping = True
        self._wanted.set()

    async def _look(self) -> None:
        now = self._clock()
        if not self._schedule.is_due(self._journal.due, now):
            self._settle()
            return
        if not self._schedule.may_try(now):
            self._refuse()
            return
        try:
            async with asyncio.timeout(ATTEMPT_DEADLINE_S):
                await self._publish()
        except (IronworkError, TimeoutError) as error:
            self._failed(error.reason if isinstance(error, IronworkError) else "TIMEOUT")
        except Exception as error:  # noqa: BLE001  it fails closed, and is tried again
            log.error("error.unexpected", extra=described(error))  # noqa: TRY400
            self._failed("INTERNAL")
        else:
            if self._schedule.failing:
                log.info("checkpoint.recovered")
            self._schedule.succeeded(self._journal.due, now)
            self._why = ""
            self._settle()

    async def _publish(self) -> None:
        if self._sick > 1:
            await self._reopen()
        async with self._writing:
            tree = await self._journal.integrate()
        await self._guard.record(tree)
        text = Checkpoint(self._journal.origin, tree.size, tree.root).text
        value = await self._sign(text.encode(), tree.size)
        try:
            note = signed_note(text, self.key, value)
        except SignatureRefused:
            raise Unavailable(
                "The HSM gave a signature that is none.", reason="SIGNATURE_WRONG"
            ) from None
        async with self._writing:
            await self._journal.publish(note)
            self._schedule.size = tree.size
        self._on_checkpoint(note)

    async def _reopen(self) -> None:
        """Bring back the signer that has failed twice, where that can be done from here: not in the
        HSM process or a cloud, which see to it themselves. Raises Unavailable.
        """
        signer = self._signer
        if isinstance(signer, Recoverable):
            details: dict[str, str | int] = {"backend": signer.name, "purpose": "checkpoint"}
            await self._recorded("hsm.open", details, signer.recover)

    async def _sign(self, text: bytes, size: int) -> bytes:
        details: dict[str, str | int] = {
            "backend": self._signer.name,
            "mechanism": self._signer.algorithm.value,
            "purpose": "checkpoint",
            "count": size,
        }
        correlation_id = str(uuid.uuid4())
        signature = await self._recorded(
            SIGN,
            details,
            lambda: self._signer.sign(text, reference=correlation_id),
            correlation_id=correlation_id,
        )
        self._sick = 0
        return signature

    async def _recorded(
        self,
        operation: str,
        details: dict[str, str | int],
        act: Callable[[], Awaitable[T]],
        *,
        correlation_id: str = "",
    ) -> T:
        """One operation of the signer between its intent and its outcome."""
        correlation_id = correlation_id or str(uuid.uuid4())

        def event(phase: Phase, **outcome: Any) -> AuditEvent:
            return AuditEvent(
                phase=phase,
                operation=operation,
                correlation_id=correlation_id,
                time=datetime.now(UTC),
                details=details,
                **outcome,
            )

        (reference,) = await uninterrupted(self._journal.append(event(Phase.INTENT)))
        success, reason = False, "INTERRUPTED"
        try:
            result = await act()
            success, reason = True, ""
        except HsmError as error:
            self._sick += 1
            mapped = map_signer_error(error)
            reason = mapped.reason
            raise mapped from None
        finally:
            index = reference.index
            await self._journal.append(
                event(Phase.OUTCOME, success=success, reason=reason, intent_index=index)
            )
        return result

    def _failed(self, reason: str) -> None:
        self._schedule.failed(self._clock())
        self._why = reason
        log.error("checkpoint.failed", extra={"reason": reason})
        self._refuse()

    def _refuse(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(self._refusal())

    def _refusal(self) -> Unavailable:
        return taken() if self._guard.taken else _unavailable()

    def _settle(self) -> None:
        for future, index in self._waiting.items():
            if index < self._schedule.size and not future.done():
                future.set_result(None)
            elif not future.done():
                self._wanted.set()


def map_signer_error(error: HsmError) -> Unavailable:
    """ironwork_hsm's errors as those of the key that signs the log: for records, logs and health.
    Callers are told CHECKPOINT_UNAVAILABLE.
    """
    if isinstance(error, KeyMissing):
        return Unavailable("The log's signing key is not there.", reason="AUDIT_KEY_MISSING")
    if isinstance(error, PinRefused):
        return Unavailable("The token refused the PIN.", reason="AUDIT_KEY_PIN_REFUSED")
    return Unavailable("The log's signing key does not answer.", reason="AUDIT_KEY_UNAVAILABLE")


def _unavailable() -> Unavailable:
    return Unavailable(
        "The audit log's checkpoint cannot be published. Try again later; the audit log says what"
        " was done.",
        reason=UNAVAILABLE,
        retry_after_s=5.0,
    )
