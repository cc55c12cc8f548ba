"""Replicas that are reached through a handle of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from llavakit.cluster.affinity import affinity_of
from llavakit.cluster.failover import ReplicaLost
from llavakit.cluster.wire import END, Piece, WireRequest

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

log = logging.getLogger(__name__)

DEPLOYMENT = "replica"
LABEL = "replica"
"""Of figures: whose they are."""
_METRICS = WireRequest("GET", "/metrics")
_METRICS_SECONDS = 5.0


class RayReplicas:
    """Replicas behind a handle of Ray Serve (see :class:`~llavakit.cluster.ingress.Replicas`)."""

    def __init__(self, handle: DeploymentHandle[Any], name: str) -> None:
        self._handle = handle
        self._name = name

    def greet(self) -> None:
        """One call, with which Ray makes its router and learns who lives."""
        for _ in self._call(WireRequest("GET", "/version"), ()):
            pass

    async def ask(
        self, call: WireRequest, keys: Sequence[str], avoid: Sequence[str]
    ) -> AsyncGenerator[list[Piece], None]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        affinity = affinity_of(self._name)
        wish = affinity.ranked(affinity.living, keys, avoid)[:1]
        replica = wish[0] if wish else ""
        affinity.took(replica, keys)
        answer = self._call(call, wish, avoid)
        ended = False
        try:
            async for batch in answer:
                if batch[0][0] == "from" and batch[0][1] != replica:
                    affinity.finished(replica)
                    replica = batch[0][1]
                    affinity.took(replica, keys)
                ended = ended or END in batch
                yield batch
        except (RayError, RayServeException) as error:
            raise ReplicaLost from error
        finally:
            affinity.finished(replica)
            if not ended:
                answer.cancel()  # type: ignore[no-untyped-call]

    def _call(
        self, call: WireRequest, wish: Sequence[str], avoid: Sequence[str] = ()
    ) -> DeploymentResponseGenerator[list[Piece]]:
        method = self._handle.options(stream=True).answer
        return method.remote(call, wish=tuple(wish), avoid=tuple(avoid))  # type: ignore[return-value]

    async def states(self) -> dict[str, int]:
        return await asyncio.to_thread(self._states)

    def _states(self) -> dict[str, int]:
        from ray import serve

        try:
            application = serve.status().applications.get(self._name)
        except Exception:  # the controller is not there, or is being restarted
            log.warning("the state of the cluster is not known", exc_info=True)
            return {}
        if application is None:
            return {}
        deployment = application.deployments.get(DEPLOYMENT)
        states = {} if deployment is None else deployment.replica_states
        return {getattr(state, "value", str(state)): count for state, count in states.items()}

    async def metrics(self) -> bytes:
        names = affinity_of(self._name).living
        found = await asyncio.gather(*[self._metrics_of(name) for name in names])
        return merged_figures(dict(one for one in found if one is not None))

    async def _metrics_of(self, name: str) -> tuple[str, bytes] | None:
        """The figures of a replica; None if it cannot be asked now."""
        from ray.exceptions import RayError

        body = b""
        try:
            answer = self._call(_METRICS, [name])
            async with asyncio.timeout(_METRICS_SECONDS):
                async for batch in answer:
                    for piece in batch:
                        if piece[0] == "from":
                            name = piece[1]
                        elif piece[0] == "body":
                            body += piece[1]
        except (RayError, TimeoutError):
            log.warning("replica %s reports no figures", name)
            return None
        return name, body


def merged_figures(texts: Mapping[str, bytes]) -> bytes:
    """Prometheus' text of all replicas, each sample labelled with its replica's name.

    Args:
        texts: the text of each replica by its name.
    """
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for reported in text_string_to_metric_families(text.decode()):
            family = families.setdefault(
                reported.name, Metric(reported.name, reported.documentation, reported.type)
            )
            for sample in reported.samples:
                labels = {LABEL: replica, **sample.labels}
                family.samples.append(sample._replace(labels=labels))
    return generate_latest(_Families(list(families.values())))


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
