"""Where the commands' settings come from."""

import os
from pathlib import Path

from ironwork_server.app.settings import Settings, load


def config_path(config: Path | None) -> Path | None:
    """The file named on the command line or by IRONWORK_CONFIG; None where neither is."""
    named = os.environ.get("IRONWORK_CONFIG")
    return config or (Path(named) if named else None)


def settings_from(config: Path | None) -> Settings:
    """That file, then the environment over it."""
    return load(config_path(config))
