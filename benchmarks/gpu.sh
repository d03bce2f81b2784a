#!/usr/bin/env bash
# Test and measure training steps on a GPU. Needs distrec[triton], and Gowalla in $DISTREC_DATA/gowalla. Some eight minutes.
# Writes gpu.json, gpu.log and tests.xml into $OUT, or into this folder.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/triton-gpu}"
log="${OUT:-.}/gpu.log"
timeout -s INT -k 10 180 python3 -m pytest -q -p no:cacheprovider --junitxml="${OUT:-.}/tests.xml" tests/training/test_device_steps.py \
  tests/training/test_gpu.py tests/kernels/test_triton_optimizer.py tests/kernels/test_triton_rows.py tests/kernels/test_triton_pair_scores.py \
  -k "not compiles_for and not through_ray" 2>&1 | stdbuf -oL cut -c1-300 | tee "$log"
tests=${PIPESTATUS[0]}
timeout -k 5 400 python3 -m benchmarks.gpu.run "$@" 2>&1 | grep --line-buffered -v " INFO " | tee -a "$log"
exit $((tests + PIPESTATUS[0]))
