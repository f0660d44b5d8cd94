"""Pictures of every page, light and dark, wide and narrow: `make screenshots`."""

import base64
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.webhooks.destinations import Destinations
from tests.support import sample_data
from tests.support.api_client import add_user
from tests.support.browser import Visitor, launched
from tests.support.receiver import Receiver, answer
from tests.support.service import Service

SIZES = {"wide": (1280, 860), "narrow": (390, 844)}
# Playwright makes PNG only; the browser itself makes something smaller of it.
TO_WEBP = """async (png) => {
  const image = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", 0.6).split(",")[1];
}"""


def prepare(data: Path, good: Receiver, bad: Receiver) -> tuple[str, str, str]:
    """Fill a database; returns the keys of who has much, who is asked, and who has nothing yet."""
    config = Config(
        DATA=data,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("loopback"),
    ).completed()
    app = create_app(config)
    alice = sample_data.make(app, "alice", f"{good.url}hooks/mail", f"{bad.url}hooks/wiki")
    carol = sample_data.make_asking(app, "carol")
    newcomer = add_user(app, "newcomer")
    dispose(app)
    return alice.key, carol.key, newcomer.key


def pages(visitor: Visitor, key: str) -> list[tuple[str, str]]:
    """(name, path) of the pages to take, signed in on the way."""
    page = visitor.sign_in(key)

    def path_of(name: str) -> str:
        link = page.get_by_role("link", name=name).first
        return str(link.get_attribute("href"))

    running, done = path_of("November invoices"), path_of("Morning synopsis")
    failed, parent = path_of("Support mailbox digest"), path_of("Check of all our sites")
    return [
        ("tasks", "/"),
        ("running", running),
        ("complete", done),
        ("error", failed),
        ("waiting", path_of("Release notes 4.3 to Greek")),
        ("parent", parent),
        ("rerun", f"{failed}/rerun"),
        ("cancel", f"{running}/cancel"),
        ("delete", f"{done}/delete"),
        ("inbox", "/inbox"),
        ("agents", "/agents"),
        ("agent", "/agents/invoice-reader"),
        ("keys", "/keys"),
        ("missing", "/tasks/nothing"),
    ]


def take(page: Page, path: Path, printer: Page) -> None:
    page.wait_for_timeout(400)
    png = page.screenshot()
    if path.suffix == ".png":
        path.write_bytes(png)
    else:
        small = printer.evaluate(TO_WEBP, base64.b64encode(png).decode())
        path.write_bytes(base64.b64decode(small))


def main(folder: Path, kind: str = "webp") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, Receiver() as good, Receiver() as bad:
        bad.answer = answer(503, body=b'{"error": "The queue is full", "retry": "in 5 minutes"}')
        keys = prepare(Path(data) / "data", good, bad)
        with Service(Path(data) / "data") as service, launched() as browser:
            for scheme in ("light", "dark"):
                for size, (width, height) in SIZES.items():
                    take_all(browser, service.url, keys, folder, f"{scheme}-{size}.{kind}", {
                        "color_scheme": scheme, "viewport": {"width": width, "height": height},
                    })  # fmt: skip


def take_all(
    browser: Browser,
    url: str,
    keys: tuple[str, str, str],
    folder: Path,
    ending: str,
    options: dict[str, object],
) -> None:
    visitor, printer = Visitor(browser, url, **options), browser.new_page()
    take(visitor.go("/sign-in"), folder / f"sign-in-{ending}", printer)
    for name, path in pages(visitor, keys[0]):
        take(visitor.go(path), folder / f"{name}-{ending}", printer)
    visitor.context.clear_cookies()
    visitor.sign_in(keys[1])
    page = visitor.go("/inbox")
    take(page, folder / f"questions-{ending}", printer)
    page.get_by_role("link", name="Tidy up of old backups").first.click()
    take(page, folder / f"asking-{ending}", printer)
    visitor.context.clear_cookies()
    take(visitor.sign_in(keys[2]), folder / f"start-{ending}", printer)
    printer.close()
    visitor.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
