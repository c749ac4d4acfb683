"""A whole service and PyPI's `aics-witness`, a witness that others wrote."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.journal_events import entries, operations
from fixtures.server import AUDITOR, StartService, TestService
from fixtures.signing import SigningKeyFiles
from fixtures.tlog_made import KEY, WITNESS_KEY, call_event, made_entries, rendered, write_log
from fixtures.witness import TOOLS, RunningWitness, StartWitness
from fixtures.witnessed import become, until, witnessed_size
from ironwork_audit.cli.main import main as audit_main
from ironwork_audit.source import FolderSource, read_tile
from ironwork_audit.tlog import TileReader, VerifierKey
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.verify import verify
from ironwork_audit.witness_submission import WitnessConflict
from ironwork_hsm.signers import open_signer
from ironwork_server.app import doctor_log
from ironwork_server.custody.checkpoints import verifier_key
from ironwork_server.journal.witness import Witness
from ironwork_server.journal.witness_files import WitnessFiles
from ironwork_server.journal.witness_http import WitnessEndpoint
from ironwork_server.rpc.health import WITNESS
from ironwork_server.store import sqlite_path

DEADLINE_S = 60.0
ORIGIN = "ironwork.test/server"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
async def log_key(signing_key: SigningKeyFiles) -> VerifierKey:
    """What the service will sign with."""
    signer = await open_signer(signing_key.uri)
    key = verifier_key(ORIGIN, signer)
    await signer.close()
    return key


@pytest.fixture
def witness(start_witness: StartWitness, log_key: VerifierKey, tmp_path: Path) -> RunningWitness:
    return start_witness(tmp_path / "witness", str(log_key))


def audit(folder: Path, key: SigningKeyFiles, *witnesses: tuple[str, str]) -> dict[str, Any]:
    return {
        "folder": folder,
        "origin": ORIGIN,
        "signing_key": key.uri,
        "witnesses": [{"url": url, "key": text} for url, text in witnesses],
        "witness_quorum": max(1, len(witnesses)),
    }


async def status(service: TestService, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(service.channel(AUDITOR))
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)).status)


def others_verify(note: Path, log_key: VerifierKey, witness_key: str) -> None:
    """By aics-tlog: both signatures, and the witness's is not old."""
    options = {
        "note": note,
        "origin": ORIGIN,
        "log-key": log_key,
        "witness-key": witness_key,
        "quorum": 1,
        "max-age": 600,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [TOOLS / "aics-tlog", "verify-checkpoint", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_service_is_witnessed(
    start_service: StartService,
    signing_key: SigningKeyFiles,
    witness: RunningWitness,
    log_key: VerifierKey,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """What a call left is signed by the witness; our verifier and others' find both signatures;
    health, metrics and doctor say so; a restart goes on from there.
    """
    folder = tmp_path / "audit"
    settings = audit(folder, signing_key, (witness.url, witness.key))
    service = await start_service(audit=settings)
    await service.add()
    size = len(entries(folder)) - 2  # but for the checkpoint's own signing
    await until(lambda: witnessed_size(folder) >= size)
    await become(service, WITNESS, Status.SERVING)
    assert await status(service, "") == Status.SERVING
    metrics = await service.metrics()
    assert 'ironwork_witness_submissions_total{result="ok",witness="witness.test/one"}' in metrics
    assert 'ironwork_healthy{component="witness"} 1.0' in metrics
    await service.stop()  # type: ignore[attr-defined]
    # The end is witnessed too, and the published checkpoint has both signatures.
    assert b"witness.test/one" in (folder / "checkpoint").read_bytes()
    arguments = ["verify", str(folder), "--key", str(log_key), "--witness-key", witness.key]
    assert audit_main(arguments) == 0
    assert "entries witnessed by witness.test/one" in capsys.readouterr().out
    others_verify(folder / "checkpoint", log_key, witness.key)
    (kept,) = (folder / "witness").iterdir()
    assert kept.name == VerifierKey.parse(witness.key).key_id.hex()
    newest = open_checkpoint((folder / "checkpoint").read_bytes(), log_key)
    found = [
        *doctor_log.heads(service.settings, newest.checkpoint),
        *doctor_log.witnesses(service.settings, log_key, newest, time.time()),
    ]
    assert [each.check for each in found] == [
        "audit.head",
        "audit.witness witness.test/one",
        "audit.witnessed",
    ]
    assert {each.status.value for each in found} == {"ok"}

    before = witnessed_size(folder)
    service = await start_service(audit=settings)
    assert await status(service, WITNESS) == Status.SERVING
    await until(lambda: witnessed_size(folder) > before)
    assert json.loads(witness.command("status", "--json"))["logs"][0]["size"] > before


async def test_a_log_begun_anew_is_an_alarm(
    start_service: StartService,
    signing_key: SigningKeyFiles,
    witness: RunningWitness,
    tmp_path: Path,
) -> None:
    """Another log under the same name and key: refused by the witness, on record, in health and
    metrics; and calls are served all the same.
    """
    known = (witness.url, witness.key)
    service = await start_service(audit=audit(tmp_path / "audit", signing_key, known))
    await service.add()
    await until(lambda: witnessed_size(tmp_path / "audit") > 10)
    await service.stop()  # type: ignore[attr-defined]

    anew = tmp_path / "anew"
    # Else the store's own guard of the log's head refuses to start.
    with sqlite3.connect(sqlite_path(service.settings.store.url)) as database:
        database.execute("DELETE FROM log_heads")
    database.close()
    service = await start_service(audit=audit(anew, signing_key, known))
    await until(lambda: "witness.conflict" in operations(anew))
    (event,) = [item.event for item in entries(anew) if item.event.operation == "witness.conflict"]
    assert event.reason in {"WITNESS_AHEAD", "WITNESS_CONFLICT"}
    assert (event.success, event.details["witness"]) == (False, "witness.test/one")
    await become(service, WITNESS, Status.NOT_SERVING)
    assert await status(service, "") == Status.SERVING
    await service.add()
    assert f'{{result="{event.reason}",witness="witness.test/one"}}' in await service.metrics()
    assert not (anew / "checkpoint.witnessed").exists()


async def test_a_rewritten_history_is_refused(start_witness: StartWitness, tmp_path: Path) -> None:
    """One entry changed, every tile and the root made anew, signed with our own key: our verifier
    alone finds nothing wrong, the witness answers 422 and keeps both as evidence.
    """
    running = start_witness(tmp_path / "witness", str(KEY))
    endpoint = WitnessEndpoint(running.url)
    witness = Witness(endpoint, VerifierKey.parse(running.key), KEY)
    events = made_entries(600)
    honest = write_log(tmp_path / "honest", events[:500])
    await witness.submit(honest, files(tmp_path / "honest").prove)
    false = rendered(call_event(265, task="something else"), 265)
    rewritten = write_log(tmp_path / "false", [*events[:265], false, *events[266:]])
    assert verify(FolderSource(tmp_path / "false"), KEY).finding is None
    with pytest.raises(WitnessConflict, match="WITNESS_CONFLICT"):
        await witness.submit(rewritten, files(tmp_path / "false").prove)
    assert len(json.loads(running.command("evidence"))) > 0
    await witness.submit(write_log(tmp_path / "grown", events), files(tmp_path / "grown").prove)
    assert witness.size == 600
    await endpoint.close()


class _Tiles:
    """A log's tiles, from its folder."""

    def __init__(self, folder: Path) -> None:
        self._source = FolderSource(folder)

    def hashes(self, size: int) -> TileReader:
        return TileReader(size, lambda tile: read_tile(self._source, tile))


async def _nobody(_: bytes) -> None:
    """Nothing is published."""


def files(folder: Path) -> WitnessFiles:
    return WitnessFiles(folder, _Tiles(folder), _nobody)


async def test_a_hung_witness_delays_nothing(
    start_service: StartService,
    signing_key: SigningKeyFiles,
    witness: RunningWitness,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two witnesses one takes requests and never answers: calls, health and the end of the
    service go on, the other witness signs all the while, and it is told.
    """
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and reads from none
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    key = str(VerifierKey("silent.test/w", VerifierKey.parse(witness.key).type, bytes(32)))
    settings = audit(tmp_path / "audit", signing_key, (url, key), (witness.url, witness.key))
    service = await start_service(audit=settings | {"witness_quorum": 1})
    for _ in range(2):
        before = len(entries(tmp_path / "audit"))
        await service.add()
        await until(lambda before=before: witnessed_size(tmp_path / "audit") > before)
    assert await status(service, "") == Status.SERVING
    await until(lambda: "witness.failing" in caplog.text)
    await service.stop()  # type: ignore[attr-defined]
    silent.close()


async def test_unwitnessed_is_said(service: TestService) -> None:
    """Without a witness health has a status that says so, and a metric."""
    assert await status(service, WITNESS) == Status.NOT_SERVING
    assert await status(service, "") == Status.SERVING
    assert 'ironwork_healthy{component="witness"} 0.0' in await service.metrics()


def test_what_was_kept_goes_with_the_log(tmp_path: Path) -> None:
    """A copy of the published files alone, with a rolled-back checkpoint, is found out by the
    witnessed one beside it.
    """
    folder = tmp_path / "log"
    events = made_entries(300)
    witnessed = write_log(folder, events, witness_time=1_800_000_000)
    (folder / "checkpoint.witnessed").write_bytes(witnessed)
    shutil.copytree(folder, tmp_path / "back")
    write_log(tmp_path / "back", events[:200])
    finding = verify(FolderSource(tmp_path / "back"), KEY, witnesses=[WITNESS_KEY]).finding
    assert finding is not None
    assert "rolled back" in finding.what
    grown = made_entries(400)
    write_log(folder, grown)
    verdict = verify(FolderSource(folder), KEY, witnesses=[WITNESS_KEY])
    assert (verdict.finding, verdict.witnessed) == (None, 300)
    (folder / "checkpoint.witnessed").unlink()
    assert verify(FolderSource(folder), KEY, witnesses=[WITNESS_KEY]).finding is not None
