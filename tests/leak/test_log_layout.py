"""No file of a log holds a key, a hash of one, a PIN, a prompt or an answer."""

import asyncio
import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fixtures.agent import Agent
from fixtures.evidence import files_in, leaks
from fixtures.processes import Dev, dev, standing_still
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc

PARENT = "workspaces/acme"
CALL_S = 60.0
PROMPT = "the-prompt-that-nobody-may-keep-8c1f"
HASHES = ("md5", "sha1", "sha256", "sha384", "sha512", "sha3_256", "blake2b", "blake2s")


async def use(server: Dev) -> str:
    """Add a key and call Claude with it; the text that it answered."""
    async with server.channel("admin") as admin, server.channel("agent") as connection:
        request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=server.keys["first"].encode())
        await keys_pb2_grpc.KeyServiceStub(admin).AddKey(request, timeout=CALL_S)
        agent = Agent(keys_pb2_grpc.KeyServiceStub(connection), PARENT, deadline_s=CALL_S)
        await agent.start()
        for _ in range(3):
            answer = await agent.message(text=PROMPT)
            assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        text: str = json.loads(answer.body)["content"][0]["text"]
        assert len(text) > 8
        return text


def spellings(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")


def fingerprint(state: Path) -> bytes:
    """The HMAC by which the store knows the key: it is for custody alone."""
    with sqlite3.connect(state / "db" / "keys.db") as store:
        ((found,),) = store.execute("SELECT fingerprint FROM keys").fetchall()
    store.close()
    return bytes(found)


def search(state: Path, key: str, *others: bytes) -> set[str]:
    """Look through both logs, the server's and the HSM process's; the names of their files."""
    files = files_in(state / "audit", state / "hsmd" / "record")
    assert leaks({"key": key.encode()}, files) == []
    digests = [hashlib.new(name, key.encode()).digest() for name in HASHES]
    secrets = [*digests, fingerprint(state), *others]
    for path in files:
        data = path.read_bytes()
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in data, path
    return {str(path.relative_to(state)) for path in files}


def test_no_file_of_a_log_holds_a_secret(tmp_path: Path) -> None:
    """Neither while it is served nor afterwards: tiles, bundles, write-ahead files, snapshot, state
    and checkpoint.
    """
    state = tmp_path / "state"
    with dev(state) as server:
        answer = asyncio.run(use(server))
        key = server.keys["first"]
        pins = [path.read_bytes().strip() for path in state.rglob("*pin") if path.is_file()]
        assert len(pins) >= 2
        others = [PROMPT.encode(), answer.encode(), *pins]
        with standing_still(server.running.process.pid):
            search(state, key, *others)
        server.running.signal()
        assert server.running.wait() == 0
    names = search(state, key, *others)
    for log in ("audit", "hsmd/record"):
        for name in ("checkpoint", "id", "origin", "pending.0", "pending.1", "snapshot", "state"):
            assert f"{log}/{name}" in names, name
        assert any(name.startswith(f"{log}/tile/entries/") for name in names)
        assert any(name.startswith(f"{log}/tile/0/") for name in names)
