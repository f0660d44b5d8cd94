"""The pictures of the documents, taken of `taskservice demo`: `make screenshots`."""

import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, launched, log_menu
from tests.support.demo import running_demo
from tests.support.service import environment
from tests.support.waiting import until

WIDE, PHONE, OVERVIEW = (1280, 940), (390, 844), (960, 600)
USUAL_URL = "http://127.0.0.1:8000"
# Playwright makes PNG only; the browser itself makes something smaller of it.
TO_WEBP = """async ([png, quality]) => {
  const image = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", quality).split(",")[1];
}"""
# The lower end of the last part that is whole in the window, with a margin below a card.
END = """() => Math.max(...[...document.querySelectorAll("main :is(tr, section, article)")]
  .map((part) => part.getBoundingClientRect().bottom + 20 * part.matches("section, article"))
  .filter((end) => end <= innerHeight))"""
REPLACE_URL = """([from, to]) => document.querySelectorAll("#log .line a").forEach(
  (link) => { link.textContent = link.textContent.replace(from, to); })"""

COMMAND = "taskservice run --agent deploy -- ./deploy.sh"
DEPLOY = """\
#!/bin/sh
echo "building shop 4.71"
echo "compiled 214 modules in 6.1 s"
echo "1,204 tests passed"
echo "pushed shop:4.71, 38 MB"
taskservice ask "Deploy shop 4.71 to production?" --choice yes --choice no
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


def photographed(page: Page, size: tuple[int, int]) -> str:
    """The upper part of a page as PNG in base64, without a part that is cut off."""
    page.wait_for_timeout(1_000)
    height = size[1] if size == PHONE else page.evaluate(END)
    clip: Any = {"x": 0, "y": 0, "width": size[0], "height": height}
    return base64.b64encode(page.screenshot(clip=clip)).decode()


def save(browser: Browser, png: str, path: Path, quality: float) -> None:
    page = browser.new_page()
    path.write_bytes(base64.b64decode(page.evaluate(TO_WEBP, [png, quality])))
    page.close()


def take_pages(browser: Browser, client: RemoteClient, folder: Path) -> None:
    for name, path, size, scheme in pages(client):
        with window(browser, client, size, scheme) as visitor:
            save(browser, photographed(visitor.go(path), size), folder / f"{name}.webp", 0.6)


def take_overview(browser: Browser, client: RemoteClient, folder: Path, data: Path) -> None:
    """A terminal where a program asks, above its task page."""
    (data / "deploy.sh").write_text(DEPLOY)
    (data / "deploy.sh").chmod(0o755)
    variables = environment(data / "unused", URL=client.url, APIKEY=client.key)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    with subprocess.Popen(
        COMMAND.split(), cwd=data, env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout
        lines = [f"$ {COMMAND}\n", *takewhile(lambda line: "Deploy" not in line, process.stdout)]
        [task] = until(lambda: client.read("/task", agentId="deploy", asking="true"))
        for scheme in ("light", "dark"):
            with window(browser, client, OVERVIEW, scheme, scale=2) as visitor:
                page = visitor.go(f"/tasks/{task['id']}")
                log_menu(page).get_by_label("Wrap long lines").check()
                page.keyboard.press("Escape")
                page.locator("#log-menu summary").blur()
                expect(page.locator("#log .line")).to_have_count(len(lines))
                page.evaluate(REPLACE_URL, [client.url, USUAL_URL])
                png = photographed(page, OVERVIEW)
            log = client.read(f"/task/{task['id']}")["logs"]
            text = "".join([*lines, log[-1]]).replace(client.url, USUAL_URL)
            whole = composed(browser, scheme, text, png)
            save(browser, whole, folder / f"overview-{scheme}.webp", 0.8)
        client.write("DELETE", f"/task/{task['id']}")


def composed(browser: Browser, scheme: Any, text: str, png: str) -> str:
    page = browser.new_page(color_scheme=scheme, device_scale_factor=2)
    page.set_content((Path(__file__).parent / "support" / "overview.html").read_text())
    page.locator("pre").evaluate("(element, text) => { element.textContent = text; }", text)
    page.locator("img").evaluate(
        "(image, url) => { image.src = url; return image.decode(); }",
        f"data:image/png;base64,{png}",
    )
    whole = page.locator("#stage").screenshot(omit_background=True)
    page.close()
    return base64.b64encode(whole).decode()


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
