"""Listing keys and the log in pages, and what a kept answer holds."""

from dataclasses import replace
from datetime import UTC, datetime

from ironwork_server.core.names import PageTokens
from ironwork_server.core.values import Action
from ironwork_server.custody.list_keys import KeyLister
from ironwork_server.custody.masked import MaskedKey, decode_answer, encode_answer, mask_row
from ironwork_server.custody.read_audit import AuditLister
from ironwork_server.journal import EntryFilter

from .conftest import KEY, WORKSPACE, Custody
from .test_add_key import add


async def test_listing_pages_newest_first(custody: Custody) -> None:
    """Pages follow each other without gaps, and one key is current."""
    names = [(await add(custody, KEY[:-1] + str(n).encode())).name for n in range(5)]
    lister = KeyLister(store=custody.store, tokens=PageTokens(b"s" * 32))
    listed: list[MaskedKey] = []
    token = ""
    async with custody.admit(Action.LIST_MASKED) as permit:
        while True:
            page = await lister.list(permit, size=2, token=token)
            listed += page.keys
            token = page.next_page_token
            if not token:
                break
    assert [key.name for key in listed] == names[::-1]
    assert [key.current for key in listed] == [True, False, False, False, False]


async def test_listing_an_empty_workspace_gives_nothing(custody: Custody) -> None:
    """No keys, no token."""
    lister = KeyLister(store=custody.store, tokens=PageTokens(b"s" * 32))
    async with custody.admit(Action.LIST_MASKED) as permit:
        page = await lister.list(permit, size=0, token="")
    assert (list(page.keys), page.next_page_token) == ([], "")


async def test_the_log_is_listed_in_pages(custody: Custody) -> None:
    """An auditor's pages hold every entry once, in order."""
    await add(custody)
    lister = AuditLister(reader=custody.journal.reader(), origin="o", tokens=PageTokens(b"s" * 32))
    seen: list[int] = []
    token = ""
    async with custody.admit(Action.READ_AUDIT) as permit:
        while True:
            page = await lister.list(permit, EntryFilter(), size=3, token=token)
            seen += [index for index, _ in page.entries]
            token = page.next_page_token
            if not token:
                break
    assert seen == list(range(len(seen)))


async def test_an_answer_survives_being_kept(custody: Custody) -> None:
    """Every field of a masked key comes back from its kept form."""
    await add(custody, name="é")
    row = await custody.store.current(WORKSPACE)
    assert row is not None
    used = replace(row, last_used_at=datetime(2026, 1, 1, tzinfo=UTC))
    for key in (mask_row(row, current=True), mask_row(used, current=False)):
        assert decode_answer(encode_answer(key)) == key
    assert decode_answer(encode_answer(None)) is None
