"""A link to a task in the browser of someone who has no key."""

from typing import Any

from playwright.sync_api import Browser, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, violations
from tests.support.service import Service


def append(alice: RemoteClient, task: dict[str, Any], *lines: str) -> None:
    body = {"logs": list(lines)}
    alice.request("POST", f"/task/{task['id']}/logs", json=body).raise_for_status()


def test_everyone_with_the_link_follows_the_task_until_it_is_revoked(
    chromium: Browser, service: Service, alice: RemoteClient
) -> None:
    task = alice.start(name="Nightly", claim=True)
    append(alice, task, "first line")
    owner = Visitor(chromium, service.url)
    owner.sign_in(alice.key)
    page = owner.go(f"/tasks/{task['id']}")
    page.get_by_role("link", name="Share").click()
    assert violations(page) == []
    page.get_by_role("button", name="Create a link").click()
    url = str(page.locator("#new-link").text_content())

    guest = Visitor(chromium, service.url)
    seen = guest.page
    seen.goto(url)
    expect(seen.get_by_role("heading", name="Nightly")).to_be_visible()
    expect(seen.locator("#log")).to_contain_text("first line")
    for scheme in ("light", "dark"):
        seen.emulate_media(color_scheme=scheme)
        assert violations(seen) == []
    append(alice, task, "second line")
    expect(seen.locator("#log")).to_contain_text("second line")
    alice.request("PATCH", f"/task/{task['id']}", json={"note": "34 of 68"}).raise_for_status()
    expect(seen.locator("main")).to_contain_text("34 of 68")
    assert seen.get_by_role("button", name="Cancel").count() == 0
    guest.check()

    page.get_by_role("button", name="Revoke").click()
    expect(page.locator("#notice")).to_contain_text("Revoked.")
    # The open page ends by itself.
    expect(seen.locator("main")).to_contain_text("This link is not valid")
    owner.check()
    for visitor in (owner, guest):
        visitor.close()
