"""Unwraps through the cloud backends, beside the bare client library against the same server.

    .venv/bin/python bench/kms.py [--rounds 10] [--seconds 0.5]

| row | what it does |
|---|---|
| bare | the cloud's own client, nothing of ours: boto3 by threads, Google's asyncio client |
| backend | `await backend.unwrap(…)` by so many callers; AWS with so many lanes |

The servers are those of the tests, each in a process of its own: moto's, and the gRPC server that
really encrypts. They take most of the machine, so a rate says what they can do; what is ours is the
CPU of this process for each unwrap, against bare. Rows take turns in short slices.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import boto3.session
import grpc
import psutil
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcAsyncIOTransport,
)
from hsm import CONTEXT, Count

from ironwork_hsm import BackendOptions, WrappedKey
from ironwork_hsm.aws import open_aws_kms
from ironwork_hsm.aws.blob import encryption_context, unpack
from ironwork_hsm.binding import associated_data
from ironwork_hsm.gcp import open_gcp_kms

TESTS = Path(__file__).parents[1] / "tests"
REGION = "eu-central-1"
CALLERS = (1, 16)
LANES = 4
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Call = Callable[[], Awaitable[object]]


class Rows:
    """Measures rows, in turns, and prints them. server: whose CPU is told beside ours."""

    def __init__(self, server: psutil.Process) -> None:
        self._server = server
        self._rows: dict[str, tuple[Count, Count]] = {}

    def _cpu(self) -> tuple[float, float]:
        times = self._server.cpu_times()
        return time.process_time(), times.user + times.system

    @contextmanager
    def measuring(self, name: str) -> Iterator[list[int]]:
        """To the list goes how many were done."""
        ours, servers = self._rows.setdefault(name, (Count(), Count()))
        (cpu, server), began, done = self._cpu(), time.perf_counter(), list[int]()
        yield done
        seconds, (cpu_after, server_after) = time.perf_counter() - began, self._cpu()
        ours.add(sum(done), seconds, cpu_after - cpu)
        servers.add(sum(done), seconds, server_after - server)

    def show(self, title: str) -> None:
        print(f"| {title} | a second | CPU µs for each, here | and in the server |")
        print("|---|---|---|---|")
        for name, (ours, servers) in self._rows.items():
            print(f"| {name} | {ours.rate:,.0f} | {ours.cpu_us:,.0f} | {servers.cpu_us:,.0f} |")
        print(flush=True)


async def by_callers(call: Call, callers: int, seconds: float, done: list[int]) -> None:
    """Each asks again as soon as it has its answer."""
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < ends:
            await call()
            done.append(1)

    await asyncio.gather(*(caller() for _ in range(callers)))


def by_threads(call: Callable[[], object], count: int, seconds: float, done: list[int]) -> None:
    ends = time.perf_counter() + seconds

    def work() -> None:
        while time.perf_counter() < ends:
            call()
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@asynccontextmanager
async def server(kind: str) -> AsyncIterator[tuple[int, psutil.Process]]:
    """One of the tests' servers: its port, and its process."""
    process = subprocess.Popen(  # noqa: ASYNC220  it answers to what nobody waits for yet
        [sys.executable, __file__, "--serve", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if process.stdin is None or process.stdout is None:
        raise TypeError("they are pipes")
    try:
        yield int(await asyncio.to_thread(process.stdout.readline)), psutil.Process(process.pid)
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def serve_aws() -> None:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    print(moto.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    moto.stop()


async def serve_gcp() -> None:
    sys.path.insert(0, str(TESTS))
    from fixtures.gcp import serving

    async with serving() as kms:
        kms.add_version()
        print(kms.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def aws(rounds: int, seconds: float) -> None:
    os.environ.update(CREDENTIALS)
    async with server("aws") as (port, process):
        url = f"http://127.0.0.1:{port}"
        client: Any = boto3.session.Session().client("kms", region_name=REGION, endpoint_url=url)
        arn = client.create_key(KeyUsage="ENCRYPT_DECRYPT", KeySpec="SYMMETRIC_DEFAULT")[
            "KeyMetadata"
        ]["Arn"]
        options = BackendOptions(lanes=LANES, queue=4096, deadline_s=30, slow_deadline_s=60)
        backend = await open_aws_kms(f"awskms:///{arn}", options=options, endpoint_url=url)
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        bound = encryption_context(name=backend.name, context=CONTEXT)
        ciphertext = unpack(wrapped.blob).ciphertext

        def bare() -> object:
            return client.decrypt(KeyId=arn, CiphertextBlob=ciphertext, EncryptionContext=bound)

        rows = Rows(process)
        for _ in range(rounds):
            for threads in (1, LANES):
                with rows.measuring(f"bare, threads: {threads}") as done:
                    await asyncio.to_thread(by_threads, bare, threads, seconds, done)
            for callers in CALLERS:
                with rows.measuring(f"backend, callers: {callers}") as done:
                    await by_callers(
                        lambda: backend.unwrap(wrapped, CONTEXT), callers, seconds, done
                    )
        rows.show("AWS, moto's server")
        await backend.close()
        client.close()


async def gcp(rounds: int, seconds: float) -> None:
    key = "projects/acme/locations/europe-west3/keyRings/ring/cryptoKeys/master"
    async with server("gcp") as (port, process):

        def channel() -> grpc.aio.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

        options = BackendOptions(queue=4096, deadline_s=30, slow_deadline_s=60)
        backend = await open_gcp_kms(f"gcpkms://{key}", options=options, channel=channel())
        wrapped: WrappedKey = await backend.wrap(bytes(32), CONTEXT)
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel())
        client = KeyManagementServiceAsyncClient(transport=transport)
        request = {
            "name": key,
            "ciphertext": wrapped.blob[1:],
            "additional_authenticated_data": associated_data(
                name=backend.name,
                version=wrapped.key_version,
                mechanism=wrapped.mechanism,
                context=CONTEXT,
            ),
        }
        rows = Rows(process)
        for _ in range(rounds):
            for callers in CALLERS:
                with rows.measuring(f"bare, callers: {callers}") as done:
                    await by_callers(
                        lambda: client.decrypt(request, retry=None, timeout=30),
                        callers,
                        seconds,
                        done,
                    )
                with rows.measuring(f"backend, callers: {callers}") as done:
                    await by_callers(
                        lambda: backend.unwrap(wrapped, CONTEXT), callers, seconds, done
                    )
        rows.show("Google, the tests' gRPC server")
        await backend.close()
        await transport.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--serve", choices=("aws", "gcp"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve == "aws":
        serve_aws()
    elif chosen.serve == "gcp":
        asyncio.run(serve_gcp())
    else:
        asyncio.run(aws(chosen.rounds, chosen.seconds))
        asyncio.run(gcp(chosen.rounds, chosen.seconds))


if __name__ == "__main__":
    main()
