/* cli/eval.c - ddpm eval: scores pictures that exist already, whoever drew them, against a file of label sets.
 *
 * Contents: 1 options   2 the list of pictures   3 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/judge.h"
#include "io/file.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *images, *labels_file, *evaluator, *grid;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"images", "image_dir data_root", CLI_TEXT, "DIR", CLI_REQUIRED,
     "folder of the pictures", &set.images, 0, 0, 1},
    {"labels-file", NULL, CLI_TEXT, "FILE", CLI_REQUIRED,
     "as test.json: set I belongs to DIR/I.png; or as train.json: {file name: [class, ...]}",
     &set.labels_file, 0, 0, 0},
    {"evaluator", NULL, CLI_TEXT, "PATH", "(the bundled judge)",
     "what judges: a directory that train-evaluator made, or torchvision's weights as .safetensors",
     &set.evaluator, 0, 0, 0},
    {"grid", NULL, CLI_TEXT, "FILE.png", NULL,
     "also the pictures as the judge sees them, eight in a row, a missed object's in a red frame",
     &set.grid, 0, 0, 0},
    {0},
};
/* clang-format on */

/* ---- 2. The list of pictures --------------------------------------------------------------------------------- */

typedef struct listing {
    lab_label_sets sets;
    char **file;         /* of set i; NULL: I.png */
    io_picture *picture; /* for the grid, of the judge's size; NULL: none is wanted */
    int *hits;
} listing;

static void free_listing(listing *list)
{
    for (int i = 0; list->file != NULL && i < list->sets.count; i++)
        free(list->file[i]);
    for (int i = 0; list->picture != NULL && i < list->sets.count; i++)
        io_picture_free(&list->picture[i]);
    free(list->file);
    free(list->picture);
    free(list->hits);
    lab_label_sets_free(&list->sets);
}

/* train.json's form */
static ddpm_result read_named(const cJSON *json, const lab_classes *classes, listing *list)
{
    list->file = cli_alloc((size_t)cJSON_GetArraySize(json) + 1, sizeof *list->file);
    if (list->file == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    for (const cJSON *entry = json->child; entry != NULL && result == DDPM_OK; entry = entry->next) {
        char *where = cli_text("%s: entry '%s'", set.labels_file, entry->string);
        if (where == NULL) return DDPM_ERR_MEMORY;
        result = lab_label_sets_add_json(&list->sets, classes, entry, 1, where);
        free(where);
        if (result == DDPM_OK && (list->file[list->sets.count - 1] = cli_text("%s", entry->string)) == NULL)
            result = DDPM_ERR_MEMORY;
    }
    return result;
}

static ddpm_result read_listing(const lab_classes *classes, listing *list)
{
    cJSON *json;
    ddpm_result result = lab_json_read(set.labels_file, &json);
    if (result != DDPM_OK) return result;
    result = cJSON_IsObject(json) ? read_named(json, classes, list)
                                  : lab_label_sets_read(set.labels_file, classes, 1, &list->sets);
    cJSON_Delete(json);
    if (result == DDPM_OK && list->sets.count == 0)
        result = ddpm_fail(DDPM_ERR_FORMAT, "%s holds no label sets", set.labels_file);
    if (result == DDPM_OK) list->hits = cli_alloc((size_t)list->sets.count, sizeof *list->hits);
    if (result == DDPM_OK && set.grid != NULL)
        list->picture = cli_alloc((size_t)list->sets.count, sizeof *list->picture);
    if (result == DDPM_OK && (list->hits == NULL || (set.grid != NULL && list->picture == NULL)))
        result = DDPM_ERR_MEMORY;
    return result;
}

/* ---- 3. The command ------------------------------------------------------------------------------------------ */

static ddpm_result judge_one(cli_judge *judge, listing *list, int i)
{
    const lab_label_sets *sets = &list->sets;
    char *name = list->file != NULL ? cli_text("%s", list->file[i]) : cli_text("%d.png", i);
    char *path = name != NULL ? io_join(set.images, name) : NULL;
    io_picture picture = {0};
    ddpm_result result = path != NULL ? io_picture_read(path, 3, &picture) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK)
        result =
            cli_judge_picture(judge, &picture, sets->label + sets->start[i], lab_set_size(sets, i), &list->hits[i]);
    int size = judge->ev->config.sample_size;
    if (result == DDPM_OK && list->picture != NULL) result = io_picture_resize(&picture, size, size, &list->picture[i]);
    io_picture_free(&picture);
    free(path);
    free(name);
    return result;
}

static ddpm_result write_grid(const cli_context *context, const cli_judge *judge, const listing *list)
{
    io_picture grid;
    ddpm_result result = cli_make_judged_grid(list->picture, &list->sets, list->sets.count, list->hits, &grid);
    if (result != DDPM_OK) return result;
    io_text text[] = {{"command", context->command_line}, {"judge", judge->ev->path}, {"version", cli_version()}};
    result = io_picture_write_png(set.grid, &grid, text, 3);
    io_picture_free(&grid);
    return result;
}

static ddpm_result eval(const cli_context *context, cli_judge *judge, listing *list)
{
    cli_progress bar;
    ddpm_result result = set.grid != NULL ? cli_can_write_png(set.grid) : DDPM_OK;
    if (result == DDPM_OK) result = cli_judge_open(context, set.evaluator, judge);
    if (result == DDPM_OK) result = read_listing(&judge->ev->classes, list);
    cli_progress_start(&bar, "eval", list->sets.count);
    for (int i = 0; result == DDPM_OK && i < list->sets.count; i++) {
        result = judge_one(judge, list, i);
        cli_progress_show(&bar, i + 1, "%d of %d pictures, accuracy %.4f", i + 1, list->sets.count,
                          lab_tally_pictures(&judge->tally).value);
    }
    cli_progress_clear(&bar);
    if (result == DDPM_OK && set.grid != NULL) result = write_grid(context, judge, list);
    if (result != DDPM_OK) return result;
    cli_note("judged by %s", judge->ev->path);
    cli_print_accuracy(&judge->tally);
    cli_print_classes(&judge->tally, &judge->ev->classes);
    return DDPM_OK;
}

static int run(const cli_context *context)
{
    cli_judge judge = {0};
    listing list = {0};
    int status = cli_exit(eval(context, &judge, &list));
    free_listing(&list);
    cli_judge_close(&judge);
    return status;
}

const cli_command cli_eval = {
    "eval",
    "--images DIR --labels-file FILE [--evaluator PATH]",
    "scores pictures against their label sets",
    "Of a picture with k labels, the k classes that the evaluator scores highest are compared with them. Prints both\n"
    "averages with 95% intervals, the hits of each class, and what was named in the place of what.",
    options,
    run,
    NULL};
