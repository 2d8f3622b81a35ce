/* io/checkpoint.c - see io/checkpoint.h.
 *
 * Contents:  1 out   2 in   3 finding and thinning */
#include "io/checkpoint.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/model.h"

static const char first_moment[] = "optimizer/exp_avg.safetensors",
                  second_moment[] = "optimizer/exp_avg_sq.safetensors", state_name[] = "training.json",
                  live[] = "_live";

/* ---- 1. Out ---------------------------------------------------------------------------------------------------- */

static ddpm_result save_moment(const char *directory, const ddpm_model *model, ddpm_array array, const char *name)
{
    char *path = io_join(directory, name);
    ddpm_result result = path ? io_weights_save(model, array, IO_PART_ALL, IO_F32, path) : DDPM_ERR_MEMORY;
    free(path);
    return result;
}

/* training.json comes last: its commit syncs the directory that by then has all entries. */
static ddpm_result write_generation(const char *directory, const ddpm_model *model,
                                    const ddpm_schedule_config *schedule, const io_model_info *info,
                                    const char *training)
{
    char *optimizer = io_join(directory, "optimizer"), *state = io_join(directory, state_name);
    ddpm_result result = optimizer && state ? DDPM_OK : DDPM_ERR_MEMORY;
    if (!result) result = io_model_write(directory, model, DDPM_EMA, IO_F32, schedule, info);
    if (!result) result = io_networks_write(directory, live, model, DDPM_WEIGHT, IO_F32);
    if (!result) result = io_make_directory(optimizer);
    if (!result) result = save_moment(directory, model, DDPM_MOMENT1, first_moment);
    if (!result) result = save_moment(directory, model, DDPM_MOMENT2, second_moment);
    if (!result) result = io_write_file(state, training, strlen(training));
    free(optimizer);
    free(state);
    return result;
}

ddpm_result io_checkpoint_save(const char *run, uint64_t step, const ddpm_model *model,
                               const ddpm_schedule_config *schedule, const io_model_info *info, const char *training)
{
    char name[40];
    snprintf(name, sizeof name, ".tmp-%llu", (unsigned long long)step);
    char *fresh = io_join(run, name);
    snprintf(name, sizeof name, "step-%llu", (unsigned long long)step);
    char *target = io_join(run, name);
    ddpm_result result = fresh && target ? io_remove_tree(fresh) : DDPM_ERR_MEMORY;
    if (!result) result = write_generation(fresh, model, schedule, info, training);
    if (!result) result = io_replace_directory(fresh, target);
    if (result && fresh) {
        char text[1024]; /* the first failure is the one to report */
        snprintf(text, sizeof text, "%s", ddpm_error());
        io_remove_tree(fresh);
        ddpm_fail(result, "%s", text);
    }
    free(fresh);
    free(target);
    return result;
}

/* ---- 2. In ----------------------------------------------------------------------------------------------------- */

static ddpm_result load(const char *directory, const char *name, ddpm_model *model, ddpm_array array, io_part part)
{
    char *path = io_join(directory, name);
    ddpm_result result = path ? io_weights_load(model, 1u << array, part, path) : DDPM_ERR_MEMORY;
    free(path);
    return result;
}

ddpm_result io_checkpoint_load(const char *directory, ddpm_model *model)
{
    int labels = model->config.label.num_classes > 0;
    ddpm_result result = load(directory, "unet/diffusion_pytorch_model.safetensors", model, DDPM_EMA, IO_PART_NETWORK);
    if (!result)
        result = load(directory, "unet_live/diffusion_pytorch_model.safetensors", model, DDPM_WEIGHT, IO_PART_NETWORK);
    if (!result && labels)
        result = load(directory, "label_encoder/model.safetensors", model, DDPM_EMA, IO_PART_LABEL_ENCODER);
    if (!result && labels)
        result = load(directory, "label_encoder_live/model.safetensors", model, DDPM_WEIGHT, IO_PART_LABEL_ENCODER);
    if (!result) result = load(directory, first_moment, model, DDPM_MOMENT1, IO_PART_ALL);
    if (!result) result = load(directory, second_moment, model, DDPM_MOMENT2, IO_PART_ALL);
    return result;
}

/* ---- 3. Finding and thinning ----------------------------------------------------------------------------------- */

int io_checkpoint_step(const char *name, uint64_t *step)
{
    static const char prefix[] = "step-";
    uint64_t value = 0;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return 0;
    const char *digit = name + sizeof prefix - 1;
    size_t length = strlen(digit);
    if (length < 1 || length > 18 || strspn(digit, "0123456789") != length) return 0;
    for (; *digit; digit++)
        value = 10 * value + (uint64_t)(*digit - '0');
    *step = value;
    return 1;
}

ddpm_result io_checkpoint_newest(const char *run, char **path, uint64_t *step)
{
    ddpm_result result = DDPM_OK;
    DIR *directory = opendir(run);
    *path = NULL;
    *step = 0;
    if (!directory)
        return ddpm_fail(DDPM_ERR_FILE, "%s: the run's directory cannot be read\n      hint: check the path", run);
    for (struct dirent *entry; !result && (entry = readdir(directory));) {
        uint64_t number;
        if (!io_checkpoint_step(entry->d_name, &number) || (*path && number < *step)) continue;
        char *generation = io_join(run, entry->d_name), *state = generation ? io_join(generation, state_name) : NULL;
        if (!state) {
            result = DDPM_ERR_MEMORY;
        } else if (io_is_file(state)) {
            char *beaten = *path;
            *path = generation;
            generation = beaten;
            *step = number;
        }
        free(generation);
        free(state);
    }
    closedir(directory);
    if (result) {
        free(*path);
        *path = NULL;
    }
    return result;
}

/* training.json goes first: from then on nobody takes it for a generation. */
ddpm_result io_checkpoint_thin(const char *directory)
{
    static const char *const part[] = {"training.json", "unet_live", "label_encoder_live", "optimizer"};
    ddpm_result result = DDPM_OK;
    for (size_t i = 0; i < sizeof part / sizeof *part && !result; i++) {
        char *path = io_join(directory, part[i]);
        result = path ? io_remove_tree(path) : DDPM_ERR_MEMORY;
        free(path);
    }
    return result;
}
