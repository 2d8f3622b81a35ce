/* cli/info.c - ddpm info: what a file, a model, a run or a picture of ours holds; --graph: every node of a network.
 *
 * Contents: 1 options   2 files   3 models   4 the graph   5 runs   6 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/sampler.h"
#include "io/file.h"
#include "io/json.h"
#include "io/model.h"
#include "io/picture.h"
#include "io/safetensors.h"
#include "lab/evaluator.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *path;
    int graph, batch, resolution[2], training;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"path", NULL, CLI_TEXT, "PATH", CLI_REQUIRED,
     "a file; a model, run or evaluator directory; or a preset: lab, small, tiny", &set.path, 0, 0, 1},
    {"graph", NULL, CLI_FLAG, NULL, NULL,
     "list every node of the network: shape, parameters, MFLOP, memory", &set.graph, 0, 0, 0},
    {"batch", "batch_size", CLI_INT, "N", "1", "pictures of the graph", &set.batch, 1, 65536, 0},
    {"resolution", NULL, CLI_SIZE, "N|WxH", "(the model's)",
     "pixels of a picture of the graph", set.resolution, 1, 4096, 0},
    {"training", NULL, CLI_FLAG, NULL, NULL,
     "the graph of a training step: with the loss and the memory for gradients", &set.training, 0, 0, 0},
    {0},
};
/* clang-format on */

static int has_suffix(const char *text, const char *suffix)
{
    size_t length = strlen(text), end = strlen(suffix);
    return length >= end && strcmp(text + length - end, suffix) == 0;
}

/* ---- 2. Files ------------------------------------------------------------------------------------------------ */

static ddpm_result info_safetensors(const char *path)
{
    io_safetensors file;
    ddpm_result result = io_safetensors_open(path, &file);
    if (result != DDPM_OK) return result;
    double elements = 0, bytes = 0;
    cli_short count, size;
    char shape[128];
    for (int i = 0; i < file.tensors; i++) {
        const io_tensor *t = &file.tensor[i];
        printf("%-64s %-5s %s\n", t->name, io_dtype_name(t->dtype),
               io_shape_text(t->dims, t->shape, shape, sizeof shape));
        elements += (double)t->elements;
        bytes += (double)t->elements * (double)io_dtype_size(t->dtype);
    }
    for (int i = 0; i < file.pairs; i++)
        printf("metadata %s: %s\n", file.metadata[i].key, file.metadata[i].value);
    printf("safetensors, %d tensors, %s elements, %s\n", file.tensors, cli_count(elements, count),
           cli_bytes(bytes, size));
    io_safetensors_close(&file);
    return DDPM_OK;
}

static ddpm_result info_picture(const char *path)
{
    static const char *const keyword[] = {"labels", "seed", "sampling", "scene", "command", "model", "version"};
    io_picture picture;
    ddpm_result result = io_picture_read(path, 3, &picture);
    if (result != DDPM_OK) return result;
    printf("picture, %dx%d\n", picture.width, picture.height);
    io_picture_free(&picture);
    for (size_t i = 0; has_suffix(path, ".png") && i < sizeof keyword / sizeof keyword[0]; i++) {
        char *text;
        result = io_picture_read_text(path, keyword[i], &text);
        if (result != DDPM_OK) return result;
        if (text != NULL) printf("%-8s %s\n", keyword[i], text);
        free(text);
    }
    return DDPM_OK;
}

/* Entries that are arrays, by their length: how many label sets of 1, 2, 3, ... objects. */
static void print_set_sizes(const cJSON *list)
{
    enum { LONGEST = 9 };
    int sets[LONGEST + 1] = {0}, total = 0;
    for (const cJSON *entry = list->child; entry != NULL; entry = entry->next) {
        int size = cJSON_GetArraySize(entry);
        sets[size < LONGEST ? size : LONGEST]++;
        total += size;
    }
    for (int i = 0; i <= LONGEST; i++)
        if (sets[i] > 0)
            printf("  %d with %d%s label%s\n", sets[i], i, i == LONGEST ? " or more" : "", i == 1 ? "" : "s");
    printf("  %d labels in all\n", total);
}

/* The lab's JSON files are told apart by what they hold: class indices, label sets, or label sets of named pictures. */
static ddpm_result info_json(const char *path)
{
    cJSON *json;
    ddpm_result result = io_json_read(path, &json);
    if (result != DDPM_OK) return result;
    int size = cJSON_GetArraySize(json);
    if (cJSON_IsArray(json) && cJSON_IsArray(json->child)) {
        printf("label file, %d sets\n", size);
        print_set_sizes(json);
    } else if (cJSON_IsObject(json) && cJSON_IsArray(json->child) && cJSON_IsString(json->child->child)) {
        printf("labels of pictures, %d pictures, the first %s\n", size, json->child->string);
        print_set_sizes(json);
    } else if (cJSON_IsObject(json) && cJSON_IsNumber(json->child) &&
               cJSON_IsNumber(cJSON_GetArrayItem(json, size - 1))) {
        printf("class names, %d\n", size);
        for (const cJSON *entry = json->child; entry != NULL; entry = entry->next)
            printf("  %3.0f  %s\n", entry->valuedouble, entry->string);
    } else {
        char *text = cJSON_Print(json);
        printf("%s\n", text != NULL ? text : "");
        free(text);
    }
    cJSON_Delete(json);
    return DDPM_OK;
}

/* ---- 3. Models ----------------------------------------------------------------------------------------------- */

static void print_levels(const ddpm_unet_config *u)
{
    printf("levels      ");
    for (int i = 0; i < u->levels; i++)
        printf("%s%d%s", i > 0 ? ", " : "", u->block_out_channels[i],
               u->down_block_types[i] == DDPM_ATTN_BLOCK ? " attention" : "");
    printf("; up:");
    for (int i = 0; i < u->levels; i++)
        printf(" %s", u->up_block_types[i] == DDPM_ATTN_BLOCK ? "attention" : "plain");
    printf("\n            %d layer%s a block, middle %s\n", u->layers_per_block, u->layers_per_block == 1 ? "" : "s",
           u->mid_block_type == 0 ? "none"
           : u->add_attention     ? "with attention"
                                  : "without attention");
}

static void print_conditioning(const ddpm_model_config *c)
{
    const char *kind = c->unet.class_embed_type == DDPM_CLASS_TIMESTEP   ? "one number a picture, embedded as a time"
                       : c->unet.class_embed_type == DDPM_CLASS_IDENTITY ? "an embedding a picture"
                       : c->unet.num_class_embeds > 0                    ? "one class index a picture"
                                                                         : "none";
    if (c->label.num_classes > 0)
        printf("labels      multi-hot of %d: Linear(%d,%d), Linear(%d,%d)\n", c->label.num_classes,
               c->label.num_classes, c->label.hidden_dim, c->label.hidden_dim, c->label.embedding_dim);
    else
        printf("labels      %s\n", kind);
}

static void print_config(const ddpm_model_config *c)
{
    const ddpm_unet_config *u = &c->unet;
    printf("network     UNet2DModel, %d -> %d channels, pictures of ", u->in_channels, u->out_channels);
    if (u->sample_size[0] > 0)
        printf("%dx%d", u->sample_size[1], u->sample_size[0]);
    else
        printf("any size");
    printf(c->pixel_unshuffle > 1 ? " after pixel_unshuffle %d\n" : "\n", c->pixel_unshuffle);
    print_levels(u);
    printf("time        %s, %s\n", u->time_embedding_type == DDPM_TIME_FOURIER ? "fourier" : "positional",
           u->resnet_time_scale_shift == DDPM_SHIFT_SCALE_SHIFT ? "scale_shift" : "added");
    printf("norm        %d groups, eps %g; dropout %g; %d channels a head\n", u->norm_num_groups, u->norm_eps,
           u->dropout, u->attention_head_dim);
    print_conditioning(c);
}

static void print_parameters(const ddpm_model *model)
{
    double encoder = 0, all = cli_parameters(model);
    cli_short a, b, c;
    for (int i = 0; i < model->params; i++)
        if (strncmp(model->param[i]->name, "label_encoder.", 14) == 0)
            encoder += (double)ddpm_elements(model->param[i], 1);
    printf("parameters  %s", cli_count(all, a));
    if (encoder > 0) printf(" (network %s, label encoder %s)", cli_count(all - encoder, b), cli_count(encoder, c));
    printf(", %s in float32\n", cli_bytes(all * 4, a));
}

static void print_classes(char *const *name, int count)
{
    printf("classes     ");
    for (int i = 0; i < count; i++)
        printf("%s%s", name[i], i + 1 == count ? "" : i % 8 == 7 ? ",\n            " : ", ");
    printf(count > 0 ? "\n" : "no names\n");
}

/* ---- 4. The graph -------------------------------------------------------------------------------------------- */

static void print_node(const ddpm_node *node, double *flops, double *bytes)
{
    const int *shape = node->out->shape;
    char text[64];
    cli_short parameters, memory;
    double count = 0;
    for (int i = 0; i < DDPM_MAX_INPUTS; i++)
        if (node->in[i] != NULL && node->in[i]->param) count += (double)ddpm_elements(node->in[i], 1);
    double work = ddpm_node_flops(node, set.batch, 0) + (set.training ? ddpm_node_flops(node, set.batch, 1) : 0);
    double size = (double)ddpm_elements(node->out, set.batch) * sizeof(ddpm_real);
    snprintf(text, sizeof text, "%dx%dx%dx%d", set.batch, shape[1], shape[2], shape[3]);
    printf("%-44s %-17s %-18s %12s %12.2f %10s\n", node->name, ddpm_op_name(node->op), text,
           count > 0 ? cli_count(count, parameters) : "", work * 1e-6, cli_bytes(size, memory));
    *flops += work;
    *bytes += size;
}

/* What ddpm train would take besides its data: of the network, in its four ways to run, and of the model's arrays. */
static ddpm_result info_training_memory(ddpm_model *model, int height, int width)
{
    static const struct {
        const char *how;
        int mode;
    } ways[] = {{"", DDPM_TRAINING | DDPM_SHARE_GRADIENTS},
                {" --recompute", DDPM_TRAINING | DDPM_SHARE_GRADIENTS | DDPM_RECOMPUTE},
                {" in micro-batches", DDPM_TRAINING},
                {" in micro-batches --recompute", DDPM_TRAINING | DDPM_RECOMPUTE}};
    double arrays = (double)model->elements * sizeof(ddpm_real) * DDPM_ARRAYS;
    cli_short a, b, c;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        ddpm_net *net;
        ddpm_result result = ddpm_net_create(&net, model, height, width, set.batch, ways[i].mode);
        if (result != DDPM_OK) return result;
        double network = (double)net->graph->bytes;
        printf("memory of ddpm train%s: %s, of which the network %s, weights, gradients, moments and average %s\n",
               ways[i].how, cli_bytes(network + arrays, a), cli_bytes(network, b), cli_bytes(arrays, c));
        ddpm_net_free(net);
    }
    return DDPM_OK;
}

static ddpm_result info_graph(ddpm_model *model, int height, int width)
{
    ddpm_net *net;
    ddpm_result result = ddpm_net_create(&net, model, height, width, set.batch, set.training);
    if (result != DDPM_OK) return result;
    double flops = 0, bytes = 0;
    cli_short a, b, c;
    printf("\n%-44s %-17s %-18s %12s %12s %10s\n", "node", "operation", "output", "parameters", "MFLOP", "memory");
    for (int i = 0; i < net->graph->nodes; i++)
        print_node(net->graph->node[i], &flops, &bytes);
    printf("%d nodes at %dx%d, batch %d: %s parameters, %.3f GFLOP%s, outputs %s\n", net->graph->nodes, net->width,
           net->height, set.batch, cli_count(cli_parameters(model), a), flops * 1e-9,
           set.training ? " forward and backward" : "", cli_bytes(bytes, b));
    printf("memory of the run, shared by tensors whose lifetimes allow it: %s\n",
           cli_bytes((double)net->graph->bytes, c));
    ddpm_net_free(net);
    return set.training ? info_training_memory(model, height, width) : DDPM_OK;
}

static ddpm_result info_network(const cli_context *context, const ddpm_model_config *config, int height, int width)
{
    ddpm_model *model;
    ddpm_result result = ddpm_model_create(&model, config, &context->device);
    if (result != DDPM_OK) return result;
    print_config(config);
    print_parameters(model);
    if (set.graph)
        result = info_graph(model, set.resolution[1] > 0 ? set.resolution[1] : height,
                            set.resolution[0] > 0 ? set.resolution[0] : width);
    ddpm_model_free(model);
    return result;
}

static ddpm_result info_model(const cli_context *context, const char *path)
{
    ddpm_model_config config;
    ddpm_schedule_config schedule;
    io_model_info info;
    ddpm_result result = io_model_read_config(path, &config, &schedule, &info);
    if (result != DDPM_OK) return result;
    printf("model       %s\n", path);
    print_classes(info.class_name, info.classes);
    printf("schedule    ");
    cli_schedule_print(&schedule);
    io_schedule_config_free(&schedule);
    result = info_network(context, &config, info.height, info.width);
    io_model_info_free(&info);
    return result;
}

static ddpm_result info_evaluator(const cli_context *context, const char *path)
{
    lab_evaluator *ev;
    ddpm_result result = lab_evaluator_load(path, &context->device, &ev);
    if (result != DDPM_OK) return result;
    printf("evaluator   %s\n", path);
    print_classes(ev->config.class_name, ev->config.classes);
    printf("network     ResNet18 of width %g, pictures of %dx%d\n", ev->config.width, ev->config.sample_size,
           ev->config.sample_size);
    print_parameters(ev->model);
    lab_evaluator_free(ev);
    return DDPM_OK;
}

static ddpm_result info_unet_config(const cli_context *context, const char *path)
{
    ddpm_model_config config = ddpm_model_default();
    ddpm_result result = io_unet_config_read(path, &config.unet);
    return result == DDPM_OK ? info_network(context, &config, 0, 0) : result;
}

/* ---- 5. Runs ------------------------------------------------------------------------------------------------- */

static ddpm_result print_last_metrics(const char *run)
{
    unsigned char *data = NULL;
    size_t size;
    char *path = io_join(run, "metrics.csv");
    ddpm_result result = path == NULL ? DDPM_ERR_MEMORY : io_is_file(path) ? io_read_file(path, &data, &size) : DDPM_OK;
    free(path);
    if (result != DDPM_OK || data == NULL) return result;
    char *text = (char *)data, *head = strchr(text, '\n');
    while (size > 0 && text[size - 1] == '\n')
        text[--size] = '\0';
    char *last = strrchr(text, '\n');
    if (head != NULL && last != NULL) {
        *head = '\0';
        printf("metrics     %s\n            %s\n", text, last + 1);
    }
    free(data);
    return DDPM_OK;
}

static ddpm_result info_run(const cli_context *context, const char *path)
{
    char *model = cli_find_model(path);
    if (model == NULL) return DDPM_ERR_FILE;
    printf("run         %s\n", path);
    ddpm_result result = print_last_metrics(path);
    if (result == DDPM_OK) result = info_model(context, model);
    free(model);
    return result;
}

/* ---- 6. The command ------------------------------------------------------------------------------------------ */

static ddpm_result info_directory(const cli_context *context, const char *path)
{
    if (cli_is_evaluator(path)) return info_evaluator(context, path);
    char *found = cli_find_model(path);
    if (found == NULL) return DDPM_ERR_FILE;
    int is_model = strcmp(found, path) == 0;
    free(found);
    return is_model ? info_model(context, path) : info_run(context, path);
}

/* A UNet's config.json has blocks; other JSON files have not. */
static int is_unet_config(const char *path)
{
    cJSON *json = NULL;
    int found = has_suffix(path, ".json") && io_json_read(path, &json) == DDPM_OK && cJSON_IsObject(json) &&
                (cJSON_GetObjectItem(json, "block_out_channels") != NULL ||
                 cJSON_GetObjectItem(json, "down_block_types") != NULL);
    cJSON_Delete(json);
    return found;
}

static ddpm_result info_file(const cli_context *context, const char *path)
{
    if (has_suffix(path, ".safetensors")) return info_safetensors(path);
    if (has_suffix(path, ".png") || has_suffix(path, ".jpg") || has_suffix(path, ".jpeg")) return info_picture(path);
    if (is_unet_config(path)) return info_unet_config(context, path);
    if (has_suffix(path, ".json")) return info_json(path);
    return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                     "%s: what it holds is not known from its name\n"
                     "      hint: .safetensors, .png, .jpg, .json, a model or run directory; or lab, small, tiny",
                     path);
}

static ddpm_result info(const cli_context *context)
{
    ddpm_model_config preset = ddpm_model_preset(set.path, 24);
    if (preset.unet.levels > 0) /* before a directory of that name: ./lab means the directory */
        return info_network(context, &preset, 0, 0);
    if (io_is_directory(set.path)) return info_directory(context, set.path);
    if (io_is_file(set.path)) return info_file(context, set.path);
    return ddpm_fail(DDPM_ERR_FILE,
                     "%s: there is no such file, directory or preset\n      hint: the presets are lab, small, tiny",
                     set.path);
}

static int run(const cli_context *context)
{
    return cli_exit(info(context));
}

const cli_command cli_info = {
    "info",
    "PATH [--graph [--batch N] [--resolution N]]",
    "tells what a file, model, run or picture holds",
    "PATH is a .safetensors, .png or .json file, a model, run or evaluator directory, a UNet2DModel's config.json, or\n"
    "a preset.",
    options,
    run,
    NULL};
