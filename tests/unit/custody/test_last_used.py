"""Uses are written in batches, and a store that fails them does not stop the next."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from fixtures.stores import stored_key
from ironwork_server.core.errors import DataLoss, IronworkError, Unavailable
from ironwork_server.custody.last_used import UseRecorder


class Uses:
    """A store's record_uses and set_state, which may fail."""

    def __init__(self) -> None:
        self.error: IronworkError | None = None
        self.written: list[Mapping[tuple[str, str], datetime]] = []

    async def record_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        if self.error is not None:
            raise self.error
        self.written.append(uses)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("busy", reason="STORE_UNAVAILABLE"),
        DataLoss("damaged", reason="STORE_CORRUPT"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_failing_store_costs_one_batch_and_not_the_recorder(error: IronworkError) -> None:
    """Whatever of ours a write raises, that batch is forgotten and the next one is written."""
    store: Any = Uses()
    recorder = UseRecorder(store)
    recorder.note(stored_key(), rejected=False)
    store.error = error
    await recorder.flush()
    store.error = None
    key = stored_key()
    recorder.note(key, rejected=False)
    await recorder.flush()
    assert [set(uses) for uses in store.written] == [{(key.workspace, key.key_id)}]
