"""Frame selection on one core: clips per second, and where the time goes, by method of flow.

    python tests/benchmarks/frame_selection.py FOLDER [large_weights]

FOLDER holds clips; of each the first 20 s, one candidate every 2 s, are taken as the pipeline does:
decoded by `ClipProbe`, compared by flow, classified, kept ones cut to level 512 and encoded. CPU
time of this process and of the decoders' process. With the weights of raft_large, that too.
"""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pyarrow as pa
import torch

from infra.pixels import Pixels
from infra.schema import ERROR_TYPE, FILE_TYPE
from operators import frame_selection
from operators.clip_probe import ClipProbe
from operators.flow import Flow, FlowField
from operators.frame_selection import FrameSelection
from operators.level_picture import LevelPicture
from operators.motion_classes import MotionRule, Pair, Verdict

CLIP_S = 20.0
EVERY_S = 2.0

spent: dict[str, float] = {}


def cpu_s() -> float:
    """CPU time of this process and of its children that live."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return process_time() + sum(times.user + times.system for times in children)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(part: str, work: Callable[[], Any]) -> Any:
    start = cpu_s()
    done = work()
    spent[part] = spent.get(part, 0.0) + cpu_s() - start
    return done


@dataclass(frozen=True, kw_only=True)
class TimedFlow(Flow):
    """Flow that notes its time, and how many pairs it was given."""

    pairs: list[int] = field(default_factory=list)

    def flow(self, pairs: Sequence[tuple[Pixels, Pixels] | None]) -> list[FlowField | None]:
        self.pairs.append(sum(pair is not None for pair in pairs))
        compute = super().flow
        found: list[FlowField | None] = timed("flow", lambda: compute(pairs))
        return found


@dataclass(frozen=True)
class TimedRule(MotionRule):
    def classify(self, short: Pair | None, across: Pair | None) -> Verdict:
        classify = super().classify
        verdict: Verdict = timed("classify", lambda: classify(short, across))
        return verdict


class TimedPicture(LevelPicture):
    def cut(self, *arguments: Any) -> dict[str, Any]:
        cut = super().cut
        done: dict[str, Any] = timed("cut, JPEG", lambda: cut(*arguments))
        return done


def files(folder: Path) -> pa.Table:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    rows = [
        {"root": str(folder), "uri": name, "offset": 0, "length": None, "start_s": None}
        | {"end_s": CLIP_S, "stream": 0}
        for name in names
    ]
    errors = pa.nulls(len(rows), ERROR_TYPE)
    return pa.table({"name": names, "file": pa.array(rows, FILE_TYPE), "error": errors})


def main(folder: str, large_weights: str = "") -> None:
    torch.set_num_threads(1)
    vars(frame_selection)["LevelPicture"] = TimedPicture
    probe = ClipProbe(short_side=768, every_s=EVERY_S)
    batch = files(Path(folder))
    probe(batch.slice(0, 1))  # starts the decoders' process
    decoded = timed("decode", lambda: probe(batch))
    number = decoded["error"].null_count
    decode_s = spent["decode"]
    candidates = sum(map(len, decoded["frames"].drop_null()))
    print(f"{number} clips, {candidates} candidates, one core")
    flows = [TimedFlow(), TimedFlow(updates=12), TimedFlow(method="dis")]
    flows.append(TimedFlow(method="farneback"))
    if large_weights:
        flows.append(TimedFlow(method="raft_large", weights=large_weights))
    for flow in flows:
        selection = FrameSelection(level=512, flow=flow, rule=TimedRule())
        selection(decoded.slice(0, 1))  # loads the weights
        spent.clear()
        flow.pairs.clear()
        start = cpu_s()
        done = selection(decoded)
        total = cpu_s() - start + decode_s
        parts = {"decode": decode_s, **spent}
        parts["resize, rest"] = total - sum(parts.values())
        told = ", ".join(f"{part} {of / total:.1%}" for part, of in parts.items())
        (pairs,) = flow.pairs
        kept = sum(k or 0 for k in done["num_kept"].to_pylist())
        name = f"{flow.method}, {flow.updates} updates" if flow.is_raft else flow.method
        print(
            f"  {name:24} {number / total:6.3f} clips/s, {pairs} pairs of "
            f"{spent['flow'] / pairs * 1e3:.0f} ms, {kept} frames kept: {told}"
        )
        if flow is flows[0]:
            describe(done)
            print(f"    peak memory of this process {peak_mb():,.0f} MB")


def describe(done: pa.Table) -> None:
    rows = done.select(["name", "candidates", "error"]).to_pylist()
    for row in rows:
        classes = [
            f"[{c['class']}]" if c["kept"] else str(c["class"]) for c in row["candidates"] or ()
        ]
        failed = f" ({row['error']['type']})" if row["error"] else ""
        print(f"    {row['name']:28} {' '.join(classes)}{failed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
