"""`magicvideo evaluate`: scores with their protocol, the judge behind them, and contact sheets."""

from typing import Any

import typer
from typer.core import TyperGroup

from magicvideo.cli.evaluate.judge import judge
from magicvideo.cli.evaluate.own import own
from magicvideo.cli.evaluate.protocol import run
from magicvideo.cli.evaluate.report import report
from magicvideo.cli.evaluate.sheet import sheet
from magicvideo.cli.evaluate.vbench import vbench

_PROTOCOL_VERB = "run"
_HELP = """Score a model by a protocol: `magicvideo evaluate PROTOCOL --data FOLDER`.

A protocol is `emoji-heldout`, a benchmark (`msrvtt-2990`, `msrvtt-all`, `ucf101-10k-class`,
`ucf101-100-per-class`, with --reference), or a YAML file like them. Its section of the page of
results is replaced. `own` scores a model on your own clips, however few.

Examples:
  magicvideo evaluate emoji-heldout --data data/emoji64
  magicvideo evaluate own --data data/mine --model runs/mine/model
  magicvideo evaluate msrvtt-2990 --reference data/msr-vtt --i3d i3d_torchscript.pt --clip vit-b-32
  magicvideo evaluate vbench all_dimension.txt runs/vbench
  magicvideo evaluate sheet --output docs/sheet.png
  magicvideo evaluate judge data/emoji64 runs/judge
  magicvideo evaluate report runs/emoji
"""


class _ProtocolFirst(TyperGroup):
    """Reads `evaluate PROTOCOL ...` as `evaluate run PROTOCOL ...`."""

    # typer's own class of contexts has no public name
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Name the verb where the first word is none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_PROTOCOL_VERB, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command."""
    verbs = typer.Typer(cls=_ProtocolFirst, help=_HELP, no_args_is_help=True)
    verbs.command(_PROTOCOL_VERB)(run)
    for verb in (own, judge, sheet, report, vbench):
        verbs.command(verb.__name__.replace("_", "-"))(verb)
    app.add_typer(verbs, name="evaluate")
