"""An upload that is cancelled twice at once: by the answer's end, and by whoever gives it up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport._async_stream import AsyncOutgoing, AsyncStream
from ironwork_client.transport._values import Timeouts


class Rpc:
    """Takes what is written, and answers nothing."""

    def __init__(self) -> None:
        self.written: list[str] = []

    async def write(self, message: keys_pb2.WithKeyRequest) -> None:
        self.written.append(message.WhichOneof("message") or "")

    def cancel(self) -> None:
        """The stream is given up."""


@pytest.mark.parametrize("given_up", [False, True])
async def test_only_our_own_cancellation_ends_in_the_body(*, given_up: bool) -> None:
    """After the answer's end the rest of a body is not waited for, and the request is ended; where
    the upload is cancelled by another too, it is cancelled, and says no more.
    """
    rpc, asked = Rpc(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        asked.set()
        await asyncio.Event().wait()
        yield b""

    stream = AsyncStream(
        cast("Any", lambda: rpc), keys_pb2.Start(), cast("Any", None), lambda _: None
    )
    stream.begin(AsyncOutgoing(keys_pb2.RequestHead(), body(), True, Timeouts()))
    upload = stream._upload
    assert upload is not None
    async with asyncio.timeout(30):
        await asked.wait()
        stream._end_upload()
        if given_up:
            stream.close()
        await asyncio.wait([upload])
    assert upload.cancelled() is given_up
    assert rpc.written == ["start", "head"] + ["end"] * (not given_up)
