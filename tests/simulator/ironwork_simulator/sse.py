"""A message as JSON, and as Anthropic's server-sent events (types.RawMessageStreamEvent)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ironwork_simulator.answers import Answer
from ironwork_simulator.request import MessagesRequest

# About four tokens: what one event of a real stream carries at its usual speed.
_PIECE = 16


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(document: object) -> bytes:
    """Compact JSON in UTF-8, as Anthropic writes it."""
    return _encode(document).encode("utf-8", "replace")


def event(name: str, document: Mapping[str, Any]) -> bytes:
    """One server-sent event: its name, its JSON, an empty line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), dump({"type": name, **document}))


def message(identifier: str, request: MessagesRequest, answer: Answer) -> dict[str, Any]:
    """The body of a unary answer (types.Message)."""
    return {
        "model": request.model,
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "content": answer.content,
        "stop_reason": answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "usage": _usage(request, answer.output_tokens, answer.thinking_tokens),
    }


def events(
    identifier: str, request: MessagesRequest, answer: Answer, *, piece: int = _PIECE
) -> Iterator[bytes]:
    """The events of a streamed answer; piece: characters in each delta."""
    start = message(identifier, request, answer)
    start |= {"content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = _usage(request, 1, 0)
    yield event("message_start", {"message": start})
    for index, block in enumerate(answer.content):
        yield event("content_block_start", {"index": index, "content_block": _opening(block)})
        if index == 0:
            yield event("ping", {})
        for delta in _deltas(block, piece):
            yield event("content_block_delta", {"index": index, "delta": delta})
        yield event("content_block_stop", {"index": index})
    delta = {"stop_reason": answer.stop_reason, "stop_sequence": answer.stop_sequence}
    usage = _usage(request, answer.output_tokens, answer.thinking_tokens)
    for name in ("cache_creation", "service_tier", "inference_geo"):
        del usage[name]
    yield event("message_delta", {"delta": delta, "usage": usage})
    yield event("message_stop", {})


def _usage(request: MessagesRequest, output_tokens: int, thinking_tokens: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": request.usage.input_tokens,
        "cache_creation_input_tokens": request.usage.cache_creation,
        "cache_read_input_tokens": request.usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": request.usage.cache_creation,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": output_tokens,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }
    if thinking_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": thinking_tokens}
    return usage


def _opening(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block as content_block_start shows it: its filling is empty yet."""
    empty: dict[str, dict[str, Any]] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
    }
    return {**block, **empty[block["type"]]}


def _deltas(block: Mapping[str, Any], piece: int) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        for part in _pieces(block["text"], piece):
            yield {"type": "text_delta", "text": part}
    elif block["type"] == "thinking":
        for part in _pieces(block["thinking"], piece):
            yield {"type": "thinking_delta", "thinking": part}
        yield {"type": "signature_delta", "signature": block["signature"]}
    else:
        # Anthropic opens a tool's input with an empty piece.
        yield {"type": "input_json_delta", "partial_json": ""}
        for part in _pieces(json.dumps(block["input"], ensure_ascii=False), piece):
            yield {"type": "input_json_delta", "partial_json": part}


def _pieces(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]
