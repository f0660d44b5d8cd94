"""The command that adds an extra to this installation of the package."""

import json
import shlex
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """The command that installs an extra from the same clone, wheel or index as the package.

    If the clone or wheel no longer exists, the command names only the package and the extra.
    """
    files = (
        distribution.read_text("direct_url.json")
        for distribution in distributions(name="taskservice")
    )
    origin = json.loads(next(filter(None, files), "{}"))
    url, vcs = origin.get("url", ""), origin.get("vcs_info", {}).get("vcs")
    source = f"taskservice[{extra}]"
    path = url2pathname(urlsplit(url).path)
    if url.startswith("file:"):
        source = source if _is_gone(path) else f"{path}[{extra}]"
    elif url:
        source += f" @ {f'{vcs}+{url}' if vcs else url}"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    # pipx stores this file in each environment.
    is_pipx = Path(sys.prefix, "pipx_metadata.json").exists()
    installer = "pipx install --force" if is_pipx else "pip install"
    return f"{installer} {editable}{shlex.quote(source)}"


def _is_gone(path: str) -> bool:
    """Root's clone can be in a directory that the user of the service can't read."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:
        pass
    return False
