"""The transparency log's format (C2SP tlog-tiles): bytes in, values out, no IO.

`ironwork_audit.tlog.signed` checks signatures and needs `cryptography`; the rest needs nothing.
"""

from ironwork_audit.tlog.checkpoint import BadCheckpoint, Checkpoint
from ironwork_audit.tlog.hashes import EMPTY_ROOT, HASH_BYTES, leaf_hash, node_hash
from ironwork_audit.tlog.note import (
    BadNote,
    KeyType,
    Note,
    Signature,
    VerifierKey,
    cosigned_message,
    format_note,
    pack_cosignature,
    parse_cosignature,
    parse_note,
)
from ironwork_audit.tlog.proofs import (
    ProofRefused,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from ironwork_audit.tlog.tiles import (
    TILE_WIDTH,
    BadTile,
    TilePath,
    TileReader,
    pack_bundle,
    pack_tile,
    parse_bundle,
    parse_tile,
    split_bundle,
    tile_at,
    tiles_between,
)
from ironwork_audit.tlog.tree import Frontier, HashReader, frontier_of, range_root, root_of

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "TILE_WIDTH",
    "BadCheckpoint",
    "BadNote",
    "BadTile",
    "Checkpoint",
    "Frontier",
    "HashReader",
    "KeyType",
    "Note",
    "ProofRefused",
    "Signature",
    "TilePath",
    "TileReader",
    "VerifierKey",
    "consistency_proof",
    "cosigned_message",
    "format_note",
    "frontier_of",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "pack_bundle",
    "pack_cosignature",
    "pack_tile",
    "parse_bundle",
    "parse_cosignature",
    "parse_note",
    "parse_tile",
    "range_root",
    "root_of",
    "split_bundle",
    "tile_at",
    "tiles_between",
    "verify_consistency",
    "verify_inclusion",
]
