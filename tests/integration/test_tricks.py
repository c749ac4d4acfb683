"""The tricks (fixtures/tricks.py), all of them, against the whole service."""

from __future__ import annotations

import pytest

from fixtures.agent import Agent, Answer
from fixtures.server import AGENT, TestService
from fixtures.tricks import TRICKS, Trick
from ironwork.keys.v1 import keys_pb2
from ironwork_simulator import RequestRecord

# The agent's own headers are between what the service writes.
WRITTEN_BY_THE_SERVICE = frozenset({"host", "content-length", "transfer-encoding", "x-api-key"})
# A message that is larger than any head may be ends at gRPC, not at the screening.
MAX_HEAD = 128 * 1024
# Played after each trick: when it is answered, whatever the trick sent before it has arrived too.
SOUND = Trick(
    kind="sound", reason=None, method="GET", path="/v1/models", query="limit=7", headers=(),
    body=b"", length=0,
)  # fmt: skip


def kinds() -> list[str]:
    return sorted({trick.kind for trick in TRICKS})


async def play(agent: Agent, trick: Trick) -> Answer:
    """Send the trick as it stands, and take its end."""
    agent.number += 1
    head = keys_pb2.RequestHead(
        call=agent.number,
        method=trick.method,
        path=trick.path,
        query=trick.query,
        headers=[keys_pb2.Header(name=name, value=value) for name, value in trick.headers],
    )
    if trick.length is not None:
        head.content_length = trick.length
    await agent.send(head=head)
    if trick.body:
        await agent.send(body=keys_pb2.RequestBody(data=trick.body))
    await agent.send(end=keys_pb2.RequestEnd())
    return await agent.answer()


def arrived(record: RequestRecord) -> tuple[object, ...]:
    headers = [
        (name, value.encode("latin-1"))
        for name, value in record.headers
        if name.lower() not in WRITTEN_BY_THE_SERVICE
    ]
    return record.method, record.target, headers, record.body


def meant(trick: Trick) -> tuple[object, ...]:
    target = f"{trick.path}?{trick.query}" if trick.query else trick.path
    return trick.method, target, list(trick.headers), trick.body


def fits(trick: Trick) -> bool:
    return len(trick.path) + len(trick.query) < MAX_HEAD


@pytest.mark.parametrize("kind", kinds())
async def test_a_trick_is_refused_or_arrives_as_it_was_meant(
    service: TestService, kind: str
) -> None:
    """Each trick is refused with its reason, and Anthropic sees no request; or one request arrives
    that is what was given, byte for byte. The stream stays usable after each."""
    await service.add()
    agent = Agent(service.keys(AGENT), deadline_s=60)
    await agent.start()
    wrong: dict[str, object] = {}
    for trick in TRICKS:
        if trick.kind != kind or not fits(trick):
            continue
        number = len(service.simulator.requests)
        answer = await play(agent, trick)
        assert (await play(agent, SOUND)).reason == ""
        since = service.simulator.requests[number:]
        new = [record for record in since if arrived(record) != meant(SOUND)]
        assert len(since) - len(new) == 1
        if trick.reason is None:
            got: object = (answer.reason, [arrived(r) for r in new])
            expected: object = ("", [meant(trick)])
        else:
            whole = [r for r in new if r.body_at is not None]
            got = (answer.reason, answer.head, whole)
            expected = (trick.reason, None, [])
            if not answer.end.sent_upstream and new:
                wrong[repr(trick)[:300]] = "something arrived that was said not to be sent"
        if got != expected:
            wrong[repr(trick)[:300]] = (got, expected)
    assert wrong == {}
    await agent.close()


def test_there_are_enough_of_them() -> None:
    """150 tricks at least, of all five kinds, and no two alike."""
    assert kinds() == ["framing", "header", "method", "path", "query"]
    assert len({repr(trick) for trick in TRICKS}) == len(TRICKS) >= 150
    assert all((trick.path, trick.query) != (SOUND.path, SOUND.query) for trick in TRICKS)
