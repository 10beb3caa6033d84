"""The plan on disk: a run that was killed, however often, goes on to the same bytes."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

from infra.segments import Text
from infra.storage import Storage
from packing.cost import Coefficients
from packing.plan import Packing
from pipelines.pack_tokens import PackComponent, PackPhase, write_packs

ROOT = Path(__file__).parents[2]
RUN = """
import os, pickle, signal, sys
from infra.storage import Storage
from pipelines import manifest, plan_packs, write_shards
from pipelines.pack_tokens import write_packs

manifest.PART_ROWS, plan_packs.PLAN_PART_ROWS, write_shards.PACKS_PER_SHARD = sizes = 30, 64, 8
storage, phase = pickle.load(open(sys.argv[1], "rb"))
write, left = Storage.write, [0]

def dies(self, relative, data):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, relative, data)

Storage.write, status, runs = dies, signal.SIGKILL, 0
while status == signal.SIGKILL:
    runs += 1
    child = os.fork()  # nothing runs yet here: every run has all of its threads to itself
    if not child:
        left[0] = runs
        write_packs(storage, phase)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(status, runs)
"""


def test_runs_that_are_killed_again_and_again_end_in_the_same_bytes(
    tmp_path, token_table, monkeypatch
):
    """SIGKILL in front of the first write, then in front of the second that is left, and so on."""

    def phase_in(folder):
        storage, rng = Storage(str(tmp_path / folder)), np.random.default_rng(0)
        components = []
        for name, size, share in (("a-256", 150, 2.0), ("b-256", 80, 3.0)):
            texts = {
                f"{name}{i:03d}": ("text", [Text(rng.integers(0, 100, int(rng.integers(1, 60))))])
                for i in range(size)
            }
            tokens = token_table(storage, name, texts, part_rows=20)
            components.append(PackComponent(name, tokens, share=share, max_epochs=2))
        packing = Packing(tokens_per_pack=100, window=50)
        return storage, PackPhase("all", tuple(components), packing, Coefficients(1, 0.01, 0.5))

    def content(storage, phase):
        found = [path for path, _, _ in storage.find(phase.folder)]
        return {path: storage.read(path) for path in [*found, f"{phase.table}/_table.json"]}

    storage, phase = phase_in("whole")
    monkeypatch.setattr("pipelines.manifest.PART_ROWS", 30)
    monkeypatch.setattr("pipelines.plan_packs.PLAN_PART_ROWS", 64)
    monkeypatch.setattr("pipelines.write_shards.PACKS_PER_SHARD", 8)
    write_packs(storage, phase)
    whole = content(storage, phase)
    names = [path.rpartition("/")[2] for path in whole]
    assert sum(name.startswith("part-") for name in names) > 2
    assert sum(name.startswith("shard-") for name in names) > 5
    assert len(names) == sum(name.startswith(("part-", "shard-")) for name in names) + 3

    killed, phase = phase_in("killed")
    job, script = tmp_path / "job", tmp_path / "run.py"
    job.write_bytes(pickle.dumps((killed, phase)))
    script.write_text(RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(job)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    status, runs = map(int, done.stdout.split())
    assert (status, runs > 5) == (0, True)
    assert content(killed, phase) == whole
