"""Every RPC on one page: who may call it and how it is counted. What is not here is refused.

`tests/unit/rpc/test_table.py` holds this against the descriptors.
"""

from dataclasses import dataclass

from ironwork_server.core.values import Action

KEYS = "ironwork.keys.v1.KeyService"
AUDIT = "ironwork.keys.v1.AuditService"
HEALTH = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One row. action: what the policy decides on and the audit event's name; None where any
    peer with a certificate of a trusted CA may call (health).
    """

    method: str
    action: Action | None


ADD_KEY = Rpc(f"/{KEYS}/AddKey", Action.ADD_KEY)
LIST_MASKED = Rpc(f"/{KEYS}/ListMasked", Action.LIST_MASKED)
DELETE_KEY = Rpc(f"/{KEYS}/DeleteKey", Action.DELETE_KEY)
WITH_KEY = Rpc(f"/{KEYS}/WithKey", Action.WITH_KEY)
LIST_ENTRIES = Rpc(f"/{AUDIT}/ListEntries", Action.READ_AUDIT)
GET_CHECKPOINT = Rpc(f"/{AUDIT}/GetCheckpoint", Action.READ_AUDIT)
GET_INCLUSION_PROOF = Rpc(f"/{AUDIT}/GetInclusionProof", Action.READ_AUDIT)
GET_CONSISTENCY_PROOF = Rpc(f"/{AUDIT}/GetConsistencyProof", Action.READ_AUDIT)
FOLLOW_ENTRIES = Rpc(f"/{AUDIT}/FollowEntries", Action.READ_AUDIT)
HEALTH_CHECK = Rpc(f"/{HEALTH}/Check", None)
HEALTH_WATCH = Rpc(f"/{HEALTH}/Watch", None)

TABLE = {
    rpc.method: rpc
    for rpc in (
        ADD_KEY,
        LIST_MASKED,
        DELETE_KEY,
        WITH_KEY,
        LIST_ENTRIES,
        GET_CHECKPOINT,
        GET_INCLUSION_PROOF,
        GET_CONSISTENCY_PROOF,
        FOLLOW_ENTRIES,
        HEALTH_CHECK,
        HEALTH_WATCH,
    )
}
