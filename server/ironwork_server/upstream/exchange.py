"""One request and its answer on one connection."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

import h11

from ironwork_server.core.ports import Injector, SendProgress
from ironwork_server.core.values import ScreenedRequest
from ironwork_server.upstream import faults
from ironwork_server.upstream.body import BodyReader, Malformed, OpenBody, body_reader
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.faults import FOREIGN
from ironwork_server.upstream.headers import (
    body_length,
    check_response,
    framing_is_ambiguous,
    request_head,
)
from ironwork_server.upstream.timeouts import (
    MAX_HEAD_BYTES,
    MAX_INFORMATIONAL,
    UpstreamTimeouts,
)

_CREDENTIAL_NAME = b"x-api-key: "
_END_OF_HEAD = b"\r\n\r\n"


class _UploadStopped(Exception):
    """The connection takes no more; the reader will find out why."""


class Exchange:
    """Also the UpstreamResponse, from `open` on. Made before there is a connection, so that a
    request that HTTP/1.1 cannot carry is refused before anything is decrypted.

    h11 keeps the state of both directions; it never sees the key. The channel is borrowed.
    """

    def __init__(
        self,
        request: ScreenedRequest,
        body: AsyncIterator[bytes],
        authority: str,
        timeouts: UpstreamTimeouts,
    ) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head = request_head(self._http, request, authority)
        self._method = request.method
        self._length = body_length(request)
        self._max_body = request.max_body
        self._body = body
        self._timeouts = timeouts
        self._channel: Channel | None = None
        self._uploader: asyncio.Task[None] | None = None
        # We stopped the upload: how it ends is of no interest, nor to the channel's next borrower.
        self._stopped = False
        self._upload_error: BaseException | None = None
        # The request is on its way whole.
        self._uploaded = False
        # Of the answer's body, once its head is there.
        self._reader: BodyReader | None = None
        # What came with the head, or with the body's beginning.
        self._pending = b""
        # The caller reads no more.
        self._ended = False
        self._first_byte: asyncio.Timeout | None = None
        self._eof = False
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] = ()

    # --- sending ---------------------------------------------------------------------------

    def start(self, channel: Channel, injector: Injector, progress: SendProgress) -> None:
        """Write the head with its credential, without a pause between decryption and wiping.

        Raises StaleCredential, or what inject raises, before anything is written; UpstreamFailed.
        """
        key_at = len(self._head) + len(_CREDENTIAL_NAME)
        buffer = bytearray().join(
            (self._head, _CREDENTIAL_NAME, bytes(injector.length), _END_OF_HEAD)
        )
        try:
            with memoryview(buffer)[key_at : key_at + injector.length] as target:
                injector.inject(target)
            progress.sent = True
            channel.write(buffer)
        except FOREIGN:
            raise faults.cut() from None
        finally:
            buffer[:] = bytes(len(buffer))
        self._channel = channel

    async def open(self) -> None:
        """Begin the upload and wait for the answer's head. Raises what Upstream.send says."""
        channel = self._opened()
        self._uploader = asyncio.create_task(self._upload(channel))
        deadline = self._first_byte = asyncio.timeout(None)
        try:
            async with deadline:
                response = await self._read_head(channel)
        except FOREIGN as error:
            if error is self._upload_error:
                raise
            if deadline.expired():
                raise faults.timeout_fault("head") from None
            raise (faults.cut() if self._eof else faults.malformed()) from None
        finally:
            self._first_byte = None
        self._headers = check_response(response)
        self._reader = body_reader(self._method, response)
        self._pending, _ = self._http.trailing_data
        self._status = response.status_code
        if self._status >= 400 and not self._uploaded:
            # The answer will not change: stop sending (RFC 9112 section 9.5). The connection is
            # of no use after that.
            self._stop_upload()

    async def _upload(self, channel: Channel) -> None:
        try:
            await self._send_body(channel)
        except _UploadStopped:
            pass
        except asyncio.CancelledError:
            self._fail(channel, faults.upload_cancelled())
            raise
        except Exception as error:  # noqa: BLE001 - what the body raises, the reader raises
            self._fail(channel, error)

    def _fail(self, channel: Channel, error: BaseException) -> None:
        if not self._stopped:
            self._upload_error = error
            channel.fail(error)

    def _stop_upload(self) -> None:
        self._stopped = True
        if self._uploader is not None:
            self._uploader.cancel()

    async def _send_body(self, channel: Channel) -> None:
        sent = 0
        if self._length == 0:
            self._finish_upload(channel)
        while (piece := await self._next_piece()) is not None:
            sent += len(piece)
            if self._length is None and sent > self._max_body:
                raise faults.body_too_large(self._max_body)
            if self._length is not None and sent > self._length:
                raise faults.body_length_mismatch()
            # Before its last piece is sent: a body that is too long never arrives as a whole one,
            # which would cost the tokens of a request that the agent is told has failed.
            if sent == self._length and await self._more_follows():
                raise faults.body_length_mismatch()
            if piece:
                await self._transmit(channel, h11.Data(data=piece))
            if sent == self._length and not self._uploaded:
                self._finish_upload(channel)
        if self._length is not None and sent < self._length:
            raise faults.body_length_mismatch()
        if not self._uploaded:
            self._finish_upload(channel)

    async def _more_follows(self) -> bool:
        while (piece := await self._next_piece()) is not None:
            if piece:
                return True
        return False

    async def _next_piece(self) -> bytes | None:
        deadline = asyncio.timeout(self._timeouts.body_idle_s)
        try:
            async with deadline:
                return await anext(self._body, None)
        except TimeoutError:
            if deadline.expired():
                raise faults.timeout_fault("body") from None
            raise

    async def _transmit(self, channel: Channel, event: h11.Data) -> None:
        self._write(channel, event)
        deadline = asyncio.timeout(self._timeouts.write_stall_s)
        try:
            async with deadline:
                await channel.drain()
        except TimeoutError:
            raise faults.timeout_fault("write") from None

    def _finish_upload(self, channel: Channel) -> None:
        self._write(channel, h11.EndOfMessage())
        self._uploaded = True
        if self._first_byte is not None:
            now = asyncio.get_running_loop().time()
            self._first_byte.reschedule(now + self._timeouts.first_byte_s)

    def _write(self, channel: Channel, event: h11.Data | h11.EndOfMessage) -> None:
        try:
            data = self._http.send(event)
            if data:
                channel.write(data)
        except FOREIGN:
            raise _UploadStopped from None

    # --- the answer ------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """What one read of the socket gave, without framing. Raises Unavailable, UpstreamFailed,
        and what the upload failed with."""
        reader = self._reader
        if self._ended or reader is None or self._is_complete(reader):
            raise StopAsyncIteration
        deadline = asyncio.timeout(self._timeouts.idle_s)
        try:
            async with deadline:
                chunk = await self._read_chunk(reader, self._opened())
        except FOREIGN as error:
            if error is self._upload_error:
                raise
            if deadline.expired():
                raise faults.timeout_fault("chunk") from None
            raise faults.cut() from None
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def _read_head(self, channel: Channel) -> h11.Response:
        informational = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive(channel)
            elif isinstance(event, h11.Response):
                return event
            elif isinstance(event, h11.InformationalResponse):
                informational += 1
                if event.status_code == 101 or informational > MAX_INFORMATIONAL:
                    raise faults.malformed()
            else:  # h11.ConnectionClosed
                raise faults.cut()

    async def _read_chunk(self, reader: BodyReader, channel: Channel) -> bytes:
        """b'' at the end."""
        chunk = b""
        if reader.broken:
            raise Malformed
        while not chunk and not reader.complete:
            data, self._pending = self._pending, b""
            if not data:
                data = await channel.read()
            chunk = reader.feed(data)
        return chunk

    def _is_complete(self, reader: BodyReader) -> bool:
        """Also of an answer without a body (HEAD, 204), which is whole although nobody read it."""
        if self._pending and reader.complete:
            reader.feed(self._pending)
            self._pending = b""
        return reader.complete

    async def _receive(self, channel: Channel) -> None:
        try:
            data = await channel.read()
        except OSError:
            self._eof = True
            raise
        self._eof = not data
        self._http.receive_data(data)

    # --- the end ---------------------------------------------------------------------------

    def end(self) -> bool:
        """Stop the upload; whether the connection can carry another exchange. Synchronous, so
        that a connection that is of no more use can be aborted at once."""
        self._stop_upload()
        reader = self._reader
        reusable = (
            reader is not None
            and self._is_complete(reader)
            and not reader.surplus
            and not isinstance(reader, OpenBody)
            and self._uploaded
            # MUST_CLOSE where either side said `Connection: close`, or the answer is HTTP/1.0.
            and self._http.our_state is h11.DONE
            and not framing_is_ambiguous(self._headers)
        )
        self._ended = True  # whoever keeps the response reads nothing of the next one
        self._channel = None
        return reusable

    async def settle(self) -> None:
        """Until the upload's task has ended; bounded, since the body is the caller's."""
        if self._uploader is not None:
            await asyncio.wait({self._uploader}, timeout=self._timeouts.settle_s)

    def _opened(self) -> Channel:
        if self._channel is None:
            raise faults.cut()
        return self._channel
