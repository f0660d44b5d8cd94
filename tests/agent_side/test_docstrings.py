"""The examples in the docstrings of `taskservice.client` run against the service."""

import doctest
import inspect
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from taskservice import client as package
from taskservice.client import Client, TaskServiceError
from tests.support.service import Service


def public() -> Iterator[tuple[str, object]]:
    """Everything that the package exports, with the methods and properties of its classes."""
    for name in package.__all__:
        exported = getattr(package, name)
        yield name, exported
        if name in ("Client", "Task", "TaskHandler"):
            members = {key: member for key, member in vars(exported).items() if key[0] != "_"}
            yield from ((f"{name}.{key}", member) for key, member in members.items())


DOCSTRINGS = {name: inspect.getdoc(thing) or "" for name, thing in public()}
CALLS = {name: text for name, text in DOCSTRINGS.items() if "Example:" in text}


def test_everything_public_has_a_docstring() -> None:
    for name, thing in public():
        if isinstance(thing, type | property) or inspect.isfunction(thing):
            assert name == "TaskHandler.emit" or thing.__doc__, name


@pytest.mark.parametrize("name", CALLS)
def test_example_does_what_it_shows(
    name: str, shared_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = shared_service.add_user()
    monkeypatch.setenv("TASKSERVICE_URL", owner.url)
    monkeypatch.setenv("TASKSERVICE_APIKEY", owner.key)
    client = Client()
    task = client.start("agent")
    names = {**vars(package), "client": client, "task": task}
    example = doctest.DocTestParser().get_doctest(CALLS[name], names, name, None, None)
    assert example.examples, name
    is_over = threading.Event()
    person = threading.Thread(target=answer_questions, args=[client, is_over])
    person.start()
    printed: list[str] = []
    result = doctest.DocTestRunner().run(example, out=printed.append)
    is_over.set()
    person.join()
    with suppress(TaskServiceError):
        task.complete()
    assert not result.failed, "".join(printed)


def answer_questions(client: Client, is_over: threading.Event) -> None:
    """A person who takes the first choice of each question."""
    while not is_over.wait(0.2):
        for task in client.tasks(status="running"):
            for question in task.questions:
                choice = question["schema"]["properties"]["answer"]["enum"][0]
                task.answer(question["id"], {"answer": choice})
