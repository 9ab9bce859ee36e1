"""HTML of the page's own parts, by templates that escape whatever a client wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from magicvideo.studio.jobs import Job
from magicvideo.studio.page_data import ShownClip, ShownSheet

_STAGES = {
    "key frames": "Key frames",
    "interpolation": "Frames between them",
    "decoding": "Decoding",
    "super-resolution": "Full size",
    "writing": "Writing the file",
}


class Markup:
    """Renders the templates."""

    def __init__(self) -> None:
        loader = FileSystemLoader(Path(__file__).with_name("templates"))
        self._templates = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.globals.update(status_of=self.status, settings_of=settings_of)

    def title(self, model: str) -> str:
        """Return the head of the page."""
        return self._templates.from_string(
            '<header class="mv-title"><h1>magicvideo studio</h1>'
            "<p>Text to video with the model {{ model }}</p></header>"
        ).render(model=model)

    def note(self, sentence: str) -> str:
        """Return a sentence in place of content."""
        template = self._templates.from_string('<p class="mv-none">{{ sentence }}</p>')
        return template.render(sentence=sentence)

    def status(self, job: Job, position: int = 0) -> str:
        """Return one sentence on how far a job is."""
        if job.state == "queued":
            return f"Waiting; {position} before it." if position else "Waiting for a worker."
        if job.state == "running":
            stage = _STAGES.get(job.stage or "", "Loading")
            left = "" if job.time_left is None else f" · about {_duration(job.time_left)} left"
            return f"{stage} · {job.progress} %{left}"
        if job.state == "completed":
            if not job.files:
                return "The file has been removed to make room; Again makes the same video."
            took = (job.finished_at or 0.0) - (job.started_at or 0.0)
            return f"Done in {_duration(took)}."
        if job.state == "cancelled":
            return "Cancelled."
        return f"Failed: {job.error_message}"

    def stage(self, job: Job | None, status: str, preview: str | None) -> str:
        """Return the video that is being made, or was made last."""
        return self._render("stage.html", job=job, status=status, preview=preview)

    def gallery(
        self, jobs: Sequence[Job], search: str, chosen: Sequence[str], *, can_extend: bool
    ) -> str:
        """Return a page of jobs as cards."""
        return self._render(
            "gallery.html", jobs=jobs, search=search, chosen=chosen, can_extend=can_extend
        )

    def compare(self, jobs: Sequence[Job], previews: Mapping[str, str]) -> str:
        """Return chosen jobs side by side."""
        return self._render("compare.html", jobs=jobs, previews=previews)

    def clips(
        self,
        summary: str,
        clips: Sequence[ShownClip],
        skipped: Sequence[tuple[str, str]] | None,
    ) -> str:
        """Return clips of a prepared data set, and the files that were skipped."""
        return self._render("clips.html", summary=summary, clips=clips, skipped=skipped)

    def run(self, facts: Sequence[tuple[str, str]], sheet: ShownSheet | None) -> str:
        """Return figures of a training run and its newest samples."""
        return self._render("run.html", facts=facts, sheet=sheet)

    def _render(self, template: str, **values: object) -> str:
        return self._templates.get_template(template).render(**values)


def settings_of(job: Job) -> list[tuple[str, str]]:
    """Return names and values of a job's settings, as the gallery lists them."""
    listed = {name: value for name, value in job.parameters.items() if name != "prompt"}
    listed |= {"length": f"{job.seconds:.1f} s", "size": job.size}
    if job.timings:
        listed["made in"] = _duration(sum(job.timings.values()))
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in listed.items()
    }
    return [(name.replace("_", " "), value) for name, value in shown.items()]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
