"""An HSM that loses what was opened at it, under load: sessions, login, token, key."""

import pytest

from fixtures.hsm_faults import (
    CLOSE_ALL_SESSIONS,
    CLOSE_SESSION,
    LOGOUT,
    Response,
    Site,
)

UNAVAILABLE = "MASTER_KEY_UNAVAILABLE"
MISSING = "MASTER_KEY_VERSION_MISSING"


async def test_a_lost_session_is_opened_anew(site: Site) -> None:
    """One session gone costs the calls that were in it, and nobody is logged in again."""
    site.device.set(once=CLOSE_SESSION)
    await site.load.fails(UNAVAILABLE)
    await site.load.is_back()
    assert site.load.causes == {UNAVAILABLE}
    if site.shape == "pkcs11":
        assert site.device.get("logins") == 1


@pytest.mark.parametrize("how", [LOGOUT, CLOSE_ALL_SESSIONS])
async def test_a_login_that_was_ended_elsewhere_is_made_again(site: Site, how: int) -> None:
    """Logged out by other code, or by the device: logged in again, on record, and service
    resumes.
    """
    site.device.set(once=how)
    await site.load.fails(UNAVAILABLE)
    await site.health.becomes(Response.NOT_SERVING)
    await site.health.becomes(Response.SERVING)
    await site.load.is_back()
    assert site.load.causes <= {UNAVAILABLE, MISSING}
    assert site.device.get("logins") > 1
    assert site.records("hsm.open")[-1].success is True


async def test_a_token_that_goes_and_comes_back(site: Site) -> None:
    """While the token is away every call is Unavailable; when it is back so is the service, without
    anybody's help.
    """
    site.device.take_away(site.device.folder)
    # SoftHSM answers from what it holds until it has to look at its files.
    site.device.set(once=CLOSE_ALL_SESSIONS)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails_for_good()
    site.device.bring_back()
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes <= {UNAVAILABLE, MISSING}


async def test_a_key_that_goes_and_comes_back(site: Site) -> None:
    """A token without the key is said so, by a reason of its own; no record is called damaged, and
    a key that is restored serves again.
    """
    site.device.take_away(site.device.key_file)
    site.device.set(once=CLOSE_ALL_SESSIONS)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails(MISSING)
    site.device.bring_back()
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes <= {UNAVAILABLE, MISSING}
