"""The HSM process beside a dev server: it holds every token's PIN, and the server none."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from ironwork_server.app.dev.child import end
from ironwork_server.app.dev.tokens import DevTokens
from ironwork_server.app.startup import StartupError

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 15.0
ORIGIN = "ironwork.dev/hsm"
VERIFIER_KEY = "verifier-key"
# sun_path of unix(7), with the zero byte at its end.
_MAX_SOCKET_PATH = 107
_COMMAND = (sys.executable, "-m", "ironwork_hsm.daemon.main")


async def create_keys(folder: Path, tokens: DevTokens) -> None:
    """Make every key in new tokens, by the operator's commands. folder: the process' own; holds
    the record's verifier key afterwards. Errors: StartupError.
    """
    config = _configure(folder, tokens, folder / "hsm.sock")
    # First, since what the others do is signed with it.
    key = await _command(config, tokens, "audit-key", "create")
    (folder / VERIFIER_KEY).write_bytes(key)
    await _command(config, tokens, "create")
    await _command(config, tokens, "audit-key", "create", "--signer")


async def _command(config: Path, tokens: DevTokens, *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, *arguments, "--config", str(config),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | tokens.master.env,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            answer, said = await process.communicate()
    except TimeoutError:
        await end(process, deadline_s=STOP_DEADLINE_S)
        raise StartupError("The keys could not be created: the token hangs.") from None
    if process.returncode != 0:
        raise StartupError(f"The keys could not be created.\n{said.decode(errors='replace')}")
    return answer


@asynccontextmanager
async def hsmd(folder: Path, tokens: DevTokens) -> AsyncIterator[str]:
    """Start the process, and stop it at the end; the URI of its socket. Errors: StartupError."""
    async with AsyncExitStack() as stack:
        place = folder / "hsm.sock"
        if len(os.fsencode(place)) > _MAX_SOCKET_PATH:
            # Removed with what is in it at the end; mkdtemp makes it private.
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="ironwork-hsm-"))
            place = Path(short) / "hsm.sock"
        config = _configure(folder, tokens, place)
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, "serve", "--config", str(config), "--exit-with-parent",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            # Ctrl-C in a terminal is the server's: it drains first.
            start_new_session=True,
            env=os.environ | tokens.master.env,
        )  # fmt: skip
        stack.push_async_callback(end, process, deadline_s=STOP_DEADLINE_S)
        await _started(process)
        yield f"unix:{place}"


async def _started(process: asyncio.subprocess.Process) -> None:
    if process.stdout is None:
        raise TypeError("standard output is a pipe")
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise StartupError("The HSM process did not start; its log is above.")


def _configure(folder: Path, tokens: DevTokens, socket: Path) -> Path:
    """Its settings, in its folder. JSON's strings, numbers and lists are TOML's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    top = {
        "socket": str(socket),
        "allowed_uids": [os.getuid()],
        "backends": [tokens.master.uri],
        "signer": tokens.audit.uri,
        "state": str(folder / "state"),
    }
    record = {"folder": str(folder / "record"), "origin": ORIGIN}
    if tokens.record is not None:
        record["signing_key"] = tokens.record.uri
    # For hand use, tests and benchmarks on machines that are busy with them.
    limits = {"operations_per_s": 100_000, "burst": 100_000, "open_s": 30}
    lines = [f"{name} = {json.dumps(value)}" for name, value in top.items()]
    for section, values in (("record", record), ("limits", limits)):
        lines += [f"[{section}]", *(f"{name} = {json.dumps(v)}" for name, v in values.items())]
    config = folder / "hsmd.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config
