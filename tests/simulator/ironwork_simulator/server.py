"""The simulator as tests, the demo and benchmarks hold it: start, stop, script, log."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO, TypeVar

from ironwork_simulator.behaviour import Behaviour, Match, Script
from ironwork_simulator.config import Config
from ironwork_simulator.control import Control
from ironwork_simulator.engine import Engine
from ironwork_simulator.holds import Hold, Holds
from ironwork_simulator.keys import KeyState, KeyTable, KnownKey
from ironwork_simulator.keys import make_key as new_key
from ironwork_simulator.listener import Listener, tls_context
from ironwork_simulator.log import NotDisconnected, RequestLog, RequestRecord

# An organisation for keys that nobody gave one: they are of the same customer.
DEFAULT_ORGANIZATION = "5f0c6c1e-9b1d-4c57-8f0e-2f3b8a7d6c10"
_TIMEOUT_S = 10.0
_THREAD_S = 15.0
S = TypeVar("S", bound="Simulator")


class Simulator:
    """An Anthropic API on loopback. `async with Simulator(config)`, or in_thread(config).

    After the start: url, host, port, control_url. Everything but start and stop may be called
    from any thread.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config if config is not None else Config()
        self.host = self.config.host
        self.port = 0
        self.control_url: str | None = None
        self._keys = KeyTable(self.config.keys)
        self._script = Script()
        self._holds = Holds()
        self._file: TextIO | None = None
        if self.config.log_file is not None:
            self._file = self.config.log_file.open("a", encoding="utf-8")
        self._log = RequestLog(self._file)
        self._engine = Engine(self.config, self._keys, self._script, self._holds, self._log)
        self._listeners: list[Listener] = []

    async def start(self) -> None:
        """Listen. Raises OSError where a port is taken or a file missing, ssl.SSLError for a bad
        certificate.
        """
        config = self.config
        tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            tls = tls_context(str(config.tls_cert), str(config.tls_key))
        api = Listener(
            self._engine,
            tls=tls,
            max_connections=config.max_connections,
            idle_timeout_s=config.idle_timeout_s,
        )
        self._listeners = [api]
        self.port = await api.start(config.host, config.port)
        if config.control_port is not None:
            control = Listener(
                Control(self),
                tls=None,
                max_connections=config.max_connections,
                idle_timeout_s=config.idle_timeout_s,
            )
            self._listeners.append(control)
            port = await control.start(config.host, config.control_port)
            self.control_url = f"http://{self._authority(port)}"

    async def stop(self) -> None:
        """End everything that is going on and release the ports."""
        self._holds.clear()
        for listener in self._listeners:
            await listener.stop()
        if self._file is not None:
            self._file.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """`http(s)://host:port`, to be given to a client as its base URL."""
        scheme = "http" if self.config.tls_cert is None else "https"
        return f"{scheme}://{self._authority(self.port)}"

    def _authority(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    # --- keys ---

    def make_key(
        self,
        kind: KeyState | str = KeyState.VALID,
        *,
        organization_id: str = DEFAULT_ORGANIZATION,
        behaviour: Behaviour | None = None,
    ) -> str:
        """A new well-formed throw-away key that the simulator knows as of this kind."""
        key = new_key()
        self._keys.put(KnownKey(key, organization_id, KeyState(kind), behaviour))
        return key

    def put_key(self, key: KnownKey) -> None:
        """Make a key known, or replace what was known of it (to revoke it, for one)."""
        self._keys.put(key)

    def set_key_state(self, key: str, state: KeyState | str) -> None:
        """Change what a known key may do; LookupError if it is not known."""
        known = self._keys.find(key)
        if known is None:
            raise LookupError("this key is not known to the simulator")
        self._keys.put(KnownKey(key, known.organization_id, KeyState(state), known.behaviour))

    # --- misbehaviours ---

    def script(self, match: Match | None, behaviour: Behaviour, *, times: int | None = 1) -> None:
        """Queue behaviour for the next `times` requests that match (None: for all of them)."""
        self._script.add(match if match is not None else Match(), behaviour, times)

    def hold(self, name: str | None = None) -> Hold:
        """A hold to name in a Behaviour (`hold=hold.name`) and to release() later."""
        return self._holds.get(name)

    def clear(self) -> None:
        """Forget the log, the script, the files and batches, and the holds (which are released);
        keep the keys.
        """
        self._script.clear()
        self._holds.clear()
        self._log.clear()
        self._engine.clear()

    # --- what arrived ---

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """What arrived, oldest first; the last 10,000."""
        return self._log.records()

    @property
    def open_connections(self) -> int:
        """Connections to the API that are open now."""
        return self._listeners[0].open_connections if self._listeners else 0

    @property
    def faults(self) -> Sequence[Exception]:
        """Exceptions of the simulator itself; none in a healthy run."""
        return tuple(self._engine.faults)

    async def wait_for_request(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """Request `number` (from 1), once its head is here."""
        return await self._log.wait(number, _has_head, "received", timeout_s)

    async def wait_for_body(
        self, number: int = 1, *, at_least: int | None = None, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """Request `number`, once at_least so many bytes of its body are here, or (None) all."""

        def arrived(record: RequestRecord) -> bool:
            enough = at_least is not None and record.body_length >= at_least
            return enough or record.body_at is not None

        return await self._log.wait(number, arrived, "uploaded", timeout_s)

    async def wait_for_end(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """Request `number`, once its answer is written (or cut), or its client is gone."""
        return await self._log.wait(number, _is_over, "finished", timeout_s)

    async def disconnected(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """Request `number`, once its client is gone before the answer was complete.

        Raises NotDisconnected if the answer was written whole instead.
        """
        return _abandoned(await self.wait_for_end(number, timeout_s=timeout_s))

    def wait_for_request_blocking(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """wait_for_request for code without an event loop."""
        return self._log.wait_blocking(number, _has_head, "received", timeout_s)

    def wait_for_end_blocking(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """wait_for_end for code without an event loop."""
        return self._log.wait_blocking(number, _is_over, "finished", timeout_s)

    def disconnected_blocking(
        self, number: int = 1, *, timeout_s: float = _TIMEOUT_S
    ) -> RequestRecord:
        """disconnected for code without an event loop."""
        return _abandoned(self.wait_for_end_blocking(number, timeout_s=timeout_s))


def _has_head(record: RequestRecord) -> bool:
    return record.head_at is not None


def _is_over(record: RequestRecord) -> bool:
    return record.finished_at is not None or record.disconnected_at is not None


def _abandoned(record: RequestRecord) -> RequestRecord:
    if record.disconnected_at is None:
        raise NotDisconnected(f"request {record.number} was answered whole ({record.status})")
    return record


@contextlib.contextmanager
def in_thread(simulator: S) -> Iterator[S]:
    """Start a simulator on an event loop in a thread of its own, for callers with or without a
    loop; stop it at the end. Raises what start() raises.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="simulator", daemon=True)
    thread.start()
    try:
        try:
            asyncio.run_coroutine_threadsafe(simulator.start(), loop).result(_THREAD_S)
            yield simulator
        finally:
            asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result(_THREAD_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_THREAD_S)
        loop.close()
