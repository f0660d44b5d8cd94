"""The pages of an installed wheel: each link of the dashboard and of the help leads somewhere."""

import html
import re
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

import requests

from tests.support.demo import running_demo
from tests.support.documents import ROOT, SITE
from tests.support.packages import install, new_environment, wheel

MAX_WHEEL = 4 * 1024 * 1024
# The number of pages of each kind, such as task pages, that are read. Every help page is read.
PAGES_OF_A_KIND = 2
_LINK = re.compile(r'(?:href|src)="([^"]*)"')
_ID = re.compile(r'\bid="([^"]*)"')


def kind(url: str) -> str:
    """The URL without IDs and values, or the whole URL of a help page."""
    path = urlsplit(url).path
    if path.startswith("/help/"):
        return path
    parameters = sorted(dict(parse_qsl(urlsplit(url).query)))
    return f"{re.sub(r'(?<=/agents/)[^/]+|[0-9a-f-]{36}', 'ID', path)} {parameters}"


def read_pages(browser: requests.Session, start: str) -> dict[str, str]:
    """The HTML of the pages to which the page `start` leads; each link must return 200."""
    pages: dict[str, str] = {}
    waiting, seen, read = [start], {start}, Counter[str]()
    while waiting:
        url = waiting.pop(0)
        read[kind(url)] += 1
        if read[kind(url)] > PAGES_OF_A_KIND:
            continue
        response = browser.get(url, timeout=30)
        assert response.status_code == 200, f"{response.status_code}: {url}"
        if response.headers["Content-Type"].startswith("text/html"):
            pages[url] = response.text
            linked = (urldefrag(link).url for link in links(response.url, response.text))
            new = [link for link in linked if link.startswith(start) and link not in seen]
            waiting += dict.fromkeys(new)
            seen.update(new)
    return pages


def links(url: str, page: str) -> list[str]:
    return [urljoin(url, html.unescape(link)) for link in _LINK.findall(page)]


def test_every_link_of_the_dashboard_and_of_the_help_leads_somewhere(tmp_path: Path) -> None:
    python = new_environment(tmp_path / "venv")
    file = wheel(tmp_path)
    assert file.stat().st_size < MAX_WHEEL
    install(python, "--constraint", str(ROOT / "requirements.txt"), f"{file}[server]")
    with running_demo(tmp_path, [str(python), "-I", "-m", "taskservice"]) as demo:
        browser = requests.Session()
        form = browser.get(demo.link, timeout=30).text
        (token,) = re.findall(r'name="token" value="([^"]*)"', form)
        browser.post(demo.link, {"token": token}, timeout=30)
        pages = read_pages(browser, f"{demo.client.url}/")
    for url, page in pages.items():
        for link in links(url, page):
            target, anchor = urldefrag(link)
            assert not anchor or target not in pages or anchor in _ID.findall(pages[target]), (
                f"{link} in {url}"
            )
        assert not re.search(r'src="https?:', page), f"{url} loads from another site"
        assert "/help/" in url or not re.search(r"docs/[\w/-]+\.md", page), f"{url} names a file"
    read = {urlsplit(url).path.removeprefix("/help/") for url in pages}
    documents = {name.removeprefix("docs/").replace(".md", ".html") for name in SITE}
    assert documents <= read
    assert len(read) > len(documents) + 15  # pages of the dashboard
