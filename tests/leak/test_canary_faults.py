"""A key is in no log, no answer, no file and no audit entry, also when parts of the service fail,
or raise what nobody foresaw with the key in its text.
"""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from fixtures.agent import message_body
from fixtures.faults import Pause
from fixtures.journal_disk import BROKEN, FULL
from fixtures.scene import Scene, WitnessedAgent
from ironwork.keys.v1 import keys_pb2
from ironwork_hsm import BlobRejected, Unavailable


class Unexpected(Exception):
    """What no seam knows, with a secret in its text, as libraries' errors have."""


@pytest.mark.parametrize("part", ["store", "hsm"])
async def test_an_unexpected_error_tells_a_caller_nothing(scene: Scene, part: str) -> None:
    """An error that nobody foresaw, with the key in its text and deep inside, is INTERNAL,
    `internal error` and nothing more, on unary RPCs and on streams.
    """
    key = scene.canary()
    assert await scene.add(key) == "OK"
    (name,) = await scene.list_names()
    agent = await scene.agent()
    error = Unexpected(key)
    error.__cause__ = ValueError(f"caused by {key!r}")
    raises = getattr(scene.faults, part).raises
    methods = ("find", "current", "page", "delete") if part == "store" else ("wrap", "unwrap")
    raises.update(dict.fromkeys(methods, error))
    before = len(scene.evidence.text("errors"))
    assert await scene.add(scene.canary()) == "INTERNAL"
    if part == "store":
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await scene.list_names()
        assert scene.evidence.error(ended.value) == "INTERNAL"
        assert ended.value.details() == "internal error"
        assert await scene.delete(name) == "INTERNAL"
    answer = await agent.message()
    assert (answer.end.outcome, answer.reason) == (keys_pb2.OUTCOME_FAILED, "INTERNAL")
    assert answer.end.error.message == "internal error"
    assert "Unexpected" not in scene.evidence.text("errors")[before:]
    assert f"{__name__}.Unexpected" in scene.evidence.text("log-lines"), "operators learn the type"
    raises.clear()
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()
    await scene.expect_no_leak()


DEPTHS = (
    "core.usage.UsageMeter.feed",
    "rpc.call.Call._screen",
    "upstream.exchange.Exchange.start",
    "custody.use_key.SealedInjector.inject",
    "access.policy.CedarPolicy.permits",
    "access.identity.IdentityMapper.identify",
    "custody.last_used.UseRecorder.note",
)


async def test_an_unexpected_error_at_any_depth_tells_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever on a stream's path the error comes from, caller and logs learn nothing from it."""
    key = scene.canary()
    assert await scene.add(key) == "OK"

    def fail(*_: object, **__: object) -> None:
        raise Unexpected(f"while holding {key}")

    for number, place in enumerate(DEPTHS, 1):
        with monkeypatch.context() as patch:
            patch.setattr(f"ironwork_server.{place}", fail)
            agent = scene.unopened_agent()
            assert await _told(agent) == (grpc.StatusCode.INTERNAL.value[0], "internal error"), (
                place
            )
            agent.stream.cancel()
        seen = scene.evidence.text("log-lines").count(f"{__name__}.Unexpected")
        assert seen >= number, "operators learn the type"
    await scene.expect_no_leak()


async def _told(agent: WitnessedAgent) -> tuple[int, str]:
    """What an agent learns, whether its stream ends or only its call."""
    try:
        await agent.start()
        error = (await agent.message()).end.error
    except grpc.aio.AioRpcError as ended:
        return ended.code().value[0], str(ended.details())
    return error.code, error.message


async def test_a_store_or_hsm_that_fails_leaves_no_trace(scene: Scene) -> None:
    """Adding, using and deleting while the store or the HSM fails tells nobody the key."""
    key = scene.canary()
    assert await scene.add(key) == "OK"
    (name,) = await scene.list_names()
    agent = await scene.agent()
    database = scene.service.settings.store.path
    away = database.with_name("away.db")
    database.rename(away)
    assert await scene.add(scene.canary()) == "STORE_UNAVAILABLE"
    assert await scene.delete(name) == "STORE_UNAVAILABLE"
    assert (await agent.message()).reason == "STORE_UNAVAILABLE"
    away.rename(database)
    for error, reason in (
        (Unavailable("The device does not answer."), "MASTER_KEY_UNAVAILABLE"),
        (BlobRejected("It does not open."), "KEY_RECORD_DAMAGED"),
    ):
        scene.faults.hsm.raises.update(unwrap=error, wrap=error)
        assert await scene.add(scene.canary()) == reason
        assert (await agent.message()).reason == reason
    scene.faults.hsm.raises.clear()
    assert (await agent.message()).reason == ""
    await agent.close()
    await scene.expect_no_leak()


@pytest.mark.parametrize("fault", [FULL, BROKEN], ids=["full", "broken"])
async def test_an_audit_log_that_fails_leaves_no_trace(scene: Scene, fault: int) -> None:
    """While the log cannot be written nothing is done, and the refusal tells nobody the key."""
    assert await scene.add(scene.canary()) == "OK"
    agent = await scene.agent()
    sent = len(scene.simulator.requests)
    scene.faults.disk.faults["write"] = fault
    assert await scene.add(scene.canary()) == "AUDIT_UNAVAILABLE"
    answer = await agent.message()
    assert (answer.reason, answer.end.sent_upstream) == ("AUDIT_UNAVAILABLE", False)
    assert len(scene.simulator.requests) == sent, "no key left the service"
    await agent.close()
    await scene.expect_no_leak(audit=False)


async def test_an_outcome_that_cannot_be_recorded_leaves_no_trace(scene: Scene) -> None:
    """A log that fails in the middle of a call ends it with a reason, and without the key."""
    assert await scene.add(scene.canary()) == "OK"
    hold = scene.simulator.hold()
    agent, _ = await scene.held(hold)
    scene.faults.disk.faults["fdatasync"] = BROKEN
    hold.release()
    answer = await agent.answer()
    assert answer.reason == "AUDIT_UNAVAILABLE"
    assert answer.end.outcome == keys_pb2.OUTCOME_FAILED
    await agent.close()
    await scene.expect_no_leak(audit=False)


async def test_a_call_that_waits_for_the_hsm_may_be_abandoned(scene: Scene) -> None:
    """A client that leaves while its data key is being unwrapped leaves nothing behind."""
    assert await scene.add(scene.canary()) == "OK"
    pause = Pause()
    scene.faults.hsm.after["unwrap"] = pause
    agent = await scene.agent()
    await agent.begin(body=message_body())
    await pause.reached.wait()
    agent.stream.cancel()
    pause.release()
    scene.faults.hsm.after.clear()
    assert (await (await scene.agent()).message()).reason == ""
    await scene.expect_no_leak()
