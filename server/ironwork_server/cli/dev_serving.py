"""`ironwork-server dev`: everything embedded, or beside it as a process of its own."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from ironwork_server.app.dev.hsmd import hsmd
from ironwork_server.app.dev.simulator import Simulator, simulator
from ironwork_server.app.dev.state import (
    DevState,
    open_state,
    settings_of,
    write_profiles,
    write_verifier_key,
)
from ironwork_server.app.settings import listen_address
from ironwork_server.app.startup import StartupError
from ironwork_server.cli.run import leave_startup_to_itself, stop_signals
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint

SIMULATOR = "simulator"


def checked(listen: str, upstream: str) -> UpstreamEndpoint | None:
    """The upstream of the options; None for the simulator. Errors: StartupError."""
    try:
        listen_address(listen)
    except ValueError as error:
        raise StartupError(f"--listen: {error}") from None
    return None if upstream == SIMULATOR else _endpoint(upstream)


def run(
    state: Path,
    listen: str,
    endpoint: UpstreamEndpoint | None,
    pace_s: float,
    log_level: str,
    *,
    as_json: bool,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Errors: StartupError and those of the parts."""
    asyncio.run(_dev(state, listen, endpoint, pace_s, log_level, as_json=as_json))


def _load_service() -> None:
    """Load what serves, which takes as long as starting the processes beside it."""
    from ironwork_server.app import service  # noqa: F401  kept by the interpreter


def _endpoint(upstream: str) -> UpstreamEndpoint:
    try:
        endpoint = UpstreamEndpoint.parse(upstream)
    except ValueError as error:
        raise StartupError(f"--upstream: {error}") from None
    if endpoint.tls and endpoint != ANTHROPIC:
        raise StartupError(
            "--upstream takes simulator, https://api.anthropic.com or http://127.0.0.1:PORT."
        )
    return endpoint


async def _dev(
    folder: Path,
    listen: str,
    endpoint: UpstreamEndpoint | None,
    pace_s: float,
    log_level: str,
    *,
    as_json: bool,
) -> None:
    with stop_signals() as stop:
        state = await open_state(folder)
        async with AsyncExitStack() as stack:
            loaded = asyncio.ensure_future(asyncio.to_thread(_load_service))
            hsm = await stack.enter_async_context(hsmd(state.folder / "hsmd", state.tokens))
            settings = settings_of(state, hsm=hsm, listen=listen, log_level=log_level)
            await write_verifier_key(state, settings)
            beside = None
            if endpoint is None:
                beside = await stack.enter_async_context(simulator(state, pace_s=pace_s))
                endpoint = beside.endpoint
            await loaded
            from ironwork_server.app.service import running

            service = await stack.enter_async_context(running(settings, endpoint))
            target = f"{listen.rpartition(':')[0]}:{service.port}"
            write_profiles(state, target)
            leave_startup_to_itself()
            (_say_json if as_json else _say)(state, target, service.metrics, beside)
            await stop.wait()


def _say_json(state: DevState, target: str, metrics: str | None, beside: Simulator | None) -> None:
    ready = {
        "target": target,
        "metrics": metrics,
        "profiles": str(state.folder / "profiles"),
        "simulator_keys": beside.keys if beside is not None else {},
    }
    print(json.dumps(ready), flush=True)  # noqa: T201  the answer


def _say(state: DevState, target: str, metrics: str | None, beside: Simulator | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    profiles = state.folder / "profiles"
    console.print(f"[bold green]Serving[/] on {target}. State: {state.folder}. Ctrl-C stops it.\n")
    console.print(f"Metrics: http://{metrics}/metrics\n")
    if beside is not None:
        console.print("Keys that the Anthropic simulator knows (throw-away, in no file):")
        for name, key in beside.keys.items():
            console.print(f"  [dim]{name:>18}[/]  {key}")
        console.print()
    console.print("Type next, in another terminal:")
    console.print(f"  .venv/bin/ironwork keys add --profile {profiles}/admin.toml --name first")
    console.print(f"  .venv/bin/ironwork keys list --profile {profiles}/admin.toml")
    console.print(f"  .venv/bin/ironwork audit list --profile {profiles}/auditor.toml")
