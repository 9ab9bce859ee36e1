"""Gradients and updates of one stage's weights, by torch's own optimizer: alone, DDP or FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from magicvideo.training.checkpoint import TrainingState
from magicvideo.training.distributed import DistributedContext


class TorchBackend:
    """Updates by the optimizer of a training state.

    Args:
        processes: Those that train together.
        state: Has the network and its optimizer.

    Attributes:
        network: What is called in training, for gradients that are means over processes.
    """

    def __init__(self, processes: DistributedContext, state: TrainingState) -> None:
        accelerator = processes.accelerator
        is_sharded = isinstance(state.network, FSDPModule)
        self.network = state.network if is_sharded else accelerator.prepare_model(state.network)
        self._parameters = list(state.network.parameters())
        self._accelerator = accelerator
        self._optimizer = accelerator.prepare_optimizer(state.optimizer, device_placement=False)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Let processes exchange gradients with the last of the accumulated batches alone."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(is_last)
            yield
        elif isinstance(self.network, DistributedDataParallel) and not is_last:
            with self.network.no_sync():
                yield
        else:
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self._accelerator.backward(loss)

    def clip(self, norm: float) -> float:
        """Make gradients no longer than `norm` and return how long they were, or no number."""
        self._accelerator.unscale_gradients(self._optimizer)
        size = nn.utils.clip_grad_norm_(self._parameters, norm)
        return float((size.full_tensor() if isinstance(size, DTensor) else size).item())

    def step(self) -> None:
        """Update the weights and forget the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
