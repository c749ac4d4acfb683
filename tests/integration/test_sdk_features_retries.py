"""What Anthropic's SDK repeats, unmodified, sync and async, on a whole service: exactly what it
repeats without us. What reached Anthropic is counted in the simulator's log.
"""

from __future__ import annotations

import anthropic
import httpx2
import pytest

from fixtures.sdk import BOTH_SDKS, asked, asking, scripted
from fixtures.server import TestService

# The SDK waits as long as it is told to before it repeats: here, not at all.
AT_ONCE = (("retry-after-ms", "1"),)
NEVER = ("x-should-retry", "false")


@BOTH_SDKS
async def test_what_anthropic_asks_to_repeat_is_repeated(
    service: TestService, *, sync: bool
) -> None:
    """The SDK repeats what it repeats without us, and says so to Anthropic; we add none."""
    await service.add()
    statuses = (408, 409, 429, 500, 529)
    async with asking(service, sync=sync) as sdk:
        for status in statuses:
            scripted(service, status=status, headers=AT_ONCE)
            assert (await sdk.create()).content
    tries = [request.values("x-stainless-retry-count") for request in asked(service)]
    assert tries == [["0"], ["1"]] * len(statuses)


@BOTH_SDKS
async def test_retry_after_is_waited_out(service: TestService, *, sync: bool) -> None:
    """The SDK sees Anthropic's retry-after, in seconds, and comes back no sooner."""
    await service.add()
    scripted(service, status=429, retry_after_s=1)
    async with asking(service, sync=sync) as sdk:
        assert (await sdk.create()).content
    first, second = asked(service)
    assert first.finished_at is not None
    assert second.first_byte_at - first.finished_at >= 1


@BOTH_SDKS
async def test_repeats_come_to_an_end(service: TestService, *, sync: bool) -> None:
    """max_retries bounds what reaches Anthropic, and the last error is the SDK's own."""
    await service.add()
    scripted(service, None, status=529, headers=AT_ONCE)
    async with asking(service, sync=sync, max_retries=3) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await sdk.create()
    tries = asked(service)
    assert len(tries) == 4
    assert (caught.value.status_code, caught.value.request_id) == (529, tries[-1].request_id)


@BOTH_SDKS
async def test_what_is_not_to_be_repeated_is_sent_once(service: TestService, *, sync: bool) -> None:
    """max_retries=0 and x-should-retry: false hold; the error is Anthropic's, to the letter."""
    await service.add()
    for options, headers in (({"max_retries": 0}, AT_ONCE), ({}, (*AT_ONCE, NEVER))):
        before = len(asked(service))
        scripted(service, status=529, headers=headers)
        async with asking(service, sync=sync, **options) as sdk:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await sdk.create()
        (request,) = asked(service)[before:]
        assert caught.value.status_code == 529
        assert caught.value.request_id == request.request_id
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "overloaded_error"


STOPPED: dict[str, dict[str, object]] = {
    "UPSTREAM_REDIRECT": {"status": 307, "location": "https://evil.example/"},
    "KEY_ECHOED": {"echo_key": "header"},
    "UPSTREAM_ENCODING": {"body": "x", "headers": (("content-encoding", "zstd"),)},
}


@BOTH_SDKS
async def test_what_no_repeat_would_mend_is_sent_once(service: TestService, *, sync: bool) -> None:
    """Where this service stops an answer that Anthropic gave, the SDK is told not to spend its
    tokens again."""
    await service.add()
    async with asking(service, sync=sync) as sdk:
        for reason, fields in STOPPED.items():
            scripted(service, **fields)
            with pytest.raises(anthropic.InternalServerError) as caught:
                await sdk.create()
            assert caught.value.response.headers["x-ironwork-reason"] == reason
            assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(asked(service)) == len(STOPPED)


LOST: dict[str, type[Exception]] = {
    "reset_before_head": httpx2.ReadError,
    "close_before_head": httpx2.ReadError,
    "content_length": httpx2.RemoteProtocolError,
}


@BOTH_SDKS
async def test_a_lost_answer_is_the_sdks_to_repeat(service: TestService, *, sync: bool) -> None:
    """A connection to Anthropic that dies before the answer or in it is a connection error: the
    SDK repeats the request, and with no repeats allowed raises it. We repeat nothing."""
    await service.add()
    async with (
        asking(service, sync=sync) as sdk,
        asking(service, sync=sync, max_retries=0) as strict,
    ):
        for cut, error in LOST.items():
            before = len(asked(service))
            scripted(service, cut=cut)
            assert (await sdk.create()).content
            assert len(asked(service)) == before + 2
            scripted(service, cut=cut)
            with pytest.raises(anthropic.APIConnectionError) as caught:
                await strict.create()
            assert len(asked(service)) == before + 3
            assert isinstance(caught.value.__cause__, error), cut


@BOTH_SDKS
async def test_a_stream_that_has_begun_is_not_repeated(service: TestService, *, sync: bool) -> None:
    """However Anthropic's answer breaks off, the SDK's stream raises, after one request."""
    await service.add()
    cuts = ("content_length", "chunked", "mid_chunk", "reset")
    async with asking(service, sync=sync) as sdk:
        for cut in cuts:
            scripted(service, cut=cut, cut_after=3)
            with pytest.raises((httpx2.RemoteProtocolError, anthropic.APIConnectionError)):
                await sdk.streamed()
    assert len(asked(service)) == len(cuts)


@BOTH_SDKS
async def test_an_error_in_the_stream_is_the_sdks_own(service: TestService, *, sync: bool) -> None:
    """`event: error` after a 200 raises what it raises without us, after one request."""
    await service.add()
    scripted(service, error_after=3)
    async with asking(service, sync=sync) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await sdk.streamed()
    assert "overloaded_error" in str(caught.value.body)
    assert len(asked(service)) == 1
