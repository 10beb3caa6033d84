"""Checkpoints that are not whole, or not of this run, are not used. (Resuming: test_train.)"""

import json

import pytest

from infra.config import ConfigError
from trainer import checkpoint


def test_only_renamed_checkpoints_count_oldest_first(tmp_path):
    for name in ("step-00000020", "step-00000003", ".step-00000021.writing"):
        (tmp_path / name).mkdir()
    assert [c.name for c in checkpoint.complete(tmp_path)] == ["step-00000003", "step-00000020"]
    assert checkpoint.complete(tmp_path / "nowhere") == []


def test_what_differs_is_named_with_both_values(tmp_path):
    identity = {"tokenizer": "a", "model": {"mrope_sections": (4, 6, 6)}}
    (tmp_path / "state.json").write_text(json.dumps({"identity": identity}))
    checkpoint.check(tmp_path, identity)
    with pytest.raises(ConfigError, match="tokenizer a, this run has b"):
        checkpoint.check(tmp_path, identity | {"tokenizer": "b"})
    with pytest.raises(ConfigError, match="zero_stage None, this run has 2"):
        checkpoint.check(tmp_path, identity | {"zero_stage": 2})
