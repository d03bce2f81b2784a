#!/usr/bin/env bash
# Check and measure training steps on a GPU: needs torch, triton and numpy. Results: $OUT/gpu.json, or ./gpu.json.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=. TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/triton-gpu}"
folder="${OUT:-.}"
timeout -k 5 280 python3 -m benchmarks.gpu.run 2>&1 | tee "$folder/gpu.log"
exit "${PIPESTATUS[0]}"
