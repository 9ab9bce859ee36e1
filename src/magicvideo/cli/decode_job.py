"""From kept latents to a file: whatever ends it, one line says how to go on."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from magicvideo.cli.console import progress_bar
from magicvideo.cli.memory_options import is_out_of_memory, out_of_memory_error
from magicvideo.pipelines.chunking import ChunkSizes, cli_flag

if TYPE_CHECKING:
    from rich.console import Console

    from magicvideo.pipelines.request import Request
    from magicvideo.pipelines.text_to_video import MagicVideoPipeline
    from magicvideo.shapes import Latents


@dataclass(frozen=True)
class DecodeJob:
    """How latents become files.

    Attributes:
        model: The model folder; None for the shipped one.
        device: The device that was named, if one was.
        bounds: What is in the networks at once.
        overwrite: Whether outputs that exist are replaced.
    """

    model: Path | None
    device: str | None
    bounds: ChunkSizes
    overwrite: bool

    def make(
        self,
        console: "Console",
        place: str,
        pipeline: "MagicVideoPipeline",
        request: "Request",
        latents: "Latents",
        output: Path,
    ) -> None:
        """Write the video of latents that are kept beside its place, and let go of them.

        Args:
            console: Shows the progress.
            place: Which of several videos this is, before what the progress says.
            pipeline: The model.
            request: What the latents answer.
            latents: On the model's device.
            output: Where the video goes.

        Raises:
            UserError: If the file cannot be written, or memory ends.
        """
        from magicvideo.pipelines.latent_checkpoint import latents_path
        from magicvideo.pipelines.video import write_video

        with self._told(pipeline, request, output), progress_bar(console, place) as progress:
            video = pipeline.decode_and_upscale(request, latents, progress, self.bounds)
            progress("writing", 0, 1)
            write_video(video.frames, request, output, overwrite=self.overwrite)
        latents_path(output).unlink()

    @contextmanager
    def _told(
        self, pipeline: "MagicVideoPipeline", request: "Request", output: Path
    ) -> Iterator[None]:
        """Say how to go on if anything ends what is done here."""
        try:
            yield
        except BaseException as error:
            if not is_out_of_memory(error):
                self._tell(output, self.device, self.bounds)
                raise
            device, bounds = self.device, pipeline.capabilities.reduce_memory(request, self.bounds)
            if bounds != self.bounds:
                advice = f"lower {_changed(self.bounds, bounds)} as above, or take another --device"
            elif pipeline.device.type != "cpu":
                device = "cpu"
                advice = "take --device cpu as above"
            else:
                advice = "close other programs, or take a machine with more"
            self._tell(output, device, bounds)
            raise out_of_memory_error(error, advice) from None

    def _tell(self, output: Path, device: str | None, bounds: ChunkSizes) -> None:
        words = ["magicvideo", "generate", "--resume", str(output)]
        words += ["--model", str(self.model)] if self.model else []
        words += ["--device", device] if device else []
        words += [*bounds.to_cli_args(), *(["--overwrite"] if self.overwrite else [])]
        typer.echo(f"The latents are kept; go on with: {shlex.join(words)}", err=True)


def _changed(before: ChunkSizes, after: ChunkSizes) -> str:
    """Return the options in which two bounds differ."""
    old = asdict(before)
    return " and ".join(
        cli_flag(name) for name, value in asdict(after).items() if value != old[name]
    )
