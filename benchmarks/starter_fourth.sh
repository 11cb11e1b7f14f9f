#!/usr/bin/env bash
# The starter's fourth training: the members of its fourth version, trained further, with more small sections and healthy patients;
# the fifth version is the mean of the weights before and after.
#
#   benchmarks/starter_fourth.sh THIRD OUT
#
# THIRD: the result of starter_third.sh, whose cohort is used again.
# OUT/starter.safetensors is the result, without its model card.
# Two trainings of about 40 minutes of one CPU core each; run again to continue.
set -euo pipefail
third=$1 out=$2
kidseg=${KIDSEG:-kidseg} python=${PYTHON:-python} here=$(dirname "${BASH_SOURCE[0]}")
seed=20261201
export OMP_NUM_THREADS=1
mkdir -p "$out/mean"

[[ -e $out/new/dataset.json ]] || $kidseg phantom "$out/new" --patients 150 --ages 0-90 --size 256 \
  --seed $seed --set "slice_mm=[2.0,5.0]" --set trunk_share=0.3 --set tumour_share=0.4 --jobs 2
"$here/join_cohorts.sh" "$out/both" "$third/cohort 260 0" "$out/new 150 260"
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/both" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
"$here/starter_further.sh" "$out/store" "$out" $seed 4 "$third/starter.safetensors" "$third/starter.safetensors" \
  cohort.label_share=0.25 cohort.small_share=0.25
for method in homogenized plain; do
  $python "$here/starter_between.py" "$third/run-$method" "$out/run-$method" \
    -o "$out/mean/$method.safetensors" --overwrite
done
"$here/starter_finish.sh" "$out/mean/homogenized.safetensors" "$out/mean/plain.safetensors" "$out" 10
