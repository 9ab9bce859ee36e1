"""Videos in VBench's layout: `PROMPT-INDEX.mp4`, several of each prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magicvideo.evaluate.benchmark.made import numbered_name
from magicvideo.generate.pipeline import MagicVideoPipeline
from magicvideo.generate.request import Settings


@dataclass(frozen=True)
class Export:
    """One video to make."""

    prompt: str
    seed: int
    file: str


def plan_export(prompts: list[str], per_prompt: int, seed: int) -> list[Export]:
    """Return every video of some prompts, each with a seed of its own.

    Prompts that are there twice are taken once, since their files would have the same names.

    Raises:
        UserError: If a prompt cannot be a file's name.
    """
    return [
        Export(prompt, seed + place * per_prompt + number, f"{numbered_name(prompt, number)}.mp4")
        for place, prompt in enumerate(dict.fromkeys(prompts))
        for number in range(per_prompt)
    ]


def export(
    pipeline: MagicVideoPipeline,
    wanted: list[Export],
    folder: Path,
    on_video: Callable[[int], None],
) -> None:
    """Write the videos that are not there yet, by all stages of the model.

    Raises:
        UserError: If one cannot be made or written.
    """
    for done, one in enumerate(wanted, start=1):
        path = folder / one.file
        if not path.is_file():
            (request,) = pipeline.traits.plan([one.prompt], [one.seed], Settings(), None)
            pipeline.generate(request).save(path)
        on_video(done)
