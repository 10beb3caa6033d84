"""A checkpoint of any ZeRO stage becomes a folder that gives the same model again."""

import json
from dataclasses import replace
from functools import partial

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from infra.config import ConfigError
from infra.layout import layout
from packing.reader import open_packs, read_pack
from trainer.batch import pack_tensors
from trainer.export import export, load_model, read_facts, stored_tensors
from trainer.train import train


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_config):
    folder = tmp_path_factory.mktemp("exported")
    result = train(run_config(folder, steps=2))
    export(result.checkpoint, folder / "model", torch.float32)
    return folder / "model"


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_loaded_model_gives_the_loss_that_training_goes_on_with(config, tmp_path, zero_stage):
    config = replace(config, steps=2, zero_stage=zero_stage, micro_batches=1)
    result = train(config)
    export(result.checkpoint, tmp_path / "model", torch.float32)
    model = load_model(tmp_path / "model")
    packs = open_packs(config.packs)
    sequence = layout(read_pack(packs, 2).segments, packs.facts.vocabulary)
    pack = pack_tensors(sequence, model.config, config.scale_alpha)
    with torch.inference_mode():
        loss = float(model(pack).loss / pack.weights.sum())
    third = train(replace(config, steps=3)).last
    assert loss == pytest.approx(third.loss, rel=1e-5)


def test_the_config_says_what_the_model_is(exported):
    facts = read_facts(exported)
    assert (facts.tokenizer_id, facts.vocabulary_id, facts.step) == ("tokenizer-a", "text-a", 2)
    assert (facts.num_codes, facts.text_vocab_size, facts.code_dim) == (40, 30, 40)
    assert facts.model.num_layers == 2
    assert json.loads((exported / "config.json").read_text())["model_type"] == "nextscale"


def test_weights_are_stored_in_bf16_unless_asked_otherwise(config, tmp_path):
    export(train(replace(config, steps=1)).checkpoint, tmp_path / "model")
    assert {p.dtype for p in load_model(tmp_path / "model").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_large_models_come_in_several_files_and_are_the_same(
    config, tmp_path, monkeypatch, zero_stage
):
    checkpoint = train(replace(config, steps=1, zero_stage=zero_stage)).checkpoint
    export(checkpoint, tmp_path / "one")
    small = partial(huggingface_hub.split_torch_state_dict_into_shards, max_shard_size=20_000)
    monkeypatch.setattr(huggingface_hub, "split_torch_state_dict_into_shards", small)
    (tmp_path / "many").mkdir()
    (tmp_path / "many/model-00099-of-00099.safetensors").write_bytes(
        b"of an export that was killed"
    )
    export(checkpoint, tmp_path / "many")
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 3
    one, many = (load_model(tmp_path / name).state_dict() for name in ("one", "many"))
    assert index["weight_map"].keys() == one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_wrong_folders_and_weights_are_told_in_one_line(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no state\.json: name a step-"):
        export(tmp_path, tmp_path / "model")
    with pytest.raises(ConfigError, match="`nextscale export` writes"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match="of another kind of model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not readable"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"holds no \.safetensors"):
        load_model(tmp_path)
    weights = {name: read() for name, read in stored_tensors(exported).items()}
    save_file(weights | {"norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"norm\.weight is \[3\], the config says \[48\]"):
        load_model(tmp_path)
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"norm\.weight is missing, the config says \[48\]"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk" * 9)
    with pytest.raises(ConfigError, match="are not readable"):
        load_model(tmp_path)


def test_what_cannot_be_exported_is_told_in_one_line(config, exported, tmp_path):
    result = train(replace(config, steps=1))
    with pytest.raises(ConfigError, match="holds a model already"):
        export(result.checkpoint, exported)
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        export(result.checkpoint, result.log)
    for file in (result.checkpoint / "engine").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="is damaged"):
        export(result.checkpoint, tmp_path / "model")
    (result.checkpoint / "state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"state\.json is not readable"):
        export(result.checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_next_stage_starts_where_the_exported_one_ended(config, exported, tmp_path):
    packs = open_packs(config.packs)
    start = replace(config, initialise_from=str(exported), output=str(tmp_path / "next"))
    # of the first step, before anything has moved: both of its packs
    last = replace(start, steps=1, learning_rate=1e-12)
    model = load_model(exported)
    totals = []
    for place in (0, 1):
        sequence = layout(read_pack(packs, place).segments, packs.facts.vocabulary)
        pack = pack_tensors(sequence, model.config, config.scale_alpha)
        with torch.inference_mode():
            totals.append((float(model(pack).loss), float(pack.weights.sum())))
    loss, weight = (sum(column) for column in zip(*totals, strict=True))
    assert train(last).last.loss == pytest.approx(loss / weight, rel=1e-5)

    other = replace(start, output=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"has num_layers: 2: set train\.model to this"):
        train(replace(other, model=replace(config.model, num_layers=3)))
    with pytest.raises(ConfigError, match="has code_dim 40, this run 6"):
        train(replace(other, code_dim=6))
    path = tmp_path / "packs/packs.json"
    path.write_text(path.read_text().replace("tokenizer-a", "tokenizer-b"))
    with pytest.raises(ConfigError, match="tokenizer tokenizer-a, the packs are of tokenizer-b"):
        train(other)
