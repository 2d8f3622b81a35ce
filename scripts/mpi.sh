#!/bin/sh
# Two ranks under mpirun end with the bits of two that the program starts itself; when one is killed all end, and the run
# can be resumed.   scripts/mpi.sh PROGRAM PROGRAM_WITH_MPI DIRECTORY
set -eu
alone=$1 mpi=$2 at=$3/mpi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
together() { mpirun --oversubscribe -np 2 "$mpi" train "$@"; }
mkdir -p "$at"
"$alone" render --out "$at/data" --scenes 4 --size 32x24 --seed 3
set -- "$at/data" --model tiny --resolution 8 --batch-size 5 --epochs 2 --workers 1 --threads 1
"$alone" train "$@" --out "$at/own" --ranks 2
together "$@" --out "$at/mpi"
for file in metrics.csv latest/unet_live/diffusion_pytorch_model.safetensors latest/optimizer/exp_avg_sq.safetensors; do
    cmp "$at/own/$file" "$at/mpi/$file"
done
if "$mpi" train "$@" --out "$at/usage" --ranks 0; then exit 1; fi

together "$@" --out "$at/killed" --epochs 100000 --save-steps 2 > "$at/log" 2>&1 &
runner=$!
tries=0
until [ -e "$at/killed/latest" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { cat "$at/log"; exit 1; }
    sleep 0.1
done
kill -9 "$(pgrep -n -f "$mpi train .*$at/killed")"
if wait $runner; then echo "mpirun took a killed rank for a success"; exit 1; fi
grep -i 'signal 9' "$at/log"
together --resume --out "$at/killed" --max-time 0.001
