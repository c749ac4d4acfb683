"""`ironwork-audit`: one parser for all commands.

A command is a module with `HELP`, `add_arguments(parser)` and `run(options)`, which returns 0 or 1;
it is added by one line in _COMMANDS.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from ironwork_audit.cli import plain
from ironwork_audit.cli.options import WrongUsage
from ironwork_audit.source import Unreadable
from ironwork_audit.tlog.note import BadNote

_COMMANDS: Final[Mapping[str, str]] = {
    "verify": "ironwork_audit.cli.verify",
    "prove": "ironwork_audit.cli.prove",
    "export": "ironwork_audit.cli.export",
    "tail": "ironwork_audit.cli.tail",
    "reconcile": "ironwork_audit.cli.reconcile",
    "report": "ironwork_audit.cli.report",
    "witness": "ironwork_audit.cli.witness",
}
# What the extra `cli` installs.
_EXTRA: Final = frozenset({"cryptography", "jinja2", "rich"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 all is well, 1 something bad was found (it is named on standard
    output), 2 wrong usage or something that cannot be read (on standard error), 130 interrupted.
    """
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        return _fail(f"{error.name} is missing: pip install 'ironwork-audit[cli]'")
    except (Unreadable, BadNote, WrongUsage) as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is left in the buffer goes nowhere, else
        # the interpreter would try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'failed'}: {error.strerror or type(error).__name__}")
    except KeyboardInterrupt:
        return 130
    return status


def _fail(text: str) -> int:
    plain.error(f"ironwork-audit: {text}")
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ironwork-audit",
        description="Reads and checks the audit logs of Ironwork keys.",
        epilog="Exit codes: 0 all is well, 1 something bad was found, 2 wrong usage or unreadable.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, place in _COMMANDS.items():
        module = importlib.import_module(place)
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser
