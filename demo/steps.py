"""The main job, step by step. Each step states what it shows and checks it."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from queue import SimpleQueue
from typing import cast

import anthropic
import grpc
import httpx2
from rich.table import Table

from demo.backstage import Backstage
from demo.show import Show
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import (
    AuditClient,
    CallReport,
    FailedPrecondition,
    InvalidArgument,
    KeyClient,
    MaskedKey,
    WithKeyTransport,
)

MODEL = "claude-sonnet-5-5"
DEADLINE_S = 20
SDK = """client = anthropic.Anthropic(
    api_key="held-by-ironwork",
    http_client=httpx2.Client(transport=WithKeyTransport(Profile.load("agent.toml"))),
)"""


def refuse_invalid_keys(show: Show, stage: Backstage) -> None:
    """An invalid key is refused, with a reason, before anything is saved."""
    with show.step("An invalid key is refused"), KeyClient(stage.profile("admin")) as admin:
        for kind, key, reason in (
            ("a revoked key", stage.keys["revoked"], "KEY_INVALID"),
            ("a key without permission", stage.keys["restricted"], "KEY_WITHOUT_PERMISSION"),
        ):
            refused = _refusal(admin, key)
            show.note(f"{kind}: {refused}")
            show.claim(f"{reason}", refused.reason == reason)
        show.claim("nothing was saved", not list(admin.list()))


def add_key(show: Show, stage: Backstage) -> MaskedKey:
    """A valid key is checked with Anthropic, sealed and kept."""
    with show.step("A valid key is added"), KeyClient(stage.profile("admin")) as admin:
        added = admin.add(stage.keys["first"], "first key")
        show.note(f"{added.name}")
        show.claim(
            f"kept as {added.mask}, wrapped by the HSM's master key",
            added.current and added.master_key_version is not None,
        )
        return added


def list_masked(show: Show, stage: Backstage) -> None:
    """The list shows masks and nothing more."""
    with show.step("The masked list"), KeyClient(stage.profile("admin")) as admin:
        keys = list(admin.list())
        show.keys(keys)
        shown = repr(keys)
        show.claim(
            "it shows four characters of the key",
            stage.keys["first"][-4:] in shown and stage.keys["first"][-5:] not in shown,
        )


def stream_with_the_sdk(show: Show, stage: Backstage, key: MaskedKey) -> None:
    """The unmodified Anthropic SDK streams an answer through WithKey."""
    with show.step("An unmodified anthropic SDK streams an answer through WithKey"):
        show.code(SDK)
        transport = WithKeyTransport(stage.profile("agent"), task="demo", agent="coder")
        with (
            anthropic.Anthropic(
                api_key="held-by-ironwork",
                http_client=httpx2.Client(transport=transport, trust_env=False),
                max_retries=0,
            ) as client,
            client.messages.stream(
                model=MODEL,
                max_tokens=200,
                messages=[{"role": "user", "content": "Why keep a key in two halves?"}],
            ) as stream,
        ):
            show.console.print("   [bold]Claude:[/] ", end="")
            for text in stream.text_stream:
                show.console.print(text, end="")
            show.console.print()
            message = stream.get_final_message()
            report = cast("CallReport", stream.response.extensions["ironwork"])
        show.claim(
            f"served by {report.key_mask}, {message.usage.input_tokens} tokens in,"
            f" {message.usage.output_tokens} out",
            report.key_name == key.name
            and report.usage is not None
            and report.usage.output_tokens == message.usage.output_tokens > 0,
        )
        show.claim(
            f"on record as entry {report.audit.index if report.audit else '?'} of the audit log",
            report.audit is not None,
        )


def rotate(show: Show, stage: Backstage, old: MaskedKey) -> MaskedKey:
    """Add, then delete: the next request on the same stream uses the new key."""
    with (
        show.step("Rotation: the very next request on the same open stream uses the new key"),
        KeyClient(stage.profile("admin")) as admin,
    ):
        agent = OpenStream(stage)
        before = agent.count_tokens()
        new = admin.add(stage.keys["second"], "second key")
        admin.delete(old.name)
        after = agent.count_tokens()
        agent.close()
        for end in (before, after):
            show.note(f"call {end.call} on this stream was served by {end.key.mask}")
        show.claim(
            f"from {old.mask} to {new.mask} without a failure",
            (before.key.name, after.key.name) == (old.name, new.name)
            and before.outcome == after.outcome == keys_pb2.OUTCOME_COMPLETED,
        )
        return new


def delete(show: Show, stage: Backstage, key: MaskedKey) -> None:
    """After the last key's deletion no request is served."""
    with show.step("Deletion"), KeyClient(stage.profile("admin")) as admin:
        deleted = admin.delete(key.name)
        show.claim("deleted; the workspace has no key", deleted.current is None)
        transport = WithKeyTransport(stage.profile("agent"))
        with anthropic.Anthropic(
            api_key="held-by-ironwork",
            http_client=httpx2.Client(transport=transport, trust_env=False),
            max_retries=0,
        ) as client:
            status, reason = _refused_message(client)
        show.claim(
            f"the SDK's next request is refused: HTTP {status}, {reason}", reason == "NO_KEY"
        )


def refuse_stranger(show: Show, stage: Backstage) -> None:
    """Another workspace's agent learns nothing."""
    with show.step("Another workspace's agent is refused"):
        transport = WithKeyTransport(stage.profile("stranger"))
        with anthropic.Anthropic(
            api_key="held-by-ironwork",
            http_client=httpx2.Client(transport=transport, trust_env=False),
            max_retries=0,
        ) as client:
            status, reason = _refused_message(client)
        show.claim(
            f"spiffe://…/workspace/globex/agent/spy: HTTP {status}, {reason}",
            (status, reason) == (403, "PERMISSION_DENIED"),
        )


def audit_trail(show: Show, stage: Backstage) -> None:
    """The auditor reads what was done, by whom, with which result."""
    with show.step("The audit trail of all that"), AuditClient(stage.profile("auditor")) as audit:
        entries = [record.parsed() for record in audit.entries()]
        table = Table("#", "operation", "who", "result", box=None)
        counted: Counter[str] = Counter()
        for entry in entries:
            row = _row(entry)
            counted[row[1]] += 1
            if not row[1].startswith("hsm."):
                table.add_row(*row)
        show.table(table)
        unwraps, wraps = counted["hsm.unwrap"], counted["hsm.wrap"]
        show.note(f"not shown: every use of the HSM ({wraps} wrap and {unwraps} unwrap entries)")
        numbers = [cast("dict[str, int]", entry["metadata"])["sequence"] for entry in entries]
        show.claim(f"{len(entries)} entries without a gap", numbers == list(range(len(numbers))))
        show.claim(
            "refusals, additions, uses and deletions are all there",
            all(counted[name] for name in ("AddKey", "WithKey", "DeleteKey", "hsm.unwrap")),
        )


def nothing_left_behind(show: Show, stage: Backstage) -> None:
    """No file holds a key: database, logs, audit trail, HSM token, all that the server wrote."""
    with show.step("What is left behind, after the server has stopped"):
        show.claim("SIGTERM: the server drained and exited with 0", stage.stop() == 0)
        control = stage.folder / "control"
        for name in ("first", "second", "revoked", "restricted"):
            key = stage.keys[name]
            control.write_text(f"a file that does hold it: {key}")
            found = _leakcheck(key, [str(control)])
            control.unlink()
            clean = _leakcheck(key, [str(stage.state), str(stage.log)])
            show.claim(
                f"{name} key: {clean.stdout.strip()} (and in a planted file: 1 finding)",
                found.returncode == 1 and clean.returncode == 0,
            )


class OpenStream:
    """One WithKey stream by the generated stubs, as an internal service uses it."""

    def __init__(self, stage: Backstage) -> None:
        profile = stage.profile("agent")
        self._channel = grpc.secure_channel(profile.target, profile.credentials())
        self._outgoing: SimpleQueue[keys_pb2.WithKeyRequest | None] = SimpleQueue()
        stub = keys_pb2_grpc.KeyServiceStub(self._channel)
        self._answers = stub.WithKey(self._messages(), timeout=DEADLINE_S)
        self._call = 0
        self._outgoing.put(
            keys_pb2.WithKeyRequest(start=keys_pb2.Start(parent=profile.parent, task="demo"))
        )

    def count_tokens(self) -> keys_pb2.ResponseEnd:
        """One POST /v1/messages/count_tokens; returns its end."""
        self._call += 1
        body = b'{"model": "%s", "messages": [{"role": "user", "content": "hi"}]}'
        data = body % MODEL.encode()
        head = keys_pb2.RequestHead(
            call=self._call,
            method="POST",
            path="/v1/messages/count_tokens",
            headers=[
                keys_pb2.Header(name="content-type", value=b"application/json"),
                keys_pb2.Header(name="anthropic-version", value=b"2023-06-01"),
            ],
            content_length=len(data),
        )
        self._outgoing.put(keys_pb2.WithKeyRequest(head=head))
        self._outgoing.put(keys_pb2.WithKeyRequest(body=keys_pb2.RequestBody(data=data)))
        self._outgoing.put(keys_pb2.WithKeyRequest(end=keys_pb2.RequestEnd()))
        return next(
            message.end for message in self._answers if message.WhichOneof("message") == "end"
        )

    def close(self) -> None:
        """Close the stream and its connection."""
        self._outgoing.put(None)
        self._channel.close()

    def _messages(self) -> Iterator[keys_pb2.WithKeyRequest]:
        while (message := self._outgoing.get()) is not None:
            yield message


def _refusal(admin: KeyClient, key: str) -> InvalidArgument | FailedPrecondition:
    try:
        admin.add(key)
    except (InvalidArgument, FailedPrecondition) as error:
        return error
    raise AssertionError("the key was accepted")


def _refused_message(client: anthropic.Anthropic) -> tuple[int, str]:
    try:
        client.messages.create(
            model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "hi"}]
        )
    except anthropic.APIStatusError as error:
        return error.status_code, error.response.headers.get("x-ironwork-reason", "")
    return 200, ""


def _row(entry: dict[str, object]) -> tuple[str, str, str, str]:
    number = str(cast("dict[str, object]", entry["metadata"])["sequence"])
    api = cast("dict[str, str]", entry.get("api", {}))
    actor = cast("dict[str, dict[str, str]]", entry.get("actor", {}))
    who = actor.get("user", {}).get("uid", "").split("/", 3)[-1]
    unmapped = cast("dict[str, object]", entry["unmapped"])
    result = str(entry.get("status_detail") or entry.get("status") or "")
    if unmapped.get("phase") == "intent":
        result = "…"
    return number, api.get("operation", str(entry.get("class_uid"))), who, result


def _leakcheck(key: str, paths: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ironwork_server", "leakcheck", *paths],
        input=key + "\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
