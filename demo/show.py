"""How the demo looks: numbered steps, checked claims, and tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ironwork_client import MaskedKey


class Unexpected(Exception):
    """A step did not do what it says."""


class Show:
    """The terminal. Every `claim` is checked: a false one fails the demo."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._step = 0

    def title(self, text: str, subtitle: str) -> None:
        """The demo's head."""
        self.console.print(Panel(Text(subtitle), title=f"[bold]{text}", border_style="cyan"))

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A numbered step."""
        self._step += 1
        self.console.print(f"\n[bold cyan]{self._step}. {text}[/]")
        yield

    def claim(self, claim: str, holds: bool) -> None:
        """A checked statement."""
        mark = "[green]✓[/]" if holds else "[red]✗[/]"
        self.console.print(f"   {mark} {claim}", soft_wrap=True)
        if not holds:
            raise Unexpected(claim)

    def note(self, text: str) -> None:
        """Something worth saying."""
        self.console.print(f"   [dim]{text}[/]", soft_wrap=True)

    def code(self, text: str) -> None:
        """What a user would write."""
        lines = "\n".join(f"   │ {line}" for line in text.splitlines())
        self.console.print(Text(lines, "magenta"), soft_wrap=True)

    def keys(self, keys: Sequence[MaskedKey]) -> None:
        """The masked list."""
        table = Table("key", "name", "state", "current", "organisation", "master key", box=None)
        for key in keys:
            version = key.master_key_version
            table.add_row(
                key.mask,
                key.display_name,
                key.state.value,
                "◀ current" if key.current else "",
                f"{key.organization_id[:8]}…",
                f"v{version.version}" if version else "",
            )
        self.table(table)

    def table(self, table: Table) -> None:
        """Any table, indented."""
        self.console.print(table, style="dim")
