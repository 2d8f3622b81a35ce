/* cli/model.c - what --model PATH means: a run (its best or latest checkpoint) or a model directory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/json.h"
#include "io/model.h"

/* 1 if PATH/name looks like a model: ours and a diffusers pipeline have unet/config.json, a UNet2DModel alone
 * config.json. */
static int holds_model(const char *path)
{
    static const char *const sign[] = {"unet/config.json", "config.json"};
    int found = 0;
    for (int i = 0; i < 2 && !found; i++) {
        char *file = io_join(path, sign[i]);
        found = file != NULL && io_is_file(file);
        free(file);
    }
    return found;
}

static char *find_bundled(void)
{
    char *path = cli_bundled("mini");
    if (path == NULL || holds_model(path)) return path;
    ddpm_fail(
        DDPM_ERR_FILE,
        "no model is given, and the bundled one is not there: %s\n"
        "      hint: --model RUN, a run that ddpm train made, or a model directory; make mini makes the bundled one",
        path);
    free(path);
    return NULL;
}

/* RUN/best as the RUN/step-N that it now points at: a run that goes on moves its links. Takes path. */
static char *follow_link(char *path)
{
    char target[64];
    uint64_t step;
    ssize_t length = path != NULL ? readlink(path, target, sizeof target - 1) : -1;
    if (length < 0) return path;
    target[length] = '\0';
    if (!io_checkpoint_step(target, &step)) return path;
    const char *slash = strrchr(path, '/');
    char *followed = cli_text("%.*s%s", slash != NULL ? (int)(slash - path) + 1 : 0, path, target);
    free(path);
    return followed;
}

int cli_is_evaluator(const char *path)
{
    cJSON *json = NULL;
    char *file = io_join(path, "config.json");
    int found = file != NULL && io_is_file(file) && io_json_read(file, &json) == DDPM_OK;
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "_class_name"));
    found = found && name != NULL && strcmp(name, "ResNet18") == 0;
    cJSON_Delete(json);
    free(file);
    return found;
}

char *cli_find_model(const char *path)
{
    static const char *const checkpoint[] = {"best", "latest"};
    if (path == NULL) return find_bundled();
    if (!io_is_directory(path)) {
        ddpm_fail(DDPM_ERR_FILE,
                  "%s is not a directory\n      hint: --model wants a run that ddpm train made, or a model "
                  "directory as diffusers writes it",
                  path);
        return NULL;
    }
    if (cli_is_evaluator(path)) {
        ddpm_fail(DDPM_ERR_ARGUMENT,
                  "%s is an evaluator, which judges pictures and draws none\n"
                  "      hint: --model wants what ddpm train made; this goes to --evaluator or --guide",
                  path);
        return NULL;
    }
    if (holds_model(path)) return follow_link(cli_text("%s", path));
    for (int i = 0; i < 2; i++) {
        char *inside = io_join(path, checkpoint[i]);
        if (inside == NULL || holds_model(inside)) return follow_link(inside);
        free(inside);
    }
    ddpm_fail(DDPM_ERR_FILE,
              "%s holds neither a model (unet/config.json) nor a run's checkpoints (best, latest)\n"
              "      hint: ddpm train %s --out RUN learns from pictures; a run has a checkpoint after its first epoch",
              path, path);
    return NULL;
}

char *cli_bundled(const char *name)
{
    char program[1024];
    char *path = cli_text("data/%s", name);
    if (path == NULL || io_is_file(path) || io_is_directory(path)) return path;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(program, '/');
    if (slash == NULL) return path;
    *slash = '\0';
    free(path);
    return cli_text("%s/data/%s", program, name);
}

ddpm_result cli_model_open(const cli_context *context, const char *path, unsigned arrays, cli_model *out)
{
    ddpm_schedule_config schedule = {0};
    *out = (cli_model){.path = cli_find_model(path)};
    if (out->path == NULL) return DDPM_ERR_FILE;
    ddpm_result result = io_model_load(out->path, &context->device, arrays, &out->model, &schedule, &out->info);
    out->schedule.config = schedule; /* close frees its list */
    if (result == DDPM_OK) result = ddpm_schedule_create(&out->schedule, &schedule);
    if (result == DDPM_OK && out->info.classes > 0)
        result = lab_classes_from_names((const char *const *)out->info.class_name, out->info.classes, out->path,
                                        &out->classes);
    if (result != DDPM_OK) cli_model_close(out);
    return result;
}

void cli_model_close(cli_model *model)
{
    lab_classes_free(&model->classes);
    io_model_info_free(&model->info);
    io_schedule_config_free(&model->schedule.config);
    ddpm_schedule_free(&model->schedule);
    ddpm_model_free(model->model);
    free(model->path);
    *model = (cli_model){0};
}

double cli_parameters(const ddpm_model *model)
{
    double count = 0;
    for (int i = 0; i < model->params; i++)
        count += (double)ddpm_elements(model->param[i], 1);
    return count;
}

ddpm_result cli_room(const ddpm_device *device, double *bytes)
{
    size_t room;
    *bytes = cli_memory_available();
    if (device->backend->room == NULL) return DDPM_OK;
    ddpm_result result = device->backend->room(device->state, &room);
    if (result == DDPM_OK) *bytes = (double)room;
    return result;
}

int cli_largest_batch(ddpm_model *model, int height, int width, int times, int mode, int too_large, double more,
                      double bytes)
{
    int fits = 0;
    while (too_large - fits > 1) {
        ddpm_net *net = NULL;
        int n = fits + (too_large - fits) / 2;
        ddpm_result result = ddpm_net_create(&net, model, height, width, n * times, mode);
        if (result == DDPM_OK && (double)net->graph->bytes + n * more <= bytes)
            fits = n;
        else
            too_large = n;
        ddpm_net_free(net);
    }
    return fits;
}
