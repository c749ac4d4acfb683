"""One pass over the logs, in order of time, for a page about a period."""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from ironwork_audit.report.charts import bucket_ms
from ironwork_audit.report.entry import Entry, entry_of
from ironwork_audit.report.unusual import Unusual
from ironwork_audit.report.usage import Usage


def gather(
    logs: Sequence[Iterable[tuple[int, bytes]]], start_ms: int, end_ms: int
) -> tuple[Usage, Unusual]:
    """Count the period, and look at all of it and what was before for what stands out. Each log's
    entries are to come from its beginning. Raises BadEntry, and what reading raises.
    """
    usage = Usage(start_ms, bucket_ms(start_ms, end_ms))
    unusual = Unusual(start_ms, end_ms)
    # Entries of one log are in order but for milliseconds, which matter to no rule.
    for entry in heapq.merge(*map(_entries, logs), key=lambda entry: entry.time_ms):
        if entry.time_ms >= end_ms:
            # Only outcomes of what began in the period still matter.
            unusual.settle(entry)
            continue
        unusual.take(entry)
        if entry.time_ms >= start_ms:
            usage.take(entry)
    unusual.finish()
    return usage, unusual


def _entries(log: Iterable[tuple[int, bytes]]) -> Iterator[Entry]:
    for index, data in log:
        yield entry_of(index, data)
