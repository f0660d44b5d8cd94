"""Pictures of a terminal above a window with a page, still or moving."""

import base64
import struct
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page

from tests.support.webp import animated

USUAL_URL = "http://127.0.0.1:8000"
STAGE = Path(__file__).with_name("overview.html")
# Playwright makes PNG only; the browser itself makes something smaller of it.
TO_WEBP = """async ([png, quality]) => {
  const image = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", quality).split(",")[1];
}"""
REPLACE_URL = """([from, to]) => document.querySelectorAll("#log .line a").forEach(
  (link) => { link.textContent = link.textContent.replace(from, to); })"""
# Arranges the text of the terminal, the picture of the page, and the pointer on it.
ARRANGE = """async ([text, png, place]) => {
  document.querySelector("pre").textContent = text;
  const image = document.querySelector("img");
  image.src = "data:image/png;base64," + png;
  await image.decode();
  const pointer = document.querySelector("#pointer");
  pointer.style.display = place ? "block" : "none";
  if (place) {
    pointer.style.left = `${place[0] * image.width}px`;
    pointer.style.top = `${place[1] * image.height}px`;
  }
}"""


def to_webp(browser: Browser, png: bytes, quality: float) -> bytes:
    page = browser.new_page()
    webp = page.evaluate(TO_WEBP, [base64.b64encode(png).decode(), quality])
    page.close()
    return base64.b64decode(webp)


class Film:
    """A terminal with a text above a window with a page, picture by picture."""

    def __init__(self, page: Page, url: str, scheme: Any, scale: float) -> None:
        assert page.context.browser
        self.text = ""
        self._page, self._url, self._browser = page, url, page.context.browser
        self._stage = self._browser.new_page(color_scheme=scheme, device_scale_factor=scale)
        self._stage.set_content(STAGE.read_text())
        self._size = (0, 0)
        self._frames: list[tuple[bytes, int]] = []

    def take(self, milliseconds: int = 0, pointed: Locator | None = None) -> None:
        """Add a picture of the page as it is now, with the pointer on an element."""
        self._page.evaluate(REPLACE_URL, [self._url, USUAL_URL])
        png = base64.b64encode(self._page.screenshot()).decode()
        text = self.text.replace(self._url, USUAL_URL)
        self._stage.evaluate(ARRANGE, [text, png, pointed and self._place(pointed)])
        whole = self._stage.locator("#stage").screenshot(omit_background=True)
        self._size = struct.unpack_from(">II", whole, 16)
        self._frames.append((to_webp(self._browser, whole, 0.75), milliseconds))

    def save(self, path: Path) -> None:
        """Save the only picture, or all as a moving one."""
        is_still = len(self._frames) == 1
        path.write_bytes(self._frames[0][0] if is_still else animated(self._frames, *self._size))
        self._stage.close()

    def reserve_lines(self, count: int) -> None:
        """Give the terminal a height that does not change."""
        script = "(pre, count) => { pre.style.height = `${count * 1.45}em`; }"
        self._stage.locator("pre").evaluate(script, count)

    def _place(self, element: Locator) -> tuple[float, float]:
        """The middle of an element, as parts of the page's width and height."""
        box, size = element.bounding_box(), self._page.viewport_size
        assert box
        assert size
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        return x / size["width"], y / size["height"]
