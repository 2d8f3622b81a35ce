/* cli/predict.c - ddpm predict: the network once, on tensors from a file; with --grad also the loss and all gradients.
 *
 * Contents: 1 options   2 input tensors   3 output tensors   4 the command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "io/file.h"
#include "io/model.h"
#include "io/safetensors.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *model, *in, *out;
    int grad;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(the bundled one, data/mini)",
     "a run, a model directory, or a UNet2DModel's own", &set.model, 0, 0, 0},
    {"in", NULL, CLI_TEXT, "IN.safetensors", CLI_REQUIRED,
     "sample (N,C,H,W), timestep (N), and labels (N,classes) or class_labels as the model asks", &set.in, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "OUT.safetensors", CLI_REQUIRED,
     "gets prediction (N,C,H,W)", &set.out, 0, 0, 0},
    {"grad", NULL, CLI_FLAG, NULL, NULL,
     "IN also holds target (N,C,H,W); OUT also gets loss, its mean squared error, and grad.NAME of every parameter",
     &set.grad, 0, 0, 0},
    {0},
};
/* clang-format on */

/* ---- 2. Input tensors ---------------------------------------------------------------------------------------- */

typedef struct prediction {
    cli_model model;
    ddpm_net *net;
    int n, out_channels, height, width;
    ddpm_real *sample, *timestep, *labels, *target, *out; /* host; labels NULL if the model takes none */
    ddpm_real *grads;                                     /* of all parameters, one after the other */
    double loss;
} prediction;

/* The tensor's values, after checking that its shape is wanted[dims]; a 0 in wanted stands for any size. */
static ddpm_result read_tensor(const io_safetensors *file, const char *name, int dims, const int64_t *wanted,
                               ddpm_real **out)
{
    const io_tensor *tensor = io_safetensors_find(file, name);
    char found[128], needed[128];
    if (tensor == NULL)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: there is no tensor '%s'\n      hint: ddpm predict --help lists what is needed",
                         file->path, name);
    int fits = tensor->dims == dims && tensor->elements > 0;
    for (int i = 0; fits && i < dims; i++)
        fits = wanted[i] == 0 || tensor->shape[i] == wanted[i];
    if (!fits)
        return ddpm_fail(DDPM_ERR_SHAPE, "%s: tensor '%s' has shape %s, the model and the other tensors need %s%s",
                         file->path, name, io_shape_text(tensor->dims, tensor->shape, found, sizeof found),
                         io_shape_text(dims, wanted, needed, sizeof needed),
                         memchr(wanted, 0, (size_t)dims * sizeof *wanted) != NULL && strstr(needed, "0") != NULL
                             ? "\n      hint: 0 stands for any size"
                             : "");
    *out = cli_alloc(tensor->elements, sizeof **out);
    if (*out == NULL) return DDPM_ERR_MEMORY;
    return sizeof(ddpm_real) == sizeof(double) ? io_tensor_doubles(tensor, (double *)(void *)*out)
                                               : io_tensor_floats(tensor, (float *)(void *)*out);
}

static ddpm_result read_labels(const io_safetensors *file, const ddpm_model_config *config, prediction *p)
{
    int64_t shape[2] = {p->n, ddpm_label_width(config)};
    if (shape[1] == 0) return DDPM_OK;
    if (config->label.num_classes > 0) return read_tensor(file, "labels", 2, shape, &p->labels);
    return read_tensor(file, "class_labels", shape[1] == 1 ? 1 : 2, shape,
                       &p->labels); /* one number a picture: shape (N) */
}

static ddpm_result read_input(prediction *p)
{
    io_safetensors file;
    ddpm_result result = io_safetensors_open(set.in, &file);
    if (result != DDPM_OK) return result;
    const ddpm_model_config *config = &p->model.model->config;
    int factor = config->pixel_unshuffle > 1 ? config->pixel_unshuffle : 1;
    int64_t shape[4] = {0, config->unet.in_channels / (factor * factor), 0, 0};
    result = read_tensor(&file, "sample", 4, shape, &p->sample);
    if (result == DDPM_OK) {
        memcpy(shape, io_safetensors_find(&file, "sample")->shape, sizeof shape);
        if (shape[0] > 65536 || shape[2] > 65536 || shape[3] > 65536)
            result = ddpm_fail(DDPM_ERR_SHAPE, "%s: tensor 'sample' is too large for a batch of pictures", set.in);
        p->n = (int)shape[0], p->height = (int)shape[2], p->width = (int)shape[3];
    }
    if (result == DDPM_OK) result = read_tensor(&file, "timestep", 1, shape, &p->timestep);
    if (result == DDPM_OK) result = read_labels(&file, config, p);
    shape[1] = p->out_channels = config->unet.out_channels / (factor * factor);
    if (result == DDPM_OK && set.grad) result = read_tensor(&file, "target", 4, shape, &p->target);
    io_safetensors_close(&file);
    return result;
}

/* ---- 3. Output tensors --------------------------------------------------------------------------------------- */

static io_tensor describe(const void *data, int dims, const int64_t *shape)
{
    io_tensor tensor = {.dtype = sizeof(ddpm_real) == sizeof(double) ? IO_F64 : IO_F32, .dims = dims, .data = data};
    for (int i = 0; i < dims; i++)
        tensor.shape[i] = shape[i];
    return tensor;
}

static ddpm_result describe_gradients(prediction *p, ddpm_arena *arena, io_tensor *tensor, int *count)
{
    const ddpm_model *model = p->model.model;
    for (int i = 0; i < model->params; i++) {
        const ddpm_tensor *param = model->param[i];
        if (!param->trainable) continue;
        size_t size = strlen(param->name) + sizeof "grad.";
        char *name = ddpm_arena_alloc(arena, size);
        if (name == NULL) return DDPM_ERR_MEMORY;
        snprintf(name, size, "grad.%s", param->name);
        ddpm_result result = ddpm_model_get(model, DDPM_GRAD, param, p->grads + param->offset);
        if (result != DDPM_OK) return result;
        int64_t shape[4] = {param->shape[0], param->shape[1], param->shape[2], param->shape[3]};
        tensor[*count] = describe(p->grads + param->offset, param->dims, shape);
        tensor[(*count)++].name = name;
    }
    return DDPM_OK;
}

static ddpm_result write_output(prediction *p)
{
    ddpm_arena arena = {0};
    int64_t shape[4] = {p->n, p->out_channels, p->height, p->width};
    ddpm_real loss = (ddpm_real)p->loss;
    static char prediction_name[] = "prediction", loss_name[] = "loss";
    int count = 0;
    io_tensor *tensor = cli_alloc((size_t)p->model.model->params + 2, sizeof *tensor);
    if (tensor == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    tensor[count] = describe(p->out, 4, shape);
    tensor[count++].name = prediction_name;
    if (set.grad) {
        tensor[count] = describe(&loss, 0, shape);
        tensor[count++].name = loss_name;
        result = describe_gradients(p, &arena, tensor, &count);
    }
    if (result == DDPM_OK) result = io_safetensors_write(set.out, tensor, count, NULL, 0);
    ddpm_arena_free(&arena);
    free(tensor);
    return result;
}

/* ---- 4. The command ------------------------------------------------------------------------------------------ */

static ddpm_result compute(prediction *p)
{
    size_t picture = (size_t)p->out_channels * (size_t)p->height * (size_t)p->width;
    p->model.model->config.unet.dropout = 0; /* as in module.eval(): gradients of the network that sampling uses */
    ddpm_result result = ddpm_net_create(&p->net, p->model.model, p->height, p->width, p->n, set.grad);
    if (result != DDPM_OK) return result;
    if ((p->out = cli_alloc((size_t)p->n * picture, sizeof *p->out)) == NULL ||
        (p->grads = cli_alloc(set.grad ? p->model.model->elements : 1, sizeof *p->grads)) == NULL)
        return DDPM_ERR_MEMORY;
    if (set.grad)
        return ddpm_loss_gradients(p->net, p->n, p->sample, p->timestep, p->labels, p->target, p->out, &p->loss);
    return ddpm_predict(p->net, p->n, p->sample, p->timestep, p->labels, p->out);
}

static ddpm_result predict(const cli_context *context, prediction *p)
{
    ddpm_result result = io_can_write(set.out);
    unsigned arrays = set.grad ? DDPM_FOR_GRADIENTS : DDPM_FOR_INFERENCE;
    if (result == DDPM_OK) result = cli_model_open(context, set.model, arrays, &p->model);
    if (result == DDPM_OK) result = read_input(p);
    if (result == DDPM_OK) result = compute(p);
    if (result == DDPM_OK) result = write_output(p);
    if (result == DDPM_OK && set.grad) cli_note("loss %.9g", p->loss);
    if (result == DDPM_OK) printf("%s\n", set.out);
    return result;
}

static int run(const cli_context *context)
{
    prediction p = {0};
    int status = cli_exit(predict(context, &p));
    ddpm_net_free(p.net);
    cli_model_close(&p.model);
    free(p.sample);
    free(p.timestep);
    free(p.labels);
    free(p.target);
    free(p.out);
    free(p.grads);
    return status;
}

const cli_command cli_predict = {
    "predict",
    "[--model PATH] --in IN.safetensors --out OUT.safetensors [--grad]",
    "runs the network once on tensors from a file",
    "What diffusers' UNet2DModel(sample, timestep, class_labels) gives; gradients have its parameters' names.",
    options,
    run,
    NULL};
