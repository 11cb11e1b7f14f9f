#!/usr/bin/env bash
# The ninth version of the starter, trained on a GPU: one cohort of every kind of digital patient that the versions before it were trained on
# one after the other, and both members trained on it side by side; the tenth; and the twelfth, which is shipped. docs/starter_protocol.md says why.
#
#   JOBS=16 BUDGET_S=700 benchmarks/starter_gpu.sh OUT
#
# OUT: the result of starter.sh, where this goes on. OUT/{ninth,tenth,twelfth}/starter.safetensors are the results, without model cards
# (benchmarks/starter_card.py). BUDGET_S: seconds of each training. PARTS: seeds of 80 patients each.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$1"
# shellcheck source=starter_parts.sh
. "$here/starter_parts.sh"
read -ra parts <<<"${PARTS:-20261215 20261216 20261217 20261218}"

mkdir -p ninth
joined=()
for seed in "${parts[@]}"; do
  cohort "ninth/part-$seed" 80 "$seed" "slice_mm=[3.0,5.0]" trunk_share=0.35 displaced_share=0.35 neighbour_share=0.4 apposed_share=0.3 \
    tumour_share=0.8
  joined+=("ninth/part-$seed 80 $((80 * ${#joined[@]}))")
done
join ninth/cohort "${joined[@]}"
if [[ ! -e ninth/store/store.json ]]; then
  $kidseg store ninth/cohort -o ninth/store --method homogenized --preset starter --seed 20261215 --jobs "$jobs" --set cohort.validation_share=0.0125
fi

# METHOD [OPTION ...]: OUT/ninth/run-METHOD.
member() {
  if [[ -e ninth/run-$1/summary.json ]]; then return; fi
  $kidseg train ninth/store -o "ninth/run-$1" --overwrite --method "$1" --preset starter --seed 20261215 --set cohort.validation_share=0.0125 \
    --set cohort.label_share=0.25 --set cohort.small_share=0.25 --set segment.batch_size=32 --set segment.epochs=1000 \
    --set "budget_s=${BUDGET_S:-700}" --set "workers=$(((jobs - 2) / 2))" "${@:2}"
}
member plain --set unet.features=24 --set unet.max_features=288 &
plain=$!
member homogenized --from smooth/starter.safetensors --set pose.stage.epochs=2 --set segment.optimizer.learning_rate=0.001 &
wait $!
wait $plain

if [[ ! -e ninth/starter.safetensors ]]; then
  $kidseg ensemble ninth/run-homogenized ninth/run-plain -o ninth/ensemble.safetensors --half --flip --smooth-mm 3 --lone-tumour-ml 0 --overwrite
  decide ninth 10
fi

# The tenth version: the ninth's homogenized member beside the fifth's plain one. benchmarks/starter_ninth_homogenized.safetensors is this member
# as it was trained, in half precision, because a GPU gives other bits elsewhere.
if [[ ! -e tenth/starter.safetensors ]]; then
  mkdir -p tenth
  $kidseg ensemble smooth/starter.safetensors --member 1 -o tenth/plain.safetensors --overwrite
  $kidseg ensemble ninth/run-homogenized tenth/plain.safetensors -o tenth/ensemble.safetensors --half --flip --smooth-mm 3 --lone-tumour-ml 0 --overwrite
  decide tenth 10 --weights-of smooth/starter.safetensors
fi

# The twelfth version, which is shipped: in slabs the two members of the fifth, in all other scans those of the tenth.
if [[ -e twelfth/starter.safetensors ]]; then exit; fi
mkdir -p twelfth
$kidseg ensemble ninth/run-homogenized -o twelfth/stacks.safetensors --half --only-in stacks --overwrite
$kidseg ensemble smooth/starter.safetensors --member 0 -o twelfth/slabs.safetensors --only-in slabs --overwrite
$kidseg ensemble twelfth/stacks.safetensors twelfth/slabs.safetensors tenth/plain.safetensors -o twelfth/ensemble.safetensors \
  --half --flip --smooth-mm 3 --lone-tumour-ml 0 --overwrite
decide twelfth 10 --weights-of smooth/starter.safetensors
