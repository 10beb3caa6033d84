"""A prompt to PNG files by a small untrained model: sizes, seeds, notes, and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infra.config import ConfigError
from pipelines.cli import main
from pipelines.sample import sample, schedule_of
from tokenize_offline import checkpoint, text
from trainer.config import ModelConfig
from trainer.export import ModelFacts
from trainer.model import Decoder
from trainer.sampling import Sampling

SHAPE = ModelConfig(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2,
                    num_kv_heads=1, head_dim=16, mrope_sections=(2, 3, 3))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    num_codes = checkpoint.read_settings().num_codes
    ids = checkpoint.identity(), text.identity()
    facts = ModelFacts(SHAPE, num_codes, 152_064, 6, *ids, step=0)
    path = tmp_path_factory.mktemp("model")
    save_file(Decoder(SHAPE, facts.vocabulary, 6).state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(asdict(facts)))
    return path


def test_pictures_of_a_prompt(folder, tmp_path, capsys):
    run = ["sample", str(folder), "A red fox.", "--pictures", "2", "--aspect", "4:3"]
    output = ["--output", str(tmp_path), "--seed", "7", "--guidance", "2", "--device", "cpu"]
    assert main([*run, *output]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == [
        "a-red-fox-04ac4f-256-7.png",
        "a-red-fox-04ac4f-256-8.png",
    ]
    pictures = []
    for seed, path in enumerate(paths, start=7):
        with Image.open(path) as picture:
            height, width = schedule_of("4:3").grids[11]
            assert picture.size == (16 * width, 16 * height)
            assert width > height
            assert picture.text["prompt"] == "A red fox."
            assert (picture.text["seed"], picture.text["guidance"]) == (str(seed), "2.0")
            pictures.append(np.asarray(picture))
    assert (pictures[0] != pictures[1]).any()
    [again] = sample(
        str(folder), "A red fox.", Sampling(seed=8, guidance=2.0), aspect="4:3",
        output=str(tmp_path / "again"), device="cpu",
    )  # fmt: skip
    assert again.read_bytes() == paths[1].read_bytes()


def test_no_prompt_draws_a_picture_too(folder, tmp_path):
    [path] = sample(str(folder), "", Sampling(), output=str(tmp_path), device="cpu")
    assert path.name.startswith("picture-")
    others = [
        sample(str(folder), prompt, Sampling(), output=str(tmp_path), device="cpu")[0]
        for prompt in ("一只红狐狸", "一只白狐狸")
    ]
    assert len({path, *others}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--aspect", "wide"], "aspect is 'wide': write width:height"),
        (["--aspect", "0:3"], "aspect is '0:3'"),
        (["--level", "300"], "level is 300: choose 256, 512, 1024"),
        (["--pictures", "0"], "pictures is 0: at least 1"),
        (["--top-p", "2"], r"top_p is 2.0: use a share"),
    ],
)
def test_impossible_wishes_are_one_line(folder, tmp_path, capsys, arguments, message):
    output = ["--output", str(tmp_path / "out")]
    assert main(["sample", str(folder), "x", *output, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_or_vocabulary_is_refused(folder, tmp_path):
    facts = json.loads((folder / "config.json").read_text())
    for key, message in (
        ("tokenizer_id", "trained with the visual tokenizer other"),
        ("vocabulary_id", "trained with the text vocabulary other"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(facts | {key: "other"}))
        with pytest.raises(ConfigError, match=message):
            sample(str(tmp_path), "x", Sampling())
