/* tests/check_grad.c - see check_grad.h. The core is compiled here a second time, with ddpm_real = double, all static.
 *
 * A case builds a graph; its loss is L = sum_i c_i y_i over the output with fixed random c, g is dL/dx by
 * ddpm_graph_backward, and r the same by differences along a line x + s v:
 *     r = (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h
 * with v an axis, or (+-1, ..., +-1)/sqrt(count) to touch every element. Passed:
 *     |g - r| <= BOUND max(|r|, floor),   BOUND = 1e-6,   floor = 1e-3 rms,   rms the root mean square of the case's r
 * so that a gradient that is exactly zero (to_k.bias, a convolution's bias before a norm) is judged by the others'
 * size.
 *
 * Why a right gradient passes. With h = 2^-10, r differs from dL/ds by at most
 *     truncation   h^4 |L^(5)| / 30              = 3e-14 |L^(5)|
 *     rounding     (8 + 8 + 1 + 1)/12 k u M / h  = 2e-13 k M,   u = 2^-53, M = sum |c_i y_i|, k u the relative
 *                                                error of a y_i
 * Against BOUND |r| that leaves a factor of a million; against the worst case, BOUND floor = 1e-9 rms, it asks
 * for |L^(5)| < 3e4 rms and k M < 5e3 rms: true of networks whose weights and activations are of order one.
 * Why a wrong one fails: a sign, a factor or a missing term changes g by about rms, a million times the bound.
 *
 * So that nothing is right by luck: the graph has room for one picture more than is used, and that one is NaN; so is
 * the graph's memory at first; and backward runs twice, the second result counts, so that what should be stored must
 * not be added.
 *
 * Contents: 1 the core  2 a case and its values  3 operations  4 uses of the graph  5 blocks  6 networks
 *           7 the list of cases  8 differences  9 running */

/* ---- 1. The core ---- */

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define DDPM_REAL double
#define DDPM_API static
#define DDPM_IMPLEMENTATION
#include "ddpm.h"
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

#include "tests/check_grad.h"

/* ---- 2. A case and its values ---- */

enum { MOST_INPUTS = 8, MOST_SETTINGS = 8 };

typedef enum fill {
    NORMAL,   /* N(0,1) */
    OFF_ZERO, /* the same, but 0.1 further from 0: away from ReLU's kink */
    APART,    /* all different by 0.05: a maximum stays where it is */
    POSITIVE, /* 0.5 to 1.5 */
    CHANCE,   /* 0.2 to 0.8: a probability */
    INDEX,    /* 1, 2, 1: class labels, one repeated */
    TIME,     /* 1 to 1000 */
    HOT,      /* 0 or 1 */
} fill;

typedef struct rig {
    ddpm_model *model; /* the parameters */
    ddpm_graph *g;
    ddpm_net *net; /* of a whole network, whose graph it then is */
    ddpm_tensor *input[MOST_INPUTS];
    fill filled[MOST_INPUTS];
    int inputs;
    ddpm_unet_config config; /* of a block */
    builder builder;
} rig;

enum { USED = 3, CAPACITY = 4 };

typedef struct grad_case {
    const char *name, *variant;
    ddpm_tensor *(*build)(rig *r, const int *setting); /* returns the output; or else */
    ddpm_model_config (*configure)(void);              /* a whole network */
    int setting[MOST_SETTINGS];
    int evaluation; /* not training */
    int refused;    /* planning must fail: no gradient can reach the input that wants one */
} grad_case;

static ddpm_tensor *listed(rig *r, ddpm_tensor *x, fill filled)
{
    r->filled[r->inputs] = filled;
    return r->input[r->inputs++] = x;
}

/* An input whose gradient is checked, and one that is given. */
static ddpm_tensor *variable(rig *r, const char *name, int c, int h, int w, fill filled)
{
    return listed(r, ddpm_input(r->g, name, c, h, w, 1), filled);
}

static ddpm_tensor *constant(rig *r, const char *name, int c, int h, int w, fill filled)
{
    return listed(r, ddpm_input(r->g, name, c, h, w, 0), filled);
}

static ddpm_tensor *matrix(rig *r, const char *name, int out, int in, int kernel)
{
    int shape[4] = {out, in, kernel, kernel};
    return ddpm_param(r->g, r->model, name, 4, shape, DDPM_INIT_NORMAL, 0.5, 1);
}

static ddpm_tensor *vector(rig *r, const char *name, int c, ddpm_init init)
{
    return ddpm_param(r->g, r->model, name, 1, &c, init, 0.5, 1);
}

static void fill_input(const rig *r, int which)
{
    ddpm_tensor *x = r->input[which];
    size_t used = ddpm_elements(x, USED), all = ddpm_elements(x, CAPACITY);
    ddpm_address address = {529, (uint64_t)which, 0, DDPM_RANDOM_USER};
    ddpm_normals(address, used, x->data);
    for (size_t i = 0; i < used; i++) {
        double *value = &x->data[i], uniform;
        address.step = (uint32_t)i + 1;
        uniform = (double)ddpm_uniform_int(address, 1 << 24) * 0x1p-24;
        switch (r->filled[which]) {
        case NORMAL: break;
        case OFF_ZERO: *value += *value < 0 ? -0.1 : 0.1; break;
        case APART: *value = 0.05 * ((double)(i * 59 % 211) - 105); break;
        case POSITIVE: *value = 0.5 + uniform; break;
        case CHANCE: *value = 0.2 + 0.6 * uniform; break;
        case INDEX: *value = (double)(1 + i % 2); break;
        case TIME: *value = floor(1 + 999 * uniform); break;
        case HOT: *value = uniform < 0.5; break;
        }
    }
    for (size_t i = used; i < all; i++)
        x->data[i] = (double)NAN;
}

/* Parameters as training finds them: none is just 0 or 1. */
static ddpm_result fill_parameters(ddpm_model *model)
{
    TRY(ddpm_model_alloc(model, DDPM_FOR_GRADIENTS));
    TRY(ddpm_model_init(model, 529));
    for (int p = 0; p < model->params; p++) {
        const ddpm_tensor *x = model->param[p];
        size_t count = ddpm_elements(x, 0);
        ddpm_address address = {529, (uint64_t)p, 1, DDPM_RANDOM_USER};
        double *shift = ddpm_arena_alloc(&model->arena, count * sizeof *shift);
        if (!shift) return DDPM_ERR_MEMORY;
        ddpm_normals(address, count, shift);
        for (size_t i = 0; i < count; i++)
            x->data[i] += 0.1 * shift[i];
    }
    return DDPM_OK;
}

/* ---- 3. Operations: each with all that decides its path through the code ---- */

/* setting: kernel, stride, padding before, after, bias, height, width */
static ddpm_tensor *conv2d_case(rig *r, const int *setting)
{
    ddpm_tensor *x = variable(r, "x", 3, setting[5], setting[6], NORMAL);
    ddpm_tensor *bias = setting[4] ? vector(r, "bias", 2, DDPM_INIT_NORMAL) : NULL;
    return ddpm_conv2d(r->g, x, matrix(r, "weight", 2, 3, setting[0]), bias, setting[1], setting[2], setting[3]);
}

/* setting: bias, height, width */
static ddpm_tensor *linear_case(rig *r, const int *setting)
{
    ddpm_tensor *x = variable(r, "x", 5, setting[1], setting[2], NORMAL);
    ddpm_tensor *bias = setting[0] ? vector(r, "bias", 4, DDPM_INIT_NORMAL) : NULL;
    return ddpm_linear(r->g, x, matrix(r, "weight", 4, 5, 1), bias);
}

/* setting: groups of 6 channels, height, width */
static ddpm_tensor *group_norm_case(rig *r, const int *setting)
{
    ddpm_tensor *weight = vector(r, "weight", 6, DDPM_INIT_ONES), *bias = vector(r, "bias", 6, DDPM_INIT_ZEROS);
    ddpm_tensor *x = variable(r, "x", 6, setting[1], setting[2], NORMAL);
    return ddpm_group_norm(r->g, x, weight, bias, setting[0], 1e-5);
}

/* setting: kind */
static ddpm_tensor *activation_case(rig *r, const int *setting)
{
    return ddpm_activation(r->g, variable(r, "x", 3, 3, 5, OFF_ZERO), setting[0]);
}

/* setting: heads, height, width, whether q, k and v are one tensor */
static ddpm_tensor *attention_case(rig *r, const int *setting)
{
    ddpm_tensor *q = variable(r, "q", 6, setting[1], setting[2], NORMAL), *k = q, *v = q;
    if (!setting[3]) {
        k = variable(r, "k", 6, setting[1], setting[2], NORMAL);
        v = variable(r, "v", 6, setting[1], setting[2], NORMAL);
    }
    return ddpm_attention(r->g, q, k, v, setting[0]);
}

/* setting: height and width of a, whether b is (N,C,1,1), or a itself */
static ddpm_tensor *add_case(rig *r, const int *setting)
{
    ddpm_tensor *a = variable(r, "a", 3, setting[0], setting[1], NORMAL), *b = a;
    if (setting[2])
        b = variable(r, "b", 3, 1, 1, NORMAL);
    else if (!setting[3])
        b = variable(r, "b", 3, setting[0], setting[1], NORMAL);
    return ddpm_add(r->g, a, b, 0.7);
}

/* setting: whether both are the same tensor */
static ddpm_tensor *concat_case(rig *r, const int *setting)
{
    ddpm_tensor *a = variable(r, "a", 2, 3, 5, NORMAL);
    return ddpm_concat(r->g, a, setting[0] ? a : variable(r, "b", 3, 3, 5, NORMAL));
}

/* setting: first channel and number of 5 */
static ddpm_tensor *slice_case(rig *r, const int *setting)
{
    return ddpm_slice(r->g, variable(r, "x", 5, 3, 2, NORMAL), setting[0], setting[1]);
}

/* setting: factor */
static ddpm_tensor *upsample_case(rig *r, const int *setting)
{
    return ddpm_upsample(r->g, variable(r, "x", 2, 3, 5, NORMAL), setting[0]);
}

static ddpm_tensor *mse_case(rig *r, const int *setting)
{
    (void)setting;
    ddpm_tensor *x = variable(r, "x", 3, 3, 5, NORMAL);
    return ddpm_mse(r->g, x, variable(r, "target", 3, 3, 5, NORMAL));
}

/* setting: height, width */
static ddpm_tensor *modulate_case(rig *r, const int *setting)
{
    ddpm_tensor *x = variable(r, "x", 3, setting[0], setting[1], NORMAL);
    return ddpm_modulate(r->g, x, variable(r, "scale_shift", 6, 1, 1, NORMAL));
}

/* setting: kind, kernel, stride, padding */
static ddpm_tensor *pool_case(rig *r, const int *setting)
{
    return ddpm_pool(r->g, variable(r, "x", 2, 7, 5, APART), setting[0], setting[1], setting[2], setting[3]);
}

/* setting: factor */
static ddpm_tensor *pixel_unshuffle_case(rig *r, const int *setting)
{
    return ddpm_pixel_unshuffle(r->g, variable(r, "x", 2, 2 * setting[0], 3 * setting[0], NORMAL), setting[0]);
}

static ddpm_tensor *pixel_shuffle_case(rig *r, const int *setting)
{
    return ddpm_pixel_shuffle(r->g, variable(r, "x", 2 * setting[0] * setting[0], 2, 3, NORMAL), setting[0]);
}

static ddpm_tensor *dropout_case(rig *r, const int *setting)
{
    (void)setting;
    return ddpm_dropout(r->g, variable(r, "x", 3, 5, 5, NORMAL), 0.3);
}

/* setting: 0 no divisor, 1 a divisor, 2 one that wants a gradient */
static ddpm_tensor *affine_case(rig *r, const int *setting)
{
    ddpm_tensor *x = variable(r, "x", 3, 3, 5, NORMAL), *divisor = NULL;
    if (setting[0] == 1) divisor = constant(r, "divisor", 1, 1, 1, POSITIVE);
    if (setting[0] == 2) divisor = variable(r, "divisor", 1, 1, 1, POSITIVE);
    return ddpm_affine(r->g, x, divisor, 1.7, -0.4);
}

/* setting: whether the index wants a gradient */
static ddpm_tensor *embedding_case(rig *r, const int *setting)
{
    ddpm_tensor *index = (setting[0] ? variable : constant)(r, "index", 1, 1, 1, INDEX);
    return ddpm_embedding(r->g, index, ddpm_param(r->g, r->model, "table", 2, (int[]){4, 5}, DDPM_INIT_NORMAL, 1, 1));
}

/* setting: whether the running statistics want a gradient, height, width */
static ddpm_tensor *batch_norm_case(rig *r, const int *setting)
{
    int c = 3;
    ddpm_tensor *weight = vector(r, "weight", c, DDPM_INIT_ONES), *bias = vector(r, "bias", c, DDPM_INIT_ZEROS);
    ddpm_tensor *mean = ddpm_param(r->g, r->model, "running_mean", 1, &c, DDPM_INIT_ZEROS, 0, setting[0]);
    ddpm_tensor *variance = ddpm_param(r->g, r->model, "running_var", 1, &c, DDPM_INIT_ONES, 0, setting[0]);
    ddpm_tensor *x = variable(r, "x", c, setting[1], setting[2], NORMAL);
    return ddpm_batch_norm(r->g, x, weight, bias, mean, variance, 1e-5, 0.1);
}

/* setting: whether the target wants a gradient */
static ddpm_tensor *bce_case(rig *r, const int *setting)
{
    ddpm_tensor *p = variable(r, "p", 5, 1, 1, CHANCE);
    return ddpm_bce(r->g, p, (setting[0] ? variable : constant)(r, "target", 5, 1, 1, setting[0] ? CHANCE : HOT));
}

static ddpm_tensor *time_embedding_case(rig *r, const int *setting)
{
    (void)setting;
    return ddpm_time_embedding(r->g, variable(r, "t", 1, 1, 1, TIME), 8, 1, 0);
}

/* setting: whether time wants a gradient; else the weight does */
static ddpm_tensor *fourier_embedding_case(rig *r, const int *setting)
{
    ddpm_tensor *t = (setting[0] ? variable : constant)(r, "t", 1, 1, 1, TIME);
    int c = 4;
    return ddpm_fourier_embedding(r->g, t,
                                  ddpm_param(r->g, r->model, "weight", 1, &c, DDPM_INIT_NORMAL, 16, !setting[0]));
}

/* ---- 4. Uses of the graph: who stores, who adds, what is left out ---- */

/* One tensor read by many, in part twice by one node; its readers' gradients meet out of order. */
static ddpm_tensor *many_readers_case(rig *r, const int *setting)
{
    (void)setting;
    ddpm_tensor *x = variable(r, "x", 4, 3, 3, NORMAL), *silu = ddpm_activation(r->g, x, DDPM_SILU);
    ddpm_tensor *left = ddpm_slice(r->g, x, 0, 3), *right = ddpm_slice(r->g, silu, 1, 3); /* these overlap */
    ddpm_tensor *both = ddpm_add(r->g, ddpm_add(r->g, left, right, 1), ddpm_add(r->g, left, left, 0.5), 1);
    return ddpm_concat(r->g, ddpm_concat(r->g, both, silu), ddpm_add(r->g, x, silu, 2));
}

/* One weight used by two nodes, a frozen weight between them, and a branch that leads nowhere. */
static ddpm_tensor *shared_weight_case(rig *r, const int *setting)
{
    (void)setting;
    ddpm_tensor *weight = matrix(r, "weight", 3, 3, 3), *x = variable(r, "x", 3, 4, 5, NORMAL);
    ddpm_tensor *frozen = ddpm_param(r->g, r->model, "frozen", 4, (int[]){3, 3, 1, 1}, DDPM_INIT_NORMAL, 0.5, 0);
    ddpm_tensor *y = ddpm_activation(r->g, ddpm_conv2d(r->g, x, weight, NULL, 1, 1, 1), DDPM_SILU);
    y = ddpm_conv2d(r->g, y, frozen, NULL, 1, 0, 0);
    ddpm_activation(r->g, ddpm_conv2d(r->g, y, weight, NULL, 1, 1, 1), DDPM_SIGMOID);
    return ddpm_conv2d(r->g, y, weight, NULL, 1, 1, 1);
}

/* ---- 5. Blocks of the UNet. Widths are 4 and 6, in 2 groups ---- */

/* setting[0]: scale_shift; setting[1]: attention_head_dim; setting[2]: resample with ResnetBlock2D */
static void begin_block(rig *r, const int *setting)
{
    r->config.norm_num_groups = 2;
    r->config.norm_eps = 1e-5;
    r->config.mid_block_scale_factor = 1.25;
    r->config.add_attention = 1;
    r->config.resnet_time_scale_shift = setting[0] ? DDPM_SHIFT_SCALE_SHIFT : DDPM_SHIFT_DEFAULT;
    r->config.attention_head_dim = setting[1];
    r->config.downsample_type = r->config.upsample_type = setting[2] ? DDPM_RESAMPLE_RESNET : DDPM_RESAMPLE_CONV;
    r->builder.g = r->g;
    r->builder.model = r->model;
    r->builder.config = &r->config;
}

/* The same for a block that reads the time embedding. */
static ddpm_tensor *begin_timed_block(rig *r, const int *setting)
{
    begin_block(r, setting);
    return r->builder.temb = variable(r, "temb", 5, 1, 1, NORMAL);
}

/* setting[3]: output channels; [4]: resample; [5]: dropout */
static ddpm_tensor *resnet_block_case(rig *r, const int *setting)
{
    begin_timed_block(r, setting);
    r->config.dropout = setting[5] ? 0.3 : 0;
    ddpm_tensor *x = variable(r, "x", 4, 4, 2, NORMAL);
    return resnet_block(&r->builder, "block", x, setting[3], 1.25, (resample)setting[4]);
}

/* setting[3]: groups of its norm, 0 for none */
static ddpm_tensor *attention_block_case(rig *r, const int *setting)
{
    begin_block(r, setting);
    return attention_block(&r->builder, "block", variable(r, "x", 6, 3, 2, NORMAL), setting[3], 1.25);
}

/* setting[3]: downsample_padding */
static ddpm_tensor *downsample_case(rig *r, const int *setting)
{
    begin_block(r, setting);
    if (setting[2]) begin_timed_block(r, setting);
    r->config.downsample_padding = setting[3];
    return downsample(&r->builder, variable(r, "x", 4, 4, 6, NORMAL), DDPM_ATTN_BLOCK);
}

static ddpm_tensor *upsample_block_case(rig *r, const int *setting)
{
    begin_block(r, setting);
    if (setting[2]) begin_timed_block(r, setting);
    return upsample(&r->builder, variable(r, "x", 4, 2, 3, NORMAL), DDPM_ATTN_BLOCK);
}

/* setting[3]: add_attention; [4]: attn_norm_num_groups */
static ddpm_tensor *mid_block_case(rig *r, const int *setting)
{
    begin_timed_block(r, setting);
    r->config.add_attention = setting[3];
    r->config.attn_norm_num_groups = setting[4];
    return mid_block(&r->builder, variable(r, "x", 6, 2, 3, NORMAL));
}

static ddpm_tensor *timestep_embedding_case(rig *r, const int *setting)
{
    begin_block(r, setting);
    return timestep_embedding(&r->builder, "block", variable(r, "x", 6, 1, 1, NORMAL), 5);
}

static ddpm_tensor *label_encoder_case(rig *r, const int *setting)
{
    ddpm_label_config config = {7, 4, 5};
    begin_block(r, setting);
    return label_encoder(&r->builder, constant(r, "labels", 7, 1, 1, HOT), &config);
}

/* ---- 6. Networks: a whole UNet2DModel with its loss. Between them every branch of the builders ---- */

static ddpm_model_config two_levels(void)
{
    ddpm_model_config c = ddpm_model_default();
    c.unet.sample_size[0] = 4;
    c.unet.sample_size[1] = 6;
    c.unet.levels = 2;
    c.unet.layers_per_block = 1;
    c.unet.block_out_channels[0] = 4;
    c.unet.block_out_channels[1] = 8;
    c.unet.down_block_types[0] = c.unet.up_block_types[1] = DDPM_PLAIN_BLOCK;
    c.unet.down_block_types[1] = c.unet.up_block_types[0] = DDPM_ATTN_BLOCK;
    c.unet.attention_head_dim = 4;
    c.unet.norm_num_groups = 2;
    c.unet.time_embedding_dim = 10;
    return c;
}

/* The lab's, made small: a multi-hot vector of labels through the encoder. */
static ddpm_model_config labelled_network(void)
{
    ddpm_model_config c = two_levels();
    c.unet.class_embed_type = DDPM_CLASS_IDENTITY;
    c.label = (ddpm_label_config){5, 6, 10};
    return c;
}

/* Modulation, Fourier time, resampling ResnetBlocks, dropout, an attention without norm. */
static ddpm_model_config modulated_network(void)
{
    ddpm_model_config c = two_levels();
    c.unet.center_input_sample = 1;
    c.unet.time_embedding_type = DDPM_TIME_FOURIER;
    c.unet.resnet_time_scale_shift = DDPM_SHIFT_SCALE_SHIFT;
    c.unet.downsample_type = c.unet.upsample_type = DDPM_RESAMPLE_RESNET;
    c.unet.down_block_types[0] = c.unet.up_block_types[0] = DDPM_ATTN_BLOCK;
    c.unet.attention_head_dim = 0;
    c.unet.dropout = 0.2;
    c.unet.mid_block_scale_factor = 1.5;
    c.unet.class_embed_type = DDPM_CLASS_TIMESTEP;
    return c;
}

/* Plain blocks without a middle, two layers each, an Embedding, pixel_unshuffle. */
static ddpm_model_config plain_network(void)
{
    ddpm_model_config c = two_levels();
    c.unet.layers_per_block = 2;
    c.unet.in_channels = c.unet.out_channels = 4;
    c.pixel_unshuffle = 2;
    c.unet.down_block_types[1] = c.unet.up_block_types[0] = DDPM_PLAIN_BLOCK;
    c.unet.mid_block_type = 0;
    c.unet.downsample_padding = 0;
    c.unet.num_class_embeds = 4;
    return c;
}

/* ---- 7. The list of cases: operations in the order of the table ---- */

static const grad_case cases[] = {
    {"conv2d", "3x3", conv2d_case, NULL, {3, 1, 1, 1, 1, 5, 7}, 0, 0},
    {"conv2d", "3x3 without bias", conv2d_case, NULL, {3, 1, 1, 1, 0, 4, 4}, 0, 0},
    {"conv2d", "3x3 stride 2", conv2d_case, NULL, {3, 2, 1, 1, 1, 7, 6}, 0, 0},
    {"conv2d", "3x3 stride 2 padding 0,1", conv2d_case, NULL, {3, 2, 0, 1, 1, 6, 4}, 0, 0},
    {"conv2d", "3x3 unpadded", conv2d_case, NULL, {3, 1, 0, 0, 1, 5, 4}, 0, 0},
    {"conv2d", "3x3 of one pixel", conv2d_case, NULL, {3, 1, 1, 1, 1, 1, 1}, 0, 0},
    {"conv2d", "3x3 of wide rows", conv2d_case, NULL, {3, 1, 1, 1, 1, 2, 70}, 0, 0},
    {"conv2d", "1x1", conv2d_case, NULL, {1, 1, 0, 0, 1, 3, 5}, 0, 0},
    {"conv2d", "1x1 stride 2", conv2d_case, NULL, {1, 2, 0, 0, 1, 5, 4}, 0, 0},
    {"conv2d", "2x2 stride 2", conv2d_case, NULL, {2, 2, 0, 0, 1, 4, 6}, 0, 0},
    {"conv2d", "7x7", conv2d_case, NULL, {7, 1, 3, 3, 1, 5, 4}, 0, 0},
    {"conv2d", "7x7 stride 3", conv2d_case, NULL, {7, 3, 3, 3, 1, 9, 8}, 0, 0},
    {"linear", "of vectors", linear_case, NULL, {1, 1, 1}, 0, 0},
    {"linear", "of pixels", linear_case, NULL, {1, 3, 5}, 0, 0},
    {"linear", "without bias", linear_case, NULL, {0, 2, 2}, 0, 0},
    {"group_norm", "2 groups", group_norm_case, NULL, {2, 3, 5}, 0, 0},
    {"group_norm", "1 group", group_norm_case, NULL, {1, 3, 5}, 0, 0},
    {"group_norm", "a channel a group", group_norm_case, NULL, {6, 3, 5}, 0, 0},
    {"group_norm", "of vectors", group_norm_case, NULL, {2, 1, 1}, 0, 0},
    {"activation", "silu", activation_case, NULL, {DDPM_SILU}, 0, 0},
    {"activation", "relu", activation_case, NULL, {DDPM_RELU}, 0, 0},
    {"activation", "sigmoid", activation_case, NULL, {DDPM_SIGMOID}, 0, 0},
    {"attention", "1 head", attention_case, NULL, {1, 3, 2, 0}, 0, 0},
    {"attention", "3 heads", attention_case, NULL, {3, 3, 5, 0}, 0, 0},
    {"attention", "of one token", attention_case, NULL, {2, 1, 1, 0}, 0, 0},
    {"attention", "q = k = v", attention_case, NULL, {2, 2, 3, 1}, 0, 0},
    {"add", "", add_case, NULL, {3, 5, 0, 0}, 0, 0},
    {"add", "a vector", add_case, NULL, {3, 5, 1, 0}, 0, 0},
    {"add", "vectors", add_case, NULL, {1, 1, 0, 0}, 0, 0},
    {"add", "a + a", add_case, NULL, {3, 5, 0, 1}, 0, 0},
    {"concat", "", concat_case, NULL, {0}, 0, 0},
    {"concat", "a, a", concat_case, NULL, {1}, 0, 0},
    {"upsample", "2", upsample_case, NULL, {2}, 0, 0},
    {"upsample", "3", upsample_case, NULL, {3}, 0, 0},
    {"time_embedding", "to t", time_embedding_case, NULL, {0}, 0, 1},
    {"mse", "", mse_case, NULL, {0}, 0, 0},
    {"modulate", "", modulate_case, NULL, {3, 5}, 0, 0},
    {"modulate", "vectors", modulate_case, NULL, {1, 1}, 0, 0},
    {"slice", "of the middle", slice_case, NULL, {1, 3}, 0, 0},
    {"slice", "of all", slice_case, NULL, {0, 5}, 0, 0},
    {"pool", "max 2x2", pool_case, NULL, {DDPM_POOL_MAX, 2, 2, 0}, 0, 0},
    {"pool", "max 3x3 stride 2 padded", pool_case, NULL, {DDPM_POOL_MAX, 3, 2, 1}, 0, 0},
    {"pool", "max 3x3 stride 1", pool_case, NULL, {DDPM_POOL_MAX, 3, 1, 0}, 0, 0},
    {"pool", "mean 2x2", pool_case, NULL, {DDPM_POOL_MEAN, 2, 2, 0}, 0, 0},
    {"pool", "mean 3x3 stride 2 padded", pool_case, NULL, {DDPM_POOL_MEAN, 3, 2, 1}, 0, 0},
    {"pool", "mean 3x3 stride 1", pool_case, NULL, {DDPM_POOL_MEAN, 3, 1, 0}, 0, 0},
    {"pixel_unshuffle", "2", pixel_unshuffle_case, NULL, {2}, 0, 0},
    {"pixel_unshuffle", "3", pixel_unshuffle_case, NULL, {3}, 0, 0},
    {"pixel_shuffle", "2", pixel_shuffle_case, NULL, {2}, 0, 0},
    {"pixel_shuffle", "3", pixel_shuffle_case, NULL, {3}, 0, 0},
    {"dropout", "", dropout_case, NULL, {0}, 0, 0},
    {"affine", "", affine_case, NULL, {0}, 0, 0},
    {"affine", "with divisor", affine_case, NULL, {1}, 0, 0},
    {"affine", "to the divisor", affine_case, NULL, {2}, 0, 1},
    {"fourier_embedding", "to t", fourier_embedding_case, NULL, {1}, 0, 1},
    {"fourier_embedding", "to the weight", fourier_embedding_case, NULL, {0}, 0, 1},
    {"embedding", "", embedding_case, NULL, {0}, 0, 0},
    {"embedding", "to the index", embedding_case, NULL, {1}, 0, 1},
    {"batch_norm", "training", batch_norm_case, NULL, {0, 3, 5}, 0, 0},
    {"batch_norm", "training, of vectors", batch_norm_case, NULL, {0, 1, 1}, 0, 0},
    {"batch_norm", "evaluation", batch_norm_case, NULL, {0, 3, 5}, 1, 0},
    {"batch_norm", "to running statistics", batch_norm_case, NULL, {1, 3, 5}, 0, 1},
    {"bce", "", bce_case, NULL, {0}, 0, 0},
    {"bce", "to the target", bce_case, NULL, {1}, 0, 1},

    {"graph", "many readers", many_readers_case, NULL, {0}, 0, 0},
    {"graph", "shared weight", shared_weight_case, NULL, {0}, 0, 0},
    {"graph", "shared weight, evaluation", shared_weight_case, NULL, {0}, 1, 0},

    {"resnet_block", "", resnet_block_case, NULL, {0, 0, 0, 4, RESAMPLE_NONE, 0}, 0, 0},
    {"resnet_block", "scale_shift, shortcut", resnet_block_case, NULL, {1, 0, 0, 6, RESAMPLE_NONE, 0}, 0, 0},
    {"resnet_block", "down, dropout", resnet_block_case, NULL, {0, 0, 0, 4, RESAMPLE_DOWN, 1}, 0, 0},
    {"resnet_block", "up, shortcut", resnet_block_case, NULL, {0, 0, 0, 6, RESAMPLE_UP, 0}, 0, 0},
    {"attention_block", "", attention_block_case, NULL, {0, 0, 0, 2}, 0, 0},
    {"attention_block", "heads, without norm", attention_block_case, NULL, {0, 3, 0, 0}, 0, 0},
    {"attention_block", "heads narrower than x", attention_block_case, NULL, {0, 4, 0, 3}, 0, 0},
    {"downsample", "padding 1", downsample_case, NULL, {0, 0, 0, 1}, 0, 0},
    {"downsample", "padding 0", downsample_case, NULL, {0, 0, 0, 0}, 0, 0},
    {"downsample", "resnet", downsample_case, NULL, {0, 0, 1, 0}, 0, 0},
    {"upsample_block", "conv", upsample_block_case, NULL, {0}, 0, 0},
    {"upsample_block", "resnet", upsample_block_case, NULL, {0, 0, 1}, 0, 0},
    {"mid_block", "", mid_block_case, NULL, {0, 3, 0, 1, 0}, 0, 0},
    {"mid_block", "scale_shift", mid_block_case, NULL, {1, 2, 0, 1, 0}, 0, 0},
    {"mid_block", "scale_shift, its own groups", mid_block_case, NULL, {1, 0, 0, 1, 3}, 0, 0},
    {"mid_block", "without attention", mid_block_case, NULL, {0, 0, 0, 0, 0}, 0, 0},
    {"timestep_embedding", "", timestep_embedding_case, NULL, {0}, 0, 0},
    {"label_encoder", "", label_encoder_case, NULL, {0}, 0, 0},

    {"unet", "with label encoder", NULL, labelled_network, {0}, 0, 0},
    {"unet", "scale_shift, fourier, resnet", NULL, modulated_network, {0}, 0, 0},
    {"unet", "plain, class labels", NULL, plain_network, {0}, 0, 0},
};
enum { CASES = sizeof cases / sizeof *cases };

const char *check_grad_names(int i)
{
    for (int k = 0; k < CASES; k++)
        if ((k == 0 || strcmp(cases[k].name, cases[k - 1].name) != 0) && i-- == 0) return cases[k].name;
    return NULL;
}

/* ---- 8. Differences ---- */

#define BOUND 1e-6
static const double h = 0x1p-10, floor_share = 1e-3;

/* The elements of one tensor that are checked: all, or `most` at random and, as the element after the last, the
 * direction that has all of them. */
typedef struct probe {
    ddpm_tensor *x;
    double *kept, *gradient, *direction; /* (count): values to return to; by backward; +-1/sqrt(count) */
    size_t count, most;
} probe;

/* x + s v */
static void displace(const probe *p, size_t element, double s)
{
    memcpy(p->x->data, p->kept, p->count * sizeof *p->kept);
    if (element < p->count) p->x->data[element] += s;
    for (size_t i = 0; element == p->count && i < p->count; i++)
        p->x->data[i] += s * p->direction[i];
}

/* g and r along one line. c: weights of the output; total: room for as many values. */
static ddpm_result compare_line(ddpm_graph *g, const probe *p, size_t element, const double *c, double *total,
                                double *by_backward, double *by_differences)
{
    static const double at[4] = {1, -1, 2, -2}, factor[4] = {8, -8, -1, 1};
    size_t outputs = ddpm_elements(g->root, USED);
    memset(total, 0, outputs * sizeof *total);
    for (int k = 0; k < 4; k++) {
        displace(p, element, at[k] * h);
        TRY(ddpm_graph_forward(g, USED));
        for (size_t i = 0; i < outputs; i++)
            total[i] += factor[k] * g->root->data[i];
    }
    displace(p, element, 0);
    *by_differences = *by_backward = 0;
    for (size_t i = 0; i < outputs; i++)
        *by_differences += c[i] * total[i] / (12 * h);
    if (element < p->count) *by_backward = p->gradient[element];
    for (size_t i = 0; element == p->count && i < p->count; i++)
        *by_backward += p->gradient[i] * p->direction[i];
    return DDPM_OK;
}

/* The k-th of the elements to check; all distinct, as 2^32 / golden ratio is odd and count below 2^32. */
static size_t chosen(const probe *p, size_t k)
{
    if (p->count <= p->most) return k;
    return k == p->most ? p->count : (size_t)((uint64_t)((uint32_t)(k + 1) * 0x9E3779B9u) * p->count >> 32);
}

static size_t lines(const probe *p)
{
    return p->count <= p->most ? p->count : p->most + 1;
}

/* ---- 9. Running ---- */

typedef struct job {
    check_grad_row *row;
    void *user;
    int failed;
} job;

static void report(job *j, const grad_case *c, const char *what, double error)
{
    char name[96];
    int passed = error <= BOUND; /* never true of NaN */
    snprintf(name, sizeof name, "%s%s%s", c->name, *c->variant ? " " : "", c->variant);
    if (!passed) j->failed++;
    if (j->row) j->row(j->user, name, what, error, BOUND, passed);
}

/* Builds and plans the case's graph. */
static ddpm_result open_case(const grad_case *c, rig *r)
{
    *r = (rig){0};
    if (c->configure) {
        ddpm_model_config config = c->configure();
        TRY(ddpm_model_create(&r->model, &config, NULL));
        TRY(ddpm_net_create(&r->net, r->model, 0, 0, CAPACITY, 1));
        r->g = r->net->graph;
        listed(r, r->net->sample, NORMAL);
        int fourier = config.unet.time_embedding_type == DDPM_TIME_FOURIER; /* divides its output by t */
        listed(r, r->net->timestep, fourier ? POSITIVE : TIME);
        listed(r, r->net->noise, NORMAL);
        if (r->net->labels) listed(r, r->net->labels, config.label.num_classes ? HOT : INDEX);
        return DDPM_OK;
    }
    if (!(r->model = DDPM_MALLOC(sizeof *r->model))) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    memset(r->model, 0, sizeof *r->model);
    r->model->declaring = 1;
    TRY(ddpm_graph_create(&r->g, NULL, CAPACITY, !c->evaluation));
    ddpm_tensor *root = c->build(r, c->setting);
    return ddpm_graph_plan(r->g, root, &root, 1);
}

static void close_case(rig *r)
{
    if (r->net)
        ddpm_net_free(r->net);
    else
        ddpm_graph_free(r->g);
    ddpm_model_free(r->model);
}

static ddpm_result fill_case(rig *r)
{
    TRY(fill_parameters(r->model));
    TRY(ddpm_graph_alloc(r->g));
    memset(r->g->memory, 0xFF, r->g->bytes); /* NaN */
    for (int i = 0; i < r->inputs; i++)
        fill_input(r, i);
    r->g->step.seed = 529;
    r->g->step.first_picture = 7;
    return DDPM_OK;
}

/* Does the operation of that name run backward here? True of names that are no operation. */
static int exercised(const rig *r, const char *name)
{
    int known = 0;
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        known |= !strcmp(ddpm_op_name((ddpm_op)op), name);
    for (int i = 0; i < r->g->nodes && known; i++)
        if (!strcmp(ddpm_op_name(r->g->node[i]->op), name) && r->g->node[i]->wants) return 1;
    return !known;
}

/* Every tensor that wants a gradient: inputs, then parameters. Their gradients are copied: forward may reuse the
 * memory. */
static ddpm_result make_probes(rig *r, probe *list, int *probes)
{
    *probes = 0;
    for (int i = 0; i < r->inputs + r->model->params; i++) {
        ddpm_tensor *x = i < r->inputs ? r->input[i] : r->model->param[i - r->inputs];
        if (x->param ? !x->trainable || !r->g->training : !x->need_grad) continue;
        probe p = {.x = x, .count = ddpm_elements(x, USED), .most = r->net ? 2 : 24};
        p.kept = ddpm_arena_alloc(&r->g->arena, p.count * sizeof *p.kept);
        p.gradient = ddpm_arena_alloc(&r->g->arena, p.count * sizeof *p.gradient);
        p.direction = ddpm_arena_alloc(&r->g->arena, p.count * sizeof *p.direction);
        if (!p.kept || !p.gradient || !p.direction) return DDPM_ERR_MEMORY;
        ddpm_normals((ddpm_address){529, (uint64_t)i, 2, DDPM_RANDOM_USER}, p.count, p.direction);
        for (size_t k = 0; k < p.count; k++)
            p.direction[k] = copysign(1 / sqrt((double)p.count), p.direction[k]);
        memcpy(p.kept, x->data, p.count * sizeof *p.kept);
        memcpy(p.gradient, x->grad, p.count * sizeof *p.gradient);
        list[(*probes)++] = p;
    }
    return DDPM_OK;
}

/* Compares all lines of all tensors; pair[line] = g, r. A case of many tensors reports those that failed, and all as
 * one. */
static ddpm_result compare_case(job *j, const grad_case *c, rig *r, const double *weight, double *total)
{
    enum { MANY = 6 };
    int probes;
    probe *list = ddpm_arena_alloc(&r->g->arena, (size_t)(r->inputs + r->model->params) * sizeof *list);
    if (!list) return DDPM_ERR_MEMORY;
    TRY(make_probes(r, list, &probes));
    size_t all = 0, at = 0;
    for (int p = 0; p < probes; p++)
        all += lines(&list[p]);
    double(*pair)[2] = ddpm_arena_alloc(&r->g->arena, (all + 1) * sizeof *pair), square = 0, largest = 0;
    if (!pair) return DDPM_ERR_MEMORY;
    for (int p = 0; p < probes; p++)
        for (size_t k = 0; k < lines(&list[p]); k++, at++) {
            TRY(compare_line(r->g, &list[p], chosen(&list[p], k), weight, total, &pair[at][0], &pair[at][1]));
            square += pair[at][1] * pair[at][1];
        }
    double floor = floor_share * sqrt(square / (double)all);
    at = 0;
    for (int p = 0; p < probes; p++) {
        double error = 0;
        for (size_t k = 0; k < lines(&list[p]); k++, at++) {
            double size = fabs(pair[at][1]) > floor ? fabs(pair[at][1]) : floor,
                   here = fabs(pair[at][0] - pair[at][1]) / size;
            if (!(here <= error) && !isnan(error)) error = here; /* once NaN, always NaN */
        }
        if (probes <= MANY || !(error <= BOUND))
            report(j, c, list[p].x->name, error);
        else if (error > largest)
            largest = error;
    }
    char text[48];
    snprintf(text, sizeof text, "%d tensors", probes);
    if (probes > MANY) report(j, c, text, largest);
    if (all == 0) return ddpm_fail(DDPM_ERR_ARGUMENT, "no gradient to check");
    return DDPM_OK;
}

static ddpm_result run_case(job *j, const grad_case *c, rig *r)
{
    ddpm_result result = open_case(c, r);
    if (c->refused) {
        if (result == DDPM_ERR_UNSUPPORTED)
            report(j, c, "refused", 0);
        else
            return ddpm_fail(DDPM_ERR_ARGUMENT, "a gradient that does not exist was not refused");
        return DDPM_OK;
    }
    TRY(result);
    TRY(fill_case(r));
    if (!exercised(r, c->name)) return ddpm_fail(DDPM_ERR_ARGUMENT, "its backward does not run");
    size_t outputs = ddpm_elements(r->g->root, USED);
    ddpm_address address = {529, 0, 3, DDPM_RANDOM_USER};
    double *weight = ddpm_arena_alloc(&r->g->arena, outputs * sizeof *weight);
    double *total = ddpm_arena_alloc(&r->g->arena, outputs * sizeof *total);
    if (!weight || !total) return DDPM_ERR_MEMORY;
    ddpm_normals(address, outputs, weight);
    TRY(ddpm_graph_forward(r->g, USED));
    TRY(ddpm_graph_backward(r->g, weight, NULL, NULL));
    TRY(ddpm_model_zero_grad(r->model));
    TRY(ddpm_graph_forward(r->g, USED));
    TRY(ddpm_graph_backward(r->g, weight, NULL, NULL));
    return compare_case(j, c, r, weight, total);
}

int check_grad_run(const char *op, check_grad_row *row, void *user)
{
    job j = {row, user, 0};
    int found = 0;
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* the graphs are so small that starting threads would take longer than the work */
#endif
    for (int i = 0; i < CASES; i++) {
        rig r;
        if (op && strcmp(cases[i].name, op) != 0) continue;
        found = 1;
        if (run_case(&j, &cases[i], &r) != DDPM_OK) report(&j, &cases[i], ddpm_error(), (double)NAN);
        close_case(&r);
    }
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    return found ? j.failed : -1;
}
