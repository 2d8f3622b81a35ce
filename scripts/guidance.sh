#!/bin/sh
# `make guidance`: accuracy over guidance 0 to 7, classifier-free (--guidance) and by an evaluator's gradient
# (--guide-scale), as a table: what the judge says, which never guided, beside what the guide itself says. Guidance can
# fool the guide. By 25 steps of DDIM; classifier-free guidance once more by ancestral steps (labels-ddpm): DDIM clips x_0
# and not its eps.
# Each scale draws both label files from each seed; the table also goes into docs/RESULTS.md (PAGE= leaves that alone).
# Stopped, the same line goes on.
#   scripts/guidance.sh [MODEL [GUIDE [JUDGE [OUT [more options of ddpm test]]]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SCALES:=0 1 2 3 4 5 6 7}" "${SEEDS:=101 102}" "${TYPES:=test new_test}" "${PAGE=docs/RESULTS.md}"
set -e
. scripts/figures.sh
model=${1:-data/mini} guide=${2:-$model/evaluator} judge=${3:-$model/evaluator_judge} out=${4:-runs/guidance}
shift $(($# < 4 ? $# : 4))
mkdir -p "$out"

row() { # kind, scale, options
    kind=$1 scale=$2
    shift 2
    for seed in $SEEDS; do
        folder=$out/$kind-$scale-seed-$seed
        for type in $TYPES; do
            scored "$folder" "$type" "$(weights_of "$model")" ||
                $PROGRAM test data --test-type "$type" --model "$model" --evaluator "$judge" --seed "$seed" --out "$folder" "$@" \
                    > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
            figure "$folder/results.json" "$type" accuracy_mean_of_pictures >> "$out/judged"
            $PROGRAM eval --images "$folder/images/$type" --labels-file "data/$type.json" --evaluator "$guide" > "$out/own" 2> "$out/log" ||
                { cat "$out/log" >&2; exit 1; }
            sed -n 's/^accuracy (mean of pictures): \([0-9.]*\).*/\1/p' "$out/own" >> "$out/guided"
        done
    done
    echo "| $kind | $scale | $(mean_and_error < "$out/judged" | awk '{ print $1 " | " $2 }') | $(mean_and_error < "$out/guided" | cut -d ' ' -f 1) |"
    rm -f "$out/judged" "$out/guided" "$out/own" "$out/log"
}

rm -f "$out/judged" "$out/guided"
{
    echo "| guidance | scale | by the judge | standard error | by the guide |"
    echo "| --- | --- | --- | --- | --- |"
    for scale in $SCALES; do row labels "$scale" --guidance "$scale" --guide-scale 0 --sampler ddim --steps 25 "$@"; done
    for scale in $SCALES; do row labels-ddpm "$scale" --guidance "$scale" --guide-scale 0 --sampler ddpm --steps 25 "$@"; done
    for scale in $SCALES; do row evaluator "$scale" --guidance 1 --guide "$guide" --guide-scale "$scale" --sampler ddim --steps 25 "$@"; done
} > "$out/guidance.md"
cat "$out/guidance.md"
[ -z "$PAGE" ] || between guidance "$PAGE" < "$out/guidance.md"
