#!/usr/bin/env bash
# Makes the model that ships with the package, from ImageNet weights to captioner/weights/.
# The first two steps take an hour and a quarter on three CPU cores with avx512_bf16, the third, the
# self-critical one, forty minutes more, the fourth a quarter of an hour for each of four runs, and
# word rates ten minutes. The small decoders of the demo's tab "Mechanisms" come last, as they share
# the CNN. Needs `pip install '.[lite]'`. After an interruption run it again: finished steps are
# skipped, the interrupted one resumes.
#
#   scripts/train_flickr8k.sh FOLDER     FOLDER holds flickr8k/, coco/ and pascal/ (see
#                                        configs/flickr8k.yaml and configs/flickr8k_mixed.yaml)
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?usage: scripts/train_flickr8k.sh FOLDER}

train() { # a recipe's name; the run's, if it has another; overrides
  local recipe=$1 name=${2:-$1} resume=()
  local out=runs/$name
  if [ -e "$out/finished" ]; then return; fi
  if [ -e "$out/last" ]; then resume=(--resume); fi
  echo "== $name"
  captioner train "configs/$recipe.yaml" data.root="$root" out="$out" "${@:3}" \
    ${resume[@]+"${resume[@]}"}
  touch "$out/finished"
}

set_rates() { # a model, what to write, the recipe whose photos count; options
  python scripts/word_rates.py "$1" "$2" --config "configs/$3.yaml" "${@:4}" data.root="$root"
}

train flickr8k
train flickr8k_finetune
train flickr8k_scst
python scripts/ship.py runs/flickr8k_scst/best.safetensors runs/flickr8k_scst/last.safetensors \
  runs/flickr8k_scst/mean.safetensors
set_rates runs/flickr8k_scst/mean.safetensors runs/flickr8k_scst/shipped.safetensors \
  flickr8k_scst

# Short trainings with several seeds; their mean with what they start from is better than each.
start=runs/flickr8k_scst/shipped.safetensors
models=()
for seed in 1 2 3 4; do
  train flickr8k_mixed "flickr8k_mixed_$seed" init="$start" seed="$seed"
  models+=("runs/flickr8k_mixed_$seed/last.safetensors")
done
python scripts/ship.py "${models[@]}" "$start" runs/flickr8k_mixed.safetensors
set_rates runs/flickr8k_mixed.safetensors captioner/weights/default.safetensors flickr8k_mixed \
  --share 0.15 --tolerance 0.003
captioner export captioner/weights/default.safetensors
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 5
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 3
python scripts/train_mechanisms.py "$root"
