"""Reads a list page by page, as a browser follows its links."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

from requests.utils import parse_header_links

Task = dict[str, Any]

# Any host, since links are relative; the path is the prefix of the API.
ROOT = "http://taskservice.example/api/v1"
# More than any test has, so that a link that leads back ends a test.
MOST_PAGES = 2_000


def pages(get: Callable[[str], Any], query: str) -> Iterator[list[Task]]:
    """The pages of the list of tasks; each is requested after the previous one was used.

    `get` requests a path of the API, like a Person's.
    """
    url = f"{ROOT}/task?{query}"
    for _ in range(MOST_PAGES):
        response = get(url.removeprefix(ROOT))
        assert response.status_code == 200, response.text
        yield json.loads(response.text)
        following = next_url(url, response)
        if following is None:
            return
        url = following
    raise AssertionError(f"More than {MOST_PAGES} pages, the last one {url}")


def next_url(url: str, response: Any) -> str | None:
    """The URL of the next page, resolved against the URL of this page."""
    links = parse_header_links(response.headers.get("Link", ""))
    urls = [urljoin(url, link["url"]) for link in links if link["rel"] == "next"]
    return urls[0] if urls else None


def in_pages(get: Callable[[str], Any], query: str) -> list[Task]:
    """The tasks of all pages."""
    return [task for page in pages(get, query) for task in page]
