"""The audit events of the service itself."""

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fixtures.journal_events import entries
from ironwork_audit import Event
from ironwork_server.app import records as records_module
from ironwork_server.app.records import ServiceRecords
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import AuditEvent, AuditReference
from ironwork_server.journal import FileJournal


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FileJournal]:
    """A real journal."""
    opened = FileJournal.open(tmp_path / "audit", "ironwork.test/records")
    yield opened
    await opened.close()


class FailingJournal:
    """A journal that nothing can be written to while it fails."""

    failing = False

    async def append(self, *events: AuditEvent) -> Sequence[AuditReference]:
        if self.failing:
            raise Unavailable("disk", reason="AUDIT_UNAVAILABLE")
        return [AuditReference("test", 0) for _ in events]


def events(tmp_path: Path) -> list[Event]:
    """What the journal holds."""
    return [entry.event for entry in entries(tmp_path / "audit")]


async def test_start_and_stop_are_recorded(journal: FileJournal, tmp_path: Path) -> None:
    """The log says from when to when the service ran."""
    async with ServiceRecords(journal).running():
        assert [event.operation for event in events(tmp_path)] == ["service.start"]
    assert [event.operation for event in events(tmp_path)] == ["service.start", "service.stop"]


async def test_without_its_first_entry_nothing_starts() -> None:
    """A service whose start cannot be recorded does not start."""
    journal = FailingJournal()
    journal.failing = True
    with pytest.raises(Unavailable):
        async with ServiceRecords(journal).running():
            pytest.fail("started")


async def test_refused_peers_are_counted_not_listed(journal: FileJournal, tmp_path: Path) -> None:
    """Ten thousand refusals for a reason are one entry at first, and one with the rest's count
    when their window or the service has ended.
    """
    records = ServiceRecords(journal)
    async with records.running():
        for _ in range(10_000):
            records.refused("NO_CLIENT_CERTIFICATE")
        for number in range(1_000):
            records.refused(f"REASON_{number}")
    refusals = [event for event in events(tmp_path) if event.operation == "auth.refused"]
    assert len(refusals) <= 2 * records_module.MAX_PENDING
    first = refusals[0]
    assert (first.reason, first.success) == ("NO_CLIENT_CERTIFICATE", False)
    assert (first.details["count"], first.details["window_s"]) == (1, 0)
    counts = [event.details["count"] for event in refusals if event.reason == first.reason]
    assert counts == [1, 9_999]


async def test_refusals_are_written_while_serving(
    journal: FileJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A summary does not wait for the service's end."""
    monkeypatch.setattr(records_module, "FLUSH_INTERVAL_S", 0.001)
    written = records_module.asyncio.Event()
    append = journal.append

    async def told(*made: AuditEvent) -> Sequence[AuditReference]:
        references = await append(*made)
        if made[0].operation == "auth.refused":
            written.set()
        return references

    monkeypatch.setattr(journal, "append", told)
    records = ServiceRecords(journal)
    async with records.running():
        records.refused("SPIFFE_ID_INVALID")
        async with records_module.asyncio.timeout(20):
            await written.wait()
        assert events(tmp_path)[-1].reason == "SPIFFE_ID_INVALID"


async def test_reloads_are_recorded(journal: FileJournal, tmp_path: Path) -> None:
    """New policies and certificates, and files that could not be used, are in the log."""
    records = ServiceRecords(journal)
    await records.policy_reloaded("abc123")
    await records.certificates_reloaded()
    await records.reload_failed("policy")
    await records.reload_failed("tls")
    assert [(e.operation, e.success, e.reason) for e in events(tmp_path)] == [
        ("policy.reload", True, ""),
        ("certificate.reload", True, ""),
        ("policy.reload", False, "RELOAD_FAILED"),
        ("certificate.reload", False, "RELOAD_FAILED"),
    ]
    assert events(tmp_path)[0].details["policy_version"] == "abc123"


async def test_a_journal_that_fails_is_logged_not_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reload is in force whether or not it could be recorded; the log says that it was not."""
    journal = FailingJournal()
    records = ServiceRecords(journal)
    with caplog.at_level(logging.ERROR):
        async with records.running():
            journal.failing = True
            await records.policy_reloaded("abc123")
    lost = [r.__dict__["reason"] for r in caplog.records if r.msg == "audit.unavailable"]
    assert lost == ["policy.reload", "service.stop"]
