"""What a protocol is run on and where everything of it goes, shared by several processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import typer

from magicvideo.cli.evaluate.setup import Report, check_writable_folder

if TYPE_CHECKING:
    from magicvideo.evaluation.share import Share
    from magicvideo.evaluation.sweep import SweepPoint
    from magicvideo.pipelines.request import Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline

Written: TypeAlias = tuple[str, Sequence[str]]
"""The section of the page, and a JSON document for each setting."""


@dataclass(kw_only=True)
class EvaluationJob:
    """One command.

    Attributes:
        reference: Folder of the real clips.
        model: Folder of the model; None for the one that is shipped.
        judge: Folder of the judge; None for the one that is shipped.
        work: Where generated videos are kept.
        settings: What takes the place of the protocol's own steps and guidance.
        share: Of this process.
        command: As a user would type it again.
        page: Of results.
        section: Name of the section.
        documents: The JSON file of each setting.
    """

    reference: Path
    model: Path | None
    judge: Path | None
    work: Path
    settings: list["SweepPoint"]
    share: "Share"
    command: str
    page: Path
    section: str
    documents: list[Path]
    _begun: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Note what was there when the command began."""
        self._begun = _stamp(self.documents[-1])

    @property
    def is_sweep(self) -> bool:
        """Tell whether anything takes the place of the protocol's own values."""
        return any(setting.name for setting in self.settings)

    def folder(self, setting: "SweepPoint") -> Path:
        """Return where the videos of a setting are kept: those of two are never mixed."""
        return self.work / setting.name

    def generate_share(
        self,
        pipeline: "MagicVideoPipeline",
        requests: Sequence[list["Request"]],
        report: Report,
    ) -> bool:
        """Make this process's share of the videos, and tell whether those of all are there then.

        Args:
            pipeline: The model.
            requests: Of each setting.
            report: Called with progress.

        Raises:
            UserError: If a folder cannot be made, or a video.
        """
        from magicvideo.evaluation.video_cache import generate_shard

        there = 0
        for setting, wanted in zip(self.settings, requests, strict=True):
            what = " ".join(filter(None, ("videos", setting.name)))
            folder = self.folder(setting)
            check_writable_folder(folder)

            def on_video(done: int, total: int, what: str = what) -> None:
                report(what, done, total)

            there += generate_shard(pipeline, wanted, folder, self.share, on_video)
        total = sum(map(len, requests))
        if there < total:
            typer.echo(
                f"{there} of {total} videos are made; the process that makes the last one scores "
                "them, and the same command goes on after a stop.",
                err=True,
            )
        return there == total

    def score_locked(self, score: Callable[[], Written]) -> None:
        """Score and write, one process at a time, unless another of several has done so.

        Args:
            score: Called for what is to be written.

        Raises:
            UserError: If the work folder cannot be made.
        """
        from filelock import FileLock

        from magicvideo.atomic_io import atomic_file
        from magicvideo.evaluation.results_page import write_section

        check_writable_folder(self.work)
        with FileLock(self.work / f"{self.section.replace(' ', '-')}.lock"):
            if self.share.count > 1 and _stamp(self.documents[-1]) != self._begun:
                typer.echo("Another process has scored the videos meanwhile.", err=True)
                return
            section, texts = score()
            write_section(self.page, self.section, section)
            # the last document comes last of all: it tells other processes that all is written
            for path, text in zip(self.documents, texts, strict=True):
                with atomic_file(path) as partial:
                    partial.write_text(text, encoding="utf-8")
        for path in (self.page, *self.documents):
            typer.echo(path)


def _stamp(path: Path) -> int | None:
    """Return what changes when a file is replaced; None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None
