#!/usr/bin/env bash
# Speed of training and sampling on a GPU, as a table: nothing is built, downloaded or written but the rows, and all of it
# takes under eight minutes, because every part ends after the seconds beside it.
#
#     benchmarks/gpu.sh                         DEVICE=cpu SIZE=tiny benchmarks/gpu.sh      (anywhere, in minutes)
#
# PYTHON: the interpreter of an environment with openedm. ROWS: a file for the rows. SLOW: how many times as long parts may
# take, for a machine that is busy.
set -u
cd "$(dirname "$0")/.."
export DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-full} PYTHON=${PYTHON:-python}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Kernels are compiled into a folder of their own: a part that is ended would leave incomplete ones to other programs.
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d) && export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT
ROWS=${ROWS:-$(mktemp --suffix .jsonl)}
: > "$ROWS"
measure() {
    timeout $(($1 * ${SLOW:-1})) "$PYTHON" -m benchmarks.gpu "$2" --device "$DEVICE" --size "$SIZE" --rows "$ROWS" || echo "$2: failed"
}
measure 20 peak
measure 40 train-contiguous
measure 40 train
measure 40 train-bf16
measure 155 train-compiled
measure 40 sample
measure 30 sample-bf16
measure 95 sample-graphs
echo "rows: $ROWS"
"$PYTHON" -m benchmarks.gpu table --rows "$ROWS"
