#!/bin/sh
# `make sweep`: how few steps suffice. Accuracy (mean of pictures, by the judge that never guided, the mean over seeds and
# both label files) and seconds a picture, for every sampler, with one of them for every guidance and for every scale of the
# model's own guide, and for the quick ones with pictures drawn again that the guide does not recognise: as a table in
# OUT/sweep.md, as a plot in OUT/report.html; the table also in docs/RESULTS.md (PAGE= leaves that alone). OUT/default is, of
# the rows that draw a picture within MOST seconds, the cheapest within one standard error of their best, as options of
# `ddpm export`: what scripts/mini.sh packs. Rows of LONG steps and more are drawn from fewer seeds. Stopped, the same line
# goes on. The times are taken last, all in a few minutes (leave the machine alone then): eight pictures a row, or all of a
# file where some are drawn again.
#   scripts/sweep.sh [MODEL [JUDGE [OUT]]]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SEEDS:=101 102 103}" "${LONG:=100}" "${LONG_SEEDS:=101 102}" "${TYPES:=test new_test}" "${PAGE=docs/RESULTS.md}"
: "${SAMPLERS:=ddpm:25 ddpm:50 ddpm:100 ddpm:250 ddpm:1000 ddim:10 ddim:25 ddim:50 ddim:100 ddim:250 dpmsolver++:10 dpmsolver++:15 dpmsolver++:25}"
: "${GUIDANCE:=2}" "${GUIDE_SCALE:=6}" # of these
: "${SCALED:=ddpm:25}" "${SCALES:=1 2 3 4 5}" "${GUIDE_SCALES:=0 2 4 6 8}" # the next rows, all of one sampler
: "${TRIED:=ddpm:25 ddim:10 ddim:25 dpmsolver++:10 dpmsolver++:15 dpmsolver++:25}" "${TRIES:=4}" # the last ones
: "${MOST:=1}"
set -e
. scripts/figures.sh
model=${1:-data/mini} judge=${2:-data/mini/evaluator_judge} out=${3:-runs/sweep}
mkdir -p "$out"

options_of() { # sampler:steps guidance guide tries
    # squaredcos_cap_v2 begins with almost no signal, where its half-steps in log(alpha/sigma) lead nowhere.
    case $1 in dpmsolver++:*) from=" --lambda-min-clipped -5.1" ;; *) from= ;; esac
    echo "--sampler ${1%:*} --steps ${1#*:}$from --guidance $2 --guide-scale $3 --tries $4"
}
draw() { # data type seed folder options
    data=$1 type=$2 seed=$3 folder=$4
    shift 4
    $PROGRAM test "$data" --test-type "$type" --model "$model" --evaluator "$judge" --seed "$seed" --out "$folder" "$@" \
        < /dev/null > "$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
}
seeds_of() { if [ "${1#*:}" -ge "$LONG" ]; then echo "$LONG_SEEDS"; else echo "$SEEDS"; fi; } # sampler:steps
folder() { echo "$out/${1%:*}-${1#*:}-guidance-$2-guide-$3-tries-$4-seed-$5" | tr -d +; }
measure() { # sampler:steps guidance guide tries -> "accuracy error sampler:steps guidance guide tries"
    for seed in $(seeds_of "$1"); do
        for type in $TYPES; do
            folder=$(folder "$@" "$seed")
            scored "$folder" "$type" "$(weights_of "$model")" || draw data "$type" "$seed" "$folder" $(options_of "$@")
            figure "$folder/results.json" "$type" accuracy_mean_of_pictures
        done
    done > "$out/accuracies"
    echo "$(mean_and_error < "$out/accuracies" | cut -d ' ' -f 1,2) $*"
}
timed() { # a row -> the same with seconds a picture behind the standard error; the report reads them in results.json
    rm -rf "$out/drawn"
    if [ "$6" = 1 ]; then some=$out/eight; else some=data; fi
    draw "$some" test 1 "$out/drawn" $(options_of "$3" "$4" "$5" "$6")
    seconds=$(figure "$out/drawn/results.json" test seconds_a_picture | awk '{ printf "%.2f", $1 }')
    for seed in $(seeds_of "$3"); do
        file=$(folder "$3" "$4" "$5" "$6" "$seed")/results.json
        sed "s/\(\"seconds_a_picture\":[ \t]*\)[0-9.]*/\1$seconds/" "$file" > "$file.tmp" && mv "$file.tmp" "$file"
    done
    echo "$1 $2 $seconds ${3%:*} ${3#*:} $4 $5 $6"
}

rm -rf "$out/rows" "$out/eight"
for sampler in $SAMPLERS; do measure "$sampler" "$GUIDANCE" "$GUIDE_SCALE" 1 >> "$out/rows"; done
case " $SAMPLERS " in *" $SCALED "*) ;; *) measure "$SCALED" "$GUIDANCE" "$GUIDE_SCALE" 1 >> "$out/rows" ;; esac
for scale in $SCALES; do [ "$scale" = "$GUIDANCE" ] || measure "$SCALED" "$scale" "$GUIDE_SCALE" 1 >> "$out/rows"; done
for scale in $GUIDE_SCALES; do [ "$scale" = "$GUIDE_SCALE" ] || measure "$SCALED" "$GUIDANCE" "$scale" 1 >> "$out/rows"; done
for sampler in $TRIED; do measure "$sampler" "$GUIDANCE" "$GUIDE_SCALE" "$TRIES" >> "$out/rows"; done
mkdir "$out/eight"
cp data/objects.json "$out/eight/"
tr -d '\n' < data/test.json | awk 'BEGIN { RS = "]" } NR <= 8 { printf "%s]", $0 } END { print "]" }' > "$out/eight/test.json"
while read -r row; do timed $row; done < "$out/rows" > "$out/timed"
awk -v most="$MOST" '$3 <= most' "$out/timed" > "$out/quick"
[ -s "$out/quick" ] || { echo "sweep.sh: no row draws a picture within $MOST s: MOST=SECONDS allows more" >&2; exit 1; }
sort -k1,1gr "$out/quick" | awk 'NR == 1 { least = $1 - $2 } $1 >= least' | sort -s -k3,3g | head -n 1 > "$out/best"
read -r accuracy error seconds sampler steps guidance guide tries < "$out/best"
options_of "$sampler:$steps" "$guidance" "$guide" "$tries" > "$out/default"
{
    echo "| sampler | steps | guidance | guide | tries | accuracy | standard error | seconds a picture |"
    echo "| --- | --- | --- | --- | --- | --- | --- | --- |"
    awk '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s |\n", $4, $5, $6, $7, $8, $1, $2, $3 }' "$out/timed"
    echo
    echo "Means over $(echo $SEEDS | wc -w) seeds ($(echo $LONG_SEEDS | wc -w) from $LONG steps on) of $(echo $TYPES | wc -w) label file(s). Of the rows within $MOST s a picture, the cheapest within one standard error of their best:"
    echo "$sampler, $steps steps, guidance $guidance, guide scale $guide, tries $tries ($accuracy, $seconds s a picture). As options: \`$(cat "$out/default")\`"
} > "$out/sweep.md"
rm -rf "$out/rows" "$out/timed" "$out/quick" "$out/accuracies" "$out/eight" "$out/drawn" "$out/best" "$out/log"
cat "$out/sweep.md"
[ -z "$PAGE" ] || between sweep "$PAGE" < "$out/sweep.md"
$PROGRAM report "$out" --out "$out/report.html" --title "Accuracy and time of each way to draw"
