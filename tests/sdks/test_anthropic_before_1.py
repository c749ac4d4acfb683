"""The unmodified anthropic 0.x, which is built on httpx, over a whole service."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from ironwork_client import Profile
from ironwork_client.httpx import AsyncWithKeyTransport, WithKeyTransport

MODEL = "claude-sonnet-5-5"
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hello"}],
}


def simulated(behaviour: str) -> dict[str, str]:
    """The header that has the simulator misbehave."""
    return {"anthropic-simulator": behaviour}


def sdk_for(profile: Profile, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="held-by-ironwork",
        http_client=httpx.Client(transport=WithKeyTransport(profile)),
        **options,
    )


@pytest.fixture
def sdk(server: Any) -> Iterator[anthropic.Anthropic]:
    with sdk_for(server.agent) as made:
        yield made


def test_it_does_its_work_with_a_key_it_never_sees(sdk: anthropic.Anthropic) -> None:
    """create, create(stream=True), messages.stream, count_tokens and models work."""
    assert sdk.messages.create(**QUESTION).content[0].text
    assert [*sdk.messages.create(**QUESTION, stream=True)][-1].type == "message_stop"
    with sdk.messages.stream(**QUESTION) as stream:
        assert "".join(stream.text_stream)
        used = stream.get_final_message().usage
    report = stream.response.extensions["ironwork"]
    assert (report.outcome, report.usage.output_tokens) == ("COMPLETED", used.output_tokens)
    assert sdk.messages.count_tokens(model=MODEL, messages=QUESTION["messages"]).input_tokens
    assert [model.id for model in sdk.models.list()]


def test_raw_and_streamed_responses(sdk: anthropic.Anthropic) -> None:
    """with_raw_response and with_streaming_response see Anthropic's headers and our report."""
    raw = sdk.messages.with_raw_response.create(**QUESTION)
    assert raw.headers["request-id"].startswith("req_")
    assert raw.http_response.extensions["ironwork"].key_mask.startswith("sk-ant-api")
    assert raw.parse().content
    with sdk.messages.with_streaming_response.create(**QUESTION) as streamed:
        assert b"".join(streamed.iter_bytes()).startswith(b"{")


def test_the_tool_runner_goes_back_and_forth(sdk: anthropic.Anthropic) -> None:
    """beta.messages.tool_runner calls the tool and gets its answer across, in two requests."""
    asked: list[str] = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where.
        """
        asked.append(city)
        return "sunny"

    question = {**QUESTION, "messages": [{"role": "user", "content": "the weather, please"}]}
    answers = [*sdk.beta.messages.tool_runner(**question, tools=[weather])]
    assert [answer.stop_reason for answer in answers] == ["tool_use", "end_turn"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("behaviour", "status"), [("rate-limited", 429), ("server-error", 500), ("overloaded", 529)]
)
def test_anthropics_errors_are_the_sdks_own(server: Any, behaviour: str, status: int) -> None:
    """An error of Anthropic's raises what it always raises."""
    with sdk_for(server.agent, max_retries=0) as sdk, pytest.raises(anthropic.APIStatusError) as e:
        sdk.messages.create(**QUESTION, extra_headers=simulated(behaviour))
    assert e.value.status_code == status
    assert str(e.value.request_id).startswith("req_")


def test_a_refusal_is_the_sdks_own_error(server: Any) -> None:
    """Another workspace's agent gets a PermissionDeniedError, with the reason in a header."""
    with sdk_for(server.stranger) as sdk, pytest.raises(anthropic.PermissionDeniedError) as caught:
        sdk.messages.create(**QUESTION)
    assert caught.value.response.headers["x-ironwork-reason"] == "PERMISSION_DENIED"


def test_a_cut_stream_raises(sdk: anthropic.Anthropic) -> None:
    """An answer that is cut does not end as if it were whole."""
    with (
        pytest.raises((httpx.RemoteProtocolError, anthropic.APIConnectionError)),
        sdk.messages.stream(**QUESTION, extra_headers=simulated("cut")) as stream,
    ):
        stream.get_final_message()


def test_a_timeout_is_the_sdks_own(server: Any) -> None:
    """The SDK's timeout holds, and raises its APITimeoutError."""
    with (
        sdk_for(server.agent, max_retries=0, timeout=0.3) as sdk,
        pytest.raises(anthropic.APITimeoutError),
    ):
        sdk.messages.create(**QUESTION, extra_headers=simulated("hang"))


def test_the_async_sdk_does_the_same(server: Any) -> None:
    """AsyncAnthropic asks, streams, and asks many at once."""

    async def converse() -> tuple[str, int]:
        async with anthropic.AsyncAnthropic(
            api_key="held-by-ironwork",
            http_client=httpx.AsyncClient(transport=AsyncWithKeyTransport(server.agent)),
        ) as sdk:
            async with sdk.messages.stream(**QUESTION) as stream:
                text = "".join([part async for part in stream.text_stream])
            answers = await asyncio.gather(*(sdk.messages.create(**QUESTION) for _ in range(8)))
        return text, len(answers)

    text, count = asyncio.run(converse())
    assert text
    assert count == 8
