"""Headers to Anthropic and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.tricks import (
    MALFORMED_NAMES,
    MALFORMED_VALUES,
    PASSING_HEADERS,
    REFUSED_HEADERS,
    TOO_LARGE_HEADERS,
)
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.headers import (
    narrow_accept_encoding,
    request_headers,
    response_headers,
)

SECRET = "sk-ant-api03-in-the-wrong-place"


def refusal(*headers: tuple[str, bytes]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        request_headers(headers)
    assert SECRET not in f"{caught.value!r}{caught.value}{caught.value.metadata}"
    return caught.value


@pytest.mark.parametrize(("name", "shown"), REFUSED_HEADERS.items())
def test_refused_by_name(name: str, shown: str) -> None:
    """Credentials, framing, hop-by-hop, intermediaries' and overriding headers are refused in
    every spelling, with or without a value, and the refusal names the header.
    """
    for value in (SECRET.encode(), b""):
        error = refusal(("accept", b"*/*"), (name, value))
        assert error.reason == "HEADER_REFUSED"
        assert error.metadata == {"field": "headers", "header": shown}


@pytest.mark.parametrize("name", MALFORMED_NAMES)
def test_names_are_tokens(name: str) -> None:
    """A name that is no token of RFC 9110, pseudo-headers among them, is refused by position."""
    error = refusal(("accept", b"*/*"), (name, b"x"))
    assert error.reason == "HEADER_MALFORMED"
    assert error.metadata == {"field": "headers[1].name"}


@pytest.mark.parametrize(("value", "said"), MALFORMED_VALUES)
def test_values_are_one_line(value: bytes, said: str) -> None:
    """A value holds no line break, no control character but a tab, and no blank around it."""
    error = refusal(("x-note", value))
    assert error.reason == "HEADER_MALFORMED"
    assert error.metadata == {"field": "headers[0].value"}
    assert said in str(error)


@pytest.mark.parametrize(("name", "value"), PASSING_HEADERS)
def test_everything_else_passes(name: str, value: bytes) -> None:
    """Other headers pass with their spelling, bytes, order and duplicates."""
    given_headers = [(name, value), ("accept", b"*/*"), (name, value)]
    assert request_headers(given_headers) == tuple(
        (given_name.encode(), given_value) for given_name, given_value in given_headers
    )


@pytest.mark.parametrize("headers", TOO_LARGE_HEADERS)
def test_headers_are_bounded(headers: list[tuple[str, bytes]]) -> None:
    """At most 200 headers, 32 KiB a value, 64 KiB in all."""
    error = refusal(*headers)
    assert error.reason == "HEADERS_TOO_LARGE"
    assert error.metadata == {"field": "headers"}


def test_headers_may_reach_the_bounds() -> None:
    """200 headers and 64 KiB pass."""
    assert len(request_headers([("a", b"")] * 200)) == 200
    assert len(request_headers([("a", b"x" * 32_767)] * 2)) == 2
    assert len(request_headers([("a", b"x" * 32 * 1024)])) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"gzip, deflate",
        b"gzip",
        b"identity",
        b"",
        b"GZIP ;Q=0.5,deflate;q=1.000,identity;q=0",
        b"gzip,,deflate",
    ],
)
def test_readable_codings_pass_untouched(value: bytes) -> None:
    """Where only identity, gzip and deflate are accepted, the header is not touched."""
    assert request_headers([("Accept-Encoding", value)]) == ((b"Accept-Encoding", value),)


@pytest.mark.parametrize(
    ("value", "narrowed"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate"),
        (b"br;q=1.0, gzip;q=0.8, *;q=0.1", b"gzip;q=0.8"),
        (b"zstd, deflate ; q=0.5,gzip", b"deflate ; q=0.5, gzip"),
        (b"br", b"identity"),
        (b"*", b"identity"),
        (b"*;q=0", b"identity"),
        (b"x-gzip, compress", b"identity"),
        (b"gzip;q=2, br", b"identity"),
        (b"gzip;q=0.5;x=y", b"identity"),
        (b"gzip br", b"identity"),
        (b"br\xff, gzip", b"gzip"),
    ],
)
def test_other_codings_are_left_out(value: bytes, narrowed: bytes) -> None:
    """What the relay could not look into is taken off the list; order and weights stay."""
    assert request_headers([("accept-encoding", value)]) == ((b"accept-encoding", narrowed),)


@given(st.binary(max_size=60))
def test_narrowing_is_final(value: bytes) -> None:
    """Whatever comes, only readable codings remain, and narrowing again changes nothing."""
    narrowed = narrow_accept_encoding(value)
    assert narrow_accept_encoding(narrowed) == narrowed
    names = {member.partition(b";")[0].strip().lower() for member in narrowed.split(b",")}
    assert names <= {b"gzip", b"deflate", b"identity", b""}


def test_an_answer_passes_back_as_it_came() -> None:
    """Status-bearing headers, duplicates, order and spelling pass back."""
    headers = [
        (b"Content-Type", b"text/event-stream"),
        (b"request-id", b"req_1"),
        (b"anthropic-ratelimit-tokens-remaining", b"5"),
        (b"Retry-After", b"3"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"content-length", b"17"),
        (b"content-encoding", b"gzip"),
        (b"x-raw", b"\xe9"),
    ]
    assert response_headers(headers) == [(name.decode(), value) for name, value in headers]


def test_the_connections_own_headers_do_not_pass_back() -> None:
    """Hop-by-hop headers, also those that Connection names, cookies and no-names stay here."""
    kept = response_headers(
        [
            (b"Connection", b"close, X-Hop ,x-other"),
            (b"connection", b"x-third"),
            (b"Keep-Alive", b"timeout=5"),
            (b"x-hop", b"1"),
            (b"X-Other", b"1"),
            (b"x-third", b"1"),
            (b"Set-Cookie", b"a=b"),
            (b"set-cookie2", b"a=b"),
            (b"proxy-authenticate", b"x"),
            (b"Trailer", b"x"),
            (b"upgrade", b"h2c"),
            (b"te", b"trailers"),
            (b"", b"x"),
            (b"bad name", b"x"),
            (b"caf\xe9", b"x"),
            (b"x-kept", b"1"),
        ]
    )
    assert kept == [("x-kept", b"1")]


def test_a_length_beside_chunks_does_not_pass_back() -> None:
    """Transfer-Encoding overrides Content-Length, which then means nothing (RFC 9112, 6.3)."""
    for headers in (
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
    ):
        assert response_headers(headers) == []
