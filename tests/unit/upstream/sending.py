"""What tests of the upstream client send, and what they read."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from ironwork_server.core.ports import Injector, StaleCredential, Upstream
from ironwork_server.core.values import ScreenedRequest

KEY = b"sk-ant-api03-CANARY-0123456789-abcdefghij-wxyz"
HEADERS = ((b"Content-Type", b"application/json"), (b"anthropic-version", b"2023-06-01"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Progress:
    sent: bool = False


@dataclass
class KeyInjector:
    """Counts what becomes of it. stale: how often inject refuses."""

    stale: bool = False
    on_inject: Callable[[memoryview], None] | None = None
    discarded: int = 0
    length: int = len(KEY)

    def inject(self, target: memoryview) -> None:
        if self.stale:
            raise StaleCredential
        target[:] = KEY
        if self.on_inject is not None:
            self.on_inject(target)

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class Keys:
    """A Credential that hands out the given injectors in turn, then fresh ones."""

    queue: list[KeyInjector] = field(default_factory=list)
    given: list[KeyInjector] = field(default_factory=list)

    async def __call__(self) -> Injector:
        injector = self.queue.pop(0) if self.queue else KeyInjector()
        self.given.append(injector)
        return injector


def get(path: str = "/v1/models", query: str = "", method: str = "GET") -> ScreenedRequest:
    return ScreenedRequest(
        method=method,
        path=path,
        query=query,
        headers=HEADERS,
        content_length=None,
        has_body=False,
        max_body=1024,
        route="models",
    )


def post(
    length: int | None,
    *,
    headers: tuple[tuple[bytes, bytes], ...] = HEADERS,
    max_body: int = 32 * 1024 * 1024,
) -> ScreenedRequest:
    return ScreenedRequest(
        method="POST",
        path="/v1/messages",
        query="",
        headers=headers,
        content_length=length,
        has_body=True,
        max_body=max_body,
        route="messages",
    )


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def fetch(
    upstream: Upstream,
    request: ScreenedRequest | None = None,
    body: AsyncIterator[bytes] | None = None,
    keys: Keys | None = None,
    progress: Progress | None = None,
) -> tuple[int, bytes]:
    """One whole exchange: the status and the body."""
    async with upstream.send(
        request or get(), body or pieces(), keys or Keys(), progress or Progress()
    ) as response:
        return response.status, b"".join([chunk async for chunk in response.chunks()])
