"""The audit log's witnesses, as the settings name them."""

import asyncio
import logging
from contextlib import AsyncExitStack

from ironwork_audit.tlog import BadNote, VerifierKey
from ironwork_audit.tlog.signed import SignatureRefused
from ironwork_server.app.records import ServiceRecords
from ironwork_server.app.settings import Settings
from ironwork_server.core.meter import Meter
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.journal import FileJournal, Witnesses
from ironwork_server.journal.witness import Witness
from ironwork_server.journal.witness_files import WitnessFiles
from ironwork_server.journal.witness_http import WitnessEndpoint
from ironwork_server.journal.witnesses import END_S

log = logging.getLogger(__name__)


class Shown:
    """Takes each published checkpoint to the witnesses, once there are any."""

    def __init__(self) -> None:
        self.to: Witnesses | None = None

    def __call__(self, note: bytes) -> None:
        """Neither blocks nor raises."""
        if self.to is not None:
            self.to.offer(note)


class _Listener:
    """Metrics, and alarms on record."""

    def __init__(self, records: ServiceRecords, meter: Meter) -> None:
        self._meter = meter
        self.submitted = meter.witness
        self.witnessed = meter.witnessed
        self.alarm = records.witness_conflict


async def show_to_witnesses(
    stack: AsyncExitStack,
    settings: Settings,
    journal: FileJournal,
    checkpointer: Checkpointer,
    records: ServiceRecords,
    meter: Meter,
) -> Witnesses | None:
    """Start asking them, from where the last run ended; None where the settings name none."""
    audit = settings.audit
    if not audit.witnesses:
        log.warning("audit.unwitnessed")
        meter.healthy("witness", healthy=False)
        return None
    files = WitnessFiles(audit.folder, journal, checkpointer.cosigned)
    known = []
    for each in audit.witnesses:
        endpoint = WitnessEndpoint(each.url)
        stack.push_async_callback(endpoint.close)
        witness = Witness(endpoint, VerifierKey.parse(each.key), checkpointer.key)
        _resume(witness, files)
        known.append(witness)
    sizes = sorted((witness.size for witness in known), reverse=True)
    witnesses = Witnesses(known, audit.witness_quorum, files, _Listener(records, meter))
    witnesses.resume(sizes[audit.witness_quorum - 1])
    task = asyncio.ensure_future(witnesses.run())

    async def end() -> None:
        witnesses.stop()
        done, _ = await asyncio.wait([task], timeout=3 * END_S)
        if not done:
            task.cancel()
            await asyncio.wait([task])

    stack.push_async_callback(end)
    return witnesses


def _resume(witness: Witness, files: WitnessFiles) -> None:
    """From what was kept; without it the witness says how far it is."""
    try:
        note = files.kept(witness.key)
        if note is not None:
            witness.resume(note)
    except (OSError, SignatureRefused, BadNote):
        log.warning("witness.not_resumed", extra={"component": witness.key.name})
