/* io/model.c - see io/model.h.
 *
 * Contents:  1 names   2 weights in   3 weights out   4 a directory in   5 a directory out */
#include "io/model.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

/* ---- 1. Names -------------------------------------------------------------------------------------------------- */

static const char label_prefix[] = "label_encoder.";

/* The name a parameter has in the file of `part`; NULL if it belongs to the other one. */
static const char *name_in_part(const ddpm_tensor *param, io_part part)
{
    size_t length = sizeof label_prefix - 1;
    if (part == IO_PART_ALL) return param->name;
    int of_labels = !strncmp(param->name, label_prefix, length);
    if (of_labels != (part == IO_PART_LABEL_ENCODER)) return NULL;
    return of_labels ? param->name + length : param->name;
}

/* Today's name of a tensor of an old diffusers checkpoint (before 0.14):
 * ModelMixin._convert_deprecated_attention_blocks. */
static const char *modern_name(const char *name, char *out, size_t size)
{
    static const char *const renamed[][2] = {
        {".query.", ".to_q."}, {".key.", ".to_k."}, {".value.", ".to_v."}, {".proj_attn.", ".to_out.0."}};
    const char *attention = strstr(name, "attentions.");
    for (size_t i = 0; attention && i < sizeof renamed / sizeof *renamed; i++) {
        const char *old = strstr(attention, renamed[i][0]);
        if (!old) continue;
        snprintf(out, size, "%.*s%s%s", (int)(old - name), name, renamed[i][1], old + strlen(renamed[i][0]));
        return out;
    }
    return name;
}

static ddpm_result no_memory(const char *path)
{
    ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for one of its tensors\n      hint: close other programs", path);
    return DDPM_ERR_MEMORY;
}

/* Memory for the largest parameter, in which one at a time is converted; NULL if there is none. */
static ddpm_real *room_for_one(const ddpm_model *model)
{
    size_t largest = 1;
    for (int i = 0; i < model->params; i++) {
        size_t count = ddpm_elements(model->param[i], 1);
        if (count > largest) largest = count;
    }
    return malloc(largest * sizeof(ddpm_real));
}

/* ---- 2. Weights in --------------------------------------------------------------------------------------------- */

static void channels_text(const ddpm_unet_config *unet, char *out, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < unet->levels && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%d", i ? "," : "", unet->block_out_channels[i]);
}

/* What to look at when config and weights disagree. */
static void contradiction_hint(const ddpm_model *model, io_part part, char *out, size_t size)
{
    const ddpm_label_config *label = &model->config.label;
    char channels[128] = "";
    if (part == IO_PART_LABEL_ENCODER) {
        snprintf(out, size,
                 "label_encoder/config.json has num_classes %d, hidden_dim %d, embedding_dim %d; was this file trained "
                 "with others?",
                 label->num_classes, label->hidden_dim, label->embedding_dim);
        return;
    }
    if (!model->config.unet.levels) { /* no UNet: an evaluator */
        snprintf(out, size, "the config.json beside it describes another network; were the two saved together?");
        return;
    }
    channels_text(&model->config.unet, channels, sizeof channels);
    snprintf(
        out, size,
        "block_out_channels in the config is (%s), layers_per_block %d; was this file trained with another config?",
        channels, model->config.unet.layers_per_block);
}

static ddpm_result load_tensor(ddpm_model *model, unsigned arrays, const ddpm_tensor *param, const io_tensor *tensor,
                               ddpm_real *room)
{
    /* The file gives float or double; the model's elements may be either (DDPM_REAL). */
    void *elements = room;
    ddpm_result result =
        sizeof(ddpm_real) == sizeof(double) ? io_tensor_doubles(tensor, elements) : io_tensor_floats(tensor, elements);
    for (int array = 0; array < DDPM_ARRAYS && !result; array++)
        if (arrays >> array & 1) result = ddpm_model_set(model, (ddpm_array)array, param, room);
    return result;
}

static int same_shape(const ddpm_tensor *param, const io_tensor *tensor)
{
    int same = param->dims == tensor->dims;
    for (int i = 0; same && i < param->dims; i++)
        same = param->shape[i] == tensor->shape[i];
    return same;
}

static ddpm_result wrong_shape(const ddpm_model *model, io_part part, const char *path, const ddpm_tensor *param,
                               const io_tensor *tensor)
{
    char got[128], wanted[128], hint[320];
    int64_t shape[4];
    for (int i = 0; i < 4; i++)
        shape[i] = param->shape[i];
    contradiction_hint(model, part, hint, sizeof hint);
    return ddpm_fail(DDPM_ERR_SHAPE, "%s: tensor '%.200s' has shape %s, the config needs %s\n      hint: %s", path,
                     tensor->name, io_shape_text(tensor->dims, tensor->shape, got, sizeof got),
                     io_shape_text(param->dims, shape, wanted, sizeof wanted), hint);
}

/* Index of the parameter that a file calls `name`, or -1. */
static int param_index(const ddpm_model *model, io_part part, const char *name)
{
    for (int i = 0; i < model->params; i++) {
        const char *candidate = name_in_part(model->param[i], part);
        if (candidate && !strcmp(candidate, name)) return i;
    }
    return -1;
}

/* Fills what the file holds and marks it in `seen`. It stops at the first stranger, so even a file of a million
 * tensors costs no more than one search for each parameter. */
static ddpm_result load_present(ddpm_model *model, unsigned arrays, io_part part, const io_safetensors *file,
                                char *seen, ddpm_real *room, const char *left_out)
{
    char modern[256], hint[320];
    for (int i = 0; i < file->tensors; i++) {
        const io_tensor *tensor = &file->tensor[i];
        if (left_out && !strcmp(tensor->name, left_out)) continue;
        int index = param_index(model, part, modern_name(tensor->name, modern, sizeof modern));
        if (index < 0 || seen[index]) {
            contradiction_hint(model, part, hint, sizeof hint);
            return ddpm_fail(DDPM_ERR_FORMAT, "%s: tensor '%.200s' %s\n      hint: %s", file->path, tensor->name,
                             index < 0 ? "has no place in the model that the config describes"
                                       : "is there under its old name as well",
                             hint);
        }
        seen[index] = 1;
        if (!same_shape(model->param[index], tensor))
            return wrong_shape(model, part, file->path, model->param[index], tensor);
        ddpm_result result = load_tensor(model, arrays, model->param[index], tensor, room);
        if (result) return result;
    }
    return DDPM_OK;
}

static ddpm_result check_complete(const ddpm_model *model, io_part part, const char *path, const char *seen)
{
    const char *first = NULL;
    char hint[320];
    int missing = 0;
    for (int i = 0; i < model->params; i++) {
        const char *name = name_in_part(model->param[i], part);
        if (!name || seen[i]) continue;
        missing++;
        if (!first) first = name;
    }
    if (!missing) return DDPM_OK;
    contradiction_hint(model, part, hint, sizeof hint);
    return ddpm_fail(DDPM_ERR_FORMAT, "%s: tensor '%s' is missing (%d in all)\n      hint: %s", path, first, missing,
                     hint);
}

/* `left_out`: a tensor that stays as it is, whatever the file says; or NULL. */
static ddpm_result load_weights(ddpm_model *model, unsigned arrays, io_part part, const char *path,
                                const char *left_out)
{
    io_safetensors file;
    ddpm_result result = io_safetensors_open(path, &file);
    if (result) return result;
    char *seen = calloc((size_t)model->params + 1, 1);
    ddpm_real *room = room_for_one(model);
    if (!seen || !room) result = no_memory(path);
    int kept = left_out && seen ? param_index(model, part, left_out) : -1;
    if (kept >= 0) seen[kept] = 1;
    if (!result) result = load_present(model, arrays, part, &file, seen, room, left_out);
    if (!result) result = check_complete(model, part, path, seen);
    free(room);
    free(seen);
    io_safetensors_close(&file);
    return result;
}

ddpm_result io_weights_load(ddpm_model *model, unsigned arrays, io_part part, const char *path)
{
    return load_weights(model, arrays, part, path, NULL);
}

/* ---- 3. Weights out -------------------------------------------------------------------------------------------- */

typedef struct weight_source { /* state of next_tensor */
    const ddpm_model *model;
    ddpm_array array;
    io_part part;
    ddpm_real *room;
    const char *path;
} weight_source;

/* float or binary16 in place of the elements in `room`: neither is wider, so the front never runs into what is
 * unread. */
static ddpm_result narrow(const weight_source *source, const io_tensor *tensor)
{
    unsigned char *bytes = (unsigned char *)source->room;
    for (size_t i = 0; i < tensor->elements; i++) {
        float value = (float)source->room[i];
        uint16_t half = io_half_from_float(value);
        if (tensor->dtype == IO_F32) {
            memcpy(bytes + i * sizeof value, &value, sizeof value);
            continue;
        }
        if (isfinite(value) && (half & 0x7c00u) == 0x7c00u)
            return ddpm_fail(DDPM_ERR_RANGE,
                             "%s: tensor '%s' holds %g, beyond the largest F16 (65504)\n      hint: save it as F32",
                             source->path, tensor->name, (double)value);
        memcpy(bytes + i * sizeof half, &half, sizeof half);
    }
    return DDPM_OK;
}

/* An io_tensor_source: one parameter at a time, from wherever the backend keeps it. */
static ddpm_result next_tensor(void *user, const io_tensor *tensor, const void **bytes)
{
    weight_source *source = user;
    const ddpm_tensor *param = source->model->param[param_index(source->model, source->part, tensor->name)];
    ddpm_result result = ddpm_model_get(source->model, source->array, param, source->room);
    *bytes = source->room;
    return result ? result : narrow(source, tensor);
}

/* The io_tensors of a part, without data; their names point into the model's. Their number, or -1 without memory. */
static int describe_part(const ddpm_model *model, io_part part, io_dtype dtype, io_tensor **out)
{
    int count = 0;
    io_tensor *tensor = calloc((size_t)model->params + 1, sizeof *tensor);
    if (!tensor) return -1;
    for (int i = 0; i < model->params; i++) {
        const ddpm_tensor *param = model->param[i];
        const char *name = name_in_part(param, part);
        if (!name) continue;
        tensor[count] =
            (io_tensor){.name = name, .dtype = dtype, .dims = param->dims, .elements = ddpm_elements(param, 1)};
        for (int k = 0; k < param->dims; k++)
            tensor[count].shape[k] = param->shape[k];
        count++;
    }
    *out = tensor;
    return count;
}

ddpm_result io_weights_save(const ddpm_model *model, ddpm_array array, io_part part, io_dtype dtype, const char *path)
{
    static const io_pair metadata[] = {{"format", "pt"}}; /* transformers and diffusers insist on it */
    if (dtype != IO_F32 && dtype != IO_F16)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: weights are not written as %s; accepted: F32, F16\n      hint: choose one of them", path,
                         io_dtype_name(dtype));
    io_tensor *tensor = NULL;
    int tensors = describe_part(model, part, dtype, &tensor);
    weight_source source = {model, array, part, room_for_one(model), path};
    ddpm_result result = DDPM_OK;
    if (tensors < 0 || !source.room) result = no_memory(path);
    if (!result) result = io_safetensors_stream(path, tensor, tensors, metadata, 1, next_tensor, &source);
    free(source.room);
    free(tensor);
    return result;
}

/* ---- 4. A directory in ----------------------------------------------------------------------------------------- */

enum { INDEX, UNET, WEIGHTS, SCHEDULER, LABEL, LABEL_WEIGHTS, FILES };
static const char *const standard_name[FILES] = {"model_index.json",
                                                 "unet/config.json",
                                                 "unet/diffusion_pytorch_model.safetensors",
                                                 "scheduler/scheduler_config.json",
                                                 "label_encoder/config.json",
                                                 "label_encoder/model.safetensors"};

typedef struct layout { /* paths of a model's files, NULL for what is absent */
    char *file[FILES];
} layout;

static void layout_free(layout *files)
{
    for (int i = 0; i < FILES; i++)
        free(files->file[i]);
    *files = (layout){{0}};
}

static ddpm_result layout_set(layout *files, int which, const char *directory, const char *name)
{
    files->file[which] = io_join(directory, name);
    return files->file[which] ? DDPM_OK : DDPM_ERR_MEMORY;
}

static int has(const char *directory, const char *name, int (*is)(const char *))
{
    char *path = io_join(directory, name);
    int found = path && is(path);
    free(path);
    return found;
}

/* Where things are. The networks' subdirectories promise their files: a subdirectory without its config is an error
 * later, when that is read, not an absent part. */
static ddpm_result locate(const char *path, layout *files)
{
    *files = (layout){{0}};
    if (!io_is_directory(path)) {
        if (!io_is_file(path))
            return ddpm_fail(DDPM_ERR_FILE, "%s: no such directory\n      hint: check the spelling of the path", path);
        return ddpm_fail(DDPM_ERR_FILE,
                         "%s: is a file, not a model directory\n"
                         "      hint: name the directory that holds unet/ or config.json",
                         path);
    }
    int below = has(path, "unet", io_is_directory);
    if (!below && !has(path, "config.json", io_is_file))
        return ddpm_fail(DDPM_ERR_FILE,
                         "%s: holds no model: there is neither unet/config.json nor config.json\n"
                         "      hint: name the directory that holds unet/, or that UNet2DModel.save_pretrained wrote",
                         path);
    ddpm_result result = layout_set(files, UNET, path, below ? standard_name[UNET] : "config.json");
    if (!result)
        result =
            layout_set(files, WEIGHTS, path, below ? standard_name[WEIGHTS] : "diffusion_pytorch_model.safetensors");
    if (!result && has(path, standard_name[INDEX], io_is_file))
        result = layout_set(files, INDEX, path, standard_name[INDEX]);
    if (!result && has(path, "scheduler", io_is_directory))
        result = layout_set(files, SCHEDULER, path, standard_name[SCHEDULER]);
    else if (!result && has(path, "scheduler_config.json", io_is_file))
        result = layout_set(files, SCHEDULER, path, "scheduler_config.json");
    if (!result && has(path, "label_encoder", io_is_directory)) {
        result = layout_set(files, LABEL, path, standard_name[LABEL]);
        if (!result) result = layout_set(files, LABEL_WEIGHTS, path, standard_name[LABEL_WEIGHTS]);
    }
    if (result) layout_free(files);
    return result;
}

/* Class names and the class that stands for "none" must fit what the networks take. */
static ddpm_result check_classes(const char *path, const ddpm_model_config *config, const io_model_info *info,
                                 ddpm_result code)
{
    int room = config->label.num_classes ? config->label.num_classes : config->unet.num_class_embeds;
    int exact = config->label.num_classes > 0;
    if (info->classes && (exact ? info->classes != room : info->classes > room))
        return ddpm_fail(code,
                         "%s: there are %d class names, and the model takes %d classes\n"
                         "      hint: class_names in model_index.json must be those the model was trained with",
                         path, info->classes, room);
    if (info->none_class >= 0 && info->none_class >= room)
        return ddpm_fail(code,
                         "%s: none_class is %d, and the model takes %d classes\n"
                         "      hint: none_class is null for a multi-hot of zeros, or the index of the extra class",
                         path, info->none_class, room);
    return DDPM_OK;
}

/* A picture's size, where nobody said one: the UNet's, before pixel_unshuffle. */
static void set_default_size(const ddpm_model_config *config, io_model_info *info)
{
    if (info->height || info->width) return;
    info->height = config->unet.sample_size[0] * config->pixel_unshuffle;
    info->width = config->unet.sample_size[1] * config->pixel_unshuffle;
}

static ddpm_result read_layout(const char *path, const layout *files, ddpm_model_config *config,
                               ddpm_schedule_config *schedule, io_model_info *info)
{
    ddpm_result result = io_unet_config_read(files->file[UNET], &config->unet);
    if (!result && files->file[LABEL]) result = io_label_config_read(files->file[LABEL], &config->label);
    if (!result && files->file[SCHEDULER]) result = io_schedule_config_read(files->file[SCHEDULER], schedule);
    if (!result && files->file[INDEX]) result = io_model_info_read(files->file[INDEX], info);
    if (result) return result;
    config->pixel_unshuffle = info->pixel_unshuffle;
    set_default_size(config, info);
    return check_classes(path, config, info, DDPM_ERR_FORMAT);
}

/* io_model_read_config, and where the files are. */
static ddpm_result read_config(const char *path, layout *files, ddpm_model_config *config,
                               ddpm_schedule_config *schedule, io_model_info *info)
{
    ddpm_model_config read = ddpm_model_default();
    ddpm_schedule_config read_schedule = ddpm_schedule_default();
    io_model_info read_info = io_model_info_default();
    ddpm_result result = locate(path, files);
    if (!result) result = read_layout(path, files, &read, &read_schedule, &read_info);
    if (result) {
        io_schedule_config_free(&read_schedule);
        io_model_info_free(&read_info);
        layout_free(files);
        return result;
    }
    *config = read;
    if (schedule)
        *schedule = read_schedule;
    else
        io_schedule_config_free(&read_schedule);
    if (info)
        *info = read_info;
    else
        io_model_info_free(&read_info);
    return DDPM_OK;
}

ddpm_result io_model_read_config(const char *path, ddpm_model_config *config, ddpm_schedule_config *schedule,
                                 io_model_info *info)
{
    layout files;
    ddpm_result result = read_config(path, &files, config, schedule, info);
    if (!result) layout_free(&files);
    return result;
}

/* ddpm_model_create names the field that is wrong; here we also know the file. */
static ddpm_result create(const char *path, const ddpm_model_config *config, const ddpm_device *device,
                          ddpm_model **model)
{
    ddpm_result result = ddpm_model_create(model, config, device);
    if (result) {
        char text[1024];
        snprintf(text, sizeof text, "%s", ddpm_error());
        ddpm_fail(result, "%s: %s", path, text);
    }
    return result;
}

static ddpm_result missing_weights(const char *path)
{
    return ddpm_fail(
        DDPM_ERR_FILE,
        "%s: there is no such file\n"
        "      hint: only safetensors are read; diffusers converts others: load it there and call save_pretrained",
        path);
}

ddpm_result io_model_load(const char *path, const ddpm_device *device, unsigned arrays, ddpm_model **model,
                          ddpm_schedule_config *schedule, io_model_info *info)
{
    layout files;
    ddpm_model_config config;
    ddpm_schedule_config read_schedule;
    io_model_info read_info = io_model_info_default();
    unsigned filled = DDPM_FOR_INFERENCE | (arrays & 1u << DDPM_EMA);
    *model = NULL;
    if (info) *info = io_model_info_default();
    ddpm_result result = read_config(path, &files, &config, &read_schedule, &read_info);
    if (result) return result;
    if (!io_is_file(files.file[WEIGHTS])) result = missing_weights(files.file[WEIGHTS]);
    if (!result) result = create(files.file[UNET], &config, device, model);
    if (!result) result = ddpm_model_alloc(*model, arrays | DDPM_FOR_INFERENCE);
    if (!result) result = io_weights_load(*model, filled, IO_PART_NETWORK, files.file[WEIGHTS]);
    if (!result && files.file[LABEL])
        result = io_weights_load(*model, filled, IO_PART_LABEL_ENCODER, files.file[LABEL_WEIGHTS]);
    layout_free(&files);
    if (result) {
        ddpm_model_free(*model);
        *model = NULL;
    }
    if (result || !schedule)
        io_schedule_config_free(&read_schedule);
    else
        *schedule = read_schedule;
    if (result || !info)
        io_model_info_free(&read_info);
    else
        *info = read_info;
    return result;
}

ddpm_result io_model_fill(const char *path, ddpm_model *model, int labels)
{
    layout files;
    unsigned arrays = DDPM_FOR_INFERENCE | (model->array[DDPM_EMA] ? 1u << DDPM_EMA : 0);
    ddpm_result result = locate(path, &files);
    if (!result && !io_is_file(files.file[WEIGHTS])) result = missing_weights(files.file[WEIGHTS]);
    if (!result)
        result =
            load_weights(model, arrays, IO_PART_NETWORK, files.file[WEIGHTS], labels ? NULL : "class_embedding.weight");
    if (!result && labels && files.file[LABEL])
        result = io_weights_load(model, arrays, IO_PART_LABEL_ENCODER, files.file[LABEL_WEIGHTS]);
    layout_free(&files);
    return result;
}

/* ---- 5. A directory out ---------------------------------------------------------------------------------------- */

static const char *const evaluator[] = {"evaluator", "evaluator_judge"};

/* What would be lost with the directory that is to be replaced: its first entry that neither a model directory nor a
 * run's checkpoint (io/checkpoint.h) has. */
static ddpm_result check_target(const char *path)
{
    static const char *const ours[] = {".",
                                       "..",
                                       "model_index.json",
                                       "unet",
                                       "scheduler",
                                       "evaluator",
                                       "unet_live",
                                       "label_encoder_live",
                                       "optimizer",
                                       "training.json",
                                       "evaluator_judge",
                                       "label_encoder"};
    DIR *directory = opendir(path);
    if (!directory) /* absent is fine; what cannot be opened, the rename will report */
        return DDPM_OK;
    ddpm_result result = DDPM_OK;
    for (struct dirent *entry; !result && (entry = readdir(directory));) {
        int known = 0;
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            known |= !strcmp(entry->d_name, ours[i]);
        if (!known)
            result = ddpm_fail(DDPM_ERR_ARGUMENT,
                               "%s: will not be replaced by a model: it holds '%s', which would be lost\n"
                               "      hint: choose a new directory, or move that away",
                               path, entry->d_name);
    }
    closedir(directory);
    return result;
}

/* DIRECTORY/NAME<suffix>/FILE in new memory. */
static char *part_path(const char *directory, const char *name, const char *suffix, const char *file)
{
    char relative[160];
    snprintf(relative, sizeof relative, "%.60s%.20s/%.60s", name, suffix, file);
    return io_join(directory, relative);
}

static ddpm_result make_part(const char *directory, const char *name, const char *suffix)
{
    char *path = part_path(directory, name, suffix, "");
    ddpm_result result = path ? io_make_directory(path) : DDPM_ERR_MEMORY;
    free(path);
    return result;
}

static ddpm_result write_part(const char *directory, const char *suffix, const ddpm_model *model, ddpm_array array,
                              io_part part, io_dtype dtype)
{
    int labels = part == IO_PART_LABEL_ENCODER;
    const char *name = labels ? "label_encoder" : "unet";
    char *config = part_path(directory, name, suffix, "config.json");
    char *weights =
        part_path(directory, name, suffix, labels ? "model.safetensors" : "diffusion_pytorch_model.safetensors");
    ddpm_result result = config && weights ? make_part(directory, name, suffix) : DDPM_ERR_MEMORY;
    if (!result)
        result = labels ? io_label_config_write(config, &model->config.label)
                        : io_unet_config_write(config, &model->config.unet);
    if (!result) result = io_weights_save(model, array, part, dtype, weights);
    free(config);
    free(weights);
    return result;
}

ddpm_result io_networks_write(const char *directory, const char *suffix, const ddpm_model *model, ddpm_array array,
                              io_dtype dtype)
{
    ddpm_result result = write_part(directory, suffix, model, array, IO_PART_NETWORK, dtype);
    if (!result && model->config.label.num_classes)
        result = write_part(directory, suffix, model, array, IO_PART_LABEL_ENCODER, dtype);
    return result;
}

/* The index comes last: its commit syncs the directory that by then has all entries. */
static ddpm_result write_directory(const char *path, const ddpm_model *model, ddpm_array array, io_dtype dtype,
                                   const ddpm_schedule_config *schedule, const io_model_info *info)
{
    char *scheduler = io_join(path, standard_name[SCHEDULER]), *index = io_join(path, standard_name[INDEX]);
    ddpm_result result = scheduler && index ? io_networks_write(path, "", model, array, dtype) : DDPM_ERR_MEMORY;
    if (!result) result = make_part(path, "scheduler", "");
    if (!result) result = io_schedule_config_write(scheduler, schedule);
    if (!result) result = io_model_info_write(index, info);
    free(scheduler);
    free(index);
    return result;
}

/* What can be refused before anything is written; *index is what will be in model_index.json. */
static ddpm_result check_model(const char *directory, const ddpm_model *model, ddpm_array array,
                               const io_model_info *info, io_model_info *index)
{
    *index = *info; /* class names stay the caller's */
    index->pixel_unshuffle = model->config.pixel_unshuffle;
    set_default_size(&model->config, index);
    ddpm_result result = check_classes(directory, &model->config, info, DDPM_ERR_ARGUMENT);
    if (!result && !model->array[array])
        result =
            ddpm_fail(DDPM_ERR_ARGUMENT, "%s: the model has no %s array to save\n      hint: ddpm_model_alloc makes it",
                      directory, array == DDPM_EMA ? "EMA" : "such");
    return result;
}

ddpm_result io_model_write(const char *directory, const ddpm_model *model, ddpm_array array, io_dtype dtype,
                           const ddpm_schedule_config *schedule, const io_model_info *info)
{
    io_model_info index;
    ddpm_result result = check_model(directory, model, array, info, &index);
    return result ? result : write_directory(directory, model, array, dtype, schedule, &index);
}

/* Evaluators lie beside the model's files and are no part of what is being saved: they move from one directory to the
 * other. */
static ddpm_result move_evaluators(const char *from, const char *to)
{
    ddpm_result result = DDPM_OK;
    for (size_t i = 0; i < sizeof evaluator / sizeof *evaluator && !result; i++) {
        char *old = io_join(from, evaluator[i]), *moved = io_join(to, evaluator[i]);
        if (!old || !moved)
            result = DDPM_ERR_MEMORY;
        else if (io_is_directory(old) && rename(old, moved))
            result =
                ddpm_fail(DDPM_ERR_FILE, "%s: cannot be moved to %s\n      hint: move it out of the way", old, moved);
        free(old);
        free(moved);
    }
    return result;
}

ddpm_result io_model_save(const char *directory, const ddpm_model *model, ddpm_array array, io_dtype dtype,
                          const ddpm_schedule_config *schedule, const io_model_info *info)
{
    io_model_info index;
    ddpm_result result = check_model(directory, model, array, info, &index);
    if (!result) result = check_target(directory);
    if (result) return result;
    char *fresh = io_beside(directory, "tmp");
    if (!fresh) return DDPM_ERR_MEMORY;
    result = io_remove_tree(fresh); /* left by a process that had our number and was killed */
    if (!result) result = write_directory(fresh, model, array, dtype, schedule, &index);
    if (!result) result = move_evaluators(directory, fresh);
    if (!result) result = io_replace_directory(fresh, directory);
    if (result) {
        char text[1024]; /* the first failure is the one to report */
        snprintf(text, sizeof text, "%s", ddpm_error());
        move_evaluators(fresh, directory);
        io_remove_tree(fresh);
        ddpm_fail(result, "%s", text);
    }
    free(fresh);
    return result;
}
