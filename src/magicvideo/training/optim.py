"""The optimizer, its parameter groups and its learning rate as a function of the step."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from magicvideo.errors import UserError
from magicvideo.training.recipe import StageConfig

_LEAST_IN_8_BITS = 4096  # bitsandbytes keeps the moments of smaller parameters in 32 bits


def build_optimizer(network: nn.Module, settings: StageConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the trained parameters.

    Matrices and kernels decay. Biases, norms and frame adaptors do not: an adaptor's scale is
    neutral at one, not at zero. A parameter may carry a `rate` attribute, a factor on the learning
    rate (see `train.stages.scale_pretrained_lr`).

    Raises:
        UserError: If the optimizer is not installed.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and "adaptor" not in name
        decay = settings.weight_decay if decays else 0.0
        groups.setdefault((decay, getattr(parameter, "rate", 1.0)), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr": settings.learning_rate * rate,
            "initial_lr": settings.learning_rate * rate,
        }
        for (decay, rate), parameters in groups.items()
    ]
    betas = (0.9, settings.beta2)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(described)
    if settings.optimizer == "adamw_8bit":
        return _adamw_8bit(described, betas)
    return torch.optim.AdamW(described, betas=betas, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer=adamw_8bit needs bitsandbytes, which is not installed: pip install "
            "bitsandbytes, or set optimizer=adamw."
        )
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=betas)
    return optimizer


def state_bytes(shape: torch.Size, optimizer: str) -> int:
    """Return how many bytes an optimizer keeps for a parameter of this shape."""
    numbers = shape.numel()
    if optimizer == "adafactor":  # one number a row and one a column, where there are any
        kept = numbers if len(shape) < 2 else numbers // shape[-1] + numbers // shape[-2]
        return 4 * kept
    if optimizer == "adamw_8bit" and numbers >= _LEAST_IN_8_BITS:
        return 2 * numbers
    return 8 * numbers


def learning_rate_factor(settings: StageConfig, step: int) -> float:
    """Return the share of the highest learning rate at a step (from 0).

    Linear warm-up, a plateau, and a linear decay over the last `lr_decay_ratio` of the steps. On
    the plateau it does not depend on how many steps are planned, so a run can be made longer.
    """
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_steps = max(1, round(settings.steps * settings.lr_decay_ratio))
    return min(warm, (settings.steps - step) / decay_steps, 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a share of its height."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
