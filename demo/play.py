"""The order of the steps."""

import time

from demo import steps, witness
from demo.backstage import backstage
from demo.show import Show, Unexpected


def play() -> int:
    """Play every step; 0 only if each did what it says."""
    show = Show()
    show.title(
        "Ironwork keys",
        "Where a company's Anthropic API keys live, so that no agent, log, database or colleague"
        " ever sees one.\nOn real parts: SoftHSM, SQLite, mutual TLS, Cedar. Only Anthropic's API"
        " is simulated.",
    )
    began = time.monotonic()
    try:
        with backstage() as stage:
            show.note(f"ironwork-server dev is serving on {stage.target}")
            steps.refuse_invalid_keys(show, stage)
            first = steps.add_key(show, stage)
            steps.list_masked(show, stage)
            steps.stream_with_the_sdk(show, stage, first)
            second = steps.rotate(show, stage, first)
            steps.delete(show, stage, second)
            steps.refuse_stranger(show, stage)
            steps.audit_trail(show, stage)
            steps.nothing_left_behind(show, stage)
            witness.refuse_a_rewritten_history(show, stage)
    except Unexpected as failed:
        show.console.print(f"\n[bold red]This did not hold: {failed}[/]")
        return 1
    took = time.monotonic() - began
    show.console.print(f"\n[bold green]Every step did what it says, in {took:.0f} s.[/]")
    show.console.print("Next: [bold]make dev[/] keeps a server running for you to try by hand.")
    return 0
