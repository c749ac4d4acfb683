"""The HSM process' own record as an operator has it signed, and an auditor checks it."""

import asyncio
import json
import shutil
from pathlib import Path

from fixtures.hsmd import ORIGIN, Hsmd, MakeHsmd, entries_of
from fixtures.signing import MakeSigningKey
from fixtures.softhsm import MakeToken
from fixtures.verifiers import Check
from fixtures.witness import StartWitness
from ironwork_audit.cli.main import main as audit
from ironwork_audit.tlog import Checkpoint, VerifierKey, parse_note
from ironwork_hsm import BackendOptions
from ironwork_hsm.remote import RemoteKeyWrapper, open_unix
from ironwork_hsm.signers import open_signer

CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


def signed(make_hsmd: MakeHsmd, uri: str, *, start: bool = True, **settings: str) -> Hsmd:
    """An HSM process whose record has this key."""
    hsmd = make_hsmd(start=False, **settings)
    hsmd.settings["record"]["signing_key"] = uri
    if start:
        hsmd.start()
    return hsmd


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.parse(parse_note((folder / "checkpoint").read_bytes()).text)


async def connect(hsmd: Hsmd) -> RemoteKeyWrapper:
    return await open_unix(hsmd.uri, allow_missing=True, options=PATIENT)


async def test_the_record_is_signed_and_others_verify_it(
    make_hsmd: MakeHsmd,
    make_token: MakeToken,
    tlogcheck: Check,
    start_witness: StartWitness,
    tmp_path: Path,
) -> None:
    """From the key's making to an auditor who has the files and the verifier key alone: the
    process' record and the operator's are verified by our command and by Go's, all but a
    checkpoint's own signing is under it, and a witness signs it.
    """
    hsmd = signed(make_hsmd, make_token().uri_for("record"), start=False)
    made = hsmd.run("audit-key", "create")
    key = VerifierKey.parse(made.stdout.strip())
    assert key.name == ORIGIN
    assert hsmd.run("audit-key", "show").stdout == made.stdout
    again = hsmd.run("audit-key", "create")
    assert (again.returncode, again.stdout) == (1, "")
    assert hsmd.run("create", "--next").returncode == 0
    hsmd.start()
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT, reference="call-1")
    await remote.unwrap(wrapped, CONTEXT, reference="call-2")
    await remote.close()
    async with asyncio.timeout(60):
        # Two devices opened, one probed, and the two calls.
        while hsmd.status()["record"]["signed_entries"] < 10:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.1)
    assert hsmd.status()["record"]["signature"] == "SIGNED"
    assert hsmd.end() == 0
    record = hsmd.folder / "record"
    left = [entry.event for entry in hsmd.record()[checkpoint(record).size :]]
    assert [(event.operation, event.principal) for event in left] == [("hsm.sign", "")] * 2
    assert audit(["verify", str(record), "--key", str(key)]) == 0
    assert tlogcheck("log", record, str(key)) == (0, "OK")
    witness = start_witness(tmp_path / "witness", str(key))
    asked = ["--key", str(key), "--witness-key", witness.key]
    assert audit(["witness", str(record), *asked, "--url", witness.url]) == 0
    assert audit(["verify", str(record), *asked]) == 0

    operator = hsmd.run("audit-key", "show", "--operator").stdout.strip()
    assert VerifierKey.parse(operator).name == f"{ORIGIN}/operator"
    assert VerifierKey.parse(operator).public == key.public
    assert audit(["verify", str(record / "operator"), "--key", operator]) == 0
    done = [entry.event for entry in entries_of(record / "operator")]
    assert [(event.operation, event.phase) for event in done] == [
        (operation, phase)
        for operation in ("hsm.generate", "hsm.sign", "hsm.generate", "hsm.sign")
        for phase in ("intent", "outcome")
    ]
    assert done[1].details["purpose"] == "checkpoint"


async def test_what_does_not_go_on_from_what_was_signed_does_not_start(
    make_hsmd: MakeHsmd, make_signing_key: MakeSigningKey, tmp_path: Path
) -> None:
    """Another key, no key, and an older copy of the folder each stop the start, and say why; with
    everything as it was the record goes on.
    """
    key = make_signing_key()
    hsmd = signed(make_hsmd, key.uri)
    assert hsmd.end() == 0
    record, copy = hsmd.folder / "record", tmp_path / "copy"
    shutil.copytree(record, copy)
    hsmd.settings["record"]["signing_key"] = make_signing_key().uri
    assert "was not signed by record.signing_key" in hsmd.run().stderr
    del hsmd.settings["record"]["signing_key"]
    assert "record.signing_key is missing" in hsmd.run().stderr
    hsmd.settings["record"]["signing_key"] = key.uri
    hsmd.start()
    assert hsmd.end() == 0
    newest = checkpoint(record).size
    assert newest > checkpoint(copy).size
    shutil.move(record, tmp_path / "newest")
    shutil.copytree(copy, record)
    assert "an older copy was put back" in hsmd.run().stderr
    shutil.rmtree(record)
    shutil.move(tmp_path / "newest", record)
    hsmd.start()
    assert hsmd.end() == 0
    assert checkpoint(record).size > newest


def test_an_unsigned_record_says_so(make_hsmd: MakeHsmd) -> None:
    """Without a key of its own the record is UNSIGNED in the status and in the log, and the
    commands for the key say which setting is missing.
    """
    hsmd = make_hsmd()
    assert hsmd.status()["record"]["signature"] == "UNSIGNED"
    assert "record.unsigned" in hsmd.log.read_text()
    for action in ("create", "show"):
        assert "record.signing_key is not set" in hsmd.run("audit-key", action).stderr
    assert "say create or show" in hsmd.run("audit-key").stderr


async def test_an_operator_makes_the_servers_signing_key(
    make_hsmd: MakeHsmd, make_token: MakeToken, make_signing_key: MakeSigningKey
) -> None:
    """The key that the server's log is signed with is made on the HSM's side too, on record; the
    server reads its public half over the socket, and never that of the record's own key.
    """
    hsmd = signed(
        make_hsmd, make_signing_key().uri, start=False, signer=make_token().uri_for("log")
    )
    made = hsmd.run("audit-key", "create", "--signer")
    assert json.loads(made.stdout) == {"made": "signer"}, made.stderr
    hsmd.start()
    signer = await open_signer(hsmd.uri, options=PATIENT)
    assert signer.name == hsmd.settings["signer"].partition("?")[0]
    await signer.close()
    assert [device["role"] for device in hsmd.status()["devices"]] == [
        "wrapper",
        "signer",
        "signer",
    ]
    del hsmd.settings["signer"]
    assert "signer is not set" in hsmd.run("audit-key", "create", "--signer").stderr
