"""A trained model as a folder: ``config.json`` and safetensors, sharded above 5 GB.

    export("run/checkpoints/step-00001000", "model")        model = load_model("model")

Sampling and the next stage's training read it (`TrainConfig.initialise_from`). Parameters are named
as in the decoder; the config says its shape, its vocabulary, and of which tokenizer its codes are.
"""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from infra.config import ConfigError, build
from infra.layout import Vocabulary
from trainer.config import ModelConfig
from trainer.model import Decoder

MODEL_TYPE: Literal["nextscale"] = "nextscale"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class ModelFacts:
    """What an exported model is, beside its weights."""

    model: ModelConfig
    num_codes: int
    text_vocab_size: int
    code_dim: int
    tokenizer_id: str
    vocabulary_id: str
    step: int  # of training
    model_type: Literal["nextscale"] = MODEL_TYPE

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.num_codes, self.text_vocab_size)


def export(checkpoint: str | Path, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model of a training checkpoint into ``folder``; the config comes last.

    Raises ConfigError where the checkpoint is none of ours, or the folder holds a model already.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"checkpoint {checkpoint} holds no state.json: name a step-… folder of a run's "
            "checkpoints"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{checkpoint}/state.json is not readable: {error}") from None
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder to write into")
    if (folder / CONFIG).exists():
        raise ConfigError(f"folder {folder} holds a model already: name another, or remove it")
    try:
        identity = state["identity"]
        shape = dict(identity["model"])
        code_dim = shape.pop("code_dim")
        weights = _weights(checkpoint / "engine", identity["zero_stage"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"checkpoint {checkpoint} is damaged: {reason}") from None
    facts = ModelFacts(
        build(ModelConfig, shape),
        weights["vision.codebook"].shape[0],
        weights["embed_tokens.weight"].shape[0] - 2,
        code_dim,
        identity["tokenizer"],
        identity["vocabulary"],
        state["step"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    _save(weights, folder, dtype)
    beside = folder / f".{CONFIG}.writing"
    beside.write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
    os.replace(beside, folder / CONFIG)


def _save(weights: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write ``weights`` file by file, of which one alone is gathered and converted in memory."""
    from huggingface_hub import split_torch_state_dict_into_shards

    for left in folder.glob("model*.safetensors*"):  # of an export that was killed
        left.unlink()
    shapes = {
        name: torch.empty(value.shape, dtype=dtype, device="meta")
        for name, value in weights.items()
    }
    split = split_torch_state_dict_into_shards(shapes)
    for name, tensors in split.filename_to_tensors.items():
        # Copies: DeepSpeed's are views of one flat tensor, which safetensors refuses.
        copies = {of: weights.pop(of).contiguous().to(dtype, copy=True) for of in tensors}
        save_file(copies, folder / name, {"format": "pt"})
        (folder / name).chmod(0o644)  # the library leaves it to its owner alone
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def is_exported(folder: str | Path) -> bool:
    """Whether the folder is one that `export` has written. Raises ConfigError if it is damaged."""
    return (Path(folder) / CONFIG).exists() and _read(folder).get("model_type") == MODEL_TYPE


def read_facts(folder: str | Path) -> ModelFacts:
    """The config of an exported model. Raises ConfigError where there is none."""
    tree = _read(folder)
    if tree.get("model_type") != MODEL_TYPE:
        raise ConfigError(f"{folder} is of another kind of model: name a folder that we exported")
    return build(ModelFacts, tree, CONFIG)


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CONFIG
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path} is not there: `nextscale export` writes a model's folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is no config of a model")
    return tree


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> Decoder:
    """The exported decoder, in evaluation mode and in the type that it was stored in.

    Raises ConfigError where weights are missing, damaged, or of another shape than the config's.
    """
    facts = read_facts(folder)
    with torch.device("meta"):
        model = Decoder(facts.model, facts.vocabulary, facts.code_dim)
    weights = {name: read() for name, read in stored_tensors(folder).items()}
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != expected.get(name):
            raise ConfigError(
                f"{folder}: {name} is {_shape(found)}, the config says {_shape(expected.get(name))}"
            )
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def stored_tensors(folder: str | Path) -> dict[str, Any]:
    """Every tensor of a folder's safetensors files, by name, as a function that reads it.

    Raises ConfigError where there is no such file, or one is damaged.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no .safetensors file: name a model's folder")
    found: dict[str, Any] = {}
    for path in files:
        try:
            reader = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"weights {path} are not readable: {error}") from None
        names: list[str] = reader.keys()  # type: ignore[no-untyped-call]
        found |= {name: partial(reader.get_tensor, name) for name in names}
    return found


def _weights(engine: Path, zero_stage: int) -> dict[str, Any]:
    """The parameters of DeepSpeed's files, wherever they are sharded; fp32 under ZeRO.

    Each has a shape, and becomes a tensor by ``contiguous()``: those of ZeRO-3 are read only then.
    """
    if zero_stage:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guesses
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it tells a lot
            gathered: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
                str(engine.parent), tag=engine.name, lazy_mode=True
            )
        return gathered
    file = engine / "mp_rank_00_model_states.pt"
    states = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    weights: dict[str, Any] = states["module"]
    return weights


def _shape(size: torch.Size | None) -> str:
    return "missing" if size is None else str(list(size))
