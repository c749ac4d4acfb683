"""The answer to a Messages request: derived from the request alone, so that it can be foretold."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironwork_simulator.request import MessagesRequest, characters_of, tokens_of

SENTENCES: Sequence[str] = (
    "A key that nobody sees is a key that nobody loses.",
    "Custody is the art of holding something without ever looking at it.",
    "The lock is public, the key is not, and the ledger remembers who asked.",
    "Rotate early, rotate calmly, and let the next request pick up the new key.",
    "What is never written down cannot be read by the wrong person.",
    "A good vault is boring: it opens for the right hand and for no other.",
    "Trust is easier to give to a log that cannot be quietly rewritten.",
    "Two halves kept apart are safer than one whole kept close.",
)
_THOUGHTS: Sequence[str] = (
    "The request is short, so the answer can be short as well. ",
    "First I look at what is asked, then at what is known. ",
    "Nothing here needs a secret, only a clear sentence. ",
    "I choose a saying that fits and check that it stays within the limit. ",
)
_FILLER: Sequence[str] = ("iron", "work", "seal", "keys", "vault", "ledger", "quiet", "hand")
_SCHEMA_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """The content blocks of a message, why it ended, and its output tokens."""

    content: Sequence[Mapping[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    output_tokens: int
    thinking_tokens: int


def answer(
    request: MessagesRequest, *, text: str | None = None, tokens: int | None = None
) -> Answer:
    """The answer to request; text: this instead of a saying; tokens: filler of that length."""
    digest = hashlib.sha256(
        f"{request.model}\0{request.input_text}".encode("utf-8", "replace")
    ).digest()
    thoughts = _thinking(request, digest)
    tool = _tool_to_use(request)
    said, stop, sequence = _said(request, digest, text, tokens)
    if tool is not None:
        calls, stop, sequence = [_tool_use(tool, digest)], "tool_use", None
        said = f"I will use {tool['name']} for that." if _is_auto(request) else ""
    else:
        calls = []
    blocks = [*thoughts, *([{"type": "text", "text": said}] if said else []), *calls]
    thinking_tokens = sum(tokens_of(block["signature"]) for block in thoughts)
    written = tokens_of(said) + sum(tokens_of(json.dumps(call["input"])) + 8 for call in calls)
    return Answer(blocks, stop, sequence, thinking_tokens + written, thinking_tokens)


def filler(tokens: int) -> str:
    """Text of exactly this many tokens, always the same."""
    length = characters_of(tokens)
    period = " ".join(_FILLER) + " "
    return (period * (length // len(period) + 1))[:length]


def _thinking(request: MessagesRequest, digest: bytes) -> list[dict[str, Any]]:
    if request.thinking is None:
        return []
    thought = _THOUGHTS[digest[1] % 4] + _THOUGHTS[(digest[1] + 1) % 4]
    signature = "EqQB" + hashlib.sha256(b"signature" + digest).hexdigest() * 2 + "GAE="
    shown = thought.strip() if request.thinking_shown else ""
    return [{"type": "thinking", "thinking": shown, "signature": signature}]


def _said(
    request: MessagesRequest, digest: bytes, text: str | None, tokens: int | None
) -> tuple[str, str, str | None]:
    if text is None and tokens is not None:
        text = filler(tokens)
    elif text is None and request.output_schema is not None:
        text = json.dumps(example(request.output_schema, digest))
    elif text is None:
        first = digest[0] % len(SENTENCES)
        text = f"{SENTENCES[first]} {SENTENCES[(first + 3) % len(SENTENCES)]}"
    for sequence in request.stop_sequences:
        if sequence and sequence in text:
            return text.split(sequence, 1)[0], "stop_sequence", sequence
    if tokens_of(text) > request.max_tokens:
        return text[: characters_of(request.max_tokens)], "max_tokens", None
    return text, "end_turn", None


def _is_auto(request: MessagesRequest) -> bool:
    return bool(request.tool_choice["type"] == "auto")


def _tool_to_use(request: MessagesRequest) -> Mapping[str, Any] | None:
    """A forced tool; or, left to choose, the one that the last message asks for by name or the
    first for the word "tool"; none when that message brings a tool's result.
    """
    choice = request.tool_choice
    named = [t for t in request.tools if isinstance(t.get("name"), str)]
    if choice["type"] == "none" or not named:
        return None
    if choice["type"] == "tool":
        return next(tool for tool in named if tool["name"] == choice["name"])
    if choice["type"] == "any":
        return named[0]
    content = request.messages[-1]["content"]
    if isinstance(content, list) and any(b["type"] == "tool_result" for b in content):
        return None
    asked = request.last_text
    for tool in named:
        if tool["name"] in asked:
            return tool
    return named[0] if "tool" in asked.lower() else None


def _tool_use(tool: Mapping[str, Any], digest: bytes) -> dict[str, Any]:
    schema = tool.get("input_schema")
    value = example(schema, digest) if isinstance(schema, dict) else {}
    return {
        "type": "tool_use",
        "id": "toolu_01" + hashlib.sha256(b"tool" + digest).hexdigest()[:22],
        "name": tool["name"],
        "input": value if isinstance(value, dict) else {},
        "caller": {"type": "direct"},
    }


def example(schema: Mapping[str, Any], digest: bytes, depth: int = 0) -> object:
    """A value that a simple JSON schema (types, enum, const, properties, items) accepts."""
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][digest[2] % len(schema["enum"])]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    kind = kind if isinstance(kind, str) else None
    if kind == "object" or (kind is None and "properties" in schema):
        return dict(_properties(schema, digest, depth))
    if kind == "array":
        items = schema.get("items")
        nested = isinstance(items, dict) and depth < _SCHEMA_DEPTH
        return [example(items, digest, depth + 1)] if nested and isinstance(items, dict) else []
    simple: Mapping[object, object] = {
        "integer": digest[3] % 100,
        "number": digest[3] / 4,
        "boolean": bool(digest[3] % 2),
        "null": None,
    }
    return simple.get(kind, f"{_FILLER[digest[4] % 8]} {_FILLER[digest[5] % 8]}")


def _properties(
    schema: Mapping[str, Any], digest: bytes, depth: int
) -> Iterator[tuple[str, object]]:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or depth >= _SCHEMA_DEPTH:
        return
    for name, inner in properties.items():
        if isinstance(inner, dict):
            yield (
                name,
                example(
                    inner,
                    hashlib.sha256(digest + name.encode("utf-8", "replace")).digest(),
                    depth + 1,
                ),
            )
