"""The build backend: setuptools, which packs the help pages of the service (`/help/`) too."""

import json
import re
import shutil
from html import escape
from itertools import chain, pairwise
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks of pip

SITE = Path(__file__).parent
ROOT = SITE.parent.parent
INDEX = "docs/index.md"  # its lists contain all pages
# Links lead to headings as on a code host.
_markdown = MarkdownIt("commonmark", {"xhtmlOut": False}).enable("table").use(front_matter_plugin)
_markdown.use(anchors_plugin, max_level=6)


def build_wheel(*arguments: Any, **settings: Any) -> str:
    build(ROOT / "taskservice" / "help")
    return str(build_meta.build_wheel(*arguments, **settings))


def build_editable(*arguments: Any, **settings: Any) -> str:
    build(ROOT / "taskservice" / "help")
    return str(build_meta.build_editable(*arguments, **settings))


def build(folder: Path) -> None:
    """Write the pages, the files that they link to, and their search."""
    shutil.rmtree(folder, ignore_errors=True)
    lists = re.findall(r"^## (.*)\n\n((?:- .*\n)+)", (ROOT / INDEX).read_text(), re.MULTILINE)
    groups = {
        heading: [normpath(f"docs/{path}") for path in re.findall(r"\]\((.*\.md)\)", links)]
        for heading, links in lists
    }
    names = [INDEX, *chain(*groups.values())]
    pages = {name: _markdown.parse((ROOT / name).read_text()) for name in names}
    titles = {name: _headings(tokens)[0][2] for name, tokens in pages.items()}
    template = Template((SITE / "page.html").read_text())

    def write(address: str, current: str, title: str, content: str) -> None:
        root = relpath(".", PurePosixPath(address).parent)
        navigation = "".join(
            f"<h2>{heading}</h2>\n<ul>{''.join(entry(name, current, root) for name in names)}</ul>"
            for heading, names in groups.items()
        )
        values = {"title": escape(title), "root": root, "navigation": navigation}
        path = folder / address
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(values, content=content))

    def entry(name: str, current: str, root: str) -> str:
        link = f'<a href="{root}/{_address(name)}">{escape(titles[name])}</a>'
        if name != current:
            return f"<li>{link}</li>\n"
        sections = "".join(
            f'<li><a href="#{anchor}">{escape(text)}</a></li>\n'
            for tag, anchor, text in _headings(pages[name])
            if tag == "h2"
        )
        return f'<li aria-current="page">{link}<ul>{sections}</ul></li>\n'

    for name, tokens in pages.items():
        for linked in set(_relink(tokens, name)) - pages.keys():
            target = folder / _address(linked)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / linked, target)
        content = _markdown.renderer.render(tokens, _markdown.options, {})
        write(_address(name), name, titles[name], content)
    scripts = "".join(f'<script src="{name}.js"></script>' for name in ("sections", "search"))
    write("search.html", "", "Search", f'<h1>Search</h1><ol id="results"></ol>{scripts}')
    # The changelog would be in the results of each search.
    searched = (_sections(name, pages[name]) for name in names if name != "CHANGELOG.md")
    (folder / "sections.js").write_text(f"const sections = {json.dumps([*chain(*searched)])};\n")
    for name in ("style.css", "search.js"):
        shutil.copyfile(SITE / name, folder / name)


def _address(name: str) -> str:
    """The path of a document, or of a file that it links to, within the help pages."""
    address = re.sub(r"\.md$", ".html", name.removeprefix("docs/"))
    # A browser shows programs as text.
    return re.sub(r"(\.(go|mjs|php|py))$", r"\1.txt", address)


def _text(inline: Token) -> str:
    children = (token for token in inline.children or [] if token.type != "html_inline")
    return "".join(" " if token.type == "softbreak" else token.content for token in children)


def _headings(tokens: list[Token]) -> list[tuple[str, str, str]]:
    """(tag, anchor, text) of each heading."""
    return [
        (token.tag, str(token.attrs["id"]), _text(inline))
        for token, inline in pairwise(tokens)
        if token.type == "heading_open"
    ]


def _relink(tokens: list[Token], source: str) -> list[str]:
    """Make the links lead to the help pages; return the linked files."""
    linked = []
    for token in tokens:
        if "style" in token.attrs:  # of a column; the Content-Security-Policy allows no styles
            token.attrs["class"] = str(token.attrs.pop("style")).removeprefix("text-align:")
        for attribute in {"href", "src"} & token.attrs.keys():
            path, mark, anchor = str(token.attrs[attribute]).partition("#")
            if path and ":" not in path:
                linked.append(normpath(PurePosixPath(source).parent / path))
                address = relpath(_address(linked[-1]), PurePosixPath(_address(source)).parent)
                token.attrs[attribute] = address + mark + anchor
        linked += _relink(token.children or [], source)
    return linked


def _sections(name: str, tokens: list[Token]) -> list[dict[str, str]]:
    """The sections of a page, for the search."""
    sections: list[dict[str, str]] = []
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            anchor = f"#{before.attrs['id']}" if sections else ""
            sections.append({"url": _address(name) + anchor, "heading": _text(token), "text": ""})
            sections[-1]["page"] = sections[0]["heading"]
        elif token.type in ("inline", "fence", "code_block"):
            sections[-1]["text"] += f"{_text(token) if token.children else token.content}\n"
    return sections
