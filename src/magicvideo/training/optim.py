"""Optimizers, their parameter groups, and the learning-rate schedule."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from magicvideo.errors import UserError
from magicvideo.training.recipe import StageConfig

# Coefficients of the quintic iteration x <- a x + b (x x^T) x + c (x x^T)^2 x, chosen by Jordan et
# al. for the fastest growth of small singular values; the result has singular values in about
# [0.7, 1.2], which works as well as exact orthogonality.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices: U V^T of the SVD U S V^T.

    Args:
        matrices: `n rows columns`, floating point.
        steps: Newton-Schulz iterations.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    # the iteration converges for singular values up to 1, which dividing by the Frobenius norm
    # ensures
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    x = _iterate_on_gram(x, steps) if x.shape[-1] > 2 * x.shape[-2] else _iterate(x, steps)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _iterate(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x


def _iterate_on_gram(x: Tensor, steps: int) -> Tensor:
    """Iterate on the small Gram matrix of a wide matrix; only two products have full size.

    Every iterate is Q x, with Q a polynomial in R = x x^T. With P = a I + b R + c R^2, one step is
    Q <- P Q and R <- P R P; all these matrices commute.
    """
    gram = (x @ x.mT).float()
    identity = torch.eye(gram.shape[-1], device=x.device)
    total = identity.expand_as(gram)
    for step in range(steps):
        polynomial = _A * identity + _B * gram + _C * gram @ gram
        total = polynomial @ total
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return total.to(x.dtype) @ x


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolution kernels, AdamW for all other parameters.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). A group
    with `use_muon` has parameters with at least two axes; kernels are matrices with `out` rows
    and `in * k * k` columns. Matrices of equal shape are orthogonalized in one batch.

    Args:
        groups: Parameter groups with `params`, `lr`, `weight_decay` and `use_muon`.
        momentum: Nesterov momentum of Muon.
        betas: Betas of AdamW.
        eps: Epsilon of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": 1e-3,
            "weight_decay": 0.0,
            "use_muon": False,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            if group["use_muon"]:
                self._apply_muon(trained, group)
            else:
                self._apply_adam(trained, group)
        return loss

    def _apply_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
            # m <- mu m + (1 - mu) g, then Nesterov: the update is (1 - mu) g + mu m
            buffer.lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(buffer, group["momentum"]).flatten(1)
            rows, columns = update.shape
            by_shape[rows, columns].append((parameter, update))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([update for _, update in pairs]))
            # a semi-orthogonal matrix has entries of RMS 1 / sqrt(max(rows, columns)); 0.2 is about
            # the RMS of AdamW's updates, so both share one learning rate
            scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-scale)

    def _apply_adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
        steps = self.state[parameters[0]]["step"].item()
        # AdamW (1711.05101, algorithm 2): m and v are moving averages of g and g^2; the update is m
        # / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [self.state[p]["exp_avg"] for p in parameters]
        squares = [self.state[p]["exp_avg_sq"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_addcdiv_(parameters, means, scales, -group["lr"] / (1 - beta1**steps))


# Muon's updates are scaled to the RMS of AdamW's; AdamW still needs a lower rate in this mix
_ADAMW_BESIDE_MUON = 0.4
TEXT_ENCODER = "text_encoder."
"""Prefix of the parameters of a text encoder that is trained with the denoiser."""
_MIN_8BIT_NUMEL = 4096  # bitsandbytes stores the moments of smaller parameters in 32 bits


def build_optimizer(
    network: nn.Module, config: StageConfig, lr_scale: Callable[[str], float] | None = None
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the trainable parameters.

    Parameters are grouped by weight decay and learning-rate scale. Matrices and kernels have weight
    decay. Biases, norms and frame adaptors have none: an adaptor's neutral scale is one, not zero.
    Groups store their peak learning rate as `initial_lr` and its factor as `lr_scale`.

    Args:
        network: The network; parameters with `requires_grad` are trained.
        config: Optimizer, learning rate and weight decay.
        lr_scale: Maps the name of a parameter to the factor on its learning rate.

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
    """Return whether Muon trains a parameter: a matrix or kernel between hidden features.

    AdamW trains the first and last layers, embeddings, frame adaptors, biases and norms, because
    orthogonal updates only make sense between hidden features. AdamW also trains a text encoder,
    because it is pretrained and should change little.
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
    """Return the size in bytes of an optimizer's state for a parameter of this shape."""
    numel = shape.numel()
    if optimizer == "muon" and len(shape) >= 2:  # the momentum; ignores AdamW's few matrices
        return 4 * numel
    if optimizer == "adafactor":  # factored second moments: one value per row and per column
        kept = numel if len(shape) < 2 else numel // shape[-1] + numel // shape[-2]
        return 4 * kept
    if optimizer == "adamw_8bit" and numel >= _MIN_8BIT_NUMEL:
        return 2 * numel
    return 8 * numel


def learning_rate_factor(config: StageConfig, step: int) -> float:
    """Return the learning rate at a step (from 0) as a fraction of its peak.

    Linear warm-up, plateau, and linear decay over the last `lr_decay_ratio` of the steps. The
    plateau does not depend on `steps`, so a run can be extended.
    """
    # step + 1, so that the first update has a learning rate above 0
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(config.steps * config.lr_decay_ratio))
    # minimum of the three lines warm-up, decay and plateau; at the last update it is 1 /
    # decay_steps
    return min(warm, (config.steps - step) / decay_steps, 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to a fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
