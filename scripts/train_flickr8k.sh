#!/usr/bin/env bash
# Makes the model that ships with the package, from ImageNet weights to captioner/weights/.
# The first two steps take an hour and a quarter on three CPU cores with avx512_bf16, the third, the
# self-critical one, forty minutes more. Needs `pip install '.[lite]'`.
#
#   scripts/train_flickr8k.sh FOLDER     FOLDER holds flickr8k/ and coco/ (see configs/flickr8k.yaml)
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?usage: scripts/train_flickr8k.sh FOLDER}

captioner train configs/flickr8k.yaml data.root="$root"
captioner train configs/flickr8k_finetune.yaml data.root="$root"
captioner train configs/flickr8k_scst.yaml data.root="$root"
python scripts/ship.py runs/flickr8k_scst/best.safetensors runs/flickr8k_scst/last.safetensors \
  captioner/weights/default.safetensors
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 5
captioner evaluate --captions "$root/flickr8k/captions_val.json" --beam 3
