#!/usr/bin/env bash
# Trains the kind of model that ships, on one GPU, in a given number of minutes: several runs side by
# side by cross-entropy, then self-critical runs from the best of them. Needs `pip install '.[lite]'`.
#
#   scripts/train_gpu.sh FOLDER MINUTES OUT [KEY=VALUE ...]
#
# FOLDER holds flickr8k/ and coco/ (see configs/flickr8k.yaml); KEY=VALUE override all recipes.
#
# If FOLDER also holds texts.txt.gz (one sentence a line), one run learns to write from it first.
# scripts/pack_images.py makes FOLDER small, to carry it to another machine.
#
# The models lie in OUT/best as half-precision files with their validation figures beside them; a
# table of all runs is printed last. What a run has reached when time is up counts.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python scripts/train_gpu.py "$@"
