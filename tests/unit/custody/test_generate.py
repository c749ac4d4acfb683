"""Generating a master key is on record before and after."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.journal_events import entries
from ironwork_hsm import HsmError, KeyVersion, PinRefused
from ironwork_server.core.errors import Unavailable
from ironwork_server.custody.generate import generate_master_key
from ironwork_server.custody.operator_records import OperatorRecords
from ironwork_server.journal import FileJournal

VERSION = KeyVersion(
    1, "master", sensitive=True, extractable=False, never_extractable=True, local=True
)


class Creator:
    """A device that makes a key, or fails. recorded: the entries before it was asked."""

    def __init__(self, folder: Path, fault: HsmError | None = None) -> None:
        self._folder = folder
        self._fault = fault
        self.recorded: list[str] | None = None

    async def create_version(self) -> KeyVersion:
        self.recorded = [entry.event.phase for entry in entries(self._folder)]
        if self._fault is not None:
            raise self._fault
        return VERSION


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FileJournal]:
    """A real journal in tmp_path/audit."""
    opened = FileJournal.open(tmp_path / "audit", "ironwork.test/generate")
    yield opened
    await opened.close()


async def test_a_generated_key_is_recorded(journal: FileJournal, tmp_path: Path) -> None:
    """The intent is durable before the device acts; the outcome names the version."""
    creator = Creator(tmp_path / "audit")
    assert (
        await generate_master_key("pkcs11:token=t", creator, OperatorRecords(journal, ""))
        == VERSION
    )
    assert creator.recorded == ["intent"]
    intent, outcome = entries(tmp_path / "audit")
    assert intent.event.details == {"backend": "pkcs11:token=t"}
    assert outcome.event.intent_index == intent.sequence
    assert (outcome.event.success, outcome.event.reason) == (True, "")
    assert outcome.event.details == {"backend": "pkcs11:token=t", "master_key_version": 1}


async def test_a_failed_generation_is_recorded(journal: FileJournal, tmp_path: Path) -> None:
    """A device that refuses leaves an outcome with the reason, and its own error."""
    creator = Creator(tmp_path / "audit", PinRefused("no"))
    with pytest.raises(PinRefused):
        await generate_master_key("pkcs11:token=t", creator, OperatorRecords(journal, ""))
    _, outcome = entries(tmp_path / "audit")
    assert (outcome.event.success, outcome.event.reason) == (False, "MASTER_KEY_PIN_REFUSED")


async def test_without_its_record_no_key_is_made(journal: FileJournal, tmp_path: Path) -> None:
    """A log that cannot be written stops the generation before the device is asked."""
    creator = Creator(tmp_path / "audit")
    await journal.close()
    with pytest.raises(Unavailable):
        await generate_master_key("pkcs11:token=t", creator, OperatorRecords(journal, ""))
    assert creator.recorded is None
