#!/usr/bin/env bash
# Measures everything on this machine's GPU in at most six minutes, without installing anything:
#   bash benchmarks/gpu.sh OUTDIR [--quick] [--minutes M] [--device cpu] [--parts facts,tokens]
# OUTDIR/gpu.md and gpu.json are written anew after every result. See docs/performance.md.
set -euo pipefail
out="${1:?usage: bash benchmarks/gpu.sh OUTDIR [--quick] [--minutes M]}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
shift
cd "$(dirname "$0")/.."
export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"  # as `fourm generate` sets it
exec "${PYTHON:-python3}" -m benchmarks.gpu "$out" "$@"
