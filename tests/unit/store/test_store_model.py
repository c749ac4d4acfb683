"""The store against a plain dictionary that does the same."""

import asyncio
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fixtures.stores import NOON, SqliteStores, replay, stored_key
from ironwork_server.core.ports import (
    AlreadyAnswered,
    KeyExists,
    OrganizationDiffers,
    TooManyKeys,
)
from ironwork_server.core.values import KeyState, Replay, StoredKey

WORKSPACES = ("w1", "w2")
workspaces = st.sampled_from(WORKSPACES)
fingerprints = st.integers(0, 5).map(lambda n: bytes([n]) * 32)
organizations = st.sampled_from(["", "org-1", "org-2"])
request_ids = st.sampled_from([None, "r1", "r2", "r3"])
picks = st.integers(0, 30)
MAX_KEYS = 4


class StoreMachine(RuleBasedStateMachine):
    """Adds, deletions and small writes in any order, with restarts between."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ironwork-model-")
        self.runner = asyncio.Runner()
        self.stores = SqliteStores(Path(self.folder.name))
        self.url = self.stores.new()
        self.store = self.stores.open(self.url)
        self.rows: dict[str, StoredKey] = {}
        self.remembered: dict[str, str] = {}
        self.replays: dict[tuple[str, str, str], Replay] = {}
        self.all: list[StoredKey] = []
        self.sequence = 0

    def teardown(self) -> None:
        self.runner.run(self.stores.close())
        self.runner.close()
        self.folder.cleanup()

    def of(self, workspace: str) -> list[StoredKey]:
        rows = [key for key in self.rows.values() if key.workspace == workspace]
        return sorted(rows, key=lambda key: -key.sequence)

    def expected_add(
        self, key: StoredKey, kept: Replay | None, allow: bool
    ) -> type[Exception] | None:
        rows = self.of(key.workspace)
        if kept and (key.workspace, "AddKey", kept.request_id) in self.replays:
            return AlreadyAnswered
        if any(row.fingerprint == key.fingerprint for row in rows):
            return KeyExists
        if len(rows) >= MAX_KEYS:
            return TooManyKeys
        held = {row.organization_id for row in rows} - {""}
        held = held or ({self.remembered.get(key.workspace, "")} - {""})
        if held and key.organization_id and not allow and key.organization_id not in held:
            return OrganizationDiffers
        return None

    @rule(
        workspace=workspaces,
        fingerprint=fingerprints,
        organization=organizations,
        request_id=request_ids,
        allow=st.booleans(),
    )
    def add(
        self,
        workspace: str,
        fingerprint: bytes,
        organization: str,
        request_id: str | None,
        allow: bool,
    ) -> None:
        sequence = self.runner.run(self.store.next_sequence())
        assert sequence > self.sequence
        self.sequence = sequence
        key = stored_key(
            workspace, sequence=sequence, fingerprint=fingerprint, organization_id=organization
        )
        kept = None if request_id is None else replay(request_id, workspace=workspace)
        got: type[Exception] | None = None
        expected = self.expected_add(key, kept, allow)
        try:
            self.runner.run(
                self.store.add(
                    key, replay=kept, max_keys=MAX_KEYS, allow_different_organization=allow
                )
            )
        except (AlreadyAnswered, KeyExists, TooManyKeys, OrganizationDiffers) as error:
            got = type(error)
        assert got == expected
        if expected is None:
            self.rows[key.key_id] = key
            if organization:
                self.remembered[workspace] = organization
            self.all.append(key)
            if kept:
                self.replays[workspace, "AddKey", kept.request_id] = kept

    @rule(workspace=workspaces, pick=picks, request_id=request_ids)
    def delete(self, workspace: str, pick: int, request_id: str | None) -> None:
        key_id = self.all[pick % len(self.all)].key_id if self.all else "none"
        kept = None
        if request_id is not None:
            kept = replay(request_id, workspace=workspace, method="DeleteKey")
        deleting = self.store.delete(
            workspace, key_id, replay=None if kept is None else (lambda _: kept)
        )
        if request_id and (workspace, "DeleteKey", request_id) in self.replays:
            with pytest.raises(AlreadyAnswered) as answered:
                self.runner.run(deleting)
            assert answered.value.replay == self.replays[workspace, "DeleteKey", request_id]
            return
        row = self.rows.get(key_id)
        there = row is not None and row.workspace == workspace
        if there:
            del self.rows[key_id]
            if kept:
                self.replays[workspace, "DeleteKey", kept.request_id] = kept
        left = self.of(workspace)
        assert self.runner.run(deleting) == (there, left[0] if left else None)

    @rule(pick=picks, minutes=st.integers(-3, 3), state=st.sampled_from(KeyState))
    def change(self, pick: int, minutes: int, state: KeyState) -> None:
        if not self.all:
            return
        key = self.all[pick % len(self.all)]
        used = NOON + timedelta(minutes=minutes)
        self.runner.run(self.store.record_uses({(key.workspace, key.key_id): used}))
        self.runner.run(self.store.set_state(key.workspace, key.key_id, state))
        if row := self.rows.get(key.key_id):
            before = row.last_used_at
            latest = used if before is None else max(before, used)
            self.rows[key.key_id] = replace(row, state=state, last_used_at=latest)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.store.close())
        self.store = self.stores.open(self.url)

    @invariant()
    def the_same(self) -> None:
        for workspace in WORKSPACES:
            rows = self.of(workspace)
            page = self.store.page(workspace, before_sequence=None, limit=50)
            assert self.runner.run(page) == rows
            current = self.runner.run(self.store.current(workspace))
            assert current == (rows[0] if rows else None)
        for (workspace, method, request_id), kept in self.replays.items():
            found = self.store.find_replay(workspace, method, request_id)
            assert self.runner.run(found) == kept


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
