"""The pictures of the documents, taken of `taskservice demo`: `make screenshots`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, launched, log_menu
from tests.support.demo import running_demo
from tests.support.film import Film, to_webp
from tests.support.service import environment
from tests.support.waiting import until

WIDE, PHONE, OVERVIEW = (1280, 940), (390, 844), (960, 500)
# The lower end of the last part that is whole in the window, with a margin below a card.
END = """() => Math.max(...[...document.querySelectorAll("main :is(tr, section, article)")]
  .map((part) => part.getBoundingClientRect().bottom + 20 * part.matches("section, article"))
  .filter((end) => end <= innerHeight))"""

COMMAND = "taskservice run --agent deploy -- ./deploy.sh"
# A line of the file `steps` lets it print the next line.
DEPLOY = """\
#!/bin/sh
exec 3<>steps
step() { read -r _ <&3; echo "$1"; }
step "building shop 4.71"
step "compiled 214 modules in 6.1 s"
step "1,204 tests passed"
step "pushed shop:4.71, 38 MB"
taskservice ask "Deploy shop 4.71 to production?" --choice yes --choice no >answer
step "web-1 runs 4.71"
step "web-2 runs 4.71"
step '{"version": "4.71", "hosts": 2}'
"""


def pages(client: RemoteClient) -> list[tuple[str, str, tuple[int, int], str]]:
    """The name, path, size and colour scheme of each picture of a page."""

    def path_of(**filters: str) -> str:
        return f"/tasks/{client.read('/task', limit='1', **filters)[0]['id']}"

    return [
        ("tasks", "/", WIDE, "light"),
        ("inbox", "/inbox", WIDE, "light"),
        ("failed", path_of(agentId="invoice-import", status="error"), WIDE, "light"),
        ("complete", path_of(agentId="researcher", q="Market"), WIDE, "light"),
        ("running", path_of(agentId="video-encoder", status="running"), PHONE, "dark"),
    ]


@contextmanager
def window(
    browser: Browser, client: RemoteClient, size: tuple[int, int], scheme: str, scale: float = 1
) -> Iterator[Visitor]:
    viewport = {"width": size[0], "height": size[1]}
    options = {"viewport": viewport, "color_scheme": scheme, "device_scale_factor": scale}
    visitor = Visitor(browser, client.url, **options)
    visitor.sign_in(client.key)
    yield visitor
    visitor.close()


def take_pages(browser: Browser, client: RemoteClient, folder: Path) -> None:
    for name, path, size, scheme in pages(client):
        with window(browser, client, size, scheme) as visitor:
            page = visitor.go(path)
            page.wait_for_timeout(1_000)
            # A part that is cut off at the lower end is left out.
            height = size[1] if size == PHONE else page.evaluate(END)
            clip: Any = {"x": 0, "y": 0, "width": size[0], "height": height}
            webp = to_webp(browser, page.screenshot(clip=clip), 0.6)
            (folder / f"{name}.webp").write_bytes(webp)


class Program:
    """The command in a terminal; each of its lines is printed when it is read."""

    def __init__(self, client: RemoteClient, directory: Path) -> None:
        (directory / "deploy.sh").write_text(DEPLOY)
        (directory / "deploy.sh").chmod(0o755)
        os.mkfifo(directory / "steps")
        self._steps = os.open(directory / "steps", os.O_RDWR)
        variables = environment(directory / "unused", URL=client.url, APIKEY=client.key)
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
        self._process = subprocess.Popen(
            COMMAND.split(), cwd=directory, env=variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        os.close(self._steps)

    def step(self) -> str:
        os.write(self._steps, b"\n")
        return self.read()

    def read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


def take_overview(browser: Browser, client: RemoteClient, folder: Path, directory: Path) -> None:
    """Film a program that asks in a terminal, and its task in the dashboard."""
    with window(browser, client, OVERVIEW, "light", 1.25) as visitor:
        page, film = visitor.page, Film(visitor.page, client.url, "light", 1.25)
        film.reserve_lines(11)
        for length, milliseconds in ((0, 900), (16, 250), (33, 250), (len(COMMAND), 250)):
            film.text = f"$ {COMMAND[:length]}"
            film.take(milliseconds)
        film.text += "\n"
        with Program(client, directory) as program:
            link = page.locator("#rows").get_by_role("link", name="deploy").first
            link.wait_for()
            film.take(900)
            film.take(500, link)
            link.click()
            lines = page.locator("#log .line")
            for count in range(1, 5):
                film.text += program.step()
                expect(lines).to_have_count(count)
                wrap_lines(page)
                film.take(600)
            film.text += program.read()
            expect(lines).to_have_count(5)
            yes = page.get_by_role("button", name="yes")
            yes.wait_for()
            film.take(1_800)
            take_stills(browser, client, folder, page.url, film.text)
            film.take(900, yes)
            yes.click()
            yes.wait_for(state="detached")
            for count in (6, 7):
                film.text += program.step()
                expect(lines).to_have_count(count)
                film.take(700)
            film.text += program.step()
            page.locator("#output").wait_for()
            film.text += "$ "
            film.take(4_000)
    film.save(folder / "first-run.webp")


def take_stills(browser: Browser, client: RemoteClient, folder: Path, url: str, text: str) -> None:
    for scheme in ("light", "dark"):
        with window(browser, client, OVERVIEW, scheme, 2) as visitor:
            page = visitor.go(url.removeprefix(client.url))
            expect(page.locator("#log .line")).to_have_count(5)
            wrap_lines(page)
            still = Film(page, client.url, scheme, 2)
            still.text = text
            still.take()
            still.save(folder / f"overview-{scheme}.webp")


def wrap_lines(page: Page) -> None:
    log_menu(page).get_by_label("Wrap long lines").check()
    page.keyboard.press("Escape")
    page.locator("#log-menu summary").blur()
    page.evaluate("scrollTo(0, 0)")


def main(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        launched() as browser,
        running_demo(Path(data)) as demo,
    ):
        until(lambda: len(demo.client.read("/task", asking="true")) == 2)
        take_pages(browser, demo.client, folder)
        take_overview(browser, demo.client, folder, Path(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
