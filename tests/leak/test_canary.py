"""A key is in no log, no answer, no file and no audit entry, whatever happens to it.

Each test drives canaries down some paths of a whole service, with every logger at every level on
record, and then searches all that came out of it: see conftest.Scene.
"""

from __future__ import annotations

import base64
import sqlite3
import uuid
from contextlib import closing

import grpc
import pytest

from fixtures.agent import message_body
from fixtures.evidence import leaks
from fixtures.faults import Pause
from fixtures.journal_disk import BROKEN, FULL
from fixtures.scene import CALL_S, Scene, WitnessedAgent, random_body
from fixtures.server import AGENT, AUDITOR, PARENT
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_hsm import BlobRejected, Unavailable
from ironwork_simulator import Behaviour, Hold

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
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a validation past its deadline nor one whose caller has gone tells the key."""
    scene.simulator.script(None, Behaviour(hang=True), times=None)
    short = scene.service.keys().AddKey(_adding(scene.canary()), timeout=CALL_S)
    await scene.simulator.wait_for_request(1)
    short.cancel()
    await scene.simulator.disconnected(1)
    deadline = scene.service.keys().AddKey(_adding(scene.canary()), timeout=0.5)
    assert await scene.ask(deadline) == "DEADLINE_EXCEEDED"
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
    agent, number = await _held(scene)
    await agent.send(cancel=keys_pb2.Cancel(call=agent.number))
    assert (await agent.answer()).reason == "CLIENT_CANCELLED"
    await scene.simulator.disconnected(number)


async def _disconnected(scene: Scene) -> None:
    agent, number = await _held(scene)
    agent.stream.cancel()
    await scene.simulator.disconnected(number)


async def _deleted(scene: Scene) -> None:
    agent, number = await _held(scene)
    (name,) = await scene.list_names()
    assert await scene.delete(name, cancel_in_flight=True) == "OK"
    assert (await agent.answer()).reason == "KEY_DELETED"
    await scene.simulator.disconnected(number)
    assert await scene.delete(name) == "KEY_NOT_FOUND"
    assert (await agent.message()).reason == "NO_KEY"


async def _held(scene: Scene, hold: Hold | None = None) -> tuple[WitnessedAgent, int]:
    """An agent with an answer that has begun and goes no further; its request's number."""
    agent = await scene.agent()
    hold = hold or scene.simulator.hold()
    scene.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    number = len(scene.simulator.requests) + 1
    await agent.begin(body=message_body(stream=True))
    assert (await agent.read()).WhichOneof("message") == "head"
    return agent, number


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
    scene.simulator.script(None, Behaviour(headers=(("request-id", other),)))
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
    agent, _ = await _held(scene, hold)
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


# --- the searches find what is there -----------------------------------------------------------


async def test_each_kind_of_search_finds_a_canary(scene: Scene) -> None:
    """A key planted in a log record, an answer, the database, the audit log or a token's folder is
    found there, in every form that leaks take.
    """
    key = f"sk-ant-api03-{random_body()}AA"
    part = key[30:50]
    files = scene.files()
    assert leaks({"key": key.encode()}, files) == []
    import logging

    logging.getLogger("ironwork_server.test").debug("hello %s", {"x": [part]})
    logging.getLogger("httpcore2.silenced").debug("hello %s", part)
    logging.getLogger("ironwork_server.test").error("event", extra={"problem": key})
    logging.getLogger("other").error("event", exc_info=_raised(ValueError(part)))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("x-bin", base64.b64encode(key.encode()))),
        details="no",
    )
    scene.evidence.error(error)
    scene.evidence.answer(keys_pb2.MaskedKey(display_name=part))
    with closing(sqlite3.connect(scene.service.settings.store.path)) as database:
        database.execute("CREATE TABLE planted (value TEXT)")
        database.execute("INSERT INTO planted VALUES (?)", (part.encode().hex(),))
        database.commit()
        planted = {
            found.partition(": ")[2] for found in leaks({"key": key.encode()}, scene.files())
        }
    names = {entry.rpartition("/")[2] for entry in planted}
    assert "keys.db-wal (hexadecimal)" in names
    assert {"answers (plain)", "errors (base64)", "log-lines (plain)", "log-records (plain)"} <= (
        names
    )
    records = scene.evidence.text("log-records")
    assert records.count(part) >= 4, "arguments, fields and exceptions of records are searched"
    assert f"ValueError('{part}')" in records


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except ValueError as raised:
        return raised


async def test_the_search_knows_data_keys_and_the_pin(scene: Scene) -> None:
    """Data keys and the PIN are searched for by their true bytes."""
    assert await scene.add(scene.canary()) == "OK"
    assert len(scene.data_keys) == 2, "the pepper's and the key's"
    assert all(len(key) == 32 for key in scene.data_keys)
    secrets = scene.secrets()
    pin_file = scene.service.token.pin_file
    assert f"PIN: {pin_file} (plain)" in leaks({"PIN": secrets["PIN"]}, [pin_file])
    planted = scene.evidence.folder / "planted"
    planted.write_bytes(b"x" + scene.data_keys[1][5:20].hex().encode())
    assert leaks(secrets, scene.files()) == [f"data key 1: {planted} (hexadecimal)"]


def _adding(key: str) -> keys_pb2.AddKeyRequest:
    return keys_pb2.AddKeyRequest(parent=PARENT, api_key=key.encode())
