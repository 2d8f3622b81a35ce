/* lab/evaluator.c - see lab/evaluator.h.
 *
 * Contents:  1 the network   2 evaluators   3 on disk   4 graphs   5 scoring, gradients, training */
#include "lab/evaluator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/model.h"
#include "lab/render.h"

/* ---- 1. The network ---------------------------------------------------------------------------------------------- */

enum { STAGES = 4, BLOCKS = 2, FULL_WIDTH = 64 };
static const double norm_eps = 1e-5, norm_momentum = 0.1; /* BatchNorm2d's defaults */

typedef struct builder {
    ddpm_graph *g;
    ddpm_model *model;
} builder;

/* Channels of a stage, 64 << stage in full; at least 1. */
static int channels_of(const io_evaluator_config *c, int stage)
{
    int channels = (int)lround(c->width * FULL_WIDTH * (1 << stage));
    return channels > 1 ? channels : 1;
}

/* Conv2d(bias=False), from N(0, 2 / fan_out) (He et al. 2015), as torchvision's ResNet.__init__ */
static ddpm_tensor *conv(const builder *b, const char *name, ddpm_tensor *x, int out, int kernel, int stride)
{
    if (x == NULL) return NULL;
    size_t mark = ddpm_enter(b->g, "%s", name);
    int shape[] = {out, x->shape[1], kernel, kernel};
    double scale = sqrt(2.0 / ((double)out * kernel * kernel));
    ddpm_tensor *weight = ddpm_param(b->g, b->model, "weight", 4, shape, DDPM_INIT_NORMAL, scale, 1);
    x = ddpm_conv2d(b->g, x, weight, NULL, stride, kernel / 2, kernel / 2);
    ddpm_leave(b->g, mark);
    return x;
}

/* BatchNorm2d. num_batches_tracked only has a place here, so that torch finds it in the file: it acts in torch where
 * momentum is None. */
static ddpm_tensor *norm(const builder *b, const char *name, ddpm_tensor *x)
{
    static const char *const names[] = {"weight", "bias", "running_mean", "running_var"};
    static const ddpm_init init[] = {DDPM_INIT_ONES, DDPM_INIT_ZEROS, DDPM_INIT_ZEROS, DDPM_INIT_ONES};
    if (x == NULL) return NULL;
    ddpm_tensor *p[4];
    size_t mark = ddpm_enter(b->g, "%s", name);
    for (int i = 0; i < 4; i++)
        p[i] = ddpm_param(b->g, b->model, names[i], 1, &x->shape[1], init[i], 1, i < 2);
    ddpm_param(b->g, b->model, "num_batches_tracked", 0, NULL, DDPM_INIT_ZEROS, 0, 0);
    x = ddpm_batch_norm(b->g, x, p[0], p[1], p[2], p[3], norm_eps, norm_momentum);
    ddpm_leave(b->g, mark);
    return x;
}

/* BasicBlock: relu(bn2(conv2(relu(bn1(conv1(x))))) + x), the sum through a 1x1 convolution where the shape changes */
static ddpm_tensor *basic_block(const builder *b, ddpm_tensor *x, int out, int stride)
{
    if (x == NULL) return NULL;
    ddpm_tensor *straight = x, *h = conv(b, "conv1", x, out, 3, stride);
    h = ddpm_activation(b->g, norm(b, "bn1", h), DDPM_RELU);
    h = norm(b, "bn2", conv(b, "conv2", h, out, 3, 1));
    if (stride != 1 || x->shape[1] != out)
        straight = norm(b, "downsample.1", conv(b, "downsample.0", x, out, 1, stride));
    return ddpm_activation(b->g, ddpm_add(b->g, h, straight, 1), DDPM_RELU);
}

/* fc = Sequential(Linear, Sigmoid) */
static ddpm_tensor *head(const builder *b, ddpm_tensor *x, int classes)
{
    if (x == NULL) return NULL;
    int shape[] = {classes, x->shape[1]};
    double scale = 1 / sqrt((double)x->shape[1]);
    ddpm_tensor *weight = ddpm_param(b->g, b->model, "fc.0.weight", 2, shape, DDPM_INIT_UNIFORM, scale, 1);
    ddpm_tensor *bias = ddpm_param(b->g, b->model, "fc.0.bias", 1, &classes, DDPM_INIT_UNIFORM, scale, 1);
    return ddpm_activation(b->g, ddpm_linear(b->g, x, weight, bias), DDPM_SIGMOID);
}

static ddpm_tensor *resnet18(const builder *b, const io_evaluator_config *c, ddpm_tensor *x)
{
    x = ddpm_activation(b->g, norm(b, "bn1", conv(b, "conv1", x, channels_of(c, 0), 7, 2)), DDPM_RELU);
    x = ddpm_pool(b->g, x, DDPM_POOL_MAX, 3, 2, 1);
    for (int stage = 0; stage < STAGES; stage++)
        for (int block = 0; block < BLOCKS; block++) {
            size_t mark = ddpm_enter(b->g, "layer%d.%d", stage + 1, block);
            x = basic_block(b, x, channels_of(c, stage), stage > 0 && block == 0 ? 2 : 1);
            ddpm_leave(b->g, mark);
        }
    if (x == NULL) return NULL; /* else AdaptiveAvgPool2d(1) */
    return head(b, ddpm_pool(b->g, x, DDPM_POOL_MEAN, x->shape[2], x->shape[2], 0), c->classes);
}

ddpm_tensor *lab_evaluator_build(const lab_evaluator *ev, ddpm_graph *g, ddpm_tensor *x)
{
    return resnet18(&(builder){g, ev->model}, &ev->config, x);
}

/* ---- 2. Evaluators ----------------------------------------------------------------------------------------------- */

static void declare(void *user, ddpm_graph *g, ddpm_model *model)
{
    const lab_evaluator *ev = user;
    int size = ev->config.sample_size;
    resnet18(&(builder){g, model}, &ev->config, ddpm_input(g, "picture", 3, size, size, 0));
}

static ddpm_result copy_config(const io_evaluator_config *config, lab_evaluator *ev)
{
    ddpm_result result =
        lab_classes_from_names((const char *const *)config->class_name, config->classes, "evaluator", &ev->classes);
    if (result != DDPM_OK) return result;
    ev->config = *config;
    ev->config.class_name = ev->classes.name; /* ev->classes owns them */
    return DDPM_OK;
}

ddpm_result lab_evaluator_create(const io_evaluator_config *config, const ddpm_device *device, lab_evaluator **out)
{
    *out = NULL;
    if (!(config->width >= 1.0 / FULL_WIDTH && config->width <= 16) || config->sample_size < 8 ||
        config->sample_size > 4096)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "an evaluator of width %g for pictures of %dx%d\n      hint: width 1/64 to 16, pictures of 8 "
                         "to 4096",
                         config->width, config->sample_size, config->sample_size);
    lab_evaluator *ev = calloc(1, sizeof *ev);
    if (ev == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for an evaluator");
    ddpm_result result = copy_config(config, ev);
    if (result == DDPM_OK) result = ddpm_model_declare(&ev->model, device, declare, ev);
    if (result == DDPM_OK)
        *out = ev;
    else
        lab_evaluator_free(ev);
    return result;
}

void lab_evaluator_free(lab_evaluator *ev)
{
    if (ev == NULL) return;
    ddpm_model_free(ev->model);
    lab_classes_free(&ev->classes);
    free(ev->path);
    free(ev);
}

/* ---- 3. On disk -------------------------------------------------------------------------------------------------- */

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), part = strlen(end);
    return length >= part && strcmp(text + length - part, end) == 0;
}

/* The course's checkpoint.pth and its like. */
static ddpm_result refuse_torch_file(const char *path)
{
    return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                     "%s: an evaluator is read from safetensors, not from torch's own files\n"
                     "      hint: python -c \"import torch, safetensors.torch as s; d = torch.load('%s', 'cpu'); "
                     "s.save_file(d.get('model', d), 'evaluator.safetensors')\"",
                     path, path);
}

/* "gray cube", ..., "yellow cylinder": the lab's 24 in its order. */
static ddpm_result lab_class_names(io_evaluator_config *out)
{
    out->class_name = calloc(LAB_RENDER_CLASSES, sizeof *out->class_name);
    if (out->class_name == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for class names");
    for (; out->classes < LAB_RENDER_CLASSES; out->classes++) {
        char name[40];
        int length = snprintf(name, sizeof name, "%s %s", lab_colour_name[out->classes % LAB_COLOURS],
                              lab_shape_name[out->classes / LAB_COLOURS]);
        char *copy = malloc((size_t)length + 1);
        if (copy == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for class names");
        out->class_name[out->classes] = memcpy(copy, name, (size_t)length + 1);
    }
    return DDPM_OK;
}

/* The config of a state_dict alone, from its shapes. */
static ddpm_result config_of_weights(const char *path, io_evaluator_config *out)
{
    io_safetensors file;
    ddpm_result result = io_safetensors_open(path, &file);
    if (result != DDPM_OK) return result;
    const io_tensor *first = io_safetensors_find(&file, "conv1.weight");
    const io_tensor *last = io_safetensors_find(&file, "fc.0.weight");
    if (first == NULL || last == NULL || first->dims != 4 || last->dims != 2)
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "%s: not the weights of an evaluator: conv1.weight and fc.0.weight are not there\n"
                           "      hint: it is torchvision's resnet18 with fc = Sequential(Linear, Sigmoid)",
                           path);
    else if (last->shape[0] != LAB_RENDER_CLASSES)
        result = ddpm_fail(DDPM_ERR_SHAPE,
                           "%s: it has %lld classes, and without a config.json only the lab's %d have names\n"
                           "      hint: put it as model.safetensors beside a config.json with class_names",
                           path, (long long)last->shape[0], (int)LAB_RENDER_CLASSES);
    if (result == DDPM_OK) {
        out->width = (double)first->shape[0] / FULL_WIDTH;
        out->sample_size = 64;
        result = lab_class_names(out);
    }
    io_safetensors_close(&file);
    return result;
}

static ddpm_result load(const char *path, const char *config_path, const char *weights, const ddpm_device *device,
                        lab_evaluator **out)
{
    io_evaluator_config config = {0};
    lab_evaluator *ev = NULL;
    ddpm_result result =
        config_path != NULL ? io_evaluator_config_read(config_path, &config) : config_of_weights(weights, &config);
    if (result == DDPM_OK) result = lab_evaluator_create(&config, device, &ev);
    io_evaluator_config_free(&config);
    if (result == DDPM_OK) result = ddpm_model_alloc(ev->model, DDPM_FOR_INFERENCE);
    if (result == DDPM_OK) result = io_weights_load(ev->model, DDPM_FOR_INFERENCE, IO_PART_NETWORK, weights);
    if (result == DDPM_OK && (ev->path = io_join("", path)) == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK)
        *out = ev;
    else
        lab_evaluator_free(ev);
    return result;
}

ddpm_result lab_evaluator_load(const char *path, const ddpm_device *device, lab_evaluator **out)
{
    *out = NULL;
    if (io_is_file(path)) {
        if (ends_with(path, ".safetensors")) return load(path, NULL, path, device, out);
        return refuse_torch_file(path);
    }
    char *config = io_join(path, "config.json"), *weights = io_join(path, "model.safetensors");
    ddpm_result result = config != NULL && weights != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
    if (result == DDPM_OK && !io_is_file(config))
        result = ddpm_fail(DDPM_ERR_FILE,
                           "%s: no evaluator: there is no config.json in it\n"
                           "      hint: ddpm train-evaluator makes one",
                           path);
    if (result == DDPM_OK) result = load(path, config, weights, device, out);
    free(config);
    free(weights);
    return result;
}

ddpm_result lab_evaluator_save(const char *directory, const lab_evaluator *ev, ddpm_array array, io_dtype dtype)
{
    char *config = io_join(directory, "config.json"), *weights = io_join(directory, "model.safetensors");
    ddpm_result result = config != NULL && weights != NULL ? io_make_directory(directory) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = io_evaluator_config_write(config, &ev->config);
    if (result == DDPM_OK) result = io_weights_save(ev->model, array, IO_PART_NETWORK, dtype, weights);
    free(config);
    free(weights);
    return result;
}

/* ---- 4. Graphs --------------------------------------------------------------------------------------------------- */

ddpm_result lab_evaluator_net_create(lab_evaluator_net **out, lab_evaluator *ev, int capacity, lab_evaluator_mode mode)
{
    int size = ev->config.sample_size;
    *out = NULL;
    lab_evaluator_net *net = calloc(1, sizeof *net);
    if (net == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for an evaluator's graph");
    net->ev = ev;
    net->mode = mode;
    ddpm_result result = ddpm_graph_create(&net->graph, ev->model->device, capacity, mode == LAB_TRAINING);
    if (result == DDPM_OK) {
        ddpm_graph *g = net->graph;
        net->picture = ddpm_input(g, "picture", 3, size, size, mode == LAB_GUIDING);
        if (mode != LAB_SCORING) net->target = ddpm_input(g, "labels", ev->config.classes, 1, 1, 0);
        net->scores = lab_evaluator_build(ev, g, net->picture);
        if (mode != LAB_SCORING) net->loss = ddpm_bce(g, net->scores, net->target);
        result = ddpm_graph_plan(g, net->loss, &net->scores, 1);
    }
    if (result == DDPM_OK)
        *out = net;
    else
        lab_evaluator_net_free(net);
    return result;
}

void lab_evaluator_net_free(lab_evaluator_net *net)
{
    if (net == NULL) return;
    ddpm_graph_free(net->graph);
    free(net);
}

/* ---- 5. Scoring, gradients, training ----------------------------------------------------------------------------- */

static ddpm_result check_mode(const lab_evaluator_net *net, unsigned allowed)
{
    return allowed >> net->mode & 1
               ? DDPM_OK
               : ddpm_fail(DDPM_ERR_ARGUMENT, "this graph of the evaluator was made for another use\n"
                                              "      hint: lab_evaluator_net_create with the mode this needs");
}

/* Uploads n <= capacity pictures (and labels) and runs forward. */
static ddpm_result forward(const lab_evaluator_net *net, int n, const ddpm_real *pictures, const ddpm_real *labels)
{
    ddpm_graph *g = net->graph;
    ddpm_result result = ddpm_graph_alloc(g);
    if (result == DDPM_OK) result = ddpm_upload(g->device, net->picture, DDPM_DATA, n, pictures);
    if (result == DDPM_OK && labels != NULL) result = ddpm_upload(g->device, net->target, DDPM_DATA, n, labels);
    return result == DDPM_OK ? ddpm_graph_forward(g, n) : result;
}

ddpm_result lab_evaluator_scores(const lab_evaluator_net *net, int n, const ddpm_real *pictures, ddpm_real *scores)
{
    int capacity = net->graph->capacity;
    size_t picture = ddpm_elements(net->picture, 1), classes = ddpm_elements(net->scores, 1);
    ddpm_result result = check_mode(net, 1u << LAB_SCORING);
    for (int first = 0; first < n && result == DDPM_OK; first += capacity) {
        int count = n - first < capacity ? n - first : capacity;
        result = forward(net, count, pictures + (size_t)first * picture, NULL);
        if (result == DDPM_OK)
            result = ddpm_download(net->graph->device, net->scores, DDPM_DATA, count, scores + (size_t)first * classes);
    }
    return result;
}

ddpm_result lab_evaluator_gradient(const lab_evaluator_net *net, int n, const ddpm_real *pictures,
                                   const ddpm_real *labels, ddpm_real *log_p, ddpm_real *gradient)
{
    ddpm_graph *g = net->graph;
    size_t picture = ddpm_elements(net->picture, 1), classes = ddpm_elements(net->scores, 1);
    ddpm_result result = check_mode(net, 1u << LAB_GUIDING);
    ddpm_real *minus = malloc((size_t)g->capacity * sizeof *minus); /* log p is minus the loss */
    if (result == DDPM_OK && minus == NULL) result = ddpm_fail(DDPM_ERR_MEMORY, "no memory for a gradient");
    for (int i = 0; minus != NULL && i < g->capacity; i++)
        minus[i] = -1;
    for (int first = 0; first < n && result == DDPM_OK; first += g->capacity) {
        int count = n - first < g->capacity ? n - first : g->capacity;
        result = forward(net, count, pictures + (size_t)first * picture, labels + (size_t)first * classes);
        if (result == DDPM_OK && log_p != NULL)
            result = ddpm_download(g->device, net->loss, DDPM_DATA, count, log_p + first);
        if (result == DDPM_OK && gradient != NULL) result = ddpm_graph_backward(g, minus, NULL, NULL);
        if (result == DDPM_OK && gradient != NULL)
            result = ddpm_download(g->device, net->picture, DDPM_GRADIENT, count, gradient + (size_t)first * picture);
    }
    for (int i = 0; result == DDPM_OK && log_p != NULL && i < n; i++)
        log_p[i] = -log_p[i];
    free(minus);
    return result;
}

/* Forward, loss and the parameters' gradients; *total: the sum of the losses. */
static ddpm_result backpropagate(const lab_evaluator_net *net, int n, const ddpm_real *pictures,
                                 const ddpm_real *labels, double *total)
{
    ddpm_real *value = malloc((size_t)n * sizeof *value);
    if (value == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the losses of %d pictures", n);
    ddpm_result result = forward(net, n, pictures, labels);
    if (result == DDPM_OK) result = ddpm_download(net->graph->device, net->loss, DDPM_DATA, n, value);
    *total = 0;
    for (int i = 0; result == DDPM_OK && i < n; i++) {
        *total += (double)value[i];
        value[i] = (ddpm_real)(1 / ((double)n * net->ev->config.classes));
    }
    if (result == DDPM_OK) result = ddpm_graph_backward(net->graph, value, NULL, NULL);
    free(value);
    return result;
}

/* num_batches_tracked of every BatchNorm, at most the largest F16. */
static ddpm_result count_batches(ddpm_model *model, uint64_t steps)
{
    ddpm_real count = (ddpm_real)(steps < 65504 ? steps : 65504);
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < model->params && result == DDPM_OK; i++) {
        if (!ends_with(model->param[i]->name, "num_batches_tracked")) continue;
        result = ddpm_model_set(model, DDPM_WEIGHT, model->param[i], &count);
        if (result == DDPM_OK && model->array[DDPM_EMA] != NULL)
            result = ddpm_model_set(model, DDPM_EMA, model->param[i], &count);
    }
    return result;
}

ddpm_result lab_evaluator_train_step(const lab_evaluator_net *net, int n, const ddpm_real *pictures,
                                     const ddpm_real *labels, const ddpm_train_config *config, uint64_t steps,
                                     double lr, double *loss)
{
    double total = 0;
    ddpm_result result = check_mode(net, 1u << LAB_TRAINING);
    if (result == DDPM_OK && (n < 1 || n > net->graph->capacity))
        result = ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures in a graph built for 1 to %d", n, net->graph->capacity);
    if (result == DDPM_OK) result = ddpm_model_zero_grad(net->ev->model);
    if (result == DDPM_OK) result = backpropagate(net, n, pictures, labels, &total);
    ddpm_step_set(&net->graph->step, config, steps, lr);
    if (result == DDPM_OK) result = ddpm_update(net->ev->model, &net->graph->step);
    if (result == DDPM_OK) result = count_batches(net->ev->model, steps + 1);
    if (result == DDPM_OK && loss != NULL) *loss = total / ((double)n * net->ev->config.classes);
    return result;
}
