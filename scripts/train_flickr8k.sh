#!/usr/bin/env bash
# Makes the model that ships with the package, from ImageNet weights to captioner/weights/.
# The first two steps take an hour and a quarter on three CPU cores with avx512_bf16, the third, the
# self-critical one, forty minutes more, and word rates a quarter of an hour. The small decoders of
# the demo's tab "Mechanisms" come last, as they share the CNN. Needs `pip install '.[lite]'`. After
# an interruption run it again: finished steps are skipped, the interrupted one resumes.
#
#   scripts/train_flickr8k.sh FOLDER     FOLDER holds flickr8k/ and coco/ (see configs/flickr8k.yaml)
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?usage: scripts/train_flickr8k.sh FOLDER}

train() { # a recipe's name
  local out=runs/$1 resume=()
  if [ -e "$out/finished" ]; then return; fi
  if [ -e "$out/last" ]; then resume=(--resume); fi
  echo "== $1"
  captioner train "configs/$1.yaml" data.root="$root" ${resume[@]+"${resume[@]}"}
  touch "$out/finished"
}

train flickr8k
train flickr8k_finetune
train flickr8k_scst
python scripts/ship.py runs/flickr8k_scst/best.safetensors runs/flickr8k_scst/last.safetensors \
  runs/flickr8k_scst/mean.safetensors
python scripts/word_rates.py runs/flickr8k_scst/mean.safetensors \
  captioner/weights/default.safetensors --config configs/flickr8k_scst.yaml data.root="$root"
captioner export captioner/weights/default.safetensors
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 5
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 3
python scripts/train_mechanisms.py "$root"
