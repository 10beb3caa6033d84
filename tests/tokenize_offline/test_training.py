"""A few steps of each stage on small networks; the photographs are real."""

import dataclasses
import json
from pathlib import Path

import pytest
import skimage
import torch
from safetensors.torch import load_file, save_file

from infra.config import ConfigError, build, load
from tokenize_offline import checkpoint
from tokenize_offline.teacher import Teacher
from tokenize_offline.training import TrainTokenizer, main, train_tokenizer

DATA = Path(skimage.__file__).parent / "data"
RECIPE = Path(__file__).parents[2] / "pipelines/recipes/train_tokenizer.yaml"


def recipe(folder: Path, **changes: object) -> TrainTokenizer:
    torch.manual_seed(0)
    teacher = folder / "teacher.safetensors"
    save_file(Teacher().state_dict(), teacher)
    tree = {
        "images": [str(DATA / name) for name in ("coffee.png", "rocket.jpg", "chelsea.png")],
        "output": str(folder / "out/tokenizer.safetensors"),
        "teacher": str(teacher),
        "held_out": "chelsea*",
        "held_out_share": 0.99,
        "tokenizer": {
            "num_codes": 64,
            "encoder_channels": [8, 8, 8],
            "decoder_channels": [8, 8, 8],
            "semantic_channels": [8, 8],
        },
        "learning": {
            "branch_steps": 2,
            "joint_steps": 3,
            "decoder_steps": 1,
            "batch_size": 4,
            "level_512_share": 0.0,
            "fit_batches": [2, 1, 0],
            "lloyd_rounds": 2,
            "restart_every": 2,
            "scale_dropout_share": 0.5,
        },
    }
    return build(TrainTokenizer, tree | changes)


def test_same_seed_same_weights_and_a_record_beside_them(tmp_path: Path) -> None:
    log: list[str] = []
    outputs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        settings = recipe(tmp_path / name)
        qualities = train_tokenizer(settings, log.append)
        outputs.append(load_file(settings.output))
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    assert [quality.level for quality in qualities] == [256, 512]
    record = json.loads(Path(settings.output).with_suffix(".training.json").read_text())
    assert record["held_out"] == ["chelsea.png"]
    assert record["trained_on"] == ["coffee.png", "rocket.jpg"]
    assert record["quality"][0]["psnr_db"] == qualities[0].psnr_db
    assert record["recipe"]["tokenizer"]["num_codes"] == 64
    assert any("restarted" in line for line in log)


def test_the_recipe_file_gives_the_carried_settings() -> None:
    settings = load(TrainTokenizer, RECIPE).tokenizer
    one, two, three = settings.decoder_blocks
    doubled = dataclasses.replace(settings, decoder_blocks=(2 * one, 2 * two, 2 * three))
    assert doubled == checkpoint.read_settings()


def test_a_missing_folder_stops_before_training(tmp_path: Path) -> None:
    teacher = recipe(tmp_path).teacher
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        main(RECIPE, [f"teacher={teacher}", f"images=[{tmp_path}/nowhere]"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "tokenizer.pt"}, "end it in .safetensors"),
        ({"held_out_share": 1.0}, "held_out_share is 1.0"),
        ({"tokenizer": {"teacher_dim": 5}}, "set it to 112"),
        ({"learning": {"scale_dropout": 2.0}}, "learning.scale_dropout is 2.0"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, **changes)
