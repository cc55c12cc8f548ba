"""``--ray``: several replicas of a server behind one door, and several readers of documents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.cli.terminal import note, usage_error
from llavakit.serving.settings import ServerSettings

if TYPE_CHECKING:
    from llavakit.cluster.batch import Done
    from llavakit.documents import Job, Tally


def cluster_of(
    ray: bool, replicas: int | None, autoscale: str | None, address: str | None
) -> tuple[int, int, str | None] | None:
    """Fewest and most replicas, and the cluster's address; None for one process."""
    if not ray:
        given = {"--replicas": replicas, "--autoscale": autoscale, "--ray-address": address}
        for name, value in given.items():
            if value is not None:
                raise usage_error(f"{name} is for replicas on Ray Serve; add --ray.")
        return None
    if autoscale is None:
        return replicas or 1, replicas or 1, address
    if replicas is not None:
        raise usage_error("--replicas and --autoscale exclude each other; leave one out.")
    fewest, dash, most = autoscale.partition("-")
    if not (dash and fewest.isdecimal() and most.isdecimal() and 0 < int(fewest) <= int(most)):
        raise usage_error(f"--autoscale is {autoscale!r}; it must be MIN-MAX, such as 1-4.")
    return int(fewest), int(most), address


def run_cluster(
    model: str,
    load: dict[str, Any],
    settings: ServerSettings,
    cluster: tuple[int, int, str | None],
    host: str,
    port: int,
    grace: float,
    access_log: bool,
    debug: bool,
) -> None:
    """Replicas on Ray Serve, and their door in this process."""
    from llavakit.cluster.deploy import ClusterSettings, deployed, ray_running
    from llavakit.cluster.ingress import create_ingress
    from llavakit.serving import Server
    from llavakit.serving.runner import listen, log_to_stderr

    log_to_stderr(logging.DEBUG if debug else logging.INFO if access_log else logging.WARNING)
    fewest, most, at = cluster
    wanted = ClusterSettings(fewest, most, busy=load["max_concurrency"], address=at, debug=debug)
    listener = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    number = f"{fewest} replicas" if fewest > 1 else "a replica"
    note(f"llavakit: starting Ray and {number} of {model}")
    with (
        listener,
        ray_running(wanted),
        deployed(_placed(model), load, settings, wanted) as replicas,
    ):
        Server(
            create_ingress(replicas, settings),
            grace,
            access_log,
            lambda: note(
                f"llavakit: listening on {address}\nllavakit: {settings.model_name} is ready"
            ),
        ).run(sockets=[listener])


def read_on_ray(
    job: Job,
    load: dict[str, Any],
    out: Path,
    store: Path | None,
    actors: int,
    address: str | None,
    shard: int | None,
    *,
    restart: bool,
    window: int | None,
    progress: Callable[[Done], None],
) -> Tally:
    """Documents read by a pool of actors into a folder of Parquet."""
    from llavakit.cluster.batch import run_on_ray
    from llavakit.cluster.deploy import ClusterSettings
    from llavakit.cluster.shards import SHARD

    return run_on_ray(
        job,
        load,
        out,
        ClusterSettings(actors, address=address),
        restart=restart,
        window=window,
        shard=shard or SHARD,
        store=None if store is None else store.resolve(),
        progress=progress,
    )


def _placed(model: str) -> str:
    """A directory by its whole path, since replicas run in other folders; else the name."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model
