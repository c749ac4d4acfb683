"""A real service's log against what pkcs11-spy saw of it, one to one (throw-away tokens)."""

import asyncio
import re
import signal
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent
from fixtures.production import TRUST_DOMAIN
from fixtures.spied import Spied
from fixtures.tlog_made import write_log
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_audit import OUTCOME, parse, render
from ironwork_audit.reconcile.logs import entries_of

PARENT = "workspaces/acme"
DEADLINE_S = 30.0
# As the recorder writes it before each call.
TIME = re.compile(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}$")


class Callers:
    """Connections of an admin and an agent of one workspace."""

    def __init__(self, spied: Spied, target: str) -> None:
        ca = spied.production.ca
        self._channels = []
        stubs = []
        for path in ("key-admin/alice", "agent/coder"):
            issued = ca.client_certificate(f"spiffe://{TRUST_DOMAIN}/workspace/acme/{path}")
            channel = grpc.aio.secure_channel(
                target,
                grpc.ssl_channel_credentials(
                    ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
                ),
                [("grpc.use_local_subchannel_pool", 1)],
            )
            self._channels.append(channel)
            stubs.append(keys_pb2_grpc.KeyServiceStub(channel))
        self.admin, self.agent = stubs
        self.health = health_pb2_grpc.HealthStub(self._channels[1])

    async def add(self, key: str) -> str:
        request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=key.encode())
        return (await self.admin.AddKey(request, timeout=DEADLINE_S)).key.name

    async def message(self) -> str:
        """One Claude request on a stream of its own; how it ended."""
        agent = Agent(self.agent, PARENT)
        await agent.start()
        try:
            answer = await agent.message()
        finally:
            await agent.close()
        return answer.reason or keys_pb2.Outcome.Name(answer.end.outcome)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def damage(spied: Spied) -> None:
    """Flip a byte of the last row's wrapped data key, as a bad disk or an intruder would."""
    database = sqlite3.connect(spied.production.folder / "db" / "keys.db", timeout=10)
    with database:
        ((sequence, blob),) = database.execute(
            "SELECT sequence, wrap_blob FROM keys ORDER BY sequence DESC LIMIT 1"
        ).fetchall()
        changed = blob[:-1] + bytes([blob[-1] ^ 1])
        database.execute("UPDATE keys SET wrap_blob = ? WHERE sequence = ?", (changed, sequence))
    database.close()


async def a_service_s_life(spied: Spied) -> str:
    """Keys made, added, used one by one and at once, listed, deleted, damaged; probes; a kill under
    load and a restart. Returns a key that is left.
    """
    spied.run("create")
    make_key = spied.simulator.make_key
    with spied.serving() as (target, process):
        callers = Callers(spied, target)
        first = await callers.add(make_key())
        assert await callers.message() == "OUTCOME_COMPLETED"
        second = await callers.add(make_key())
        ended = await asyncio.gather(*(callers.message() for _ in range(12)))
        assert set(ended) == {"OUTCOME_COMPLETED"}
        await callers.admin.ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT))
        await callers.admin.DeleteKey(keys_pb2.DeleteKeyRequest(name=first), timeout=DEADLINE_S)
        await callers.add(make_key())
        damage(spied)
        assert await callers.message() == "KEY_RECORD_DAMAGED"
        answer = await callers.health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        load = [asyncio.ensure_future(callers.add(make_key())) for _ in range(8)]
        await asyncio.wait(load, return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*load, return_exceptions=True)
        await asyncio.to_thread(process.wait)
        await callers.close()
    with spied.serving() as (target, _):
        callers = Callers(spied, target)
        third = await callers.add(make_key())
        assert await callers.message() == "OUTCOME_COMPLETED"
        await callers.close()
    assert third != second
    return third


# Eleven programs, each of which starts Python: minutes where the machine is busy.
@pytest.mark.timeout(900)
async def test_one_to_one(spied: Spied, capsys: pytest.CaptureFixture[str]) -> None:
    """All that the service did with the HSM is on record, once, and all that is on record was done.
    A data key that is unwrapped past the log is named by its line in the recorder's log; an entry
    that is taken out of ours shows as the call that has none.
    """
    key = await a_service_s_life(spied)
    assert spied.reconcile() == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "each has its other" in said
    assert "left out: size queries" in said
    operations = {
        parse(entry).event.operation for _, entry in entries_of(str(spied.log), lambda *_: None)
    }
    assert operations >= {"hsm.generate", "hsm.probe", "hsm.wrap", "hsm.unwrap", "hsm.sign"}

    removed, last = without_the_last_unwrap(spied)
    assert spied.reconcile(removed) == 1
    assert bad(capsys) == [f"{last} C_Decrypt CKM_AES_GCM has no entry in the log"]

    spied.run("unwrap", key)
    a_minute_later(spied.spies[-1])
    assert spied.reconcile() == 1
    # Opening tried the mechanism there and back; then the data key was unwrapped.
    record = spied.spies[-1].name
    assert sorted(bad(capsys)) == [
        f"{record} C_Decrypt CKM_AES_GCM has no entry in the log",
        f"{record} C_Decrypt CKM_AES_GCM has no entry in the log",
        f"{record} C_Encrypt CKM_AES_GCM has no entry in the log",
    ]


def bad(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was named, without line and time."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    return [f"{line.split()[1]} {line.split(': ', 1)[1]}" for line in lines]


def a_minute_later(record: Path) -> None:
    """Move a record's times on: for thirty seconds an operation that the kill cut off, of which
    nobody knows whether the device did it, may explain a call.
    """

    def later(time: re.Match[str]) -> str:
        moved_on = datetime.fromisoformat(time[0]) + timedelta(minutes=1)
        return moved_on.isoformat(" ", "milliseconds")

    text, moved = TIME.subn(later, record.read_text())
    assert moved
    record.write_text(text)


def without_the_last_unwrap(spied: Spied) -> tuple[Path, str]:
    """A copy of the log as a lying operator would write it, with the last unwrap left out from the
    beginning; and the name of the record that has its call.
    """
    entries = [parse(entry) for _, entry in entries_of(str(spied.log), lambda *_: None)]
    gone = next(
        entry.event.intent_index
        for entry in reversed(entries)
        if entry.event.operation == "hsm.unwrap" and entry.event.phase == OUTCOME
    )
    kept: list[bytes] = []
    places: dict[int, int] = {}
    for entry in entries:
        event = entry.event
        if gone in {entry.sequence, event.intent_index}:
            continue
        places[entry.sequence] = len(kept)
        if event.intent_index is not None:
            event = replace(event, intent_index=places[event.intent_index])
        kept.append(
            render(event, origin=entry.origin, sequence=len(kept), logged_time=entry.logged_time)
        )
    folder = spied.production.folder / "removed"
    write_log(folder, kept)
    return folder, spied.spies[-1].name
