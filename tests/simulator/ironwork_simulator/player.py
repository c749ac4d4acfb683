"""Plays a reply onto a connection, with everything that a behaviour wants to be wrong about it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.connection import After, Exchange
from ironwork_simulator.errors import ApiError
from ironwork_simulator.headers import Clock, head_bytes, standard_headers
from ironwork_simulator.holds import HOLD_LIMIT_S, Holds
from ironwork_simulator.reply import Reply
from ironwork_simulator.sse import event

_MAX_THINKING_PACES = 50
# A long answer at pace 0 must not keep the loop from everyone else.
_PARTS_A_TURN = 32


@dataclass(frozen=True, slots=True)
class Stage:
    """What a player needs besides the reply. organization_id: of the key, where it is known."""

    clock: Clock
    holds: Holds
    pace_s: float
    organization_id: str | None


async def play(exchange: Exchange, reply: Reply, stage: Stage) -> None:
    """Write reply, or what the exchange's behaviour makes of it, and end the exchange."""
    behaviour = exchange.behaviour
    pace_s = stage.pace_s if behaviour.pace_s is None else behaviour.pace_s
    await _before_head(behaviour, reply, stage, pace_s)
    if behaviour.raw is not None:
        await exchange.write(behaviour.raw.encode("latin-1", "replace"))
        exchange.end(After.CLOSE)
    elif behaviour.cut == "close_before_head":
        exchange.end(After.CLOSE)
    elif behaviour.cut == "reset_before_head":
        exchange.reset()
    else:
        await _Player(exchange, reply, stage, pace_s).run()


async def _before_head(behaviour: Behaviour, reply: Reply, stage: Stage, pace_s: float) -> None:
    if behaviour.hang:
        await asyncio.sleep(HOLD_LIMIT_S)
    if behaviour.hold is not None and behaviour.hold_at == "head":
        await stage.holds.get(behaviour.hold).wait()
    delay = behaviour.first_byte_delay_s + pace_s * min(reply.paces, _MAX_THINKING_PACES)
    if delay:
        await asyncio.sleep(delay)


class _Player:
    """One answer with a head and a body."""

    def __init__(self, exchange: Exchange, reply: Reply, stage: Stage, pace_s: float) -> None:
        self._exchange = exchange
        self._behaviour = exchange.behaviour
        self._reply = reply
        self._stage = stage
        self._pace_s = pace_s
        behaviour = self._behaviour
        streams = reply.events is not None and reply.length is None
        wants_chunks = streams or behaviour.framing == "chunked"
        wants_chunks |= behaviour.cut in {"chunked", "mid_chunk"} or bool(behaviour.trailers)
        has_length = behaviour.cut == "content_length" or behaviour.declared_length is not None
        self._chunked = wants_chunks and not has_length
        # HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        is_old = self._chunked and exchange.record.http_version == "1.0"
        self._until_close = is_old or behaviour.framing == "eof"

    async def run(self) -> None:
        behaviour, exchange = self._behaviour, self._exchange
        head = self._head()
        exchange.record.status = self._reply.status
        if behaviour.interim:
            await exchange.write(b"".join(map(_interim, behaviour.interim)))
        if exchange.record.method == "HEAD" or self._reply.status == 204:
            await exchange.write_head(head)
            self._end()
            return
        if self._is_plain():
            await exchange.write_head(head, self._reply.body)
            self._end()
            return
        await self._write_head(head)
        async for part in self._paced():
            await self._write_part(part)
        if behaviour.cut is not None:
            await self._cut()
            return
        if self._chunked and not self._until_close:
            await exchange.write(self._last_chunk())
        self._end()

    async def _write_head(self, head: bytes) -> None:
        exchange = self._exchange
        if self._behaviour.endless_headers:
            await exchange.write(head[:-2])
            while True:  # until the client has had enough: then writing fails
                await exchange.write(b"x-endless: %b\r\n" % (b"a" * 100))
                await asyncio.sleep(0)
        if not self._behaviour.drip_head:
            await exchange.write_head(head)
            return
        for position in range(len(head)):
            await exchange.write(head[position : position + 1])
            await asyncio.sleep(self._behaviour.drip_interval_s)
        exchange.record.sent_head = head

    def _last_chunk(self) -> bytes:
        trailers = "".join(f"{name}: {value}\r\n" for name, value in self._behaviour.trailers)
        return b"0\r\n%b\r\n" % trailers.encode("latin-1", "replace")

    def _is_plain(self) -> bool:
        """The usual unary answer: head and body in one write."""
        b = self._behaviour
        odd = b.cut is not None or b.drip is not None or b.hold_at == "body"
        odd |= b.drip_head or b.endless_headers
        return not odd and not self._chunked and self._reply.events is None

    def _head(self) -> bytes:
        exchange, reply = self._exchange, self._reply
        headers = standard_headers(
            self._stage.clock, exchange.record, self._stage.organization_id, reply.content_type
        )
        headers += reply.headers
        if reply.status == 204 or self._until_close:
            pass
        elif self._chunked:
            headers.append(("transfer-encoding", "chunked"))
        else:
            headers.append(("content-length", str(self._content_length())))
        closes = exchange.wants_close or exchange.too_large or self._until_close
        if closes or self._behaviour.close == "announced":
            headers.append(("connection", "close"))
        else:
            headers.append(("connection", "keep-alive"))
        return head_bytes(reply.status, headers, self._behaviour)

    def _content_length(self) -> int:
        if self._behaviour.declared_length is not None:
            return self._behaviour.declared_length
        if self._reply.length is not None:
            length = self._reply.length
        elif self._reply.events is not None:
            self._reply.events = list(self._reply.events)
            length = sum(map(len, self._reply.events))
        else:
            length = len(self._reply.body)
        # Always short by at least one byte, however many parts there turn out to be.
        return length + 1 if self._behaviour.cut == "content_length" else length

    def _parts(self) -> Iterable[bytes]:
        if self._reply.events is not None:
            return self._reply.events
        body = self._reply.body
        if self._behaviour.cut is not None or self._behaviour.hold_at == "body":
            middle = len(body) // 2
            return [body[:middle], body[middle:]]
        return [body]

    async def _paced(self) -> AsyncIterator[bytes]:
        """The parts up to where they end or are cut, each at its time."""
        behaviour = self._behaviour
        count = 0
        for part in self._until_error():
            if behaviour.hold_at == "body" and count == behaviour.hold_after:
                await self._hold()
            if behaviour.cut is not None and count == behaviour.cut_after:
                return
            if count and self._pace_s:
                await asyncio.sleep(self._pace_s)
            yield part
            count += 1
            if count % _PARTS_A_TURN == 0:
                await asyncio.sleep(0)
        if behaviour.hold_at == "body" and behaviour.hold_after >= count:
            await self._hold()

    def _until_error(self) -> Iterator[bytes]:
        after = self._behaviour.error_after
        if after is None or self._reply.events is None:
            yield from self._parts()
            return
        for count, part in enumerate(self._parts()):
            if count == after:
                break
            yield part
        b = self._behaviour
        error = ApiError(529, b.message, type_=b.error_type, details=b.details)
        yield event("error", error.document(self._exchange.record.request_id))

    async def _hold(self) -> None:
        if self._behaviour.hold is not None:
            await self._stage.holds.get(self._behaviour.hold).wait()

    async def _write_part(self, part: bytes) -> None:
        drip = self._behaviour.drip
        if not drip:
            await self._exchange.write_body(part, self._framed(part))
            return
        for start in range(0, len(part), drip):
            piece = part[start : start + drip]
            await self._exchange.write_body(piece, self._framed(piece))
            # Also at 0: the loop must turn, or the pieces leave as one.
            await asyncio.sleep(self._behaviour.drip_interval_s)

    def _framed(self, data: bytes) -> bytes:
        if not self._chunked or self._until_close or not data:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    async def _cut(self) -> None:
        if self._behaviour.cut == "reset":
            self._exchange.reset()
            return
        if self._behaviour.cut == "mid_chunk":
            await self._exchange.write(b"400\r\nevent: content_block_del")
        self._exchange.end(After.CLOSE)

    def _end(self) -> None:
        close = self._behaviour.close
        if close == "before_next_request":
            self._exchange.end(After.RESET_AT_NEXT_REQUEST)
        elif close is not None or self._until_close or self._behaviour.declared_length is not None:
            self._exchange.end(After.CLOSE)
        else:
            self._exchange.end(After.KEEP)


def _interim(status: int) -> bytes:
    return f"HTTP/1.1 {status} Interim\r\nx-interim: yes\r\n\r\n".encode("latin-1")
