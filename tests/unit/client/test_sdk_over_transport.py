"""The unmodified Anthropic SDK over the transports."""

import json
from collections.abc import Iterator

import anthropic
import grpc
import httpx2
import pytest

from ironwork.keys.v1 import keys_pb2
from ironwork_client import AsyncWithKeyTransport, Profile, WithKeyTransport
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, head, status

QUESTION = {
    "model": "claude-test",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "Hello"}],
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-test",
    "content": [{"type": "text", "text": "Hello there"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 11},
}
EVENTS = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 11},
    },
    {"type": "message_stop"},
]


def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
    """Answers as Anthropic does, streaming or not."""
    sent = {name.lower() for name, _ in call.headers}
    assert sent.isdisjoint({"x-api-key", "authorization", "host", "content-length"})
    assert "anthropic-version" in sent
    if not json.loads(call.body).get("stream"):
        yield head(call.number, 200, ("content-type", b"application/json"))
        yield body(call.number, json.dumps(MESSAGE).encode())
    else:
        yield head(call.number, 200, ("content-type", b"text/event-stream"))
        for event in EVENTS:
            yield body(
                call.number, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            )
    yield end(call.number)


def refuse(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
    error = status(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", message="Not yours.")
    yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=error, sent=False)


@pytest.fixture
def sdk(profile: Profile, no_thread_left: None) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key="held-by-ironwork",
        http_client=httpx2.Client(transport=WithKeyTransport(profile)),
    ) as made:
        yield made


def async_sdk(profile: Profile) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key="held-by-ironwork",
        http_client=httpx2.AsyncClient(transport=AsyncWithKeyTransport(profile)),
    )


def test_the_sync_sdk_works_unmodified(
    sdk: anthropic.Anthropic, scripted_server: scripted.ScriptedServer
) -> None:
    """create, create(stream=True) and messages.stream work, and share one stream in turn."""
    scripted_server.script = scripted.serve(reply)
    raw = sdk.messages.with_raw_response.create(**QUESTION)
    assert raw.parse().content[0].text == "Hello there"
    assert raw.http_response.extensions["ironwork"].key_mask == "sk-ant-api…wxyz"
    assert len(list(sdk.messages.create(**QUESTION, stream=True))) >= len(EVENTS) - 1
    with sdk.messages.stream(**QUESTION) as stream:
        assert "".join(stream.text_stream) == "Hello there"
        assert stream.get_final_message().usage.output_tokens == 11
    assert stream.response.extensions["ironwork"].usage.input_tokens == 7
    assert len(scripted_server.streams) == 1


def test_leaving_an_sdk_stream_early_keeps_the_client_usable(
    sdk: anthropic.Anthropic, scripted_server: scripted.ScriptedServer
) -> None:
    """A `with messages.stream` block that is left early is followed by a good request."""
    scripted_server.script = scripted.serve(reply)
    with sdk.messages.stream(**QUESTION) as stream:
        next(iter(stream))
    assert sdk.messages.create(**QUESTION).id == "msg_1"


def test_a_refusal_is_the_sdks_own_error_and_not_retried(
    sdk: anthropic.Anthropic, scripted_server: scripted.ScriptedServer
) -> None:
    """PERMISSION_DENIED raises anthropic.PermissionDeniedError after one request."""
    calls: list[int] = []

    def counted(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        calls.append(call.number)
        yield from refuse(call)

    scripted_server.script = scripted.serve(counted)
    with pytest.raises(anthropic.PermissionDeniedError, match="Not yours") as caught:
        sdk.messages.create(**QUESTION)
    assert caught.value.response.headers["x-ironwork-reason"] == "PERMISSION_DENIED"
    assert calls == [1]


def test_a_cut_stream_raises_in_the_sdk(
    sdk: anthropic.Anthropic, scripted_server: scripted.ScriptedServer
) -> None:
    """An SSE answer that is cut does not end as if it were whole."""

    def cut(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        *parts, _ = reply(call)
        yield from parts[:4]
        error = status(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT")
        yield end(call.number, keys_pb2.OUTCOME_FAILED, error=error)

    scripted_server.script = scripted.serve(cut)
    with (
        pytest.raises((httpx2.RemoteProtocolError, anthropic.APIConnectionError)),
        sdk.messages.stream(**QUESTION) as stream,
    ):
        stream.get_final_message()


async def test_the_async_sdk_works_unmodified(
    profile: Profile, scripted_server: scripted.ScriptedServer
) -> None:
    """create, create(stream=True) and messages.stream work, and share one stream in turn."""
    scripted_server.script = scripted.serve(reply)
    async with async_sdk(profile) as sdk:
        assert (await sdk.messages.create(**QUESTION)).content[0].text == "Hello there"
        events = [event async for event in await sdk.messages.create(**QUESTION, stream=True)]
        assert len(events) >= len(EVENTS) - 1
        async with sdk.messages.stream(**QUESTION) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Hello there"
        scripted_server.script = scripted.serve(refuse)
    assert len(scripted_server.streams) == 1


async def test_the_async_sdk_raises_its_own_error_for_a_refusal(
    profile: Profile, scripted_server: scripted.ScriptedServer
) -> None:
    """PERMISSION_DENIED raises anthropic.PermissionDeniedError."""
    scripted_server.script = scripted.serve(refuse)
    async with async_sdk(profile) as sdk:
        with pytest.raises(anthropic.PermissionDeniedError):
            await sdk.messages.create(**QUESTION)
