"""A judge on the disk: `config.json`, float16 weights and their sums in one folder."""

from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from magicvideo.atomic_io import atomic_folder, verify_checksums
from magicvideo.errors import UserError
from magicvideo.evaluation.judge.network import Judge, JudgeConfig

CONFIG, WEIGHTS, SCORES = "config.json", "model.safetensors", "scores.json"

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "judge"


def save_judge(judge: Judge, scores: str, folder: Path) -> None:
    """Write a judge and the JSON text of its own scores on real clips.

    Weights are rounded to float16, which halves the folder and moves no score that we report.
    """
    half = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    with atomic_folder(folder) as partial:
        (partial / CONFIG).write_text(judge.config.model_dump_json() + "\n", encoding="utf-8")
        (partial / SCORES).write_text(scores, encoding="utf-8")
        save_file(half, partial / WEIGHTS)


def load_judge(folder: Path) -> Judge:
    """Return the judge of a folder, in float32, checked and ready to judge.

    Raises:
        UserError: If the folder is no judge's, or a file is missing, foreign or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} holds no judge; train one with `magicvideo evaluate judge DATA {folder}`."
        )
    verify_checksums(folder)
    try:
        config = JudgeConfig.model_validate_json((folder / CONFIG).read_bytes())
        weights = load_file(folder / WEIGHTS)
        place = folder.resolve()
        judge = Judge(config, "emoji judge" if place == SHIPPED else f"judge {place.name}")
        judge.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder} is not a judge of this version; train it anew.") from error
    return judge.eval().requires_grad_(requires_grad=False)
