"""The pipeline: generates videos from a prompt or an image with the components of a model."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging as diffusers_logging
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from magicvideo.atomic_io import atomic_folder, hash_folder
from magicvideo.diffusion.flow_map import FlowMapScheduler
from magicvideo.diffusion.noise import initial_latent_noise, seeded_generator, window_parts
from magicvideo.diffusion.sampling import (
    FLOW_MAP,
    GuidedDenoiser,
    Scheduler,
    denoising_loop,
    describe_scheduler,
    make_scheduler,
)
from magicvideo.errors import UserError
from magicvideo.media.video_io import open_video_stream
from magicvideo.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_frames,
    iter_decode,
    vae_scale_factor,
)
from magicvideo.models.components import COMPONENTS, OPTIONAL, WEIGHTS, write_model_index
from magicvideo.models.conditioning import (
    ImageConditioner,
    encode_text,
    image_to_condition_tokens,
)
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.preview import LatentPreview
from magicvideo.models.unet import FlowMapUNet, VideoUNet, latent_size
from magicvideo.models.upscaler import Upscaler
from magicvideo.pipelines.capabilities import ModelCapabilities
from magicvideo.pipelines.component_loading import (
    LazyComponentLoader,
    load_scheduler,
    load_tokenizer,
    own_precision,
    resolve_dtypes,
)
from magicvideo.pipelines.extend import (
    ContinuedVideo,
    plan_extension,
    read_last_key_frames,
    read_recorded_prompt,
    read_recorded_seed,
)
from magicvideo.pipelines.hints import WORDS_FILE, prompt_hints
from magicvideo.pipelines.image_condition import (
    embedding_of,
    encode_first_frame,
    encode_image_condition,
    latents_of,
)
from magicvideo.pipelines.keyframes import (
    GivenFrames,
    Window,
    WindowDenoiser,
    interpolate_latents,
    plan_windows,
)
from magicvideo.pipelines.lora import ADAPTED_COMPONENTS, LoraStack, locate_lora, read_lora
from magicvideo.pipelines.model_folder import find_model_folder, verify_model_folder
from magicvideo.pipelines.request import (
    DEFAULT_CHUNKS,
    MAX_FRAMES,
    STAGES,
    USUAL_DEFAULTS,
    ChunkSizes,
    FirstFrame,
    GenerationSettings,
    ImageCondition,
    Request,
    check_integer,
    check_text,
    resolve_seeds,
)
from magicvideo.pipelines.upscale import upscale_batches, upscale_frames
from magicvideo.pipelines.video import Video, VideoOutput
from magicvideo.shapes import Frames, Latents, Tokens, check_finite

logger = logging.getLogger(__name__)
# diffusers logs the loading of its own pipelines with this logger
_loading_logger = diffusers_logging.get_logger(DiffusionPipeline.__module__)

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage, the number of finished steps (from 0), and the total."""
StepEndCallback: TypeAlias = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
"""As in diffusers: called with pipeline, step, timestep and tensors; may return new tensors."""
ImageInput: TypeAlias = Image.Image | str | Path
P = TypeVar("P", bound="MagicVideoPipeline")
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_STREAM_SETTINGS = {one.name for one in fields(GenerationSettings)} - {"num_frames", "output_scale"}
_HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")


@dataclass(eq=False)
class CallInputs:
    """Inputs of one video that its request does not hold.

    Attributes:
        latents: Initial noise of the key frames.
        prompt_embeds: Condition that replaces the encoded prompt.
        negative_prompt_embeds: Negative condition that replaces the encoded text.
        callback: Called after each diffusion step of the key frames.
        callback_tensors: Names of the tensors passed to it.
        extend: The video to continue.
        altered: Names of inputs that changed the video during sampling.
    """

    latents: Latents | None = None
    prompt_embeds: Tokens | None = None
    negative_prompt_embeds: Tokens | None = None
    callback: StepEndCallback | None = None
    callback_tensors: Sequence[str] = ()
    extend: ContinuedVideo | None = None
    altered: list[str] = field(default_factory=list)

    def given(self) -> tuple[str, ...]:
        """Return the names of given inputs that a request cannot hold."""
        names = ("latents", "prompt_embeds", "negative_prompt_embeds", "extend")
        return tuple(name for name in names if getattr(self, name) is not None)


class MagicVideoPipeline(DiffusionPipeline):
    """Text to video, and image to video, by latent diffusion.

    Source: MagicVideo (2211.11018): key frames, interpolation, decoding, super-resolution.
    `generate` runs these stages in order.

    Args:
        vae: Autoencoder between pixels and latents.
        text_encoder: CLIP's text encoder.
        tokenizer: Tokenizer of the text encoder.
        unet: The denoiser of key frames.
        scheduler: Noise schedule the latent denoisers were trained with.
        image_encoder: CLIP's image encoder with its projection, or None.
        image_conditioner: Maps image embeddings to tokens, or None. Image conditions need both.
        interpolator: Denoiser of the frames between key frames, or None.
        upscaler: Denoiser of high-resolution frames, or None.
        upscaler_scheduler: Noise schedule the upscaler was trained with, or None.
        generation_defaults: Default values of `GenerationSettings`.
        interpolation_noise_level: Diffusion step up to which the interpolator's key frames are
            noised.
        upscaler_noise_level: Standard deviation of the noise on the upscaler's input frames.
        noise_correlation: Fraction of the noise variance shared by all frames, as in training.
        noise_decay: Correlation of the remaining noise between adjacent frames, as in training.
        max_given_frames: Maximal number of given first frames in training. Above 0, videos can
            start from an image and have any length.
        license: Licence of the weights.
    """

    _optional_components = sorted(OPTIONAL)
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "pred_original_sample",
    ]
    model_cpu_offload_seq = (
        "text_encoder->image_encoder->image_conditioner->unet->interpolator->vae->upscaler"
    )

    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: VideoUNet
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    image_conditioner: ImageConditioner | None
    interpolator: Interpolator | None
    upscaler: Upscaler | None
    upscaler_scheduler: Scheduler | None
    model_hash: str | None = None
    words: frozenset[str] = frozenset()
    loader: LazyComponentLoader | None = None
    latent_preview: LatentPreview | None = None

    def __init__(
        self,
        vae: Autoencoder | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: VideoUNet | None,
        scheduler: SchedulerMixin | None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_conditioner: ImageConditioner | None = None,
        interpolator: Interpolator | None = None,
        upscaler: Upscaler | None = None,
        upscaler_scheduler: SchedulerMixin | None = None,
        generation_defaults: Mapping[str, Any] | None = None,
        interpolation_noise_level: int = 0,
        upscaler_noise_level: float = 0.0,
        noise_correlation: float = 0.0,
        noise_decay: float = 0.0,
        max_given_frames: int = 0,
        license: str | None = None,
    ) -> None:
        super().__init__()
        self.lora_stack = LoraStack()
        self.chunks = DEFAULT_CHUNKS
        self._trained_scheduler: Any = scheduler
        self._interrupt = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_conditioner=image_conditioner,
            unet=unet,
            scheduler=scheduler,
            interpolator=interpolator,
            upscaler=upscaler,
            upscaler_scheduler=upscaler_scheduler,
        )
        self.register_to_config(
            generation_defaults=GenerationSettings(**(generation_defaults or {})).chosen(),
            interpolation_noise_level=interpolation_noise_level,
            upscaler_noise_level=upscaler_noise_level,
            noise_correlation=noise_correlation,
            noise_decay=noise_decay,
            max_given_frames=max_given_frames,
            license=license,
        )

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; replacing a network clears the hash of the model folder."""
        if name in WEIGHTS and name in self.__dict__ and self.__dict__[name] is not value:
            self.model_hash = None
        if name == "vae":
            self.latent_preview = None  # was fitted to the previous autoencoder
        super().__setattr__(name, value)

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        device_map: torch.device | str | None = None,
        offload_device: torch.device | str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool = True,
        **overrides: Any,  # noqa: ANN401 - components and configuration, as in diffusers
    ) -> P:
        """Load a model; by default the emoji model included in the package.

        Every file is verified against `SHA256SUMS` and every tensor against its network. Weights
        are loaded from safetensors only.

        Args:
            pretrained_model_name_or_path: A model folder, or `owner/name` of a repository on the
                Hugging Face Hub.
            torch_dtype: Data type of the weights, float32 by default; or a mapping from component
                to data type, with `default` for the others.
            dtype: Newer name of `torch_dtype`.
            variant: Load `*.VARIANT.safetensors` where available, such as `fp16`.
            revision: Branch, tag or commit of the repository.
            device_map: Device of the components, the CPU by default.
            offload_device: Device to which each stage loads its components at its start. They are
                freed at its end, so memory holds one stage at a time.
            cache_dir: Download cache.
            token: Access token of the Hub.
            local_files_only: Use cached files only.
            force_download: Download again.
            use_safetensors: Must be True.
            overrides: Components to use instead of loading them, and configuration values.

        Raises:
            UserError: If the folder is not a complete model. The message names the file or tensor.
        """
        if not use_safetensors:
            raise UserError("Weights are loaded from safetensors only; omit use_safetensors.")
        folder = find_model_folder(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        index = verify_model_folder(folder, variant)
        values = index.configuration()
        if unknown := sorted(overrides.keys() - COMPONENTS.keys() - values.keys()):
            raise UserError(
                f"from_pretrained has no argument {unknown[0]}; besides its own arguments it "
                f"accepts the components {', '.join(COMPONENTS)}, and {', '.join(values)}."
            )
        try:
            device = torch.device(offload_device or device_map or "cpu")
        except RuntimeError:
            raise UserError(
                f"The device is {offload_device or device_map!r}; it must be one device, such as "
                "'cuda': a model is not spread over several."
            ) from None
        dtypes = resolve_dtypes(dtype if dtype is not None else torch_dtype)
        loader = LazyComponentLoader(folder, index, dtypes, device, variant)
        parts: dict[str, Any] = {}
        for name in COMPONENTS:
            class_name = index.class_of(name)
            if name in overrides or class_name is None:
                parts[name] = overrides.get(name)
                continue
            if name == "tokenizer":
                parts[name] = load_tokenizer(folder / name)
            elif name not in WEIGHTS:
                parts[name] = load_scheduler(folder / name, class_name)
            else:
                parts[name] = loader.build(name) if offload_device else loader.load(name)
            _loading_logger.info(f"Loaded {name} as {class_name} from `{name}` of {folder}.")
        configuration = {name: overrides.get(name, value) for name, value in values.items()}
        pipeline = cls(**parts, **configuration)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path or folder))
        pipeline.loader = loader if offload_device else None
        # a replaced network makes it a different model
        pipeline.model_hash = None if overrides.keys() & WEIGHTS.keys() else hash_folder(folder)
        if "vae" not in overrides:
            channels = pipeline.vae.config.latent_channels
            pipeline.latent_preview = LatentPreview.load(folder / "vae", channels)
        if (folder / WORDS_FILE).is_file():
            # only needed for hints; a wrong encoding loses few words
            text = (folder / WORDS_FILE).read_text(encoding="utf-8", errors="replace")
            pipeline.words = frozenset(text.split())
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **hub_options: Any,  # noqa: ANN401 - those of diffusers
    ) -> None:
        """Write the model to a folder for `from_pretrained`; an existing model is replaced.

        Args:
            save_directory: The folder.
            safe_serialization: Ignored; weights are always written as safetensors.
            variant: Name the weights `*.VARIANT.safetensors`.
            max_shard_size: Maximal size of a weights file, such as `"2GB"`.
            push_to_hub: Also upload the folder.
            hub_options: `repo_id`, `commit_message`, `private`, `token` and `create_pr`.

        Raises:
            UserError: If the folder exists and is not a model folder, or the weights are offloaded.
        """
        folder = Path(save_directory)
        if foreign := sorted(hub_options.keys() - set(_HUB_OPTIONS)):
            raise UserError(f"save_pretrained has no option {foreign[0]}.")
        if folder.exists() and any(folder.iterdir()) and not (folder / self.config_name).is_file():
            raise UserError(f"{folder} exists and is not a model folder; choose another name.")
        networks = [getattr(self, name) for name in WEIGHTS if getattr(self, name) is not None]
        if any(parameter.is_meta for network in networks for parameter in network.parameters()):
            raise UserError(
                "The weights are offloaded; to save the model, load it without offload_device and "
                "without offloading."
            )
        if not safe_serialization:
            logger.warning("Weights are always written as safetensors.")
        with atomic_folder(folder) as partial_folder:
            super().save_pretrained(partial_folder, variant=variant, max_shard_size=max_shard_size)
            index = self._dict_from_json_file(partial_folder / self.config_name)
            write_model_index(partial_folder, index)
            if self.latent_preview is not None:
                self.latent_preview.save(partial_folder / "vae")
            if self.words:
                text = "".join(f"{word}\n" for word in sorted(self.words))
                (partial_folder / WORDS_FILE).write_text(text, encoding="utf-8")
        self.model_hash = hash_folder(folder)
        self.lora_stack.bake()  # the saved weights include the LoRAs
        if push_to_hub:
            self._upload(folder, **{"repo_id": folder.name, **hub_options})

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Write the model and upload it to a repository on the Hugging Face Hub.

        Args:
            repo_id: `owner/name`; created if it does not exist.
            commit_message: Message of the commit.
            private: Whether a new repository is private.
            token: Access token of the Hub.
            create_pr: Open a pull request instead of committing.
            safe_serialization: As for `save_pretrained`.
            variant: As for `save_pretrained`.
            max_shard_size: As for `save_pretrained`.

        Returns:
            URL of the commit.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(
                folder, safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            return self._upload(folder, repo_id, commit_message, private, token, create_pr)

    def _upload(
        self,
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        created = hub.create_repo(repo_id, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )
        return str(done)

    # ------------------------------------------------------------------ devices and memory

    @property
    def components(self) -> dict[str, Any]:
        """Return the components by name, without absent optional ones."""
        every: dict[str, Any] = super().components
        return {
            name: component
            for name, component in every.items()
            if component is not None or name not in OPTIONAL
        }

    @property
    def device(self) -> torch.device:
        """Return the device of the networks, or the one to which stages load them."""
        return super().device if self.loader is None else self.loader.device

    def to(self: P, *args: Any, **kwargs: Any) -> P:  # noqa: ANN401 - as torch.nn.Module.to
        """Move the networks to a device or dtype, like `torch.nn.Module.to`."""
        if self.loader is None:
            with _without_empty_warnings():
                moved: P = super().to(*args, **kwargs)
            return moved
        kwargs.pop("silence_dtype_warnings", None)
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        self.loader.place(device, dtype)
        for name in self.loader.classes:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self.loader.build(name))
        return self

    def enable_vae_slicing(self) -> None:
        """Decode one frame at a time."""
        self.chunks = replace(self.chunks, decoder_frames=1)

    def disable_vae_slicing(self) -> None:
        """Decode several frames at a time, the default."""
        self.chunks = replace(self.chunks, decoder_frames=DEFAULT_CHUNKS.decoder_frames)

    @contextmanager
    def load_components(self, *names: str) -> Iterator[None]:
        """Load the weights of some networks for the duration of the block.

        With `offload_device`, weights are loaded here and freed at the end. With diffusers'
        offloading, networks are moved to the device, because its hooks only run on `forward`.
        Otherwise all weights are always loaded. Absent networks are skipped.
        """
        present = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.loader is None:
            for network in present.values():
                hook = getattr(network, "_hf_hook", None)
                if hook is not None:
                    hook.pre_forward(network)
            with own_precision(self._execution_device):
                yield
            return
        try:
            with own_precision(self._execution_device):
                for name in present:
                    network = self.loader.load(name)
                    self.lora_stack.merge_into(name, network)
                    object.__setattr__(self, name, network)
                yield
        finally:
            for name, empty in present.items():
                object.__setattr__(self, name, empty)

    # ------------------------------------------------------------------ LoRA

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        scale: float = 1.0,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Merge a LoRA into U-Net and text encoder, in addition to loaded LoRAs.

        Requests, and so video files, record it.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file in the layout of peft,
                diffusers or kohya; a folder or repository that holds one; or its tensors.
            adapter_name: Name for `set_adapters`, by default `default_0`, `default_1` and so on.
            weight_name: File name in a folder or repository.
            scale: Factor applied to its weights.
            revision: Branch, tag or commit of the repository.
            token: Access token of the Hub.
            cache_dir: Download cache.
            local_files_only: Use cached files only.

        Raises:
            UserError: If the file cannot be read, or a tensor does not fit this model.
        """
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, Mapping):
            source = locate_lora(
                source,
                weight_name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        networks = self._adapted_networks()
        lora = read_lora(source, scale, networks)
        if lora.base not in (None, self.model_hash):
            logger.warning(
                f"{lora.ref.name} was trained on model {lora.base}, but the loaded model is "
                f"{self.model_hash}."
            )
        self.lora_stack.add(lora, adapter_name, networks if self.loader is None else {})

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Activate some of the loaded LoRAs, each with a scale, and deactivate the others.

        Args:
            adapter_names: One or several names.
            adapter_weights: One scale, or one per name; 1 by default.

        Raises:
            UserError: If a name is unknown, or the number of scales is wrong.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        scales = [given] * len(names) if isinstance(given, int | float) else list(given)
        self.lora_stack.activate(names, scales, self._merged_networks())

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded LoRAs by component."""
        return self.lora_stack.names_by_component()

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active LoRAs, in order."""
        return self.lora_stack.active_names()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove some LoRAs."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.lora_stack.delete(names, self._merged_networks())

    def disable_lora(self) -> None:
        """Deactivate all LoRAs until `enable_lora`."""
        self.lora_stack.switch(enabled=False, networks=self._merged_networks())

    def enable_lora(self) -> None:
        """Reactivate the LoRAs that `disable_lora` deactivated."""
        self.lora_stack.switch(enabled=True, networks=self._merged_networks())

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Fuse the active LoRAs: `unload_lora_weights` keeps them.

        Args:
            lora_scale: Factor on their scales.
        """
        self.lora_stack.fuse(lora_scale, self._merged_networks())

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`; the LoRAs stay loaded."""
        self.lora_stack.unfuse()

    def unload_lora_weights(self) -> None:
        """Remove all LoRAs except fused ones; weights are restored bit for bit."""
        self.lora_stack.unload(self._merged_networks())

    def _adapted_networks(self) -> dict[str, torch.nn.Module]:
        return {name: getattr(self, name) for name in ADAPTED_COMPONENTS}

    def _merged_networks(self) -> dict[str, torch.nn.Module]:
        """Return the networks with merged LoRAs: none if each stage loads its own weights."""
        return self._adapted_networks() if self.loader is None else {}

    # ------------------------------------------------------------------ requests

    @property
    def image_condition_models(self) -> tuple[CLIPVisionModelWithProjection, ImageConditioner]:
        """Return the networks that turn an image into tokens.

        Raises:
            UserError: If the model lacks them.
        """
        if self.image_encoder is None or self.image_conditioner is None:
            raise UserError(
                "This model accepts no image, because it has no image encoder; omit the image or "
                "choose a model with one (`magicvideo info` lists the components of a model)."
            )
        return self.image_encoder, self.image_conditioner

    @property
    def capabilities(self) -> ModelCapabilities:
        """Return the model's capabilities and default settings."""
        present = {
            "keyframes": True,
            "interpolation": self.interpolator is not None,
            "upscaler": self.upscaler is not None,
        }
        defaults = GenerationSettings(**self.config.generation_defaults)
        name, options = self._default_scheduler(defaults)
        factor = vae_scale_factor(self.vae)
        height, width = latent_size(self.unet.config.sample_size)
        return ModelCapabilities(
            hash=self.model_hash,
            device=self._execution_device.type,
            vae_scale_factor=factor,
            height=factor * height,
            width=factor * width,
            max_frames=self.unet.config.num_frames,
            max_steps=self._trained_scheduler.config.num_train_timesteps,
            defaults=replace(defaults.over(USUAL_DEFAULTS), scheduler=name),
            scheduler_options=options,
            stages=tuple(name for name in STAGES if present[name]),
            num_inserted=self.interpolator.config.num_inserted if self.interpolator else 0,
            upscale_factor=self.upscaler.config.factor if self.upscaler else 1,
            min_tile_size=self.upscaler.min_tile_size if self.upscaler else 0,
            loras=self.lora_stack.refs,
            max_given_frames=self.config.max_given_frames,
            has_motion=self.unet.config.motion_condition,
            is_flow_map=self.unet.config.flow_map,
        )

    def _default_scheduler(self, defaults: GenerationSettings) -> tuple[str, dict[str, Any]]:
        """Return the name and options of the default scheduler."""
        trained = self._trained_scheduler
        if self.scheduler is trained and type(trained) is DDIMScheduler:
            return defaults.over(USUAL_DEFAULTS).scheduler or "ddim", {}
        return describe_scheduler(self.scheduler, trained.config)

    def build_requests(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        image: ImageInput | None = None,
    ) -> list[Request]:
        """Return one complete request per prompt, and log hints about the prompts.

        Raises:
            UserError: If the model does not support a value.
        """
        condition, first = self.prepare_image(image, prompts, settings)
        requests = self.capabilities.build_requests(prompts, seeds, settings, condition, first)
        self._log_hints([*prompts, settings.negative_prompt or ""])
        return requests

    def prepare_image(
        self, image: ImageInput | None, prompts: Sequence[str], settings: GenerationSettings
    ) -> tuple[ImageCondition | None, FirstFrame | None]:
        """Encode an image as the model expects it: as condition, first frame, or both.

        A model trained with given frames uses the image as the first frame. If a prompt is empty
        and the model has an image encoder, the image's CLIP embedding also replaces the text. Other
        models use only the embedding, as a condition.

        Args:
            image: A file or an image, or None.
            prompts: The prompts.
            settings: Settings with the size of the frames.

        Raises:
            UserError: If the model accepts no image, or the file is missing or not an image.
        """
        if image is None:
            return None, None
        if not self.config.max_given_frames:
            return self.encode_image(image), None
        has_text = all(text.strip() for text in prompts)
        takes_embedding = self.image_encoder is not None and self.image_conditioner is not None
        condition = self.encode_image(image) if takes_embedding and not has_text else None
        return condition, self.encode_first_frame(image, settings)

    def encode_image(self, image: ImageInput) -> ImageCondition:
        """Encode an image as a condition: its CLIP embedding.

        Raises:
            UserError: If the model accepts no image, or the file is missing or not an image.
        """
        self.image_condition_models  # noqa: B018 - refuses before anything is loaded
        with self.load_components("image_encoder"):
            encoder, _ = self.image_condition_models
            return encode_image_condition(encoder, image, self._execution_device)

    def encode_first_frame(self, image: ImageInput, settings: GenerationSettings) -> FirstFrame:
        """Encode an image as the first frame: its latents.

        The image is scaled to cover the frame and center-cropped.

        Raises:
            UserError: If the model does not support this size, or the file is missing or not an
                image.
        """
        height, width = self._key_frame_size(settings)
        with self.load_components("vae"):
            return encode_first_frame(self.vae, image, height, width, self._execution_device)

    def _key_frame_size(self, settings: GenerationSettings) -> tuple[int, int]:
        """Return height and width of the key frames in pixels."""
        model = self.capabilities
        stages = settings.stages or model.defaults.stages or model.stages
        rows, columns = model.latent_size_of(*model.video_size(settings), stages)
        return rows * model.vae_scale_factor, columns * model.vae_scale_factor

    def _log_hints(self, texts: Sequence[str]) -> None:
        if self.tokenizer is None:
            return
        for text in dict.fromkeys(texts):
            for hint in prompt_hints(text, self.tokenizer, self.words):
                logger.warning(hint)

    # ------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        extend: str | Path | None = None,
        seconds: SupportsFloat | None = None,
        height: SupportsIndex | None = None,
        width: SupportsIndex | None = None,
        num_frames: SupportsIndex | None = None,
        fps: SupportsFloat | None = None,
        motion: SupportsFloat | None = None,
        overlap: SupportsIndex | None = None,
        num_inference_steps: SupportsIndex | None = None,
        guidance_scale: SupportsFloat | None = None,
        guidance_stop: SupportsFloat | None = None,
        num_videos_per_prompt: SupportsIndex = 1,
        seed: SupportsIndex | Iterable[SupportsIndex] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Latents | None = None,
        prompt_embeds: Tokens | None = None,
        negative_prompt_embeds: Tokens | None = None,
        scheduler: str | None = None,
        stages: str | Sequence[str] | None = None,
        interpolation_steps: SupportsIndex | None = None,
        upscaler_steps: SupportsIndex | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        progress: ProgressCallback | None = None,
    ) -> VideoOutput | tuple[Any, list[Video]]:
        """Generate `num_videos_per_prompt` videos for each prompt.

        Videos are generated one at a time, so a seed gives the same video in any batch.

        Args:
            prompt: One text or several.
            negative_prompt: Text that guidance moves away from; one, or one per prompt.
            image: The first frame of the video, with a model trained with given frames; it is
                scaled to cover the frame and center-cropped. With other models a condition, instead
                of the text or in addition to it.
            extend: A video file to continue; the result starts with its frames. Needs a model
                trained with given frames. Prompt and seed default to those recorded in the file.
            seconds: Length of the video instead of `num_frames`; with `extend`, of the added part.
            height: Height of the finished video in pixels, by default as in training.
            width: Width of the finished video in pixels, by default as in training.
            num_frames: Number of key frames, by default as in training. More key frames need a
                model trained with given frames. Interpolation inserts frames between them. With
                `extend`, the number of added key frames.
            fps: Key frames per second; a condition of the network.
            motion: Motion score in standard deviations from the mean of the training clips. Needs a
                model trained with a motion score. By default the motion is not conditioned.
            overlap: Key frames that consecutive windows of a long video share.
            num_inference_steps: Diffusion steps of the key frames.
            guidance_scale: Scale of classifier-free guidance; 1 disables it.
            guidance_stop: Fraction of these steps that use guidance.
            num_videos_per_prompt: Number of videos per prompt, each with its own seed.
            seed: One seed per video, or the first seed, from which the others count up. Random by
                default; the request of each video records its seed.
            generator: Generator that draws the seeds, instead of `seed`; or one per video.
            latents: Initial noise of the key frames, `b f c h w`, instead of noise from the seed.
            prompt_embeds: Condition instead of `prompt`, `b l d`, as `encode_prompt` returns it.
            negative_prompt_embeds: Condition instead of `negative_prompt`.
            scheduler: `ddim`, `dpm++`, `unipc`, `euler` or `lcm`. By default `pipeline.scheduler`.
            stages: `keyframes`, then any of `interpolation` and `upscaler`; by default all stages
                of the model.
            interpolation_steps: Diffusion steps of the interpolation.
            upscaler_steps: Diffusion steps of the super-resolution.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: Return a `VideoOutput`; if False, a tuple of its fields.
            callback_on_step_end: Called after each diffusion step of the key frames with the
                pipeline, the step, the timestep and a dict of tensors; it may return replacements.
                If it sets `pipeline._interrupt`, the call ends with this video.
            callback_on_step_end_tensor_inputs: Names of these tensors. `pred_original_sample` is
                the current estimate of the clean latents, which `preview` decodes. It includes
                given frames of the window.
            progress: Called with the stage, the number of finished steps (frames, when decoding)
                and the total. It replaces the progress bars.

        Raises:
            UserError: If a value is out of its range.
        """
        _check_output_type(output_type, _OUTPUT_TYPES)
        # converts NumPy scalars and any sequences
        settings = GenerationSettings.from_values(
            {
                "height": height,
                "width": width,
                "num_frames": num_frames,
                "fps": fps,
                "motion": motion,
                "overlap": overlap,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_stop": guidance_stop,
                "scheduler": scheduler,
                "stages": stages,
                "interpolation_steps": interpolation_steps,
                "upscaler_steps": upscaler_steps,
            }
        )
        per_prompt = check_integer("num_videos_per_prompt", num_videos_per_prompt, 1, 10_000)
        watched = self._callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)
        settings, continued = self.plan_length(settings, seconds, extend, image)
        if extend is not None and generator is None and seed is None:
            seed = read_recorded_seed(Path(extend))
        if extend is not None and prompt_embeds is None and prompt is None:
            prompt = read_recorded_prompt(Path(extend))
        prompts, negatives = _pair_prompts(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            has_image=image is not None,
        )
        self._log_hints([*prompts, *negatives])
        seeds = _draw_seeds(generator, seed, len(prompts) * per_prompt)
        _check_count(latents, len(seeds))
        texts = prompts if prompt_embeds is None else ["given"]
        condition, first = self.prepare_image(image, texts, settings)
        self._interrupt = False
        shown = progress or self._show_progress()
        made: list[Video | Latents] = []
        for number, video_seed in enumerate(seeds):
            place = number // per_prompt
            inputs = CallInputs(
                latents=_row(latents, number),
                prompt_embeds=_row(prompt_embeds, place),
                negative_prompt_embeds=_row(negative_prompt_embeds, place),
                callback=callback_on_step_end,
                callback_tensors=watched,
                extend=continued,
            )
            request = self.capabilities.build_request(
                prompts[place],
                video_seed,
                replace(settings, negative_prompt=negatives[place]),
                condition,
                inputs.given(),
                first,
            )
            is_decoded = output_type != "latent"
            made.append(self._make(request, inputs, shown, is_decoded=is_decoded))
            if self._interrupt:
                break
        self.maybe_free_model_hooks()
        output = _to_output(made, output_type)
        return output if return_dict else (output.frames, output.videos)

    def _callback_tensors(self, callback: object, tensor_inputs: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the tensors for a callback; callbacks of diffusers declare theirs.

        Raises:
            UserError: If a name is unknown.
        """
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback.tensor_inputs
        for name in tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise UserError(
                    f"The callback cannot get {name!r}; it can get "
                    f"{', '.join(self._callback_tensor_inputs)}."
                )
        return tuple(tensor_inputs)

    def plan_length(
        self,
        settings: GenerationSettings,
        seconds: SupportsFloat | None,
        extend: str | Path | None,
        image: ImageInput | None,
    ) -> tuple[GenerationSettings, ContinuedVideo | None]:
        """Return settings with the number of key frames, and the video to continue, if any.

        Args:
            settings: The caller's settings.
            seconds: Length of the video, or of the added part.
            extend: A video file to continue.
            image: The image that the video starts from, which excludes `extend`.

        Raises:
            UserError: If the model does not support a value.
        """
        length = None if seconds is None else float(seconds)
        if extend is not None:
            if image is not None:
                raise UserError(
                    "Both an image and a video to extend were given; give only one of them."
                )
            return self.continue_video(Path(extend), settings, length)
        if length is not None:
            settings = self.capabilities.with_length(settings, length)
        return settings, None

    @torch.no_grad()
    def continue_video(
        self, path: Path, settings: GenerationSettings, seconds: float | None = None
    ) -> tuple[GenerationSettings, ContinuedVideo]:
        """Read the video to continue and complete the settings for it.

        Args:
            path: The video.
            settings: The caller's settings; `num_frames` is the number of new key frames.
            seconds: Length of the added part, instead of `num_frames`.

        Raises:
            UserError: If the file cannot be read, or the model cannot continue it.
        """
        clip = open_video_stream(path)
        plan = plan_extension(self.capabilities, clip, settings, seconds)
        pixels = read_last_key_frames(clip, plan, *self._key_frame_size(plan.settings))
        with self.load_components("vae"):
            keys = encode_frames(self.vae, pixels.to(self._execution_device)).cpu()
        size = self.capabilities.video_size(plan.settings)
        return plan.settings, ContinuedVideo(path, keys, clip.num_frames, *size)

    def _make(
        self,
        request: Request,
        inputs: CallInputs,
        progress: ProgressCallback,
        *,
        is_decoded: bool,
    ) -> "Video | Latents":
        """Return one video of a call, or its latents."""
        if inputs.extend is not None and is_decoded:
            new = list(self.iter_frames(request, progress, inputs=inputs))
            request = replace(request, unrecorded=(*request.unrecorded, *inputs.altered))
            return Video(torch.stack([*inputs.extend.frames(), *new]), request)
        latents = self.generate_latents(request, progress, inputs)
        request = replace(request, unrecorded=(*request.unrecorded, *inputs.altered))
        if self._interrupt:
            stages = tuple(name for name in request.stages if name != "interpolation")
            request = replace(request, stages=stages, num_inserted=0)
        return self.decode_and_upscale(request, latents, progress) if is_decoded else latents

    def stream(
        self,
        prompt: str | None = None,
        *,
        image: ImageInput | None = None,
        extend: str | Path | None = None,
        seconds: SupportsFloat | None = None,
        seed: SupportsIndex | None = None,
        output_type: str = "pil",
        progress: ProgressCallback | None = None,
        **settings: Any,  # noqa: ANN401 - each setting has a type of its own
    ) -> Iterator[Any]:
        """Yield the frames of one video, each generated when it is requested.

        Without `seconds` the video never ends, which needs a model trained with given frames.
        Memory does not grow with the number of frames; the networks of all stages stay in memory
        until the iterator is closed. With `seconds` and a seed, the frames equal those of the call.

        Args:
            prompt: Text.
            image: The first frame, or a condition, as for the call.
            extend: A video file to continue; its own frames are not yielded.
            seconds: Length of the video; None for no end.
            seed: Seed of the noise.
            output_type: `pil`; `np`, arrays `h w c`, or `pt`, tensors `c h w`, in [0, 1].
            progress: As for the call. Key frames of a video without end are not reported.
            settings: Fields of `GenerationSettings`, such as `guidance_scale`, except
                `num_frames` and `output_scale`.

        Raises:
            UserError: If a value is out of its range, or a setting is unknown.
        """
        _check_output_type(output_type, _OUTPUT_TYPES[:3])
        if unknown := sorted(settings.keys() - _STREAM_SETTINGS):
            raise UserError(
                f"stream has no setting {unknown[0]}; it has {', '.join(sorted(_STREAM_SETTINGS))}."
            )
        chosen = GenerationSettings.from_values(settings)
        is_endless = seconds is None
        if is_endless:
            if not self.config.max_given_frames:
                raise UserError(
                    "This model was trained without given frames and cannot generate endless "
                    "videos; give seconds."
                )
            chosen = replace(chosen, num_frames=MAX_FRAMES // 2)
        chosen, continued = self.plan_length(chosen, seconds, extend, image)
        if extend is not None:
            seed = read_recorded_seed(Path(extend)) if seed is None else seed
            prompt = read_recorded_prompt(Path(extend)) if prompt is None else prompt
        text = "" if prompt is None and image is not None else prompt or ""
        inputs = CallInputs(extend=continued)
        condition, first = self.prepare_image(image, [text], chosen)
        (video_seed,) = resolve_seeds(seed, 1)
        request = self.capabilities.build_request(
            text, video_seed, chosen, condition, inputs.given(), first
        )
        self._log_hints([text, chosen.negative_prompt or ""])
        frames = self.iter_frames(request, progress, inputs=inputs, is_endless=is_endless)
        return (_convert_frame(frame, output_type) for frame in frames)

    def generate(
        self,
        request: Request,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
    ) -> Video:
        """Generate one video from its request: all stages.

        Between the two calls, `video.write_latents` can store the latents.

        Args:
            request: The request.
            progress: Called with the stage, the number of finished steps and the total.
            chunks: Chunk sizes of decoder and upscaler, by default `self.chunks`.

        Raises:
            UserError: If the request is for another model, or the model cannot fulfil it.
        """
        request.check_reproducible()
        latents = self.generate_latents(request, progress)
        return self.decode_and_upscale(request, latents, progress, chunks)

    @torch.no_grad()
    def iter_frames(
        self,
        request: Request,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
        inputs: CallInputs | None = None,
        *,
        made: Latents | None = None,
        on_keys: Callable[[Latents], None] | None = None,
        is_endless: bool = False,
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Yield the frames of one video, pixels in [-1, 1], each generated when requested.

        They equal those of `generate` bit for bit. The networks of all stages are in memory.

        Args:
            request: The request.
            progress: Called with the stage, the number of finished steps and the total.
            chunks: Chunk sizes of decoder and upscaler, by default `self.chunks`.
            inputs: Inputs that the request does not hold. When a video is extended, only the new
                frames are yielded.
            made: Key frames of an earlier attempt, complete windows from the first one.
            on_keys: Called with the key frames of each newly sampled window.
            is_endless: Sample windows without end and ignore the request's number of frames.

        Raises:
            UserError: If the request is for another model, or the model cannot fulfil it.
        """
        inputs, chunks = inputs or CallInputs(), chunks or self.chunks
        self.capabilities.validate(request)
        self.capabilities.check_loras(request)
        with self.load_components("text_encoder", "image_conditioner"):
            tokens, negative_tokens = self.encode_condition(request, inputs)
        shown = None if is_endless else progress
        # all stages at once: intermediate results would grow with the length of the video
        with self.load_components("unet", "interpolator", "vae", "upscaler"):
            latents = self._iter_latents(
                request, tokens, negative_tokens, shown, inputs, made, on_keys, is_endless
            )
            frames = iter_decode(self.vae, rebatch(latents, chunks.decoder_frames))
            if inputs.extend is not None:
                # given frames are decoded too, because a video decoder depends on earlier frames
                given = (inputs.extend.keys.shape[1] - 1) * (request.num_inserted + 1) + 1
                frames = _skip(frames, given)
            if "upscaler" in request.stages:
                assert self.upscaler is not None
                frames = upscale_batches(
                    self.upscaler,
                    self.scheduler_for("upscaler", request),
                    rebatch(frames, chunks.upscaler_frames),
                    request.seed,
                    num_steps=request.upscaler_steps,
                    noise_level=self.config.upscaler_noise_level,
                    tile=chunks.upscaler_tile,
                )
            for part in frames:
                yield from part.cpu()

    def _iter_latents(
        self,
        request: Request,
        tokens: Tokens,
        negative_tokens: Tokens,
        progress: ProgressCallback | None,
        inputs: CallInputs,
        made: Latents | None,
        on_keys: Callable[[Latents], None] | None,
        is_endless: bool,
    ) -> Iterator[Float[Tensor, "f c h w"]]:
        """Yield the latents of all frames, window by window, each frame once."""
        last: Latents | None = None
        windows = self._windows(request, inputs, is_endless=is_endless)
        for window, keys in zip(
            windows,
            self.iter_keyframes(
                request,
                tokens,
                negative_tokens,
                progress,
                inputs,
                made=made,
                is_endless=is_endless,
            ),
            strict=False,  # a callback may end the key frames
        ):
            if on_keys is not None and (made is None or window.stop > made.shape[1]):
                on_keys(keys)
            if "interpolation" not in request.stages:
                yield keys[0]
                continue
            # repeat the last key frame, so that the gap between two windows is interpolated too
            joined = keys if last is None else torch.cat([last, keys], dim=1)
            latents = self._interpolate_window(request, window, joined, tokens, None, None)
            yield latents[0, min(window.index, 1) :]
            last = keys[:, -1:]

    @torch.no_grad()
    def generate_latents(
        self,
        request: Request,
        progress: ProgressCallback | None = None,
        inputs: CallInputs | None = None,
    ) -> Latents:
        """Sample the latents of all frames: the first half of `generate`.

        Raises:
            UserError: If the request is for another model, or the model cannot fulfil it.
        """
        inputs = inputs or CallInputs()
        self.capabilities.validate(request)
        self.capabilities.check_loras(request)
        with self.load_components("text_encoder", "image_conditioner"):
            tokens, negative_tokens = self.encode_condition(request, inputs)
        with self.load_components("unet"):
            keys = self.sample_keyframes(request, tokens, negative_tokens, progress, inputs)
        is_interrupted = inputs.callback is not None and self._interrupt
        if "interpolation" not in request.stages or is_interrupted:
            return keys
        with self.load_components("interpolator"):
            return self.interpolate(request, keys, tokens, progress)

    @torch.no_grad()
    def decode_and_upscale(
        self,
        request: Request,
        latents: Latents,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
    ) -> Video:
        """Decode and upscale finished latents: the second half of `generate`.

        Raises:
            UserError: If the latents do not have the request's shape, a tile is too small for the
                upscaler, or a value is not finite.
        """
        size = self.capabilities.latent_size(request)
        num_frames = request.video_frames
        if latents.shape[1] == request.num_frames:  # interrupted before the interpolation
            num_frames = request.num_frames
        _check_latents(latents, (1, num_frames, self.unet.config.in_channels, *size))
        check_finite(latents, "The latents")
        with self.load_components("vae"):
            frames = self.decode(latents, progress, chunks)
        if "upscaler" in request.stages:
            with self.load_components("upscaler"):
                frames = self.upscale(request, frames, progress, chunks)
        check_finite(frames, "The frames")
        return Video(frames[0].cpu(), request)

    # ------------------------------------------------------------------ stages

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        device: torch.device | str | None = None,
    ) -> tuple[Tokens, Tokens | None]:
        """Encode prompts as `prompt_embeds` and `negative_prompt_embeds` of the call.

        Args:
            prompt: One text or several.
            negative_prompt: One text for all prompts, or one per prompt.
            num_videos_per_prompt: Repetitions of each row.
            do_classifier_free_guidance: Whether to encode the negative prompts too.
            device: Device of the result, by default that of the networks.
        """
        prompts, negatives = _pair_prompts(prompt, negative_prompt, None, None, has_image=True)
        place = torch.device(device) if device is not None else self._execution_device
        with self.load_components("text_encoder"):
            prompt_embeds = self._encode_texts(prompts, num_videos_per_prompt).to(place)
            negative_prompt_embeds = None
            if do_classifier_free_guidance:
                encoded = self._encode_texts(negatives, num_videos_per_prompt)
                negative_prompt_embeds = encoded.to(place)
        return prompt_embeds, negative_prompt_embeds

    def _encode_texts(self, texts: Sequence[str], copies: int = 1) -> Tokens:
        encoded = encode_text(
            self.text_encoder, self.tokenizer, list(texts), self._execution_device
        )
        return encoded.repeat_interleave(copies, dim=0)

    def encode_condition(
        self, request: Request, inputs: CallInputs | None = None
    ) -> tuple[Tokens, Tokens]:
        """Return the tokens of the condition and of the negative condition.

        An image without text replaces the text tokens, as in training. With a text, the tokens of
        both are concatenated; no training stage uses such pairs.
        """
        inputs = inputs or CallInputs()
        device = self._execution_device
        text, negative = inputs.prompt_embeds, inputs.negative_prompt_embeds
        if text is None:
            text = self._encode_texts([request.prompt])
        if negative is None:
            guided = request.guidance_scale != 1.0
            # unused without guidance, and the text encoder may be absent
            negative = self._encode_texts([request.negative_prompt]) if guided else text
        text, negative = text.to(device), negative.to(device)
        if text.shape[-1] != negative.shape[-1] or text.shape[1] != negative.shape[1]:
            raise UserError(
                f"prompt_embeds has shape {list(text.shape)} and negative_prompt_embeds has shape "
                f"{list(negative.shape)}; the shapes must be equal."
            )
        if request.image_condition is None:
            return text, negative
        _, conditioner = self.image_condition_models
        embedding = torch.from_numpy(embedding_of(request.image_condition)).to(device, self.dtype)
        width = conditioner.config.embedding_dim
        if len(embedding) != width:
            raise UserError(
                f"The image embedding has {len(embedding)} values; this model needs {width}."
            )
        image = image_to_condition_tokens(conditioner, embedding[None], text.shape[1])
        if not request.prompt.strip() and inputs.prompt_embeds is None:
            return image, negative
        return torch.cat([text, image], dim=1), torch.cat([negative, negative], dim=1)

    def sample_keyframes(
        self,
        request: Request,
        tokens: Tokens,
        negative_tokens: Tokens,
        progress: ProgressCallback | None = None,
        inputs: CallInputs | None = None,
    ) -> Latents:
        """Sample the latents of the key frames, in float32 like the noise."""
        windows = self.iter_keyframes(request, tokens, negative_tokens, progress, inputs)
        return torch.cat(list(windows), dim=1)

    def iter_keyframes(
        self,
        request: Request,
        tokens: Tokens,
        negative_tokens: Tokens,
        progress: ProgressCallback | None = None,
        inputs: CallInputs | None = None,
        *,
        made: Latents | None = None,
        is_endless: bool = False,
    ) -> Iterator[Latents]:
        """Sample the latents of the key frames window by window; each frame is yielded once.

        The last `request.overlap` frames of a window are the given frames of the next one. With
        directed attention, new frames attend to them as if all had been sampled together.

        Args:
            request: The request.
            tokens: Tokens of the condition.
            negative_tokens: Tokens of the negative condition.
            progress: Called with `key frames`, the number of finished steps of all windows, and
                the total.
            inputs: Inputs that the request does not hold.
            made: Key frames of an earlier attempt, complete windows from the first one.
            is_endless: Yield windows without end.
        """
        inputs = inputs or CallInputs()
        total = 0 if is_endless else len(list(self._windows(request, inputs)))
        steps = request.num_inference_steps
        on_step = _count_steps(progress, "key frames", total * steps)
        recent = self._given_keys(request, inputs)
        for window in self._windows(request, inputs, is_endless=is_endless):
            given = None if recent is None else recent[:, recent.shape[1] - window.num_given :]
            begin = 0 if window.index == 0 else window.first
            if made is not None and window.stop <= made.shape[1]:
                keys = made[:, begin : window.stop].to(self._execution_device)
            else:
                offset = window.index * steps
                done = None if on_step is None else partial(_advance, on_step, offset)
                new = self._sample_window(
                    request, window, given, tokens, negative_tokens, inputs, done
                )
                keys = new if given is None or window.index else torch.cat([given, new], dim=1)
            yield keys
            if inputs.callback is not None and self._interrupt:
                return
            known = keys if recent is None else torch.cat([recent, keys], dim=1)
            recent = known[:, -(request.overlap or 1) :]

    def _windows(
        self, request: Request, inputs: CallInputs, *, is_endless: bool = False
    ) -> Iterator[Window]:
        """Yield the windows of the video in order."""
        given = 1 if request.first_frame is not None else 0
        if inputs.extend is not None:
            given = inputs.extend.keys.shape[1]
        num_frames = None if is_endless else request.num_frames
        return plan_windows(num_frames, self.capabilities.max_frames, given, request.overlap or 1)

    def _given_keys(self, request: Request, inputs: CallInputs) -> GivenFrames | None:
        """Return the clean latents of the key frames that the video starts with, if any."""
        if inputs.extend is not None:
            return inputs.extend.keys.to(self._execution_device)
        if request.first_frame is None:
            return None
        channels = self.unet.config.in_channels
        shape = (channels, *self.capabilities.latent_size(request))
        return latents_of(request.first_frame, shape).to(self._execution_device)

    def _sample_window(
        self,
        request: Request,
        window: Window,
        given: GivenFrames | None,
        tokens: Tokens,
        negative_tokens: Tokens,
        inputs: CallInputs,
        on_step: Callable[[int], None] | None,
    ) -> Latents:
        """Sample the new key frames of a window, which follow its given ones."""
        device = self._execution_device
        noise = self._window_noise(request, window, inputs).to(device, torch.float32)
        if window.first == window.stop:
            return noise  # empty: the given frame is the whole video
        scheduler = self.scheduler_for("keyframes", request)
        unet: VideoUNet | FlowMapUNet = self.unet
        if isinstance(scheduler, FlowMapScheduler):
            unet = FlowMapUNet(self.unet, scheduler.target_of)
        guided = GuidedDenoiser(
            WindowDenoiser(
                unet,
                given if window.num_given else None,
                request.motion,
                use_cache=self.unet.can_cache_frames,
            ),
            tokens,
            negative_tokens,
            torch.tensor([request.fps], device=device),
            request.guidance_scale,
            request.guidance_stop,
            request.num_inference_steps,
        )
        self._guidance_scale = request.guidance_scale
        shown = given if window.num_given else None
        after_step = partial(self._call_back, guided, inputs, shown) if inputs.callback else None
        latents: Latents = denoising_loop(
            guided,
            noise,
            scheduler,
            request.num_inference_steps,
            on_step,
            after_step,
            seeded_generator("sampler", request.seed, *window_parts(window.index)),
        )
        self._num_timesteps = len(scheduler.timesteps)
        return latents

    def _window_noise(self, request: Request, window: Window, inputs: CallInputs) -> Latents:
        """Return the noise of a window's new key frames.

        Training draws correlated noise for all frames of a clip and then replaces given frames by
        clean ones, so their noise is not in the input. The noise of the remaining frames has the
        same stationary covariance as that of any consecutive frames. Each window therefore draws
        independent noise with this covariance.
        """
        rows, columns = self.capabilities.latent_size(request)
        frame = (self.unet.config.in_channels, rows, columns)
        if inputs.latents is not None:
            _check_latents(inputs.latents, (1, request.num_frames, *frame))
            return inputs.latents[:, window.first : window.stop]
        # the first window also draws noise for a given first frame, so that its other frames have
        # the same noise as without a given frame
        given = window.num_given if window.index == 0 and inputs.extend is None else 0
        noise = initial_latent_noise(
            request.seed,
            (window.stop - window.first + given, *frame),
            self.config.noise_correlation,
            self.config.noise_decay,
            window.index,
        )
        return noise[:, given:]

    def scheduler_for(self, stage: str, request: Request | None = None) -> Scheduler:
        """Return a new scheduler for a stage.

        Args:
            stage: `keyframes`, `interpolation` or `upscaler`.
            request: Request with the scheduler's name; None for the default scheduler.
        """
        capabilities = self.capabilities
        name = request.scheduler if request else capabilities.default("scheduler")
        options = request.scheduler_options if request else capabilities.scheduler_options
        # LCM adds new noise at every step, which would flicker in the stages after the key frames;
        # flow maps are only distilled for key frames
        if name is None or (name in ("lcm", FLOW_MAP) and stage != "keyframes"):
            name, options = "ddim", {}
        if stage != "upscaler":
            return make_scheduler(self._trained_scheduler.config, name, options)
        assert self.upscaler_scheduler is not None
        return make_scheduler(self.upscaler_scheduler.config, name)

    def _call_back(
        self,
        guided: GuidedDenoiser,
        inputs: CallInputs,
        given: GivenFrames | None,
        step: int,
        timestep: Tensor,
        latents: Latents,
        estimate: Latents,
    ) -> Latents | None:
        """Return the latents after a callback, or None if it interrupted the call."""
        assert inputs.callback is not None
        self._num_timesteps = guided.num_steps
        now = {
            "latents": latents,
            "prompt_embeds": guided.tokens,
            "negative_prompt_embeds": guided.negative_tokens,
        }
        before = {name: tensor.clone() for name, tensor in now.items()}
        scale = self._guidance_scale
        whole = estimate if given is None else torch.cat([given, estimate], dim=1)
        every = {**now, "pred_original_sample": whole}
        tensors = {name: every[name] for name in inputs.callback_tensors}
        now |= inputs.callback(self, step, timestep, tensors) or {}
        changed = self._guidance_scale != scale or any(
            now[name].shape != old.shape or not torch.equal(now[name], old)
            for name, old in before.items()
        )
        if changed or self._interrupt:
            inputs.altered[:] = ["callback_on_step_end"]
        guided.tokens, guided.negative_tokens = now["prompt_embeds"], now["negative_prompt_embeds"]
        guided.set_guidance_scale(self._guidance_scale)
        return None if self._interrupt else now["latents"]

    def interpolate(
        self,
        request: Request,
        keys: Latents,
        tokens: Tokens,
        progress: ProgressCallback | None = None,
        noise_level: int | None = None,
    ) -> Float[Tensor, "b all c h w"]:
        """Return the latents of all frames, the key frames among them unchanged.

        The network's input key frames are noised up to `noise_level`, by default the model's own.
        In a long video, gaps are batched by window.
        """
        steps = request.interpolation_steps
        longest = self.capabilities.max_frames
        # given first frames are part of the first window, so it starts at 0
        windows = list(plan_windows(keys.shape[1], longest, 0, request.overlap or 1))
        on_step = _count_steps(progress, "interpolation", len(windows) * steps)
        parts = []
        for window in windows:
            done = None if on_step is None else partial(_advance, on_step, window.index * steps)
            latents = self._interpolate_window(
                request, window, keys[:, window.keys], tokens, noise_level, done
            )
            parts.append(latents[:, min(window.index, 1) :])
        return torch.cat(parts, dim=1)

    def _interpolate_window(
        self,
        request: Request,
        window: Window,
        keys: Latents,
        tokens: Tokens,
        noise_level: int | None,
        on_step: Callable[[int], None] | None,
    ) -> Float[Tensor, "b all c h w"]:
        """Interpolate between some key frames; return the latents of both."""
        assert self.interpolator is not None
        if noise_level is None:
            noise_level = self.config.interpolation_noise_level
        return interpolate_latents(
            self.interpolator,
            self.scheduler_for("interpolation", request),
            keys,
            tokens,
            fps=request.video_fps,
            seed=request.seed,
            num_steps=request.interpolation_steps,
            noise_correlation=self.config.noise_correlation,
            noise_level=noise_level,
            on_step=on_step,
            window=window.index,
        )

    def decode(
        self,
        latents: Latents,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
    ) -> Frames:
        """Decode latents to frames."""
        on_chunk = None if progress is None else partial(progress, "decoding")
        return decode_latents(self.vae, latents, (chunks or self.chunks).decoder_frames, on_chunk)

    def upscale(
        self,
        request: Request,
        frames: Frames,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
    ) -> Float[Tensor, "b f 3 tall wide"]:
        """Upscale frames."""
        assert self.upscaler is not None
        chunks = chunks or self.chunks
        return upscale_frames(
            self.upscaler,
            self.scheduler_for("upscaler", request),
            frames.to(self._execution_device),
            [request.seed],
            num_steps=request.upscaler_steps,
            noise_level=self.config.upscaler_noise_level,
            tile=chunks.upscaler_tile,
            frames_at_once=chunks.upscaler_frames,
            on_step=None if progress is None else partial(progress, "super-resolution"),
        )

    # ------------------------------------------------------------------ previews

    def preview(self, latents: Latents) -> Frames:
        """Map latents to small frames, pixels in [-1, 1], without the decoder.

        The linear map is loaded from the model folder, or fitted to the decoder at the first call,
        which takes as long as decoding about 50 frames. A callback gets suitable latents as
        `pred_original_sample`.
        """
        if self.latent_preview is None:
            with self.load_components("vae"):
                self.latent_preview = LatentPreview.fit_to_decoder(self.vae)
        return self.latent_preview(latents)

    @torch.no_grad()
    def fit_preview(self, frames: Frames) -> None:
        """Fit the linear map of `preview` to frames of real clips; `save_pretrained` stores it.

        Args:
            frames: Pixels in [-1, 1], at the size of key frames.
        """
        with self.load_components("vae"):
            self.latent_preview = LatentPreview.fit_to_decoder(self.vae, frames)

    # ------------------------------------------------------------------ what callbacks read

    @property
    def guidance_scale(self) -> float:
        """Return the guidance scale of the current or last video; a callback may change it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Return whether the current or last video uses guidance."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Return the number of diffusion steps of the current or last video."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Return whether a callback interrupted the call."""
        return self._interrupt

    def _show_progress(self) -> ProgressCallback:
        """Return a callback that shows one progress bar per stage."""
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if done == 0 or stage not in bars:
                bars[stage] = self.progress_bar(total=total)
                bars[stage].set_description(stage)
            bars[stage].update(done - bars[stage].n)
            if done == total:
                bars.pop(stage).close()

        return show


@contextmanager
def _without_empty_warnings() -> Iterator[None]:
    """Leave out diffusers' warning about modules to keep in float32 where it names none."""

    def names_modules(record: logging.LogRecord) -> bool:
        return "kept in float32: []" not in record.getMessage()

    told = logging.getLogger(ModelMixin.__module__)
    told.addFilter(names_modules)
    try:
        yield
    finally:
        told.removeFilter(names_modules)


def _pair_prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Tokens | None,
    negative_prompt_embeds: Tokens | None,
    *,
    has_image: bool,
) -> tuple[list[str], list[str]]:
    """Return one prompt and one negative prompt per row of the batch.

    Raises:
        UserError: If both text and embeddings are given, or neither, or their numbers differ.
    """
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text and embeds is not None:
            raise UserError(f"Both {name} and {name}_embeds were given; give only one of them.")
        if embeds is not None and embeds.ndim != 3:
            raise UserError(
                f"{name}_embeds has shape {list(embeds.shape)}; it must have 3 axes, b l d."
            )
    if prompt_embeds is not None:
        prompts = [""] * len(prompt_embeds)
    else:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if prompt is None and has_image:
            prompts = [""]
        if not prompts:
            raise UserError("No prompt was given; describe what the video should show.")
    count = len(prompts)
    if negative_prompt_embeds is not None:
        negatives = [""] * len(negative_prompt_embeds)
    elif negative_prompt is None or isinstance(negative_prompt, str):
        negatives = [negative_prompt or ""] * count
    else:
        negatives = list(negative_prompt)
    for text in prompts:
        check_text("The prompt", text)
    if len(negatives) != count:
        raise UserError(
            f"{len(negatives)} negative prompts were given for {count} prompts; give one, or one "
            "per prompt."
        )
    return prompts, negatives


def _draw_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None,
    seed: SupportsIndex | Iterable[SupportsIndex] | None,
    count: int,
) -> list[int]:
    """Return the seed of each video, drawn from the generators if given.

    The file records the seed, so a video made with a generator can be reproduced.
    """
    if generator is None:
        return resolve_seeds(seed, count)
    if seed is not None:
        raise UserError("Both seed and generator were given; give only one of them.")
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise UserError(
            f"{len(generators)} generators were given for {count} videos; give one, or one per "
            "video."
        )
    return [
        int(torch.randint(0, 2**32, (), generator=one, device=one.device)) for one in generators
    ]


def _check_output_type(output_type: str, allowed: Sequence[str]) -> None:
    if output_type not in allowed:
        raise UserError(f"Unknown output type {output_type!r}; choose one of {', '.join(allowed)}.")


def _check_count(latents: Latents | None, count: int) -> None:
    if latents is not None and len(latents) != count:
        raise UserError(f"{len(latents)} latents were given for {count} videos.")


def _row(batch: Tensor | None, place: int) -> Tensor | None:
    return None if batch is None else batch[place, None]


def _check_latents(latents: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(latents.shape) == expected:
        return
    one, frames, channels, *rest = expected
    advice = ""
    if tuple(latents.shape) == (one, channels, frames, *rest):
        advice = "; the axis order seems to be b c f h w, so pass latents.transpose(1, 2)"
    raise UserError(
        f"The latents of a video have shape {list(latents.shape)[1:]}; the expected shape is "
        f"{list(expected)[1:]}{advice}."
    )


def _to_output(made: Sequence[Video | Latents], output_type: str) -> VideoOutput:
    """Convert the videos or latents of a call to its output."""
    if output_type != "latent":
        videos = [video for video in made if isinstance(video, Video)]
        return VideoOutput(frames=_postprocess(videos, output_type), videos=videos)
    latents = [one for one in made if isinstance(one, Tensor)]
    is_whole = len({one.shape for one in latents}) == 1
    frames = torch.cat(latents) if is_whole else [one[0] for one in latents]
    return VideoOutput(frames=frames, videos=[])


def _convert_frame(frame: Float[Tensor, "3 h w"], output_type: str) -> Any:  # noqa: ANN401
    """Convert one frame, pixels in [-1, 1], to an output type."""
    return VideoProcessor().postprocess(frame[None], output_type=output_type)[0]


def _postprocess(videos: Sequence[Video], output_type: str) -> Any:  # noqa: ANN401 - by type
    processor = VideoProcessor()
    groups = (
        [torch.stack([video.frames for video in videos])]
        if _are_alike(videos)
        else [video.frames[None] for video in videos]
    )
    made = [
        processor.postprocess_video(
            rearrange(frames, "b f c h w -> b c f h w"), output_type=output_type
        )
        for frames in groups
    ]
    return made[0] if len(made) == 1 else [one[0] for one in made]


def _are_alike(videos: Sequence[Video]) -> bool:
    """Return whether all videos have the same shape; an interrupted one has fewer frames."""
    return len({video.frames.shape for video in videos}) == 1


def rebatch(
    parts: Iterable[Float[Tensor, "_ c h w"]], size: int
) -> Iterator[Float[Tensor, "_ c h w"]]:
    """Yield the frames in batches of `size`; the last batch may be smaller."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting = list(torch.split(torch.cat([*waiting, part]), size))
        while waiting and len(waiting[0]) == size:
            yield waiting.pop(0)
    yield from waiting


def _skip(
    parts: Iterable[Float[Tensor, "_ c h w"]], count: int
) -> Iterator[Float[Tensor, "_ c h w"]]:
    """Yield the frames without the first `count`."""
    for part in parts:
        if count < len(part):
            yield part[count:]
        count = max(0, count - len(part))


def _advance(on_step: Callable[[int], None], offset: int, done: int) -> None:
    on_step(offset + done)


def _count_steps(
    progress: ProgressCallback | None, stage: str, total: int
) -> Callable[[int], None] | None:
    if progress is None:
        return None
    progress(stage, 0, total)
    return lambda done: progress(stage, done, total)
