"""Builds the process' parts, serves until it is told to end, and takes them down."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ironwork_audit.publishing import ATTEMPT_DEADLINE_S
from ironwork_hsm.daemon import child
from ironwork_hsm.daemon.checkpoints import RecordCheckpoints, Standing
from ironwork_hsm.daemon.device import Device, Limits, State
from ironwork_hsm.daemon.head import HeadFile
from ironwork_hsm.daemon.latch import latch_of, make_private
from ironwork_hsm.daemon.listener import Guard, listen
from ironwork_hsm.daemon.operations import Operations
from ironwork_hsm.daemon.rate import Rates
from ironwork_hsm.daemon.record import LogRecord, Record, open_record
from ironwork_hsm.daemon.record_key import DeviceSigner
from ironwork_hsm.daemon.session import Session, SessionLimits
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.uri import SCHEME as PKCS11
from ironwork_hsm.uri import parse_pkcs11_uri

log = logging.getLogger(__name__)

DRAIN_S: Final = 5.0


class Process:
    """Everything that runs. status() says how it stands."""

    def __init__(
        self,
        record: Record,
        checkpoints: RecordCheckpoints | None,
        devices: Sequence[Device],
        guard: Guard,
    ) -> None:
        self._record = record
        self._checkpoints = checkpoints
        self._devices = devices
        self._guard = guard

    def status(self) -> bytes:
        """JSON, for `ironwork-hsmd status` and health."""
        signed = self._checkpoints
        standing = Standing.UNSIGNED if signed is None else signed.standing()
        return json.dumps(
            {
                "pid": os.getpid(),
                "healthy": self._record.problem is None
                and standing not in (Standing.LATE, Standing.REFUSED)
                and all(device.state is State.READY for device in self._devices),
                "devices": [_describe(device) for device in self._devices],
                "record": {
                    "origin": self._record.origin,
                    "problem": self._record.problem,
                    "signature": standing.value,
                    "signed_entries": 0 if signed is None else signed.size,
                },
                "connections": len(self._guard.sessions),
            }
        ).encode()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP looks for new versions of the master keys. Raises
    ConfigurationError, Unavailable.
    """
    make_private(settings.state)
    async with contextlib.AsyncExitStack() as stack:
        listener = listen(settings.socket)
        stack.callback(listener.close)
        record = open_record(
            settings.record_folder,
            settings.record_origin,
            signed=settings.record_key is not None,
        )
        stack.push_async_callback(record.close)
        bounds = settings.bounds
        operations = Operations(record, Rates(bounds.operations_per_s, bounds.burst))
        devices, signer, record_key = _devices(settings, operations)
        everything = [*devices, *(each for each in (signer, record_key) if each is not None)]
        operations.use(devices, signer)
        running = [asyncio.ensure_future(device.run()) for device in everything]
        stack.push_async_callback(_stop, running)
        await asyncio.wait(
            [asyncio.ensure_future(device.settled.wait()) for device in everything],
            timeout=bounds.open_s,
        )
        checkpoints = await _sign(stack, settings, record, record_key, operations)
        guard = Guard(settings.allowed_uids, bounds.connections)
        process = Process(record, checkpoints, everything, guard)
        limits = SessionLimits(pipelined=bounds.pipelined, idle_s=bounds.idle_s)
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: Session(guard, operations, process.status, limits), sock=listener.socket
        )
        with _signals(operations) as stop:
            log.info("process.serving", extra={"address": str(settings.socket)})
            _say_ready(settings.socket)
            await stop.wait()
        server.close()
        for session in list(guard.sessions):
            session.drain()
        await operations.settle(DRAIN_S)
        # Answers leave in the loop's next rounds.
        for _ in range(3):
            await asyncio.sleep(0)
        for session in list(guard.sessions):
            session.abort()


async def _sign(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    record: LogRecord,
    key: Device | None,
    operations: Operations,
) -> RecordCheckpoints | None:
    """Sign the record from now on, to its last entry; None where it has no key. Raises
    ConfigurationError.
    """
    if key is None:
        log.warning("record.unsigned")
        return None
    head = HeadFile(settings.state, settings.record_origin)
    stack.push_async_callback(head.close)
    checkpoints = RecordCheckpoints(record, DeviceSigner(key), head)
    await checkpoints.begin()
    operations.signed_by(key, checkpoints.refusal)
    task = asyncio.ensure_future(checkpoints.run())

    async def end() -> None:
        checkpoints.stop()
        await asyncio.wait([task], timeout=ATTEMPT_DEADLINE_S * 2)
        task.cancel()

    stack.push_async_callback(end)
    return checkpoints


def _devices(
    settings: Settings, operations: Operations
) -> tuple[list[Device], Device | None, Device | None]:
    """Those of the master keys, the signer, and the record's own key; not yet running. Two that
    have one PIN file have one lock. Raises ConfigurationError.
    """
    locks: dict[Path, asyncio.Lock] = {}

    def make(role: str, uri: str) -> Device:
        bounds = settings.bounds
        return Device(
            role,
            uri,
            name_of(uri),
            Limits(bounds.deadline_s, bounds.open_s, bounds.lanes, bounds.queue),
            latch=latch_of(settings.state, uri, locks),
            watch=operations,
            trial=operations.try_device,
            overwrite=settings.overwrite_freed,
        )

    devices = [make(child.WRAPPER, uri) for uri in settings.backends]
    if len({device.name for device in devices}) < len(devices):
        raise ConfigurationError("backends: two URIs name the same master key.")
    signer = make(child.SIGNER, settings.signer) if settings.signer is not None else None
    own = settings.record_key
    return devices, signer, make(child.SIGNER, own) if own is not None else None


def name_of(uri: str) -> str:
    """The name of the key at a URI. Raises ConfigurationError."""
    scheme = uri.partition(":")[0].lower()
    if scheme == PKCS11:
        return parse_pkcs11_uri(uri).name
    if scheme == "unix":
        raise ConfigurationError("backends: a process in front of a process is not meant.")
    return uri.partition("?")[0]


def _describe(device: Device) -> dict[str, object]:
    key = device.info.keys[0] if device.info is not None else None
    return {
        "role": device.role,
        "name": device.name,
        "state": device.state.value,
        "problem": str(device.problem) if device.problem is not None else None,
        "version": key.version if key is not None and key.version else None,
        "mechanism": key.mechanism if key is not None and key.mechanism else None,
        "wrapped_last": device.wrapped_last,
        "starts": device.starts,
        "pid": device.pid,
    }


async def _stop(running: Sequence["asyncio.Future[None]"]) -> None:
    for task in running:
        task.cancel()
    await asyncio.wait(running, timeout=DRAIN_S)


@contextlib.contextmanager
def _signals(operations: Operations) -> Iterator[asyncio.Event]:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def stopped(number: signal.Signals) -> None:
        log.info("signal.received", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    loop.add_signal_handler(signal.SIGHUP, operations.refresh)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _say_ready(path: Path) -> None:
    """A line on standard output, and systemd's, where it waits for one (sd_notify(3))."""
    print(json.dumps({"ready": True, "socket": str(path)}), flush=True)  # noqa: T201  the answer
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        ):
            # An abstract address begins with a zero byte, written as `@`.
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")
