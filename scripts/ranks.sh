#!/bin/sh
# The CPU build with 1 and with 2 ranks of one thread each, in turn (A B A B): pictures a second, and their ratio.
#   scripts/ranks.sh [STEPS]        PROGRAM names another ddpm
set -eu
cd "$(dirname "$0")/.."
program=${PROGRAM:-./ddpm} steps=${1:-6} at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
"$program" render --out "$at/data" --scenes 16 --size 64x48 --seed 1 > /dev/null 2>&1
for run in 1 2 3 4; do
    ranks=$((2 - run % 2))
    "$program" train "$at/data" --model small --batch-size 16 --max-steps "$steps" --ranks $ranks --threads 1 --workers 1 \
        --out "$at/$run" > /dev/null 2>&1
    # the median of its steps, without the first
    sed '1,2d' "$at/$run/timing.csv" | cut -d, -f2 | sort -n | awk -v r=$ranks '{ v[NR] = $1 } END { print r, v[int((NR + 1) / 2)] }'
done > "$at/rates"
awk '{ sum[$1] += $2; line[$1] = line[$1] " " $2 } END {
    print "1 rank: " line[1] " pictures/s"; print "2 ranks:" line[2] " pictures/s"
    printf "ratio %.2f\n", sum[2] / sum[1] }' "$at/rates"
echo "processors $(getconf _NPROCESSORS_ONLN), load $(cut -d' ' -f1 /proc/loadavg 2> /dev/null || echo unknown) (the ratio means little on a busy machine)"
