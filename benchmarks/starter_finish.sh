#!/usr/bin/env bash
# From two trained members to the starter: joined, calibrated, without lone tumours, with intervals of volumes.
#
#   benchmarks/starter_finish.sh RUN_HOMOGENIZED RUN_PLAIN OUT [HEALTHY]
#
# HEALTHY: patients without tumour that join those on which the decision is calibrated; 0 by default.
# OUT/starter.safetensors is the result, without its model card (benchmarks/starter_card.py).
set -euo pipefail
homogenized=$1 plain=$2 out=$3 healthy=${4:-0}
kidseg=${KIDSEG:-kidseg} here=$(dirname "${BASH_SOURCE[0]}")
export OMP_NUM_THREADS=1
$kidseg ensemble "$homogenized" "$plain" -o "$out/ensemble.safetensors" --half --flip --overwrite
[[ -e $out/calibration/dataset.json ]] || $kidseg phantom "$out/calibration" --patients 24 --ages 0-90 \
  --size 256 --seed 4711 --set "slice_mm=[2.0,5.0]" --set window_share=0.5
cases=() calibration=$out/calibration
for k in 02 03 05 08 11 12 13 17 19 21; do cases+=(--case "phantom_00$k"); done # the ten with fewest voxels
if ((healthy)); then
  [[ -e $out/healthy/dataset.json ]] || $kidseg phantom "$out/healthy" --patients "$healthy" --ages 0-90 \
    --size 256 --seed 4712 --set "slice_mm=[2.0,5.0]" --set window_share=0.5 --set tumour_share=0.0
  calibration=$out/calibration-both
  "$here/join_cohorts.sh" "$calibration" "$out/calibration 24 0" "$out/healthy $healthy 1000"
  for ((k = 0; k < healthy; k++)); do cases+=(--case "phantom_$((k + 1000))"); done
fi
$kidseg calibrate "$out/ensemble.safetensors" "$calibration" -o "$out/calibrated.safetensors" \
  "${cases[@]}" --overwrite
$kidseg ensemble "$out/calibrated.safetensors" -o "$out/alone.safetensors" --lone-tumour-ml 100 --overwrite
for part in 99:6007 90:6011; do
  [[ -e $out/${part#*:}/dataset.json ]] || $kidseg phantom "$out/${part#*:}" --patients ${part%:*} --ages 0-90 \
    --size 256 --seed ${part#*:} --set "slice_mm=[3.0,5.0]" --set window_share=0.5
done
"$here/join_cohorts.sh" "$out/intervals" "$out/6007 99 0" "$out/6011 90 1000"
$kidseg calibrate "$out/alone.safetensors" "$out/intervals" -o "$out/starter.safetensors" --intervals \
  --scans "digital patients" --overwrite
