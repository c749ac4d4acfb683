"""`ironwork-server`: one parser for all commands; each command's code is loaded when it runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ironwork_hsm import HsmError
from ironwork_server.app.startup import SettingsError, StartupError
from ironwork_server.core.described import described
from ironwork_server.core.errors import IronworkError

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 1 refused or failed (the reason is on standard error),
    2 wrong usage, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    options.is_program = arguments is None
    command: Command = options.command
    try:
        return command(options)
    except (StartupError, SettingsError, HsmError) as error:
        return _fail(str(error))
    except IronworkError as error:
        return _fail(f"{error.message} ({error.reason})")
    except OSError as error:
        return _fail(f"{error.filename or 'failed'}: {error.strerror or type(error).__name__}.")
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  the last seam: a traceback could quote a secret
        return _fail(f"an error of this program, please report it: {described(error)}")


def _fail(text: str) -> int:
    print(f"ironwork-server: {text}", file=sys.stderr)  # noqa: T201  a command's error
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ironwork-server", description="Keeps Anthropic API keys for agents."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_dev(commands.add_parser("dev", help="run everything embedded, for hand use and tests"))
    _add_serve(commands.add_parser("serve", help="run the service"))
    _add_master_key(
        commands.add_parser("master-key", help="create, list, rotate or retire master-key versions")
    )
    _add_break_glass(
        commands.add_parser("break-glass", help="an offline key, should the HSM be lost")
    )
    _add_audit_key(
        commands.add_parser("audit-key", help="create or show the key that signs the audit log")
    )
    _add_db(commands.add_parser("db", help="migrate, look at or list the database"))
    _add_policy(commands.add_parser("policy", help="write the default policies"))
    _add_doctor(commands.add_parser("doctor", help="check everything, before and while serving"))
    _add_leakcheck(commands.add_parser("leakcheck", help="look for a key in files"))
    return parser


def _add_dev(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(".ironwork-dev"),
        help="folder for everything it keeps (%(default)s)",
    )
    parser.add_argument("--listen", default="127.0.0.1:7443", help="address:port (%(default)s)")
    parser.add_argument(
        "--upstream",
        default="simulator",
        help="simulator, https://api.anthropic.com, or http://127.0.0.1:PORT (%(default)s)",
    )
    parser.add_argument(
        "--pace", type=float, default=0.03, help="the simulator's seconds between events"
    )
    parser.add_argument("--log-level", default="info", choices=_LEVELS)
    parser.add_argument("--json", action="store_true", help="say what is ready as one JSON line")
    parser.add_argument(
        "--plain-allocator", action="store_true", help="do not overwrite memory when it is freed"
    )
    parser.set_defaults(command=_dev)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.set_defaults(command=_serve)


def _add_master_key(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, command in (
        ("create", "create the first version in the HSM", _master_key_create),
        ("list", "list versions, with their attributes as the HSM reports them", _master_key_list),
    ):
        sub = commands.add_parser(name, help=text)
        _add_config(sub)
        sub.add_argument("--json", action="store_true")
        sub.set_defaults(command=command)
    rotate = commands.add_parser("rotate", help="make the next version and wrap with it")
    _add_config(rotate)
    rotate.set_defaults(command=_master_key_rotate)
    rewrap = commands.add_parser("rewrap", help="move every key under the current version")
    _add_config(rewrap)
    rewrap.add_argument(
        "--rate", type=_rate, default=500.0, help="keys a second, at most (%(default)g)"
    )
    rewrap.set_defaults(command=_master_key_rewrap)
    retire = commands.add_parser("retire", help="take nothing under a version any more")
    _add_config(retire)
    retire.add_argument("version", type=int)
    retire.add_argument("--backend", help="as `list` names it; default: the first URI's")
    retire.add_argument("--destroy", action="store_true", help="destroy it in its device, for good")
    retire.add_argument(
        "--admin-pin-source",
        default="",
        metavar="file:PATH",
        help="the PIN of the token's security officer, for --destroy; none for a cloud KMS",
    )
    retire.set_defaults(command=_master_key_retire)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0.1 <= rate <= 1_000_000:
        raise argparse.ArgumentTypeError("from 0.1 to 1000000")
    return rate


def _add_break_glass(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keygen = commands.add_parser("keygen", help="make the key pair, on a machine apart")
    keygen.add_argument("--private-key", type=Path, required=True, help="a new file, encrypted")
    keygen.add_argument("--public-key", type=Path, required=True, help="a new file, for the server")
    keygen.set_defaults(command=_break_glass_keygen)
    opening = commands.add_parser("open", help="move a store whose HSM is lost to a new master key")
    _add_config(opening)
    opening.add_argument("--private-key", type=Path, required=True)
    opening.add_argument("--rate", type=_rate, default=500.0, help="keys a second (%(default)g)")
    opening.set_defaults(command=_break_glass_open)
    listing = commands.add_parser("list", help="say whom there are copies for")
    _add_config(listing)
    listing.set_defaults(command=_break_glass_list)
    drop = commands.add_parser("drop", help="drop the copies of recipients that are none any more")
    _add_config(drop)
    drop.add_argument("--recipient", help="as `list` names it; default: all but the configured one")
    drop.add_argument("--rate", type=_rate, default=500.0, help="copies a second (%(default)g)")
    drop.set_defaults(command=_break_glass_drop)


def _add_audit_key(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, command in (
        ("create", "create it in its token, and print its verifier key", _audit_key_create),
        ("show", "print its verifier key", _audit_key_show),
    ):
        sub = commands.add_parser(name, help=text)
        _add_config(sub)
        sub.set_defaults(command=command)
        if name == "show":
            sub.add_argument(
                "--commands",
                action="store_true",
                help="of the log that `master-key` commands keep, not of the server's",
            )


def _add_db(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, command in (
        ("upgrade", "migrate to this version's schema, making the database if needed", _db_upgrade),
        ("status", "show the schema's version; exit 1 where migrations are pending", _db_status),
        ("export-ids", "write which keys the store holds, for the auditor", _db_export_ids),
    ):
        sub = commands.add_parser(name, help=text)
        _add_config(sub)
        sub.set_defaults(command=command)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="write the default roles into policy.folder")
    _add_config(init)
    init.set_defaults(command=_policy_init)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--upstream", action="store_true", help="also connect to Anthropic, sending nothing"
    )
    parser.add_argument(
        "--probe", action="store_true", help="also wrap and unwrap once with each master key"
    )
    parser.add_argument("--pid", type=int, help="also look at the server that is running as PID")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_doctor)


def _add_leakcheck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, help="files and folders to search")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_leakcheck)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, help="settings file (TOML); default $IRONWORK_CONFIG"
    )


_LEVELS = ("debug", "info", "warning", "error")


def _dev(options: argparse.Namespace) -> int:
    from ironwork_server.cli.dev import dev

    return dev(
        state=options.state,
        listen=options.listen,
        upstream=options.upstream,
        pace_s=options.pace,
        log_level=options.log_level,
        as_json=options.json,
        plain_allocator=options.plain_allocator,
        is_program=options.is_program,
    )


def _serve(options: argparse.Namespace) -> int:
    from ironwork_server.cli.serve import serve

    return serve(options.config, is_program=options.is_program)


def _master_key_create(options: argparse.Namespace) -> int:
    from ironwork_server.cli.master_key import create

    return create(options.config, as_json=options.json)


def _master_key_list(options: argparse.Namespace) -> int:
    from ironwork_server.cli.master_key import list_versions

    return list_versions(options.config, as_json=options.json)


def _break_glass_keygen(options: argparse.Namespace) -> int:
    from ironwork_server.cli.break_glass import keygen

    return keygen(options.private_key, options.public_key)


def _break_glass_open(options: argparse.Namespace) -> int:
    from ironwork_server.cli.break_glass import open_

    return open_(options.config, options.private_key, rate=options.rate)


def _break_glass_list(options: argparse.Namespace) -> int:
    from ironwork_server.cli.break_glass import list_

    return list_(options.config)


def _break_glass_drop(options: argparse.Namespace) -> int:
    from ironwork_server.cli.break_glass import drop

    return drop(options.config, options.recipient, rate=options.rate)


def _audit_key_create(options: argparse.Namespace) -> int:
    from ironwork_server.cli.audit_key import create

    return create(options.config)


def _audit_key_show(options: argparse.Namespace) -> int:
    from ironwork_server.cli.audit_key import show

    return show(options.config, commands=options.commands)


def _master_key_rotate(options: argparse.Namespace) -> int:
    from ironwork_server.cli.master_key import rotate

    return rotate(options.config)


def _master_key_rewrap(options: argparse.Namespace) -> int:
    from ironwork_server.cli.master_key import rewrap

    return rewrap(options.config, rate=options.rate)


def _master_key_retire(options: argparse.Namespace) -> int:
    from ironwork_server.cli.master_key import retire

    return retire(
        options.config,
        options.version,
        backend=options.backend,
        destroy=options.destroy,
        admin_pin_source=options.admin_pin_source,
    )


def _db_upgrade(options: argparse.Namespace) -> int:
    from ironwork_server.cli.db import upgrade

    return upgrade(options.config)


def _db_status(options: argparse.Namespace) -> int:
    from ironwork_server.cli.db import status

    return status(options.config)


def _db_export_ids(options: argparse.Namespace) -> int:
    from ironwork_server.cli.db import export_ids

    return export_ids(options.config)


def _policy_init(options: argparse.Namespace) -> int:
    from ironwork_server.cli.policy import init

    return init(options.config)


def _doctor(options: argparse.Namespace) -> int:
    from ironwork_server.cli.doctor import doctor

    return doctor(
        options.config,
        upstream=options.upstream,
        probe=options.probe,
        pid=options.pid,
        as_json=options.json,
    )


def _leakcheck(options: argparse.Namespace) -> int:
    from ironwork_server.cli.leakcheck import leakcheck

    return leakcheck(options.paths, as_json=options.json)
