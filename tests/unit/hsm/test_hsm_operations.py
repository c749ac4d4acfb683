"""What a device sees of each call, told by a recorder that stands between (OpenSC's pkcs11-spy)."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest

from fixtures.softhsm import MakeToken, SoftHsm

_SCRIPT = """
import asyncio, dataclasses, sys
from ironwork_hsm import BackendOptions, BlobRejected, open_backend

def mark(name):
    with open(sys.argv[2], "a") as log:
        log.write(f"MARK {name}\\n")

async def main():
    options = BackendOptions(lanes=1, deadline_s=30, slow_deadline_s=60)
    backend = await open_backend(sys.argv[1], allow_missing=True, options=options)
    await backend.create_version()
    mark("check")
    await backend.check()
    mark("wrap")
    wrapped = await backend.wrap(bytes(32), b"context")
    mark("unwrap")
    await backend.unwrap(wrapped, b"context")
    mark("reject")
    try:
        await backend.unwrap(wrapped, b"another")
    except BlobRejected:
        pass
    mark("malformed")
    try:
        await backend.unwrap(dataclasses.replace(wrapped, blob=b"x"), b"context")
    except BlobRejected:
        pass
    mark("end")
    await backend.close()

asyncio.run(main())
"""
_COUNTED = ("C_Encrypt", "C_Decrypt", "C_Sign")


def _spy() -> Path:
    for pattern in ("lib/*/pkcs11-spy.so", "lib/*/pkcs11/pkcs11-spy.so", "lib64/pkcs11-spy.so"):
        for module in sorted(Path("/usr").glob(pattern)):
            return module
    raise FileNotFoundError("pkcs11-spy is not installed; install the package opensc-pkcs11.")


def _operations(log: str) -> dict[str, Counter[str]]:
    """For each mark, how often each counted function was called. A call is `12: C_Encrypt`."""
    counts: dict[str, Counter[str]] = {}
    mark = "open"
    for line in log.splitlines():
        if line.startswith("MARK "):
            mark = line.removeprefix("MARK ")
        counts.setdefault(mark, Counter())
        function = line.partition(": ")[2]
        if function in _COUNTED:
            counts[mark][function] += 1
    return counts


@pytest.mark.parametrize(
    ("mechanism", "made_and_used", "rejected"),
    [
        # A blob that does not open is followed by the canary, and by a second try of it.
        ("aes-256-gcm", ("C_Encrypt", "C_Decrypt"), {"C_Encrypt": 1, "C_Decrypt": 3}),
        ("hmac-sha256-derive", ("C_Sign", "C_Sign"), {"C_Sign": 4}),
        (
            "aes-256-cbc-seed",
            ("C_Encrypt", "C_Decrypt"),
            {"C_Encrypt": 1, "C_Decrypt": 3},
        ),
    ],
)
def test_operations_in_the_device_are_what_is_documented(
    softhsm: SoftHsm,
    make_token: MakeToken,
    tmp_path: Path,
    mechanism: str,
    made_and_used: tuple[str, str],
    rejected: dict[str, int],
) -> None:
    """A wrap is one operation, an unwrap one, a check one of each, with no query of sizes before;
    a blob of another shape never reaches the device.
    """
    make, use = made_and_used
    token = make_token()
    log = tmp_path / "spy.log"
    uri = token.uri.replace(quote(str(softhsm.module)), str(_spy()))
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, f"{uri}&ironwork-mechanism={mechanism}", str(log)],
        env=os.environ
        | token.env
        | {"PKCS11SPY": str(softhsm.module), "PKCS11SPY_OUTPUT": str(log)},
        check=True,
        timeout=60,
    )
    seen = _operations(log.read_text(errors="replace"))
    assert seen["open"] == {}
    assert seen["check"] == Counter([make, use])
    assert seen["wrap"] == {make: 1}
    assert seen["unwrap"] == {use: 1}
    assert seen["reject"] == rejected
    assert seen["malformed"] == {}
