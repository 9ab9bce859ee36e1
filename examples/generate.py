"""Make two videos with the model that is shipped, and one of them again from its file.

Run it with `python examples/generate.py`; the videos appear in the present folder.
"""

from pathlib import Path

import torch

from magicvideo import MagicVideoPipeline, read_request


def main(model: Path | None = None, folder: Path = Path()) -> None:
    """Write `heart.mp4` and `surfer.mp4`.

    Args:
        model: A model folder; by default the model that is shipped.
        folder: Where the videos go.
    """
    pipeline = MagicVideoPipeline.from_pretrained(model)
    prompts = ["red heart, white background", "woman surfing, blue background"]
    output = pipeline(prompts, seed=7)
    for name, video in zip(("heart", "surfer"), output.videos, strict=True):
        video.save(folder / f"{name}.mp4", overwrite=True)

    # a file tells all that is needed to make it again
    again = pipeline.generate(read_request(folder / "surfer.mp4"))
    assert torch.equal(again.frames, output.frames[1])


if __name__ == "__main__":
    main()
