/* cli/judge.h - an evaluator at work for `test`, `eval` and `train-evaluator`: opens it, scores pictures against label
 * sets, prints the accuracy. */
#ifndef DDPM_CLI_JUDGE_H
#define DDPM_CLI_JUDGE_H

#include "cli/cli.h"
#include "io/picture.h"
#include "lab/evaluator.h"
#include "lab/score.h"

typedef struct cli_judge { /* start from {0} */
    lab_evaluator *ev;
    lab_evaluator_net *net;
    lab_tally tally;
    ddpm_real *picture, *scores; /* of one */
} cli_judge;

/* Where the evaluator `name` (as "evaluator_judge") of a model is, or else the bundled one would
 * be: a path that need not exist; free() it. model NULL: bundled. NULL: see ddpm_error(). */
char *cli_find_evaluator(const char *model, const char *name);

/* Loads the evaluator of --guide; *out is NULL without one, or at scale 0. */
ddpm_result cli_open_guide(const cli_context *context, const char *path, double scale, lab_evaluator **out);

/* Opens the evaluator at `path`; NULL: the bundled judge, data/mini/evaluator_judge. */
ddpm_result cli_judge_open(const cli_context *context, const char *path, cli_judge *out);
void cli_judge_close(cli_judge *judge);

/* Counts a picture of any size (resized to the evaluator's as PIL does), labelled with the judge's class indices. hits
 * may be NULL. */
ddpm_result cli_judge_picture(cli_judge *judge, const io_picture *picture, const int *label, int labels, int *hits);
/* Translates a set of other classes into the judge's, by name; DDPM_ERR_RANGE names one that it does not know. */
ddpm_result cli_judge_labels(const cli_judge *judge, const lab_classes *classes, const int *label, int labels,
                             int *out);

/* The first `count` sets' pictures in rows of eight, as make_grid does; those of which an object was missed (hits: of
 * each set; NULL: nobody judged) stand in a red frame. A lone picture has no room for one. */
ddpm_result cli_make_judged_grid(const io_picture *picture, const lab_label_sets *sets, int count, const int *hits,
                                 io_picture *out);

/* "accuracy (mean of pictures): 0.9844" and "accuracy (pooled objects): 0.9861" with intervals, to stdout. */
void cli_print_accuracy(const lab_tally *tally);
/* Hits of each class, and what was taken for what, to stdout. */
void cli_print_classes(const lab_tally *tally, const lab_classes *classes);

#endif
