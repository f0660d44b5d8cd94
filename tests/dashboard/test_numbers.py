"""The charts of the numbers in an agent's outputs."""

import json
import re
from html import unescape
from typing import Any

import pytest

from taskservice.dashboard import chart
from taskservice.services.agents import Number
from tests.support.api_client import ApiClient
from tests.support.plain_browser import Browser


def end(person: ApiClient, output: str) -> dict[str, Any]:
    """A task that ended with this output, which is JSON."""
    task = person.start(claim=True)
    body = f'{{"status": "complete", "output": {output}}}'
    path = f"/task/{task['id']}"
    assert person.patch(path, data=body, content_type="application/json").status_code == 200
    return task


def charts(window: Browser) -> dict[str, str]:
    """Path -> what its chart says in text, in the order of the page."""
    page = window.get("/agents/summarizer").text
    texts = re.findall("<h3><bdi>(.*?)</bdi></h3>.*?<p>(.*?)</p></li>", page, re.DOTALL)
    return {unescape(path): re.sub("<.+?>", "", text) for path, text in texts}


def test_path_has_a_chart_from_three_numbers_on(window: Browser, alice: ApiClient) -> None:
    outputs = ['{"cost": 0.5, "n": 1}', '{"cost": 0.25, "n": "2"}', '{"cost": 1200, "n": 3}']
    ended = [end(alice, output) for output in outputs[:2]]
    assert charts(window) == {}
    ended.append(end(alice, outputs[2]))
    assert charts(window) == {"cost": "last 1,200 · median 0.5 of 3 runs, from 0.25 to 1,200"}
    drawn = window.get("/agents/summarizer").text.partition('id="numbers"')[2]
    dots = re.findall(r'href="/tasks/([^?"]+)[^>]+><title[^>]+>[^<]+: ([^<]+)</title>', drawn)
    ids = [task["id"] for task in ended]
    assert dots == list(zip(ids, ("0.5", "0.25", "1200"), strict=True))
    heights = [float(y) for y in re.findall('cy="([^"]+)"', drawn)]
    assert heights[2] == min(heights)
    assert heights[1] == max(heights)


def test_extreme_numbers_are_drawn(window: Browser, alice: ApiClient) -> None:
    huge = "9" * 400
    for output in (f'{{"n": {huge}, "<b>": 1e-400}}', '{"n": -1, "<b>": 7}', '{"n": 0, "<b>": 7}'):
        end(alice, output)
    assert charts(window) == {
        "n": "last 0 · median 0 of 3 runs, from -1 to 1.000e+400",
        "<b>": "last 7 · median 7 of 3 runs, from 1e-400 to 7",
    }


@pytest.mark.parametrize("numbers", [["5"] * 3, ["1e-5000000", "2e-5000000", "3e-5000000"]])
def test_equal_numbers_are_on_one_line(numbers: list[str]) -> None:
    series = chart.series("n", [Number("", "", text) for text in numbers])
    assert {y for _, _, y in series["points"]} == {chart.SERIES_HEIGHT / 2}


def test_page_stays_small_whatever_the_numbers_are_called(
    window: Browser, alice: ApiClient
) -> None:
    for _ in range(3):
        end(alice, json.dumps({"k" * 1_000_000: {f"n{n}": n for n in range(100)}, "cost": 1}))
    assert list(charts(window)) == ["cost"]
    assert len(window.get("/agents/summarizer").data) < 100_000
