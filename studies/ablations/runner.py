"""Run the ablations: train and score every run, and write the page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magicvideo.atomic_io import hash_folder
from magicvideo.evaluation.judge.network import load_judge
from studies.ablations.experiment_runs import AblationRun, locked, train_run
from studies.ablations.page import write_page
from studies.ablations.scoring import Progress, read_scores, score_run
from studies.ablations.settings import Ablations


@dataclass(frozen=True, kw_only=True)
class AblationRunner:
    """Trains and scores runs and writes the page.

    Attributes:
        ablations: The settings.
        judge: Folder of the judge.
        page: The Markdown page; the plots are written to the same folder.
        command: The command, as the page shows it.
    """

    ablations: Ablations
    judge: Path
    page: Path
    command: str

    def run(self, runs: list[AblationRun], say: Callable[[str], None], progress: Progress) -> None:
        """Train and score runs one after the other, and write the page after each.

        A run that already has scores is skipped. If another process works on a run, this waits.

        Raises:
            UserError: If a run cannot be trained or scored.
            Interrupted: After a signal; the same command continues.
        """
        judge, judge_hash = load_judge(self.judge), hash_folder(self.judge)
        for run in runs:
            with locked(run.recipe.output):
                if read_scores(run, self.ablations.scoring, judge_hash) is None:
                    train_run(run, self.ablations.output, say)
                    score_run(run, self.ablations.scoring, judge, judge_hash, progress)
                    say(f"{run.name}: scored")
            self.write()

    def write(self) -> None:
        """Write the page and its plots from the available scores."""
        write_page(self.ablations, self.page, self.command, hash_folder(self.judge))
