"""Token usage out of bytes that pass, however they are cut, coded or damaged."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core import usage as usage_module
from ironwork_server.core.decoding import UndecodableError
from ironwork_server.core.echo import EchoScanner, echo_filter
from ironwork_server.core.usage import UsageMeter
from ironwork_server.core.values import Usage

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"

MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "content": [
        {"type": "text", "text": 'a "quoted" \\ brace } ] , "usage": {"input_tokens": 999}'},
        {"type": "tool_use", "input": {"usage": {"input_tokens": 998}, "é": ["{", "}}", [[]]]}},
    ],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 10,
        "output_tokens": 25,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": None,
        "cache_creation": {"ephemeral_5m_input_tokens": 3},
        "service_tier": "standard",
    },
}
MESSAGE_USAGE = Usage(10, 25, 3, 0)


def event(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


STREAM = b"".join(
    [
        event(
            "message_start",
            message={
                "type": "message",
                "content": [],
                "usage": {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 7},
            },
        ),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        b": a comment\n\n",
        event("content_block_delta", index=0, delta={"text": 'event: message_delta\ndata: {"us'}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 12}),
        event("content_block_delta", index=1, delta={"text": "é\n"}),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 25}),
        event("message_stop"),
    ]
)
STREAM_USAGE = Usage(10, 25, 0, 7)


def meter(
    chunks: Iterable[bytes], content_type: bytes = JSON, content_encoding: bytes = b""
) -> Usage | None:
    """What is read of a body that passes the search for the key, which decodes it."""
    reading = UsageMeter()
    reading.begin(content_type)
    try:
        passing = echo_filter(
            content_encoding, EchoScanner(length=108, last_four=b"wAAA"), reading.feed
        )
        for chunk in chunks:
            list(passing.feed(chunk))
    except UndecodableError:
        return None
    return reading.usage()


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:end] for start, end in pairwise(marks)]


def deflate_bare(body: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(body) + coder.flush()


CODINGS = {
    b"": bytes,
    b"identity": bytes,
    b"GZIP ": gzip.compress,
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"Deflate": deflate_bare,
}
BODIES = {
    "message": (JSON, json.dumps(MESSAGE).encode(), MESSAGE_USAGE),
    "spaced": (JSON, b"\r\n" + json.dumps(MESSAGE, indent=2).encode() + b"\n ", MESSAGE_USAGE),
    "UTF-8": (JSON, json.dumps(MESSAGE, ensure_ascii=False).encode(), MESSAGE_USAGE),
    "usage first": (
        JSON,
        json.dumps({"usage": MESSAGE["usage"], **MESSAGE}).encode(),
        MESSAGE_USAGE,
    ),
    "count_tokens": (JSON, b'{"input_tokens": 14}', Usage(input_tokens=14)),
    "blanks": (JSON, b'\t{ "input_tokens" \r\n : 14 , "x" : 1 } ', Usage(input_tokens=14)),
    "stream": (EVENTS, STREAM, STREAM_USAGE),
    "stream, CR LF": (EVENTS, STREAM.replace(b"\n", b"\r\n"), STREAM_USAGE),
    "stream, CR": (EVENTS, STREAM.replace(b"\n", b"\r"), STREAM_USAGE),
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("body", BODIES)
def test_reads_what_anthropic_reports(body: str, coding: bytes) -> None:
    """Usage is read from messages, counts and streams, whole and byte by byte, in each coding."""
    content_type, plain, expected = BODIES[body]
    coded = CODINGS[coding](plain)
    assert meter([coded], content_type, coding) == expected
    assert meter((bytes([byte]) for byte in coded), content_type, coding) == expected


@given(
    st.sampled_from(sorted(BODIES)),
    st.sampled_from(sorted(CODINGS)),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_split_gives_the_same_answer(body: str, coding: bytes, places: list[int]) -> None:
    """How the network cut the bytes makes no difference."""
    content_type, plain, expected = BODIES[body]
    chunks = cut(CODINGS[coding](plain), places)
    assert meter([b"", *chunks, b""], content_type, coding) == expected


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "type", '"', "\\", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)
tokens = st.integers(0, 2**63 - 1)


@given(
    st.dictionaries(
        st.text(max_size=70).filter(lambda name: name != "usage"), json_like, max_size=4
    ),
    st.fixed_dictionaries({"input_tokens": tokens, "output_tokens": tokens, "x": json_like}),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_finds_the_top_level_usage_of_any_message(
    others: dict[str, object], reported: dict[str, object], pretty: bool, places: list[int]
) -> None:
    """Whatever else a message holds, only its own top-level usage counts."""
    message = others | {"type": "message", "usage": reported}
    body = json.dumps(message, indent=1 if pretty else None, ensure_ascii=pretty).encode(
        "utf-8", "surrogatepass"
    )
    expected = Usage(reported["input_tokens"], reported["output_tokens"])
    assert meter(cut(body, places)) == expected


@given(
    st.sampled_from([JSON, EVENTS, b"", b"application/json\xff"]),
    st.sampled_from([*CODINGS, b"br", b"gzip, gzip"]),
    st.binary(max_size=200) | st.binary(max_size=40).map(lambda end: STREAM[:200] + end),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_nothing_raises(content_type: bytes, coding: bytes, body: bytes, places: list[int]) -> None:
    """Any bytes, declared as anything and cut anywhere, give an answer, the same each time."""
    assert meter(cut(body, places), content_type, coding) == meter([body], content_type, coding)


@given(
    st.sampled_from(sorted(BODIES)),
    st.sampled_from(sorted(CODINGS)),
    st.integers(0, 10_000),
    st.integers(1, 255),
    st.lists(st.integers(0, 10_000), max_size=5),
)
def test_damage_is_never_an_error(
    body: str, coding: bytes, place: int, change: int, places: list[int]
) -> None:
    """A changed byte changes the answer at most, and equally for every split."""
    content_type, plain, _ = BODIES[body]
    coded = bytearray(CODINGS[coding](plain))
    coded[place % len(coded)] ^= change
    damaged = bytes(coded)
    assert meter(cut(damaged, places), content_type, coding) == meter(
        [damaged], content_type, coding
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"usage"',
        b"{}",
        b'{"type":"message"}',
        b'{"type":"message","usage":null}',
        b'{"type":"message","usage":{}}',
        b'{"type":"message","usage":[1]}',
        b'{"type":"message","usage":7}',
        b'{"type":"message","usage":{"input_tokens":1}',
        b'{"type":"message","usage":{"input_tokens":1}}}',
        b'{"type":"message","usage":{"input_tokens":1}} x',
        b'{"type":"message","usage":{"input_tokens":1]}',
        b'{"type":"message","usage":}',
        b'{"type":"message","usage":{"input_tokens":"1"}}',
        b'{"type":"message","usage":{"input_tokens":1.5}}',
        b'{"type":"message","usage":{"input_tokens":true}}',
        b'{"type":"message","usage":{"input_tokens":-1}}',
        b'{"type":"message","usage":{"input_tokens":9223372036854775808}}',
        b'{"type":"message","usage":{"input_tokens":' + b"9" * 5000 + b"}}",
        b'{"type":"message","usage":' + b"[" * 60_000 + b"]" * 5_000 + b"}",
        b'{"type":"message","usage":{"x":"' + b"x" * 70_000 + b'","input_tokens":1}}',
        b'{"type":"message","usage":{"input_tokens":\xff}}',
        b'{"type":"message" "usage":{"input_tokens":1}}',
        b'{"type":"message",usage:{"input_tokens":1}}',
        b'{"type":"message","usage"{"input_tokens":1}}',
        b'{"type":"message","a":]}',
        b'{"type":"error","error":{"type":"overloaded_error"},"usage":{"input_tokens":1}}',
        b'{"type":"session","usage":{"input_tokens":1}}',
        b'{"type":["message"],"usage":{"input_tokens":1}}',
        b'{"usage":{"input_tokens":1}}',
        b'{"input_tokens":null}',
        b'{"input_tokens":"14"}',
        b'{"type":"message","usage":{"input_tokens":1},"usage":{"input_tokens":"x"}}',
    ],
)
def test_other_json_reports_nothing(body: bytes) -> None:
    """What is no whole message with a sound usage, nor a count, has none."""
    assert meter([body]) is None
    assert meter(bytes([byte]) for byte in body[:4000]) is None


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        event("ping") + event("message_stop"),
        event("error", error={"type": "overloaded_error"}),
        event("message_start", message={"content": []}),
        event("message_start"),
        event("message_start", message=[]),
        b"event: message_start\ndata: {\n\n",
        b"event: message_start\ndata: []\n\n",
        b"event: message_start\n\n",
        b"event: message_start\ndata: " + b"[" * 100_000 + b"\n\n",
        event("message_delta", usage={"output_tokens": "x"}),
        event("message_delta", usage=3),
        event("message_delta", usage={"output_tokens": 5})[:-1],
        STREAM + b"event: message_delta\ndata: broken\n\n",
        STREAM + event("message_delta", filler="x" * 2**20, usage={"output_tokens": 1}),
        event("message_delta", usage={"output_tokens": 5}).replace(b"event: message_delta\n", b""),
        event("message_delta", usage={"output_tokens": 5}).replace(b"event: ", b"event:  "),
        event("message_delta", usage={"output_tokens": 5}).replace(b"event: ", b"xevent: "),
        event("message_delta", usage={"output_tokens": 5}).replace(b"event: ", b" event: "),
        event("message_deltas", usage={"output_tokens": 5}),
        b'data: {"usage":{"input_tokens":5}}\nevent: message_delta\n\n',
        b"event: message_delta\nevent: ping\ndata: {}\n\n",
    ],
)
def test_other_streams_report_nothing(stream: bytes) -> None:
    """A stream without a sound, whole event that reports usage has none."""
    assert meter([stream], EVENTS) is None


@pytest.mark.parametrize(
    "stream",
    [
        event("message_start", message={"usage": {"input_tokens": 5}}),
        event("message_start", message={"usage": {"input_tokens": 5}}) + STREAM[:90],
        event("message_delta", usage={"input_tokens": 5, "output_tokens": None}),
        b'event: message_delta\nid: 7\ndata: {"usage":\nretry: 1\ndata:{"input_tokens": 5}}\n\n',
        b'event:message_delta\ndata:{"usage":{"input_tokens":5}}\n\n',
        event("x", text="y" * 2**21) + event("message_delta", usage={"input_tokens": 5}),
        event("message_delta", usage={"input_tokens": 5}) + b"event: " + b"y" * 2**21 + b"\n\n",
        b": " + b"y" * 2**21 + b"\n" + event("message_delta", usage={"input_tokens": 5}),
        b"data: " + b"y" * 2**21 + b"\n\n" + event("message_delta", usage={"input_tokens": 5}),
        event("message_delta", pad="y" * 1_000_000, usage={"input_tokens": 5}),
        b"\n\n\n" + event("message_delta", usage={"input_tokens": 5}),
        b"event\ndata\n\n" + event("message_delta", usage={"input_tokens": 5}),
        b"event: message_delta\nevent: x\ndata: {\n\n"
        + event("message_delta", usage={"input_tokens": 5}),
    ],
)
def test_streams_by_the_specification(stream: bytes) -> None:
    """Other fields stand anywhere, data in several lines, other events and lines at any length."""
    for size in (1000, 16_384, len(stream)):
        chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert meter(chunks, EVENTS) == Usage(input_tokens=5)


def test_a_cut_stream_has_what_was_reported() -> None:
    """What Anthropic had reported when a stream broke off was used, and is reported."""
    assert meter([STREAM[: STREAM.index(b"message_stop")]], EVENTS) == STREAM_USAGE
    coded = gzip.compress(STREAM)
    assert meter([coded[:-8]], EVENTS, b"gzip") == STREAM_USAGE


@pytest.mark.parametrize(
    ("content_type", "coding"),
    [
        (b"", b""),
        (b"text/plain", b""),
        (b"application/x-jsonl", b""),
        (b"application/json", b"br"),
        (b"application/json", b"zstd"),
        (b"application/json", b"gzip, gzip"),
        (b"application/json", b"x-gzip"),
        (b"application/json", b"gzip"),
        (b"application/json", b"deflate"),
    ],
)
def test_unknown_types_and_codings_report_nothing(content_type: bytes, coding: bytes) -> None:
    """What the meter cannot read, or is not what it says, has no usage."""
    assert meter([json.dumps(MESSAGE).encode()], content_type, coding) is None


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize("extra", [b"x", b"\0", gzip.compress(b"{}")])
def test_nothing_may_follow_the_compressed_body(coding: bytes, extra: bytes) -> None:
    """Bytes after the end of the compressed body make it unreadable, cut or not."""
    coded = CODINGS[coding](json.dumps(MESSAGE).encode())
    assert meter([coded + extra], JSON, coding) is None
    assert meter([coded, extra], JSON, coding) is None
    assert meter([coded, b""], JSON, coding) == MESSAGE_USAGE


def test_a_large_message_is_read_in_little_memory() -> None:
    """A message of 12 MB, compressed to almost nothing, is read whole and never kept."""
    large = MESSAGE | {"content": [{"text": 'x "\\{' * 2_000_000}]}
    large["usage"] = large.pop("usage")
    coded = gzip.compress(json.dumps(large).encode(), 1)
    tracemalloc.start()
    try:
        assert meter([coded], JSON, b"gzip") == MESSAGE_USAGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


def test_many_short_strings_are_read_over() -> None:
    """More parts than one match of the scanner takes are read all the same."""
    many = MESSAGE | {"content": [*["a"] * 2000, "\\" * 40, "\n" * 600]}
    assert meter([json.dumps(many).encode()], JSON, b"") == MESSAGE_USAGE


def test_an_endless_event_is_not_kept() -> None:
    """A line that never ends holds about 1 MiB, and no more."""
    reading = UsageMeter()
    reading.begin(EVENTS)
    tracemalloc.start()
    try:
        reading.feed(b"event: message_start\ndata: ")
        for _ in range(1000):
            reading.feed(b"x" * 16_384)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
    assert reading.usage() is None


def test_many_small_lines_of_one_event_are_bounded() -> None:
    """An event of a wanted type may have 1 MiB of data over all its lines."""
    small = b"event: message_delta\n" + b"data:\n" * 10_000 + b'data: {"usage":{"input_tokens":5}}'
    assert meter([small, b"\n\n"], EVENTS) == Usage(input_tokens=5)
    large = b"event: message_delta\n" + b"data: 0123456789\n" * 100_000 + b"\n"
    assert meter([large + STREAM], EVENTS) is None


@pytest.mark.parametrize("after", [1, 2, 3, 40, 258])
def test_nothing_stays_in_the_decoder(after: int) -> None:
    """Output that a full piece leaves behind, with no input left to show for it, is read too."""
    end = event("message_delta", usage={"input_tokens": 5})[:-1]
    for pad in range(65_536 - len(end) - 5, 65_536 - len(end) + 5):
        body = b":" * (pad - 1) + b"\n" + end + b"\n" * after
        assert meter([deflate_bare(body)], EVENTS, b"deflate") == Usage(input_tokens=5)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_a_bomb_is_given_up(monkeypatch: pytest.MonkeyPatch, coding: bytes) -> None:
    """What grows beyond the bound is no longer decoded: there is no usage, and no harm."""
    monkeypatch.setattr(usage_module, "MAX_DECODED_BYTES", 1_000_000)
    fits = STREAM + b":" * (1_000_000 - len(STREAM))
    assert meter([CODINGS[coding](fits)], EVENTS, coding) == STREAM_USAGE
    assert meter([CODINGS[coding](fits + b":")], EVENTS, coding) is None


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More lines in the events that count than a bound are not read; other lines do not count."""
    monkeypatch.setattr(usage_module, "MAX_EVENT_LINES", 30)
    assert meter([STREAM + event("ping") * 1000], EVENTS) == STREAM_USAGE
    assert meter([STREAM + event("message_delta", usage={}) * 8], EVENTS) is None


def test_structure_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More brackets or members than a bound are not followed."""
    monkeypatch.setattr(usage_module, "MAX_STRUCTURE", 1000)
    usage = b'"type":"message","usage":{"input_tokens":5}}'
    assert meter([b'{"a":' + b"[" * 400 + b"]" * 400 + b"," + usage]) == Usage(input_tokens=5)
    assert meter([b'{"a":' + b"[" * 600 + b"]" * 600 + b"," + usage]) is None
    assert meter([b"{" + b'"a":1,' * 600 + usage]) == Usage(input_tokens=5)
    assert meter([b"{" + b'"a":1,' * 1100 + usage]) is None
