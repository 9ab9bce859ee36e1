"""What a recipe would do, for `--dry-run`: sizes and cost of every stage, without training it."""

from dataclasses import dataclass

import torch
from torch import nn

from magicvideo.data.shards.index import is_shard_location
from magicvideo.models.flops import (
    TrainingCost,
    count_flops,
    count_parameters,
    profile_training_step,
)
from magicvideo.training.components import SHARD_STAGES
from magicvideo.training.meta_stages import MetaStage, build_meta_stage
from magicvideo.training.model_configs import frame_size, latent_shape
from magicvideo.training.optim import state_bytes
from magicvideo.training.recipe import HardwareConfig, Recipe, StageConfig

_NUMBER, _HALF = 4, 2  # bytes

ASSUMPTIONS = (
    "Operations are counted on the meta device, attention included, two for a multiplication "
    "with its addition; training is the forward and the backward pass and what frozen networks do "
    "for the sample.",
    "Weights, gradients, moments and averages take 4 bytes a number. Weights are those of the "
    "trained and of the frozen networks, and with mixed precision the halved copies that autocast "
    "keeps. Gradients are there twice where several GPUs exchange them. Nothing is sharded.",
    "Activations are the tensors that the forward pass keeps for the backward pass, for a whole "
    "batch: 2 bytes a number with mixed precision, though norms keep some of 4, and fused "
    "attention. Gradient checkpointing makes them less, and is not counted. What operators need "
    "for a moment, and what memory loses to fragments, is not in it.",
)
"""What the numbers of a plan rest on, for those who read them."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU while a stage trains.

    Attributes:
        weights: Of the trained and the frozen networks.
        gradients: Of what is trained.
        optimiser: What it keeps: of AdamW, the two moments.
        averages: The averaged weights, if they are not on the CPU.
        activations: What the forward pass of a batch keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimiser: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.gradients + self.optimiser + self.averages + self.activations


@dataclass(frozen=True)
class StageEstimate:
    """One stage's size and cost.

    Attributes:
        name: The stage.
        parameters: Of its network.
        reused: How many of them begin with weights from elsewhere.
        trained: How many of them are trained.
        updates: Of the weights, in all.
        samples: That one process reads, in all.
        gflops: Billions of operations of one sample's forward pass through the network.
        training_gflops: The same of all that training does for a sample.
        memory: On one GPU.
    """

    name: str
    parameters: int
    reused: int
    trained: int
    updates: int
    samples: int
    gflops: float
    training_gflops: float
    memory: MemoryEstimate

    @property
    def new(self) -> int:
        """Return how many parameters begin anew."""
        return self.parameters - self.reused

    def hours(self, machine: HardwareConfig) -> float:
        """Return how long it takes. More processes see more samples in the same time."""
        speed = machine.tflops * machine.utilisation * 1e3
        return self.samples * self.training_gflops / speed / 3600


def estimate_run(recipe: Recipe) -> list[StageEstimate]:
    """Return the size of every stage, counted on the meta device: no memory, no arithmetic.

    Neither data nor weights are needed where the recipe has `size`, and `init_from` is a folder
    with the settings of its components or `init_preset` names them.

    Raises:
        UserError: If a size is not known.
    """
    size = frame_size(recipe)
    gpus = 1 if recipe.hardware is None else recipe.hardware.gpus
    plans = []
    for name, settings in recipe.stages().items():
        with torch.device("meta"):
            sketch = build_meta_stage(recipe, name, size)
            with torch.no_grad():
                before = count_flops(nn.ModuleList(sketch.frozen), sketch.prepare).total
            everything = nn.ModuleList([sketch.network, *sketch.frozen])
            passed = profile_training_step(everything, sketch.loss)
        parameters = list(sketch.network.named_parameters())
        if is_shard_location(recipe.data) and name in SHARD_STAGES:
            before = 0  # it was done once, when the clips were encoded
        operations = passed.forward + passed.backward + sketch.prepared * before
        plans.append(
            StageEstimate(
                name=name,
                parameters=count_parameters(sketch.network),
                reused=sum(p.numel() for key, p in parameters if sketch.reuses(key)),
                trained=sum(p.numel() for _, p in parameters if p.requires_grad),
                updates=settings.steps,
                samples=settings.steps * settings.gradient_accumulation_steps * settings.batch_size,
                gflops=passed.forward / 1e9,
                training_gflops=operations / 1e9,
                memory=_memory(sketch, count_parameters(everything), passed, settings, gpus),
            )
        )
    return plans


def clip_bytes(recipe: Recipe) -> tuple[int, int]:
    """Return the bytes of one clip's key frames: as half-precision latents, and as pixels."""
    size = frame_size(recipe)
    channels, factor = latent_shape(recipe)
    frames = recipe.unet.num_frames
    return frames * channels * (size // factor) ** 2 * _HALF, frames * 3 * size**2


def _memory(
    sketch: MetaStage, everything: int, passed: TrainingCost, settings: StageConfig, gpus: int
) -> MemoryEstimate:
    own = list(sketch.network.parameters())
    trained = sum(p.numel() for p in own if p.requires_grad)
    is_mixed = settings.mixed_precision != "no"
    number = _HALF if is_mixed else _NUMBER
    kept = number * passed.saved_activation_numel + passed.saved_other_bytes
    return MemoryEstimate(
        weights=_NUMBER * everything + (_HALF * trained if is_mixed else 0),
        gradients=_NUMBER * trained * min(gpus, 2),
        optimiser=sum(state_bytes(p.shape, settings.optimizer) for p in own if p.requires_grad),
        averages=0 if settings.ema_device == "cpu" else _NUMBER * sum(p.numel() for p in own),
        activations=settings.batch_size * kept,
    )
