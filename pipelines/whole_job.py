"""A recipe from sources to trained steps: ``nextscale run RECIPE`` and its parts.

    curate  ->  tokenize  ->  pack  ->  train

All Ray phases share one session; training starts when that is closed, so that it has the cores.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from infra import catalog, config
from infra.cluster import require, session
from infra.config import ConfigError
from infra.layout import Vocabulary
from infra.runs import TableRecord, load_record
from pipelines.cost_model import TRAINED, cost_coefficients
from pipelines.curate import check, curate
from pipelines.curate_images import captions_are_due
from pipelines.pack_tokens import PackComponent, PackPhase
from pipelines.recipe import Recipe, recipe_path
from pipelines.refresh import refresh
from pipelines.status import Look, NotDoneError, State
from pipelines.tokenize_documents import remove_other_replicas, tokenize_phases
from pipelines.train_packs import train_config, train_packs, train_state
from pipelines.vllm_engine import require_vllm

Step = Literal["curate", "tokenize", "pack", "train"]
STEPS: tuple[Step, ...] = get_args(Step)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by path or by name; raises ConfigError."""
    return config.load(Recipe, recipe_path(name), overrides)


def run(
    name: str,
    overrides: Sequence[str] = (),
    address: str | None = None,
    num_cpus: int | None = None,
    last: Step = "train",
    strict: bool = True,
) -> Recipe:
    """Bring everything up to ``last`` up to date. Raises ConfigError before any work."""
    recipe = load(name, overrides)
    for section in STEPS[1 : STEPS.index(last) + 1] if strict else ():
        if getattr(recipe, section) is None:
            raise ConfigError(f"recipe {name} has no `{section}` section: add one")
    check(recipe)
    train_config(recipe)  # its mistakes, too, are told before the work
    with session(address, num_cpus, recipe.secrets):
        require_pools(recipe, curate_only=last == "curate")
        documents = curate(recipe)
        tokens: list[TableRecord] = []
        packs = None
        if last != "curate" and recipe.tokenize is not None:
            phases = tokenize_phases(recipe, documents)
            tokens = [refresh(recipe.storage, phase) for phase in phases]
            remove_other_replicas(recipe)
        if last in ("pack", "train") and tokens and recipe.pack is not None:
            packs = refresh(recipe.storage, pack_phase(recipe, *tokens))
    catalog.write_catalog(recipe.storage)
    if last == "train" and packs is not None:
        train_packs(recipe, packs)
    return recipe


def require_pools(recipe: Recipe, curate_only: bool = False) -> None:
    """Raises ConfigError unless every pool, and vLLM where it is to run, fits into the session."""
    for section, pool in recipe.pools(curate_only).items():
        total = pool.workers * pool.num_cpus, pool.workers * pool.num_gpus
        require(*total, f"{section}.pool", (pool.num_cpus, pool.num_gpus))
    captions = recipe.captions
    asks = captions.operator.engine == "vllm" and not recipe.holds_texts
    if asks and captions_are_due(recipe):
        require_vllm(captions.operator, captions.vllm)


def pack_phase(recipe: Recipe, tokens: TableRecord, *replicas: TableRecord) -> PackPhase:
    """Packs of one dataset, balanced for the recipe's cost model."""
    pack = recipe.pack
    assert pack is not None
    num_codes, text_size = tokens.facts["num_codes"], tokens.facts["text_vocab_size"]
    shape = None
    if pack.cost_model == TRAINED:
        settings = train_config(recipe)
        assert settings is not None  # the recipe was checked
        shape = settings.model.shape(Vocabulary(num_codes, text_size))
    of = cost_coefficients(pack.cost_model, num_codes, pack.checkpointing, shape)
    stages = ["decisions", *(["caption_decisions"] if recipe.captions.rules else [])]
    found = (load_record(recipe.storage, f"{stage}/{recipe.dataset}") for stage in stages)
    decisions = tuple(record for record in found if record is not None)
    name = recipe.tokens_name
    whole = PackComponent(name, tokens, replicas, decisions, pack.copies)
    tokenizer = recipe.tokenize.operator.checkpoint if recipe.tokenize else ""
    return PackPhase(name, (whole,), pack.packing, of, pack.slicing, tokenizer=tokenizer)


def train_only(name: str, overrides: Sequence[str] = ()) -> None:
    """``nextscale train``: packs must be there already."""
    recipe = load(name, overrides)
    for section in ("tokenize", "train"):
        if getattr(recipe, section) is None:
            raise ConfigError(f"recipe {name} has no `{section}` section: add one")
    packs = load_record(recipe.storage, f"packs/{recipe.tokens_name}")
    if packs is None:
        place = recipe.storage.path(f"packs/{recipe.tokens_name}")
        raise ConfigError(f"{place} is not there: `nextscale pack {name}` makes it")
    train_packs(recipe, packs)


def status(name: str, overrides: Sequence[str] = ()) -> list[State]:
    """How every phase of the recipe stands, up to the first that later ones wait for."""
    recipe = load(name, overrides)
    states: list[State] = []
    look = Look(states)
    try:
        documents = curate(recipe, run=look)
        if recipe.tokenize is not None:
            phases = tokenize_phases(recipe, documents)
            tokens = [look(recipe.storage, phase) for phase in phases]
            if recipe.pack is not None:
                packs = look(recipe.storage, pack_phase(recipe, *tokens))
                if recipe.train is not None:
                    states.append(train_state(recipe, packs))
    except NotDoneError as waiting:
        states.append(State("later phases", "waiting", f"for {waiting}"))
    return states
