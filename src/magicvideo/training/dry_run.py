"""Cost of a recipe, for `--dry-run`: the losses of every stage on the meta device.

Each stage is built as for training, but on the meta device. `Task.losses` and the backward pass run
on a batch there: shapes and operations are those of training, without memory or computation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.initialization import no_init_weights

from magicvideo.data.dataset import Batch
from magicvideo.data.manifest import FrameSize
from magicvideo.data.shards.dataset import EncodedBatch
from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.errors import UserError
from magicvideo.models.flops import (
    TrainingCost,
    count_parameters,
    profile_training_step,
)
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.unet import latent_size
from magicvideo.training.loader import AnyBatch, BatchSource
from magicvideo.training.optim import TEXT_ENCODER, optimizer_state_bytes
from magicvideo.training.recipe import HardwareConfig, Precision, Recipe, StageConfig, StageName
from magicvideo.training.resolve import (
    AutoencoderPlan,
    CLIPPlan,
    DenoiserPlan,
    DistillPlan,
    InterpolationPlan,
    StagePlan,
    UpscalerPlan,
    VideoVaePlan,
    frame_size,
    latent_shape,
    plan_stage,
)
from magicvideo.training.run import bf16_slowdown, seconds_per_update
from magicvideo.training.stages import (
    assemble_task,
    clip_sampling,
    frame_batch_size,
    open_batches,
)

_FLOAT, _HALF = 4, 2  # bytes

ASSUMPTIONS = (
    "Operations are those of one update's losses and their backward pass on the meta device, "
    "divided by the samples of a batch; a multiplication with its addition counts as two. Random "
    "numbers are drawn as in training, so a share of the samples, such as that which passes the "
    "autoencoder, is that of one batch.",
    "Weights, gradients, moments and averages take 4 bytes a number. Weights are those of the "
    "trained and of the frozen networks, and with mixed precision the halved copies that autocast "
    "keeps. Gradients are there twice where several GPUs exchange them. Nothing is sharded.",
    "Activations are the tensors that the forward pass keeps for the backward pass, for a whole "
    "batch: 2 bytes a number with mixed precision, though norms keep some of 4, and fused "
    "attention. Gradient checkpointing makes them less, and is not counted. What operators need "
    "for a moment, and what memory loses to fragments, is not in it.",
)
"""Assumptions of the estimate."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU while a stage trains.

    Attributes:
        weights: Trained and frozen weights.
        gradients: Gradients of trained weights.
        optimizer: Optimizer state, such as AdamW's two moments.
        ema: EMA weights, unless they are on the CPU.
        activations: Activations saved for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """Return the total."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class StageEstimate:
    """Size and cost of one stage.

    Attributes:
        name: The stage.
        clips: Number of training clips; None without data.
        parameters: Number of parameters of its network.
        pretrained: Number of parameters with pretrained weights.
        trained: Number of trained parameters.
        updates: Number of updates.
        samples: Number of samples read by one process.
        gflops: GFLOPs of one sample's forward pass through the network.
        training_gflops: GFLOPs of training per sample.
        memory: Memory on one GPU.
    """

    name: StageName
    clips: int | None
    parameters: int
    pretrained: int
    trained: int
    updates: int
    samples: int
    gflops: float
    training_gflops: float
    memory: MemoryEstimate

    @property
    def new(self) -> int:
        """Return the number of parameters without pretrained weights."""
        return self.parameters - self.pretrained

    @property
    def passes(self) -> float | None:
        """Return the number of epochs of one process; None without data."""
        return None if self.clips is None else self.samples / self.clips

    def hours(self, hardware: HardwareConfig) -> float:
        """Return the training time. More processes read more samples in the same time."""
        speed = hardware.tflops * hardware.utilisation * 1e3
        return self.samples * self.training_gflops / speed / 3600


@dataclass(frozen=True)
class MetaBatches(BatchSource):
    """Batches on the meta device: shapes without data.

    Attributes:
        size: Height and width of the frames in pixels.
        batch_size: Samples of a batch.
        num_frames: Frames of a sample.
        encoded: Shapes of a sample's latents, embeddings and tokens, if clips are encoded.
    """

    size: FrameSize
    batch_size: int
    num_frames: int
    frame_batch_size: int = 0
    encoded: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None

    def get_other_batch(
        self,
        offset: int,  # noqa: ARG002 - all batches are alike
        position: int,  # noqa: ARG002
        batch_size: int,
        num_frames: int | None = None,
    ) -> AnyBatch:
        """Return a batch; all are equal."""
        if num_frames is None:
            num_frames = self.num_frames
        captions, clip_ids = [""] * batch_size, [""] * batch_size
        with torch.device("meta"):
            fps = torch.empty(batch_size)
            if self.encoded is None:
                frames = torch.empty(batch_size, num_frames, 3, *self.size)
                return Batch(frames, fps, captions, clip_ids)
            latents, embeddings, tokens = (torch.empty(batch_size, *s) for s in self.encoded)
            latents, embeddings = latents[:, :num_frames], embeddings[:, :num_frames]
            return EncodedBatch(latents, embeddings, tokens, fps, captions, clip_ids)

    def preview_captions(self, count: int) -> tuple[list[str], float]:
        """Return empty captions."""
        return [""] * count, 1.0


def estimate_run(recipe: Recipe) -> list[StageEstimate]:
    """Estimate size and cost of every stage.

    Data is not needed if the recipe has `size`, and weights are not needed if `init_from` has the
    configurations of its components or `init_preset` is set.

    Raises:
        UserError: If a size is unknown, or settings are inconsistent.
    """
    return [estimate_stage(plan_stage(recipe, name), recipe.hardware) for name in recipe.stages()]


def estimate_stage(plan: StagePlan, hardware: HardwareConfig | None = None) -> StageEstimate:
    """Estimate size and cost of a stage.

    Raises:
        UserError: If settings are inconsistent.
    """
    config, batches = plan.config, _meta_batches(plan)
    with torch.device("meta"), no_init_weights():
        task = assemble_task(plan, batches, pretrained=False)
    network = task.network
    networks = nn.ModuleList([network, *(v for v in _frozen_networks(task))])

    def losses() -> torch.Tensor:
        generator = per_sample_generators(0, config.batch_size, plan.seed, plan.name, "sample")
        return task.losses(network, batches.get_batch(0), generator)["loss"]

    passed = profile_training_step(networks, losses)
    forward = passed.by_module.get(type(network).__name__, 0)
    is_pretrained = _pretrained_names(plan)
    parameters = list(network.named_parameters())
    return StageEstimate(
        name=plan.name,
        clips=_count_clips(plan),
        parameters=count_parameters(network),
        pretrained=sum(p.numel() for key, p in parameters if is_pretrained(key)),
        trained=sum(p.numel() for _, p in parameters if p.requires_grad),
        updates=config.steps,
        samples=config.steps * config.gradient_accumulation_steps * config.batch_size,
        gflops=forward / config.batch_size / 1e9,
        training_gflops=(passed.forward + passed.backward) / config.batch_size / 1e9,
        memory=_memory(
            network,
            count_parameters(networks),
            passed,
            config,
            1 if hardware is None else hardware.gpus,
        ),
    )


def time_update(plan: StagePlan) -> float | None:
    """Measure the seconds per update on this machine; None without data.

    Weights are random, so no stage needs to be trained.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        batches = open_batches(plan, check_encoders=False)
        task = assemble_task(plan, batches, pretrained=False)
    except UserError:
        return None
    setting = plan.config.mixed_precision
    precision: Precision = "no"
    if setting != "auto":
        precision = setting
    elif device.type == "cuda" or bf16_slowdown() < 1:
        precision = "bf16"
    return seconds_per_update(plan, task, device, precision)


def clip_bytes(recipe: Recipe) -> tuple[int, int]:
    """Return the size in bytes of one clip's key frames: as float16 latents, and as pixels."""
    height, width = frame_size(recipe)
    channels, factor = latent_shape(recipe)
    frames = recipe.unet.num_frames
    positions = (height // factor) * (width // factor)
    return frames * channels * positions * _HALF, frames * 3 * height * width


def _meta_batches(plan: StagePlan) -> MetaBatches:
    num_frames, _ = clip_sampling(plan)
    encoded = None
    if isinstance(plan, DenoiserPlan | DistillPlan | InterpolationPlan) and plan.data.is_sharded:
        vision = plan.encoders.vision_config
        width = 1 if vision is None else vision.projection_dim
        if isinstance(plan, InterpolationPlan):
            config = plan.interpolator_config
            channels = config["latent_channels"]
        else:
            config = plan.unet_config
            channels = config["in_channels"]
        if isinstance(plan, DenoiserPlan):
            width = plan.image_embed_dim
        length = plan.encoders.text_config.max_position_embeddings
        encoded = (
            (num_frames, channels, *latent_size(config["sample_size"])),
            (num_frames, width),
            (length, config["cross_attention_dim"]),
        )
    return MetaBatches(
        plan.data.size, plan.config.batch_size, num_frames, frame_batch_size(plan), encoded
    )


def _frozen_networks(task: object) -> list[nn.Module]:
    """Return the frozen networks of a task."""
    network = getattr(task, "network", None)
    trained = set(network.modules()) if isinstance(network, nn.Module) else set()
    found: list[nn.Module] = []
    for value in vars(task).values():
        if isinstance(value, nn.Module):
            found.append(value)
        elif hasattr(value, "networks"):
            found += value.networks()
    return [network for network in found if network not in trained]


def _count_clips(plan: StagePlan) -> int | None:
    try:
        return len(open_batches(plan, check_encoders=False).dataset)
    except UserError:
        return None


def _pretrained_names(plan: StagePlan) -> Callable[[str], bool]:
    """Return a predicate of parameter names: whether a parameter has pretrained weights."""
    if isinstance(plan, AutoencoderPlan | UpscalerPlan):
        return lambda _: plan.init is not None
    if isinstance(plan, CLIPPlan):
        begins = plan.init_text_encoder is not None
        return lambda name: begins and "text_projection" not in name and "logit_scale" not in name
    if isinstance(plan, VideoVaePlan):
        return lambda name: not is_temporal_key(name)
    if isinstance(plan, DistillPlan):
        return lambda name: "interval_embedding" not in name
    if isinstance(plan, InterpolationPlan):
        # the embedding of the noise level and the regression network are not pretrained
        return lambda name: name.startswith("unet.") and "level_embedding" not in name
    assert isinstance(plan, DenoiserPlan)
    if plan.lora is not None:
        return lambda name: "lora_" not in name
    begins = plan.init_unet is not None or plan.previous_unet is not None
    return lambda name: (
        name.startswith(TEXT_ENCODER)
        or (begins and name.startswith("unet.") and not is_temporal_key(name))
    )


def _memory(
    network: nn.Module, everything: int, passed: TrainingCost, config: StageConfig, gpus: int
) -> MemoryEstimate:
    trained = [p for p in network.parameters() if p.requires_grad]
    numel = sum(p.numel() for p in trained)
    is_mixed = config.mixed_precision not in ("no", "auto")
    number = _HALF if is_mixed else _FLOAT
    return MemoryEstimate(
        weights=_FLOAT * everything + (_HALF * numel if is_mixed else 0),
        gradients=_FLOAT * numel * min(gpus, 2),
        optimizer=sum(optimizer_state_bytes(p.shape, config.optimizer) for p in trained),
        ema=0
        if config.ema_device == "cpu"
        else _FLOAT * numel * (1 + len(config.extra_ema_decays)),
        activations=number * passed.saved_activation_numel + passed.saved_other_bytes,
    )
