/* cli/draw.h - label sets to pictures, batch by batch, for `sample` and `test`; with the denoising strip of each.
 *
 * Contents: 1 drawing   2 writing */
#ifndef DDPM_CLI_DRAW_H
#define DDPM_CLI_DRAW_H

#include "cli/cli.h"
#include "io/picture.h"
#include "lab/evaluator.h"

/* ---- 1. Drawing ---------------------------------------------------------------------------------------------- */

enum {
    CLI_FRAMES = 11, /* of a strip: the lab keeps every 100th of 1000 steps, x_T to the final picture */
    CLI_MOVIE = 51   /* of a GIF: every fifth of them is a strip's */
};

typedef struct cli_drawing {
    cli_model *model;
    ddpm_sample_config sample;
    const lab_label_sets *sets; /* what to draw; ignored by a model without labels */
    int count;                  /* pictures; picture i is of set i modulo sets->count */
    int batch;                  /* drawn at once */
    lab_evaluator *guide;       /* its score is followed (lab/teacher.h); NULL: nobody guides */
    double guide_scale;
    int tries;              /* at most, for a picture in which the guide does not find its labels; 0, 1: one */
    const ddpm_real *image; /* (C,H,W) that every picture starts from, sample.skip steps in; NULL: from noise */
    const char *image_path; /* of it */
    int frames;             /* moments kept, evenly spaced from first to last: CLI_FRAMES, CLI_MOVIE, 0 */
    /* Whether picture `index` is there already and need not be drawn; NULL: none is. */
    ddpm_result (*look)(void *user, int index, int *there);
    /* Takes picture `index` and its (2, frames) frames, NULL if frames is 0: x_t, then the estimates of x_0 that the
     * network makes of them in one step (under the last one, the picture itself). They are freed afterwards, unless it
     * moves them away and leaves zeroed structs. */
    ddpm_result (*take)(void *user, int index, io_picture *picture, io_picture *frames);
    void *user;
    int quiet;          /* no line at the end */
    const char *status; /* shown behind the progress; NULL: nothing. `take` may change it */
} cli_drawing;
/* Draws with a progress bar and says at the end how long a picture took. */
ddpm_result cli_draw(const cli_drawing *drawing);

/* Guidance needs a network that knows "no label": DDPM_ERR_ARGUMENT if this one does not, and guidance is not 1. */
ddpm_result cli_check_guidance(const cli_model *model, double guidance);

/* A picture from a file in the model's size and channels, and as reals in [-1,1] (C,H,W): free() them. */
ddpm_result cli_read_image(const cli_model *model, const char *path, io_picture *picture, ddpm_real **image);

/* ---- 2. Writing ---------------------------------------------------------------------------------------------- */

/* A PNG that says how it was made: text chunks seed, sampling, command, labels (if not NULL), model, version. Prints
 * the path. */
ddpm_result cli_write_picture(const cli_context *context, const cli_drawing *drawing, const char *path,
                              const char *labels, const io_picture *picture);
/* count pictures as make_grid does, 2 pixels apart; written as above. */
ddpm_result cli_write_grid(const cli_context *context, const cli_drawing *drawing, const char *path, const char *labels,
                           const io_picture *pictures, int count, int per_row);

/* Who guides, how strongly, and how often a picture may be tried: a row each for the tables. */
typedef struct cli_guide {
    const char *path;
    double scale;
    int tries;
} cli_guide;
/* clang-format off */
#define CLI_GUIDE_ROWS(set) \
    {"guide", NULL, CLI_TEXT, "PATH", "(the model's evaluator/, if it is exported so)", \
     "evaluator whose score the picture follows while it is drawn (Dhariwal & Nichol 2021)", &(set).path, 0, 0, 0}, \
    {"guide-scale", NULL, CLI_REAL, "S", "(the model's, 0; 1 with --guide)", \
     "how strongly the guide is followed, 0: not at all; x_0 + S (1 - abar_t) times the gradient of " \
     "log p(labels | x_0)", &(set).scale, 0, 1e6, 0}, \
    {"tries", NULL, CLI_INT, "N", "(the model's, 1; 1 with --guide or --guide-scale 0)", \
     "a picture in which the guide does not find its labels is drawn again, with the seed plus 1000003 each time, " \
     "until it does, N times in all; the one it is surest of stays", &(set).tries, 1, 1000, 0}
/* clang-format on */
/* Sets the drawing's guide_scale and tries, and *guide's, by those options and what the model asks for; loads the
 * guide, which the caller frees, if there is anything for it to do. */
ddpm_result cli_open_guide(const cli_context *context, const cli_option *options, cli_guide *guide, cli_drawing *d);

/* "ddim, 50 steps (leading, offset 0), eta 0, alpha_to_one 1, guidance 1, philox noise, x_0 clipped to 1": with seed,
 * labels and model this is what a picture depends on; free() it. */
char *cli_sampling_text(const cli_drawing *drawing);

#endif
