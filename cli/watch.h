/* cli/watch.h - seeing a model learn: pictures drawn while it trains, the loss on pictures that it is not trained on,
 * pictures in the terminal.
 *
 * Contents: 1 samples   2 held-out loss   3 the terminal */
#ifndef DDPM_CLI_WATCH_H
#define DDPM_CLI_WATCH_H

#include "cli/cli.h"
#include "io/picture.h"

/* ---- 1. Samples ---------------------------------------------------------------------------------------------- */

enum { CLI_SAMPLES = 8, CLI_SAMPLE_STEPS = 50 }; /* pictures of each kind of weights; DDIM steps */

typedef struct cli_samples { /* start from {0} */
    ddpm_net *net;
    ddpm_real *labels, *pictures; /* (CLI_SAMPLES, ...) */
} cli_samples;
/* Plans a network for them; nothing large is allocated before the first picture. Its graph's bytes come on top of
 * training's. */
ddpm_result cli_samples_create(cli_samples *samples, ddpm_model *model, int height, int width);
/* Draws from the same noise and labels every time: the upper row with the weights that are being trained, the lower
 * one with their average; writes PATH and, if `show`, shows it in the terminal. on_step may stop it, as ddpm_sample. */
ddpm_result cli_samples_draw(const cli_samples *samples, const ddpm_schedule *schedule, uint64_t seed,
                             ddpm_sample_callback on_step, const char *path, int show);
void cli_samples_free(cli_samples *samples);

/* ---- 2. Held-out loss ---------------------------------------------------------------------------------------- */

/* Mean squared error of `array` over pictures at fixed t, evenly spread over [0,T), and fixed noise.
 *   first   number of the first of these n among the `total` held-out pictures; sum: their losses are added to it */
ddpm_result cli_held_out_add(ddpm_net *net, const ddpm_schedule *schedule, uint64_t seed, ddpm_array array,
                             const ddpm_real *pictures, const ddpm_real *labels, int first, int n, int total,
                             double *sum);

/* ---- 3. The terminal ----------------------------------------------------------------------------------------- */

/* Two pixels a character cell (an upper half block, its two colours), made small enough for the terminal's width; on
 * stderr. Nothing is printed where stderr is no terminal, unless `always`. */
void cli_show_picture(const io_picture *picture, int always);

#endif
