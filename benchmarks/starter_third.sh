#!/usr/bin/env bash
# The starter's third training: the members of its third version, trained further, also on kidneys that a tumour has moved.
#
#   benchmarks/starter_third.sh STARTER OUT
#
# STARTER: the third version, src/kidseg/models/starter.safetensors of commit 3415f96.
# OUT/starter.safetensors is the result, without its model card.
# Two trainings of about 40 minutes of one CPU core each; run again to continue.
set -euo pipefail
starter=$1 out=$2
kidseg=${KIDSEG:-kidseg} here=$(dirname "${BASH_SOURCE[0]}")
seed=20261130
export OMP_NUM_THREADS=1
mkdir -p "$out"

[[ -e $out/cohort/dataset.json ]] || $kidseg phantom "$out/cohort" --patients 260 --ages 0-90 --size 256 \
  --seed $seed --set "slice_mm=[2.0,5.0]" --set trunk_share=0.4 --set displaced_share=0.7 --jobs 2
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/cohort" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
"$here/starter_further.sh" "$out/store" "$out" $seed 4 "$starter" "$starter"
"$here/starter_finish.sh" "$out/run-homogenized" "$out/run-plain" "$out"
