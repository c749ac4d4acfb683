"""Store URLs: which are taken, and that no error repeats one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.store import StoreRefused, open_store, sqlite_path, status, upgrade


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/ironwork/keys.db", "/var/lib/ironwork/keys.db"),
        ("sqlite:////with blank/ö%20.db", "/with blank/ö%20.db"),
    ],
)
def test_four_slashes_make_an_absolute_path(url: str, path: str) -> None:
    """What follows sqlite:/// is the path itself, nothing decoded."""
    assert sqlite_path(url) == Path(path)


def test_three_slashes_make_a_relative_path() -> None:
    """A relative path begins in the working folder of the moment, and does not move with it."""
    assert sqlite_path("sqlite:///state/keys.db") == Path.cwd() / "state/keys.db"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keys.db",
        "/var/lib/keys.db",
        "sqlite://keys.db",
        "sqlite:///",
        "sqlite:////var/lib/",
        "sqlite:///:memory:",
        "sqlite:////x.db?mode=memory",
        "sqlite:////x.db#canary",
        "sqlite:////x\0.db",
        "SQLITE:////x.db",
        "postgresql://ironwork:canary@db.example/keys",
        "postgresql+psycopg://ironwork:canary@db.example/keys",
        "canary://x",
    ],
)
@pytest.mark.parametrize("use", [open_store, upgrade, status])
def test_other_urls_are_refused(url: str, use: object) -> None:
    """A URL that is none of ours is refused with what there is instead, and never repeated."""
    with pytest.raises(StoreRefused) as refused:
        use(url)  # type: ignore[operator]  # three functions of one argument
    assert refused.value.reason == "STORE_URL_INVALID"
    assert "sqlite:///PATH" in refused.value.message
    assert "canary" not in refused.value.message


@given(st.text())
def test_any_text_is_a_path_or_refused(text: str) -> None:
    """No text makes anything but an absolute path or that one error."""
    for url in (text, "sqlite:///" + text):
        try:
            path = sqlite_path(url)
        except StoreRefused:
            continue
        assert path.is_absolute()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A store in a folder that is not there is refused, with what to do."""
    with pytest.raises(StoreRefused, match="does not exist: make it"):
        upgrade(f"sqlite:///{tmp_path}/nowhere/keys.db")
