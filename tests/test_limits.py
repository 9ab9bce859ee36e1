"""Configurations with absurd sizes are refused before anything is built."""

import json

import pytest

from magicvideo.errors import UserError
from magicvideo.limits import check_model_config
from magicvideo.pipelines.model_folder import BUNDLED_MODEL_DIR


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"layers_per_block": 10**7}, "layers_per_block is 10000000; it must be an integer"),
        ({"decoder_layers": [10**7, 1]}, "decoder_layers is 10000000"),
        ({"estimate_blocks": 10**7}, "estimate_blocks is 10000000"),
        ({"block_out_channels": [8] * 10**6}, "the length of block_out_channels is 1000000"),
        ({"block_out_channels": [8] * 50, "layers_per_block": 50}, "levels times layers is 2500"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1000000"),
        ({"num_train_timesteps": 2 * 10**9}, "num_train_timesteps is 2000000000"),
        ({"model_max_length": 10**9}, "model_max_length is 1000000000"),
        ({"vocab_size": 10**10}, "vocab_size is 10000000000"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0; it must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1"),
        ({"cross_attention_dim": -3}, "cross_attention_dim is -3"),
        ({"scaling_factor": 0.0}, r"scaling_factor is 0\.0; it must be above 0"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas is nan; it must be a finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_absurd_sizes_are_named(config, sentence):
    with pytest.raises(UserError, match=rf"x\.json: .*{sentence}"):
        check_model_config("x.json", config)


def test_configs_of_real_models_are_within_the_limits():
    configs = list(BUNDLED_MODEL_DIR.rglob("*config.json"))
    assert len(configs) >= 8
    for path in configs:
        check_model_config(str(path), json.loads(path.read_text(encoding="utf-8")))
    # Stable Diffusion's own, with what transformers adds
    check_model_config(
        "x",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "vocab_size": 49408,
            "eos_token_id": 49407,
            "pad_token_id": -1,
            "max_position_embeddings": 77,
            "_num_labels": 2,
            "vision_config": {"image_size": 224, "layers": 24},
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "steps_offset": 1,
        },
    )
