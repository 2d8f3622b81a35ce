#!/bin/sh
# For which GPUs `make cuda` compiles, as flags of nvcc: those asked for (compute capabilities: 80 90), else those of this
# machine, else from sm_75 to sm_90 with PTX, which newer ones compile for themselves.
found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | tr -d . | grep -x '[0-9]*' | sort -un)
for arch in ${*:-${found:-75 80 86 89 90}}; do
    printf -- '-gencode arch=compute_%s,code=sm_%s ' "$arch" "$arch"
done
[ -n "$*$found" ] || printf -- '-gencode arch=compute_90,code=compute_90'
