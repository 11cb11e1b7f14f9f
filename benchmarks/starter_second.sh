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
kidseg=${KIDSEG:-kidseg}
seed=20261128
export OMP_NUM_THREADS=1
mkdir -p "$out"

# join JOINED "COHORT COUNT FIRST" ...: one cohort of the first COUNT patients of each, numbered from FIRST.
join() {
  local joined=$1 part source count first k old new total=0
  shift
  if [[ -e $joined/dataset.json ]]; then return; fi
  mkdir -p "$joined"/{imagesTr,labelsTr}
  head -n 1 "${1%% *}/patients.csv" >"$joined/patients.csv"
  for part in "$@"; do
    read -r source count first <<<"$part"
    for ((k = 0; k < count; k++)); do
      old=$(printf 'phantom_%04d' $k) new=$(printf 'phantom_%04d' $((k + first)))
      cp "$source/imagesTr/${old}_0000.nii.gz" "$joined/imagesTr/${new}_0000.nii.gz"
      cp "$source/labelsTr/$old.nii.gz" "$joined/labelsTr/$new.nii.gz"
      grep "^$old," "$source/patients.csv" | sed "s/$old/$new/g" >>"$joined/patients.csv"
    done
    total=$((total + count))
  done
  sed "s/\"numTraining\": [0-9]*/\"numTraining\": $total/" "$source/dataset.json" >"$joined/dataset.json"
}

[[ -e $out/trunk/dataset.json ]] || $kidseg phantom "$out/trunk" --patients 120 --ages 0-90 --size 224 \
  --seed $seed --set "slice_mm=[3.0,5.0]" --set trunk_share=1.0 --jobs 2
join "$out/both" "$cohort 212 0" "$out/trunk 120 1000"
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
$kidseg ensemble "$out/calibrated.safetensors" -o "$out/alone.safetensors" --lone-tumour-ml 100 --overwrite
for part in 99:6007 90:6011; do
  [[ -e $out/${part#*:}/dataset.json ]] || $kidseg phantom "$out/${part#*:}" --patients ${part%:*} --ages 0-90 \
    --size 256 --seed ${part#*:} --set "slice_mm=[3.0,5.0]" --set window_share=0.5
done
join "$out/intervals" "$out/6007 99 0" "$out/6011 90 1000"
$kidseg calibrate "$out/alone.safetensors" "$out/intervals" -o "$out/starter.safetensors" --intervals \
  --scans "digital patients" --overwrite
