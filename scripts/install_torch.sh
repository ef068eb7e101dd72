#!/usr/bin/env bash
# Install the pinned torch: its CPU build where no NVIDIA GPU is in sight and one is offered, else the default build.
set -euo pipefail
python=$1
pin=$(grep '^torch==' constraints.txt)
pip=("$python" -m pip --disable-pip-version-check --quiet)
if "$python" -c 'import torch' 2>/dev/null; then
  echo "torch is installed already"
elif [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null 2>&1; then
  echo "an NVIDIA GPU is here: installing $pin"
  "${pip[@]}" install "$pin"
elif "${pip[@]}" install "$pin+cpu" 2>/dev/null; then
  echo "no NVIDIA GPU is here: installed the CPU build $pin+cpu"
else
  echo "no NVIDIA GPU is here, but your package index offers no CPU build of $pin: installing its default build."
  echo "(On Linux that brings gigabytes of CUDA. To avoid them, point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheels.)"
  "${pip[@]}" install "$pin"
fi
