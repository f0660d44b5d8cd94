"""Reads a list page by page, as a browser follows its links."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

from requests.utils import parse_header_links

Task = dict[str, Any]

# Anywhere at all, since links are relative; the path is what people's paths are below.
ROOT = "http://taskservice.example/api/v1"
# More than any test has: a link that leads back must end a test, not hang it.
MOST_PAGES = 2_000


def pages(get: Callable[[str], Any], query: str) -> Iterator[list[Task]]:
    """The pages of the list of tasks; each is asked for when the one before has been used.

    `get` answers to a path below the API, as a Person's does.
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
    """Where the next page is, resolved against the URL that this page was asked for by."""
    links = parse_header_links(response.headers.get("Link", ""))
    urls = [urljoin(url, link["url"]) for link in links if link["rel"] == "next"]
    return urls[0] if urls else None


def in_pages(get: Callable[[str], Any], query: str) -> list[Task]:
    """The tasks of all pages, put together."""
    return [task for page in pages(get, query) for task in page]
