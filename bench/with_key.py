"""Whole-service throughput: WithKey calls against the same calls made directly, in one run.

    .venv/bin/python bench/with_key.py [--seconds 10] [--streams 16]

Starts `ironwork-server dev` with its simulator (pace 0), adds a key, and lets a number of open
streams call count_tokens one after the other. What is told is calls for each second of the
server's own CPU, the share of time that each answer took, and the same calls made directly to the
simulator over HTTP/1.1 and TLS: quote the ratios, for the machine's speed is not ours to know.
"""

import argparse
import asyncio
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import httpx2
import psutil

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import KeyClient, Profile

BODY = b'{"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "hi"}]}'
HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
PATH = "/v1/messages/count_tokens"


async def through_the_service(profile: Profile, until: float) -> list[float]:
    """One stream's calls, one after the other; seconds for each."""
    async with grpc.aio.secure_channel(
        profile.target, profile.credentials(), [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stream = keys_pb2_grpc.KeyServiceStub(channel).WithKey()
        start = keys_pb2.Start(parent=profile.parent)
        await stream.write(keys_pb2.WithKeyRequest(start=start))
        await stream.read()
        took: list[float] = []
        while (began := time.perf_counter()) < until:
            head = keys_pb2.RequestHead(
                call=len(took) + 1,
                method="POST",
                path=PATH,
                headers=[
                    keys_pb2.Header(name=name, value=value.encode())
                    for name, value in HEADERS.items()
                ],
                content_length=len(BODY),
            )
            await stream.write(keys_pb2.WithKeyRequest(head=head))
            await stream.write(keys_pb2.WithKeyRequest(body=keys_pb2.RequestBody(data=BODY)))
            await stream.write(keys_pb2.WithKeyRequest(end=keys_pb2.RequestEnd()))
            while (message := await stream.read()).WhichOneof("message") != "end":
                pass
            if message.end.outcome != keys_pb2.OUTCOME_COMPLETED:
                raise SystemExit(f"a call failed: {message.end}")
            took.append(time.perf_counter() - began)
        await stream.done_writing()
        return took


async def directly(client: httpx2.AsyncClient, url: str, key: str, until: float) -> list[float]:
    """The same calls without us."""
    took: list[float] = []
    while (began := time.perf_counter()) < until:
        answer = await client.post(url + PATH, content=BODY, headers=HEADERS | {"x-api-key": key})
        answer.raise_for_status()
        took.append(time.perf_counter() - began)
    return took


async def run(
    streams: int, seconds: float, one: Callable[[float], Awaitable[list[float]]]
) -> list[float]:
    """Several at once, for that long."""
    until = time.perf_counter() + seconds
    return [took for each in await asyncio.gather(*(one(until) for _ in range(streams)))
            for took in each]  # fmt: skip


def say(name: str, took: list[float], seconds: float, cpu: float | None = None) -> None:
    """One row."""
    ordered = sorted(took)
    row = [
        f"{name:<28}",
        f"{len(took) / seconds:>8.0f} calls/s",
        f"p50 {statistics.median(ordered) * 1e3:>6.2f} ms",
        f"p99 {ordered[int(len(ordered) * 0.99)] * 1e3:>6.2f} ms",
    ]
    if cpu is not None:
        row.append(f"{len(took) / cpu:>6.0f} calls per CPU-second of the server")
    print("  ".join(row))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        command = [sys.executable, "-m", "ironwork_server", "dev", "--json", "--pace", "0"]
        command += ["--state", str(state), "--listen", "127.0.0.1:0", "--log-level", "warning"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                if server.stdout is None:
                    raise TypeError("standard output is a pipe")
                measure(json.loads(server.stdout.readline()), server.pid, state, options)
            finally:
                server.terminate()


def measure(
    ready: dict[str, dict[str, str]], pid: int, state: Path, options: argparse.Namespace
) -> None:
    """Both runs, in turn."""
    profiles = state / "profiles"
    key = ready["simulator_keys"]["first"]
    with KeyClient(Profile.load(profiles / "admin.toml")) as admin:
        admin.add(key)
    agent = Profile.load(profiles / "agent.toml")
    process = psutil.Process(pid)
    asyncio.run(run(2, 1, lambda until: through_the_service(agent, until)))
    before = sum(process.cpu_times()[:2])
    took = asyncio.run(
        run(options.streams, options.seconds, lambda until: through_the_service(agent, until))
    )
    say(f"WithKey, {options.streams} streams", took, options.seconds,
        sum(process.cpu_times()[:2]) - before)  # fmt: skip
    url = simulator_url(process)
    roots = ssl.create_default_context(cafile=state / "pki" / "ca.pem")

    async def direct() -> list[float]:
        async with httpx2.AsyncClient(verify=roots, trust_env=False) as client:
            return await run(
                options.streams, options.seconds, lambda until: directly(client, url, key, until)
            )

    say(f"directly, {options.streams} tasks (httpx2)", asyncio.run(direct()), options.seconds)


def simulator_url(server: psutil.Process) -> str:
    """Where the server's simulator listens."""
    for child in server.children():
        for connection in child.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"https://127.0.0.1:{connection.laddr.port}"
    raise SystemExit("the simulator was not found")


if __name__ == "__main__":
    main()
