"""The server's commands, as an operator sees them: keys, database, errors and usage."""

from __future__ import annotations

import json

import pytest

from fixtures.journal_events import entries
from fixtures.production import Production
from fixtures.softhsm import MakeToken
from ironwork_audit.tlog import KeyType, VerifierKey
from ironwork_server.cli.main import main


def test_the_first_steps_of_an_operator(
    production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """`db status` is 1 until `db upgrade` is done; `master-key create` makes version 1 once,
    inside the HSM and on record; `list` shows it, as a table and as JSON.
    """
    config = ["--config", str(production.write())]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, *config])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, said, _ = run("db", "status")
    assert (code, said.startswith("schema none")) == (1, True)
    assert "pending: " in said
    assert not (production.folder / "db" / "keys.db").exists()
    for _ in range(2):
        code, said, _ = run("db", "upgrade")
        assert (code, "pending" in said) == (0, False)
    assert run("db", "status")[:2] == (0, said)

    assert run("master-key", "list", "--json")[:2] == (0, "[]\n")
    code, said, _ = run("master-key", "create", "--json")
    assert code == 0
    (version,) = json.loads(said)
    assert (version["version"], version["label"]) == (1, "master")
    assert (version["sensitive"], version["extractable"]) == (True, False)
    assert (version["never_extractable"], version["local"]) == (True, True)
    code, said, wrong = run("master-key", "create")
    assert (code, said) == (1, "")
    assert wrong == "ironwork-server: The HSM holds this master key already; nothing was changed.\n"
    (listed,) = json.loads(run("master-key", "list", "--json")[1])
    assert version.items() <= listed.items()
    assert (listed["current"], listed["rows"], listed["retired"]) == (True, 0, False)
    code, table, _ = run("master-key", "list")
    assert code == 0
    assert table.startswith("pkcs11:token=")
    assert "version" in table
    assert "master" in table

    intent, outcome = (entry.event for entry in entries(production.folder / "audit-commands"))
    assert (intent.operation, intent.phase) == ("hsm.generate", "intent")
    assert (outcome.phase, outcome.success) == ("outcome", True)
    assert outcome.details["master_key_version"] == 1


def test_the_log_s_key_is_made_once(
    production: Production, make_token: MakeToken, capsys: pytest.CaptureFixture[str]
) -> None:
    """`audit-key create` makes it in its token, on record, and says the verifier key; `show` says
    the same, with `--commands` under the name of the operators' log; a second `create` changes
    nothing.
    """
    token = make_token()
    production.settings["audit"]["signing_key"] = token.uri_for("checkpoints")
    config = ["--config", str(production.write())]
    assert main(["audit-key", "show", *config]) == 1
    assert "holds no signing key" in capsys.readouterr().err
    assert main(["audit-key", "create", *config]) == 0
    said = capsys.readouterr().out
    key = VerifierKey.parse(said.strip())
    assert (key.name, key.type) == ("keys.acme.example/one", KeyType.ED25519)
    assert main(["audit-key", "show", *config]) == 0
    assert capsys.readouterr().out == said
    assert main(["audit-key", "show", "--commands", *config]) == 0
    of_commands = VerifierKey.parse(capsys.readouterr().out.strip())
    assert of_commands.name == "keys.acme.example/one/commands"
    assert of_commands.public == key.public
    assert main(["audit-key", "create", *config]) == 1
    assert "already" in capsys.readouterr().err
    found = [entry.event for entry in entries(production.folder / "audit")]
    assert [(event.operation, event.phase, event.success) for event in found] == [
        ("hsm.generate", "intent", None),
        ("hsm.generate", "outcome", True),
        ("hsm.generate", "intent", None),
        ("hsm.generate", "outcome", False),
    ]
    assert found[1].details["mechanism"] == "ed25519"
    (production.folder / "audit" / "journal.jsonl").write_text("")
    assert main(["audit-key", "create", *config]) == 1
    assert "older version" in capsys.readouterr().err


def test_commands_without_settings_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that needs settings names them, and none leaves a traceback."""
    monkeypatch.delenv("IRONWORK_CONFIG", raising=False)
    for arguments in (
        ["serve"],
        ["db", "status"],
        ["db", "upgrade"],
        ["master-key", "create"],
        ["master-key", "list"],
        ["audit-key", "create"],
        ["audit-key", "show"],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("ironwork-server: tls: is missing")
        assert "Traceback" not in said


def test_the_configuration_can_be_named_by_a_variable(
    production: Production,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """IRONWORK_CONFIG names the file; --config wins over it."""
    monkeypatch.setenv("IRONWORK_CONFIG", str(production.write()))
    assert main(["db", "status"]) == 1
    assert capsys.readouterr().out.startswith("schema none")
    assert main(["db", "status", "--config", "/nonexistent"]) == 1
    assert "/nonexistent: cannot be read" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """No command, an unknown one, or an unknown option."""
    for arguments in ([], ["reveal"], ["serve", "--upstream", "x"], ["master-key"]):
        with pytest.raises(SystemExit) as usage:
            main(arguments)
        assert usage.value.code == 2
    assert "usage: ironwork-server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyError("sk-ant-api03-canary"), 1, "an error of this program"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_no_error_leaves_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    says: str,
) -> None:
    """Whatever a command raises is one line without the error's own text, which could quote a
    secret.
    """

    def fail(_: object) -> object:
        raise raised

    monkeypatch.setattr("ironwork_server.cli.db.settings_from", fail)
    assert main(["db", "status"]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "canary" not in said
    assert "Traceback" not in said
