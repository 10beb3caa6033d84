"""How likely a picture carries a watermark, by whatever detector a team has."""

import math
import pickle
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators.fixed_batches import run_fixed
from operators.mobilenets import file_hash

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# What torch.export.load raises, as it comes upon what is wrong; it has no error of its own.
_DAMAGED = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Watermark:
    """Write ``watermark``, the probability that ``program`` gives to a watermark.

    No detector comes with the project. ``program`` is a file of torch.export, which holds a network
    with its weights and needs none of its Python code:

        network = my_detector().eval()            # images [n, 3, size, size] -> [n, outputs]
        rows = {0: torch.export.Dim("rows")}      # without it export exactly batch_rows images
        images = torch.zeros(2, 3, 224, 224)
        program = torch.export.export(network, (images,), dynamic_shapes=(rows,))
        torch.export.save(program, "watermark.pt2")

    The whole picture is squeezed to ``size`` x ``size`` pixels, for watermarks sit in corners that
    a crop would cut off; it goes in as (x / 255 - ``mean``) / ``std``, in fp32 RGB. ``output`` is
    the watermark's place among the outputs, and ``activation`` what makes them probabilities:
    ``sigmoid``, ``softmax`` over all, or ``none`` where the network does it itself.

    Load files of people you trust only: loading one runs what it says. Raises ValueError (from
    ``identity``) for a file that is missing, no exported program, or does not fit these parameters.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("watermark", pa.float32(), "0..1", "probability of a watermark, by your detector")],
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("program",)  # its hash is the identity

    program: str
    size: int = 224
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    output: int = 0
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    batch_rows: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.program:
            raise ValueError("`program` is empty: name a file of torch.export.save")
        if self.size < 1:
            raise ValueError(f"size is {self.size}: choose the side the network was exported for")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}: each channel's must be above 0")
        if self.output < 0:
            raise ValueError(f"output is {self.output}: count from 0")
        if self.activation not in ("sigmoid", "softmax", "none"):
            raise ValueError(f"activation is {self.activation!r}: choose sigmoid, softmax or none")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")

    @property
    def identity(self) -> str:
        """Hash of the program the scores depend on."""
        self._check(load_program(self.program))
        return file_hash(self.program)

    def __call__(self, batch: pa.Table) -> pa.Table:
        outputs = run_fixed(
            pictures_of(batch), self._prepare, self._detect, self.batch_rows, self.device
        )
        scores = [None if output is None else self._probability(output) for output in outputs]
        return batch.append_column(self.writes.field("watermark"), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # The loaded network stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _network(self) -> torch.nn.Module:
        program = load_program(self.program)
        self._check(program)
        if self.device != "cpu":
            program = move_to_device_pass(program, self.device)
        return program.module()

    def _check(self, program: ExportedProgram) -> None:
        rows, *image = shape_of(program, program.graph_signature.user_inputs, self.program)
        if image != [3, self.size, self.size]:
            raise ValueError(
                f"program {self.program} takes images of {image}, not {[3, self.size, self.size]}: "
                "set `size` to what it was exported for"
            )
        if rows not in (None, self.batch_rows):
            raise ValueError(
                f"program {self.program} takes batches of {rows}: set batch_rows to {rows}, or "
                "export it with a dynamic batch"
            )
        _, *outputs = shape_of(program, program.graph_signature.user_outputs, self.program)
        if len(outputs) != 1 or outputs[0] is None or outputs[0] <= self.output:
            raise ValueError(
                f"program {self.program} gives {outputs} per image: output {self.output} is none "
                "of them"
            )

    def _prepare(self, rgb: Pixels) -> Tensor:
        reduces = min(rgb.shape[:2]) >= self.size
        method = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
        square = cv2.resize(rgb, (self.size, self.size), interpolation=method)
        image = torch.from_numpy(np.asarray(square, np.float32)) / 255
        return ((image - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)

    def _detect(self, images: Tensor) -> Tensor:
        outputs: Tensor = self._network(images)
        if self.activation == "sigmoid":
            outputs = outputs.sigmoid()
        elif self.activation == "softmax":
            outputs = outputs.softmax(-1)
        return outputs[:, self.output]

    def _probability(self, output: np.ndarray) -> float | None:
        score = float(output)
        if math.isnan(score):  # of this picture; numbers outside 0..1 are of every picture
            return None
        if not 0.0 <= score <= 1.0:
            raise ValueError(
                f"program {self.program} gives {score:.3g} for a watermark, no probability: "
                "choose activation sigmoid or softmax"
            )
        return score


def load_program(path: str) -> ExportedProgram:
    """The program of a file of torch.export.save; ValueError for any other file."""
    remedy = "make it with torch.export.save (see operators/watermark.py)"
    if not Path(path).is_file():
        raise ValueError(f"program {path} does not exist: {remedy}")
    # Looked at first, because torch's own complaint is twenty lines of its log.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"program {path} is no exported program: {remedy}")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("models/model.json") for name in archive.namelist()):
            raise ValueError(f"program {path} is an archive of another kind: {remedy}")
    try:
        return torch.export.load(path)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"program {path} does not load ({reason}): {remedy}") from None


def shape_of(program: ExportedProgram, names: tuple[Any, ...], path: str) -> list[int | None]:
    """The shape of a program's one fp32 input or output; None for a dynamic size."""
    nodes = {node.name: node for node in program.graph.nodes}
    if len(names) != 1 or names[0] not in nodes:
        raise ValueError(f"program {path} has {len(names)} inputs or outputs: export one of each")
    value = nodes[names[0]].meta["val"]
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        raise ValueError(f"program {path} has no fp32 tensor at {names[0]}: export it in fp32")
    return [size if isinstance(size, int) else None for size in value.shape]
