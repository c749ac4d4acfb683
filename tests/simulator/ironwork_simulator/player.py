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
_LAST_CHUNK = b"0\r\n\r\n"


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
        streams = reply.events is not None or self._behaviour.framing == "chunked"
        wants_chunks = streams or self._behaviour.cut in {"chunked", "mid_chunk"}
        self._chunked = wants_chunks and self._behaviour.cut != "content_length"
        # HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        self._until_close = self._chunked and exchange.record.http_version == "1.0"

    async def run(self) -> None:
        behaviour, exchange = self._behaviour, self._exchange
        head = self._head()
        exchange.record.status = self._reply.status
        if exchange.record.method == "HEAD":
            await exchange.write(head)
            self._end()
            return
        if self._is_plain():
            await exchange.write(head + self._reply.body)
            self._end()
            return
        await exchange.write(head)
        async for part in self._paced():
            await self._write_part(part)
        if behaviour.cut is not None:
            await self._cut()
            return
        if self._chunked and not self._until_close:
            await exchange.write(_LAST_CHUNK)
        self._end()

    def _is_plain(self) -> bool:
        """The usual unary answer: head and body in one write."""
        b = self._behaviour
        return not self._chunked and b.cut is None and b.drip is None and b.hold_at != "body"

    def _head(self) -> bytes:
        exchange, reply = self._exchange, self._reply
        headers = standard_headers(
            self._stage.clock, exchange.record, self._stage.organization_id, reply.content_type
        )
        headers += reply.headers
        if not self._chunked:
            headers.append(("content-length", str(self._content_length())))
        elif not self._until_close:
            headers.append(("transfer-encoding", "chunked"))
        closes = exchange.wants_close or exchange.too_large or self._until_close
        if closes or self._behaviour.close == "announced":
            headers.append(("connection", "close"))
        else:
            headers.append(("connection", "keep-alive"))
        return head_bytes(reply.status, headers, self._behaviour)

    def _content_length(self) -> int:
        if self._reply.events is not None:
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
            await self._exchange.write(self._framed(part))
            return
        for start in range(0, len(part), drip):
            await self._exchange.write(self._framed(part[start : start + drip]))
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
        elif close is not None or self._until_close:
            self._exchange.end(After.CLOSE)
        else:
            self._exchange.end(After.KEEP)
