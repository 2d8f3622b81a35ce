/* cli/explain.c - ddpm explain: what a model does with one picture, as a figure. In columns of rising noise: the noisy
 * picture x_t, the network's estimate of x_0 in one step, and what the sampler makes of x_t step by step; below, the
 * schedule's signal-to-noise ratio with the columns' times.
 *
 * Contents: 1 options   2 columns   3 the figure   4 the command */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/draw.h"
#include "cli/sampler.h"
#include "io/plot.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *image, *labels, *model, *out;
    cli_list at;
} set;
static cli_sampler draw_with;

/* clang-format off */
static const cli_option options[] = {
    {"image", NULL, CLI_TEXT, "FILE", CLI_REQUIRED,
     "the picture", &set.image, 0, 0, 1},
    {"labels", NULL, CLI_TEXT, "\"A, B\"", "(none: as where label dropout left them out)",
     "what it shows", &set.labels, 0, 0, 2},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(the bundled one, data/mini)",
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "FILE.png", "explain.png",
     "the figure", &set.out, 0, 0, 0},
    {"at", NULL, CLI_LIST, "P,P,...", "2,10,20,35,50,65,80,95",
     "times of the columns, in percent of T; each moves to the next of the sampler's", &set.at, 0, 100, 0},
    CLI_SAMPLER_ROWS(draw_with),
    {0},
};
/* clang-format on */

/* ---- 2. Columns ---------------------------------------------------------------------------------------------- */

enum { ROWS = 3, CELL = 96, PLOT_HEIGHT = 320 }; /* CELL: pictures are enlarged to about this */

typedef struct figure {
    const cli_context *context;
    cli_drawing *drawing;
    io_picture original;                  /* in the model's size */
    io_picture cell[ROWS * CLI_LIST_MAX]; /* (ROWS, columns) */
    int t[CLI_LIST_MAX], columns, column; /* column: in progress */
} figure;

static void free_figure(figure *f)
{
    io_picture_free(&f->original);
    for (int i = 0; i < ROWS * f->columns; i++)
        io_picture_free(&f->cell[i]);
}

/* x_t, the estimate that the first step makes, and the last picture, of a drawing that keeps two moments. */
static ddpm_result take_column(void *user, int index, io_picture *picture, io_picture *frames)
{
    figure *f = user;
    io_picture *cell = &f->cell[f->column];
    (void)index;
    cell[0] = frames[0];
    cell[f->columns] = frames[2];
    cell[2 * f->columns] = *picture;
    frames[0] = frames[2] = *picture = (io_picture){0};
    return DDPM_OK;
}

/* The sampler's step whose time is nearest to `wanted`. */
static int nearest_step(const int *t, int steps, double wanted)
{
    int best = 0;
    for (int i = 1; i < steps; i++)
        if (fabs(t[i] - wanted) < fabs(t[best] - wanted)) best = i;
    return best;
}

static ddpm_result draw_columns(figure *f)
{
    cli_drawing *d = f->drawing;
    const ddpm_schedule *s = &d->model->schedule;
    int *t = cli_alloc((size_t)d->sample.steps, sizeof *t);
    ddpm_result result = t != NULL ? ddpm_timesteps(s, d->sample.sampler, d->sample.steps, t) : DDPM_ERR_MEMORY;
    f->columns = set.at.count;
    for (f->column = 0; result == DDPM_OK && f->column < f->columns; f->column++) {
        double wanted = set.at.value[f->column] / 100.0 * (s->config.num_train_timesteps - 1);
        d->sample.skip = nearest_step(t, d->sample.steps, wanted);
        f->t[f->column] = t[d->sample.skip];
        result = cli_draw(d);
    }
    free(t);
    return result;
}

/* Root of the mean squared difference from the original, in levels of 0 to 255. */
static double distance(const figure *f, const io_picture *p)
{
    size_t bytes = (size_t)p->width * (size_t)p->height * (size_t)p->channels;
    double squares = 0;
    for (size_t i = 0; i < bytes; i++) {
        double d = (double)p->pixel[i] - f->original.pixel[i];
        squares += d * d;
    }
    return sqrt(squares / (double)bytes);
}

/* abar / (1 - abar): (Ho et al. 2020, eq. 4; Kingma et al. 2021 call it SNR(t)) */
static double signal_to_noise(const ddpm_schedule *s, int t)
{
    double abar = (double)s->alpha_bar[t];
    return abar / (1 - abar);
}

static void print_table(const figure *f)
{
    const ddpm_schedule *s = &f->drawing->model->schedule;
    printf(
        "    t  alpha_bar  signal/noise  one step  step by step   (the last two: distance from the picture, of 255)\n");
    for (int c = 0; c < f->columns; c++)
        printf("%5d  %9.4f  %12.4g  %8.1f  %12.1f\n", f->t[c], (double)s->alpha_bar[f->t[c]],
               signal_to_noise(s, f->t[c]), distance(f, &f->cell[f->columns + c]),
               distance(f, &f->cell[2 * f->columns + c]));
}

/* ---- 3. The figure ------------------------------------------------------------------------------------------- */

/* Every pixel as a square of `factor` pixels. */
static ddpm_result enlarge(const io_picture *in, int factor, io_picture *out)
{
    size_t channels = (size_t)in->channels;
    ddpm_result result = io_picture_create(in->width * factor, in->height * factor, in->channels, out);
    for (int y = 0; result == DDPM_OK && y < out->height; y++)
        for (int x = 0; x < out->width; x++)
            memcpy(out->pixel + ((size_t)y * (size_t)out->width + (size_t)x) * channels,
                   in->pixel + ((size_t)(y / factor) * (size_t)in->width + (size_t)(x / factor)) * channels, channels);
    return result;
}

static ddpm_result draw_cells(const figure *f, io_picture *grid)
{
    io_picture large[ROWS * CLI_LIST_MAX] = {{0}};
    int factor = f->original.width < CELL ? CELL / f->original.width : 1, count = ROWS * f->columns;
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < count && result == DDPM_OK; i++)
        result = enlarge(&f->cell[i], factor, &large[i]);
    if (result == DDPM_OK) result = io_make_grid(large, count, f->columns, 2, grid);
    for (int i = 0; i < count; i++)
        io_picture_free(&large[i]);
    return result;
}

/* The ratio over t, and a line at each column's t. */
static ddpm_result draw_schedule(const figure *f, int width, io_picture *plot)
{
    const ddpm_schedule *s = &f->drawing->model->schedule;
    int all = s->config.num_train_timesteps;
    double *x = cli_alloc((size_t)all * 2, sizeof *x), *y = x != NULL ? x + all : NULL, low = INFINITY, high = 0;
    double mark[CLI_LIST_MAX][2], span[2];
    io_series series[CLI_LIST_MAX + 1] = {{.name = "abar / (1 - abar)", .x = x, .y = y, .count = all}};
    if (x == NULL) return DDPM_ERR_MEMORY;
    for (int t = 0; t < all; t++) {
        x[t] = t;
        y[t] = signal_to_noise(s, t);
        if (y[t] > 0 && y[t] < low) low = y[t];
        if (y[t] > high && isfinite(y[t])) high = y[t];
    }
    span[0] = low;
    span[1] = high;
    for (int c = 0; c < f->columns; c++) {
        mark[c][0] = mark[c][1] = f->t[c];
        series[c + 1] = (io_series){.x = mark[c], .y = span, .count = 2, .color = 0xb0b0b0};
    }
    io_plot what = {.title = "rows: x_t; one step; many steps",
                    .x_label = "t",
                    .y_label = "signal / noise, a line for each column",
                    .series = series,
                    .count = f->columns + 1,
                    .log_y = 1,
                    .width = width,
                    .height = PLOT_HEIGHT};
    ddpm_result result = io_plot_draw(&what, plot);
    free(x);
    return result;
}

static void paste(const io_picture *part, int top, io_picture *page)
{
    for (int y = 0; y < part->height; y++)
        memcpy(page->pixel + (size_t)(top + y) * (size_t)page->width * 3,
               part->pixel + (size_t)y * (size_t)part->width * 3, (size_t)part->width * 3);
}

static ddpm_result write_figure(const figure *f, const char *labels)
{
    enum { NARROWEST = 640 }; /* of a chart whose title is to be read */
    io_picture grid = {0}, plot = {0}, page = {0};
    ddpm_result result = draw_cells(f, &grid);
    int width = grid.width > NARROWEST ? grid.width : NARROWEST;
    if (result == DDPM_OK) result = draw_schedule(f, width, &plot);
    if (result == DDPM_OK) result = io_picture_create(width, grid.height + plot.height, 3, &page);
    if (result == DDPM_OK) {
        memset(page.pixel, 255, (size_t)page.width * (size_t)page.height * 3);
        paste(&grid, 0, &page);
        paste(&plot, grid.height, &page);
        result = cli_write_picture(f->context, f->drawing, set.out, labels, &page);
    }
    io_picture_free(&grid);
    io_picture_free(&plot);
    io_picture_free(&page);
    return result;
}

/* ---- 4. The command ------------------------------------------------------------------------------------------ */

static ddpm_result read_labels(const cli_model *m, lab_label_sets *sets)
{
    if (set.labels == NULL && ddpm_label_width(&m->model->config) > 0 && m->info.label_dropout == 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s was trained without label dropout: it knows no picture without labels\n"
                         "      hint: ddpm explain \"%s\" \"%s\"",
                         m->path, set.image, m->classes.count > 0 ? m->classes.name[0] : "CLASS, CLASS");
    if (set.labels == NULL) return lab_label_sets_add(sets, NULL, 0);
    if (m->classes.count > 0) return lab_label_sets_add_text(sets, &m->classes, set.labels, 1);
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "%s: knows no class names, so labels mean nothing to it\n      hint: leave them out", m->path);
}

static ddpm_result explain(figure *f, cli_model *m, lab_label_sets *sets)
{
    char *caption = NULL;
    ddpm_real *image = NULL;
    cli_drawing *d = f->drawing;
    ddpm_result result = cli_can_write_png(set.out);
    if (result == DDPM_OK) result = cli_model_open(f->context, set.model, DDPM_FOR_INFERENCE, m);
    if (result == DDPM_OK) result = cli_read_image(m, set.image, &f->original, &image);
    if (result == DDPM_OK) result = read_labels(m, sets);
    if (result == DDPM_OK) d->sample = cli_sampler_config(options, &draw_with, m);
    if (result == DDPM_OK) result = cli_sampler_check(options, &draw_with);
    d->take = take_column;
    d->user = f;
    d->image = image;
    d->image_path = set.image;
    if (result == DDPM_OK) result = draw_columns(f);
    if (result == DDPM_OK && (caption = lab_set_caption(sets, 0, &m->classes)) == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK) print_table(f);
    if (result == DDPM_OK) result = write_figure(f, caption);
    d->image = NULL;
    free(caption);
    free(image);
    return result;
}

static int run(const cli_context *context)
{
    cli_model model = {0};
    lab_label_sets sets = {0};
    cli_drawing drawing = {.model = &model, .sets = &sets, .count = 1, .batch = 1, .frames = 2, .quiet = 1};
    figure f = {.context = context, .drawing = &drawing};
    int status = cli_exit(explain(&f, &model, &sets));
    free_figure(&f);
    lab_label_sets_free(&sets);
    cli_model_close(&model);
    return status;
}

const cli_command cli_explain = {
    "explain",
    "FILE [\"red sphere, cyan cube\"] [--model PATH] [--out FILE.png]",
    "shows what a model does with one picture: noise, one step, many steps",
    "Prints a table of the columns. With --sampler ddim the way from x_t back is the shortest to draw.",
    options,
    run,
    NULL};
