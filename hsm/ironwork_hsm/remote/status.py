"""Asks a running HSM process how it stands."""

import json
from pathlib import Path
from typing import Any

from ironwork_hsm.interface import BackendOptions, Unavailable
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.connection import Connection
from ironwork_hsm.remote.wire import Kind


async def read_status(path: Path, *, options: BackendOptions | None = None) -> dict[str, Any]:
    """pid, healthy, devices, record, connections. For the process' own user, root and those on its
    allow list. Raises Unavailable, ConfigurationError.
    """
    connection = Connection(path, options or BackendOptions())
    try:
        await connection.open()
        report = await connection.call(
            lambda number: wire.plain(Kind.STATUS, number), Kind.REPORT, wire.parse_report
        )
    finally:
        await connection.close()
    try:
        parsed = json.loads(report)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Unavailable("The HSM process does not speak this protocol.")
    return parsed
