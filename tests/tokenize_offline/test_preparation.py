"""What comes before a stage is the same whoever decodes its pictures, and others do."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.config import build
from tokenize_offline.draws import Batch, StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.photographs import open_pictures
from tokenize_offline.preparation import prepare
from tokenize_offline.ranks import Ranks
from tokenize_offline.stages import Stages
from tokenize_offline.teacher import load_teacher

Tree = dict[str, Any]


def test_threads_decode_the_pictures_of_the_first_codebooks(
    tiny_training: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = open_pictures([Path(path) for path in tiny_training["images"]], short_side=256)
    tree = tiny_training["learning"] | {"gradient_accumulation": 2}
    threads: list[str] = []
    original = StepDraws.batch

    def noted(self: StepDraws, *args: Any, **kwargs: Any) -> Batch:
        threads.append(threading.current_thread().name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StepDraws, "batch", noted)
    found = []
    for read_ahead in (0, 2):
        threads.clear()
        torch.manual_seed(0)
        tokenizer = Tokenizer(build(TokenizerSettings, tiny_training["tokenizer"]))
        teacher = load_teacher(tiny_training["teacher"])
        ranks = Ranks(0, 1, torch.device("cpu"))
        stages = Stages(tokenizer, build(Learning, tree), teacher, ranks)
        for stage in ("branches", "joint"):
            prepare(stages, stage, pictures, lambda line: None, read_ahead)
        found.append(stages.tokenizer.state_dict())
        assert len(threads) == 2 * (16 + 2)
        assert all(name.startswith("ahead") == bool(read_ahead) for name in threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
