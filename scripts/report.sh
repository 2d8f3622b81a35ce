# Counting checks, for test.sh and check_long.sh, which include this file with `.`
#   heading TEXT                 a title
#   check NAME COMMAND...        one check: it passes if the command exits 0
#   run_tests LABEL PROGRAM...   each a cmocka program: every test in it is a check; a crash, a timeout, an exit status that
#                                contradicts its tests, or no tests at all, is a failure that names the program;
#                                TEST_JOBS of them (as many as processors) run at a time, reported in this order
#   skip NAME WHY                a check that could not run: never counted as passed
#   finish                       the last line, `N passed, N failed`; exits 1 if anything failed
# A failed check shows its output. TEST_SECONDS is the limit for one command: against hanging, not for being slow.

passed=0 failed=0 skipped=0 failures= skips=
scratch=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-test-XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
: "${TEST_SECONDS:=600}" "${TEST_JOBS:=$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1)}"
limit=
command -v timeout > /dev/null && limit="timeout -k 10 $TEST_SECONDS"

heading() { printf '\n== %s\n' "$*"; }

note_failure() {
    failed=$((failed + 1))
    failures="$failures
  FAILED   $*"
}

skip() { # name, reason
    skipped=$((skipped + 1))
    skips="$skips
  skipped  $1: $2"
    printf '  %-44s skipped: %s\n' "$1" "$2"
}

ending() { # an exit status in words
    case $1 in
    124 | 137) echo "killed after $TEST_SECONDS s, or for memory" ;;
    1[3-9][0-9]) echo "crashed with signal $(($1 - 128))" ;;
    *) echo "exit status $1" ;;
    esac
}

check() {
    name=$1
    shift
    start=$(date +%s)
    case $(command -v "$1") in
    */*) $limit "$@" > "$scratch/log" 2>&1 ;;
    *) "$@" > "$scratch/log" 2>&1 ;; # a shell function: no limit
    esac
    status=$?
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        printf '  %-44s ok  %4d s\n' "$name" $(($(date +%s) - start))
    else
        note_failure "$name: $(ending $status)"
        printf '  %-44s FAILED: %s\n' "$name" "$(ending $status)"
        grep -vE '^  (CC|LINK) ' "$scratch/log" | tail -n 40 | sed 's/^/    | /'
    fi
}

worker() { # program...: runs those that no other worker has claimed by making the directory of their number
    number=0
    for program in "$@"; do
        number=$((number + 1))
        mkdir "$scratch/$number" 2> /dev/null || continue
        start=$(date +%s)
        CMOCKA_MESSAGE_OUTPUT=TAP $limit "$program" > "$scratch/$number/log" 2>&1
        echo "$? $(($(date +%s) - start))" > "$scratch/$number/new" && mv "$scratch/$number/new" "$scratch/$number/ended"
    done
}

run_tests() {
    label=$1
    shift
    rm -rf "$scratch"/[0-9]* "$scratch/over"
    {
        for _ in $(seq "$TEST_JOBS"); do worker "$@" & done
        wait
        : > "$scratch/over"
    } &
    number=0
    for program in "$@"; do
        number=$((number + 1))
        name=${program##*/tests/}
        name="$label ${name##*/cuda/}"
        until [ -e "$scratch/$number/ended" ] || [ -e "$scratch/over" ]; do sleep 1; done
        if [ -e "$scratch/$number/ended" ]; then report_program "$scratch/$number"
        else
            note_failure "$name: whatever ran it was killed"
            printf '  %-44s FAILED: whatever ran it was killed\n' "$name"
        fi
    done
    wait
}

report_program() { # what it printed, $1/log, and "its exit status, its seconds", $1/ended
    log=$1/log
    read -r status seconds < "$1/ended"
    # TAP: "1..N" announces N tests; then "ok I - NAME", "not ok I - NAME" or "(not) ok I # SKIP NAME" for each.
    set_counts=$(awk '
        /^1\.\.[0-9]+/           { planned += substr($1, 4); next }
        /^(not )?ok [0-9]+ .*# SKIP/ { skipped++; next }
        /^ok [0-9]+/             { ok++; next }
        /^not ok [0-9]+/         { bad++ }
        END { print "planned=" planned + 0, "ok=" ok + 0, "bad=" bad + 0, "skips_here=" skipped + 0 }' "$log")
    eval "$set_counts"
    trouble=
    if [ $((ok + bad + skips_here)) -lt "$planned" ]; then
        trouble="ended after $((ok + bad + skips_here)) of $planned tests, $(ending $status)"
    elif [ "$planned" = 0 ]; then trouble="ran no tests, $(ending $status)"
    elif [ $status != 0 ] && [ "$bad" = 0 ]; then trouble="its tests passed, then $(ending $status)"
    elif [ $status = 0 ] && [ "$bad" != 0 ]; then trouble="tests failed, yet exit status 0"
    fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skips_here))
    while IFS= read -r line; do
        [ -z "$line" ] || failures="$failures
  FAILED   $name: $line"
    done << END
$(sed -n 's/^not ok [0-9]* - //p' "$log" | grep -v '^#')
END
    while IFS= read -r line; do
        [ -z "$line" ] || skips="$skips
  skipped  $name: $line"
    done << END
$(sed -n 's/^\(not \)\{0,1\}ok [0-9]* .*# SKIP */ /p' "$log")
END
    [ -z "$trouble" ] || note_failure "$name: $trouble"
    if [ -n "$trouble" ] || [ "$bad" != 0 ]; then
        printf '  %-44s FAILED: %d of %d tests%s\n' "$name" "$bad" "$planned" "${trouble:+; $trouble}"
        grep -v '^ok ' "$log" | tail -n 60 | sed 's/^/    | /'
    else
        printf '  %-44s ok  %4d s, %d tests%s\n' "$name" "$seconds" "$ok" \
            "$([ "$skips_here" = 0 ] || echo ", $skips_here skipped")"
    fi
}

finish() {
    echo
    [ -z "$skips" ] || printf '%s skipped:%s\n' "$skipped" "$skips"
    [ -z "$failures" ] || printf 'failed:%s\n' "$failures"
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" != 0 ]
    exit
}
