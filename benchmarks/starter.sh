#!/usr/bin/env bash
# Makes the starter from nothing but digital patients: docs/starter.md tells what each training is for.
#
#   benchmarks/starter.sh OUT
#
# OUT/smooth/starter.safetensors is the result, without its model card (benchmarks/starter_card.py). Eight trainings of 40 to 80
# minutes of one CPU core each, the digital patients and three calibrations, about 12 hours in all; run again to continue.
# KIDSEG and PYTHON: the commands to use.
set -euo pipefail
mkdir -p "$1"
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$1"
# shellcheck source=starter_parts.sh
. "$here/starter_parts.sh"

# First: the abdomen.
cohort first/cohort 212 20261126 "slice_mm=[1.0,5.0]"
store first/cohort first/store 20261126
train first 20261126
for method in homogenized plain; do
  $kidseg ensemble first/run-$method -o first/$method.safetensors --flip --overwrite
done

# Second: from the pelvic floor to the heart. Gave the third version; the second was trained on half of it.
cohort second/new 120 20261128 "slice_mm=[3.0,5.0]" trunk_share=1.0 size=224
join second/cohort "first/cohort 212 0" "second/new 120 1000"
store second/cohort second/store 20261128
train_further second 20261128 5 first/homogenized.safetensors first/plain.safetensors
finish second second/run-homogenized second/run-plain

# Third: kidneys that a tumour has moved. Gave the fourth version.
cohort third/cohort 260 20261130 "slice_mm=[2.0,5.0]" trunk_share=0.4 displaced_share=0.7
store third/cohort third/store 20261130
train_further third 20261130 4 second/starter.safetensors second/starter.safetensors
finish third third/run-homogenized third/run-plain

# Fourth: small sections, healthy patients. The mean of the weights before and after is the fifth version.
cohort fourth/new 150 20261201 "slice_mm=[2.0,5.0]" trunk_share=0.3 tumour_share=0.4
join fourth/cohort "third/cohort 260 0" "fourth/new 150 260"
store fourth/cohort fourth/store 20261201
train_further fourth 20261201 4 third/starter.safetensors third/starter.safetensors \
  cohort.label_share=0.25 cohort.small_share=0.25
mean fifth third fourth
finish fifth fifth/homogenized.safetensors fifth/plain.safetensors 10

# Smoothed across slices: what is shipped.
smooth smooth fifth/starter.safetensors 10
