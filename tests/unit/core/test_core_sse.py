"""The event reader against a plain reading of the specification."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core.sse import EventReader, EventTooLargeError

WANTED = (b"start", b"delta")


def read(chunks: list[bytes], max_event: int = 1000) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    reader = EventReader(
        WANTED,
        lambda event, data: found.append((event, data)),
        max_event=max_event,
        max_lines=1000,
    )
    for chunk in chunks:
        reader.feed(chunk)
    return found


def read_plainly(body: bytes) -> list[tuple[bytes, bytes]]:
    """Section 9.2.6, line by line, all at once; data counts from the first wanted type on."""
    found, event, data, counts = [], b"", [], False
    for line in re.split(rb"\r\n|\n|\r", body)[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if event in WANTED and data:
                found.append((event, b"\n".join(data)))
            event, data, counts = b"", [], False
        elif line in {b"event:" + blank + name for blank in (b"", b" ") for name in WANTED}:
            event, counts = value, True
        elif field == b"event":
            event = value
        elif field == b"data" and counts:
            data.append(value)
    return found


pieces = st.sampled_from(
    [
        *(
            b"event: start",
            b"event:delta",
            b"event: ping",
            b"event:  delta",
            b"event",
            b"xevent: start",
        ),
        *(b"event: delta\n", b"event: start\r", b"event: starts", b" event: delta", b"event: "),
        *(b"data: one", b"data:two", b"data", b"data: event: delta", b"dataset: x", b":", b"id: 1"),
        *(
            b"\n",
            b"\n",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\r\r",
            b"\r\n\r\n",
            b"\xef\xbb\xbf",
            b"e",
        ),
        b"a long line that is no field of any event that there is",
    ]
)


@given(st.lists(pieces, max_size=30).map(b"".join), st.lists(st.integers(0, 400), max_size=10))
def test_reads_as_specified(body: bytes, places: list[int]) -> None:
    """Any lines, cut anywhere, give the events that a plain reading gives."""
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    assert read([body[start:end] for start, end in pairwise(marks)]) == read_plainly(body)


@given(st.lists(pieces, max_size=30).map(b"".join))
def test_reads_byte_by_byte(body: bytes) -> None:
    """The finest cut is no different."""
    assert read([bytes([byte]) for byte in body]) == read_plainly(body)


def test_an_event_may_reach_its_bound() -> None:
    """Data of a wanted event is taken up to the bound, its line ends counted, and no further."""
    fits = b"event: start\ndata:" + b"x" * 10 + b"\ndata:" + b"y" * 18 + b"\n\n"
    assert read([fits], max_event=30) == [(b"start", b"x" * 10 + b"\n" + b"y" * 18)]
    for body in (fits, fits.replace(b"data:xx", b"data:" + b"x" * 40)):
        with pytest.raises(EventTooLargeError):
            read([body], max_event=29)


def test_a_type_too_long_to_be_wanted() -> None:
    """An event whose type turns out too long to hold is none that is wanted."""
    body = b"event: start\nevent: " + b"x" * 100 + b"\ndata: 1\n\nevent: delta\ndata: 2\n\n"
    assert read([body], max_event=50) == [(b"delta", b"2")]


def test_a_long_line_stays_one_line() -> None:
    """A piece that begins in the middle of a long line does not begin a line."""
    line, body = b"data: " + b"x" * 100, b"event: start\ndata: 1\n\n"
    assert read([line, body]) == []
    assert read([line, line, b"\n", body]) == [(b"start", b"1")]


def test_only_wanted_types_cost_lines() -> None:
    """Types that merely begin like a wanted one do not use up the bound on lines."""
    body = b"event: starts\ndata: 1\n\n" * 1000 + b"event: start\ndata: 2\n\n"
    assert read([body]) == [(b"start", b"2")]
