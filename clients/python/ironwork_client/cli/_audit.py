"""`ironwork audit list`."""

import argparse
import base64
from datetime import UTC, datetime
from itertools import islice

from ironwork_client.audit import AuditClient, AuditRecord, Proof
from ironwork_client.cli import _output
from ironwork_client.cli._usage import UsageError
from ironwork_client.profile import Profile


def list_entries(arguments: argparse.Namespace, profile: Profile) -> int:
    with AuditClient(profile) as client:
        entries = client.entries(
            workspace=_workspace(arguments.workspace),
            key=arguments.key,
            principal=arguments.principal,
            operation=arguments.operation,
            start=_time("--since", arguments.since),
            end=_time("--until", arguments.until),
            start_index=arguments.start_index,
        )
        if arguments.json:
            for record in islice(entries, arguments.limit):
                _output.print_json(_fields(record))
            return 0
        table = _output.audit_table()
        for record in islice(entries, arguments.limit):
            table.add_row(*_output.audit_row(record))
        more = next(entries, None) is not None
    console = _output.console()
    if table.row_count:
        console.print(table)
    else:
        console.print("No entries match.")
    if more:
        _output.console(stderr=True).print(
            f"More entries follow after the first {arguments.limit}: narrow with --since, or raise"
            " --limit."
        )
    return 0


def checkpoint(arguments: argparse.Namespace, profile: Profile) -> int:
    with AuditClient(profile) as client:
        tree = client.checkpoint()
    note = tree.checkpoint.decode("utf-8", "replace")
    if arguments.json:
        _output.print_json({"checkpoint": note, "verifier_key": tree.verifier_key})
    else:
        _output.print_lines(note)
    return 0


def inclusion(arguments: argparse.Namespace, profile: Profile) -> int:
    with AuditClient(profile) as client:
        _print_proof(client.inclusion(arguments.index, size=arguments.size))
    return 0


def consistency(arguments: argparse.Namespace, profile: Profile) -> int:
    with AuditClient(profile) as client:
        _print_proof(client.consistency(arguments.old_size, size=arguments.size))
    return 0


def follow(arguments: argparse.Namespace, profile: Profile) -> int:
    with AuditClient(profile) as client:
        records = client.follow(
            arguments.start_index,
            workspace=_workspace(arguments.workspace),
            key=arguments.key,
            principal=arguments.principal,
            operation=arguments.operation,
        )
        for record in islice(records, arguments.limit):
            _output.print_json(_fields(record))
        records.close()
    return 0


def _print_proof(proof: Proof) -> None:
    _output.print_json(
        {
            "size": proof.size,
            "hashes": [base64.b64encode(each).decode() for each in proof.hashes],
            "checkpoint": proof.checkpoint.decode("utf-8", "replace"),
        }
    )


def _fields(record: AuditRecord) -> dict[str, object]:
    try:
        event: object = record.parsed()
    except ValueError:
        event = None
    return {"origin": record.origin, "index": record.index, "event": event}


def _workspace(value: str) -> str:
    return f"workspaces/{value}" if value and "/" not in value else value


def _time(option: str, value: str) -> datetime | None:
    if not value:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{option} must be a time such as 2026-11-23T09:00Z.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
