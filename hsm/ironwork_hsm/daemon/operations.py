"""What becomes of a request: rate, intent durable, device, outcome, answer.

Nothing reaches a device before its intent is durable. The outcome is queued before the answer is
sent and is durable a little later: after a crash an intent may have none, never an act without an
intent. Refusals that ask nothing of a device are counted, and recorded as one entry in 10 s, so
that whoever sends them cannot fill the disk.
"""

import asyncio
import contextlib
import logging
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Final

from ironwork_audit import EVENT, INTENT, OUTCOME, Event, FieldRefused
from ironwork_hsm.daemon.device import Device, error_in, info_in, reason_of
from ironwork_hsm.daemon.rate import Rates
from ironwork_hsm.daemon.record import MAX_COMMIT_EVENTS, Intent, Record, unrecorded
from ironwork_hsm.daemon.turns import Asker
from ironwork_hsm.interface import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    MechanismRefused,
    WrappedKey,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH, Malformed
from ironwork_hsm.remote.link import TimedOut
from ironwork_hsm.remote.place import Peer
from ironwork_hsm.remote.wire import Frame, Info, Kind, SignerInfo

log = logging.getLogger(__name__)

REFUSALS_WINDOW_S: Final = 10.0
_KEYS: Final = "keys"
_SIGNING: Final = "signing"
_ASKING: Final = "asking"
# Sorts of refusal that are told apart in one window; the further ones are one entry.
_MAX_REFUSED: Final = 64
_OTHERS: Final = ("", "OTHERS")
_NUMBER_AT: Final = 5
_NUMBER: Final = struct.Struct(">I")
# Those of this process itself.
_OWN: Final = Peer(pid=0, uid=-1)
_OWN_TURN: Final = Asker(uid=-1, connection=0)

# Takes the answer's bytes; for callers that have gone it does nothing.
Reply = Callable[[bytes], None]


@dataclass(slots=True)
class _Operation:
    """One request on its way to a device."""

    event: Event
    device: Device
    request: bytearray
    number: int
    reply: Reply
    asker: Asker = _OWN_TURN
    # Whether the device was, and had time for it: only then is a failure its own.
    asked: bool = False


class Operations:
    """See the module. Belongs to one loop. devices: of the master keys; the first wraps."""

    def __init__(self, record: Record, rates: Rates) -> None:
        self._record = record
        self._rates = rates
        self._loop = asyncio.get_running_loop()
        self._devices: Sequence[Device] = ()
        self._signer: Device | None = None
        self._record_key: Device | None = None
        self._refusal: Callable[[], HsmError | None] = lambda: None
        # Whose intents are written with the next submission.
        self._fresh: list[_Operation] = []
        self._refused: Counter[tuple[str, str]] = Counter()
        self._telling: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def use(self, devices: Sequence[Device], signer: Device | None) -> None:
        """The devices, which know this object too."""
        self._devices = devices
        self._signer = signer

    def signed_by(self, device: Device, refusal: Callable[[], HsmError | None]) -> None:
        """The record's own key, and why, for want of its signatures, nothing may be done."""
        self._record_key = device
        self._refusal = refusal

    def info(self) -> Info:
        """What is on offer now."""
        keys = []
        for device in self._devices:
            known = device.info.keys[0] if device.info is not None else None
            keys.append(known or wire.KeyInfo(device.name, 0, ""))
        signer: SignerInfo | None = None
        if self._signer is not None and self._signer.info is not None:
            signer = self._signer.info.signer
        first = self._devices[0]
        # A device that is being opened anew has said before what it offers.
        problem = first.problem if first.info is None else None
        return Info(tuple(keys), signer, problem)

    def may_ask(self, peer: Peer) -> bool:
        """Whether the peer may ask once more what is on offer, or how the process stands. Where it
        may not, that is counted.
        """
        if self._rates.take(peer.uid, _ASKING):
            return True
        self.count_refusal(peer, "BUSY")
        return False

    def take(self, peer: Peer, connection: int, frame: Frame, reply: Reply) -> None:
        """Do what a frame asks for, in the turn of its connection. Raises Malformed."""
        number = frame.number
        try:
            event, device = self._examine(peer, frame)
            if device.problem is not None:
                raise device.problem
            if not self._rates.take(peer.uid, _SIGNING if frame.kind is Kind.SIGN else _KEYS):
                raise over_rate()
            if (unsigned := self._refusal()) is not None:
                self.count_refusal(peer, "RECORD_UNSIGNED")
                reply(wire.failed(number, unsigned))
                return
        except FieldRefused:
            raise Malformed("a field cannot be put on record") from None
        except HsmError as error:
            self.count_refusal(peer, reason_of(error))
            reply(wire.failed(number, error))
            return
        request = bytearray(wire.renumbered(frame, 0))
        asker = Asker(peer.uid, connection)
        self._begin(_Operation(event, device, request, number, reply, asker))

    def count_refusal(self, peer: Peer, reason: str) -> None:
        """Note that a peer was refused; told as one entry for each uid and reason in 10 s, and one
        for the rest where there are very many.
        """
        sort = (f"uid:{peer.uid}", reason)
        known = sort in self._refused or len(self._refused) < _MAX_REFUSED
        self._refused[sort if known else _OTHERS] += 1
        if self._telling is None:
            self._telling = self._loop.call_later(REFUSALS_WINDOW_S, self._tell_refusals)

    def try_device(self, device: Device) -> None:
        """A round trip of our own, on record; the device is replaced where it fails."""
        if device in (self._signer, self._record_key):
            # It has no round trip but a signature, which would be one that nobody asked for.
            device.replace(ConfigurationError("The signing key's device failed."))
            return

        def answered(answer: bytes) -> None:
            frame = wire.parse_body(memoryview(answer)[LENGTH.size :])
            error = error_in(frame)
            if error is not None and operation.asked:
                device.replace(error)

        event = self._event(_OWN, "hsm.probe", "", device, _known(device))
        request = bytearray(wire.check(0))
        operation = _Operation(event, device, request, 0, answered)
        self._begin(operation)

    def refresh(self) -> None:
        """Ask every device what it holds now: another version may have been created."""
        for device in self._devices:
            event = self._event(_OWN, "hsm.list", "", device, {"backend": device.name})
            request = bytearray(wire.plain(Kind.VERSIONS, 0))
            self._begin(_Operation(event, device, request, 0, lambda _: None))

    async def opening(self, device: Device) -> Intent:
        """See device.Watch."""
        event = self._event(_OWN, "hsm.open", "", device, {"backend": device.name})
        return Intent(event, await self._record.append(event))

    async def opened(self, intent: Intent, error: HsmError | None) -> None:
        """See device.Watch."""
        await self._record.append(_outcome(intent.event, intent.index, error))

    async def probe(self, device: Device) -> HsmError | None:
        """See device.Watch."""
        intent_event = self._event(_OWN, "hsm.probe", "", device, _known(device))
        intent = await self._record.append(intent_event)
        error = await device.check()
        await self._record.append(_outcome(intent_event, intent, error))
        return error

    async def settle(self, deadline_s: float) -> None:
        """Wait until nothing is under way, at most so long; then tell what was refused."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("operations.left", extra={"count": self._under_way})
        if self._telling is not None:
            self._telling.cancel()
            self._tell_refusals()

    # --- one operation

    def _examine(self, peer: Peer, frame: Frame) -> tuple[Event, Device]:
        """What it asks for, and of which device. Raises Malformed, HsmError."""
        match frame.kind:
            case Kind.UNWRAP:
                unwrap = wire.parse_unwrap(frame.payload)
                wrapped = unwrap.wrapped
                device = self._named(wrapped.backend)
                if device is None:
                    raise BlobRejected("The wrapped key was made by another backend or mechanism.")
                details: dict[str, str | int] = {
                    "backend": device.name,
                    "master_key_version": wrapped.key_version,
                    "mechanism": wrapped.mechanism,
                    "context_sha256": sha256(unwrap.context).hexdigest(),
                }
                return self._event(peer, "hsm.unwrap", unwrap.reference, device, details), device
            case Kind.WRAP:
                wrap = wire.parse_wrap(frame.payload)
                device = self._devices[0]
                details = _known(device, wrap.version)
                details["context_sha256"] = sha256(wrap.context).hexdigest()
                return self._event(peer, "hsm.wrap", wrap.reference, device, details), device
            case Kind.SIGN:
                sign = wire.parse_sign(frame.payload)
                if self._signer is None:
                    raise ConfigurationError("The HSM process holds no signing key.")
                details = {"backend": self._signer.name}
                event = self._event(peer, "hsm.sign", sign.reference, self._signer, details)
                return event, self._signer
            case Kind.CHECK:
                check = wire.parse_check(frame.payload)
                device = self._devices[0]
                details = _known(device, check.version)
                return self._event(peer, "hsm.probe", check.reference, device, details), device
            case Kind.VERSIONS:
                reference = wire.parse_plain(frame.payload)
                device = self._devices[0]
                return self._event(peer, "hsm.list", reference, device, _known(device)), device
            case _:
                raise Malformed("a client does not send this")

    def _named(self, name: str) -> Device | None:
        return next((device for device in self._devices if device.name == name), None)

    def _begin(self, operation: _Operation) -> None:
        """The intent goes out with all others of this round of the loop."""
        self._under_way += 1
        self._idle.clear()
        if not self._fresh:
            self._loop.call_soon(self._submit)
        self._fresh.append(operation)

    def _submit(self) -> None:
        fresh, self._fresh = self._fresh, []
        for start in range(0, len(fresh), MAX_COMMIT_EVENTS):
            batch = fresh[start : start + MAX_COMMIT_EVENTS]
            self._record.submit(
                [operation.event for operation in batch], partial(self._recorded, batch)
            )

    def _recorded(self, batch: Sequence[_Operation], index: int | None) -> None:
        """The intents are durable, the first at index; or they are not."""
        for position, operation in enumerate(batch):
            if index is None:
                self._end(operation, wire.failed(operation.number, unrecorded()))
            else:
                self._act(operation, index + position)

    def _act(self, operation: _Operation, intent: int) -> None:
        def build(number: int) -> bytes:
            _NUMBER.pack_into(operation.request, _NUMBER_AT, number)
            return bytes(operation.request)

        def answered(answer: Frame | HsmError) -> None:
            # One that is slow is not sick; whether it is silent the device itself looks.
            operation.asked = not isinstance(error_in(answer), Busy | TimedOut)
            self._answered(operation, intent, answer)

        try:
            operation.device.send(operation.asker, build, answered)
        except HsmError as error:
            self._answered(operation, intent, error)

    def _answered(self, operation: _Operation, intent: int, answer: Frame | HsmError) -> None:
        error = error_in(answer)
        wrapped = _wrapped_with(answer)
        if wrapped is not None:
            device = operation.device
            device.wrapped_last = wrapped.key_version
            if device.info is not None and wrapped.key_version > device.info.keys[0].version:
                self._learn(device)
        outcome = _outcome(operation.event, intent, error, wrapped)
        self._record.submit([outcome], _lost)
        if isinstance(answer, HsmError):
            data = wire.failed(operation.number, answer)
        else:
            data = wire.renumbered(answer, operation.number)
            if answer.kind in (Kind.LISTED, Kind.DONE) or isinstance(error, MechanismRefused):
                self._learn(operation.device)
        self._end(operation, data)

    def _end(self, operation: _Operation, data: bytes) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._idle.set()
        operation.reply(data)

    def _learn(self, device: Device) -> None:
        """Ask the child what it offers, which it knows without asking its module."""

        def answered(answer: Frame | HsmError) -> None:
            if error_in(answer) is None:
                device.learn(info_in(answer))

        if device.problem is None:
            # One that cannot be asked now is learnt of by the next answer.
            with contextlib.suppress(HsmError):
                device.send(_OWN_TURN, wire.hello, answered)

    # --- the record

    def _event(
        self,
        peer: Peer,
        operation: str,
        reference: str,
        device: Device,
        details: dict[str, str | int],
    ) -> Event:
        own = peer is _OWN
        return Event(
            phase=INTENT,
            operation=operation,
            correlation_id=reference or str(uuid.uuid4()),
            time=datetime.now(UTC),
            principal="" if own else f"uid:{peer.uid}",
            peer="" if own else f"unix:pid:{peer.pid}",
            details=details,
        )

    def _tell_refusals(self) -> None:
        self._telling = None
        refused, self._refused = self._refused, Counter()
        now = datetime.now(UTC)
        events = [
            Event(
                phase=EVENT,
                operation="hsm.refused",
                correlation_id=str(uuid.uuid4()),
                time=now,
                principal=principal,
                success=False,
                reason=reason,
                details={"count": count, "window_s": int(REFUSALS_WINDOW_S)},
            )
            for (principal, reason), count in refused.items()
        ]
        if events:
            self._record.submit(events, _lost)


def over_rate() -> Busy:
    """The one refusal of whoever asks for too much."""
    return Busy("This user asks for more operations than it may; try again later.")


def _known(device: Device, version: int | None = None) -> dict[str, str | int]:
    """What is known, before it is asked, of the version that a device is to use: one that a client
    chose, or its newest.
    """
    details: dict[str, str | int] = {"backend": device.name}
    newest = device.info.keys[0] if device.info is not None else None
    if version is not None:
        details["master_key_version"] = version
    if newest is not None and newest.version and version in (None, newest.version):
        details["master_key_version"] = newest.version
        details["mechanism"] = newest.mechanism
    return details


def _wrapped_with(answer: Frame | HsmError) -> WrappedKey | None:
    """What a device has wrapped, if it has."""
    if isinstance(answer, HsmError) or answer.kind is not Kind.WRAPPED:
        return None
    try:
        return wire.parse_wrapped(answer.payload)
    except Malformed:  # as the client will find
        return None


def _outcome(
    intent_event: Event,
    intent: int,
    error: HsmError | None,
    wrapped: WrappedKey | None = None,
) -> Event:
    """wrapped: what came of it, which tells the version and the mechanism that were used."""
    details = dict(intent_event.details)
    if wrapped is not None:
        details |= {"master_key_version": wrapped.key_version, "mechanism": wrapped.mechanism}
    return Event(
        phase=OUTCOME,
        operation=intent_event.operation,
        correlation_id=intent_event.correlation_id,
        time=datetime.now(UTC),
        principal=intent_event.principal,
        peer=intent_event.peer,
        success=error is None,
        reason="" if error is None else reason_of(error),
        details=details,
        intent_index=intent,
    )


def _lost(index: int | None) -> None:
    """An outcome that could not be written: what comes next is refused, and health says so."""
    if index is None:
        log.error("record.outcome_lost")
