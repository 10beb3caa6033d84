"""Whole trainings of tiny networks, their record, and what a recipe is told before any work."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.config import ConfigError, build, load
from infra.pixels import encode_jpeg
from tokenize_offline import checkpoint, siglip2, training
from tokenize_offline.decoded_pictures import DecodedPictures
from tokenize_offline.model import FULL_SIZE
from tokenize_offline.photographs import Pictures, open_pictures
from tokenize_offline.ranks import Ranks
from tokenize_offline.training import main, train_tokenizer
from tokenize_offline.training_recipe import TrainTokenizer

RECIPES = Path(__file__).parents[2] / "pipelines/recipes"
Tree = dict[str, Any]


def recipe(tree: Tree, folder: Path, **changes: Any) -> TrainTokenizer:
    for section in ("tokenizer", "learning"):
        changes[section] = tree[section] | changes.get(section, {})
    return build(
        TrainTokenizer, {"output": str(folder / "out/tokenizer.safetensors")} | tree | changes
    )


def test_same_seed_same_weights_and_a_record_beside_them(
    tiny_training: Tree, tmp_path: Path
) -> None:
    log: list[str] = []
    outputs = []
    short = {"branch_steps": 2, "joint_steps": 3, "decoder_steps": 1, "bfloat16": True}
    watched: Tree = {"held_out": "chelsea*", "held_out_share": 0.99}
    watched |= {"sample_every": 2, "evaluate_every": 3, "frechet": "teacher"}
    for name in ("first", "second"):
        settings = recipe(tiny_training, tmp_path / name, learning=short, **watched)
        qualities = train_tokenizer(settings, log.append)
        outputs.append(load_file(settings.output))
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    assert [quality.level for quality in qualities] == [256, 512]
    record = json.loads(Path(settings.output).with_suffix(".training.json").read_text())
    assert record["held_out"] == ["chelsea.png"]
    assert record["trained_on"] == ["coffee.png", "rocket.jpg"]
    assert record["quality"][0]["psnr_db"] == qualities[0].psnr_db
    assert len(record["quality"][0]["psnr_by_scale_db"]) == 12
    assert record["quality"][0]["frechet_features"] == "efficientnet_lite0"
    assert record["recipe"]["tokenizer"]["num_codes"] == 64
    assert any("restarted" in line for line in log)

    lines = [json.loads(line) for line in settings.log_path.read_text().splitlines()]
    steps = [line for line in lines if "losses" in line]
    assert [(line["stage"], line["step"]) for line in steps] == [
        *(("branches", 1), ("branches", 2)),
        *(("joint", 1), ("joint", 2), ("joint", 3)),
        ("decoders", 1),
    ]
    assert set(steps[2]["losses"]) == {"picture", "semantic", "codebook", "commit"}
    assert "usage" not in steps[0]
    for line in steps[2:]:
        for used, perplexity in zip(line["usage"], line["perplexity"], strict=True):
            assert (used is None) == (perplexity is None)
            assert used is None or 1 <= perplexity <= 64 * used + 0.01
    measured = [line for line in lines if "quality" in line]
    assert [(line["stage"], line["step"]) for line in measured] == [("joint", 3)] * 2
    assert [line["quality"]["level"] for line in measured] == [256, 512]
    assert [path.stem for path in (settings.folder / "samples").iterdir()] == ["joint-0000002"]


@pytest.fixture(scope="module")
def siglip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP2 with random weights, as its library writes one."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Siglip2VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_patches=16,
        patch_size=16,
    )
    folder = tmp_path_factory.mktemp("siglip2")
    transformers.Siglip2VisionModel(config).save_pretrained(folder)
    return folder


def test_siglip2_starts_as_published_and_learns_in_the_joint_stage_alone(
    tiny_training: Tree, siglip2_folder: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 3, "num_heads": 2}
    tokenizer = {"semantic_encoder": "siglip2", "siglip2": sizes | {"num_patches": 16}}
    tokenizer |= {"teacher_dim": 16}
    published = siglip2.read(siglip2_folder)[1].state_dict()
    moved, stored = [], []
    for scale, checkpointing in ((1e-9, False), (0.1, False), (0.1, True)):
        learning = {"branch_steps": 2, "joint_steps": 2, "decoder_steps": 2, "warmup_steps": 0}
        learning |= {"semantic_learning_rate_scale": scale, "bfloat16": True}
        learning |= {"gradient_checkpointing": checkpointing}
        settings = recipe(
            tiny_training,
            tmp_path / str(len(stored)),
            teacher=str(siglip2_folder),
            tokenizer=tokenizer,
            learning=learning,
        )
        train_tokenizer(settings, lambda line: None)
        state = torch.load(settings.folder / "state.pt", weights_only=True)
        weights = state["networks"]["tokenizer"]
        stored.append(weights)
        tower = {name: weights[f"semantic_encoder.0.{name}"] for name in published}
        moved.append(max(float((tower[n] - published[n]).abs().max()) for n in published))
    assert moved[0] < 1e-9 < 1e-5 < moved[1]
    for name, value in stored[1].items():
        torch.testing.assert_close(value, stored[2][name], msg=name)
    assert checkpoint.load(settings.output).settings.siglip2 is not None


def test_siglip2_of_another_size_is_refused(
    tiny_training: Tree, siglip2_folder: Path, tmp_path: Path
) -> None:
    tokenizer = {"semantic_encoder": "siglip2", "siglip2": {"hidden_size": 32}, "teacher_dim": 16}
    wrong = recipe(tiny_training, tmp_path, teacher=str(siglip2_folder), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"siglip2.hidden_size is 32, SigLIP2 .* has 16"):
        train_tokenizer(wrong, lambda line: None)


def test_the_small_recipe_gives_the_carried_settings() -> None:
    settings = load(TrainTokenizer, RECIPES / "train_tokenizer.yaml").tokenizer
    one, two, three = settings.decoder_blocks
    doubled = dataclasses.replace(settings, decoder_blocks=(2 * one, 2 * two, 2 * three))
    assert doubled == checkpoint.read_settings()


def test_the_full_recipe_is_the_papers_size() -> None:
    full = load(TrainTokenizer, RECIPES / "train_tokenizer_full.yaml")
    learning = full.learning
    assert full.tokenizer == FULL_SIZE
    assert full.teacher == "google/siglip2-so400m-patch16-naflex"
    assert full.levels == (256, 512, 1024)
    assert learning.perceptual.weight > 0
    assert learning.adversarial.weight > 0
    assert learning.adversarial.start_step > 0
    assert learning.scale_dropout == 0.5
    assert full.oversample
    assert full.measured_at_most == 500


def test_missing_pictures_stop_before_training(tiny_training: Tree, tmp_path: Path) -> None:
    overrides = [f"teacher={tiny_training['teacher']}", f"output={tmp_path}/t.safetensors"]
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        main(RECIPES / "train_tokenizer.yaml", [*overrides, f"images=[{tmp_path}/nowhere]"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "tokenizer.pt"}, "end it in .safetensors"),
        ({"output": "s3://bucket/t.safetensors"}, "local or mounted folder"),
        ({"images": []}, "name folders or tables"),
        ({"held_out_share": 1.0}, "held_out_share is 1.0"),
        ({"save_every": 0}, "save_every is 0: use 1 or more"),
        ({"sample_every": -1}, "sample_every is -1: use 0"),
        ({"learning": {"scale_dropout": 2.0}}, "learning.scale_dropout is 2.0"),
        ({"learning": {"level_512_share": 0.7, "level_1024_share": 0.4}}, "more than all steps"),
        ({"learning": {"joint_steps": 0}}, "learning.joint_steps is 0: use 1 or more"),
        ({"learning": {"batch_size": -4}}, "learning.batch_size is -4"),
        ({"learning": {"learning_rate": float("nan")}}, "learning_rate is nan: use a number above"),
        ({"learning": {"commit_weight": -1.0}}, "commit_weight is -1.0: use 0 or more"),
        ({"learning": {"fit_batches": [0, 0, 0]}}, "not all 0"),
        ({"learning": {"steps": 5}}, "unknown key `learning.steps`"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tiny_training: Tree, tmp_path: Path, changes: Tree, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(tiny_training, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frechet": "/nowhere.pt"}, "/nowhere.pt does not exist"),
        ({"device": "tpu"}, "device is 'tpu': use cpu"),
        ({"device": "cuda:99"}, "GPU 99 is not among"),
        ({"output": "/dev/null/t.safetensors"}, "cannot be written .*choose another folder"),
        ({"output": "/proc/x/t.safetensors"}, "cannot be written .*choose another folder"),
        ({"tokenizer": {"teacher_dim": 5}}, "teacher_dim is 5: set it to 112"),
        ({"teacher": "/nowhere.safetensors"}, "/nowhere.safetensors"),
        ({"held_out_share": 0.999, "held_out": "*"}, "leaves no photograph"),
        ({"held_out_share": 0.5, "held_out": "dog*"}, "hold out 0 of 3 photographs, none of which"),
    ],
)
def test_mistakes_that_only_this_machine_knows(
    tiny_training: Tree, tmp_path: Path, changes: Tree, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train_tokenizer(recipe(tiny_training, tmp_path, **changes), lambda line: None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # a recipe that is wrong leaves nothing behind


def test_the_output_may_not_lie_among_the_pictures(tiny_training: Tree, tmp_path: Path) -> None:
    """Its sample pictures would become training pictures, and a resumed training another one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in map(Path, tiny_training["images"]):
        (photos / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(photos)
    for output in (photos / "t.safetensors", tmp_path / "link/deep/t.safetensors"):
        inside = recipe(tiny_training, tmp_path, images=[str(photos)], output=str(output))
        with pytest.raises(ConfigError, match=r"lies in .*photos of images.*another folder"):
            train_tokenizer(inside, lambda line: None)
    assert len(list(photos.iterdir())) == 3


def test_the_teacher_is_looked_for_before_the_pictures(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "open_pictures", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(ConfigError, match=r"/nowhere\.safetensors does not exist"):
        train_tokenizer(recipe(tiny_training, tmp_path, teacher="/nowhere.safetensors"))


def test_who_holds_out_nothing_is_told_once(tiny_training: Tree, tmp_path: Path) -> None:
    short = {"branch_steps": 1, "joint_steps": 1, "decoder_steps": 1}
    lines: list[str] = []
    assert not train_tokenizer(recipe(tiny_training, tmp_path, learning=short), lines.append)
    assert [line for line in lines if "held_out_share is 0: no quality is measured" in line]


def test_so_many_are_measured_whatever_is_held_out_and_only_when_it_is_time(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (60, 3), np.uint8)
    for number, colour in enumerate(colours):
        rgb = np.broadcast_to(colour, (20, 30, 3)).copy()
        (photos / f"{number}.jpg").write_bytes(encode_jpeg(rgb))
    settings = {"images": [str(photos)], "held_out_share": 0.5, "measured_at_most": 7}
    decoded: list[int] = []
    original = DecodedPictures.rgb
    monkeypatch.setattr(
        DecodedPictures, "rgb", lambda self, n: decoded.append(n) or original(self, n)
    )
    chosen = []
    for seed in (0, 0, 1):
        plan = recipe(tiny_training, tmp_path, learning={"seed": seed}, **settings)
        ranks = Ranks(0, 1, torch.device("cpu"))
        trained_on, measured = training._pictures(plan, ranks, lambda line: None)
        assert len(measured) == 7
        assert not set(measured.names) & set(trained_on.names)
        chosen.append(list(measured.names))
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(decoded) == 3  # the first each time, to see whether there is any


def test_every_rank_tells_of_pictures_it_cannot_decode(tiny_training: Tree, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.png").write_bytes(b"\x89PNG" + bytes([number]))
    plan = recipe(tiny_training, tmp_path, images=[str(photos)])
    for rank, start in ((0, str(photos)), (1, f"rank 1: {photos}")):
        lines: list[str] = []
        ranks = Ranks(rank, 2, torch.device("cpu"))
        pictures, _ = training._pictures(plan, ranks, lines.append)
        assert list(pictures.decodable()) == []
        assert len([line for line in lines if line.startswith(start)]) == 4


def test_frozen_networks_count_by_their_weights_and_not_their_place(
    tiny_training: Tree, tmp_path: Path
) -> None:
    short: Tree = {"branch_steps": 1, "joint_steps": 1, "decoder_steps": 1}
    places = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for place in places:
        shutil.copy(tiny_training["teacher"], place)

    def train(teacher: Path, perceptual: Path) -> None:
        network = {"network": "efficientnet_lite0", "weights": str(perceptual), "weight": 0.1}
        learning = short | {"perceptual": network}
        changed = recipe(tiny_training, tmp_path, teacher=str(teacher), learning=learning)
        train_tokenizer(changed, lambda line: None)

    train(places[0], places[0])
    train(places[1], places[1])  # moved: the same training
    stored = load_file(places[0])
    save_file(stored | {"stem.bias": stored["stem.bias"] + 1}, places[0])
    with pytest.raises(
        ConfigError, match=r"has weights.teacher \w{16}, this recipe \w{16}: go back"
    ):
        train(places[0], places[1])
    with pytest.raises(ConfigError, match=r"has weights.perceptual \w{16}, this recipe \w{16}"):
        train(places[1], places[0])


def test_processes_agree_where_they_take_as_many_pictures_at_every_level(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = open_pictures([Path(tiny_training["images"][0])], short_side=99)

    def identity(processes: int, batch_size: int, share_1024: float) -> Tree:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        levels = {"level_512_share": 0.2, "level_1024_share": share_1024}
        learning = levels | {"batch_size": batch_size, "fit_batches": [1, 1, 0]}
        return recipe(tiny_training, tmp_path, learning=learning).identity(pictures)

    assert identity(2, 4, 0.0) == identity(1, 8, 0.0)
    assert identity(2, 4, 0.1) != identity(1, 8, 0.1)  # 2 pictures a step at level 1024, and 1
    assert identity(2, 2, 0.0) != identity(1, 4, 0.0)  # the same at 512
    assert identity(2, 32, 0.1) == identity(4, 16, 0.1)


def test_a_cache_that_holds_no_steps_row_groups_is_told(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pictures, "group_bytes", 9 * 2**20)
    ranks, found = Ranks(0, 1, torch.device("cpu")), []
    for cache_mib in (4 * 3 * 9 - 1, 4 * 3 * 9):
        learning = {"batch_size": 4, "gradient_accumulation": 3}
        plan = recipe(tiny_training, tmp_path, learning=learning, cache_mib=cache_mib)
        lines: list[str] = []
        training._pictures(plan, ranks, lines.append)
        found.append([line for line in lines if "cache_mib is 107, less than" in line])
    assert [len(lines) for lines in found] == [1, 0]
