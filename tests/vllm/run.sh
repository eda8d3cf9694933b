#!/usr/bin/env bash
# Runs the engine service on vLLM (CPU) with a tiny random model, in an environment of its own.
# Usage: tests/vllm/run.sh [ENVIRONMENT]   (default .vllm-venv; made when it is not there: 2.5 GB, some minutes)
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=${1:-.vllm-venv}
python=${PYTHON:-python3.11}

if [ ! -e "$environment/complete" ]; then
  "$python" -m venv --clear "$environment"
  # torch first: pip takes the CPU build from PyTorch's index or a local wheel folder.
  "$environment/bin/pip" install --quiet --no-compile --no-deps \
    --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" torch==2.13.0
  "$environment/bin/pip" install --quiet --no-compile --no-deps \
    -r deploy/vllm/cpu-py311.lock -r tests/vllm/requirements.txt
  touch "$environment/complete"
fi

# Three processes import torch and vLLM: let the first one keep what it compiled.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH="$PWD:$PWD/protos/gen" HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1
exec "$environment/bin/python" -m pytest tests/vllm -c tests/vllm/pytest.ini --rootdir tests/vllm
