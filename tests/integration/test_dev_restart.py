"""A restart keeps the keys, and a drain lets what is in flight finish."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from fixtures.agent import Agent, message_body
from fixtures.processes import Dev, dev
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import KeyClient, Profile
from ironwork_simulator import Behaviour, Simulator

DEADLINE_S = 30.0


async def connect(started: Dev, role: str = "agent") -> grpc.aio.Channel:
    """A connection as this role."""
    folder = started.state / "profiles"
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / f"{role}-key.pem").read_bytes(),
        (folder / f"{role}.pem").read_bytes(),
    )
    return grpc.aio.secure_channel(
        started.target,
        credentials,
        [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
    )


async def held(started: Dev, simulator: Simulator) -> tuple[Agent, Any]:
    """A streamed answer that has begun and goes on when the hold is released."""
    hold = simulator.hold()
    simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    agent = Agent(keys_pb2_grpc.KeyServiceStub(await connect(started)), deadline_s=DEADLINE_S)
    await agent.start()
    await agent.begin(body=message_body(stream=True))
    assert (await agent.read()).WhichOneof("message") == "head"
    return agent, hold


async def went_away(agent: Agent) -> None:
    """Read up to the server's GoAway."""
    while True:
        message = await agent.read()
        if message.WhichOneof("message") == "go_away":
            assert message.go_away.reason == keys_pb2.GoAway.REASON_DRAIN
            return


async def test_a_restart_keeps_keys_and_a_drain_finishes_calls(
    tmp_path: Path, plain_simulator: Simulator
) -> None:
    """SIGTERM during a streamed answer: the agent is asked to reconnect, the answer comes whole,
    the server exits with 0. Started again on the same folder, it serves with the same key. A
    second signal does not wait for what is in flight.
    """
    upstream = f"http://127.0.0.1:{plain_simulator.port}"
    state = tmp_path / "state"
    with dev(state, "--upstream", upstream) as first:
        assert first.keys == {}
        with KeyClient(Profile.load(first.profile("admin"))) as admin:
            added = await asyncio.to_thread(admin.add, plain_simulator.make_key(), "kept")
        agent, hold = await held(first, plain_simulator)
        first.running.signal()
        await went_away(agent)
        hold.release()
        answer = await agent.answer()
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        assert b"message_stop" in answer.body
        assert await asyncio.to_thread(first.running.wait) == 0
        assert first.running.log.read_text().count('"level": "error"') == 0
    with dev(state, "--upstream", upstream) as second:
        agent, _ = await held(second, plain_simulator)
        second.running.signal()
        await went_away(agent)
        second.running.signal()
        assert await asyncio.to_thread(second.running.wait) == -signal.SIGTERM
    served = plain_simulator.requests[-1].key
    assert served is not None
    assert served.endswith(added.mask[-4:])
