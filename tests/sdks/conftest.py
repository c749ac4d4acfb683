"""A development server from .venv, in a process of its own, for SDKs of another environment.

IRONWORK_SERVER names another `ironwork-server` than that of .venv.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import pytest

from ironwork_client import KeyClient, Profile

ROOT = Path(__file__).parents[2]

# The main suite's anthropic is built on httpx2: there is nothing to run with it here.
collect_ignore_glob = [] if anthropic.__version__.startswith("0.") else ["test_*.py"]


@dataclass(frozen=True)
class Server:
    """agent: a profile that may use the key; stranger: another workspace's agent, asking for it."""

    agent: Profile
    stranger: Profile


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    command = os.environ.get("IRONWORK_SERVER", str(ROOT / ".venv/bin/ironwork-server"))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "dev", "--json", "--state", str(folder / "state"), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        profiles = folder / "state" / "profiles"
        with KeyClient(Profile.load(profiles / "admin.toml")) as keys:
            keys.add(json.loads(line)["simulator_keys"]["first"].encode(), "for the SDKs")
        yield Server(
            Profile.load(profiles / "agent.toml"), Profile.load(profiles / "stranger.toml")
        )
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, proxy or address from outside."""
    for name in tuple(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith("ANTHROPIC_"):
            monkeypatch.delenv(name)
