"""Answers requests: the key, the behaviour, the route, the log."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable

from ironwork_simulator.access import admit, presented_key
from ironwork_simulator.batches import BatchStore
from ironwork_simulator.behaviour import HEADER, Behaviour, Script
from ironwork_simulator.config import DEFAULT_MAX_BODY, MAX_BODIES, Config
from ironwork_simulator.connection import Connection, Exchange
from ironwork_simulator.errors import ApiError
from ironwork_simulator.files import FileStore
from ironwork_simulator.headers import Clock, head_bytes, standard_headers
from ironwork_simulator.holds import Holds
from ironwork_simulator.keys import KeyTable
from ironwork_simulator.log import RequestLog, RequestRecord
from ironwork_simulator.plain import Invalid
from ironwork_simulator.player import Stage, play
from ironwork_simulator.reply import Reply, dressed, overridden, refusal, replaces
from ironwork_simulator.routes import Call, find_route


class Engine:
    """The API behind the connections (ironwork_simulator.connection.Application).

    faults: exceptions of the simulator itself; none in a healthy run.
    """

    def __init__(
        self, config: Config, keys: KeyTable, script: Script, holds: Holds, log: RequestLog
    ) -> None:
        self._config = config
        self._keys = keys
        self._script = script
        self._holds = holds
        self._log = log
        self._clock = Clock()
        self._run = secrets.token_hex(4)
        self._count = 0
        self._files = FileStore()
        self._batches = BatchStore()
        self._gates: set[asyncio.Task[None]] = set()
        self.faults: list[Exception] = []

    def max_body(self, exchange: Exchange) -> int:
        if self._config.max_body is not None:
            return self._config.max_body
        return MAX_BODIES.get(exchange.record.route, DEFAULT_MAX_BODY)

    def clear(self) -> None:
        """Forget the files and batches."""
        self._files.clear()
        self._batches.clear()

    def first_byte(self, connection: Connection) -> RequestRecord:
        self._count += 1
        record = self._log.open(connection.number)
        record.request_id = f"req_011C{self._run}{self._count:012d}"
        return record

    def head_complete(self, exchange: Exchange) -> None:
        record = exchange.record
        record.head_at, record.head_wall = time.monotonic(), time.time()
        record.key, record.credential_header = presented_key(record)
        record.key_index = self._keys.index(record.key)
        with contextlib.suppress(ApiError):
            record.route = find_route(record.method, record.path)[0].name
        try:
            exchange.behaviour = self._behaviour_for(record)
        except Invalid as error:
            # The simulator's own header was wrong: say so, in the words of its reader.
            exchange.refusal = ApiError(400, str(error))
        exchange.keeps_body = not replaces(exchange.behaviour)
        self._log.changed(record)

    def body_grew(self, exchange: Exchange) -> None:
        self._log.changed(exchange.record)

    def body_complete(self, exchange: Exchange) -> None:
        self._log.body_complete(exchange.record)

    def finished(self, exchange: Exchange, *, disconnected: bool) -> None:
        record, sent = exchange.record, exchange.sent_digest
        record.sent_sha256, record.sent_body = sent.sha256, sent.kept
        if disconnected:
            exchange.record.disconnected_at = time.monotonic()
        else:
            exchange.record.finished_at = time.monotonic()
        self._log.close(exchange.record)

    def malformed(self, exchange: Exchange) -> bytes:
        error = ApiError(400, "The request is not valid HTTP/1.1")
        body = error.body(exchange.record.request_id)
        exchange.record.status = error.status
        headers = standard_headers(self._clock, exchange.record, None, "application/json")
        headers += [("content-length", str(len(body))), ("connection", "close")]
        return head_bytes(error.status, headers, Behaviour()) + body

    def upload_gate(self, exchange: Exchange) -> Callable[[], asyncio.Future[None]] | None:
        behaviour = exchange.behaviour
        if behaviour.hold is None or behaviour.hold_at != "upload":
            return None
        hold = self._holds.get(behaviour.hold)

        def gate() -> asyncio.Future[None]:
            task = asyncio.get_running_loop().create_task(hold.wait())
            self._gates.add(task)
            task.add_done_callback(self._gates.discard)
            return task

        return gate

    async def serve(self, exchange: Exchange) -> None:
        try:
            await self._serve(exchange)
        except ConnectionResetError:
            pass  # the client is gone; the connection tells the log
        except Exception as error:  # noqa: BLE001 a fault of ours is for the test to see
            self.faults.append(error)
            exchange.reset()

    async def _serve(self, exchange: Exchange) -> None:
        record, behaviour = exchange.record, exchange.behaviour
        reply = overridden(behaviour, record.key, record.request_id)
        if reply is None:
            reply = self._answer(exchange)
        known = self._keys.find(record.key)
        inference = reply.status == 200 and record.route == "messages"
        stage = Stage(
            clock=self._clock,
            holds=self._holds,
            pace_s=self._config.pace_s if inference else 0.0,
            organization_id=None if known is None else known.organization_id,
        )
        await play(exchange, dressed(reply, behaviour, record.key), stage)

    def _answer(self, exchange: Exchange) -> Reply:
        record = exchange.record
        if exchange.refusal is not None:
            return refusal(exchange.refusal, record.request_id)
        try:
            route, parameters = find_route(record.method, record.path)
            known = admit(record, self._keys, inference=route.inference)
            if exchange.too_large:
                return refusal(ApiError(413), record.request_id)
            call = Call(
                record=record,
                body=exchange.body,
                parameters=parameters,
                behaviour=exchange.behaviour,
                organization_id=known.organization_id,
                files=self._files,
                batches=self._batches,
            )
            return route.handler(call)
        except ApiError as error:
            return refusal(error, record.request_id)

    def _behaviour_for(self, record: RequestRecord) -> Behaviour:
        scripted = self._script.take(
            key=record.key, method=record.method, path=record.path, headers=record.headers
        )
        if scripted is not None:
            return scripted
        asked = record.values(HEADER)
        if asked:
            return Behaviour.from_header(asked[0])
        known = self._keys.find(record.key)
        if known is not None and known.behaviour is not None:
            return known.behaviour
        return Behaviour()
