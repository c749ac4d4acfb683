"""What `serve` refuses to start with: exit code 1 and one clear line on standard error."""

import asyncio
import re
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from fixtures.hsmd import MakeHsmd
from fixtures.migrated import NewStore
from fixtures.production import Production
from fixtures.softhsm import MakeToken, SoftHsm
from fixtures.spied import spy_module
from ironwork_audit.log import AppendLog
from ironwork_audit.tlog import Checkpoint, Signature, format_note
from ironwork_hsm.pkcs11.softhsm import token_uri
from ironwork_server import store
from ironwork_server.app.devpki import DevCa
from ironwork_server.cli import serve as serve_module
from ironwork_server.cli.main import main
from ironwork_server.journal import FileJournal

Refusal = Callable[[Production], str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """`refusal(production)`: the one line that `serve` says."""
    # What the command does to its whole process, which here is the tests'.
    monkeypatch.setattr(serve_module, "deny_memory_reads", lambda: None)
    monkeypatch.setattr(serve_module.logs, "configure", lambda _: None)

    def run(production: Production) -> str:
        assert main(["serve", "--config", str(production.write())]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("ironwork-server: ")
        return lines[0].removeprefix("ironwork-server: ")

    return run


@pytest.fixture
def ready(production: Production, new_store: NewStore, make_token: MakeToken) -> Production:
    """Production with a migrated database and a master key: it would start."""
    new_store(production.folder / "db" / "keys.db")
    production.token = make_token(with_key=True)
    production.settings["master_key"] = {"uris": [production.token.uri]}
    return production


def test_a_dev_certificate(ready: Production, refusal: Refusal, dev_ca: DevCa) -> None:
    """A certificate of a throw-away CA is not served with."""
    dev_ca.server_certificate().write(ready.files.certificate, ready.files.private_key)
    assert refusal(ready).startswith("tls.certificate comes from a throw-away CA; it was made by")


def test_a_dev_client_ca(ready: Production, refusal: Refusal, dev_ca: DevCa) -> None:
    """Clients of a throw-away CA are not trusted, also where it is one of several."""
    bundle = ready.ca.certificate_pem + dev_ca.certificate_pem
    ready.files.client_ca.write_bytes(bundle)
    assert refusal(ready).startswith("tls.client_ca comes from a throw-away CA")


def test_a_dev_token(ready: Production, refusal: Refusal) -> None:
    """A token that `dev` made is known by its label."""
    uri = ready.token.uri.replace(ready.token.label, "ironwork-dev")
    ready.settings["master_key"] = {"uris": [ready.token.uri, uri]}
    assert refusal(ready).startswith("master_key.uris names the token ironwork-dev;")


def test_a_dev_token_behind_the_hsm_process(
    ready: Production, refusal: Refusal, make_token: MakeToken, make_hsmd: MakeHsmd
) -> None:
    """The process in front of a token that `dev` made hides nothing: its keys' names say it."""
    hsmd = make_hsmd(token=make_token(label="ironwork-dev", with_key=True))
    ready.settings["master_key"] = {"uris": [hsmd.uri]}
    assert refusal(ready).startswith("master_key.uris leads to the token ironwork-dev;")


def test_a_dev_signing_key_behind_the_hsm_process(
    ready: Production, refusal: Refusal, make_token: MakeToken, make_hsmd: MakeHsmd
) -> None:
    """Nor does it hide one of the key that signs the log."""
    hsmd = make_hsmd(start=False, signer=make_token(label="ironwork-dev-audit").uri_for("log"))
    assert hsmd.run("audit-key", "create", "--signer").returncode == 0
    hsmd.start()
    ready.settings["audit"]["signing_key"] = hsmd.uri
    assert refusal(ready).startswith("audit.signing_key leads to the token ironwork-dev;")


def test_a_token_without_its_label(ready: Production, refusal: Refusal) -> None:
    """By its serial number or slot, a dev token could not be told from another."""
    uri = ready.token.uri.replace(f"token={ready.token.label}", "serial=1234")
    ready.settings["master_key"] = {"uris": [uri]}
    assert refusal(ready) == "master_key.uris: name the token by its label (token=…) as well."


@pytest.mark.parametrize("setting", ["master_key.uris", "audit.signing_key"])
def test_a_recorder_of_pkcs11_calls(
    setting: str, ready: Production, refusal: Refusal, softhsm: SoftHsm, tmp_path: Path
) -> None:
    """A module that writes down PINs and data keys is not served with, under a link's name neither,
    for the master key and for the log's.
    """
    link = tmp_path / "libhsm.so"
    link.symlink_to(spy_module())
    for module in (spy_module(), link):
        uri = ready.token.uri.replace(quote(str(softhsm.module)), quote(str(module)))
        if setting == "master_key.uris":
            ready.settings["master_key"] = {"uris": [uri]}
        else:
            ready.settings["audit"]["signing_key"] = uri
        assert refusal(ready).startswith(f"{setting} names pkcs11-spy, which writes PINs")


def test_no_signing_key(ready: Production, refusal: Refusal) -> None:
    """A log that nobody signs is not served with; the line says what to set and to run."""
    del ready.settings["audit"]["signing_key"]
    said = refusal(ready)
    assert said.startswith("audit.signing_key is not set")
    assert "audit-key create" in said


def test_a_signing_key_in_the_master_key_s_token(ready: Production, refusal: Refusal) -> None:
    """Whoever can unwrap keys must not be able to sign the log."""
    ready.settings["audit"]["signing_key"] = ready.token.uri_for("checkpoints")
    assert refusal(ready).startswith("audit.signing_key names the master key's token")


def test_a_signing_key_under_the_master_key_s_pin(
    ready: Production, refusal: Refusal, tmp_path: Path
) -> None:
    """Nor may one PIN file open both, by whatever name."""
    link = tmp_path / "link"
    link.symlink_to(ready.token.pin_file)
    uri = token_uri("another", "checkpoints", ready.token.pin_file)
    ready.settings["audit"]["signing_key"] = uri
    assert refusal(ready).startswith("audit.signing_key names the master key's PIN file")
    ready.settings["audit"]["signing_key"] = uri.replace(str(ready.token.pin_file), str(link))
    assert refusal(ready).startswith("audit.signing_key names the master key's PIN file")
    link.unlink()
    ready.settings["audit"]["signing_key"] = uri.replace(str(ready.token.pin_file), str(link))
    assert "PIN file" in refusal(ready)  # it is not there; the text is the HSM's


def test_a_log_that_another_key_signed(ready: Production, refusal: Refusal) -> None:
    """A log goes on under the key that it was begun with."""
    folder = Path(ready.settings["audit"]["folder"])
    log = AppendLog.open(folder, ready.settings["audit"]["origin"])
    text = Checkpoint(log.origin, 0, log.tree.root).text
    log.publish(format_note(text, [Signature(log.origin, b"1234", b"x" * 64)]))
    log.close()
    assert "not signed by audit.signing_key" in refusal(ready)


@pytest.mark.parametrize(
    ("size", "another", "reason"),
    [(7, False, "AUDIT_ROLLED_BACK"), (0, False, "AUDIT_ROLLED_BACK"), (0, True, "ORIGIN_TAKEN")],
    ids=["fewer entries", "other entries", "another folder"],
)
def test_a_log_that_is_not_the_one_that_was_signed(
    ready: Production, refusal: Refusal, size: int, another: bool, reason: str
) -> None:
    """The store's newest head is of this folder, and the log has grown from it."""
    folder, origin = Path(ready.settings["audit"]["folder"]), ready.settings["audit"]["origin"]
    AppendLog.open(folder, origin).close()
    folder_id = "ab" * 16 if another else (folder / "id").read_text().strip()
    with sqlite3.connect(ready.folder / "db" / "keys.db") as database:
        head = (origin, folder_id, size, b"r" * 32, 0)
        database.execute("INSERT INTO log_heads VALUES (?, ?, ?, ?, ?)", head)
    database.close()
    said = refusal(ready)
    assert reason in said
    assert "begin a new folder with a new origin" in said
    assert not (folder / "checkpoint").exists()


def test_an_old_journal(ready: Production, refusal: Refusal) -> None:
    """A folder of the plain journal of before is refused; the line says what to do."""
    folder = Path(ready.settings["audit"]["folder"])
    folder.mkdir(mode=0o700)
    (folder / "journal.jsonl").write_text("")
    assert "set audit.folder to a new one" in refusal(ready)


def test_a_dev_store(ready: Production, refusal: Refusal) -> None:
    """A database that `dev` used is marked for good."""
    store.mark(ready.settings["store"]["url"], store.DEV)
    assert refusal(ready).startswith(
        "store.url is marked dev; it was made by `ironwork-server dev`"
    )


def test_a_store_that_is_not_there(ready: Production, refusal: Refusal) -> None:
    """The line says which command makes it, and none is made."""
    database = ready.folder / "db" / "keys.db"
    database.unlink()
    assert "`ironwork-server db upgrade`" in refusal(ready)
    assert not database.exists()


@pytest.mark.parametrize("pin", ["db/pin", "db/hsm/pin", "pin"])
def test_the_pin_beside_the_database(ready: Production, refusal: Refusal, pin: str) -> None:
    """PIN and database from one place, or one inside the other, are refused before any login."""
    path = ready.folder / pin
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ready.token.pin_file.read_bytes())
    path.chmod(0o600)
    uri = ready.token.uri.replace(str(ready.token.pin_file), str(path))
    ready.settings["master_key"] = {"uris": [uri]}
    assert refusal(ready).startswith(f"The PIN file {path} and the database lie in one place")


def test_no_master_key(ready: Production, refusal: Refusal, make_token: MakeToken) -> None:
    """Without a master key in the HSM nothing is served."""
    ready.settings["master_key"] = {"uris": [make_token().uri]}
    assert "master-key create" in refusal(ready)


def test_a_wrong_pin(ready: Production, refusal: Refusal) -> None:
    """The line says that the PIN was refused, and does not show it."""
    ready.token.pin_file.write_text("0000-canary\n")
    said = refusal(ready)
    assert "PIN" in said
    assert "canary" not in said


def test_a_pin_file_open_to_others(ready: Production, refusal: Refusal) -> None:
    """A PIN that others may read is not used; the line says how to mend it."""
    ready.token.pin_file.chmod(0o640)
    try:
        assert refusal(ready).endswith(f"chmod 600 {ready.token.pin_file}")
    finally:
        ready.token.pin_file.chmod(0o600)


def test_no_pin_file(ready: Production, refusal: Refusal) -> None:
    """A PIN file that is missing is named."""
    ready.token.pin_file.unlink()
    assert refusal(ready).startswith(f"The PIN file {ready.token.pin_file} cannot be opened")


def test_an_unknown_token(ready: Production, refusal: Refusal) -> None:
    """A token that the HSM does not have."""
    uri = ready.token.uri.replace(ready.token.label, "nobodys-token")
    ready.settings["master_key"] = {"uris": [uri]}
    assert "nobodys-token" in refusal(ready)


def test_a_missing_policy_folder(ready: Production, refusal: Refusal) -> None:
    """Without policies nothing is allowed, so nothing is served."""
    ready.settings["policy"] = {"folder": str(ready.folder / "nothing")}
    assert str(ready.folder / "nothing") in refusal(ready)


def test_a_certificate_of_another_key(ready: Production, refusal: Refusal) -> None:
    """A certificate and a key that do not belong together."""
    other = ready.ca.issue([]).private_key_pem
    ready.files.private_key.write_bytes(other)
    assert str(ready.files.private_key) in refusal(ready)


@pytest.mark.parametrize("name", ["certificate", "client_ca"])
@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read (No such file or directory)"), (b"x", "holds no PEM certificates")],
)
def test_unusable_certificate_files(
    ready: Production, refusal: Refusal, name: str, content: bytes | None, says: str
) -> None:
    """A missing or foreign file is named by its setting."""
    path: Path = getattr(ready.files, name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = refusal(ready)
    assert said.startswith(f"tls.{name}: {path} ")
    assert says in said


def test_a_port_in_use(ready: Production, refusal: Refusal) -> None:
    """Two servers never share a port; the second says so."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        ready.settings["listen"] = address
        assert refusal(ready).startswith(f"{address} cannot be listened on: the port is in use")


def test_an_audit_folder_in_use(ready: Production, refusal: Refusal) -> None:
    """The log has one writer, and the line says which process it is."""
    journal = FileJournal.open(Path(ready.settings["audit"]["folder"]), "keys.acme.example/one")
    try:
        assert re.search(r"is in use by process \d+", refusal(ready))
    finally:
        asyncio.run(journal.close())


def test_an_environment_that_prints_secrets(
    ready: Production, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is read."""
    monkeypatch.setenv("GRPC_TRACE", "http")
    assert refusal(ready).startswith("GRPC_TRACE is set: it makes gRPC print messages")


def test_an_unknown_setting(ready: Production, refusal: Refusal) -> None:
    """There is no setting for whom keys are sent to: Anthropic and nobody else."""
    ready.settings["upstream"] = {"url": "https://evil.example"}
    assert refusal(ready) == "upstream.url: is not a setting"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"path": "workspace", "role": "agent"}, "begin with /"),
        ({"path": "/a", "role": "A"}, "role"),
    ],
)
def test_an_identity_rule_that_cannot_be_used(
    ready: Production, refusal: Refusal, rule: dict[str, str], says: str
) -> None:
    """The line shows the rule and what is wrong with it."""
    ready.settings["identity"]["rules"] = [rule]
    assert says in refusal(ready)


def test_a_master_key_of_an_unknown_kind(ready: Production, refusal: Refusal) -> None:
    """A scheme that this build does not know is answered with those that it knows."""
    ready.settings["master_key"] = {"uris": ["azurekv:///ironwork"]}
    assert "it knows `pkcs11:`" in refusal(ready)


def test_default_policies_are_written_once(
    production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """`policy init` writes the default roles into an empty folder, and never over policies."""
    folder = production.folder / "policy"
    written = folder / "roles.cedar"
    before = written.read_bytes()
    config = str(production.write())
    assert main(["policy", "init", "--config", config]) == 1
    assert "nothing was changed" in capsys.readouterr().err
    written.unlink()
    assert main(["policy", "init", "--config", config]) == 0
    assert written.read_bytes() == before
