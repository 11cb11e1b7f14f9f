#!/usr/bin/env bash
# The starter's second training: the members of the first, trained further, also on scans that show the pelvis.
#
#   benchmarks/starter_second.sh COHORT MEMBERS OUT
#
# COHORT: the 212 digital patients of the first training (docs/starter.md), which are used again.
# MEMBERS: folder with homogenized.safetensors and plain.safetensors, its members, before they were joined.
# OUT/starter.safetensors is the result, without its model card.
# Two trainings of about 50 minutes of one CPU core each; run again to continue.
set -euo pipefail
cohort=$1 members=$2 out=$3
kidseg=${KIDSEG:-kidseg} here=$(dirname "${BASH_SOURCE[0]}")
seed=20261128
export OMP_NUM_THREADS=1
mkdir -p "$out"

[[ -e $out/trunk/dataset.json ]] || $kidseg phantom "$out/trunk" --patients 120 --ages 0-90 --size 224 \
  --seed $seed --set "slice_mm=[3.0,5.0]" --set trunk_share=1.0 --jobs 2
"$here/join_cohorts.sh" "$out/both" "$cohort 212 0" "$out/trunk 120 1000"
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/both" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
"$here/starter_further.sh" "$out/store" "$out" $seed 5 "$members/homogenized.safetensors" "$members/plain.safetensors"
"$here/starter_finish.sh" "$out/run-homogenized" "$out/run-plain" "$out"
