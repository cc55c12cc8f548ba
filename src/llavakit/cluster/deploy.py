"""Replicas of the server on Ray Serve, behind one door in this process.

Ray Serve keeps the replicas: it starts them, restarts those that died, and scales them. The door
(:mod:`llavakit.cluster.ingress`) listens itself, and calls replicas through Ray's handles; Ray's
HTTP proxies are not started. So there is one place that sees every request and both its ends,
which exact counts and retries need; a door that dies breaks its connections, which no client takes
for an end; and nothing of Ray's faces clients.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import llavakit
from llavakit.cluster.affinity import affinity_of
from llavakit.cluster.handles import DEPLOYMENT, RayReplicas
from llavakit.cluster.replica import Replica
from llavakit.engine.memory import CONCURRENCY
from llavakit.errors import MissingDependencyError, ModelError, ParameterError
from llavakit.serving.settings import MIB, ServerSettings

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

_REACH_SECONDS = 5.0
_OBJECT_STORE = 512 * MIB  # bodies on their way; a Ray of our own holds nothing else
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How many replicas there are, and where.

    Attributes:
        replicas: fewest, and how many there are at first.
        most: most replicas; as many as they are needed run. Equal to ``replicas``: always so many.
        busy: requests under way at each replica at which another one is started; ``"auto"``
            starts it at 32, which every machine computes at once.
        address: of a Ray cluster that runs; None starts one on this machine, for this process.
        gpus: of each replica; None takes one where the cluster has any.
        cpus: of each replica; None shares out those of this machine, or takes one on a cluster.
        name: of the application in Ray Serve.
        debug: what Ray's processes say is passed on; otherwise it stands in Ray's own logs.
    """

    replicas: int = 1
    most: int = 0
    busy: int | Literal["auto"] = 16
    address: str | None = None
    gpus: float | None = None
    cpus: float | None = None
    name: str = "llavakit"
    debug: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.most or self.replicas)
        if self.busy == "auto":  # as the replicas' own concurrency, which is unknown here
            object.__setattr__(self, "busy", CONCURRENCY)
        if self.replicas < 1 or self.most < self.replicas:
            raise ParameterError(
                f"A cluster of {self.replicas} to {self.most} replicas makes no sense; use "
                "numbers such as 1-4."
            )

    @property
    def scales(self) -> bool:
        """Whether the number of replicas changes."""
        return self.most > self.replicas


@contextlib.contextmanager
def ray_running(settings: ClusterSettings) -> Iterator[None]:
    """A Ray to work with: the cluster at an address, or one of our own that ends with us."""
    ray = import_ray("ray")
    if settings.address is not None:
        _check_reachable(settings.address)
        try:
            ray.init(address=settings.address, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ParameterError(f"Ray at {settings.address} is not reached: {reason}") from error
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, settings.most),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            logging_level=logging.WARNING,
            log_to_driver=settings.debug,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Report at once an address that Ray would report only after minutes.

    Raises:
        ParameterError: nothing listens there.
    """
    if "://" in address:
        raise ParameterError(
            f"The cluster's address is {address!r}; the door must run on one of its machines: "
            "give auto, or HOST:PORT of its head."
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"No Ray cluster is reached at {address} ({reason}).") from error


def import_ray(name: str) -> Any:
    """Import a module of Ray, with its usage statistics off by default.

    Raises:
        MissingDependencyError: it is not installed.
    """
    for variable, value in _ENVIRONMENT.items():  # read when it is imported
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise MissingDependencyError(
            'A cluster needs an extra: pip install "llavakit[ray]".'
        ) from error


@contextlib.contextmanager
def deployed(
    model: str, load: Mapping[str, Any], server: ServerSettings, settings: ClusterSettings
) -> Iterator[RayReplicas]:
    """Replicas that run, and are taken down at the end; Ray is running already.

    Args:
        model: as for :func:`llavakit.load`; every replica must reach it under this name.
        load: further arguments of it.
        server: what replicas allow.
        settings: how many.

    Raises:
        ParameterError: there are not so many GPUs or cores.
        ModelError: the model cannot be loaded.
    """
    serve = import_ray("ray.serve")
    affinity_of(settings.name).living = ()
    logging.getLogger("ray.serve").setLevel(logging.INFO if settings.debug else logging.WARNING)
    logs = {"log_level": "INFO" if settings.debug else "WARNING", "enable_access_log": False}
    if settings.address is None:
        # A model that does not exist is reported before anything is started; one that is not here
        # yet is fetched once, and not by all replicas at the same time.
        llavakit.load(model, **load).info  # noqa: B018
    serve.start(proxy_location="Disabled", logging_config=logs)
    try:
        application = _application(model, load, server, settings)
        try:
            handle = serve.run(application, name=settings.name, route_prefix=None)
        except RuntimeError as error:
            raise _not_deployed(settings.name, error) from error
        replicas = RayReplicas(handle, settings.name)
        replicas.greet()
        yield replicas
    finally:
        serve.delete(settings.name)  # of a Ray of our own the rest goes with it


def _application(
    model: str, load: Mapping[str, Any], server: ServerSettings, settings: ClusterSettings
) -> Any:
    from llavakit.cluster.routing import ROUTER

    serve = import_ray("ray.serve")
    number: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.scales:
        number = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.most,
                "target_ongoing_requests": settings.busy,
            }
        }
    deployment = serve.deployment(
        RayReplica,
        name=DEPLOYMENT,
        max_ongoing_requests=server.max_open_requests,
        ray_actor_options=resources_of(load, settings),
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=20,
        request_router_config=serve.config.RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs={"cluster": settings.name}
        ),
        **number,
    )
    return deployment.bind(model, dict(load), server)


def resources_of(load: Mapping[str, Any], settings: ClusterSettings) -> dict[str, float]:
    """What one replica takes of the cluster; refuses what can never be had."""
    there = import_ray("ray").cluster_resources()
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if there.get("GPU", 0) and load.get("device", "auto") != "cpu" else 0
    cpus = settings.cpus
    if cpus is None:  # Ray gives a process as many threads as it has cores
        own = settings.address is None and not gpus
        cpus = max(1, int(there.get("CPU", 1)) // settings.most) if own else 1
    for name, each in (("GPU", gpus), ("CPU", cpus)):
        if each * settings.replicas > there.get(name, 0):
            raise ParameterError(
                f"{settings.replicas} replicas of {each:g} {name}s each need more than the "
                f"{there.get(name, 0):g} that the cluster has; ask for fewer replicas."
            )
    return {"num_cpus": cpus, "num_gpus": gpus}


def _not_deployed(name: str, error: RuntimeError) -> ModelError:
    """Why replicas do not start, in their own words where there are any."""
    serve = import_ray("ray.serve")
    reason = str(error)
    application = serve.status().applications.get(name)
    for deployment in () if application is None else application.deployments.values():
        reason = deployment.message or reason
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("llavakit.errors.")]
    reason = named[-1].partition(": ")[2] if named else lines[-1]
    return ModelError(f"The replicas cannot be started: {reason}")


class RayReplica(Replica):
    """A replica that Ray Serve starts, once its model is there, watches and ends."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it before any other call
        self, model: str, load: dict[str, Any], settings: ServerSettings
    ) -> None:
        context = import_ray("ray.serve").get_replica_context()
        super().__init__(model, load, settings, context.replica_id.unique_id)
        await self.start()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.stop()
