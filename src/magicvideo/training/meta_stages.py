"""What each stage passes for one sample, on the meta device, where it costs nothing to build."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModelWithProjection

from magicvideo.models.autoencoder import decode_latents, encode_frames
from magicvideo.models.conditioning import ConditionedDenoiser, ImageConditioner, embed_frames
from magicvideo.models.inflate import is_temporal_key
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.unet import VideoUNet
from magicvideo.models.video_vae import freeze_encoder, inflate_autoencoder
from magicvideo.training.components import lora_settings
from magicvideo.training.lora_denoiser import LoraDenoiser
from magicvideo.training.losses import perceptual_distance
from magicvideo.training.model_configs import (
    cross_attention_dim,
    image_embed_dim,
    image_unet_config,
    init_has,
    interpolator_config,
    large_frame_size,
    meta_vae,
    text_config,
    unet_config,
    vision_config,
)
from magicvideo.training.recipe import Recipe, StageName, VideoStageConfig
from magicvideo.training.stages import freeze_temporal_parameters, scale_pretrained_lr
from magicvideo.training.tasks.clip_model import build_clip_config
from magicvideo.training.tasks.upscaler import build_upscaler


@dataclass(frozen=True)
class MetaStage:
    """One stage, ready to be counted.

    Attributes:
        network: What is trained, and frozen in part where it is in training.
        loss: Passes one sample through it.
        reuses: Tells by name which parameters begin with weights from elsewhere.
        frozen: Networks that the sample passes before.
        prepare: Passes them.
        prepared: Share of the samples that do.
    """

    network: nn.Module
    loss: Callable[[], Tensor]
    reuses: Callable[[str], bool]
    frozen: tuple[nn.Module, ...] = ()
    prepare: Callable[[], object] = lambda: None
    prepared: float = 1.0


def build_meta_stage(recipe: Recipe, name: StageName, size: int) -> MetaStage:
    """Return the outline of a stage; it is called, and its functions are, with meta as the device.

    Args:
        recipe: The recipe.
        name: A stage that it has.
        size: Side of the frames in pixels.

    Raises:
        UserError: If sizes are not known.
    """
    if name == "autoencoder":
        return _autoencoder(recipe, size)
    if name == "clip":
        return _clip(recipe, size)
    if name == "video_vae":
        return _video_vae(recipe, size)
    if name == "interpolation":
        return _interpolation(recipe, size)
    if name == "upscaler":
        return _upscaler(recipe)
    return _denoiser(recipe, name, size)


def _autoencoder(recipe: Recipe, size: int) -> MetaStage:
    network, frames = meta_vae(recipe), torch.empty(1, 3, size, size)

    def loss() -> Tensor:
        return F.l1_loss(network.decode(network.encode(frames).latent_dist.mean).sample, frames)

    begins = init_has(recipe, "vae")
    return MetaStage(network, loss, lambda _: begins)


def _clip(recipe: Recipe, size: int) -> MetaStage:
    settings = recipe.clip
    assert settings is not None
    network = CLIPModel(build_clip_config(settings, (0, 1, 1), settings.vocabulary_size, size))
    ids, pixels = _ids(settings.max_tokens), torch.empty(1, 3, size, size)

    def loss() -> Tensor:
        return network(input_ids=ids, pixel_values=pixels).logits_per_image.sum()

    begins = init_has(recipe, "text_encoder")
    return MetaStage(network, loss, lambda name: begins and "_projection" not in name)


def _denoiser(recipe: Recipe, name: StageName, size: int) -> MetaStage:
    is_image = name == "image"
    config = image_unet_config(recipe, size) if is_image else unet_config(recipe, size)
    conditioner = ImageConditioner(image_embed_dim(recipe), cross_attention_dim(recipe))
    network = ConditionedDenoiser(VideoUNet(**config), conditioner)
    settings = recipe.unsupervised if name == "unsupervised" else recipe.keyframes
    if is_image:
        freeze_temporal_parameters(network)
    elif settings is not None:
        scale_pretrained_lr(network.unet, settings)
    shown = isinstance(settings, VideoStageConfig) and settings.image_condition > 0 and not is_image
    frames = torch.empty(1, 1 if is_image else config["num_frames"], 3, size, size)
    vae, text, image = meta_vae(recipe), _text(recipe, size), _image(recipe, size)
    side, one = config["sample_size"], torch.zeros(1)
    latents = torch.empty(1, frames.shape[1], config["in_channels"], side, side)
    ids = _ids(text.config.max_position_embeddings)
    tokens = torch.empty(*ids.shape, config["cross_attention_dim"])
    embedding = torch.empty(1, image_embed_dim(recipe))

    def prepare() -> None:
        encode_frames(vae, frames)
        text(ids)
        if shown:
            embed_frames(image, frames[:, :1])

    def loss() -> Tensor:
        told = torch.zeros(1, dtype=torch.bool)
        return F.mse_loss(network(latents, one, tokens, embedding, told, one), latents)

    if name == "keyframes" and (lora := lora_settings(recipe)):
        adapted = LoraDenoiser(network, lora, base_hash="")
        return MetaStage(adapted, loss, lambda _: False, (vae, text, image, network), prepare)
    begins = init_has(recipe, "unet") or (recipe.image is not None and not is_image)

    def reuses(parameter: str) -> bool:
        return (
            begins
            and not is_temporal_key(parameter)
            and not parameter.startswith("image_conditioner")
        )

    return MetaStage(network, loss, reuses, (vae, text, image), prepare)


def _interpolation(recipe: Recipe, size: int) -> MetaStage:
    config = interpolator_config(recipe, size)
    network, one = Interpolator(**config), torch.zeros(1)
    vae, text = meta_vae(recipe), _text(recipe, size)
    side, channels, inserted = (
        config[key] for key in ("sample_size", "latent_channels", "num_inserted")
    )
    residuals = torch.empty(1, inserted, channels, side, side)
    keys, frames = (
        torch.empty(1, 2, channels, side, side),
        torch.empty(1, inserted + 2, 3, size, size),
    )
    ids = _ids(text.config.max_position_embeddings)
    tokens = torch.empty(*ids.shape, config["cross_attention_dim"])

    def prepare() -> None:
        encode_frames(vae, frames)
        text(ids)

    def loss() -> Tensor:
        output = network(residuals, keys, keys, one, lambda clean: clean, one, tokens, one)
        return F.mse_loss(output.diffusion_prediction, residuals) + F.mse_loss(
            output.residual_estimate, residuals
        )

    # it begins as the key-frame network, the embedding of the noise level and the estimate aside
    image = _image(recipe, size)
    return MetaStage(
        network,
        loss,
        lambda name: name.startswith("unet.") and "level_embedding" not in name,
        (vae, text, image),
        prepare,
    )


def _video_vae(recipe: Recipe, size: int) -> MetaStage:
    settings = recipe.video_vae
    assert settings is not None
    image_encoder = _image(recipe, size).requires_grad_(requires_grad=False)
    network = inflate_autoencoder(
        meta_vae(recipe), settings.temporal_heads, settings.temporal_window_size
    )
    freeze_encoder(network)
    frames = torch.empty(settings.num_frames, 3, size, size)

    def loss() -> Tensor:
        code = network.encode(frames).latent_dist.mean
        made = network.decode(code, settings.num_frames).sample
        distance = perceptual_distance(image_encoder, made, frames)
        return F.l1_loss(made, frames) + distance + F.l1_loss(made.diff(dim=0), frames.diff(dim=0))

    return MetaStage(network, loss, lambda name: not is_temporal_key(name), (image_encoder,))


def _upscaler(recipe: Recipe) -> MetaStage:
    settings = recipe.upscaler
    assert settings is not None
    network = build_upscaler(settings.model, settings.max_noise_level)
    vae, one, factor = meta_vae(recipe), torch.zeros(1), network.config.factor
    large, small = settings.crop, settings.crop // factor
    noisy, told = torch.empty(1, 3, large, large), torch.empty(1, 3, small, small)
    whole = large_frame_size(recipe, factor) // factor

    def prepare() -> None:
        decode_latents(vae, encode_frames(vae, torch.empty(1, 1, 3, whole, whole)))

    def loss() -> Tensor:
        return F.mse_loss(network(noisy, told, one, one), noisy)

    begins = init_has(recipe, "upscaler")
    return MetaStage(network, loss, lambda _: begins, (vae,), prepare, settings.vae_roundtrip_prob)


def _ids(length: int) -> Tensor:
    return torch.zeros(1, length, dtype=torch.long)


def _text(recipe: Recipe, size: int) -> CLIPTextModel:
    return CLIPTextModel(text_config(recipe, size))


def _image(recipe: Recipe, size: int) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(vision_config(recipe, size))
