"""Optimizers, their parameter groups, and the learning-rate schedule."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from magicvideo.errors import UserError
from magicvideo.training.muon import Muon
from magicvideo.training.recipe import StageConfig

# Muon's updates are scaled to the size of AdamW's, which still wants a lower rate beside it
_ADAMW_BESIDE_MUON = 0.4
TEXT_ENCODER = "text_encoder."
"""How the names of a text encoder's parameters begin where it is trained with the denoiser."""
_MIN_8BIT_NUMEL = 4096  # bitsandbytes keeps the moments of smaller parameters in 32 bits


def build_optimizer(
    network: nn.Module, config: StageConfig, lr_scale: Callable[[str], float] | None = None
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the trainable parameters.

    Parameters are grouped by weight decay and learning-rate scale. Matrices and kernels decay.
    Biases, norms and frame adaptors do not: an adaptor's scale is neutral at one, not at zero. A
    group says its peak learning rate in `initial_lr` and its factor in `lr_scale`.

    Args:
        network: Its parameters with `requires_grad` are trained.
        config: Optimizer, learning rate and weight decay.
        lr_scale: Returns the factor on the learning rate of a parameter, by its name.

    Raises:
        UserError: If the optimizer is not installed.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and "adaptor" not in name
        decay = config.weight_decay if decays else 0.0
        scale = 1.0 if lr_scale is None else lr_scale(name)
        use_muon = config.optimizer == "muon" and _is_hidden_matrix(name, parameter)
        has_own_rate = name.startswith(TEXT_ENCODER)
        if config.optimizer == "muon" and not use_muon and not has_own_rate:
            scale *= _ADAMW_BESIDE_MUON
        groups.setdefault((decay, scale, use_muon), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr": config.learning_rate * scale,
            "initial_lr": config.learning_rate * scale,
            "lr_scale": scale,
            **({"use_muon": use_muon} if config.optimizer == "muon" else {}),
        }
        for (decay, scale, use_muon), parameters in groups.items()
    ]
    betas = (0.9, config.beta2)
    if config.optimizer == "muon":
        return Muon(described, betas=betas)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(described)
    if config.optimizer == "adamw_8bit":
        return _adamw_8bit(described, betas)
    return torch.optim.AdamW(described, betas=betas, fused=True)


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon trains a parameter: a matrix or a kernel between hidden features.

    The first and last layers, embeddings and frame adaptors are AdamW's, as are biases and norms:
    what they map from or to is no space whose directions should all count alike. A text encoder is
    AdamW's as a whole: it is pretrained, and is to change little.
    """
    outer = ("conv_in", "conv_out", "embedding", "adaptor", "image_conditioner", TEXT_ENCODER)
    return parameter.ndim >= 2 and not any(part in name for part in outer)


def _adamw_8bit(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer=adamw_8bit needs bitsandbytes, which is not installed: pip install "
            "bitsandbytes, or set optimizer=adamw."
        )
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=betas)
    return optimizer


def optimizer_state_bytes(shape: torch.Size, optimizer: str) -> int:
    """Return how many bytes an optimizer keeps for a parameter of this shape."""
    numel = shape.numel()
    if optimizer == "muon" and len(shape) >= 2:  # the momentum; AdamW's few matrices aside
        return 4 * numel
    if optimizer == "adafactor":  # factored second moments: one number a row and one a column
        kept = numel if len(shape) < 2 else numel // shape[-1] + numel // shape[-2]
        return 4 * kept
    if optimizer == "adamw_8bit" and numel >= _MIN_8BIT_NUMEL:
        return 2 * numel
    return 8 * numel


def learning_rate_factor(config: StageConfig, step: int) -> float:
    """Return the learning rate at a step (from 0) as a fraction of its peak.

    Linear warm-up, a plateau, and a linear decay over the last `lr_decay_ratio` of the steps. On
    the plateau it does not depend on `steps`, so that a run can be made longer.
    """
    # step + 1: the first update has a rate above 0
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(config.steps * config.lr_decay_ratio))
    # warm-up, decay and plateau are three lines; the lowest holds. The last update has the rate
    # 1 / decay_steps of the peak
    return min(warm, (config.steps - step) / decay_steps, 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
