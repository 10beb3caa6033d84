"""Answers of a caption endpoint kept in one SQLite file, so that a rerun never pays twice.

One file, because a file per answer would be millions of tiny ones. It lies on a local disk (write
ahead logging needs shared memory, which network file systems and S3 do not have): several
processes of one machine share it, and each machine of a cluster keeps its own.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.config import ConfigError

LOCK_TIMEOUT_S = 30.0
_KEYS_PER_QUERY = 500  # below SQLite's limit of bound variables in every build
_COLUMNS = "text, num_tokens, finish_reason, num_prompt_tokens, latency_s"
_ADDED_LATER = (("num_prompt_tokens", "INTEGER"), ("latency_s", "REAL"))


@dataclass(frozen=True)
class Answer:
    """What an endpoint said to one request.

    ``num_tokens`` (completion tokens), ``finish_reason`` and ``num_prompt_tokens`` are None where
    it did not say. ``latency_s``: from sending the request to having its answer, without the
    attempts that failed and the waits between them.
    """

    text: str
    num_tokens: int | None
    finish_reason: str | None
    num_prompt_tokens: int | None = None
    latency_s: float | None = field(default=None, compare=False)  # measured, not said


@dataclass(frozen=True)
class ResponseCache:
    """An open cache; made by `open_cache`. Keys are hashes of whole requests."""

    connection: sqlite3.Connection

    def find(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers known for ``keys``."""
        wanted = sorted(set(keys))
        found = {}
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            some = wanted[start : start + _KEYS_PER_QUERY]
            marks = ", ".join("?" * len(some))
            rows = self.connection.execute(
                f"SELECT key, {_COLUMNS} FROM answers WHERE key IN ({marks})",
                some,
            )
            found.update({key: Answer(*answer) for key, *answer in rows})
        return found

    def store(self, key: str, answer: Answer) -> Answer:
        """Keep an answer at once: a process killed afterwards has not paid for nothing.

        Returns the one that is kept: the first stays, so that two processes that asked the same
        write the same, now and in every rerun.
        """
        self.connection.execute(
            f"INSERT OR IGNORE INTO answers (key, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (
                key,
                answer.text,
                answer.num_tokens,
                answer.finish_reason,
                answer.num_prompt_tokens,
                answer.latency_s,
            ),
        )
        return self.find([key])[key]


@contextlib.contextmanager
def open_cache(path: str) -> Iterator[ResponseCache]:
    """Open the cache at the local ``path``, making it and its folder where they are missing.

    Raises ConfigError where the file cannot be opened or is not a response cache.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # One thread uses a connection at a time, though not always the one that opened it.
        connection = sqlite3.connect(
            path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"caption cache `{path}`: {error}: name a writable local file") from None
    with contextlib.closing(connection):
        _prepare(connection, path)
        yield ResponseCache(connection)


def check_cache(path: str) -> None:
    """Raises ConfigError, before any work, unless the cache at ``path`` takes answers."""
    with open_cache(path) as cache:
        try:
            # A file that can be read only opens as well: this writes nothing, but would have to.
            cache.connection.execute("DELETE FROM answers WHERE false")
        except sqlite3.Error as error:
            raise ConfigError(
                f"caption cache `{path}`: {error}: name a writable local file"
            ) from None


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            # Switching to WAL does not wait for another process that does the same: try again.
            connection.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing; only a machine that fails may lose the last answers.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, "
                "num_tokens INTEGER, finish_reason TEXT, num_prompt_tokens INTEGER, "
                "latency_s REAL) WITHOUT ROWID"
            )
            # Fails here, not half-way, where the table is another program's.
            connection.execute("SELECT key, text, num_tokens, finish_reason FROM answers LIMIT 0")
            _add_columns(connection)
            return
        except sqlite3.DatabaseError as error:
            locked = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            if not locked or time.monotonic() > deadline:
                raise ConfigError(
                    f"caption cache `{path}`: {error}: name another file or delete this one"
                ) from None
            time.sleep(0.05)


def _add_columns(connection: sqlite3.Connection) -> None:
    """Caches of an earlier version go on being used: their answers are paid for."""
    there = {row[1] for row in connection.execute("PRAGMA table_info(answers)")}
    for name, type_ in _ADDED_LATER:
        if name not in there:
            try:
                connection.execute(f"ALTER TABLE answers ADD COLUMN {name} {type_}")
            except sqlite3.OperationalError as error:
                if "duplicate column" not in str(error):  # another process was faster
                    raise
