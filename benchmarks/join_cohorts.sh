#!/usr/bin/env bash
# One cohort of the first COUNT digital patients of each, numbered from FIRST.
#
#   benchmarks/join_cohorts.sh JOINED "COHORT COUNT FIRST" ...
set -euo pipefail
joined=$1 total=0
shift
if [[ -e $joined/dataset.json ]]; then exit; fi
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
