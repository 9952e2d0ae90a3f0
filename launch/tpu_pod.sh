#!/usr/bin/env bash
# A TPU pod on Google Cloud, by a queued resource:
#   NAME=resnet ZONE=us-east5-b TYPE=v5litepod-16 launch/tpu_pod.sh --config=configs/imagenet_large_batch.py \
#     --config.data.data_dir=gs://BUCKET/data --workdir=gs://BUCKET/run
# The same command continues a run that was stopped, on a new pod if the old one is gone. SPOT=1 asks for one that may be
# taken away. To end: gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
set -euo pipefail

: "${NAME:?}" "${ZONE:?}" "${TYPE:?}"
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # for v4: tpu-ubuntu2204-base; for v5p: v2-alpha-tpuv5; for v6e: v2-alpha-tpuv6e
tpus=(gcloud compute tpus)

state() {
  "${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || echo NONE
}

case $(state) in
  SUSPENDED | FAILED)
    "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
esac
if [ "$(state)" = NONE ]; then
  "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$runtime" ${SPOT:+--spot}
fi
now=$(state)
while [ "$now" != ACTIVE ]; do
  echo "$NAME is $now"
  case $now in SUSPENDED | FAILED) exit 1 ;; esac
  sleep "${EVERY:-30}"
  now=$(state)
done

on_all() {
  "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

archive=$(mktemp -d)/resnet_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git -C "$(dirname "$0")/.." archive --prefix=resnet_jax/ -o "$archive" HEAD
"${tpus[@]}" tpu-vm scp "$archive" "$NAME:" --zone="$ZONE" --worker=all
on_all 'tar xzf resnet_jax.tar.gz && python3 -m venv venv && venv/bin/pip install -q -r resnet_jax/requirements.txt "jax[tpu]" gcsfs'
on_all "cd resnet_jax && ../venv/bin/python train.py --config.parallel.distributed=True $(printf '%q ' "$@")"
