"""The HSM process' protocol: frames and messages as bytes (ADR 0019). Pure; no socket here.

A frame is a length (4 bytes, of what follows), a kind (1), a number (4) and fields, each its length
(4 bytes) and its bytes. All integers are big endian. Every field has a bound and every kind a fixed
number of fields: a frame either is exactly one message or is refused (Malformed), and whoever sent
it is cut off. A client numbers its requests, and the answer to each carries the same number;
answers come in any order.

Both ends are of one release. What stays the same in every version of the protocol is the frame, the
HELLO with its one field, and FAILED, so that each can tell the other that it speaks another one.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from ironwork_hsm.interface import (
    MAX_MESSAGE_BYTES,
    ConfigurationError,
    HsmError,
    KeyVersion,
    SignatureAlgorithm,
    WrappedKey,
)
from ironwork_hsm.remote.codec import (
    LENGTH,
    NUMBER,
    Buffer,
    Malformed,
    read_fields,
    read_integer,
    read_many,
    read_text,
)
from ironwork_hsm.remote.faults import MAX_ERROR_BYTES, error_fields, read_error

_PROTOCOL: Final = b"ironwork-hsm/"
GREETING: Final = _PROTOCOL + b"2"
DATA_KEY_BYTES: Final = 32
MAX_CONTEXT_BYTES: Final = 65536
MAX_BLOB_BYTES: Final = 8192
MAX_NAME_BYTES: Final = 2048
MAX_MECHANISM_BYTES: Final = 64
MAX_REFERENCE_BYTES: Final = 64
MAX_VERSION: Final = 2**32 - 1
MAX_KEYS: Final = 16
MAX_VERSIONS: Final = 200
_LISTED_FIELDS: Final = 4
MAX_STATUS_BYTES: Final = 32768
MAX_SIGNATURE_BYTES: Final = 256
MAX_PUBLIC_KEY_BYTES: Final = 256
# Of a frame, its length field not counted; the greatest message (an unwrap) fits.
MAX_FRAME_BYTES: Final = 81920

_HEAD: Final = struct.Struct(">IBI")
HEAD_BYTES: Final = 5  # kind and number


class Kind(IntEnum):
    """What a frame is. Below 128 requests, from there answers."""

    HELLO = 1
    WRAP = 2
    UNWRAP = 3
    VERSIONS = 4
    CHECK = 5
    SIGN = 6
    STATUS = 7
    INFO = 128
    WRAPPED = 129
    OPENED = 130
    LISTED = 131
    DONE = 132
    SIGNED = 133
    REPORT = 134
    FAILED = 135


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose fields nobody has read yet."""

    kind: Kind
    number: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Wrap:
    """A request to wrap 32 bytes. version: None for the device's newest."""

    reference: str
    data_key: memoryview = field(repr=False)
    context: bytes
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A request for a round trip. version: None for the device's newest."""

    reference: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Unwrap:
    """A request to unwrap."""

    reference: str
    wrapped: WrappedKey
    context: bytes


@dataclass(frozen=True, slots=True)
class Sign:
    """A request to sign."""

    reference: str
    message: bytes


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A master key that the process unwraps with. version 0: there is no key in its device yet;
    name and mechanism are empty while the device has never answered.
    """

    name: str
    version: int
    mechanism: str


@dataclass(frozen=True, slots=True)
class SignerInfo:
    """The process' signing key."""

    name: str
    algorithm: SignatureAlgorithm
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Info:
    """What the process offers: the first key wraps. problem: why the first is not usable now."""

    keys: tuple[KeyInfo, ...]
    signer: SignerInfo | None
    problem: HsmError | None


def frame(kind: Kind, number: int, *fields: Buffer) -> bytes:
    """The bytes of a frame. ValueError where it would be longer than a peer takes."""
    parts: list[Buffer] = []
    length = HEAD_BYTES
    for value in fields:
        parts.append(LENGTH.pack(len(value)))
        parts.append(value)
        length += LENGTH.size + len(value)
    if length > MAX_FRAME_BYTES:
        raise ValueError("a frame of the HSM process' protocol would be too long")
    return b"".join((_HEAD.pack(length, kind, number), *parts))


def renumbered(frame: Frame, number: int) -> bytes:
    """The same frame under another number, its fields as they are."""
    head = _HEAD.pack(HEAD_BYTES + len(frame.payload), frame.kind, number)
    return b"".join((head, frame.payload))


def parse_body(body: memoryview) -> Frame:
    """A frame without its length field. Raises Malformed."""
    if len(body) < HEAD_BYTES:
        raise Malformed("a frame is too short")
    try:
        kind = Kind(body[0])
    except ValueError:
        raise Malformed("a frame's kind is unknown") from None
    (number,) = NUMBER.unpack_from(body, 1)
    return Frame(kind, number, body[HEAD_BYTES:])


def wrap(
    number: int, data_key: Buffer, context: bytes, reference: str, version: int | None = None
) -> bytes:
    """A WRAP frame."""
    return frame(
        Kind.WRAP, number, reference.encode("ascii"), _chosen_field(version), data_key, context
    )


def parse_wrap(payload: memoryview) -> Wrap:
    """Raises Malformed."""
    reference, version, data_key, context = read_fields(
        payload, MAX_REFERENCE_BYTES, NUMBER.size, DATA_KEY_BYTES, MAX_CONTEXT_BYTES
    )
    if len(data_key) != DATA_KEY_BYTES:
        raise Malformed("a data key has another length")
    return Wrap(_reference(reference), data_key, bytes(context), _chosen(version))


def check(number: int, reference: str = "", version: int | None = None) -> bytes:
    """A CHECK frame."""
    return frame(Kind.CHECK, number, reference.encode("ascii"), _chosen_field(version))


def parse_check(payload: memoryview) -> Check:
    """Raises Malformed."""
    reference, version = read_fields(payload, MAX_REFERENCE_BYTES, NUMBER.size)
    return Check(_reference(reference), _chosen(version))


def unwrap(number: int, wrapped: WrappedKey, context: bytes, reference: str) -> bytes:
    """An UNWRAP frame; its parts are within bounds (see `fits`)."""
    return frame(
        Kind.UNWRAP,
        number,
        reference.encode("ascii"),
        *_wrapped_fields(wrapped),
        context,
    )


def fits(wrapped: WrappedKey) -> bool:
    """Whether a wrapped key can be asked for at all: no backend makes one that cannot."""
    return (
        1 <= wrapped.key_version <= MAX_VERSION
        and wrapped.mechanism.isascii()
        and 1 <= len(wrapped.mechanism) <= MAX_MECHANISM_BYTES
        and 1 <= len(wrapped.blob) <= MAX_BLOB_BYTES
    )


def parse_unwrap(payload: memoryview) -> Unwrap:
    """Raises Malformed."""
    reference, *wrapped, context = read_fields(
        payload, MAX_REFERENCE_BYTES, *_WRAPPED_LIMITS, MAX_CONTEXT_BYTES
    )
    return Unwrap(_reference(reference), _wrapped(wrapped), bytes(context))


def sign(number: int, message: bytes, reference: str) -> bytes:
    """A SIGN frame."""
    return frame(Kind.SIGN, number, reference.encode("ascii"), message)


def parse_sign(payload: memoryview) -> Sign:
    """Raises Malformed."""
    reference, message = read_fields(payload, MAX_REFERENCE_BYTES, MAX_MESSAGE_BYTES)
    return Sign(_reference(reference), bytes(message))


def plain(kind: Kind, number: int, reference: str = "") -> bytes:
    """A VERSIONS or STATUS frame."""
    return frame(kind, number, reference.encode("ascii"))


def parse_plain(payload: memoryview) -> str:
    """The reference. Raises Malformed."""
    (reference,) = read_fields(payload, MAX_REFERENCE_BYTES)
    return _reference(reference)


def hello(number: int) -> bytes:
    """A HELLO frame: the first that a client sends."""
    return frame(Kind.HELLO, number, GREETING)


def check_hello(payload: memoryview) -> None:
    """Raises Malformed, and ConfigurationError for another version of the protocol."""
    (greeting,) = read_fields(payload, 64)
    if bytes(greeting) == GREETING:
        return
    if not bytes(greeting).startswith(_PROTOCOL):
        raise Malformed("a greeting is of another protocol")
    raise other_release()


def wrapped_answer(number: int, wrapped: WrappedKey) -> bytes:
    """A WRAPPED frame."""
    return frame(Kind.WRAPPED, number, *_wrapped_fields(wrapped))


def parse_wrapped(payload: memoryview) -> WrappedKey:
    """Raises Malformed."""
    return _wrapped(read_fields(payload, *_WRAPPED_LIMITS))


def opened_answer(number: int, data_key: Buffer) -> bytes:
    """An OPENED frame."""
    return frame(Kind.OPENED, number, data_key)


def parse_opened(payload: memoryview) -> bytearray:
    """The data key, in a buffer of its own. Raises Malformed."""
    (data_key,) = read_fields(payload, DATA_KEY_BYTES)
    if len(data_key) != DATA_KEY_BYTES:
        raise Malformed("a data key has another length")
    return bytearray(data_key)


def listed_answer(number: int, versions: Sequence[KeyVersion]) -> bytes:
    """A LISTED frame."""
    fields: list[bytes] = []
    for version in versions[-MAX_VERSIONS:]:
        flags = (
            version.sensitive
            | version.extractable << 1
            | version.never_extractable << 2
            | version.local << 3
        )
        fields += (
            NUMBER.pack(version.version),
            bytes((flags,)),
            version.label.encode("utf-8")[:MAX_NAME_BYTES],
            version.mechanism.encode("ascii"),
        )
    return frame(Kind.LISTED, number, *fields)


def parse_listed(payload: memoryview) -> list[KeyVersion]:
    """Raises Malformed."""
    fields = read_many(payload, MAX_NAME_BYTES, MAX_VERSIONS * _LISTED_FIELDS)
    if len(fields) % _LISTED_FIELDS:
        raise Malformed("a list of versions is not whole")
    return [
        _version(*fields[at : at + _LISTED_FIELDS]) for at in range(0, len(fields), _LISTED_FIELDS)
    ]


def signed_answer(number: int, signature: bytes) -> bytes:
    """A SIGNED frame."""
    return frame(Kind.SIGNED, number, signature)


def parse_signed(payload: memoryview) -> bytes:
    """Raises Malformed."""
    (signature,) = read_fields(payload, MAX_SIGNATURE_BYTES)
    return bytes(signature)


def report_answer(number: int, report: bytes) -> bytes:
    """A REPORT frame: the status, as JSON."""
    return frame(Kind.REPORT, number, report)


def parse_report(payload: memoryview) -> bytes:
    """Raises Malformed."""
    (report,) = read_fields(payload, MAX_STATUS_BYTES)
    return bytes(report)


def info_answer(number: int, info: Info) -> bytes:
    """An INFO frame."""
    signer = info.signer
    fields = [*error_fields(info.problem)]
    if signer is None:
        fields += (b"", b"", b"")
    else:
        fields += (signer.name.encode(), signer.algorithm.value.encode(), signer.public_key)
    for key in info.keys[:MAX_KEYS]:
        fields += (key.name.encode(), NUMBER.pack(key.version), key.mechanism.encode())
    return frame(Kind.INFO, number, *fields)


def parse_info(payload: memoryview) -> Info:
    """Raises Malformed."""
    fields = read_many(payload, MAX_NAME_BYTES, 5 + 3 * MAX_KEYS)
    if len(fields) < 8 or (len(fields) - 5) % 3:
        raise Malformed("what the process offers is not whole")
    code, text, name, algorithm, public_key, *keys = fields
    return Info(
        keys=tuple(
            KeyInfo(read_text(keys[at]), read_integer(keys[at + 1]), read_text(keys[at + 2]))
            for at in range(0, len(keys), 3)
        ),
        signer=_signer(name, algorithm, public_key) if len(name) else None,
        problem=read_error(code, text) if len(code) else None,
    )


def done(number: int) -> bytes:
    """A DONE frame."""
    return frame(Kind.DONE, number)


def check_done(payload: memoryview) -> None:
    """Raises Malformed."""
    read_fields(payload)


def failed(number: int, error: HsmError) -> bytes:
    """A FAILED frame. The error's text is ours, as all of HsmError's are."""
    return frame(Kind.FAILED, number, *error_fields(error))


def parse_failed(payload: memoryview) -> HsmError:
    """The error that the process answered with. Raises Malformed."""
    code, text = read_fields(payload, 1, MAX_ERROR_BYTES)
    return read_error(code, text)


def other_release() -> ConfigurationError:
    """What both ends say where the other speaks another version of this protocol."""
    return ConfigurationError(
        "The HSM process and its client speak different versions of their protocol: install the"
        " same release of Ironwork for both, and restart both."
    )


_WRAPPED_LIMITS: Final = (MAX_NAME_BYTES, NUMBER.size, MAX_MECHANISM_BYTES, MAX_BLOB_BYTES)


def _wrapped_fields(wrapped: WrappedKey) -> tuple[bytes, ...]:
    return (
        wrapped.backend.encode("utf-8"),
        NUMBER.pack(wrapped.key_version),
        wrapped.mechanism.encode("ascii"),
        wrapped.blob,
    )


def _wrapped(fields: Sequence[memoryview]) -> WrappedKey:
    backend, version, mechanism, blob = fields
    wrapped = WrappedKey(
        read_text(backend), read_integer(version), read_text(mechanism, "ascii"), bytes(blob)
    )
    if not fits(wrapped):
        raise Malformed("a wrapped key is out of bounds")
    return wrapped


def _chosen_field(version: int | None) -> bytes:
    """A version that a client chooses; empty for none."""
    return b"" if version is None else NUMBER.pack(version)


def _chosen(value: memoryview) -> int | None:
    if not len(value):
        return None
    version = read_integer(value)
    if not version:
        raise Malformed("versions count from 1")
    return version


def _version(
    number: memoryview, flags: memoryview, label: memoryview, mechanism: memoryview
) -> KeyVersion:
    if len(flags) != 1 or flags[0] > 15 or len(mechanism) > MAX_MECHANISM_BYTES:
        raise Malformed("a version's attributes are unknown")
    return KeyVersion(
        version=read_integer(number),
        label=read_text(label),
        sensitive=bool(flags[0] & 1),
        extractable=bool(flags[0] & 2),
        never_extractable=bool(flags[0] & 4),
        local=bool(flags[0] & 8),
        mechanism=read_text(mechanism, "ascii"),
    )


def _signer(name: memoryview, algorithm: memoryview, public_key: memoryview) -> SignerInfo:
    try:
        known = SignatureAlgorithm(read_text(algorithm, "ascii"))
    except ValueError:
        raise Malformed("a signature's algorithm is unknown") from None
    if not 1 <= len(public_key) <= MAX_PUBLIC_KEY_BYTES:
        raise Malformed("a public key has another length")
    return SignerInfo(read_text(name), known, bytes(public_key))


def _reference(value: memoryview) -> str:
    text = read_text(value, "ascii")
    if text and not (text.isprintable() and " " not in text):
        raise Malformed("a reference holds other than visible ASCII characters")
    return text
