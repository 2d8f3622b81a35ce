/* bench.h - measures the machine's limits, every row of the operation table at a model's shapes, and whole forwards and
 * training steps. Measures only; `ddpm bench` (cli/bench.c) prints.
 *
 * Contents: 1 the machine   2 rows   3 whole steps */
#ifndef DDPM_BENCH_H
#define DDPM_BENCH_H
#include "ddpm.h"

/* ---- 1. The machine ------------------------------------------------------------------------------------------ */

typedef struct bench_machine {
    double core_gflops, peak_gflops; /* float multiply-adds, counted as two: one core, and all threads */
    double bandwidth_gbs;            /* STREAM triad (McCalpin 1995) on all threads, 12 bytes an element */
    const char *isa;                 /* the widest instruction set that the loop used: "avx512", "avx2", ... */
} bench_machine;
/* Takes about a second. This and the whole steps run in processes of their own, so that nothing they leave behind,
 * memory or threads, is in the next one's way. The peak is the machine's, not the build's: the loop exists once an
 * instruction set and the processor chooses. DDPM_ERR_MEMORY without room for three 64 MiB arrays. */
ddpm_result bench_measure_machine(int threads, bench_machine *out);

/* ---- 2. Rows ------------------------------------------------------------------------------------------------- */

typedef struct bench_row { /* one operation at one shape; [0] forward, [1] backward */
    ddpm_op op;
    char shape[80];            /* "128x64x64 -> 256x64x64, 3x3" */
    int nodes;                 /* of the network that are like it */
    int missing[2];            /* the reference has such a row, the backend has not */
    int measured[2];           /* not measured: missing, or there is no gradient to compute */
    double ms[2];              /* best of the repeats */
    double flops[2], bytes[2]; /* of one call: a multiply-add as two; inputs and outputs once */
} bench_row;
/* In this process: call it after the others. Builds the preset's network for `batch` pictures and calls the rows of
 * its nodes one by one, each distinct shape for about `seconds`; then the rows that the preset does not use, at shapes
 * near it. *rows is malloc'ed. */
ddpm_result bench_rows(const ddpm_device *device, const char *preset, int batch, double seconds, bench_row **rows,
                       int *count);

/* ---- 3. Whole steps ------------------------------------------------------------------------------------------ */

typedef struct bench_work {
    const char *name, *preset;
    int batch, training; /* one forward; or one training step with clipping and Adam, without the moving average */
    int size;            /* of the pictures, which are square; 0: the preset's */
    double channels;     /* times the preset's; 0: once */
} bench_work;
typedef struct bench_result {
    double ms;           /* median */
    double gflops;       /* a second: multiply-adds as two, those of the direct convolution whatever the algorithm */
    double peak_rss_mib; /* of a process that does nothing else */
    int repeats;
} bench_result;
/* Runs the work once to warm up, then for about `seconds` and three times at least (once, where that takes four times
 * as long). DDPM_ERR_BACKEND: its process was killed, as a system short of memory does. */
ddpm_result bench_run(const ddpm_device *device, const bench_work *work, double seconds, bench_result *out);

#endif
