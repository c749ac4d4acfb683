"""`ironwork-server doctor`."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ironwork_server.app.doctor import Patient, diagnose
from ironwork_server.app.doctor_machine import Machine
from ironwork_server.app.doctor_report import Finding, Status, fail, failed
from ironwork_server.app.startup import SettingsError
from ironwork_server.cli.config import config_path, settings_from

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def doctor(
    config: Path | None, *, upstream: bool, probe: bool, pid: int | None, as_json: bool
) -> int:
    """0 where nothing failed, 1 where something did. Warnings do not fail."""
    findings = asyncio.run(_look(config, upstream=upstream, probe=probe, pid=pid))
    if as_json:
        shown = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": not failed(findings), "findings": shown}))  # noqa: T201  the answer
    else:
        _show(findings)
    return 1 if failed(findings) else 0


async def _look(
    config: Path | None, *, upstream: bool, probe: bool, pid: int | None
) -> list[Finding]:
    try:
        settings = settings_from(config)
    except SettingsError as error:
        mend = "Mend the settings; nothing else was looked at. docs/operations.md lists them."
        return [fail("settings", str(error), mend)]
    patient = Patient(
        settings, config_path(config), machine=Machine(pid=pid), upstream=upstream, probe=probe
    )
    return [finding async for finding in diagnose(patient)]


def _show(findings: list[Finding]) -> None:
    table = Table("", "check", "what was found", show_lines=False)
    for finding in findings:
        says = Text(finding.says)
        if finding.mend:
            says.append(f"\n→ {finding.mend}", style="italic")
        status = Text(finding.status.value, style=_STYLES[finding.status])
        table.add_row(status, Text(finding.check), says)
    console = Console()
    console.print(table)
    count = {status: sum(found.status is status for found in findings) for status in Status}
    console.print(", ".join(f"{number} {status}" for status, number in count.items()))
