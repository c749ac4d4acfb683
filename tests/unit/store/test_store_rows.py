"""Rows and values: exact both ways."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.store import StoreCorrupt
from ironwork_server.store.rows import micros, moment, stored_key, stored_replay


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_exact(time: datetime) -> None:
    """Any UTC time that Python has comes back to the microsecond."""
    assert moment(micros(time)) == time


def test_times_of_other_zones_are_the_same_moment() -> None:
    """A time of another zone is stored as the moment that it is."""
    there = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert moment(micros(there)) == there
    assert moment(micros(there)).tzinfo is UTC


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.binary()), min_size=19))
def test_a_foreign_row_is_corrupt_or_a_key(row: list[object]) -> None:
    """Whatever another program wrote, reading it raises StoreCorrupt at worst."""
    for column in (7, 9):
        if not isinstance(row[column], int):
            with pytest.raises(StoreCorrupt):
                stored_key(row)
    row[5] = "ACTIVE"
    try:
        stored_key(row)
        stored_replay(row)
    except StoreCorrupt:
        pass
