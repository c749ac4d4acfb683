"""`ironwork-hsmd`: serve (the default), status, create, destroy, audit-key."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ironwork_hsm.daemon import logs, settings
from ironwork_hsm.daemon.hardening import (
    deny_memory_reads,
    end_with_parent,
    overwrite_freed,
    refuse_speaking_environment,
)
from ironwork_hsm.interface import ConfigurationError, HsmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done (status: healthy), 1 refused or failed (the reason is on
    standard error; status: not healthy), 2 wrong usage, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        loaded = settings.load(options.config)
        if options.command == "status":
            return _status(loaded)
        refuse_speaking_environment(os.environ)
        # A program that was called from another one is not its own to start anew.
        if loaded.overwrite_freed and arguments is None:
            overwrite_freed()
        if options.exit_with_parent:
            end_with_parent(os.getppid())
        deny_memory_reads()
        logs.configure()
        return _act(loaded, options)
    except HsmError as error:
        print(f"ironwork-hsmd: {error}", file=sys.stderr)  # noqa: T201  a command's error
        return 1
    except KeyboardInterrupt:
        return 130


def _act(loaded: settings.Settings, options: argparse.Namespace) -> int:
    """Serve, or do what uses the devices' PINs."""
    if options.command == "audit-key":
        return _audit_key(loaded, options.action, signer=options.signer, operator=options.operator)
    if options.command == "create":
        return _create(loaded, next_version=options.next)
    if options.command == "destroy":
        return _destroy(loaded, options.version, options.backend, options.admin_pin_source)
    return _serve(loaded)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ironwork-hsmd", description="Holds the HSM's PIN, so that no server has to."
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="serve",
        choices=("serve", "status", "create", "destroy", "audit-key"),
        help="serve (the default); status: ask the running process; create: the first master key;"
        " destroy: a version of a master key, for good;"
        " audit-key: the key that signs this process' record",
    )
    parser.add_argument(
        "action", nargs="?", choices=("create", "show"), help="audit-key: make it, or print it"
    )
    parser.add_argument("--config", type=Path, required=True, help="settings file (TOML)")
    parser.add_argument(
        "--next", action="store_true", help="create: a further version, where there is one"
    )
    parser.add_argument("--version", type=int, metavar="N", help="destroy: which one")
    parser.add_argument("--backend", metavar="NAME", help="destroy: of which key (the first's)")
    parser.add_argument(
        "--admin-pin-source",
        default="",
        metavar="file:PATH",
        help="destroy: the PIN of the token's security officer; none for a cloud KMS",
    )
    parser.add_argument(
        "--signer", action="store_true", help="audit-key create: the server's signing key instead"
    )
    parser.add_argument(
        "--operator", action="store_true", help="audit-key show: for the operator's record"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="be killed when the starting process ends"
    )
    return parser


def _serve(loaded: settings.Settings) -> int:
    from ironwork_hsm.daemon.serve import serve

    asyncio.run(serve(loaded))
    return 0


def _status(loaded: settings.Settings) -> int:
    from ironwork_hsm.remote.status import read_status

    report = asyncio.run(read_status(loaded.socket))
    print(json.dumps(report, indent=2))  # noqa: T201  the answer
    return 0 if report.get("healthy") is True else 1


def _create(loaded: settings.Settings, *, next_version: bool) -> int:
    from ironwork_hsm.daemon.create import create

    version = asyncio.run(create(loaded, next_version=next_version))
    if version is None:
        raise ConfigurationError(
            "The HSM holds this master key already; nothing was changed. A further version: --next"
        )
    print(json.dumps({"version": version}))  # noqa: T201  the answer
    return 0


def _destroy(
    loaded: settings.Settings, version: int | None, backend: str | None, admin_pin_source: str
) -> int:
    from ironwork_hsm.daemon.destroy import destroy

    if version is None:
        raise ConfigurationError("destroy: say which version, --version N.")
    asyncio.run(destroy(loaded, version, backend=backend, admin_pin_source=admin_pin_source))
    print(json.dumps({"destroyed": version}))  # noqa: T201  the answer
    return 0


def _audit_key(
    loaded: settings.Settings, action: str | None, *, signer: bool, operator: bool
) -> int:
    from ironwork_hsm.daemon import audit_key

    if action == "show":
        key = asyncio.run(audit_key.show_record_key(loaded, operator=operator))
    elif action == "create" and signer:
        asyncio.run(audit_key.create_server_key(loaded))
        print(json.dumps({"made": "signer"}))  # noqa: T201  the answer
        return 0
    elif action == "create":
        key = asyncio.run(audit_key.create_record_key(loaded))
    else:
        raise ConfigurationError("audit-key: say create or show.")
    print(key)  # noqa: T201  the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
