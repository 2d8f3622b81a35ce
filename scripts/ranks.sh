#!/bin/sh
# The CPU build with 1 and with 2 ranks of one thread each, in turn (A B A B): pictures a second, and their ratio; also
# written into docs/PERFORMANCE.md, between its markers.
#   scripts/ranks.sh [STEPS]        PROGRAM names another ddpm
set -eu
cd "$(dirname "$0")/.."
. scripts/figures.sh
program=${PROGRAM:-./ddpm} steps=${1:-12} at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
load=$(cut -d' ' -f1 /proc/loadavg 2> /dev/null || echo unknown)
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2> /dev/null | head -n 1)
"$program" render --out "$at/data" --scenes 16 --size 64x48 --seed 1 > /dev/null 2>&1
for run in 1 2 3 4; do
    ranks=$((2 - run % 2))
    "$program" train "$at/data" --model small --batch-size 16 --max-steps "$steps" --ranks $ranks --threads 1 --workers 1 \
        --out "$at/$run" > /dev/null 2>&1
    # the median of its steps, without the first
    sed '1,2d' "$at/$run/timing.csv" | cut -d, -f2 | sort -n | awk -v r=$ranks '{ v[NR] = $1 } END { print r, v[int((NR + 1) / 2)] }'
done > "$at/rates"
awk -v processors="$(getconf _NPROCESSORS_ONLN)" -v cpu="$cpu" -v load="$load" -v steps="$steps" '
    { sum[$1] += $2; line[$1] = line[$1] (line[$1] ? ", " : "") $2 }
    END {
        print "`scripts/ranks.sh " steps "`: small model, batch 16, ranks of one thread each, in turn; " processors " processors (" cpu "), load before them " load
        print ""
        print "| ranks | pictures a second, two runs |"
        print "| --- | --- |"
        print "| 1 | " line[1] " |"
        print "| 2 | " line[2] " |"
        printf "\n2 ranks over 1: %.2f\n", sum[2] / sum[1]
    }' "$at/rates" | tee "$at/table"
between ranks docs/PERFORMANCE.md < "$at/table"
