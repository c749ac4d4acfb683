"""Properties of answers, pages and behaviours, for any input."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_simulator import Behaviour, Match
from ironwork_simulator.answers import answer, example, filler
from ironwork_simulator.catalogue import MODELS, page_of_models
from ironwork_simulator.errors import ApiError
from ironwork_simulator.plain import Invalid
from ironwork_simulator.request import parse_messages, tokens_of
from ironwork_simulator.sse import dump, events, message

_TEXT = st.text(max_size=200)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
# Fields that mean something somewhere, with values that they should not have.
_FIELDS = st.sampled_from(
    [
        "type",
        "name",
        "role",
        "content",
        "text",
        "budget_tokens",
        "display",
        "format",
        "schema",
        "enum",
        "properties",
        "items",
        "const",
        "input_schema",
        "cache_control",
    ]
)
_WORDS = st.sampled_from(
    [
        "tool",
        "any",
        "auto",
        "none",
        "enabled",
        "adaptive",
        "json_schema",
        "object",
        "array",
        "user",
        "assistant",
        "text",
        "tool_result",
    ]
)
_SHAPED = st.recursive(
    _WORDS | _JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=5),
    max_leaves=8,
)
_KNOWN = {
    "model": st.just("claude-opus-5") | _SHAPED,
    "max_tokens": st.integers(-1, 5000) | _SHAPED,
    "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": _SHAPED}))
    | _SHAPED,
    "system": _SHAPED,
    "tools": _SHAPED,
    "tool_choice": _SHAPED,
    "thinking": _SHAPED,
    "stop_sequences": _SHAPED,
    "output_config": _SHAPED,
    "stream": _SHAPED,
    "cache_control": _SHAPED,
}
_VALID = {
    "model": st.just("claude-opus-5"),
    "max_tokens": st.integers(0, 5000),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": _TEXT | st.lists(_SHAPED)}),
        min_size=1,
        max_size=3,
    ),
}


def request_of(text: str, **fields_: Any) -> Any:
    document = {
        "model": "claude-opus-5",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": text}],
        **fields_,
    }
    return parse_messages(json.dumps(document).encode())


@given(_TEXT, st.integers(0, 60), st.booleans())
def test_an_answer_depends_on_the_request_alone(text: str, limit: int, thinks: bool) -> None:
    """The same request has the same answer and usage, within max_tokens."""
    thinking = {"type": "adaptive"} if thinks else {"type": "disabled"}
    first = answer(request_of(text, max_tokens=limit, thinking=thinking))
    second = answer(request_of(text, max_tokens=limit, thinking=thinking))
    assert first == second
    assert first.output_tokens - first.thinking_tokens <= limit
    assert bool(first.thinking_tokens) == thinks


@given(_TEXT, st.integers(1, 40))
def test_the_events_of_a_stream_add_up_to_the_message(text: str, piece: int) -> None:
    """Whatever the size of a piece, the deltas together are the unary answer's blocks."""
    request = request_of(
        text + " tool",
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[{"name": "a_tool", "input_schema": {"properties": {"x": {"type": "number"}}}}],
    )
    given_answer = answer(request)
    blocks: dict[int, str] = {}
    for event in events("msg_1", request, given_answer, piece=piece):
        data = json.loads(event.partition(b"data: ")[2])
        if data["type"] == "content_block_delta":
            kind = data["delta"]["type"]
            field = {
                "text_delta": "text",
                "thinking_delta": "thinking",
                "input_json_delta": "partial_json",
            }.get(kind)
            if field is not None:
                index = data["index"]
                blocks[index] = blocks.get(index, "") + data["delta"][field]
    thinking, said, tool = message("msg_1", request, given_answer)["content"]
    assert blocks == {0: thinking["thinking"], 1: said["text"], 2: json.dumps(tool["input"])}


@settings(max_examples=200)
@given(
    st.fixed_dictionaries({}, optional=_KNOWN)
    | st.fixed_dictionaries(_VALID, optional={k: v for k, v in _KNOWN.items() if k not in _VALID})
    | _JSON
)
def test_any_json_is_answered_or_refused(document: object) -> None:
    """No body, however odd, does more than get an answer or Anthropic's refusal."""
    refused = None
    try:
        request = parse_messages(json.dumps(document).encode())
        assert request.usage.total >= 0
        assert b"".join(events("msg_1", request, answer(request)))
    except ApiError as error:
        refused = error.status
    assert refused in {None, 400, 404}


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    """A body that is no JSON object is an invalid_request_error."""
    with pytest.raises(ApiError) as caught:
        parse_messages(body)
    assert caught.value.status == 400


@given(_SHAPED)
def test_examples_are_made_of_any_schema(schema: object) -> None:
    """A tool's schema, valid or not, gives an input that is JSON."""
    if isinstance(schema, dict):
        dump(example(schema, b"\0" * 32))


@given(st.integers(0, 10_000))
def test_filler_is_as_long_as_asked(tokens: int) -> None:
    """Filler of n tokens counts as n tokens."""
    assert tokens_of(filler(tokens)) == tokens


@given(st.integers(1, 12))
def test_pages_forwards_and_backwards_meet(limit: int) -> None:
    """Following after_id, and following before_id from the end, give the same models."""
    listed = [m["id"] for m in MODELS if m["lifecycle"] != "retired"]
    forwards: list[str] = []
    query: dict[str, list[str]] = {"limit": [str(limit)]}
    while True:
        page = page_of_models(query)
        forwards += [m["id"] for m in page["data"]]
        if not page["has_more"]:
            break
        query["after_id"] = [page["last_id"]]
    backwards = [listed[-1]]
    more = True
    while more:
        page = page_of_models({"limit": [str(limit)], "before_id": [backwards[0]]})
        backwards = [m["id"] for m in page["data"]] + backwards
        more = page["has_more"]
    assert forwards == backwards == listed


def test_behaviours_and_matches_survive_json() -> None:
    """Every field of a behaviour and of a match can be said in JSON."""
    behaviour = Behaviour(
        status=529,
        headers=(("a", "b"),),
        without_headers=("c",),
        details={"x": 1},
        hold="h",
        hold_at="upload",
        pace_s=0.5,
        cut="mid_chunk",
    )
    said = {field.name: getattr(behaviour, field.name) for field in fields(behaviour)}
    assert Behaviour.from_json(json.loads(json.dumps(said))) == behaviour
    match = Match(key="k", method="GET", path="/v1*", header=("a", "b"))
    said = {field.name: getattr(match, field.name) for field in fields(match)}
    assert Match.from_json(json.loads(json.dumps(said))) == match


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Behaviour)]), _JSON))
def test_any_json_is_a_behaviour_or_invalid(value: dict[str, object]) -> None:
    """No JSON object does more than make a behaviour or name the field that is wrong."""
    said = None
    try:
        Behaviour.from_json(value)
    except Invalid as error:
        said = str(error)
    assert said is None or any(said.startswith(f"{name}: ") for name in value)


def test_the_key_is_in_no_repr_of_a_match() -> None:
    """A match that names a key does not show it."""
    assert "secret" not in repr(Match(key="secret"))
