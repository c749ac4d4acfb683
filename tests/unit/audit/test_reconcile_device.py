"""`ironwork-audit reconcile --spy`: one to one, and by name what is not."""

import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fixtures.reconcile_made import BACKEND, SpyLog, gcm, log_of
from fixtures.tlog_made import made_entries, write_log
from ironwork_audit.cli.main import main

UNWRAP = "hsm.unwrap"
Operations = list[tuple[int, int, str, dict[str, object]]]


def run(folder: Path, operations: Operations, spy: SpyLog, *arguments: str) -> int:
    write_log(folder / "log", log_of(*operations))
    (folder / "spy.log").write_bytes(b"".join(spy.bytes_lines()))
    return main(
        [
            "reconcile",
            str(folder / "log"),
            "--spy",
            str(folder / "spy.log"),
            "--skew",
            "0",
            *arguments,
        ]
    )


def details(mechanism: str, **changes: str) -> dict[str, object]:
    return {"details": {"backend": BACKEND, "mechanism": mechanism, **changes}}


def everything() -> tuple[Operations, SpyLog]:
    """Every operation that succeeds, by every mechanism, and what a device has of each."""
    spy = SpyLog()
    operations: Operations = []
    at = 0

    def step(operation: str, mechanism: str, *calls: tuple[str, str], **changes: str) -> None:
        nonlocal at
        operations.append((at, at + 90, operation, details(mechanism, **changes)))
        for number, (function, name) in enumerate(calls):
            if function in {"C_Encrypt", "C_Decrypt", "C_Sign"}:
                spy.init(f"{function}Init", name, at + 10 + number)
            if name == "CKM_EDDSA":
                spy.size_query("C_Sign", "pSignature", at + 10 + number)
            spy.use(function, at + 10 + number)
        at += 100

    step("hsm.generate", "", ("C_GenerateKey", ""))
    step("hsm.generate", "ed25519", ("C_GenerateKeyPair", ""), purpose="checkpoint")
    for mechanism, name in (
        ("aes-256-gcm", "CKM_AES_GCM"),
        ("aes-256-gcm-device-iv", "CKM_AES_GCM"),
        ("aes-256-gcm-appended-iv", "CKM_AES_GCM"),
        ("aes-256-cbc-seed", "CKM_AES_CBC"),
    ):
        step("hsm.probe", mechanism, ("C_Encrypt", name), ("C_Decrypt", name))
        step("hsm.wrap", mechanism, ("C_Encrypt", name))
        step(UNWRAP, mechanism, ("C_Decrypt", name))
    mac = ("C_Sign", "CKM_SHA256_HMAC")
    step("hsm.probe", "hmac-sha256-derive", mac, mac)
    step("hsm.wrap", "hmac-sha256-derive", mac)
    step(UNWRAP, "hmac-sha256-derive", mac)
    step("hsm.sign", "ed25519", ("C_Sign", "CKM_EDDSA"), purpose="checkpoint")
    step("hsm.sign", "ecdsa-p256", ("C_Sign", "CKM_ECDSA"), purpose="checkpoint")
    step("hsm.destroy", "", ("C_DestroyObject", ""))
    step("hsm.open", "")
    return operations, spy


def test_every_operation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each entry has the calls that ADR 0017 says, and each call its entry: exit 0."""
    operations, spy = everything()
    assert run(tmp_path, operations, spy) == 0
    said = capsys.readouterr().out
    assert "OK   20 operations in the log, 25 on record elsewhere: each has its other" in said
    assert "1 left out: size queries" in said


@pytest.mark.parametrize("index", range(20))
def test_an_entry_that_is_not_there(
    index: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever operation is left out of our log, its call is named: exit 1."""
    operations, spy = everything()
    assert run(tmp_path, operations[:index] + operations[index + 1 :], spy) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    assert bad
    assert all("spy.log line " in line and "has no entry in the log" in line for line in bad)


def test_a_call_behind_our_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A decryption that no entry knows is named by its line and time."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 50)
    gcm(spy, "C_Decrypt", 500)
    assert run(tmp_path, [(0, 90, UNWRAP, {})], spy) == 1
    said = capsys.readouterr().out
    assert (
        "BAD  spy.log line 31 at 2026-11-23T12:00:00.500Z: C_Decrypt CKM_AES_GCM has no entry"
    ) in said


def test_an_entry_of_what_was_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An operation that the device does not know is named by origin and index."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 50)
    assert run(tmp_path, [(0, 90, UNWRAP, {}), (100, 190, UNWRAP, {})], spy) == 1
    assert (
        "BAD  keys.test/a entry 2 at 2026-11-23T12:00:00.100Z: hsm.unwrap of key k-1 is on "
        "record as done, and the device has no C_Decrypt CKM_AES_GCM for it"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operation", "function", "mechanism", "code"),
    [
        (UNWRAP, "C_Encrypt", "CKM_AES_GCM", "0 CKR_OK"),
        (UNWRAP, "C_Decrypt", "CKM_AES_CBC", "0 CKR_OK"),
        (UNWRAP, "C_Decrypt", "CKM_AES_GCM", "5 CKR_GENERAL_ERROR"),
        ("hsm.wrap", "C_WrapKey", "CKM_AES_GCM", "0 CKR_OK"),
    ],
)
def test_another_call_is_not_the_one(
    operation: str,
    function: str,
    mechanism: str,
    code: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Function, mechanism and result must be those of the entry: else both are named."""
    spy = SpyLog()
    spy.init(f"{function}Init", mechanism, 10)
    spy.use(function, 10, code)
    assert run(tmp_path, [(0, 90, operation, {})], spy) == 1
    assert capsys.readouterr().out.count("BAD") == 2


def test_operations_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed unwrap explains its own call and the known value there and back; a failed one that
    reached no device needs none; one cut off by a kill explains its call. They are counted.
    """
    failed: dict[str, object] = {"success": False, "reason": "KEY_RECORD_DAMAGED"}
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 10, "5 CKR_GENERAL_ERROR")
    gcm(spy, "C_Encrypt", 11)
    gcm(spy, "C_Decrypt", 12)
    gcm(spy, "C_Decrypt", 40_210)
    operations: Operations = [
        (0, 90, UNWRAP, failed),
        (40_000, 40_090, UNWRAP, failed),
        (40_200, -1, UNWRAP, {}),
    ]
    assert run(tmp_path, operations, spy) == 0
    assert "4 belong to operations that failed, were cut off or repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mechanism", "own", "wraps_now"),
    [
        ("aes-256-cbc-seed", "CKM_AES_CBC", "CKM_AES_GCM"),
        ("aes-256-gcm", "CKM_AES_GCM", "CKM_AES_CBC"),
        ("aes-256-cbc-seed", "CKM_AES_CBC", "CKM_AES_CBC"),
    ],
)
def test_the_known_value_goes_by_what_wraps_now(
    mechanism: str, own: str, wraps_now: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed unwrap explains a known value by the mechanism that wraps now, though another one
    made the blob; and none by any other.
    """
    damaged: dict[str, object] = {"success": False, "reason": "KEY_RECORD_DAMAGED"}
    failed = details(mechanism) | damaged

    def seen(known: str) -> SpyLog:
        spy = SpyLog()
        calls = (("C_Decrypt", own), ("C_Encrypt", known), ("C_Decrypt", known), ("C_Decrypt", own))
        for at, (function, name) in enumerate(calls, 10):
            spy.init(f"{function}Init", name, at)
            spy.use(function, at)
        return spy

    assert run(tmp_path, [(0, 90, UNWRAP, failed)], seen(wraps_now)) == 0
    assert run(tmp_path / "other", [(0, 90, UNWRAP, failed)], seen("CKM_AES_ECB")) == 1
    assert capsys.readouterr().out.count("BAD") == 2


def test_more_than_a_failure_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fourth decryption beside one failed unwrap is named."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 10, "5 CKR_GENERAL_ERROR")
    for at in (11, 12, 13):
        gcm(spy, "C_Decrypt", at)
    failed: dict[str, object] = {"success": False, "reason": "KEY_RECORD_DAMAGED"}
    assert run(tmp_path, [(0, 90, UNWRAP, failed)], spy) == 1
    assert capsys.readouterr().out.count("BAD") == 1


def test_several_logs_and_several_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes' logs are held together against the records of several processes."""
    for number in (1, 2):
        write_log(
            tmp_path / str(number),
            log_of((number * 1000, number * 1000 + 90, UNWRAP, {}), origin=f"keys.test/{number}"),
        )
        spy = SpyLog()
        gcm(spy, "C_Decrypt", number * 1000 + 10)
        (tmp_path / f"spy{number}.log").write_bytes(b"".join(spy.bytes_lines()))
    logs = [str(tmp_path / "1"), str(tmp_path / "2")]
    spies = [f"--spy={tmp_path / 'spy1.log'}", f"--spy={tmp_path / 'spy2.log'}"]
    assert main(["reconcile", *logs, *spies]) == 0
    assert main(["reconcile", *logs, spies[0]]) == 1
    assert main(["reconcile", logs[0], *spies]) == 1
    assert main(["reconcile", logs[0], logs[0], *spies]) == 2
    assert "two of them have one origin" in capsys.readouterr().err
    capsys.readouterr()


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    """What is in tmp_path, by URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_published_log(
    published: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published log ends at its checkpoint: what was done after its last entry is not missed in
    it, what was done before is.
    """
    write_log(tmp_path / "log", log_of((0, 90, UNWRAP, {}), (5000, 5090, UNWRAP, {})))
    spy = SpyLog()
    for at in (10, 5010, 9000):
        gcm(spy, "C_Decrypt", at)
    (tmp_path / "spy.log").write_bytes(b"".join(spy.bytes_lines()))
    arguments = [f"{published}/log", "--spy", str(tmp_path / "spy.log"), "--skew", "0"]
    assert main(["reconcile", *arguments]) == 0
    gcm(spy, "C_Decrypt", 2000)
    (tmp_path / "spy.log").write_bytes(b"".join(spy.bytes_lines()))
    assert main(["reconcile", *arguments]) == 1
    assert capsys.readouterr().out.count("BAD") == 1


def test_a_period(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what lies in the period is missed."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 50)
    gcm(spy, "C_Decrypt", 5000)
    operations: Operations = [(4000, 6000, UNWRAP, {})]
    assert run(tmp_path, operations, spy, "--from", "2026-11-23T12:00:01Z") == 0
    assert run(tmp_path, operations, spy, "--to", "2026-11-23T12:00:01Z") == 1
    capsys.readouterr()


def test_other_backends_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device's log is held against the entries of its own kind of master key."""
    other: dict[str, object] = {"details": {"backend": "awskms:///k", "mechanism": "aws-kms"}}
    spy = SpyLog()
    spy.use("C_GetInfo", 0)
    assert run(tmp_path, [(0, 90, UNWRAP, other)], spy) == 0
    capsys.readouterr()


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for programs."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 50)
    assert run(tmp_path, [(0, 90, UNWRAP, {})], spy, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "problems": [],
        "entries": 1,
        "calls": 1,
        "explained": 0,
        "ignored": 0,
    }


def test_an_outcome_whose_intent_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log whose outcomes have no intents is bad by itself."""
    entries = log_of((0, 90, UNWRAP, {}))
    write_log(tmp_path / "log", [*made_entries(1), entries[1]])
    (tmp_path / "spy.log").write_bytes(b"\n")
    assert main(["reconcile", str(tmp_path / "log"), "--spy", str(tmp_path / "spy.log")]) == 1
    assert "BAD  entry 1: an outcome of hsm.unwrap without its intent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operations", "spied", "arguments", "said"),
    [
        ([(0, 1, "hsm.dance", {})], b"\n", [], "hsm.dance is an operation not known here"),
        ([(0, 1, UNWRAP, details("rot13"))], b"\n", [], "by a mechanism not known here"),
        ([], b"{}\n", [], "spy.log line 1: not a line of pkcs11-spy"),
        ([], b"\n", ["--zone", "Mars/Olympus"], "--zone: not a time zone"),
        ([], b"\n", ["--skew", "-1"], "--skew: from 0"),
        ([], b"\n", ["--from", "soon"], "--from: not a time"),
    ],
)
def test_what_cannot_be_held_against_each_other(
    operations: Operations,
    spied: bytes,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2 and the reason on standard error: nothing was found out."""
    write_log(tmp_path / "log", log_of(*operations) or made_entries(1))
    spy = tmp_path / "spy.log"
    spy.write_bytes(spied)
    assert main(["reconcile", str(tmp_path / "log"), "--spy", str(spy), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_times_are_the_log_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A call outside its entry's time is not its call, unless the clocks may differ so much."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 95)
    assert run(tmp_path, [(0, 90, UNWRAP, {})], spy) == 1
    assert run(tmp_path, [(0, 90, UNWRAP, {})], spy, "--skew", "0.01") == 0
    capsys.readouterr()
