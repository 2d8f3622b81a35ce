#!/bin/sh
# tests/cuda/planted.sh - plants mistakes in what cuda_backend.cu leaves to streams, events, recorded graphs and the
# device's own decisions, and gradients that are added where they are the first, one at a time, in a copy, and shows that
# tests/cuda/test_cuda.c catches each on the emulated GPU.
# Prints a line for each; the last is `N caught, M missed`. Fails if one is missed, or no longer fits the source.
cd "$(dirname "$0")/../.." || exit 2
: "${MAKE:=make}" "${BUILD:=build}" "${COMPILER:=cc}"
plain=$BUILD/$COMPILER/cuda/plain
work=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-planted-XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM
"$MAKE" --no-print-directory "$plain/test_cuda" > "$work/log" 2>&1 || { cat "$work/log"; exit 2; }
# How make compiles the backend (but for time) and links the test, for the copy.
"$MAKE" --no-print-directory V=1 -n -W cuda_backend.cu "$plain/test_cuda" |
    sed -n -e "/-c cuda_backend.cu/p" -e "s~-o $plain/test_cuda~-o $work/test_cuda~p" |
    sed -e "s~-O2 -x c++~-O1 -x c++~" -e "s~-c cuda_backend.cu~-c $work/cuda_backend.cu~" -e "s~$plain/cuda_backend.o~$work/cuda_backend.o~" > "$work/build"

# What goes wrong ~ function ~ what sed looks for in it ~ what it puts there. It must change one line.
# shellcheck disable=SC2016
list='
a repeated step keeps rate and noise of the recorded one ~ cuda_repeat ~ TRY(send_step.*; ~ ;
one recording for every kind of step ~ find_recording ~ !strcmp(r->key, key) ~ key
a batch is overwritten before it is taken ~ cuda_stage ~ CUDA_OF(cudaStreamWaitEvent.*; ~ ;
a batch is taken before it has arrived ~ cuda_unstage ~ CUDA_OF(cudaStreamWaitEvent.*; ~ ;
one pinned place for two batches ~ cuda_stage ~ b->turn ^= 1, ~ 
letters lie on each other ~ mail_room ~ s->mail_used += .*; ~ ;
what was fetched is not handed over ~ cuda_sync ~ memcpy(.*; ~ ;
an update that is not finite is made ~ decide ~ isfinite(total) ~ 1
a gradient of a bias is added to what lies there ~ conv_backward ~ adds_to(node, 2) ~ 1
gradients of a norm are added to what lies there ~ gradients_of_norm_at ~ adds_to(node, 1), adds_to(node, 2) ~ 1, 1
a gradient of a table is added to what lies there ~ embedding_backward ~ !adds_to(node, 1) ~ 0
'

judge() { # 0: the tests pass; 1: they fail; 9: it does not compile
    sh -e "$work/build" > "$work/log" 2>&1 || { cat "$work/log"; return 9; }
    for pattern in 'test_repeated*' 'test_skipped*' 'test_rows_shuffled'; do
        "$work/test_cuda" "$pattern" > "$work/log" 2>&1 || return 1
    done
}
cp cuda_backend.cu "$work"
judge || { cat "$work/log"; echo "the tests fail before anything is planted"; exit 1; }

caught=0 missed=0
while read -r line; do
    [ -n "$line" ] || continue
    mistake=${line%% ~ *} rest=${line#* ~ }
    function=${rest%% ~ *} rest=${rest#* ~ }
    from=${rest%% ~*} to=${rest#* ~} to=${to# }
    sed "/^[^ ].*[ *]$function(/,/^}/ s~$from~$to~" cuda_backend.cu > "$work/cuda_backend.cu"
    changed=$(diff cuda_backend.cu "$work/cuda_backend.cu" | grep -c '^>')
    if [ "$changed" != 1 ]; then
        verdict="DOES NOT FIT: '$from' changes $changed lines of $function"
    else
        judge
        case $? in
        0) verdict=MISSED ;;
        1) verdict=caught ;;
        *) verdict="DOES NOT COMPILE" ;;
        esac
    fi
    if [ "$verdict" = caught ]; then caught=$((caught + 1)); else missed=$((missed + 1)); fi
    printf '%-60s %s\n' "$mistake" "$verdict"
done << END
$list
END
echo "$caught caught, $missed missed"
[ $missed = 0 ]
