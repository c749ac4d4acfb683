"""What of keys and data keys is in the server's memory: nothing, a second after the last call."""

from __future__ import annotations  # the generated stubs' async classes exist for types only

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from fixtures import memory_subject
from fixtures.agent import HEADERS, Agent, message_body
from fixtures.evidence import reason
from fixtures.memory_scan import BLOCK, PIECE, copies
from fixtures.memory_subject import masked
from fixtures.migrated import NewStore
from fixtures.processes import environment
from fixtures.server import ADMIN, AGENT, PARENT, make_settings, spiffe
from fixtures.simulator import TestSimulator
from fixtures.softhsm import MakeToken
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_server.app.devpki import DevCa
from ironwork_server.cli.leakcheck import SHOWN_PREFIX, SHOWN_SUFFIX
from ironwork_simulator import Behaviour

AT_ONCE = 16
CALL_S = 60.0
DATA_KEY_BYTES = 32
NONE = {"key": 0, "data": 0}
NOTHING = {"after AddKey": NONE, "after WithKey": NONE, "while streaming": NONE}
MISBEHAVIOURS = (b"rate-limited", b"overloaded", b"mid-stream-error", b"cut", b"reset")


@dataclass(frozen=True)
class Failure:
    """A way in which AddKey fails. key: how the simulator treats it. tail: what is pasted after
    it. again: it is one that was added.
    """

    reason: str
    key: Mapping[str, Any] = field(default_factory=dict)
    tail: bytes = b""
    again: bool = False
    timeout_s: float = 60.0


FAILURES = (
    Failure("KEY_INVALID", {"kind": "revoked"}),
    Failure("KEY_WITHOUT_PERMISSION", {"kind": "without_inference"}),
    Failure("ANTHROPIC_UNAVAILABLE", {"behaviour": Behaviour(status=529)}),
    Failure("API_KEY_MALFORMED", tail=b"\n"),
    Failure("KEY_EXISTS", again=True),
    Failure("DEADLINE_EXCEEDED", {"behaviour": Behaviour(hang=True)}, timeout_s=1.0),
)


@dataclass
class Subject:
    """A running server. keys: by number, the ones that it was given."""

    process: subprocess.Popen[str]
    folder: Path
    target: str
    ca: DevCa
    simulator: TestSimulator
    keys: dict[str, bytes]

    def channel(self, path: str) -> grpc.aio.Channel:
        issued = self.ca.client_certificate(spiffe(path))
        credentials = grpc.ssl_channel_credentials(
            self.ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
        )
        return grpc.aio.secure_channel(
            self.target, credentials, [("grpc.use_local_subchannel_pool", 1)]
        )

    def data_keys(self) -> set[bytes]:
        """Every data key that there was so far, and the pepper."""
        told = masked((self.folder / "data-keys").read_bytes())
        return {told[at : at + DATA_KEY_BYTES] for at in range(0, len(told), DATA_KEY_BYTES)}

    def copies(self) -> dict[str, int]:
        """How many places hold 12 bytes of a key (without what masks show), or of a data key."""
        secrets = {
            f"key {name}": key[SHOWN_PREFIX:-SHOWN_SUFFIX] for name, key in self.keys.items()
        } | {f"data {number}": key for number, key in enumerate(sorted(self.data_keys()))}
        found = Counter(name.split()[0] for name in copies(self.process.pid, secrets))
        return {kind: found[kind] for kind in ("key", "data")}

    def plant(self, secret: bytes) -> None:
        """Have the process keep a copy."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"plant {masked(secret).hex()}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "planted\n"


class Start:
    """`with start() as subject`, on files of its own."""

    def __init__(
        self,
        folder: Path,
        ca: DevCa,
        simulator: TestSimulator,
        make_token: MakeToken,
        new_store: NewStore,
    ) -> None:
        self._folder = folder
        self._ca = ca
        self._simulator = simulator
        self._make_token = make_token
        self._new_store = new_store

    @contextmanager
    def __call__(self, *arguments: str) -> Iterator[Subject]:
        folder = self._folder
        for name in ("tls", "db", "policy", "audit"):
            (folder / name).mkdir(mode=0o700)
        token = self._make_token(with_key=True)
        settings = make_settings(
            folder,
            self._ca,
            token,
            self._new_store(folder / "db" / "keys.db"),
            # A call that its client gave up is still being wound up when the next one begins.
            limits={"max_keys": 5000, "unary_per_principal": 64},
        )
        start = {
            "settings": settings.model_dump(mode="json"),
            "port": self._simulator.port,
            "ca_file": str(self._simulator.ca_file),
            "data_keys": str(folder / "data-keys"),
        }
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(
                [sys.executable, memory_subject.__file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment({**token.env, "PYTHONPATH": os.pathsep.join(sys.path)}),
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(start) + "\n")
                process.stdin.flush()
                port = process.stdout.readline().strip()
                assert port, (folder / "log").read_text()
                yield Subject(process, folder, f"localhost:{port}", self._ca, self._simulator, {})
                process.stdin.close()
                assert process.wait(60) == 0
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()


@pytest.fixture
def start(
    tmp_path: Path,
    dev_ca: DevCa,
    simulator: TestSimulator,
    make_token: MakeToken,
    new_store: NewStore,
) -> Start:
    return Start(tmp_path, dev_ca, simulator, make_token, new_store)


async def add_keys(subject: Subject, count: int) -> None:
    """That many calls, 16 at once; half of them fail, each kind of failure in turn."""
    async with subject.channel(ADMIN) as channel:
        stub = keys_pb2_grpc.KeyServiceStub(channel)
        wanted = iter(range(count))
        added: list[bytes] = []
        reasons = Counter[str]()

        async def some() -> None:
            for number in wanted:
                failure = FAILURES[number // 2 % len(FAILURES)] if number % 2 else None
                key = subject.simulator.make_key(**(failure.key if failure else {})).encode()
                if failure is not None and failure.again and added:
                    key = added[-1]
                subject.keys[str(number)] = key
                request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=key)
                if failure is not None:
                    request.api_key += failure.tail
                try:
                    await stub.AddKey(request, timeout=failure.timeout_s if failure else CALL_S)
                    added.append(key)
                except grpc.aio.AioRpcError as error:
                    reasons[reason(error)] += 1

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        assert len(added) >= count // 2
        assert {failure.reason for failure in FAILURES} == set(reasons)


async def use_keys(subject: Subject, count: int) -> None:
    """That many Claude requests on 16 streams, unary and streamed; a third go wrong."""
    async with subject.channel(AGENT) as channel:
        stub = keys_pb2_grpc.KeyServiceStub(channel)
        wanted = iter(range(count))
        outcomes = Counter[int]()

        async def some() -> None:
            agent = Agent(stub, deadline_s=600)
            await agent.start()
            for number in wanted:
                headers = [*HEADERS]
                if number % 3 == 2:
                    behaviour = MISBEHAVIOURS[number // 3 % len(MISBEHAVIOURS)]
                    headers.append(("anthropic-simulator", behaviour))
                body = message_body(stream=number % 2 == 0)
                answer = await agent.call(body=body, headers=headers)
                assert answer.end.sent_upstream
                outcomes[answer.end.outcome] += 1
            agent.stream.cancel()

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        assert set(outcomes) == {keys_pb2.OUTCOME_COMPLETED, keys_pb2.OUTCOME_FAILED}


async def measure(subject: Subject, count: int) -> dict[str, dict[str, int]]:
    """Copies found a second after the last AddKey and the last request, and while 16 answers are
    open.
    """
    await add_keys(subject, count)
    await asyncio.sleep(1)  # what is promised is one second
    found = {"after AddKey": subject.copies()}
    await use_keys(subject, count)
    await asyncio.sleep(1)
    found["after WithKey"] = subject.copies()
    found["while streaming"] = await while_streaming(subject)
    return found


async def while_streaming(subject: Subject) -> dict[str, int]:
    """Copies while answers are open, of the serving key above all."""
    hold = subject.simulator.hold()
    async with subject.channel(AGENT) as channel:
        stub = keys_pb2_grpc.KeyServiceStub(channel)
        for _ in range(AT_ONCE):
            subject.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
        agents = [Agent(stub, deadline_s=600) for _ in range(AT_ONCE)]
        try:
            for agent in agents:
                await agent.start()
                await agent.begin(body=message_body(stream=True))
            for agent in agents:
                assert (await agent.read()).WhichOneof("message") == "head"
            found = subject.copies()
        finally:
            hold.release()
        for agent in agents:
            assert (await agent.answer()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    return found


def control(subject: Subject, before: Mapping[str, int]) -> None:
    """The scan finds what is there: 12 bytes of a key, and of a data key, wherever they lie."""
    key, data_key = subject.keys["0"], max(subject.data_keys())
    for shift in range(BLOCK):
        subject.plant(bytes(shift) + key[SHOWN_PREFIX + shift :][:PIECE])
        subject.plant(bytes(shift) + data_key[shift:][:PIECE])
    subject.plant(key[SHOWN_PREFIX:][: PIECE - 1])
    after = subject.copies()
    assert {kind: after[kind] - before[kind] for kind in after} == {"key": BLOCK, "data": BLOCK}


async def test_nothing_of_a_key_is_left_in_memory(start: Start) -> None:
    """A second after AddKey and WithKey calls that succeed and fail in every way, and while answers
    stream, no 12 bytes of a key or data key are in the server's memory; planted ones are found.
    """
    with start() as subject:
        assert await measure(subject, 48) == NOTHING
        control(subject, NONE)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_nothing_of_a_key_is_left_after_a_thousand_calls(start: Start) -> None:
    """The same for 1,000 calls of each, 16 at once."""
    with start() as subject:
        assert await measure(subject, 1000) == NOTHING
        control(subject, NONE)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_what_a_plain_allocator_leaves(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the allocator's settings the copies are counted and shown; nothing is claimed."""
    with start("--plain") as subject:
        found = await measure(subject, 1000)
    with capsys.disabled():
        sys.stdout.write(f"\nplain allocator: {found}\n")
