"""The HSM process' protocol: what is written is read back, and nothing else is taken."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_hsm import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    KeyVersion,
    PinRefused,
    SignatureAlgorithm,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import Malformed
from ironwork_hsm.remote.faults import MAX_ERROR_BYTES
from ironwork_hsm.remote.framing import BUFFER_BYTES, FrameBuffer
from ironwork_hsm.remote.wire import Frame, Info, KeyInfo, Kind, SignerInfo

NUMBERS = st.integers(0, 2**32 - 1)
REFERENCES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=64)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
MECHANISMS = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
WRAPPED = st.builds(
    WrappedKey, NAMES, st.integers(1, 2**32 - 1), MECHANISMS, st.binary(min_size=1, max_size=300)
)
VERSIONS = st.builds(
    KeyVersion,
    st.integers(0, 2**32 - 1),
    NAMES,
    *[st.booleans() for _ in range(4)],
    st.just("") | MECHANISMS,
)
CHOSEN = st.none() | st.integers(1, 2**32 - 1)
ERRORS = st.sampled_from(
    [ConfigurationError, PinRefused, KeyMissing, BlobRejected, Unavailable, Busy]
)
KEYS = st.lists(st.builds(KeyInfo, NAMES, NUMBERS, MECHANISMS), min_size=1, max_size=16)
SIGNERS = st.builds(
    SignerInfo,
    NAMES.filter(bool),
    st.sampled_from(SignatureAlgorithm),
    st.binary(min_size=1, max_size=256),
)


def only(data: bytes) -> Frame:
    """The one frame in these bytes."""
    buffer = FrameBuffer()
    buffer.room()[: len(data)] = data
    frames = [
        Frame(frame.kind, frame.number, memoryview(bytes(frame.payload)))
        for frame in buffer.received(len(data))
    ]
    assert len(buffer.room()) == BUFFER_BYTES
    (frame,) = frames
    return frame


@given(NUMBERS, st.binary(min_size=32, max_size=32), st.binary(max_size=500), REFERENCES, CHOSEN)
def test_a_wrap_is_read_as_written(
    number: int, data_key: bytes, context: bytes, reference: str, version: int | None
) -> None:
    """A WRAP frame gives back its number, data key, context, reference and chosen version."""
    frame = only(wire.wrap(number, data_key, context, reference, version))
    parsed = wire.parse_wrap(frame.payload)
    assert (frame.kind, frame.number) == (Kind.WRAP, number)
    assert (bytes(parsed.data_key), parsed.context, parsed.reference, parsed.version) == (
        data_key,
        context,
        reference,
        version,
    )


@given(NUMBERS, REFERENCES, CHOSEN)
def test_a_check_is_read_as_written(number: int, reference: str, version: int | None) -> None:
    """A CHECK frame gives back its number, reference and chosen version."""
    frame = only(wire.check(number, reference, version))
    assert (frame.kind, frame.number) == (Kind.CHECK, number)
    assert wire.parse_check(frame.payload) == wire.Check(reference, version)


@given(st.binary(max_size=8).filter(lambda field: len(field) not in (0, 4)) | st.just(bytes(4)))
def test_a_chosen_version_is_absent_or_a_number_from_1(field: bytes) -> None:
    """A version of another length, and version 0, are refused."""
    for frame, parse in (
        (wire.frame(Kind.CHECK, 1, b"", field), wire.parse_check),
        (wire.frame(Kind.WRAP, 1, b"", field, bytes(32), b""), wire.parse_wrap),
    ):
        with pytest.raises(Malformed):
            parse(only(frame).payload)


@given(st.binary(max_size=20))
def test_another_version_of_the_protocol_is_told_from_garbage(rest: bytes) -> None:
    """A greeting of this protocol in another version is refused by name, so that its sender can be
    told; any other is malformed.
    """
    wire.check_hello(only(wire.hello(1)).payload)
    other = b"ironwork-hsm/" + rest
    if other != wire.GREETING:
        with pytest.raises(ConfigurationError, match="same release"):
            wire.check_hello(only(wire.frame(Kind.HELLO, 1, other)).payload)
    with pytest.raises(Malformed):
        wire.check_hello(only(wire.frame(Kind.HELLO, 1, b"?" + rest)).payload)


@given(NUMBERS, WRAPPED, st.binary(max_size=500), REFERENCES)
def test_an_unwrap_is_read_as_written(
    number: int, wrapped: WrappedKey, context: bytes, reference: str
) -> None:
    """An UNWRAP frame gives back every part, and a WRAPPED answer likewise."""
    parsed = wire.parse_unwrap(only(wire.unwrap(number, wrapped, context, reference)).payload)
    assert (parsed.wrapped, parsed.context, parsed.reference) == (wrapped, context, reference)
    assert wire.parse_wrapped(only(wire.wrapped_answer(number, wrapped)).payload) == wrapped


@given(NUMBERS, st.lists(VERSIONS, max_size=8))
def test_versions_are_read_as_written(number: int, versions: list[KeyVersion]) -> None:
    """A LISTED answer gives back each version with its attributes."""
    assert wire.parse_listed(only(wire.listed_answer(number, versions)).payload) == versions


@given(NUMBERS, KEYS, st.none() | SIGNERS, st.none() | ERRORS, st.text(max_size=100))
def test_an_offer_is_read_as_written(
    number: int,
    keys: list[KeyInfo],
    signer: SignerInfo | None,
    problem: type[HsmError] | None,
    text: str,
) -> None:
    """An INFO answer gives back keys, signer and the typed problem."""
    raised = problem(text) if problem else None
    frame = only(wire.info_answer(number, Info(tuple(keys), signer, raised)))
    parsed = wire.parse_info(frame.payload)
    assert (parsed.keys, parsed.signer) == (tuple(keys), signer)
    assert type(parsed.problem) is (problem or type(None))


@given(NUMBERS, ERRORS, st.text(max_size=2000))
def test_errors_keep_their_type(number: int, kind: type[HsmError], text: str) -> None:
    """A FAILED answer is of exactly the type that was raised, and its text is bounded."""
    parsed = wire.parse_failed(only(wire.failed(number, kind(text))).payload)
    assert type(parsed) is kind
    assert len(str(parsed).encode()) <= MAX_ERROR_BYTES + 2


PARSERS: list[Callable[[memoryview], Any]] = [
    wire.parse_wrap,
    wire.parse_unwrap,
    wire.parse_sign,
    wire.parse_plain,
    wire.parse_check,
    wire.check_hello,
    wire.parse_wrapped,
    wire.parse_opened,
    wire.parse_listed,
    wire.parse_signed,
    wire.parse_report,
    wire.parse_info,
    wire.check_done,
    wire.parse_failed,
]
FIELDS = st.lists(st.binary(max_size=40), max_size=10).map(
    lambda fields: b"".join(len(field).to_bytes(4, "big") + field for field in fields)
)


@given(st.sampled_from(PARSERS), st.binary(max_size=200) | FIELDS)
def test_garbage_is_malformed_and_nothing_else(
    parse: Callable[[memoryview], Any], payload: bytes
) -> None:
    """Whatever a payload holds, a parser returns or raises Malformed."""
    # Another version's greeting is the one thing that is told as what it is.
    with contextlib.suppress(Malformed, ConfigurationError):
        parse(memoryview(payload))


@given(WRAPPED, st.data())
def test_every_truncation_is_malformed(wrapped: WrappedKey, data: st.DataObject) -> None:
    """A payload that is cut anywhere, or has a byte too many, is refused."""
    payload = only(wire.unwrap(1, wrapped, b"context", "reference")).payload
    cut = data.draw(st.integers(0, len(payload) - 1))
    for wrong in (payload[:cut], memoryview(bytes(payload) + b"\0")):
        with pytest.raises(Malformed):
            wire.parse_unwrap(wrong)


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_frames_survive_any_cutting(messages: list[bytes], data: st.DataObject) -> None:
    """However the stream is cut into reads, the same frames come out, and nothing stays behind."""
    stream = b"".join(
        wire.frame(Kind.REPORT, number, message) for number, message in enumerate(messages)
    )
    buffer = FrameBuffer()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer.room()[:size] = stream[:size]
        stream = stream[size:]
        found += [
            (frame.number, wire.parse_report(frame.payload)) for frame in buffer.received(size)
        ]
    assert found == list(enumerate(messages))
    assert len(buffer.room()) == BUFFER_BYTES
    assert not any(buffer.room())


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        (wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\0",
        b"\0\0\0\x04\x01\0\0\0",
        b"\0\0\0\x05\x00\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_wrong_frames_are_malformed(data: bytes) -> None:
    """A frame that is too long, too short or of no kind is refused as soon as its head is there."""
    buffer = FrameBuffer()
    buffer.room()[: len(data)] = data
    with pytest.raises(Malformed):
        list(buffer.received(len(data)))


def test_the_greatest_request_fits() -> None:
    """A request with every part at its bound is within a frame; one byte more is refused here."""
    wrapped = WrappedKey(
        "n" * wire.MAX_NAME_BYTES, 1, "m" * wire.MAX_MECHANISM_BYTES, b"b" * wire.MAX_BLOB_BYTES
    )
    context = bytes(wire.MAX_CONTEXT_BYTES)
    frame = wire.unwrap(1, wrapped, context, "r" * 64)
    assert wire.parse_unwrap(only(frame).payload).context == context
    with pytest.raises(ValueError, match="too long"):
        wire.frame(Kind.REPORT, 1, bytes(wire.MAX_FRAME_BYTES))
