"""Names and small fields: what is taken, what is refused, and that no refusal repeats the value."""

import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core import names
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.names import PageTokens

KEY_ID = "7f9c2b1e-1d2a-4c3b-8e4f-001122334455"
SECRET = b"0123456789abcdef0123456789abcdef"


def refused(parse: object, *arguments: object, **options: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(*arguments, **options)
    error = caught.value
    assert error.reason == "INVALID_FIELD"
    assert [violation.field for violation in error.violations] == [error.metadata["field"]]
    value = arguments[0]
    if isinstance(value, str) and len(value) > 12:
        assert value not in str(error)
    return error


@pytest.mark.parametrize("workspace", ["a", "acme", "a-1", "a" + "b" * 62])
def test_takes_a_workspace(workspace: str) -> None:
    """A workspace's name gives its id, and the id its name."""
    assert names.parse_workspace(names.workspace_name(workspace)) == workspace


@pytest.mark.parametrize(
    "value",
    [
        "",
        "acme",
        "workspaces/",
        "workspaces/Acme",
        "workspaces/1acme",
        "workspaces/-acme",
        "workspaces/acme_1",
        "workspaces/acme/",
        "workspaces/acme\n",
        " workspaces/acme",
        "workspaces/a" + "b" * 63,
        "workspaces/acmé",
        "workspaces/аcme",  # Cyrillic а
        "workspaces/../x",
        "workspaces/a\0b",
        "Workspaces/acme",
        "workspaces/acme/keys/" + KEY_ID,
        "workspaces/" + "a" * 1_000_000,
    ],
)
def test_refuses_other_workspaces(value: str) -> None:
    """Only the one spelling of a workspace's name is taken, and the field is named."""
    assert refused(names.parse_workspace, value).metadata == {"field": "parent"}
    assert refused(names.parse_workspace, value, field="workspace").metadata["field"] == "workspace"


def test_takes_a_key_name() -> None:
    """A key's name gives workspace and id, and both give the name."""
    assert names.parse_key_name(names.key_name("acme", KEY_ID)) == ("acme", KEY_ID)
    made = names.new_key_id()
    assert names.parse_key_name(names.key_name("acme", made)) == ("acme", made)


@pytest.mark.parametrize(
    "value",
    [
        "",
        KEY_ID,
        f"workspaces/acme/keys/{KEY_ID.upper()}",
        f"workspaces/acme/keys/{KEY_ID}\n",
        f"workspaces/acme/keys/{KEY_ID}/",
        f"workspaces/acme/keys/{{{KEY_ID}}}",
        f"workspaces/acme/keys/{KEY_ID.replace('-', '')}",
        f"workspaces//keys/{KEY_ID}",
        f"workspaces/-/keys/{KEY_ID}",
        "workspaces/acme/keys/7f9c2b1e-1d2a-1c3b-8e4f-001122334455",  # UUID1
        "workspaces/acme/keys/7f9c2b1e-1d2a-4c3b-7e4f-001122334455",  # not RFC 9562's variant
        "workspaces/acme/keys/٧f9c2b1e-1d2a-4c3b-8e4f-001122334455",  # a digit that is not ASCII
    ],
)
def test_refuses_other_key_names(value: str) -> None:
    """Only the one spelling of a key's name is taken."""
    assert refused(names.parse_key_name, value).metadata == {"field": "name"}


def test_key_ids_never_repeat() -> None:
    """Ids are random."""
    assert len({names.new_key_id() for _ in range(2000)}) == 2000


@given(st.uuids(version=4), st.booleans())
def test_request_ids_have_one_spelling(value: uuid.UUID, upper: bool) -> None:
    """A UUID4 in any case is one request id."""
    sent = str(value).upper() if upper else str(value)
    assert names.parse_request_id(sent) == str(value)


def test_a_request_id_is_optional() -> None:
    """Nothing sent is no request id."""
    assert names.parse_request_id("") is None


@pytest.mark.parametrize(
    "value",
    ["x", f"{{{KEY_ID}}}", f"urn:uuid:{KEY_ID}", KEY_ID.replace("-", ""), KEY_ID + "\n", "ſ" * 36],
)
def test_refuses_other_request_ids(value: str) -> None:
    """Other spellings of a UUID, and what is none, are refused."""
    assert refused(names.parse_request_id, value).metadata == {"field": "request_id"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        ("Build farm — staging (2)", "Build farm — staging (2)"),
        ("e\u0301quipe", "équipe"),
        ("鍵", "鍵"),
        ("🔑 prod", "🔑 prod"),
        ("x" * 64, "x" * 64),
        ("e\u0301" * 64, "é" * 64),
    ],
)
def test_takes_display_names(value: str, expected: str) -> None:
    """A display name is text in NFC, up to 64 characters."""
    assert names.parse_display_name(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "x" * 65,
        "e\u0301" * 65,
        "x" * 1_000_000,
        "two\nlines",
        "nul\0",
        "bell\x07",
        "bidi\u202eelim",
        "zero\u200bwidth",
        "\ufeffbom",
        "line\u2028separator",
        "paragraph\u2029separator",
        "half\ud800",
        "c1\x85control",
        " leading",
        "trailing ",
        "\u00a0leading",
        "trailing\u3000",
        "my key sk-ant-api03-abcdefgh",
        "SK-ANT-oat01-abcdefgh",
    ],
)
def test_refuses_other_display_names(value: str) -> None:
    """What is too long, invisible, padded or looks like a credential is refused, not mended."""
    assert refused(names.parse_display_name, value).metadata == {"field": "display_name"}


@given(st.text(max_size=80))
def test_a_display_name_that_passes_is_printable(value: str) -> None:
    """Whatever passes is the same text, in NFC, printable, and passes unchanged a second time."""
    try:
        name = names.parse_display_name(value)
    except InvalidRequest:
        return
    assert name == unicodedata.normalize("NFC", value)
    assert len(name) <= 64
    assert name == name.strip()
    assert not {unicodedata.category(character) for character in name} & {"Cc", "Cf", "Cs"}
    assert names.parse_display_name(name) == name


@pytest.mark.parametrize("value", ["", "x", "fix issue #12 (again)", "!" + "~" * 127])
def test_takes_claims(value: str) -> None:
    """A claim is up to 128 characters of visible ASCII with blanks inside."""
    assert names.parse_claim(value, field="task") == value


@pytest.mark.parametrize(
    "value",
    [
        " x",
        "x ",
        " ",
        "x" * 129,
        "tab\tbed",
        "línea",
        "nl\n",
        "a\0b",
        "\x7f",
        "task sk-ant-oat01-x",
    ],
)
def test_refuses_other_claims(value: str) -> None:
    """What could forge a log's line, or holds a credential, is refused."""
    assert refused(names.parse_claim, value, field="agent").metadata == {"field": "agent"}


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 50), (1, 1), (200, 200), (201, 200), (2**31 - 1, 200)]
)
def test_bounds_a_page(value: int, expected: int) -> None:
    """0 means the default, and more than the most means the most."""
    assert names.page_size(value, default=50, maximum=200) == expected


def test_refuses_a_negative_page() -> None:
    """A negative size is an error (AIP-158)."""
    assert refused(names.page_size, -1, default=1, maximum=2).metadata == {"field": "page_size"}


@given(st.text(max_size=40).filter(lambda text: text.isprintable()), st.integers(0, 2**63 - 1))
def test_a_page_token_gives_its_position_back(scope: str, position: int) -> None:
    """A token is 32 characters and opens for the listing that it was made for."""
    tokens = PageTokens(SECRET)
    token = tokens.make(scope, position)
    assert len(token) == 32
    assert tokens.parse(token, scope) == position


@given(st.integers(0, 2**63 - 1), st.integers(0, 31), st.sampled_from("Az09-_"))
def test_a_page_token_cannot_be_forged(position: int, place: int, character: str) -> None:
    """A token changed in any character opens nothing."""
    tokens = PageTokens(SECRET)
    token = tokens.make("keys/acme", position)
    changed = token[:place] + character + token[place + 1 :]
    if changed != token:
        assert refused(tokens.parse, changed, "keys/acme").metadata == {"field": "page_token"}


def test_a_page_token_cannot_be_moved() -> None:
    """A token of another listing, or of another secret, opens nothing."""
    token = PageTokens(SECRET).make("keys/acme", 7)
    refused(PageTokens(SECRET).parse, token, "keys/other")
    refused(PageTokens(SECRET).parse, token, "keys/acm")
    refused(PageTokens(bytes(32)).parse, token, "keys/acme", field="cursor")


@pytest.mark.parametrize(
    "value", ["x", "A" * 32, "A" * 31, "A" * 33, "é" * 32, "A" * 31 + "\n", "+" * 32, "A" * 10**6]
)
def test_refuses_what_is_no_page_token(value: str) -> None:
    """Anything else is refused without being looked into."""
    refused(PageTokens(SECRET).parse, value, "keys/acme")


def test_no_page_token_is_the_first_page() -> None:
    """An empty token asks for the first page."""
    assert PageTokens(SECRET).parse("", "keys/acme") is None


def test_page_tokens_need_a_secret() -> None:
    """A secret that could be guessed, and positions that do not fit, are programming errors."""
    with pytest.raises(ValueError, match="16 bytes"):
        PageTokens(b"short")
    for position in (-1, 2**63):
        with pytest.raises(ValueError, match="position"):
            PageTokens(SECRET).make("keys/acme", position)
