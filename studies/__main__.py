"""`python -m studies STUDY`: studies that reproduce the paper, run from a clone."""

import sys

import typer

from magicvideo.cli import run_app
from studies.commands.ablations import ablations
from studies.commands.compare import compare, compare_report
from studies.commands.cost import cost
from studies.commands.decoders import decoders
from studies.commands.interpolation import interpolation
from studies.commands.upscaler import upscaler

_HELP = """Run a study of the paper or of one stage of the cascade.

Examples:
  python -m studies ablations recipes/ablations.yaml
  python -m studies compare models/old models/new --prompts prompts.txt
  python -m studies cost
  python -m studies decoders vae video_vae --data data/emoji64
  python -m studies interpolation --data data/emoji64
  python -m studies upscaler --data data/emoji256 --moving data/emoji64
"""

app = typer.Typer(
    help=_HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)
for command in (ablations, compare, compare_report, cost, decoders, interpolation, upscaler):
    app.command(command.__name__.replace("_", "-"))(command)


def run(arguments: list[str]) -> int:
    """Run one study and return its exit code; mistakes become one sentence on stderr."""
    return run_app(app, arguments, "python -m studies")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
