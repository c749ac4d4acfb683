"""A device's own process: one backend or signer, and nothing else. `python -m` runs it.

Started by the HSM process with a socket as its standard input. Its URI comes first; then it answers
the same protocol that clients speak (remote/wire.py). It may be killed at any moment: a module that
hangs or crashes takes nothing with it. It ends when the socket does.
"""

import argparse
import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from socket import MSG_WAITALL, socket
from typing import Final

from ironwork_hsm.backends import open_backend
from ironwork_hsm.daemon import logs
from ironwork_hsm.daemon.hardening import deny_memory_reads, end_with_parent
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    HsmError,
    KeyMissing,
    KeyWrapper,
    Signer,
    Unavailable,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH, Malformed
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.wire import Frame, Info, KeyInfo, Kind, SignerInfo
from ironwork_hsm.signers import open_signer

WRAPPER = "wrapper"
SIGNER = "signer"
# Of a URI: a settings file that holds one is no longer.
_MAX_URI_BYTES: Final = 65536


@dataclass(slots=True)
class _Wrapping:
    """Answers for a master key."""

    backend: KeyWrapper

    def info(self) -> Info:
        try:
            version = self.backend.current_version
        except KeyMissing:
            version = 0
        key = KeyInfo(self.backend.name, version, self.backend.mechanism)
        return Info((key,), None, None)

    async def answer(self, frame: Frame) -> bytes:
        number = frame.number
        match frame.kind:
            case Kind.WRAP:
                wrap = wire.parse_wrap(frame.payload)
                wrapped = await self.backend.wrap(
                    bytearray(wrap.data_key), wrap.context, version=wrap.version
                )
                return wire.wrapped_answer(number, wrapped)
            case Kind.UNWRAP:
                unwrap = wire.parse_unwrap(frame.payload)
                opened = await self.backend.unwrap(unwrap.wrapped, unwrap.context)
                try:
                    return wire.opened_answer(number, opened)
                finally:
                    opened[:] = bytes(len(opened))
            case Kind.VERSIONS:
                return wire.listed_answer(number, await self.backend.versions())
            case Kind.CHECK:
                await self.backend.check(wire.parse_check(frame.payload).version)
                return wire.done(number)
            case _:
                raise Malformed("a master key does not do that")


@dataclass(slots=True)
class _Signing:
    """Answers for a signing key."""

    signer: Signer

    def info(self) -> Info:
        signer = self.signer
        # A key's place is kept, so that a reader of the protocol finds at least one.
        nothing = KeyInfo(signer.name, 0, "")
        return Info((nothing,), SignerInfo(signer.name, signer.algorithm, signer.public_key), None)

    async def answer(self, frame: Frame) -> bytes:
        match frame.kind:
            case Kind.SIGN:
                sign = wire.parse_sign(frame.payload)
                return wire.signed_answer(frame.number, await self.signer.sign(sign.message))
            case _:
                raise Malformed("a signing key does not do that")


class _Session(asyncio.BufferedProtocol):
    """The parent's connection. Frames wait in their tasks; the parent bounds how many."""

    def __init__(self, opening: Callable[[], Coroutine[None, None, _Wrapping | _Signing]]) -> None:
        self._opening = opening
        self._answering: _Wrapping | _Signing | None = None
        self._buffer = FrameBuffer()
        self._outgoing: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream's transport is expected")
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        for frame in self._buffer.received(nbytes):
            lasting = Frame(frame.kind, frame.number, memoryview(bytearray(frame.payload)))
            task = self._loop.create_task(self._serve(lasting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def _serve(self, frame: Frame) -> None:
        try:
            data = await self._answer(frame)
        except HsmError as error:
            data = wire.failed(frame.number, error)
        except (Malformed, ValueError) as error:
            # The parent reads what clients send before it passes it on.
            data = wire.failed(frame.number, BlobRejected(f"Refused ({type(error).__name__})."))
        except Exception as error:  # noqa: BLE001  the seam of this process: nothing foreign leaves
            data = wire.failed(
                frame.number, Unavailable(f"The HSM backend failed ({type(error).__name__}).")
            )
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    async def _answer(self, frame: Frame) -> bytes:
        if frame.kind is Kind.HELLO:
            if self._answering is None:
                self._answering = await self._opening()
            return wire.info_answer(frame.number, self._answering.info())
        if self._answering is None:
            raise ConfigurationError("The device is not open.")
        return await self._answering.answer(frame)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()


def _read_uri(link: socket) -> str:
    """What comes first on the link, and before this process was started: its length (4 bytes) and
    the URI. Its arguments would show it, with what it configures, to every user of the machine.
    """
    (length,) = LENGTH.unpack(link.recv(LENGTH.size, MSG_WAITALL))
    return link.recv(min(length, _MAX_URI_BYTES), MSG_WAITALL).decode()


async def _run(role: str, link: socket, options: BackendOptions) -> None:
    uri = _read_uri(link)

    async def opening() -> _Wrapping | _Signing:
        if role == SIGNER:
            return _Signing(await open_signer(uri, options=options))
        return _Wrapping(await open_backend(uri, allow_missing=True, options=options))

    link.setblocking(False)
    loop = asyncio.get_running_loop()
    _, session = await loop.create_unix_connection(lambda: _Session(opening), sock=link)
    await session.ended
    # At once, also where a thread hangs inside the module: there is nothing to be saved.
    os._exit(0)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=(WRAPPER, SIGNER))
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--lanes", type=int, required=True)
    parser.add_argument("--queue", type=int, required=True)
    options = parser.parse_args()
    end_with_parent(options.parent)
    deny_memory_reads()
    # Standard error is the HSM process' own: other libraries' texts stay out of it.
    logs.configure()
    settings = BackendOptions(
        lanes=options.lanes,
        queue=options.queue,
        deadline_s=options.deadline,
        slow_deadline_s=options.deadline * 10,
    )
    asyncio.run(_run(options.role, socket(fileno=0), settings))


if __name__ == "__main__":
    main()
