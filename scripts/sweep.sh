#!/bin/sh
# `make sweep`: how few steps suffice. Accuracy (mean of pictures, by the judge that never guided, the mean over seeds and
# both label files) and seconds a picture, for every sampler, and with one of them for every guidance and for every scale
# of the model's own guide: as a table in OUT/sweep.md, as a plot in OUT/report.html; the table also in docs/RESULTS.md
# (PAGE= leaves that alone). OUT/default is, of the rows that draw a picture within MOST seconds, the cheapest within one
# standard error of their best, as options of `ddpm export`: what scripts/mini.sh packs. Stopped, the same line goes on.
# The times are taken last, all in a few minutes (leave the machine alone then): eight pictures for each row.
#   scripts/sweep.sh [MODEL [JUDGE [OUT]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SEEDS:=101 102 103}" "${TYPES:=test new_test}" "${PAGE=docs/RESULTS.md}"
: "${SAMPLERS:=ddpm:25 ddpm:50 ddpm:100 ddpm:250 ddpm:1000 ddim:10 ddim:25 ddim:50 ddim:100 ddim:250 dpmsolver++:10 dpmsolver++:15 dpmsolver++:25}"
: "${GUIDANCE:=2}" "${GUIDE_SCALE:=6}"                                        # of the first rows
: "${MOST:=1}" "${SCALED:=ddpm:25}" "${SCALES:=1 2 3 4 5}" "${GUIDE_SCALES:=0 2 4 6 8}" # the sampler of the others
set -e
. scripts/figures.sh
model=${1:-data/mini} judge=${2:-data/mini/evaluator_judge} out=${3:-runs/sweep}
mkdir -p "$out"

options_of() { # sampler:steps guidance guide
    echo "--sampler ${1%:*} --steps ${1#*:} --guidance $2 --guide-scale $3"
    # squaredcos_cap_v2 begins with almost no signal, where its half-steps in log(alpha/sigma) lead nowhere.
    case $1 in dpmsolver++:*) echo "--lambda-min-clipped -5.1" ;; esac
}
draw() { # data type seed folder options
    data=$1 type=$2 seed=$3 folder=$4
    shift 4
    $PROGRAM test "$data" --test-type "$type" --model "$model" --evaluator "$judge" --seed "$seed" --out "$folder" "$@" \
        < /dev/null > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
}
folder() { echo "$out/${1%:*}-${1#*:}-guidance-$2-guide-$3-seed-$4" | tr -d +; } # sampler:steps guidance guide seed
measure() { # sampler:steps guidance guide -> "accuracy error sampler:steps guidance guide"
    for seed in $SEEDS; do
        for type in $TYPES; do
            folder=$(folder "$@" "$seed")
            scored "$folder" "$type" "$model" || draw data "$type" "$seed" "$folder" $(options_of "$@")
            figure "$folder/results.json" "$type" accuracy_mean_of_pictures
        done
    done > "$out/accuracies"
    echo "$(mean_and_error < "$out/accuracies" | cut -d ' ' -f 1,2) $*"
}
timed() { # a row -> the same with seconds a picture behind the standard error; the report reads them in results.json
    draw "$out/eight" test 1 "$out/eight/drawn" $(options_of "$3" "$4" "$5")
    seconds=$(figure "$out/eight/drawn/results.json" test seconds_a_picture | awk '{ printf "%.2f", $1 }')
    for seed in $SEEDS; do
        file=$(folder "$3" "$4" "$5" "$seed")/results.json
        sed "s/\(\"seconds_a_picture\":[ \t]*\)[0-9.]*/\1$seconds/" "$file" > "$file.tmp" && mv "$file.tmp" "$file"
    done
    echo "$1 $2 $seconds ${3%:*} ${3#*:} $4 $5"
}

rm -rf "$out/rows" "$out/eight"
for sampler in $SAMPLERS; do measure "$sampler" "$GUIDANCE" "$GUIDE_SCALE" >> "$out/rows"; done
case " $SAMPLERS " in *" $SCALED "*) ;; *) measure "$SCALED" "$GUIDANCE" "$GUIDE_SCALE" >> "$out/rows" ;; esac
for scale in $SCALES; do [ "$scale" = "$GUIDANCE" ] || measure "$SCALED" "$scale" "$GUIDE_SCALE" >> "$out/rows"; done
for scale in $GUIDE_SCALES; do [ "$scale" = "$GUIDE_SCALE" ] || measure "$SCALED" "$GUIDANCE" "$scale" >> "$out/rows"; done
mkdir "$out/eight"
cp data/objects.json "$out/eight/"
tr -d '\n' < data/test.json | awk 'BEGIN { RS = "]" } NR <= 8 { printf "%s]", $0 } END { print "]" }' > "$out/eight/test.json"
while read -r row; do timed $row; done < "$out/rows" > "$out/timed"
awk -v most="$MOST" '$3 <= most' "$out/timed" > "$out/quick"
[ -s "$out/quick" ] || { echo "sweep.sh: no row draws a picture within $MOST s: MOST=SECONDS allows more" >&2; exit 1; }
sort -k1,1gr "$out/quick" | awk 'NR == 1 { least = $1 - $2 } $1 >= least' | sort -s -k3,3g | head -n 1 > "$out/best"
read -r accuracy error seconds sampler steps guidance guide < "$out/best"
options_of "$sampler:$steps" "$guidance" "$guide" | tr '\n' ' ' | sed 's/ $//' > "$out/default"
{
    echo "| sampler | steps | guidance | guide | accuracy | standard error | seconds a picture |"
    echo "| --- | --- | --- | --- | --- | --- | --- |"
    awk '{ printf "| %s | %s | %s | %s | %s | %s | %s |\n", $4, $5, $6, $7, $1, $2, $3 }' "$out/timed"
    echo
    echo "Means over $(echo $SEEDS | wc -w) seeds of $(echo $TYPES | wc -w) label file(s). Of the rows within $MOST s a picture, the cheapest within one standard error of their best:"
    echo "$sampler, $steps steps, guidance $guidance, guide scale $guide ($accuracy, $seconds s a picture). As options: \`$(cat "$out/default")\`"
} > "$out/sweep.md"
rm -rf "$out/rows" "$out/timed" "$out/quick" "$out/accuracies" "$out/eight" "$out/best" "$out/log"
cat "$out/sweep.md"
[ -z "$PAGE" ] || between sweep "$PAGE" < "$out/sweep.md"
$PROGRAM report "$out" --out "$out/report.html" --title "Accuracy and time of each way to draw"
