"""The child is killed when it hangs, replaced when it crashes or has grown, and dies with us."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.pixels import DecodeError
from infra.video_process import MOST_RESIDENT, VideoProcess, worker_process


@pytest.fixture(scope="module")
def process() -> Iterator[VideoProcess]:
    with VideoProcess() as one:
        yield one


def pid() -> int:
    return os.getpid()


def double(pixels: np.ndarray) -> np.ndarray:
    return pixels * 2


def hang_in_python() -> None:
    while True:
        time.sleep(3600)


def hang_in_c() -> None:
    """As a library does that never gives the interpreter back."""
    ctypes.PyDLL(None).sleep(3600)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def null_pointer() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def refuse() -> None:
    raise DecodeError("corrupt", "it is broken")


def own_bug() -> None:
    raise KeyError("a bug of ours")


def talk() -> str:
    print("libraries print")
    os.write(1, b"wherever they like\n")
    return "an answer"


def take(num_bytes: int) -> int:
    return int(np.ones(num_bytes, np.uint8).sum())


def test_answers_come_back_whole(process: VideoProcess) -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (4_000_000,), np.uint8)
    assert (process.call(double, pixels) == pixels * 2).all()
    assert process.call(talk) == "an answer"


def test_one_child_serves_many_calls(process: VideoProcess) -> None:
    first = process.call(pid)
    assert first != os.getpid()
    assert process.call(pid) == first
    assert worker_process() is worker_process()


@pytest.mark.parametrize("hang", [hang_in_python, hang_in_c])
def test_a_hang_is_ended_within_its_limit(process: VideoProcess, hang: object) -> None:
    before = process.call(pid)
    start = time.monotonic()
    with pytest.raises(DecodeError, match="not done within") as caught:
        process.call(hang, limit_s=0.3)  # type: ignore[arg-type]
    assert time.monotonic() - start < 3
    assert caught.value.type == "timeout"
    assert gone(before)
    assert process.call(pid) != before


@pytest.mark.parametrize(
    ("crash", "says"), [(segfault, "SIGSEGV"), (null_pointer, "SIGSEGV"), (leave, "status 3")]
)
def test_a_crash_is_the_files_fault(process: VideoProcess, crash: object, says: str) -> None:
    with pytest.raises(DecodeError, match=says) as caught:
        process.call(crash)  # type: ignore[arg-type]
    assert caught.value.type == "decoder_crashed"
    assert process.call(pid) != os.getpid()


def test_errors_come_back_as_what_they_are(process: VideoProcess) -> None:
    child = process.call(pid)
    with pytest.raises(DecodeError, match="it is broken") as caught:
        process.call(refuse)
    assert caught.value.type == "corrupt"
    with pytest.raises(KeyError, match="a bug of ours"):
        process.call(own_bug)
    assert process.call(pid) == child


def test_memory_is_bounded(process: VideoProcess) -> None:
    with pytest.raises(DecodeError) as caught:
        process.call(take, 1 << 40)
    assert caught.value.type == "out_of_memory"
    child = process.call(pid)
    process.call(take, MOST_RESIDENT // 4)
    assert process.call(pid) == child
    process.call(take, MOST_RESIDENT)
    assert process.call(pid) != child, "a child that has grown is not replaced"


def test_a_large_parent_makes_no_large_child(process: VideoProcess) -> None:
    ballast = np.ones(MOST_RESIDENT + (64 << 20), np.uint8)
    with VideoProcess() as another:
        assert another.call(pid) == another.call(pid)
    del ballast


@pytest.mark.parametrize("task", ["pid", "hang_in_c"])
def test_the_child_dies_with_its_parent(tmp_path: Path, task: str) -> None:
    """Killed without a chance to tidy up, whether the child waits or hangs."""
    told = tmp_path / "child"
    code = (
        "import pathlib, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "import test_video_process as here\n"
        "process = here.VideoProcess()\n"
        f"pathlib.Path({str(told)!r}).write_text(str(process.call(here.pid)))\n"
        f"process.call(here.{task})\n"
        "here.time.sleep(3600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(lambda: told.exists() and told.read_text().isdigit(), 60)
        time.sleep(0.2)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: gone(int(told.read_text())), 5)


def test_closing_ends_it() -> None:
    with VideoProcess() as one:
        child = one.call(pid)
        assert not gone(child)
    assert gone(child)
    assert one.call(pid) != child  # and it can be used again
    one.close()
    one.close()


def test_letting_go_of_it_ends_it() -> None:
    one = VideoProcess()
    child = one.call(pid)
    del one
    wait_for(lambda: gone(child), 5)


def gone(process_id: int) -> bool:
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"  # whoever inherited it has yet to look


def wait_for(condition: object, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)
