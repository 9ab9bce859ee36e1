"""Builds the task of each stage from its settings: networks, initial weights, batches."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from magicvideo.atomic_io import hash_folder
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import Split
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.errors import UserError
from magicvideo.models.autoencoder import Autoencoder
from magicvideo.models.conditioning import ConditionedDenoiser, ImageConditioner
from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.models.unet import VideoUNet
from magicvideo.models.video_vae import (
    autoencoder_from_config,
    inflate_autoencoder,
    load_autoencoder,
)
from magicvideo.training.components import WEIGHTS, ComponentSource, load_init_weights, read_config
from magicvideo.training.loader import (
    TRAINING,
    BatchSource,
    DatasetBatches,
    open_clips,
    open_frames,
)
from magicvideo.training.recipe import KeyframesStageConfig, VideoStageConfig
from magicvideo.training.resolve import (
    AutoencoderPlan,
    CLIPPlan,
    DenoiserPlan,
    DistillPlan,
    EncoderSources,
    InterpolationPlan,
    StagePlan,
    UpscalerPlan,
    VideoVaePlan,
)
from magicvideo.training.tasks.autoencoder import (
    AutoencoderTask,
    VideoVaeTask,
    build_autoencoder,
    init_autoencoder_from_pca,
)
from magicvideo.training.tasks.clip_model import (
    CLIPTask,
    caption_words,
    iter_captions,
    read_words,
    train_tokenizer,
    vocabulary,
)
from magicvideo.training.tasks.denoiser import Denoiser, DenoiserTask, LoraDenoiser
from magicvideo.training.tasks.distill import DistillTask
from magicvideo.training.tasks.interpolation import InterpolationTask
from magicvideo.training.tasks.upscaler import UpscalerTask, build_upscaler
from magicvideo.training.trainer import Task


def open_batches(
    plan: StagePlan, *, check_encoders: bool = True, splits: tuple[Split, ...] = TRAINING
) -> DatasetBatches:
    """Open the batches of a stage.

    Args:
        plan: The stage's settings.
        check_encoders: Whether shards must have been encoded with the recipe's encoders. A text
            encoder that is trained is excluded, because it encodes the captions itself.
        splits: Splits of the clips.

    Raises:
        UserError: If the data cannot be read or do not fit the stage.
    """
    config = plan.config
    if isinstance(plan, DenoiserPlan | DistillPlan | InterpolationPlan):
        checks = plan.data.is_sharded and check_encoders
        encoders = plan.encoders.paths() if checks else None
        hashes = {} if encoders is None else encoders.hashes()
        if isinstance(plan, DenoiserPlan) and plan.trains_text_encoder:
            hashes = {name: digest for name, digest in hashes.items() if name != "text_encoder"}
        dataset = open_clips(plan.data, plan.name, hashes, splits)
    else:
        dataset = open_frames(plan.data, plan.name, splits)
    num_frames, strides = clip_sampling(plan)
    return DatasetBatches(
        dataset,
        plan.seed,
        config.batch_size,
        num_frames,
        strides,
        config.subject_balance,
        frame_batch_size(plan),
    )


def frame_batch_size(plan: StagePlan) -> int:
    """Return the number of single frames per batch of clips."""
    return plan.config.frame_batch_size if isinstance(plan.config, KeyframesStageConfig) else 0


def clip_sampling(plan: StagePlan) -> tuple[int, tuple[int, int]]:
    """Return the number of frames of a sample, and the minimal and maximal stride."""
    if isinstance(plan, DenoiserPlan) and isinstance(plan.config, VideoStageConfig):
        return plan.unet_config["num_frames"], plan.config.strides
    if isinstance(plan, DenoiserPlan):
        return 1, (1, 1)
    if isinstance(plan, DistillPlan):
        return plan.unet_config["num_frames"], plan.config.strides
    if isinstance(plan, InterpolationPlan):
        return plan.config.num_inserted + 2, plan.config.strides
    if isinstance(plan, VideoVaePlan):
        return plan.config.num_frames, plan.config.strides
    return 1, (1, 4)


def build_task(plan: StagePlan) -> Task:
    """Build the task of a stage from the outputs of earlier stages.

    Raises:
        UserError: If the data cannot be read, or an earlier stage is not finished.
    """
    return assemble_task(plan, open_batches(plan), pretrained=True)


def assemble_task(plan: StagePlan, batches: BatchSource, *, pretrained: bool) -> Task:
    """Build the task of a stage with given batches.

    Args:
        plan: The stage's settings.
        batches: Training batches.
        pretrained: Whether to load weights and to calibrate scales on the data. If False, networks
            have random weights, which suffices to time or count an update.

    Raises:
        UserError: If an earlier stage is not finished, or weights do not fit.
    """
    torch.manual_seed(seeded_generator(plan.seed, plan.name, "weights").initial_seed())
    if isinstance(plan, UpscalerPlan):
        return _upscaler_task(plan, batches, pretrained)
    if isinstance(plan, AutoencoderPlan):
        return _autoencoder_task(plan, batches, pretrained)
    if isinstance(plan, CLIPPlan):
        return _clip_task(plan, batches, pretrained)
    if isinstance(plan, VideoVaePlan):
        return _video_vae_task(plan, batches, pretrained)
    if isinstance(plan, InterpolationPlan):
        return _interpolation_task(plan, batches, pretrained)
    if isinstance(plan, DistillPlan):
        return _distill_task(plan, batches, pretrained)
    assert isinstance(plan, DenoiserPlan)
    encoders = _load_encoders(plan.encoders, pretrained)
    denoiser = _build_denoiser(plan, pretrained)
    network: Denoiser = denoiser
    if plan.lora is not None:
        network = _add_lora(plan, denoiser, pretrained)
    words = None
    if plan.trains_text_encoder:
        denoiser.text_encoder = copy.deepcopy(encoders.text_encoder)
        words = sorted(_words(plan, batches)) if pretrained else None
    task = DenoiserTask(network, encoders, plan.config, plan.noise, batches, words)
    if pretrained and denoiser.unet.config.motion_std == 1.0:  # not measured yet
        task.calibrate()
    return task


def _words(plan: DenoiserPlan, batches: BatchSource) -> set[str]:
    """Return the words known to the text encoder after training on the captions."""
    words = read_words(plan.encoders.text_encoder.folder.parent)
    if isinstance(batches, DatasetBatches) and isinstance(batches.dataset, ClipDataset):
        words |= caption_words(batches.dataset)
    return words


def _autoencoder_task(
    plan: AutoencoderPlan, batches: BatchSource, pretrained: bool
) -> AutoencoderTask:
    network = build_autoencoder(plan.config.model)
    if pretrained and plan.init is not None:
        load_init_weights(network, plan.init, image_part=True)
    elif pretrained:
        init_autoencoder_from_pca(network, batches)
    return AutoencoderTask(network, plan.config, batches)


def _clip_task(plan: CLIPPlan, batches: BatchSource, pretrained: bool) -> CLIPTask:
    config = plan.config
    captions = (
        list(iter_captions(batches.dataset, plan.seed))
        if isinstance(batches, DatasetBatches) and isinstance(batches.dataset, ClipDataset)
        else []
    )
    if pretrained and plan.init_tokenizer is not None:
        tokenizer = CLIPTokenizer.from_pretrained(plan.init_tokenizer)
    else:
        tokenizer = train_tokenizer(captions, config.vocabulary_size, config.max_tokens)
    words = set(vocabulary(captions))
    if pretrained and plan.init_text_encoder is not None:  # keep the words of earlier training
        words |= read_words(plan.init_text_encoder.parent)
    # a tokenizer without captions has only bytes; the trained one has the recipe's vocabulary size
    rows = None if pretrained else config.vocabulary_size
    task = CLIPTask(tokenizer, sorted(words), config, batches, rows)
    if pretrained and plan.init_text_encoder and plan.init_image_encoder:
        task.init_from(
            CLIPTextModel.from_pretrained(plan.init_text_encoder, dtype=torch.float32),
            CLIPVisionModelWithProjection.from_pretrained(
                plan.init_image_encoder, dtype=torch.float32
            ),
        )
    return task


def _upscaler_task(plan: UpscalerPlan, batches: BatchSource, pretrained: bool) -> UpscalerTask:
    vae = _load_vae(plan.vae, pretrained)
    network = build_upscaler(plan.config.model, plan.config.max_noise_level)
    task = UpscalerTask(network, vae, plan.config, batches, plan.seed)
    if pretrained and plan.init is not None:
        load_init_weights(network, plan.init)
    elif pretrained:
        task.calibrate()
    return task


def _video_vae_task(plan: VideoVaePlan, batches: BatchSource, pretrained: bool) -> VideoVaeTask:
    """Build the task of a video autoencoder, initialized from the image autoencoder.

    If `init_from` has a video autoencoder, its temporal layers are used.
    """
    config = plan.config
    network = inflate_autoencoder(
        _load_vae(plan.vae, pretrained), config.temporal_heads, config.temporal_window_size
    )
    if pretrained:
        image_encoder = CLIPVisionModelWithProjection.from_pretrained(
            plan.image_encoder.path(), dtype=torch.float32
        )
    else:
        image_encoder = CLIPVisionModelWithProjection(plan.vision_config)
    return VideoVaeTask(network, image_encoder, config, batches)


def _interpolation_task(
    plan: InterpolationPlan, batches: BatchSource, pretrained: bool
) -> InterpolationTask:
    """Build the task of an interpolator, initialized from the key-frame network."""
    encoders = _load_encoders(plan.encoders, pretrained)
    network = Interpolator(**plan.interpolator_config)
    if pretrained:
        network.init_from_keyframe_unet(VideoUNet.from_pretrained(plan.unet.path()))
    task = InterpolationTask(network, encoders, plan.config, plan.noise, batches)
    if pretrained and plan.init is not None:
        load_init_weights(network, plan.init)
    elif pretrained:
        task.calibrate()
    return task


def _distill_task(plan: DistillPlan, batches: BatchSource, pretrained: bool) -> DistillTask:
    """Build the task of a student, initialized from its teacher."""
    encoders = _load_encoders(plan.encoders, pretrained)
    if pretrained:
        teacher = VideoUNet.from_pretrained(plan.teacher.path())
    else:
        teacher = VideoUNet(**{**plan.unet_config, "flow_map": False})
    settings = {k: v for k, v in teacher.config.items() if not k.startswith("_")}
    student = VideoUNet(**{**settings, "flow_map": True})
    found = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all(name.startswith("interval_embedding") for name in found.missing_keys)
    return DistillTask(
        student,
        teacher,
        encoders,
        plan.config,
        plan.noise,
        batches,
        plan.guidance_scale,
        plan.guidance_stop,
    )


def _build_denoiser(plan: DenoiserPlan, pretrained: bool) -> ConditionedDenoiser:
    """Build the denoiser with the initial weights of a stage.

    The image stage trains the 2D network. The first video stage inflates it, and the next stage
    continues from that output. Temporal layers and adaptors keep the weights of `init_from`.
    """
    conditioner = ImageConditioner(plan.image_embed_dim, plan.unet_config["cross_attention_dim"])
    if pretrained and plan.init_image_conditioner is not None:
        load_init_weights(conditioner, plan.init_image_conditioner)
    unet = VideoUNet(**plan.unet_config)
    if pretrained:
        _init_unet(unet, plan)
    if plan.image_unet_config is not None:
        image_unet = VideoUNet(**plan.image_unet_config)
        if pretrained:
            weights = unet.state_dict()
            image_unet.load_state_dict({key: weights[key] for key in image_unet.state_dict()})
        network = ConditionedDenoiser(image_unet, conditioner)
        freeze_temporal_parameters(network)
        return network
    if pretrained and plan.previous_image_conditioner is not None:
        conditioner = ImageConditioner.from_pretrained(plan.previous_image_conditioner.path())
    if pretrained and plan.previous_unet is not None:
        folder = plan.previous_unet.path()
        if plan.previous_unet.stage == "image":
            _inflate_from(unet, folder)
        else:
            unet = VideoUNet.from_pretrained(folder)
    assert isinstance(plan.config, VideoStageConfig)
    if plan.config.trainable == "temporal":
        freeze_pretrained_parameters(unet)
    return ConditionedDenoiser(unet, conditioner)


def freeze_pretrained_parameters(unet: VideoUNet) -> None:
    """Freeze the parameters that a video network shares with an image network."""
    for key, parameter in unet.named_parameters():
        if not is_temporal_key(key):
            parameter.requires_grad_(requires_grad=False)


def freeze_temporal_parameters(network: ConditionedDenoiser) -> None:
    """Freeze the parameters that the image stage does not use."""
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(
            not is_temporal_key(key) and not key.startswith("image_conditioner")
        )


def _init_unet(unet: VideoUNet, plan: DenoiserPlan) -> None:
    """Load the image or video U-Net of `init_from`."""
    if plan.init_unet is None:
        return
    if is_image_unet(read_config(plan.init_unet)):
        _inflate_from(unet, plan.init_unet)
    else:
        load_init_weights(unet, plan.init_unet)


def is_image_unet(config: dict[str, object]) -> bool:
    """Return whether a configuration is that of an image U-Net."""
    return (
        config["temporal_attention"] == "none"
        and not config["frame_adaptor"]
        and config.get("convolutions", "2d") == "2d"
    )


def _inflate_from(unet: VideoUNet, image_unet: Path) -> None:
    weights = load_file(image_unet / WEIGHTS)
    inflate(unet, {key: value for key, value in weights.items() if not is_temporal_key(key)})


def _add_lora(plan: DenoiserPlan, network: ConditionedDenoiser, pretrained: bool) -> LoraDenoiser:
    """Freeze the denoiser and add trainable LoRA layers.

    Raises:
        UserError: If `init_from` is an image model.
    """
    assert plan.lora is not None
    config = plan.init_unet_config
    if plan.init_unet is None or config is None or config.get("temporal_attention") == "none":
        model = None if plan.init_unet is None else plan.init_unet.parent
        raise UserError(
            f"init_from={model} is an image model, and keyframes.lora needs a video model, such "
            "as `magicvideo inflate` makes."
        )
    base_hash = hash_folder(plan.init_unet.parent) if pretrained else ""
    return LoraDenoiser(network, plan.lora, base_hash)


def _load_vae(source: ComponentSource, pretrained: bool) -> Autoencoder:
    return load_autoencoder(source.path()) if pretrained else autoencoder_from_config(source.config)


def _load_encoders(sources: EncoderSources, pretrained: bool) -> FrozenEncoders:
    if pretrained:
        return sources.paths().load()
    text, vision = sources.text_config, sources.vision_config
    return FrozenEncoders(
        vae=autoencoder_from_config(sources.vae.config),
        text_encoder=CLIPTextModel(text),
        tokenizer=train_tokenizer([], 0, text.max_position_embeddings),
        image_encoder=None if vision is None else CLIPVisionModelWithProjection(vision),
    )
