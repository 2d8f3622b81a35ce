/* cli/test.c - ddpm test: the lab's test. Draws a picture for every label set of test.json or new_test.json and writes
 * images/TYPE/I.png, the 8x4 grid TYPE_grid.png, strips/TYPE_I.png, and required_strip.png, the lab's required figure.
 *
 * Contents: 1 options   2 label sets   3 pictures   4 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/draw.h"
#include "io/file.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *data, *model, *out;
    int test_type, batch_size, sampler, steps;
    double eta, guidance;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", "(the bundled data/)",
     "folder with test.json and new_test.json", &set.data, 0, 0, 1},
    {"test-type", NULL, CLI_CHOICE, "test|new_test", "test",
     "which of the two files", &set.test_type, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(must be given)",
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "DIR", "results",
     "folder to write to", &set.out, 0, 0, 0},
    {"batch-size", "eval_batch_size", CLI_INT, "N", "8",
     "pictures drawn at once; they do not depend on it", &set.batch_size, 1, 65536, 0},
    {"seed", NULL, CLI_SEED, "S", "529", "of the noise", &set.seed, 0, 0, 0},
    {"sampler", NULL, CLI_CHOICE, "ddpm|ddim", "ddpm", "ancestral, or DDIM", &set.sampler, 0, 0, 0},
    {"steps", "time_step num_inference_steps", CLI_INT, "N", "(ddpm: all of the model's, 1000; ddim: 50)",
     "steps of denoising", &set.steps, 1, 100000, 0},
    {"eta", NULL, CLI_REAL, "R", "0",
     "of DDIM: 0 is deterministic, 1 as noisy as DDPM", &set.eta, 0, 1, 0},
    {"guidance", "guidance_scale", CLI_REAL, "G", "1",
     "eps_none + G (eps_label - eps_none): 1 is without, 3 draws the labels more clearly", &set.guidance, -100, 100, 0},
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
        int found = 0, size = sets->start[i + 1] - sets->start[i];
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

static ddpm_result read_sets(const cli_model *model, lab_label_sets *sets)
{
    if (model->classes.count == 0)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s/model_index.json: no class names, so label sets mean nothing to this model\n"
                         "      hint: ddpm info %s tells what the model takes",
                         model->path, model->path);
    char *path = set.data != NULL ? cli_text("%s/%s.json", set.data, type_name()) : bundled_sets();
    ddpm_result result = path != NULL ? lab_label_sets_read(path, &model->classes, 0, sets) : DDPM_ERR_MEMORY;
    free(path);
    if (result == DDPM_OK && sets->count == 0)
        result = ddpm_fail(DDPM_ERR_FORMAT, "%s.json holds no label sets", type_name());
    return result;
}

/* ---- 3. Pictures --------------------------------------------------------------------------------------------- */

typedef struct exhibition {
    const cli_context *context;
    const cli_drawing *drawing;
    int required;        /* index of the required set, or -1 */
    int listed;          /* sets of the file: those before the required one that was added */
    io_picture *picture; /* kept for the grid */
} exhibition;

static ddpm_result take(void *user, int index, io_picture *picture, io_picture *frames)
{
    exhibition *e = user;
    ddpm_result result = DDPM_ERR_MEMORY;
    char *caption = lab_set_caption(e->drawing->sets, index, &e->drawing->model->classes);
    char *image = cli_text("%s/images/%s/%d.png", set.out, type_name(), index);
    char *strip = cli_text("%s/strips/%s_%d.png", set.out, type_name(), index);
    char *required = io_join(set.out, "required_strip.png");
    if (caption != NULL && image != NULL && strip != NULL && required != NULL) result = DDPM_OK;
    if (result == DDPM_OK && index < e->listed)
        result = cli_write_picture(e->context, e->drawing, image, caption, picture);
    if (result == DDPM_OK && index < e->listed)
        result = cli_write_grid(e->context, e->drawing, strip, caption, frames, CLI_FRAMES, CLI_FRAMES);
    if (result == DDPM_OK && index == e->required)
        result = cli_write_grid(e->context, e->drawing, required, caption, frames, CLI_FRAMES, CLI_FRAMES);
    if (result == DDPM_OK) {
        e->picture[index] = *picture;
        *picture = (io_picture){0};
    }
    free(caption);
    free(image);
    free(strip);
    free(required);
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

static ddpm_result draw(exhibition *e, cli_drawing *d)
{
    char *grid = cli_text("%s/%s_grid.png", set.out, type_name());
    e->picture = cli_alloc((size_t)d->count, sizeof *e->picture);
    ddpm_result result = grid != NULL && e->picture != NULL ? make_directories() : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = cli_draw(d);
    if (result == DDPM_OK) result = cli_write_grid(e->context, d, grid, NULL, e->picture, e->listed, 8);
    for (int i = 0; e->picture != NULL && i < d->count; i++)
        io_picture_free(&e->picture[i]);
    free(e->picture);
    free(grid);
    return result;
}

/* ---- 4. The command ------------------------------------------------------------------------------------------ */

static ddpm_result test(const cli_context *context, cli_model *model, lab_label_sets *sets)
{
    ddpm_result result = cli_model_open(context, set.model, DDPM_FOR_INFERENCE, model);
    if (result == DDPM_OK) result = read_sets(model, sets);
    if (result != DDPM_OK) return result;
    cli_drawing d = {.model = model, .sets = sets, .batch = set.batch_size, .strips = 1, .take = take};
    exhibition e = {.context = context, .drawing = &d, .listed = sets->count};
    result = find_required_set(&model->classes, sets, &e.required);
    if (result != DDPM_OK) return result;
    d.count = sets->count;
    d.user = &e;
    d.sample = ddpm_sample_default();
    d.sample.sampler = set.sampler == 0 ? DDPM_SAMPLER_DDPM : DDPM_SAMPLER_DDIM;
    d.sample.steps = set.steps > 0 ? set.steps : cli_default_steps(model, d.sample.sampler);
    d.sample.eta = set.eta;
    d.sample.guidance = set.guidance;
    d.sample.seed = set.seed;
    return draw(&e, &d);
}

static int run(const cli_context *context)
{
    cli_model model = {0};
    lab_label_sets sets = {0};
    int status = cli_exit(test(context, &model, &sets));
    lab_label_sets_free(&sets);
    cli_model_close(&model);
    return status;
}

const cli_command cli_test = {
    "test",
    "[DATA] --test-type test|new_test --model PATH --out DIR",
    "draws the lab's test sets: pictures, grid, strips",
    "DIR then holds images/TYPE/I.png, TYPE_grid.png, strips/TYPE_I.png and required_strip.png (red sphere,\n"
    "cyan cylinder, cyan cube).",
    options,
    run};
