#!/usr/bin/env bash
# Seconds from a clone to what three newcomers came for: the first picture, the first grid of one's own photos, the first
# posterior. For a quiet machine: a quarter of an hour or more.
#
#     benchmarks/newcomers.sh PHOTOS        (a folder of images)
#
# Each begins with a clone of this repository and an environment of its own, in which `make` installs with the settings and
# the cache that pip has. The second ends when the first grid of the run is there.
set -euo pipefail
photos=$(cd "${1:?PHOTOS, a folder of images, must be given}" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
begin() {
  start=$SECONDS
  git clone --quiet "$repository" "$folder/$1"
  cd "$folder/$1"
  make --silent .venv/installed >/dev/null
  installed=$SECONDS
}
end() { echo "$1: $((SECONDS - start)) s, $((installed - start)) s of them to install"; }

begin picture
make --silent demo >/dev/null
end "clone to first picture (make demo)"

begin photos
.venv/bin/openedm train runs/photos --data "$photos" >log 2>&1 &
run=$!
until compgen -G 'runs/photos/figures/samples-*[1-9]*.png' >/dev/null; do
  kill -0 $run 2>/dev/null || { tail log; exit 1; }
  sleep 1
done
end "clone to first grid of one's own photos (openedm train)"
kill -TERM $run
wait $run || true

begin posterior
awk '/^```python/ { shown = 1; next } /^```/ && shown { exit } shown' README.md | .venv/bin/python -
end "clone to first posterior (the block of README, 10,000 simulations)"
