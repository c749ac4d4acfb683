"""The operator's page on rotating behind the HSM process, run as it stands there, beside two
servers that share the process and have a database each.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.agent import Agent
from fixtures.hsmd import Hsmd, MakeHsmd, entries_of
from fixtures.operator_page import blocks
from fixtures.processes import environment
from fixtures.production import as_toml
from fixtures.server import AGENT, StartService, TestService
from ironwork.keys.v1 import keys_pb2
from ironwork_hsm import BackendOptions, HsmError, KeyMissing, Unavailable
from ironwork_hsm.remote import open_unix

DEADLINE_S = 90


@dataclass
class Site:
    """A server, and its operator's shell."""

    service: TestService
    hsmd: Hsmd

    async def run(self, block: str) -> subprocess.CompletedProcess[str]:
        """A block of the page, as this server's operator."""
        folder = self.service.folder
        settings = self.service.settings.model_dump(mode="json", exclude_none=True)
        (folder / "server.toml").write_text(as_toml(settings))
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name, module in (
            ("ironwork-server", "ironwork_server"),
            ("ironwork-hsmd", "ironwork_hsm.daemon.main"),
        ):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            program.chmod(0o700)
        assert self.hsmd.process is not None
        env = environment(self.service.token.env) | {
            "H": str(self.hsmd.folder),
            "HSMD": str(self.hsmd.process.pid),
            "IRONWORK_CONFIG": str(folder / "server.toml"),
        }
        return await asyncio.to_thread(
            subprocess.run,
            ["bash", "-eu", "-c", block],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    async def done(self, block: str) -> str:
        ran = await self.run(block)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    async def added(self) -> int:
        """The version that wraps a key which is added now."""
        return (await self.service.add()).master_key_version.version

    async def versions(self) -> set[int]:
        """What wraps this server's keys."""
        answer = await self.service.keys().ListMasked(
            keys_pb2.ListMaskedRequest(parent="workspaces/acme"), timeout=DEADLINE_S
        )
        return {key.master_key_version.version for key in answer.keys}

    async def serves(self) -> None:
        """A Claude request is answered."""
        agent = Agent(self.service.keys(AGENT))
        await agent.start()
        answer = await agent.message()
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        await agent.close()


@pytest.fixture
async def sites(
    start_service: StartService, make_hsmd: MakeHsmd, tmp_path: Path
) -> tuple[Site, Site, Hsmd]:
    """Two servers at one HSM process, each with a database of its own. The first lists another
    process too, which is returned: a backend of its that can fail.
    """
    shared, second = make_hsmd(), make_hsmd()
    (shared.folder / "so-pin").write_bytes(shared.token.so_pin_file.read_bytes())
    (shared.folder / "so-pin").chmod(0o600)
    (tmp_path / "other").mkdir(mode=0o700)
    one = await start_service(master_key={"uris": [shared.uri, second.uri]})
    other = await start_service(folder=tmp_path / "other", master_key={"uris": [shared.uri]})
    return Site(one, shared), Site(other, shared), second


@pytest.mark.slow
@pytest.mark.timeout(300)  # a dozen processes, one after the other
async def test_the_page_rotates_behind_the_hsm_process(sites: tuple[Site, Site, Hsmd]) -> None:
    """A version that was made wraps nothing until a server's `rotate` has proven every one of its
    backends and switched it on, and then for that server alone; when all have moved, the old one is
    destroyed, while everything goes on being served.
    """
    one, other, second = sites
    shared = one.hsmd
    make, move, destroy = blocks("Rotating behind the HSM process")
    rotate = move.splitlines()[0]
    assert [await one.added(), await other.added()] == [1, 1]
    remote = await open_unix(shared.uri, allow_missing=False, options=BackendOptions())
    old = await remote.wrap(bytes(32), b"row", version=1)

    # Nothing newer yet: the command says what to run.
    nothing = await other.run(rotate)
    assert (nothing.returncode, "ironwork-hsmd create --next" in nothing.stderr) == (1, True)

    assert json.loads(await one.done(make)) == {"version": 2}
    async with asyncio.timeout(DEADLINE_S):
        while (await asyncio.to_thread(shared.status))["devices"][0]["version"] != 2:
            pass
    assert [await one.added(), await other.added()] == [1, 1]

    # One of the first server's backends does not answer: nothing is switched on.
    assert await asyncio.to_thread(second.end) == 0
    failed = await one.run(rotate)
    assert (failed.returncode, "does not take connections" in failed.stderr) == (1, True)
    assert [await one.added(), await other.added()] == [1, 1]

    # It is back: proven and switched on, for this server only.
    await asyncio.to_thread(second.start)
    said = await one.done(move)
    assert "version 2 wraps new keys" in said
    assert "moved 3 keys, and the pepper" in said
    assert said.endswith("version 1 is retired\n")
    assert [await one.added(), await other.added()] == [2, 1]
    assert [await one.versions(), await other.versions()] == [{2}, {1}]

    # The other server still wraps with it.
    refused = await other.run(destroy)
    assert (refused.returncode, "wrapped with last" in refused.stderr) == (1, True)
    await other.done(move)
    named = await other.run(".venv/bin/ironwork-server master-key retire 1 --destroy")
    assert (named.returncode, "ironwork-hsmd destroy --version 1" in named.stderr) == (1, True)
    assert [await one.added(), await other.added()] == [2, 2]
    assert json.loads(await other.done(destroy)) == {"destroyed": 1}

    assert [await one.versions(), await other.versions()] == [{2}, {2}]
    await one.serves()
    await other.serves()
    # Each lane finds first that its handle is void.
    unopened: type[BaseException] = Unavailable
    async with asyncio.timeout(DEADLINE_S):
        while unopened is Unavailable:
            with pytest.raises(HsmError) as caught:
                await remote.unwrap(old, b"row")
            unopened = caught.type
    assert unopened is KeyMissing
    await remote.close()
    made = [entry.event for entry in entries_of(shared.folder / "record" / "operator")]
    assert [(event.operation, event.success) for event in made if event.phase == "outcome"] == [
        ("hsm.generate", True),
        ("hsm.destroy", True),
    ]
