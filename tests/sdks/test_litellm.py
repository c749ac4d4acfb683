"""The unmodified LiteLLM, which is built on httpx, over a whole service."""

import asyncio
import json
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


BOTH = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


def asked(server: Any, sync: bool, **more: Any) -> Any:
    """completion() or acompletion(), once."""
    if sync:
        handler = handler_for(server.agent)
        try:
            return litellm.completion(**{**QUESTION, **more}, client=handler)
        finally:
            handler.client.close()

    async def ask() -> Any:
        ahandler = AsyncHTTPHandler(transport=AsyncWithKeyTransport(server.agent))
        try:
            return await litellm.acompletion(**{**QUESTION, **more}, client=ahandler)
        finally:
            await ahandler.close()

    return asyncio.run(ask())


def behaving(mark: str, **behaviour: Any) -> dict[str, str]:
    """Headers: how the simulator answers each time, and what its log shows the request by."""
    return {"anthropic-simulator": json.dumps(behaviour), mark: "1"}


@BOTH
def test_errors_and_repeats_are_litellms_own(server: Any, *, sync: bool) -> None:
    """Without num_retries nothing is repeated, neither by LiteLLM nor by us, whatever happens."""
    cases: dict[str, tuple[dict[str, Any], type[Exception]]] = {
        "x-l429": ({"status": 429}, litellm.RateLimitError),
        "x-l500": ({"status": 500}, litellm.InternalServerError),
        "x-l529": ({"status": 529}, litellm.InternalServerError),
        "x-lredirect": (
            {"status": 307, "location": "https://evil.example/"},
            litellm.ServiceUnavailableError,
        ),
        "x-llost": ({"cut": "reset_before_head"}, litellm.InternalServerError),
    }
    for name, (behaviour, error) in cases.items():
        mark = f"{name}-{sync}".lower()
        with pytest.raises(error):
            asked(server, sync, extra_headers=behaving(mark, **behaviour), num_retries=0)
        assert len(server.tries(mark)) == 1, name


@BOTH
def test_a_timeout_closes_the_upstream(server: Any, *, sync: bool) -> None:
    """timeout= is litellm.Timeout, and the request is abandoned at Anthropic's."""
    mark = f"x-lslow-{sync}".lower()
    with pytest.raises(litellm.Timeout):
        asked(server, sync, extra_headers=behaving(mark, hang=True), timeout=1.0, num_retries=0)
    assert len(server.left(mark)) == 1
