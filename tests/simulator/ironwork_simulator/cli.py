"""`ironwork-simulator`: the simulator as a process. Never in production."""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from ironwork_simulator.config import Config, NotLoopback
from ironwork_simulator.keys import load_keys
from ironwork_simulator.server import Simulator

_PR_SET_PDEATHSIG = 1


class _Unusable(Exception):
    """The command cannot run as asked; the message says how to mend it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit code 2 for what the caller can mend."""
    options = _parser().parse_args(arguments)
    try:
        if options.exit_with_parent:
            _exit_with_parent()
        config = _config(options)
        asyncio.run(_serve(config, options.ready_file))
    except (_Unusable, NotLoopback, ValueError) as error:
        return _fail(str(error))
    except ssl.SSLError:
        return _fail("--tls-cert, --tls-key: not a certificate and its key, in PEM")
    except OSError as error:
        return _fail(f"cannot start: {error.strerror or 'the operating system refused'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ironwork-simulator",
        description="An Anthropic API on loopback, for the demo, tests and benchmarks. "
        "Prints one JSON line with its URL when it is ready. Never in production.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    add("--port", type=int, default=0, help="0 for any free one (default)")
    add("--control-port", type=int, help="serve the control endpoint here; 0 for any free port")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    add("--keys", type=Path, metavar="FILE", help='{"keys": [{"key", "organization_id", "state"}]}')
    add(
        "--pace",
        type=float,
        default=0.02,
        metavar="S",
        help="seconds between two events of a stream; 0 for benchmarks (default: %(default)s)",
    )
    add(
        "--log", type=Path, metavar="FILE", help="append one JSON line for each request, no secrets"
    )
    add("--ready-file", type=Path, metavar="FILE", help="write the JSON line of readiness here too")
    add("--exit-with-parent", action="store_true", help="end when the parent process does (Linux)")
    return parser


def _config(options: argparse.Namespace) -> Config:
    return Config(
        host=options.host,
        port=options.port,
        control_port=options.control_port,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        keys=() if options.keys is None else load_keys(options.keys),
        pace_s=options.pace,
        log_file=options.log,
    )


async def _serve(config: Config, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Simulator(config) as simulator:
        ready = {
            "url": simulator.url,
            "host": simulator.host,
            "port": simulator.port,
            "control_url": simulator.control_url,
            "pid": os.getpid(),
        }
        _announce(json.dumps(ready), ready_file)
        await stop.wait()
        if simulator.faults:
            kinds = ", ".join(sorted({type(fault).__name__ for fault in simulator.faults}))
            raise _Unusable(f"the simulator itself failed {len(simulator.faults)} times: {kinds}")


def _announce(line: str, ready_file: Path | None) -> None:
    if ready_file is not None:
        # Whoever waits for the file must never read half of it.
        partial = ready_file.with_name(ready_file.name + ".partial")
        partial.write_text(line + "\n", encoding="utf-8")
        partial.replace(ready_file)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _exit_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends (prctl(2) PR_SET_PDEATHSIG).

    The kernel's parent is the thread that started this process: it has to live as long.
    """
    if not sys.platform.startswith("linux"):
        raise _Unusable("--exit-with-parent: works on Linux only")
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise _Unusable("--exit-with-parent: the kernel refused PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        raise _Unusable("--exit-with-parent: the parent has ended already")


def _fail(message: str) -> int:
    sys.stderr.write(f"ironwork-simulator: {message}\n")
    return 2
