"""What `taskservice login` keeps: the address and key of each profile, in a file of mode 0600."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from taskservice.client.responses import SettingError
from taskservice.terms import KEY_VARIABLE, PROFILE_VARIABLE

DEFAULT_PROFILE = "default"

Profiles = Mapping[str, Mapping[str, str]]


def chosen() -> str:
    """The profile of this process."""
    return os.environ.get(PROFILE_VARIABLE) or DEFAULT_PROFILE


def settings(url: str | None = None) -> tuple[str, str]:
    """The address and the key of the environment, or else of the profile; empty without any.

    With `url`, or if one of them is in the environment, nothing that was kept is used, so that a
    kept key is only sent to the address for which it was kept. Raises SettingError if the profile
    is unknown or the file can't be read.
    """
    environment = os.environ.get("TASKSERVICE_URL", ""), os.environ.get(KEY_VARIABLE, "")
    if url or any(environment):
        return environment
    profiles = load()
    kept = profiles.get(chosen())
    if kept is None and os.environ.get(PROFILE_VARIABLE):
        known = ", ".join(profiles) or "none"
        raise SettingError(f"{PROFILE_VARIABLE}: {chosen()} is not a kept profile ({known})")
    return (kept["url"], kept["apikey"]) if kept else ("", "")


def load() -> dict[str, Mapping[str, str]]:
    """The kept profiles by name, each with `url` and `apikey`. Raises SettingError."""
    path = file_path()
    try:
        profiles = json.loads(path.read_text(encoding="utf-8"))["profiles"]
        names = ("url", "apikey")
        return {key: {name: str(kept[name]) for name in names} for key, kept in profiles.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} can't be read ({error}); remove it and log in again") from None


def save(profiles: Profiles) -> None:
    """Replace the file, whole or not at all. Raises OSError."""
    path = file_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"profiles": profiles}, file, indent=2)
    new.replace(path)


def file_path() -> Path:
    """The file in the user's configuration folder, by the XDG Base Directory Specification."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(folder) if folder.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        raise SettingError("neither XDG_CONFIG_HOME nor HOME is set") from None
    return base / "taskservice" / "profiles.json"
