"""The command line: what can be typed."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Final

from ironwork_client.cli import _audit, _keys
from ironwork_client.cli._usage import UsageError
from ironwork_client.profile import ENVIRONMENT, Profile

Command = Callable[[argparse.Namespace, Profile], int]

_EPILOG: Final = f"""\
The profile says which server, as whom, for which workspace: --profile FILE, or {ENVIRONMENT},
or ~/.config/ironwork/profile.toml.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage or profile; 3 unavailable, try again;
4 this identity may not do that.
"""


class _Parser(argparse.ArgumentParser):
    """Errors are raised, not printed: argparse would repeat the value, and that may be a key."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, exit_on_error=False, allow_abbrev=False)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its arguments. Raises UsageError; exits for --help, and with 2 where
    something is missing.
    """
    try:
        arguments, unknown = _parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error.argument_name or 'A value'} is wrong; see --help.") from None
    if unknown:
        raise UsageError(
            "There are arguments too many, or unknown options; see --help. A key is never given as"
            " an argument: if it was one, it may be in your shell's history now."
        )
    return arguments


def _parser() -> _Parser:
    root = _Parser(
        prog="ironwork",
        description="Keep your workspace's Anthropic API keys, and read the audit log.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(root, None, False)
    groups = root.add_subparsers(title="commands", required=True, metavar="keys|audit")
    _keys_commands(groups.add_parser("keys", help="add, list or delete keys"))
    _audit_commands(groups.add_parser("audit", help="read the audit log"))
    return root


def _keys_commands(group: argparse.ArgumentParser) -> None:
    commands = group.add_subparsers(required=True, metavar="add|list|delete")
    add = _command(
        commands.add_parser(
            "add",
            help="check a key with Anthropic and keep it",
            description="Reads the key from a prompt without echo, or from stdin (one line)."
            " Blanks and line ends around it are dropped. Never give it as an argument.",
        ),
        _keys.add,
    )
    add.add_argument("--name", default="", help="a name for people, at most 64 characters")
    add.add_argument(
        "--allow-different-organization",
        action="store_true",
        help="accept a key of another Anthropic organisation than the workspace's other keys",
    )
    _command(commands.add_parser("list", help="show the workspace's keys, masked"), _keys.list_keys)
    delete = _command(commands.add_parser("delete", help="destroy a key"), _keys.delete)
    delete.add_argument("key", help="its id, or its full name, as `list` shows it")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument(
        "--cancel-in-flight",
        action="store_true",
        help="also end the responses that are being streamed with it",
    )


def _audit_commands(group: argparse.ArgumentParser) -> None:
    commands = group.add_subparsers(required=True, metavar="list")
    entries = _command(
        commands.add_parser(
            "list",
            help="list entries, oldest first",
            description="With --json, one OCSF event on each line.",
        ),
        _audit.list_entries,
    )
    entries.add_argument("--workspace", default="", help="only this workspace's")
    entries.add_argument("--key", default="", help="only about this key: its full name")
    entries.add_argument("--principal", default="", help="only caused by this SPIFFE id")
    entries.add_argument("--operation", default="", help="only this one: AddKey, hsm.unwrap, …")
    entries.add_argument("--since", default="", help="only at or after this time (ISO 8601, UTC)")
    entries.add_argument("--until", default="", help="only before this time")
    entries.add_argument(
        "--limit", type=_positive, default=1000, help="at most this many (default %(default)s)"
    )


def _command(parser: argparse.ArgumentParser, run: Command) -> argparse.ArgumentParser:
    # The common options may stand before or after the command; the later one must not reset the
    # earlier one to its default.
    _common(parser, argparse.SUPPRESS, argparse.SUPPRESS)
    parser.set_defaults(run=run)
    return parser


def _common(parser: argparse.ArgumentParser, profile: object, json: object) -> None:
    parser.add_argument("--profile", metavar="FILE", default=profile, help="the profile to use")
    parser.add_argument("--json", action="store_true", default=json, help="print JSON")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
