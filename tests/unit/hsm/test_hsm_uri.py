"""PKCS#11 URIs are read strictly, and what is wrong is named without quoting a secret."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_hsm import ConfigurationError
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri

QUERY = "?module-path=/usr/lib/m.so&pin-source=file:/run/pin"
SECRET = "hunter2-1234"


def refused(uri: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_pkcs11_uri(uri)
    assert caught.value.__cause__ is None
    return str(caught.value)


def text_of(max_bytes: int) -> st.SearchStrategy[str]:
    """Any text without control characters that fits into so many bytes."""
    characters = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
    return st.text(characters, min_size=1, max_size=max_bytes).filter(
        lambda text: len(text.encode()) <= max_bytes
    )


def paths() -> st.SearchStrategy[Path]:
    return text_of(60).map(lambda text: Path("/") / text.replace("/", "_") / "file")


URIS = st.builds(
    Pkcs11Uri,
    object=text_of(60),
    token=st.none() | text_of(32),
    manufacturer=st.none() | text_of(32),
    serial=st.none() | text_of(16),
    model=st.none() | text_of(16),
    slot_manufacturer=st.none() | text_of(32),
    slot_description=st.none() | text_of(64),
    slot_id=st.none() | st.integers(0, 2**64 - 1),
    module_path=paths(),
    pin_source=paths(),
    init_args=st.none() | text_of(60),
    mechanism=st.none() | text_of(20),
).filter(lambda uri: (uri.token, uri.serial, uri.slot_id) != (None, None, None))


def test_a_whole_uri() -> None:
    """Every attribute lands, decoded, in its field."""
    uri = parse_pkcs11_uri(
        "pkcs11:slot-id=7;object=m%C3%A4ster;token=my%20token;type=secret-key;serial=ab"
        "?pin-source=file:/run/p%20n&module-path=/usr/lib/m.so"
    )
    assert uri == Pkcs11Uri(
        object="mäster",
        token="my token",
        serial="ab",
        slot_id=7,
        module_path=Path("/usr/lib/m.so"),
        pin_source=Path("/run/p n"),
    )


def test_vendor_attributes() -> None:
    """What a library wants at its start and a pinned mechanism stand in the query."""
    uri = parse_pkcs11_uri(
        f"pkcs11:token=t;object=o{QUERY}&ironwork-mechanism=aes-256-gcm"
        "&ironwork-init-args=configdir='sql:/d'%20secmod=''"
    )
    assert uri.init_args == "configdir='sql:/d' secmod=''"
    assert uri.mechanism == "aes-256-gcm"
    assert "ironwork" not in uri.name


@settings(deadline=None)  # a slow machine is no failure
@given(URIS)
def test_writing_and_reading_agree(uri: Pkcs11Uri) -> None:
    """What a URI is written as reads back as the same URI, whatever its labels hold."""
    assert parse_pkcs11_uri(uri.uri) == uri


@settings(deadline=None)  # a slow machine is no failure
@given(URIS)
def test_name_is_canonical(uri: Pkcs11Uri) -> None:
    """A name depends on the path's meaning alone: not on order, encoding, case or query."""
    path = uri.name.removeprefix("pkcs11:").split(";")
    encoded = []
    for part in reversed(path):
        name, _, _ = part.partition("=")
        value = str(getattr(uri, name.replace("-", "_")))
        encoded.append(f"{name}=" + "".join(f"%{byte:02x}" for byte in value.encode()))
    again = parse_pkcs11_uri("PKCS11:" + ";".join(encoded) + QUERY)
    assert again.name == uri.name
    assert "?" not in uri.name


@settings(deadline=None)  # a slow machine is no failure
@given(URIS, URIS)
def test_names_of_different_keys_differ(first: Pkcs11Uri, second: Pkcs11Uri) -> None:
    """Two paths with one name mean the same key."""

    def key(uri: Pkcs11Uri) -> tuple[object, ...]:
        return (
            uri.object,
            uri.token,
            uri.manufacturer,
            uri.serial,
            uri.model,
            uri.slot_manufacturer,
            uri.slot_description,
            uri.slot_id,
        )

    assert (first.name == second.name) == (key(first) == key(second))


@settings(deadline=None)  # a slow machine is no failure
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but ConfigurationError comes out of the parser."""
    for uri in (text, f"pkcs11:{text}", f"pkcs11:{text}{QUERY}", f"pkcs11:token=t;object=o?{text}"):
        try:
            parse_pkcs11_uri(uri)
        except ConfigurationError:
            continue


@pytest.mark.parametrize(
    "path",
    ["token=t;token=u;object=o", "token=t;object=o;object=o", "slot-id=1;slot-id=1;object=o"],
)
def test_duplicates_in_the_path(path: str) -> None:
    """An attribute that stands twice is refused by name, even with equal values."""
    assert "twice" in refused(f"pkcs11:{path}{QUERY}")


def test_duplicates_in_the_query() -> None:
    """Query attributes likewise."""
    message = refused("pkcs11:token=t;object=o" + QUERY + "&pin-source=file:/other")
    assert "`pin-source` stands there twice" in message


@pytest.mark.parametrize("name", ["tokn", "x-vendor", "pin-source", "module-path"])
def test_unknown_path_attributes_are_named(name: str) -> None:
    """An attribute that would be ignored is refused, with its name."""
    assert f"`{name}`" in refused(f"pkcs11:token=t;object=o;{name}=v{QUERY}")


@pytest.mark.parametrize("name", ["id", "library-manufacturer", "library-version"])
def test_attributes_of_the_rfc_that_have_no_place(name: str) -> None:
    """RFC 7512 attributes that we do not take are refused with the reason."""
    assert f"`{name}`: leave it out" in refused(f"pkcs11:token=t;object=o;{name}=v{QUERY}")


@pytest.mark.parametrize(
    "uri",
    [
        f"pkcs11:token=t;object=o{QUERY}&pin-value={SECRET}",
        f"pkcs11:token=t;object=o?pin-value={SECRET}",
        f"pkcs11:?pin-value={SECRET}",
        f"pkcs11:nonsense?PIN-VALUE={SECRET}",
        f"pkcs11:token=t;object=o?pin-value=a&{SECRET}=b&{SECRET}",
        f"pkcs11:token=t;pin-value={SECRET};object=o{QUERY}",
        f"pkcs11:token=t;object=o&pin-value={SECRET}{QUERY}",
    ],
)
def test_pin_value_is_refused_by_name(uri: str) -> None:
    """A PIN in the URI is refused first of all, with the mend, and is not repeated."""
    message = refused(uri)
    assert "`pin-value` is refused" in message
    assert "pin-source=file:" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "query",
    [
        f"pin-valu={SECRET}",
        f"{SECRET}={SECRET}",
        SECRET,
        f"module-path={SECRET}&pin-source=file:/p",
        f"module-path=/m&pin-source={SECRET}",
        f"module-path=/m&pin-source=file://{SECRET}/p",
        f"module-path=/m&pin-source=|{SECRET}",
        f"module-path=/m&module-path={SECRET}",
        f"module-path=/m&pin-source=file:/p&x={SECRET}",
        f"module-path=/m&pin-source=file:/p&ironwork-init-args={SECRET}%00",
        f"module-path=/m&pin-source=file:/p&ironwork-mechanism={SECRET} ",
        f"module-path=/m&pin-source=file:/p {SECRET}",
        f"module-path=/m&pin-source=file:{SECRET}/",
    ],
)
def test_errors_never_quote_the_query(query: str) -> None:
    """Whatever is wrong in a query, its text is in no error: somebody may have typed a PIN."""
    assert SECRET not in refused(f"pkcs11:token=t;object=o?{query}")


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("", "pkcs11:"),
        ("token=t;object=o", "pkcs11:"),
        ("awskms:///key", "pkcs11:"),
        ("pkcs11:", "`object` is missing"),
        (f"pkcs11:{QUERY}", "`object` is missing"),
        (f"pkcs11:token=t{QUERY}", "`object` is missing"),
        (f"pkcs11:object=o{QUERY}", "`token`"),
        (f"pkcs11:model=m;object=o{QUERY}", "`token`"),
        (f"pkcs11:token=;object=o{QUERY}", "`token` is empty"),
        (f"pkcs11:token=t;object={QUERY}", "`object` is empty"),
        (f"pkcs11:token=t;object=o;{QUERY}", "number 3"),
        (f"pkcs11:token;object=o{QUERY}", "number 1"),
        (f"pkcs11:Token=t;object=o{QUERY}", "number 1"),
        (f"pkcs11:token=a b;object=o{QUERY}", "percent-encoded"),
        (f"pkcs11:token=a/b;object=o{QUERY}", "percent-encoded"),
        (f"pkcs11:token=a%2;object=o{QUERY}", "percent-encoded"),
        (f"pkcs11:token=a%zz;object=o{QUERY}", "percent-encoded"),
        (f"pkcs11:token=ü;object=o{QUERY}", "percent-encoded"),
        (f"pkcs11:token=%ff;object=o{QUERY}", "UTF-8"),
        (f"pkcs11:token=a%00;object=o{QUERY}", "control character"),
        (f"pkcs11:token=a%0A;object=o{QUERY}", "control character"),
        (f"pkcs11:token={'t' * 33};object=o{QUERY}", "32 bytes"),
        (f"pkcs11:token=t;object={'o' * 256}{QUERY}", "255 bytes"),
        (f"pkcs11:serial={'1' * 17};object=o{QUERY}", "16 bytes"),
        (f"pkcs11:slot-id=x;object=o{QUERY}", "slot-id"),
        (f"pkcs11:slot-id=-1;object=o{QUERY}", "slot-id"),
        (f"pkcs11:slot-id=01;object=o{QUERY}", "slot-id"),
        (f"pkcs11:slot-id={2**64};object=o{QUERY}", "slot-id"),
        (f"pkcs11:token=t;object=o;type=private{QUERY}", "secret-key"),
        ("pkcs11:token=t;object=o", "`module-path` is missing"),
        ("pkcs11:token=t;object=o?", "empty"),
        ("pkcs11:token=t;object=o?module-path=/m", "`pin-source` is missing"),
        ("pkcs11:token=t;object=o?pin-source=file:/p", "`module-path` is missing"),
        ("pkcs11:token=t;object=o?module-path=m.so&pin-source=file:/p", "absolute"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=/p", "file:"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=http://x/p", "file:"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=file:", "name a file"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=file:/dir/", "name a file"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=file://host/p", "host"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=file:////p", "host"),
        ("pkcs11:token=t;object=o?module-name=softhsm&pin-source=file:/p", "`module-name`"),
        ("pkcs11:" + "x" * 5000, "longer than"),
    ],
)
def test_what_is_wrong_is_named(uri: str, word: str) -> None:
    """Each slip gets an error that says which attribute and what to do."""
    message = refused(uri)
    assert word in message


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("file:/run/pin", "/run/pin"),
        ("file:///run/pin", "/run/pin"),
        ("file:secrets/pin", "secrets/pin"),
        ("file:pin", "pin"),
        ("file:%2Frun%2Fpin", "/run/pin"),
    ],
)
def test_pin_source_forms(source: str, path: str) -> None:
    """pin-source takes an absolute or relative path, and file:/// as RFC 8089 writes it."""
    uri = parse_pkcs11_uri(f"pkcs11:token=t;object=o?module-path=/m&pin-source={source}")
    assert uri.pin_source == Path(path)


def test_reserved_characters_stay_readable_in_a_name() -> None:
    """Characters that RFC 7512 allows unencoded in a path stay so; others are encoded."""
    uri = parse_pkcs11_uri(f"pkcs11:token=a:b@c&d=e+f;object={quote('x;y?z/%', safe='')}{QUERY}")
    assert uri.name == "pkcs11:token=a:b@c&d=e+f;object=x%3By%3Fz%2F%25"
