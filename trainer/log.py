"""What a step reports in one JSON line: speed, and losses by modality, scale, task and source."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from infra.schedules import MAX_SCALES
from trainer.batch import Label, PackTensors
from trainer.loss import TokenLoss

_BINS = MAX_SCALES + 1  # text, then the scales


@dataclass(frozen=True)
class Share:
    """The positions with a target of one task or source: what they add to the step's loss."""

    num_targets: int
    loss: float  # weighted mean
    accuracy: float


@dataclass(frozen=True)
class StepLog:
    """One step over all ranks and micro-batches. Losses are nats; None where nothing was there."""

    step: int  # 1-based
    loss: float  # what was minimised: weighted mean over all positions with a target
    text_loss: float | None
    vision_loss: float | None  # weighted by equation 2
    text_accuracy: float | None
    scale_losses: list[float | None]  # unweighted mean of scales 1 .. 18
    scale_accuracies: list[float | None]
    tasks: dict[str, Share]
    sources: dict[str, Share]
    gradient_norm: float
    learning_rate: float
    num_tokens: int  # positions T of the step's packs
    tokens_per_s: float
    duration_s: float
    data_s: float  # of them waiting for packs, on the first rank
    mfu: float | None  # model FLOPs (nothing recomputed) over `peak_tflops` of all ranks
    packs_consumed: int


class StepTotals:
    """Sums per modality and scale over a step, on the device until the step's end."""

    def __init__(self, device: torch.device) -> None:
        # rows: count, weight, weight x loss, loss, correct; columns: text, scales, or a label
        self.sums = torch.zeros(5, _BINS, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(1, dtype=torch.float64, device=device)
        self.by_label: dict[Label, Tensor] = {}

    def add(self, pack: PackTensors, result: TokenLoss) -> None:
        loss = result.cross_entropy.double()
        weight = pack.weights.double()
        rows = torch.stack(
            [torch.ones_like(loss), weight, weight * loss, loss, result.correct.double()]
        )
        self.sums.index_add_(1, pack.loss_scale, rows)
        self.tokens += pack.num_tokens
        if pack.labels:
            documents = rows.new_zeros(len(rows), len(pack.labels))
            documents.index_add_(1, pack.loss_document, rows)
            for label, sums in zip(pack.labels, documents.T, strict=True):
                self._add_label(label, sums)

    def _add_label(self, label: Label, sums: Tensor) -> None:
        before = self.by_label.get(label)
        self.by_label[label] = sums if before is None else before + sums

    def reduce(self) -> "StepTotals":
        """Sum over the ranks."""
        for values in (self.sums, self.tokens):
            torch.distributed.all_reduce(values)
        mine = {label: sums.cpu() for label, sums in self.by_label.items()}
        # Which labels there are differs from rank to rank and from step to step.
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, mine)
        self.by_label = {}
        for rank in ranks:
            for label, sums in rank.items():
                self._add_label(label, sums)
        return self

    def log(
        self,
        *,
        step: int,
        packs_consumed: int,
        duration_s: float,
        data_s: float,
        gradient_norm: float,
        learning_rate: float,
        mfu: float | None = None,
    ) -> StepLog:
        count, weight, weighted, loss, correct = self.sums.cpu()
        means, accuracies = _ratios(loss, count), _ratios(correct, count)
        num_tokens = int(self.tokens)
        return StepLog(
            step=step,
            loss=_ratios(weighted.sum()[None], weight.sum()[None])[0] or 0.0,
            text_loss=means[0],
            vision_loss=_ratios(weighted[1:].sum()[None], weight[1:].sum()[None])[0],
            text_accuracy=accuracies[0],
            scale_losses=means[1:],
            scale_accuracies=accuracies[1:],
            tasks=self._shares(0),
            sources=self._shares(1),
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            num_tokens=num_tokens,
            tokens_per_s=num_tokens / duration_s,
            duration_s=duration_s,
            data_s=data_s,
            mfu=mfu,
            packs_consumed=packs_consumed,
        )

    def _shares(self, part: Literal[0, 1]) -> dict[str, Share]:
        """By the tasks, or by the sources, that have a target in this step."""
        found: dict[str, Tensor] = {}
        for label, sums in sorted(self.by_label.items()):
            name = label[part]
            found[name] = found[name] + sums if name in found else sums
        shares = {}
        for name, sums in found.items():
            count, weight, weighted, _, correct = sums.tolist()
            if count:
                shares[name] = Share(int(count), weighted / weight, correct / count)
        return shares


def _ratios(sums: Tensor, counts: Tensor) -> list[float | None]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [total / count if count else None for total, count in pairs]


def append(path: Path, entry: StepLog) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry)) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after ``step``, which a resumed run writes again, and one torn by a kill."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)
