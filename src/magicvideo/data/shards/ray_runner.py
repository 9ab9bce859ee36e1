"""Running one function over many jobs on a Ray cluster that is there."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from magicvideo.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_RETRIES = 3  # of a job whose machine was lost


def run_on_ray(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, cpus: int, gpus: int
) -> Iterator[Result]:
    """Yield the result of every job as it is done, in any order.

    The cluster's machines need this package and the same paths. RAY_ADDRESS names the cluster;
    without it Ray finds the one that this machine belongs to.

    Args:
        function: What is done, a function of a module.
        jobs: What it is done to.
        cpus: Cores that one job takes.
        gpus: GPUs that one job takes.

    Raises:
        UserError: If Ray is not installed or there is no cluster, or the function raises it.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "--ray needs Ray; install it with `pip install 'magicvideo[ray]'`."
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            raise UserError(
                "There is no Ray cluster to be found; set RAY_ADDRESS, or start one with "
                "`ray start --head`."
            ) from None
    remote = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)
    waiting = [remote.remote(job) for job in jobs]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for reference in waiting:
            ray.cancel(reference)
