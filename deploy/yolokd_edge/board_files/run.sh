#!/bin/sh
# Check that this device computes what the bundle says, then measure it.
#     sh run.sh [cpu|cuda|trt|auto] [images/ [further options of both, such as --fp16]]
set -e
provider="${1:-cpu}"
source="${2:-parity}"
if [ $# -gt 2 ]; then shift 2; else shift $#; fi
folder="$(cd "$(dirname "$0")" && pwd)"
python3 "$folder/yolokd_edge" verify --provider "$provider" "$@"
case "$source" in parity) source="$folder/parity" ;; esac
python3 "$folder/yolokd_edge" bench --model "$folder" --provider "$provider" --source "$source" "$@" \
    --out "report-$(date +%Y%m%d-%H%M%S).json"
