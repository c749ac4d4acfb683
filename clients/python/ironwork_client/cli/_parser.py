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
    commands = group.add_subparsers(
        required=True, metavar="list|follow|checkpoint|inclusion|consistency"
    )
    entries = _command(
        commands.add_parser(
            "list",
            help="list entries, oldest first",
            description="With --json, one OCSF event on each line.",
        ),
        _audit.list_entries,
    )
    _filters(entries)
    entries.add_argument("--since", default="", help="only at or after this time (ISO 8601, UTC)")
    entries.add_argument("--until", default="", help="only before this time")
    entries.add_argument("--start-index", type=_index, default=0, help="from here (default 0)")
    entries.add_argument(
        "--limit", type=_positive, default=1000, help="at most this many (default %(default)s)"
    )
    follow = _command(
        commands.add_parser("follow", help="print entries as they are written, one JSON a line"),
        _audit.follow,
    )
    _filters(follow)
    follow.add_argument("--start-index", type=_index, default=0, help="from here (default 0)")
    follow.add_argument("--limit", type=_positive, help="end after so many")
    _command(
        commands.add_parser("checkpoint", help="print the newest signed checkpoint"),
        _audit.checkpoint,
    )
    inclusion = _command(
        commands.add_parser("inclusion", help="print the proof that an entry is in the log"),
        _audit.inclusion,
    )
    inclusion.add_argument("index", type=_index)
    consistency = _command(
        commands.add_parser("consistency", help="print the proof that the log has only grown"),
        _audit.consistency,
    )
    consistency.add_argument("old_size", type=_index)
    for proof in (inclusion, consistency):
        proof.add_argument(
            "--size", type=_index, default=0, help="the tree's size (default: the checkpoint's)"
        )


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", default="", help="only this workspace's")
    parser.add_argument("--key", default="", help="only about this key: its full name")
    parser.add_argument("--principal", default="", help="only caused by this SPIFFE id")
    parser.add_argument("--operation", default="", help="only this one: AddKey, hsm.unwrap, …")


def _command(parser: argparse.ArgumentParser, run: Command) -> argparse.ArgumentParser:
    # The common options may stand before or after the command; the later one must not reset the
    # earlier one to its default.
    _common(parser, argparse.SUPPRESS, argparse.SUPPRESS)
    parser.set_defaults(run=run)
    return parser


def _common(parser: argparse.ArgumentParser, profile: object, json: object) -> None:
    parser.add_argument("--profile", metavar="FILE", default=profile, help="the profile to use")
    parser.add_argument("--json", action="store_true", default=json, help="print JSON")


def _index(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("must be from 0 to 2^63 - 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
