#!/usr/bin/env bash
# The starter's fourth training: the members of its fourth version, trained further, with more small sections and healthy patients.
#
#   benchmarks/starter_fourth.sh STARTER COHORT OUT
#
# STARTER: the fourth version, src/kidseg/models/starter.safetensors of commit 0fd0332.
# COHORT: the 260 digital patients of the third training, which are used again.
# OUT/starter.safetensors is the result, without its model card.
# Two trainings of about 45 minutes of one CPU core each; run again to continue.
set -euo pipefail
starter=$1 cohort=$2 out=$3
kidseg=${KIDSEG:-kidseg} here=$(dirname "${BASH_SOURCE[0]}")
seed=20261201
export OMP_NUM_THREADS=1
mkdir -p "$out"

[[ -e $out/new/dataset.json ]] || $kidseg phantom "$out/new" --patients 150 --ages 0-90 --size 256 \
  --seed $seed --set "slice_mm=[2.0,5.0]" --set trunk_share=0.3 --set tumour_share=0.4 --jobs 2
"$here/join_cohorts.sh" "$out/both" "$cohort 260 0" "$out/new 150 260"
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/both" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
"$here/starter_further.sh" "$out/store" "$out" $seed 4 "$starter" "$starter" \
  cohort.label_share=0.25 cohort.small_share=0.25
"$here/starter_finish.sh" "$out/run-homogenized" "$out/run-plain" "$out" 10
