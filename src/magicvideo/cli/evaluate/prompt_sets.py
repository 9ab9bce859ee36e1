"""What `magicvideo evaluate PROTOCOL` does with sets of prompts: videos, scores, report."""

from pathlib import Path
from typing import TYPE_CHECKING

from magicvideo.cli.evaluate.job import EvaluationJob, Written
from magicvideo.cli.evaluate.setup import load, progress

if TYPE_CHECKING:
    from magicvideo.cli.evaluate.setup import Report
    from magicvideo.evaluation.evaluator import Evaluator
    from magicvideo.evaluation.protocol import Protocol


def run_prompt_sets(protocol: "Protocol", task: EvaluationJob) -> None:
    """Make this process's share of the videos of all sets; the process that makes the last scores.

    Raises:
        UserError: If the model or the data cannot give what the protocol asks for.
    """
    from magicvideo.evaluation.evaluator import Evaluator
    from magicvideo.evaluation.judge.checkpoint import SHIPPED, load_judge

    judge_folder = task.judge or SHIPPED
    pipeline, judge = load(task.model), load_judge(judge_folder)
    evaluations = [
        Evaluator(
            protocol=setting.of(protocol),
            pipeline=pipeline,
            judge=judge,
            data=task.reference,
            work=task.folder(setting),
        )
        for setting in task.settings
    ]
    requests = [evaluation.requests() for evaluation in evaluations]
    with progress() as report:
        if task.generate_share(pipeline, requests, report):
            task.score_locked(lambda: _score(evaluations, judge_folder, task, report))


def _score(
    evaluations: list["Evaluator"], judge_folder: Path, task: EvaluationJob, report: "Report"
) -> Written:
    from magicvideo.evaluation.evaluator import evaluate
    from magicvideo.evaluation.report import as_json, as_markdown, sweep_as_markdown

    results = [evaluate(evaluation, judge_folder, report) for evaluation in evaluations]
    if task.is_sweep:
        page = sweep_as_markdown(results, task.section, task.command)
    else:
        page = as_markdown(results[0], task.command)
    return page, [as_json(result) for result in results]
