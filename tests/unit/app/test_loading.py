"""What is loaded before the process starts itself anew: it would be loaded twice."""

import subprocess
import sys

import pytest

# Each takes 0.1 to 2 s of CPU to load.
HEAVY = ("anthropic", "sqlalchemy", "alembic", "pydantic", "httpx2", "grpc", "cryptography", "rich")
SHOW = "import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        # `dev` starts anew from here.
        ("ironwork_server.cli.dev", set()),
        # `serve` has to read its settings first.
        ("ironwork_server.cli.serve", set(HEAVY) - {"anthropic", "grpc"}),
    ],
)
def test_what_a_start_anew_would_load_again_is_not_loaded_before_it(
    module: str, allowed: set[str]
) -> None:
    """Before it overwrites what is freed, a command has loaded no more than that needs."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOW.format(module=module, heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(shown.stdout.split()) <= allowed
