#!/bin/sh
# `make sweep`: how few steps suffice. Accuracy (mean of pictures, by the judge that never guided, the mean over seeds and
# both label files) and seconds a picture, for every sampler, and with one of them for every guidance and for every scale
# of the model's own guide: as a table in OUT/sweep.md, as a plot in OUT/report.html. OUT/default is the cheapest row
# within one standard error of the best, as options of `ddpm export`: what scripts/mini.sh packs. Stopped, the same line
# goes on.
#   scripts/sweep.sh [MODEL [JUDGE [OUT]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SEEDS:=101 102 103}" "${TYPES:=test new_test}"
: "${SAMPLERS:=ddpm:1000 ddim:250 ddim:100 ddim:50 ddim:25 ddim:10 dpmsolver++:25 dpmsolver++:15 dpmsolver++:10}"
: "${GUIDANCE:=2}" "${GUIDE_SCALE:=6}"                                        # of the first rows
: "${SCALED:=dpmsolver++:15}" "${SCALES:=1 2 3 4 5}" "${GUIDE_SCALES:=0 2 4 6 8}" # the sampler of the others
set -e
. scripts/figures.sh
model=${1:-data/mini} judge=${2:-data/mini/evaluator_judge} out=${3:-runs/sweep}
mkdir -p "$out"

options_of() { # sampler:steps guidance guide
    echo "--sampler ${1%:*} --steps ${1#*:} --guidance $2 --guide-scale $3"
    # squaredcos_cap_v2 begins with almost no signal, where its half-steps in log(alpha/sigma) lead nowhere.
    case $1 in dpmsolver++:*) echo "--lambda-min-clipped -5.1" ;; esac
}
measure() { # sampler:steps guidance guide -> "accuracy error seconds sampler steps guidance guide"
    options=$(options_of "$1" "$2" "$3")
    for seed in $SEEDS; do
        for type in $TYPES; do
            folder=$out/$(echo "${1%:*}-${1#*:}-guidance-$2-guide-$3-seed-$seed" | tr -d +)
            scored "$folder" "$type" "$model" || $PROGRAM test data --test-type "$type" --model "$model" --evaluator "$judge" \
                --seed "$seed" --out "$folder" $options > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
            figure "$folder/results.json" "$type" accuracy_mean_of_pictures > "$out/accuracy-$type"
            figure "$folder/results.json" "$type" seconds_a_picture >> "$out/seconds.tmp"
        done
        for type in $TYPES; do cat "$out/accuracy-$type"; done | mean_and_error | cut -d ' ' -f 1 # of one seed
    done > "$out/accuracy.tmp"
    echo "$(mean_and_error < "$out/accuracy.tmp" | cut -d ' ' -f 1,2) $(mean_and_error < "$out/seconds.tmp" | cut -d ' ' -f 1)" \
        "${1%:*} ${1#*:} $2 $3"
    rm -f "$out/accuracy-"* "$out/"*.tmp
}

rm -f "$out/rows" "$out/"*.tmp
for sampler in $SAMPLERS; do measure "$sampler" "$GUIDANCE" "$GUIDE_SCALE" >> "$out/rows"; done
case " $SAMPLERS " in *" $SCALED "*) ;; *) measure "$SCALED" "$GUIDANCE" "$GUIDE_SCALE" >> "$out/rows" ;; esac
for scale in $SCALES; do [ "$scale" = "$GUIDANCE" ] || measure "$SCALED" "$scale" "$GUIDE_SCALE" >> "$out/rows"; done
for scale in $GUIDE_SCALES; do [ "$scale" = "$GUIDE_SCALE" ] || measure "$SCALED" "$GUIDANCE" "$scale" >> "$out/rows"; done
[ "$(echo $SEEDS | wc -w)" -gt 1 ] || echo "sweep.sh: one seed has no standard error: the best row is the default" >&2
sort -k1,1gr "$out/rows" | awk 'NR == 1 { least = $1 - $2 } $1 >= least' | sort -s -k3,3g | head -n 1 > "$out/best"
read -r accuracy error seconds sampler steps guidance guide < "$out/best"
options_of "$sampler:$steps" "$guidance" "$guide" | tr '\n' ' ' | sed 's/ $//' > "$out/default"
{
    echo "| sampler | steps | guidance | guide | accuracy | standard error | seconds a picture |"
    echo "| --- | --- | --- | --- | --- | --- | --- |"
    awk '{ printf "| %s | %s | %s | %s | %s | %s | %s |\n", $4, $5, $6, $7, $1, $2, $3 }' "$out/rows"
    echo
    echo "Means over $(echo $SEEDS | wc -w) seeds of $(echo $TYPES | wc -w) label file(s). The cheapest row within one standard error of the best:"
    echo "$sampler, $steps steps, guidance $guidance, guide scale $guide ($accuracy, $seconds s a picture). As options: \`$(cat "$out/default")\`"
} > "$out/sweep.md"
rm -f "$out/rows" "$out/best" "$out/log"
cat "$out/sweep.md"
$PROGRAM report "$out" --out "$out/report.html" --title "Accuracy and time of each way to draw"
