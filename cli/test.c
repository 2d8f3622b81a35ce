/* cli/test.c - ddpm test: the lab's test. Draws a picture for every label set of test.json or new_test.json and writes
 * images/TYPE/I.png, the 8x4 grid TYPE_grid.png, strips/TYPE_I.png, and the lab's required figure twice: as
 * required_strip.png and, under its labels, as red_sphere+cyan_cylinder+cyan_cube.png.
 * An evaluator scores the pictures as they come; results.json holds the figures.
 *
 * Contents: 1 options   2 label sets   3 pictures   4 figures   5 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/draw.h"
#include "cli/sampler.h"
#include "cli/judge.h"
#include "cli/results.h"
#include "io/file.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *data, *model, *out, *evaluator;
    int test_type, batch_size;
} set;
static cli_guide guide;
static cli_sampler draw_with;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", "(the bundled data/)",
     "folder with test.json and new_test.json", &set.data, 0, 0, 1},
    {"test-type", NULL, CLI_CHOICE, "test|new_test", "test",
     "which of the two files", &set.test_type, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(the bundled one, data/mini)",
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "DIR", "results",
     "folder to write to", &set.out, 0, 0, 0},
    {"batch-size", "eval_batch_size", CLI_INT, "N", "8",
     "pictures drawn at once; they do not depend on it", &set.batch_size, 1, 65536, 0},
    CLI_SAMPLER_ROWS(draw_with),
    CLI_GUIDE_ROWS(guide),
    {"evaluator", NULL, CLI_TEXT, "PATH", "(evaluator_judge in the model, else the bundled one)",
     "what judges the pictures: a directory that train-evaluator made, or torchvision's weights as .safetensors",
     &set.evaluator, 0, 0, 0},
    {0},
};
/* clang-format on */

static const char *type_name(void)
{
    return set.test_type == 0 ? "test" : "new_test";
}

/* ---- 2. Label sets ------------------------------------------------------------------------------------------- */

static char *bundled_sets(void)
{
    return cli_bundled(set.test_type == 0 ? "test.json" : "new_test.json");
}

/* The index of the lab's required set, appended if the file lacks it; -1 if the model does not know its classes. */
static ddpm_result find_required_set(const lab_classes *classes, lab_label_sets *sets, int *index)
{
    static const char required[] = "red sphere, cyan cylinder, cyan cube";
    int want[] = {lab_class_index(classes, "red sphere"), lab_class_index(classes, "cyan cylinder"),
                  lab_class_index(classes, "cyan cube")};
    *index = -1;
    if (want[0] < 0 || want[1] < 0 || want[2] < 0) return DDPM_OK;
    for (int i = 0; i < sets->count; i++) {
        int found = 0, size = lab_set_size(sets, i);
        for (int k = sets->start[i]; k < sets->start[i + 1]; k++)
            for (int w = 0; w < 3; w++)
                found += sets->label[k] == want[w];
        if (size == 3 && found == 3) {
            *index = i;
            return DDPM_OK;
        }
    }
    *index = sets->count;
    return lab_label_sets_add_text(sets, classes, required, 0);
}

/* *path: the file they came from. */
static ddpm_result read_sets(const cli_model *model, lab_label_sets *sets, char **path)
{
    if (model->classes.count == 0)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s/model_index.json: no class names, so label sets mean nothing to this model\n"
                         "      hint: ddpm info %s tells what the model takes",
                         model->path, model->path);
    *path = set.data != NULL ? cli_text("%s/%s.json", set.data, type_name()) : bundled_sets();
    ddpm_result result = *path != NULL ? lab_label_sets_read(*path, &model->classes, 0, sets) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK && sets->count == 0)
        result = ddpm_fail(DDPM_ERR_FORMAT, "%s.json holds no label sets", type_name());
    return result;
}

/* ---- 3. Pictures --------------------------------------------------------------------------------------------- */

typedef struct exhibition {
    const cli_context *context;
    cli_drawing *drawing;
    int required;        /* index of the required set, or -1 */
    int listed;          /* sets of the file: those before the required one that was added */
    io_picture *picture; /* kept for the grid */
    cli_judge *judge;    /* NULL: there is none */
    cli_judge own;       /* the guide's own opinion, which is no judgement; empty if nobody guides */
    int *hits;           /* of each listed set, by the judge */
    cli_short status;    /* the accuracy so far, for the progress bar */
} exhibition;

static ddpm_result ask(const exhibition *e, cli_judge *judge, int index, const io_picture *picture, int *hits)
{
    const lab_label_sets *sets = e->drawing->sets;
    int label[LAB_MAX_CLASSES], labels = lab_set_size(sets, index);
    if (labels > LAB_MAX_CLASSES) return ddpm_fail(DDPM_ERR_RANGE, "set %d has %d labels", index, labels);
    ddpm_result result =
        cli_judge_labels(judge, &e->drawing->model->classes, sets->label + sets->start[index], labels, label);
    return result == DDPM_OK ? cli_judge_picture(judge, picture, label, labels, hits) : result;
}

static ddpm_result score(exhibition *e, int index, const io_picture *picture)
{
    if (index >= e->listed) return DDPM_OK;
    ddpm_result result = e->own.ev != NULL ? ask(e, &e->own, index, picture, NULL) : DDPM_OK;
    if (e->judge == NULL || result != DDPM_OK) return result;
    result = ask(e, e->judge, index, picture, &e->hits[index]);
    snprintf(e->status, sizeof e->status, ", accuracy %.4f", lab_tally_pictures(&e->judge->tally).value);
    e->drawing->status = e->status;
    return result;
}

/* As required_strip.png, which a script finds, and under its labels, which the hand-in asks for. */
static ddpm_result write_required(const exhibition *e, const char *caption, const io_picture *frames)
{
    char *name = lab_set_file_name(e->drawing->sets, e->required, &e->drawing->model->classes);
    char *named = name != NULL ? cli_text("%s/%s.png", set.out, name) : NULL;
    char *path = io_join(set.out, "required_strip.png");
    ddpm_result result = named != NULL && path != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
    if (result == DDPM_OK)
        result = cli_write_grid(e->context, e->drawing, path, caption, frames, CLI_FRAMES, CLI_FRAMES);
    if (result == DDPM_OK)
        result = cli_write_grid(e->context, e->drawing, named, caption, frames, CLI_FRAMES, CLI_FRAMES);
    free(path);
    free(named);
    free(name);
    return result;
}

static ddpm_result take(void *user, int index, io_picture *picture, io_picture *frames)
{
    exhibition *e = user;
    ddpm_result result = DDPM_ERR_MEMORY;
    char *caption = lab_set_caption(e->drawing->sets, index, &e->drawing->model->classes);
    char *image = cli_text("%s/images/%s/%d.png", set.out, type_name(), index);
    char *strip = cli_text("%s/strips/%s_%d.png", set.out, type_name(), index);
    if (caption != NULL && image != NULL && strip != NULL) result = DDPM_OK;
    if (result == DDPM_OK) result = score(e, index, picture);
    if (result == DDPM_OK && index < e->listed)
        result = cli_write_picture(e->context, e->drawing, image, caption, picture);
    if (result == DDPM_OK && index < e->listed)
        result = cli_write_grid(e->context, e->drawing, strip, caption, frames, CLI_FRAMES, CLI_FRAMES);
    if (result == DDPM_OK && index == e->required) result = write_required(e, caption, frames);
    if (result == DDPM_OK) {
        e->picture[index] = *picture;
        *picture = (io_picture){0};
    }
    free(caption);
    free(image);
    free(strip);
    return result;
}

static ddpm_result make_directories(void)
{
    char *images = cli_text("%s/images/%s", set.out, type_name()), *strips = io_join(set.out, "strips");
    ddpm_result result = images != NULL && strips != NULL ? io_make_directory(images) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = io_make_directory(strips);
    free(images);
    free(strips);
    return result;
}

static ddpm_result write_grid(const exhibition *e, const char *path)
{
    io_picture grid;
    const int *hits = e->judge != NULL ? e->hits : NULL;
    ddpm_result result = cli_make_judged_grid(e->picture, e->drawing->sets, e->listed, hits, &grid);
    if (result == DDPM_OK) result = cli_write_picture(e->context, e->drawing, path, NULL, &grid);
    io_picture_free(&grid);
    return result;
}

static ddpm_result draw(exhibition *e)
{
    cli_drawing *d = e->drawing;
    char *grid = cli_text("%s/%s_grid.png", set.out, type_name());
    e->picture = cli_alloc((size_t)d->count, sizeof *e->picture);
    e->hits = cli_alloc((size_t)d->count, sizeof *e->hits);
    ddpm_result result = grid != NULL && e->picture != NULL && e->hits != NULL ? make_directories() : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = cli_draw(d);
    if (result == DDPM_OK) result = write_grid(e, grid);
    for (int i = 0; e->picture != NULL && i < d->count; i++)
        io_picture_free(&e->picture[i]);
    free(e->picture);
    free(grid);
    return result;
}

/* ---- 4. Figures ---------------------------------------------------------------------------------------------- */

/* --evaluator, else the model's own judge or the bundled one where they are; none of them: nobody judges. */
static ddpm_result open_judge(exhibition *e, cli_judge *judge)
{
    char *path = set.evaluator != NULL ? cli_text("%s", set.evaluator)
                                       : cli_find_evaluator(e->drawing->model->path, "evaluator_judge");
    if (path == NULL) return DDPM_ERR_MEMORY;
    if (set.evaluator == NULL && !io_is_directory(path)) {
        cli_note("no evaluator: the accuracy is not measured (--evaluator PATH; ddpm train-evaluator makes one)");
        free(path);
        return DDPM_OK;
    }
    ddpm_result result = cli_judge_open(e->context, path, judge);
    free(path);
    if (result == DDPM_OK) e->judge = judge;
    return result;
}

/* The guide draws by one evaluator's gradient; its own opinion of the result stands beside the judge's. */
static ddpm_result open_guide(exhibition *e)
{
    cli_drawing *d = e->drawing;
    ddpm_result result = cli_open_guide(e->context, options, &guide, d);
    if (result != DDPM_OK || d->guide == NULL) return result;
    return cli_judge_open(e->context, d->guide->path, &e->own);
}

static ddpm_result write_figures(const exhibition *e, const char *labels_file, double seconds)
{
    const cli_judge *own = e->own.ev != NULL ? &e->own : NULL;
    cli_results r = {e->context, options, e->drawing, e->judge, own, e->hits, e->listed, labels_file, seconds};
    char *path = io_join(set.out, "results.json");
    ddpm_result result = path != NULL ? cli_write_results(&r, type_name(), path) : DDPM_ERR_MEMORY;
    free(path);
    if (result != DDPM_OK || e->judge == NULL) return result;
    cli_note("judged by %s", e->judge->ev->path);
    cli_print_accuracy(&e->judge->tally);
    if (e->own.ev != NULL)
        printf("by the guide itself, %.4f (mean of pictures) and %.4f (pooled objects)\n",
               lab_tally_pictures(&e->own.tally).value, lab_tally_objects(&e->own.tally).value);
    return result;
}

/* ---- 5. The command ------------------------------------------------------------------------------------------ */

static ddpm_result test(exhibition *e, cli_drawing *d, cli_model *model, lab_label_sets *sets, cli_judge *judge)
{
    char *labels_file = NULL;
    ddpm_result result = cli_model_open(e->context, set.model, DDPM_FOR_INFERENCE, model);
    if (result == DDPM_OK) result = read_sets(model, sets, &labels_file);
    if (result == DDPM_OK) e->listed = sets->count;
    if (result == DDPM_OK) result = find_required_set(&model->classes, sets, &e->required);
    if (result == DDPM_OK) result = open_judge(e, judge);
    if (result == DDPM_OK) result = open_guide(e);
    if (result == DDPM_OK) {
        d->count = sets->count;
        d->sample = cli_sampler_config(options, &draw_with, model);
        double started = cli_seconds();
        result = cli_sampler_check(options, &draw_with);
        if (result == DDPM_OK) result = draw(e);
        if (result == DDPM_OK) result = write_figures(e, labels_file, cli_seconds() - started);
    }
    free(labels_file);
    return result;
}

static int run(const cli_context *context)
{
    cli_model model = {0};
    lab_label_sets sets = {0};
    cli_judge judge = {0};
    cli_drawing d = {.model = &model, .sets = &sets, .batch = set.batch_size, .frames = CLI_FRAMES, .take = take};
    exhibition e = {.context = context, .drawing = &d};
    d.user = &e;
    int status = cli_exit(test(&e, &d, &model, &sets, &judge));
    free(e.hits);
    lab_evaluator_free(d.guide);
    cli_judge_close(&e.own);
    cli_judge_close(&judge);
    lab_label_sets_free(&sets);
    cli_model_close(&model);
    return status;
}

const cli_command cli_test = {
    "test",
    "[DATA] [--test-type test|new_test] [--model PATH] [--out DIR]",
    "draws and scores the lab's test sets: pictures, grid, strips, accuracy",
    "DIR then holds images/TYPE/I.png, TYPE_grid.png, strips/TYPE_I.png, and under two names the strip that the lab\n"
    "asks for: required_strip.png and red_sphere+cyan_cylinder+cyan_cube.png.",
    options,
    run,
    NULL};
