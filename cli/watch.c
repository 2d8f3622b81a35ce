/* cli/watch.c - see cli/watch.h.
 *
 * Contents: 1 samples   2 held-out loss   3 the terminal */
#include "cli/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "io/file.h"

/* ---- 1. Samples ---------------------------------------------------------------------------------------------- */

ddpm_result cli_samples_create(cli_samples *samples, ddpm_model *model, int height, int width)
{
    ddpm_result result = ddpm_net_create(&samples->net, model, height, width, CLI_SAMPLES, 0);
    if (result != DDPM_OK) return result;
    const ddpm_net *net = samples->net;
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    size_t labels = (size_t)ddpm_label_width(&model->config);
    samples->pictures = cli_alloc((size_t)2 * CLI_SAMPLES * picture, sizeof *samples->pictures);
    samples->labels = cli_alloc((size_t)CLI_SAMPLES * labels, sizeof *samples->labels);
    return samples->pictures != NULL && samples->labels != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
}

void cli_samples_free(cli_samples *samples)
{
    ddpm_net_free(samples->net);
    free(samples->pictures);
    free(samples->labels);
    *samples = (cli_samples){0};
}

static ddpm_result write_grid(const cli_samples *samples, const char *path, int show)
{
    const ddpm_net *net = samples->net;
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    io_picture each[2 * CLI_SAMPLES] = {{0}}, grid = {0};
    ddpm_result result = DDPM_OK;
    for (int i = 0; result == DDPM_OK && i < 2 * CLI_SAMPLES; i++)
        result = io_picture_from_real(samples->pictures + (size_t)i * picture, net->channels, net->height, net->width,
                                      &each[i]);
    if (result == DDPM_OK) result = io_make_grid(each, 2 * CLI_SAMPLES, CLI_SAMPLES, 2, &grid);
    if (result == DDPM_OK) result = io_picture_write_png(path, &grid, NULL, 0);
    if (result == DDPM_OK && show) cli_show_picture(&grid, 0);
    for (int i = 0; i < 2 * CLI_SAMPLES; i++)
        io_picture_free(&each[i]);
    io_picture_free(&grid);
    return result;
}

ddpm_result cli_samples_draw(const cli_samples *samples, const ddpm_schedule *schedule, uint64_t seed,
                             ddpm_sample_callback on_step, const char *path, int show)
{
    static const ddpm_array kind[] = {DDPM_WEIGHT, DDPM_EMA};
    ddpm_net *net = samples->net;
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    int T = schedule->config.num_train_timesteps;
    ddpm_sample_config config = ddpm_sample_default();
    config.sampler = DDPM_SAMPLER_DDIM;
    config.steps = T < CLI_SAMPLE_STEPS ? T : CLI_SAMPLE_STEPS;
    config.seed = seed;
    ddpm_result result = DDPM_OK;
    for (int k = 0; result == DDPM_OK && k < 2; k++) {
        result = ddpm_model_use(net->model, kind[k]);
        if (result == DDPM_OK)
            result = ddpm_sample(net, schedule, &config, net->labels != NULL ? samples->labels : NULL, CLI_SAMPLES,
                                 samples->pictures + (size_t)k * CLI_SAMPLES * picture, on_step, NULL);
    }
    ddpm_result back = ddpm_model_use(net->model, DDPM_WEIGHT); /* training goes on with these */
    if (result == DDPM_OK) result = back;
    return result == DDPM_OK ? write_grid(samples, path, show) : result;
}

/* ---- 2. Held-out loss ---------------------------------------------------------------------------------------- */

ddpm_result cli_held_out_add(ddpm_net *net, const ddpm_schedule *schedule, uint64_t seed, ddpm_array array,
                             const ddpm_real *pictures, const ddpm_real *labels, int first, int n, int total,
                             double *sum)
{
    int *t = cli_alloc((size_t)n, sizeof *t), T = schedule->config.num_train_timesteps;
    double *loss = cli_alloc((size_t)n, sizeof *loss);
    ddpm_result result = t != NULL && loss != NULL ? ddpm_model_use(net->model, array) : DDPM_ERR_MEMORY;
    for (int i = 0; result == DDPM_OK && i < n; i++)
        t[i] = (int)((2 * (int64_t)(first + i) + 1) * T / (2 * (int64_t)total));
    ddpm_address address = {seed, (uint64_t)first, 0, DDPM_RANDOM_HELD_OUT};
    if (result == DDPM_OK) result = ddpm_evaluate(net, schedule, address, pictures, labels, t, n, loss);
    for (int i = 0; result == DDPM_OK && i < n; i++)
        *sum += loss[i];
    free(t);
    free(loss);
    ddpm_result back = ddpm_model_use(net->model, DDPM_WEIGHT);
    return result == DDPM_OK ? back : result;
}

/* ---- 3. The terminal ----------------------------------------------------------------------------------------- */

static int columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20 ? size.ws_col : 80;
}

static void set_colour(const io_picture *p, int x, int y, int ground)
{
    const unsigned char *pixel = p->pixel + ((size_t)y * (size_t)p->width + (size_t)x) * (size_t)p->channels;
    int step = p->channels >= 3; /* gray: the same value three times */
    fprintf(stderr, "\033[%d;2;%d;%d;%dm", ground, pixel[0], pixel[step], pixel[2 * step]);
}

void cli_show_picture(const io_picture *picture, int always)
{
    if (!always && !isatty(STDERR_FILENO)) return;
    io_picture small = {0};
    int width = columns();
    if (picture->width > width) {
        int height = (int)((int64_t)picture->height * width / picture->width);
        if (io_picture_resize(picture, width, height > 0 ? height : 1, &small) != DDPM_OK) return;
        picture = &small;
    }
    for (int y = 0; y < picture->height; y += 2) {
        for (int x = 0; x < picture->width; x++) {
            set_colour(picture, x, y, 38);
            if (y + 1 < picture->height) set_colour(picture, x, y + 1, 48);
            fputs("\xe2\x96\x80", stderr); /* U+2580, the upper half block */
        }
        fputs("\033[0m\n", stderr);
    }
    io_picture_free(&small);
}
