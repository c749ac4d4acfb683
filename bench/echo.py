"""What the search for an echoed key costs: bytes for each CPU-second, and whole calls with and
without it.

    .venv/bin/python bench/echo.py [--seconds 5] [--rounds 3] [--streams 8]

The first table is the search alone, in this process: megabytes (10^6) of an answer for each second
of CPU. The second starts two `ironwork-server dev`, one of which has the search taken out, and
calls them in turn; quote the ratio, and how far the rounds lie apart.
"""

import argparse
import asyncio
import base64
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc.aio
import psutil

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import KeyClient, Profile
from ironwork_server.core.echo import EchoScanner, echo_filter

KEY_LENGTH, LAST_FOUR = 108, b"wAAA"
MIB = 1024 * 1024
COUNT = b'{"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "hi"}]}'
STREAM = COUNT[:-1] + b', "max_tokens": 4096, "stream": true}'
# What is called: its path, its body, and what the simulator is asked to answer.
CALLS = {
    "count_tokens": ("/v1/messages/count_tokens", COUNT, "{}"),
    "a stream of 2,000 tokens": ("/v1/messages", STREAM, '{"answer_tokens": 2000}'),
}
WITHOUT = """
from ironwork_server.custody.use_key import KeyUser
from ironwork_server.cli.main import main
class Looked:
    def __init__(self, response, look):
        self.status, self.headers = response.status, response.headers
        self._response, self._look = response, look
    async def chunks(self):
        async for chunk in self._response.chunks():
            self._look(chunk)
            yield chunk
async def unguarded(self, permit, serving, response, look):
    return Looked(response, look)
KeyUser._guarded = unguarded
raise SystemExit(main())
"""


def event(text: str) -> bytes:
    """A piece of text as Anthropic streams it."""
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta"}}
    delta["delta"]["text"] = text  # type: ignore[index]
    return b"event: content_block_delta\ndata: " + json.dumps(delta).encode() + b"\n\n"


def materials() -> Iterator[tuple[str, bytes, bytes, int]]:
    """(name, body, coding, bytes of a chunk)."""
    chance = random.Random(1)  # the same bytes in each run
    words = ["the", "asks", "class", "tests", "an", "api", "key", "is", "settings", "as"]
    events = b"".join(
        event("".join(f" {chance.choice(words)}" for _ in range(3))) for _ in range(60_000)
    )
    text = base64.b64encode(chance.randbytes(6 * MIB))
    yield "SSE, chunks of 16 KiB", events, b"", 16_384
    yield "SSE, an event a chunk", events, b"", 115
    yield "base64, chunks of 16 KiB", text, b"", 16_384
    yield "base64, chunks of 1 KiB", text, b"", 1_024
    yield "prefixes only, 16 KiB", b"sk-ant-api" * 600_000, b"", 16_384
    yield "SSE in gzip, 16 KiB", gzip.compress(events), b"gzip", 16_384


def search(body: bytes, coding: bytes, size: int) -> float:
    """CPU seconds for one body, and the same loop without a search taken off."""
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    began = time.process_time()
    for chunk in chunks:
        for _ in (chunk,):
            pass
    loop = time.process_time() - began
    passing = echo_filter(coding, EchoScanner(length=KEY_LENGTH, last_four=LAST_FOUR))
    began = time.process_time()
    for chunk in chunks:
        for _ in passing.feed(chunk):
            pass
    return time.process_time() - began - loop


def measure_search() -> None:
    """The first table; the best of five, since everything else only adds."""
    for name, body, coding, size in materials():
        took = min(search(body, coding, size) for _ in range(5))
        length = len(gzip.decompress(body)) if coding else len(body)
        chunks = -(-len(body) // size)
        print(
            f"{name:<28}{length / took / 1e6:>9,.0f} MB per CPU-second"
            f"{took / chunks * 1e6:>9.2f} µs a chunk"
        )


@contextmanager
def a_server(folder: Path, *, guarded: bool) -> Iterator[tuple[psutil.Process, Profile]]:
    """A server with a key; its process, and an agent's profile."""
    command = ["-m", "ironwork_server"] if guarded else ["-c", WITHOUT]
    options = ["--state", str(folder), "--listen", "127.0.0.1:0", "--log-level", "warning"]
    with subprocess.Popen(
        [sys.executable, *command, "dev", "--json", "--pace", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            if server.stdout is None:
                raise TypeError("standard output is a pipe")
            ready = json.loads(server.stdout.readline())
            with KeyClient(Profile.load(folder / "profiles" / "admin.toml")) as admin:
                admin.add(ready["simulator_keys"]["first"])
            yield psutil.Process(server.pid), Profile.load(folder / "profiles" / "agent.toml")
        finally:
            server.terminate()


async def stream(profile: Profile, call: tuple[str, bytes, str], until: float) -> int:
    """One stream's calls, one after the other; how many."""
    path, body, behaviour = call
    headers = {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
        "anthropic-simulator": behaviour,
    }
    head = keys_pb2.RequestHead(
        method="POST",
        path=path,
        headers=[keys_pb2.Header(name=name, value=text.encode()) for name, text in headers.items()],
        content_length=len(body),
    )
    async with grpc.aio.secure_channel(
        profile.target, profile.credentials(), [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        rpc = keys_pb2_grpc.KeyServiceStub(channel).WithKey()
        await rpc.write(keys_pb2.WithKeyRequest(start=keys_pb2.Start(parent=profile.parent)))
        await rpc.read()
        done = 0
        while time.perf_counter() < until:
            head.call = done + 1
            await rpc.write(keys_pb2.WithKeyRequest(head=head))
            await rpc.write(keys_pb2.WithKeyRequest(body=keys_pb2.RequestBody(data=body)))
            await rpc.write(keys_pb2.WithKeyRequest(end=keys_pb2.RequestEnd()))
            while (message := await rpc.read()).WhichOneof("message") != "end":
                pass
            if message.end.outcome != keys_pb2.OUTCOME_COMPLETED:
                raise SystemExit(f"a call failed: {message.end}")
            done += 1
        await rpc.done_writing()
        return done


async def calls(
    profile: Profile, call: tuple[str, bytes, str], streams: int, seconds: float
) -> int:
    """Several streams at once, for that long; how many calls."""
    until = time.perf_counter() + seconds
    return sum(await asyncio.gather(*(stream(profile, call, until) for _ in range(streams))))


def rate(
    server: tuple[psutil.Process, Profile],
    call: tuple[str, bytes, str],
    options: argparse.Namespace,
) -> float:
    """Calls for each second of the server's CPU."""
    process, profile = server
    before = sum(process.cpu_times()[:2])
    done = asyncio.run(calls(profile, call, options.streams, options.seconds))
    return done / (sum(process.cpu_times()[:2]) - before)


def measure_calls(options: argparse.Namespace) -> None:
    """The second table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = [
            stack.enter_context(a_server(Path(folder) / name, guarded=name == "with"))
            for name in ("with", "without")
        ]
        for name, call in CALLS.items():
            for server in servers:
                asyncio.run(calls(server[1], call, 2, 1))
            rates = [[rate(server, call, options) for server in servers]
                     for _ in range(options.rounds)]  # fmt: skip
            ratios = sorted(guarded / unguarded for guarded, unguarded in rates)
            middle = [statistics.median(column) for column in zip(*rates, strict=True)]
            print(
                f"{name:<28}{middle[0]:>7.0f} with, {middle[1]:.0f} without, calls per CPU-second"
                f" of the server; ratio {statistics.median(ratios):.3f}"
                f" ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    measure_search()
    measure_calls(options)


if __name__ == "__main__":
    main()
