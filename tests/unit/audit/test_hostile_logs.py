"""The auditor's commands fed with logs and records that somebody made up to harm the auditor."""

import contextlib
import gzip
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.reconcile_made import hsm_event
from fixtures.tlog_made import KEY, NOW, ORIGIN, made_entry, write_log
from ironwork_audit import NotAnEvent, render
from ironwork_audit.cli.main import main
from ironwork_audit.reconcile.calls import NotARecord
from ironwork_audit.reconcile.spy import parse_spy
from ironwork_audit.tlog import VerifierKey
from ironwork_audit.verify_entry import EntryChecker

# Titles, cursors and colours; what turns a line round; a line of its own.
TRICKS = ("\x1b]0;x\x07", "a\x9b2Jb", "\u202exe.gpj", "a\nOK   b", "a\rb", "x\u2028y", "\x7f")
HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
EXPORT = (
    '{"exported_time":"2026-11-23T12:00:00+00:00","format":"ironwork-key-ids/1","keys":1}\n'
    '{"created_time":"2026-11-23T12:00:00+00:00","key_id":"k","sequence":1,"state":"ACTIVE",'
    '"workspace":"acme"}\n'
)


def run(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and all that it wrote."""
    out, error = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(arguments)
    out.flush()
    written = out.buffer.getvalue().decode()  # type: ignore[attr-defined]  # BytesIO
    return code, written + error.getvalue()


def commands(log: str, folder: Path) -> Iterator[list[str]]:
    """Every way to read a log."""
    export, spy = folder / "export", folder / "spy"
    export.write_text(EXPORT)
    spy.write_text("0: C_Initialize\n2026-11-23 12:00:00.000\nReturned:  0 CKR_OK\n")
    yield ["tail", log, "--no-follow"]
    yield ["tail", log, "--no-follow", "--key", str(KEY), "--intents"]
    yield ["export", log, "--format", "cef"]
    yield ["verify", log, "--key", str(KEY), "--workers", "1"]
    yield [
        "report",
        log,
        "--out",
        str(folder / "page.html"),
        "--from",
        "2026-11-01",
        "--to",
        "2027",
    ]
    yield ["reconcile", log, "--store", str(export)]
    yield ["reconcile", log, "--spy", str(spy)]
    yield ["reconcile", log, "--hsmd", log]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every member of a document, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        yield (*path, name)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, name))


def entry_at(number: int) -> bytes:
    """An intent, an outcome, and those of an unwrap."""
    if number < 2:
        return made_entry(number + 1)
    event = hsm_event(number, 1, "hsm.unwrap", None if number == 2 else 2)
    return render(event, origin=ORIGIN, sequence=number, logged_time=NOW)


HOSTILE = st.one_of(
    st.sampled_from(TRICKS),
    st.sampled_from(["hsm.unwrap", "AddKey", "outcome", "x" * 5000, ""]),
    st.sampled_from([-1, 0, 2, 10**15, 10**20, 10**400, 10**4000, True, None, 1.5]),
    st.sampled_from([[], {}, [[]], {"type": "key"}, {"uid": "\x1b[2J"}]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(number=st.integers(0, 3), pick=st.integers(0, 10**6), value=HOSTILE, named=st.booleans())
def test_no_entry_harms_who_reads_it(number: int, pick: int, value: Any, named: bool) -> None:
    """Whatever an entry holds instead of what we write, each command ends by itself with one of its
    exit codes, and nothing that plays tricks on a terminal comes out.
    """
    document = json.loads(entry_at(number))
    found = list(places(document))
    *path, last = found[pick % len(found)]
    target = document
    for name in path:
        target = target[name]
    if named and isinstance(target, dict):
        target[str(value)[:100]] = target.pop(last)
    else:
        target[last] = value
    entry = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=pick % 2 == 0)
    with tempfile.TemporaryDirectory() as name_:
        folder = Path(name_)
        log = folder / "log"
        write_log(log, [made_entry(0), entry.encode(), made_entry(2)])
        for command in commands(str(log), folder):
            code, written = run(*command)
            assert code in {0, 1, 2}, command
            assert not HARMFUL.search(written), command


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("where", ["workspace", "key", "origin", "operation", "name"])
def test_cef_is_one_line_of_ours(tmp_path: Path, trick: str, where: str) -> None:
    """An entry that is not of our form becomes none: neither a value nor a name of it begins
    another line or another field.
    """
    document = json.loads(made_entry(0))
    match where:
        case "workspace":
            document["metadata"]["tenant_uid"] = trick
        case "key":
            document["resources"] = [{"type": "key", "uid": f"{trick}|=\\"}]
        case "origin":
            document["metadata"]["log_name"] = trick
        case "operation":
            document["metadata"]["event_code"] = f"x|{trick}"
        case _:
            document["unmapped"][f"x=1 suser{trick}"] = "y"
    entry = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    write_log(tmp_path / "log", [entry])
    code, written = run("export", str(tmp_path / "log"), "--format", "cef")
    assert code == 1
    assert written.startswith("BAD  entry 0")
    assert not HARMFUL.search(written)


def test_a_record_that_is_full_of_gaps_is_refused() -> None:
    """A spy's log whose calls leave out others costs no memory beyond a bound."""
    lines = []
    for call in range(0, 3_000_000, 900):
        lines += [b"%d: C_Initialize\n" % call, b"Returned:  0 CKR_OK\n"]
    with pytest.raises(NotARecord, match="missing"):
        parse_spy(lines, "spy")


@pytest.mark.parametrize("kind", ["fifo", "folder", "zero"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    """A pipe, a folder or a device in a file's place is told of, and not waited for."""
    checkpoint = tmp_path / "checkpoint"
    if kind == "fifo":
        os.mkfifo(checkpoint)
    elif kind == "folder":
        checkpoint.mkdir()
    else:
        checkpoint.symlink_to("/dev/zero")
    code, written = run("tail", str(tmp_path), "--no-follow")
    assert code == 2
    assert str(checkpoint) in written


def test_names_in_a_cloud_s_record_play_no_tricks(tmp_path: Path) -> None:
    """An event's name and our context's parts are whoever called the cloud's to choose."""
    backend = "awskms:///alias/keys"
    step = hsm_event(0, 0, "hsm.unwrap", None, details={"backend": backend})
    entry = render(step, origin=ORIGIN, sequence=0, logged_time=NOW)
    write_log(tmp_path / "log", [entry])
    event = {
        "eventName": f"Decrypt{TRICKS[0]}",
        "eventSource": "kms.amazonaws.com",
        "eventTime": "2026-11-23T12:00:00Z",
        "requestID": "r",
        "requestParameters": {"encryptionContext": {"ironwork:master-key": backend}},
    }
    record = tmp_path / "trail.json.gz"
    record.write_bytes(gzip.compress(json.dumps({"Records": [event]}).encode()))
    code, written = run("reconcile", str(tmp_path / "log"), "--cloudtrail", str(record))
    assert code in {0, 1}
    assert "Decrypt" in written
    assert not HARMFUL.search(written)


def test_a_key_of_a_foreign_name_is_no_log_of_ours(tmp_path: Path) -> None:
    """A verifier key may be called by any characters: its log is then told to be a foreign one."""
    write_log(tmp_path / "log", [made_entry(0)])
    key = VerifierKey("tlog.例え", KEY.type, KEY.public)
    code, written = run("verify", str(tmp_path / "log"), "--key", str(key), "--workers", "1")
    assert code == 1
    assert "BAD" in written
    with pytest.raises(NotAnEvent):
        EntryChecker(key.name).check(made_entry(0), 0)


def test_it_is_the_escapes_that_are_looked_for() -> None:
    """The search of these tests finds each of the tricks."""
    assert all(HARMFUL.search(trick.replace("\n", "\x0b")) for trick in TRICKS), sys.version
