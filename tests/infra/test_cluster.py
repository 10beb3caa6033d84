"""Sessions: our own or one that runs already, and pools that can never start fail at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from infra.cluster import require, session
from infra.config import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("ray_session")
def test_a_running_session_is_used_and_left_alone() -> None:
    with session(num_cpus=1):
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_session")
def test_units_stay_whole() -> None:
    assert DataContext.get_current().target_max_block_size > 1 << 35


@pytest.mark.usefixtures("ray_session")
def test_a_pool_that_fits_is_let_through() -> None:
    require(4, 0, "phase x")
    require(0.5, 0.0, "phase x")


@pytest.mark.usefixtures("ray_session")
def test_a_pool_that_can_never_start() -> None:
    with pytest.raises(ConfigError, match=r"phase x needs 4\.5 CPUs, the session has 4: lower"):
        require(4.5, 0, "phase x")
    with pytest.raises(ConfigError, match="phase x needs 100 GPUs, the session has"):
        require(1, 100, "phase x")


@pytest.mark.usefixtures("ray_session")
def test_a_worker_must_fit_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    require(4, 0, "phase x", (4, 0))
    two = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2
    two.append({"Alive": False, "Resources": {"CPU": 64.0}})
    monkeypatch.setattr(ray, "nodes", lambda: two)
    require(4, 0, "phase x", (2, 0))
    with pytest.raises(ConfigError, match="phase x: a worker needs 3 CPUs, the largest node has 2"):
        require(4, 0, "phase x", (3, 0))


@pytest.mark.slow
def test_an_address_where_nobody_is() -> None:
    """One clear line at once; in a process of its own, since a session runs in this one."""
    code = (
        "from infra.cluster import session\n"
        "try:\n"
        "    with session(address='127.0.0.1:9'): pass\n"
        "except ValueError as error:\n"
        "    print('TOLD', type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert len(told) == 1, done.stdout + done.stderr
    assert "TOLD ConfigError no Ray cluster answers at `127.0.0.1:9`" in told[0]
    assert "ray start --head" in told[0]
