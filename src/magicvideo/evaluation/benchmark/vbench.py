"""Videos in VBench's layout: `PROMPT-INDEX.mp4`, several of each prompt."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.prompts import vbench_name
from magicvideo.pipelines.request import GenerationSettings, Request
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from magicvideo.pipelines.video import read_request

_SHOWN = 40  # characters of a value, enough to tell two hashes apart


@dataclass(frozen=True)
class VBenchVideo:
    """One video to make."""

    prompt: str
    seed: int
    file: str


def plan_export(prompts: list[str], per_prompt: int, seed: int) -> list[VBenchVideo]:
    """Return every video of some prompts, each with a seed of its own.

    Prompts that are there twice are taken once, since their files would have the same names.

    Raises:
        UserError: If a prompt cannot be a file's name.
    """
    return [
        VBenchVideo(
            prompt, seed + place * per_prompt + number, f"{vbench_name(prompt, number)}.mp4"
        )
        for place, prompt in enumerate(dict.fromkeys(prompts))
        for number in range(per_prompt)
    ]


def export(
    pipeline: MagicVideoPipeline,
    wanted: list[VBenchVideo],
    folder: Path,
    on_video: Callable[[int], None],
) -> None:
    """Write the videos that are not there yet, by all stages of the model.

    Raises:
        UserError: If one is there that was made in another way, or one cannot be made or written.
    """
    prompts, seeds = [one.prompt for one in wanted], [one.seed for one in wanted]
    requests = (
        pipeline.capabilities.build_requests(prompts, seeds, GenerationSettings(), None)
        if wanted
        else []
    )
    paths = [folder / one.file for one in wanted]
    for path, request in zip(paths, requests, strict=True):
        if path.is_file():  # all of them, before hours are spent on the others
            _check_made_so(path, request)
    for done, (path, request) in enumerate(zip(paths, requests, strict=True), start=1):
        if not path.is_file():
            pipeline.generate(request).save(path)
        on_video(done)


def _check_made_so(path: Path, request: Request) -> None:
    """Refuse an existing video of another request; the number of threads may differ."""
    try:
        found = asdict(read_request(path))
    except UserError:
        raise UserError(
            f"{path} does not tell what made it, so it cannot stay among these videos; delete it, "
            "and it is made anew, or name another folder."
        ) from None
    differing = [
        f"{name} {str(found[name])[:_SHOWN]!r} in place of {str(value)[:_SHOWN]!r}"
        for name, value in asdict(request).items()
        if name != "threads" and found[name] != value
    ]
    if differing:
        raise UserError(
            f"{path} was made in another way ({', '.join(differing)}); delete it, and it is made "
            "anew, or name another folder."
        )
