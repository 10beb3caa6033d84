"""Mixtures: shares of tokens as asked for, epochs, what is refused, and Table 2 of the paper."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from infra import catalog, config
from infra.config import ConfigError, build
from infra.runs import load_record
from infra.schedules import SCHEDULES
from infra.segments import Image, Text
from infra.storage import Storage
from packing.cost import Coefficients
from packing.plan import Packing
from packing.reader import open_packs, read_pack
from packing.slices import Slicing
from pipelines.cli import main
from pipelines.lengths import read_packs
from pipelines.mixture import Mixture, describe, has_images, mixture_phase, pack_mixture
from pipelines.pack_tokens import PackComponent, PackPhase, write_packs
from pipelines.packed_set import find_packed
from pipelines.recipe import recipe_path
from pipelines.report_tokens import pack_section
from pipelines.verify import verify

NUM_SCALES = 4


def image(rng, role="target"):
    schedule = int(rng.integers(len(SCHEDULES)))
    codes = rng.integers(0, 64, (2, SCHEDULES[schedule].num_codes(NUM_SCALES)))
    return Image(schedule, NUM_SCALES, *codes, role)


def text(rng, most):
    return Text(rng.integers(0, 100, int(rng.integers(1, most))))


@pytest.fixture
def workspace(tmp_path, token_table):
    """Texts, pictures with captions and interleaved documents; and how many of each."""
    storage, rng = Storage(str(tmp_path / "w")), np.random.default_rng(0)
    texts = {f"t{i:04d}": ("text", [text(rng, 90)]) for i in range(900)}
    photos = {f"p{i:04d}": ("t2i", [text(rng, 20), image(rng)]) for i in range(500)}
    photos |= {f"q{i:04d}": ("i2t", [image(rng, "condition"), text(rng, 20)]) for i in range(80)}
    films = {
        f"f{i:04d}": (
            "interleaved",
            list(itertools.chain(*((text(rng, 20), image(rng)) for _ in range(5)))),
        )
        for i in range(60)
    }
    token_table(storage, "texts-512", texts, 300, level=512, tokenizer_id="another")
    token_table(storage, "photos-256", photos, 150)
    token_table(storage, "films-256", films, 25)
    return storage


def mixture_of(storage, *components, **more):
    tree = {
        "name": "all",
        "workspace": storage.root,
        "components": list(components),
        "packing": {"tokens_per_pack": 300, "token_slack": 1.5, "window": 256},
        "drop_captions": 0.0,
    }
    return build(Mixture, tree | more)


TEXT = {"name": "text", "tokens": "texts-512", "share": 0.3}
T2I = {"name": "t2i", "tokens": "photos-256", "share": 0.5, "tasks": ["t2i"]}
FILM = {"name": "film", "tokens": "films-256", "share": 0.2}


def rows_of(storage, record):
    return pa.concat_tables([storage.read_table(path) for path in record.facts["plan"]])


def test_the_tokenizer_is_told_for_its_codebook_and_changes_no_pack(workspace):
    own, carried = (
        mixture_phase(mixture_of(workspace, T2I, FILM, **more))
        for more in ({"tokenizer": "ours.safetensors"}, {})
    )
    assert (own.tokenizer, carried.tokenizer) == ("ours.safetensors", "")
    assert own.fingerprint == carried.fingerprint


def test_shares_are_met_overall_and_in_every_stretch(workspace):
    mixture = mixture_of(workspace, TEXT, T2I, FILM)
    record = write_packs(workspace, mixture_phase(mixture))
    rows = rows_of(workspace, record)
    tokens, component = rows["num_tokens"].to_numpy(), rows["component"].to_numpy()
    by_component = np.bincount(component, tokens)
    for number, one in enumerate(record.facts["components"]):
        assert by_component[number] == one["num_tokens"]
        assert abs(by_component[number] / tokens.sum() - (0.3, 0.5, 0.2)[number]) < 0.005
        assert one["deviation"] < 0.02  # 100 packs of 300 tokens, documents of up to 250
    # One component ends with its last document, the others within one of their quota.
    assert min(one["left_out_documents"] for one in record.facts["components"]) == 0
    assert max(one["left_out_documents"] for one in record.facts["components"]) > 0
    for one, num_documents in zip(record.facts["components"], (900, 500, 60), strict=True):
        place = record.facts["components"].index(one)
        taken = rows.filter(pa.array(component == place))["doc_id"].to_pylist()
        assert len(taken) == len(set(taken)) == num_documents - one["left_out_documents"]
    # The packs hold what the plan says, and are of the tokenizer of those with images.
    packs = open_packs(workspace.path("packs/all"))
    assert (packs.facts.level, packs.facts.tokenizer_id) == (256, "t")
    packed = [d.doc_id for i in range(packs.num_packs) for d in read_pack(packs, i).documents]
    assert packed == rows["doc_id"].to_pylist()
    # So do the views, the simulator and the report.
    with catalog.connect(workspace) as con:
        assert con.sql("SELECT count(*) FROM pack_plan").fetchall() == [(len(rows),)]
        told = dict(pack_section(con, workspace, record).facts)
    assert told["film"].startswith("20.") or told["film"].startswith("19.")
    assert "% of the tokens, quota 20.0" in told["film"]
    assert read_packs(workspace, "all").lengths.num_tokens.tolist() == tokens.tolist()


def test_a_component_is_gone_through_again_epoch_after_epoch(workspace):
    again = FILM | {"share": 0.6, "max_epochs": 3}
    record = write_packs(workspace, mixture_phase(mixture_of(workspace, TEXT, again)))
    film = record.facts["components"][1]
    assert 1 < film["epochs"] <= 3
    rows = rows_of(workspace, record)
    rows = rows.filter(pa.array(rows["component"].to_numpy() == 1))
    epoch, copy = rows["epoch"].to_numpy(), rows["copy"].to_numpy()
    assert np.array_equal(epoch, copy)  # every document is packed once an epoch
    times = np.bincount(epoch)
    assert set(times[:-1].tolist()) == {60}
    assert 0 < times[-1] <= 60
    assert len(set(zip(rows["doc_id"].to_pylist(), copy.tolist(), strict=True))) == len(rows)
    # One after another, but for what a window mixes; each in an order of its own.
    first = [np.flatnonzero(epoch == e).mean() for e in range(len(times))]
    assert first == sorted(first)
    orders = [rows["doc_id"].to_numpy()[epoch == e].tolist() for e in range(2)]
    assert orders[0] != orders[1]


def test_so_many_tokens_as_are_asked_for(workspace):
    mixture = mixture_of(workspace, TEXT, T2I, num_tokens=6_000)
    record = write_packs(workspace, mixture_phase(mixture))
    tokens = sum(one["num_tokens"] for one in record.facts["components"])
    assert 6_000 - 2 <= tokens <= 6_000 + 2 * 90
    with pytest.raises(
        ConfigError,
        match=r"component film holds [\d,]+ tokens, its share is 60,000",
    ):
        write_packs(workspace, mixture_phase(mixture_of(workspace, FILM, num_tokens=60_000)))


def test_prompts_are_dropped_and_long_documents_are_cut(workspace):
    packing = {"tokens_per_pack": 100, "window": 256}
    mixture = mixture_of(
        workspace, T2I, FILM, drop_captions=0.5, split_at_images=True, packing=packing
    )
    record = write_packs(workspace, mixture_phase(mixture))
    facts, rows = record.facts, rows_of(workspace, record)
    component, first = (rows[name].to_numpy() for name in ("component", "first_segment"))
    photos = component == 0
    assert facts["dropped_captions"] == (first[photos] == 1).sum()
    assert 0.4 < facts["dropped_captions"] / photos.sum() < 0.6
    assert facts["cut"] > 0
    assert facts["rejected"] == {}
    packs = open_packs(workspace.path("packs/all"))
    found = [d for i in range(packs.num_packs) for d in read_pack(packs, i).documents]
    assert [d.first_segment for d in found] == first.tolist()
    assert [len(d.segments) for d in found] == rows["num_segments"].to_pylist()
    whole = mixture_of(workspace, T2I, FILM, packing=packing)
    with pytest.raises(ConfigError, match="component film has no document that fits"):
        write_packs(workspace, mixture_phase(whole))


def test_tables_without_images_are_known_by_their_files(workspace):
    for name, expected in (("texts-512", False), ("photos-256", True), ("films-256", True)):
        record = load_record(workspace, f"tokens/{name}")
        assert record is not None
        assert has_images(workspace, record) is expected


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"level": 512}, "tokens/other-256 has level 512, tokens/photos-256 has 256"),
        ({"tokenizer_id": "u"}, "has tokenizer_id u, tokens/photos-256 has t"),
        ({"num_codes": 128}, "has num_codes 128, tokens/photos-256 has 64"),
        ({"vocabulary_id": "w"}, "has vocabulary_id w, tokens/photos-256 has v"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(workspace, token_table, facts, message):
    rng = np.random.default_rng(1)
    token_table(workspace, "other-256", {"o": ("t2i", [text(rng, 9), image(rng)])}, **facts)
    other = {"name": "other", "tokens": "other-256", "share": 1}
    with pytest.raises(ConfigError, match=message) as told:
        mixture_phase(mixture_of(workspace, TEXT, T2I, other))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("components", "more", "message"),
    [
        ([], {}, "components is empty"),
        ([T2I, T2I], {}, "component `t2i` stands twice"),
        ([T2I | {"share": 0}], {}, "share is 0"),
        ([T2I | {"max_epochs": 0}], {}, "max_epochs is 0"),
        ([T2I], {"num_tokens": 0}, "num_tokens is 0"),
        ([T2I], {"name": "a/b"}, "name 'a/b'"),
        ([T2I], {"cost_model": "trained"}, "a mixture trains nothing"),
        ([T2I], {"drop_captions": 1.5}, "drop_captions is 1.5"),
        ([T2I | {"shares": 1}], {}, "did you mean `share`"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, components, more, message):
    with pytest.raises(ConfigError, match=message):
        mixture_of(Storage(str(tmp_path)), *components, **more)


def test_a_table_that_is_not_there_and_replicas_of_no_use(workspace):
    missing = mixture_of(workspace, T2I | {"tokens": "photo-256"})
    with pytest.raises(ConfigError, match="has the tokens films-256, photos-256, texts-512"):
        mixture_phase(missing)
    with pytest.raises(ConfigError, match="tokens/photos-256-r1 is not there"):
        mixture_phase(mixture_of(workspace, T2I | {"replicas": 2}))
    twice = mixture_of(workspace, T2I, T2I | {"name": "again"})
    with pytest.raises(ConfigError, match=r"document p\d+ is in tokens/photos-256 and again in"):
        write_packs(workspace, mixture_phase(twice))


@pytest.mark.usefixtures("ray_session")
def test_the_command_packs_and_prints_what_came_out(workspace, tmp_path, capsys):
    path = tmp_path / "mix.yaml"
    path.write_text(
        f"name: all\nworkspace: {workspace.root}\ncomponents:\n"
        "  - {name: text, tokens: texts-512, share: 1}\n"
        "  - {name: pictures, tokens: photos-256, tasks: [t2i], share: 3}\n"
        "packing: {tokens_per_pack: 300}\n"
    )
    assert main(["mix", str(path), "num_tokens=8000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "component", "text", "pictures", "packs", "slices", "rejected",
    ]  # fmt: skip
    assert "75.00%" in lines[2]
    assert "/packs/all/" in lines[3]
    assert lines[5] == "rejected  none"
    record = load_record(workspace, "packs/all")
    assert record is not None
    assert list(describe(record.facts["components"])) == lines[:3]
    assert pack_mixture(str(path), ["num_tokens=8000"]) == record
    assert main(["mix", str(path), "components=[]"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("nextscale mix: ")


TABLE_2 = {  # level, then millions of texts, t2i, i2t, editing and interleaved documents
    "alignment": (256, None, 5, 5, None, None),
    "pretrain_256": (256, 662, 1891, 520, None, 147),
    "pretrain_512": (512, 700, 345, None, 20, 5),
    "pretrain_1024": (1024, 47, 10, None, 2, 0.5),
    "ct": (1024, 47, 9, None, 2, None),
    "sft": (1024, 5, 1, None, 0.1, None),
}
SCALES = {256: 12, 512: 16, 1024: 18}


@pytest.mark.parametrize("stage", TABLE_2)
def test_our_recipes_are_table_2_of_the_paper(stage):
    level, *millions = TABLE_2[stage]
    codes = np.mean([schedule.num_codes(SCALES[level]) for schedule in SCHEDULES])
    lengths = {
        "text": 470,
        "t2i": 100 + codes + 1,
        "i2t": codes + 2 + 100,
        "edit": codes + 2 + 60 + codes + 1,
        "interleaved": 4 * (100 + codes + 1),
    }
    tokens = {
        name: number * length
        for (name, length), number in zip(lengths.items(), millions, strict=True)
        if number
    }
    mixture = config.load(Mixture, recipe_path(f"mixture_{stage}"))
    found = {one.name: one.share for one in mixture.components}
    assert found.keys() == tokens.keys()
    for name, share in found.items():
        assert abs(share - tokens[name] / sum(tokens.values())) < 1e-4
    for one in mixture.components:
        assert one.tasks == (one.name,)
        assert one.tokens.endswith("-256" if one.name == "text" else f"-{level}")
    assert len(list(Path(recipe_path("demo")).parent.glob("mixture_*.yaml"))) == len(TABLE_2)


def test_documents_that_fit_only_without_their_prompt_are_rejected_in_every_epoch(
    tmp_path, token_table
):
    """Each copy draws anew whether it keeps its prompt; parts have their usual size."""
    storage, draw = Storage(str(tmp_path)), np.random.default_rng(0)

    def picture():
        codes = draw.integers(0, 64, (2, SCHEDULES[20].num_codes(4)))
        return Image(20, 4, *codes)

    def text(length):
        return Text(draw.integers(0, 100, length))

    documents = {f"p{i:03d}": ("t2i", [text(200), picture()]) for i in range(40)}
    documents |= {f"t{i:03d}": ("t2i", [text(5), picture()]) for i in range(20)}
    table = token_table(storage, "p-256", documents, 25)
    phase = PackPhase(
        "p-256",
        (PackComponent("p", table, max_epochs=3),),
        Packing("fixed_length", tokens_per_pack=200),
        Coefficients(1.0, 0.0, 0.0),
        Slicing(drop_captions=0.5),
    )
    record = write_packs(storage, phase)
    rows = pa.concat_tables([storage.read_table(path) for path in record.facts["plan"]])
    planned = rows.group_by("doc_id").aggregate([("copy", "count_distinct")])
    assert set(planned["copy_count_distinct"].to_pylist()) == {3}
    over = pc.sum(pc.equal(rows["reason"], "over_token_cap")).as_py()
    assert record.facts["rejected"] == {"over_token_cap": over}
    assert 40 < over < 80
    assert not verify(find_packed(storage, "p-256")).damages.count


def test_a_quota_of_no_token_is_told_in_one_line(tmp_path, token_table):
    storage, draw = Storage(str(tmp_path)), np.random.default_rng(0)
    for name in ("a", "b"):
        documents = {f"{name}{i}": ("text", [text(draw, 20)]) for i in range(20)}
        token_table(storage, f"{name}-256", documents, 10)
    components = [{"name": n, "tokens": f"{n}-256", "share": 0.5} for n in ("a", "b")]
    tree = {"name": "all", "workspace": storage.root, "components": components, "num_tokens": 1}
    mixture = build(Mixture, tree | {"packing": {"tokens_per_pack": 100}})
    with pytest.raises(ConfigError, match="component a would have no token: raise num_tokens"):
        write_packs(storage, mixture_phase(mixture))
    tree["name"] = "a-256"
    with pytest.raises(ConfigError, match="name a-256 is that of a table of tokens"):
        mixture_phase(build(Mixture, tree))
