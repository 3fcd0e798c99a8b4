#!/usr/bin/env bash
# What one big GPU shows in about 8 minutes: throughput and memory of a training step, a study of the pair, the runtime.
#
#   bash benchmarks/gpu.sh                                  # the demo's scenes; yolo11n under a yolo11s trained here
#   STUDENT=yolo26n.pt TEACHER=best.pt DATA=my.yaml bash benchmarks/gpu.sh     # TEACHER is trained on DATA already
#   DRY=1 bash benchmarks/gpu.sh                            # the same commands on a CPU, tiny: do they run?
#
# Everything is written under OUT (default gpu-benchmark/), the figures to OUT/figures.txt as well as to the terminal.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-gpu-benchmark}
mkdir "$out" || { echo "gpu.sh: $out is there already: give OUT=another folder." >&2; exit 2; }
out=$(cd "$out" && pwd)
exec > >(tee "$out/figures.txt") 2>&1

if [ -n "${DRY:-}" ]; then
  device=cpu scenes=32 side=96 small=64 batch=8 steps=1 epochs=1 teacher_epochs=1 seeds=1 amp=False provider=cpu
else
  device=0 scenes=3000 side=640 small=320 batch=32 steps=20 epochs=10 teacher_epochs=20 seeds=3 amp=True provider=cuda
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
train="batch=$batch amp=$amp device=$device plots=False workers=${WORKERS:-8}"
section() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

yolokd version
student=${STUDENT:-yolo11n.yaml}
if [ -z "${DATA:-}" ]; then
  section "scenes"
  for px in $side $small; do
    python -c "from yolokd.demo.scenes import compose; compose(__import__('pathlib').Path('$out/scenes$px'), $scenes, $((scenes / 5)), $px)"
  done
fi
if [ -z "${TEACHER:-}" ]; then
  section "teacher: $teacher_epochs epochs"
  yolo train model=yolo11s.yaml data="${DATA:-$out/scenes$small/scenes.yaml}" imgsz=$small epochs=$teacher_epochs $train \
    project="$out" name=teacher verbose=False | tail -3
fi
teacher=${TEACHER:-$out/teacher/weights/best.pt}

section "a step at $side px: alone, distill_model and yolokd in turn"
yolokd steptime model="$student" teacher="$teacher" data="${DATA:-$out/scenes$side/scenes.yaml}" imgsz=$side steps=$steps $train

section "images per second and peak memory of whole epochs at $side px, each arm in a process of its own"
for arm in alone distill_model yolokd; do
  python "$here/throughput.py" $arm "$student" "$teacher" "${DATA:-$out/scenes$side/scenes.yaml}" imgsz=$side $train project="$out"
done

section "study at $small px: $seeds seeds, $epochs epochs"
yolokd study methods=builtin,default model="$student" teacher="$teacher" data="${DATA:-$out/scenes$small/scenes.yaml}" \
  imgsz=$small epochs=$epochs seeds=$seeds $train out="$out/study" || echo "gpu.sh: the study ended with $?"

section "the runtime: $provider beside cpu"
best=$(find "$out/study" -path '*default*' -name best.pt | head -1)
yolokd export model="$best" imgsz=$small out="$out/student.onnx"
yolokd bench model="$out/student.onnx" source="${IMAGES:-$out/scenes$small/images/val}" provider=cpu,$provider profile=smoke \
  repeats=2 out="$out/bench.json" || echo "gpu.sh: bench ended with $?"
section "done"
