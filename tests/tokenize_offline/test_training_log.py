"""Means, and a log cut to where a run goes on."""

import json
from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from tokenize_offline.training_log import StepSums, append, keep_until, measured_levels


def test_each_name_is_averaged_over_its_own_number() -> None:
    sums = StepSums()
    sums.add({"picture": torch.tensor(1.0)})
    sums.add({"picture": torch.tensor(2.0), "adversarial": torch.tensor(5.0)})
    sums.add({"gradient_norm": torch.tensor(0.5)})
    assert sums.names == ["picture", "adversarial", "gradient_norm"]
    assert sums.means().tolist() == [1.5, 5.0, 0.5]
    assert sums.steps == 1


def test_lines_after_the_state_and_a_torn_one_go(tmp_path: Path) -> None:
    path, stages = tmp_path / "log.jsonl", ("branches", "joint")
    keep_until(path, stages, "branches", 0)
    assert not path.exists()
    for stage in stages:
        for step in (1, 2, 3):
            append(path, {"stage": stage, "step": step})
    with path.open("a") as file:
        file.write('{"stage": "jo')
    keep_until(path, stages, "joint", 2)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in kept] == [
        *(("branches", 1), ("branches", 2), ("branches", 3), ("joint", 1), ("joint", 2)),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"epoch 3: loss 0.5",
        b"{}",
        b"[1, 2]",
        b"7",
        b'{"stage": "joint"}',
        b'{"stage": "pretraining", "step": 5}',
        b'{"stage": "joint", "step": null}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_foreign_line_is_told_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    append(path, {"stage": "joint", "step": 1})
    path.write_bytes(path.read_bytes() + line + b"\n")
    whole = path.read_bytes()
    with pytest.raises(ConfigError, match=r"line 2 of .*log\.jsonl is none of .*: remove the line"):
        keep_until(path, ("branches", "joint"), "joint", 2)
    assert path.read_bytes() == whole


def test_what_was_measured_after_a_step_is_known(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert measured_levels(path, "joint", 2) == set()
    append(path, {"stage": "joint", "step": 2, "losses": {}})
    for step, level in ((2, 256), (2, 512), (4, 1024)):
        append(path, {"stage": "joint", "step": step, "quality": {"level": level}})
    append(path, {"stage": "decoders", "step": 2, "quality": {"level": 1024}})
    assert measured_levels(path, "joint", 2) == {256, 512}
    assert measured_levels(path, "joint", 3) == set()
