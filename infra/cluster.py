"""Start a Ray session on this machine, or join a cluster. The one Ray import outside pipelines/."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.data import DataContext

from infra.config import ConfigError

PACKAGES = ("infra", "operators", "tokenize_offline", "packing", "trainer", "pipelines")
# Workers on other nodes need the object store's credentials; nothing else of our environment.
CREDENTIALS = ("AWS_", "FSSPEC_")
# Ray runs our code in a thread, and glibc gives a thread's large buffers (pictures) back to the
# kernel each time: page faults took a tenth of the time of decoding. One arena that keeps them.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
# Units travel between stages as one block each; Ray would split larger ones (2.60: at 128 MiB).
WHOLE_BLOCKS_BYTES = 1 << 40


@contextmanager
def session(
    address: str | None = None, num_cpus: int | None = None, secrets: tuple[str, ...] = ()
) -> Iterator[None]:
    """A Ray session for the body of a ``with``; one that runs already is used and left alone.

    ``address`` joins a cluster ("auto" or host:port) and ships our packages, never the workspace,
    and the values of the environment variables named in ``secrets``;
    None starts a session of ``num_cpus`` (default: all) on this machine. Raises ConfigError when
    the cluster cannot be reached.
    """
    owned = not ray.is_initialized()
    if owned:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
        if address:
            _join(address, secrets)
        else:
            with _quiet_core():
                ray.init(
                    address="local",  # without it Ray joins any cluster that runs on this machine
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Little crosses the store unless stages are split; keep laptops free.
                    object_store_memory=512 * 2**20,
                )
    _configure_data()
    try:
        yield
    finally:
        if owned:
            ray.shutdown()


def _join(address: str, secrets: tuple[str, ...]) -> None:
    root = Path(__file__).parents[1]
    environment = ALLOCATOR | {
        name: value
        for name, value in os.environ.items()
        if name.startswith(CREDENTIALS) or name in secrets
    }
    try:
        _knock(address)
        with _quiet_core():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={
                    "py_modules": [str(root / package) for package in PACKAGES],
                    "env_vars": environment,
                },
            )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at `{address}` ({reason}): start one with `ray start --head`, "
            "set RAY_AUTH_MODE=token if it wants its token, or leave --ray out to run here"
        ) from None


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep Ray's C++ core off the terminal: it writes to stderr past Python's logging.

    2.60 warns of every actor pool of Ray Data as an error. Failures reach us as exceptions, and
    Ray's own log files keep everything. At the level set here it announces just that level, which
    is why stderr itself is closed while it starts.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _configure_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = WHOLE_BLOCKS_BYTES
    context.execution_no_progress_timeout_s = 1800
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)


def require(
    num_cpus: float, num_gpus: float, what: str, per_worker: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Fail at once where a pool can never start; Ray would wait for it for ever.

    ``per_worker``: CPUs and GPUs that the largest worker needs on one node. Raises ConfigError that
    names what was asked, what there is, and the remedy.
    """
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    for kind, asked, each, remedy in (
        ("CPU", num_cpus, per_worker[0], "lower `workers` or raise --num-cpus"),
        (
            "GPU",
            num_gpus,
            per_worker[1],
            "lower `workers` or join a cluster that has them with --ray",
        ),
    ):
        have = available.get(kind, 0.0)
        if asked > have:
            raise ConfigError(f"{what} needs {asked:g} {kind}s, the session has {have:g}: {remedy}")
        largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if each > largest:
            raise ConfigError(
                f"{what}: a worker needs {each:g} {kind}s, the largest node has {largest:g}: lower "
                f"`num_{kind.lower()}s`"
            )
