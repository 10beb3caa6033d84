"""Whole recipes: alone and inside Ray the same tables, bytewise; room for all before the work."""

import hashlib
from dataclasses import replace

import pytest

from infra.config import ConfigError
from infra.storage import Storage
from operators.caption import Caption
from pipelines import whole_job
from pipelines.curate_images import curate
from pipelines.execution import run_phase
from pipelines.inputs import DocumentInput
from pipelines.recipe import Recipe
from pipelines.sections import Captions, Documents, Models, Pool, Tokenize, Vllm
from pipelines.source import Source
from pipelines.tokenize_documents import tokenize_phase
from pipelines.whole_job import require_pools

TABLES = ("samples", "scores", "decisions", "captions", "documents", "tokens")


def content(workspace):
    storage = Storage(str(workspace))
    return {
        path: hashlib.sha256(storage.read(path)).hexdigest()
        for kind in TABLES
        for path, _, _ in storage.find(kind)
    }


@pytest.mark.slow
def test_operators_give_the_same_rows_alone_and_inside_ray(
    tmp_path, photos, curate_here, run_alone, ray_session
):
    def recipe(name, **pool):
        workers = Pool(**pool)
        return Recipe(
            dataset="photos",
            workspace=str(tmp_path / name),
            sources=(Source(name="p", kind="folder", path=str(photos)),),
            models=Models(pool=workers),
            tokenize=Tokenize(pool=workers),
        )

    alone = recipe("alone")
    documents = curate_here(alone)
    assert isinstance(tokenize_phase(alone, documents).input, DocumentInput)
    run_alone(alone.storage, tokenize_phase(alone, documents))
    on_ray = recipe("ray", workers=2, unit_rows=3, batch_rows=2)
    run_phase(on_ray.storage, tokenize_phase(on_ray, curate(on_ray)))
    expected = content(tmp_path / "alone")
    assert len(expected) > 10
    assert content(tmp_path / "ray") == expected


@pytest.mark.usefixtures("ray_session")
def test_vllm_is_given_room_before_the_work(curated, monkeypatch):
    wide = {"tensor_parallel_size": 4}
    caption = Caption(engine="vllm", model="m", engine_kwargs=wide)
    asked = Captions(operator=caption, vllm=Vllm(engines=2))
    require_pools(curated)
    recipe = replace(curated, captions=asked)
    with pytest.raises(ConfigError, match="captions by vLLM needs 8 GPUs, the session has 0"):
        require_pools(recipe)
    # Captions that are there need no engine.
    monkeypatch.setattr(whole_job, "captions_are_due", lambda recipe: False)
    require_pools(recipe)
    with pytest.raises(ConfigError, match=r"documents\.pool needs 90 CPUs"):
        require_pools(replace(curated, documents=Documents(pool=Pool(workers=90))))
