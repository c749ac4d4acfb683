"""The echoed key, as a search in bytes: core.echo."""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ironwork_server.core import echo
from ironwork_server.core.api_key import PREFIX
from ironwork_server.core.decoding import UndecodableError
from ironwork_server.core.echo import Candidate, EchoScanner, echo_filter

KEY = b"sk-ant-api03-" + b"k3Y_-" * 4 + b"AAzz"
# Another key of the same length and end: only the fingerprint tells them apart.
TWIN = b"sk-ant-api03-" + b"tWin9" * 4 + b"AAzz"
LENGTH = len(KEY)


def scanner(key: bytes = KEY) -> EchoScanner:
    return EchoScanner(length=len(key), last_four=key[-4:])


@dataclass
class Run:
    """What came of a body: what was delivered, whether it was cut, and the candidates judged."""

    out: list[bytes] = field(default_factory=list)
    cut: bool = False
    judged: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.out)


def run(chunks: Iterable[bytes], coding: bytes = b"", key: bytes = KEY) -> Run:
    """Filter a body as the relay does: stop at the key, dismiss every other candidate."""
    result = Run()
    body = echo_filter(coding, scanner(key))
    for chunk in chunks:
        for found in body.feed(chunk):
            if not isinstance(found, Candidate):
                result.out.append(found)
                continue
            result.judged.append(bytes(found.value))
            if found.value == key:
                result.cut = True
                return result
    result.out.extend(body.finish())
    return result


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    marks = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:end] for start, end in pairwise(marks)]


def every_split(body: bytes) -> list[list[bytes]]:
    """Whole, into single bytes, and in two at every place."""
    halves = [[body[:at], body[at:]] for at in range(1, len(body))]
    return [[body], [body[at : at + 1] for at in range(len(body))], *halves]


def may_continue(held: bytes, key: bytes = KEY) -> bool:
    """Whether more bytes could make a candidate of these: the rule, written out."""
    if len(held) >= len(key):
        return False
    if not (held.startswith(PREFIX) or PREFIX.startswith(held)):
        return False
    return all(0x21 <= byte <= 0x7E for byte in held) and key[-4:].startswith(held[len(key) - 4 :])


def is_candidate(value: bytes, key: bytes = KEY) -> bool:
    return (
        len(value) == len(key)
        and value.startswith(PREFIX)
        and value.endswith(key[-4:])
        and all(0x21 <= byte <= 0x7E for byte in value)
    )


# Text in which the interesting things are near: prefixes begun and broken, the key, its twin.
PARTS = st.sampled_from(
    (
        KEY,
        TWIN,
        PREFIX,
        KEY[:-1],
        KEY[:13],
        KEY[13:],
        KEY[-4:],
        b"k" * 30,
        b"A" * 7,
        b"data: {",
        b"s",
        b"sk-",
        b"sk-ant-ap",
        b" ",
        b"\n",
        b'"',
        b"\x00",
        b"\xff",
    )
)
TEXT = st.lists(st.one_of(PARTS, st.binary(max_size=12)), max_size=14).map(b"".join)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)
# A short alphabet of the key's own bytes reaches states that words do not.
DENSE = st.lists(st.sampled_from([PREFIX, b"s", b"a", b"zz", b"AAzz", b" "]), max_size=40)
OVERLAPPING = PREFIX * 3
"""A key in which the prefix stands again, and whose last four are a part of it."""


@given(st.one_of(TEXT, DENSE.map(b"".join)), PLACES)
@example(KEY, [])
@example(b"x" + KEY[:20] + KEY, [5, 30])
@example(TWIN + KEY, [])
def test_what_comes_out_is_what_went_in_up_to_a_key(body: bytes, places: list[int]) -> None:
    """For any content and any split: without the key all comes out, unchanged; with it, exactly
    what stands before it.
    """
    result = run(cut(body, places))
    before, key, _ = body.partition(KEY)
    assert result.cut == bool(key)
    assert result.body == before


@given(st.one_of(TEXT, DENSE.map(b"".join)), PLACES)
def test_only_a_possible_continuation_is_held(body: bytes, places: list[int]) -> None:
    """At every moment what is held back is the longest end that more bytes could make a candidate:
    nothing else, and never a whole key's length.
    """
    searching = scanner()
    passed = seen = b""
    for chunk in cut(body, places):
        seen += chunk
        passed += searching.feed(chunk)
        while searching.candidate is not None:
            assert is_candidate(bytes(searching.candidate))
            passed += searching.dismiss()
        ends = (seen[at:] for at in range(max(0, len(seen) - LENGTH), len(seen)))
        longest = next((end for end in ends if may_continue(end)), b"")
        assert seen == passed + longest
        assert searching.held == len(longest)
    assert passed + searching.finish() == body


@given(st.one_of(TEXT, DENSE.map(b"".join)), PLACES)
def test_every_candidate_is_judged_once(body: bytes, places: list[int]) -> None:
    """Each place where a candidate stands is judged, overlapping ones too, and no other."""
    searching = scanner()
    judged = []
    for chunk in cut(body, places):
        searching.feed(chunk)
        while searching.candidate is not None:
            judged.append(bytes(searching.candidate))
            searching.dismiss()
    windows = (body[at : at + LENGTH] for at in range(len(body)))
    assert judged == [window for window in windows if is_candidate(window)]


@pytest.mark.parametrize("around", [b"", b'{"text":"', b"sk-ant-apisk-ant-api", b"\xff"])
def test_an_echo_is_found_however_it_is_split(around: bytes) -> None:
    """In one piece, byte by byte, in two at every place: nothing of the key comes out."""
    for chunks in every_split(around + KEY + around):
        result = run(chunks)
        assert result.cut
        assert result.body == around


def test_a_key_within_its_own_kind_is_found() -> None:
    """A candidate that is not the key hides none that begins inside it."""
    key = OVERLAPPING
    other = PREFIX + b"sk-ant-apX" + PREFIX
    for chunks in every_split(other + PREFIX * 2):
        result = run(chunks, key=key)
        assert result.judged == [other, key]
        assert result.body == other[:20]


def test_of_the_same_kind_but_another_key() -> None:
    """A key with the same length and end is a candidate, and passes once it is dismissed."""
    result = run([TWIN, b" and ", TWIN[:20], TWIN[20:]])
    assert result.body == TWIN + b" and " + TWIN
    assert result.judged == [TWIN, TWIN]


def test_a_shorter_or_longer_one_costs_nothing() -> None:
    """What has another length, end or alphabet is no candidate, so that no HSM is asked."""
    for near in (KEY[:-5] + KEY[-4:], KEY[:-4] + b"AAzy", KEY[:20] + b" " + KEY[21:], KEY.upper()):
        assert run([near]).judged == []


def test_every_visible_character_may_stand_in_a_key() -> None:
    """A key may hold all of ASCII from `!` to `~`; a blank or DEL ends the search at once."""
    key = PREFIX + b"!" + bytes(range(0x22, 0x7F)) + b"AAzz"
    for chunks in every_split(key):
        assert run(chunks, key=key).cut
    for other in (b" ", b"\x7f", b"\x80"):
        searching = scanner(key)
        assert searching.feed(key[:30] + other) == key[:30] + other


def test_an_echo_with_more_behind_it_is_found() -> None:
    """The key followed by more visible characters is the key all the same."""
    assert run([KEY + b"AAzz" + KEY]).cut


def test_what_holds_no_beginning_passes_as_it_is() -> None:
    """A piece in which nothing begins is handed on itself, not copied."""
    searching = scanner()
    piece = b"data: nothing to see\n\n"
    assert searching.feed(piece) is piece
    assert searching.held == 0


def test_an_unfinished_beginning_comes_out_at_the_end() -> None:
    """An answer that ends within a candidate holds no whole key, and comes out whole."""
    assert run([b"see ", KEY[:-1]]).body == b"see " + KEY[:-1]
    assert run([b"a bus"]).body == b"a bus"


def test_a_candidate_is_to_be_judged_first() -> None:
    """Feeding past a candidate, and dismissing none, are mistakes."""
    searching = scanner()
    with pytest.raises(ValueError, match="no candidate"):
        searching.dismiss()
    searching.feed(KEY)
    with pytest.raises(ValueError, match="not judged"):
        searching.feed(b"more")


@pytest.mark.parametrize(("length", "last_four"), [(19, b"AAzz"), (40, b"AAz"), (40, b"")])
def test_what_no_key_has_is_refused(length: int, last_four: bytes) -> None:
    """A scanner for a length or an end that no key has is never made: it would find nothing."""
    with pytest.raises(ValueError, match="no key"):
        EchoScanner(length=length, last_four=last_four)


def test_a_candidate_does_not_show_itself() -> None:
    """A candidate's repr does not hold it."""
    assert "sk-ant" not in repr(Candidate(memoryview(KEY)))


# --- broken off --------------------------------------------------------------------------------


def broken_off(chunks: Iterable[bytes], coding: bytes = b"") -> bytes:
    """What is delivered of a body that breaks off behind these chunks."""
    body = echo_filter(coding, scanner())
    out = [found for chunk in chunks for found in body.feed(chunk)]
    out += body.abandon()
    return b"".join(piece for piece in out if isinstance(piece, bytes))


def test_a_break_within_the_constant_prefix_loses_nothing() -> None:
    """The prefix is no secret: what came of it before a cut is delivered."""
    assert broken_off([b"a bus"]) == b"a bus"
    assert broken_off([b"see " + PREFIX]) == b"see " + PREFIX


def test_a_break_within_a_key_delivers_nothing_of_it() -> None:
    """A cut in the middle of what may be the key gives away no part of its secret."""
    assert broken_off([b"see " + KEY[:-1]]) == b"see "
    assert broken_off([b"see ", KEY[: len(PREFIX) + 1]]) == b"see "


# --- compressed --------------------------------------------------------------------------------


def compressed(wbits: int, *, flush: bool) -> Callable[[bytes], bytes]:
    """A coder; with flush it makes each few bytes decodable at once, as servers do for events."""

    def code(body: bytes) -> bytes:
        coder = zlib.compressobj(wbits=wbits)
        mode = zlib.Z_SYNC_FLUSH if flush else zlib.Z_NO_FLUSH
        pieces = (body[at : at + 7] for at in range(0, len(body), 7))
        return b"".join(coder.compress(piece) + coder.flush(mode) for piece in pieces) + (
            coder.flush()
        )

    return code


CODERS = [
    (b"gzip", compressed(31, flush=False)),
    (b"GZIP", compressed(31, flush=True)),
    (b"deflate", compressed(15, flush=True)),
    (b"deflate", compressed(-15, flush=True)),
]


def decoded(coding: bytes, coded: bytes, wbits: int) -> bytes:
    """What a client can read of an answer that was cut."""
    return zlib.decompressobj(wbits).decompress(coded) if coded else b""


@given(TEXT, PLACES, st.sampled_from(CODERS))
def test_compressed_bytes_pass_untouched(
    body: bytes, places: list[int], coder: tuple[bytes, Callable[[bytes], bytes]]
) -> None:
    """Without the key every compressed chunk comes out, itself and in order."""
    coding, code = coder
    body = body.replace(KEY, b"")
    while KEY in body:
        body = body.replace(KEY, b"")
    chunks = cut(code(body), places)
    result = run(chunks, coding)
    assert not result.cut
    assert [piece for piece in result.out if piece] == [chunk for chunk in chunks if chunk]


@given(TEXT, TEXT, PLACES, st.sampled_from(CODERS))
def test_of_a_compressed_key_nothing_can_be_decoded(
    before: bytes, after: bytes, places: list[int], coder: tuple[bytes, Callable[[bytes], bytes]]
) -> None:
    """For any split of any coding: what was delivered decodes to a beginning of what stands before
    the key, with none of the key's bytes.
    """
    coding, code = coder
    coded = code(before + KEY + after)
    result = run(cut(coded, places), coding)
    assert result.cut
    wbits = {b"gzip": 31, b"GZIP": 31}.get(coding, 15 if coded[0] == 0x78 else -15)
    whole, _, _ = (before + KEY).partition(KEY)
    assert whole.startswith(decoded(coding, result.body, wbits))


def test_compressed_chunks_wait_only_for_what_they_hold() -> None:
    """Of several chunks those pass whose decoded bytes are certain; later ones wait in turn."""
    coder = zlib.compressobj(wbits=31)

    def chunk(text: bytes) -> bytes:
        return coder.compress(text) + coder.flush(zlib.Z_SYNC_FLUSH)

    body = echo_filter(b"gzip", scanner())
    texts = [b"first ", b"a bus", b"k-ant-", b"no ", b"and bus", b" end"]
    chunks = [chunk(text) for text in texts]
    out = [[found for found in body.feed(one) if found] for one in chunks]
    assert out == [[chunks[0]], [], [], chunks[1:4], [], chunks[4:]]


def test_a_compressed_answer_that_breaks_off() -> None:
    """Chunks held for the prefix alone are delivered at a cut; with a key's secret in them, not."""
    for text, delivered in ((b"a bus", True), (KEY[:-1], False)):
        coder = zlib.compressobj(wbits=31)
        coded = coder.compress(text) + coder.flush(zlib.Z_SYNC_FLUSH)
        assert broken_off([coded], b"gzip") == (coded if delivered else b"")


def test_what_is_held_compressed_is_bounded() -> None:
    """Compressed bytes that never decode to anything, behind a beginning, are given up."""
    coder = zlib.compressobj(wbits=-15)
    start = coder.compress(b"bus") + coder.flush(zlib.Z_SYNC_FLUSH)
    body = echo_filter(b"deflate", scanner())
    assert [found for found in body.feed(start) if found] == []
    empty_blocks = b"\x00\x00\x00\xff\xff" * 3000
    for _ in range(4):
        assert list(body.feed(empty_blocks)) == []
    with pytest.raises(UndecodableError):
        list(body.feed(empty_blocks))


@pytest.mark.parametrize(
    "coding", [b"br", b"zstd", b"gzip, gzip", b"gzip,", b"x-gzip", b"compress"]
)
def test_a_coding_that_cannot_be_read_is_refused(coding: bytes) -> None:
    """Only identity, gzip and deflate, once, can be looked into."""
    with pytest.raises(UndecodableError):
        echo_filter(coding, scanner())


def test_what_is_not_its_coding_is_refused() -> None:
    """A body that does not decode is not passed uninspected, nor is one behind the coding's end."""
    for bad in (b"plain text", gzip.compress(b"x") + gzip.compress(KEY)):
        with pytest.raises(UndecodableError):
            list(echo_filter(b"gzip", scanner()).feed(bad))


def test_a_bomb_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded bytes are bounded, and looked through a piece at a time with places to pause."""
    monkeypatch.setattr(echo, "MAX_DECODED_BYTES", 1_000_000)
    pieces = list(echo_filter(b"gzip", scanner()).feed(gzip.compress(bytes(900_000))))
    assert pieces.count(b"") == -(-900_000 // 65_536)
    with pytest.raises(UndecodableError):
        list(echo_filter(b"gzip", scanner()).feed(gzip.compress(bytes(1_100_000))))


def test_the_prefix_begins_with_a_letter_that_does_not_come_again() -> None:
    """At most one beginning of the prefix ends a text: the search for it leans on that."""
    ends = [size for size in range(1, len(PREFIX)) if PREFIX.endswith(PREFIX[:size])]
    assert ends == []
    assert re.fullmatch(rb"[!-~]+", PREFIX)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"gzip", b"deflate"]),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_an_onlooker_sees_each_decoded_byte_once(
    body: bytes, coding: bytes, places: list[int]
) -> None:
    """Whoever looks on sees the body without its coding, in order, however it was cut, and every
    byte before what it was decoded from passes."""
    coded = {b"": bytes, b"gzip": gzip.compress, b"deflate": zlib.compress}[coding](body)
    seen: list[bytes] = []
    passing = echo_filter(coding, scanner(), seen.append)
    for chunk in cut(coded, places):
        for _ in passing.feed(chunk):
            pass
    assert b"".join(seen) == body


def test_an_onlooker_sees_before_anything_passes() -> None:
    """What is counted was not delivered first: a cut answer's tokens are known."""
    seen: list[bytes] = []
    first = next(iter(echo_filter(b"", scanner(), seen.append).feed(b"data " + KEY)))
    assert (first, seen) == (b"data ", [b"data " + KEY])
