/* cli/results.h - results.json of `ddpm test`: the accuracy, what each picture scored, and all that is needed to draw
 * the same pictures again. */
#ifndef DDPM_CLI_RESULTS_H
#define DDPM_CLI_RESULTS_H

#include "cli/draw.h"
#include "cli/judge.h"

typedef struct cli_results {
    const cli_context *context;
    const cli_option *options; /* of the command: all their values are written */
    const cli_drawing *drawing;
    const cli_judge *judge; /* NULL: nobody judged */
    const cli_judge *guide; /* what it thinks of the pictures it guided; NULL: nobody guided */
    const int *hits;        /* of each of the `listed` sets; NULL without a judge */
    int listed;
    const char *labels_file;
    double seconds; /* that drawing took */
} cli_results;

/* Writes them under `name` ("test") into the object of the file at `path`, whose other members stay; atomically.
 * Weights and label file are named with their SHA-256. */
ddpm_result cli_write_results(const cli_results *results, const char *name, const char *path);

#endif
