"""Files that change while serving: a value, the files it is made from, and who wants to know.

The files' contents are hashed at each poll rather than their times compared: a file written twice
within one tick of the file system's clock keeps its size and time. Renames over a file and
Kubernetes' symlink swaps are noticed alike, since names are followed anew at each poll.
"""

import asyncio
import inspect
import logging
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Generic, Self, TypeVar

from ironwork_server.access.errors import AccessConfigurationError

POLL_S = 0.25
# How long one reading of the files may take (a network mount that hangs) before it is a failure.
LOAD_DEADLINE_S = 10.0
CALLBACK_DEADLINE_S = 10.0
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 1000
# A read of MAX_FILE_BYTES at once takes that much memory, which the kernel clears, for each file of
# each poll: more than all that an idle server does otherwise.
_PIECE_BYTES = 16 * 1024
# A failure is believed when it has lasted for two polls: a certificate and its key are written
# one after the other, and between the two they do not match.
PATIENCE_POLLS = 2
# How often the files are read again because they changed while they were being read.
SETTLE_TRIES = 3

T = TypeVar("T")

log = logging.getLogger(__name__)

OnSuccess = Callable[[T, T], Awaitable[None] | None]
OnFailure = Callable[[Exception], Awaitable[None] | None]


class ReloadTimeout(Exception):
    """The files could not be read in time; the old value stays."""


_OURS = (AccessConfigurationError, ReloadTimeout)


@dataclass(frozen=True, slots=True)
class _Loaded(Generic[T]):
    """The files' signature and the value that they gave."""

    signature: bytes
    value: T


@dataclass(frozen=True, slots=True)
class _Broken:
    """The files' signature and the error that they gave."""

    signature: bytes
    error: Exception


class Reloading(Generic[T]):
    """The newest good value of load(), which reads the watched files.

    Construction loads once, blocking, and raises what load raises: nothing starts on broken files.
    After start() changes are noticed within interval_s; a load that fails keeps the old value, is
    told to on_failure once for each state of the files, and shows in `failed` until the files are
    good again. Callbacks may be coroutine functions; they run beside the watching, with a deadline;
    slow ones may overlap; stop() waits for them.

    watch: files and folders; a folder stands for the visible files directly in it. load runs in a
    thread of its own and must not touch the event loop.
    """

    def __init__(
        self,
        load: Callable[[], T],
        watch: Sequence[Path],
        *,
        name: str,
        interval_s: float = POLL_S,
        on_success: OnSuccess[T] | None = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        self._load = load
        self._watch = tuple(watch)
        self._name = name
        self._interval_s = interval_s
        self._on_success = on_success
        self._on_failure = on_failure
        self._signature = signature_of(self._watch)
        self._value = load()
        self._failed: Exception | None = None
        self._told: bytes | None = None
        self._bad_polls = 0
        self._generation = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._pending: asyncio.Future[_Loaded[T] | _Broken | None] | None = None
        # Callbacks under way; each ends by its deadline, and polls are the only source of them.
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def value(self) -> T:
        """The value in force. May be read from any thread."""
        return self._value

    @property
    def generation(self) -> int:
        """Counts the values: 0 for the first, one more for each reload."""
        return self._generation

    @property
    def failed(self) -> Exception | None:
        """Why the files as they are now cannot be loaded; None while all is well."""
        return self._failed

    async def start(self) -> None:
        """Begin to watch, on this event loop."""
        if self._task is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"reload-{self._name}")
            self._task = asyncio.create_task(self._run(), name=f"reload-{self._name}")

    async def stop(self) -> None:
        """Stop watching; the value stays. Safe to call again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            # Callbacks under way may finish, so that what happened is recorded.
            await asyncio.wait([task, *self._telling], timeout=CALLBACK_DEADLINE_S)
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
        self._pending = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait_newer(self, generation: int) -> int:
        """Wait until the value is newer than this generation; give its generation.

        Cheap for thousands of waiters: they share one event. The caller bounds the wait.
        """
        while self._generation <= generation:
            await self._changed.wait()
        return self._generation

    def changes(self) -> AsyncGenerator[T, None]:
        """Each new value from now on; a slow reader gets the newest and misses those between."""
        return self._changes_after(self._generation)

    async def _changes_after(self, generation: int) -> AsyncGenerator[T, None]:
        while True:
            generation = await self.wait_newer(generation)
            yield self._value

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._poll()

    async def _poll(self) -> None:
        """One look at the files, off the loop. A reading that hangs is waited for again later,
        never doubled."""
        if self._pending is None:
            loop = asyncio.get_running_loop()
            self._pending = loop.run_in_executor(self._executor, self._read)
        done, _ = await asyncio.wait([self._pending], timeout=LOAD_DEADLINE_S)
        if not done:
            error = ReloadTimeout(f"{self._name}: reading took over {LOAD_DEADLINE_S:g} s")
            self._keep(_Broken(self._signature, error), patience=1)
            return
        finished, self._pending = self._pending, None
        try:
            found = finished.result()
        except Exception as error:  # noqa: BLE001  a watcher that dies unseen would hide revocations
            found = _Broken(self._signature, error)
        if isinstance(found, _Broken):
            self._keep(found, patience=PATIENCE_POLLS)
        elif found is None:
            self._recover()
        else:
            self._take(found)

    def _read(self, tries: int = SETTLE_TRIES) -> _Loaded[T] | _Broken | None:
        """On the reading thread: None where the files are those of the value in force."""
        signature = signature_of(self._watch)
        if signature == self._signature:
            return None
        found = self._try(signature)
        if tries > 1 and signature_of(self._watch) != signature:
            # They changed meanwhile, so that the value may be made of old and new files.
            return self._read(tries - 1)
        return found

    def _try(self, signature: bytes) -> _Loaded[T] | _Broken:
        try:
            return _Loaded(signature, self._load())
        except Exception as error:  # noqa: BLE001  whatever load raises, the old value stays
            return _Broken(signature, error)

    def _take(self, found: _Loaded[T]) -> None:
        old, self._value, self._signature = self._value, found.value, found.signature
        self._recover()
        self._generation += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        log.info("reload.done", extra={"component": self._name})
        if self._on_success is not None:
            self._tell(self._on_success, old, found.value)

    def _recover(self) -> None:
        self._failed, self._told, self._bad_polls = None, None, 0

    def _keep(self, broken: _Broken, *, patience: int) -> None:
        self._bad_polls += 1
        if self._bad_polls < patience:
            return
        self._failed = broken.error
        if broken.signature == self._told:
            return
        self._told = broken.signature
        log.error(
            "reload.failed", extra={"component": self._name, "problem": _problem(broken.error)}
        )
        if self._on_failure is not None:
            self._tell(self._on_failure, broken.error)

    def _tell(self, callback: Callable[..., Awaitable[None] | None], *args: object) -> None:
        """Call back beside the watching: a slow audit log must not delay the next revocation."""
        task = asyncio.create_task(self._call(callback, *args))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _call(self, callback: Callable[..., Awaitable[None] | None], *args: object) -> None:
        """A callback that fails or hangs does not stop the watching."""
        try:
            async with asyncio.timeout(CALLBACK_DEADLINE_S):
                result = callback(*args)
                if inspect.isawaitable(result):
                    await result
        except Exception as error:  # noqa: BLE001  the callback's errors are not this watcher's
            log.error(  # noqa: TRY400  no traceback: it could quote what the callback held
                "reload.callback_failed",
                extra={"component": self._name, "problem": _problem(error)},
            )


def _problem(error: Exception) -> str:
    """What the log may say: our own errors' texts; of foreign ones, which may quote, the kind."""
    return str(error) if isinstance(error, _OURS) else type(error).__name__


def signature_of(watch: Sequence[Path]) -> bytes:
    """SHA-256 over the watched names, modes and contents; what cannot be read counts as absent."""
    digest = sha256()
    for path in watch:
        for entry in _entries(path):
            state = _state(entry)
            for part in (os.fsencode(entry), state):
                digest.update(len(part).to_bytes(8))
                digest.update(part)
    return digest.digest()


def _entries(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        visible = (entry for entry in path.iterdir() if not entry.name.startswith("."))
        return sorted(visible)[:MAX_ENTRIES]
    except OSError:
        return [path]


def _state(path: Path) -> bytes:
    """Mode and content's hash of a regular file; a constant for anything else."""
    try:
        # Non-blocking, so that a pipe put in a file's place does not hang the reading thread.
        with open(path, "rb", opener=_open_nonblocking) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                return b"not a file"
            return mode.to_bytes(4) + _digest(stream)
    except OSError:
        return b"absent"


def _digest(stream: BinaryIO) -> bytes:
    """SHA-256 of what it holds, up to MAX_FILE_BYTES."""
    digest = sha256()
    for _ in range(MAX_FILE_BYTES // _PIECE_BYTES):
        piece = stream.read(_PIECE_BYTES)
        if not piece:
            break
        digest.update(piece)
    return digest.digest()


def _open_nonblocking(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)
