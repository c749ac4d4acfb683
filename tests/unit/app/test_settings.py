"""Settings: a TOML file, the environment over it, and errors that name the setting."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_audit.tlog import KeyType, VerifierKey
from ironwork_server.app.settings import MAX_FILE_BYTES, Settings, load
from ironwork_server.app.startup import SettingsError
from ironwork_server.upstream import UpstreamProxy

SECRET = "sk-ant-api03-canary"
FILE = """
[tls]
certificate = "/etc/ironwork/server.pem"
private_key = "/etc/ironwork/server-key.pem"
client_ca = "/etc/ironwork/clients.pem"

[identity]
trust_domain = "prod.example"
rules = [{ path = "/workspace/{workspace}/agent/{name}", role = "agent" }]

[policy]
folder = "/etc/ironwork/policy"

[master_key]
uris = ["pkcs11:token=prod;object=master?module-path=/m.so&pin-source=file:/run/pin"]

[store]
url = "sqlite:////var/lib/ironwork/keys.db"

[audit]
folder = "/var/log/ironwork"
origin = "keys.example/one"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with every setting that has no default."""
    path = tmp_path / "server.toml"
    path.write_text(FILE)
    return path


def refusal(path: Path | None, environ: dict[str, str]) -> str:
    """What load() says."""
    with pytest.raises(SettingsError) as refused:
        load(path, environ)
    return str(refused.value)


def test_a_file_with_the_required_settings_is_enough(file: Path) -> None:
    """Everything else has a safe default: loopback, every group of the issue, finite limits."""
    settings = load(file, {})
    assert settings.tls.certificate == Path("/etc/ironwork/server.pem")
    assert settings.store.path == Path("/var/lib/ironwork/keys.db")
    assert settings.listen == "127.0.0.1:7443"
    assert set(settings.api.groups) == {"messages", "count_tokens", "batches", "models", "files"}
    assert settings.limits.max_keys == 100


def test_nothing_at_all_names_every_missing_section() -> None:
    """Without a file and variables, the error lists what is missing, one line each."""
    said = refusal(None, {}).splitlines()
    assert said == [
        f"{name}: is missing"
        for name in ("tls", "identity", "policy", "master_key", "store", "audit")
    ]


def test_a_variable_overrides_the_file(file: Path) -> None:
    """IRONWORK_A__B sets a.b; numbers are read from text; sections may be new."""
    settings = load(
        file,
        {
            "IRONWORK_LISTEN": "0.0.0.0:1234",
            "IRONWORK_TLS__CERTIFICATE": "/other.pem",
            "IRONWORK_LIMITS__MAX_KEYS": "7",
            "IRONWORK_DRAIN_S": "2.5",
        },
    )
    assert settings.listen == "0.0.0.0:1234"
    assert settings.tls.certificate == Path("/other.pem")
    assert settings.tls.client_ca == Path("/etc/ironwork/clients.pem")
    assert (settings.limits.max_keys, settings.drain_s) == (7, 2.5)


def test_lists_and_tables_are_written_as_toml(file: Path) -> None:
    """A variable that begins like a list or table is read as TOML."""
    settings = load(
        file,
        {
            "IRONWORK_MASTER_KEY__URIS": '["pkcs11:token=a;object=m", "pkcs11:token=b;object=m"]',
            "IRONWORK_IDENTITY__RULES": '[{path = "/auditor/{name}", role = "auditor"}]',
            "IRONWORK_POLICY": '{folder = "/elsewhere"}',
        },
    )
    assert len(settings.master_key.uris) == 2
    assert settings.identity.rules[0].role == "auditor"
    assert settings.policy.folder == Path("/elsewhere")


def test_an_ipv6_address_is_no_list(file: Path) -> None:
    """A text that begins with a bracket and is no TOML is a text."""
    assert load(file, {"IRONWORK_LISTEN": "[::1]:7443"}).listen == "[::1]:7443"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("IRONWORK_NOT_THERE", "not_there"),
        ("IRONWORK_TLS__CERTIFICAT", "tls.certificat"),
        ("IRONWORK_UPSTREAM__URL", "upstream.url"),
        ("IRONWORK_", ""),
        ("IRONWORK_TLS__", "tls."),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_it(file: Path, name: str, setting: str) -> None:
    """A misspelt IRONWORK_* is told of, and no setting says whom keys are sent to."""
    assert refusal(file, {name: SECRET}) == f"{setting} ({name}): is not a setting"


def test_an_unknown_setting_in_the_file_is_an_error_that_names_it(file: Path) -> None:
    """So is a misspelt setting in the file."""
    file.write_text(FILE + f'certificat = "{SECRET}"\n[upstream]\nurl = "{SECRET}"\n')
    assert refusal(file, {}).splitlines() == [
        "audit.certificat: is not a setting",
        "upstream.url: is not a setting",
    ]


def test_variables_of_our_other_programs_are_left_alone(file: Path) -> None:
    """IRONWORK_CONFIG and IRONWORK_PROFILE are no settings of the server, nor errors."""
    load(file, {"IRONWORK_CONFIG": "x", "IRONWORK_PROFILE": "y", "OTHER": "z"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("IRONWORK_LIMITS__MAX_KEYS", SECRET, "limits.max_keys"),
        ("IRONWORK_DRAIN_S", "-1", "drain_s"),
        ("IRONWORK_DRAIN_S", "nan", "drain_s"),
        ("IRONWORK_LOG_LEVEL", SECRET, "log_level"),
        ("IRONWORK_LISTEN", SECRET, "listen (IRONWORK_LISTEN): write ADDRESS:PORT"),
        ("IRONWORK_LISTEN", "127.0.0.1:65536", "listen (IRONWORK_LISTEN): write ADDRESS:PORT"),
        ("IRONWORK_STORE__URL", f"postgresql://u:{SECRET}@h/d", "store.url"),
        ("IRONWORK_STORE__URL", "sqlite:///", "store.url"),
        ("IRONWORK_AUDIT__ORIGIN", SECRET.upper(), "audit.origin"),
        ("IRONWORK_API__GROUPS", f'["{SECRET}"]', "api.groups (IRONWORK_API__GROUPS): the groups"),
        ("IRONWORK_API__GROUPS", '["organizations"]', "api.groups"),
        ("IRONWORK_MASTER_KEY__URIS", SECRET, "master_key.uris (IRONWORK_MASTER_KEY__URIS): is a"),
        ("IRONWORK_MASTER_KEY__URIS", "[]", "master_key.uris"),
        ("IRONWORK_MASTER_KEY__URIS", f'["{SECRET}"', "master_key.uris"),
        ("IRONWORK_TLS", SECRET, "tls (IRONWORK_TLS): is a section"),
        ("IRONWORK_IDENTITY__RULES", f'[{{path = "{SECRET}"}}]', "identity.rules.0.role"),
        ("IRONWORK_POLICY__FOLDER", f"/a\0{SECRET}", "policy.folder"),
    ],
)
def test_a_wrong_value_names_its_setting_and_is_not_repeated(
    file: Path, name: str, value: str, says: str
) -> None:
    """An error says which setting is wrong and how, and never shows what was given."""
    said = refusal(file, {name: value})
    assert said.startswith(says)
    assert "canary" not in said.lower()


def test_a_section_below_a_value_is_an_error(file: Path) -> None:
    """A variable cannot make a section of what is a value."""
    said = refusal(file, {"IRONWORK_STORE__URL__X": SECRET})
    assert said == "IRONWORK_STORE__URL__X: url is not a section."


@pytest.mark.parametrize(
    "content",
    [
        f"listen = {SECRET}".encode(),
        b"\xff\xfe",
        b"x = " + b"[" * 100_000,
        b"x = " + b"9" * 10_000,
        f'[a]\n[a]\nkey = "{SECRET}"'.encode(),
    ],
)
def test_what_is_no_toml_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    """A broken, binary or absurd file gets one line with its name."""
    path = tmp_path / "server.toml"
    path.write_bytes(content)
    assert refusal(path, {}) == f"{path}: is not TOML."


def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path) -> None:
    """A missing file and a folder in its place say so."""
    assert refusal(tmp_path / "no.toml", {}).endswith("cannot be read (No such file or directory).")
    assert refusal(tmp_path, {}).endswith("cannot be read (Is a directory).")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A file beyond 1 MiB is refused before it is parsed."""
    path = tmp_path / "server.toml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert refusal(path, {}) == f"{path}: is larger than {MAX_FILE_BYTES} bytes."


# Any settings that a variable can hold, with texts that TOML and shells find difficult; what is
# a list or a table in TOML is read as one.
_TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0?#"), min_size=1
).filter(lambda text: text[0] not in "[{" and text[-1] != "/" and ":memory:" not in text)
_OVERLAYS = st.fixed_dictionaries(
    {},
    optional={
        "tls.certificate": _TEXTS,
        "tls.client_ca": _TEXTS,
        "identity.trust_domain": _TEXTS,
        "policy.folder": _TEXTS,
        "store.url": _TEXTS.map("sqlite:///".__add__),
        "limits.max_keys": st.integers(1, 1_000_000).map(str),
        "streams.age_s": st.floats(0.001, 86_400).map(repr),
    },
)


@given(_OVERLAYS)
def test_variables_win_whatever_they_hold(overlay: dict[str, str]) -> None:
    """Each variable sets its setting to its very text, and no other setting."""
    base = _flat(_loaded({}))
    loaded = _flat(_loaded({_variable(name): text for name, text in overlay.items()}))
    for name, value in loaded.items():
        expected = overlay.get(name)
        if expected is None:
            assert value == base[name]
        elif isinstance(value, Path):
            assert value == Path(expected)
        elif isinstance(value, float | int):
            assert value == float(expected)
        else:
            assert value == expected


def _variable(setting: str) -> str:
    return "IRONWORK_" + setting.replace(".", "__").upper()


def _loaded(environ: dict[str, str]) -> Settings:
    required = {
        "IRONWORK_TLS": '{certificate = "c", private_key = "k", client_ca = "a"}',
        "IRONWORK_IDENTITY": '{trust_domain = "d", rules = [{path = "/a", role = "agent"}]}',
        "IRONWORK_POLICY": '{folder = "p"}',
        "IRONWORK_MASTER_KEY": '{uris = ["u"]}',
        "IRONWORK_STORE": '{url = "sqlite:///s"}',
        "IRONWORK_AUDIT": '{folder = "f", origin = "o"}',
    }
    return load(None, required | environ)


def _flat(settings: Settings) -> dict[str, Any]:
    tree = settings.model_dump()
    return {
        f"{section}.{name}": value
        for section, values in tree.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (f'proxy = "http://user:{SECRET}@p.example:1"', "it holds a user name or a password"),
        (f'proxy = "{SECRET}"', "give http://HOST:PORT"),
        ('proxy_credentials = "/run/x"', "name it in proxy"),
        ('proxy_ca = "/run/x"', "name it in proxy"),
        ('proxy = "http://p.example:1"\nproxy_ca = "/run/x"', "it has no meaning"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(file: Path, lines: str, says: str) -> None:
    """The refusal says how to mend it, and holds neither URL nor credentials."""
    file.write_text(FILE + f"[upstream]\n{lines}\n")
    text = refusal(file, {})
    assert text.startswith("upstream: ")
    assert says in text
    assert SECRET not in text


def test_a_proxy_is_a_setting(file: Path) -> None:
    """By default there is none; what is set is what is used."""
    assert load(file, {}).upstream.connect_proxy() is None
    proxy = load(file, {"IRONWORK_UPSTREAM__PROXY": "http://p.example:1"}).upstream.connect_proxy()
    assert proxy == UpstreamProxy("p.example", 1)


def witness_key(name: str, kind: KeyType = KeyType.COSIGNATURE_V1) -> str:
    return str(VerifierKey(name, kind, bytes(32)))


def audit_variable(*witnesses: tuple[str, str], quorum: int = 1) -> dict[str, str]:
    listed = ", ".join(f'{{url = "{url}", key = "{key}"}}' for url, key in witnesses)
    return {
        "IRONWORK_AUDIT__WITNESSES": f"[{listed}]",
        "IRONWORK_AUDIT__WITNESS_QUORUM": str(quorum),
    }


def test_witnesses_are_a_setting(file: Path) -> None:
    """By default there is none; what is set is what is used."""
    assert load(file, {}).audit.witnesses == ()
    known = [("https://w.example/x/", witness_key("w1")), ("http://[::1]:1", witness_key("w2"))]
    audit = load(file, audit_variable(*known, quorum=2)).audit
    assert [witness.url for witness in audit.witnesses] == ["https://w.example/x", "http://[::1]:1"]
    assert audit.witness_quorum == 2


@pytest.mark.parametrize(
    ("witnesses", "quorum", "says"),
    [
        ([("http://w.example", witness_key("w"))], 1, "is asked by https"),
        ([("https://u@w.example", witness_key("w"))], 1, "no user"),
        ([("https://w.example", witness_key("w", KeyType.ED25519))], 1, "type 0x04"),
        # Its alarm is an entry, which holds no other names.
        ([("https://w.example", witness_key("w.例え"))], 1, "visible ASCII"),
        ([("https://w.example", witness_key("w" * 256))], 1, "at most 255"),
        ([("https://w.example", "w+00000000+AAAA")], 1, "key: "),
        ([("https://w.example", witness_key("w"))] * 2, 1, "named once"),
        ([("https://w.example", witness_key("w"))], 2, "witness_quorum is larger"),
        ([], 0, "greater than or equal to 1"),
    ],
)
def test_witnesses_that_cannot_be_used_are_refused(
    file: Path, witnesses: list[tuple[str, str]], quorum: int, says: str
) -> None:
    """The refusal names the setting and the rule."""
    text = refusal(file, audit_variable(*witnesses, quorum=quorum))
    assert text.startswith("audit")
    assert says in text
