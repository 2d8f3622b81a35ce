/* cli/sample.c - ddpm sample: pictures of label sets, as one grid or as single files.
 *
 * Contents: 1 options   2 labels   3 where pictures go   4 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/draw.h"
#include "io/file.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *labels, *labels_file, *model, *out, *out_dir;
    int n, batch_size, sampler, steps, strip;
    double eta, guidance;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"labels", NULL, CLI_TEXT, "\"A, B\"", NULL,
     "what to draw: class names separated by commas", &set.labels, 0, 0, 1},
    {"labels-file", NULL, CLI_TEXT, "FILE", NULL,
     "label sets to draw, in the form of test.json", &set.labels_file, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(must be given)",
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "FILE.png", "sample.png",
     "the picture; several make a grid, eight in a row", &set.out, 0, 0, 0},
    {"out-dir", NULL, CLI_TEXT, "DIR", NULL,
     "single files instead: DIR/0.png, DIR/1.png, ...", &set.out_dir, 0, 0, 0},
    {"n", NULL, CLI_INT, "N", "(one a label set)",
     "pictures; label sets repeat in their order", &set.n, 1, 1e7, 0},
    {"batch-size", "eval_batch_size", CLI_INT, "N", "8",
     "pictures drawn at once; they do not depend on it", &set.batch_size, 1, 65536, 0},
    {"seed", NULL, CLI_SEED, "S", "529", "of the noise", &set.seed, 0, 0, 0},
    {"sampler", NULL, CLI_CHOICE, "ddpm|ddim", "ddpm", "ancestral, or DDIM", &set.sampler, 0, 0, 0},
    {"steps", "num_inference_steps ddpm_num_inference_steps", CLI_INT, "N",
     "(ddpm: all of the model's, 1000; ddim: 50)",
     "steps of denoising", &set.steps, 1, 100000, 0},
    {"eta", NULL, CLI_REAL, "R", "0",
     "of DDIM: 0 is deterministic, 1 as noisy as DDPM", &set.eta, 0, 1, 0},
    {"guidance", "guidance_scale", CLI_REAL, "G", "1",
     "eps_none + G (eps_label - eps_none): 1 is without, 3 draws the labels more clearly", &set.guidance, -100, 100, 0},
    {"strip", NULL, CLI_FLAG, NULL, NULL,
     "also write the way from noise to picture, 11 frames: FILE_strip.png, DIR/strip_0.png", &set.strip, 0, 0, 0},
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

/* ---- 3. Where pictures go ------------------------------------------------------------------------------------ */

typedef struct gallery {
    const cli_context *context;
    const cli_drawing *drawing;
    io_picture *picture, *frames; /* kept for the grids */
} gallery;

/* Into files of their own. */
static ddpm_result take_file(void *user, int index, io_picture *picture, io_picture *frames)
{
    gallery *g = user;
    char *caption = caption_of(g->drawing, index);
    char *path = cli_text("%s/%d.png", set.out_dir, index);
    ddpm_result result = DDPM_ERR_MEMORY;
    if (caption != NULL && path != NULL) result = cli_write_picture(g->context, g->drawing, path, caption, picture);
    free(path);
    path = cli_text("%s/strip_%d.png", set.out_dir, index);
    if (result == DDPM_OK && path == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK && frames != NULL)
        result = cli_write_grid(g->context, g->drawing, path, caption, frames, CLI_FRAMES, CLI_FRAMES);
    free(path);
    free(caption);
    return result;
}

/* Kept until all are there. */
static ddpm_result take_kept(void *user, int index, io_picture *picture, io_picture *frames)
{
    gallery *g = user;
    g->picture[index] = *picture;
    *picture = (io_picture){0};
    for (int k = 0; frames != NULL && k < CLI_FRAMES; k++) {
        g->frames[index * CLI_FRAMES + k] = frames[k];
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
static char *strip_path(const char *path)
{
    const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
    size_t stem = dot != NULL && (slash == NULL || dot > slash) ? (size_t)(dot - path) : strlen(path);
    return cli_text("%.*s_strip.png", (int)stem, path);
}

static ddpm_result draw_grid(const cli_context *context, const cli_drawing *what)
{
    gallery g = {.context = context, .drawing = what};
    cli_drawing drawing = *what, *d = &drawing;
    d->take = take_kept;
    d->user = &g;
    ddpm_result result = DDPM_ERR_MEMORY;
    g.picture = cli_alloc((size_t)d->count, sizeof *g.picture);
    g.frames = d->strips ? cli_alloc((size_t)d->count * CLI_FRAMES, sizeof *g.frames) : NULL;
    char *captions = all_captions(d), *strip = strip_path(set.out);
    if (g.picture != NULL && (!d->strips || g.frames != NULL) && captions != NULL && strip != NULL)
        result = cli_draw(d);
    if (result == DDPM_OK) result = cli_write_grid(context, d, set.out, captions, g.picture, d->count, 8);
    if (result == DDPM_OK && d->strips)
        result = cli_write_grid(context, d, strip, captions, g.frames, d->count * CLI_FRAMES, CLI_FRAMES);
    for (int i = 0; g.picture != NULL && i < d->count; i++)
        io_picture_free(&g.picture[i]);
    for (int i = 0; g.frames != NULL && i < d->count * CLI_FRAMES; i++)
        io_picture_free(&g.frames[i]);
    free(g.picture);
    free(g.frames);
    free(captions);
    free(strip);
    return result;
}

static ddpm_result draw_files(const cli_context *context, const cli_drawing *what)
{
    gallery g = {.context = context, .drawing = what};
    cli_drawing d = *what;
    d.take = take_file;
    d.user = &g;
    ddpm_result result = io_make_directory(set.out_dir);
    return result == DDPM_OK ? cli_draw(&d) : result;
}

/* ---- 4. The command ------------------------------------------------------------------------------------------ */

static ddpm_result sample(const cli_context *context, cli_model *model, lab_label_sets *sets)
{
    ddpm_result result = cli_model_open(context, set.model, DDPM_FOR_INFERENCE, model);
    if (result == DDPM_OK) result = read_labels(model, sets);
    if (result != DDPM_OK) return result;
    cli_drawing d = {.model = model, .sets = sets, .batch = set.batch_size, .strips = set.strip};
    d.sample = ddpm_sample_default();
    d.sample.sampler = set.sampler == 0 ? DDPM_SAMPLER_DDPM : DDPM_SAMPLER_DDIM;
    d.sample.steps = set.steps > 0 ? set.steps : cli_default_steps(model, d.sample.sampler);
    d.sample.eta = set.eta;
    d.sample.guidance = set.guidance;
    d.sample.seed = set.seed;
    d.count = set.n > 0 ? set.n : sets->count > 0 ? sets->count : 1;
    return set.out_dir != NULL ? draw_files(context, &d) : draw_grid(context, &d);
}

static int run(const cli_context *context)
{
    if (set.labels != NULL && set.labels_file != NULL)
        return cli_usage_error("sample", "sample: labels and --labels-file exclude each other");
    cli_model model = {0};
    lab_label_sets sets = {0};
    int status = cli_exit(sample(context, &model, &sets));
    lab_label_sets_free(&sets);
    cli_model_close(&model);
    return status;
}

const cli_command cli_sample = {
    "sample",
    "[\"red sphere, cyan cube\"] --model PATH [--out FILE.png]",
    "draws pictures of label sets",
    "The seed, the labels and this command line are kept in the PNG: ddpm info FILE.png shows them.",
    options,
    run};
