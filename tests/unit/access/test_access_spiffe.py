"""SPIFFE IDs, as the SPIFFE-ID specification writes them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.access.spiffe import MAX_ID_BYTES, MalformedSpiffeId, SpiffeId

TRUST_DOMAINS = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=255)
SEGMENTS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=40).filter(
    lambda segment: segment not in {".", ".."}
)


@given(TRUST_DOMAINS, st.lists(SEGMENTS, max_size=8))
def test_every_id_of_the_grammar_parses_and_gives_itself_back(
    trust_domain: str, segments: list[str]
) -> None:
    """A well-formed ID parses into its trust domain and segments, and str gives it back."""
    path = "".join(f"/{segment}" for segment in segments)
    parsed = SpiffeId.parse(f"spiffe://{trust_domain}{path}")
    assert parsed == SpiffeId(trust_domain, path)
    assert parsed.segments == tuple(segments)
    assert str(parsed) == f"spiffe://{trust_domain}{path}"


@given(st.text(max_size=60).map(lambda tail: f"spiffe://td/{tail}") | st.text(max_size=80))
def test_what_parses_is_exactly_what_was_given(text: str) -> None:
    """Nothing is normalised: a string is refused, or it comes back byte for byte."""
    try:
        parsed = SpiffeId.parse(text)
    except MalformedSpiffeId:
        return
    assert str(parsed) == text
    assert text.isascii()
    assert not set(text) & set("%?#@\\ \r\n\0")
    assert not {"", ".", ".."} & set(parsed.segments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe:",
        "spiffe:/td/a",
        "spiffe://",
        "spiffe:///a",
        "SPIFFE://td/a",
        "Spiffe://td/a",
        "https://td/a",
        " spiffe://td/a",
        "spiffe://td/a ",
        "spiffe://td/a\n",
        "spiffe://td\n",
        "spiffe://TD/a",
        "spiffe://td:443/a",
        "spiffe://user@td/a",
        "spiffe://td%2e/a",
        "spiffe://t\u00e4d/a",
        "spiffe://" + "t" * 256 + "/a",
        "spiffe://td/",
        "spiffe://td/a/",
        "spiffe://td//a",
        "spiffe://td/./a",
        "spiffe://td/a/..",
        "spiffe://td/../a",
        "spiffe://td/a%2fb",
        "spiffe://td/a?query",
        "spiffe://td/a#fragment",
        "spiffe://td?query",
        "spiffe://td#fragment",
        "spiffe://td/a\\b",
        "spiffe://td/\u00e4",
        "spiffe://td/\u0661",
        "spiffe://td/a\0",
        "spiffe://td/a,b",
        "spiffe://td/~a",
    ],
)
def test_what_the_specification_forbids_is_refused(text: str) -> None:
    """Each of these breaks one rule of the specification."""
    with pytest.raises(MalformedSpiffeId):
        SpiffeId.parse(text)


def test_an_id_may_have_2048_bytes_and_no_more() -> None:
    """The specification's bound holds to the byte."""
    head = "spiffe://td/"
    longest = head + "a" * (MAX_ID_BYTES - len(head))
    assert str(SpiffeId.parse(longest)) == longest
    with pytest.raises(MalformedSpiffeId):
        SpiffeId.parse(longest + "a")


def test_a_refusal_never_quotes_the_string() -> None:
    """A peer chooses the string; what it wrote does not get into messages."""
    with pytest.raises(MalformedSpiffeId) as refusal:
        SpiffeId.parse("spiffe://td/sk-ant-api-canary%0a")
    assert "canary" not in str(refusal.value)
