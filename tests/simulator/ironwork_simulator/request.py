"""The body of a Messages request, checked as Anthropic checks it (types.MessageCreateParams).

Unknown fields are let through: the API grows fields faster than this file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ironwork_simulator.catalogue import usable_model
from ironwork_simulator.errors import ApiError

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """What the answer depends on. input_text is everything that counts as input, in order."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    stream: bool
    thinking: str | None
    thinking_shown: bool
    tools: Sequence[Mapping[str, Any]]
    tool_choice: Mapping[str, Any]
    stop_sequences: Sequence[str]
    output_schema: Mapping[str, Any] | None
    usage: "InputUsage"
    input_text: str = field(repr=False)

    @property
    def last_text(self) -> str:
        """The text of the last message."""
        return "".join(_texts(self.messages[-1].get("content", "")))


@dataclass(frozen=True, slots=True)
class InputUsage:
    """Input tokens: those of no cache, those written to it, those read from it."""

    input_tokens: int
    cache_creation: int
    cache_read: int

    @property
    def total(self) -> int:
        return self.input_tokens + self.cache_creation + self.cache_read


def parse_messages(body: bytes | bytearray, *, counting: bool = False) -> MessagesRequest:
    """Read a request's body; counting: for count_tokens, which takes no max_tokens.

    Raises ApiError 400, or 404 for an unknown model.
    """
    document = _json_object(body)
    messages = _messages(document)
    max_tokens = 0 if counting else _max_tokens(document)
    model = _string(document, "model")
    thinking, shown = _thinking(document, max_tokens, counting=counting)
    tools = _list_of_objects(document, "tools")
    text = "".join(_input_texts(document, messages, tools))
    return MessagesRequest(
        model=usable_model(model),
        messages=messages,
        max_tokens=max_tokens,
        stream=_stream(document),
        thinking=thinking,
        thinking_shown=shown,
        tools=tools,
        tool_choice=_tool_choice(document, tools),
        stop_sequences=_strings(document, "stop_sequences"),
        output_schema=_output_schema(document),
        usage=_input_usage(document, messages, text),
        input_text=text,
    )


def tokens_of(text: str) -> int:
    """Tokens of a text by the simulator's rule: four characters each, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def characters_of(tokens: int) -> int:
    """The longest text of so many tokens."""
    return tokens * _CHARACTERS_PER_TOKEN


def _json_object(body: bytes | bytearray) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON") from None
    if not isinstance(document, dict):
        raise ApiError(400, "Input should be an object")
    return document


def _string(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        raise ApiError(400, f"{name}: Field required")
    if not isinstance(value, str):
        raise ApiError(400, f"{name}: Input should be a valid string")
    return value


def _max_tokens(document: Mapping[str, Any]) -> int:
    value = document.get("max_tokens")
    if value is None:
        raise ApiError(400, "max_tokens: Field required")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(400, "max_tokens: Input should be a valid integer")
    if value < 0:
        raise ApiError(400, "max_tokens: Input should be greater than or equal to 0")
    return value


def _stream(document: Mapping[str, Any]) -> bool:
    value = document.get("stream", False)
    if not isinstance(value, bool):
        raise ApiError(400, "stream: Input should be a valid boolean")
    return value


def _messages(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = _list_of_objects(document, "messages")
    if "messages" not in document:
        raise ApiError(400, "messages: Field required")
    if not messages:
        raise ApiError(400, "messages: at least one message is required")
    for number, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant", "system"):
            raise ApiError(400, f"messages.{number}.role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        if content is None:
            raise ApiError(400, f"messages.{number}.content: Field required")
        blocks = isinstance(content, list) and all(
            isinstance(b, dict) and isinstance(b.get("type"), str) for b in content
        )
        if not isinstance(content, str) and not blocks:
            raise ApiError(
                400, f"messages.{number}.content: Input should be a string or a list of blocks"
            )
    return messages


def _list_of_objects(document: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ApiError(400, f"{name}: Input should be a valid list of objects")
    return value


def _strings(document: Mapping[str, Any], name: str) -> Sequence[str]:
    value = document.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ApiError(400, f"{name}: Input should be a valid list of strings")
    return value


def _thinking(
    document: Mapping[str, Any], max_tokens: int, *, counting: bool
) -> tuple[str | None, bool]:
    config = document.get("thinking")
    if config is None:
        return None, False
    kind = _kind(config)
    if kind not in {"enabled", "adaptive", "disabled", "between_tools"}:
        raise ApiError(400, "thinking.type: Input should be 'enabled', 'adaptive' or 'disabled'")
    if kind == "enabled":
        budget = config.get("budget_tokens")
        if not isinstance(budget, int) or budget < 1024:
            raise ApiError(
                400, "thinking.budget_tokens: Input should be greater than or equal to 1024"
            )
        if not counting and budget >= max_tokens:
            raise ApiError(400, "`max_tokens` must be greater than `thinking.budget_tokens`")
    thinks = kind in {"enabled", "adaptive"}
    return (kind if thinks else None), thinks and config.get("display") != "omitted"


def _kind(value: object) -> str | None:
    """The `type` of an object; None for anything else."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _tool_choice(
    document: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    choice = document.get("tool_choice", {"type": "auto"})
    kind = _kind(choice)
    if kind not in {"auto", "any", "tool", "none"}:
        raise ApiError(400, "tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'")
    if kind == "any" and not tools:
        raise ApiError(400, "tool_choice: tool_choice may only be specified while providing tools")
    if kind == "tool" and choice.get("name") not in [tool.get("name") for tool in tools]:
        raise ApiError(400, "tool_choice.name: no tool of this name was provided")
    return dict(choice)


def _output_schema(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = document.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        schema = wanted.get("schema")
        return schema if isinstance(schema, dict) else None
    return None


def _texts(content: object) -> Iterator[str]:
    """The text of a message's content, tool results included, in order."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, dict):
                yield from _texts(block.get("text", block.get("content", "")))


def _input_texts(
    document: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    yield from _texts(document.get("system", ""))
    for tool in tools:
        yield json.dumps(tool, sort_keys=True)
    for message in messages:
        yield from _texts(message["content"])


def _input_usage(
    document: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], text: str
) -> InputUsage:
    """The prompt up to the last cache_control is cached: written by a conversation's first
    request, read by those that follow an assistant's turn. So usage depends on the request alone.
    """
    total = tokens_of(text) + _TOKENS_PER_MESSAGE * len(messages)
    cached = min(total, tokens_of("".join(_cached_texts(document, messages))))
    again = any(message["role"] == "assistant" for message in messages)
    return InputUsage(
        input_tokens=total - cached,
        cache_creation=0 if again else cached,
        cache_read=cached if again else 0,
    )


def _cached_texts(
    document: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
) -> Sequence[str]:
    blocks: list[tuple[str, bool]] = []
    for content in (document.get("system", ""), *(message["content"] for message in messages)):
        parts = content if isinstance(content, list) else [{"text": content}]
        blocks += [
            ("".join(_texts([part])), "cache_control" in part)
            for part in parts
            if isinstance(part, dict)
        ]
    marked = [position for position, (_, mark) in enumerate(blocks) if mark]
    if "cache_control" in document:
        marked.append(len(blocks) - 1)
    return [text for text, _ in blocks[: marked[-1] + 1]] if marked else []
