#!/bin/sh
# `make parity`: compares with PyTorch and diffusers, and makes tests/vectors anew (tests/parity/run.py does both).
#   scripts/parity.sh [SCRIPT.py [ARGUMENT...]]     another script of tests/parity/ in the same Python
# Uses $PYTHON if it is set; else makes build/venv once, which downloads about 300 MB (CPU) to 3 GB (with CUDA).
cd "$(dirname "$0")/.." || exit 1
: "${BUILD:=build}" "${MAKE:=make}" "${PROGRAM:=./ddpm}"
run() {
    echo "+ $*" >&2
    "$@"
}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$BUILD/venv/bin/python
    if [ ! -f "$BUILD/venv/complete" ]; then
        python3 -c 'import venv, ensurepip' 2> /dev/null || scripts/dependencies.sh --packages python3 python3-venv || exit 1
        run python3 -m venv "$BUILD/venv" &&
            run "$PYTHON" -m pip install --quiet torch==2.13.0 && # first: the others must not choose another version
            run "$PYTHON" -m pip install --quiet diffusers==0.42.1 safetensors pillow numpy tensorboard playwright &&
            touch "$BUILD/venv/complete" || {
            echo "hint: PYTHON=/path/to/python make parity uses a Python that has torch 2.13 and diffusers 0.42 already" >&2
            exit 1
        }
    fi
fi
[ $# -gt 0 ] || set -- tests/parity/run.py
"$MAKE" --no-print-directory program && DDPM=$PROGRAM run "$PYTHON" -W ignore "$@"
