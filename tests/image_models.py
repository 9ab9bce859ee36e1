"""Small models with the structure of Stable Diffusion and random weights, made by diffusers."""

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from networks import randomise
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
)

from magicvideo.convert.single_file import (
    map_clip_key,
    map_open_clip_key,
    map_unet_key,
    map_vae_key,
)
from magicvideo.training.tasks.clip_model import train_tokenizer

TOKENS, EMBEDDING, SIDE, FACTOR = 11, 14, 10, 2
UNET = {
    "1.x": {
        "block_out_channels": (32, 64),
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    },
    "2.x": {
        "block_out_channels": (64, 128),
        "cross_attention_dim": 128,
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
    },
}
PREDICTION = {"1.x": "epsilon", "2.x": "v_prediction"}


def make_stable_diffusion(version="1.x"):
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        **UNET[version],
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 96),
        latent_channels=4,
    )
    tokenizer = train_tokenizer(["a cat", "a red dog"], vocabulary_size=520, max_tokens=TOKENS)
    width = UNET[version]["cross_attention_dim"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=22,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=TOKENS,
        hidden_act={"1.x": "quick_gelu", "2.x": "gelu"}[version],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = {
        "hidden_size": 12,
        "intermediate_size": 18,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "image_size": 16,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, projection_dim=EMBEDDING)
    )
    return StableDiffusionPipeline(
        unet=randomise(unet),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
            prediction_type=PREDICTION[version],
        ),
        safety_checker=checker.eval(),
        feature_extractor=CLIPImageProcessor(),
    )


def stored_parts(parts, version):
    """The tensors of networks, each under the name of the original layout."""
    levels = parts["unet"].config.up_block_types
    attends_up = tuple(kind.startswith("CrossAttn") for kind in levels)
    places = {
        "unet": lambda name: map_unet_key(name, parts["unet"].config.layers_per_block, attends_up),
        "vae": lambda name: map_vae_key(name, len(parts["vae"].config.block_out_channels)),
        "text_encoder": lambda name: {"1.x": map_clip_key, "2.x": map_open_clip_key}[version](
            name.removeprefix("text_model.")
        ),
    }
    stored, thirds = {}, {}
    for part, place_of in places.items():
        for name, tensor in parts[part].state_dict().items():
            place = place_of(name)
            if part == "vae" and ".attentions." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            if place.third is None:
                assert place.name not in stored
                stored[place.name] = tensor.clone()
            else:
                thirds.setdefault(place.name, {})[place.third] = tensor
    for name, rows in thirds.items():
        stored[name] = torch.cat([rows[0], rows[1], rows[2]])
    return stored


def original_layout(model, version):
    """The tensors of a model as its authors would store them, and what they store beside them."""
    stored = stored_parts(model.components, version)
    beside = {
        "alphas_cumprod": model.scheduler.alphas_cumprod.clone(),
        "model_ema.decay": torch.tensor(0.999),
    }
    if version == "2.x":
        beside["cond_stage_model.model.logit_scale"] = torch.tensor(1.0)
        beside["cond_stage_model.model.text_projection"] = torch.zeros(128, 128)
        for name in [name for name in stored if "resblocks.1." in name]:
            beside[name.replace("resblocks.1.", "resblocks.2.")] = stored[name] + 1
    return stored, beside
