#!/usr/bin/env bash
# What there is to measure on one accelerator, in under eight minutes. It needs
# neither an installed jnl nor a network: jax, flax and optax are enough, and what
# is missing is left out. PYTHON is which python to take.
#
#   bash experiments/accelerator.sh [--out DIR] [--data-dir DIR] [--smoke]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root:$root/experiments${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.accelerator "$@"
