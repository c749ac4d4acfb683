"""How the commands write: to a terminal with colours, elsewhere plainly."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ironwork_audit.cli.plain import printable
from ironwork_audit.verify import Progress as Told


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that is gone to `main`: rich would end the program with 1, which says
        that something bad was found.
        """
        raise BrokenPipeError


def console() -> Console:
    """Standard output; long lines stay whole."""
    return _Console(file=sys.stdout, highlight=False, soft_wrap=True)


def line(where: Console, mark: str, style: str, text: str) -> None:
    """One line that begins with a coloured mark. The text is shown by `printable`."""
    where.print(Text.assemble((f"{mark:<5}", style), printable(text)))


def as_json(document: object) -> None:
    """One line of JSON on standard output, in ASCII: what it quotes cannot move a cursor."""
    print(json.dumps(document, sort_keys=True))  # noqa: T201


def shown_time(milliseconds: int) -> str:
    """A time as RFC 3339, UTC, with milliseconds."""
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def progress_bar(what: str) -> Iterator[Told]:
    """A progress bar on standard error, where that is a terminal."""
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield told
