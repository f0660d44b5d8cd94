"""Asks a node whether it is ready."""

import requests

from tests.support.service import Service


def is_up(url: str) -> bool:
    """Whether a GET of this URL succeeds."""
    try:
        return requests.get(url, timeout=60).ok
    except requests.RequestException:
        return False


def is_ready(node: Service) -> bool:
    """Whether it is ready by /readyz, while /livez says that the process lives."""
    assert requests.get(f"{node.url}/livez", timeout=30).ok
    status = requests.get(f"{node.url}/readyz", timeout=30).status_code
    assert status in (200, 503)
    return status == 200


def is_unready(node: Service) -> bool:
    return not is_ready(node)
