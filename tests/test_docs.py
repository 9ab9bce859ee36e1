"""The statements of the repository about itself are true: pages, commands, pins."""

import ast
import os
import re
import shlex
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from itertools import chain, pairwise, takewhile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image, ImageSequence

import magicvideo
import studies
from magicvideo.cli import run
from magicvideo.evaluation.protocol import read_any_protocol
from magicvideo.training.recipe import read_recipe
from studies.__main__ import run as run_study

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "magicvideo"
PAGES = sorted(chain(*(ROOT.glob(pages) for pages in ("*.md", "docs/*.md", "benchmarks/*.md"))))
TEXTS = {".md", ".py", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".jsonl", ""}
INTERPRETERS = {"python", "python3", ".venv/bin/python"}
LAUNCHERS = {"torchrun", "accelerate"}
OTHER_SCORES = {"judge", "own", "sheet", "report", "vbench", "PROTOCOL"}
NOT_OURS = {".git", ".venv", ".hypothesis", "runs", "dist", "build", "__pycache__"}

_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?!runs|\.venv)[\w.-]+/[\w./-]*")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def text_files():
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in NOT_OURS and "cache" not in name]
        # in a worktree .git is a file
        kept = (name for name in names if name not in NOT_OURS and Path(name).suffix in TEXTS)
        yield from (Path(folder, name) for name in kept)


def prose(page):
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page, *languages):
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands(page):
    joined = (block.replace("\\\n", " ") for block in blocks(page, "sh", "bash"))
    lines = chain.from_iterable(block.splitlines() for block in joined)
    inline = [code for code in _CODE.findall(prose(page)) if code.startswith("magicvideo ")]
    return [line for line in [*lines, *inline] if line.strip() and not line.startswith("#")]


def _launched(words):
    """A command line without variables and launcher; files that a launcher is given must exist."""
    words = words[sum(1 for _ in takewhile(_ASSIGNMENT.match, words)) :]
    if words[0] not in LAUNCHERS:
        return words
    launcher, command = words[: words.index("-m")], words[words.index("-m") + 1 :]
    for name, value in pairwise(launcher):
        assert name != "--config_file" or (ROOT / value).is_file(), value
    return command


def _script(command):
    """The file that a command line runs, by its name or as a module."""
    match command:
        case [interpreter, "-m", module, *_] if interpreter in INTERPRETERS:
            return Path(*module.split(".")).with_suffix(".py")
        case [interpreter, file, *_] if interpreter in INTERPRETERS:
            return Path(file)
    return Path(command[0])


def defined_names(path):
    """Names that a module defines, and `Class.name` for what its classes do."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= _bound(node)
        if isinstance(node, ast.ClassDef):
            inner = set().union(*map(_bound, node.body))
            names |= {f"{node.name}.{name}" for name in inner}
    return names


def _bound(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


@pytest.fixture(scope="module")
def words():
    """Every word of the code, its tests and its settings: what a name in the docs can mean."""
    found = set()
    for path in text_files():
        if path.suffix not in {".md", ".jsonl"} and path != Path(__file__):
            found |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return found


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_links_resolve(page):
    for _, target in _LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert linked.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
            assert anchor in slugs, f"{page.name} links to {target}"


@each_page
def test_linked_names_are_where_the_link_goes(page):
    for text, target in _LINK.findall(prose(page)):
        name = text.strip("`")
        if target.endswith(".py") and text.startswith("`") and _NAME.fullmatch(name):
            assert name in defined_names(page.parent / target), f"{target} has no {name}"


@each_page
def test_names_and_files_in_the_text_exist(page, words):
    for code in _CODE.findall(prose(page)):
        if _PATH.fullmatch(code) and (ROOT / code.split("/")[0]).exists():
            assert (ROOT / code).exists(), f"{page.name} speaks of {code}"
        elif code.startswith("--"):
            option = code.split()[0].removeprefix("--")
            assert option.replace("-", "_") in words or option in words, code
        elif _NAME.fullmatch(code):
            missing = [part for part in code.split(".") if part not in words]
            assert not missing, f"{page.name} speaks of {code}, which is nowhere"


@each_page
def test_commands_exist(page, capsys):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands(page):
        program, *arguments = _launched(shlex.split(line))
        if program == "make":
            assert arguments[0] in targets, line
        elif program == "uv":
            assert arguments == ["lock"], line
        elif program == "pip":
            assert re.fullmatch(r"magicvideo(\[[a-z,]+\])?", arguments[-1]), line
        elif program == "magicvideo":
            given = [argument for argument in arguments if not argument.isupper()]
            assert run([*given, "--help"]) == 0, f"{line}: {capsys.readouterr().err}"
            capsys.readouterr()
        elif (program, *arguments[:2]) == studies.PROGRAM:
            assert run_study([*arguments[2:], "--help"]) == 0, f"{line}: {capsys.readouterr().err}"
            capsys.readouterr()
        else:
            assert (ROOT / _script([program, *arguments])).is_file(), f"{page.name}: {line}"


@each_page
def test_recipes_and_protocols_in_commands_are_accepted(page):
    for line in commands(page):
        match shlex.split(line):
            case ["magicvideo", "train", recipe, *rest] if recipe != "RECIPE" and recipe[0] != "-":
                changes = [value for name, value in pairwise(rest) if name == "--set"]
                # a path from the root of the repository, or the name of a packaged recipe
                read_recipe(ROOT / recipe if "/" in recipe else Path(recipe), changes)
            case ["magicvideo", "evaluate", protocol, *_] if protocol not in OTHER_SCORES:
                read_any_protocol(protocol)


@each_page
def test_python_blocks_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                names = {alias.name for alias in node.names}
                if node.module.split(".")[0] == "magicvideo":
                    assert node.module == "magicvideo"
                    assert names <= set(magicvideo.__all__)
                elif find_spec(node.module):  # some extras may not be installed
                    assert names <= set(dir(import_module(node.module))), node.module


def test_the_tree_in_contributing_is_the_tree():
    (tree,) = (
        block for block in blocks(ROOT / "CONTRIBUTING.md", "") if "src/magicvideo/" in block
    )
    folders = re.findall(r"^ {2}(\w+)/", tree, re.MULTILINE)
    real = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert sorted(folders) == sorted(real)
    for name in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (ROOT / name).is_dir()
    file = r"[\w.]+\.(?:md|cff|toml|txt)|[A-Z]{4,}(?!\w|\.)|Makefile|\.ci/run"
    for name in re.findall(rf"(?:^|  )({file})", tree):
        assert (ROOT / name).is_file(), name


def test_departures_are_numbered_consecutively_and_every_mention_has_an_entry():
    page = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    entries = [int(number) for number in re.findall(r"^- \*\*D(\d+)\.", page, re.MULTILINE)]
    assert entries == list(range(1, len(entries) + 1))
    for path in [*PACKAGE.rglob("*.py"), *PAGES]:
        mentioned = re.findall(r"\bD(\d+)\b", path.read_text(encoding="utf-8"))
        assert {int(number) for number in mentioned} <= set(entries), path


def test_samples_have_the_size_and_length_of_the_readme():
    samples = sorted((ROOT / "docs" / "samples").glob("*.webp"))
    assert samples
    for path in samples:
        with Image.open(path) as video:
            assert video.size == (256, 256), path
            durations = [
                frame.convert("RGB").info["duration"] for frame in ImageSequence.Iterator(video)
            ]
        assert len(durations) == 61, path
        assert sum(durations) == pytest.approx(1000 * 61 / 24, abs=2), path


def test_bundled_weights_are_as_small_as_the_readme_states():
    files = [path for path in (PACKAGE / "weights").rglob("*") if path.is_file()]
    (most,) = re.findall(r"less than (\d+)\s+MB", prose(ROOT / "README.md"))
    assert 0 < sum(path.stat().st_size for path in files) < 1e6 * int(most)


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_every_package_that_gets_installed_is_pinned():
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    met, coming = {"magicvideo"}, [("magicvideo", extra) for extra in ("", "train", "evaluate")]
    coming.append(("magicvideo", "dev"))
    while coming:
        name, extra = coming.pop()
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        for need in needed:
            wanted = need.marker is None or need.marker.evaluate({"extra": extra})
            key = canonicalize_name(need.name)
            # torch pins its own build's libraries
            if wanted and key not in met and not re.match("nvidia|cuda|triton", key):
                assert key in pinned, f"{name} needs {key}"
                met.add(key)
                coming += [(key, inner) for inner in ("", *need.extras)]


def test_pins_are_exact_and_name_no_place():
    for pin in pins():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert pin.url is None, pin
    for python in ("3.10", "3.11", "3.12", "3.13"):
        chosen = [
            pin
            for pin in pins()
            if not pin.marker or pin.marker.evaluate({"python_version": python})
        ]
        names = [canonicalize_name(pin.name) for pin in chosen]
        assert len(names) == len(set(names)), python
        assert "torch" in names


def test_no_text_names_a_path_of_a_machine():
    # the slash is in brackets so that these patterns do not find themselves
    private = re.compile(r"(?<![\w.~])[/](work|root|home|opt|Users)[/]\w|[C]o-authored-by", re.I)
    for path in text_files():
        found = private.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found and found.group()}"
