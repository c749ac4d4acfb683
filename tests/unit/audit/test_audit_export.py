"""Exporting entries: OCSF lines as they are, CEF with its escapes, filters."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.tlog_made import NOW, call_event, made_entries, rendered, write_log
from ironwork_audit import EVENT, NotAnEvent, parse
from ironwork_audit.cli.main import main
from ironwork_audit.export_cef import to_cef

ENTRIES = made_entries(300)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, ENTRIES)
    return folder


def exported(log: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> list[bytes]:
    assert main(["export", str(log), *arguments]) == 0
    return [line.encode() for line in capfd.readouterr().out.splitlines()]


def test_everything(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without filters, the exact bytes of every entry, a line each."""
    assert exported(log, capfd) == ENTRIES
    assert exported(log, capfd, "--start-index", "290") == ENTRIES[290:]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--workspace", "globex"], lambda e: e.event.workspace == "globex"),
        (["--workspace", "workspaces/globex"], lambda e: e.event.workspace == "globex"),
        (["--key-id", "k-3"], lambda e: e.event.key_id == "k-3"),
        (["--operation", "journal.created"], lambda e: e.sequence == 0),
        (
            ["--principal", "spiffe://ironwork.test/ws/acme/agent/2"],
            lambda e: e.event.principal.endswith("/2"),
        ),
        (["--from", "2026-11-23T12:00:00.100Z"], lambda e: e.sequence >= 100),
        (["--to", "2026-11-23T13:00:00.1+01:00"], lambda e: e.sequence < 100),
        (["--from", "2026-11-24"], lambda _: False),
        (
            ["--workspace", "acme", "--key-id", "k-1"],
            lambda e: (e.event.workspace, e.event.key_id) == ("acme", "k-1"),
        ),
    ],
)
def test_filters(
    arguments: list[str],
    wanted,  # type: ignore[no-untyped-def]
    log: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every filter must fit; times are read as RFC 3339, without a zone as UTC."""
    expected = [entry for entry in ENTRIES if wanted(parse(entry))]
    assert exported(log, capfd, *arguments) == expected


def test_cef(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An entry in CEF: who, what, where, how it ended, and what the log knows besides."""
    line = exported(log, capfd, "--format", "cef")[4].decode()
    assert line == (
        "CEF:0|Ironwork|Ironwork keys|1.6.0|WithKey|WithKey outcome|1|rt=1795435200004 "
        "externalId=4 outcome=success suser=spiffe://ironwork.test/ws/acme/agent/3 src=10.0.0.3 "
        "spt=1027 cs1Label=workspace cs1=globex cs2Label=key cs2=k-3 cs3Label=correlation "
        "cs3=call-00000003 cs4Label=phase cs4=outcome cs5Label=origin cs5=keys.test/a "
        "ironworkAgent=claude-code/2 "
        "ironworkAnthropicRequestId=req_000000000000000000000003 ironworkDurationMs=900 "
        "ironworkHttpStatus=200 ironworkInputTokens=30 ironworkIntentIndex=3 "
        "ironworkKeyMask=sk-ant-api…wxyz ironworkOutcome=COMPLETED ironworkOutputTokens=3 "
        "ironworkRole=agent ironworkSentUpstream=true ironworkTask=build"
    )


FIELD = re.compile(r"([A-Za-z0-9]+)=((?:[^\\=]|\\[\\=nr])*?)(?= [A-Za-z0-9]+=|$)")
UNESCAPED = {"\\\\": "\\", "\\=": "=", "\\n": "\n", "\\r": "\r", "\\|": "|"}


def unescape(text: str) -> str:
    return re.sub(r"\\[\\=nr|]", lambda match: UNESCAPED[match[0]], text)


@settings(deadline=None)  # a slow machine is no failure
@given(st.text("a\\=| \"'{n", max_size=20), st.text('a\\=|"n', max_size=20))
def test_cef_escapes(task: str, principal: str) -> None:
    """Backslashes, equals signs and pipes in values never end a field early or make a new one."""
    event = call_event(1, phase=EVENT, task=task, principal=principal, operation="policy.reload")
    line = to_cef(rendered(event, 1))
    header = re.split(r"(?<!\\)\|", line, maxsplit=7)
    assert header[:6] == [
        "CEF:0",
        "Ironwork",
        "Ironwork keys",
        "1.6.0",
        "policy.reload",
        "policy.reload event",
    ]
    fields = {name: unescape(value) for name, value in FIELD.findall(header[7])}
    assert fields.get("suser", "") == principal
    # A value's spaces at its end cannot be told from the separator.
    assert fields.get("ironworkTask", "").rstrip() == task.rstrip()
    assert "\n" not in line


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"operation": "auth.refused", "success": False}, "auth.refused event|6|"),
        ({"success": False, "reason": "KEY_EXISTS"}, "outcome=failure reason=KEY_EXISTS"),
        ({"success": False}, "WithKey event|4|"),
        (
            {"principal": "", "peer": "", "workspace": "", "key_id": ""},
            "externalId=1 outcome=success cs3",
        ),
        ({"operation": "policy.reload", "key_id": "k-9"}, "cs2=k-9"),
    ],
)
def test_cef_of_other_events(event: dict[str, object], found: str) -> None:
    """Every class has its severity, its outcome and its reason; what is not known is left out."""
    assert found in to_cef(
        rendered(call_event(1, **({"phase": EVENT, "success": True} | event)), 1)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", [b"", b"[]", b"{}", b'{"metadata":1}', b"[" * 100_000])
def test_no_entry_is_no_cef(entry: bytes) -> None:
    """What is no entry has no CEF."""
    with pytest.raises(NotAnEvent):
        to_cef(entry)


@pytest.mark.parametrize("bad", [b"no entry", b'{"a":\n1}'])
def test_a_bad_entry_ends_the_export(
    bad: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 at the first entry that is none; those before it are out."""
    write_log(tmp_path, [*ENTRIES[:5], bad])
    assert main(["export", str(tmp_path)]) == 1
    captured = capfd.readouterr()
    assert captured.out.encode().splitlines() == ENTRIES[:5]
    assert captured.err.startswith("BAD  entry 5: ")


def test_a_missing_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 1, named by its first entry."""
    write_log(tmp_path, ENTRIES)
    (tmp_path / "tile/entries/001.p/44").unlink()
    assert main(["export", str(tmp_path)]) == 1
    assert "BAD  entry 256: " in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--from", "yesterday"], ["--start-index", "-1"]])
def test_wrong_arguments(
    arguments: list[str], log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 for a time that is none."""
    assert main(["export", str(log), *arguments]) == 2
    assert "ironwork-audit: --" in capfd.readouterr().err


def test_an_entry_of_a_later_time_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """--to is the first moment that is not wanted."""
    event = call_event(0, time=NOW + timedelta(days=1))
    write_log(tmp_path, [rendered(event, 0)])
    assert exported(tmp_path, capfd, "--to", "2026-11-24T12:00:00Z") == []
    assert len(exported(tmp_path, capfd, "--to", "2026-11-24T12:00:00.001Z")) == 1
