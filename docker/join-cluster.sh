#!/bin/sh
# Runs a command as a driver of the Ray cluster at RAY_ADDRESS.
# A driver needs a Ray node on its own machine: this one joins the cluster and takes no work.
set -eu
ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --disable-usage-stats
exec "$@"
