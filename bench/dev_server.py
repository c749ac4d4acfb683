"""A `dev` server for a measurement: started, given a key, warmed up, and ended."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from with_key import run, through_the_service

from ironwork_client import KeyClient, Profile

HERE = Path(__file__).resolve().parent.parent
PACKAGES = ("protos", "hsm", "audit", "server", "clients/python", "tests/simulator")


@contextmanager
def warmed_up(
    state: Path, *arguments: str, checkout: Path = HERE
) -> Iterator[tuple[psutil.Process, Profile]]:
    """The server of a checkout, and an agent's profile."""
    command = [sys.executable, "-m", "ironwork_server", "dev", "--json", "--pace", "0"]
    command += ["--state", str(state), "--listen", "127.0.0.1:0", "--log-level", "error"]
    path = os.pathsep.join(str(checkout / package) for package in PACKAGES)
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        try:
            if process.stdout is None:
                raise TypeError("standard output is a pipe")
            key = json.loads(process.stdout.readline())["simulator_keys"]["first"]
            with KeyClient(Profile.load(state / "profiles" / "admin.toml")) as admin:
                admin.add(key)
            agent = Profile.load(state / "profiles" / "agent.toml")
            asyncio.run(run(2, 1, lambda until: through_the_service(agent, until)))
            yield psutil.Process(process.pid), agent
        finally:
            process.terminate()
