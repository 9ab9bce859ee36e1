"""The notebooks run from top to bottom."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture
def command_on_the_path(tmp_path, monkeypatch):
    """Let `magicvideo` mean the tree that is tested, whatever is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "magicvideo"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m magicvideo "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="cells use a POSIX shell")
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the client, about event loops
@pytest.mark.usefixtures("command_on_the_path")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_writes_videos(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    folder = tmp_path / "notebook"
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    videos = sorted(folder.glob("*.webp"))
    assert videos
    for video in videos:
        with Image.open(video) as opened:
            assert opened.n_frames >= 16, video


def test_notebooks_are_stored_without_outputs():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path
