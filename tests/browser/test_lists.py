"""The list of tasks, the pages of agents and of the API, in a real browser."""

import re
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Response, Route, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, check_accessible, violations
from tests.support.sample_data import HOSTILE
from tests.support.service import Service, environment


def report(alice: RemoteClient, task: dict[str, str], **changes: object) -> None:
    alice.request("PATCH", f"/task/{task['id']}", json=changes).raise_for_status()


def test_row_says_what_its_task_does_and_then_why_it_failed(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="Invoices")
    page = visitor.go()
    row = page.locator(f"#task-{task['id']}")
    expect(row.locator(".pill")).to_have_text("waiting")
    alice.request("POST", "/agent/summarizer/claim")
    expect(row.locator(".pill")).to_have_text("running")
    report(alice, task, progress=0.5, note="34 of 68 pages")
    expect(row).to_contain_text("34 of 68 pages")
    expect(page.get_by_role("progressbar", name="Progress of Invoices")).to_have_attribute(
        "value", "0.5"
    )
    report(alice, task, status="error", error={"message": f"{HOSTILE}\nsecond line"})
    expect(row.locator(".reason")).to_have_text(HOSTILE)
    expect(row.get_by_role("progressbar")).to_have_count(0)
    check_accessible(page)
    page = visitor.go("/agents/summarizer")
    page.set_viewport_size({"width": 1000, "height": 800})
    # A long reason leaves space for the name.
    expect(page.locator(".recent-tasks").get_by_text("Invoices")).to_be_in_viewport(ratio=1)


def test_first_task_does_not_take_back_a_reader_on_the_way_to_another_page(
    visitor: Visitor, alice: RemoteClient
) -> None:
    page = visitor.go()
    url = page.url
    refreshes: list[Route] = []
    next_pages: list[Route] = []
    page.route("**/agents", lambda route: next_pages.append(route))
    page.route(url, lambda route: refreshes.append(route))
    # The empty list reloads itself once there is a task.
    alice.start(name="First")
    with page.expect_request(url):
        pass
    with page.expect_request("**/agents"):
        page.get_by_role("link", name="Agents", exact=True).click(no_wait_after=True)
    with page.expect_event("requestfinished", lambda request: request.url == url):
        refreshes[0].continue_()
    next_pages[0].continue_()
    expect(page).to_have_url(re.compile("/agents$"))


def test_labels_and_tabs_filter_and_the_form_keeps_them(
    visitor: Visitor, alice: RemoteClient
) -> None:
    alice.start(name="First", labels={"env": "prod", "team": "a:b=c&d"})
    alice.start(name="Second", labels={"env": "prod"})
    page = visitor.go()
    page.get_by_role("link", name="team:a:b=c&d").click()
    expect(page.locator("#rows tr")).to_have_count(1)
    page.locator("#rows").get_by_role("link", name="env:prod").click()
    page.get_by_role("navigation", name="Status").get_by_role("link", name="Waiting").click()
    page.get_by_label("Name").fill("fir")
    page.get_by_label("Name").press("Enter")
    page.wait_for_url(re.compile("q=fir"))
    page.reload()
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#tabs [aria-current]")).to_contain_text("Waiting")
    check_accessible(page)
    page.get_by_role("link", name="Remove the filter Label team:a:b=c&d").click()
    expect(page.locator(".chip.selected:not(.in-form)")).to_have_count(1)
    assert "q=fir" in page.url
    assert "claimed=false" in page.url


def test_keys_move_search_and_help_but_not_in_a_field(
    visitor: Visitor, alice: RemoteClient
) -> None:
    for name in ("Oldest", "Middle", "Newest"):
        alice.start(name=name)
    page = visitor.go()
    links = {name: page.get_by_role("link", name=name, exact=True)
             for name in ("Oldest", "Middle", "Newest")}  # fmt: skip
    for key, name in (("j", "Newest"), ("j", "Middle"), ("j", "Oldest"), ("j", "Oldest"),
                      ("k", "Middle")):  # fmt: skip
        page.keyboard.press(key)
        expect(links[name]).to_be_focused()
    page.keyboard.press("/")
    field = page.get_by_label("Name")
    expect(field).to_be_focused()
    page.keyboard.type("j?/k")
    expect(field).to_have_value("j?/k")
    expect(page.get_by_role("dialog")).to_have_count(0)
    field.fill("")
    page.locator("#columns").click()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/tasks/"))


def test_keys_continue_where_the_reader_was(visitor: Visitor, alice: RemoteClient) -> None:
    tasks = {name: alice.start(name=name) for name in ("Oldest", "Middle", "Newest", "Other")}
    page = visitor.go("/?q=e&sort=createdAt")
    page.get_by_role("link", name="Middle", exact=True).click()
    expect(page.get_by_role("heading", name="Middle")).to_be_visible()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    keys = ["u", "r", "p", "n", "/", "g", "i", "t", "a", "?"]
    assert dialog.locator("kbd").all_text_contents() == keys
    assert violations(page) == []
    page.keyboard.press("Escape")
    for back in (page.go_back, lambda: page.keyboard.press("u")):
        back()
        page.wait_for_url(re.compile(r"/\?q=e&sort=createdAt"))
        # Neither moves the focus before a key.
        page.locator("#columns").click()
        page.keyboard.press("r")
        page.keyboard.press("j")
        expect(page.get_by_role("link", name="Newest", exact=True)).to_be_focused()
        page.keyboard.press("k")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(f"/tasks/{tasks['Middle']['id']}"))
    page.keyboard.press("r")
    # The page before has such a button too.
    page.wait_for_url(re.compile("/rerun"))
    expect(page.get_by_role("button", name="Run again")).to_be_visible()
    expect(page.locator("nav [aria-current]")).to_have_text("Tasks")
    page.keyboard.press("?")
    expect(dialog.locator("kbd")).to_have_text(["g", "i", "t", "a", "?"])


def test_deletion_leads_back_to_the_filtered_list(visitor: Visitor, alice: RemoteClient) -> None:
    for name in ("Oldest", "Middle", "Newest"):
        alice.start(name=name)
    page = visitor.go()
    page.get_by_label("Sort").select_option("createdAt")
    for name, left in (("Oldest", ["Middle", "Newest"]), ("Middle", ["Newest"])):
        # The links have the filters as soon as the rows do.
        expect(page.locator("#rows th a")).to_have_text([name, *left])
        page.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("link", name="Delete…").click()
        expect(page.locator(".confirm")).to_contain_text("waiting · summarizer · started")
        check_accessible(page)
        page.get_by_role("button", name="Delete permanently").click()
        page.wait_for_url(f"{visitor.url}/?sort=createdAt")
        expect(page.locator("#notice")).to_have_text(f"Deleted “{name}”.")
    page = visitor.go("/agents/summarizer")
    page.get_by_role("link", name="Newest", exact=True).click()
    page.get_by_role("heading", name="Newest").wait_for()
    page.keyboard.press("u")
    page.wait_for_url(f"{visitor.url}/agents/summarizer")


def test_name_is_searched_by_enter(visitor: Visitor, alice: RemoteClient) -> None:
    for name in ("First", "Second"):
        alice.start(name=name)
    page = visitor.go()
    page.get_by_label("Name").fill("fir")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{visitor.url}/?q=fir")
    expect(page.locator("#rows tr")).to_have_count(1)
    check_accessible(page)


def test_search_box_leads_to_a_task_and_to_lines_of_logs(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="Invoices")
    body = {"logs": ["ok", f"disk full {HOSTILE}"]}
    alice.request("POST", f"/task/{task['id']}/logs", json=body).raise_for_status()
    page = visitor.go("/?status=running")
    page.get_by_label("Name").fill(task["id"])
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Invoices").wait_for()
    page.go_back()
    page.get_by_label("Name").fill("DISK")
    page.get_by_role("button", name="In logs").hover()
    # The button has its place until it is released, though the filter applies.
    with page.expect_response(lambda response: "q=DISK" in response.url and response.text() != ""):
        page.mouse.down()
    page.mouse.up()
    page.get_by_role("heading", name="Search in logs").wait_for()
    expect(page.locator("mark")).to_have_text("disk")
    check_accessible(page)
    page.get_by_role("link", name="disk full").click()
    page.wait_for_url(re.compile(f"/tasks/{task['id']}.*#L2$"))
    page.keyboard.press("u")
    page.get_by_role("heading", name="Search in logs").wait_for()


def test_click_during_a_refresh_is_not_lost(visitor: Visitor, alice: RemoteClient) -> None:
    task = alice.start(name="Invoices", claim=True)
    page = visitor.go("/")
    page.get_by_role("link", name="Invoices").hover()
    page.mouse.down()
    with page.expect_response(lambda response: "34 of 68" in response.text()):
        body = {"note": "34 of 68"}
        alice.request("PATCH", f"/task/{task['id']}", json=body).raise_for_status()
    page.mouse.up()
    page.wait_for_url(f"**/tasks/{task['id']}*")
    # A press without a click stops no refresh either.
    page.get_by_role("link", name="Cancel…").hover()
    page.mouse.down()
    page.mouse.move(5, 300)
    page.mouse.up()
    body = {"note": "35 of 68"}
    alice.request("PATCH", f"/task/{task['id']}", json=body).raise_for_status()
    # Sooner than a press ends by itself.
    expect(page.locator(".progress")).to_contain_text("35 of 68", timeout=8_000)


def test_time_until_an_end_is_rounded_and_not_cut(visitor: Visitor, alice: RemoteClient) -> None:
    page = visitor.go("/keys")
    page.get_by_label("Name").fill("machine")
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#keys").get_by_role("row", name="machine")).to_contain_text("in 90 d")
    task = alice.start(claim=True)
    body = {"message": "Go on?", "timeout": 18_000}
    alice.request("POST", f"/task/{task['id']}/question", json=body).raise_for_status()
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator(".question")).to_contain_text("expires in 5 h")


def test_expected_runs_are_in_the_zone_of_the_person(
    chromium: Browser, service: Service, alice: RemoteClient
) -> None:
    alice.request("PUT", "/agent/backup").raise_for_status()
    visitor = Visitor(chromium, service.url, timezone_id="Asia/Kolkata", locale="en-GB")
    visitor.sign_in(alice.key)
    page = visitor.go("/agents/backup")
    check_accessible(page)
    page.get_by_role("link", name="Set the expected runs").click()
    expect(page.get_by_label("in the time zone")).to_have_value("Asia/Calcutta")
    check_accessible(page)
    page.get_by_label("times of cron").fill("30 4 * * *")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#notice")).to_have_text("Saved.")
    agent = alice.request("GET", "/agent/backup").json()
    assert agent["expect"] == {"cron": "30 4 * * *", "timeZone": "Asia/Calcutta", "grace": 3600}
    times = page.locator("#due-times time")
    expect(times).to_have_text([re.compile("04:30:00 .in ")] * 3)
    page.get_by_role("link", name="Change the expected runs").click()
    expect(page.get_by_label("times of cron")).to_have_value("30 4 * * *")
    visitor.check()
    visitor.close()


def test_title_and_icon_of_an_open_page_have_the_state(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="Watched")
    page, other = visitor.go(f"/tasks/{task['id']}"), visitor.context.new_page()
    other.goto(visitor.url)
    icon = page.locator("#icon")
    expect(page).to_have_title("waiting · Watched · taskservice")
    expect(other).to_have_title("Tasks · taskservice")
    expect(icon).to_have_attribute("href", re.compile("icon-waiting.svg"))
    alice.request("POST", "/agent/summarizer/claim")
    expect(page).to_have_title("running · Watched · taskservice")
    expect(other).to_have_title("1 running · Tasks · taskservice")
    expect(other.locator("#icon")).to_have_attribute("href", re.compile("icon-running.svg"))
    report(alice, task, status="error")
    expect(page).to_have_title("failed · Watched · taskservice")
    expect(icon).to_have_attribute("href", re.compile("icon-failed.svg"))
    expect(other).to_have_title("(1) Tasks · taskservice")
    expect(other.locator("#icon")).to_have_attribute("href", re.compile("icon.svg"))


def test_browser_notifies_of_the_end_of_a_task_if_asked_to(
    visitor: Visitor, alice: RemoteClient
) -> None:
    # Headless browsers show none: this one writes down what it would show.
    visitor.context.add_init_script(
        "window.shown = []; window.Notification = class extends EventTarget {"
        " static requestPermission() { return Promise.resolve(window.permission ?? 'granted'); }"
        " constructor(title) { super(); shown.push(title); } };"
    )
    first, second = (alice.start(name=name, claim=True) for name in ("Asked", "Not asked"))
    page = visitor.go(f"/tasks/{first['id']}")
    button = page.locator("#watch")
    page.evaluate("window.permission = 'denied'")
    button.click()
    expect(button).to_have_text("Blocked by the browser")
    page.evaluate("window.permission = 'granted'")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert violations(page) == []
    report(alice, first, status="complete")
    expect(button).to_be_hidden()
    assert page.evaluate("shown") == ["complete: Asked"]
    page = visitor.go(f"/tasks/{second['id']}")
    expect(button).to_have_text("Notify me")
    report(alice, second, status="complete")
    expect(button).to_be_hidden()
    assert page.evaluate("shown") == []


def test_agent_is_run_and_edited(visitor: Visitor, alice: RemoteClient) -> None:
    for size in (0.25, 0.5, 1_200):
        task = alice.start("backup", name="First", claim=True)
        report(alice, task, status="complete", output={"size": size})
    page = visitor.go("/agents")
    check_accessible(page)
    page.get_by_role("link", name="backup", exact=True).first.click()
    expect(page.locator(".plot .point")).to_have_count(3)
    # Each axis has a value at both ends, as high as the dots of these values.
    ends = page.locator("#numbers .ends > span")
    expect(ends).to_have_text(["1,200", "0.25"])
    dots = page.locator("#numbers circle")
    for end, dot in ((0, 2), (1, 0)):
        boxes = [place.bounding_box() for place in (ends.nth(end), dots.nth(dot))]
        middles = [box["y"] + box["height"] / 2 for box in boxes if box]
        assert abs(middles[0] - middles[1]) < 8
    page.locator("#durations summary").click()
    expect(page.locator("#durations-table td", has_text="complete").first).to_be_visible()
    check_accessible(page)
    page.get_by_role("link", name="Edit…").click()
    check_accessible(page)
    page.get_by_label("Name").fill("The backup")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="The backup")).to_be_visible()
    page.get_by_role("link", name="Run…").click()
    page.get_by_label("Input (a JSON object)").fill("{")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was started.")
    check_accessible(page)
    page.get_by_label("Input (a JSON object)").fill('{"path": "/srv"}')
    page.get_by_label("Labels").fill("env=prod")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#notice")).to_have_text("Started “The backup”.")
    # The browser logs the page that said what was wrong.
    visitor.complaints[:] = [text for text in visitor.complaints if "422" not in text]


def test_page_of_the_api_has_the_header_copies_and_folds_on_a_phone(visitor: Visitor) -> None:
    page = visitor.go("/docs")
    expect(page.get_by_role("link", name="post Cancel a task")).to_be_visible()
    page.get_by_role("button", name="Copy: request of getUser", exact=True).click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#getUser figure pre").first.text_content()
    assert violations(page, "color-contrast") == []
    # A minute of contrasts is spared: one template makes all operations.
    page.evaluate(
        "document.querySelectorAll('article:not(#getUser, #cancelTask, #followTask)')"
        ".forEach(article => article.remove())"
    )
    check_accessible(page)
    # Narrow by now.
    link = page.get_by_role("link", name="post Cancel a task").first
    expect(link).to_be_hidden()
    page.get_by_text("Contents", exact=True).click()
    link.click()
    expect(page.locator("#cancelTask")).to_be_in_viewport()
    expect(link).to_be_hidden()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Agents").click()
    page.wait_for_url(f"{visitor.url}/agents")


def test_commands_of_the_start_page_work_as_they_stand(
    visitor: Visitor, alice: RemoteClient, service: Service, tmp_path: Path
) -> None:
    page = visitor.go()
    expect(page.locator("#start-where")).to_have_text(f"taskservice login {service.url}")
    expect(page.locator("#start-demo")).to_be_hidden()
    check_accessible(page)
    command = str(page.locator("#start-run").text_content())
    curl = str(page.locator("#start-curl").text_content()).replace("tsk_…", alice.key)
    variables = environment(tmp_path, URL=service.url, APIKEY=alice.key)
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    for text in (command, curl):
        subprocess.run(["sh", "-ec", text], env=variables, check=True, timeout=60)
    expect(page.locator("#rows .pill")).to_have_text(["complete", "complete"])
    counted, printed = alice.request("GET", "/task").json()
    assert (counted["logs"], counted["output"]) == (["one", "two"], {"count": 2})
    assert (printed["agentId"], printed["logCount"]) == ("sh", 5)


def test_phone_has_buttons_for_fingers_and_room_for_the_user(
    chromium: Browser, service: Service
) -> None:
    alice = service.add_user("newcomer")
    task = alice.start(name="Without lines", claim=True)
    phone = {"has_touch": True, "is_mobile": True, "viewport": {"width": 390, "height": 844}}
    visitor = Visitor(chromium, service.url, **phone)
    visitor.sign_in(alice.key)
    page = visitor.go()
    summary = page.locator("#menu summary bdi")
    assert summary.evaluate("node => node.scrollWidth <= node.clientWidth")
    visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-none")).to_be_visible()
    expect(page.locator("#log-find")).to_be_hidden()
    expect(page.locator("#log-menu")).to_be_hidden()
    for button in page.locator(".actions .button").all():
        box = button.bounding_box()
        assert box
        assert box["height"] >= 36
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.check()
    visitor.close()


@pytest.mark.parametrize("path", ["/", "/agents"])
def test_menu_stays_where_it_is_on_each_page(visitor: Visitor, path: str) -> None:
    page = visitor.go(path)
    place = "links => links.map((link) => link.getBoundingClientRect().x)"
    page.get_by_role("link", name="Agents", exact=True).wait_for()
    before = page.get_by_role("navigation", name="Pages").get_by_role("link").evaluate_all(place)
    visitor.go("/keys")
    after = page.get_by_role("navigation", name="Pages").get_by_role("link").evaluate_all(place)
    assert before == after


def test_many_open_tabs_each_ask_less_than_once_a_second_and_get_304(
    visitor: Visitor, alice: RemoteClient
) -> None:
    alice.start(name="Unchanged")
    page = visitor.go()
    expect(page.locator("#tab-waiting")).to_contain_text("1")
    tabs = [visitor.context.new_page() for _ in range(5)]
    answers: dict[Page, list[tuple[float, int]]] = {tab: [] for tab in tabs}

    def note(tab: Page, response: Response) -> None:
        if response.request.resource_type == "fetch":
            answers[tab].append((response.request.timing["startTime"], response.status))

    for tab in tabs:
        tab.on("response", partial(note, tab))
        tab.goto(visitor.url)
    while min(map(len, answers.values())) < 4:
        with tabs[0].expect_response(lambda response: response.request.resource_type == "fetch"):
            pass
    for tab_answers in answers.values():
        assert min(after - before for (before, _), (after, _) in pairwise(tab_answers)) >= 1_000
        # The first has no ETag yet.
        statuses = [status for _, status in tab_answers[1:]]
        assert set(statuses) == {304}


def test_tab_in_the_background_asks_every_ten_seconds(
    visitor: Visitor, alice: RemoteClient
) -> None:
    alice.start(name="Unchanged")
    # Headless browsers have no tab in the background. This one writes down how long it waits.
    visitor.context.add_init_script(
        "window.isHidden = true;"
        "Object.defineProperty(document, 'hidden', { get: () => isHidden });"
        "const wait = setTimeout, times = [];"
        "window.setTimeout = (done, time) => {"
        " times.push(time); document.documentElement.dataset.waits = times; wait(done, time); };"
    )
    page = visitor.go()
    expect(page.locator("html")).to_have_attribute("data-waits", "1000,10000")
    # It asks at once when it is shown.
    with page.expect_response(lambda response: response.request.resource_type == "fetch"):
        page.evaluate("isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("html")).to_have_attribute("data-waits", "1000,10000,1000")


def test_focus_in_a_row_that_changes_leads_nobody_back_to_it(
    visitor: Visitor, alice: RemoteClient
) -> None:
    for name in range(10):
        task = alice.start(name=str(name), claim=True)
    page = visitor.go("/?status=running")
    page.set_viewport_size({"width": 1280, "height": 420})
    box = page.locator(f"#task-{task['id']} input")
    box.check()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(box).not_to_be_in_viewport()
    report(alice, task, note="half")
    expect(page.locator(f"#task-{task['id']} .reason")).to_have_text("half")
    expect(box).to_be_focused()
    expect(box).not_to_be_in_viewport()


def test_selected_tasks_stay_selected_while_they_change(
    visitor: Visitor, alice: RemoteClient
) -> None:
    one, two, other = (alice.start(name=name, claim=True) for name in ("One", "Two", "Other"))
    page = visitor.go("/?status=running&claimed=true")
    page.set_viewport_size({"width": 1280, "height": 260})
    boxes = [page.locator(f"#task-{task['id']} input") for task in (one, two, other)]
    expect(page.get_by_role("button", name="Delete…")).not_to_be_in_viewport()
    for box in boxes[:2]:
        box.check()
    expect(page.get_by_role("button", name="Delete…")).to_be_in_viewport(ratio=1)
    report(alice, one, note="half")
    expect(page.locator(f"#task-{one['id']} .reason")).to_have_text("half")
    expect(boxes[0]).to_be_checked()
    expect(boxes[2]).not_to_be_checked()
    check_accessible(page)
    page.get_by_role("button", name="Delete…").click()
    expect(page.get_by_role("heading")).to_have_text("Delete 2 tasks?")
    check_accessible(page)
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.locator("#rows tr")).to_have_count(1)
    assert page.url.endswith("/?status=running&claimed=true")
    assert [task["id"] for task in alice.request("GET", "/task").json()] == [other["id"]]
    page.get_by_role("checkbox", name="all 1 that match").check()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel them").click()
    expect(page.locator("#no-match")).to_be_visible()
