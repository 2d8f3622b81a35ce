#!/bin/sh
# `make check-long`: the checks that take minutes. tests/planted.sh plants a wrong sign in every backward in turn and wants
# the gradient tests to notice each; a run is killed ten times; the guide's and the lab's commands run; then ThreadSanitizer
# on the threads of the data set, valgrind, all tests under clang's sanitizers, and libFuzzer on every fuzz target. The last
# line is `N passed, N failed`.
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${BUILD:=build}" "${COMPILER:=cc}" "${MAKE:=make}" "${FUZZ_SECONDS:=60}" "${TEST_SECONDS:=3600}"
. scripts/report.sh
# Threads that wait sleep: on a busy machine spinning ones make each other several times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
build() { "$MAKE" --no-print-directory -k "$@"; }
sources=$(ls tests/test_*.c 2> /dev/null)
fuzzers=$(ls tests/fuzz/fuzz_*.c 2> /dev/null)
"$MAKE" --no-print-directory flags || { note_failure "dependencies are missing"; finish; }

if [ -x tests/planted.sh ]; then
    heading "Planted gradient errors"
    check "every planted error is caught" tests/planted.sh
    sed -n '$s/^/  /p' "$scratch/log"
fi
if [ -x tests/check_long.sh ]; then
    heading "tests/check_long.sh"
    check "tests/check_long.sh" tests/check_long.sh
fi

heading "Runs that are killed"
check "builds" build "$BUILD/$COMPILER/ddpm" "$BUILD/$COMPILER/tests/test_run"
check "ten kills, and the same end" "$BUILD/$COMPILER/tests/test_run" 10

heading "The guide"
check "every command of docs/guide.md" env PROGRAM="$BUILD/$COMPILER/ddpm" scripts/guide.sh

heading "The lab's commands"
check "make mini, sweep, experiment at small size" env PROGRAM="$BUILD/$COMPILER/ddpm" scripts/lab_small.sh

heading "Races (ThreadSanitizer)"
if [ -f tests/test_dataset.c ]; then
    check "builds with ThreadSanitizer" build VARIANT=thread \
        "$BUILD/$COMPILER-thread/tests/test_dataset" "$BUILD/$COMPILER-thread/tests/test_cpu"
    # OpenMP's own barriers are not instrumented and would be reported: one thread there, so that ours remain.
    OMP_NUM_THREADS=1 run_tests "threads" \
        "$BUILD/$COMPILER-thread/tests/test_dataset" "$BUILD/$COMPILER-thread/tests/test_cpu"
fi

if [ "$(uname -m)" = x86_64 ] && command -v "${CXX:=c++}" > /dev/null; then
    heading "The CUDA backend (on an emulated GPU, all shapes and orders)"
    check "builds" build cuda-tests
    export DDPM_TEST_FULL=1 # the checks would take an hour at these sizes
    run_tests "emulated GPU, all shapes," "$BUILD/$COMPILER/cuda/plain/test_cuda"
    unset DDPM_TEST_FULL
    check "every mistake planted in cuda_backend.cu is caught" tests/cuda/planted.sh
    sed -n '$s/^/  /p' "$scratch/log"
else skip "emulated GPU" "it needs x86-64 and a C++ compiler"
fi

heading "Memory (valgrind)"
if ! command -v valgrind > /dev/null; then skip "valgrind" "not installed"
else
    check "builds" build tests
    for name in test_io test_vectors; do # for values that are read before they are set; leaks are LeakSanitizer's
        check "valgrind $name" valgrind -q --error-exitcode=9 --leak-check=no "$BUILD/$COMPILER/tests/$name"
    done
fi

if command -v clang > /dev/null; then
    heading "Tests and fuzzers (clang, sanitizers)"
    export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
    # libomp keeps what it allocates for more threads than processors (test_cpu asks for 5): not ours to free.
    printf 'leak:libomp.so\n' > "$scratch/leaks"
    export LSAN_OPTIONS="suppressions=$scratch/leaks:print_suppressions=0"
    check "builds with clang and sanitizers" build CC=clang VARIANT=sanitize tests
    # shellcheck disable=SC2046
    run_tests "clang sanitized" $(for source in $sources; do echo "$BUILD/clang-sanitize/${source%.c}"; done)
    check "builds with libFuzzer" build CC=clang VARIANT=fuzz fuzzers
    for source in $fuzzers; do
        name=$(basename "$source" .c)
        mkdir -p "$BUILD/corpus/$name"
        seeds=tests/fuzz/${name#fuzz_}
        [ -d "$seeds" ] || seeds=
        check "$name, $FUZZ_SECONDS s" "$BUILD/clang-fuzz/${source%.c}" -max_total_time="$FUZZ_SECONDS" -rss_limit_mb=2048 \
            -artifact_prefix="$BUILD/corpus/$name-" "$BUILD/corpus/$name" $seeds
    done
else
    skip "clang: sanitizers and libFuzzer" "not installed"
fi
finish
