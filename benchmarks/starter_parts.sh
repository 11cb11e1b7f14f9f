# The steps of starter.sh and starter_neighbours.sh, which read this file; what takes time is left out where its result is there.
# shellcheck shell=bash
kidseg=${KIDSEG:-kidseg} python=${PYTHON:-python} jobs=${JOBS:-2}
export OMP_NUM_THREADS=1

# FOLDER PATIENTS SEED SETTING ...: digital patients of 0 to 90 years.
cohort() {
  local folder=$1 patients=$2 seed=$3 settings=() setting
  shift 3
  if [[ -e $folder/dataset.json ]]; then return; fi
  for setting in size=256 "$@"; do settings+=(--set "$setting"); done
  $kidseg phantom "$folder" --patients "$patients" --ages 0-90 --seed "$seed" --jobs "$jobs" "${settings[@]}"
}

# JOINED "COHORT COUNT FIRST" ...: one cohort of the first COUNT patients of each, or all if there are fewer, numbered from FIRST.
join() {
  local joined=$1 total=0 part source count first all k old new
  shift
  if [[ -e $joined/dataset.json ]]; then return; fi
  mkdir -p "$joined"/{imagesTr,labelsTr}
  head -n 1 "${1%% *}/patients.csv" >"$joined/patients.csv"
  for part in "$@"; do
    read -r source count first <<<"$part"
    all=$(grep -c ^phantom_ "$source/patients.csv")
    count=$((count < all ? count : all))
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

# COHORT STORE SEED: the cohort, prepared.
store() {
  if [[ -e $2/store.json ]]; then return; fi
  $kidseg store "$1" -o "$2" --method homogenized --preset starter --seed "$3" --jobs "$jobs"
}

# OUT SEED [SETTING ...]: OUT/run-homogenized and OUT/run-plain, trained on OUT/store.
train() {
  train_further "$1" "$2" "" "" "" "${@:3}"
}

# OUT SEED EPOCHS HOMOGENIZED PLAIN [SETTING ...]: the same from these two, or twice an ensemble of both, for epochs of 1,000 steps.
train_further() {
  local out=$1 seed=$2 epochs=$3 method run settings=() setting
  local -A start=([homogenized]=$4 [plain]=$5)
  shift 5
  if [[ $epochs ]]; then
    set -- segment.epochs="$epochs" segment.steps=1000 segment.optimizer.learning_rate=0.001 "$@"
  fi
  for setting in "$@"; do settings+=(--set "$setting"); done
  for method in homogenized plain; do
    run=$out/run-$method
    if [[ -e $run/summary.json ]]; then continue; fi
    if [[ -e $run/state-segment-before.safetensors ]]; then
      $kidseg train "$out/store" -o "$run" --resume
    else
      $kidseg train "$out/store" -o "$run" --overwrite --method $method --preset starter --seed "$seed" \
        ${epochs:+--from "${start[$method]}"} "${settings[@]}"
    fi
  done
}

# OUT BEFORE AFTER: OUT/homogenized.safetensors and OUT/plain.safetensors, whose weights are the mean of those of both trainings.
mean() {
  mkdir -p "$1"
  local method before
  for method in homogenized plain; do
    before=$2/run-$method
    [[ -e $before ]] || before=$2/$method.safetensors
    $python "$here/starter_between.py" "$before" "$3/run-$method" -o "$1/$method.safetensors" --overwrite
  done
}

# OUT HOMOGENIZED PLAIN [HEALTHY [STARTER]]: OUT/starter.safetensors: both joined, and calibrated as below; or smoothed across
# slices, with the weights of STARTER unless none are better.
finish() {
  local out=$1 healthy=${4:-0}
  if [[ -e $out/starter.safetensors ]]; then return; fi
  $kidseg ensemble "$2" "$3" -o "$out/ensemble.safetensors" --half --flip ${5:+--smooth-mm 3} --overwrite
  decide "$out" "$healthy" ${5:+--weights-of "$5"}
}

# OUT STARTER [HEALTHY]: OUT/starter.safetensors: STARTER, smoothed across slices; it keeps its weights unless none are better.
smooth() {
  local out=$1 healthy=${3:-0}
  if [[ -e $out/starter.safetensors ]]; then return; fi
  mkdir -p "$out"
  $kidseg ensemble "$2" -o "$out/ensemble.safetensors" --half --smooth-mm 3 --lone-tumour-ml 0 --overwrite
  decide "$out" "$healthy" --weights-of "$2"
}

# OUT HEALTHY [OPTION ...]: OUT/starter.safetensors: OUT/ensemble.safetensors, calibrated on ten patients and HEALTHY ones without
# tumour, without lone tumours, with intervals of volumes.
decide() {
  local out=$1 healthy=$2 k cases=() calibration=calibration
  shift 2
  cohort calibration 24 4711 "slice_mm=[2.0,5.0]" window_share=0.5
  for k in 02 03 05 08 11 12 13 17 19 21; do cases+=(--case "phantom_00$k"); done # the ten with fewest voxels
  if ((healthy)); then
    cohort healthy "$healthy" 4712 "slice_mm=[2.0,5.0]" window_share=0.5 tumour_share=0.0
    join calibration-both "calibration 24 0" "healthy $healthy 1000"
    for ((k = 0; k < healthy; k++)); do cases+=(--case "phantom_$((k + 1000))"); done
    calibration=calibration-both
  fi
  $kidseg calibrate "$out/ensemble.safetensors" "$calibration" -o "$out/calibrated.safetensors" \
    "${cases[@]}" "$@" --overwrite
  $kidseg ensemble "$out/calibrated.safetensors" -o "$out/alone.safetensors" --lone-tumour-ml 100 --overwrite
  cohort 6007 99 6007 "slice_mm=[3.0,5.0]" window_share=0.5
  cohort 6011 90 6011 "slice_mm=[3.0,5.0]" window_share=0.5
  join intervals "6007 99 0" "6011 90 1000"
  $kidseg calibrate "$out/alone.safetensors" intervals -o "$out/starter.safetensors" --intervals \
    --scans "digital patients" --overwrite
}
