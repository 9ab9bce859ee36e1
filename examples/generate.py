"""Generate two videos with the bundled model, and recreate one of them from its file.

Run `python examples/generate.py`; it writes to the current folder.
"""

from pathlib import Path

import torch

from magicvideo import MagicVideoPipeline, read_request


def main(model: Path | None = None, folder: Path = Path()) -> None:
    """Write `heart.mp4` and `surfer.mp4`.

    Args:
        model: A model folder; by default the bundled model.
        folder: Output folder.
    """
    pipeline = MagicVideoPipeline.from_pretrained(model)
    prompts = ["red heart, white background", "woman surfing, blue background"]
    output = pipeline(prompts, seed=7)
    for name, video in zip(("heart", "surfer"), output.videos, strict=True):
        video.save(folder / f"{name}.mp4", overwrite=True)

    # every file stores its request
    again = pipeline.generate(read_request(folder / "surfer.mp4"))
    assert torch.equal(again.frames, output.videos[1].frames)


if __name__ == "__main__":
    main()
