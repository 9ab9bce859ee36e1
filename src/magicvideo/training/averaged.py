"""The averaged weights in the network, for as long as somebody looks at them."""

from collections.abc import Iterator
from contextlib import contextmanager

from magicvideo.training.checkpoint import TrainingState
from magicvideo.training.distributed import Processes
from magicvideo.training.dtensor import gathered
from magicvideo.training.task import Task


@contextmanager
def averaged(task: Task, state: TrainingState, processes: Processes) -> Iterator[None]:
    """Let the first process's `task.network` have the averaged weights for a while."""
    network = task.network
    is_whole = network is state.network
    if is_whole and processes.is_first:
        state.ema.swap(network)
    elif not is_whole:
        averages = gathered(state.ema.tensors(state.network), keep=processes.is_first)
        if processes.is_first:
            network.load_state_dict(averages, strict=False)  # buffers stay
            network.to(processes.accelerator.device)
    network.eval()
    try:
        yield
    finally:
        network.train()
        if is_whole and processes.is_first:
            state.ema.swap(network)
        elif not is_whole:
            network.to("cpu")
