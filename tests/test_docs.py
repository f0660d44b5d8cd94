"""The documentation page: complete, readable without scripts, and loading nothing else."""

import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urljoin

import pytest
from flask import Flask

from tests.support.api_client import expect
from tests.support.html_page import Page
from tests.support.plain_browser import Browser

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def html(app: Flask) -> str:
    response = app.test_client().get("/docs", headers={"Accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    return response.text


def test_page_is_well_formed_and_its_links_lead_somewhere(app: Flask, html: str) -> None:
    page = Page(html)
    assert page.open == []
    ids = Counter(page.values("id"))
    assert set(ids.values()) == {1}
    for link in page.values("href"):
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            with app.test_client().get(urljoin("/docs", link), follow_redirects=True) as response:
                assert response.status_code == 200
    for labels in page.values("aria-labelledby"):
        assert labels in ids


def test_page_has_every_operation_and_every_schema(app: Flask, html: str) -> None:
    document = expect(app.test_client().get("/openapi.json"), 200)
    ids = Page(html).values("id")
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["operationId"] in ids
    assert set(document["components"]["schemas"]) <= set(ids)


def test_page_holds_under_a_prefix(html: str) -> None:
    for link in Page(html).values("href"):
        assert urljoin("http://localhost/a/prefix/docs", link).startswith(
            "http://localhost/a/prefix/"
        )


def test_page_loads_its_own_style_and_script_and_nothing_else(app: Flask, html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"style", "iframe", "form"}
    assert page.values("style") == []
    assert sorted(page.values("src")) == ["docs/docs.js", "favicon.ico"]
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert [attributes["href"] for tag, attributes in page.elements if tag == "link"] == [
        "favicon.ico",
        "static/dashboard.css",
        "docs/docs.css",
    ]
    with app.test_client().get("/docs/docs.css") as style:
        assert style.content_type == "text/css; charset=utf-8"
        assert not re.search(r"url\(|@import", style.get_data(as_text=True))
    with app.test_client().get("/docs/docs.js") as script:
        assert script.content_type == "text/javascript; charset=utf-8"
        assert not re.search(r"\bimport\b|fetch\(", script.get_data(as_text=True))
    policy = app.test_client().get("/docs").headers["Content-Security-Policy"]
    assert {"default-src 'none'", "style-src 'self'"} <= set(policy.split("; "))


def test_text_of_the_document_is_not_markup(html: str) -> None:
    assert "<code>apikey: &lt;key&gt;</code>" in html
    assert "{{" not in html
    assert "Undefined" not in html


# --- the help pages ------------------------------------------------------------------------------


def test_help_pages_are_shown_as_they_are_installed(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guides").mkdir()
    for path in ("index.html", "guides/troubleshooting.html"):
        (tmp_path / path).write_text("<h1>Help</h1>")
    monkeypatch.setattr(app.blueprints["help"], "static_folder", tmp_path)
    browser = Browser(app)
    for path in ("/help", "/help/"):
        assert browser.get(path).headers["Location"] == "/help/index.html"
    link = re.search(r'href="(/help/[^"#]+)#i-lost-the-key"', browser.get("/sign-in").text)
    assert link
    with closing(browser.get(link[1])) as page:
        assert page.text == "<h1>Help</h1>"
        policy = page.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "form-action 'self'"} <= set(policy)
    assert browser.get("/help/../setup.cfg").status_code == 404
