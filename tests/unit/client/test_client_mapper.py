"""Requests and answers, mapped without IO."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport import _mapper
from ironwork_client.transport._grammar import Conversation
from ironwork_client.transport._values import (
    BodyArrived,
    CallEnded,
    Fault,
    FaultKind,
    HeadArrived,
    Nothing,
)
from unit.client import scripted_server as scripted

DROPPED = [
    *("x-api-key", "authorization", "cookie", "cookie2", "host", "content-length"),
    *("transfer-encoding", "connection", "keep-alive", "proxy-authenticate"),
    *("proxy-authorization", "proxy-connection", "te", "trailer", "upgrade", "expect"),
]
TOKENS = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_!#$%&'*+.^`|~", min_size=1
)
NAMES = TOKENS.filter(lambda name: name.lower() not in DROPPED)
VALUES = st.binary(max_size=40).filter(lambda value: not set(value) & {0, 10, 13})
HEADERS = st.lists(st.tuples(NAMES.map(str.encode), VALUES), max_size=12)
PATHS = st.text("abc/%2F.@:~", max_size=20).map(lambda tail: "/v1/" + tail)


@given(HEADERS, PATHS, st.text("a=&%2f?", max_size=20), st.binary(max_size=5))
def test_what_is_kept_is_kept_exactly(
    headers: list[tuple[bytes, bytes]], path: str, query: str, end: bytes
) -> None:
    """Order, duplicates, case and values of headers, raw path and query survive the mapping."""
    target = f"{path}?{query}".encode()
    placed = [(b"X-Api-Key", end.hex().encode()), *headers, (b"Cookie", b"a=b")]
    head = _mapper.request_head("POST", target, placed)
    assert (head.method, head.path, head.query) == ("POST", path, query)
    assert [(header.name.encode(), header.value) for header in head.headers] == headers


@given(st.sampled_from(DROPPED), st.data())
def test_credentials_and_framing_never_leave(name: str, data: st.DataObject) -> None:
    """Placeholders, cookies and framing are removed, however their names are written."""
    written = "".join(data.draw(st.sampled_from((c.lower(), c.upper()))) for c in name)
    value = b"5" if name == "content-length" else b"canary"
    head = _mapper.request_head("POST", b"/v1/messages", [(written.encode(), value)])
    assert b"canary" not in head.SerializeToString()
    assert not head.headers


def test_headers_that_connection_names_are_hop_by_hop() -> None:
    """Connection's options are removed with it (RFC 9110 §7.6.1)."""
    headers = [(b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-stays", b"1")]
    head = _mapper.request_head("GET", b"/v1/models", headers)
    assert [header.name for header in head.headers] == ["x-stays"]


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"12")], 12),
        ([(b"Content-Length", b"0")], 0),
        ([(b"Transfer-Encoding", b"chunked")], None),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], None),
        ([(b"content-length", b"5"), (b"content-length", b"5")], 5),
    ],
)
def test_the_length_is_carried_over(headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    """A stated length is kept, no framing at all means no body, chunked means unknown."""
    head = _mapper.request_head("POST", b"/v1/messages", headers)
    assert (head.content_length if head.HasField("content_length") else None) == length


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/v1", [(b"content-length", b"-1")]),
        (b"/v1", [(b"content-length", b"1, 2")]),
        (b"/v1", [(b"content-length", b"1"), (b"content-length", b"2")]),
        (b"/v1", [(b"x-canary", b"canary\r\nx-injected: 1")]),
        (b"/v1", [(b"canary header", b"1")]),
        (b"/v1", [(b"", b"1")]),
        (b"/v1/\xff", []),
    ],
)
def test_what_http_does_not_allow_is_refused_here(
    target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Broken framing and header injection are local errors that repeat no value."""
    with pytest.raises(Fault) as caught:
        _mapper.request_head("POST", target, headers)
    assert caught.value.kind is FaultKind.LOCAL_PROTOCOL
    assert "canary" not in str(caught.value)


@given(st.integers(200, 599), HEADERS)
def test_an_answers_head_survives(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Status, and headers with order, duplicates and case, come out as they went in."""
    head = keys_pb2.ResponseHead(call=1, status=status)
    for name, value in headers:
        head.headers.add(name=name.decode(), value=value)
    answer = _mapper.answer(head)
    assert (answer.status, answer.headers) == (status, headers)


@pytest.mark.parametrize("status", [0, 101, 199, 600])
def test_an_impossible_status_is_refused(status: int) -> None:
    """Only 200 to 599 is an answer."""
    with pytest.raises(Fault, match="200 to 599"):
        _mapper.answer(keys_pb2.ResponseHead(status=status))


def test_a_header_name_outside_ascii_is_refused() -> None:
    """An answer's header names are ASCII."""
    with pytest.raises(Fault, match="ASCII"):
        _mapper.answer(scripted.head(1, 200, ("ü", b"1")).head)


@given(st.binary(max_size=70_000))
def test_a_body_is_cut_into_messages_without_loss(data: bytes) -> None:
    """Pieces are at most 16 KiB, never empty, and together the body."""
    pieces = list(_mapper.pieces(data))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= 16384 for piece in pieces)


MESSAGES = st.one_of(
    st.just(scripted.started()),
    st.just(scripted.go_away()),
    st.integers(0, 3).map(scripted.head),
    st.integers(0, 3).map(lambda call: scripted.body(call, b"x")),
    st.integers(0, 3).map(scripted.end),
    st.just(keys_pb2.WithKeyResponse()),
)


@given(st.lists(MESSAGES, max_size=12))
def test_only_the_grammar_is_accepted(messages: list[keys_pb2.WithKeyResponse]) -> None:
    """Whatever a server sends, a call's events are head, bodies, end, of this call; anything else
    is a protocol fault.
    """
    talk = Conversation()
    call = talk.begin()
    events = []
    kind = FaultKind.REMOTE_PROTOCOL
    try:
        for message in messages:
            events.append(talk.feed(message))  # noqa: PERF401 - what came before a fault counts
    except Fault as fault:
        kind = fault.kind
    assert kind is FaultKind.REMOTE_PROTOCOL
    about = [event for event in events if not isinstance(event, Nothing)]
    kinds = [type(event) for event in about]
    assert kinds.count(HeadArrived) <= 1
    assert kinds.count(CallEnded) <= 1
    if CallEnded in kinds:
        assert kinds[-1] is CallEnded
        assert about[-1].end.call == call
    if BodyArrived in kinds:
        assert kinds[0] is HeadArrived
