"""The unmodified SDK, sync and async, straight against the simulator."""

import ssl
from collections.abc import AsyncIterator, Iterator

import anthropic
import httpx2
import pytest
from anthropic import types

from fixtures.simulator import TestSimulator
from ironwork_simulator import Behaviour, Match

MODEL = "claude-haiku-5-5"
HELLO: list[types.MessageParam] = [{"role": "user", "content": "Hello there"}]
WEATHER: types.ToolParam = {
    "name": "get_weather",
    "description": "The weather of a place.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    },
}


@pytest.fixture
def client(simulator: TestSimulator) -> Iterator[anthropic.Anthropic]:
    """The sync SDK with a valid key, without retries."""
    with httpx2.Client(verify=_trust(simulator), trust_env=False) as http:
        yield anthropic.Anthropic(
            api_key=simulator.make_key(), base_url=simulator.url, max_retries=0, http_client=http
        )


@pytest.fixture
async def async_client(simulator: TestSimulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The async SDK with a valid key, without retries."""
    async with httpx2.AsyncClient(verify=_trust(simulator), trust_env=False) as http:
        yield anthropic.AsyncAnthropic(
            api_key=simulator.make_key(), base_url=simulator.url, max_retries=0, http_client=http
        )


def _trust(simulator: TestSimulator) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(simulator.ca_file))


def test_a_unary_answer_is_a_message_of_the_sdk(client: anthropic.Anthropic) -> None:
    """A unary answer has text, a reason to stop, and all the usage fields that the SDK knows."""
    message = client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

    assert isinstance(message, types.Message)
    assert message.model == MODEL
    assert message.stop_reason == "end_turn"
    assert isinstance(message.content[0], types.TextBlock)
    assert message.content[0].text.endswith(".")
    assert message.usage.input_tokens == 7
    assert message.usage.output_tokens > 1
    assert message.usage.cache_creation_input_tokens == 0
    assert message.usage.cache_read_input_tokens == 0


def test_what_the_sdk_parses_is_strictly_valid(client: anthropic.Anthropic) -> None:
    """Answers, models and counts hold against the SDK's types without its leniency."""
    message = client.messages.create(
        model=MODEL,
        max_tokens=4000,
        messages=[{"role": "user", "content": "use get_weather"}],
        tools=[WEATHER],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    types.Message.model_validate(message.to_dict(), strict=False)
    for model in client.models.list():
        types.ModelInfo.model_validate(model.to_dict(), strict=False)
    count = client.messages.count_tokens(model=MODEL, messages=HELLO)
    types.MessageTokensCount.model_validate(count.to_dict(), strict=True)


def test_every_raw_event_is_strictly_valid(client: anthropic.Anthropic) -> None:
    """Each event of a stream with thinking, text and a tool holds against the SDK's event types."""
    with client.messages.create(
        model=MODEL,
        max_tokens=4000,
        messages=[{"role": "user", "content": "use get_weather"}],
        tools=[WEATHER],
        thinking={"type": "enabled", "budget_tokens": 1024},
        stream=True,
    ) as stream:
        events = [type(event).model_validate(event.to_dict()) for event in stream]

    assert isinstance(events[0], types.RawMessageStartEvent)
    assert isinstance(events[-2], types.RawMessageDeltaEvent)
    assert isinstance(events[-1], types.RawMessageStopEvent)
    deltas = [e.delta.type for e in events if isinstance(e, types.RawContentBlockDeltaEvent)]
    assert set(deltas) == {"thinking_delta", "signature_delta", "text_delta", "input_json_delta"}


def test_the_same_request_gets_the_same_answer_streamed_or_not(
    client: anthropic.Anthropic,
) -> None:
    """Content, stop reason and usage depend on the request alone."""
    with client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    message = client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

    assert isinstance(message.content[0], types.TextBlock)
    assert text == message.content[0].text
    assert streamed.stop_reason == message.stop_reason
    assert streamed.usage.input_tokens == message.usage.input_tokens
    assert streamed.usage.output_tokens == message.usage.output_tokens


def test_thinking_comes_signed_and_before_the_text(client: anthropic.Anthropic) -> None:
    """Thinking, where it is enabled, is streamed as a block of its own with a signature."""
    with client.messages.stream(
        model=MODEL,
        max_tokens=4000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()

    thinking, text = message.content
    assert isinstance(thinking, types.ThinkingBlock)
    assert thinking.thinking
    assert thinking.signature
    assert text.type == "text"
    assert "thinking" in kinds
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens


def test_omitted_thinking_leaves_the_signature(client: anthropic.Anthropic) -> None:
    """Adaptive thinking whose display is omitted shows no thought, but is signed."""
    message = client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=HELLO,
        thinking={"type": "adaptive", "display": "omitted"},
    )
    assert isinstance(message.content[0], types.ThinkingBlock)
    assert message.content[0].thinking == ""
    assert message.content[0].signature


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"type": "tool", "name": "get_weather"}, "anything"),
        ({"type": "any"}, "anything"),
        ({"type": "auto"}, "call get_weather for Ulm"),
        ({"type": "auto"}, "use a Tool"),
    ],
)
def test_a_tool_is_used_when_forced_or_asked_for(
    client: anthropic.Anthropic, choice: types.ToolChoiceParam, text: str
) -> None:
    """The input of a tool use fits the tool's schema, streamed piece by piece."""
    with client.messages.stream(
        model=MODEL,
        max_tokens=500,
        messages=[{"role": "user", "content": text}],
        tools=[WEATHER],
        tool_choice=choice,
    ) as stream:
        pieces = [e.partial_json for e in stream if e.type == "input_json"]
        message = stream.get_final_message()

    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert isinstance(use, types.ToolUseBlock)
    assert use.name == "get_weather"
    assert use.input["unit"] in {"celsius", "fahrenheit"}
    assert isinstance(use.input["days"], int)
    assert len(pieces) > 1


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "none"}])
def test_a_tool_is_left_alone_otherwise(
    client: anthropic.Anthropic, choice: types.ToolChoiceParam
) -> None:
    """Without being asked for, or after its result, a tool is not used."""
    messages: list[types.MessageParam] = [
        {"role": "user", "content": "use get_weather"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a tool"}],
        },
    ]
    message = client.messages.create(
        model=MODEL, max_tokens=100, messages=messages, tools=[WEATHER], tool_choice=choice
    )
    assert message.stop_reason == "end_turn"


def test_an_answer_ends_at_max_tokens(client: anthropic.Anthropic) -> None:
    """An answer is no longer than max_tokens, and says that this is why it ended."""
    message = client.messages.create(model=MODEL, max_tokens=3, messages=HELLO)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3


def test_an_answer_ends_at_a_stop_sequence(
    client: anthropic.Anthropic, simulator: TestSimulator
) -> None:
    """A stop sequence ends the answer before it and is named."""
    simulator.script(None, Behaviour(answer="one two three"))
    message = client.messages.create(
        model=MODEL, max_tokens=100, messages=HELLO, stop_sequences=["two"]
    )
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "two"
    assert message.content[0].to_dict()["text"] == "one "


def test_counting_agrees_with_billing(client: anthropic.Anthropic) -> None:
    """count_tokens gives what the same request is then billed as input."""
    system: list[types.TextBlockParam] = [
        {"type": "text", "text": "rules " * 50, "cache_control": {"type": "ephemeral"}}
    ]
    counted = client.messages.count_tokens(
        model=MODEL, messages=HELLO, system=system, tools=[WEATHER]
    )
    usage = client.messages.create(
        model=MODEL, max_tokens=10, messages=HELLO, system=system, tools=[WEATHER]
    ).usage
    assert usage.cache_creation_input_tokens == 75
    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_5m_input_tokens == 75
    assert usage.input_tokens + usage.cache_creation_input_tokens == counted.input_tokens


def test_a_later_turn_reads_the_cache(client: anthropic.Anthropic) -> None:
    """What the first request of a conversation wrote to the cache, its second reads from it."""
    messages: list[types.MessageParam] = [
        *HELLO,
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And again"},
    ]
    usage = client.messages.create(
        model=MODEL,
        max_tokens=10,
        messages=messages,
        system=[{"type": "text", "text": "x" * 400, "cache_control": {"type": "ephemeral"}}],
    ).usage
    assert usage.cache_read_input_tokens == 100
    assert usage.cache_creation_input_tokens == 0


def test_models_are_paged(client: anthropic.Anthropic) -> None:
    """Pages of any size, forwards and backwards, give every model once, in order."""
    everything = [model.id for model in client.models.list()]
    assert [model.id for model in client.models.list(limit=2)] == everything
    page = client.models.list(before_id=everything[-1], limit=2)
    assert [model.id for model in page.data] == everything[-3:-1]
    assert page.has_more
    assert page.first_id == everything[-3]


def test_retired_models_are_listed_when_asked_for(client: anthropic.Anthropic) -> None:
    """A retired model is in no list unless its lifecycle is asked for."""
    assert all(m.lifecycle != "retired" for m in client.models.list())
    assert {m.lifecycle for m in client.models.list(lifecycle=["retired"])} == {"retired"}


def test_an_alias_answers_under_the_models_own_name(client: anthropic.Anthropic) -> None:
    """A model is found, and answers, by its alias too."""
    assert client.models.retrieve("claude-haiku-4-5").id == "claude-haiku-4-5-20251001"
    message = client.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=HELLO)
    assert message.model == "claude-haiku-4-5-20251001"


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    """A model that does not exist is a not_found_error."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="claude-nobody", max_tokens=10, messages=HELLO)
    assert caught.value.type == "not_found_error"


def test_a_retired_model_serves_no_more(client: anthropic.Anthropic) -> None:
    """A retired model can be looked up, and is a not_found_error for messages."""
    retired = "claude-3-7-sonnet-20250219"
    assert client.models.retrieve(retired).lifecycle == "retired"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model=retired, messages=HELLO)


def test_structured_output_fits_its_schema(client: anthropic.Anthropic) -> None:
    """A JSON schema as output format gets JSON of that shape."""
    message = client.messages.create(
        model=MODEL,
        max_tokens=500,
        messages=HELLO,
        output_config={
            "format": {
                "type": "json_schema",
                "schema": {
                    "type": "object",
                    "properties": {"ok": {"type": "boolean"}, "tags": {"type": "array"}},
                },
            }
        },
    )
    assert message.content[0].to_dict()["text"] in {
        '{"ok": true, "tags": []}',
        '{"ok": false, "tags": []}',
    }


def test_beta_messages_parse_too(client: anthropic.Anthropic) -> None:
    """The SDK's beta resources read the same answers."""
    message = client.beta.messages.create(model=MODEL, max_tokens=50, messages=HELLO)
    assert message.stop_reason == "end_turn"


def test_the_beta_form_answers_alike(client: anthropic.Anthropic, simulator: TestSimulator) -> None:
    """`?beta=true` is the same endpoint."""
    message = client.messages.create(
        model=MODEL, max_tokens=50, messages=HELLO, extra_query={"beta": "true"}
    )
    assert message.stop_reason == "end_turn"
    record = simulator.wait_for_end_blocking(1)
    assert record.target == "/v1/messages?beta=true"
    assert record.route == "messages"


@pytest.mark.parametrize(
    ("status", "error", "type_"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (402, anthropic.PaymentRequiredError, "billing_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (409, anthropic.ConflictError, "conflict_error"),
        (413, anthropic.ContentTooLargeError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.ServiceUnavailableError, "api_error"),
        (504, anthropic.GatewayTimeoutError, "timeout_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
def test_every_error_status_is_the_sdks_class(
    client: anthropic.Anthropic,
    simulator: TestSimulator,
    status: int,
    error: type[anthropic.APIStatusError],
    type_: str,
) -> None:
    """Each status arrives as its own exception, with Anthropic's body and request id."""
    simulator.script(Match(path="/v1/messages"), Behaviour(status=status))
    with pytest.raises(error) as caught:
        client.messages.create(model=MODEL, max_tokens=10, messages=HELLO)

    assert caught.value.type == type_
    assert caught.value.request_id == simulator.requests[0].request_id
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"] == caught.value.request_id
    assert ("retry-after" in caught.value.response.headers) == (status == 429)


def test_details_choose_the_sdks_subclass(
    client: anthropic.Anthropic, simulator: TestSimulator
) -> None:
    """`error.details` reaches the SDK, which chooses a more exact class by it."""
    simulator.script(
        None, Behaviour(status=400, details={"error_code": "organization_on_hold"}, message="x")
    )
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert type(caught.value).__name__ == "OrganizationOnHoldError"
    assert caught.value.error_code == "organization_on_hold"


def test_an_error_in_mid_stream_follows_a_200(
    client: anthropic.Anthropic, simulator: TestSimulator
) -> None:
    """An `event: error` after some text is raised by the SDK as an overload."""
    simulator.script(None, Behaviour(error_after=4))
    received: list[str] = []

    def read() -> None:
        with client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
            received.extend(stream.text_stream)

    with pytest.raises(anthropic.APIStatusError) as caught:
        read()
    assert received
    assert caught.value.status_code == 200
    assert caught.value.type == "overloaded_error"


def test_the_sdk_retries_as_it_is_told(
    client: anthropic.Anthropic, simulator: TestSimulator
) -> None:
    """A scripted failure is used up by one request: the SDK's second try succeeds."""
    simulator.script(None, Behaviour(status=529, headers=(("retry-after-ms", "1"),)))
    again = client.with_options(max_retries=1)
    again.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert [record.status for record in simulator.requests] == [529, 200]


async def test_the_async_sdk_streams(async_client: anthropic.AsyncAnthropic) -> None:
    """The async SDK gets the same stream."""
    async with async_client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        text = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()
    assert len(text) > 3
    assert message.content[0].to_dict()["text"] == "".join(text)


async def test_the_async_sdk_gets_the_same_errors(
    async_client: anthropic.AsyncAnthropic, simulator: TestSimulator
) -> None:
    """The async SDK maps an overload to its class."""
    simulator.script(None, Behaviour(status=529))
    with pytest.raises(anthropic.OverloadedError):
        await async_client.messages.create(model=MODEL, max_tokens=10, messages=HELLO)


async def test_the_async_sdk_pages_models_and_uses_tools(
    async_client: anthropic.AsyncAnthropic,
) -> None:
    """Models page, and a forced tool is used, in the async SDK too."""
    assert len([model async for model in async_client.models.list(limit=3)]) > 3
    message = await async_client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert message.content[-1].type == "tool_use"


async def test_leaving_a_stream_reaches_the_log(
    async_client: anthropic.AsyncAnthropic, simulator: TestSimulator
) -> None:
    """A client that leaves in mid-stream is noticed, and its request counts as abandoned."""
    hold = simulator.hold()
    simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=5))
    async with async_client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        async for event in stream:
            if event.type == "text":
                break
    record = await simulator.disconnected(1)
    assert record.disconnected_at is not None
    assert record.status == 200
