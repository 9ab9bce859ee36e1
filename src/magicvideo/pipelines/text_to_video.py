"""The pipeline: from a prompt or an image to frames, by the components of one model folder."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin
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
# what diffusers logs of its own pipelines comes from here, and so it does of ours
_loading_logger = diffusers_logging.get_logger(DiffusionPipeline.__module__)

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage, the steps done in it, from 0 on, and their number."""
StepEndCallback: TypeAlias = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
"""As in diffusers: called with pipeline, step, timestep and tensors; it may return new tensors."""
ImageInput: TypeAlias = Image.Image | str | Path
P = TypeVar("P", bound="MagicVideoPipeline")
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_STREAM_SETTINGS = {one.name for one in fields(GenerationSettings)} - {"num_frames", "output_scale"}
_HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")


@dataclass(eq=False)
class CallInputs:
    """What a call may give for one video beside its request.

    Attributes:
        latents: Initial noise of the key frames.
        prompt_embeds: Condition in place of the encoded prompt.
        negative_prompt_embeds: What guidance moves away from, in place of the encoded text.
        callback: Called after every step of the key frames.
        callback_tensors: Names of the tensors that it is called with.
        extend: A video that this one continues.
        altered: Names of what made the video differ from its request; the loop adds to it.
    """

    latents: Latents | None = None
    prompt_embeds: Tokens | None = None
    negative_prompt_embeds: Tokens | None = None
    callback: StepEndCallback | None = None
    callback_tensors: Sequence[str] = ()
    extend: ContinuedVideo | None = None
    altered: list[str] = field(default_factory=list)

    def given(self) -> tuple[str, ...]:
        """Return the names of what decides the video and is not in a request."""
        names = ("latents", "prompt_embeds", "negative_prompt_embeds", "extend")
        return tuple(name for name in names if getattr(self, name) is not None)


class MagicVideoPipeline(DiffusionPipeline):
    """Text to video, and image to video, by latent diffusion.

    Source: MagicVideo (2211.11018): key frames, interpolation, decoding, super-resolution.
    `generate` is the flow, in order.

    Args:
        vae: Autoencoder between pixels and latents.
        text_encoder: CLIP's text encoder.
        tokenizer: The text encoder's own.
        unet: The denoiser of key frames.
        scheduler: The noise schedule that the denoisers of latents were trained with.
        image_encoder: CLIP's image encoder with its projection, or None.
        image_conditioner: From image embeddings to tokens, or None; images need both.
        interpolator: The denoiser of the frames between key frames, or None.
        upscaler: The denoiser of large frames, or None.
        upscaler_scheduler: The noise schedule that it was trained with, or None.
        generation_defaults: Values of `GenerationSettings` where a call gives none.
        interpolation_noise_level: Diffusion step up to which the interpolator's key frames are
            noised.
        upscaler_noise_level: Standard deviation of the noise on the upscaler's input frames.
        noise_correlation: Part of the noise that all frames of a video share, as in training.
        noise_decay: Correlation of the remaining noise of adjacent frames, as in training.
        max_given_frames: The most first frames that the denoiser has learned to continue: with any,
            videos begin with a given picture and have any length.
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
        """Set an attribute; a model whose networks are replaced is no longer that of its folder."""
        if name in WEIGHTS and name in self.__dict__ and self.__dict__[name] is not value:
            self.model_hash = None
        if name == "vae":
            self.latent_preview = None  # it was fitted to the other one
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
        """Load a model; without an argument, the emoji model that comes with the package.

        Every file is checked against `SHA256SUMS` and every tensor against its network. Weights
        are read from safetensors only.

        Args:
            pretrained_model_name_or_path: A model folder, or `owner/name` of a repository on the
                Hugging Face Hub.
            torch_dtype: Of the weights in memory, float32 by default; or one for each component,
                with `default` for the others.
            dtype: The same, by its newer name.
            variant: Load `*.VARIANT.safetensors` where a component has it, such as `fp16`.
            revision: Branch, tag or commit of the repository.
            device_map: Device on which the components are placed, the CPU by default.
            offload_device: A device: every stage loads its components there when it begins and
                frees them at its end, so that memory holds one stage at a time.
            cache_dir: Folder of downloads.
            token: Access token of the Hub.
            local_files_only: Use what was downloaded before; download nothing.
            force_download: Download again.
            use_safetensors: Must stay True; other weights are never read.
            overrides: Components, which are then not loaded, and values of the configuration.

        Raises:
            UserError: If the folder is no whole model. It names the file or the tensor.
        """
        if not use_safetensors:
            raise UserError("Weights are read from safetensors only; leave use_safetensors out.")
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
                f"from_pretrained does not know {unknown[0]}; beside its own arguments it takes "
                f"the components {', '.join(COMPONENTS)}, and {', '.join(values)}."
            )
        device = torch.device(offload_device or device_map or "cpu")
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
        # with other networks than the folder's it is another model
        pipeline.model_hash = None if overrides.keys() & WEIGHTS.keys() else hash_folder(folder)
        if "vae" not in overrides:
            channels = pipeline.vae.config.latent_channels
            pipeline.latent_preview = LatentPreview.load(folder / "vae", channels)
        if (folder / WORDS_FILE).is_file():
            # hints alone need it; in another encoding it still names most words
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
        """Write the model as a folder that `from_pretrained` accepts; an older model is replaced.

        Args:
            save_directory: The folder.
            safe_serialization: Weights are written as safetensors, also if it is False.
            variant: Name the weights `*.VARIANT.safetensors`.
            max_shard_size: Split larger weights files, such as `"2GB"`.
            push_to_hub: Upload the folder, too.
            hub_options: `repo_id`, `commit_message`, `private`, `token` and `create_pr` of the
                upload.

        Raises:
            UserError: If the folder exists and holds something that is no model, or the weights
                are not in memory.
        """
        folder = Path(save_directory)
        if foreign := sorted(hub_options.keys() - set(_HUB_OPTIONS)):
            raise UserError(f"save_pretrained has no option {foreign[0]}.")
        if folder.exists() and any(folder.iterdir()) and not (folder / self.config_name).is_file():
            raise UserError(f"{folder} exists and is no model folder; choose another name.")
        networks = [getattr(self, name) for name in WEIGHTS if getattr(self, name) is not None]
        if any(parameter.is_meta for network in networks for parameter in network.parameters()):
            raise UserError(
                "The weights are offloaded; load the model without offload_device and without "
                "offloading to save it."
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
        self.lora_stack.bake()  # they are part of what was written
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
            repo_id: `owner/name`; it is made if it does not exist.
            commit_message: Of the upload.
            private: Whether a new repository is private.
            token: Access token of the Hub.
            create_pr: Open a pull request in place of a commit.
            safe_serialization: As for `save_pretrained`.
            variant: As for `save_pretrained`.
            max_shard_size: As for `save_pretrained`.

        Returns:
            Address of the commit.
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
        """Return the components by name, without optional ones that the model lacks."""
        every: dict[str, Any] = super().components
        return {
            name: component
            for name, component in every.items()
            if component is not None or name not in OPTIONAL
        }

    @property
    def device(self) -> torch.device:
        """Return where the networks are, or are loaded when their stage begins."""
        return super().device if self.loader is None else self.loader.device

    def to(self: P, *args: Any, **kwargs: Any) -> P:  # noqa: ANN401 - as torch.nn.Module.to
        """Move the networks to a device or a dtype, as `torch.nn.Module.to`."""
        if self.loader is None:
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
        """Decode several frames at a time again."""
        self.chunks = replace(self.chunks, decoder_frames=DEFAULT_CHUNKS.decoder_frames)

    @contextmanager
    def load_components(self, *names: str) -> Iterator[None]:
        """Have the weights of some networks in memory for the duration of the block.

        With `offload_device` they are loaded here and freed at the end; with diffusers' offloading
        they are moved to the device, since hooks alone act on calls of `forward` only. Otherwise
        all have their weights all the time. Networks that a model lacks are passed over.
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
        """Merge a LoRA into U-Net and text encoder, on top of those that were loaded before.

        Requests and files of videos name it.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file in the layout of peft,
                diffusers or kohya; a folder or repository that holds one; or its tensors.
            adapter_name: Name for `set_adapters`, by default `default_0`, `default_1` and so on.
            weight_name: Name of the file in a folder or repository.
            scale: Factor of its weights.
            revision: Of the repository.
            token: Access token of the Hub.
            cache_dir: Folder of downloads.
            local_files_only: Download nothing.

        Raises:
            UserError: If the file cannot be read, or a tensor in it does not fit this model.
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
                f"{lora.ref.name} was trained on the model {lora.base}, and this is "
                f"{self.model_hash}."
            )
        self.lora_stack.add(lora, adapter_name, networks if self.loader is None else {})

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Use some of the loaded LoRAs, and no others, each at a scale.

        Args:
            adapter_names: One or several.
            adapter_weights: Scale of all of them, or of each; 1 by default.

        Raises:
            UserError: If a name is unknown, or the numbers of names and scales differ.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        scales = [given] * len(names) if isinstance(given, int | float) else list(given)
        self.lora_stack.activate(names, scales, self._merged_networks())

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded LoRAs that each component has."""
        return self.lora_stack.names_by_component()

    def get_active_adapters(self) -> list[str]:
        """Return the names of the LoRAs in use, in order."""
        return self.lora_stack.active_names()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take some LoRAs out."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.lora_stack.delete(names, self._merged_networks())

    def disable_lora(self) -> None:
        """Use no LoRA until `enable_lora`."""
        self.lora_stack.switch(enabled=False, networks=self._merged_networks())

    def enable_lora(self) -> None:
        """Use the LoRAs again that `disable_lora` left out."""
        self.lora_stack.switch(enabled=True, networks=self._merged_networks())

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Keep the LoRAs in use for good: `unload_lora_weights` does not take them out.

        Args:
            lora_scale: Multiplies their scales.
        """
        self.lora_stack.fuse(lora_scale, self._merged_networks())

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`; the LoRAs stay loaded."""
        self.lora_stack.unfuse()

    def unload_lora_weights(self) -> None:
        """Take out all LoRAs but fused ones; weights are as before to the last bit."""
        self.lora_stack.unload(self._merged_networks())

    def _adapted_networks(self) -> dict[str, torch.nn.Module]:
        return {name: getattr(self, name) for name in ADAPTED_COMPONENTS}

    def _merged_networks(self) -> dict[str, torch.nn.Module]:
        """Return the networks whose weights hold the LoRAs: none if every stage loads its own."""
        return self._adapted_networks() if self.loader is None else {}

    # ------------------------------------------------------------------ requests

    @property
    def image_condition_models(self) -> tuple[CLIPVisionModelWithProjection, ImageConditioner]:
        """Return what turns an image into tokens.

        Raises:
            UserError: If this model has no such networks.
        """
        if self.image_encoder is None or self.image_conditioner is None:
            raise UserError(
                "This model takes no image, since it has no image encoder; leave the image "
                "out, or choose a model with one (`magicvideo info` lists what a model has)."
            )
        return self.image_encoder, self.image_conditioner

    @property
    def capabilities(self) -> ModelCapabilities:
        """Return what this model can do, and does by default."""
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
        """Return the name and the options of the scheduler where a call names none."""
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
        """Return one complete request for each prompt, and log hints on the prompts.

        Raises:
            UserError: If a value is out of the model's range.
        """
        condition, first = self.prepare_image(image, prompts, settings)
        requests = self.capabilities.build_requests(prompts, seeds, settings, condition, first)
        self._log_hints([*prompts, settings.negative_prompt or ""])
        return requests

    def prepare_image(
        self, image: ImageInput | None, prompts: Sequence[str], settings: GenerationSettings
    ) -> tuple[ImageCondition | None, FirstFrame | None]:
        """Return an image as what the model takes: a condition, the first frame, or both.

        A model that has learned to continue given frames begins the video with the image. Where a
        prompt is empty, the image's CLIP embedding also takes the place of the text, if the model
        has an image encoder. Other models take the embedding alone, as a condition.

        Args:
            image: A file or an image, or None for neither.
            prompts: The texts beside it.
            settings: They tell the size of the frames.

        Raises:
            UserError: If the model takes no image, or the file is missing or no image.
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
        """Return an image as condition: its CLIP embedding.

        Raises:
            UserError: If the model takes no image, or the file is missing or no image.
        """
        self.image_condition_models  # noqa: B018 - refuses before anything is loaded
        with self.load_components("image_encoder"):
            encoder, _ = self.image_condition_models
            return encode_image_condition(encoder, image, self._execution_device)

    def encode_first_frame(self, image: ImageInput, settings: GenerationSettings) -> FirstFrame:
        """Return an image as first frame: its latents.

        The image is scaled until it covers the frame, and its centre is cut out.

        Raises:
            UserError: If the model makes no videos of this size, or the file is missing or no
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
        """Make `num_videos_per_prompt` videos for each prompt.

        Videos are made one at a time, so that a seed gives the same video in any batch.

        Args:
            prompt: Text, or several.
            negative_prompt: What guidance moves away from; one text, or one for each prompt.
            image: With a model that has learned to continue given frames, the first frame of the
                video: scaled until it covers the frame, with the centre cut out. With others an
                image as condition. In place of the text or beside it.
            extend: A video file, which the new frames continue; its own frames come first in the
                result. Needs a model that has learned to continue given frames. Without a prompt
                and a seed, those that the file records.
            seconds: Length of the video, in place of `num_frames`; with `extend` of what is added.
            height: Of the finished video, in pixels; by default what the model was trained for.
            width: Likewise.
            num_frames: Key frames, by default as many as the denoiser was trained with. More need
                a model that has learned to continue given frames. Interpolation inserts new frames
                between them. With `extend`, the number of those that are added.
            fps: Key frames per second: the network paces the motion by it.
            motion: How much moves: 0 is the mean of the training clips, 1 a standard deviation
                more. Needs a model that was trained with a motion score. By default the motion is
                left to the model.
            overlap: Key frames that each part of a long video takes over from the part before it.
            num_inference_steps: Diffusion steps of the key frames.
            guidance_scale: 1 is no guidance.
            guidance_stop: Fraction of those steps after which guidance ends; 1 guides all of them.
            num_videos_per_prompt: Videos of each prompt, with a seed each.
            seed: One for each video, or that of the first, from which the others count up. By
                default random ones, to be found in the request of each video.
            generator: The seeds are drawn from it in place of `seed`; or one for each video.
            latents: Initial noise of the key frames, `b f c h w`, in place of noise by seed.
            prompt_embeds: Condition in place of `prompt`, `b l d`, as `encode_prompt` returns it.
            negative_prompt_embeds: Likewise in place of `negative_prompt`.
            scheduler: `ddim`, `dpm++`, `unipc`, `euler` or `lcm`. By default the one that was
                assigned to `pipeline.scheduler`, or else the model's own.
            stages: `keyframes`, and any of `interpolation` and `upscaler` after it; by default all
                that the model has.
            interpolation_steps: Diffusion steps of the interpolation.
            upscaler_steps: Diffusion steps of the super-resolution.
            output_type: `pil`, `np`, `pt` or `latent`.
            return_dict: Return a `VideoOutput`; otherwise the tuple of its fields.
            callback_on_step_end: Called after each step of the key frames of each video with the
                pipeline, the step, the timestep and a dict of tensors; what it returns takes their
                place. It may set `pipeline._interrupt`: the call then ends with this video.
            callback_on_step_end_tensor_inputs: Names of these tensors. `pred_original_sample` is
                the present estimate of the clean latents, which `preview` shows; in it are all
                frames that are sampled together, also given ones.
            progress: Called with a stage, the steps done in it, from 0 on, and their number; of
                decoding these are frames. It takes the place of the progress bars.

        Raises:
            UserError: If a value is out of its range.
        """
        _check_output_type(output_type, _OUTPUT_TYPES)
        # numpy's numbers and any sequences become plain ones in it
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
        """Return the names of the tensors that a callback gets; diffusers' own name theirs.

        Raises:
            UserError: If there is no such tensor.
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
        """Return settings with the number of key frames, and the video that is continued, if any.

        Args:
            settings: What the caller chose.
            seconds: Length of the video, or of what is added.
            extend: A video file to continue.
            image: How else the video may begin; it is looked at elsewhere.

        Raises:
            UserError: If a value is out of the model's range.
        """
        length = None if seconds is None else float(seconds)
        if extend is not None:
            if image is not None:
                raise UserError(
                    "Both an image and a video to extend tell how the video begins; give one."
                )
            return self.continue_video(Path(extend), settings, length)
        if length is not None:
            settings = self.capabilities.with_length(settings, length)
        return settings, None

    @torch.no_grad()
    def continue_video(
        self, path: Path, settings: GenerationSettings, seconds: float | None = None
    ) -> tuple[GenerationSettings, ContinuedVideo]:
        """Return a video file as what new frames continue, and complete settings for it.

        Args:
            path: The video.
            settings: What the caller chose; `num_frames` is the number of new key frames.
            seconds: Length of what is added, in place of that number.

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
                    "This model was trained without given frames, so its videos have an end; give "
                    "seconds."
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
        """Make one video: the whole flow.

        Between its two halves `latent_checkpoint.write_latents` can keep what the first one made.

        Args:
            request: What to make.
            progress: Called with a stage, the steps done in it and their number.
            chunks: What decoder and upscaler process at once, by default `self.chunks`.

        Raises:
            UserError: If the request is for another model, or beyond this one.
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
        """Yield the frames of one video, pixels in [-1, 1], each made when it is asked for.

        They are to the last bit those of `generate`. The networks of all stages are in memory.

        Args:
            request: What to make.
            progress: Called with a stage, the steps done in it and their number; of writing these
                are frames.
            chunks: What decoder and upscaler process at once, by default `self.chunks`.
            inputs: What decides the video beside its request. Of a video that is extended, the new
                frames alone are yielded.
            made: Key frames that an earlier attempt has made, whole windows from the first on.
            on_keys: Called with the key frames of each window that was not there before.
            is_endless: Make windows without end; the request's number of frames does not count.

        Raises:
            UserError: If the request is for another model, or beyond this one.
        """
        inputs, chunks = inputs or CallInputs(), chunks or self.chunks
        self.capabilities.validate(request)
        self.capabilities.check_loras(request)
        with self.load_components("text_encoder", "image_conditioner"):
            tokens, negative_tokens = self.encode_condition(request, inputs)
        shown = None if is_endless else progress
        # all stages at once: what is between them would grow with the video
        with self.load_components("unet", "interpolator", "vae", "upscaler"):
            latents = self._iter_latents(
                request, tokens, negative_tokens, shown, inputs, made, on_keys, is_endless
            )
            frames = iter_decode(self.vae, rebatch(latents, chunks.decoder_frames))
            if inputs.extend is not None:
                # what was given was decoded, too, since a video decoder remembers earlier frames
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
            # the last key frame again: what lies between two windows is interpolated, too
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
        """Return the latents of all frames: the first half of the flow.

        Raises:
            UserError: If the request is for another model, or beyond this one.
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
        """Return the video of finished latents: the second half of the flow.

        Raises:
            UserError: If the latents are of another shape than the request's, a tile is too small
                for the upscaler, or a number is not finite.
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
        """Return what `prompt_embeds` and `negative_prompt_embeds` of a call may be.

        Args:
            prompt: Text, or several.
            negative_prompt: One text for all, or one for each prompt.
            num_videos_per_prompt: How often each row is repeated.
            do_classifier_free_guidance: Whether the negative prompts are encoded, too.
            device: Where the result goes, by default where the networks are.
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
        """Return the tokens of the condition, and those that guidance moves away from.

        An image alone takes the place of the text, as in training. Beside a text its tokens are
        joined to the text's, and attention weighs them; no training stage has seen such pairs.
        """
        inputs = inputs or CallInputs()
        device = self._execution_device
        text, negative = inputs.prompt_embeds, inputs.negative_prompt_embeds
        if text is None:
            text = self._encode_texts([request.prompt])
        if negative is None:
            guided = request.guidance_scale != 1.0
            # without guidance it is never looked at, and there may be no text encoder
            negative = self._encode_texts([request.negative_prompt]) if guided else text
        text, negative = text.to(device), negative.to(device)
        if text.shape[-1] != negative.shape[-1] or text.shape[1] != negative.shape[1]:
            raise UserError(
                f"prompt_embeds have the shape {list(text.shape)} and negative_prompt_embeds "
                f"{list(negative.shape)}; give both in one shape."
            )
        if request.image_condition is None:
            return text, negative
        _, conditioner = self.image_condition_models
        embedding = torch.from_numpy(embedding_of(request.image_condition)).to(device, self.dtype)
        width = conditioner.config.embedding_dim
        if len(embedding) != width:
            raise UserError(
                f"The image's embedding has {len(embedding)} values; this model's have {width}."
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
        """Return the latents of the key frames, in single precision like the noise."""
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
        """Yield the latents of the key frames, window by window, each frame once.

        The last frames of a window are the given frames of the next one, `request.overlap` of them.
        Directed attention lets the new frames see them as if both had been sampled together.

        Args:
            request: What to make.
            tokens: Condition of the video.
            negative_tokens: What guidance moves away from.
            progress: Called with `key frames`, the steps done and their number, of all windows.
            inputs: What decides the video beside its request.
            made: Key frames that are there already, whole windows from the first on.
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
        """Return the clean latents of the key frames that the video begins with, if any."""
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
        """Return the new key frames of a window, after its given ones."""
        device = self._execution_device
        noise = self._window_noise(request, window, inputs).to(device, torch.float32)
        if window.first == window.stop:
            return noise  # of no frame: the given one is the whole video
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

        Training draws the noise of all frames of a clip together and then replaces given frames by
        clean ones. So what is left has the same stationary covariance as any run of frames, and
        does not depend on given frames: their noise is nowhere in the input. Therefore each window
        draws anew, with that covariance, whatever the noise of the frames before it was.
        """
        rows, columns = self.capabilities.latent_size(request)
        frame = (self.unet.config.in_channels, rows, columns)
        if inputs.latents is not None:
            _check_latents(inputs.latents, (1, request.num_frames, *frame))
            return inputs.latents[:, window.first : window.stop]
        # the first window draws for a given first frame, too, so that it has the noise of the
        # same video without it
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
        """Return a fresh scheduler for a stage.

        Args:
            stage: `keyframes`, `interpolation` or `upscaler`.
            request: Names the scheduler; without one it is the default.
        """
        capabilities = self.capabilities
        name = request.scheduler if request else capabilities.default("scheduler")
        options = request.scheduler_options if request else capabilities.scheduler_options
        # LCM adds fresh noise at every step; the stages that follow the key frames must not flicker
        # and a flow map is one of key frames
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
        """Return the latents after a callback, or None if it interrupts the call."""
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

        The network's view of the key frames is noised up to `noise_level`, by default the model's
        own. Of a long video, the gaps are batched by the windows of the key frames.
        """
        steps = request.interpolation_steps
        longest = self.capabilities.max_frames
        # given frames at the start of the first window are part of it, so it begins at 0
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
        """Return the latents of some key frames of a video and of the frames between them."""
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
        """Return the frames of latents."""
        on_chunk = None if progress is None else partial(progress, "decoding")
        return decode_latents(self.vae, latents, (chunks or self.chunks).decoder_frames, on_chunk)

    def upscale(
        self,
        request: Request,
        frames: Frames,
        progress: ProgressCallback | None = None,
        chunks: ChunkSizes | None = None,
    ) -> Float[Tensor, "b f 3 tall wide"]:
        """Return large frames."""
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
        """Return small frames of latents, pixels in [-1, 1], by a linear map.

        A model folder may hold the map, fitted to real frames. Otherwise it is fitted to the
        decoder at the first call, which takes as long as decoding some 50 frames. A callback gets
        suitable latents as `pred_original_sample`.
        """
        if self.latent_preview is None:
            with self.load_components("vae"):
                self.latent_preview = LatentPreview.fit_to_decoder(self.vae)
        return self.latent_preview(latents)

    @torch.no_grad()
    def fit_preview(self, frames: Frames) -> None:
        """Fit the map of `preview` to frames of real clips; `save_pretrained` keeps it.

        Args:
            frames: Pixels in [-1, 1], at the size of key frames.
        """
        with self.load_components("vae"):
            self.latent_preview = LatentPreview.fit_to_decoder(self.vae, frames)

    # ------------------------------------------------------------------ what callbacks read

    @property
    def guidance_scale(self) -> float:
        """Return the guidance scale of the running or last video; a callback may change it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Return whether the running or last video is guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Return the number of diffusion steps of the running or last video."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Return whether a callback has interrupted the call."""
        return self._interrupt

    def _show_progress(self) -> ProgressCallback:
        """Return what draws a progress bar for each stage."""
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if done == 0 or stage not in bars:
                bars[stage] = self.progress_bar(total=total)
                bars[stage].set_description(stage)
            bars[stage].update(done - bars[stage].n)
            if done == total:
                bars.pop(stage).close()

        return show


def _pair_prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Tokens | None,
    negative_prompt_embeds: Tokens | None,
    *,
    has_image: bool,
) -> tuple[list[str], list[str]]:
    """Return one prompt and one negative prompt for each row of the batch.

    Raises:
        UserError: If text and embeddings are both given, none is, or their numbers differ.
    """
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text and embeds is not None:
            raise UserError(f"Both {name} and {name}_embeds are given; leave one of them out.")
        if embeds is not None and embeds.ndim != 3:
            raise UserError(
                f"{name}_embeds have the shape {list(embeds.shape)}; give batch, tokens, width."
            )
    if prompt_embeds is not None:
        prompts = [""] * len(prompt_embeds)
    else:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if prompt is None and has_image:
            prompts = [""]
        if not prompts:
            raise UserError("There is no prompt; say what the video should show.")
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
            "for each."
        )
    return prompts, negatives


def _draw_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None,
    seed: SupportsIndex | Iterable[SupportsIndex] | None,
    count: int,
) -> list[int]:
    """Return the seed of each video, drawn from generators where they are given.

    A seed is what a file can hold, so a video that was made with a generator can be made again.
    """
    if generator is None:
        return resolve_seeds(seed, count)
    if seed is not None:
        raise UserError("Both seed and generator are given; leave one of them out.")
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise UserError(
            f"{len(generators)} generators were given for {count} videos; give one, or one for "
            "each."
        )
    return [
        int(torch.randint(0, 2**32, (), generator=one, device=one.device)) for one in generators
    ]


def _check_output_type(output_type: str, allowed: Sequence[str]) -> None:
    if output_type not in allowed:
        raise UserError(
            f"The output type {output_type!r} is not known; choose {', '.join(allowed)}."
        )


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
        advice = "; their axes are b c f h w here, give b f c h w: latents.transpose(1, 2)"
    raise UserError(
        f"The latents of a video have the shape {list(latents.shape)[1:]}; {list(expected)[1:]} is "
        f"asked for{advice}."
    )


def _to_output(made: Sequence[Video | Latents], output_type: str) -> VideoOutput:
    """Return what a call has made as its output."""
    if output_type != "latent":
        videos = [video for video in made if isinstance(video, Video)]
        return VideoOutput(frames=_postprocess(videos, output_type), videos=videos)
    latents = [one for one in made if isinstance(one, Tensor)]
    is_whole = len({one.shape for one in latents}) == 1
    frames = torch.cat(latents) if is_whole else [one[0] for one in latents]
    return VideoOutput(frames=frames, videos=[])


def _convert_frame(frame: Float[Tensor, "3 h w"], output_type: str) -> Any:  # noqa: ANN401
    """Return one frame, pixels in [-1, 1], as an output type has it."""
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
    """Return whether all videos have one shape; an interrupted one has fewer frames."""
    return len({video.frames.shape for video in videos}) == 1


def rebatch(
    parts: Iterable[Float[Tensor, "_ c h w"]], size: int
) -> Iterator[Float[Tensor, "_ c h w"]]:
    """Yield the same frames in order, `size` at a time; the last batch may have fewer."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting = list(torch.split(torch.cat([*waiting, part]), size))
        while waiting and len(waiting[0]) == size:
            yield waiting.pop(0)
    yield from waiting


def _skip(
    parts: Iterable[Float[Tensor, "_ c h w"]], count: int
) -> Iterator[Float[Tensor, "_ c h w"]]:
    """Yield the same frames in order but for the first `count`."""
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
