"""The page of a browser as seen from here: what waits to be fetched by it, what it answered, and whether it lives."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

from distilledge.targets.devices.base import Message

POLL_SECONDS = 5.0
"""A poll is answered after so long, also with nothing: each is a beat of both sides."""


class Link:
    """One page at a time; thread-safe. ``watch_s``: silence after which the page counts as lost."""

    def __init__(self, watch_s: float) -> None:
        self.watch_s = watch_s
        self.card: Message = {}
        self._changed = threading.Condition()
        self._pages, self._workers = itertools.count(1), itertools.count(1)
        self._page: int | None = None
        self._heard = 0.0
        self._left = ""
        self._outgoing: deque[Message] = deque()
        self._answers: dict[int, deque[Message]] = defaultdict(deque)
        self._closed = False

    def join(self, card: Message) -> int | None:
        """The number of the new page; None while another one is there."""
        with self._changed:
            if self._closed or self.alive():
                return None
            self._page, self.card, self._left = next(self._pages), card, ""
            self._outgoing.clear()
            self._heard = time.monotonic()
            self._changed.notify_all()
            return self._page

    def poll(self, page: int) -> list[Message] | None:
        """Messages for the page, an empty list after ``POLL_SECONDS``; None for a page that is no longer ours."""
        with self._changed:
            if not self._is(page):
                return None
            self._changed.wait_for(lambda: self._outgoing or not self._is(page), min(POLL_SECONDS, self.watch_s / 3))
            if not self._is(page):
                return None
            self._heard = time.monotonic()
            messages = list(self._outgoing)
            self._outgoing.clear()
            return messages

    def answered(self, page: int, worker: int, message: Message) -> bool:
        with self._changed:
            if not self._is(page):
                return False
            self._heard = time.monotonic()
            self._answers[worker].append(message)
            self._changed.notify_all()
            return True

    def leave(self, page: int) -> None:
        """The page says that it is closed."""
        with self._changed:
            if self._is(page):
                self._page, self._left = None, "it was closed, reloaded or left"
                self._changed.notify_all()

    def drop(self) -> None:
        """Forget a page that is lost, so that a new one can join at once."""
        with self._changed:
            self._page, self._left = None, self._left or "it was given up"

    def close(self) -> None:
        """Nobody joins any more, and the page that is there is let go."""
        with self._changed:
            self._page, self._closed, self._left = None, True, "the device was closed"
            self._changed.notify_all()

    def alive(self) -> bool:
        return self._page is not None and time.monotonic() - self._heard <= self.watch_s

    def loss(self) -> str:
        """Why there is no page; empty while there is one."""
        if self.alive():
            return ""
        return self._left or f"it was not heard for {self.watch_s:g} s: the tab crashed, sleeps, or lost the network"

    def wait(self, seconds: float, still: Callable[[], None]) -> bool:
        """Until a page has joined; False after ``seconds``. ``still`` raises where none can come any more."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self.alive():
                still()
                if time.monotonic() >= end:
                    return False
                self._changed.wait(0.2)
            return True

    def start(self) -> tuple[int, int]:
        """Page and number of a new worker in it."""
        with self._changed:
            number, page = next(self._workers), self._page or 0
            self._post(number, {"op": "start"})
            return page, number

    def send(self, worker: int, message: Message) -> None:
        with self._changed:
            self._post(worker, message)

    def receive(self, page: int, worker: int, seconds: float, gone: Callable[[], str]) -> Message | str | None:
        """The worker's next message; why it is lost; None after ``seconds`` without one."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                if self._answers[worker]:
                    return self._answers[worker].popleft()
                if self._page != page or not self.alive():
                    return gone() or self.loss() or "another page took its place"
                if why := gone():
                    return why
                if time.monotonic() >= end:
                    return None
                self._changed.wait(min(0.2, max(0.0, end - time.monotonic())))

    def forget(self, worker: int) -> None:
        with self._changed:
            self._answers.pop(worker, None)

    def _post(self, worker: int, message: Message) -> None:
        self._outgoing.append({"worker": worker, "message": message})
        self._changed.notify_all()

    def _is(self, page: int) -> bool:
        return self._page is not None and self._page == page
