/* cli/results.c - see cli/results.h. A cJSON call that fails for lack of memory returns NULL: `made` collects that, and
 * it is looked at once, at the end.
 *
 * Contents: 1 what was scored   2 what it was made with   3 writing */
#include "cli/results.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"
#include "io/sha256.h"

/* ---- 1. What was scored -------------------------------------------------------------------------------------- */

static int add_accuracy(cJSON *to, const char *name, lab_accuracy a)
{
    cJSON *object = cJSON_AddObjectToObject(to, name);
    double interval[] = {a.low, a.high};
    cJSON *list = cJSON_CreateDoubleArray(interval, 2);
    if (!cJSON_AddItemToObject(object, "interval", list)) {
        cJSON_Delete(list);
        return 0;
    }
    return cJSON_AddNumberToObject(object, "value", a.value) != NULL;
}

static int add_classes(cJSON *to, const cli_judge *judge)
{
    const lab_tally *t = &judge->tally;
    cJSON *classes = cJSON_AddObjectToObject(to, "classes"), *taken = cJSON_AddArrayToObject(to, "taken");
    int made = classes != NULL && taken != NULL, n = t->classes;
    for (int c = 0; made && c < n; c++) {
        if (t->present[c] == 0) continue;
        cJSON *one = cJSON_AddObjectToObject(classes, judge->ev->classes.name[c]);
        made = cJSON_AddNumberToObject(one, "hits", t->found[c]) != NULL &&
               cJSON_AddNumberToObject(one, "objects", t->present[c]) != NULL;
    }
    for (int i = 0; made && i < n * n; i++) {
        if (t->taken[i] == 0) continue;
        cJSON *one = cJSON_CreateObject();
        made = cJSON_AddItemToArray(taken, one) &&
               cJSON_AddStringToObject(one, "missed", judge->ev->classes.name[i / n]) != NULL &&
               cJSON_AddStringToObject(one, "named_instead", judge->ev->classes.name[i % n]) != NULL &&
               cJSON_AddNumberToObject(one, "times", t->taken[i]) != NULL;
    }
    return made;
}

static int add_sets(cJSON *to, const cli_results *r)
{
    const lab_label_sets *sets = r->drawing->sets;
    cJSON *list = cJSON_AddArrayToObject(to, "sets");
    int made = list != NULL;
    for (int i = 0; made && i < r->listed; i++) {
        cJSON *one = cJSON_CreateObject();
        char *labels = lab_set_caption(sets, i, &r->drawing->model->classes);
        made = cJSON_AddItemToArray(list, one) && labels != NULL &&
               cJSON_AddStringToObject(one, "labels", labels) != NULL &&
               cJSON_AddNumberToObject(one, "objects", lab_set_size(sets, i)) != NULL &&
               (r->hits == NULL || cJSON_AddNumberToObject(one, "hits", r->hits[i]) != NULL);
        free(labels);
    }
    return made;
}

static int add_scores(cJSON *to, const cli_results *r)
{
    const lab_tally *t = &r->judge->tally;
    return add_accuracy(to, "accuracy_mean_of_pictures", lab_tally_pictures(t)) &&
           add_accuracy(to, "accuracy_pooled_objects", lab_tally_objects(t)) &&
           cJSON_AddStringToObject(to, "interval", "Wilson, 95%") != NULL &&
           cJSON_AddNumberToObject(to, "pictures", t->pictures) != NULL &&
           cJSON_AddNumberToObject(to, "objects", t->objects) != NULL &&
           cJSON_AddNumberToObject(to, "hits", t->hits) != NULL && add_classes(to, r->judge);
}

/* ---- 2. What it was made with -------------------------------------------------------------------------------- */

/* {"path": directory, "sha256": {file: hash, ...}} of those files that are there. */
static ddpm_result add_hashes(cJSON *to, const char *name, const char *directory, const char *const *file, int files,
                              int *made)
{
    ddpm_result result = DDPM_OK;
    cJSON *object = cJSON_AddObjectToObject(to, name);
    cJSON *hashes = cJSON_AddObjectToObject(object, "sha256");
    *made = *made && hashes != NULL && cJSON_AddStringToObject(object, "path", directory) != NULL;
    for (int i = 0; *made && result == DDPM_OK && i < files; i++) {
        io_sha256_text hash;
        char *path = io_is_directory(directory) ? io_join(directory, file[i]) : cli_text("%s", directory);
        if (path == NULL) return DDPM_ERR_MEMORY;
        if (io_is_file(path)) {
            result = io_sha256_file(path, hash);
            *made = result == DDPM_OK && cJSON_AddStringToObject(hashes, file[i], hash) != NULL;
        }
        free(path);
    }
    return result;
}

static ddpm_result add_files(cJSON *to, const cli_results *r, int *made)
{
    static const char *const model[] = {"unet/config.json",
                                        "unet/diffusion_pytorch_model.safetensors",
                                        "config.json",
                                        "diffusion_pytorch_model.safetensors",
                                        "scheduler/scheduler_config.json",
                                        "label_encoder/model.safetensors",
                                        "model_index.json"};
    static const char *const evaluator[] = {"model.safetensors"};
    static const char *const labels[] = {"labels"};
    ddpm_result result = add_hashes(to, "model", r->drawing->model->path, model, 7, made);
    if (result == DDPM_OK) result = add_hashes(to, "labels_file", r->labels_file, labels, 1, made);
    if (result == DDPM_OK && r->judge != NULL)
        result = add_hashes(to, "evaluator", r->judge->ev->path, evaluator, 1, made);
    if (result == DDPM_OK && r->guide != NULL) result = add_hashes(to, "guide", r->guide->ev->path, evaluator, 1, made);
    if (r->guide == NULL || !*made || result != DDPM_OK) return result;
    cJSON *guide = cJSON_GetObjectItemCaseSensitive(to, "guide");
    *made = cJSON_AddNumberToObject(guide, "scale", r->drawing->guide_scale) != NULL &&
            add_accuracy(guide, "accuracy_mean_of_pictures", lab_tally_pictures(&r->guide->tally)) &&
            add_accuracy(guide, "accuracy_pooled_objects", lab_tally_objects(&r->guide->tally));
    return result;
}

static int add_settings(cJSON *to, const cli_results *r)
{
    const ddpm_sample_config *sample = &r->drawing->sample;
    const ddpm_device *device = &r->context->device;
    cJSON *settings = cJSON_AddObjectToObject(to, "settings");
    int made = settings != NULL && cli_settings_to_json(r->options, settings);
    cJSON_DeleteItemFromObject(settings, "steps"); /* as given: 0 stands for a default */
    return made && cJSON_AddNumberToObject(settings, "steps", sample->steps) != NULL &&
           cJSON_AddNumberToObject(settings, "timesteps", r->drawing->model->schedule.config.num_train_timesteps) !=
               NULL &&
           cJSON_AddStringToObject(settings, "backend", device->backend->name) != NULL &&
           cJSON_AddStringToObject(settings, "isa", ddpm_device_isa(device)) != NULL &&
           cJSON_AddNumberToObject(settings, "threads", device->threads) != NULL &&
           cJSON_AddStringToObject(to, "command_line", r->context->command_line) != NULL &&
           cJSON_AddStringToObject(to, "version", cli_version()) != NULL &&
           cJSON_AddNumberToObject(to, "seconds_a_picture", r->seconds / r->drawing->count) != NULL;
}

/* ---- 3. Writing ---------------------------------------------------------------------------------------------- */

/* What stands in the file already; an empty object where that is nothing of ours. */
static cJSON *read_previous(const char *path)
{
    cJSON *object = NULL;
    if (io_is_file(path) && io_json_read(path, &object) == DDPM_OK && cJSON_IsObject(object)) return object;
    cJSON_Delete(object);
    return cJSON_CreateObject();
}

ddpm_result cli_write_results(const cli_results *r, const char *name, const char *path)
{
    cJSON *all = read_previous(path);
    cJSON_DeleteItemFromObject(all, name);
    cJSON *object = cJSON_AddObjectToObject(all, name);
    int made = object != NULL && (r->judge == NULL || add_scores(object, r)) && add_settings(object, r);
    ddpm_result result = made ? add_files(object, r, &made) : DDPM_OK;
    if (result == DDPM_OK) made = made && add_sets(object, r);
    char *text = made && result == DDPM_OK ? cJSON_Print(all) : NULL;
    if (result == DDPM_OK && text == NULL) result = ddpm_fail(DDPM_ERR_MEMORY, "no memory to write %s", path);
    if (result == DDPM_OK) result = io_write_file(path, text, strlen(text));
    if (result == DDPM_OK) cli_note("%s", path);
    cJSON_free(text);
    cJSON_Delete(all);
    return result;
}
