#!/usr/bin/env bash
# Captions every photo of a folder, subfolders too. After an interruption run it again: what is
# captioned already stays, and the rest is done. (The folder must hold the same photos then; put
# new ones into a folder of their own.)
#
#   scripts/caption_folder.sh FOLDER OUTPUT.jsonl [OPTION...]    OPTIONs go to `captioner caption`
#
# Makes OUTPUT.jsonl (a row per photo: its name, caption, words and their log-probabilities; or
# its error) and OUTPUT.errors.jsonl (the failures alone). When those photos are mended, caption them
# with:  captioner caption OUTPUT.errors.jsonl -o mended.jsonl
set -euo pipefail
usage="usage: scripts/caption_folder.sh FOLDER OUTPUT.jsonl [OPTION...]"
folder=${1:?$usage} output=${2:?$usage}
shift 2

if [ ! -d "$folder" ]; then
  echo "$folder is not a folder" >&2
  exit 2
fi

again=()
if [ -e "$output" ]; then again=(--resume); fi

# Its status: 0 all good; 1 some photos failed, their rows say why; else it could not go on.
captioner caption "$folder" --recursive --output "$output" --format jsonl \
  --errors "${output%.jsonl}.errors.jsonl" ${again[@]+"${again[@]}"} "$@"
