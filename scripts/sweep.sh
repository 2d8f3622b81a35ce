#!/bin/sh
# `make sweep`: how few steps suffice. Accuracy (mean of pictures, by the judge that never guided, the mean over seeds and
# both label files) and seconds a picture, for every sampler at one guidance and for every guidance at one sampler: as a
# table in OUT/sweep.md, as a plot in OUT/report.html. OUT/default is the cheapest row within one standard error of the
# best, as options of `ddpm export`: what scripts/mini.sh packs. Stopped, the same line goes on.
#   scripts/sweep.sh [MODEL [JUDGE [OUT]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SEEDS:=101 102 103}" "${TYPES:=test new_test}"
: "${SAMPLERS:=ddpm:1000 ddim:250 ddim:100 ddim:50 ddim:25 ddim:10 dpmsolver++:25 dpmsolver++:15 dpmsolver++:10}"
: "${GUIDANCE:=3}" "${SCALES:=1 2 3 4 5}" "${SCALED:=ddim:50}" # the guidance of the first, the sampler of the second rows
set -e
. scripts/figures.sh
model=${1:-data/mini} judge=${2:-data/mini/evaluator_judge} out=${3:-runs/sweep}
mkdir -p "$out"

options_of() { # sampler:steps guidance
    echo "--sampler ${1%:*} --steps ${1#*:} --guidance $2"
    # squaredcos_cap_v2 begins with almost no signal, where its half-steps in log(alpha/sigma) lead nowhere.
    case $1 in dpmsolver++:*) echo "--lambda-min-clipped -5.1" ;; esac
}
measure() { # sampler:steps guidance -> "accuracy error seconds sampler steps guidance"
    options=$(options_of "$1" "$2")
    for seed in $SEEDS; do
        for type in $TYPES; do
            folder=$out/$(echo "${1%:*}-${1#*:}-guidance-$2-seed-$seed" | tr -d +)
            scored "$folder" "$type" "$model" || $PROGRAM test data --test-type "$type" --model "$model" --evaluator "$judge" \
                --seed "$seed" --out "$folder" $options > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
            figure "$folder/results.json" "$type" accuracy_mean_of_pictures > "$out/accuracy-$type"
            figure "$folder/results.json" "$type" seconds_a_picture >> "$out/seconds.tmp"
        done
        for type in $TYPES; do cat "$out/accuracy-$type"; done | mean_and_error | cut -d ' ' -f 1 # of one seed
    done > "$out/accuracy.tmp"
    echo "$(mean_and_error < "$out/accuracy.tmp" | cut -d ' ' -f 1,2) $(mean_and_error < "$out/seconds.tmp" | cut -d ' ' -f 1)" \
        "${1%:*} ${1#*:} $2"
    rm -f "$out/accuracy-"* "$out/"*.tmp
}

rm -f "$out/rows" "$out/"*.tmp
for sampler in $SAMPLERS; do measure "$sampler" "$GUIDANCE" >> "$out/rows"; done
for scale in $SCALES; do
    case " $SAMPLERS " in *" $SCALED "*) [ "$scale" != "$GUIDANCE" ] || continue ;; esac
    measure "$SCALED" "$scale" >> "$out/rows"
done
[ "$(echo $SEEDS | wc -w)" -gt 1 ] || echo "sweep.sh: one seed has no standard error: the best row is the default" >&2
sort -k1,1gr "$out/rows" | awk 'NR == 1 { least = $1 - $2 } $1 >= least' | sort -s -k3,3g | head -n 1 > "$out/best"
read -r accuracy error seconds sampler steps guidance < "$out/best"
options_of "$sampler:$steps" "$guidance" | tr '\n' ' ' | sed 's/ $//' > "$out/default"
{
    echo "| sampler | steps | guidance | accuracy | standard error | seconds a picture |"
    echo "| --- | --- | --- | --- | --- | --- |"
    awk '{ printf "| %s | %s | %s | %s | %s | %s |\n", $4, $5, $6, $1, $2, $3 }' "$out/rows"
    echo
    echo "Means over $(echo $SEEDS | wc -w) seeds of $(echo $TYPES | wc -w) label file(s). The cheapest row within one standard error of the best:"
    echo "$sampler, $steps steps, guidance $guidance ($accuracy, $seconds s a picture). As options: \`$(cat "$out/default")\`"
} > "$out/sweep.md"
rm -f "$out/rows" "$out/best" "$out/log"
cat "$out/sweep.md"
$PROGRAM report "$out" --out "$out/report.html" --title "Accuracy and time of each way to draw"
