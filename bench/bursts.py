"""How large a burst of Claude requests is served whole: N open streams that ask all at once.

    .venv/bin/python bench/bursts.py [--sizes 16 64 256 512 1024] [--busy 0]

Starts `ironwork-server dev` with its simulator (pace 0) and lets N streams send one request each at
the same moment, once on new connections to the upstream and once on kept ones. Told is the time
until the last answer, and how many were refused, by reason. --busy: processes that do nothing but
take CPU time meanwhile, as on a machine that is too small.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
from google.rpc import error_details_pb2
from with_key import BODY, HEADERS, PATH

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import KeyClient, Profile
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa

# Limits are for each principal: so a burst comes from several.
PER_PRINCIPAL = 200


class Asker:
    """An open stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream = keys_pb2_grpc.KeyServiceStub(channel).WithKey()
        self._calls = 0

    async def open(self) -> None:
        start = keys_pb2.Start(parent="workspaces/acme")
        await self._stream.write(keys_pb2.WithKeyRequest(start=start))
        await self._stream.read()

    async def ask(self) -> str:
        """One request; OK, or why not."""
        self._calls += 1
        head = keys_pb2.RequestHead(
            call=self._calls,
            method="POST",
            path=PATH,
            headers=[
                keys_pb2.Header(name=name, value=value.encode()) for name, value in HEADERS.items()
            ],
            content_length=len(BODY),
        )
        await self._stream.write(keys_pb2.WithKeyRequest(head=head))
        await self._stream.write(keys_pb2.WithKeyRequest(body=keys_pb2.RequestBody(data=BODY)))
        await self._stream.write(keys_pb2.WithKeyRequest(end=keys_pb2.RequestEnd()))
        while (message := await self._stream.read()).WhichOneof("message") != "end":
            pass
        for detail in message.end.error.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info.reason
        return "OK"


async def measure(target: str, state: Path, sizes: Sequence[int]) -> None:
    """Both rounds of each size."""
    ca = DevCa.load(state / "pki")
    channels: list[grpc.aio.Channel] = []
    askers: list[Asker] = []
    for size in sizes:
        while len(askers) < size:
            if len(askers) % PER_PRINCIPAL == 0:
                channels.append(connect(ca, target, len(channels)))
            askers.append(Asker(channels[-1]))
            await askers[-1].open()
        for name in ("first", "again"):
            began = time.perf_counter()
            ends = Counter(await asyncio.gather(*(asker.ask() for asker in askers[:size])))
            took = time.perf_counter() - began
            print(f"{size:>5} {name}  {took:>6.2f} s  {dict(ends)}")
    for channel in channels:
        await channel.close()


def connect(ca: DevCa, target: str, number: int) -> grpc.aio.Channel:
    """As an agent of its own."""
    issued = ca.client_certificate(
        f"spiffe://{DEV_TRUST_DOMAIN}/workspace/acme/agent/burst-{number}"
    )
    credentials = grpc.ssl_channel_credentials(
        ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
    )
    return grpc.aio.secure_channel(target, credentials, [("grpc.use_local_subchannel_pool", 1)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256, 512, 1024])
    parser.add_argument("--busy", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        state = Path(folder) / "state"
        command = [sys.executable, "-m", "ironwork_server", "dev", "--json", "--pace", "0"]
        command += ["--state", str(state), "--listen", "127.0.0.1:0", "--log-level", "error"]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)
        if server.stdout is None:
            raise TypeError("standard output is a pipe")
        ready = json.loads(server.stdout.readline())
        with KeyClient(Profile.load(state / "profiles" / "admin.toml")) as admin:
            admin.add(ready["simulator_keys"]["first"])
        for _ in range(options.busy):
            stack.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        asyncio.run(measure(ready["target"], state, options.sizes))


if __name__ == "__main__":
    main()
