#!/usr/bin/env bash
# The ninth version of the starter, made anew on a machine with a GPU: one cohort of every kind of digital patient that the versions
# before it were trained on one after the other, and both members trained on it side by side. docs/starter_protocol.md says why.
#
#   JOBS=16 BUDGET_S=700 benchmarks/starter_gpu.sh OUT
#
# OUT/run-plain and OUT/run-homogenized are the results. BUDGET_S: seconds of each training. PARTS: seeds of 80 patients each.
set -euo pipefail
mkdir -p "$1"
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$1"
# shellcheck source=starter_parts.sh
. "$here/starter_parts.sh"
read -ra parts <<<"${PARTS:-20261215 20261216 20261217 20261218}"

joined=()
for seed in "${parts[@]}"; do
  cohort "part-$seed" 80 "$seed" "slice_mm=[3.0,5.0]" trunk_share=0.35 displaced_share=0.35 neighbour_share=0.4 apposed_share=0.3 \
    tumour_share=0.8
  joined+=("part-$seed 80 $((80 * ${#joined[@]}))")
done
join cohort "${joined[@]}"
if [[ ! -e store/store.json ]]; then
  $kidseg store cohort -o store --method homogenized --preset starter --seed 20261215 --jobs "$jobs" --set cohort.validation_share=0.0125
fi

# METHOD [OPTION ...]: OUT/run-METHOD.
member() {
  if [[ -e run-$1/summary.json ]]; then return; fi
  $kidseg train store -o "run-$1" --overwrite --method "$1" --preset starter --seed 20261215 --set cohort.validation_share=0.0125 \
    --set cohort.label_share=0.25 --set cohort.small_share=0.25 --set segment.batch_size=32 --set segment.epochs=1000 \
    --set "budget_s=${BUDGET_S:-700}" --set "workers=$(((jobs - 2) / 2))" "${@:2}"
}
member plain --set unet.features=24 --set unet.max_features=288 &
plain=$!
member homogenized --from starter --set pose.stage.epochs=2 --set segment.optimizer.learning_rate=0.001 &
wait $!
wait $plain
