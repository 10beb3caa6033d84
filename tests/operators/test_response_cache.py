"""The response cache: what is stored is found, by several processes at once."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.config import ConfigError
from operators.response_cache import Answer, check_cache, open_cache


def test_stored_answers_are_found_again(tmp_path: Path) -> None:
    path = str(tmp_path / "deep/down/cache.sqlite")
    answers = {
        "a": Answer('It\'s <b>"quoted"</b>;\n DROP TABLE answers\x00 — ünïcode 🐈', 12, "stop"),
        "b": Answer("", None, None),
        "c": Answer("x" * 1_000_000, 0, "length", 321, 0.1234567890123),
    }
    with open_cache(path) as cache:
        for key, answer in answers.items():
            assert cache.store(key, answer) == answer
        # The first stays, and who asked at the same time is told.
        assert cache.store("a", Answer("a later answer", 1, None)) == answers["a"]
    with open_cache(path) as cache:
        found = cache.find(["a", "b", "c", "never asked"])
        assert found == answers
        assert [found[key].latency_s for key in "abc"] == [None, None, 0.1234567890123]
        assert cache.find([]) == {}


def test_a_cache_that_takes_nothing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "deep/cache.sqlite")
    check_cache(path)
    check_cache(path)
    foreign = tmp_path / "foreign"
    foreign.write_text("no cache, " * 200)
    for wrong in (str(foreign), str(tmp_path), f"{foreign}/cache.sqlite", "/proc/cache.sqlite"):
        with pytest.raises(ConfigError, match="caption cache") as raised:
            check_cache(wrong)
        assert "\n" not in str(raised.value)
    connect = sqlite3.connect

    def read_only(path: str, **rest: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **rest)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(ConfigError, match="readonly database: name a writable local file"):
        check_cache(path)


def test_many_keys_at_once(tmp_path: Path) -> None:
    with open_cache(str(tmp_path / "cache.sqlite")) as cache:
        for i in range(0, 1_300, 2):
            cache.store(str(i), Answer(str(i), i, None))
        found = cache.find(map(str, range(1_300)))
    assert len(found) == 650
    assert found["1298"] == Answer("1298", 1298, None)


def test_processes_share_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    program = (
        "import sys\n"
        "from operators.response_cache import Answer, open_cache\n"
        "for i in range(40):\n"
        "    with open_cache(sys.argv[1]) as cache:\n"
        "        cache.store(f'{sys.argv[2]}-{i}', Answer('text', i, None))\n"
        "        cache.store(f'shared-{i}', Answer('text', i, None))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(n)]) for n in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    keys = [f"{n}-{i}" for n in [*range(4), "shared"] for i in range(40)]
    with open_cache(str(path)) as cache:
        assert len(cache.find(keys)) == 200
    assert {file.name for file in tmp_path.iterdir()} == {"cache.sqlite"}


def test_a_killed_process_has_not_paid_for_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.sqlite")
    program = (
        "import sys\n"
        "from operators.response_cache import Answer, open_cache\n"
        "with open_cache(sys.argv[1]) as cache:\n"
        "    for i in range(100_000):\n"
        "        cache.store(str(i), Answer('text ' * 200, i, None))\n"
        "        print(i, flush=True)\n"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(50)]
        os.kill(writer.pid, signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()[:-1]]
        writer.wait()
        writer.stdout.close()
        with open_cache(path) as cache:
            assert len(cache.find(map(str, told))) == len(told)
            assert cache.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_cache_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.sqlite")
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, num_tokens INTEGER, "
            "finish_reason TEXT) WITHOUT ROWID"
        )
        old.execute("INSERT INTO answers VALUES ('paid', 'A cat.', 3, 'stop')")
    old.close()
    for _ in range(2):
        with open_cache(path) as cache:
            assert cache.find(["paid"]) == {"paid": Answer("A cat.", 3, "stop")}
            kept = cache.store("new", Answer("A dog.", 3, "stop", 9, 0.5))
            assert (kept.num_prompt_tokens, kept.latency_s) == (9, 0.5)


@pytest.mark.parametrize("content", ["some other program's notes " * 50, None])
def test_what_is_no_cache_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "notes"
    path.mkdir() if content is None else path.write_text(content)
    refused = pytest.raises(ConfigError, match=r"caption cache `.*notes`: .* (name|delete)")
    with refused, open_cache(str(path)):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(ConfigError, match="writable local file")
    with refused, open_cache(str(tmp_path / "file/cache.sqlite")):
        pass
