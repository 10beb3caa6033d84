"""Exchange between two real processes, and what devices are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from tokenize_offline.ranks import Ranks, check_device, join

ROOT = Path(__file__).parents[2]

TWO_PROCESSES = """
import torch
from tokenize_offline import ranks
ranks._BUCKET_BYTES = 40  # several buckets, one of them larger than that
with ranks.join("cpu") as us:
    assert us.size == ranks.num_processes() == 2 and us.first == (us.rank == 0)
    mine = torch.tensor([1.0, 2.0]) * (us.rank + 1)
    assert us.total(mine).tolist() == [3, 6]
    assert us.mean(mine).tolist() == [1.5, 3]
    assert mine.tolist() == [us.rank + 1, 2 * us.rank + 2]
    assert us.gather(mine[None]).tolist() == [[1, 2], [2, 4]]
    assert us.agree(5) and not us.agree(us.rank)
    torch.manual_seed(us.rank)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    net = net.to(memory_format=torch.channels_last)
    frozen = net[1].bias.requires_grad_(False)
    us.copy_from_first(net)
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 5, 3)
    assert torch.equal(net[0].weight, first.weight)
    x = torch.randn(4, 3, 8, 8)
    net[0](x[2 * us.rank :][:2]).square().mean().backward()
    us.average_gradients(net.parameters())
    first(x).square().mean().backward()
    for ours, theirs in zip(net[0].parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
"""


def test_two_processes_exchange(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_process_exchanges_nothing() -> None:
    with join("cpu") as alone:
        assert alone == Ranks(0, 1, torch.device("cpu"))
    values = torch.ones(2, 3)
    total = alone.total(values)
    total.zero_()
    assert values.sum() == 6
    assert alone.gather(values) is values
    assert alone.agree(3)


def test_devices() -> None:
    assert check_device("cpu") == torch.device("cpu")
    assert check_device("").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "mps", "cuda:x", "meta"):
        with pytest.raises(ConfigError, match=f"device is '{name}': use cpu"):
            check_device(name)
    with pytest.raises(ConfigError, match="GPU 99 is not among"):
        check_device("cuda:99")
