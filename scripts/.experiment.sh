#!/bin/sh
# `make experiment`: does it matter how many steps the noise schedule has? Trains the same model with T = 500, 1000 and 2000
# from three seeds each, all for the same number of steps of the same batches, draws both label files in all T steps and has
# the judge score them. OUT/report.html: the loss curves over each other, the accuracy as bars with 95% intervals;
# OUT/experiment.md and docs/RESULTS.md (PAGE= leaves that alone): the table and what it says. Stopped, the same line goes on.
# Pictures of 32x32 (the judge knows enlarged ones): nine models and their pictures take two hours of one core.
#   scripts/experiment.sh [DATA [JUDGE [OUT]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${TIMES:=500 1000 2000}" "${SEEDS:=1 2 3}" "${TYPES:=test new_test}" "${STEPS:=5000}" "${PAGE=docs/RESULTS.md}"
: "${MODEL:=--model scripts/mini.json --pixel-unshuffle 2 --resolution 32 --batch-size 16 --lr 6e-4 --lr-schedule cosine --warmup 500 --prediction-type v_prediction}"
: "${SAMPLING:=--sampler ddpm}" # in all T steps
set -e
. scripts/figures.sh
data=${1:-runs/iclevr} judge=${2:-data/mini/evaluator_judge} out=${3:-runs/experiment}
mkdir -p "$out"

last_step() { [ ! -f "$1/metrics.csv" ] || tail -n 1 "$1/metrics.csv" | cut -d, -f 1; }
train() { # T seed folder
    at=$(last_step "$3")
    if [ "${at:-0}" != "$STEPS" ]; then
        if [ -f "$3/args.json" ]; then $PROGRAM train --resume --out "$3"
        else $PROGRAM train "$data" --out "$3" $MODEL --timesteps "$1" --seed "$2" --max-steps "$STEPS" --ema-decay 0.999; fi
    fi
}
final_loss() { # the mean of the last tenth of the steps
    tail -n "$((STEPS / 10 + 1))" "$1/metrics.csv" | awk -F, '$4 + 0 > 0 { sum += $4; n++ } END { print sum / n }'
}
accuracy() { # folder seed -> the mean over the label files
    for type in $TYPES; do
        scored "$1/judged" "$type" "$(weights_of "$1/latest")" "$SAMPLING" || $PROGRAM test data --test-type "$type" --model "$1/latest" --evaluator "$judge" \
            --seed "$2" --out "$1/judged" $SAMPLING > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
        figure "$1/judged/results.json" "$type" accuracy_mean_of_pictures
    done > "$out/accuracies"
    mean_and_error < "$out/accuracies" | cut -d ' ' -f 1
}
row() { # T: "T accuracy half-of-its-95%-interval loss error seeds"
    rm -f "$out/values" "$out/losses"
    for seed in $SEEDS; do
        folder=$out/T$1-seed-$seed
        train "$1" "$seed" "$folder" >&2
        accuracy "$folder" "$seed" >> "$out/values"
        final_loss "$folder" >> "$out/losses"
    done
    # Student's 97.5% quantiles for 1 to 10 degrees of freedom, beyond that near the normal one
    { mean_and_error < "$out/values"; awk '{ s += $1 } END { print s / NR }' "$out/losses"; } | tr '\n' ' ' |
        awk -v t="$1" 'BEGIN { split("12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228", q, " ") }
            { n = $3; half = n > 1 ? (n < 12 ? q[n - 1] : 2) * $2 : 1; printf "%s %.4f %.4f %.5f %d\n", t, $1, half, $4, n }'
}

rm -f "$out/rows"
for t in $TIMES; do row "$t" >> "$out/rows"; done
{
    echo "| T | accuracy | 95% interval | loss of the last tenth | seeds |"
    echo "| --- | --- | --- | --- | --- |"
    awk '{ low = $2 - $3; high = $2 + $3; printf "| %s | %.4f | %.4f to %.4f | %s | %s |\n", $1, $2, (low < 0 ? 0 : low), (high > 1 ? 1 : high), $4, $5 }' "$out/rows"
    echo
    echo "Mean of pictures, the mean over seeds with Student's interval; $STEPS steps of training each."
    # Welch's rule of thumb: two means differ if they are further apart than their half intervals in quadrature.
    sort -k2,2gr "$out/rows" | awk '
        { t[NR] = $1; a[NR] = $2; h[NR] = $3; l[NR] = $4 }
        END {
            low = high = l[1]
            for (i = 2; i <= NR; i++) {
                if (l[i] < low) low = l[i]
                if (l[i] > high) high = l[i]
                gap = sqrt(h[1] * h[1] + h[i] * h[i])
                verdict = a[1] - a[i] > gap ? "better than" : "not told apart from"
                text = text sprintf("%s %s T = %s (%.4f, %.4f apart, chance alone explains %.4f)", i > 2 ? " and" : "", verdict, t[i], a[i], a[1] - a[i], gap)
            }
            printf "T = %s has the highest accuracy, %.4f; it is%s. The losses lie within %.1f%% of each other.\n", t[1], a[1], text, 100 * (high - low) / low
        }'
} > "$out/experiment.md"
rm -f "$out/rows" "$out/values" "$out/losses" "$out/accuracies" "$out/log"
cat "$out/experiment.md"
[ -z "$PAGE" ] || between experiment "$PAGE" < "$out/experiment.md"
set --
for t in $TIMES; do for seed in $SEEDS; do set -- "$@" "$out/T$t-seed-$seed"; done; done
$PROGRAM report "$@" --out "$out/report.html" --title "Steps of the noise schedule"
