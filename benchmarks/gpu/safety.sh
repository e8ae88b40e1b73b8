#!/usr/bin/env bash
# Unpacks vLLM's kit on a GPU machine, installs kvshelf there and runs safety.py; results go to OUT.
#
#   benchmarks/gpu/safety.sh OUT [safety.py's options]
#
# KIT: folder with the parts of vLLM's kit (default ~/kit); SITE: where kvshelf is installed
# (default ~/ours); WORK: scratch (default ~/safety). Nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
kit=${KIT:-$HOME/kit}
site=${SITE:-$HOME/ours}
work=${WORK:-$HOME/safety}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1

if [ ! -d "$kit/vsite" ]; then
  (cd "$kit" && cat part-* | LD_LIBRARY_PATH=. ./zstd -dc | tar -xf -)
fi
if [ ! -d "$site" ] || [ -n "${REINSTALL:-}" ]; then
  python3 -m pip install -q --no-build-isolation --no-deps --no-index --upgrade --target "$site" . \
    >"$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
fi
export PYTHONPATH="$site:$kit/vsite:$kit/site"
python3 -c 'from kvshelf import Shelf; from kvshelf.engine.native import NativeEngine' || exit 1
exec python3 benchmarks/gpu/safety.py "$work" --out "$out" "$@"
