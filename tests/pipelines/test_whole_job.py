"""All operators of a recipe, alone in this process and inside Ray: the same tables, bytewise."""

import hashlib

import pytest

from infra.storage import Storage
from pipelines.curate_images import curate
from pipelines.execution import run_phase
from pipelines.inputs import DocumentInput
from pipelines.recipe import Models, Pool, Recipe, Tokenize
from pipelines.source import Source
from pipelines.tokenize_documents import tokenize_phase

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
