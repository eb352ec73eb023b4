#!/usr/bin/env bash
# Measures everything on this machine's GPU in at most six minutes, without installing anything:
#   bash benchmarks/gpu.sh OUTDIR [--quick] [--minutes M] [--device cpu] [--parts facts,tokens]
# or a part of it for a revision (or a folder with its files) and for these files, in at most eight:
#   bash benchmarks/gpu.sh --compare REVISION OUTDIR [the same options]
# OUTDIR/gpu.md and gpu.json are written anew after every result. See docs/performance.md.
set -euo pipefail
usage="usage: bash benchmarks/gpu.sh [--compare REVISION] OUTDIR [--quick] [--minutes M]"
command=(benchmarks.gpu)
if [ "${1:-}" = --compare ]; then
  old="${2:?$usage}"
  [ ! -d "$old" ] || old="$(cd "$old" && pwd)"
  command=(benchmarks.gpu.against "$old")
  shift 2
fi
out="${1:?$usage}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
shift
cd "$(dirname "$0")/.."
export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"  # as `fourm generate` sets it
exec "${PYTHON:-python3}" -m "${command[@]}" "$out" "$@"
