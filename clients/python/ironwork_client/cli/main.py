"""Runs a command and turns what it raises into an exit code and a sentence on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from ironwork_client.cli import _output
from ironwork_client.cli._parser import parse
from ironwork_client.cli._usage import UsageError
from ironwork_client.errors import IronworkError, PermissionDenied, Unauthenticated, Unavailable
from ironwork_client.profile import Profile, ProfileError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
NOT_PERMITTED: Final = 4
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

# What to do next, by the service's reason.
_MENDS: Final = {
    "AUDIT_PRUNED": "`--start-index` is where to begin.",
    "DIFFERENT_ORGANIZATION": (
        "If you mean to move the workspace to another Anthropic organisation, repeat with"
        " --allow-different-organization."
    ),
    "KEY_EXISTS": "`ironwork keys list` shows it.",
    "KEY_NOT_FOUND": "`ironwork keys list` shows the keys and their ids.",
    "KEY_INVALID": "Copy the key again from the Anthropic console, or make a new one there.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `ironwork` command. Returns its exit code; argparse may exit by itself."""
    try:
        arguments = parse(argv)
    except UsageError as error:
        _say(str(error))
        return USAGE
    try:
        profile = Profile.load(arguments.profile)
        code: int = arguments.run(arguments, profile)
        sys.stdout.flush()
    except IronworkError as error:
        _report(error, as_json=arguments.json)
        return exit_code(error)
    except (ProfileError, UsageError) as error:
        _say(str(error))
        return USAGE
    except (EOFError, KeyboardInterrupt):
        _say("Interrupted.")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def exit_code(error: IronworkError) -> int:
    """3: try again. 4: not permitted. 1: anything else."""
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    if isinstance(error, (PermissionDenied, Unauthenticated)):
        return NOT_PERMITTED
    return FAILED


def _report(error: IronworkError, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps(_output.error_fields(error), ensure_ascii=False) + "\n")
        return
    _say(error.message)
    mend = _MENDS.get(error.reason, "")
    if isinstance(error, Unavailable) and error.retry_after is not None:
        mend = f"Try again in {error.retry_after:.0f} s."
    if mend:
        _output.console(stderr=True).print(mend, soft_wrap=True)


def _say(message: str) -> None:
    text = _output.safe("ironwork: ", "bold red")
    text.append_text(_output.safe(message))
    _output.console(stderr=True).print(text, soft_wrap=True)
