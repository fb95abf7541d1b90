"""A step's cases on Ray: the same work on one machine or a cluster, that outlives workers which are killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vesalius.errors import ConfigError, VesaliusError

J = TypeVar("J")
R = TypeVar("R")

RETRIES = 3
"""Times that a job is given to another worker after its own was killed."""


def run(function: Callable[[J], R], jobs: Sequence[J], *, workers: int) -> Iterator[R]:
    """What `function` makes of each job, as it comes.

    Joins the cluster that ``RAY_ADDRESS`` names (every machine of which must see the project's folder under the same
    path), else starts one on this machine that ends with the last job. No more than `workers` jobs are under way.

    Args:
        function: of this package, so that workers can import it.
        jobs: what Ray can send.
        workers: CPUs that are used.

    Raises:
        ConfigError: Ray is not installed.
        VesaliusError: a job's worker was killed again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("the engine ray is not installed", remedy='pip install "vesalius[ray]"') from error
    started = not ray.is_initialized()
    if started:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:  # nobody runs a cluster
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    try:
        task = ray.remote(max_retries=RETRIES, num_cpus=1)(function)
        waiting, under_way = list(reversed(jobs)), list[Any]()
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                under_way.append(task.remote(waiting.pop()))
            (done, *_), under_way = ray.wait(under_way)
            yield ray.get(done)
    except ray.exceptions.WorkerCrashedError as error:
        raise VesaliusError(
            f"the worker of a job was killed {RETRIES + 1} times, perhaps for want of memory",
            remedy="the same command goes on where it stopped; try it with fewer workers",
        ) from error
    finally:
        if started:
            ray.shutdown()
