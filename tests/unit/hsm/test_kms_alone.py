"""A cloud KMS and the HSM process's client work without a PKCS#11 library."""

import subprocess
import sys

import pytest

_SCRIPT = """
import importlib, sys
sys.modules["pkcs11"] = None  # importing it fails from now on
importlib.import_module(sys.argv[1])
assert "ironwork_hsm.pkcs11" not in sys.modules
"""


@pytest.mark.parametrize(
    "module",
    [
        "ironwork_hsm.aws",
        "ironwork_hsm.gcp",
        "ironwork_hsm.gcp.signer",
        "ironwork_hsm.remote",
        "ironwork_hsm.remote.signer",
    ],
)
def test_no_other_device_library_is_needed(module: str) -> None:
    """Where python-pkcs11 is not installed, every backend but that of PKCS#11 can be imported."""
    subprocess.run([sys.executable, "-c", _SCRIPT, module], check=True, timeout=60)
