"""Builds the site of the documents: `make docs`."""

import re
import shlex
import sys
from pathlib import Path

from sphinx.application import Sphinx

from taskservice import __version__

project = "taskservice"
copyright = "the authors of taskservice"
# Some pages are outside of docs/, so the sources begin at the top.
root_doc = "docs/index"
include_patterns = ["docs/**/*.md", "docs/*.md", "examples/*.md", "CHANGELOG.md", "SECURITY.md"]
exclude_patterns = ["docs/contributing"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
# Links lead to headings as on a code host.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# Drawn while the site is built: its pages load nothing from other sites.
mermaid_cmd = shlex.join([sys.executable, "-m", "mermaidx"])
mermaid_output_format = "svg"
# Dashes and quotation marks stay as they are typed.
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
html_theme = "furo"
html_title = f"taskservice {__version__}"
html_extra_path = ["site"]
# Addresses of the examples.
linkcheck_ignore = [r"http://127\.0\.0\.1:", r"https://[a-z]+\.example\.org"]
html_search_scorer = str(Path(__file__).with_name("search_scorer.js"))


def prepare(app: Sphinx, name: str, source: list[str]) -> None:
    """The lists of the index become the navigation; on a code host they are only lists."""
    if name == "CHANGELOG":
        # It would have a part in the result of each search.
        source[0] = f"---\nnosearch: true\n---\n{source[0]}"
    if name == root_doc:
        for heading, links in re.findall(r"^## (.*)\n\n((?:- .*\n)+)", source[0], re.MULTILINE):
            pages = "\n".join(re.findall(r"\]\((.*)\.md\)", links))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
