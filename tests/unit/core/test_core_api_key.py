"""The syntax of an API key, its mask and its fingerprint."""

import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core import api_key
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.secret import Secret

KEY = b"sk-ant-api03-" + b"Zq8_kTf-" * 11 + b"wxYZ"
PEPPER = Secret(bytes(range(32)))
VISIBLE = bytes(range(0x21, 0x7F))


class Untouchable(bytes):
    """Bytes of which only the length may be asked."""

    def startswith(self, *_: object) -> bool:
        raise AssertionError

    def __iter__(self) -> object:
        raise AssertionError


def refusal(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        api_key.parse_api_key(raw)
    error = caught.value
    assert error.metadata == {"field": "api_key"}
    assert error.violations[0].field == "api_key"
    return error


@pytest.mark.parametrize("raw", [KEY, bytearray(KEY), b"sk-ant-api03-" + VISIBLE])
def test_takes_a_key(raw: bytes | bytearray) -> None:
    """A key is the prefix and visible ASCII, byte for byte."""
    with api_key.parse_api_key(raw) as key:
        assert bytes(key.reveal()) == raw


@pytest.mark.parametrize("length", [20, 256])
def test_takes_the_shortest_and_the_longest(length: int) -> None:
    """20 and 256 bytes are a key's bounds, both included."""
    raw = b"sk-ant-api03-".ljust(length, b"x")
    assert len(api_key.parse_api_key(raw)) == length


MALFORMED = {
    "empty": (b"", "is empty"),
    "short": (b"sk-ant-api03-".ljust(19, b"x"), "shorter"),
    "prefix alone": (b"sk-ant-api", "shorter"),
    "long": (b"sk-ant-api03-".ljust(257, b"x"), "longer"),
    "leading blank": (b" " + KEY, "before or after"),
    "trailing blank": (KEY + b" ", "before or after"),
    "trailing newline": (KEY + b"\n", "before or after"),
    "trailing CR LF": (KEY + b"\r\n", "before or after"),
    "leading tab": (b"\t" + KEY, "before or after"),
    "trailing vertical tab": (KEY + b"\x0b", "before or after"),
    "newline inside": (KEY[:30] + b"\n" + KEY[30:], "control character"),
    "NUL inside": (KEY[:30] + b"\0" + KEY[30:], "control character"),
    "trailing NUL": (KEY + b"\0", "control character"),
    "DEL inside": (KEY[:30] + b"\x7f" + KEY[30:], "control character"),
    "header injection": (KEY[:30] + b"\r\nx-api-key: y", "control character"),
    "blank inside": (KEY[:30] + b" " + KEY[30:], "holds a blank"),
    "quoted": (b'"' + KEY + b'"', "must begin with"),
    "assignment": (b"ANTHROPIC_API_KEY=" + KEY, "must begin with"),
    "bearer": (b"Bearer " + KEY, "holds a blank"),
    "another vendor's": (b"sk-proj-" + b"x" * 40, "must begin with"),
    "upper case": (KEY.upper(), "must begin with"),
    "no-break space": (KEY + "\u00a0".encode(), "outside ASCII"),
    "zero width": (KEY[:30] + "\u200b".encode() + KEY[30:], "outside ASCII"),
    "byte order mark": (b"\xef\xbb\xbf" + KEY, "outside ASCII"),
    "typographic hyphen": (KEY.replace(b"-", "–".encode()), "outside ASCII"),
    "Latin-1": (KEY[:30] + b"\xe9" + KEY[30:], "outside ASCII"),
    "UTF-16": (KEY.decode().encode("utf-16-le"), "control character"),
    "masked": ("sk-ant-api…wxyz, the key of mine".encode(), "outside ASCII"),
    "session key": (b"sk-ant-sid01-" + b"x" * 40, "session key"),
}


@pytest.mark.parametrize(("raw", "said"), MALFORMED.values(), ids=MALFORMED)
def test_refuses_what_is_no_key(raw: bytes, said: str) -> None:
    """A malformed key is refused with a sentence that says how to mend it."""
    error = refusal(raw)
    assert error.reason == "API_KEY_MALFORMED"
    assert said in str(error)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (b"sk-ant-admin01-", "ADMIN_KEY_REFUSED"),
        (b"sk-ant-oat01-", "OAUTH_TOKEN_REFUSED"),
        (b"sk-ant-ort01-", "OAUTH_TOKEN_REFUSED"),
        (b"SK-ANT-ADMIN01-", "ADMIN_KEY_REFUSED"),
        (b"\n sk-ant-oat01-", "OAUTH_TOKEN_REFUSED"),
    ],
)
def test_refuses_other_credentials_by_name(prefix: bytes, reason: str) -> None:
    """An admin key or an OAuth token is called what it is, however badly it was pasted."""
    assert refusal(prefix + b"x" * 60).reason == reason
    assert refusal(prefix + b"x" * 60 + b"\n").reason == reason


def test_refuses_ten_megabytes_by_length_alone() -> None:
    """Text far too long is refused without being looked at."""
    assert "longer" in str(refusal(Untouchable(10_000_000)))


CONSTANT_TEXTS = {refusal(raw).message for raw, _ in MALFORMED.values()} | {
    refusal(b"sk-ant-" + kind + b"01-" + b"x" * 60).message for kind in (b"admin", b"oat", b"ort")
}


@given(st.binary(max_size=300))
def test_no_refusal_repeats_the_value(tail: bytes) -> None:
    """Every refusal is one of a few constant sentences, so that none holds what was sent."""
    for raw in (tail, b"sk-ant-api03-" + tail, b"sk-ant-admin01-" + tail):
        if re.fullmatch(rb"sk-ant-api[!-~]{10,246}", raw):
            assert bytes(api_key.parse_api_key(raw).reveal()) == raw
        else:
            error = refusal(raw)
            assert error.message in CONSTANT_TEXTS
            assert error.__cause__ is None


def test_names_the_field_that_it_was_told() -> None:
    """The field's name is the caller's to say."""
    with pytest.raises(InvalidRequest) as caught:
        api_key.parse_api_key(b"", field="key")
    assert caught.value.metadata == {"field": "key"}


def test_a_mask_shows_the_last_four() -> None:
    """A mask is the constant prefix and the last four characters."""
    assert api_key.mask(Secret(KEY)) == "sk-ant-api…wxYZ"


@given(st.binary(max_size=300))
def test_a_mask_never_shows_more(value: bytes) -> None:
    """For no input does a mask show more than four characters, nor any of what is too short."""
    shown = api_key.mask(Secret(value))
    assert shown.startswith("sk-ant-api…")
    tail = shown.removeprefix("sk-ant-api…")
    assert len(tail) == (4 if len(value) >= 20 else 0)
    assert tail.isprintable()
    assert tail.isascii()


def test_a_fingerprint_is_hmac_sha256() -> None:
    """A fingerprint is HMAC-SHA256 of the key under the pepper (RFC 2104), and nothing else."""
    expected = hmac.digest(bytes(range(32)), KEY, hashlib.sha256)
    assert api_key.fingerprint(Secret(KEY), PEPPER) == expected
    assert api_key.fingerprint(Secret(KEY), Secret(bytes(32))) != expected
    assert api_key.fingerprint(Secret(KEY[:-1]), PEPPER) != expected


parts = st.lists(st.binary(max_size=12), max_size=4)


@given(st.binary(min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_a_request_digest_keeps_parts_apart(joined: bytes, first: int, second: int) -> None:
    """The same bytes, divided elsewhere, are another request."""
    first, second = first % (len(joined) + 1), second % (len(joined) + 1)
    digests = [
        api_key.request_digest(PEPPER, joined[:place], joined[place:]) for place in (first, second)
    ]
    assert (digests[0] == digests[1]) == (first == second)


@given(parts, parts)
def test_a_request_digest_tells_requests_apart(first: list[bytes], second: list[bytes]) -> None:
    """Two requests have one digest only where all their parts are equal."""
    digests = api_key.request_digest(PEPPER, *first), api_key.request_digest(PEPPER, *second)
    assert (digests[0] == digests[1]) == (first == second)


def test_a_request_digest_is_under_the_pepper_and_no_fingerprint() -> None:
    """Another pepper gives another digest, and a digest of a key is not its fingerprint."""
    digest = api_key.request_digest(PEPPER, KEY)
    assert len(digest) == 32
    assert digest != api_key.request_digest(Secret(bytes(32)), KEY)
    assert digest != api_key.fingerprint(Secret(KEY), PEPPER)
    assert digest == api_key.request_digest(PEPPER, memoryview(KEY))
