"""`ironwork-server master-key rotate|rewrap|retire|list`: beside a service that serves."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.agent import Agent
from fixtures.journal_events import entries
from fixtures.processes import environment
from fixtures.production import as_toml
from fixtures.server import AGENT, StartService, TestService
from fixtures.softhsm import MakeToken
from ironwork.keys.v1 import keys_pb2
from ironwork_server.app.operator import open_commands_journal, principal
from ironwork_server.cli.main import main

DEADLINE_S = 90


@dataclass
class Said:
    """How a command ended."""

    code: int | None
    out: str
    err: str


@dataclass
class Operator:
    """Runs commands as processes, with the settings of a service that is running."""

    service: TestService
    uris: list[str]

    @property
    def commands(self) -> Path:
        return self.service.folder / "audit-commands"

    def config(self) -> Path:
        values = self.service.settings.model_dump(mode="json", exclude_none=True)
        values["master_key"] = {"uris": self.uris}
        path = self.service.folder / "operator.toml"
        path.write_text(as_toml(values))
        return path

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ironwork_server",
            "master-key",
            *arguments,
            "--config",
            str(self.config()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(self.service.token.env),
        )

    async def run(self, *arguments: str) -> Said:
        """In this process, but with an event loop, a store and a log of its own."""
        config = ["--config", str(self.config())]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            async with asyncio.timeout(DEADLINE_S):
                code = await asyncio.to_thread(main, ["master-key", *arguments, *config])
        return Said(code, out.getvalue(), err.getvalue())

    async def run_apart(self, *arguments: str) -> Said:
        """In a process of its own, with a login of its own at the token."""
        process = await self.start(*arguments)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        return Said(process.returncode, out.decode(), err.decode())

    async def done(self, *arguments: str) -> str:
        said = await self.run(*arguments)
        assert said.code == 0, said.err
        return said.out

    async def listed(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = json.loads(await self.done("list", "--json"))
        return answer


@pytest.fixture
async def operator(service: TestService) -> Operator:
    return Operator(service, list(service.settings.master_key.uris))


async def call(service: TestService) -> keys_pb2.ResponseEnd:
    """One Claude request, to its end."""
    agent = Agent(service.keys(AGENT))
    await agent.start()
    answer = await agent.message()
    return answer.end


async def versions(service: TestService) -> list[int]:
    """Which version wraps each key, newest key first."""
    answer = await service.keys().ListMasked(
        keys_pb2.ListMaskedRequest(parent="workspaces/acme"), timeout=20
    )
    return [key.master_key_version.version for key in answer.keys]


async def test_the_master_key_is_replaced_while_the_service_serves(operator: Operator) -> None:
    """Rotate, rewrap, retire and destroy, beside a service that is never restarted: the next key is
    under the new version, all keys move, every call succeeds, and the old version is refused until
    nothing needs it. All of it is on record as the operator's, in a log of its own.
    """
    service = operator.service
    await service.add()
    assert await versions(service) == [1]
    assert "version 2 wraps" in await operator.done("rotate")
    await service.add()
    assert await versions(service) == [2, 1]

    early = await operator.run("retire", "1")
    assert (early.code, early.out) == (1, "")
    assert "Version 1 still wraps 1 keys and the pepper" in early.err
    listed = await operator.listed()
    assert [(one["version"], one["rows"], one["pepper"], one["current"]) for one in listed] == [
        (1, 1, True, False),
        (2, 1, False, True),
    ]
    assert all(one["sensitive"] and one["never_extractable"] and one["local"] for one in listed)

    assert "moved 1 keys, and the pepper; 0 were" in await operator.done("rewrap")
    assert await versions(service) == [2, 2]
    pin = f"file:{service.token.so_pin_file}"
    said = await operator.run_apart("retire", "1", "--destroy", "--admin-pin-source", pin)
    assert (said.code, said.out) == (0, "version 1 is destroyed\n")
    assert (await call(service)).outcome == keys_pb2.OUTCOME_COMPLETED
    await service.add()
    listed = await operator.listed()
    assert [(one["version"], one["label"], one["retired"]) for one in listed] == [
        (2, "master", False),
        (1, None, True),
    ]
    table = await operator.done("list")
    assert "current" in table
    assert "retired" in table

    told = entries(operator.commands)
    of_operator = [one.event for one in told if one.event.operation != "hsm.sign"]
    assert {one.principal for one in of_operator} == {principal()}
    assert {one.operation for one in of_operator} == {
        "hsm.generate",
        "hsm.probe",
        "hsm.unwrap",
        "hsm.wrap",
        "hsm.destroy",
        "master_key.switch",
        "master_key.retire",
    }
    assert (
        (operator.commands / "checkpoint").read_text().startswith("ironwork.test/server/commands\n")
    )


async def test_keys_move_to_another_token(operator: Operator, make_token: MakeToken) -> None:
    """With a second token listed first, rewrap moves every key and the pepper there; the first one
    can then be retired whole, and a service that lists the second one alone serves.
    """
    service = operator.service
    await service.add()
    second = make_token(with_key=True)
    first = operator.uris[0]
    operator.uris = [second.uri, first]
    assert "moved 1 keys, and the pepper" in await operator.done("rewrap")
    name = first.partition("?")[0]
    assert "version 1 is retired" in await operator.done("retire", "1", "--backend", name)
    unknown = await operator.run("retire", "1", "--backend", "pkcs11:token=x;object=y")
    assert (unknown.code, "lists no such backend" in unknown.err) == (1, True)
    listed = await operator.listed()
    assert [(one["backend"] == name, one["rows"], one["current"]) for one in listed] == [
        (False, 1, True),
        (True, 0, False),
    ]


async def test_a_killed_rewrap_is_run_again(operator: Operator) -> None:
    """A rewrap that is killed leaves every key usable; run again, it moves the rest."""
    service = operator.service
    for _ in range(45):
        await service.add()
    await operator.done("rotate")
    process = await operator.start("rewrap", "--rate", "2")
    try:
        async with asyncio.timeout(DEADLINE_S):
            while len(set(await versions(service))) == 1:  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)
    finally:
        process.kill()
        await process.communicate()
    moved = (await versions(service)).count(2)
    assert 0 < moved < 45
    assert (await call(service)).outcome == keys_pb2.OUTCOME_COMPLETED
    said = await operator.done("rewrap", "--rate", "100000")
    assert f"moved {45 - moved} keys; 0 were changed" in said
    assert set(await versions(service)) == {2}
    assert (await call(service)).outcome == keys_pb2.OUTCOME_COMPLETED


async def test_one_command_at_a_time(operator: Operator) -> None:
    """A second command on the same machine is told that one is running, and does nothing."""
    journal = open_commands_journal(operator.service.settings)
    try:
        said = await operator.run("rotate")
    finally:
        await journal.close()
    assert (said.code, "in use by process" in said.err) == (1, True)
    assert [one["version"] for one in await operator.listed()] == [1]


async def test_services_share_a_rotation(start_service: StartService, tmp_path: Path) -> None:
    """Two services on one store: after a rotation both wrap with the new version at their next
    key, and each opens what the other wrapped.
    """
    one = await start_service()
    url = one.settings.store.url
    (tmp_path / "b").mkdir(mode=0o450)
    log = {"folder": tmp_path / "b" / "audit", "origin": "ironwork.test/b"}
    audit = {**log, "signing_key": one.settings.audit.signing_key}
    other = await start_service(folder=tmp_path / "b", store={"url": url}, audit=audit)
    operator = Operator(one, list(one.settings.master_key.uris))
    await one.add()
    await operator.done("rotate")
    for adding, using in ((other, one), (one, other)):
        await adding.add()
        assert (await versions(using))[0] == 2
        assert (await call(using)).outcome == keys_pb2.OUTCOME_COMPLETED
