"""The operator's page on the master key, run as it stands there."""

import subprocess

import pytest

from fixtures.operator_page import blocks, install
from fixtures.processes import environment
from fixtures.production import Production
from fixtures.softhsm import MakeToken, opened
from fixtures.wrapped_rows import create_pepper, opened_key, sealed_row
from ironwork_hsm import HsmError
from ironwork_server.store import open_store

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen processes, one after the other
async def test_the_page_rotates_destroys_and_moves(
    production: Production, make_token: MakeToken
) -> None:
    """Every command of the section succeeds in the page's order; at its end the old token opens
    nothing, the new one everything, and a copy of the database from before nothing at all.
    """
    folder = production.folder
    settings = install(production)
    (folder / "hsm-admin").mkdir(mode=0o700)
    admin = folder / "hsm-admin" / "so-pin"
    admin.write_bytes(production.token.so_pin_file.read_bytes())
    admin.chmod(0o600)
    second = make_token()
    env = environment(production.token.env) | {
        "D": str(folder),
        "OLD": production.token.uri,
        "NEW": second.uri,
        "IRONWORK_CONFIG": str(settings),
    }

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-c", block],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    rotate, destroy, move = blocks("The master key over time")
    run(".venv/bin/ironwork-server master-key create")
    url = f"sqlite:///{folder / 'db' / 'keys.db'}"
    store = open_store(url)
    async with opened(production.token.uri) as wrapper:
        row = await sealed_row(store, wrapper, KEY)
        await create_pepper(store, wrapper)
        old = row.sealed.wrapped
        said = run(rotate)
        assert "version 2 wraps new keys" in said
        assert "moved 1 keys, and the pepper" in said
        assert said.endswith("version 1 is retired\n")
        assert "version 1 is destroyed" in run(destroy)
    async with opened(production.token.uri) as wrapper:
        assert await opened_key(store, wrapper, row.key_id) == KEY
        with pytest.raises(HsmError):
            await wrapper.unwrap(old, b"")
    # The page's `1` is the version of a key that was never rotated; this one was.
    assert "moved 1 keys" in run(move.replace("retire 1", "retire 2"))
    async with opened(second.uri) as wrapper:
        assert await opened_key(store, wrapper, row.key_id) == KEY
    await store.close()
