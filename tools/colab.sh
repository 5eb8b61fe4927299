#!/usr/bin/env bash
# Run every chapter as Colab does: install the package from the repository's files with a plain pip, which must leave torch and
# numpy alone; then each notebook by itself in an empty folder, its outputs compared leniently (other versions, other digits).
# Run inside Colab's public image, with the repository at the first argument (default /source).
set -euo pipefail
source=${1:-/source}
work=$(mktemp -d)
git clone --quiet "$source" "$work/repository" 2>/dev/null || cp -r "$source" "$work/repository"
before=$(pip list --format=freeze 2>/dev/null | grep -E '^(torch|torchvision|numpy|scipy|matplotlib)==' | sort)
pip install --quiet "diffusion-core @ file://$work/repository"
after=$(pip list --format=freeze 2>/dev/null | grep -E '^(torch|torchvision|numpy|scipy|matplotlib)==' | sort)
if [ "$before" != "$after" ]; then
  printf 'Installing the package changed what was there:\n%s\n--\n%s\n' "$before" "$after"
  exit 1
fi
pip install --quiet -r "$work/repository/requirements-compare.txt" -r "$work/repository/requirements-text-to-image.txt" nbval pytest ipykernel
export TQDM_DISABLE=1 OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES=
failed=0
while read -r chapter; do
  alone=$(mktemp -d)
  cp "$work/repository/$chapter" "$alone/"
  echo "== $chapter"
  (cd "$alone" && python3 -m pytest --quiet --nbval-lax --nbval-current-env --nbval-cell-timeout=900 "$(basename "$chapter")") || failed=1
done < <(cd "$work/repository" && sed -n 's/^ *- file: \(.*\)$/\1.ipynb/p' _toc.yml | while read -r f; do if [ -f "$f" ]; then echo "$f"; fi; done)
exit $failed
