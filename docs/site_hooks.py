"""Hooks of the documentation site (mkdocs).

Pages link to source files by relative paths, so that the links work in a clone. The site does not
contain these files; its links lead to the repository instead.
"""

import posixpath
import re
from pathlib import PurePosixPath
from typing import Any

_LINK = re.compile(r"\]\((\.\.?/[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:  # noqa: ANN401
    """Return the page with links that leave `docs/` replaced by links to the repository."""
    folder = PurePosixPath("docs", page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(str(folder / match.group(1)))
        if target.startswith("docs/"):
            return match.group(0)
        return f"]({config.repo_url}/blob/main/{target})"

    return _LINK.sub(replace, markdown)
