"""A recipe so small that all its stages train in seconds."""

from magicvideo.training.progress import LineReporter

STAGES = (
    "autoencoder",
    "clip",
    "image",
    "unsupervised",
    "keyframes",
    "interpolation",
    "video_vae",
)
SHARED = {
    "batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "log_every": 1,
    "mixed_precision": "no",
}


def tiny_values(data, output):
    """Return the recipe as a mapping, as it would stand in a YAML file."""
    return {
        "name": "tiny",
        "data": str(data),
        "output": str(output),
        "seed": 5,
        "unet": {
            "block_out_channels": [8, 12],
            "attention_levels": [True, False],
            "attention_heads": 2,
            "norm_num_groups": 2,
            "num_frames": 4,
        },
        "autoencoder": {
            **SHARED,
            "steps": 4,
            "model": {
                "latent_channels": 5,
                "widths": [6, 10],
                "norm_num_groups": 2,
                "encoder_layers": [2, 1],
                "decoder_layers": [1, 2],
            },
        },
        "clip": {
            **SHARED,
            "steps": 4,
            "vocabulary_size": 560,
            "max_tokens": 16,
            "width": 14,
            "heads": 2,
            "text_layers": 1,
            "image_layers": 1,
        },
        "image": {**SHARED, "steps": 4, "preview_every": 2},
        "unsupervised": {
            **SHARED,
            "steps": 4,
            "image_condition": 1.0,
            "gradient_accumulation_steps": 2,
        },
        "keyframes": {**SHARED, "steps": 4, "image_condition": 0.3, "preview_every": 3},
        "interpolation": {
            **SHARED,
            "steps": 4,
            "num_inserted": 2,
            "estimate_channels": 8,
            "estimate_blocks": 1,
            "denoise_every": 3,
            "preview_every": 3,
        },
        "video_vae": {
            **SHARED,
            "steps": 4,
            "preview_every": 3,
            "num_frames": 5,
            "temporal_heads": 2,
            "temporal_window_size": 4,
        },
    }


def task_of(recipe, name):
    """Return the task of a stage of a recipe."""
    from magicvideo.training.resolve import plan_stage
    from magicvideo.training.stages import build_task

    return build_task(plan_stage(recipe, name))


def report_to(write):
    """Return a reporter that gives every line, of every update too, to a function."""
    return LineReporter(write, interval=0.0)
