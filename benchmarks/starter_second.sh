#!/usr/bin/env bash
# The starter's second training: the members of the first, trained further, also on scans that show the pelvis.
#
#   benchmarks/starter_second.sh COHORT MEMBERS OUT
#
# COHORT: the 212 digital patients of the first training (docs/starter.md), which are used again.
# MEMBERS: folder with homogenized.safetensors and plain.safetensors, its members, before they were joined.
# OUT/starter.safetensors is the result, without its model card and without intervals of volumes.
# Two trainings of about 50 minutes of one CPU core each; run again to continue.
set -euo pipefail
cohort=$1 members=$2 out=$3
kidseg=${KIDSEG:-kidseg}
seed=20261128
export OMP_NUM_THREADS=1
mkdir -p "$out"

[[ -e $out/trunk/dataset.json ]] || $kidseg phantom "$out/trunk" --patients 120 --ages 0-90 --size 224 \
  --seed $seed --set "slice_mm=[3.0,5.0]" --set trunk_share=1.0 --jobs 2
if [[ ! -e $out/both/dataset.json ]]; then
  mkdir -p "$out"/both/{imagesTr,labelsTr}
  head -n 1 "$cohort/patients.csv" >"$out/both/patients.csv"
  for part in "$cohort 212 0" "$out/trunk 120 1000"; do
    read -r source count first <<<"$part"
    for ((k = 0; k < count; k++)); do
      old=$(printf 'phantom_%04d' $k) new=$(printf 'phantom_%04d' $((k + first)))
      cp "$source/imagesTr/${old}_0000.nii.gz" "$out/both/imagesTr/${new}_0000.nii.gz"
      cp "$source/labelsTr/$old.nii.gz" "$out/both/labelsTr/$new.nii.gz"
      grep "^$old," "$source/patients.csv" | sed "s/$old/$new/g" >>"$out/both/patients.csv"
    done
  done
  sed 's/"numTraining": [0-9]*/"numTraining": 332/' "$cohort/dataset.json" >"$out/both/dataset.json"
fi
[[ -e $out/store/store.json ]] ||
  $kidseg store "$out/both" -o "$out/store" --method homogenized --preset starter --seed $seed --jobs 2
for method in homogenized plain; do
  run=$out/run-$method
  if [[ -e $run/summary.json ]]; then continue; fi
  if [[ -e $run/state-segment-before.safetensors ]]; then
    $kidseg train "$out/store" -o "$run" --resume
  else
    $kidseg train "$out/store" -o "$run" --overwrite --method $method --preset starter --seed $seed \
      --from "$members/$method.safetensors" --set segment.epochs=5 --set segment.steps=1000 \
      --set segment.optimizer.learning_rate=0.001
  fi
done
$kidseg ensemble "$out/run-homogenized" "$out/run-plain" -o "$out/ensemble.safetensors" --half --flip --overwrite
[[ -e $out/calibration/dataset.json ]] || $kidseg phantom "$out/calibration" --patients 24 --ages 0-90 \
  --size 256 --seed 4711 --set "slice_mm=[2.0,5.0]" --set window_share=0.5
cases=()
for k in 02 03 05 08 11 12 13 17 19 21; do cases+=(--case "phantom_00$k"); done # the ten with fewest voxels
$kidseg calibrate "$out/ensemble.safetensors" "$out/calibration" -o "$out/calibrated.safetensors" \
  "${cases[@]}" --overwrite
$kidseg ensemble "$out/calibrated.safetensors" -o "$out/starter.safetensors" --lone-tumour-ml 100 --overwrite
