"""One line of progress per phase: rows done, rate, time left."""

import sys
import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Prints ``scores/photos/cheap  512/3,000 rows  85 rows/s  0:00:29 left`` every few seconds."""

    label: str
    total: int
    unit: str = "rows"
    done: int = 0
    started_s: float = field(default_factory=time.monotonic)
    printed_s: float = field(default_factory=time.monotonic)
    interval_s: float = 2.0

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed_s >= self.interval_s:
            self.printed_s = now
            say(self.line(now))

    def line(self, now: float) -> str:
        rate = self.done / max(now - self.started_s, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        return (
            f"  {self.label:<28} {self.done:,}/{self.total:,} {self.unit}"
            f"  {per_second(rate)} {self.unit}/s  {clock(left)} left"
        )

    def close(self, note: str = "") -> None:
        elapsed = time.monotonic() - self.started_s
        rate = self.done / max(elapsed, 1e-9)
        say(
            f"  {self.label:<28} {self.done:,} {self.unit} in {clock(elapsed)}"
            f"  ({per_second(rate)} {self.unit}/s){'  ' + note if note else ''}"
        )


def per_second(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2f}"


def clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}"


def say(line: str) -> None:
    """Print one line for the person at the terminal; data goes to tables, never through here."""
    print(line, file=sys.stderr, flush=True)
