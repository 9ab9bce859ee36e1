"""The table of stages: what each starts from, what it trains and what stays frozen."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.atomic_io import hash_folder
from magicvideo.data.dataset import ClipDataset
from magicvideo.data.shards.dataset import ShardDataset
from magicvideo.diffusion.noise import seeded_generator
from magicvideo.errors import UserError
from magicvideo.models.conditioning import ConditionedDenoiser, ImageConditioner
from magicvideo.models.inflate import inflate, is_temporal_key
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.pretrained_encoders import FrozenEncoders
from magicvideo.models.unet import VideoUNet
from magicvideo.models.video_vae import inflate_autoencoder, load_autoencoder
from magicvideo.training.components import (
    WEIGHTS,
    component_path,
    denoiser_dataset,
    frame_dataset,
    frozen_encoder_paths,
    image_vae_path,
    init_path,
    load_init_weights,
    lora_settings,
    read_config,
    stage_output,
)
from magicvideo.training.lora_denoiser import Denoiser, LoraDenoiser
from magicvideo.training.model_configs import (
    cross_attention_dim,
    frame_size,
    image_embed_dim,
    image_unet_config,
    interpolator_config,
    unet_config,
)
from magicvideo.training.recipe import Recipe, StageName, VideoStageConfig
from magicvideo.training.task import Task
from magicvideo.training.tasks.autoencoder import (
    AutoencoderTask,
    build_autoencoder,
    init_autoencoder_from_pca,
)
from magicvideo.training.tasks.clip_model import CLIPTask
from magicvideo.training.tasks.denoiser import DenoiserTask
from magicvideo.training.tasks.interpolation import InterpolationTask
from magicvideo.training.tasks.upscaler import UpscalerTask
from magicvideo.training.tasks.video_vae import VideoVaeTask


def build_task(recipe: Recipe, name: StageName) -> Task:
    """Return the task of a stage, with the products of the stages before it.

    Raises:
        UserError: If the data cannot be read or a stage before it is not done.
    """
    torch.manual_seed(seeded_generator(recipe.seed, name, "weights").initial_seed())
    if name == "upscaler":
        return _upscaler_task(recipe)
    frame_size(recipe)  # refuses data of another size than the recipe's
    if name == "autoencoder":
        return _autoencoder_task(recipe, frame_dataset(recipe, name))
    if name == "clip":
        return _clip_task(recipe, frame_dataset(recipe, name))
    if name == "video_vae":
        return _video_vae_task(recipe, frame_dataset(recipe, name))
    folders = frozen_encoder_paths(recipe)
    dataset = denoiser_dataset(recipe, name, folders)
    frozen = folders.load()
    if name == "interpolation":
        return _interpolation_task(recipe, frozen, dataset)
    plain = _denoiser(recipe, name, dataset.info.size)
    network = _with_adapters(recipe, plain) if name == "keyframes" else plain
    settings = {
        "image": recipe.image,
        "unsupervised": recipe.unsupervised,
        "keyframes": recipe.keyframes,
    }[name]
    assert settings is not None
    return DenoiserTask(network, frozen, settings, recipe.noise, dataset, recipe.seed)


def _autoencoder_task(recipe: Recipe, dataset: ClipDataset) -> AutoencoderTask:
    assert recipe.autoencoder is not None
    network = build_autoencoder(recipe.autoencoder.model)
    if not load_init_weights(network, recipe, "vae", image_part=True):
        init_autoencoder_from_pca(network, dataset, recipe.seed)
    return AutoencoderTask(network, recipe.autoencoder, dataset, recipe.seed)


def _clip_task(recipe: Recipe, dataset: ClipDataset) -> CLIPTask:
    assert recipe.clip is not None
    text, tokenizer = init_path(recipe, "text_encoder"), init_path(recipe, "tokenizer")
    image = init_path(recipe, "image_encoder")
    if text is None or tokenizer is None or image is None:
        return CLIPTask(recipe.clip, dataset, recipe.seed)
    task = CLIPTask(recipe.clip, dataset, recipe.seed, CLIPTokenizer.from_pretrained(tokenizer))
    task.start_from(
        CLIPTextModel.from_pretrained(text, dtype=torch.float32),
        CLIPVisionModelWithProjection.from_pretrained(image, dtype=torch.float32),
    )
    return task


def _upscaler_task(recipe: Recipe) -> UpscalerTask:
    assert recipe.upscaler is not None
    vae = load_autoencoder(image_vae_path(recipe))
    large = ClipDataset(recipe.upscaler.data, ("train",))
    task = UpscalerTask(recipe.upscaler, vae, large, recipe.seed)
    load_init_weights(task.network, recipe, "upscaler")
    return task


def _image_encoder(recipe: Recipe) -> CLIPVisionModelWithProjection:
    folder = component_path(recipe, "image_encoder")
    return CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)


def _video_vae_task(recipe: Recipe, dataset: ClipDataset) -> VideoVaeTask:
    """Return the task of a video autoencoder that starts as the image autoencoder.

    Where the model to start from has a video autoencoder and no stage trains that anew, its
    temporal layers go on too.
    """
    settings = recipe.video_vae
    assert settings is not None
    network = inflate_autoencoder(
        load_autoencoder(image_vae_path(recipe)),
        settings.temporal_heads,
        settings.temporal_window_size,
    )
    return VideoVaeTask(network, _image_encoder(recipe), settings, dataset, recipe.seed)


def _denoiser(recipe: Recipe, name: StageName, image_size: int) -> ConditionedDenoiser:
    """Return the denoiser at the start of a stage.

    The image stage trains the 2D network alone. The first video stage inflates it, and the next
    goes on with what that one made. New parts keep what the model to start from gave them.
    """
    conditioner = ImageConditioner(image_embed_dim(recipe), cross_attention_dim(recipe))
    load_init_weights(conditioner, recipe, "image_conditioner")
    unet = VideoUNet(**unet_config(recipe, image_size))
    _start_unet(unet, recipe)
    if name == "image":
        image_unet = VideoUNet(**image_unet_config(recipe, image_size))
        learnt = unet.state_dict()
        image_unet.load_state_dict({key: learnt[key] for key in image_unet.state_dict()})
        network = ConditionedDenoiser(image_unet, conditioner)
        freeze_temporal_parameters(network)
        return network
    if name == "keyframes" and recipe.unsupervised is not None:
        start = stage_output(recipe, "unsupervised")
        unet = VideoUNet.from_pretrained(start / "unet")
        conditioner = ImageConditioner.from_pretrained(start / "image_conditioner")
    elif recipe.image is not None:
        _inflate_from(unet, stage_output(recipe, "image") / "unet")
    settings = recipe.unsupervised if name == "unsupervised" else recipe.keyframes
    assert settings is not None
    scale_pretrained_lr(unet, settings)
    return ConditionedDenoiser(unet, conditioner)


def scale_pretrained_lr(unet: VideoUNet, settings: VideoStageConfig) -> None:
    """Let what a video network has of an image network learn at its own rate, or not at all."""
    for key, parameter in unet.named_parameters():
        if not is_temporal_key(key):
            parameter.rate = settings.pretrained_lr_scale
            parameter.requires_grad_(settings.trainable == "all")


def freeze_temporal_parameters(network: ConditionedDenoiser) -> None:
    """Leave out of training what the image stage does not use."""
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(
            not is_temporal_key(key) and not key.startswith("image_conditioner")
        )


def _start_unet(unet: VideoUNet, recipe: Recipe) -> None:
    """Let the denoiser start as that of the model to start from, be it one of images or videos."""
    start = init_path(recipe, "unet")
    stored = {} if start is None else read_config(start)
    # models that were stored before there were other convolutions do not name theirs
    is_image = start is not None and (
        stored["temporal_attention"] == "none"
        and not stored["frame_adaptor"]
        and stored.get("convolutions", "2d") == "2d"
    )
    if start and is_image:
        _inflate_from(unet, start)
    else:
        load_init_weights(unet, recipe, "unet")


def _inflate_from(unet: VideoUNet, image_unet: Path) -> None:
    weights = load_file(image_unet / WEIGHTS)
    inflate(unet, {key: value for key, value in weights.items() if not is_temporal_key(key)})


def _with_adapters(recipe: Recipe, network: ConditionedDenoiser) -> Denoiser:
    """Return the network of stage `keyframes`: as it is, or with adapters if the recipe has them.

    Raises:
        UserError: If the model to start from is none of videos.
    """
    settings, base = lora_settings(recipe), init_path(recipe, "unet")
    if settings is None:
        return network
    if base is None or read_config(base)["temporal_attention"] == "none":
        raise UserError(
            f"init_from={recipe.init_from} makes single pictures, and keyframes.lora adapts a "
            "model of videos; start from one, such as `magicvideo inflate` makes."
        )
    return LoraDenoiser(network, settings, hash_folder(base.parent))


def _interpolation_task(
    recipe: Recipe, frozen: FrozenEncoders, dataset: ClipDataset | ShardDataset
) -> InterpolationTask:
    """Return the task of an interpolator that starts as the key-frame network."""
    assert recipe.interpolation is not None
    network = Interpolator(**interpolator_config(recipe, dataset.info.size))
    network.init_from_keyframe_unet(VideoUNet.from_pretrained(component_path(recipe, "unet")))
    for parameter in network.unet.parameters():
        parameter.rate = recipe.interpolation.pretrained_lr_scale
    task = InterpolationTask(
        network, frozen, recipe.interpolation, recipe.noise, dataset, recipe.seed
    )
    load_init_weights(network, recipe, "interpolator")
    return task
