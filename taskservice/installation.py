"""The command that adds an extra to this installation of the package."""

import json
import shlex
from importlib.metadata import distributions
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """The pip command that installs an extra from the same clone, wheel or index as the package."""
    files = (
        distribution.read_text("direct_url.json")
        for distribution in distributions(name="taskservice")
    )
    origin = json.loads(next(filter(None, files), "{}"))
    url, vcs = origin.get("url", ""), origin.get("vcs_info", {}).get("vcs")
    source = f"taskservice[{extra}]"
    if url.startswith("file:"):
        source = f"{url2pathname(urlsplit(url).path)}[{extra}]"
    elif url:
        source += f" @ {f'{vcs}+{url}' if vcs else url}"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(source)}"
