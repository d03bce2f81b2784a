#!/usr/bin/env bash
# Check and measure training steps that stay on a GPU. Needs distrec[triton]; writes $OUT/gpu.json and gpu.log, or ./.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/triton-gpu}"
timeout -k 5 280 python3 -m benchmarks.gpu.run 2>&1 | tee "${OUT:-.}/gpu.log"
exit "${PIPESTATUS[0]}"
