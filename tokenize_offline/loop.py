"""The loop over the steps of all stages: learn, report, save, go on where a run was stopped.

A step takes ``gradient_accumulation`` passes on every process, averages the gradients over all of
them and moves once: AdamW with a short warm-up and a cosine down to a fiftieth. On the CPU a
continued run gives, bit for bit, the weights of an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch

from infra.config import ConfigError
from tokenize_offline import training_log, training_state
from tokenize_offline.batches import ahead
from tokenize_offline.draws import Batch, StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Pictures
from tokenize_offline.preparation import prepare
from tokenize_offline.stages import STAGES, Log, Stages
from tokenize_offline.training_log import StepSums
from tokenize_offline.training_recipe import TrainTokenizer
from tokenize_offline.usage import shares

Look = Callable[[Tokenizer, str, int], None]
"""Called on every rank after every step with (tokenizer, stage, steps taken in it)."""


class Loop:
    """All stages over one set of pictures."""

    def __init__(
        self, recipe: TrainTokenizer, stages: Stages, pictures: Pictures, look: Look, log: Log
    ) -> None:
        self.recipe, self.stages, self.pictures = recipe, stages, pictures
        self.look, self.log = look, log
        self.learning, self.ranks = recipe.learning, stages.ranks
        self._start, self._before = time.monotonic(), 0.0
        self._state: dict[str, Any] | None = None  # to go on from

    @property
    def seconds(self) -> float:
        """Since the training's first start, without the time that it was stopped for."""
        return self._before + time.monotonic() - self._start

    def train(self, settings: Mapping[str, Any]) -> Tokenizer:
        """From the state in the recipe's folder, or from the start, to the end.

        ``settings`` are what a state must agree with. Raises ConfigError for one that does not, and
        when the losses are no numbers any more.
        """
        with self.ranks.together():
            state = training_state.load(self.recipe.folder, settings)
        stage, step = (state["stage"], state["step"]) if state else (STAGES[0], 0)
        if not self.ranks.agree(1_000_000_000 * STAGES.index(stage) + step):
            raise ConfigError(
                f"not every process sees the same state in {self.recipe.folder}: "
                "put output on a file system that all nodes share"
            )
        with self.ranks.together():
            if self.ranks.first:
                training_log.keep_until(self.recipe.log_path, STAGES, stage, step)
        if state:
            self._before = state["seconds"]
            self.log(f"going on after step {step} of {stage}")
        self._state = state
        del state  # it is as large as the networks and their moments
        for name in STAGES[STAGES.index(stage) :]:
            self._stage(name, settings)
        return self.stages.tokenizer.requires_grad_(False).eval()

    def _begin(self, stage: str) -> tuple[torch.optim.Optimizer, int]:
        """Prepare the stage, or take up its state; the optimiser, and how many steps are done."""
        state, self._state = self._state, None
        if state is None:
            prepare(self.stages, stage, self.pictures, self.log, self.recipe.read_ahead)
        else:
            self.stages.load_state_dict(stage, state["networks"])
        groups = self.stages.trained(stage)
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        if state is None:
            return optimiser, 0
        optimiser.load_state_dict(state["optimiser"])
        return optimiser, state["step"]

    def _stage(self, stage: str, settings: Mapping[str, Any]) -> None:
        recipe, steps = self.recipe, self.learning.steps_of(stage)
        optimiser, start = self._begin(stage)
        if start:  # what a kill kept from being looked at after the state was saved
            self.look(self.stages.tokenizer, stage, start)
        sums = StepSums()
        with closing(self._batches(stage, start, steps)) as batches:
            for step in range(start, steps):
                self._step(stage, step, batches, optimiser, sums)
                taken = step + 1
                save = taken == steps or recipe.saves(stage, taken)
                report = save or taken % recipe.log_every == 0
                if report:
                    self._report(stage, taken, sums)
                if save:
                    self._save(stage, taken, settings, optimiser)
                self.look(self.stages.tokenizer, stage, taken)  # takes long, and may be killed
                if report:
                    sums = StepSums()  # its clock starts now

    def _save(
        self,
        stage: str,
        step: int,
        settings: Mapping[str, Any],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.stages.share_used()
        if not self.ranks.first:
            return
        state = {
            "settings": settings,
            "stage": stage,
            "step": step,
            "seconds": self.seconds,
            "networks": self.stages.state_dict(),
            "optimiser": optimiser.state_dict(),
        }
        training_state.save(self.recipe.folder, state)

    def _step(
        self,
        stage: str,
        step: int,
        batches: Iterator[Batch],
        optimiser: torch.optim.Optimizer,
        sums: StepSums,
    ) -> None:
        stages, passes = self.stages, self.learning.gradient_accumulation
        rate = learning_rate(self.learning, stage, step)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for _ in range(passes):
            batch = next(batches).to(self.ranks.device)
            losses = stages.losses(stage, batch)
            torch.autograd.backward(torch.stack(list(losses.values())).sum() / passes)
            sums.add(losses)
            sums.pictures += len(batch.numbers) * self.ranks.size
        self.ranks.average_gradients(parameters)
        sums.add({"gradient_norm": torch.nn.utils.clip_grad_norm_(parameters, 1.0)})
        optimiser.step()
        optimiser.zero_grad()
        if stages.critic:
            stages.critic.step()
        # Not after the last step: what starts again then would never be trained.
        again = (step + 1) % self.learning.restart_every == 0
        if stage == "joint" and again and step + 1 < self.learning.steps_of(stage):
            stages.restart_dead_codes(batch, self.log)

    def _batches(self, stage: str, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's batches of the steps, read ahead by threads."""
        ranks, passes = self.ranks, self.learning.gradient_accumulation

        def make(number: int) -> Batch:
            step, turn = divmod(number, passes)
            draws = StepDraws(self.learning, stage, step)
            part = turn * ranks.size + ranks.rank
            return draws.batch(self.pictures, part, dropout=stage == "joint")

        yield from ahead(make, start * passes, stop * passes, self.recipe.read_ahead)

    def _report(self, stage: str, step: int, sums: StepSums) -> None:
        """A line for people and a line in the log, over the steps since the last ones."""
        ranks, recipe, stages = self.ranks, self.recipe, self.stages
        seconds = time.monotonic() - sums.start
        means = dict(zip(sums.names, ranks.mean(sums.means()).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            raise ConfigError(
                f"the losses of {stage} are no numbers any more at step {step}: lower "
                f"learning.learning_rate and remove {recipe.folder}"
            )
        counts = ranks.total(stages.counts)
        stages.counts.zero_()
        if not ranks.first:
            return
        entry = {
            "stage": stage,
            "step": step,
            "gradient_norm": means.pop("gradient_norm"),
            "losses": means,
            "learning_rate": learning_rate(self.learning, stage, step - 1),
            "pictures_per_s": round(sums.pictures / seconds, 2),
        }
        if stage != "branches":
            used = shares(counts)
            entry |= {"usage": used.share, "perplexity": used.perplexity}
        training_log.append(recipe.log_path, entry)
        told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        steps = self.learning.steps_of(stage)
        rate = sums.steps / seconds
        self.log(f"{stage} {step}/{steps}: {told} ({rate:.1f} steps/s)")


def learning_rate(learning: Learning, stage: str, step: int) -> float:
    """Of the steps 0, 1, ...: a linear warm-up times a cosine from 1 down to a fiftieth."""
    peak = learning.learning_rate * (1.0 if stage == "branches" else 0.5)
    warm = min(1.0, (step + 1) / max(1, learning.warmup_steps))
    return peak * warm * (0.51 + 0.49 * math.cos(math.pi * step / learning.steps_of(stage)))
