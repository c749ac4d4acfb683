"""The unmodified LiteLLM, which is built on httpx, over a whole service."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import litellm
import pytest
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

from ironwork_client import Profile
from ironwork_client.httpx import AsyncWithKeyTransport, WithKeyTransport

QUESTION: dict[str, Any] = {
    "model": "anthropic/claude-sonnet-5-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hello"}],
    "api_key": "held-by-ironwork",
}


def handler_for(profile: Profile) -> HTTPHandler:
    return HTTPHandler(client=httpx.Client(transport=WithKeyTransport(profile)))


@pytest.fixture
def handler(server: Any) -> Iterator[HTTPHandler]:
    made = handler_for(server.agent)
    yield made
    made.client.close()


def test_a_completion(handler: HTTPHandler) -> None:
    """completion() answers, with usage."""
    answer = litellm.completion(**QUESTION, client=handler)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_a_streamed_completion(handler: HTTPHandler) -> None:
    """completion(stream=True) yields its parts to the end."""
    parts = [*litellm.completion(**QUESTION, client=handler, stream=True)]
    assert "".join(part.choices[0].delta.content or "" for part in parts)
    assert parts[-1].choices[0].finish_reason == "stop"


def test_errors_are_litellms_own(server: Any, handler: HTTPHandler) -> None:
    """Anthropic's 429 is a RateLimitError; a refusal of the service names itself."""
    headers = {"anthropic-simulator": "rate-limited"}
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(**QUESTION, client=handler, extra_headers=headers, num_retries=0)
    stranger = handler_for(server.stranger)
    with pytest.raises(litellm.PermissionDeniedError, match="Ironwork"):
        litellm.completion(**QUESTION, client=stranger)
    stranger.client.close()


def test_the_asynchronous_one(server: Any) -> None:
    """acompletion() answers, whole and in parts."""

    async def converse() -> tuple[str, str]:
        handler = AsyncHTTPHandler(transport=AsyncWithKeyTransport(server.agent))
        whole = await litellm.acompletion(**QUESTION, client=handler)
        parts = await litellm.acompletion(**QUESTION, client=handler, stream=True)
        text = "".join([part.choices[0].delta.content or "" async for part in parts])
        await handler.close()
        return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(converse())
    assert whole == streamed
