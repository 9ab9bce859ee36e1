"""Option groups: the command line is flat, and the command gets the groups."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from magicvideo.cli.options import with_option_groups


@dataclass(frozen=True)
class Side:
    length: Annotated[int, typer.Argument(help="How long.")]
    colour: Annotated[str, typer.Option(help="Which colour.")] = "red"


@pytest.fixture
def calls():
    return []


@pytest.fixture
def app(calls):
    @with_option_groups
    def draw(side: Side, twice: Annotated[bool, typer.Option("--twice")] = False) -> None:
        """Draw a side."""
        calls.append((side, twice))

    app = typer.Typer()
    app.command()(draw)
    return app


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["3"], (Side(3), False)),
        (["--twice", "--colour", "blue", "5"], (Side(5, "blue"), True)),
    ],
)
def test_a_command_gets_its_options_in_groups(app, calls, arguments, wanted):
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert calls == [wanted]


def test_the_help_lists_the_options_in_order(app):
    text = CliRunner().invoke(app, ["--help"]).output
    places = [text.index(word) for word in ("Draw a side.", "How long.", "--colour", "--twice")]
    assert places == sorted(places)
