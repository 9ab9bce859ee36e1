"""Updates by DeepSpeed's ZeRO, stages 1 and 2: weights are whole, moments are shared out.

What a process holds of the moments hangs on the number of processes. A checkpoint holds whole ones,
under the names that torch's optimizer gives them, so runs go over from DeepSpeed to any other
launch and back.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import patch_environment
from torch import Tensor, nn

from magicvideo.training.checkpoint import TrainingState
from magicvideo.training.distributed import DistributedContext
from magicvideo.training.recipe import StageConfig

_MOMENTS, _STEP = ("exp_avg", "exp_avg_sq"), "step"


@dataclass
class DeepSpeedState(TrainingState):
    """A training state whose optimizer's moments are shared out once updates begin."""

    def optimizer_state_of(self, parameter: nn.Parameter) -> Mapping[str, Tensor | int]:
        """Return what the optimizer keeps for a parameter, whole; all processes ask together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        (step,) = {float(kept[_STEP]) for kept in self.optimizer.state.values()}
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
        if any(moment is None for moment in moments.values()):  # it is not trained
            return {}
        return {_STEP: torch.tensor(step), **moments}


class DeepSpeedBackend:
    """Updates by DeepSpeed's engine around the optimizer of a training state.

    Args:
        processes: Those that train together.
        state: Has the network and its optimizer, with the moments of a checkpoint if there is one.
        settings: Of the stage.

    Attributes:
        network: What is called in training, for gradients that are means over processes.
    """

    def __init__(
        self, processes: DistributedContext, state: DeepSpeedState, settings: StageConfig
    ) -> None:
        loaded = dict(state.optimizer.state)
        state.optimizer.state.clear()
        self.network = _engine(processes, state, settings)
        _share_out(self.network.optimizer, state.optimizer, loaded)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Let processes exchange gradients with the last of the accumulated batches alone."""
        self.network.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self.network.backward(loss, scale_wrt_gas=False)  # it is divided already

    def clip(self, norm: float) -> float:  # noqa: ARG002 (the engine was told when it was made)
        """Return how long the gradients are, or no number; the step itself makes them shorter."""
        size = float(self.network.optimizer.scaled_global_norm())
        return size if size >= 0 else math.nan  # the engine calls what is not finite -1

    def step(self) -> None:
        """Update the weights and forget the gradients."""
        self.network.step()


def _engine(processes: DistributedContext, state: TrainingState, settings: StageConfig) -> Any:  # noqa: ANN401
    with patch_environment(ds_accelerator=processes.accelerator.device.type):
        import deepspeed
    # on a CPU it would compile this operator now, which inference alone uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for parameter in state.network.parameters():
        # it sends them as rows of bytes, so that even sides of length 1 need plain strides
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    engine, *_ = deepspeed.initialize(
        model=state.network, optimizer=state.optimizer, config=_config(processes, settings)
    )
    return engine


def _config(processes: DistributedContext, settings: StageConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": processes.zero_stage},
        "zero_allow_untested_optimizer": True,  # AdamW's fused form is not on its list
        # the engine switches off the autocast around it; gradients stay in single precision
        "torch_autocast": {
            "enabled": settings.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def _share_out(
    zero: Any,  # noqa: ANN401
    optimizer: torch.optim.Optimizer,
    loaded: Mapping[Tensor, Mapping[str, Any]],
) -> None:
    """Give every process its part of the whole moments of a checkpoint, or of zeros."""
    from deepspeed.utils import safe_set_full_optimizer_state

    (step,) = {float(kept[_STEP]) for kept in loaded.values()} or {0.0}
    for group in optimizer.param_groups:
        for part in group["params"]:
            moments = {key: torch.zeros_like(part) for key in _MOMENTS}
            optimizer.state[part] = {_STEP: torch.tensor(step, device=part.device), **moments}
    # the first step would do this too, but before all groups have moments, and only once
    zero._lazy_init_hp_params_optimizer_state()
    for parameter, kept in loaded.items():
        for key in _MOMENTS:
            safe_set_full_optimizer_state(parameter, kept[key], key)
