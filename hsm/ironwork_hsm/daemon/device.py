"""A device behind the HSM process: a child that holds its module, and is replaced when it is sick.

    STARTING ──▶ READY ──(hangs, crashes, sick)──▶ STARTING (after a pause that doubles, to 2 s)
        └──(the token refused the PIN)──▶ PIN_REFUSED ──(the PIN's file changed)──▶ STARTING

A child is sick when it answers nothing for a deadline while something is under way in it: one late
answer among others is not. It is killed by its process id and never waited for by callers;
everything that it was asked is told Unavailable. A module's state heals only by C_Finalize and
C_Initialize: a new process.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from ironwork_hsm.backends import is_service
from ironwork_hsm.daemon.hardening import overwriting
from ironwork_hsm.daemon.latch import PinLatch
from ironwork_hsm.daemon.record import Intent
from ironwork_hsm.daemon.turns import Asker, Turns
from ironwork_hsm.interface import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    MechanismRefused,
    PinRefused,
    Unavailable,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH, Malformed
from ironwork_hsm.remote.link import Answered, Link, TimedOut
from ironwork_hsm.remote.wire import Frame, Info, Kind
from ironwork_hsm.settle import MAX_TRIALS

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 2.0
# How often a device may be Unavailable before it counts as settled: SoftHSM, for one, does not open
# for whoever comes as another process logs in at a token of the same folder.
_FIRST_STARTS: Final = 3
# A child that served this long was sound: the next pause is short again.
_SOUND_S: Final = 5.0
_LATCH_POLL_S: Final = 0.25
_REAP_S: Final = 2.0
_TRIAL_S: Final = 0.5
# Calls under way in a child, for each of its lanes: enough that no lane waits for this process.
_CALLS_A_LANE: Final = 4


class State(Enum):
    """Where a device stands."""

    STARTING = "STARTING"
    READY = "READY"
    PIN_REFUSED = "PIN_REFUSED"
    CLOSED = "CLOSED"


class Watch(Protocol):
    """Who records what a device does by itself. All raise Unavailable: then it is not done."""

    async def opening(self, device: "Device") -> Intent:
        """Before a child logs in."""

    async def opened(self, intent: Intent, error: HsmError | None) -> None:
        """After it."""

    async def probe(self, device: "Device") -> HsmError | None:
        """Make one round trip by the device's check(), on record; what it came to."""


@dataclass(frozen=True, slots=True)
class Limits:
    """open_s: seconds for a child to start and log in. The rest as in BackendOptions."""

    deadline_s: float
    open_s: float
    lanes: int
    queue: int


class Device:
    """One backend or signer by its URI. run() is its life; send() asks it."""

    def __init__(
        self,
        role: str,
        uri: str,
        name: str,
        limits: Limits,
        *,
        latch: PinLatch | None,
        watch: Watch,
        trial: Callable[["Device"], None],
        overwrite: bool = True,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """name: the URI's path. latch: of its PIN's file, where it has one. trial: asked for when
        answers suggest that the device is sick; makes a CHECK, on record.
        """
        self.role = role
        self.name = name
        self.state = State.STARTING
        self.problem: HsmError | None = Unavailable("The HSM process is opening its device.")
        self.info: Info | None = None
        # The version that it wrapped with last, since this process started.
        self.wrapped_last: int | None = None
        self.starts = 0
        self._uri = uri
        self._limits = limits
        self._latch = latch
        self._watch = watch
        self._trial = trial
        self._env = overwriting(environ) if overwrite else dict(environ)
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._ended = asyncio.Event()
        self._tried_at = float("-inf")
        self._window = limits.lanes * _CALLS_A_LANE
        self._turns = Turns(
            deadline_s=limits.deadline_s,
            window=self._window,
            capacity=limits.queue,
            on_silent=self.replace,
            on_answer=self._judge,
        )
        # Set as soon as it is ready, or is known not to be: after _FIRST_STARTS, or at once where a
        # repeat cannot mend it.
        self.settled = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._process is None else self._process.pid

    def send(self, asker: Asker, build: Callable[[int], bytes], answered: Answered) -> None:
        """Ask the device; see Turns.ask. Raises why it cannot be asked now."""
        if self.state is not State.READY:
            raise self.problem or Unavailable("The HSM process has no device.")
        self._turns.ask(asker, build, answered)

    def learn(self, info: Info) -> None:
        """The device said what it offers; the name that it gives its key is the key's name."""
        self.info = info
        self.name = info.keys[0].name

    def replace(self, problem: HsmError) -> None:
        """Kill the child and start another, because of this. Safe to call at any time."""
        if self.state is State.READY:
            self.state, self.problem = State.STARTING, problem
            log.warning("device.replaced", extra={"device": self.name, "problem": str(problem)})
            self._turns.stop()
        self._ended.set()

    async def run(self) -> None:
        """Keep the device open until cancelled; then end it."""
        pause = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        starts_left = _FIRST_STARTS
        try:
            while True:
                started = loop.time()
                starts_left -= 1
                try:
                    await self._open()
                    await self._ended.wait()
                except PinRefused as refused:
                    self._not_ready(refused, State.PIN_REFUSED)
                    self.settled.set()
                except HsmError as error:
                    self._not_ready(error, State.STARTING)
                    if starts_left <= 0 or not isinstance(error, Unavailable):
                        self.settled.set()
                finally:
                    await asyncio.shield(self._end_child())
                if loop.time() - started > _SOUND_S:
                    pause = FIRST_PAUSE_S
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE_S)
        finally:
            self.state, self.problem = State.CLOSED, Unavailable("The HSM process is ending.")

    # --- opening

    async def _open(self) -> None:
        if self._latch is None:
            await self._start()
            return
        while self._latch.is_set():
            self._not_ready(self._latch.refusal(), State.PIN_REFUSED)
            self.settled.set()
            await asyncio.sleep(_LATCH_POLL_S)
        async with self._latch.lock:
            # Another device may have just had it refused.
            with self._latch.trying():
                await self._start()

    async def _start(self) -> None:
        self._ended.clear()
        intent = await self._watch.opening(self)
        self.starts += 1
        try:
            info = await self._start_child()
        except HsmError as error:
            await self._watch.opened(intent, error)
            raise
        await self._watch.opened(intent, None)
        self.learn(info)
        if info.keys[0].version:
            await self._settle()
        if self._ended.is_set() or self._link is None:
            raise Unavailable("The device's process ended as soon as it had started.")
        self._turns.use(self._link)
        self.state, self.problem = State.READY, None
        log.info("device.ready", extra={"device": self.name, "pid": self.pid})
        self.settled.set()

    async def _settle(self) -> None:
        """Let a new child find the mechanism that its device offers. Raises HsmError."""
        for _ in range(MAX_TRIALS):
            error = await self._watch.probe(self)
            if error is None:
                return
            if not isinstance(error, MechanismRefused) or self._link is None:
                raise error
            self.learn(await self._hello(self._link))
        raise ConfigurationError("The device offers no mechanism that a master key can have.")

    async def check(self) -> HsmError | None:
        """One CHECK, while the device is being opened; what it came to."""
        if self._link is None:
            return Unavailable("The device's process ended as soon as it had started.")
        future: asyncio.Future[HsmError | None] = asyncio.get_running_loop().create_future()

        def answered(answer: Frame | HsmError) -> None:
            if not future.done():
                future.set_result(error_in(answer))

        try:
            self._link.request(wire.check, answered)
        except HsmError as error:
            return error
        return await future

    async def _start_child(self) -> Info:
        limits = self._limits
        # A service's client tries again by itself while there is time. A module's call cannot be
        # given up: this process decides what is late.
        patience = 1 if is_service(self._uri) else 2
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            ours.setblocking(False)
            # Not in its arguments, which every user of the machine can read (proc(5)).
            uri = self._uri.encode()
            ours.send(LENGTH.pack(len(uri)) + uri)
            command = [
                sys.executable, "-m", "ironwork_hsm.daemon.child", self.role,
                "--parent", str(os.getpid()), "--lanes", str(limits.lanes),
                # It is given no more than the window.
                "--deadline", str(limits.deadline_s * patience), "--queue", str(self._window * 2),
            ]  # fmt: skip
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    env=self._env,
                )
            except OSError as error:
                ours.close()
                raise Unavailable(
                    f"The device's process cannot be started: {os.strerror(error.errno or 0)}."
                ) from None
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_unix_connection(self._link_made, sock=ours)
        return await self._hello(self._link)

    def _link_made(self) -> Link:
        return Link(
            deadline_s=self._limits.deadline_s,
            capacity=self._window * 2,
            on_lost=lambda: self.replace(Unavailable("The device's process ended.")),
        )

    async def _hello(self, link: Link) -> Info:
        future: asyncio.Future[Info] = asyncio.get_running_loop().create_future()

        def answered(answer: Frame | HsmError) -> None:
            if future.done():
                return
            try:
                future.set_result(info_in(answer))
            except HsmError as error:
                future.set_exception(error)

        link.request(wire.hello, answered, deadline_s=self._limits.open_s)
        return await future

    def _not_ready(self, problem: HsmError, state: State) -> None:
        if (type(problem), str(problem)) != (type(self.problem), str(self.problem)):
            log.warning("device.not_ready", extra={"device": self.name, "problem": str(problem)})
        self.state, self.problem = state, problem

    # --- judging and ending

    def _judge(self, link: Link, answer: Frame | HsmError) -> bool:
        """Look into an answer that may say that the device is sick. Whether it shows that the
        device lives: a child that gives calls up by itself does not.
        """
        if isinstance(answer, TimedOut):
            self.replace(answer)
        if isinstance(answer, HsmError):
            return False
        if answer.kind is not Kind.FAILED:
            return True
        try:
            error = wire.parse_failed(answer.payload)
        except Malformed:
            link.abort()
            return False
        now = asyncio.get_running_loop().time()
        sick = isinstance(error, Unavailable | KeyMissing | ConfigurationError | PinRefused)
        if sick and not isinstance(error, Busy) and now - self._tried_at > _TRIAL_S:
            # It may be this one call. One round trip decides.
            self._tried_at = now
            self._trial(self)
        # A KMS that throttles lives; the child's own queue is larger than what it is given.
        return isinstance(error, Busy) or not isinstance(error, Unavailable)

    async def _end_child(self) -> None:
        self._turns.stop()
        link, self._link = self._link, None
        process, self._process = self._process, None
        if link is not None:
            link.abort()
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        try:
            async with asyncio.timeout(_REAP_S):
                await process.wait()
        except TimeoutError:
            # In the kernel, in a call on the device: it ends when that does.
            log.warning("device.not_reaped", extra={"device": self.name, "pid": process.pid})


def info_in(answer: Frame | HsmError) -> Info:
    """What an answer to HELLO holds. Raises HsmError."""
    if isinstance(answer, HsmError):
        raise answer
    try:
        if answer.kind is Kind.INFO:
            return wire.parse_info(answer.payload)
        raise wire.parse_failed(answer.payload)
    except Malformed:
        raise Unavailable("The device's process does not speak this protocol.") from None


def error_in(answer: Frame | HsmError) -> HsmError | None:
    """The error that an answer is, if it is one."""
    if isinstance(answer, HsmError):
        return answer
    if answer.kind is not Kind.FAILED:
        return None
    try:
        return wire.parse_failed(answer.payload)
    except Malformed:
        return Unavailable("The device's process does not speak this protocol.")


_REASONS: Final[tuple[tuple[type[HsmError], str], ...]] = (
    (Busy, "BUSY"),
    (BlobRejected, "BLOB_REJECTED"),
    (KeyMissing, "KEY_MISSING"),
    (MechanismRefused, "MECHANISM_REFUSED"),
    (PinRefused, "PIN_REFUSED"),
    (ConfigurationError, "CONFIGURATION"),
    (TimedOut, "TIMED_OUT"),
    (Unavailable, "UNAVAILABLE"),
)


def reason_of(error: HsmError) -> str:
    """The record's word for it."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "FAILED")
