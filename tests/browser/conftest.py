"""The browser, which the tests of a file share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import CHROMIUM, launched
from tests.support.requirements import needs


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        needs("Chromium", "install the package chromium")
    with launched() as browser:
        yield browser
