"""Random LoRAs for tests in all file layouts."""

import torch
from safetensors.torch import save_file

from magicvideo.models.lora import LoraWeights

RANK, ALPHA = 3, 5.0
SPATIAL = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("resnets.0.conv1", "conv_shortcut", "time_emb_proj")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")


def random_updates(network, endings, *, alpha=ALPHA, size=0.3):
    """Updates of all layers of a network whose names end so."""
    updates = {}
    for name, module in network.named_modules():
        if not name.endswith(tuple(f".{ending}" for ending in endings)):
            continue
        out, width, *kernel = module.weight.shape
        updates[f"{name}.weight"] = LoraWeights(
            down=torch.randn(RANK, width, *kernel) * size,
            up=torch.randn(out, RANK, *(1 for _ in kernel)) * size,
            alpha=alpha,
        )
    return updates


def _layers(updates):
    return {name.removesuffix(".weight"): update for name, update in updates.items()}


def in_peft_names(component, updates):
    """`unet.….to_q.lora_A.weight`: the layout of peft, and of diffusers today."""
    found = {}
    for layer, update in _layers(updates).items():
        found[f"{component}.{layer}.lora_A.weight"] = update.down
        found[f"{component}.{layer}.lora_B.weight"] = update.up
    return found


def in_old_names(component, updates):
    """`unet.….attn1.processor.to_q_lora.down.weight`, `text_encoder.text_model.….to_q_lora…`."""
    found = {}
    attention = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for layer, update in _layers(updates).items():
        name, text = layer.replace("to_out.0", "to_out"), component == "text_encoder"
        name = name.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
        if text:
            name = f"text_model.{layer.removeprefix('text_model.')}"
            for new, old in attention.items():
                name = name.replace(new, old)
        joint = "_lora" if ".to_" in name else ".lora_linear_layer" if text else ".lora"
        found[f"{component}.{name}{joint}.down.weight"] = update.down
        found[f"{component}.{name}{joint}.up.weight"] = update.up
    return found


def in_middle_names(component, updates):
    """`unet.….to_q.lora.down.weight`, `text_encoder.….q_proj.lora_linear_layer.down.weight`."""
    found = {}
    joint = ".lora_linear_layer" if component == "text_encoder" else ".lora"
    for layer, update in _layers(updates).items():
        found[f"{component}.{layer}{joint}.down.weight"] = update.down
        found[f"{component}.{layer}{joint}.up.weight"] = update.up
    return found


def in_kohya_names(component, updates, *, alpha=True):
    """`lora_unet_…_to_q.lora_down.weight` and `.alpha`; `lora_te_text_model_…`."""
    prefix = "lora_te_text_model_" if component == "text_encoder" else "lora_unet_"
    found = {}
    for layer, update in _layers(updates).items():
        name = prefix + layer.removeprefix("text_model.").replace(".", "_")
        found[f"{name}.lora_down.weight"] = update.down
        found[f"{name}.lora_up.weight"] = update.up
        if alpha:
            found[f"{name}.alpha"] = torch.tensor(update.alpha)
    return found


LAYOUTS = {
    "peft": in_peft_names,
    "diffusers' first": in_old_names,
    "diffusers' second": in_middle_names,
    "kohya": in_kohya_names,
}


def write_style(path, pipeline, *, alpha=ALPHA):
    """Write a LoRA of a pipeline's U-Net and text encoder, as kohya's scripts do."""
    tensors = {
        **in_kohya_names("unet", random_updates(pipeline.unet, SPATIAL, alpha=alpha)),
        **in_kohya_names("text_encoder", random_updates(pipeline.text_encoder, TEXT, alpha=alpha)),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
