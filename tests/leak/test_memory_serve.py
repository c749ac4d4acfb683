"""`ironwork-server serve` itself, nothing in it changed: what of keys is left in its memory.

It sends to api.anthropic.com:443 and trusts the system's roots; no setting changes either. So it
runs in a mount namespace of its own (fixtures/apart.py).
"""

import asyncio
import re
import signal
from pathlib import Path

import pytest

from fixtures.apart import namespace, serving_at
from fixtures.memory_load import NONE, Loaded, add_keys, streaming, use_keys
from fixtures.processes import command, server
from fixtures.production import TRUST_DOMAIN, Production
from fixtures.simulator import TestSimulator
from fixtures.softhsm import opened
from ironwork_hsm import WrappedKey
from ironwork_server import store
from ironwork_server.core.envelope import pepper_context, wrap_context
from ironwork_server.custody.vault import binding_of

CALLS = 1000
PAD = "PROOF_PAD"
PAD_BYTES = 4096
_STACK = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p .*\[stack\]")


async def data_keys(production: Production) -> set[bytes]:
    """Every data key that is kept, and the pepper, unwrapped by whoever owns the token: the server
    tells nobody.
    """
    kept = store.open_store(production.settings["store"]["url"])
    wrapped: list[tuple[WrappedKey, bytes]] = []
    try:
        pepper = await kept.pepper()
        assert pepper is not None
        wrapped.append((pepper, pepper_context()))
        before: int | None = None
        while rows := await kept.page("acme", before_sequence=before, limit=1000):
            wrapped += [(row.sealed.wrapped, wrap_context(binding_of(row))) for row in rows]
            before = rows[-1].sequence
    finally:
        await kept.close()
    async with opened(production.token.uri) as wrapper:
        return {bytes(await wrapper.unwrap(key, context)) for key, context in wrapped}


def plant(pid: int, pieces: list[bytes]) -> None:
    """Write pieces into memory of the process that it does not use: a variable's text where its
    program got it, at the end of the stack (proc(5)).
    """
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = _STACK.search(maps)
    assert found is not None
    start, end = (int(number, 16) for number in found.groups())
    name = f"{PAD}=".encode()
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        at = start + memory.read(end - start).rindex(name + b"x") + len(name)
        memory.seek(at)
        memory.write(b"\0".join(pieces).ljust(PAD_BYTES, b"x")[:PAD_BYTES])


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_serve_itself_keeps_nothing_of_a_key(
    production: Production, anthropic: TestSimulator
) -> None:
    """A second after 1,000 AddKey and 1,000 WithKey calls, 16 at once, and while answers stream, no
    12 bytes of a key or of a stored key's data key are in the memory of `serve`; planted ones are
    found.
    """
    production.settings["limits"] = {"max_keys": 5000, "unary_per_principal": 64}
    config = ["--config", str(production.write())]
    env = {**production.token.env, PAD: "x" * PAD_BYTES}
    for first in (("db", "upgrade"), ("master-key", "create")):
        assert command(*first, *config, env=env).returncode == 0
    inside = namespace(production.folder, anthropic)
    log = production.folder / "serve.log"
    with server("serve", *config, log=log, env=env, inside=inside) as running:
        loaded = Loaded(
            running.process.pid,
            await serving_at(running),
            production.ca,
            f"spiffe://{TRUST_DOMAIN}",
            anthropic,
        )
        await add_keys(loaded, CALLS)
        await asyncio.sleep(1)  # what is promised is one second
        after_add = loaded.copies(set())
        kept = await data_keys(production)
        assert len(kept) > CALLS // 2
        assert (after_add, loaded.copies(kept)) == (NONE, NONE)
        await use_keys(loaded, CALLS)
        await asyncio.sleep(1)
        assert loaded.copies(kept) == NONE
        async with streaming(loaded):
            assert loaded.copies(kept) == NONE
        pieces, expected = loaded.pieces(kept)
        plant(loaded.pid, pieces)
        assert loaded.copies(kept) == expected
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert {record.values("host")[0] for record in anthropic.requests} == {"api.anthropic.com"}
