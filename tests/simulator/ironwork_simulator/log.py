"""The log of what arrived: bounded, exact in memory, without secrets on disk.

Everything here may be called from any thread: the simulator writes on its own loop, tests wait on
theirs.
"""

import asyncio
import concurrent.futures
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

MAX_RECORDS = 10_000
MAX_KEPT_BODY = 64 * 1024
MAX_KEPT_BODIES = 64 * 1024 * 1024
# Header values that may be written to a file; of all others only the name is.
WRITABLE_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-beta",
        "anthropic-version",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)
# Methods and names of headers are a client's choice, too: no key is as short as these.
_METHODS = frozenset({"", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"})
_MAX_NAME = 40


class NotDisconnected(AssertionError):
    """A request was waited for to be abandoned, and its answer was delivered whole."""


@dataclass(slots=True)
class RequestRecord:
    """One request, from its first byte to the end of its answer; it grows while it is served.

    number counts from 1 since the last clear(); connection from 1 since the start. headers are
    (name, value) pairs in order, names in their own case, decoded latin-1. *_at are
    time.monotonic() seconds, *_wall time.time(). received_head and sent_head are the heads' exact
    bytes, up to and with the blank line. body and sent_body are without HTTP's framing, and kept
    up to 64 KiB, else None; their lengths and SHA-256 are of all; sent_* are there at the answer's
    end, interim answers and what a `raw` behaviour wrote not counted. key is the
    presented credential as it came. disconnected_at: when the client was found gone before its
    answer was complete. malformed: it was no HTTP/1.1 request; method is then empty.
    """

    number: int
    connection: int
    first_byte_at: float
    first_byte_wall: float
    method: str = ""
    target: str = field(default="", repr=False)
    http_version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list, repr=False)
    head_at: float | None = None
    head_wall: float | None = None
    key: str | None = field(default=None, repr=False)
    key_index: int | None = None
    credential_header: str | None = None
    route: str = "unknown"
    body_length: int = 0
    body_sha256: str = ""
    body: bytes | None = field(default=None, repr=False)
    body_at: float | None = None
    received_head: bytes = field(default=b"", repr=False)
    sent_head: bytes = field(default=b"", repr=False)
    sent_body: bytes | None = field(default=None, repr=False)
    sent_length: int = 0
    sent_sha256: str = ""
    request_id: str = ""
    status: int | None = None
    bytes_sent: int = 0
    finished_at: float | None = None
    disconnected_at: float | None = None
    malformed: bool = False

    @property
    def path(self) -> str:
        """The raw target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The raw query, without the question mark."""
        return self.target.partition("?")[2]

    def values(self, name: str) -> list[str]:
        """All values of a header, in order; name in any case."""
        return [value for n, value in self.headers if n.lower() == name.lower()]

    def public(self) -> dict[str, object]:
        """What may be written down: an allow list, in which no key, prompt or foreign text is."""
        return {
            "number": self.number,
            "connection": self.connection,
            "first_byte_wall": self.first_byte_wall,
            "first_byte_at": self.first_byte_at,
            "head_at": self.head_at,
            "body_at": self.body_at,
            "finished_at": self.finished_at,
            "disconnected_at": self.disconnected_at,
            "method": self.method if self.method in _METHODS else "(other)",
            "route": self.route,
            "header_names": [n if len(n) <= _MAX_NAME else "(long)" for n, _ in self.headers],
            "headers": [[n, v] for n, v in self.headers if n.lower() in WRITABLE_HEADERS],
            "credential_header": self.credential_header,
            "key_last4": None if self.key is None else self.key[-4:],
            "key_index": self.key_index,
            "body_length": self.body_length,
            "body_sha256": self.body_sha256,
            "request_id": self.request_id,
            "status": self.status,
            "bytes_sent": self.bytes_sent,
            "sent_length": self.sent_length,
            "sent_sha256": self.sent_sha256,
            "malformed": self.malformed,
        }


class BodyDigest:
    """A body as it passes: the SHA-256 of all, and the bytes themselves up to 64 KiB."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._kept: bytearray | None = bytearray()

    def add(self, data: bytes) -> None:
        self._hash.update(data)
        if self._kept is not None:
            self._kept += data
            if len(self._kept) > MAX_KEPT_BODY:
                self._kept = None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def kept(self) -> bytes | None:
        """The whole body, or None where it is larger than what is kept."""
        return None if self._kept is None else bytes(self._kept)


_Predicate = Callable[[RequestRecord], bool]


@dataclass(slots=True)
class _Waiter:
    number: int
    predicate: _Predicate
    future: "concurrent.futures.Future[RequestRecord]"


class RequestLog:
    """The last 10,000 requests, and futures for what is yet to happen to one."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._lock = threading.Lock()
        self._records: deque[RequestRecord] = deque(maxlen=MAX_RECORDS)
        self._with_body: deque[tuple[RequestRecord, int]] = deque()
        self._body_bytes = 0
        self._count = 0
        self._waiters: list[_Waiter] = []
        self._file = file

    def open(self, connection: int) -> RequestRecord:
        """A request's first byte is here: it has a number from now on."""
        with self._lock:
            self._count += 1
            record = RequestRecord(self._count, connection, time.monotonic(), time.time())
            self._records.append(record)
        return record

    def changed(self, record: RequestRecord) -> None:
        """Something about record is new: whoever waits for it is told."""
        if not self._waiters:
            return
        with self._lock:
            ready = [w for w in self._waiters if w.number == record.number and w.predicate(record)]
            self._waiters = [w for w in self._waiters if w not in ready]
        for waiter in ready:
            if not waiter.future.cancelled():
                waiter.future.set_result(record)

    def body_complete(self, record: RequestRecord) -> None:
        """Keep the bodies within their bound: the oldest go first."""
        record.body_at = time.monotonic()
        self._keep(record, len(record.body or b""))
        self.changed(record)

    def _keep(self, record: RequestRecord, size: int) -> None:
        if not size:
            return
        with self._lock:
            self._with_body.append((record, size))
            self._body_bytes += size
            while self._body_bytes > MAX_KEPT_BODIES:
                oldest, freed = self._with_body.popleft()
                self._body_bytes -= freed
                oldest.body = oldest.sent_body = None

    def close(self, record: RequestRecord) -> None:
        """The request is over: answered whole, cut, or abandoned."""
        self._keep(record, len(record.sent_body or b""))
        if self._file is not None:
            self._file.write(json.dumps(record.public()) + "\n")
            self._file.flush()
        self.changed(record)

    def clear(self) -> None:
        """Forget all; the next request is number 1 again. Those waiting get a LookupError."""
        with self._lock:
            self._records.clear()
            self._with_body.clear()
            self._body_bytes = 0
            self._count = 0
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.future.set_exception(LookupError("the log was cleared"))

    def records(self) -> Sequence[RequestRecord]:
        """The requests that are kept, oldest first."""
        with self._lock:
            return tuple(self._records)

    def when(
        self, number: int, predicate: _Predicate
    ) -> "concurrent.futures.Future[RequestRecord]":
        """A future for request `number` once predicate holds of it."""
        future: concurrent.futures.Future[RequestRecord] = concurrent.futures.Future()
        with self._lock:
            found = self._find(number)
            if found is None or not predicate(found):
                self._waiters = [w for w in self._waiters if not w.future.cancelled()]
                self._waiters.append(_Waiter(number, predicate, future))
                return future
        future.set_result(found)
        return future

    async def wait(
        self, number: int, predicate: _Predicate, what: str, timeout_s: float
    ) -> RequestRecord:
        """Await request `number` until predicate holds; TimeoutError says what is missing."""
        future = self.when(number, predicate)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
        except TimeoutError:
            raise TimeoutError(self._missing(number, what, timeout_s)) from None

    def wait_blocking(
        self, number: int, predicate: _Predicate, what: str, timeout_s: float
    ) -> RequestRecord:
        """The same for code without an event loop."""
        future = self.when(number, predicate)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise TimeoutError(self._missing(number, what, timeout_s)) from None

    def _find(self, number: int) -> RequestRecord | None:
        if not self._records or number > self._count:
            return None
        position = number - self._records[0].number
        if position < 0:
            raise LookupError(f"request {number} is no longer kept (the last {MAX_RECORDS} are)")
        return self._records[position]

    def _missing(self, number: int, what: str, timeout_s: float) -> str:
        seen = ", ".join(f"{r.number}: {r.method} {r.route} {r.status}" for r in self._records)
        return f"request {number} was not {what} within {timeout_s:g} s; seen: {seen or 'none'}"
