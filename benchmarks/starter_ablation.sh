#!/usr/bin/env bash
# What each part of the starter's training brings: the plain starter without it, or with one thing more,
# trained for the same processor time with several seeds and scored on digital patients of another style.
#
#   kidseg phantom cohort/ --patients 212 --ages 0-90 --size 256 --seed 20261126 --set "slice_mm=[1.0,5.0]" --jobs 2
#   kidseg store cohort/ -o store/ --full --preset starter    # which validates on few patients
#   kidseg phantom others/ --patients 24 --ages 0-90 --size 256 --seed 4711 --set "slice_mm=[1.0,5.0]" --jobs 2
#   BUDGET_S=240 STEPS=60 SEEDS="0 1" benchmarks/starter_ablation.sh store/ others/ ablation/
#   python benchmarks/real_ct.py DATA -m ablation/no-style-0 -o real/no-style-0    # and on real slices
#
# Run again to continue. BUDGET_S=1800 STEPS=500 is what the shipped model's parts should be judged by. The same number of steps
# for each part, whatever else the machine does: BUDGET_S=36000 EPOCHS=6. Only some parts: ARMS="all no-style".
set -euo pipefail
store=$1 others=$2 out=$3
kidseg=${KIDSEG:-kidseg}
export OMP_NUM_THREADS=1

arms=(
  "all plain"
  "no-style plain augment=none"
  "nnunet-augmentation plain augment=nnunet"
  "neighbouring-slices plain reach=1"
  "hard-slices plain cohort.hard_share=0.25"
  "homogenized homogenized"
  "no-window plain style.window_share=0.0"
  "no-average plain segment.average=null"
)
for seed in ${SEEDS:-0 1}; do
  for arm in "${arms[@]}"; do
    read -r name method setting <<<"$arm"
    [[ " ${ARMS:-$name} " == *" $name "* ]] || continue
    run=$out/$name-$seed
    if [[ ! -e $run/summary.json ]]; then
      rm -rf "$run"
      $kidseg train "$store" -o "$run" --method "$method" --preset starter --seed "$seed" --quiet \
        --set "budget_s=${BUDGET_S:-240}" --set budget_clock=processor --set "segment.epochs=${EPOCHS:-1000}" \
        --set "segment.steps=${STEPS:-60}" ${setting:+--set "$setting"}
    fi
    if [[ ! -e $run-scores/summary.json ]]; then
      rm -rf "$run-labels" "$run-scores"
      $kidseg segment "$others/imagesTr" -m "$run" -o "$run-labels" --quiet
      $kidseg evaluate "$run-labels" "$others" -o "$run-scores" --quiet
    fi
  done
done
