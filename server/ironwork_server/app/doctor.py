"""`ironwork-server doctor`: everything that is worth a look before and while serving. It reads.

What it does beyond reading files: one login at each token (none where few tries are left), one
question or two to the HSM process or the KMS. Nothing is written, no key is used, and the running
server is left alone; but for `--probe`, which uses each master key once, on record.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from ironwork_server.app import doctor_files as files
from ironwork_server.app import doctor_hsm, doctor_machine, doctor_probe, doctor_state
from ironwork_server.app.doctor_machine import Machine
from ironwork_server.app.doctor_report import Finding, fail, ok
from ironwork_server.app.settings import Settings
from ironwork_server.core.errors import IronworkError
from ironwork_server.upstream.connector import Connector
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint
from ironwork_server.upstream.timeouts import UpstreamTimeouts


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. upstream: whether to connect to endpoint, sending nothing. probe: whether
    to use each master key once, on record.
    """

    settings: Settings
    config: Path | None = None
    machine: Machine = field(default_factory=Machine)
    upstream: bool = False
    probe: bool = False
    endpoint: UpstreamEndpoint = ANTHROPIC


async def diagnose(patient: Patient) -> AsyncIterator[Finding]:
    """Every finding, as it is found. No check raises: what cannot be looked at is a finding."""
    settings, machine, now = patient.settings, patient.machine, files.now_utc()
    for group in (
        files.settings_file(patient.config),
        doctor_machine.environment(machine),
        files.pins(settings),
        files.other_secrets(settings),
        files.tls(settings, now),
        files.policy(settings, now),
        doctor_state.database(settings),
        doctor_state.clock(settings),
    ):
        for finding in group:
            yield finding
    for finding in await doctor_state.audit_log(settings, machine.proc / "locks"):
        yield finding
    for finding in await doctor_hsm.master_keys(settings):
        yield finding
    if patient.probe:
        for finding in await doctor_probe.probe(settings):
            yield finding
    for group in (doctor_machine.memory(settings, machine), doctor_machine.versions()):
        for finding in group:
            yield finding
    if patient.upstream:
        yield await _reachable(patient)


async def _reachable(patient: Patient) -> Finding:
    """Connects, by the proxy if there is one, and proves by TLS who is there."""
    check = f"upstream {patient.endpoint.host}"
    try:
        connector = Connector(
            patient.endpoint, UpstreamTimeouts(), patient.settings.upstream.connect_proxy()
        )
        channel = await connector.open()
    except (IronworkError, ValueError) as error:
        says = (
            f"{error.message} ({error.reason})" if isinstance(error, IronworkError) else str(error)
        )
        return fail(check, says, "See the reason in docs/api.md#anthropic.")
    channel.abort()
    return ok(check, "reached, and its certificate verified; nothing was sent")
