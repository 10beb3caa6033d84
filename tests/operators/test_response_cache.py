"""The response cache: what is stored is found, by several processes at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.config import ConfigError
from operators.response_cache import Answer, open_cache


def test_stored_answers_are_found_again(tmp_path: Path) -> None:
    path = str(tmp_path / "deep/down/cache.sqlite")
    answers = {
        "a": Answer('It\'s <b>"quoted"</b>;\n DROP TABLE answers\x00 — ünïcode 🐈', 12, "stop"),
        "b": Answer("", None, None),
        "c": Answer("x" * 1_000_000, 0, "length"),
    }
    with open_cache(path) as cache:
        for key, answer in answers.items():
            cache.store(key, answer)
        cache.store("a", Answer("a later answer", 1, None))  # the first stays
    with open_cache(path) as cache:
        assert cache.find(["a", "b", "c", "never asked"]) == answers
        assert cache.find([]) == {}


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
