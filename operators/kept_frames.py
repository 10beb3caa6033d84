"""The kept frames of clips: what later steps read of the column ``candidates``."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class KeptFrame:
    """A kept frame: ``timestamp_s`` in seconds of its file, ``image`` as JPEG bytes of
    ``width`` x ``height`` pixels, ``cropped`` the share of the frame that was cut away."""

    timestamp_s: float
    image: bytes
    width: int
    height: int
    cropped: float


FIELDS = tuple(KeptFrame.__dataclass_fields__)


def kept_frames(batch: pa.Table) -> list[list[KeptFrame] | None]:
    """The kept frames of each row, in the order of its candidates, which is that of time.

    None for rows whose ``error`` is set. Flow and statistics are not looked at: of a long clip they
    are many numbers.
    """
    failed = batch["error"].is_valid().to_pylist()
    found: list[list[KeptFrame] | None] = [None if fails else [] for fails in failed]
    first = 0
    for chunk in batch["candidates"].chunks:
        candidates = chunk.flatten()  # lists that are null have none
        number = pc.indices_nonzero(pc.fill_null(pc.struct_field(candidates, "kept"), False))
        rows = pc.list_parent_indices(chunk).take(number).to_pylist()
        columns = [pc.struct_field(candidates, name).take(number).to_pylist() for name in FIELDS]
        for row, *values in zip(rows, *columns, strict=True):
            frames = found[first + row]
            if frames is not None:
                frames.append(KeptFrame(*values))
        first += len(chunk)
    return found
