#!/usr/bin/env bash
# A newcomer's first minutes, timed: a fresh clone, then the commands of the README's "Try it" (all but
# the tests), then those of the quick start that check and measure a mount.
#
#     scripts/newcomer.sh [SECONDS_ALLOWED]     (600; pip is used as the machine configures it)
#
# Exit status 1: a command failed, an answer was not faster from the shelf, or it took too long.
set -euo pipefail
allowed=${1:-600}
here=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
SECONDS=0

# The commands of a page's bash blocks within one section, without comments.
commands() { # PAGE HEADING
  awk -v heading="$2" '
    /^## / { here = index($0, heading) == 4 }
    /^```/ { inside = here && $0 == "```bash"; next }
    inside { sub(/ +# .*/, ""); print }' "$1"
}

step() {
  local before=$SECONDS
  echo "\$ $1"
  # doctor ends with 1 for a warning, such as too few cores: a newcomer reads it and goes on.
  { bash -euo pipefail -c "$1" 2>&1 || { status=$?; [[ $1 == *doctor* && $status == 1 ]]; }; } |
    tee -a "$place/output"
  echo "-- $((SECONDS - before)) s, $SECONDS s since the start"
}

git clone --quiet "$here" "$place/kvshelf"
cd "$place/kvshelf"
export PATH="$PWD/.venv/bin:$PATH"
mapfile -t steps < <(
  commands README.md "Try it" | grep -v '^make test'
  { commands docs/start/quickstart.md "2. Check"
    commands docs/start/quickstart.md "3. Measure"; } | sed "s#/mnt/shared/kv#$place/kv#g"
)
((${#steps[@]} >= 4)) || { echo "the README and the quick start have other sections now" >&2; exit 1; }
for each in "${steps[@]}"; do step "$each"; done

# It pays: milliseconds to the first token in the demo's table, and the rate that bench found.
computed=$(sed -nE 's/^no kvshelf, cold +([0-9]+).*/\1/p' "$place/output")
loaded=$(sed -nE 's/^B, first time +([0-9]+).*/\1/p' "$place/output")
grep -q "loads at .* tokens/s here" "$place/output"
echo "newcomer: computed in $computed ms, from the shelf in $loaded ms; $SECONDS s of $allowed s"
((loaded < computed && SECONDS <= allowed))
