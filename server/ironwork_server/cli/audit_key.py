"""`ironwork-server audit-key create|show`."""

import asyncio
from pathlib import Path

from ironwork_server.app import audit_key
from ironwork_server.app.operator import commands_origin
from ironwork_server.app.startup import refuse_speaking_environment
from ironwork_server.cli.config import settings_from


def create(config: Path | None) -> int:
    """Create the key in the token that audit.signing_key names; print its verifier key."""
    refuse_speaking_environment()
    print(asyncio.run(audit_key.create_audit_key(settings_from(config))))  # noqa: T201  the answer
    return 0


def show(config: Path | None, *, commands: bool = False) -> int:
    """Print the verifier key (C2SP signed-note) that checks the log's checkpoints; with commands,
    those of the log that operators' commands keep. The key is one, the names are two.
    """
    refuse_speaking_environment()
    settings = settings_from(config)
    origin = commands_origin(settings) if commands else settings.audit.origin
    print(asyncio.run(audit_key.show_audit_key(settings, origin)))  # noqa: T201  the answer
    return 0
