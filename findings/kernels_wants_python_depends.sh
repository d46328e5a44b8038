#!/bin/bash
# The package `kernels` does not take a kernel whose metadata.json has no python-depends, which its page of requirements
# for kernels calls optional (huggingface/kernels, docs/source/kernel-requirements.md at 8ac69fc, 2026-08-20). A kernel
# that depends on nothing says so with an empty list.
#
#   package    kernels 0.17.2, from PyPI; no torch is needed
#   input      a folder with one variant, whose metadata has every key that the page calls required; then python-depends too
#   seen       "kernels info FOLDER": Cannot parse metadata: missing field `python-depends`; with it, the metadata
#   expected   the metadata, both times
#
# Exit status 0: the behaviour is as described. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet kernels==0.17.2
variant=$folder/kernel/build/torch-cpu
mkdir -p "$variant"
touch "$variant/__init__.py"

describe() {  # further keys of the metadata
  cat > "$variant/metadata.json" <<JSON
{"id": "example_cpu_1a2b3c4", "name": "example", "version": 1, "license": "Apache-2.0", $1
 "backend": {"type": "cpu"},
 "digest": {"algorithm": "sha256", "files": {"__init__.py": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}}}
JSON
  HF_HUB_OFFLINE=1 "$folder/env/bin/kernels" info "$folder/kernel" 2>&1 || true
}

without=$(describe '' | tail -3)
with=$(describe '"python-depends": [],')
printf 'without python-depends:\n%s\nwith an empty list:\n%s\n' "$without" "$with"
grep -q 'missing field `python-depends`' <<<"$without" && grep -q example <<<"$with" && ! grep -q missing <<<"$with"
