"""Imports go one way (docs/architecture.md), and the command line stays light until a verb runs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "magicvideo"
BASE = {"errors", "storage", "shapes"}
MAY_IMPORT = {
    "cli": {"generate", "train", "evaluate", "data"},
    "evaluate": {"generate", "data", "models", "diffusion"},
    "generate": {"models", "diffusion"},
    "train": {"data", "models", "diffusion"},
    "data": set(),
    "models": set(),
    "diffusion": set(),
}
MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def imported(nodes):
    """Dotted names of the modules that some nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            if node.module == "magicvideo":
                yield from (f"magicvideo.{alias.name}" for alias in node.names)
            else:
                yield node.module


def parts_of_ours(path):
    names = imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {name.split(".")[1] for name in names if name.startswith("magicvideo.")}


@each_module
def test_imports_go_one_way(path):
    folder = path.relative_to(PACKAGE).parts[0]
    if folder in MAY_IMPORT:
        assert parts_of_ours(path) <= MAY_IMPORT[folder] | BASE | {folder}
    elif folder.removesuffix(".py") in BASE:
        assert parts_of_ours(path) <= BASE


@each_module
def test_annotations_stay_real_for_the_shape_checks(path):
    assert "from __future__ import annotations" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_verbs_import_nothing_heavy_until_they_run(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name.split(".")[0] for name in imported(tree.body)}
    heavy = {"torch", "numpy", "diffusers", "transformers", "av", "PIL", "einops", "pydantic"}
    assert not names & heavy
    ours = {name for name in imported(tree.body) if name.startswith("magicvideo.")}
    assert all(name.split(".")[1] in {"cli", "errors"} for name in ours)
