"""`ironwork-server serve` itself, nothing in it changed: what of keys is left in its memory.

It sends to api.anthropic.com:443 and trusts the system's roots; no setting changes either. So it
runs in a mount namespace of its own (unshare(1), as root) in which the name stands for a loopback
address, where the simulator listens, and the system trusts the simulator's CA.
"""

import asyncio
import re
import secrets
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.memory_load import NONE, Loaded, add_keys, streaming, use_keys
from fixtures.processes import Running, command, server
from fixtures.production import TRUST_DOMAIN, Production
from fixtures.simulator import SimulatorTls, TestSimulator
from fixtures.softhsm import opened
from ironwork_hsm import WrappedKey
from ironwork_server import store
from ironwork_server.core.envelope import pepper_context, wrap_context
from ironwork_server.custody.vault import binding_of
from ironwork_simulator import Config, in_thread

CALLS = 1000
PAD = "PROOF_PAD"
PAD_BYTES = 4096
_STACK = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p .*\[stack\]")


@pytest.fixture
def anthropic(simulator_tls: SimulatorTls) -> Iterator[TestSimulator]:
    """A simulator on port 443 of a loopback address that is nobody else's."""
    address = "127." + ".".join(str(1 + secrets.randbelow(253)) for _ in range(3))
    config = Config(
        host=address, port=443, tls_cert=simulator_tls.cert_file, tls_key=simulator_tls.key_file
    )
    with in_thread(TestSimulator(config)) as running:
        running.ca_file = simulator_tls.ca_file
        yield running
    assert running.faults == (), "the simulator itself failed"


def namespace(folder: Path, simulator: TestSimulator) -> list[str]:
    """The command inside of which api.anthropic.com is the simulator, and trusted."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{simulator.host} api.anthropic.com\n")
    roots = folder / "roots"
    roots.mkdir()
    # OpenSSL looks a certificate up in a folder by its subject's hash.
    name = subprocess.check_output(
        ["openssl", "x509", "-noout", "-subject_hash", "-in", simulator.ca_file], text=True
    )
    (roots / f"{name.strip()}.0").write_bytes(simulator.ca_file.read_bytes())
    paths = ssl.get_default_verify_paths()
    mounts = [(hosts, Path("/etc/hosts"))]
    # The file may lie in the folder: first the one, then what covers it.
    mounts += [(simulator.ca_file, Path(paths.openssl_cafile).resolve())]
    mounts += [(roots, Path(paths.openssl_capath).resolve())]
    mounts = [(source, place) for source, place in mounts if place.exists()]
    script = "".join(f"mount --bind '{source}' '{place}'; " for source, place in mounts)
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script + 'exec "$@"']
    tried = subprocess.run([*inside, "sh", "true"], check=False, capture_output=True, text=True)
    assert tried.returncode == 0, (
        "this test runs `serve` in a mount namespace: it needs root (CAP_SYS_ADMIN), unshare and"
        f" mount (util-linux): {tried.stderr}"
    )
    return [*inside, "sh"]


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


async def serving_at(running: Running) -> str:
    """Its address, once it serves."""
    for _ in range(600):
        told = [event for event in running.events() if event["event"] == "service.serving"]
        if told:
            assert {"memory.overwrites_freed"} <= {event["event"] for event in running.events()}
            return str(told[0]["address"]).replace("127.0.0.1", "localhost")
        assert running.process.poll() is None, running.log.read_text()
        await asyncio.sleep(0.1)
    raise AssertionError(running.log.read_text())
