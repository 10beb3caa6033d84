"""The curves of a training run: which are drawn, from logs as they come."""

import json
from pathlib import Path

import pytest

from infra.config import ConfigError
from pipelines.train_page import training_charts, write_train_page


def log_of(folder: Path, steps: list[dict[str, object]]) -> str:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return str(path)


def share(loss: float, num_targets: int = 10) -> dict[str, float]:
    return {"num_targets": num_targets, "loss": loss, "accuracy": 0.5}


def step(number: int, **more: object) -> dict[str, object]:
    found = {"step": number, "loss": 5.0 / number, "text_loss": None, "scale_losses": [1.0, None]}
    return found | {"tokens_per_s": 100.0, "gradient_norm": 1.0, "mfu": None} | more


def test_a_line_for_what_the_steps_hold_and_none_for_what_they_lack(tmp_path: Path) -> None:
    tasks = [{"t2i": share(4.0), "text": share(3.0)}, {"t2i": share(2.0)}, {"text": share(1.0)}]
    steps = [step(n + 1, tasks=of, sources={"web": share(1.0)}) for n, of in enumerate(tasks)]
    of = training_charts(log_of(tmp_path, steps))
    assert of is not None
    assert of.steps == 3
    assert [line.name for line in of.losses.lines] == ["all"]
    assert of.scales is not None
    assert [line.name for line in of.scales.lines] == ["scale 1"]
    assert of.tasks is not None
    ends = {line.name: (line.first, line.last) for line in of.tasks.lines}
    assert ends == {"t2i": ("4", "2"), "text": ("3", "1")}
    assert of.sources is None  # of one source alone, the curve is that of the loss
    assert of.mfu is None
    assert of.speed is not None


def test_the_sources_with_most_targets_are_drawn(tmp_path: Path) -> None:
    sources = {f"s{n:02d}": share(1.0, num_targets=n + 1) for n in range(30)}
    of = training_charts(log_of(tmp_path, [step(n, sources=sources) for n in (1, 2)]))
    assert of is not None
    assert of.sources is not None
    assert [line.name for line in of.sources.lines] == [f"s{n:02d}" for n in range(29, 17, -1)]


def test_a_log_before_its_second_step_gives_no_page(tmp_path: Path) -> None:
    log = log_of(tmp_path, [step(1)])
    assert write_train_page(log, str(tmp_path / "page.html")) is None
    with open(log, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "los')  # half written
    assert write_train_page(log, str(tmp_path / "page.html")) is None
    assert not (tmp_path / "page.html").exists()


def test_names_in_the_log_are_shown_as_text(tmp_path: Path) -> None:
    sources = {"<script>alert(1)</script>": share(1.0), "web": share(2.0)}
    log = log_of(tmp_path, [step(n, sources=sources) for n in (1, 2)])
    path = write_train_page(log, str(tmp_path / "page.html"))
    assert path is not None
    page = Path(path).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "holds a line that is no JSON"),
        ("[1]", "line 2: no step of ours"),
        ('{"loss": 1}', "line 2: no step of ours"),
    ],
)
def test_a_foreign_log_is_told_in_one_line(tmp_path: Path, line: str, message: str) -> None:
    log = log_of(tmp_path, [step(1)])
    with open(log, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=message):
        training_charts(log)
    with pytest.raises(ConfigError, match="does not exist"):
        training_charts(str(tmp_path / "none.jsonl"))
