"""Charts as numbers: where each bar of an inline SVG stands. What is text is put in by the
template, which escapes it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ironwork_audit.report.usage import DAY_MS, HOUR_MS, Use

WIDTH: Final = 920
HEIGHT: Final = 190
_LEFT: Final = 46
_TOP: Final = 8
_BOTTOM: Final = 24
_MOST_BARS: Final = 93
_LABELS: Final = 10
# Shares of a heat map's darkest cell.
_LEVELS: Final = 6


class Bar(NamedTuple):
    """One rectangle, in the units of the view box."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str


class Label(NamedTuple):
    """One text."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    """The time line: bars, the labels below, the grid's (y, text)."""

    bars: list[Bar]
    labels: list[Label]
    grid: list[Label]


def bucket_ms(start_ms: int, end_ms: int) -> int:
    """How wide the time line's bars are: an hour, or as many days as leave at most 93 bars."""
    span = end_ms - start_ms
    if span <= 3 * DAY_MS:
        return HOUR_MS
    return DAY_MS * max(1, -(-span // (DAY_MS * _MOST_BARS)))


def time_line(uses: Sequence[Use], start_ms: int, width_ms: int) -> Line:
    """Requests over time, stacked: completed, failed, refused."""
    top = _nice(max((use.requests for use in uses), default=0))
    inner, height = WIDTH - _LEFT - 4, HEIGHT - _TOP - _BOTTOM
    step = inner / max(len(uses), 1)
    bars: list[Bar] = []
    labels: list[Label] = []
    every = max(1, -(-len(uses) // _LABELS))
    for number, use in enumerate(uses):
        x = _LEFT + number * step
        label = _shown(start_ms + number * width_ms, width_ms)
        title = (
            f"{label}: {use.completed:,} completed, {use.failed:,} failed, {use.refused:,} refused"
        )
        y = float(_TOP + height)
        for kind, count in (
            ("done", use.completed),
            ("failed", use.failed),
            ("refused", use.refused),
        ):
            tall = height * count / top
            y -= tall
            if count:
                bars.append(
                    Bar(
                        kind,
                        round(x + step * 0.09, 2),
                        round(y, 2),
                        round(step * 0.82, 2),
                        round(max(tall, 0.6), 2),
                        title,
                    )
                )
        if number % every == 0:
            labels.append(Label(round(x + step / 2, 2), HEIGHT - 7, label))
    grid = [
        Label(_LEFT, round(_TOP + height * (1 - part / 4), 2), _short(top * part / 4))
        for part in range(5)
    ]
    return Line(bars, labels, grid)


def heat(hours: Sequence[int]) -> list[list[tuple[int, str]]]:
    """For each day from Monday, each hour's level (0 to 6) and title."""
    top = max(hours, default=0)
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    rows = []
    for day, name in enumerate(days):
        cells = []
        for hour in range(24):
            count = hours[day * 24 + hour]
            level = 0 if not count else 1 + (count * (_LEVELS - 1)) // top
            cells.append((min(level, _LEVELS), f"{name} {hour:02}:00 UTC: {count:,}"))
        rows.append(cells)
    return rows


def share(part: int, whole: int) -> str:
    """A width in per cent."""
    return f"{100 * part / whole:.2f}%" if whole else "0%"


def _nice(most: int) -> int:
    """The axis' end: a round number that divides by four."""
    step = 1
    while True:
        for factor in (4, 8, 12, 20, 32):
            if factor * step >= most:
                return factor * step
        step *= 10


def _short(value: float) -> str:
    for limit, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _shown(ms: int, width_ms: int) -> str:
    time = datetime.fromtimestamp(ms / 1000, UTC)
    if width_ms < DAY_MS:
        return time.strftime("%d %b %H:00")
    return time.strftime("%d %b").lstrip("0")
