"""A client's connection to the HSM process: made when it is needed, and made again when lost."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ironwork_hsm.interface import BackendOptions, ConfigurationError, HsmError, Unavailable
from ironwork_hsm.lanes import keep
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import Malformed
from ironwork_hsm.remote.link import GoneAway, Link
from ironwork_hsm.remote.place import folder_owner, peer_of
from ironwork_hsm.remote.wire import Frame, Info, Kind

Result = TypeVar("Result")

# While the process is started anew, calls wait this long for it (within their deadline).
RECONNECT_S: Final = 1.0
_PAUSE_S: Final = 0.02


class Connection:
    """Calls over one socket, many at once. Belongs to one event loop; closed once.

    A call is sent once: where the connection breaks under it, it is Unavailable, since the process
    may have done it already.
    """

    def __init__(self, path: Path, options: BackendOptions) -> None:
        self._path = path
        self._options = options
        self._link: Link | None = None
        # One connects, the others wait for it.
        self._connecting = asyncio.Lock()
        self._closed = False

    async def open(self) -> Info:
        """Connect, within slow_deadline_s, and hear what the process offers. Raises Unavailable,
        ConfigurationError; what was opened is closed then.
        """
        seconds = self._options.slow_deadline_s
        try:
            link = await self._connect(min(RECONNECT_S, seconds))
            return await self._ask(
                link, wire.hello, Kind.INFO, wire.parse_info, discard=keep, deadline_s=seconds
            )
        except GoneAway:
            await self.close()
            raise Unavailable(
                f"The HSM process at {self._path} ended the connection at its greeting: it refuses"
                " this user, is ending, or is of an older release than this one; both need the"
                " same."
            ) from None
        except BaseException:
            await self.close()
            raise

    async def hello(self, *, deadline_s: float | None = None) -> Info:
        """What the process offers now. Raises Unavailable, ConfigurationError."""
        return await self.call(wire.hello, Kind.INFO, wire.parse_info, deadline_s=deadline_s)

    async def call(
        self,
        build: Callable[[int], bytes],
        kind: Kind,
        parse: Callable[[memoryview], Result],
        *,
        discard: Callable[[Result], None] = keep,
        deadline_s: float | None = None,
    ) -> Result:
        """Send a request and return its answer, which is of this kind.

        deadline_s: another one than the options'. discard receives an answer that nobody takes any
        more. Raises what the process answered with, Unavailable, Busy, ConfigurationError.
        """
        link = self._link
        if link is None or not link.is_live:
            link = await self._connect(min(RECONNECT_S, self._options.deadline_s))
        return await self._ask(link, build, kind, parse, discard=discard, deadline_s=deadline_s)

    async def _ask(
        self,
        link: Link,
        build: Callable[[int], bytes],
        kind: Kind,
        parse: Callable[[memoryview], Result],
        *,
        discard: Callable[[Result], None],
        deadline_s: float | None,
    ) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def answered(answer: Frame | HsmError) -> None:
            if isinstance(answer, HsmError):
                _fail(future, answer)
                return
            try:
                if answer.kind is Kind.FAILED:
                    _fail(future, wire.parse_failed(answer.payload))
                    return
                if answer.kind is not kind:
                    raise Malformed("an answer is of another kind")  # noqa: TRY301  one end for it
                value = parse(answer.payload)
            except Malformed:
                link.abort()
                _fail(future, Unavailable("The HSM process does not speak this protocol."))
                return
            if future.done():
                discard(value)
            else:
                future.set_result(value)

        link.request(build, answered, deadline_s=deadline_s)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                discard(future.result())
            raise

    async def close(self) -> None:
        """End it: what waits gets Unavailable. Safe to call again."""
        self._closed = True
        if self._link is not None:
            self._link.abort()
            # The transport tells its end in the loop's next round.
            await asyncio.sleep(0)

    async def _connect(self, seconds: float) -> Link:
        """The live link, made within so many seconds where there is none."""
        problem: HsmError | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async with self._connecting:
                    while not self._closed:
                        if self._link is not None and self._link.is_live:
                            return self._link
                        try:
                            self._link = await self._open()
                        except Unavailable as error:
                            problem = error
                            await asyncio.sleep(_PAUSE_S)
        if self._closed:
            raise Unavailable("The HSM backend is closed.")
        raise problem or Unavailable("The HSM process does not take connections.")

    async def _open(self) -> Link:
        owner = folder_owner(self._path)
        loop = asyncio.get_running_loop()
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await loop.sock_connect(connected, str(self._path))
            peer = peer_of(connected)
            if peer.is_nobody:
                # Where the listener's backlog is full, asyncio takes EAGAIN (unix(7)) for a
                # connection under way, and it for made. Nobody is at the other end.
                raise Unavailable(  # noqa: TRY301  the socket is closed in one place
                    f"The HSM process at {self._path} is slow to take connections."
                )
            if peer.uid not in {owner, 0}:
                raise ConfigurationError(  # noqa: TRY301  the socket is closed in one place
                    f"The process at {self._path} is not that of the folder's owner; data keys are"
                    " not sent to it."
                )
            _, link = await loop.create_unix_connection(self._link_made, sock=connected)
        except OSError:
            connected.close()
            raise Unavailable(
                f"The HSM process at {self._path} does not take connections."
            ) from None
        except BaseException:
            connected.close()
            raise
        # A greeting comes first on every connection; what it answers is asked for by `hello`.
        link.request(wire.hello, keep)
        return link

    def _link_made(self) -> Link:
        return Link(
            deadline_s=self._options.deadline_s,
            capacity=self._options.queue,
            on_lost=lambda: None,
        )


def _fail(future: "asyncio.Future[Result]", error: HsmError) -> None:
    if not future.done():
        future.set_exception(error)
