"""A server's log against the HSM process's, both real."""

from pathlib import Path

import pytest

from fixtures.agent import Agent
from fixtures.hsmd import MakeHsmd
from fixtures.server import AGENT, StartService
from fixtures.tlog_made import write_log
from ironwork.keys.v1 import keys_pb2
from ironwork_audit import EVENT, parse, render
from ironwork_audit.cli.main import main as audit
from ironwork_audit.reconcile.logs import entries_of


async def test_the_two_logs_agree(
    start_service: StartService,
    make_hsmd: MakeHsmd,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the server asked for and what the process was asked are the same, also while the
    process goes on writing; a wrap that the server denies is named.
    """
    hsmd = make_hsmd()
    service = await start_service(master_key={"uris": [hsmd.uri]})
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()
    await service.stop()  # type: ignore[attr-defined]
    log, record = str(service.folder / "audit"), str(hsmd.folder / "record")
    assert audit(["reconcile", log, "--hsmd", record]) == 0, capsys.readouterr().out
    assert "each has its other" in capsys.readouterr().out

    entries = [parse(entry) for _, entry in entries_of(log, lambda *_: None)]
    denied = [
        render(
            entry.event
            if not entry.event.operation.startswith("hsm.wrap")
            else entry.event.__class__(
                phase=EVENT,
                operation="policy.reloaded",
                correlation_id="none",
                time=entry.event.time,
            ),
            origin=entry.origin,
            sequence=entry.sequence,
            logged_time=entry.logged_time,
        )
        for entry in entries
    ]
    write_log(tmp_path / "denied", denied)
    assert audit(["reconcile", str(tmp_path / "denied"), "--hsmd", record]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    # The pepper and the data key.
    assert len(bad) == 2
    assert all("hsm.wrap for uid:" in line for line in bad)


def test_the_process_refuses_the_recorder(make_hsmd: MakeHsmd) -> None:
    """With PKCS11SPY set, which makes a recorder write PINs and data keys, it does not start."""
    hsmd = make_hsmd(start=False, env={"PKCS11SPY": "/usr/lib/libhsm.so"})
    ended = hsmd.run()
    assert ended.returncode == 1
    assert ended.stderr.startswith("ironwork-hsmd: PKCS11SPY is set: it points pkcs11-spy")
