#!/bin/sh
# What `make mini`, `make sweep`, `make guidance` and `make experiment` do, at a size of seconds: each stage runs, the
# tables have their rows, and what is done is not done again. Part of `make check-long`.
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}"
export PROGRAM
set -e
small=$(mktemp -d)
trap 'rm -rf "$small"' EXIT
expect() { # what, found, wanted
    [ "$2" = "$3" ] || {
        echo "lab_small.sh: $1: $2, not $3" >&2
        exit 1
    }
}

export DATA="$small/data" GUIDE="$small/guide" JUDGE="$small/judge" RUN="$small/run" SCORE="$small/score" MINI="$small/mini"
export SWEEP="$small/sweep" SCENES=8 SIZE=64x48 EVALUATOR_EPOCHS=1 MORE_EPOCHS=1 STEPS=2 MORE_STEPS=2 UNSEEN=4 TRAIN_OPTIONS='--held-out 3 --batch-size 4' HELD="$small/held" HELD_SCENES=2 MORE="$small/more" MORE_SCENES=8 TWIN="$small/twin" SEEDS='1 2'
export PAGE= EVALUATOR_OPTIONS='--batch-size 6 --held-out 2 --width 0.03125 --resolution 64'
export MOST=1000 SAMPLERS='ddim:2 dpmsolver++:2' SCALES='1 2' SCALED=ddim:2 GUIDANCE=2 GUIDE_SCALE=0 GUIDE_SCALES=0 TRIED=ddim:2 TRIES=2
scripts/mini.sh > "$small/log" 2>&1 || {
    cat "$small/log" >&2
    exit 1
}
expect "rows of the sweep" "$(grep -cE '^\| (ddim|dpmsolver\+\+) ' "$SWEEP/sweep.md")" 4
guidance=$(sed 's/.*--guidance \([0-9.]*\).*/\1/' "$SWEEP/default") tries=$(sed 's/.*--tries //' "$SWEEP/default")
expect "how it draws, by $(cat "$SWEEP/default")" \
    "$(grep -cE "it draws with .*Scheduler, 2 steps, guidance $guidance, guide scale 0;$|again, up to $tries times" "$MINI/README.md")" 2
expect "label files in mini's table" "$(grep -c '^| `.*json` | [01]\.[0-9]* | .* | 2 | [01]\.[0-9]* | [01]\.[0-9]* |$' "$MINI/README.md")" 3
expect "label sets that were never trained on" "$(grep -c '\["' "$MINI/unseen.json")" 4
expect "evaluators in mini's table" "$(grep -c '^| `evaluator' "$MINI/README.md")" 2
for file in loss.png test_grid.png model_index.json evaluator/model.safetensors evaluator_judge/model.safetensors; do
    expect "$file of mini" "$(ls "$MINI/$file")" "$MINI/$file"
done
cp "$MINI/README.md" "$small/before"
scripts/mini.sh data guide judge score readme > "$small/log" 2>&1
expect "commands of what was done" "$(grep -c '^\$' "$small/log")" 0
cmp "$small/before" "$MINI/README.md"

SCALES=0 SEEDS=1 scripts/guidance.sh "$MINI" "" "" "$small/guidance" --steps 2 > "$small/log" 2>&1
expect "rows of guidance" "$(grep -cE '^\| (labels|labels-ddpm|evaluator) \| 0 \| [01]\.' "$small/guidance/guidance.md")" 3

TIMES='10 20' STEPS=6 MODEL='--model tiny --resolution 16 --batch-size 4' \
    scripts/experiment.sh "$DATA" "$JUDGE" "$small/experiment" > "$small/log" 2>&1
expect "rows of the experiment" "$(grep -cE '^\| (10|20) ' "$small/experiment/experiment.md")" 2
expect "what it found" "$(grep -c 'has the highest accuracy' "$small/experiment/experiment.md")" 1
for page in "$SWEEP/report.html" "$small/experiment/report.html"; do expect "$page" "$(ls "$page")" "$page"; done
echo "mini, sweep and experiment run at small size"
