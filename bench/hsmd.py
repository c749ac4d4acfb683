"""What the HSM process' extra hop costs: unwraps by SoftHSM in this process, over our protocol, and
over gRPC on the same kind of socket, each with the same backend behind it, in turn.

    .venv/bin/python bench/hsmd.py [--seconds 3] [--rounds 2] [--callers 1 16 64]

| way | what answers |
|---|---|
| in-process | the PKCS#11 backend's thread lanes |
| our protocol | one other process, no record: a device's child, asked directly |
| gRPC | one other process, no record: grpc.aio with a generic handler, bytes in and out |
| ironwork-hsmd | the whole: peer check, rate, record on disk, a child behind it |

CPU is of all processes that take part, for each unwrap. Compare the ways of one run only.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import grpc
import grpc.aio
import psutil

from ironwork_hsm import BackendOptions, KeyCreator, WrappedKey, open_backend
from ironwork_hsm.pkcs11.softhsm import SoftHsmToken, create_token
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH
from ironwork_hsm.remote.link import Link
from ironwork_hsm.remote.status import read_status
from ironwork_hsm.remote.wire import Frame

METHOD = "/ironwork.hsm.Bench/Unwrap"
CONTEXT = b"a context as long as one of the envelope's: workspace, key id, sequence, creation"
OPTIONS = BackendOptions(deadline_s=30, queue=4096)
Unwrap = Callable[[WrappedKey], Awaitable[object]]


@dataclass
class Way:
    """One way to unwrap. others: the processes beside this one that work for it."""

    name: str
    unwrap: Unwrap
    others: list[psutil.Process] = field(default_factory=list)

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *self.others])


@dataclass
class Figures:
    """What was measured. took: seconds, of every unwrap."""

    seconds: float = 0
    cpu_s: float = 0
    took: list[float] = field(default_factory=list)

    def row(self, name: str, callers: int) -> str:
        cuts = quantiles(self.took, n=100)
        return (
            f"| {name} | {callers} | {len(self.took) / self.seconds:,.0f}"
            f" | {median(self.took) * 1e6:,.0f} | {cuts[98] * 1e6:,.0f}"
            f" | {self.cpu_s / len(self.took) * 1e6:,.0f} |"
        )


async def measure(way: Way, wrapped: WrappedKey, callers: int, seconds: float, to: Figures) -> None:
    began, cpu = time.perf_counter(), way.cpu_s()

    async def caller() -> None:
        while (now := time.perf_counter()) < began + seconds:
            await way.unwrap(wrapped)
            to.took.append(time.perf_counter() - now)

    await asyncio.gather(*(caller() for _ in range(callers)))
    to.seconds += time.perf_counter() - began
    to.cpu_s += way.cpu_s() - cpu


@asynccontextmanager
async def our_protocol(token: SoftHsmToken) -> AsyncIterator[Way]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "ironwork_hsm.daemon.child", "wrapper"]
    command += ["--parent", str(os.getpid()), "--deadline", "30", "--lanes", "4", "--queue", "4096"]
    with theirs, subprocess.Popen(command, stdin=theirs) as process:  # noqa: ASYNC220  nothing is measured yet
        # The URI comes first, as from the HSM process.
        ours.sendall(LENGTH.pack(len(token.uri)) + token.uri.encode())
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(
            lambda: Link(deadline_s=30, capacity=4096, on_lost=lambda: None), sock=ours
        )

        def ask(build: Callable[[int], bytes]) -> asyncio.Future[object]:
            future: asyncio.Future[object] = loop.create_future()

            def answered(answer: Frame | Exception) -> None:
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                elif answer.kind is wire.Kind.OPENED:
                    future.set_result(wire.parse_opened(answer.payload))
                else:
                    future.set_result(answer.kind)

            link.request(build, answered)
            return future

        await ask(wire.hello)
        yield Way(
            "our protocol",
            lambda wrapped: ask(lambda number: wire.unwrap(number, wrapped, CONTEXT, "ref")),
            [psutil.Process(process.pid)],
        )
        link.abort()
        # The loop closes the socket only later; without this the wait below would hang.
        process.terminate()


@asynccontextmanager
async def over_grpc(token: SoftHsmToken, place: Path) -> AsyncIterator[Way]:
    address = f"unix:{place / 'grpc.sock'}"
    command = [sys.executable, __file__, "--serve-grpc", address, "--uri", token.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220  nothing is measured yet
        if process.stdout is None:
            raise TypeError("standard output is a pipe")
        process.stdout.readline()
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(METHOD)

            async def unwrap(wrapped: WrappedKey) -> bytearray:
                request = wire.unwrap(0, wrapped, CONTEXT, "ref")
                return bytearray(await call(request, timeout=30))

            yield Way("gRPC", unwrap, [psutil.Process(process.pid)])
        process.terminate()


async def serve_grpc(address: str, uri: str) -> None:
    """The gRPC way's server: the same backend, the same bytes for a request."""
    backend = await open_backend(uri, options=OPTIONS)

    async def handle(request: bytes, _: object) -> bytes:
        frame = wire.parse_body(memoryview(request)[LENGTH.size :])
        asked = wire.parse_unwrap(frame.payload)
        return bytes(await backend.unwrap(asked.wrapped, asked.context))

    server = grpc.aio.server()
    method = METHOD.rpartition("/")[2]
    service = METHOD.split("/")[1]
    handler = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@asynccontextmanager
async def whole(token: SoftHsmToken, place: Path, *, overwrite: bool) -> AsyncIterator[Way]:
    folder = place / f"hsmd-{overwrite}"
    folder.mkdir(mode=0o700)
    config = folder / "hsmd.toml"
    config.write_text(
        f'socket = "{folder}/hsm.sock"\nallowed_uids = [{os.getuid()}]\n'
        f'backends = ["{token.uri}"]\nstate = "{folder}/state"\n'
        f"overwrite_freed = {str(overwrite).lower()}\n"
        f'[record]\nfolder = "{folder}/record"\norigin = "bench"\n'
        "[limits]\ndeadline_s = 30\nopen_s = 60\nqueue = 4096\n"
        "operations_per_s = 1000000\nburst = 1000000\n"
    )
    command = [sys.executable, "-m", "ironwork_hsm.daemon.main", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220  nothing is measured yet
        if process.stdout is None:
            raise TypeError("standard output is a pipe")
        process.stdout.readline()
        remote = await open_backend(f"unix:{folder}/hsm.sock", options=OPTIONS)
        report = await read_status(folder / "hsm.sock")
        others = [psutil.Process(process.pid), psutil.Process(report["devices"][0]["pid"])]
        name = "ironwork-hsmd" if overwrite else "ironwork-hsmd, plain allocator"
        yield Way(name, lambda wrapped: remote.unwrap(wrapped, CONTEXT, reference="ref"), others)
        await remote.close()
        process.terminate()


async def compare(seconds: float, rounds: int, callers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        token = create_token(place / "token", "bench")
        os.environ.update(token.env)
        local = await open_backend(token.uri, allow_missing=True, options=OPTIONS)
        if not isinstance(local, KeyCreator):
            raise TypeError("SoftHSM creates keys")
        await local.create_version()
        wrapped = await local.wrap(bytes(32), CONTEXT)
        async with AsyncExitStack() as stack:
            ways = [
                Way("in-process", lambda wrapped: local.unwrap(wrapped, CONTEXT)),
                await stack.enter_async_context(our_protocol(token)),
                await stack.enter_async_context(over_grpc(token, place)),
                await stack.enter_async_context(whole(token, place, overwrite=False)),
                await stack.enter_async_context(whole(token, place, overwrite=True)),
            ]
            figures = {(way.name, count): Figures() for count in callers for way in ways}
            for way in ways:
                await measure(way, wrapped, 8, 0.5, Figures())
            for _ in range(rounds):
                for count in callers:
                    for way in ways:
                        await measure(way, wrapped, count, seconds, figures[way.name, count])
            print("| way | callers | unwraps/s | p50 µs | p99 µs | CPU µs for each |")
            print("|---|---|---|---|---|---|")
            for (way_name, count), found in figures.items():
                print(found.row(way_name, count))
        await local.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--serve-grpc", help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_grpc:
        asyncio.run(serve_grpc(options.serve_grpc, options.uri))
    else:
        asyncio.run(compare(options.seconds, options.rounds, options.callers))


if __name__ == "__main__":
    main()
