"""Where the commands' settings come from."""

import os
from pathlib import Path

from ironwork_server.app.settings import Settings, load


def settings_from(config: Path | None) -> Settings:
    """The file named on the command line or by IRONWORK_CONFIG, then the environment."""
    named = os.environ.get("IRONWORK_CONFIG")
    return load(config or (Path(named) if named else None))
