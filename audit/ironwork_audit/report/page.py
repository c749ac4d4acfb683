"""The page itself: one file without scripts, with nothing to be loaded, all text escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from ironwork_audit.report import charts
from ironwork_audit.report.bounded import Rows
from ironwork_audit.report.unusual import RULES, Unusual
from ironwork_audit.report.usage import Tally, Usage, Use

_ROWS: Final = 25


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one log. state: verified, bad, or unknown. witness: who cosigned it."""

    origin: str
    state: str
    text: str
    witness: str = ""


def render_page(
    usage: Usage,
    unusual: Unusual,
    standings: Sequence[Standing],
    *,
    start_ms: int,
    end_ms: int,
    made_ms: int,
) -> str:
    """The HTML page. Times: milliseconds since 1970."""
    environment = Environment(
        loader=PackageLoader("ironwork_audit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "short": _short, "day": _day, "time": _time}
    environment.filters |= {"share": charts.share}
    buckets = -(-(end_ms - start_ms) // usage.bucket_ms)
    line = [usage.buckets.rows.get(number, Use()) for number in range(buckets)]
    return environment.get_template("page.html.j2").render(
        usage=usage,
        total=usage.total,
        standings=standings,
        start_ms=start_ms,
        end_ms=end_ms,
        made_ms=made_ms,
        line=charts.time_line(line, start_ms, usage.bucket_ms),
        chart=charts,
        heat=charts.heat(usage.hours),
        pairs=_uses(usage.by_pair, lambda use: use.requests),
        workspaces=_uses(usage.by_workspace, lambda use: use.tokens),
        refusals=_tallies(usage.refusals),
        refused=usage.refused_principals.rows,
        hsm=_tallies(usage.hsm),
        admin=_tallies(usage.admin),
        findings=_findings(unusual),
        quiet=[kind.title for name, kind in RULES.items() if not unusual.counts[name]],
        not_assessed=[RULES[name].title for name in sorted(unusual.not_assessed)],
    )


def _uses(rows: Rows[Any, Use], weight: Any) -> tuple[list[tuple[Any, Use]], Use | None, int]:
    """The greatest, the rest in one row, and of how many."""
    ordered = sorted(rows.rows.items(), key=lambda item: (-weight(item[1]), item[0]))
    rest = [use for _, use in ordered[_ROWS:]]
    if rows.others is not None:
        rest.append(rows.others)
    return ordered[:_ROWS], _sum(rest), len(rest)


def _sum(uses: Sequence[Use]) -> Use | None:
    if not uses:
        return None
    return Use(
        completed=sum(use.completed for use in uses),
        failed=sum(use.failed for use in uses),
        refused=sum(use.refused for use in uses),
        input=sum(use.input for use in uses),
        output=sum(use.output for use in uses),
        cache_write=sum(use.cache_write for use in uses),
        cache_read=sum(use.cache_read for use in uses),
        first_ms=min(use.first_ms for use in uses),
        last_ms=max(use.last_ms for use in uses),
    )


def _tallies(rows: Rows[Any, Tally]) -> tuple[list[tuple[Any, Tally]], Tally | None, int]:
    ordered = sorted(rows.rows.items(), key=lambda item: (-item[1].count, item[0]))
    rest = [tally for _, tally in ordered[_ROWS:]]
    if rows.others is not None:
        rest.append(rows.others)
    if not rest:
        return ordered, None, 0
    joined = Tally(
        sum(tally.count for tally in rest),
        sum(tally.ok for tally in rest),
        max(tally.last_ms for tally in rest),
    )
    return ordered[:_ROWS], joined, len(rest)


def _findings(unusual: Unusual) -> list[tuple[Any, int, Iterable[Any]]]:
    """By weight, then as the rules stand."""
    found = [
        (kind, unusual.counts[name], unusual.found[name])
        for name, kind in RULES.items()
        if unusual.counts[name]
    ]
    return sorted(found, key=lambda item: -item[0].level)


def _number(value: int) -> str:
    return f"{value:,}"


def _short(value: int) -> str:
    for limit, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (10_000, " k")):
        if value >= limit:
            scaled = value / (limit if limit > 10_000 else 1_000)
            return f"{scaled:.1f}{unit}" if scaled < 100 else f"{scaled:.0f}{unit}"
    return f"{value:,}"


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%d %B %Y").lstrip("0")


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
