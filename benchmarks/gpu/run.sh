#!/usr/bin/env bash
# What is measured on one GPU, in parts of minutes: benchmarks/gpu/run.sh FOLDER [PART …]; default: all but `seven`.
# Parts that were cut off go on.
#
#   kernel  the Triton kernel's claims on this GPU
#   rope    one rotation and whole steps beside transformers and, where liger-kernel is installed, Liger
#   loss    the loss in pieces beside the plain output layer
#   steps   optimiser steps of 1.2 billion parameters at 32k and 128k tokens
#   seven   the same of 7 billion parameters at 128k tokens, with layers' inputs in the host's memory: needs 141 GB
#   whole   `harpe quickstart`: training, evaluation, the comparison of two rows, report
set -uo pipefail
out=$(realpath -m "${1:?name a folder for the results}")
shift
cd "$(dirname "$0")/../.."
mkdir -p "$out"
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
day=$(date +%F) failed=0

part() {  # part NAME COMMAND...: with its output in a log beside the results
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.log" | tail -n 25 || failed=1
  echo "== $name took $((SECONDS - start)) s"
}

for name in "${@:-kernel rope loss steps whole}"; do
  for one in $name; do
    case $one in
      kernel) part kernel python3 -m pytest -q -rs -p no:cacheprovider tests/positions/kernel_cases.py ;;
      rope)
        part rope python3 benchmarks/rope.py --device cuda --seconds 0.4 --lengths 4096 16384 131072 \
          --result "$out/$day-rope-gpu"
        ;;
      loss)
        part loss python3 scripts/benchmark_loss.py --dtype bfloat16 --width 2048 --vocabulary 128256 --tokens 32768 \
          --out "$out"
        ;;
      steps) part steps python3 benchmarks/gpu/steps.py --result "$out/$day-steps-gpu" ;;
      seven)
        part seven python3 benchmarks/gpu/steps.py --shape 7B --lengths 131072 --ways offloaded+tiles --steps 1 \
          --result "$out/$day-steps-gpu"
        ;;
      whole) part whole python3 -m harpe quickstart --out "$out/quickstart" ;;
      *)
        echo "There is no part $one." >&2
        exit 2
        ;;
    esac
  done
done
exit $failed
