"""A key is in nothing that a server's process leaves behind, at log level debug and with gRPC's own
debugging on: not on its standard streams, in its state folder, its arguments or its environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fixtures.agent import Agent, message_body
from fixtures.evidence import Evidence, files_in, leaks, process_files, whole
from fixtures.processes import standing_still
from fixtures.scene import CALL_S, random_body
from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc, keys_pb2, keys_pb2_grpc

PARENT = "workspaces/acme"
START_S = 60.0
STOP_S = 30.0


@dataclass
class Process:
    """`ironwork-server dev`, running. keys: what its simulator knows, by what they are good for."""

    process: subprocess.Popen[str]
    folder: Path
    evidence: Evidence
    target: str
    keys: dict[str, str]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def channel(self, role: str) -> grpc.aio.Channel:
        """A connection with the profile that the server wrote for a role."""
        profiles = self.state / "profiles"
        credentials = grpc.ssl_channel_credentials(
            (profiles / "ca.pem").read_bytes(),
            (profiles / f"{role}-key.pem").read_bytes(),
            (profiles / f"{role}.pem").read_bytes(),
        )
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.max_send_message_length", -1),
        ]
        return grpc.aio.secure_channel(self.target, credentials, options)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for all tests here; its standard error goes to a file."""
    folder = tmp_path_factory.mktemp("process")
    command = [
        *(sys.executable, "-m", "ironwork_server", "dev", "--json", "--log-level", "debug"),
        *("--state", str(folder / "state"), "--listen", "127.0.0.1:0", "--pace", "0"),
    ]
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "DEBUG"},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "stderr").read_text()
        ready = json.loads(line)
        evidence = Evidence(folder / "evidence")
        yield Process(process, folder, evidence, ready["target"], ready["simulator_keys"])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def ask(server: Process, role: str, request: keys_pb2.AddKeyRequest) -> str:
    """AddKey; OK, or why not."""
    async with server.channel(role) as channel:
        try:
            added = await keys_pb2_grpc.KeyServiceStub(channel).AddKey(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            return server.evidence.error(error)
        server.evidence.answer(added)
        return "OK"


async def add(server: Process, key: str | bytes, *, role: str = "admin", **more: object) -> str:
    """AddKey; OK, or why not."""
    raw = key.encode() if isinstance(key, str) else key
    request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=raw, **more)  # type: ignore[arg-type]
    return await ask(server, role, request)


async def test_a_whole_life_of_keys_leaves_no_trace_of_them(server: Process) -> None:
    """Keys are added, refused, used and deleted, the HSM's token is lost, the server is stopped: no
    key is anywhere, and the PIN nowhere but in its file.
    """
    keys = server.keys
    body = random_body()
    unknown = f"sk-ant-api03-{body}AA"
    assert await add(server, keys["first"]) == "OK"
    assert await add(server, keys["first"]) == "KEY_EXISTS"
    assert await add(server, keys["revoked"]) == "KEY_INVALID"
    assert await add(server, unknown) == "KEY_INVALID"
    assert await add(server, keys["restricted"]) == "KEY_WITHOUT_PERMISSION"
    assert await add(server, keys["other-organization"]) == "DIFFERENT_ORGANIZATION"
    assert await add(server, keys["second"], role="agent") == "PERMISSION_DENIED"
    assert await add(server, unknown.encode() + b"\n") == "API_KEY_MALFORMED"
    assert await add(server, keys["second"], display_name=unknown) == "INVALID_FIELD"
    assert await add(server, (unknown + " ").encode() * 90_000) == "API_KEY_MALFORMED"
    await use(server)
    assert await add(server, keys["second"]) == "OK"
    await use(server)
    await delete_all(server)
    assert await add(server, keys["third"]) == "OK"
    await read_audit(server)
    await lose_the_token(server)
    with standing_still(server.process.pid) as processes:
        for process in processes:
            process_files(process.pid, server.evidence)
        assert "ironwork_simulator" in server.evidence.text("cmdline")
        assert "GRPC_VERBOSITY=DEBUG" in server.evidence.text("environ")
        search(server, {**keys, "unknown": unknown})
    assert server.stop() == 0
    assert server.process.stdout is not None
    server.evidence.note("stdout", server.process.stdout.read())
    search(server, {**keys, "unknown": unknown})


async def use(server: Process) -> None:
    """Messages of all kinds, Anthropic's errors, and a call that is broken off."""
    async with server.channel("agent") as channel:
        agent = Agent(keys_pb2_grpc.KeyServiceStub(channel), PARENT, deadline_s=60)
        await agent.start()
        for behaviour in ("", "rate-limited", "overloaded", "mid-stream-error", "cut", "reset"):
            headers = [
                ("content-type", b"application/json"),
                ("anthropic-version", b"2023-06-01"),
            ]
            if behaviour:
                headers.append(("anthropic-simulator", behaviour.encode()))
            answer = await agent.call(body=message_body(stream=True), headers=headers)
            server.evidence.answer(answer.end)
            assert answer.end.sent_upstream
        answer = await agent.call(body=message_body(), headers=[("x-api-key", b"mine")])
        assert answer.reason == "HEADER_REFUSED"
        await agent.begin(body=message_body(stream=True))
        agent.stream.cancel()


async def delete_all(server: Process) -> None:
    """DeleteKey for each key that is listed."""
    async with server.channel("admin") as channel:
        stub = keys_pb2_grpc.KeyServiceStub(channel)
        listed = await stub.ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S)
        server.evidence.answer(listed)
        assert len(listed.keys) == 2
        for key in listed.keys:
            request = keys_pb2.DeleteKeyRequest(name=key.name, cancel_in_flight=True)
            server.evidence.answer(await stub.DeleteKey(request, timeout=CALL_S))


async def read_audit(server: Process) -> None:
    """The log, as an auditor reads it."""
    async with server.channel("auditor") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        page = await stub.ListEntries(audit_pb2.ListEntriesRequest(page_size=1000), timeout=CALL_S)
        assert len(page.entries) > 20
        server.evidence.note("audit-entries", *(entry.event for entry in page.entries))


async def lose_the_token(server: Process) -> None:
    """A real SoftHSM fails under the server: its token's files are gone."""
    tokens = server.state / "hsm" / "tokens"
    away = tokens.with_name("away")
    tokens.rename(away)
    reason = await add(server, server.keys["first"])
    away.rename(tokens)
    assert reason.startswith("MASTER_KEY_")


def search(server: Process, keys: dict[str, str]) -> None:
    """Everything there is, for every key and the PIN."""
    log = (server.folder / "stderr").read_text()
    assert '"level": "debug"' in log
    for silent in ("anthropic", "httpx2", "sqlalchemy"):
        assert f'"logger": "{silent}' not in log
    files = files_in(server.folder)
    names = {path.name for path in files}
    assert {"keys.db", "requests.log", "stderr", "roles.cedar", "admin.toml", "pin"} <= names
    assert leaks({name: key.encode() for name, key in keys.items()}, files) == []
    pins = {
        name: whole((server.state / "hsm" / name).read_bytes().strip())
        for name in ("pin", "so-pin")
    }
    for name, pin in pins.items():
        found = {entry.split(": ")[1].rpartition(" (")[0] for entry in leaks({name: pin}, files)}
        assert found == {str(server.state / "hsm" / name)}


def test_a_key_in_arguments_or_environment_would_be_found(tmp_path: Path) -> None:
    """The search of a process finds a key that it was started with, in either place."""
    key = f"sk-ant-api03-{random_body()}AA"
    evidence = Evidence(tmp_path / "evidence")
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "ANTHROPIC_API_KEY": key},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process_files(process.pid, evidence)
        process.communicate(b"\n")
    found = leaks({"key": key.encode()}, files_in(evidence.folder))
    assert {Path(entry.split(": ")[1].split(" ")[0]).name for entry in found} == {
        "cmdline",
        "environ",
    }
