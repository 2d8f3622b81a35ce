/* cli/sample.c - ddpm sample: pictures of label sets, as one grid or as single files.
 *
 * Contents: 1 options   2 labels   3 strips and animations   4 single files   5 one grid
 *           6 starting from a picture   7 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/draw.h"
#include "cli/judge.h"
#include "cli/sampler.h"
#include "cli/watch.h"
#include "io/file.h"
#include "io/gif.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *labels, *labels_file, *model, *out, *out_dir, *image;
    int n, batch_size, strip, gif, show;
    double strength;
} set;
static cli_guide guide;
static cli_sampler draw_with;

/* clang-format off */
static const cli_option options[] = {
    {"labels", NULL, CLI_TEXT, "\"A, B\"", NULL,
     "what to draw: class names separated by commas", &set.labels, 0, 0, 1},
    {"labels-file", NULL, CLI_TEXT, "FILE", NULL,
     "label sets to draw, in the form of test.json", &set.labels_file, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(the bundled one, data/mini)",
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "FILE.png", "sample.png",
     "the picture; several make a grid, eight in a row", &set.out, 0, 0, 0},
    {"out-dir", NULL, CLI_TEXT, "DIR", NULL,
     "single files instead: DIR/0.png, DIR/1.png, ...; those that are there are kept, so a stopped job goes on",
     &set.out_dir, 0, 0, 0},
    {"n", NULL, CLI_INT, "N", "(one a label set)",
     "pictures; label sets repeat in their order", &set.n, 1, 1e7, 0},
    {"batch-size", "eval_batch_size", CLI_INT, "N", "8",
     "pictures drawn at once; they do not depend on it", &set.batch_size, 1, 65536, 0},
    CLI_SAMPLER_ROWS(draw_with),
    CLI_GUIDE_ROWS(guide),
    {"image", NULL, CLI_TEXT, "FILE", "(none: from noise)",
     "picture to start from, with noise added (SDEdit, Meng et al. 2022)", &set.image, 0, 0, 0},
    {"strength", NULL, CLI_REAL, "S", "0.6",
     "of --image: share of the steps that are taken; 1 leaves little of the picture", &set.strength, 0, 1, 0},
    {"strip", NULL, CLI_FLAG, NULL, NULL,
     "also write the way from noise to picture in 11 frames, under each what the network makes of it in one step: "
     "FILE_strip.png, DIR/strip_0.png", &set.strip, 0, 0, 0},
    {"gif", NULL, CLI_FLAG, NULL, NULL,
     "also write the way as an animation: FILE.gif, DIR/0.gif", &set.gif, 0, 0, 0},
    {"show", NULL, CLI_FLAG, NULL, NULL,
     "also show the pictures in the terminal (stderr, 24-bit colours)", &set.show, 0, 0, 0},
    {0},
};
/* clang-format on */

/* ---- 2. Labels ----------------------------------------------------------------------------------------------- */

static ddpm_result read_labels(const cli_model *model, lab_label_sets *sets)
{
    if (set.labels == NULL && set.labels_file == NULL)
        return DDPM_OK; /* right for a model without labels; cli_draw knows */
    if (model->classes.count == 0)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s/model_index.json: no class names, so labels mean nothing to this model\n"
                         "      hint: ddpm info %s tells what the model takes",
                         model->path, model->path);
    if (set.labels != NULL) return lab_label_sets_add_text(sets, &model->classes, set.labels, 0);
    return lab_label_sets_read(set.labels_file, &model->classes, 1, sets);
}

static char *caption_of(const cli_drawing *d, int index)
{
    if (d->sets->count == 0) return cli_text("none");
    return lab_set_caption(d->sets, index % d->sets->count, &d->model->classes);
}

/* ---- 3. Strips and animations -------------------------------------------------------------------------------- */

typedef struct gallery {
    const cli_context *context;
    const cli_drawing *drawing;
    char *sampling;               /* cli_sampling_text */
    io_picture *picture, *frames; /* kept for the grids */
} gallery;

/* Of each of `count` pictures with (2, frames) frames two rows: every fifth of a GIF's frames, or all of a strip's. */
static ddpm_result write_strip(const gallery *g, const char *path, const char *caption, const io_picture *frames,
                               int count)
{
    int kept = g->drawing->frames, step = (kept - 1) / (CLI_FRAMES - 1), rows = 2 * count;
    io_picture *shown = cli_alloc((size_t)rows * CLI_FRAMES, sizeof *shown); /* they share their pixels */
    if (shown == NULL) return DDPM_ERR_MEMORY;
    for (int row = 0; row < rows; row++)
        for (int k = 0; k < CLI_FRAMES; k++)
            shown[row * CLI_FRAMES + k] = frames[row * kept + k * step];
    ddpm_result result = cli_write_grid(g->context, g->drawing, path, caption, shown, rows * CLI_FRAMES, CLI_FRAMES);
    free(shown);
    return result;
}

/* All pictures side by side, at one moment after the other. */
static ddpm_result write_gif(const gallery *g, const char *path, const io_picture *frames, int count)
{
    enum { DELAY = 8, HOLD = 200 }; /* hundredths of a second */
    int kept = g->drawing->frames;
    io_picture *moment = cli_alloc((size_t)kept, sizeof *moment), *side = cli_alloc((size_t)count, sizeof *side);
    ddpm_result result = moment != NULL && side != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
    for (int k = 0; k < kept && result == DDPM_OK; k++) {
        for (int i = 0; i < count; i++)
            side[i] = frames[i * 2 * kept + k];
        result = io_make_grid(side, count, 8, 2, &moment[k]);
    }
    if (result == DDPM_OK) result = io_gif_write(path, moment, kept, DELAY, HOLD, g->context->command_line);
    if (result == DDPM_OK) printf("%s\n", path);
    for (int k = 0; moment != NULL && k < kept; k++)
        io_picture_free(&moment[k]);
    free(moment);
    free(side);
    return result;
}

/* ---- 4. Single files ----------------------------------------------------------------------------------------- */

/* "DIR/strip_7.png" */
static char *file_path(const char *before, int index, const char *after)
{
    return cli_text("%s/%s%d%s", set.out_dir, before, index, after);
}

static int is_written(const char *before, int index, const char *after)
{
    char *path = file_path(before, index, after);
    int there = path != NULL && io_is_file(path);
    free(path);
    return there;
}

/* A picture that is there must be the one that would be drawn. */
static ddpm_result check_text(const char *path, const char *keyword, const char *wanted)
{
    char *found;
    ddpm_result result = io_picture_read_text(path, keyword, &found);
    if (result == DDPM_OK && (found == NULL || strcmp(found, wanted) != 0))
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s: is a picture of another job: its %s is '%.250s', here it is '%.250s'\n"
                           "      hint: choose another --out-dir, or the same settings to go on with that job",
                           path, keyword, found != NULL ? found : "not known", wanted);
    free(found);
    return result;
}

static ddpm_result look(void *user, int index, int *there)
{
    const gallery *g = user;
    *there = is_written("", index, ".png");
    if (!*there) return DDPM_OK;
    cli_short seed;
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)draw_with.seed);
    char *path = file_path("", index, ".png"), *caption = caption_of(g->drawing, index);
    ddpm_result result = path != NULL && caption != NULL ? check_text(path, "seed", seed) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = check_text(path, "labels", caption);
    if (result == DDPM_OK) result = check_text(path, "model", g->drawing->model->path);
    if (result == DDPM_OK) result = check_text(path, "sampling", g->sampling);
    free(caption);
    free(path);
    if (set.strip) *there &= is_written("strip_", index, ".png");
    if (set.gif) *there &= is_written("", index, ".gif");
    return result;
}

/* The picture comes last: where it is, the others are. */
static ddpm_result take_file(void *user, int index, io_picture *picture, io_picture *frames)
{
    gallery *g = user;
    char *caption = caption_of(g->drawing, index), *path = file_path("", index, ".png");
    char *strip = file_path("strip_", index, ".png"), *gif = file_path("", index, ".gif");
    ddpm_result result = DDPM_ERR_MEMORY;
    if (caption != NULL && path != NULL && strip != NULL && gif != NULL) result = DDPM_OK;
    if (result == DDPM_OK && set.strip) result = write_strip(g, strip, caption, frames, 1);
    if (result == DDPM_OK && set.gif) result = write_gif(g, gif, frames, 1);
    if (result == DDPM_OK) result = cli_write_picture(g->context, g->drawing, path, caption, picture);
    if (result == DDPM_OK && set.show) cli_show_picture(picture, 1);
    free(gif);
    free(strip);
    free(path);
    free(caption);
    return result;
}

static ddpm_result draw_files(const cli_context *context, const cli_drawing *what)
{
    cli_drawing d = *what;
    gallery g = {.context = context, .drawing = &d, .sampling = cli_sampling_text(&d)};
    d.look = look;
    d.take = take_file;
    d.user = &g;
    ddpm_result result = g.sampling != NULL ? io_make_directory(set.out_dir) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = cli_draw(&d);
    free(g.sampling);
    return result;
}

/* ---- 5. One grid --------------------------------------------------------------------------------------------- */

/* Kept until all are there. */
static ddpm_result take_kept(void *user, int index, io_picture *picture, io_picture *frames)
{
    gallery *g = user;
    int kept = 2 * g->drawing->frames;
    g->picture[index] = *picture;
    *picture = (io_picture){0};
    for (int k = 0; k < kept; k++) {
        g->frames[index * kept + k] = frames[k];
        frames[k] = (io_picture){0};
    }
    return DDPM_OK;
}

/* "red sphere, cyan cube; gray cube": the sets of a grid. */
static char *all_captions(const cli_drawing *d)
{
    char *all = caption_of(d, 0);
    for (int i = 1; all != NULL && i < d->sets->count && i < d->count; i++) {
        char *next = caption_of(d, i);
        char *longer = next != NULL ? cli_text("%s; %s", all, next) : NULL;
        free(next);
        free(all);
        all = longer;
    }
    return all;
}

/* "pictures/a.png" -> "pictures/a_strip.png" */
static char *path_beside(const char *path, const char *end)
{
    const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
    size_t stem = dot != NULL && (slash == NULL || dot > slash) ? (size_t)(dot - path) : strlen(path);
    return cli_text("%.*s%s", (int)stem, path, end);
}

static ddpm_result show_grid(const io_picture *picture, int count)
{
    io_picture grid = {0};
    ddpm_result result = io_make_grid(picture, count, 8, 2, &grid);
    if (result == DDPM_OK) cli_show_picture(&grid, 1);
    io_picture_free(&grid);
    return result;
}

static ddpm_result draw_grid(const cli_context *context, const cli_drawing *what)
{
    cli_drawing drawing = *what, *d = &drawing;
    gallery g = {.context = context, .drawing = d};
    size_t count = (size_t)d->count, kept = 2 * (size_t)d->frames;
    d->take = take_kept;
    d->user = &g;
    ddpm_result result = DDPM_ERR_MEMORY;
    g.picture = cli_alloc(count, sizeof *g.picture);
    g.frames = cli_alloc(count * kept + 1, sizeof *g.frames);
    char *captions = all_captions(d), *strip = path_beside(set.out, "_strip.png"), *gif = path_beside(set.out, ".gif");
    if (g.picture != NULL && g.frames != NULL && captions != NULL && strip != NULL && gif != NULL) result = cli_draw(d);
    if (result == DDPM_OK) result = cli_write_grid(context, d, set.out, captions, g.picture, d->count, 8);
    if (result == DDPM_OK && set.show) result = show_grid(g.picture, d->count);
    if (result == DDPM_OK && set.strip) result = write_strip(&g, strip, captions, g.frames, d->count);
    if (result == DDPM_OK && set.gif) result = write_gif(&g, gif, g.frames, d->count);
    for (size_t i = 0; g.picture != NULL && i < count; i++)
        io_picture_free(&g.picture[i]);
    for (size_t i = 0; g.frames != NULL && i < count * kept; i++)
        io_picture_free(&g.frames[i]);
    free(g.picture);
    free(g.frames);
    free(captions);
    free(strip);
    free(gif);
    return result;
}

/* ---- 6. Starting from a picture ------------------------------------------------------------------------------ */

/* set.image in the model's form; and, as in diffusers' img2img pipelines, the last int(steps strength) steps. */
static ddpm_result read_image(cli_drawing *d, ddpm_real **image)
{
    int taken = (int)(d->sample.steps * set.strength);
    if (set.image == NULL) return DDPM_OK;
    if (taken < 1)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "--strength %g of %d steps is none\n      hint: %g is one", set.strength,
                         d->sample.steps, 1.0 / d->sample.steps);
    io_picture picture;
    ddpm_result result = cli_read_image(d->model, set.image, &picture, image);
    io_picture_free(&picture);
    d->image = *image;
    d->image_path = set.image;
    d->sample.skip = d->sample.steps - taken;
    return result;
}

/* ---- 7. The command ------------------------------------------------------------------------------------------ */

static ddpm_result sample(const cli_context *context, cli_model *model, lab_label_sets *sets)
{
    ddpm_result result = set.out_dir == NULL ? cli_can_write_png(set.out) : DDPM_OK;
    if (result == DDPM_OK) result = cli_model_open(context, set.model, DDPM_FOR_INFERENCE, model);
    if (result == DDPM_OK) result = read_labels(model, sets);
    if (result != DDPM_OK) return result;
    cli_drawing d = {.model = model, .sets = sets, .batch = set.batch_size};
    d.frames = set.gif ? CLI_MOVIE : set.strip ? CLI_FRAMES : 0;
    d.sample = cli_sampler_config(options, &draw_with, model);
    d.count = set.n > 0 ? set.n : sets->count > 0 ? sets->count : 1;
    result = cli_sampler_check(options, &draw_with);
    if (result == DDPM_OK) result = cli_open_guide(context, options, &guide, &d);
    ddpm_real *image = NULL;
    if (result == DDPM_OK) result = read_image(&d, &image);
    if (result == DDPM_OK) result = set.out_dir != NULL ? draw_files(context, &d) : draw_grid(context, &d);
    free(image);
    lab_evaluator_free(d.guide);
    return result;
}

static int run(const cli_context *context)
{
    if (set.labels != NULL && set.labels_file != NULL)
        return cli_usage_error("sample", "sample: labels and --labels-file exclude each other");
    if (set.out_dir != NULL && cli_given_name(options, "out"))
        return cli_usage_error("sample", "sample: --out (one picture) and --out-dir (single files) exclude each other");
    if (set.image == NULL && cli_given_name(options, "strength"))
        return cli_usage_error("sample", "sample: --strength is of --image, which is missing");
    cli_model model = {0};
    lab_label_sets sets = {0};
    int status = cli_exit(sample(context, &model, &sets));
    lab_label_sets_free(&sets);
    cli_model_close(&model);
    return status;
}

const cli_command cli_sample = {
    "sample",
    "[\"red sphere, cyan cube\"] [--model PATH] [--out FILE.png]",
    "draws pictures of label sets",
    "The seed, the labels and this command line are kept in the PNG: ddpm info FILE.png shows them.",
    options,
    run,
    NULL};
