"""Limits for untrusted files, checked before memory is allocated.

A small file can state a huge frame, a million layers or text nested without end. Each limit lies
well above what honest files need; what exceeds one is refused with a sentence that names it.
"""

import json
import math
from collections.abc import Iterator, Mapping

from magicvideo.errors import UserError

# Video and pictures
MAX_FRAME_PIXELS = 4096 * 4096
"""Of a frame that is decoded: 5.3K cameras fit, and a decoder's reference frames stay in memory."""
MAX_CLIP_FRAMES = 5000
"""Of a training clip; its frames are in memory while it is prepared."""
MAX_CLIP_BYTES = 1 << 30
"""Of all decoded frames of a clip that is held at its own size."""
MAX_ANIMATION_FRAMES = 20_000
"""Of a GIF or WebP, whose frames take time to find even where each is a few bytes."""
MAX_ANIMATION_PIXELS = 1 << 30
"""Of all frames of a GIF or WebP together: 1,024 frames of 1024x1024."""
MAX_IMAGE_PIXELS = 50_000_000
"""Of a still picture, the largest that cameras make; converting it takes about 1 GB."""

# Text
MAX_TEXT_BYTES = 64 << 20
"""Of a file of prompts, captions, metadata, settings or JSON."""
MAX_RECIPE_BYTES = 1 << 18
"""Of a recipe; its parser takes seconds for a megabyte."""
MAX_LINE_LENGTH = 1 << 20
"""Characters of a line of a file that is read line by line."""

# Model folders and checkpoints
MAX_LATENTS = 1 << 27
"""Numbers in a file of kept latents: 8,000 frames of 512x512."""
MAX_HEADER_BYTES = 100 << 20
"""Of the JSON header of a safetensors file; the format's own limit."""
MAX_LAYERS = 1000
"""Of layers, blocks or levels that a config asks for."""
MAX_WIDTH = 1 << 16
"""Of channels, heads or features of a layer."""
MAX_VOCABULARY = 1 << 21
"""Of tokens."""
MAX_TRAIN_TIMESTEPS = 100_000
"""Of steps of a noise schedule, each of which is a number in memory."""
MAX_TOKENS = 1 << 16
"""Of a prompt."""
MAX_THREADS = 4096
"""Of the CPU, in the settings of a video; never more are started than there are cores."""


# the limit of a number by a part of its name; the first that fits counts
_LIMITS = (
    ("layers", MAX_LAYERS),
    ("blocks", MAX_LAYERS),
    ("timesteps", MAX_TRAIN_TIMESTEPS),
    ("vocab", MAX_VOCABULARY),
    ("max_length", MAX_TOKENS),
    ("position", MAX_TOKENS),
    ("channels", MAX_WIDTH),
    ("dim", MAX_WIDTH),
    ("width", MAX_WIDTH),
    ("size", MAX_WIDTH),
    ("heads", MAX_WIDTH),
    ("groups", MAX_WIDTH),
    ("num_frames", MAX_WIDTH),
)


def check_count(name: str, value: object, most: int) -> None:
    """Check that a count in a file is an integer from 0 to `most`.

    Args:
        name: What is counted, as the start of the sentence.
        value: What the file says.
        most: The limit, one of this module's.

    Raises:
        UserError: If the count is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UserError(f"{name} is {value!r:.60}; it must be an integer from 0 to {most:,}.")


def check_model_config(source: str, config: Mapping[str, object]) -> None:
    """Refuse a config that asks for a network, schedule or tokenizer of absurd size.

    Args:
        source: Its file, for the sentence.
        config: As read from JSON; entries may be nested.

    Raises:
        UserError: If a number or the length of a list is out of range, or a number not finite.
    """
    depth = width = 1
    for name, value in _entries(config):
        if isinstance(value, list):
            width = max(width, len(value))
            check_count(f"{source}: the length of {name}", len(value), MAX_LAYERS)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{source}: {name} is {value}; it must be a finite number.")
        elif name.endswith("scaling_factor") and isinstance(value, int | float) and value <= 0:
            raise UserError(f"{source}: {name} is {value}; it must be above 0.")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = next((most for part, most in _LIMITS if part in name), MAX_VOCABULARY)
            if value < 0 and not any(part in name for part, _ in _LIMITS):
                continue  # such as an offset or a token id of -1
            check_count(f"{source}: {name}", value, most)
            if value == 0 and any(part in name for part in ("groups", "heads")):
                raise UserError(f"{source}: {name} is 0; it must be at least 1.")
            if most == MAX_LAYERS:
                depth = max(depth, value)
    # each level of a U-Net has all layers
    check_count(f"{source}: the number of levels times layers", depth * width, MAX_LAYERS)


def _entries(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every list and number of a config, with the name of the entry that holds it."""
    yield name, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entries(inner, str(key))
    elif isinstance(value, list):
        for inner in value[: MAX_LAYERS + 1]:
            yield from _entries(inner, name)


def parse_json(text: str | bytes) -> object:
    """Parse untrusted JSON.

    Raises:
        ValueError: If it is not JSON, or nested too deeply for the parser.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
