"""Ray Serve's choice of a replica, by :class:`~llavakit.cluster.affinity.Affinity`.

Ray makes a router in the process that calls, which is the door of the cluster: the one process
that sees every request and its end. The door wishes for a replica when a request comes, and the
router obeys as far as it lives and has room. Ray's own multiplexing would report to its controller
every conversation that a replica has seen.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llavakit.cluster.affinity import affinity_of

ROUTER = f"{__name__}:ConversationRouter"


class ConversationRouter(RequestRouter):
    """Gives a call to the replica that its ``wish`` names, else to the least loaded one.

    Ray copies the class to where it is used, with the values of this module, so that what is
    shared with the door is asked for by its name.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        self._affinity = affinity_of(kwargs["cluster"])
        self._tell()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        given = {} if pending_request is None else pending_request.kwargs
        order = self._affinity.ranked(by_name, (), given.get("avoid", ()))
        wish = [name for name in given.get("wish", ()) if name in by_name]
        return [[by_name[name]] for name in dict.fromkeys([*wish, *order])]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._tell()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._tell()

    def _tell(self) -> None:
        self._affinity.living = tuple(one.unique_id for one in self.curr_replicas)
