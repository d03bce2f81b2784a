#!/usr/bin/env bash
# Test and measure training steps on a GPU. Needs distrec[triton]; writes $OUT/gpu.json and gpu.log, or ./. Some six minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/triton-gpu}"
{
  timeout -k 5 100 python3 -m pytest -q -p no:cacheprovider tests/training/test_device_steps.py tests/kernels/test_triton_rows.py \
    tests/kernels/test_triton_pair_scores.py -k "not compiles_for" | cut -c1-300
  timeout -k 5 300 python3 -m benchmarks.gpu.run "$@" 2> >(grep -v "INFO\|Warn" >&2)
} 2>&1 | tee "${OUT:-.}/gpu.log"
exit "${PIPESTATUS[0]}"
