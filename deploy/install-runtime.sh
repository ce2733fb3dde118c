#!/bin/sh
# Installs a wheel of snl-edge with its extras into a new environment, without torch. The Dockerfile runs it, and so does a station without containers:
#   sh install-runtime.sh /usr/bin/python3 snl_edge-0.1.0-py3-none-any.whl cpu,sign /opt/snl-edge
set -eu
python=$1 wheel=$2 extras=$3 folder=$4
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --quiet "$wheel[$extras]"
"$folder/bin/snl-run" --help >/dev/null
if "$folder/bin/python" -c 'import torch' 2>/dev/null; then
    echo "install-runtime.sh: torch came with $extras; a station must not need it" >&2
    exit 1
fi
