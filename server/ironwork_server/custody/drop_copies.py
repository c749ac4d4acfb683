"""Dropping the break-glass copies of a recipient that is none any more (ADR 0023).

A copy may be the last way to its key: it is dropped only when the HSM has just opened its row.
Where it stands is in the copies themselves, so a run that was killed is simply run again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ironwork_hsm import BlobRejected, HsmError, KeyMissing, KeyWrapper, WrappedKey
from ironwork_server.core.envelope import Binding, pepper_context, wipe, wrap_context
from ironwork_server.core.errors import IronworkError
from ironwork_server.core.ports import WrapStore
from ironwork_server.core.values import AuditReference, WrappedRow
from ironwork_server.custody.operator_records import Details, Operation, OperatorRecords, Outcome
from ironwork_server.custody.rewrap import BATCH, REASON_NOT_CONFIGURED, Report
from ironwork_server.custody.vault import damaged, map_hsm_error
from ironwork_server.custody.versions import by_name

# The pepper is no row: its copy has the number before the first.
_PEPPER = 0


@dataclass(slots=True)
class _Copy:
    """One copy on its way out. unwrapping: what proves that it is not needed."""

    sequence: int
    name: str
    wrapped: WrappedKey
    context: bytes
    unwrapping: Operation
    dropping: Operation
    fault: HsmError | None = None
    reason: str = ""


class CopyDropper:
    """rate: copies a second, at most. progress: told how many were looked at."""

    def __init__(
        self,
        wrappers: Sequence[KeyWrapper],
        store: WrapStore,
        records: OperatorRecords,
        *,
        rate: float,
        progress: Callable[[int], None] = lambda copies: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._by_name = by_name(wrappers)
        self._store = store
        self._records = records
        self._rate = rate
        self._progress = progress
        self._sleep = sleep

    async def run(self, recipient: str, report: Report) -> None:
        """One pass over the copies for recipient; report.moved counts what was dropped, failed what
        was not since the HSM does not open its row. A device that stops answering ends it; run it
        again. Errors: HsmError, Unavailable.
        """
        await self._pepper(recipient, report)
        after = 0
        while True:
            began = time.monotonic()
            rows = await self._store.copied_for(recipient, after_sequence=after, limit=BATCH)
            if not rows:
                return
            done = await self._drop([_of_row(row, recipient) for row in rows], recipient, report)
            report.moved += sum(done)
            report.overtaken += len(done) - sum(done)
            after = rows[-1].sequence
            self._progress(len(rows))
            await self._sleep(max(0.0, len(rows) / self._rate - (time.monotonic() - began)))

    async def _pepper(self, recipient: str, report: Report) -> None:
        copy, kept = await self._store.pepper_copy(), await self._store.pepper()
        if kept is None or copy is None or copy.recipient != recipient:
            return
        item = _of_pepper(kept, recipient)
        report.pepper_moved = any(await self._drop([item], recipient, report))
        self._progress(1)

    async def _drop(self, items: Sequence[_Copy], recipient: str, report: Report) -> Sequence[bool]:
        """Open the rows, then drop the copies of those that opened; whether each of these was still
        there. Every operation between its records.
        """
        for item in items:
            item.reason = self._obstacle(item)
        listed = [item for item in items if not item.reason]
        intents = await self._records.write(intents=[item.unwrapping for item in listed])
        await asyncio.gather(*(self._open(item) for item in listed))
        opened = [item for item in listed if not item.reason]
        begun = await self._records.write(
            [
                Outcome(item.unwrapping, at, item.reason)
                for item, at in zip(listed, intents, strict=True)
            ],
            [item.dropping for item in opened],
        )
        for item in items:
            if item.reason:
                report.fail(item.reason, item.name)
        done = await self._delete(opened, begun, recipient)
        for item in items:
            if item.fault is not None and not isinstance(item.fault, (BlobRejected, KeyMissing)):
                raise item.fault
        return done

    async def _delete(
        self, items: Sequence[_Copy], intents: Sequence[AuditReference], recipient: str
    ) -> Sequence[bool]:
        reason = "INTERRUPTED"
        try:
            done = await self._store.drop_copies([item.sequence for item in items], recipient)
            reason = ""
        except IronworkError as error:
            reason = error.reason
            raise
        finally:
            await self._records.write(
                [
                    Outcome(item.dropping, at, reason)
                    for item, at in zip(items, intents, strict=True)
                ]
            )
        return done

    def _obstacle(self, item: _Copy) -> str:
        if item.wrapped.backend not in self._by_name:
            return REASON_NOT_CONFIGURED
        return "" if self._records.can_hold(item.unwrapping) else damaged().reason

    async def _open(self, item: _Copy) -> None:
        wrapper = self._by_name[item.wrapped.backend]
        reference = item.unwrapping.correlation_id
        try:
            wipe(await wrapper.unwrap(item.wrapped, item.context, reference=reference))
        except HsmError as error:
            item.fault, item.reason = error, map_hsm_error(error).reason


def _of_row(row: WrappedRow, recipient: str) -> _Copy:
    binding = Binding(row.workspace, row.key_id, row.sequence, row.created_at)
    unwrapping = Operation(
        "hsm.unwrap", _details(row.wrapped, "data-key"), row.workspace, row.key_id
    )
    dropping = Operation(
        "break_glass.drop",
        {"recipient": recipient, "purpose": "data-key"},
        row.workspace,
        row.key_id,
        unwrapping.correlation_id,
    )
    name = f"workspaces/{row.workspace}/keys/{row.key_id}"
    return _Copy(row.sequence, name, row.wrapped, wrap_context(binding), unwrapping, dropping)


def _of_pepper(wrapped: WrappedKey, recipient: str) -> _Copy:
    unwrapping = Operation("hsm.unwrap", _details(wrapped, "pepper"))
    dropping = Operation(
        "break_glass.drop",
        {"recipient": recipient, "purpose": "pepper"},
        correlation_id=unwrapping.correlation_id,
    )
    return _Copy(_PEPPER, "the pepper", wrapped, pepper_context(), unwrapping, dropping)


def _details(wrapped: WrappedKey, purpose: str) -> Details:
    return {
        "backend": wrapped.backend,
        "master_key_version": wrapped.key_version,
        "mechanism": wrapped.mechanism,
        "purpose": purpose,
    }
