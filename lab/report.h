/* lab/report.h - one HTML file about training runs and tests: settings, curves, samples over time, accuracy, grids, and
 * the way from noise to picture. Everything is inside the file (pictures as data: URIs): it can be mailed, and opens
 * without a network. The page itself is lab/report.html, which the Makefile turns into an array. */
#ifndef LAB_REPORT_H
#define LAB_REPORT_H
#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lab_report_config {
    const char *const *directory; /* runs of `ddpm train`, outputs of `ddpm test`, or runs that hold such outputs */
    int directories;
    const char *title;   /* heading of the page */
    const char *made;    /* one line below it: "made 2026-01-31 by ..." */
    const char *version; /* of the program */
} lab_report_config;

/* Writes the page to `path`. What a directory lacks, the page leaves out; what is looked for in each:
 *   args.json, metrics.csv             settings and curves (columns of numbers, the first one "step")
 *   samples/NAME-STEP.png              pictures while it trained, in the order of STEP; at most 24 of them
 *   results.json, here or one level below, with TYPE_grid.png and strips/TYPE_I.png beside it: a test
 * DDPM_ERR_ARGUMENT: a directory that holds none of them; DDPM_ERR_FILE, _FORMAT, _MEMORY. */
ddpm_result lab_report_write(const lab_report_config *config, const char *path);

#ifdef __cplusplus
}
#endif
#endif /* LAB_REPORT_H */
