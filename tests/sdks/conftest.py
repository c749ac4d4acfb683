"""A development server from .venv, in a process of its own, for SDKs of another environment.

IRONWORK_SERVER names another `ironwork-server` than that of .venv.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from ironwork_client import KeyClient, Profile
from ironwork_client.httpx import WithKeyTransport

ROOT = Path(__file__).parents[2]

# The main suite's anthropic is built on httpx2: there is nothing to run with it here.
collect_ignore_glob = [] if anthropic.__version__.startswith("0.") else ["test_*.py"]


Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Server:
    """agent: a profile that may use the key; stranger: another workspace's agent, asking for it.
    log: the simulator's, which has a line for each request once it is over.
    """

    agent: Profile
    stranger: Profile
    log: Path

    def records(self, enough: Callable[[Records], bool]) -> Records:
        """The log's records, once they are enough: it is followed until then."""
        command = ["tail", "-n", "+1", "-f", str(self.log)]
        records: Records = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follow:
            try:
                for line in follow.stdout or ():
                    records.append(json.loads(line))
                    if enough(records):
                        break
            finally:
                follow.kill()
        return records

    def tries(self, mark: str) -> Records:
        """The requests so far that bore a header of this name, all of them over."""
        with httpx.Client(transport=WithKeyTransport(self.agent)) as client:
            last = client.get("https://api.anthropic.com/v1/models").headers["request-id"]
        records = self.records(lambda records: records[-1]["request_id"] == last)
        return marked(records, mark)

    def left(self, mark: str) -> Records:
        """The requests that bore this header, once one of them was abandoned by its client."""
        return marked(
            self.records(lambda r: mark in r[-1]["header_names"] and r[-1]["disconnected_at"]), mark
        )


def marked(records: Records, mark: str) -> Records:
    return [record for record in records if mark in record["header_names"]]


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
            Profile.load(profiles / "agent.toml"),
            Profile.load(profiles / "stranger.toml"),
            folder / "state" / "simulator" / "requests.log",
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
