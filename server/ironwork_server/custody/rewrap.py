"""Moving every data key under the version that wraps now, while servers serve (ADR 0022).

Only the outer layer is touched: a data key is unwrapped and wrapped again, and nothing here ever
has the sealed key in its hands. Where it stands is in the rows themselves, so a run that was killed
is simply run again. Each row is changed by compare and swap.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ironwork_hsm import (
    BlobRejected,
    HsmError,
    KeyMissing,
    KeyWrapper,
    WrappedKey,
)
from ironwork_server.core.envelope import Binding, pepper_context, wipe, wrap_context
from ironwork_server.core.ports import WrapStore
from ironwork_server.core.values import AuditReference, BreakGlassCopy, Swap, WrappedRow
from ironwork_server.custody.break_glass import BreakGlassError, Recipient, RecoveryKey
from ironwork_server.custody.operator_records import (
    Details,
    Operation,
    OperatorRecords,
    Outcome,
    prove,
)
from ironwork_server.custody.vault import damaged, map_hsm_error
from ironwork_server.custody.versions import Wraps, by_name, follow, wraps_with

# Rows that are under way at once: two records for each fit one append of the log.
BATCH = 32
REASON_NOT_CONFIGURED = "MASTER_KEY_NOT_CONFIGURED"
REASON_COPY_MISSING = "BREAK_GLASS_COPY_MISSING"
REASON_COPY_DAMAGED = "BREAK_GLASS_COPY_DAMAGED"


@dataclass(slots=True)
class Report:
    """What a run did. overtaken: rows that were deleted, or moved by another, meanwhile. failed:
    why rows, or the pepper, stay as they are. examples: the first of their names.
    """

    moved: int = 0
    overtaken: int = 0
    pepper_moved: bool = False
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fail(self, reason: str, name: str) -> None:
        """Count it; ten names are enough to look for the rest."""
        self.failed[reason] += 1
        if len(self.examples) < 10:
            self.examples.append(name)


@dataclass(slots=True)
class _Item:
    """One data key (or the pepper) on its way."""

    name: str
    workspace: str
    key_id: str
    wrapped: WrappedKey
    context: bytes
    unwrapping: Operation
    copy: BreakGlassCopy | None
    data_key: bytearray = field(default_factory=bytearray)
    new: WrappedKey | None = None
    new_copy: BreakGlassCopy | None = None
    fault: HsmError | None = None
    reason: str = ""


class Rewrapper:
    """rate: rows a second, at most. progress: told how many rows were looked at."""

    def __init__(
        self,
        wrappers: Sequence[KeyWrapper],
        store: WrapStore,
        records: OperatorRecords,
        *,
        rate: float,
        progress: Callable[[int], None] = lambda rows: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        recipient: Recipient | None = None,
        recovery_key: RecoveryKey | None = None,
    ) -> None:
        """recipient: whom each row gets a break-glass copy for. recovery_key: opens such copies,
        instead of the HSM that wrapped.
        """
        self._recipient = recipient
        self._recovery_key = recovery_key
        self._to = wrappers[0]
        self._by_name = by_name(wrappers)
        self._store = store
        self._records = records
        self._rate = rate
        self._progress = progress
        self._sleep = sleep

    async def target(self) -> Wraps:
        """What everything moves to. Errors: HsmError, Unavailable."""
        return await follow(self._to, self._store)

    async def run(self) -> Report:
        """One pass over everything that the current version does not wrap. A device that stops
        answering ends it; run it again. Errors: HsmError, Unavailable.
        """
        version = (await self.target()).version
        await prove(self._to, self._records, version)
        # Again, since that trial may have found the mechanism.
        wraps = await wraps_with(self._to, version)
        report = Report()
        await self._pepper(wraps, report)
        after = 0
        while True:
            began = time.monotonic()
            rows = await self._store.wrapped_elsewhere(
                self._to.name,
                version,
                after_sequence=after,
                limit=BATCH,
                recipient=self._recipient.id if self._recipient else None,
            )
            if not rows:
                break
            await self._rows(rows, wraps, report)
            after = rows[-1].sequence
            self._progress(len(rows))
            await self._sleep(max(0.0, len(rows) / self._rate - (time.monotonic() - began)))
        # Copies whose place another recipient's took: what is left of them would still open.
        await self._store.erase()
        return report

    async def _rows(self, rows: Sequence[WrappedRow], wraps: Wraps, report: Report) -> None:
        items = [self._item_of(row) for row in rows]
        await self._rewrap(items, wraps)
        swaps = [
            Swap(row.sequence, row.wrapped, item.new, item.new_copy)
            for row, item in zip(rows, items, strict=True)
            if item.new is not None
        ]
        done = await self._store.swap(swaps)
        report.moved += sum(done)
        report.overtaken += len(done) - sum(done)
        _count_failures(items, report)

    async def _pepper(self, wraps: Wraps, report: Report) -> None:
        kept = await self._store.pepper()
        if kept is None:
            return
        copy = await self._store.pepper_copy()
        copied = self._recipient is None or (copy and copy.recipient) == self._recipient.id
        if copied and (kept.backend, kept.key_version) == (wraps.backend, wraps.version):
            return
        item = self._item("the pepper", "", "", kept, pepper_context(), copy, purpose="pepper")
        await self._rewrap([item], wraps)
        if item.new is not None:
            report.pepper_moved = await self._store.swap_pepper(kept, item.new, item.new_copy)
        _count_failures([item], report)

    async def _rewrap(self, items: Sequence[_Item], wraps: Wraps) -> None:
        """Unwrap and wrap all; sets new or reason of each. Every operation between its records."""
        for item in items:
            item.reason = self._obstacle(item)
        listed = [item for item in items if not item.reason]
        try:
            intents = await self._records.write(intents=[item.unwrapping for item in listed])
            await _all(self._unwrap(item) for item in listed)
            opened = [item for item in listed if not item.reason]
            wrapping = [self._wrapping(item, wraps) for item in opened]
            begun = await self._records.write(
                [
                    _outcome(item, item.unwrapping, at)
                    for item, at in zip(listed, intents, strict=True)
                ],
                wrapping,
            )
            await _all(self._wrap(item, wraps.version) for item in opened)
            await self._records.write(
                [
                    _outcome(item, operation, at)
                    for item, operation, at in zip(opened, wrapping, begun, strict=True)
                ]
            )
        finally:
            for item in items:
                wipe(item.data_key)
        _raise_lasting(items)

    def _obstacle(self, item: _Item) -> str:
        """Why an item cannot be opened at all; empty where it is to be tried."""
        if self._recovery_key is None and item.wrapped.backend not in self._by_name:
            return REASON_NOT_CONFIGURED
        if not self._records.can_hold(item.unwrapping):
            return damaged().reason
        if self._recovery_key is None:
            return ""
        held = item.copy is not None and item.copy.recipient == self._recovery_key.recipient.id
        return "" if held else REASON_COPY_MISSING

    async def _unwrap(self, item: _Item) -> None:
        if self._recovery_key is not None and item.copy is not None:
            try:
                item.data_key = self._recovery_key.open(item.copy, item.context)
            except BreakGlassError:
                item.reason = REASON_COPY_DAMAGED
            return
        wrapper = self._by_name[item.wrapped.backend]
        reference = item.unwrapping.correlation_id
        try:
            item.data_key = await wrapper.unwrap(item.wrapped, item.context, reference=reference)
        except HsmError as error:
            item.fault, item.reason = error, map_hsm_error(error).reason

    async def _wrap(self, item: _Item, version: int) -> None:
        reference = item.unwrapping.correlation_id
        try:
            item.new = await self._to.wrap(
                item.data_key, item.context, version=version, reference=reference
            )
        except HsmError as error:
            item.fault, item.reason = error, map_hsm_error(error).reason
            return
        if self._recipient is not None:
            item.new_copy = self._recipient.seal(item.data_key, item.context)

    def _wrapping(self, item: _Item, wraps: Wraps) -> Operation:
        details: Details = {**wraps.details, "purpose": item.unwrapping.details["purpose"]}
        if self._recipient is not None:
            details = {**details, "recipient": self._recipient.id}
        return Operation(
            "hsm.wrap", details, item.workspace, item.key_id, item.unwrapping.correlation_id
        )

    def _item_of(self, row: WrappedRow) -> _Item:
        binding = Binding(row.workspace, row.key_id, row.sequence, row.created_at)
        return self._item(
            f"workspaces/{row.workspace}/keys/{row.key_id}",
            row.workspace,
            row.key_id,
            row.wrapped,
            wrap_context(binding),
            row.copy,
            purpose="data-key",
        )

    def _item(
        self,
        name: str,
        workspace: str,
        key_id: str,
        wrapped: WrappedKey,
        context: bytes,
        copy: BreakGlassCopy | None,
        *,
        purpose: str,
    ) -> _Item:
        operation = "hsm.unwrap"
        details: Details = {
            "backend": wrapped.backend,
            "master_key_version": wrapped.key_version,
            "mechanism": wrapped.mechanism,
            "purpose": purpose,
        }
        if self._recovery_key is not None:
            operation = "break_glass.open"
            details = {"recipient": self._recovery_key.recipient.id, "purpose": purpose}
        unwrapping = Operation(operation, details, workspace, key_id)
        return _Item(name, workspace, key_id, wrapped, context, unwrapping, copy)


def _outcome(item: _Item, operation: Operation, intent: AuditReference) -> Outcome:
    return Outcome(operation, intent, item.reason)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """At once, and all of it to its end, so that nothing is opened after it was to be wiped; the
    backend bounds how many are in the device. Raises the first error.
    """
    for ended in await asyncio.gather(*work, return_exceptions=True):
        if ended is not None:
            raise ended


def _raise_lasting(items: Sequence[_Item]) -> None:
    """A row that does not open is one row's; a device that fails ends the run."""
    for item in items:
        if item.fault is not None and not isinstance(item.fault, (BlobRejected, KeyMissing)):
            raise item.fault


def _count_failures(items: Sequence[_Item], report: Report) -> None:
    for item in items:
        if item.reason:
            report.fail(item.reason, item.name)
