"""A cache of pictures that holds a bounded number of bytes, for several threads."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any


class ByteCache:
    """What was used last, up to ``max_bytes``; larger things are not kept at all."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = Lock()
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, tuple[Lock, int]] = {}  # and how many threads wait

    def get(self, key: Hashable) -> Any:
        """What was put under ``key``; None if it is not, or no longer, here."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Hashable, value: Any, num_bytes: int) -> None:
        """Keep ``value``, which takes ``num_bytes``, in place of what was used longest ago."""
        if num_bytes > self.max_bytes:
            return
        with self._lock:
            if key in self._held:
                self.num_bytes -= self._held.pop(key)[1]
            self._held[key] = value, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._held.popitem(last=False)[1][1]

    def fetch(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under ``key``, or else made and kept: by one thread, for which others wait.

        ``make`` gives the value and its bytes; what it raises, each thread that needs it gets.
        """
        with self._lock:
            turn, users = self._making.get(key, (Lock(), 0))
            self._making[key] = turn, users + 1
        try:
            with turn:
                value = self.get(key)
                if value is None:
                    value, num_bytes = make()
                    self.put(key, value, num_bytes)
                return value
        finally:
            with self._lock:
                turn, users = self._making.pop(key)
                if users > 1:
                    self._making[key] = turn, users - 1
