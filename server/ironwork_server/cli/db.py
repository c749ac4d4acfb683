"""`ironwork-server db upgrade|status|export-ids`."""

import json
from datetime import UTC, datetime
from pathlib import Path

from ironwork_audit.reconcile.store import FORMAT
from ironwork_server import store
from ironwork_server.cli.config import settings_from
from ironwork_server.store import MigrationStatus


def upgrade(config: Path | None) -> int:
    """Migrate to this version's schema."""
    settings = settings_from(config)
    settings.store.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _show(store.upgrade(settings.store.url))
    return 0


def status(config: Path | None) -> int:
    """0 where the store is at this version's schema, 1 where migrations are pending."""
    found = store.status(settings_from(config).store.url)
    _show(found)
    return 1 if found.pending else 0


def export_ids(config: Path | None) -> int:
    """Which keys the store holds, for `ironwork-audit reconcile --store`."""
    # Taken before the rows are read: what happened since may be in neither or in one.
    now = datetime.now(UTC)
    rows = store.key_ids(settings_from(config).store.url)
    _line({"format": FORMAT, "exported_time": now.isoformat(), "keys": len(rows)})
    for row in rows:
        _line(
            {
                "workspace": row.workspace,
                "key_id": row.key_id,
                "sequence": row.sequence,
                "created_time": row.created_at.isoformat(),
                "state": row.state,
            }
        )
    return 0


def _line(document: dict[str, str | int]) -> None:
    print(json.dumps(document, sort_keys=True))  # noqa: T201  the answer


def _show(found: MigrationStatus) -> None:
    print(f"schema {found.current or 'none'}, this version's is {found.head}")  # noqa: T201
    for revision in found.pending:
        print(f"pending: {revision}")  # noqa: T201  the answer
