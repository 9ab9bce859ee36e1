"""A complete model with random weights: every class is real, all sizes are small and differ."""

import torch
from diffusers import DDIMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from magicvideo.models.autoencoder import PatchAutoencoder
from magicvideo.models.conditioning import ImageConditioner
from magicvideo.models.interpolator import Interpolator
from magicvideo.models.unet import VideoUNet
from magicvideo.models.upscaler import Upscaler
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.training.tasks.clip_model import train_tokenizer

FRAMES, LATENT_SIDE, PATCH, LATENT_CHANNELS = 5, 4, 6, 3
SIDE = LATENT_SIDE * PATCH
TOKENS, TEXT_WIDTH, EMBEDDING = 13, 20, 14
SHARED_NOISE, INSERTED, UPSCALING = 0.3, 2, 2
VIDEO_FRAMES = FRAMES + (FRAMES - 1) * INSERTED
AUTOENCODER = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": PATCH,
    "widths": (8, 12),
    "encoder_layers": (1, 1),
    "decoder_layers": (1, 1),
    "norm_num_groups": 4,
}
WORDS = ("cat", "dog", "surfing", "woman", "blue", "background")


def make_tiny_pipeline() -> MagicVideoPipeline:
    """Return a pipeline whose weights are random, the neutral ones too."""
    torch.manual_seed(7)
    captions = ["a woman surfing, blue background", "a cat", "a dog"]
    tokenizer = train_tokenizer(captions, vocabulary_size=530, max_tokens=TOKENS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=22,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=18,
        num_hidden_layers=1,
        num_attention_heads=3,
        image_size=16,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    unet = VideoUNet(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        num_frames=FRAMES,
    )
    pipeline = MagicVideoPipeline(
        vae=PatchAutoencoder(**AUTOENCODER),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        image_encoder=CLIPVisionModelWithProjection(vision),
        image_conditioner=ImageConditioner(EMBEDDING, TEXT_WIDTH),
        unet=unet,
        interpolator=Interpolator(
            latent_channels=LATENT_CHANNELS,
            num_inserted=INSERTED,
            residual_scale=0.6,
            estimate_channels=8,
            estimate_blocks=1,
            sample_size=LATENT_SIDE,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(12, 16),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        upscaler=Upscaler(factor=UPSCALING, widths=(6, 10), num_blocks=(1, 1), residual_scale=0.4),
        upscaler_scheduler=DDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
        ),
        generation_defaults={
            "fps": 7.0,
            "num_inference_steps": 3,
            "interpolation_steps": 2,
            "upscaler_steps": 2,
        },
        interpolation_noise_level=30,
        upscaler_noise_level=0.1,
        noise_correlation=SHARED_NOISE,
        license="Apache-2.0",
    )
    for network in (
        pipeline.vae,
        pipeline.image_conditioner,
        pipeline.unet,
        pipeline.interpolator,
        pipeline.upscaler,
    ):
        _make_random(network)
    pipeline.words = frozenset(WORDS)
    return pipeline


def frames_of(pipeline: MagicVideoPipeline, *prompts: object, **settings: object) -> torch.Tensor:
    """Return the frames of all videos of a call, in [-1, 1]."""
    output = pipeline(*prompts, **settings, progress=lambda *_: None)
    return torch.stack([video.frames for video in output.videos])


@torch.no_grad()
def _make_random(network: torch.nn.Module) -> None:
    # layers that start at zero would hide from the tests whatever passes through them
    for parameter in network.eval().parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
