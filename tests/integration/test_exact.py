"""Requests and answers pass as they are: compared with the simulator's log, and with what a direct
client sends and gets (fixtures/exact.py).
"""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from fixtures.agent import HEADERS, Agent, Answer, message_body
from fixtures.exact import Case, as_got, as_sent, differences, directly, through
from fixtures.exact_cases import BROKEN, VERSION, answers, requests
from fixtures.server import AGENT, StartService, TestService
from fixtures.simulator import SimulatorTls
from ironwork.keys.v1 import keys_pb2
from ironwork_simulator import Behaviour, Config, Simulator, in_thread

MESSAGE = message_body()


async def opened(service: TestService) -> tuple[str, Agent]:
    """A workspace with a key, and an open stream."""
    key = service.simulator.make_key()
    await service.add(key)
    agent = Agent(service.keys(AGENT), deadline_s=90)
    await agent.start()
    return key, agent


@pytest.mark.parametrize("cases", [requests(), answers()], ids=["requests", "answers"])
async def test_what_passes_is_what_a_direct_client_sends_and_gets(
    service: TestService, cases: list[Case]
) -> None:
    """Every request arrives, and every answer is delivered, byte for byte: as the simulator's log
    has it, and as without the service."""
    key, agent = await opened(service)
    wrong: dict[str, object] = {}
    for case in cases:
        direct = await directly(service.simulator, key, case)
        relayed, answer = await through(service.simulator, agent, case)
        found = differences(direct.stable(), relayed.stable())
        found |= differences(as_sent(relayed.record), as_got(relayed))
        if answer.end.anthropic_request_id != relayed.record.request_id:
            found["request id"] = answer.end.anthropic_request_id
        if found:
            wrong[case.name] = found
    assert wrong == {}
    await agent.close()


async def test_only_the_service_writes_host_framing_and_key(service: TestService) -> None:
    """A request's head on the wire is the agent's headers between Host and framing and key."""
    key, agent = await opened(service)
    await agent.call(body=MESSAGE, query="beta=true", headers=(("X-One", b"1"), *HEADERS))
    record = service.simulator.requests[-1]
    authority = f"api.anthropic.com:{service.simulator.port}"
    assert (
        record.received_head
        == (
            f"POST /v1/messages?beta=true HTTP/1.1\r\nHost: {authority}\r\nX-One: 1\r\n"
            "content-type: application/json\r\nanthropic-version: 2023-06-01\r\n"
            f"Content-Length: {len(MESSAGE)}\r\nx-api-key: {key}\r\n\r\n"
        ).encode()
    )
    assert record.body == MESSAGE
    await agent.close()


async def test_a_broken_answer_is_an_error_with_a_reason(service: TestService) -> None:
    """Short bodies, cuts and what is no HTTP end the call as FAILED: no clean end, no hang; what
    came before the cut is delivered, and the stream stays usable."""
    _, agent = await opened(service)
    got: dict[str, tuple[str, int]] = {}
    for name, (behaviour, _) in BROKEN.items():
        service.simulator.script(None, behaviour)
        async with asyncio.timeout(10):
            answer = await agent.message()
        got[name] = (answer.reason, answer.end.outcome)
        if behaviour.declared_length is not None:
            record = service.simulator.requests[-1]
            assert answer.body == record.sent_body, name
    assert got == {name: (reason, keys_pb2.OUTCOME_FAILED) for name, (_, reason) in BROKEN.items()}
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_what_follows_an_answer_is_no_part_of_it(service: TestService) -> None:
    """Bytes past the announced length are delivered to nobody, and the next call is clean."""
    _, agent = await opened(service)
    service.simulator.script(None, Behaviour(body="x" * 40 + "HTTP/1.1 200 OK", declared_length=40))
    answer = await agent.message()
    assert (answer.body, answer.end.outcome) == (b"x" * 40, keys_pb2.OUTCOME_COMPLETED)
    assert (await agent.message()).body.startswith(b'{"model"')
    await agent.close()


async def test_a_redirect_leads_nobody_to_a_second_host(
    service: TestService, simulator_tls: SimulatorTls
) -> None:
    """No 3xx is followed or delivered: the host that it names hears nothing at all."""
    _, agent = await opened(service)
    config = Config(tls_cert=simulator_tls.cert_file, tls_key=simulator_tls.key_file)
    with in_thread(Simulator(config)) as second:
        for status in (301, 302, 303, 307, 308, 300, 304):
            service.simulator.script(
                None, Behaviour(status=status, location=f"{second.url}/v1/messages")
            )
            answer = await agent.message()
            assert (answer.head, answer.reason) == (None, "UPSTREAM_REDIRECT"), status
        assert second.requests == ()
        assert second.open_connections == 0
    await agent.close()


async def call_all(agent: Agent, *calls: tuple[str, str, bytes | None]) -> list[Answer]:
    return [await agent.call(method, path, body, headers=HEADERS) for method, path, body in calls]


async def test_a_batch_lives_its_life(service: TestService) -> None:
    """Create, list, get, results, cancel, delete: each answer is the bytes that were sent."""
    _, agent = await opened(service)
    params = json.loads(message_body(text="漢字"))
    good = [{"custom_id": f"c{n}", "params": params} for n in range(300)]
    bad = [{"custom_id": "bad", "params": {**params, "model": "no-such"}}]
    created, second = await call_all(
        agent,
        ("POST", "/v1/messages/batches", json.dumps({"requests": good + bad}).encode()),
        ("POST", "/v1/messages/batches", json.dumps({"requests": bad}).encode()),
    )
    path = f"/v1/messages/batches/{json.loads(created.body)['id']}"
    other = f"/v1/messages/batches/{json.loads(second.body)['id']}"
    answers = await call_all(
        agent,
        ("GET", path, None),
        ("GET", f"{path}/results", None),
        ("GET", "/v1/messages/batches", None),
        ("POST", f"{other}/cancel", b""),
        ("GET", other, None),
        ("GET", f"{other}/results", None),
        ("DELETE", path, None),
        ("GET", path, None),
    )
    assert [a.head.status for a in answers if a.head] == [200] * 7 + [404]
    ended, results, page, _, cancelled, _, deleted, _ = answers
    assert json.loads(ended.body)["results_url"] == f"https://api.anthropic.com{path}/results"
    lines = [json.loads(line) for line in results.body.splitlines()]
    assert [line["custom_id"] for line in lines] == [*(f"c{n}" for n in range(300)), "bad"]
    assert lines[-1]["result"]["type"] == "errored"
    assert len(json.loads(page.body)["data"]) == 2
    assert json.loads(cancelled.body)["request_counts"]["canceled"] == 1
    assert json.loads(deleted.body)["type"] == "message_batch_deleted"
    await service.simulator.wait_for_end(len(service.simulator.requests))
    for answer in (created, second, *answers):
        [record] = [
            r for r in service.simulator.requests
            if r.request_id == answer.end.anthropic_request_id
        ]  # fmt: skip
        assert record.sent_length == len(answer.body)
        assert record.sent_body is None or record.sent_body == answer.body
    await agent.close()


def form(data: bytes, boundary: bytes) -> bytes:
    return (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="r.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--%b--\r\n"
    ) % (boundary, data, boundary)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_file_comes_back_as_it_went(service: TestService, *, chunked: bool) -> None:
    """Random bytes go up in a form and come down alone, unchanged."""
    _, agent = await opened(service)
    data = os.urandom(3_000_001)
    headers = (VERSION, ("Content-Type", b"multipart/form-data; boundary=b-1"))
    up = await agent.call("POST", "/v1/files", form(data, b"b-1"), headers=headers, chunked=chunked)
    file = json.loads(up.body)
    assert (file["size_bytes"], file["filename"]) == (len(data), "r.bin")
    path = f"/v1/files/{file['id']}"
    head, meta, down, listed, deleted, gone = await call_all(
        agent,
        ("HEAD", f"{path}/content", None),
        ("GET", path, None),
        ("GET", f"{path}/content", None),
        ("GET", "/v1/files", None),
        ("DELETE", path, None),
        ("GET", f"{path}/content", None),
    )
    assert down.body == data
    assert head.body == b""
    assert ("content-length", b"3000001") in {(h.name, h.value) for h in head.head.headers}
    assert json.loads(meta.body) == file
    assert json.loads(listed.body)["data"] == [file]
    assert json.loads(deleted.body) == {"type": "file_deleted", "id": file["id"]}
    assert gone.head.status == 404
    await agent.close()


async def test_413_arrives_while_the_client_still_uploads(service: TestService) -> None:
    """An early refusal is delivered whole, and the rest of the upload is taken and dropped."""
    _, agent = await opened(service)
    service.simulator.script(None, Behaviour(status=413, early=True))
    answer = await agent.call(body=message_body(text="x" * 8_000_000))
    assert answer.head is not None
    assert answer.head.status == 413
    assert json.loads(answer.body)["error"]["type"] == "request_too_large"
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_120_calls_at_once_get_their_own_answers(start_service: StartService) -> None:
    """120 streams of one agent, all open at once: each gets its own answer, none waits for
    another."""
    # serve's own bound: the tests' short one would call a key stale that waited for 119 others.
    service = await start_service(freshness_s=1.0)
    await service.add()
    stub = service.keys(AGENT)
    hold = service.simulator.hold()
    service.simulator.script(
        None, Behaviour(hold=hold.name, hold_at="body", hold_after=2), times=None
    )
    agents = [Agent(stub, deadline_s=60) for _ in range(120)]
    before = len(service.simulator.requests)

    async def converse(agent: Agent, number: int) -> Answer:
        await agent.start(task=f"task-{number}")
        return await agent.message(stream=True, text=f"question {number}.")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(converse(a, n)) for n, a in enumerate(agents)]
        await service.simulator.wait_for_request(before + 120, timeout_s=40)
        hold.release()
    numbers = {r.request_id: r.number for r in service.simulator.requests}
    for number, task in enumerate(tasks):
        answer = task.result()
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED, answer.end
        record = await service.simulator.wait_for_end(numbers[answer.end.anthropic_request_id])
        assert f"question {number}.".encode() in (record.body or b"")
        assert answer.body == record.sent_body


def test_the_table_is_as_long_as_it_says() -> None:
    """Names are unique, or one case would hide another."""
    names = [case.name for case in (*requests(), *answers())]
    assert len(names) == len(set(names)) >= 90
