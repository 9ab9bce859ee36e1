"""The contents of the built packages, and the files about the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def locked():
    """Versions of each package in uv.lock; one package may have several, for different Pythons."""
    versions = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]:
        versions.setdefault(package["name"], set()).add(package.get("version"))
    return versions


@pytest.fixture(scope="module")
def metadata():
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager())


def test_the_page_of_a_package_index_has_no_relative_links(metadata):
    links = re.findall(r"\]\(([^)]+)\)", metadata.core.readme)
    assert len(links) > 10
    assert all(link.startswith("https://") for link in links)
    assert any(link.endswith(".webp") for link in links)


def test_the_citation_file_names_this_version_and_the_paper(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["project"]["version"]
    assert citation["license"] == project["project"]["license"]
    assert "2211.11018" in citation["preferred-citation"]["url"]


def test_the_lock_of_uv_holds_the_pinned_versions(locked):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    shared = [pin for pin in pins if canonicalize_name(pin.name) in locked]
    assert len(shared) > 100
    for pin in shared:
        (version,) = (specifier.version for specifier in pin.specifier)
        assert version in locked[canonicalize_name(pin.name)], f"{pin}: run `uv lock`"


def test_the_lock_of_uv_has_every_dependency(project, locked):
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(need for e in extras.values() for need in e)]
    for need in map(Requirement, wanted):
        assert canonicalize_name(need.name) in locked, f"{need}: run `uv lock`"


def test_the_recipes_are_in_the_wheel_and_the_sources_in_the_source_distribution():
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    wheel = WheelBuilder(str(ROOT))
    forced = wheel.config.get_force_include()
    assert str(ROOT / "recipes") in forced
    assert forced[str(ROOT / "recipes")] == "magicvideo/recipes"
    carried = {
        Path(file.distribution_path).parts[0]
        for file in SdistBuilder(str(ROOT)).recurse_included_files()
    }
    assert {"src", "docs", "tests", "recipes", "studies", "benchmarks", "examples"} <= carried
    assert {"CITATION.cff", "SECURITY.md", "constraints.txt", "uv.lock", "Makefile"} <= carried


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint, of the extra dev")
def test_the_linter_accepts_the_dockerfile():
    linted = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
