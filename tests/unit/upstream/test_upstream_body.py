"""Bodies out of their framing, however the network cut them."""

from collections.abc import Iterable
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.upstream.body import (
    MAX_CHUNK_LINE,
    ChunkedBody,
    Malformed,
    OpenBody,
    SizedBody,
    body_reader,
)
from ironwork_server.upstream.faults import Truncated


def chunked(parts: Iterable[bytes], *, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    framed = (b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part)
    return b"".join(framed) + b"0" + extension + b"\r\n" + trailer + b"\r\n"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(marks)]


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.sampled_from([b"", b";a=b", b' ; a="b;c"', b";\xff"]),
    st.sampled_from([b"", b"x-sum: 1\r\n", b"a:\r\nb: \xff\r\n"]),
    st.lists(st.integers(0, 2000), max_size=30),
)
def test_any_split_gives_the_same_body(
    parts: list[bytes], extension: bytes, trailer: bytes, places: list[int]
) -> None:
    """Chunks come out as they went in, with extensions and trailers passed over, and a read of the
    socket is one piece at most."""
    reader = ChunkedBody()
    data = chunked(parts, extension=extension, trailer=trailer)
    out = b""
    for piece in cut(data, places):
        assert not reader.complete
        out += reader.feed(piece)
    assert (out, reader.complete, reader.surplus) == (b"".join(parts), True, False)


@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=10))
def test_no_bytes_break_the_reader_in_another_way(data: bytes, places: list[int]) -> None:
    """Whatever comes is a body, not enough yet, or Malformed; and what h11 refuses is refused."""
    reader = ChunkedBody()
    strict = h11.Connection(h11.CLIENT)
    strict.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    strict.send(h11.EndOfMessage())
    strict.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    try:
        for piece in cut(data, places):
            if not reader.complete and not reader.broken:
                reader.feed(piece)
    except Malformed:
        return
    if reader.complete:
        while strict.next_event() is not h11.NEED_DATA and strict.their_state is not h11.DONE:
            pass
        assert strict.their_state is h11.DONE


def read(reader: ChunkedBody, pieces: Iterable[bytes]) -> None:
    """Feed them all, as the exchange does."""
    for piece in pieces:
        if reader.broken:
            raise Malformed
        reader.feed(piece)
    if reader.broken:
        raise Malformed


@pytest.mark.parametrize(
    "data",
    [
        *(b"0x2\r\nok\r\n", b"+2\r\nok\r\n", b"-2\r\n", b" 2\r\nok\r\n", b"\r\n", b"2 x\r\n"),
        *(
            b"2\nok\n",
            b"2\rok\r\n",
            b"2\r\nokX\r\n",
            b"2\r\nok\n0\r\n",
            b"g\r\n",
            b"2;\x00\r\nok\r\n",
        ),
        *(b"12345678901234567\r\n", b"2;" + b"x" * MAX_CHUNK_LINE + b"\r\n", b"1" * 2000),
        *(b"0\r\nno colon\r\n\r\n", b"0\r\n: no name\r\n\r\n", b"0\r\n folded: x\r\n\r\n"),
        *(b"0\r\n" + b"a: b\r\n" * 20_000, b"0\r\n" + b"a: " + b"x" * 70_000, b"0\r\na: \x00\r\n"),
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    """Sizes, line ends, extensions and trailers are as RFC 9112 section 7.1 has them, and bounded;
    also byte by byte."""
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        reader = ChunkedBody()
        with pytest.raises(Malformed):
            read(reader, pieces)


def test_the_good_comes_before_the_fault() -> None:
    """Bytes before a fault are given, and the fault stands."""
    reader = ChunkedBody()
    assert reader.feed(b"4\r\ngood\r\nnot a size\r\n") == b"good"
    assert (reader.broken, reader.complete) == (True, False)


@pytest.mark.parametrize("data", [b"", b"2", b"2\r\no", b"2\r\nok\r\n", b"0\r\n", b"0\r\na: b\r\n"])
def test_an_end_before_the_end_is_a_cut(data: bytes) -> None:
    """An announced end of the connection ends no body that has an end of its own."""
    reader = ChunkedBody()
    if data:
        reader.feed(data)
    with pytest.raises(Truncated):
        reader.feed(b"")
    with pytest.raises(Truncated):
        SizedBody(1).feed(b"")


def test_bytes_behind_the_end_are_seen() -> None:
    """They belong to nobody: the connection is not used again."""
    for reader in (ChunkedBody(), SizedBody(2)):
        data = b"2\r\nok\r\n0\r\n\r\n" if isinstance(reader, ChunkedBody) else b"ok"
        assert reader.feed(data + b"HTTP/1.1") == b"ok"
        assert (reader.complete, reader.surplus) == (True, True)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    """Its end is the announced end, and only that."""
    reader = OpenBody()
    assert (reader.feed(b"to "), reader.complete) == (b"to ", False)
    assert (reader.feed(b""), reader.complete) == (b"", True)


@pytest.mark.parametrize(
    ("method", "status", "headers", "kind"),
    [
        ("GET", 200, [("Content-Length", "2")], SizedBody),
        ("GET", 200, [("Transfer-Encoding", "chunked")], ChunkedBody),
        ("GET", 200, [("Content-Length", "2"), ("Transfer-Encoding", "Chunked")], ChunkedBody),
        ("GET", 200, [], OpenBody),
        ("HEAD", 200, [("Content-Length", "2")], SizedBody),
        ("GET", 204, [("Transfer-Encoding", "chunked")], SizedBody),
    ],
)
def test_the_head_says_how_the_body_ends(
    method: str, status: int, headers: list[tuple[str, str]], kind: type
) -> None:
    """RFC 9112 section 6.3, in its order."""
    reader = body_reader(method, h11.Response(status_code=status, headers=headers))
    assert isinstance(reader, kind)
    assert reader.complete == (method == "HEAD" or status == 204)
