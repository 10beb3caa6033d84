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
from dataclasses import asdict
import numpy as np
import torch
from infra.config import ConfigError
from tokenize_offline import ranks
from tokenize_offline.evaluation import evaluate
from tokenize_offline.frechet import Gaussian, PictureFeatures
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.photographs import Photograph
torch.set_num_threads(1)
ranks._BUCKET_BYTES = 40  # several buckets, one of them larger than that
with ranks.join("cpu") as us:
    assert us.size == ranks.num_processes() == 2 and us.first == (us.rank == 0)
    mine = torch.tensor([1.0, 2.0]) * (us.rank + 1)
    assert us.total(mine).tolist() == [3, 6]
    assert us.mean(mine).tolist() == [1.5, 3]
    assert mine.tolist() == [us.rank + 1, 2 * us.rank + 2]
    assert us.gather(mine[None]).tolist() == [[1, 2], [2, 4]]
    assert us.agree(5) and not us.agree(us.rank)
    assert us.largest(us.rank) == 1 and us.from_first(us.rank + 7) == 7
    rows = torch.arange(6.0).reshape(3, 2)
    for cut in (0, 1, 3):
        ours = rows[:cut] if us.first else rows[cut:]
        assert torch.equal(us.gather_rows(ours), rows)
    assert us.gather_rows(rows[:0]).shape == (0, 2)
    with us.together():
        pass
    for bad in (0, 1):
        try:
            with us.together():
                if us.rank == bad:
                    raise ConfigError(f"rank {bad} is wrong")
        except ConfigError as error:
            assert str(error) == f"rank {bad} is wrong"
        else:
            raise AssertionError("nothing was told")
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)) + 100
    for cut in (0, 2, 9):
        whole, ours = Gaussian(), Gaussian()
        whole.add(features)
        for row in features[:cut] if us.first else features[cut:]:
            ours.add(row[None])
        found = ours.of_all(us)
        assert found.count == 9
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-9, atol=1e-9)
    noise = np.random.default_rng(0)
    photos = [Photograph(str(n), noise.integers(0, 256, (80, 90, 3), np.uint8)) for n in range(3)]
    torch.manual_seed(0)
    small = {"encoder_channels": (8, 8, 8), "decoder_channels": (8, 8, 8), "num_codes": 32}
    tokenizer = Tokenizer(TokenizerSettings(semantic_channels=(8, 8), **small)).eval()
    colours = PictureFeatures("colours", lambda pixels: pixels[:, :2].mean((2, 3)))
    for shown in (photos, photos[:1]):
        share = shown[us.rank :: 2]
        ours = evaluate(tokenizer, share, 256, features=colours, by_scale=True, ranks=us)
        alone = evaluate(tokenizer, shown, 256, features=colours, by_scale=True)
        for (name, a), b in zip(asdict(ours).items(), asdict(alone).values(), strict=True):
            if isinstance(b, (float, tuple)):
                np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=name)
            else:
                assert a == b, name
    assert asdict(evaluate(tokenizer, photos, 256, features=colours))["frechet_distance"] > 0
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


def test_alone_a_mistake_is_raised_as_it_is() -> None:
    with join("cpu") as alone, pytest.raises(ConfigError, match="mine"), alone.together():
        raise ConfigError("mine")
    assert alone.largest(4) == alone.from_first(4) == 4
