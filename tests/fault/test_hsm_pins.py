"""An HSM that refuses the PIN, under load: no try too many, whatever is tried again."""

import pytest

from fixtures.hsm_faults import LOGOUT, Response, Site
from fixtures.softhsm import SoftHsm
from ironwork_hsm.pkcs11.module import load_module

REFUSED = "MASTER_KEY_PIN_REFUSED"
TYPED = {"MASTER_KEY_UNAVAILABLE", "MASTER_KEY_VERSION_MISSING", REFUSED}
CKR_PIN_LOCKED = 0xA4
FINAL_TRY, LOCKED = 0x20000, 0x40000
# What follows a refusal without another try.
ATTEMPTS = 3


async def refused_without_another_try(site: Site, *, refused: int) -> None:
    """Calls fail for it, and attempts go on, and so many C_Login calls were refused, no more."""
    await site.load.fails(REFUSED)
    before = len(site.records("hsm.open"))
    if site.shape == "pkcs11":
        while len(site.records("hsm.open")) < before + 2 * ATTEMPTS:
            await site.load.fails(REFUSED)
    else:
        await site.load.fails_for_good(200)
        assert len(site.records("hsm.open")) == before
    assert site.device.get("refused") == refused


async def test_a_pin_that_was_changed_elsewhere(site: Site, softhsm: SoftHsm) -> None:
    """Whoever is logged in serves on; the old PIN is tried once, when it is needed, and then no
    more; once its file has the new one service resumes.
    """
    token = site.device.token
    new = "another-pin-000"
    found = load_module(softhsm.module).library.get_token(token_label=token.label)
    old = token.pin_file.read_text().strip()
    with found.open(rw=True, user_pin=old) as session:
        session.set_pin(old, new)
    await site.load.completes()
    assert not site.load.causes
    site.device.set(once=LOGOUT)
    await site.health.becomes(Response.NOT_SERVING)
    await refused_without_another_try(site, refused=1)
    token.pin_file.write_text(new + "\n")
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.device.get("refused") == 1
    assert site.load.causes <= TYPED


async def test_a_locked_pin_is_tried_once(site: Site) -> None:
    """A token that answers PIN_LOCKED is not asked again before the PIN's file is written anew."""
    site.device.set(login=CKR_PIN_LOCKED, once=LOGOUT)
    await site.health.becomes(Response.NOT_SERVING)
    await refused_without_another_try(site, refused=1)
    site.device.set(login=0)
    rewrite(site)
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.device.get("refused") == 1
    assert site.load.causes <= TYPED


@pytest.mark.parametrize("flag", [FINAL_TRY, LOCKED])
async def test_the_last_try_is_never_spent(site: Site, flag: int) -> None:
    """A token that says that one try is left, or none, is not asked at all; not by a restart of the
    process either.
    """
    site.device.set(token_flags=flag, once=LOGOUT)
    await site.health.becomes(Response.NOT_SERVING)
    await refused_without_another_try(site, refused=0)
    assert site.device.get("logins") == 1
    site.device.set(token_flags=0)
    if site.shape == "unix":
        rewrite(site)  # it latches every refusal
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.device.get("refused") == 0
    assert site.load.causes <= TYPED


def rewrite(site: Site) -> None:
    """What an operator does who means: try it once more."""
    file = site.device.token.pin_file
    file.write_text(file.read_text())
