#!/usr/bin/env bash
# Builds kvshelf on a GPU machine, checks every byte there and times it; results go to OUT.
#
#   benchmarks/gpu/run.sh build|check|transfer|engine|all [OUT]
#
# Needs Python with torch (CUDA), nanobind, scikit-build-core, cmake, ninja and g++; `engine` needs
# vLLM besides. Nothing is downloaded. WORK is scratch on the file system to measure (default
# ~/kvshelf-bench), SITE where kvshelf is installed (default ~/kvshelf-site).
set -euo pipefail
cd "$(dirname "$0")/../.."
stage=${1:-all}
out=${2:-benchmarks/results}
work=${WORK:-$HOME/kvshelf-bench}
site=${SITE:-$HOME/kvshelf-site}
mkdir -p "$out" "$work"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

works() { python3 -c 'from kvshelf import Shelf; from kvshelf.engine.native import NativeEngine' 2>&1; }

build() {
  local log="$out/gpu-build.log"
  python3 -m pip install -q --no-build-isolation --no-deps --no-index --upgrade --target "$site" . >"$log" 2>&1 \
    || { tail -40 "$log"; return 1; }
  works && return
  # A g++ that links libstdc++ statically: two copies in one process can crash. Use the system's.
  LDFLAGS="-nostdlib++ /usr/lib/x86_64-linux-gnu/libstdc++.so.6" python3 -m pip install -q \
    --no-build-isolation --no-deps --no-index --upgrade --target "$site" . >>"$log" 2>&1
  works
}

check() { timeout 200 python3 benchmarks/gpu/check.py "$work/check" --rounds 40; rm -rf "$work/check"; }

transfer() {
  local name=$1
  shift
  echo "== transfer $name: $*"
  timeout 150 python3 benchmarks/gpu/transfer.py "$work/$name" --out "$out/gpu-transfer-$name.json" "$@" \
    || echo "transfer $name failed"
  rm -rf "${work:?}/$name"
}

transfers() {
  transfer 8b --cold
  transfer 8b-8-threads --threads 8 --rounds 3
  transfer mla --layers 61 --page-bytes 18432 --rounds 3
  transfer small-pages --page-bytes 4096 --blocks-per-chunk 64 --rounds 3
  transfer small-pages-single --page-bytes 4096 --blocks-per-chunk 64 --rounds 3 --copy-method single
  transfer cross-layer --layers 1 --page-bytes 2097152 --rounds 3
}

engine() { python3 benchmarks/gpu/first_token.py "$work/engine" --out "$out/first-token.json" ${ENGINE_ARGS:-}; }

case $stage in
  build) build ;;
  check) build && check ;;
  transfer) build && transfers ;;
  engine) build && engine ;;
  all) build && check && transfers && engine ;;
  *) echo "unknown stage $stage" >&2; exit 2 ;;
esac
