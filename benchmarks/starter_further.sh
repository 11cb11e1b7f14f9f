#!/usr/bin/env bash
# Trains both members of a starter further, one after the other; run again to continue.
#
#   benchmarks/starter_further.sh STORE OUT SEED EPOCHS HOMOGENIZED PLAIN [SETTING ...]
#
# HOMOGENIZED, PLAIN: the models to start from, or twice an ensemble with both. Epochs are of 1,000 steps.
# SETTING: a further one, such as cohort.small_share=0.25.
# OUT/run-homogenized and OUT/run-plain are the results.
set -euo pipefail
store=$1 out=$2 seed=$3 epochs=$4
declare -A start=([homogenized]=$5 [plain]=$6)
shift 6
settings=()
for setting in "$@"; do settings+=(--set "$setting"); done
kidseg=${KIDSEG:-kidseg}
export OMP_NUM_THREADS=1

for method in homogenized plain; do
  run=$out/run-$method
  if [[ -e $run/summary.json ]]; then continue; fi
  if [[ -e $run/state-segment-before.safetensors ]]; then
    $kidseg train "$store" -o "$run" --resume
  else
    $kidseg train "$store" -o "$run" --overwrite --method $method --preset starter --seed "$seed" \
      --from "${start[$method]}" --set segment.epochs="$epochs" --set segment.steps=1000 \
      --set segment.optimizer.learning_rate=0.001 "${settings[@]}"
  fi
done
