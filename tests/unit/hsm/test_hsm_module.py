"""A PKCS#11 module is initialised once per process, with thread locking, or not used at all."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pkcs11.exceptions
import pytest

from fixtures.softhsm import MakeToken, SoftHsm
from ironwork_hsm import ConfigurationError, Unavailable
from ironwork_hsm.pkcs11 import module
from ironwork_hsm.pkcs11.module import check_library_version, load_module

ALREADY_INITIALIZED = 0x191


def run(script: str, *arguments: object, env: dict[str, str]) -> str:
    """Run a script in a process of its own; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_a_module_that_others_initialised_is_refused(softhsm: SoftHsm) -> None:
    """Where other code was first, without locking, the module is refused: threads would crash."""
    script = """
import sys, pathlib, pkcs11
from ironwork_hsm import ConfigurationError
from ironwork_hsm.pkcs11.module import load_module
pkcs11.lib(sys.argv[1])
for _ in range(2):
    try:
        load_module(pathlib.Path(sys.argv[1]))
    except ConfigurationError as error:
        print(error)
"""
    lines = run(script, softhsm.module, env=dict(softhsm.env)).splitlines()
    assert len(lines) == 2
    assert all("without thread locking" in line for line in lines)


def test_our_initialisation_is_the_one_that_counts(softhsm: SoftHsm) -> None:
    """After ours the library says that it is initialised, and python-pkcs11 did not do it."""
    loaded = load_module(softhsm.module)
    assert loaded.functions.C_Initialize(None) == ALREADY_INITIALIZED
    assert loaded.library.initialized is False
    with pytest.raises(pkcs11.exceptions.PKCS11Error):
        loaded.library.initialize()
    assert loaded.library.initialized is False
    assert loaded.library.get_slots()


def test_once_per_process_whatever_the_path(softhsm: SoftHsm, tmp_path: Path) -> None:
    """A module is one module by all its names: links lead to the same one."""
    link = tmp_path / "module.so"
    link.symlink_to(softhsm.module)
    assert load_module(link) is load_module(softhsm.module)


def fake_functions(*answers: int) -> SimpleNamespace:
    left = list(answers)
    return SimpleNamespace(C_Initialize=lambda _: left.pop(0))


class FakeLibrary:
    """python-pkcs11's object over a library that accepts another C_Initialize, or does not."""

    def __init__(self, *, initialized: bool, accepts: bool) -> None:
        self.initialized = initialized
        self._accepts = accepts

    def initialize(self) -> None:
        if not self._accepts:
            raise pkcs11.exceptions.PKCS11Error("already initialised")


@pytest.mark.parametrize(
    ("again", "initialized", "accepts"),
    [
        (0, False, False),
        (5, False, False),
        (ALREADY_INITIALIZED, True, False),
        (ALREADY_INITIALIZED, False, True),
    ],
    ids=["initialises twice", "fails", "python-pkcs11 was first", "two copies"],
)
def test_a_bootstrap_that_did_not_take_is_noticed(
    again: int, initialized: bool, accepts: bool
) -> None:
    """Each way in which the locking may not have taken is refused."""
    library = FakeLibrary(initialized=initialized, accepts=accepts)
    with pytest.raises(ConfigurationError, match="thread locking"):
        module._verify("/m.so", fake_functions(again), library)


def test_a_bootstrap_that_took_passes() -> None:
    """Already initialised for everybody: that is what it looks like when it took."""
    library = FakeLibrary(initialized=False, accepts=False)
    module._verify("/m.so", fake_functions(ALREADY_INITIALIZED), library)


def test_a_refused_bootstrap_leaves_nothing_behind(softhsm: SoftHsm) -> None:
    """Where the check refuses, the module is finalised again and not kept."""
    script = """
import sys, pathlib
from ironwork_hsm import ConfigurationError
from ironwork_hsm.pkcs11 import module

def refuse(path, functions, library):
    raise ConfigurationError("refused")

verify, module._verify = module._verify, refuse
try:
    module.load_module(pathlib.Path(sys.argv[1]))
except ConfigurationError as error:
    print(error)
module._verify = verify
print(len(module.load_module(pathlib.Path(sys.argv[1])).library.get_slots()) > 0)
"""
    assert run(script, softhsm.module, env=dict(softhsm.env)).split() == ["refused", "True"]


def test_another_python_pkcs11_is_refused() -> None:
    """The bootstrap is proven for one version of python-pkcs11; any other is refused by name."""
    check_library_version("0.10.1")
    for version in ("0.10.0", "0.10.2", "1.0"):
        with pytest.raises(ConfigurationError, match=r"0\.10\.1 only"):
            check_library_version(version)


@pytest.mark.parametrize("code", [0x07, 0x09, 0x0A])
def test_a_module_that_cannot_lock_is_a_wrong_configuration(code: int) -> None:
    """CKR_CANT_LOCK and its like will not go away by trying again."""
    assert isinstance(module._initialize_failure("/m.so", code), ConfigurationError)


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    """A path without a library says so, and how to mend it."""
    with pytest.raises(ConfigurationError, match="no PKCS#11 module at"):
        load_module(tmp_path / "missing.so")


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    """A text file and a library of another kind are no PKCS#11 modules."""
    text = tmp_path / "text.so"
    text.write_text("not a library")
    import _ctypes

    for path in (text, Path(_ctypes.__file__)):
        with pytest.raises(ConfigurationError, match="not a PKCS#11 module"):
            load_module(path)


def test_a_module_without_its_configuration(softhsm: SoftHsm, tmp_path: Path) -> None:
    """A module that does not initialise is Unavailable and points to its configuration."""
    script = """
import sys, pathlib
from ironwork_hsm import Unavailable
from ironwork_hsm.pkcs11.module import load_module
try:
    load_module(pathlib.Path(sys.argv[1]))
except Unavailable as error:
    print(error)
"""
    nowhere = tmp_path / "nowhere" / "softhsm2.conf"
    printed = run(script, softhsm.module, env={"SOFTHSM2_CONF": str(nowhere)})
    assert "its own configuration" in printed


def test_no_use_after_a_fork(make_token: MakeToken) -> None:
    """A child of a fork is refused at once, for open backends and new ones; the parent goes on."""
    script = """
import asyncio, os, sys
from ironwork_hsm import ConfigurationError, open_backend

async def refused(call):
    try:
        await call
    except ConfigurationError as error:
        return "fork" in str(error)
    return False

async def in_child(backend, uri):
    wrap = await refused(backend.wrap(bytes(32), b""))
    check = await refused(backend.check())
    opened = await refused(open_backend(uri))
    await backend.close()
    return wrap and check and opened

uri = sys.argv[1]
backend = asyncio.run(open_backend(uri))
child = os.fork()
if child == 0:
    good = asyncio.run(in_child(backend, uri))
    os._exit(0 if good else 1)
_, status = os.waitpid(child, 0)
asyncio.run(backend.check())
asyncio.run(backend.close())
print(os.waitstatus_to_exitcode(status))
"""
    token = make_token(with_key=True)
    assert run(script, token.uri, env=dict(token.env)).strip() == "0"


def test_unavailable_is_not_a_configuration_error() -> None:
    """What may work later and what will not are told apart."""
    assert isinstance(module._initialize_failure("/m.so", 0x05), Unavailable)
