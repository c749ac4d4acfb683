"""The Anthropic simulator beside a dev server: a process of its own, over TLS, on loopback."""

import asyncio
import hashlib
import hmac
import json
import os
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from ironwork_server.app.allocator import plain_environment
from ironwork_server.app.dev.child import end
from ironwork_server.app.dev.state import DevState
from ironwork_server.app.startup import StartupError
from ironwork_server.upstream.endpoint import UpstreamEndpoint

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0
ORGANIZATION = "3f0c1a52-7c1e-4b7e-9d25-6a1f3c8e0d11"
OTHER_ORGANIZATION = "b81f7b9e-52a4-4a0e-8f5d-0c9f4f6f2a77"


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running simulator. keys: what it knows, by what they are good for; plaintext, for the
    terminal only: they are written to no file.
    """

    endpoint: UpstreamEndpoint
    keys: dict[str, str]


def simulator_keys(state: DevState) -> dict[str, str]:
    """The simulator's keys: the same at every start of this state folder, yet in none of its
    files, since they are derived from the throw-away CA's private key.
    """
    return {
        name: _derive(state, name)
        for name in ("first", "second", "third", "other-organization", "revoked", "restricted")
    }


def _derive(state: DevState, name: str) -> str:
    digest = b"".join(
        hmac.digest(state.ca.private_key_pem, f"simulator {name} {part}".encode(), hashlib.sha512)
        for part in range(2)
    )
    return f"sk-ant-api03-{urlsafe_b64encode(digest).decode()[:93]}AA"


@asynccontextmanager
async def simulator(state: DevState, *, pace_s: float) -> AsyncIterator[Simulator]:
    """Start it, and stop it at the end. Errors: StartupError."""
    if find_spec("ironwork_simulator") is None:
        raise StartupError(
            "The Anthropic simulator is not installed (it is no part of a production image): use"
            " a development checkout, or --upstream https://api.anthropic.com."
        )
    keys = simulator_keys(state)
    folder = state.folder / "simulator"
    state.ca.server_certificate().write(folder / "server.pem", folder / "server-key.pem")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ironwork_simulator",
        "--port", "0", "--exit-with-parent",
        "--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server-key.pem"),
        "--keys", "/dev/stdin", "--pace", str(pace_s), "--log", str(folder / "requests.log"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=plain_environment(os.environ),
    )  # fmt: skip
    try:
        url = await _started(process, keys)
        ca_file = state.folder / "pki" / "ca.pem"
        yield Simulator(UpstreamEndpoint.parse(url, ca_file=ca_file), keys)
    finally:
        await end(process, deadline_s=STOP_DEADLINE_S)


async def _started(process: asyncio.subprocess.Process, keys: dict[str, str]) -> str:
    if process.stdin is None or process.stdout is None:
        raise TypeError("both are pipes")
    process.stdin.write(json.dumps({"keys": _table(keys)}).encode())
    process.stdin.close()
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            line = await process.stdout.readline()
        return str(json.loads(line)["url"])
    except (TimeoutError, ValueError, KeyError, TypeError):
        raise StartupError("The Anthropic simulator did not start.") from None


def _table(keys: dict[str, str]) -> list[dict[str, str]]:
    states = {"revoked": "revoked", "restricted": "without_inference"}
    return [
        {
            "key": key,
            "organization_id": OTHER_ORGANIZATION if name == "other-organization" else ORGANIZATION,
            "state": states.get(name, "valid"),
        }
        for name, key in keys.items()
    ]
