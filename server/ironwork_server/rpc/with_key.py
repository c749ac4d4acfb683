"""The WithKey stream: its grammar, its single writer, and its end.

The handler's task waits for the first of four: the reader (the client's messages), the grant
(policy and certificate), the lifetime (drain and age), a client that takes nothing. A call runs
in a task of its own.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc.aio

from ironwork.keys.v1 import keys_pb2
from ironwork_server.core.errors import Cancelled, InvalidRequest, Unavailable, permission_denied
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.names import parse_claim, parse_workspace
from ironwork_server.core.routes import RouteTable
from ironwork_server.core.values import Action, Claims, Principal, Resource
from ironwork_server.custody.gate import Gate
from ironwork_server.custody.use_key import KeyUser
from ironwork_server.rpc.call import MAX_BODY_BYTES, Call, Caller
from ironwork_server.rpc.chain import unreadable
from ironwork_server.rpc.context import MAX_STREAM_MESSAGE_BYTES, TOO_LONG, Context
from ironwork_server.rpc.convert import timestamp
from ironwork_server.rpc.grant import Grants, refusal
from ironwork_server.rpc.peer import Peers, address

GoAway = keys_pb2.GoAway
Reason = keys_pb2.GoAway.Reason


class Drain:
    """Set once, when the server shuts down; every stream watches it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.close_at = datetime.max.replace(tzinfo=UTC)

    def begin(self, grace_s: float) -> None:
        """Ask every stream to close; what is in flight has grace_s seconds."""
        self.close_at = datetime.now(UTC) + timedelta(seconds=grace_s)
        self.begun.set()


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Bounds of a stream, in seconds."""

    # A stream that says nothing at first.
    start_s: float = 30.0
    # A request's body that stops arriving.
    upload_stall_s: float = 60.0
    # A client that does not take what is written.
    write_stall_s: float = 300.0
    # The greatest age, after which the client is asked to reconnect; a call in flight then has
    # age_grace_s more.
    age_s: float = 3600.0
    age_grace_s: float = 900.0
    # How long before its certificate's end a client is asked to reconnect, at most; a short-lived
    # certificate gets a fifth of what is left of it.
    expiry_notice_s: float = 60.0
    # How long an idle stream that was asked to close still answers a call on its way.
    linger_s: float = 1.0
    # How long a call that was ended may take to write its end.
    ending_s: float = 5.0


@dataclass(frozen=True, slots=True)
class StreamParts:
    """What every stream uses."""

    peers: Peers
    gate: Gate
    key_user: KeyUser
    routes: RouteTable
    grants: Grants
    drain: Drain
    settings: StreamSettings
    meter: Meter = SILENT


class WithKeyStream:
    """One stream. `run` returns when it ends well and raises IronworkError when it does not."""

    def __init__(self, context: Context, parts: StreamParts) -> None:
        self._context = context
        self._parts = parts
        self._settings = parts.settings
        self._writing: asyncio.Future[None] | None = None
        self._lock = asyncio.Lock()
        self._call: Call | None = None
        # The call whose body the client has not finished; it may have ended already.
        self._uploading: Call | None = None
        self._last_number = 0
        self._closing = False
        self._began = asyncio.Event()
        # Set when the client takes nothing any more: there is no writing an end to it either.
        self._stalled = asyncio.Event()

    async def run(self) -> None:
        """Identify, authorise, then serve until the first of the watchers ends."""
        parts = self._parts
        principal = parts.peers.principal(self._context)
        claims = Claims(peer=address(self._context))
        # As for unary requests: who may never call is not read.
        await parts.gate.check_ever(principal, Action.WITH_KEY, claims)
        # Counted before it says anything: else silent streams would have no limit.
        async with parts.gate.stream(principal, claims):
            await self._serve(await self._authorised(principal, await self._read_start()))

    async def _authorised(self, principal: Principal, start: keys_pb2.Start) -> Caller:
        """Authorised before validated, as in chain.py."""
        peer = address(self._context)
        malformed: InvalidRequest | None = None
        workspace = principal.workspace
        try:
            workspace = parse_workspace(start.parent, field="start.parent")
        except InvalidRequest as error:
            malformed = error
        await self._parts.gate.check(
            principal, Action.WITH_KEY, Resource(workspace), Claims(peer=peer)
        )
        if malformed is not None:
            raise malformed
        if workspace is None:
            raise permission_denied()
        claims = Claims(
            task=parse_claim(start.task, field="start.task"),
            agent=parse_claim(start.agent, field="start.agent"),
            peer=peer,
        )
        return Caller(principal, workspace, claims)

    async def _serve(self, caller: Caller) -> None:
        age_at = datetime.now(UTC) + timedelta(seconds=self._settings.age_s)
        await self._write(
            keys_pb2.WithKeyResponse(
                started=keys_pb2.Started(
                    max_body_bytes=MAX_BODY_BYTES,
                    expire_time=timestamp(min(age_at, caller.principal.expires_at)),
                )
            )
        )
        watchers = [
            asyncio.create_task(self._read_calls(caller)),
            asyncio.create_task(self._watch_grant(caller)),
            asyncio.create_task(self._watch_lifetime(caller, age_at)),
            asyncio.create_task(self._watch_stall()),
        ]
        try:
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            for watcher in done:
                await watcher
        except InvalidRequest:
            await self._end_call("STREAM_GRAMMAR")
            raise
        finally:
            await self._stop(watchers)

    async def _stop(self, watchers: list[asyncio.Task[None]]) -> None:
        tasks = list(watchers)
        if self._call is not None:
            tasks.append(self._call.task)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=self._settings.ending_s)

    # --- reading ---

    async def _read(self) -> keys_pb2.WithKeyRequest | None:
        """The next message; None when the client has closed its side."""
        message = await self._context.read()
        if message is TOO_LONG:
            raise _grammar(f"a message is longer than {MAX_STREAM_MESSAGE_BYTES} bytes")
        if message is None:
            raise unreadable()
        return None if message is grpc.aio.EOF else message

    async def _read_start(self) -> keys_pb2.Start:
        try:
            async with asyncio.timeout(self._settings.start_s):
                message = await self._read()
        except TimeoutError:
            raise _grammar("no start arrived in time") from None
        if message is None or message.WhichOneof("message") != "start":
            raise _grammar("the first message is not start")
        return message.start

    async def _read_calls(self, caller: Caller) -> None:
        while (message := await self._read()) is not None:
            match message.WhichOneof("message"):
                case "head":
                    self._begin(message.head, caller)
                case "body":
                    await self._take_body(message.body.data)
                case "end":
                    await self._take_end()
                case "cancel":
                    self._cancel(message.cancel.call)
                case "start":
                    raise _grammar("start came twice")
                case None:
                    raise _grammar("an empty or unknown message")
        if self._uploading is not None:
            await self._uploading.upload.broken()
        if self._call is not None:
            await asyncio.wait([self._call.task])

    def _begin(self, head: keys_pb2.RequestHead, caller: Caller) -> None:
        if self._call is not None or self._uploading is not None:
            raise _grammar("a head came while a call was under way")
        if head.call <= self._last_number:
            raise _grammar("call numbers must grow")
        self._last_number = head.call
        parts = self._parts
        call = Call(
            head,
            caller,
            gate=parts.gate,
            key_user=parts.key_user,
            routes=parts.routes,
            upload_stall_s=self._settings.upload_stall_s,
            write=self._write,
            on_end=self._free,
            refusal=_closing() if self._closing else None,
            meter=parts.meter,
        )
        self._call = self._uploading = call
        self._began.set()

    async def _take_body(self, data: bytes) -> None:
        if self._uploading is None:
            raise _grammar("a body came without a head")
        if len(data) > MAX_BODY_BYTES:
            raise _grammar(f"a body message holds more than {MAX_BODY_BYTES} bytes")
        await self._uploading.upload.put(data)

    async def _take_end(self) -> None:
        if self._uploading is None:
            raise _grammar("an end came without a head")
        await self._uploading.upload.end()
        self._uploading = None

    def _cancel(self, number: int) -> None:
        if self._call is not None and self._call.number == number:
            self._call.scope.end("CLIENT_CANCELLED")

    # --- writing ---

    async def _write(self, message: keys_pb2.WithKeyResponse) -> None:
        """Write, one at a time. A cancelled writer leaves its message to finish: gRPC allows one
        write at once, and the next one waits for it here.
        """
        try:
            async with asyncio.timeout(self._settings.write_stall_s), self._lock:
                if self._writing is not None and not self._writing.done():
                    await asyncio.wait([self._writing])
                self._writing = asyncio.ensure_future(self._context.write(message))
                self._writing.add_done_callback(_seen)
                await asyncio.shield(self._writing)
        except TimeoutError:
            self._stalled.set()
            raise _stalled() from None

    def _free(self) -> None:
        self._call = None

    # --- ending ---

    async def _end_call(self, reason: str) -> None:
        """End the call in flight, if there is one, and let it write its end."""
        call = self._call
        if call is not None:
            call.scope.end(reason)
            await asyncio.wait([call.task], timeout=self._settings.ending_s)

    async def _watch_stall(self) -> None:
        await self._stalled.wait()
        raise _stalled()

    async def _watch_grant(self, caller: Caller) -> None:
        """Ends the stream when policy, certificate or its CA no longer allow it."""
        reason = await self._parts.grants.lost(
            self._context, caller.principal, Action.WITH_KEY, Resource(caller.workspace)
        )
        await self._end_call(reason)
        raise refusal(reason)

    async def _watch_lifetime(self, caller: Caller, age_at: datetime) -> None:
        """Asks the client to reconnect, then closes the stream when it is idle or time is up."""
        drain = self._parts.drain
        settings = self._settings
        left = (caller.principal.expires_at - datetime.now(UTC)).total_seconds()
        notice = timedelta(seconds=min(settings.expiry_notice_s, left / 5))
        notice_at = caller.principal.expires_at - notice
        first = min(age_at, notice_at)
        try:
            async with asyncio.timeout((first - datetime.now(UTC)).total_seconds()):
                await drain.begun.wait()
        except TimeoutError:
            if notice_at <= age_at:
                await self._close(
                    GoAway.REASON_CERTIFICATE_EXPIRY,
                    "CERTIFICATE_EXPIRED",
                    caller.principal.expires_at,
                )
            else:
                grace = timedelta(seconds=settings.age_grace_s)
                await self._close(GoAway.REASON_STREAM_AGE, "STREAM_AGE", age_at + grace)
            return
        await self._close(GoAway.REASON_DRAIN, "DRAINED", drain.close_at)

    async def _close(self, why: Reason.ValueType, ending: str, close_at: datetime) -> None:
        self._closing = True
        self._began.clear()
        go_away = GoAway(reason=why, close_time=timestamp(close_at))
        await self._write(keys_pb2.WithKeyResponse(go_away=go_away))
        while (left := (close_at - datetime.now(UTC)).total_seconds()) > 0:
            if self._call is not None:
                await asyncio.wait([self._call.task], timeout=left)
            elif not await self._another_call(min(left, self._settings.linger_s)):
                return
        await self._end_call(ending)

    async def _another_call(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._began.wait()
        except TimeoutError:
            return False
        self._began.clear()
        return True


def _seen(written: asyncio.Future[None]) -> None:
    """A write that its writer left behind may fail unheard: the stream is over then."""
    if not written.cancelled():
        written.exception()


def _grammar(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"WithKey stream: {what}. See KeyService.WithKey for the grammar.",
        reason="STREAM_GRAMMAR",
    )


def _stalled() -> Cancelled:
    return Cancelled("The client takes nothing any more.", reason="CLIENT_STALLED")


def _closing() -> Unavailable:
    return Unavailable(
        "This stream is closing; send the call on a new one.",
        reason="STREAM_CLOSING",
        retry_after_s=0.0,
    )
