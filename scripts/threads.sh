#!/bin/sh
# The CPU backend with 1 thread and with all (or N), in turn (A B A B): milliseconds of whole passes and steps, and their
# ratio; also written into docs/PERFORMANCE.md, between its markers.
#   scripts/threads.sh [ROUNDS [N]]        PROGRAM names another ddpm
set -eu
cd "$(dirname "$0")/.."
. scripts/figures.sh
program=${PROGRAM:-./ddpm} rounds=${1:-3} many=${2:-$(getconf _NPROCESSORS_ONLN)}
[ "$many" -gt 1 ] || { echo "$0: one thread and $many are nothing to compare" >&2; exit 1; }
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
load=$(cut -d' ' -f1 /proc/loadavg 2> /dev/null || echo unknown)
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2> /dev/null | head -n 1)
for work in lab_forward_b1 lab_forward_b8 lab_train_b4 lab_train_b8 small_forward_b32 small_train_b32; do
    round=0
    while [ $((round += 1)) -le "$rounds" ]; do
        for threads in 1 "$many"; do
            "$program" bench --json --only $work --threads "$threads" 2> /dev/null |
                awk -v w=$work -v t="$threads" '$1 == "\"ms\":" { print w, t, $2 + 0 }'
        done
    done
done > "$at/times"
[ "$(wc -l < "$at/times")" -eq $((12 * rounds)) ] || { echo "$0: $program bench has failed" >&2; exit 1; }
awk -v many="$many" -v cpu="$cpu" -v load="$load" -v rounds="$rounds" '
    function median(list, n, v, i, j, t) {
        n = split(list, v, " ")
        for (i = 1; i <= n; i++) for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
        least = v[1]; most = v[n]
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    $2 == 1 && !($1 in one) { order[++works] = $1 }
    { if ($2 == 1) one[$1] = one[$1] " " (last = $3); else { all[$1] = all[$1] " " $3; ratio[$1] = ratio[$1] " " last / $3 } }
    END {
        print "`scripts/threads.sh " rounds "`: 1 and " many " threads (" cpu ") in turn, " rounds " rounds, load before them " load
        print ""
        print "| work | 1 thread, ms | " many " threads, ms | times as fast (smallest to largest) |"
        print "| --- | --- | --- | --- |"
        for (i = 1; i <= works; i++) {
            w = order[i]; r = median(ratio[w]); lowest = least; highest = most
            printf "| %s | %.0f | %.0f | %.2f (%.2f to %.2f) |\n", w, median(one[w]), median(all[w]), r, lowest, highest
        }
    }' "$at/times" | tee "$at/table"
between threads docs/PERFORMANCE.md < "$at/table"
