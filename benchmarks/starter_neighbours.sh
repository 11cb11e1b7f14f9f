#!/usr/bin/env bash
# Versions six to eight of the starter: its fifth, trained further between neighbouring slices, with organs beside the kidneys.
#
#   benchmarks/starter_neighbours.sh OUT
#
# OUT: the result of starter.sh, where this goes on. OUT/{sixth,seventh,eighth,lean}/starter.safetensors are the results, without model cards.
# Eight trainings of 30 to 40 minutes of one CPU core each; run again to continue.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$1"
# shellcheck source=starter_parts.sh
. "$here/starter_parts.sh"
settings=(cohort.label_share=0.25 cohort.small_share=0.25 reach=2 apart_mm=5)

mkdir -p between
[[ -e between/store ]] || ln -s ../fourth/store between/store
train_further between 20261202 3 fifth/starter.safetensors fifth/starter.safetensors "${settings[@]}"
cohort sixth/new 150 20261203 "slice_mm=[2.0,5.0]" neighbour_share=0.75 displaced_share=0.2 trunk_share=0.3
join sixth/cohort "third/cohort 100 0" "fourth/new 50 260" "sixth/new 150 310"
store sixth/cohort sixth/store 20261203
train_further sixth 20261203 3 between/run-homogenized between/run-plain "${settings[@]}"
finish sixth sixth/run-homogenized sixth/run-plain 10

mean between fifth sixth
join seventh/cohort "third/cohort 260 0" "fourth/new 150 260" "sixth/new 150 410"
store seventh/cohort seventh/store 20261205
train_further seventh 20261205 3 between/homogenized.safetensors between/plain.safetensors \
  "${settings[@]}" style.single_share=0.6
finish seventh seventh/run-homogenized seventh/run-plain 10

# Eighth: single slices again, with liver and spleen directly at the kidneys; and the mean of its weights with the fifth's.
cohort eighth/new 150 20261210 "slice_mm=[2.0,5.0]" apposed_share=0.8 neighbour_share=0.4 tumour_share=0.6 trunk_share=0.3 \
  displaced_share=0.2
join eighth/cohort "third/cohort 100 0" "fourth/new 50 260" "sixth/new 150 410" "eighth/new 150 560"
store eighth/cohort eighth/store 20261210
train_further eighth 20261210 3 fifth/starter.safetensors fifth/starter.safetensors \
  cohort.label_share=0.25 cohort.small_share=0.25 segment.steps=800
finish eighth eighth/run-homogenized eighth/run-plain 10 fifth/starter.safetensors
mean lean fifth eighth
finish lean lean/homogenized.safetensors lean/plain.safetensors 10 fifth/starter.safetensors
