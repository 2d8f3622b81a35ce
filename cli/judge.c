/* cli/judge.c - see cli/judge.h.
 *
 * Contents: 1 opening   2 scoring   3 the grid   4 printing */
#include "cli/judge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

/* ---- 1. Opening ---------------------------------------------------------------------------------------------- */

char *cli_find_evaluator(const char *model, const char *name)
{
    char *beside = model != NULL ? io_join(model, name) : NULL;
    if (model != NULL && (beside == NULL || io_is_directory(beside))) return beside;
    free(beside);
    char *below = cli_text("mini/%s", name);
    char *bundled = below != NULL ? cli_bundled(below) : NULL;
    free(below);
    return bundled;
}

static ddpm_result open_evaluator(const cli_context *context, const char *path, cli_judge *out)
{
    char *bundled = path == NULL ? cli_find_evaluator(NULL, "evaluator_judge") : NULL;
    if (path == NULL && bundled == NULL) return DDPM_ERR_MEMORY;
    if (path == NULL && !io_is_directory(bundled)) {
        ddpm_result result = ddpm_fail(DDPM_ERR_FILE,
                                       "%s: the bundled evaluator is not there\n"
                                       "      hint: --evaluator PATH; ddpm train-evaluator makes one",
                                       bundled);
        free(bundled);
        return result;
    }
    ddpm_result result = lab_evaluator_load(path != NULL ? path : bundled, &context->device, &out->ev);
    free(bundled);
    return result;
}

ddpm_result cli_open_guide(const cli_context *context, const char *path, double scale, lab_evaluator **out)
{
    *out = NULL;
    return path != NULL && scale != 0 ? lab_evaluator_load(path, &context->device, out) : DDPM_OK;
}

ddpm_result cli_judge_open(const cli_context *context, const char *path, cli_judge *out)
{
    *out = (cli_judge){0};
    ddpm_result result = open_evaluator(context, path, out);
    if (result == DDPM_OK) result = lab_evaluator_net_create(&out->net, out->ev, 1, LAB_SCORING);
    if (result == DDPM_OK) result = lab_tally_create(&out->tally, out->ev->config.classes);
    if (result == DDPM_OK) {
        out->picture = cli_alloc(ddpm_elements(out->net->picture, 1), sizeof *out->picture);
        out->scores = cli_alloc(ddpm_elements(out->net->scores, 1), sizeof *out->scores);
        if (out->picture == NULL || out->scores == NULL) result = DDPM_ERR_MEMORY;
    }
    if (result != DDPM_OK) cli_judge_close(out);
    return result;
}

void cli_judge_close(cli_judge *judge)
{
    lab_tally_free(&judge->tally);
    lab_evaluator_net_free(judge->net);
    lab_evaluator_free(judge->ev);
    free(judge->picture);
    free(judge->scores);
    *judge = (cli_judge){0};
}

/* ---- 2. Scoring ---------------------------------------------------------------------------------------------- */

ddpm_result cli_judge_picture(cli_judge *judge, const io_picture *picture, const int *label, int labels, int *hits)
{
    io_picture small;
    int size = judge->ev->config.sample_size;
    if (picture->channels != 3)
        return ddpm_fail(DDPM_ERR_SHAPE, "an evaluator judges colour pictures, this one is gray");
    ddpm_result result = io_picture_resize(picture, size, size, &small);
    if (result != DDPM_OK) return result;
    io_picture_to_real(&small, judge->picture);
    io_picture_free(&small);
    result = lab_evaluator_scores(judge->net, 1, judge->picture, judge->scores);
    return result == DDPM_OK ? lab_tally_add(&judge->tally, judge->scores, label, labels, hits) : result;
}

ddpm_result cli_judge_labels(const cli_judge *judge, const lab_classes *classes, const int *label, int labels, int *out)
{
    for (int i = 0; i < labels; i++) {
        out[i] = lab_class_index(&judge->ev->classes, classes->name[label[i]]);
        if (out[i] < 0)
            return ddpm_fail(DDPM_ERR_RANGE, "%s knows no class '%s'\n      hint: --evaluator, one of these classes",
                             judge->ev->path, classes->name[label[i]]);
    }
    return DDPM_OK;
}

/* ---- 3. The grid --------------------------------------------------------------------------------------------- */

enum { GRID_COLUMNS = 8, GRID_PADDING = 2 };

/* Reddens what lies between picture `index` of a grid and its neighbours. */
static void frame_picture(io_picture *grid, int index, const io_picture *picture)
{
    static const unsigned char red[3] = {255, 32, 32};
    int width = picture->width + GRID_PADDING, height = picture->height + GRID_PADDING;
    int left = index % GRID_COLUMNS * width, top = index / GRID_COLUMNS * height;
    for (int y = 0; y < height + GRID_PADDING; y++)
        for (int x = 0; x < width + GRID_PADDING; x++)
            if (x < GRID_PADDING || x >= width || y < GRID_PADDING || y >= height)
                memcpy(grid->pixel + 3 * ((size_t)(top + y) * (size_t)grid->width + (size_t)(left + x)), red, 3);
}

ddpm_result cli_make_judged_grid(const io_picture *picture, const lab_label_sets *sets, int count, const int *hits,
                                 io_picture *out)
{
    ddpm_result result = io_make_grid(picture, count, GRID_COLUMNS, GRID_PADDING, out);
    for (int i = 0; result == DDPM_OK && hits != NULL && count > 1 && i < count; i++)
        if (hits[i] < lab_set_size(sets, i)) frame_picture(out, i, &picture[i]);
    return result;
}

/* ---- 4. Printing --------------------------------------------------------------------------------------------- */

static void print_figure(const char *what, lab_accuracy a, const char *of, int count)
{
    printf("accuracy (%s): %.4f   (95%% interval %.4f to %.4f: Wilson, %d %s)\n", what, a.value, a.low, a.high, count,
           of);
}

void cli_print_accuracy(const lab_tally *tally)
{
    print_figure("mean of pictures", lab_tally_pictures(tally), "pictures", tally->pictures);
    print_figure("pooled objects", lab_tally_objects(tally), "objects", tally->objects);
}

void cli_print_classes(const lab_tally *tally, const lab_classes *classes)
{
    int n = tally->classes, missed = 0;
    printf("\n%-20s %s\n", "class", "hits");
    for (int c = 0; c < n; c++)
        if (tally->present[c] > 0)
            printf("%-20s %d/%d  %.4f\n", classes->name[c], tally->found[c], tally->present[c],
                   (double)tally->found[c] / tally->present[c]);
    for (int i = 0; i < n * n; i++) {
        if (tally->taken[i] == 0) continue;
        if (missed++ == 0) printf("\n%-20s %-20s times\n", "missed", "named instead");
        printf("%-20s %-20s %d\n", classes->name[i / n], classes->name[i % n], tally->taken[i]);
    }
}
