"""Witnesses that hang: servers that never answer, or a byte at a time, and a real one that is
stopped. They delay nothing, are told, and are gone on with.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from fixtures.agent import Agent
from fixtures.server import AGENT, StartService, TestService
from fixtures.signing import SigningKeyFiles
from fixtures.witness import StartWitness
from fixtures.witnessed import DEADLINE_S, become, until, witnessed_size
from ironwork.keys.v1 import keys_pb2
from ironwork_audit.tlog import Checkpoint, KeyType, VerifierKey, parse_note
from ironwork_hsm.signers import open_signer
from ironwork_server.custody.checkpoints import verifier_key
from ironwork_server.journal import witnesses
from ironwork_server.rpc.health import WITNESS

ORIGIN = "ironwork.test/server"
CALLS = 20
Status = health_pb2.HealthCheckResponse


@pytest.fixture
async def log_key(signing_key: SigningKeyFiles) -> VerifierKey:
    signer = await open_signer(signing_key.uri)
    key = verifier_key(ORIGIN, signer)
    await signer.close()
    return key


class Hung:
    """A real TCP server that takes requests and keeps them: it answers nothing, or, trickling,
    part of an answer's head a byte at a time, for as long as it is left to.
    """

    def __init__(self, *, trickles: bool) -> None:
        self.asked = asyncio.Event()
        self.waiting = 0
        self.url = ""
        self._trickles = trickles

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Hung]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked.set()
            if self._trickles:
                writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not writer.is_closing():
                    writer.write(b"z")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            await reader.read()  # until the other side has had enough
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.waiting -= 1
            writer.close()


def audit(folder: Path, key: SigningKeyFiles, *known: tuple[str, str]) -> dict[str, Any]:
    return {
        "folder": folder,
        "origin": ORIGIN,
        "signing_key": key.uri,
        "witnesses": [{"url": url, "key": text} for url, text in known],
        "witness_quorum": 1,
    }


def size(folder: Path) -> int:
    return Checkpoint.parse(parse_note((folder / "checkpoint").read_bytes()).text).size


async def told(service: TestService, metric: str) -> None:
    """Wait until metrics say so."""
    async with asyncio.timeout(DEADLINE_S):
        while metric not in await service.metrics():  # noqa: ASYNC110 - metrics are asked for
            await asyncio.sleep(0.02)


async def calls(service: TestService) -> None:
    """Claude requests, one after the other, each served whole."""
    agent = Agent(service.keys(AGENT), deadline_s=DEADLINE_S)
    await agent.start()
    for _ in range(CALLS):
        assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


@pytest.mark.parametrize("trickles", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_nothing_waits_for_a_witness_that_hangs(
    start_service: StartService,
    start_witness: StartWitness,
    signing_key: SigningKeyFiles,
    log_key: VerifierKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trickles: bool,
) -> None:
    """While one request to it is open, without an end, calls and an admin's are served, the other
    witness signs what they left, health is well, and the service can end.
    """
    monkeypatch.setattr(witnesses, "ANSWER_S", 3600.0)
    good = start_witness(tmp_path / "witness", str(log_key))
    folder = tmp_path / "audit"
    async with Hung(trickles=trickles).listening() as hung:
        key = VerifierKey("hung.test/w", VerifierKey.parse(good.key).type, bytes(32))
        settings = audit(folder, signing_key, (hung.url, str(key)), (good.url, good.key))
        service = await start_service(audit=settings)
        await service.add()
        await hung.asked.wait()
        before = witnessed_size(folder)
        await calls(service)
        await service.add()
        assert hung.waiting == 1, "the same request hangs still"
        written = size(folder)
        assert written >= before + 4 * CALLS
        await until(lambda: witnessed_size(folder) >= written)
        await become(service, WITNESS, Status.SERVING)
        await become(service, "", Status.SERVING)
        await service.stop()  # type: ignore[attr-defined]
        await until(lambda: hung.waiting == 0)


@pytest.mark.parametrize("trickles", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_witness_that_hangs_is_told(
    start_service: StartService,
    signing_key: SigningKeyFiles,
    log_key: VerifierKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    caplog: pytest.LogCaptureFixture,
    trickles: bool,
) -> None:
    """After its deadline, whether bytes still come or not: in the log, in metrics, and in health as
    unwitnessed; its connection is closed.
    """
    monkeypatch.setattr(witnesses, "ANSWER_S", 0.3)
    monkeypatch.setattr(witnesses, "LATE_S", 0.5)
    async with Hung(trickles=trickles).listening() as hung:
        key = VerifierKey("hung.test/w", KeyType.COSIGNATURE_V1, bytes(32))
        settings = audit(tmp_path / "audit", signing_key, (hung.url, str(key)))
        service = await start_service(audit=settings)
        await service.add()
        await hung.asked.wait()
        await until(lambda: "witness.failing" in caplog.text)
        await become(service, WITNESS, Status.NOT_SERVING)
        await become(service, "", Status.SERVING)
        await told(service, 'result="WITNESS_TIMEOUT",witness="hung.test/w"')
        await told(service, 'ironwork_healthy{component="witness"} 0.0')
        await calls(service)
        await service.stop()  # type: ignore[attr-defined]
        await until(lambda: hung.waiting == 0)


async def test_a_real_witness_that_is_stopped_and_goes_on(
    start_service: StartService,
    start_witness: StartWitness,
    signing_key: SigningKeyFiles,
    log_key: VerifierKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aics-witness under SIGSTOP takes connections and answers none: calls are served, it is told
    as unwitnessed; after SIGCONT it signs what came meanwhile, without a restart.
    """
    monkeypatch.setattr(witnesses, "ANSWER_S", 0.5)
    monkeypatch.setattr(witnesses, "LATE_S", 1.0)
    monkeypatch.setattr(witnesses, "BACKOFF_S", (0.1, 0.2))
    witness = start_witness(tmp_path / "witness", str(log_key))
    folder = tmp_path / "audit"
    service = await start_service(audit=audit(folder, signing_key, (witness.url, witness.key)))
    await service.add()
    await until(lambda: witnessed_size(folder))
    witness.process.send_signal(signal.SIGSTOP)
    try:
        await calls(service)
        await service.add()
        await told(service, 'result="WITNESS_TIMEOUT"')
        await become(service, WITNESS, Status.NOT_SERVING)
        await become(service, "", Status.SERVING)
        behind, written = witnessed_size(folder), size(folder)
        assert behind < written
    finally:
        witness.process.send_signal(signal.SIGCONT)
    await until(lambda: witnessed_size(folder) >= written)
    await become(service, WITNESS, Status.SERVING)
    await service.stop()  # type: ignore[attr-defined]
