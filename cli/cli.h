/* cli/cli.h - what the commands share: the context they run in, errors and exit statuses, progress, finding and
 * loading models. Only main.c and cli/ print: results to stdout, everything else to stderr.
 *
 * Contents: 1 context   2 commands   3 results and errors   4 progress   5 text and numbers   6 models */
#ifndef DDPM_CLI_H
#define DDPM_CLI_H

#include "cli/options.h"
#include "comm/comm.h"
#include "ddpm.h"
#include "io/config.h"
#include "lab/labels.h"

/* ---- 1. Context ---------------------------------------------------------------------------------------------- */

typedef struct cli_context {
    ddpm_device device; /* the opened backend */
    ddpm_comm *comm;    /* the processes that share the work; this one is one of them */
    char *command_line; /* as typed */
} cli_context;

/* ---- 2. Commands: each in the file of its name --------------------------------------------------------------- */

extern const cli_command cli_render, cli_train, cli_sample, cli_test, cli_info, cli_predict, cli_check_grad, cli_bench,
    cli_eval, cli_train_evaluator, cli_export, cli_report, cli_nearest, cli_explain, cli_selftest;

/* ---- 3. Results and errors ----------------------------------------------------------------------------------- */

/* Prints ddpm_error() after a failure; returns the exit status. */
int cli_exit(ddpm_result result);
/* The same for one of several ranks: what all know of (comm_agree) rank 0 alone prints. */
int cli_exit_rank(const ddpm_comm *comm, ddpm_result result);
/* Notes and progress are not shown: what rank 0 says suffices. */
void cli_set_quiet(int quiet);
/* A line on stderr, for people. */
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
void cli_note(const char *format, ...);
/* malloc(count * size) zeroed, checked for overflow; NULL with the error recorded. */
void *cli_alloc(size_t count, size_t size);
/* Before the work: DDPM_OK if a picture can be written to `path`. DDPM_ERR_ARGUMENT if its name does not end in .png,
 * DDPM_ERR_FILE if the place cannot be written to. */
ddpm_result cli_can_write_png(const char *path);
const char *cli_version(void);
/* printf into new memory; NULL with the error recorded. */
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
char *
cli_text(const char *format, ...);
/* What stands on both sides of a word in a command line that is printed: "\"" if a shell would take it apart, else
 * "". */
const char *cli_quote(const char *word);

/* ---- 4. Progress: a bar on a terminal, a plain line every few seconds elsewhere ------------------------------ */

typedef struct cli_progress {
    const char *label;
    double total, begun;   /* of whatever is counted: all, and what was done when it was first shown (-1: not yet) */
    double started, shown; /* seconds: then, and the last time */
    int terminal;
} cli_progress;
double cli_seconds(void); /* a monotonic clock */
void cli_progress_start(cli_progress *progress, const char *label, double total);
/* Shows done of total, the time left at the pace since the first call, and the printf-style rest. Cheap to call often:
 * redraws a few times a second at most. */
#ifdef __GNUC__
__attribute__((format(printf, 3, 4)))
#endif
void cli_progress_show(cli_progress *progress, double done, const char *format, ...);
void cli_progress_clear(cli_progress *progress); /* takes the bar off the terminal, so that a line can be printed */

/* ---- 5. Text and numbers ------------------------------------------------------------------------------------- */

typedef char cli_short[32];
const char *cli_bytes(double bytes, cli_short out);      /* "1.7 GiB" */
const char *cli_duration(double seconds, cli_short out); /* "3 min 20 s" */
const char *cli_count(double count, cli_short out);      /* "113,673,219" */
/* Bytes of memory that a run may use: DDPM_MEMORY_LIMIT from the environment, else what the system has available;
 * 0: unknown. */
double cli_memory_available(void);

/* ---- 6. Models ----------------------------------------------------------------------------------------------- */

typedef struct cli_model { /* start from {0} */
    ddpm_model *model;
    ddpm_schedule schedule;
    io_model_info info;
    lab_classes classes; /* count 0: the model does not say */
    char *path;          /* the model directory that was found */
} cli_model;
/* The model directory that PATH means: a run's best or latest checkpoint, as RUN/step-N, or PATH itself; PATH NULL (no
 * --model): the bundled data/mini. free() it. NULL: see ddpm_error(). */
char *cli_find_model(const char *path);
/* data/NAME of the working directory or, where that is not, of the program's; free() it. NULL: see ddpm_error(). */
char *cli_bundled(const char *name);
/* 1 if the directory is an evaluator's: its config.json says ResNet18. */
int cli_is_evaluator(const char *path);
/* Finds the model and loads it for `arrays` (DDPM_FOR_INFERENCE, ...). On failure *out is empty. */
ddpm_result cli_model_open(const cli_context *context, const char *path, unsigned arrays, cli_model *out);
void cli_model_close(cli_model *model);
/* Parameters of all tensors together. */
double cli_parameters(const ddpm_model *model);
/* Bytes that networks may use: of the device's own memory what is free, else cli_memory_available(); 0: unknown. */
ddpm_result cli_room(const ddpm_device *device, double *bytes);
/* The largest batch n < too_large of which ddpm_net_create(capacity = n * times, mode) makes a network that takes, with
 * `more` bytes a picture beside it, no more than `bytes`; 0: none. */
int cli_largest_batch(ddpm_model *model, int height, int width, int times, int mode, int too_large, double more,
                      double bytes);

#endif
