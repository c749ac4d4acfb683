"""`ironwork-audit reconcile --cloudtrail`, `--hsmd` and `--store`."""

import base64
import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.reconcile_made import key_call, key_event, log_of
from fixtures.tlog_made import NOW, write_log
from ironwork_audit import INTENT, OUTCOME
from ironwork_audit.cli.main import main
from ironwork_audit.reconcile.calls import NotARecord
from ironwork_audit.reconcile.store import parse_export
from ironwork_server.core.envelope import Binding, pepper_context, wrap_context

ARN = "arn:aws:kms:eu-central-1:111122223333:key/one"
BACKEND = f"awskms:///{ARN}"
AWS: dict[str, object] = {"details": {"backend": BACKEND, "mechanism": "aws-kms"}}
FAILED: dict[str, object] = {"success": False, "reason": "KEY_RECORD_DAMAGED"}


# --- CloudTrail ------------------------------------------------------------------------------


def context(key_id: str) -> bytes:
    if key_id == "pepper":
        return pepper_context()
    if key_id == "canary":
        return b"ironwork-canary-v1"
    return wrap_context(Binding("acme", key_id, 7, NOW))


def trail(at_s: int, name: str, key_id: str, **changes: object) -> dict[str, Any]:
    """As CloudTrail writes an event of KMS."""
    return {
        "eventVersion": "1.08",
        "eventSource": "kms.amazonaws.com",
        "eventName": name,
        "eventTime": (NOW + timedelta(seconds=at_s)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "requestID": f"request-{at_s}",
        "requestParameters": {
            "keyId": ARN,
            "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "encryptionContext": {
                "ironwork:format": "ironwork-wrap-v1",
                "ironwork:master-key": BACKEND,
                "ironwork:version": "1",
                "ironwork:mechanism": "aws-kms",
                "ironwork:context": base64.b64encode(context(key_id)).decode(),
            },
        },
        "responseElements": None,
        "resources": [{"ARN": ARN, "type": "AWS::KMS::Key"}],
    } | changes


def run_trail(
    folder: Path,
    operations: list[tuple[int, int, str, dict[str, object]]],
    events: list[dict[str, Any]],
) -> int:
    write_log(folder / "log", log_of(*operations))
    file = folder / "trail.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"Records": events}).encode()))
    return main(["reconcile", str(folder / "log"), "--cloudtrail", str(file)])


def test_cloudtrail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wraps, unwraps and probes have their events, by key; reading a key's description is none, and
    what was done with other keys of the account is left out.
    """
    operations = [
        (0, 90, "hsm.probe", AWS | {"key_id": ""}),
        (60_000, 60_090, "hsm.wrap", AWS),
        (120_000, 120_090, "hsm.unwrap", AWS),
        (180_000, 180_090, "hsm.unwrap", AWS | {"key_id": ""}),
    ]
    other = {"resources": [{"ARN": f"{ARN}-other"}], "requestParameters": {"keyId": f"{ARN}-other"}}
    events = [
        trail(0, "Encrypt", "canary"),
        trail(0, "Decrypt", "canary"),
        trail(60, "Encrypt", "k-1"),
        trail(120, "Decrypt", "k-1"),
        trail(180, "Decrypt", "pepper"),
        trail(5, "DescribeKey", "k-1"),
        trail(5, "Decrypt", "k-1", **other),
        trail(5, "PutObject", "k-1", eventSource="s3.amazonaws.com"),
    ]
    assert run_trail(tmp_path, operations, events) == 0
    said = capsys.readouterr().out
    assert "4 operations in the log, 5 on record elsewhere: each has its other" in said
    for left_out in range(5):
        assert run_trail(tmp_path, operations, events[:left_out] + events[left_out + 1 :]) == 1
        assert capsys.readouterr().out.count("BAD") == 1


@pytest.mark.parametrize(
    "event",
    [
        trail(300, "Decrypt", "k-1"),
        trail(120, "Decrypt", "k-2"),
        trail(120, "GenerateDataKey", "k-1"),
        trail(120, "Decrypt", "k-1", requestParameters={"keyId": ARN}),
        trail(120, "ScheduleKeyDeletion", "k-1", requestParameters={"keyId": ARN}),
        trail(400, "Decrypt", "k-1", errorCode="AccessDenied"),
    ],
)
def test_a_use_of_the_kms_key_behind_our_back(
    event: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At another time, for another key, by another operation, without our context or refused: an
    event with our KMS key that no entry explains is named by its request.
    """
    operations = [(120_000, 120_090, "hsm.unwrap", AWS)]
    assert run_trail(tmp_path, operations, [trail(120, "Decrypt", "k-1"), event]) == 1
    said = capsys.readouterr().out
    assert "BAD  trail.json.gz record 2 (request request-" in said
    assert "has no entry in the log" in said


def test_repeated_calls_of_kms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost answer leaves up to three lines for one entry, and says so; a fourth is named."""
    operations = [(120_000, 120_090, "hsm.unwrap", AWS)]
    events = [trail(120, "Decrypt", "k-1") for _ in range(3)]
    assert run_trail(tmp_path, operations, events) == 0
    assert "2 belong to operations that failed, were cut off or repeated" in capsys.readouterr().out
    assert run_trail(tmp_path, operations, [*events, events[0]]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"Records":1}',
        b'{"Records":[1]}',
        b'{"Records":[{"eventName":"Decrypt","eventSource":"kms.amazonaws.com","eventTime":"x"}]}',
        b"\x1f\x8b\x00",
        gzip.compress(b"{}" * 100)[:20],
        b"[" * 100_000,
    ],
)
def test_what_is_no_cloudtrail(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, and the file is named."""
    write_log(tmp_path / "log", log_of((0, 1, "hsm.probe", AWS)))
    (tmp_path / "trail.json").write_bytes(data)
    arguments = ["reconcile", str(tmp_path / "log"), "--cloudtrail", str(tmp_path / "trail.json")]
    assert main(arguments) == 2
    assert "ironwork-audit: trail.json" in capsys.readouterr().err


# --- the HSM process -------------------------------------------------------------------------


def run_hsmd(folder: Path, server: list[Any], process: list[Any]) -> int:
    write_log(folder / "server", log_of(*server))
    write_log(folder / "hsmd", log_of(*process))
    return main(["reconcile", str(folder / "server"), "--hsmd", str(folder / "hsmd")])


def call(correlation_id: str, **changes: object) -> dict[str, object]:
    return {"correlation_id": correlation_id, "principal": "uid:1000", **changes}


def test_the_hsm_process_s_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exact by correlation id, probes by time; what the process did by itself is left out."""
    server = [
        (0, 90, "hsm.unwrap", call("a")),
        (100, 190, "hsm.unwrap", call("a")),
        (200, 290, "hsm.wrap", call("b")),
        (300, 390, "hsm.probe", call("c")),
        (400, 490, "hsm.sign", call("d")),
        (60_000, 60_090, "hsm.unwrap", call("e", **FAILED)),
    ]
    process = [
        (10, 80, "hsm.unwrap", call("a")),
        (110, 180, "hsm.unwrap", call("a")),
        (210, 280, "hsm.wrap", call("b")),
        (310, 380, "hsm.probe", call("made by the process".replace(" ", "-"))),
        (410, 480, "hsm.sign", call("d")),
        (500, 580, "hsm.probe", call("f", principal="")),
        (500, 580, "hsm.list", call("g")),
    ]
    assert run_hsmd(tmp_path, server, process) == 0
    for index in range(5):
        assert run_hsmd(tmp_path, server[:index] + server[index + 1 :], process) == 1
        assert "for uid:1000 has no entry in the server's log" in capsys.readouterr().out
        assert run_hsmd(tmp_path, server, process[:index] + process[index + 1 :]) == 1
        assert "and the HSM process has no entry for it" in capsys.readouterr().out


# --- the store -------------------------------------------------------------------------------


def export(*keys: str, at_s: int = 3600, announced: int | None = None) -> bytes:
    head = {
        "format": "ironwork-key-ids/1",
        "exported_time": (NOW + timedelta(seconds=at_s)).isoformat(),
        "keys": len(keys) if announced is None else announced,
    }
    rows = [
        {"workspace": "acme", "key_id": key, "sequence": number, "state": "ACTIVE"}
        for number, key in enumerate(keys)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in [head, *rows])


def run_store(folder: Path, entries: list[bytes], data: bytes) -> int:
    write_log(folder / "log", entries)
    (folder / "ids.jsonl").write_bytes(data)
    return main(["reconcile", str(folder / "log"), "--store", str(folder / "ids.jsonl")])


def lives() -> list[bytes]:
    entries = key_call("AddKey", "k-1", 0, [])
    entries = key_call("AddKey", "k-2", 1000, entries)
    return key_call("DeleteKey", "k-1", 2000, entries)


def test_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that was added and not deleted is there, one that was deleted is not."""
    assert run_store(tmp_path, lives(), export("k-2")) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            export("k-1", "k-2"),
            "workspaces/acme/keys/k-1: deleted by keys.test/a entry 5 at "
            "2026-11-23T12:00:02.010Z, and back in the store",
        ),
        (export("k-2", "k-3"), "keys/k-3: in the store, and no AddKey is on record"),
        (
            export(),
            "keys/k-2: added by keys.test/a entry 3 at 2026-11-23T12:00:01.010Z, not in the "
            "store, and no DeleteKey is on record",
        ),
    ],
)
def test_what_the_store_and_the_log_disagree_about(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deleted key that came back, a row that nobody added, a key that is gone: each is named."""
    assert run_store(tmp_path, lives(), data) == 1
    said_lines = capsys.readouterr().out.splitlines()
    assert [line for line in said_lines if line.startswith("BAD")] == [
        line for line in said_lines if said in line
    ]


def test_what_happened_around_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was added or deleted after the rows were read is not held against them; a call that was
    cut off explains either state.
    """
    after = key_call("AddKey", "k-9", 4_000_000, lives())
    after = key_call("DeleteKey", "k-2", 4_000_000, after)
    assert run_store(tmp_path, after, export("k-2")) == 0
    cut_off = lives()
    for phase, changes in ((INTENT, {"success": None}), (OUTCOME, {"intent_index": 6})):
        index = len(cut_off)
        cut_off.append(key_event(index, "hsm.wrap", "acme", "k-3", 2500, phase=phase, **changes))
    cut_off.append(key_event(8, "DeleteKey", "acme", "k-2", 2600, phase=INTENT, success=None))
    for keys in (("k-2",), ("k-2", "k-3"), (), ("k-3",)):
        assert run_store(tmp_path, cut_off, export(*keys)) == 0
    erased = [*lives(), key_event(6, "key.deleted", "acme", "k-2", 2600)]
    assert run_store(tmp_path, erased, export()) == 0
    assert run_store(tmp_path, erased, export("k-2")) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]\n",
        b"{}\n",
        export("k-1", announced=2),
        export("k-1", "k-1"),
        export("k-1") + b"{}\n",
        export("k\n1"),
        export("k-1").replace(b"+00:00", b""),
        export("k-1").replace(b"exported_time", b"time"),
        export("k-1", announced=-1),
    ],
)
def test_what_is_no_export(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2: also for one that is shorter than it announces."""
    assert run_store(tmp_path, lives(), data) == 2
    assert "ids.jsonl" in capsys.readouterr().err


@settings(deadline=None)  # a slow machine is no failure
@given(st.lists(st.binary(max_size=80), max_size=4))
def test_no_bytes_break_the_export_s_reader(lines: list[bytes]) -> None:
    """Whatever stands in the file is refused as a record."""
    with pytest.raises(NotARecord, match=r"ids\.jsonl"):
        parse_export(lines, "ids.jsonl")


def test_a_store_takes_no_period(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key's life is the whole log."""
    write_log(tmp_path / "log", lives())
    (tmp_path / "ids.jsonl").write_bytes(export("k-2"))
    arguments = ["--store", str(tmp_path / "ids.jsonl"), "--from", "2026-11-23"]
    assert main(["reconcile", str(tmp_path / "log"), *arguments]) == 2
    assert "--store: takes no period" in capsys.readouterr().err
