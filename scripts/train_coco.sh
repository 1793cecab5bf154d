#!/usr/bin/env bash
# COCO from the download to the test figures, at the scale that papers report: cross-entropy on a
# frozen ResNet-101, fine-tuning, self-critical training. For a machine with GPUs; we have
# not run all of it yet (each step's recipe names the expected figures and their source). Needs about
# 180 GB of disk: 20 for photos, 20 for archives (ROOT/downloads may be deleted), and 71 for features
# in the first step and again in the third.
#
#   scripts/train_coco.sh ROOT [PROCESSES]     ROOT: COCO's folder; PROCESSES: default, all GPUs
#
# After an interruption run it again: finished steps are skipped, the interrupted one resumes.
# Out of memory: ACCUMULATE=4 scripts/train_coco.sh ... computes each batch in four parts.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?usage: scripts/train_coco.sh ROOT [PROCESSES]}
processes=${2:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
captions=$root/captions_karpathy.jsonl

train() { # a recipe's name
  local out=runs/$1 resume=()
  if [ -e "$out/finished" ]; then return; fi
  if [ -e "$out/last" ]; then resume=(--resume); fi
  echo "== $1"
  # If a process dies, torchrun ends the others and restarts all of them from the last state.
  torchrun --standalone --nproc-per-node "$processes" --max-restarts 3 \
    -m captioner train "configs/$1.yaml" data.root="$root" data.cache="$root/cache" \
    optim.accumulate="${ACCUMULATE:-1}" ${resume[@]+"${resume[@]}"}
  touch "$out/finished"
}

if [ ! -e "$captions" ]; then
  echo "== prepare"
  captioner prepare coco2014 --root "$root"
fi
train coco_resnet101
train coco_resnet101_finetune
train coco_resnet101_scst

echo "== the test photos of Karpathy's split, after each step"
for name in coco_resnet101 coco_resnet101_finetune coco_resnet101_scst; do
  captioner evaluate --captions "$captions" --split test --beam 5 \
    --model "runs/$name/best.safetensors" --json "runs/$name/test.json"
done
captioner plot runs/coco_resnet101 runs/coco_resnet101_finetune runs/coco_resnet101_scst \
  -o runs/coco_resnet101.png
