"""What must hold before the service starts; each refusal names the thing and the mend."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ironwork_hsm.environment import refused_in


class StartupError(Exception):
    """The service does not start; the text says why and what to do."""


class SettingsError(Exception):
    """Settings that cannot be used; the text names each setting, what is wrong, and the mend."""


def refuse_speaking_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse variables and modes under which secrets are printed or TLS is weaker, set to whatever.
    Errors: StartupError.
    """
    why = refused_in(environ)
    if why is not None:
        raise StartupError(why)
    if sys.flags.dev_mode:
        raise StartupError(
            "Python's development mode is on (-X dev): it prints what callbacks hold. Start"
            " without it."
        )


def refuse_debugging_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse a loop in debug mode. Errors: StartupError."""
    if loop.get_debug():
        raise StartupError("The event loop is in debug mode, which prints what callbacks hold.")


def refuse_shared_place(pins: Iterable[Path], databases: Iterable[Path]) -> None:
    """The HSM's PIN and the database (or its credential) must not come from one place: one
    folder, or one inside the other. Links are followed. Errors: StartupError.
    """
    homes = [path.resolve().parent for path in databases]
    for pin in pins:
        home = pin.resolve().parent
        for other in homes:
            if home == other or home in other.parents or other in home.parents:
                raise StartupError(
                    f"The PIN file {pin} and the database lie in one place ({other}): whoever"
                    " copies that has both. Keep the PIN in a folder and mount of its own."
                )
