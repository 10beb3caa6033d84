import json
import time

import pytest
import yaml

from pipelines.cli import main, parse


@pytest.fixture
def recipe(tmp_path, photos):
    """Writes a recipe with some keys changed and returns its path."""

    def write(**changes):
        tree = {
            "dataset": "photos",
            "workspace": str(tmp_path / "workspace"),
            "sources": [{"name": "p", "kind": "folder", "path": str(photos)}],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree | changes))
        return str(path)

    return write


def refused(capsys, *arguments):
    """The one line that a command says before it stops, which must be soon."""
    start = time.monotonic()
    assert main(arguments) == 2
    assert time.monotonic() - start < 30
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_overrides_stand_before_or_after_options():
    args = parse(["curate", "demo", "a=1", "--num-cpus", "2", "b=[x, y]"])
    assert (args.overrides, args.num_cpus) == (["a=1", "b=[x, y]"], 2)
    for wrong in (["curate", "demo", "--nmu-cpus=2"], ["sql", "SELECT 1", "a=1"]):
        with pytest.raises(SystemExit):
            parse(wrong)


def test_a_missing_recipe_is_named(capsys):
    assert "nothing.yaml" in refused(capsys, "curate", "nothing.yaml")


def test_an_unknown_key_is_named_with_its_likely_meaning(capsys, recipe):
    said = refused(capsys, "curate", recipe(decied={}))
    assert "`decied`" in said
    assert "`decide`" in said


def test_a_wrong_path_and_an_empty_source_are_named(capsys, recipe, tmp_path):
    sources = [{"name": "p", "kind": "folder", "path": str(tmp_path / "gone")}]
    assert "gone does not exist" in refused(capsys, "curate", recipe(sources=sources))
    (tmp_path / "empty").mkdir()
    sources[0]["path"] = str(tmp_path / "empty")
    assert "no folder files" in refused(capsys, "curate", recipe(sources=sources))


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("1) ok from s; copy s to 'stolen.csv'; select (1", "no SQL expression"),
        ("(SELECT 1) = 1", "subquery"),
        ("sharpness > 3", "unknown column `sharpness`"),
        ("clarity > 'sharp'", "sharp"),
        ("clarity + 1", "expected a condition"),
    ],
)
def test_a_rule_that_may_not_run_is_refused_by_name_before_any_work(
    capsys, recipe, tmp_path, monkeypatch, rule, cause
):
    monkeypatch.chdir(tmp_path)
    path = recipe(decide={"rules": [{"name": "attack", "keep": rule}]})
    said = refused(capsys, "curate", path)
    assert "rule `attack`" in said
    assert cause in said
    assert not (tmp_path / "workspace").exists()
    assert not (tmp_path / "stolen.csv").exists()


def test_too_few_resources_stop_the_run_at_once(capsys, recipe, ray_session):
    path = recipe(cheap={"pool": {"workers": 64}})
    said = refused(capsys, "curate", path)
    assert "cheap.pool needs 64 CPUs" in said
    assert "workers" in said


def test_an_endpoint_that_does_not_answer_stops_the_run(capsys, recipe):
    operator = {"engine": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "vlm"}
    said = refused(capsys, "curate", recipe(captions={"operator": operator}))
    assert "http://127.0.0.1:9/v1" in said


def test_a_step_without_its_section_is_refused(capsys, recipe):
    assert "no `tokenize` section" in refused(capsys, "pack", recipe())
    assert "no `tokenize` section" in refused(capsys, "train", recipe(train={"steps": 1}))


def test_missing_weights_are_told_before_the_work(capsys, recipe, tmp_path):
    aesthetics = {"backend": "open_clip", "model": "ViT-B-32", "head": str(tmp_path / "no.pth")}
    said = refused(capsys, "curate", recipe(models={"aesthetics": aesthetics}))
    assert "Aesthetics" in said
    assert not (tmp_path / "workspace").exists()


def test_training_without_packs_says_how_to_make_them(capsys, recipe):
    said = refused(capsys, "train", recipe(train={"steps": 1}, tokenize={}))
    assert "nextscale pack" in said


def test_a_train_section_is_checked_before_the_work(capsys, recipe):
    assert "train.steps" in refused(capsys, "run", recipe(train={"steps": "many"}))


def test_sql_needs_a_workspace_and_a_sound_query(capsys, tmp_path):
    assert "nowhere" in refused(capsys, "sql", "SELECT 1", "--workspace", str(tmp_path / "nowhere"))
    assert main(["sql", "SELECT 1 FORM x", "--workspace", str(tmp_path)]) == 2
    assert "syntax error" in capsys.readouterr().err


def test_sql_reads_nothing_outside_the_workspace(capsys, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    query = f"SELECT * FROM '{tmp_path}/secret.csv'"
    assert main(["sql", query, "--workspace", str(workspace)]) == 2
    assert "Permission" in capsys.readouterr().err


def test_status_follows_a_dataset_from_missing_to_stale(capsys, recipe, curate_here):
    def told(path, *overrides):
        assert main(["status", path, *overrides]) == 0
        return [line.split()[:2] for line in capsys.readouterr().out.splitlines()]

    path = recipe(models=None)
    assert told(path)[0] == ["missing", "samples/p"]
    from pipelines.whole_job import load

    curate_here(load(path))
    assert {state for state, _ in told(path)} == {"done"}
    rule = json.dumps([{"name": "sharp", "keep": "clarity > 0.9"}])
    assert told(path, f"decide.rules={rule}")[-2:] == [
        ["stale", "decisions/photos"],
        ["waiting", "later"],
    ]
