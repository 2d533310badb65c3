#!/bin/sh
# Where a machine with GPUs stands, in about ten minutes:
#     sh benchmarks/gpu.sh > benchmarks/results/gpu.md
# Without a GPU, or with --cpu, it runs its other half: small models, and what a CPU can show.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu.py "$@"
