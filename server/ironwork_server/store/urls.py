"""Store URLs. No error repeats one: it may hold a password."""

from pathlib import Path

from ironwork_server.store.errors import StoreRefused

_SQLITE = "sqlite:///"


def sqlite_path(url: str) -> Path:
    """The absolute path in `sqlite:///relative/path` or `sqlite:////absolute/path`.

    Raises StoreRefused (STORE_URL_INVALID), which names the schemes that there are.
    """
    if not url.startswith(_SQLITE):
        raise _refused("its scheme is none of those that this version has")
    text = url.removeprefix(_SQLITE)
    if not text or text.endswith("/") or ":memory:" in text:
        raise _refused("it names no file")
    if any(character in text for character in "?#\0"):
        raise _refused("it takes no options, and its path has no '?', '#' or NUL")
    return Path(text).absolute()


def _refused(why: str) -> StoreRefused:
    return StoreRefused(
        f"The store's URL is not usable: {why}. There is sqlite:///PATH, where an absolute path"
        " makes four slashes: sqlite:////var/lib/ironwork/keys.db.",
        reason="STORE_URL_INVALID",
    )
