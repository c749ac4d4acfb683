"""The `ironwork` command: what it prints, and its exit codes."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_client import KeyState, MaskedKey
from ironwork_client.cli import _output
from ironwork_client.cli.main import main
from unit.client import scripted_server as scripted
from unit.client.scripted_server import status

KEY = "sk-ant-api03-" + "canary" * 8 + "wxyz"
ID = "4b7c1f4e-0000-4000-8000-000000000001"
NAME = f"workspaces/acme/keys/{ID}"
Server = scripted.ScriptedServer


class Stdin(io.TextIOWrapper):
    """A stdin that is a terminal, or none."""

    def __init__(self, data: bytes, *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


def masked(**values: object) -> keys_pb2.MaskedKey:
    key = keys_pb2.MaskedKey(
        name=NAME,
        display_name="first",
        mask="sk-ant-api…wxyz",
        state=keys_pb2.KEY_STATE_ACTIVE,
        current=True,
        organization_id="org-1",
        created_by="spiffe://x/alice",
        **values,
    )
    key.create_time.FromSeconds(1_795_424_400)
    return key


@pytest.fixture
def requests(scripted_server: Server) -> list[object]:
    """Requests that the server got, in order."""
    seen: list[object] = []

    def add(request: keys_pb2.AddKeyRequest, _: object) -> keys_pb2.AddKeyResponse:
        seen.append(request)
        return keys_pb2.AddKeyResponse(key=masked())

    def listed(request: object, _: object) -> keys_pb2.ListMaskedResponse:
        seen.append(request)
        old = keys_pb2.MaskedKey(
            name="workspaces/acme/keys/old",
            display_name="bad\x1b[31m[red]",
            mask="sk-ant-api…abcd",
            state=keys_pb2.KEY_STATE_REJECTED_BY_ANTHROPIC,
        )
        return keys_pb2.ListMaskedResponse(keys=[masked(), old])

    def delete(request: object, _: object) -> keys_pb2.DeleteKeyResponse:
        seen.append(request)
        return keys_pb2.DeleteKeyResponse(cancelled_requests=1)

    scripted_server.unary |= {"AddKey": add, "ListMasked": listed, "DeleteKey": delete}
    return seen


@pytest.fixture
def run(profile_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command with a stdin; gives exit code, stdout and stderr."""

    def runs(*argv: str, stdin: bytes = b"", tty: bool = False) -> tuple[int, str, str]:
        monkeypatch.setenv("IRONWORK_PROFILE", str(profile_file))
        monkeypatch.setattr(sys, "stdin", Stdin(stdin, tty=tty))
        code = main(argv)
        out, err = capsys.readouterr()
        assert "canary" not in out + err
        return code, out, err

    return runs


@pytest.mark.parametrize("form", [f"{KEY}\n", KEY, f"  {KEY}\r\n", f"\n{KEY}\n\n"])
def test_add_reads_one_line_from_stdin(run, requests: list[object], form: str) -> None:
    """Blanks and line ends around the key are dropped; what is shown is the mask."""
    code, out, err = run("keys", "add", "--name", "first", stdin=form.encode())
    assert (code, err) == (0, "")
    assert requests[0].api_key == KEY.encode()
    assert requests[0].display_name == "first"
    assert "sk-ant-api…wxyz" in out


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"", "empty"),
        (f"{KEY}\n{KEY}\n".encode(), "alone on its line"),
        (b"canary" * 1000, "too long"),
        (b"canary", "sk-ant-api"),
        (f"{KEY} x".encode(), "blank"),
    ],
)
def test_add_refuses_what_is_no_key_before_it_is_sent(
    run, requests: list[object], stdin: bytes, says: str
) -> None:
    """The problem is named on stderr, the value nowhere."""
    code, out, err = run("keys", "add", stdin=stdin)
    assert (code, out, requests) == (1, "", [])
    assert "api_key" in err
    assert says in err


def test_a_key_as_an_argument_is_refused_and_not_repeated(run, requests: list[object]) -> None:
    """Neither a surplus argument nor a wrong choice is echoed."""
    for argv in (("keys", "add", KEY), ("keys", KEY), ("audit", "list", "--limit", KEY)):
        code, _, err = run(*argv)
        assert code == 2
        assert "see --help" in err
    assert requests == []


def test_add_in_json_is_one_object(run, requests: list[object]) -> None:
    """For programs: the masked key, times in RFC 3339."""
    code, out, _ = run(
        "--json", "keys", "add", "--allow-different-organization", stdin=KEY.encode()
    )
    assert code == 0
    assert requests[0].allow_different_organization
    fields = json.loads(out)
    assert (fields["name"], fields["key_id"], fields["current"]) == (NAME, ID, True)
    assert fields["created_at"] == "2026-11-23T09:00:00Z"
    assert fields["last_used_at"] is None


def test_list_shows_masks_and_which_is_current(run, requests: list[object]) -> None:
    """A line for each key: mask, state, organisation, times; no control characters."""
    code, out, _ = run("keys", "list")
    assert code == 0
    first, second = out.splitlines()[1:]
    assert first.startswith("●")
    for part in (
        "sk-ant-api…wxyz",
        "first",
        "active",
        "org-1",
        "2026-11-23 09:00Z",
        "never",
        ID,
    ):
        assert part in first
    assert "rejected by Anthropic" in second
    assert "●" not in second
    assert "\x1b[31m" not in out
    assert "[red]" in second
    code, out, _ = run("keys", "list", "--json")
    assert [key["state"] for key in json.loads(out)["keys"]] == ["ACTIVE", "REJECTED_BY_ANTHROPIC"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_ids_stay_whole_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is to be copied is never broken over lines: the id, the organisation, the mask."""
    monkeypatch.setattr("ironwork_client.cli._output._PIPE_WIDTH", width)
    organization = "5f0c6c1e-9b1d-4c57-8f0e-2f3b8a7d6c10"
    key = MaskedKey(
        NAME,
        "a long name for a key",
        "sk-ant-api…wxyz",
        KeyState.REJECTED_BY_ANTHROPIC,
        True,
        organization,
        None,
        "",
        None,
        None,
        None,
    )
    _output.print_keys([key])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    for whole in (ID, organization, "sk-ant-api…wxyz"):
        assert any(whole in line for line in lines), whole


def test_an_empty_list_says_what_to_do(run, scripted_server: Server) -> None:
    """No keys is no error."""
    scripted_server.unary["ListMasked"] = lambda *_: keys_pb2.ListMaskedResponse()
    code, out, _ = run("keys", "list")
    assert (code, "ironwork keys add" in out) == (0, True)
    assert run("keys", "list", "--json")[1] == '{"keys": []}\n'


def test_delete_without_a_terminal_needs_yes(run, requests: list[object]) -> None:
    """A script says --yes; nothing is destroyed by a stray pipe."""
    code, _, err = run("keys", "delete", ID, stdin=b"y\n")
    assert (code, "--yes" in err, requests) == (2, True, [])
    code, out, _ = run("keys", "delete", ID, "--yes", "--cancel-in-flight")
    assert code == 0
    assert (requests[0].name, requests[0].cancel_in_flight) == (NAME, True)
    assert "no key now" in out
    assert "ended: 1" in out
    code, out, _ = run("keys", "delete", NAME, "--yes", "--json")
    assert json.loads(out) == {"current": None, "cancelled_requests": 1}


@pytest.mark.parametrize(("answer", "deleted"), [(b"y\n", True), (b"n\n", False), (b"", False)])
def test_delete_asks_on_a_terminal(
    run, requests: list[object], answer: bytes, deleted: bool
) -> None:
    """The key is shown before the question; anything but yes leaves it."""
    code, out, err = run("keys", "delete", ID, stdin=answer, tty=True)
    assert "sk-ant-api…wxyz" in err
    assert "Destroy this key?" in err
    assert (code == 0) == deleted
    assert any(isinstance(request, keys_pb2.DeleteKeyRequest) for request in requests) == deleted
    assert deleted or "Nothing was deleted" in err
    assert deleted == ("destroyed" in out)


CODES = [
    (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", None, 4, "No."),
    (grpc.StatusCode.UNAUTHENTICATED, "NO_IDENTITY", None, 4, "No."),
    (grpc.StatusCode.UNAVAILABLE, "ANTHROPIC_UNAVAILABLE", 9, 3, "Try again in 9 s"),
    (grpc.StatusCode.FAILED_PRECONDITION, "DIFFERENT_ORGANIZATION", None, 1, "--allow-different"),
    (grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS", None, 1, "keys list"),
    (grpc.StatusCode.INVALID_ARGUMENT, "KEY_INVALID", None, 1, "console"),
    (grpc.StatusCode.INTERNAL, "INTERNAL", None, 1, "No."),
]


@pytest.mark.parametrize("case", CODES)
def test_the_exit_code_says_what_kind_of_refusal(
    run,
    scripted_server: Server,
    case: tuple[grpc.StatusCode, str, int | None, int, str],
) -> None:
    """1 refused, 3 try again, 4 not permitted; the mend stands on stderr."""
    code, reason, retry_s, exits, says = case
    error = status(code, reason, retry_s=retry_s)
    scripted_server.unary["AddKey"] = lambda _, context: scripted.abort(context, error)
    got, out, err = run("keys", "add", stdin=KEY.encode())
    assert (got, out) == (exits, "")
    assert "No." in err
    assert says in err
    got, _, err = run("keys", "add", "--json", stdin=KEY.encode())
    assert (got, json.loads(err)["error"]["reason"]) == (exits, reason)


def test_a_server_that_is_away_is_exit_3(run, scripted_server: Server) -> None:
    """Unavailable, whoever says so."""
    scripted_server.stop()
    code, _, err = run("keys", "list")
    assert (code, "could not be reached" in err) == (3, True)


def test_a_wrong_profile_is_exit_2(run, tmp_path: Path) -> None:
    """--profile wins over the environment, before and after the command."""
    missing = str(tmp_path / "none.toml")
    assert run("keys", "list", "--profile", missing)[0] == 2
    code, _, err = run("--profile", missing, "keys", "list")
    assert (code, "none.toml" in err) == (2, True)


EVENT = {
    "time": 1_795_424_400_123,
    "status": "Success",
    "metadata": {"event_code": "WithKey", "tenant_uid": "acme"},
    "actor": {"user": {"uid": "spiffe://x/agent"}},
    "resources": [{"type": "key", "uid": ID}],
    "unmapped": {"phase": "intent"},
}


def test_audit_list_shows_entries(run, scripted_server: Server) -> None:
    """A table for people, JSON lines for programs; an unreadable entry is shown as such."""
    seen: list[audit_pb2.ListEntriesRequest] = []
    events = [json.dumps(EVENT).encode(), b"not json", b'{"time":"x"}']

    def handler(request: audit_pb2.ListEntriesRequest, _: object) -> audit_pb2.ListEntriesResponse:
        seen.append(request)
        return audit_pb2.ListEntriesResponse(
            entries=[
                audit_pb2.AuditEntry(origin="o", index=index, event=event)
                for index, event in enumerate(events)
            ]
        )

    scripted_server.unary["ListEntries"] = handler
    code, out, err = run("audit", "list", "--workspace", "acme", "--since", "2026-11-23T09:00")
    assert (code, err) == (0, "")
    assert seen[0].workspace == "workspaces/acme"
    assert seen[0].start_time.seconds == 1_795_424_400
    line = out.splitlines()[1]
    for part in ("0", "2026-11-23 09:00:00.123", "WithKey", "intent", "Success", "acme", ID):
        assert part in line
    assert "not readable" in out
    code, out, err = run("audit", "list", "--limit", "2", "--start-index", "512")
    assert seen[-1].start_index == 512
    assert "More entries follow" in err
    assert len(out.splitlines()) == 3
    code, out, _ = run("audit", "list", "--json", "--limit", "2")
    first, second = map(json.loads, out.splitlines())
    assert (first["event"], second["event"], second["index"]) == (EVENT, None, 1)
    assert run("audit", "list", "--until", "yesterday")[0] == 2


def test_an_empty_log_says_so(run, scripted_server: Server) -> None:
    """No entries is no error."""
    scripted_server.unary["ListEntries"] = lambda *_: audit_pb2.ListEntriesResponse()
    assert run("audit", "list")[:2] == (0, "No entries match.\n")


def test_the_prompt_does_not_echo(profile_file: Path, requests: list[object]) -> None:
    """On a real terminal, what is typed is not shown, and arrives."""
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ironwork_client.cli.main import main; raise SystemExit(main())",
            "keys",
            "add",
            "--profile",
            str(profile_file),
        ],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    typed = False
    while True:
        try:
            part = os.read(keyboard, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
        # Echo is off before the prompt is written.
        if not typed and b"not shown" in shown:
            os.write(keyboard, KEY.encode() + b"\n")
            typed = True
    os.close(keyboard)
    assert process.wait(20) == 0
    assert requests[0].api_key == KEY.encode()
    assert b"canary" not in shown
    assert "sk-ant-api…wxyz".encode() in shown


def test_a_terminal_that_cannot_hide_is_refused(
    run, requests: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where echo cannot be switched off the key is not asked for."""

    def warns(prompt: str) -> str:
        import warnings
        from getpass import GetPassWarning

        warnings.warn("echo", GetPassWarning, stacklevel=2)
        return KEY

    monkeypatch.setattr("getpass.getpass", warns)
    code, _, err = run("keys", "add", tty=True)
    assert (code, "unseen" in err, requests) == (1, True, [])


@pytest.mark.parametrize("error", [EOFError, KeyboardInterrupt])
def test_an_interrupted_prompt_is_no_traceback(
    run, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C and Ctrl-D end the command with 130."""

    def interrupted(prompt: str) -> str:
        raise error

    monkeypatch.setattr("getpass.getpass", interrupted)
    code, _, err = run("keys", "add", tty=True)
    assert (code, err) == (130, "ironwork: Interrupted.\n")


def test_delete_shows_which_key_is_current_now(run, scripted_server: Server) -> None:
    """After a deletion the newest key that remains is shown."""
    answer = keys_pb2.DeleteKeyResponse(current=masked())
    scripted_server.unary["DeleteKey"] = lambda *_: answer
    code, out, _ = run("keys", "delete", "other", "--yes")
    assert code == 0
    assert "Current now" in out
    assert "sk-ant-api…wxyz" in out
    assert "ended" not in out


def test_an_unknown_key_is_asked_about_and_refused_by_the_service(
    run, scripted_server: Server, requests: list[object]
) -> None:
    """What is not in the list is not guessed at here."""
    error = status(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    scripted_server.unary["DeleteKey"] = lambda _, context: scripted.abort(context, error)
    code, _, err = run("keys", "delete", "none", stdin=b"yes\n", tty=True)
    assert (code, "Destroy this key?" in err) == (1, True)
    assert "keys list" in err


def test_a_typed_key_is_stripped_and_sent(
    run, requests: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paste with blanks around it is the key."""
    monkeypatch.setattr("getpass.getpass", lambda prompt: f" {KEY} ")
    assert run("keys", "add", tty=True)[0] == 0
    assert requests[0].api_key == KEY.encode()


def test_a_limit_below_one_is_wrong_usage(run) -> None:
    """At least one entry is asked for."""
    assert run("audit", "list", "--limit", "0")[0] == 2


def test_an_impossible_time_is_left_out(run, scripted_server: Server) -> None:
    """A time that no calendar holds does not break the table."""
    entry = audit_pb2.AuditEntry(index=3, event=b'{"time": 99999999999999999999}')
    answer = audit_pb2.ListEntriesResponse(entries=[entry])
    scripted_server.unary["ListEntries"] = lambda *_: answer
    code, out, _ = run("audit", "list")
    assert (code, out.splitlines()[1].strip()) == (0, "3")


def test_a_reader_that_leaves_is_no_traceback(profile_file: Path, requests: list[object]) -> None:
    """`ironwork keys list | head -0` ends quietly."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ironwork_client.cli.main import main; raise SystemExit(main())",
            *("keys", "list", "--json", "--profile", str(profile_file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(20) == 1
