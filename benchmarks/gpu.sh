#!/usr/bin/env bash
# Everything that has to be measured on a GPU, in one go: tests, then both sides of every figure.
#
#   bash benchmarks/gpu.sh                        # one H100 or H200: at most 8 minutes
#   bash benchmarks/gpu.sh --photos FOLDER        # JPEGs to caption; made up without it
#   bash benchmarks/gpu.sh --device cpu           # a rehearsal on tiny sizes: figures mean nothing
#
# Needs this checkout, torch, torchvision, timm, safetensors and pycocotools, with what they bring,
# and pyyaml, filelock and tqdm. Tests run if pytest is installed. Nothing is installed or fetched.
# Every part has a time limit of its own. Lines RESULT of all parts come last, in one table.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
device=cuda photos=""
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=$2; shift 2 ;;
    --photos) photos=$2; shift 2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
logs=$(mktemp -d)
table="$logs/table"
begun=$SECONDS

# part NAME SECONDS TARGET COMMAND...
part() {
  local name=$1 limit=$2 target=$3 start=$SECONDS status
  shift 3
  printf '\n== %s (at most %s s)\n' "$name" "$limit"
  timeout -k 5 "$limit" "$@" >"$logs/part" 2>&1
  status=$?
  tail -n 25 "$logs/part"
  sed -n 's/^RESULT //p' "$logs/part" >"$logs/found"
  [ -s "$logs/found" ] || echo "no figure" >"$logs/found"
  while read -r line; do
    if [ $status -eq 124 ]; then line="$line (stopped after $limit s)"
    elif [ $status -ne 0 ]; then line="$line (exit status $status)"; fi
    printf '| %s | %s | %s | %s s |\n' "$name" "$line" "$target" $((SECONDS - start)) >>"$table"
  done <"$logs/found"
}

# report COMMAND...: run tests, and turn pytest's last line into a RESULT
report() {
  "$python" -m pytest --version >/dev/null 2>&1 || { echo "RESULT pytest is not installed"; return; }
  "$@" | tee "$logs/tests"
  local status=${PIPESTATUS[0]}
  echo "RESULT $(tail -n 1 "$logs/tests")"
  return "$status"
}
export -f report
export python logs

if [ "$device" = cuda ]; then
  small=() steps=(--steps 20 --rounds 3 --photos 512) rehearsal=(--images 3000) searched=512 captioned=6000 agreed=512 tests="-m gpu"
  nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
else
  tiny=(model.attention.size=16 model.decoder.hidden=24 model.decoder.embedding=24
    model.encoder.name=timm/mobilenetv3_small_050 model.encoder.image_size=64 data.batch_size=4
    optim.precision=fp32 data.workers=0 model.encoder.width=16 data.captions_per_image=2)
  small=("${tiny[@]}") steps=(--steps 1 --rounds 1 --photos 12)
  rehearsal=(--images 40 --tiny) searched=8 captioned=8 agreed=8 tests="-m gpu --collect-only"
fi
"$python" -c "import torch; print('torch', torch.__version__)"

train() {  # train NAME SECONDS TARGET KEY=VALUE... [--beside KEY=VALUE]
  local name=$1 limit=$2 target=$3
  shift 3
  part "$name" "$limit" "$target" "$python" benchmarks/train.py device="$device" "${small[@]}" \
    "$@" "${steps[@]}" --name captured
}

part "tests marked gpu" 100 "all pass" bash -c "report \$python -m pytest $tests tests/training tests/backends"

if [ "$device" = cuda ]; then
  part "decoder step" 30 "5 x; 8 x with 5 captions" \
    "$python" benchmarks/decoder_step.py --device cuda --captions 5 --repetitions 20
else
  part "decoder step" 100 "4 x" "$python" benchmarks/decoder_step.py --batch 4 --repetitions 1
fi
if [ "$device" = cuda ]; then
  train "training, 16 photos x 5 captions" 35 "10 ms, 8,000 captions/s" optim.precision=bf16
  train "training, 128 photos" 35 "25,000 captions/s" optim.precision=bf16 data.batch_size=128
  train "self-critical beside cross-entropy, 96 photos, CNN too" 45 "2.5 x; GPU busy 70 %" \
    data.batch_size=96 model.encoder.trainable_stages=2 optim.precision=bf16 --beside loss.objective=self_critical
  train "16 photos, deterministic" 30 "its price" optim.precision=bf16 deterministic=true
else
  train "training" 100 "-"
  train "self-critical beside cross-entropy, CNN too" 100 "-" model.encoder.trainable_stages=1 \
    --beside loss.objective=self_critical
fi
part "COCO rehearsal" 75 "hours of a recipe" \
  "$python" benchmarks/coco_rehearsal.py --device "$device" "${rehearsal[@]}"
# Captioning: the search on the device beside the host's, and files to captions.
part "beam 3, 128 photos" 25 "10 ms a batch" \
  "$python" benchmarks/beam.py ${photos:+"$photos"} --device "$device" --count "$searched" \
  --batch 128 --beam 3 --rounds 5 --no-textbook --on-device
part "files to captions" 55 "5,000 photos/s; .5 of the encoder" \
  "$python" benchmarks/caption.py ${photos:+"$photos"} --device "$device" --side 224 \
  --count "$captioned" --batch 128 --rounds 2
part "captions in bf16" 25 "at most 1 in 50 changes" \
  "$python" benchmarks/caption.py ${photos:+"$photos"} --device "$device" --side 224 \
  --count "$agreed" --batch 128 --rounds 1 --agreement

printf '\n| part | result | target | took |\n|---|---|---|---:|\n'
cat "$table"
echo "$((SECONDS - begun)) s in all; logs of the last part in $logs"
