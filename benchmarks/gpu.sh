#!/usr/bin/env bash
# Test and measure training steps on a GPU. Needs distrec[triton]; writes $OUT/gpu.json and gpu.log, or ./. Some six minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/triton-gpu}"
log="${OUT:-.}/gpu.log"
timeout -k 5 100 python3 -m pytest -q -p no:cacheprovider tests/training/test_device_steps.py tests/kernels/test_triton_rows.py \
  tests/kernels/test_triton_pair_scores.py -k "not compiles_for" 2>&1 | cut -c1-300 | tee "$log"
tests=${PIPESTATUS[0]}
timeout -k 5 450 python3 -m benchmarks.gpu.run "$@" 2>&1 | grep -v " INFO " | tee -a "$log"
exit $((tests + PIPESTATUS[0]))
