"""What an HSM that takes 5 ms does to unwraps and to Claude calls in flight.

    make bench-hsm                  # bench/hsm.py and this
    .venv/bin/python bench/hsm_slow.py [--rounds 5] [--seconds 1]

The slow HSM is SoftHSM behind slow_hsm.c (wants gcc), whose C_Decrypt takes 5 ms longer, for each
session by itself. First unwraps through the backend, by lanes and callers, against the most that
so many lanes can do. Then two services with their simulators, one on SoftHSM and one on the slow
HSM, in turn, by streams that call count_tokens one after the other.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hsm import CALLERS, CONTEXT, Count, at_once, options
from with_key import run, through_the_service

from ironwork_client import KeyClient, Profile
from ironwork_hsm import KeyCreator, open_backend
from ironwork_hsm.pkcs11.softhsm import (
    SoftHsmToken,
    create_token,
    find_module,
    use_config,
)
from ironwork_server.app.dev.simulator import simulator
from ironwork_server.app.dev.state import (
    MARK,
    DevState,
    open_state,
    settings_of,
    write_profiles,
)
from ironwork_server.app.dev.tokens import existing_tokens
from ironwork_server.app.devpki import DevCa
from ironwork_server.app.service import running

DELAY_US = 5_000


def compile_slow(folder: Path) -> Path:
    """The module of slow_hsm.c before SoftHSM."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("No C compiler; install the package gcc.")
    to = folder / "slow_hsm.so"
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1"]
    command += ["-fPIC", "-shared", "-fvisibility=hidden", f"-DDELAY_US={DELAY_US}"]
    command += [f'-DREAL="{find_module()}"', str(Path(__file__).with_name("slow_hsm.c"))]
    subprocess.run([*command, "-o", str(to), "-ldl"], check=True, timeout=60)
    return to


async def by_lanes(token: SoftHsmToken, module: Path, rounds: int, seconds: float) -> None:
    """Unwraps a second through the backend."""
    uri = token.uri.replace(str(find_module()), str(module))
    backend = await open_backend(uri, allow_missing=True, options=options(1))
    if not isinstance(backend, KeyCreator):
        raise TypeError("SoftHSM creates keys")
    await backend.create_version()
    await backend.close()
    print("| lanes | callers | a second | of lanes / 5 ms | CPU µs for each |")
    print("|---|---|---|---|---|")
    for lanes in (4, 16):
        backend = await open_backend(uri, options=options(lanes))
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        for callers in CALLERS:
            row = Count()
            for _ in range(rounds):
                row.add(*await at_once(backend, wrapped, callers, seconds))
            share = row.rate / (lanes * 1e6 / DELAY_US)
            print(f"| {lanes} | {callers} | {row.rate:,.0f} | {share:.2f} | {row.cpu_us:.0f} |")
        await backend.close()
    print(flush=True)


class ServiceProcess:
    """A service of its own with its simulator; module: the HSM's library."""

    def __init__(self, stack: ExitStack, folder: Path, module: Path) -> None:
        # SoftHSM reads its configuration once: the state is made by another process.
        base = [sys.executable, __file__, "--module", str(module)]
        subprocess.run([*base, "--prepare", str(folder)], check=True, timeout=120)
        command = [*base, "--serve", str(folder)]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        if process.stdin is None or process.stdout is None:
            raise TypeError("both are pipes")
        stack.callback(process.stdin.close)
        key = json.loads(process.stdout.readline())
        with KeyClient(Profile.load(folder / "profiles" / "admin.toml")) as admin:
            admin.add(key)
        self.agent = Profile.load(folder / "profiles" / "agent.toml")


async def prepare(folder: Path) -> None:
    """Make a dev state: tokens, keys, database, profiles."""
    (await open_state(folder)).close()


def prepared(folder: Path) -> DevState:
    """That state, without loading SoftHSM: the service loads it through its own module."""
    lock = os.open(folder / MARK, os.O_RDWR | os.O_CLOEXEC)
    return DevState(folder.resolve(), DevCa.load(folder / "pki"), existing_tokens(folder), lock)


async def serve(folder: Path, module: Path) -> None:
    """That process: until its standard input ends."""
    state = prepared(folder)
    use_config(state.tokens.master.config)
    uri = state.tokens.master.uri.replace(str(find_module()), str(module))
    settings = settings_of(state, hsm=uri, listen="127.0.0.1:0", log_level="warning")
    # The audit log's key by the same library: two before one SoftHSM do not share a process.
    signing = state.tokens.audit.uri.replace(str(find_module()), str(module))
    audit = settings.audit.model_copy(update={"signing_key": signing})
    settings = settings.model_copy(update={"audit": audit})
    async with simulator(state, pace_s=0) as beside, running(settings, beside.endpoint) as service:
        write_profiles(state, f"127.0.0.1:{service.port}")
        print(json.dumps(beside.keys["first"]), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def whole(folder: Path, module: Path, rounds: int, seconds: float) -> None:
    """Claude calls a second on the quick and on the slow HSM, in turn."""
    with ExitStack() as stack:
        services = {
            "SoftHSM": ServiceProcess(stack, folder / "quick", find_module()),
            "and 5 ms": ServiceProcess(stack, folder / "slow", module),
        }
        took: dict[tuple[int, str], list[float]] = {}
        for _ in range(rounds):
            for streams in CALLERS:
                for name, service in services.items():
                    agent = service.agent
                    found = asyncio.run(
                        run(
                            streams, seconds, lambda until, of=agent: through_the_service(of, until)
                        )
                    )
                    took.setdefault((streams, name), []).extend(found)
        print("| streams | HSM | calls/s | of SoftHSM's | p50 ms |\n|---|---|---|---|---|")
        for streams in CALLERS:
            quick = len(took[streams, "SoftHSM"])
            for name in services:
                calls = took[streams, name]
                print(
                    f"| {streams} | {name} | {len(calls) / rounds / seconds:,.0f}"
                    f" | {len(calls) / quick:.2f} | {statistics.median(calls) * 1e3:.1f} |"
                )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--module", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.prepare:
        asyncio.run(prepare(chosen.prepare))
        return
    if chosen.serve:
        asyncio.run(serve(chosen.serve, chosen.module))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module = compile_slow(folder)
        token = create_token(folder / "token", "bench")
        os.environ.update(token.env)
        asyncio.run(by_lanes(token, module, chosen.rounds, chosen.seconds))
        whole(folder, module, chosen.rounds, chosen.seconds)


if __name__ == "__main__":
    main()
