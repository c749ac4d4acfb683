"""A real serving process whose log's disk fails under it: nothing is unwrapped, nothing is sent to
Anthropic, health tells, and it goes on by itself only where that is safe. The faults are the
kernel's own: a file system that is full, calls that strace makes fail, a folder that is deleted.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent
from fixtures.hsmd import entries_of
from fixtures.log_check import held
from fixtures.processes import Dev, dev
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_audit import parse
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import VerifierKey
from ironwork_audit.verify import Verdict, verify

DEADLINE_S = 60.0
MOST_CALLS = 200
PARENT = "workspaces/acme"
Response = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder that a `dev` made, with one key in it; to be copied."""
    state = tmp_path_factory.mktemp("made") / "state"
    with dev(state) as server:
        asyncio.run(add_key(server))
        server.running.signal()
        assert server.running.wait() == 0
    return state


@pytest.fixture
def state(made: Path) -> Path:
    """The same state folder, as it was made: it holds paths, so it is put back in its place."""
    kept = made.with_name("kept")
    if not kept.exists():
        shutil.copytree(made, kept)
    shutil.rmtree(made)
    shutil.copytree(kept, made)
    return made


async def add_key(server: Dev) -> None:
    async with server.channel("admin") as admin:
        request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=server.keys["first"].encode())
        await keys_pb2_grpc.KeyServiceStub(admin).AddKey(request, timeout=DEADLINE_S)


class Watching:
    """An agent and a watcher of health, at a server."""

    def __init__(self, server: Dev, agent: Agent, stub: health_pb2_grpc.HealthStub) -> None:
        self._server = server
        self._agent = agent
        self._stream = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10 * DEADLINE_S)

    async def become(self, status: int) -> None:
        """Health says this next, without being asked again."""
        async with asyncio.timeout(DEADLINE_S):
            assert (await self._stream.read()).status == status

    async def serves(self) -> None:
        answer = await self._agent.message()
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED, answer.reason

    async def serves_until_refused(self) -> None:
        """Calls are served whole until one is refused."""
        for _ in range(MOST_CALLS):
            answer = await self._agent.message()
            if answer.end.outcome != keys_pb2.OUTCOME_COMPLETED:
                assert answer.reason == "AUDIT_UNAVAILABLE"
                return
        pytest.fail("the fault did not come")

    async def refuses_and_does_nothing(self) -> None:
        """Call after call is refused; Anthropic and the HSM see none of them."""
        before = self._done()
        for _ in range(5):
            answer = await self._agent.message()
            assert (answer.reason, answer.end.sent_upstream) == ("AUDIT_UNAVAILABLE", False)
        assert self._done() == before

    def _done(self) -> tuple[int, int]:
        """How many requests Anthropic's simulator has seen, and how many unwraps the HSM."""
        requests = (self._server.state / "simulator" / "requests.log").read_bytes()
        record = entries_of(self._server.state / "hsmd" / "record")
        unwraps = sum(entry.event.operation == "hsm.unwrap" for entry in record)
        return requests.count(b"\n"), unwraps


@asynccontextmanager
async def watching(server: Dev) -> AsyncIterator[Watching]:
    async with server.channel("agent") as connection:
        agent = Agent(keys_pb2_grpc.KeyServiceStub(connection), PARENT, deadline_s=DEADLINE_S)
        await agent.start()
        seen = Watching(server, agent, health_pb2_grpc.HealthStub(connection))
        await seen.become(Response.SERVING)
        yield seen


def verified(state: Path) -> Verdict:
    key = VerifierKey.parse((state / "verifier-key").read_text().strip())
    verdict = verify(FolderSource(state / "audit"), key)
    assert verdict.finding is None
    return verdict


async def restarted(state: Path) -> Verdict:
    """A new process on the same folder serves; the log verifies once that has ended."""
    with dev(state) as server:
        async with watching(server) as seen:
            await seen.serves()
        server.running.signal()
        assert server.running.wait() == 0
    return verified(state)


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "call", ["fdatasync:error=EIO", pytest.param("pwrite64:error=EROFS", marks=SLOW)]
)
async def test_a_write_ahead_file_that_fails_ends_it(
    state: Path, tmp_path: Path, call: str
) -> None:
    """From the failed call on nothing is done and the file is not touched again, although the
    server lives on; a restart on a disk that is well goes on, and nothing that was answered is
    missing.
    """
    trace = tmp_path / "trace"
    name = call.partition(":")[0]
    files = [
        part for number in (0, 1) for part in ("-P", str(state / "audit" / f"pending.{number}"))
    ]
    # -D: the process that is started is the server, not strace.
    inside = ["strace", "-D", "-f", "--seccomp-bpf", "-o", str(trace), *files]
    # Each thread counts for itself, and one thread appends.
    inside += ["-e", "trace=fdatasync,pwrite64,ftruncate", "-e", f"inject={call}:when=40+"]
    with dev(state, inside=inside) as server:
        async with watching(server) as seen:
            await seen.serves_until_refused()
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
        server.running.signal()
        server.running.wait()
    calls = [line for line in trace.read_text().splitlines() if "= " in line]
    failed = [number for number, line in enumerate(calls) if "(INJECTED)" in line]
    assert len(failed) == 1, "it is not tried again"
    after = calls[failed[0] + 1 :]
    assert [line for line in after if "fdatasync" in line or "pwrite64" in line] == []
    assert name in calls[failed[0]]
    verdict = await restarted(state)
    assert verdict.unfinished <= 3, "a call's, its unwrap's, and a checkpoint's signing"


async def test_a_disk_that_is_full_and_then_is_not(state: Path, tmp_path: Path) -> None:
    """On a file system without a free block health tells before any call meets it, nothing is done,
    and all ends by itself when there is room again.
    """
    log, fifo, kept = state / "audit", tmp_path / "fifo", tmp_path / "kept"
    shutil.copytree(log, kept)
    # A small file system that only the server sees, and a shell beside it that does what the test
    # writes to the fifo.
    script = (
        'mount -t tmpfs -o size=2m,mode=0700 log "$0" && cp -a "$1/." "$0" && '
        '{ while read -r line; do eval "$line"; done < "$2" & } && shift 2 && exec "$@"'
    )
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    with ExitStack() as stack:
        fifo_path = str(fifo)
        os.mkfifo(fifo_path)
        server = stack.enter_context(dev(state, inside=[*inside, str(log), str(kept), fifo_path]))
        shell = stack.enter_context(fifo.open("w", buffering=1))
        async with watching(server) as seen:
            await seen.serves()
            shell.write(f"head -c 8m /dev/zero > {log}/filler\n")
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
            shell.write(f"rm {log}/filler\n")
            await seen.become(Response.SERVING)
            await seen.serves()
        server.running.signal()
        assert server.running.wait() == 0
    assert "journal.resumed" in server.running.log.read_text()


def delete_folder(log: Path) -> None:
    shutil.rmtree(log)


def delete_tiles(log: Path) -> None:
    shutil.rmtree(log / "tile")


def delete_file(log: Path) -> None:
    for name in ("pending.0", "pending.1"):
        (log / name).unlink()


@pytest.mark.parametrize(
    "delete",
    [
        delete_folder,
        pytest.param(delete_tiles, marks=SLOW),
        pytest.param(delete_file, marks=SLOW),
    ],
)
async def test_a_log_that_is_deleted_is_told_at_once(
    state: Path, delete: Callable[[Path], None]
) -> None:
    """Health tells before any call meets it; nothing is done any more, and nothing is put where the
    log was.
    """
    with dev(state) as server:
        async with watching(server) as seen:
            await seen.serves()
            delete(state / "audit")
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
        left = {path.name for path in (state / "audit").rglob("*")}
    assert not {"checkpoint.new", "000.new"} & left
    assert delete is not delete_folder or not left


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_kill_leaves_at_most_the_calls_in_flight(state: Path) -> None:
    """After `kill -9` of a server the next one marks what it left, and the log verifies."""
    with dev(state) as server:
        async with watching(server) as seen:
            for _ in range(3):
                await seen.serves()
            server.running.process.kill()
            server.running.process.wait()
    verdict = await restarted(state)
    found = [parse(entry).event for entry in held(state / "audit")]
    marks = [event for event in found if event.operation == "journal.unfinished"]
    assert verdict.unfinished == sum(int(mark.details["count"]) for mark in marks)
