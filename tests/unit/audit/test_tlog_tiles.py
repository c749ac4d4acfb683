"""tlog-tiles: paths, tiles, bundles."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit.tlog import (
    BadTile,
    Frontier,
    TilePath,
    TileReader,
    consistency_proof,
    frontier_of,
    inclusion_proof,
    leaf_hash,
    pack_bundle,
    pack_tile,
    parse_bundle,
    parse_tile,
    root_of,
    tile_at,
    tiles_between,
    verify_consistency,
    verify_inclusion,
)

tile_paths = st.builds(
    TilePath, st.none() | st.integers(0, 63), st.integers(0, 2**55), st.integers(1, 256)
)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (TilePath(0, 1234067), "tile/0/x001/x234/067"),
        (TilePath(0, 0), "tile/0/000"),
        (TilePath(63, 999, 255), "tile/63/999.p/255"),
        (TilePath(1, 1000, 1), "tile/1/x001/000.p/1"),
        (TilePath(None, 273, 112), "tile/entries/273.p/112"),
        (TilePath(None, 1000000), "tile/entries/x001/x000/000"),
    ],
)
def test_paths(tile: TilePath, path: str) -> None:
    """A tile's place is written as the specification's examples are."""
    assert tile.path == path
    assert TilePath.parse(path) == tile


@settings(deadline=None)  # a slow machine is no failure
@given(tile_paths)
def test_a_path_is_read_as_it_was_written(tile: TilePath) -> None:
    """Every tile has one path, and the path gives the tile."""
    assert TilePath.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/",
        "tile/00/000",
        "tile/64/000",
        "tile/100/000",
        "tile/-1/000",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/",
        "tile/0/000/",
        "/tile/0/000",
        "tile/data/000",
        "tile/0/../000",
        "tile/0/000\n",
        "tile/0/٠٠٠",
        "tile/0/x001" + "/x000" * 6 + "/000",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    """No second spelling of a path, and nothing that leaves the folder."""
    with pytest.raises(BadTile):
        TilePath.parse(path)


@settings(deadline=None)  # a slow machine is no failure
@given(st.text("tile/0123456789x.pentris-", max_size=30))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    """The parser answers every text with a tile of that very path, or with BadTile."""
    try:
        tile = TilePath.parse(text)
    except BadTile:
        return
    assert tile.path == text


def test_a_tree_of_70000() -> None:
    """The specification's example: 273 full tiles and one of 112, 1 and one of 17, one of 1."""
    tiles = list(tiles_between(0, 70_000))
    assert [tile for tile in tiles if tile.level == 0] == [
        *(TilePath(0, index) for index in range(273)),
        TilePath(0, 273, 112),
    ]
    assert [tile for tile in tiles if tile.level] == [
        TilePath(1, 0),
        TilePath(1, 1, 17),
        TilePath(2, 0, 1),
    ]
    assert list(tiles_between(0, 256)) == [TilePath(0, 0), TilePath(1, 0, 1)]
    assert list(tiles_between(70_000, 70_000)) == []


@settings(deadline=None)  # a slow machine is no failure
@given(st.integers(0, 2**20), st.integers(0, 700))
def test_tiles_between_sizes(old: int, more: int) -> None:
    """What a grown tree has and the old one had not, and nothing else."""
    new = old + more
    expected = set()
    level = 0
    while new >> 8 * level:
        width = 1 << 8 * level
        first = (old // width) // 256
        for index in range(first, (new // width + 255) // 256):
            before = min(max(old // width - index * 256, 0), 256)
            after = min(new // width - index * 256, 256)
            if after != before:
                expected.add(TilePath(level, index, after))
        level += 1
    found = list(tiles_between(old, new))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_no_tile_outside_the_format() -> None:
    """Levels, indexes, widths and sizes have bounds, and only level 0 has bundles."""
    for level, index, width in ((64, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)):
        with pytest.raises(BadTile):
            TilePath(level, index, width)
    with pytest.raises(BadTile):
        tile_at(0, 1, 256)
    for sizes in ((2, 1), (-1, 1), (0, 2**63)):
        with pytest.raises(BadTile):
            list(tiles_between(*sizes))
    assert TilePath(0, 7, 3).bundle == TilePath(None, 7, 3)
    assert TilePath(0, 7, 3).full == TilePath(0, 7)
    with pytest.raises(BadTile):
        _ = TilePath(1, 7, 3).bundle


@settings(deadline=None)  # a slow machine is no failure
@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=256))
def test_tiles_are_read_as_they_were_written(hashes: list[bytes]) -> None:
    """A tile is its hashes, no more and no less."""
    data = pack_tile(hashes)
    assert parse_tile(data, len(hashes)) == hashes
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(BadTile):
            parse_tile(wrong, len(hashes))


@settings(deadline=None)  # a slow machine is no failure
@given(st.lists(st.binary(max_size=600), min_size=1, max_size=256))
def test_bundles_are_read_as_they_were_written(entries: list[bytes]) -> None:
    """A bundle is its entries: one missing byte, or one more, is refused."""
    data = pack_bundle(entries)
    assert parse_bundle(data, len(entries)) == entries
    for wrong in (data[:-1], data + b"\0", data + b"\0\0", b""):
        with pytest.raises(BadTile):
            parse_bundle(wrong, len(entries))


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=300), st.integers(1, 256))
def test_any_bytes_are_a_bundle_or_refused(data: bytes, width: int) -> None:
    """Nothing but BadTile comes out of bytes that are no bundle."""
    try:
        entries = parse_bundle(data, width)
    except BadTile:
        return
    assert pack_bundle(entries) == data


def test_what_does_not_fit_is_not_written() -> None:
    """No empty or overlong tile or bundle, no entry beyond uint16, no hash of another length."""
    for hashes in ([], [b"x" * 32] * 257, [b"short"]):
        with pytest.raises(BadTile):
            pack_tile(hashes)
    for entries in ([], [b""] * 257, [b"x" * 65536]):
        with pytest.raises(BadTile):
            pack_bundle(entries)
    assert parse_bundle(pack_bundle([b"x" * 65535]), 1) == [b"x" * 65535]


def stored(leaves: list[bytes]) -> dict[TilePath, bytes]:
    """The tiles of a tree, each made from the row of the level below."""
    tiles, row, level = {}, leaves, 0
    while row:
        for index in range(0, len(row), 256):
            part = row[index : index + 256]
            tiles[TilePath(level, index // 256, len(part))] = pack_tile(part)
        row = [root_of(row[at : at + 256]) for at in range(0, len(row) - 255, 256)]
        level += 1
    return tiles


LEAVES = [leaf_hash(b"%d" % i) for i in range(66_000)]
SIZES = st.sampled_from([1, 2, 255, 256, 257, 511, 600, 65_535, 65_536, 65_537, 66_000])


@settings(deadline=None, max_examples=20)  # a slow machine is no failure
@given(SIZES, st.data())
def test_proofs_from_tiles(size: int, data: st.DataObject) -> None:
    """Frontier, inclusion and consistency come out of a log's tiles alone, at every tile edge."""
    tiles = stored(LEAVES[:size])
    assert set(tiles) == set(tiles_between(0, size))
    reader = TileReader(size, tiles.__getitem__, keep=2)
    root = frontier_of(size, reader).root()
    whole = Frontier()
    for leaf in LEAVES[:size]:
        whole.append(leaf)
    assert root == whole.root()
    index = data.draw(st.integers(0, size - 1))
    verify_inclusion(index, size, LEAVES[index], inclusion_proof(index, size, reader), root)
    old = data.draw(st.integers(1, size))
    old_root = frontier_of(old, reader).root()
    verify_consistency(old, size, old_root, root, consistency_proof(old, size, reader))
    for level, place in ((0, size), (0, -1), (-1, 0), (1, size // 2)):
        with pytest.raises(BadTile):
            reader.node(level, place)
