#!/bin/sh
# Accuracy over guidance 0 to 7, classifier-free (--guidance) and by an evaluator's gradient (--guide-scale), as a table:
# what the judge says, which never guided, beside what the guide itself says. Guidance can fool the guide.
#   scripts/guidance.sh MODEL GUIDE JUDGE [OUT] [more options of ddpm test]
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${SCALES:=0 1 2 3 4 5 6 7}"
if [ $# -lt 3 ]; then
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
fi
model=$1 guide=$2 judge=$3 out=${4:-runs/guidance}
shift $(($# < 4 ? $# : 4))
[ $# -gt 0 ] || set -- --sampler ddim --steps 50

figure() { # the mean of pictures on the standard input
    sed -n 's/^accuracy (mean of pictures): \([0-9.]*\).*/\1/p'
}
row() { # kind, scale, options
    kind=$1 scale=$2
    shift 2
    folder=$out/$kind-$scale
    judged=$($PROGRAM test --model "$model" --evaluator "$judge" --out "$folder" "$@" 2> "$out/log" | figure)
    own=$($PROGRAM eval --images "$folder/images/test" --labels-file data/test.json --evaluator "$guide" 2>> "$out/log" | figure)
    if [ -z "$judged" ] || [ -z "$own" ]; then
        cat "$out/log" >&2
        exit 1
    fi
    echo "| $kind | $scale | $judged | $own |"
}

mkdir -p "$out" || exit 1
echo "| guidance | scale | by the judge | by the guide |"
echo "| --- | --- | --- | --- |"
for scale in $SCALES; do row labels "$scale" --guidance "$scale" "$@"; done
for scale in $SCALES; do row evaluator "$scale" --guidance 1 --guide "$guide" --guide-scale "$scale" "$@"; done
