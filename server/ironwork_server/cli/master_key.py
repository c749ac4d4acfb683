"""`ironwork-server master-key create|list`."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ironwork_hsm import KeyVersion
from ironwork_server.app import master_key
from ironwork_server.app.startup import StartupError, refuse_speaking_environment
from ironwork_server.cli.config import settings_from


def create(config: Path | None, *, as_json: bool) -> int:
    """Create version 1 in the HSM that the first URI names. Refused where there is one."""
    refuse_speaking_environment()
    settings = settings_from(config)
    version, made = asyncio.run(
        master_key.create_first(
            settings.master_key.uris[0],
            audit=settings.audit.folder,
            origin=settings.audit.origin,
        )
    )
    if not made:
        raise StartupError("The HSM holds this master key already; nothing was changed.")
    _show([version], as_json=as_json)
    return 0


def list_versions(config: Path | None, *, as_json: bool) -> int:
    """List every version that the first URI's HSM holds."""
    refuse_speaking_environment()
    uri = settings_from(config).master_key.uris[0]
    _show(asyncio.run(master_key.list_versions(uri)), as_json=as_json)
    return 0


def _show(versions: Sequence[KeyVersion], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(version) for version in versions]))  # noqa: T201  the answer
        return
    table = Table("version", "label", "sensitive", "extractable", "never extractable", "local")
    for version in versions:
        table.add_row(
            str(version.version),
            version.label,
            _word(version.sensitive),
            _word(version.extractable),
            _word(version.never_extractable),
            _word(version.local),
        )
    Console().print(table)


def _word(value: bool) -> str:
    return "yes" if value else "no"
