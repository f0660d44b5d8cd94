"""Starts the threads of a process, and provides the objects and the stop signal that they share."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from flask import Flask, current_app

T = TypeVar("T")

EXTENSION = "taskservice"


def replace_thread() -> None:
    """Start a thread that replaces this request's thread; the server overrides this function."""


def provide(app: Flask, resource: object) -> None:
    """Store `resource` in `app`, so that `find` returns it for its class."""
    app.extensions.setdefault(EXTENSION, {})[type(resource)] = resource


def find(kind: type[T], app: Flask | None = None) -> T:
    """The resource of the class `kind` in `app`, by default in the current app."""
    resource: T = (app or current_app).extensions[EXTENSION][kind]
    return resource


def start_thread(name: str, run: Callable[[], object]) -> Thread:
    """Call `run` in a new daemon thread; raises RuntimeError if no thread can be started."""
    try:
        thread = Thread(target=run, name=name, daemon=True)
        thread.start()
    except MemoryError as error:
        raise RuntimeError("no memory for a thread") from error
    # A lack of memory can also end the thread later, at any time; `is_alive` is then false.
    return thread


def start_future(name: str, run: Callable[[], T]) -> Future[T]:
    """A future of the result of `run` in a new thread; raises RuntimeError like `start_thread`."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(run())
        except BaseException as error:
            result.set_exception(error)

    start_thread(name, work)
    return result


# Set once, by `begin_stop`, to end streams, long polls and background loops.
stopping = threading.Event()
_callbacks: list[Callable[[], None]] = []


def on_stop(callback: Callable[[], None]) -> None:
    """Call `callback` when the process begins to stop, or now if it has already begun.

    The callback must be quick.
    """
    _callbacks.append(callback)
    if stopping.is_set():
        callback()


def begin_stop() -> None:
    """Set `stopping` and run the callbacks; a signal handler must not call this function.

    The handler could interrupt a thread that holds the lock of `stopping`, and then wait for this
    lock forever.
    """
    stopping.set()
    for callback in _callbacks:
        callback()
