"""An answer that echoes the key is cut, through a whole service: nothing of the key gets out."""

import gzip
import zlib
from collections.abc import Callable

import pytest

from fixtures.agent import Answer
from fixtures.scene import Scene, WitnessedAgent, random_body
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_audit import parse
from ironwork_simulator import Behaviour


async def serving(scene: Scene) -> tuple[str, WitnessedAgent]:
    """A canary that serves, and an agent on an open stream."""
    key = scene.canary()
    assert await scene.add(key) == "OK"
    return key, await scene.agent()


def expect_cut(answer: Answer) -> None:
    """The call failed for the echo, after it had been sent."""
    assert answer.end.outcome == keys_pb2.OUTCOME_FAILED
    assert answer.reason == "KEY_ECHOED"
    assert answer.end.sent_upstream


async def test_an_echo_in_a_header_withholds_the_head(scene: Scene) -> None:
    """Of an answer that has the key in a header nothing is delivered, not even its status."""
    _, agent = await serving(scene)
    scene.simulator.script(None, Behaviour(echo_key="header"))
    answer = await agent.message()
    expect_cut(answer)
    assert (answer.head, answer.body) == (None, b"")
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await scene.expect_no_leak()


@pytest.mark.parametrize("drip", [None, 1, 7])
@pytest.mark.parametrize("stream", [True, False], ids=["sse", "unary"])
async def test_an_echo_in_a_body_is_cut(scene: Scene, drip: int | None, stream: bool) -> None:
    """In events and in one object, whole and in pieces of any size: all before it was delivered."""
    _, agent = await serving(scene)
    scene.simulator.script(None, Behaviour(echo_key="body", drip=drip))
    answer = await agent.message(stream=stream)
    expect_cut(answer)
    assert answer.head is not None
    assert answer.head.status == 200
    assert answer.body.endswith(b"Your key is ")
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await scene.expect_no_leak()


async def test_an_echo_in_an_error_is_cut(scene: Scene) -> None:
    """Anthropic's error bodies are searched like any other, and the audit log tells of the cut."""
    _, agent = await serving(scene)
    scene.simulator.script(None, Behaviour(status=401, echo_key="error"))
    answer = await agent.message()
    expect_cut(answer)
    assert answer.body.endswith(b"invalid x-api-key: ")
    page = await scene.service.audit().ListEntries(
        audit_pb2.ListEntriesRequest(operation="WithKey"), timeout=20
    )
    told = [parse(entry.event).event for entry in page.entries]
    assert [(event.success, event.reason) for event in told if event.phase == "outcome"] == [
        (False, "KEY_ECHOED")
    ]
    assert "upstream.key_echoed" in scene.evidence.text("log-lines")
    await scene.expect_no_leak()


def deflated(data: bytes) -> bytes:
    """As some servers send `deflate`: without zlib's header."""
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize("drip", [None, 3])
@pytest.mark.parametrize(
    ("coding", "code"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", deflated)]
)
async def test_a_compressed_echo_is_cut(
    scene: Scene, coding: str, code: Callable[[bytes], bytes], drip: int | None
) -> None:
    """Of a compressed answer that holds the key nothing can be decoded to any of it; one that does
    not arrives byte for byte.
    """
    key, agent = await serving(scene)
    text = b'{"type":"message","content":"' + random_body(4000).encode()
    whole = code(text + b'"}')
    headers = (("content-encoding", coding),)
    scene.simulator.script(
        None, Behaviour(body=whole.decode("latin-1"), headers=headers, drip=drip), times=1
    )
    answer = await agent.message()
    assert (answer.end.outcome, answer.body) == (keys_pb2.OUTCOME_COMPLETED, whole)
    echo = code(text + key.encode() + b'"}')
    scene.simulator.script(
        None, Behaviour(body=echo.decode("latin-1"), headers=headers, drip=drip), times=1
    )
    answer = await agent.message()
    expect_cut(answer)
    window = {"gzip": 31, "deflate": -15 if code is deflated else 15}[coding]
    assert text.startswith(zlib.decompressobj(window).decompress(answer.body))
    await scene.expect_no_leak()


async def test_a_coding_that_was_not_asked_for_is_refused(scene: Scene) -> None:
    """An answer that cannot be looked into is an error, and its head is not delivered."""
    _, agent = await serving(scene)
    scene.simulator.script(None, Behaviour(body="?", headers=(("content-encoding", "br"),)))
    answer = await agent.message()
    assert (answer.head, answer.reason) == (None, "UPSTREAM_ENCODING")
    assert answer.end.outcome == keys_pb2.OUTCOME_FAILED
    await scene.expect_no_leak()


async def test_a_key_that_is_not_this_calls_passes(scene: Scene) -> None:
    """Another key of the same length and end is the answer's own business: it arrives."""
    key, agent = await serving(scene)
    twin = key[:13] + random_body(len(key) - 17) + key[-4:]
    scene.simulator.script(None, Behaviour(body=f"see {twin}.", drip=5))
    answer = await agent.message()
    assert answer.body.decode() == f"see {twin}."
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    await scene.expect_no_leak()
