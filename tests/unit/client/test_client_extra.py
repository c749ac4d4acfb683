"""What is said where the client's extra is not installed."""

import subprocess
import sys

WITHOUT_HTTPX = """
import sys
sys.modules["httpx"] = None  # as if it were not installed
import ironwork_client
try:
    import ironwork_client.httpx
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_httpx_the_rest_works_and_the_error_names_the_extra() -> None:
    """ironwork_client needs no httpx; ironwork_client.httpx says how to get it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HTTPX], capture_output=True, text=True, check=True
    )
    assert "pip install 'ironwork-client[httpx]'" in done.stdout
