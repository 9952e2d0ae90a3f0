#!/usr/bin/env bash
# Several processes on this machine, as one job: launch/local.sh 2 --config=configs/cifar10.py --workdir=runs/two
# The same command continues a run that was stopped. PORT=12355 chooses the port.
set -euo pipefail

count=${1:?"usage: launch/local.sh PROCESSES [arguments of train.py]"}
shift
here=$(dirname "$0")/..
processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < count; index++)); do
  python "$here/train.py" --coordinator="127.0.0.1:${PORT:-12355}" --num_processes="$count" --process_id="$index" "$@" &
  processes+=($!)
done
status=0
for process in "${processes[@]}"; do
  # A signal ends `wait`, not the process, which saves a checkpoint.
  while kill -0 "$process" 2>/dev/null; do wait "$process" || true; done
  wait "$process" || status=$?
done
exit "$status"
