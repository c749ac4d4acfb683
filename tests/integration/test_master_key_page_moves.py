"""The operator's page on moving the master key, run as it stands there, through every kind of
backend there is, while `serve` itself answers.
"""

from __future__ import annotations  # the generated stubs' async classes exist for types only

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from fixtures.agent import Agent
from fixtures.apart import namespace, serving_at
from fixtures.cloud_faults import disable_aws
from fixtures.clouds import Clouds
from fixtures.nss import new_database
from fixtures.operator_page import blocks, install, shell, steps
from fixtures.processes import command, server
from fixtures.production import TRUST_DOMAIN, Production
from fixtures.simulator import TestSimulator
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_server.store import open_store

WORKSPACES = ("acme", "globex", "initech")
CALL_S = 60.0


@dataclass
class Serving:
    """`serve` itself on a production set-up. env: what it and the commands find their devices by.
    inside: where its upstream is the simulator.
    """

    production: Production
    anthropic: TestSimulator
    env: Mapping[str, str]
    inside: list[str]
    starts: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The address that it serves at, until the end of the context."""
        self.starts += 1
        folder = self.production.folder
        config = str(folder / "server.toml")
        log = folder / f"serve-{self.starts}.log"
        with server(
            "serve", "--config", config, log=log, env=self.env, inside=self.inside
        ) as running:
            yield await serving_at(running)

    @asynccontextmanager
    async def stub(
        self, target: str, workspace: str, who: str
    ) -> AsyncIterator[keys_pb2_grpc.KeyServiceAsyncStub]:
        ca = self.production.ca
        issued = ca.client_certificate(f"spiffe://{TRUST_DOMAIN}/workspace/{workspace}/{who}")
        credentials = grpc.ssl_channel_credentials(
            ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            yield keys_pb2_grpc.KeyServiceStub(channel)

    async def add_keys(self, target: str) -> None:
        """One key in each workspace."""
        for workspace in WORKSPACES:
            key = self.anthropic.make_key().encode()
            async with self.stub(target, workspace, "key-admin/alice") as stub:
                request = keys_pb2.AddKeyRequest(parent=f"workspaces/{workspace}", api_key=key)
                await stub.AddKey(request, timeout=CALL_S)

    async def use_every_key(self, target: str) -> None:
        """A Claude request in each workspace, with its one key."""
        for workspace in WORKSPACES:
            async with self.stub(target, workspace, "agent/coder") as stub:
                agent = Agent(stub, f"workspaces/{workspace}", deadline_s=CALL_S)
                await agent.start()
                answer = await agent.message()
                await agent.close()
            assert answer.head is not None, answer.reason
            assert answer.head.status == 200


async def backends_of_rows(production: Production) -> set[str]:
    """The master keys that any row, or the pepper, is wrapped by."""
    store = open_store(production.settings["store"]["url"])
    try:
        pepper = await store.pepper()
        assert pepper is not None
        rows = []
        for workspace in WORKSPACES:
            rows += await store.page(workspace, before_sequence=None, limit=100)
        assert len(rows) == len(WORKSPACES)
        return {pepper.backend} | {row.sealed.wrapped.backend for row in rows}
    finally:
        await store.close()


@pytest.mark.slow
@pytest.mark.timeout(900)  # some thirty processes, one after the other
async def test_the_page_moves_the_key_through_every_kind_of_backend(
    production: Production, anthropic: TestSimulator, clouds: Clouds, tmp_path: Path
) -> None:
    """The page's commands move the master key from SoftHSM to NSS, from there to AWS KMS and on to
    Google's; `serve` uses every key at each step between two of its restarts, and after each move
    with the old device gone for good.
    """
    folder, settings = production.folder, install(production)
    env = {**production.token.env, **clouds.env}
    done = command("master-key", "create", "--config", str(settings), env=env)
    assert done.returncode == 0, done.stderr
    nss = tmp_path / "nss"
    nss.mkdir(mode=0o700)
    arn = clouds.aws.make_key()

    def remove_token() -> None:
        production.token.pin_file.rename(tmp_path / "pin-of-softhsm")

    def remove_nss() -> None:
        nss.rename(tmp_path / "nss-away")

    def remove_aws() -> None:
        disable_aws(clouds)

    moves: list[tuple[str, Callable[[], None]]] = [
        (new_database(nss)(), remove_token),
        (f"awskms:///{arn}", remove_nss),
        (clouds.gcp_uri, remove_aws),
    ]
    serving = Serving(production, anthropic, env, namespace(folder, anthropic))
    async with serving.running() as target:
        await serving.add_keys(target)
    (move,) = (block for block in blocks("The master key over time") if '"$NEW' in block)
    old = production.token.uri
    for new, remove_old in moves:
        known = {"D": str(folder), "OLD": old, "NEW": new, "IRONWORK_CONFIG": str(settings)}
        said = ""
        with shell(folder, env | known) as bash:
            for step in steps(move):
                async with serving.running() as target:
                    await serving.use_every_key(target)
                    said += bash.run(step)
                    await serving.use_every_key(target)
        assert f"moved {len(WORKSPACES)} keys, and the pepper; 0 were changed" in said
        assert "version 1 is retired" in said
        assert await backends_of_rows(production) == {new.partition("?")[0]}
        remove_old()
        old = new
    async with serving.running() as target:
        await serving.use_every_key(target)
