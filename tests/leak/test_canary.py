"""A key is in no log, no answer, no file and no audit entry, whatever happens to it.

Each test drives canaries down some paths of a whole service, with every logger at every level on
record, and then searches all that came out of it: see conftest.Scene.
"""

from __future__ import annotations

import base64
import uuid

import grpc
import pytest

from fixtures.agent import message_body
from fixtures.scene import CALL_S, MakeScene, Scene, random_body
from fixtures.server import AGENT, AUDITOR, PARENT
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_server.upstream import UpstreamEndpoint
from ironwork_server.upstream.validator import AnthropicKeyValidator
from ironwork_simulator import Behaviour

OTHER_ORGANIZATION = "9a4b2f1e-0000-4000-8000-2f3b8a7d6c10"
ADMIN_OF_GLOBEX = "/workspace/globex/key-admin/mallory"


async def test_keys_that_are_added_or_refused_leave_no_trace(scene: Scene) -> None:
    """AddKey's verdicts and refusals, its replay and its duplicates tell nobody the key."""
    key, request_id = scene.canary(), str(uuid.uuid4())
    assert await scene.add(key, display_name="first", request_id=request_id) == "OK"
    assert await scene.add(key, display_name="first", request_id=request_id) == "OK"
    assert await scene.add(key, request_id=request_id) == "REQUEST_ID_REUSED"
    assert await scene.add(key) == "KEY_EXISTS"
    for kind, reason in (
        ("revoked", "KEY_INVALID"),
        ("without_inference", "KEY_WITHOUT_PERMISSION"),
        ("without_credit", "ANTHROPIC_UNAVAILABLE"),
        ("organization_disabled", "ANTHROPIC_UNAVAILABLE"),
    ):
        assert await scene.add(scene.canary(kind)) == reason, kind
    assert await scene.add(scene.watch(f"sk-ant-api03-{random_body()}AA")) == "KEY_INVALID"
    other = scene.canary(organization_id=OTHER_ORGANIZATION)
    assert await scene.add(other) == "DIFFERENT_ORGANIZATION"
    assert await scene.add(other, allow_different_organization=True) == "OK"
    for by in (AGENT, AUDITOR, ADMIN_OF_GLOBEX):
        assert await scene.add(scene.canary(), by=by) == "PERMISSION_DENIED"
    assert len(await scene.list_names()) == 2
    await scene.expect_no_leak()


UNVERIFIABLE = (
    Behaviour(status=429, retry_after_s=7),
    Behaviour(status=500),
    Behaviour(status=529),
    Behaviour(status=529, echo_key="error"),
    Behaviour(status=307, location="https://elsewhere.example/"),
    Behaviour(cut="content_length"),
    Behaviour(cut="reset_before_head"),
    Behaviour(raw="no HTTP at all\r\n\r\n"),
    Behaviour(body="{", content_type="text/html"),
)


async def test_a_key_that_cannot_be_verified_leaves_no_trace(scene: Scene) -> None:
    """Whatever Anthropic answers to a validation, also with the key in it, none of it gets out."""
    for behaviour in UNVERIFIABLE:
        scene.simulator.clear()
        scene.simulator.script(None, behaviour, times=None)
        assert await scene.add(scene.canary()) == "ANTHROPIC_UNAVAILABLE", behaviour
    for behaviour, reason in (
        (Behaviour(status=401, echo_key="error"), "KEY_INVALID"),
        (Behaviour(echo_key="header"), "OK"),
    ):
        scene.simulator.clear()
        scene.simulator.script(None, behaviour, times=None)
        assert await scene.add(scene.canary()) == reason, behaviour
    await scene.expect_no_leak()


async def test_a_validation_that_hangs_leaves_no_trace(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a validation past its deadline nor one whose caller has gone tells the key."""
    # Before the service is built: the deadline is the validator's default.
    monkeypatch.setitem(AnthropicKeyValidator.__init__.__kwdefaults__, "deadline_s", 1.0)
    scene = await make_scene()
    scene.simulator.script(None, Behaviour(hang=True), times=None)
    assert await scene.add(scene.canary()) == "ANTHROPIC_UNAVAILABLE"
    scene.simulator.clear()
    scene.simulator.script(None, Behaviour(hang=True), times=None)
    short = scene.service.keys().AddKey(_adding(scene.canary()), timeout=CALL_S)
    await scene.simulator.wait_for_request(1)
    short.cancel()
    await scene.simulator.disconnected(1)
    deadline = scene.service.keys().AddKey(_adding(scene.canary()), timeout=0.5)
    assert await scene.ask(deadline) == "DEADLINE_EXCEEDED"
    await scene.expect_no_leak()


async def test_a_key_is_not_sent_to_another_host(make_scene: MakeScene) -> None:
    """Where something else stands in Anthropic's place, no key is sent to it, neither one that is
    being added nor one that is stored; and none is told to anybody.
    """
    scene = await make_scene()
    key = scene.canary()
    assert await scene.add(key) == "OK"
    await scene.service.stop()  # type: ignore[attr-defined]
    simulator = scene.service.simulator
    imposter = UpstreamEndpoint(
        "api.elsewhere.example",
        simulator.port,
        ca_file=simulator.ca_file,
        connect_address="127.0.0.1",
    )
    scene = await make_scene(endpoint=imposter)
    scene.watch(key)
    scene.simulator.clear()
    assert await scene.add(scene.canary()) == "ANTHROPIC_UNAVAILABLE"
    answer = await (await scene.agent()).message()
    assert (answer.reason, answer.end.sent_upstream) == ("UPSTREAM_TLS_UNTRUSTED", False)
    assert list(scene.simulator.requests) == []
    await scene.expect_no_leak()


def malformed(body: str) -> dict[str, bytes]:
    """What people paste instead of a key, each with the same secret in it."""
    key = f"sk-ant-api03-{body}AA".encode()
    return {
        "line feed": key + b"\n",
        "carriage return": key + b"\r\n",
        "blanks": b"  " + key + b" ",
        "inner blank": key[:40] + b" " + key[40:],
        "header": key + b"\r\nx-injected: 1",
        "NUL": key + b"\x00",
        "not ASCII": key + "…".encode(),
        "zero width": "\u200b".encode() + key,
        "not UTF-8": key + b"\xff\xfe",
        "UTF-16": key.decode().encode("utf-16"),
        "quoted": b'"' + key + b'"',
        "exported": b"ANTHROPIC_API_KEY=" + key,
        "admin key": f"sk-ant-admin01-{body}AA".encode(),
        "OAuth token": f"sk-ant-oat01-{body}AA".encode(),
        "refresh token": f"sk-ant-ort01-{body}AA".encode(),
        "session key": f"sk-ant-sid01-{body}AA".encode(),
        "upper case": key.upper(),
        "twice": key * 3,
        "base64": base64.b64encode(key),
        "10 MB": (key + b" ") * (10_000_000 // (len(key) + 1)),
        "12 MB": (key + b" ") * (12_000_000 // (len(key) + 1)),
    }


MALFORMED = {"API_KEY_MALFORMED", "ADMIN_KEY_REFUSED", "OAUTH_TOKEN_REFUSED", "RESOURCE_EXHAUSTED"}


async def test_what_is_no_key_is_refused_without_being_repeated(scene: Scene) -> None:
    """A badly pasted key is refused by field and reason, and is as secret as a good one."""
    body = random_body()
    scene.watch(f"sk-ant-api03-{body}AA")
    scene.watch(f"sk-ant-api03-{body}AA".upper())
    for name, raw in malformed(body).items():
        assert await scene.add(raw) in MALFORMED, name
    assert not scene.simulator.requests, "nothing of it was sent anywhere"
    await scene.expect_no_leak()


async def test_a_key_in_the_wrong_place_is_not_repeated(scene: Scene) -> None:
    """A key pasted into any other field of any RPC is refused, and never repeated or recorded."""
    admin, auditor = scene.service.keys(), scene.service.audit()
    key = scene.watch(f"sk-ant-api03-{random_body()}AA")
    good = scene.canary()
    for more in ({"display_name": key}, {"request_id": key}, {"parent": key}):
        assert await scene.add(good, **more) == "INVALID_FIELD"
        assert await scene.add(good, **{k: f"workspaces/{v}" for k, v in more.items()}) == (
            "INVALID_FIELD"
        )
    for request in (
        keys_pb2.ListMaskedRequest(parent=f"workspaces/{key}"),
        keys_pb2.ListMaskedRequest(parent=PARENT, page_token=key),
    ):
        assert await scene.ask(admin.ListMasked(request, timeout=CALL_S)) == "INVALID_FIELD"
    for name in (key, f"{PARENT}/keys/{key}"):
        assert await scene.delete(name) == "INVALID_FIELD"
    for entries in (
        audit_pb2.ListEntriesRequest(workspace=key),
        audit_pb2.ListEntriesRequest(key=f"{PARENT}/keys/{key}"),
        audit_pb2.ListEntriesRequest(page_token=key),
    ):
        assert await scene.ask(auditor.ListEntries(entries, timeout=CALL_S)) == "INVALID_FIELD"
    for entries in (
        audit_pb2.ListEntriesRequest(principal=key),
        audit_pb2.ListEntriesRequest(operation=key),
    ):
        assert await scene.ask(auditor.ListEntries(entries, timeout=CALL_S)) == "OK"
    for start in (
        keys_pb2.Start(parent=key),
        keys_pb2.Start(parent=PARENT, task=key),
        keys_pb2.Start(parent=PARENT, agent=f"x {key}"),
    ):
        agent = scene.unopened_agent()
        await agent.send(start=start)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await agent.read()
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await scene.expect_no_leak()


async def test_a_key_in_an_agents_request_is_not_repeated(scene: Scene) -> None:
    """An agent that sends a key in a head, a name or metadata gets a reason, never the key."""
    assert await scene.add(scene.canary()) == "OK"
    key = scene.watch(f"sk-ant-api03-{random_body()}AA")
    agent = await scene.agent()
    for method, path, more, reason in (
        ("POST", "/v1/messages", {"headers": [("x-api-key", key.encode())]}, "HEADER_REFUSED"),
        ("POST", "/v1/messages", {"headers": [(key, b"x")]}, ""),
        ("POST", "/v1/messages", {"headers": [("a b" + key, b"x")]}, "HEADER_MALFORMED"),
        ("POST", "/v1/messages", {"headers": [("x", key.encode() + b"\n")]}, "HEADER_MALFORMED"),
        ("POST", f"/v1/{key}", {}, "PATH_NOT_ALLOWED"),
        ("POST", f"https://{key}@evil/", {}, "PATH_MALFORMED"),
        (key, "/v1/messages", {}, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/models", {"query": f"{key} x"}, "QUERY_MALFORMED"),
        ("GET", f"/v1/models/{key}", {}, ""),
        ("GET", "/v1/models", {"query": f"after_id={key}"}, ""),
    ):
        body = message_body() if method == "POST" else None
        answer = await agent.call(method, path, body, **more)
        assert answer.reason == reason, (method, more)
    await agent.close()
    channel = scene.service.channel(AGENT)
    for metadata in ((("x-api-key", key),), (("authorization", f"Bearer {key}"),)):
        call = channel.unary_unary(f"/ironwork.keys.v1.KeyService/{key}")
        assert await scene.ask(call(b"", metadata=metadata, timeout=CALL_S)) == "PERMISSION_DENIED"
    # What an agent says to Anthropic is its own; what Anthropic repeats of it as well.
    (scene.evidence.folder / "answers").unlink()
    await scene.expect_no_leak()


async def test_a_key_in_use_leaves_no_trace(scene: Scene) -> None:
    """Requests served, refused, answered with errors, cut, cancelled and abandoned, and deletion
    while they run, tell nobody the key.
    """
    assert await scene.add(scene.canary()) == "OK"
    agent = await scene.agent()
    assert (await agent.message()).end.usage.input_tokens
    assert (await agent.message(stream=True)).end.usage.output_tokens
    await agent.call("POST", "/v1/messages/count_tokens", message_body())
    for method in ("GET", "HEAD"):
        assert (await agent.call(method, "/v1/models")).reason == ""
    for behaviour in (
        *(Behaviour(status=status) for status in (400, 401, 403, 404, 413, 429, 500, 529)),
        Behaviour(status=302, location="https://elsewhere.example/"),
        Behaviour(error_after=2),
        *(Behaviour(cut=cut) for cut in ("content_length", "chunked", "mid_chunk", "reset")),
        Behaviour(cut="reset_before_head"),
        Behaviour(raw="no HTTP\r\n\r\n"),
        Behaviour(huge_header=70_000),
    ):
        scene.simulator.script(None, behaviour)
        await agent.message(stream=True)
    assert scene.simulator.requests[-1].key == scene.canaries[0], "the key did arrive"
    for abandon in (_cancelled, _disconnected, _deleted):
        await abandon(scene)
    await scene.expect_no_leak()


async def _cancelled(scene: Scene) -> None:
    agent, number = await scene.held()
    await agent.send(cancel=keys_pb2.Cancel(call=agent.number))
    assert (await agent.answer()).reason == "CLIENT_CANCELLED"
    await scene.simulator.disconnected(number)


async def _disconnected(scene: Scene) -> None:
    agent, number = await scene.held()
    agent.stream.cancel()
    await scene.simulator.disconnected(number)


async def _deleted(scene: Scene) -> None:
    agent, number = await scene.held()
    (name,) = await scene.list_names()
    assert await scene.delete(name, cancel_in_flight=True) == "OK"
    assert (await agent.answer()).reason == "KEY_DELETED"
    await scene.simulator.disconnected(number)
    assert await scene.delete(name) == "KEY_NOT_FOUND"
    assert (await agent.message()).reason == "NO_KEY"


async def test_a_key_that_anthropic_echoes_as_an_id_is_not_recorded(scene: Scene) -> None:
    """A key in the headers that this service reads (request-id, organisation) goes no further than
    the answer that held it: not into the store, the log, the list or the call's end.
    """
    key = scene.canary()
    ids = (("request-id", key), ("anthropic-organization-id", key))
    scene.simulator.script(None, Behaviour(headers=ids), times=None)
    assert await scene.add(key) == "OK"
    assert len(await scene.list_names()) == 1
    other = scene.canary(organization_id=OTHER_ORGANIZATION)
    scene.simulator.clear()
    assert await scene.add(other) == "OK"
    # Not the key that serves, whose echo is cut (test_echoed_key.py): this one comes to the agent.
    scene.simulator.script(None, Behaviour(headers=(("request-id", key),)))
    agent = scene.service.keys(AGENT).WithKey(timeout=CALL_S)
    await agent.write(keys_pb2.WithKeyRequest(start=keys_pb2.Start(parent=PARENT)))
    head = keys_pb2.RequestHead(call=1, method="GET", path="/v1/models")
    await agent.write(keys_pb2.WithKeyRequest(head=head))
    await agent.write(keys_pb2.WithKeyRequest(end=keys_pb2.RequestEnd()))
    while (message := await agent.read()).WhichOneof("message") != "end":
        pass
    assert message.end.outcome == keys_pb2.OUTCOME_COMPLETED
    scene.evidence.answer(message)
    await scene.expect_no_leak()


def _adding(key: str) -> keys_pb2.AddKeyRequest:
    return keys_pb2.AddKeyRequest(parent=PARENT, api_key=key.encode())
