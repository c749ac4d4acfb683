"""`ironwork-server policy init`."""

from pathlib import Path

from ironwork_server.access.policy import write_default_policies
from ironwork_server.app.startup import StartupError
from ironwork_server.cli.config import settings_from


def init(config: Path | None) -> int:
    """Write the three default roles into policy.folder. Refused where it holds policies."""
    folder = settings_from(config).policy.folder
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if any(folder.glob("*.cedar")):
        raise StartupError(f"policy.folder ({folder}) holds policies already; nothing was changed.")
    print(write_default_policies(folder))  # noqa: T201  the answer
    return 0
