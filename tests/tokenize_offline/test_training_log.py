"""Means, and a log cut to where a run goes on."""

import json
from pathlib import Path

import torch

from tokenize_offline.training_log import StepSums, append, keep_until


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
