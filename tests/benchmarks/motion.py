"""What the motion rules call 240 cases of known motion, by method of flow, and real clips.

    python -m tests.benchmarks.motion [FOLDER_OF_CLIPS [LARGE_WEIGHTS]]

The cases are the half ``report`` of tests/motion_cases.py: thresholds were chosen on the other
half, with other seeds and photographs. Confusion matrices of both rules with raft_small, from both
pairs of frames and from the pair 2 s apart alone; accuracy and CPU time of one core per pair, by
method (raft_large on the first seeds only); then the class of each candidate of each clip.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from infra.video import VideoFile, probe, read_frames
from operators.flow import Flow
from operators.motion_classes import CLASSES, MotionRule, Pair
from operators.motion_statistics import Statistics, measure
from tests.motion_cases import ACROSS_S, KINDS, SHORT_S, Case, cases

EVERY_S, MOST_S, FEW = 2.0, 40.0, 4

Pairs = tuple[Pair | None, Pair | None]


def pairs_of(case: Case, flow: Flow) -> Pairs:
    short, across = flow.flow([(case.now, case.after), (case.before, case.now)])
    assert short is not None
    assert across is not None
    return Pair(case.now, case.after, short, SHORT_S), Pair(case.before, case.now, across, ACROSS_S)


def confusion(truths: Sequence[str], found: Sequence[Statistics], rule: MotionRule) -> str:
    """Accuracy, the worst class's recall, and the matrix (rows: truth)."""
    matrix = np.zeros((len(CLASSES), len(CLASSES)), int)
    for truth, statistics in zip(truths, found, strict=True):
        said = rule.decide(statistics).class_
        matrix[CLASSES.index(truth), CLASSES.index(said)] += 1
    recall = matrix.diagonal() / matrix.sum(1)
    rows = "\n".join(
        f"    {name:8}" + "".join(f"{count:6}" for count in row)
        for name, row in zip(CLASSES, matrix, strict=True)
    )
    head = f"accuracy {matrix.trace() / matrix.sum():.3f}, worst class {recall.min():.3f}"
    return f"{head}\n    {'':8}{''.join(f'{name:>7}' for name in CLASSES)}\n{rows}"


def of_cases(made: Sequence[Case], flow: Flow) -> None:
    """Both rules, from both pairs and from one."""
    flow.flow([(made[0].now, made[0].after)])  # loads
    start = process_time()
    pairs = [pairs_of(case, flow) for case in made]
    flow_s = (process_time() - start) / (2 * len(made))
    start = process_time()
    both = [measure(*pair) for pair in pairs]
    rule_s = (process_time() - start) / len(made)
    alone = [measure(None, across) for _, across in pairs]
    truths = [case.truth for case in made]
    title = f"{flow.method}, {len(made)} cases"
    print(f"\n{title}: {1e3 * flow_s:.0f} ms per pair, statistics {1e3 * rule_s:.0f} ms per case")
    for name in ("residual", "paper"):
        rule = MotionRule(rule=name)
        print(f"  {name}, short and across: {confusion(truths, both, rule)}")
        print(f"  {name}, across alone: {confusion(truths, alone, rule)}")
    for case, statistics in zip(made, both, strict=True):
        verdict = MotionRule().decide(statistics)
        if verdict.class_ != case.truth:
            print(f"  {case.kind} {case.seed} is called {verdict.class_}: {verdict.evidence}")


def of_clip(folder: Path, name: str, flow: Flow) -> None:
    """One candidate every 2 s of the first 40 s."""
    file = VideoFile(str(folder), name)
    end = min(probe(file).duration_s or MOST_S, MOST_S)
    frames = read_frames(file, list(np.arange(0, end, EVERY_S)), 256, SHORT_S, 256)
    rule, before = MotionRule(), None
    print(f"\n{name}")
    for frame in frames:
        if frame.rgb is None or frame.timestamp_s is None:
            print(f"  not decoded: {frame.error}")
            continue
        short = across = None
        if frame.partner is not None and (frame.partner_s or 0) > frame.timestamp_s:
            gap = (frame.partner_s or 0) - frame.timestamp_s
            short = pair_of(frame.rgb, frame.partner, gap, flow)
        if before is not None and before.rgb is not None:
            across = pair_of(before.rgb, frame.rgb, frame.timestamp_s - before.timestamp_s, flow)
        verdict = rule.classify(short, across)
        print(f"  {frame.timestamp_s:6.2f} s  {verdict.class_:7} {verdict.evidence}")
        before = frame


def pair_of(first: np.ndarray, second: np.ndarray, gap_s: float, flow: Flow) -> Pair:
    one = flow.resize(first)
    two = flow.resize(second, one.shape[:2])
    (field,) = flow.flow([(one, two)])
    assert field is not None
    return Pair(one, two, field, gap_s)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    made = cases("report")
    print(f"{len(made)} cases of {len(KINDS)} kinds")
    for method in ("raft_small", "dis", "farneback"):
        of_cases(made, Flow(method=method))
    if len(sys.argv) > 2:
        first = sorted({case.seed for case in made})[:FEW]
        few = [case for case in made if case.seed in first]
        of_cases(few, Flow(method="raft_small"))
        of_cases(few, Flow(method="raft_large", weights=sys.argv[2]))
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        for path in sorted(folder.iterdir()):
            of_clip(folder, path.name, Flow())


if __name__ == "__main__":
    main()
