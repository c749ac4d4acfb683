"""A request's body between the stream's reader and the upstream client."""

import asyncio

import pytest

from ironwork_server.core.errors import InvalidRequest
from ironwork_server.rpc.upload import QUEUE_MESSAGES, Upload

DEADLINE_S = 20.0


async def collected(upload: Upload) -> bytes:
    return b"".join([chunk async for chunk in upload.chunks()])


async def test_a_body_arrives_in_order_and_ends() -> None:
    """Every message in order, empty ones aside, up to the end."""
    upload = Upload(stall_s=DEADLINE_S)
    reading = asyncio.create_task(collected(upload))
    for data in (b"a", b"", b"bc", b"d" * 16384):
        await upload.put(data)
    assert not upload.complete
    await upload.end()
    assert await reading == b"abc" + b"d" * 16384
    assert upload.complete


async def test_at_most_eight_messages_wait() -> None:
    """A reader that is faster than the upstream waits for it: memory is bounded for each call."""
    upload = Upload(stall_s=DEADLINE_S)
    for _ in range(QUEUE_MESSAGES):
        await upload.put(b"x")
    one_more = asyncio.create_task(upload.put(b"y"))
    await asyncio.sleep(0)
    assert not one_more.done()
    chunks = upload.chunks()
    assert await anext(chunks) == b"x"
    await asyncio.wait_for(one_more, DEADLINE_S)
    await chunks.aclose()  # type: ignore[attr-defined]  # an async generator


@pytest.mark.parametrize("last", ["put", "end", "broken"])
async def test_a_reader_that_waits_is_let_go_when_the_call_ends(last: str) -> None:
    """However full the queue was, the stream's reader goes on when nobody takes the body."""
    upload = Upload(stall_s=DEADLINE_S)
    for _ in range(QUEUE_MESSAGES):
        await upload.put(b"x")
    act = {"put": lambda: upload.put(b"y"), "end": upload.end, "broken": upload.broken}[last]
    waiting = asyncio.create_task(act())
    await asyncio.sleep(0)
    upload.discard()
    await asyncio.wait_for(waiting, DEADLINE_S)


async def test_what_still_arrives_is_dropped() -> None:
    """After the call has ended any amount of body passes without waiting and without memory."""
    upload = Upload(stall_s=DEADLINE_S)
    upload.discard()
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(10 * QUEUE_MESSAGES):
            await upload.put(b"x" * 16384)
        await upload.end()
        await upload.broken()
    assert upload._queue.empty()


async def test_a_body_that_stops_arriving_is_an_error() -> None:
    """An upload that stalls ends its call instead of holding it for ever."""
    upload = Upload(stall_s=0.01)
    await upload.put(b"x")
    chunks = upload.chunks()
    assert await anext(chunks) == b"x"
    with pytest.raises(InvalidRequest) as stalled:
        await anext(chunks)
    assert stalled.value.reason == "UPLOAD_STALLED"


async def test_a_body_that_was_read_to_its_end_never_stalls() -> None:
    """A request without a body is read once to see that there is none and again to be sent: the
    answer may then take as long as it likes."""
    upload = Upload(stall_s=0.01)
    await upload.end()
    assert await collected(upload) == b""
    assert await collected(upload) == b""


async def test_a_body_that_breaks_off_is_an_error_after_what_came() -> None:
    """A client that closes its side in the middle has not sent a whole request."""
    upload = Upload(stall_s=DEADLINE_S)
    await upload.put(b"x")
    await upload.broken()
    chunks = upload.chunks()
    assert await anext(chunks) == b"x"
    with pytest.raises(InvalidRequest) as broken:
        await anext(chunks)
    assert broken.value.reason == "UPLOAD_BROKEN"
