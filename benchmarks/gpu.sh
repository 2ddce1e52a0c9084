#!/bin/sh
# Measure everything on the GPU, from a checkout, into results/gpu-NAME.json: benchmarks/gpu.sh [--quick] [...]
# The packages of pyproject.toml must be there, torch with CUDA; for torchdistill: pip install --group benchmark
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
name=$("$python" -c 'import re, torch; print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
exec "$python" benchmarks/run.py --device cuda --out "benchmarks/results/gpu-$name.json" "$@"
