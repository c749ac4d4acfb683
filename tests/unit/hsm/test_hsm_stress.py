"""Threads do not crash the module and never get each other's answers.

In a process of its own, since what would go wrong is a segmentation fault or a hang.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.softhsm import MakeToken

SCRIPT = Path(__file__).with_name("hsm_stress.py")
OPERATIONS = 100_000


@pytest.mark.timeout(300)
def test_eight_threads_and_many_mixed_operations(make_token: MakeToken) -> None:
    """8 threads in the module, wraps, unwraps and refusals mixed: no crash, no wrong answer."""
    token = make_token(with_key=True)
    result = subprocess.run(
        [sys.executable, SCRIPT, str(OPERATIONS)],
        input=token.uri,
        env=os.environ | token.env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    done = json.loads(result.stdout)
    assert done["wrap"] + done["unwrap"] + done["reject"] == OPERATIONS
    assert min(done["wrap"], done["unwrap"], done["reject"]) > OPERATIONS // 4
