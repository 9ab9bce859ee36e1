"""The import rules between packages, read from the source."""

import ast
import gc
import subprocess
import sys
from pathlib import Path

import pytest

import magicvideo
from magicvideo.imports import pause_garbage_collection

ROOT = Path(magicvideo.__file__).parent
STUDIES = ROOT.parents[1] / "studies"
BASE = {"atomic_io", "errors", "imports", "limits", "printable", "rng", "shapes"}
NETWORKS = {"diffusion", "models"}
# each part, and the others that it may import
ALLOWED = {
    "__init__": BASE | {"convert", "media", "pipelines", "training"} | NETWORKS,
    "__main__": {"cli"},
    "atomic_io": {"errors"},
    "errors": set(),
    "imports": set(),
    "limits": {"errors"},
    "printable": set(),
    "rng": set(),
    "shapes": {"errors"},
    "media": BASE,
    "models": BASE,
    "diffusion": BASE,
    # models: clips are encoded before they are written into shards
    "data": BASE | {"media", "models"},
    "pipelines": BASE | {"media"} | NETWORKS,
    "convert": BASE | {"pipelines"} | NETWORKS,
    "training": BASE | {"data"} | NETWORKS,
    # training: the judge is trained with its optimizer
    "evaluation": BASE | {"data", "media", "pipelines", "training"} | NETWORKS,
    "studio": BASE | {"data", "media", "pipelines"} | NETWORKS,
    "cli": BASE
    | {"convert", "data", "evaluation", "media", "pipelines", "studio", "training"}
    | NETWORKS,
}
HEAVY = {"accelerate", "av", "diffusers", "numpy", "PIL", "scipy", "torch", "transformers"}
DRAWERS = {"common", "core", "helpers", "lib", "misc", "tools", "util", "utils"}
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] != "weights"
}


def part_of(path):
    return path.with_suffix("").parts[0]


def imported(nodes):
    """Names of the modules that some statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports from a relative place"
            yield node.module


def run_by_importing(tree):
    """Statements outside functions and outside what type checkers alone read."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting.extend(ast.iter_child_nodes(node))


# files that are read on the way of a command, whether they are imported at its start or later
REACHABLE = {"cli.generate": 45, "cli.train": 67}


@pytest.mark.parametrize("command", REACHABLE)
def test_a_command_is_read_in_few_files(command):
    """A file holds one complete idea; splitting it increases the number of files to read."""
    modules = {".".join(path.with_suffix("").parts): path for path in TREES}
    found, waiting = set(), [command]
    while waiting:
        module = waiting.pop()
        if module not in modules or module in found:
            continue
        found.add(module)
        for node in ast.walk(TREES[modules[module]]):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("magicvideo."):
                name = node.module.removeprefix("magicvideo.")
                waiting += [name, *(f"{name}.{alias.name}" for alias in node.names)]
    assert len(found) > 30
    assert len(found) <= REACHABLE[command], sorted(found)


def test_every_package_has_an_import_rule():
    assert {part_of(path) for path in TREES} == set(ALLOWED)


@pytest.mark.parametrize("part", ALLOWED)
def test_packages_import_only_what_they_may(part):
    """Imports inside functions count too, because they are dependencies."""
    wrong = []
    for path, tree in TREES.items():
        for name in imported(ast.walk(tree)):
            package, _, rest = name.partition(".")
            allowed = ALLOWED[part] | {part}
            is_own = part_of(path) == part and package == "magicvideo"
            if is_own and rest.split(".")[0] not in allowed:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_the_package_imports_no_study():
    """Studies import the package; they are not installed with it."""
    wrong = [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        for name in imported(ast.walk(tree))
        if name.split(".")[0] == "studies"
    ]
    assert STUDIES.is_dir()
    assert wrong == []


def test_the_command_line_imports_nothing_heavy_at_module_level():
    wrong = [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if part_of(path) == "cli"
        for name in imported(run_by_importing(tree))
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import sys, magicvideo.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "magicvideo" in loaded
    assert HEAVY & set(loaded) == set()


def test_there_are_no_modules_named_utils_or_common():
    names = {part for path in TREES for part in path.with_suffix("").parts}
    assert names & DRAWERS == set()


def test_modules_have_no_side_effects_at_import():
    """No loops, contexts, bare calls or star imports at the top level, but in the command line."""
    for path, tree in TREES.items():
        if part_of(path) in {"cli", "__main__"}:
            continue
        for node in tree.body:
            where = f"{path}:{node.lineno}"
            assert not isinstance(node, ast.For | ast.While | ast.With), where
            assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)), where
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), where


def test_garbage_collection_is_paused_during_imports_and_resumes():
    was_enabled = []

    def fail():
        with pause_garbage_collection():
            was_enabled.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert (was_enabled, gc.isenabled()) == ([False], True)
    gc.disable()
    try:
        with pause_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
