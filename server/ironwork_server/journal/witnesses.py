"""Shows the log's checkpoints to its witnesses, off every call's path (ADR 0025).

A round shows the newest checkpoint to every witness that is not busy or being left alone; it is
witnessed once a quorum of them has signed it. What a witness signed is kept, so that a restart, an
auditor and `ironwork-audit verify` have it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ironwork_audit.tlog import Checkpoint, Signature, VerifierKey, parse_note
from ironwork_audit.witness import cosigned
from ironwork_audit.witness_submission import WitnessConflict, WitnessFailed
from ironwork_server.core.described import described
from ironwork_server.core.errors import IronworkError, Unavailable
from ironwork_server.journal.witness import Witness

log = logging.getLogger(__name__)

# Between two rounds: an entry is witnessed about two seconds after it.
ROUND_S: Final = 1.0
# For one witness's part of a round.
ANSWER_S: Final = 10.0
# A round waits so long for witnesses that answer late; those go on beside the next one.
PATIENCE_S: Final = 2.0
# After a failure a witness is left alone for so long; after a conflict for the last of these.
BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# A checkpoint without its quorum for so long is UNWITNESSED.
LATE_S: Final = 30.0
# At the end, for the last checkpoint.
END_S: Final = 2.0


class Archive(Protocol):
    """The log's files, as witnesses need them. No method blocks the loop."""

    async def prove(self, old_size: int, size: int) -> Sequence[bytes]:
        """A consistency proof. Raises WitnessFailed (WITNESS_PROOF_UNAVAILABLE)."""

    async def keep(self, key: VerifierKey, note: bytes) -> None:
        """Keep what this witness signed last. Raises OSError, TimeoutError."""

    async def publish(self, note: bytes) -> None:
        """Publish a witnessed checkpoint. Raises OSError, TimeoutError, IronworkError."""


class Listener(Protocol):
    """Told what happens; neither waits nor raises, but for the alarm's record."""

    def submitted(self, witness: str, result: str) -> None:
        """A witness was asked. result: `ok` or the reason of its failure."""

    def witnessed(self, witness: str, size: int, timestamp: int) -> None:
        """A witness has signed the tree of this size."""

    async def alarm(self, witness: str, reason: str, size: int) -> None:
        """Put it on record that a witness knows another history, or forgot ours."""


@dataclass(slots=True)
class _Standing:
    """How it goes with one witness. signed: the checkpoint that it signed last, since the start.
    failures: in a row. retry_at: on the clock.
    """

    witness: Witness
    signed: bytes = b""
    failures: int = 0
    retry_at: float = 0.0
    reason: str = ""
    conflict: bool = False
    # When it may be told again that this witness forgot, on the clock.
    forgot_told_until: float = 0.0
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Round:
    """One checkpoint and who has signed it."""

    note: bytes
    size: int
    signatures: dict[str, Signature] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """size: of the largest tree that a quorum has signed; 0 for none. age_s: since then. reason:
    why the newest checkpoint has no quorum; empty where all is well.
    """

    size: int
    age_s: float
    reason: str

    def __str__(self) -> str:
        if self.size == 0:
            return "UNWITNESSED"
        return f"witnessed up to {self.size} entries, {self.age_s:.0f} seconds ago"


class Witnesses:
    """Runs beside the calls. `offer` is given each published checkpoint."""

    def __init__(
        self,
        witnesses: Sequence[Witness],
        quorum: int,
        archive: Archive,
        listener: Listener,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standings = [_Standing(witness) for witness in witnesses]
        self._quorum = quorum
        self._archive = archive
        self._listener = listener
        self._clock = clock
        self._newest: tuple[bytes, int] | None = None
        self._wanted = asyncio.Event()
        self._end = asyncio.Event()
        self._round: _Round | None = None
        self._size = 0
        self._at = 0.0
        self._behind_since: float | None = None
        self._publishing = asyncio.Lock()

    def resume(self, size: int) -> None:
        """A quorum has signed so much before this start."""
        self._size, self._at = size, self._clock()

    def offer(self, note: bytes) -> None:
        """The newest checkpoint; one that still waits is not shown to anybody any more."""
        self._newest = note, Checkpoint.parse(parse_note(note).text).size
        if self._behind_since is None:
            self._behind_since = self._clock()
        self._wanted.set()

    def status(self) -> Status:
        """For health and for people."""
        now, since = self._clock(), self._behind_since
        reasons = [item.reason for item in self._standings if item.conflict]
        if self._size == 0 or (since is not None and now - since > LATE_S):
            reasons.append("UNWITNESSED")
        return Status(self._size, now - self._at, next(iter(reasons), ""))

    async def check(self) -> None:
        """For health. Raises Unavailable where the newest checkpoint has no quorum for too long,
        or a witness knows another history.
        """
        reason = self.status().reason
        if reason:
            raise Unavailable("The audit log is not witnessed.", reason=reason)

    def stop(self) -> None:
        """End run() after the last checkpoint, for which witnesses have END_S."""
        self._end.set()
        self._wanted.set()

    async def run(self) -> None:
        """Show checkpoints until stop()."""
        try:
            while not self._end.is_set():
                await self._wait()
                await self._show(PATIENCE_S)
            await self._show(END_S)
        finally:
            await self._give_up()

    async def _wait(self) -> None:
        """Until there is something to show, and somebody to show it to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROUND_S):
                await self._end.wait()
        while not self._end.is_set():
            self._wanted.clear()
            now, times = self._clock(), [item.retry_at for item in self._unsigned()]
            if any(at <= now for at in times):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(times) - now if times else None):
                    await self._wanted.wait()

    def _unsigned(self) -> list[_Standing]:
        """Who has not signed the newest checkpoint and is not being asked."""
        if self._newest is None:
            return []
        note = self._newest[0]
        return [item for item in self._standings if item.task is None and item.signed != note]

    async def _show(self, patience_s: float) -> None:
        if self._newest is None:
            return
        if self._round is None or self._round.note != self._newest[0]:
            self._round = _Round(*self._newest)
        now = self._clock()
        asked = [item for item in self._unsigned() if item.retry_at <= now]
        for item in asked:
            item.task = asyncio.create_task(self._submit(item, self._round))
        tasks = [item.task for item in asked if item.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=patience_s)

    async def _submit(self, item: _Standing, round_: _Round) -> None:
        before = item.witness.size
        try:
            async with asyncio.timeout(ANSWER_S):
                signature = await item.witness.submit(round_.note, self._archive.prove)
        except TimeoutError:
            self._failed(item, "WITNESS_TIMEOUT")
        except WitnessConflict as conflict:
            await self._conflict(item, conflict.reason, round_.size)
        except WitnessFailed as failed:
            self._failed(item, failed.reason)
        except Exception as error:  # noqa: BLE001  whatever it is, it stays off the calls' path
            log.error("error.unexpected", extra=described(error))  # noqa: TRY400
            self._failed(item, "INTERNAL")
        else:
            self._succeeded(item, round_)
            if item.witness.forgot:
                item.witness.forgot = False
                await self._forgot(item, before)
            await self._signed(item, signature, round_)
        finally:
            item.task = None
            self._wanted.set()

    def _succeeded(self, item: _Standing, round_: _Round) -> None:
        name, size = item.witness.key.name, round_.size
        if item.failures:
            log.info("witness.recovered", extra={"component": name, "count": size})
        item.signed = round_.note
        item.failures, item.retry_at, item.reason, item.conflict = 0, 0.0, "", False
        self._listener.submitted(name, "ok")
        self._listener.witnessed(name, size, item.witness.timestamp)

    def _failed(self, item: _Standing, reason: str, *, conflict: bool = False) -> None:
        name = item.witness.key.name
        if reason != item.reason:
            log.warning("witness.failing", extra={"component": name, "reason": reason})
        delay = BACKOFF_S[-1] if conflict else BACKOFF_S[min(item.failures, len(BACKOFF_S) - 1)]
        item.failures += 1
        item.retry_at = self._clock() + delay
        # A conflict stands until this witness signs again, whatever else fails meanwhile.
        if not item.conflict or conflict:
            item.reason, item.conflict = reason, conflict
        self._listener.submitted(name, reason)

    async def _conflict(self, item: _Standing, reason: str, size: int) -> None:
        known = item.conflict
        self._failed(item, reason, conflict=True)
        if not known:
            await self._alarm(item.witness.key.name, reason, size)

    async def _forgot(self, item: _Standing, before: int) -> None:
        """Told as seldom as a conflict: the record is an entry, which makes a checkpoint due, which
        this witness is shown; one that forgot each time would make an idle log grow.
        """
        now = self._clock()
        if now >= item.forgot_told_until:
            item.forgot_told_until = now + BACKOFF_S[-1]
            await self._alarm(item.witness.key.name, "WITNESS_FORGOT", before)

    async def _alarm(self, name: str, reason: str, size: int) -> None:
        log.error("witness.conflict", extra={"component": name, "reason": reason, "count": size})
        await self._listener.alarm(name, reason, size)

    async def _signed(self, item: _Standing, signature: Signature, round_: _Round) -> None:
        key = item.witness.key
        round_.signatures[str(key)] = signature
        await self._keeping(self._archive.keep(key, item.witness.note or b""))
        if len(round_.signatures) < self._quorum:
            return
        if round_.size < self._size:
            return
        self._size, self._at = round_.size, self._clock()
        is_newest = self._newest is not None and self._newest[0] == round_.note
        self._behind_since = None if is_newest else self._at
        async with self._publishing:
            note = cosigned(round_.note, list(round_.signatures.values()))
            await self._keeping(self._archive.publish(note))

    async def _keeping(self, work: Awaitable[None]) -> None:
        """What cannot be kept now is kept the next time: the witness has it meanwhile."""
        try:
            await work
        except (OSError, TimeoutError, IronworkError) as error:
            problem = error.reason if isinstance(error, IronworkError) else type(error).__name__
            log.warning("witness.not_kept", extra={"problem": problem})

    async def _give_up(self) -> None:
        tasks = [item.task for item in self._standings if item.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_S)
