"""Whose fault it is, under load: a sick device damages no record, a damaged record is no sick
device.
"""

import sqlite3

import pytest

from fixtures.hsm_faults import Response, Site

UNAVAILABLE = "MASTER_KEY_UNAVAILABLE"
DAMAGED = "KEY_RECORD_DAMAGED"


@pytest.mark.parametrize("code", [0x05, 0x30, 0x40, 0x80000001])
async def test_a_sick_device_is_never_a_damaged_record(site: Site, code: int) -> None:
    """Whatever a device says of every blob, also that it is the blob's fault: where it does not
    open what it has just made it is Unavailable, and nobody is told to add a key again.
    """
    site.device.set(decrypt=code)
    await site.health.becomes(Response.NOT_SERVING)
    await site.load.fails_for_good()
    site.device.set(decrypt=0)
    await site.load.is_back()
    await site.health.becomes(Response.SERVING)
    assert site.load.causes == {UNAVAILABLE}


async def test_a_damaged_record_is_no_sick_device(site: Site) -> None:
    """One row that does not open is said to be damaged, and others are served as before."""
    path = site.service.settings.store.path
    with sqlite3.connect(path) as database:
        ((blob,),) = database.execute(
            "SELECT wrap_blob FROM keys WHERE workspace = 'globex'"
        ).fetchall()
        damaged = blob[:-1] + bytes([blob[-1] ^ 1])
        database.execute("UPDATE keys SET wrap_blob = ? WHERE workspace = 'globex'", (damaged,))
    await site.load.fails(DAMAGED)
    completed = site.load.completed["acme"]
    await site.load.until(lambda: site.load.completed["acme"] >= completed + 20)
    assert site.load.causes == {DAMAGED}
    assert site.service.service.health.failing == {}
    with sqlite3.connect(path) as database:
        database.execute("UPDATE keys SET wrap_blob = ? WHERE workspace = 'globex'", (blob,))
    await site.load.is_back()
