#!/usr/bin/env bash
# A Ray cluster inside one Slurm job, and a recipe on it:
#   sbatch --nodes 8 --exclusive infra/deploy/slurm.sh curate web.yaml workspace=s3://bucket/web
# Run it from the checkout, whose .venv every node must see. Arguments are those of `nextscale`.
#SBATCH --job-name nextscale
#SBATCH --ntasks-per-node 1
set -euo pipefail

command=$1; recipe=$2; shift 2
bin=$PWD/.venv/bin
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=6379
# Nodes of one job share a secret of their own, so that nobody else can join.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')

srun --nodes 1 --ntasks 1 --nodelist "$head" \
  "$bin/ray" start --head --port "$port" --include-dashboard false --block &
"$bin/python" - "$head" "$port" <<'PYTHON'
import socket, sys, time
for _ in range(120):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
        break
    except OSError:
        time.sleep(1)
else:
    sys.exit(f"the Ray head on {sys.argv[1]} did not come up in two minutes")
PYTHON
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes $((SLURM_JOB_NUM_NODES - 1)) --ntasks $((SLURM_JOB_NUM_NODES - 1)) --exclude "$head" \
    "$bin/ray" start --address "$head:$port" --block &
fi
"$bin/nextscale" "$command" "$recipe" "$@" --ray "$head:$port"
