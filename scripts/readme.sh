#!/bin/sh
# `make readme`: writes the first screen of README.md, between its markers, from what this machine does now: the bundled
# model's pictures (docs/required.gif, docs/drawn.png, docs/rendered.png), three commands with what they print, and the
# table. Accuracy comes from data/mini/README.md (make mini), the ratio to PyTorch from docs/PERFORMANCE.md (make
# bench-torch), the checks from build/test.log (make test | tee build/test.log). Minutes.
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${BUILD:=build}" "${SEED:=529}"
set -e
. scripts/figures.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
required="red sphere, cyan cylinder, cyan cube"

drawn() { # the seconds a picture took, from the program's own line
    sed -n 's/.*: .*, \([0-9.]* m*s\) a picture.*/\1/p' "$1" | tail -n 1
}
shown() { # command, its output: as a reader sees it, without the progress of its bars
    printf '    $ %s\n' "$1"
    grep -vE '^(draw|train|render|eval|pictures) +[0-9]+%|^$' "$2" | sed 's/^/    /'
}

"$PROGRAM" sample "$required" --seed "$SEED" --gif --out "$work/required.png" > "$work/gif" 2>&1
"$MAKE" --no-print-directory demo > "$work/demo" 2>&1
sed -n '/^accuracy/p;/of what the labels/,$p' "$work/demo" > "$work/told"
"$PROGRAM" sample "red sphere, cyan cube" --out "$work/sample.png" > "$work/sample" 2>&1
"$PROGRAM" render --out "$work/my_pictures" --layout folders --scenes 1200 --size 64x64 > /dev/null 2>&1
(cd "$work" && "$OLDPWD/$PROGRAM" train my_pictures --out my_model --max-steps 20) > "$work/train" 2>&1

row() { sed -n "s/^| $1 | //p" docs/PERFORMANCE.md | cut -d '|' -f 4 | sed 's/^ *//; s/ .*//'; } # the ratio of a work
accuracy() { sed -n "s/^| \`$1.json\` | \([0-9.]*\) | \([0-9.]* to [0-9.]*\) | \([0-9]*\) |.*/\1 (\2; \3 seeds)/p" data/mini/README.md | head -n 1; }
best() { # of docs/RESULTS.md's sweep: "0.9800 with ddpm, 1000 steps: 8.1 s"
    awk -F ' *[|] *' '/sweep: begin/ { inside = 1 } /sweep: end/ { inside = 0 }
        inside && $7 + 0 > most { most = $7 + 0; row = sprintf("%s with %s, %s steps, %s tr%s: %.1f s", $7, $2, $3, $6, $6 == 1 ? "y" : "ies", $9) }
        END { print row }' docs/RESULTS.md
}
processor=$(sed -n 's/^PyTorch .*threads, \(.*\); best of.*/\1/p' docs/PERFORMANCE.md)
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2> /dev/null | head -n 1)
part_one=$(awk '/^\/\* ==== Part II/ { print NR - 1; exit }' ddpm_impl.c)

{
    cat << END
| noise becoming "$required" |
| :---: |
| ![the denoising](docs/required.gif) |
| \`./ddpm sample "$required" --seed $SEED --gif\`: $(drawn "$work/gif") |

| drawn for the 32 label sets of \`data/test.json\`; a red frame: the judge misses an object | the same sets rendered: what it learned from |
| --- | --- |
| ![drawn](docs/drawn.png) | ![rendered](docs/rendered.png) |

$(shown "make demo" "$work/told")

$(shown './ddpm sample "red sphere, cyan cube"' "$work/sample" | sed "s|$work/||")

$(shown './ddpm train my_pictures --out my_model --max-steps 20' "$work/train")

| | |
| --- | --- |
| accuracy (mean of pictures, 95% interval), \`test.json\` | $(accuracy test) |
| ... \`new_test.json\` | $(accuracy new_test) |
| ... label sets that training never had | $(accuracy unseen) |
| a picture of 64x64 takes | $(printf %.2f "$(figure demo/drawn/results.json test seconds_a_picture)") s on $(getconf _NPROCESSORS_ONLN) cores ($cpu); [at best](docs/RESULTS.md) $(best) |
| PyTorch's time over ours ($processor) | lab UNet: forward $(row lab_forward_b8), training step $(row lab_train_b8); small model's step $(row small_train_b32) |
| lines to read | \`ddpm.h\` $(wc -l < ddpm.h), Part I of \`ddpm_impl.c\` $part_one |
| checks of \`make test\` | $(tail -n 1 "$BUILD/test.log" 2> /dev/null || echo "not run") |
END
} > "$work/first"
# Last: a version that ends in -dirty would be these files' doing.
cp "$work/required.gif" docs/required.gif
cp demo/drawn/test_grid.png docs/drawn.png
cp demo/rendered_grid.png docs/rendered.png
between readme README.md < "$work/first"
sed -n '/readme: begin/,/readme: end/p' README.md
