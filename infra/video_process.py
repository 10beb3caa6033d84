"""A child process for what may hang, crash or leak: decoders on damaged files.

Libraries in C cannot be interrupted from Python, and a segfault takes the process with it. Here a
function runs in a child that is killed when its time is over, and is followed by a new one.
"""

import ctypes
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from infra.pixels import DecodeError

R = TypeVar("R")

ADDRESS_SPACE = 6 << 30  # bytes; more is refused by the system, and is the file's fault
MOST_RESIDENT = 1 << 30  # bytes; a child that has had more is replaced before the next call
START_S = 120.0  # a child imports numpy, OpenCV and pyarrow, from a cold disk on a busy machine
_HEADER = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
_MAIN = "import sys; from infra.video_process import serve; serve(int(sys.argv[1]))"
# Pools of threads reserve address space for each core, and workers are already one per core.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class VideoProcess:
    """Runs functions in a child process, one after the other; starts it when it is needed.

    The child ends with its parent, and with the thread that started it. Not to be pickled.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, function: Callable[..., R], *args: Any, limit_s: float = 60.0) -> R:
        """``function`` of a module, run in the child; the start of a child takes no time of it.

        Raises what the function raises. DecodeError of type ``timeout`` where it takes longer than
        ``limit_s`` seconds, ``decoder_crashed`` where the child dies of it, ``out_of_memory`` where
        it asks for more than `ADDRESS_SPACE`; the next call has a new child. RuntimeError where no
        child can be started.
        """
        with self._one:
            child = self._started()
            done = False
            try:
                _send(child, pickle.dumps((function, args)))
                data = _receive(child, time.monotonic() + limit_s)
                done = True
            except TimeoutError:
                raise DecodeError("timeout", f"not done within {limit_s:g} s") from None
            except (EOFError, BrokenPipeError):
                raise DecodeError("decoder_crashed", _how_it_ended(child.wait())) from None
            finally:
                if not done:  # also an interrupted call: it leaves half an answer in the pipe
                    self.close()
            answer: R
            answer, error, most_resident = pickle.loads(data)
            if most_resident > MOST_RESIDENT:
                self.close()
        if isinstance(error, MemoryError):
            raise DecodeError("out_of_memory", f"needs more than {ADDRESS_SPACE >> 30} GiB")
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Kill the child, if there is one."""
        self._child = None
        self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            # Not multiprocessing: its children import the parent's main module, a worker's of Ray.
            child = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ
                | _ONE_THREAD
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                bufsize=0,
            )
            self._child, self._end = child, weakref.finalize(self, _kill, child)
            try:
                _receive(child, time.monotonic() + START_S)
            except (TimeoutError, EOFError):
                self.close()
                raise RuntimeError(
                    "no process for decoding could be started: its error stream says why"
                ) from None
        return self._child


@lru_cache(maxsize=1)
def worker_process() -> VideoProcess:
    """The one of this process, for all operators of a worker."""
    return VideoProcess()


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"the decoder was killed by {signal.Signals(-status).name}"
    return f"the decoder ended with status {status}"


def _send(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    for part in (_HEADER.pack(len(data)), data):
        left = memoryview(part)
        while left:  # an unbuffered pipe takes what it has room for
            left = left[child.stdin.write(left) :]


def _receive(child: subprocess.Popen[bytes], until: float) -> bytearray:
    """One answer; raises TimeoutError after ``until`` and EOFError where the child ends."""
    assert child.stdout is not None
    fd = child.stdout.fileno()
    poll = select.poll()  # not select(): a worker may have more than 1,024 files open
    poll.register(fd, select.POLLIN)

    def fill(target: memoryview) -> None:
        while target:
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            count = os.readv(fd, [target])
            if not count:
                raise EOFError
            target = target[count:]

    header = bytearray(_HEADER.size)
    fill(memoryview(header))
    data = bytearray(*_HEADER.unpack(header))
    fill(memoryview(data))
    return data


def serve(parent: int) -> None:
    """The child's loop: calls from standard input, answers to standard output, until that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent had died before it could be watched
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's matter
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    calls = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    _write(answers, b"")
    while header := calls.read(_HEADER.size):
        (size,) = _HEADER.unpack(header)
        _write(answers, _answer(calls.read(size)))


def _answer(call: bytes) -> bytes:
    found, failed = None, None
    try:
        function, args = pickle.loads(call)
        found = function(*args)
    except Exception as error:  # noqa: BLE001 - carried to the parent, which raises it
        failed = error
    return pickle.dumps((found, failed, _most_resident()), protocol=pickle.HIGHEST_PROTOCOL)


def _write(answers: BinaryIO, data: bytes) -> None:
    answers.write(_HEADER.pack(len(data)))
    answers.write(data)
    answers.flush()


def _most_resident() -> int:
    """Bytes; not of getrusage(), which counts what the parent held when it forked."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
