"""Tiny checkpoints that transformers saves load by name and give its hidden states and logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infra.config import ConfigError
from infra.layout import Text, Vocabulary, layout
from packing.packs import Facts, open_packs
from tokenize_offline import text
from trainer.batch import pack_tensors
from trainer.config import TrainConfig
from trainer.model import Decoder
from trainer.pretrained import folder_of, initialise, load_text_weights, model_config
from trainer.train import train

transformers = pytest.importorskip("transformers")

FACTS = Facts("tokenizer-a", text.identity(), 7, 52, 256, "fixed_compute", 4096, 0)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
SIZES = {
    "vocab_size": 50, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def _vl():
    rope = {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 2, 2]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
              "out_hidden_size": 48}  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_parameters": rope}, vision_config=vision,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _text(tied: bool):
    rope = {"rope_type": "default", "rope_theta": 5e4}
    config = transformers.Qwen2Config(**SIZES, rope_parameters=rope, tie_word_embeddings=tied)
    return transformers.Qwen2ForCausalLM(config)


@pytest.mark.parametrize("kind", ["vl", "text", "tied"])
def test_hidden_states_and_logits_equal_those_of_transformers(tmp_path, kind):
    torch.manual_seed(3)
    peer = (_vl() if kind == "vl" else _text(kind == "tied")).eval()
    for name, parameter in peer.named_parameters():
        if "visual" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peer.save_pretrained(tmp_path)
    vocabulary = Vocabulary(num_codes=7, text_size=52)  # two rows more than the checkpoint's
    ours = Decoder(model_config(tmp_path), vocabulary, code_dim=6).eval()
    untouched = {name: value.clone() for name, value in ours.state_dict().items()}
    load_text_weights(ours, tmp_path)
    pack = pack_tensors(layout([[Text(np.array(IDS))]], vocabulary), ours.config, 0.0)
    with torch.inference_mode():
        expected = peer(input_ids=torch.tensor([IDS]), output_hidden_states=True)
        hidden = ours.hidden(pack)
        logits = ours.logits(pack)[:, :50]
    torch.testing.assert_close(hidden, expected.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits[0], atol=1e-4, rtol=1e-4)
    after = ours.state_dict()
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][50:], untouched[name][50:])
    for name in untouched:
        if name.startswith("vision.") or name == "length_gain":
            assert torch.equal(after[name], untouched[name])


@pytest.mark.parametrize(
    ("changes", "text_size", "message"),
    [
        ({}, 40, "has 50 rows, the packs' text vocabulary 40"),
        ({"hidden_size": 96}, 52, r"embed_tokens\.weight is \[50, 48\].* \[54, 96\]"),
        ({"num_layers": 3}, 52, r"has no layers\.2\."),
        ({"intermediate_size": 65}, 52, r"gate_proj\.weight is \[64, 48\].* \[65, 48\]"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, changes, text_size, message):
    _text(tied=False).save_pretrained(tmp_path)
    shape = replace(model_config(tmp_path), **changes)
    model = Decoder(shape, Vocabulary(7, text_size), 6)
    with pytest.raises(ConfigError, match=message):
        load_text_weights(model, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 1e3}, "has rope_theta: 50000.0: set train.model to this"),
        ({"rms_norm_eps": 1e-6}, "has rms_norm_eps: 1e-05"),
        ({"num_heads": 2, "num_kv_heads": 1, "head_dim": 24, "mrope_sections": (4, 4, 4)},
         "has num_heads: 4, num_kv_heads: 2, head_dim: 12, mrope_sections"),
    ],
)  # fmt: skip
def test_what_shapes_of_weights_do_not_tell_is_compared(tmp_path, changes, message):
    _vl().save_pretrained(tmp_path)
    shape = model_config(tmp_path)
    start = TrainConfig("packs", "run", steps=1, initialise_from=str(tmp_path))
    initialise(Decoder(shape, FACTS.vocabulary, 6), start, FACTS)
    wrong = Decoder(replace(shape, **changes), FACTS.vocabulary, 6)
    with pytest.raises(ConfigError, match=message):
        initialise(wrong, start, FACTS)


def test_packs_whose_text_ids_are_not_the_checkpoints_are_refused(tmp_path):
    _text(tied=True).save_pretrained(tmp_path)
    start = TrainConfig("packs", "run", steps=1, initialise_from=str(tmp_path))
    model = Decoder(model_config(tmp_path), FACTS.vocabulary, 6)
    initialise(model, start, replace(FACTS, vocabulary_id=text.identity()))  # all Qwen2.5's
    other = replace(FACTS, vocabulary_id="other")
    with pytest.raises(ConfigError, match=r"of vocabulary other, .* set same_vocabulary: true"):
        initialise(model, start, other)
    initialise(model, replace(start, same_vocabulary=True), other)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="of vocabulary other"):
        initialise(model, start, other)
    initialise(model, start, replace(FACTS, vocabulary_id=text.identity(str(tmp_path))))


def test_a_run_starts_from_a_qwen_folder(tmp_path, config):
    _text(tied=True).save_pretrained(tmp_path / "qwen")
    packs = open_packs(config.packs)
    path = tmp_path / "packs/packs.json"
    path.write_text(path.read_text().replace('"text_vocab_size": 30', '"text_vocab_size": 50'))
    shape = replace(model_config(tmp_path / "qwen", config.model), image_positions="follow_text")
    start = replace(config, steps=1, model=shape, initialise_from=str(tmp_path / "qwen"))
    start = replace(start, same_vocabulary=True)
    assert train(start).steps == 1
    assert packs.num_packs == 6


def test_another_architecture_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="is of llama: name a Qwen2"):
        model_config(tmp_path)


def test_a_name_that_neither_disk_nor_hub_knows(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="no such/model is no folder, and the hub"):
        folder_of("no such/model")
