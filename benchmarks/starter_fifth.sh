#!/usr/bin/env bash
# The starter's fifth training: the members of its fifth version, trained further, between neighbouring slices and with organs
# beside the kidneys.
#
#   benchmarks/starter_fifth.sh FOURTH OUT
#
# FOURTH: the result of starter_fourth.sh, whose cohorts and store are used again.
# OUT/starter.safetensors is the result, without its model card.
# Four trainings of about 30 minutes of one CPU core each; run again to continue.
set -euo pipefail
fourth=$1 out=$2
kidseg=${KIDSEG:-kidseg} here=$(dirname "${BASH_SOURCE[0]}")
seed=20261203
settings=(cohort.label_share=0.25 cohort.small_share=0.25 reach=2 apart_mm=5)
export OMP_NUM_THREADS=1
mkdir -p "$out/first"

"$here/starter_further.sh" "$fourth/store" "$out/first" 20261202 3 "$fourth/starter.safetensors" \
  "$fourth/starter.safetensors" "${settings[@]}"
[[ -e $out/new/dataset.json ]] || $kidseg phantom "$out/new" --patients 150 --ages 0-90 --size 256 --seed $seed \
  --set "slice_mm=[2.0,5.0]" --set neighbour_share=0.75 --set displaced_share=0.2 --set trunk_share=0.3 --jobs 2
"$here/join_cohorts.sh" "$out/both" "$fourth/both 100 0" "$fourth/new 50 260" "$out/new 150 310"
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/both" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
"$here/starter_further.sh" "$out/store" "$out" $seed 3 "$out/first/run-homogenized" "$out/first/run-plain" \
  "${settings[@]}"
"$here/starter_finish.sh" "$out/run-homogenized" "$out/run-plain" "$out" 10
