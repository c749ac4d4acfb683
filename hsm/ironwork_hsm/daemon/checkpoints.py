"""Signing the process' own record (ADR 0028): at most a second after an entry, by a key of its own.

As the server signs its log, by the same rule (ironwork_audit.publishing). What cannot be signed is
not gone on with for ever: once an entry has waited for too long nothing more is done for clients.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol

from ironwork_audit import INTENT, OUTCOME, Event
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
from ironwork_audit.tlog import Checkpoint, VerifierKey
from ironwork_audit.tlog.signed import SignatureRefused
from ironwork_hsm.daemon.device import reason_of
from ironwork_hsm.daemon.head import Head, HeadFile
from ironwork_hsm.interface import ConfigurationError, HsmError, Signer, Unavailable

log = logging.getLogger(__name__)


class PublishedRecord(Protocol):
    """What is asked of a record; see LogRecord."""

    @property
    def origin(self) -> str: ...

    @property
    def folder_id(self) -> str: ...

    @property
    def due(self) -> int: ...

    async def append(self, *events: Event) -> int: ...

    async def integrate(self) -> Tree: ...

    async def publish(self, checkpoint: bytes) -> None: ...

    def checkpoint(self) -> bytes | None: ...

    async def tree_at(self, size: int) -> Tree | None: ...


class Standing(Enum):
    """How it is with a record's signature, for people and for health."""

    UNSIGNED = "UNSIGNED"
    SIGNED = "SIGNED"
    FAILING = "FAILING"
    LATE = "LATE"
    REFUSED = "REFUSED"


class RecordCheckpoints:
    """Runs beside the operations. Belongs to one loop."""

    def __init__(
        self,
        record: PublishedRecord,
        signer: Signer,
        head: HeadFile,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """signer: may not be open yet; it raises Unavailable until then."""
        self._record = record
        self._signer = signer
        self._head = head
        self._clock = clock
        self._schedule = Schedule()
        self._key: VerifierKey | None = None
        # Why nothing is signed any more: the key is another, or the record an older one.
        self._refused: ConfigurationError | None = None
        self._stopping = asyncio.Event()

    @property
    def size(self) -> int:
        """How many entries are under the published checkpoint, as far as is known."""
        return self._schedule.size

    def standing(self) -> Standing:
        """How it is."""
        if self._refused is not None:
            return Standing.REFUSED
        if self._schedule.is_late(self._clock()):
            return Standing.LATE
        return Standing.FAILING if self._schedule.failing else Standing.SIGNED

    def refusal(self) -> HsmError | None:
        """Why nothing may be done for clients now; None while all is well."""
        if self._refused is not None:
            return self._refused
        if self._schedule.is_late(self._clock()):
            return Unavailable("The HSM process cannot sign its record, so nothing is done.")
        return None

    async def begin(self) -> None:
        """Hold the record against its key, where that can be asked already; else the first
        checkpoint does. Raises ConfigurationError where this key did not sign it, or it lacks what
        was signed.
        """
        with contextlib.suppress(Unavailable):
            await self._resume()

    async def run(self) -> None:
        """Sign until stop(), and then what is left."""
        while not self._stopping.is_set():
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._stopping.wait()
        self._schedule.hurry()
        await self._look()

    def stop(self) -> None:
        """End run() after a last checkpoint."""
        self._stopping.set()

    async def sign_now(self) -> None:
        """One checkpoint of all there is. Raises HsmError, TimeoutError."""
        async with asyncio.timeout(ATTEMPT_DEADLINE_S):
            await self._publish()

    async def _look(self) -> None:
        now = self._clock()
        if self._refused is not None or not self._schedule.is_due(self._record.due, now):
            return
        if not self._schedule.may_try(now):
            return
        try:
            await self.sign_now()
        except (HsmError, TimeoutError) as error:
            self._failed(reason_of(error) if isinstance(error, HsmError) else "TIMED_OUT")
        except Exception as error:  # noqa: BLE001  it fails closed, and is tried again
            self._failed(type(error).__name__)
        else:
            if self._schedule.failing:
                log.info("record.checkpoint_recovered")
            self._schedule.succeeded(self._record.due, now)

    def _failed(self, problem: str) -> None:
        self._schedule.failed(self._clock())
        log.error("record.checkpoint_failed", extra={"problem": problem})

    async def _publish(self) -> None:
        tree = await self._record.integrate()
        key = await self._resume()
        origin = self._record.origin
        await self._head.keep(Head(origin, self._record.folder_id, tree.size, tree.root.hex()))
        text = Checkpoint(origin, tree.size, tree.root).text
        signature = await self._sign(text.encode(), tree.size)
        try:
            note = signed_note(text, key, signature)
        except SignatureRefused:
            raise Unavailable("The record's signing key gave a signature that is none.") from None
        await self._record.publish(note)
        self._schedule.size = tree.size

    async def _resume(self) -> VerifierKey:
        """The key, once the record was held against it. Raises HsmError."""
        if self._refused is not None:
            raise self._refused
        if self._key is None:
            signer = self._signer
            key = log_key(self._record.origin, signer.algorithm, signer.public_key)
            try:
                await self._hold_against(key)
            except ConfigurationError as refused:
                self._refused = refused
                log.error("record.refused", extra={"problem": str(refused)})  # noqa: TRY400
                raise
            self._key = key
        return self._key

    async def _hold_against(self, key: VerifierKey) -> None:
        try:
            self._schedule.size = signed_size(self._record.checkpoint(), key)
        except KeyDiffers:
            raise ConfigurationError(
                "The record's checkpoint was not signed by record.signing_key: set the setting back"
                " to the key that this record was begun with, or begin a new folder and origin."
            ) from None
        except OSError:
            raise Unavailable("The record's checkpoint cannot be read.") from None
        found = await self._head.load()
        if found is None:
            return
        if found.folder_id != self._record.folder_id:
            raise ConfigurationError(
                "Another folder was signed under this record.origin: name that one, or begin a new"
                " folder with a new origin."
            )
        tree = await self._record.tree_at(found.size)
        if tree is None or tree.root.hex() != found.root:
            raise ConfigurationError(
                "The record lacks entries that were signed: an older copy was put back. Restore the"
                " newest one, or begin a new folder and origin."
            )

    async def _sign(self, text: bytes, size: int) -> bytes:
        details: dict[str, str | int] = {
            "backend": self._signer.name,
            "mechanism": self._signer.algorithm.value,
            "purpose": "checkpoint",
            "count": size,
        }
        correlation_id = str(uuid.uuid4())

        def event(phase: str, *, reason: str = "", intent: int | None = None) -> Event:
            return Event(
                phase=phase,
                operation=SIGN,
                correlation_id=correlation_id,
                time=datetime.now(UTC),
                success=None if intent is None else not reason,
                reason=reason,
                details=details,
                intent_index=intent,
            )

        intent = await self._record.append(event(INTENT))
        reason = "INTERRUPTED"
        try:
            signature = await self._signer.sign(text, reference=correlation_id)
            reason = ""
        except HsmError as error:
            reason = reason_of(error)
            raise
        finally:
            await self._record.append(event(OUTCOME, reason=reason, intent=intent))
        return signature
