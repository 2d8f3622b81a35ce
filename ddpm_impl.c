/* ddpm_impl.c - the algorithm of ddpm.h in plain loops, to be read from top to bottom after that header.
 * Every row of the operation table is here with its formula and derivative; fast backends fill the same table
 * elsewhere. It includes nothing but ddpm.h and the C library; compile it alone, or through DDPM_IMPLEMENTATION (see
 * ddpm.h).
 *
 * Part I, the lab's model complete:
 *    1 errors                  4 rows of the operation table      7 noise schedule
 *    2 random numbers          5 the reference backend            8 training
 *    3 tensors and the graph   6 blocks, UNet2DModel, model       9 sampling
 * Part II, machinery and what other models need: memory, backends; more rows, the linear schedule, DDIM, FLOPs. */
#include "ddpm.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef DDPM_MALLOC
#define DDPM_MALLOC malloc
#define DDPM_FREE free
#endif
#ifndef DDPM_ASSERT
#define DDPM_ASSERT(condition) ((void)0)
#endif

/* Inner loops so marked are compiled for several instruction sets; the program picks one when it starts. No version
 * contracts a * b + c or reorders a sum (the project is built with -ffp-contract=off), so all of them compute the
 * same bits. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) &&                \
    defined(__OPTIMIZE__)
#define DDPM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define DDPM_CLONES_PICK
#else
#define DDPM_CLONES
#endif

/* ==== Part I: the lab's model ===================================================================================== */

/* ---- 1. Errors --------------------------------------------------------------------------------------------------- */

static _Thread_local char error_text[1024] = "no error";

const char *ddpm_error(void)
{
    return error_text;
}

ddpm_result ddpm_fail(ddpm_result code, const char *format, ...)
{
    char text[sizeof error_text]; /* the arguments may point into error_text: "%s" of the last error, wrapped */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(error_text, text, sizeof text);
    return code;
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        ddpm_result try_result = (call);                                                                               \
        if (try_result != DDPM_OK) return try_result;                                                                  \
    } while (0)

/* Part II has the arena, and under it: 64-byte aligned, zeroed memory. NULL has its error text set. */
static void *aligned_alloc_zero(size_t bytes);
static void aligned_free(void *memory);
static void *grow_pointers(ddpm_arena *arena, void *array, int used, int *room);

/* ---- 2. Random numbers ------------------------------------------------------------------------------------------- */

/* Philox 4x32-10 (Salmon et al. 2011): ten rounds of two 32x32 -> 64-bit products; the key grows by Weyl constants. */
void ddpm_philox(ddpm_address address, uint32_t block, uint32_t word[4])
{
    uint32_t key0 = (uint32_t)address.seed, key1 = (uint32_t)(address.seed >> 32);
    uint32_t c0 = block, c1 = address.step, c2 = (uint32_t)address.picture,
             c3 = (address.purpose << 24) ^ (uint32_t)(address.picture >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

/* Part II: polynomials that give the same bits on every processor. */
static float log_unit(float u);                                /* log u, u in (0,1] */
static void cos_sin_turn(float u, float *cosine, float *sine); /* of 2 pi u, u in [0,1) */

/* Box-Muller: r = sqrt(-2 log u1), angle 2 pi u2, for each pair of words; u1 in (0,1], u2 in [0,1) have 24 bits, which
 * rounds to float exactly. -2 log 2^-24 = 33.3, hence |value| < 5.8. */
void ddpm_normals(ddpm_address address, size_t count, ddpm_real *out)
{
    for (size_t i = 0; i < count; i += 4) {
        uint32_t word[4];
        float value[4];
        ddpm_philox(address, (uint32_t)(i / 4), word);
        for (int k = 0; k < 4; k += 2) {
            float u1 = (float)((word[k] >> 8) + 1) * 0x1p-24f, u2 = (float)(word[k + 1] >> 8) * 0x1p-24f;
            float radius = sqrtf(-2 * log_unit(u1)), cosine, sine;
            cos_sin_turn(u2, &cosine, &sine);
            value[k] = radius * cosine;
            value[k + 1] = radius * sine;
        }
        for (size_t k = 0; k < 4 && i + k < count; k++)
            out[i + k] = value[k];
    }
}

uint32_t ddpm_uniform_int(ddpm_address address, uint32_t range)
{
    uint32_t word[4];
    ddpm_philox(address, 0, word);
    return (uint32_t)(((uint64_t)word[0] * range) >> 32);
}

void ddpm_shuffle(ddpm_address address, uint32_t count, uint32_t *order)
{
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = count; i > 1; i--) { /* position i-1 gets one of the i left */
        uint32_t word[4];
        ddpm_philox(address, i, word);
        uint32_t j = (uint32_t)(((uint64_t)word[0] * i) >> 32), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/* ---- 3. Tensors and the graph ------------------------------------------------------------------------------------ */

size_t ddpm_elements(const ddpm_tensor *x, int n)
{
    return (size_t)(x->batched ? n : x->shape[0]) * (size_t)x->shape[1] * (size_t)x->shape[2] * (size_t)x->shape[3];
}

#define DDPM_OP_NAME(op, name, reads) name,
static const char *const op_names[] = {DDPM_OPS(DDPM_OP_NAME)};
#define DDPM_OP_READS(op, name, reads) reads,
static const unsigned op_reads[] = {DDPM_OPS(DDPM_OP_READS)};

const char *ddpm_op_name(ddpm_op op)
{
    return (unsigned)op < DDPM_OP_COUNT ? op_names[op] : "(no such operation)";
}

static const ddpm_backend *backend_of(const ddpm_device *device)
{
    return device && device->backend ? device->backend : ddpm_reference();
}

/* Which inputs a gradient can flow to; the others hold indices, times, targets or running statistics. */
static int differentiable(ddpm_op op, int input)
{
    switch (op) {
    case DDPM_OP_TIME_EMBEDDING:
    case DDPM_OP_FOURIER_EMBEDDING: return 0;
    case DDPM_OP_EMBEDDING: return input == 1;
    case DDPM_OP_BATCH_NORM: return input < 3;
    case DDPM_OP_AFFINE:
    case DDPM_OP_BCE: return input == 0;
    default: return 1;
    }
}

/* Does backward of `node` write the gradient of x through one of its first `inputs` inputs? */
static int writes_below(const ddpm_node *node, const ddpm_tensor *x, int inputs)
{
    for (int k = 0; k < inputs; k++)
        if (node->wants >> k & 1 && node->in[k] == x) return 1;
    return 0;
}

static int writes_between(const ddpm_graph *g, const ddpm_tensor *x, int first, int end)
{
    for (int i = first; i < end; i++)
        if (writes_below(g->node[i], x, DDPM_MAX_INPUTS)) return 1;
    return 0;
}

/* wants: backward is needed where a tensor both leads to the root and depends on something that wants a gradient. */
static ddpm_result mark_gradients(ddpm_graph *g, ddpm_tensor *root)
{
    for (int i = 0; i < g->nodes; i++) { /* forward: does the output depend on a parameter, or on an input marked so? */
        ddpm_node *node = g->node[i];
        for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
            ddpm_tensor *x = node->in[k];
            int needs = x && (x->param ? g->training && x->trainable : x->need_grad);
            if (needs && !differentiable(node->op, k))
                return ddpm_fail(DDPM_ERR_UNSUPPORTED, "%s: %s has no gradient for its input %d ('%s')", node->name,
                                 ddpm_op_name(node->op), k, x->name);
            if (needs) node->out->need_grad = 1, node->wants |= 1u << k;
        }
    }
    for (int i = g->nodes - 1; i >= 0; i--) { /* backward: keep what leads to the root; the first writer stores */
        ddpm_node *node = g->node[i];
        if (node->out != root && !writes_between(g, node->out, i + 1, g->nodes)) node->wants = 0;
        for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
            if (!(node->wants >> k & 1)) continue;
            const ddpm_tensor *x = node->in[k];
            if ((x->param && !g->share) || x == root || writes_between(g, x, i + 1, g->nodes) ||
                writes_below(node, x, k))
                node->accumulate |= 1u << k;
        }
    }
    for (int i = 0; i < g->nodes; i++)
        for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
            const ddpm_tensor *x = g->node[i]->in[k];
            if (g->node[i]->wants >> k & 1 && x->param && !writes_between(g, x, 0, i)) g->node[i]->final |= 1u << k;
        }
    return DDPM_OK;
}

/* Part II: lists what runs, and what backward makes again instead of keeping it; gives every tensor the memory of its
 * lifetime, so that two whose lifetimes do not meet may share the same bytes. */
static ddpm_result plan_tasks(ddpm_graph *g);
static ddpm_result plan_memory(ddpm_graph *g);
static ddpm_real *address_of(const ddpm_graph *g, size_t offset);

ddpm_result ddpm_graph_plan(ddpm_graph *g, ddpm_tensor *root, ddpm_tensor *const *keep, int keeps)
{
    if (g->result != DDPM_OK) return g->result;
    g->root = root;
    if (root) root->keep = 1;
    for (int i = 0; i < keeps; i++)
        if (keep[i]) keep[i]->keep = 1;
    TRY(mark_gradients(g, root));
    if (backend_of(g->device)->plan) TRY(backend_of(g->device)->plan(g));
    TRY(plan_tasks(g));
    return plan_memory(g);
}

static const ddpm_row reference_rows[DDPM_OP_COUNT];
static ddpm_result run_on_host(const ddpm_graph *g, const ddpm_node *node, int backward);

static ddpm_result run_row(const ddpm_graph *g, const ddpm_node *node, int backward)
{
    const ddpm_backend *backend = backend_of(g->device);
    if (node->fused_into) return DDPM_OK;
    DDPM_ASSERT(node->out->data && g->n > 0 && g->n <= g->capacity);
    ddpm_row_fn row = !backend->rows ? NULL
                      : backward     ? backend->rows[node->op].backward
                                     : backend->rows[node->op].forward;
    if (row) return row(g, node);
    if (backend->download) return run_on_host(g, node, backward);
    return backward ? reference_rows[node->op].backward(g, node) : reference_rows[node->op].forward(g, node);
}

static ddpm_result run_task(ddpm_graph *g, const ddpm_task *task)
{
    g->again = task->what == DDPM_AGAIN;
    g->scratch = address_of(g, task->scratch_offset);
    return run_row(g, task->node, task->what == DDPM_BACKWARD);
}

ddpm_result ddpm_graph_forward(ddpm_graph *g, int n)
{
    if (n < 1 || n > g->capacity)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures in a graph built for 1 to %d", n, g->capacity);
    TRY(ddpm_graph_alloc(g));
    g->n = n;
    for (int i = 0; i < g->forwards; i++)
        TRY(run_task(g, &g->task[i]));
    return DDPM_OK;
}

/* Backward, from the gradient that the root has. */
static ddpm_result propagate(ddpm_graph *g, ddpm_grad_ready ready, void *user)
{
    for (int i = g->forwards; i < g->tasks; i++) {
        const ddpm_task *task = &g->task[i];
        TRY(run_task(g, task));
        for (int k = 0; k < DDPM_MAX_INPUTS && ready && task->what == DDPM_BACKWARD; k++)
            if (task->node->final >> k & 1) ready(user, task->node->in[k]);
    }
    return DDPM_OK;
}

/* ---- 4. Rows of the operation table ---------------------------------------------------------------------------------
 * Rows are unfused. Threads divide outputs among themselves and never a sum, so that every result has the same bits
 * for any number of threads. dL/dx of a tensor x is written dx. */

/* Where backward adds the gradient of in[k]: NULL if nobody wants it. The first writer of an activation's gradient
 * starts from zero here, and so every row simply adds. */
static ddpm_real *grad_target(const ddpm_graph *g, const ddpm_node *node, int k)
{
    if (!(node->wants >> k & 1)) return NULL;
    ddpm_real *grad = node->in[k]->grad;
    DDPM_ASSERT(grad);
    if (!(node->accumulate >> k & 1)) memset(grad, 0, ddpm_elements(node->in[k], g->n) * sizeof *grad);
    return grad;
}

static int pixels(const ddpm_tensor *x)
{
    return x->shape[2] * x->shape[3];
}

/* Sums run in LANES independent partial sums: they vectorise without reordering by the compiler, always in this one
 * order. */
enum { LANES = 16 };

DDPM_CLONES static double sum(const ddpm_real *x, size_t count)
{
    double lane[LANES] = {0}, total = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)x[i + (size_t)l];
    for (; i < count; i++)
        lane[i % LANES] += (double)x[i];
    for (int l = 0; l < LANES; l++)
        total += lane[l];
    return total;
}

/* sum of (x - a)(y - b) */
DDPM_CLONES static double sum_products(const ddpm_real *x, double a, const ddpm_real *y, double b, size_t count)
{
    double lane[LANES] = {0}, total = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += ((double)x[i + (size_t)l] - a) * ((double)y[i + (size_t)l] - b);
    for (; i < count; i++)
        lane[i % LANES] += ((double)x[i] - a) * ((double)y[i] - b);
    for (int l = 0; l < LANES; l++)
        total += lane[l];
    return total;
}

/* sum of x y in ddpm_real lanes: for a length at which a float sum is good enough */
DDPM_CLONES static ddpm_real short_dot(const ddpm_real *restrict x, const ddpm_real *restrict y, size_t count)
{
    ddpm_real lane[LANES] = {0}, total = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += x[i + (size_t)l] * y[i + (size_t)l];
    for (; i < count; i++)
        lane[i % LANES] += x[i] * y[i];
    for (int l = 0; l < LANES; l++)
        total += lane[l];
    return total;
}

/* sum of x y, the long way in double */
static double dot(const ddpm_real *x, const ddpm_real *y, size_t count)
{
    enum { SHORT = 4096 }; /* 256 additions a lane: an error of at most 256 u sum |x y|, u = 2^-24 */
    double total = 0;
    for (size_t i = 0; i < count; i += SHORT)
        total += (double)short_dot(x + i, y + i, count - i < SHORT ? count - i : SHORT);
    return total;
}

/* ---- Convolution ----------------------------------------------------------------------------------------------------
 * y[n,o,oy,ox] = b[o] + sum_{i,ky,kx} w[o,i,ky,kx] x[n,i,iy,ix],  iy = oy s + ky - p,  ix = ox s + kx - p
 * (x = 0 outside the picture; stride s, padding p)
 * dx[n,i,iy,ix] = sum_{o,ky,kx} w[o,i,ky,kx] dy[n,o,oy,ox]
 * dw[o,i,ky,kx] = sum_{n,oy,ox} dy[n,o,oy,ox] x[n,i,iy,ix],        db[o] = sum_{n,oy,ox} dy[n,o,oy,ox]
 *
 * There are no borders to treat if the pictures lie in a frame of zeros: (C, N h w), for each channel the pictures of
 * the batch one under the other, each with its zeros around it. A tap (ky,kx) is then one shift of the channel:
 *     y[o][p] = sum_{i,ky,kx} w[o,i,ky,kx] frame[i][p + ky w + kx]
 * for every position p; those that are no output (borders, and what a stride skips) are thrown away. Backward to x is
 * the same sum over a frame of dy (spread out by the stride) with the taps in reverse order and the roles of i and o
 * exchanged. */
typedef struct frame {
    int h, w, border, step; /* of one picture: size with its zeros; where its pixel (y,x) lies: border + step (y,x) */
    size_t plane;           /* positions of one channel: n h w */
    ddpm_real *data;
} frame;

/* Positions are worked through in tiles that a processor's registers can hold. */
enum { TILE = 128 };

static size_t frame_elements(int channels, int n, int h, int w, int kernel)
{
    size_t beyond = (size_t)(kernel * (w + 1)) + TILE; /* the last shifts read on */
    return (size_t)channels * (size_t)n * (size_t)h * (size_t)w + beyond;
}

/* Lays the pictures from (N,C,H,W) into the frame. */
static void fill_frame(const frame *f, const ddpm_graph *g, const ddpm_tensor *shape, const ddpm_real *from)
{
    int channels = shape->shape[1], h = shape->shape[2], w = shape->shape[3];
    #pragma omp parallel for schedule(static)
    for (int c = 0; c < channels; c++) {
        memset(f->data + (size_t)c * f->plane, 0, f->plane * sizeof *f->data);
        for (int row = 0; row < g->n * h; row++) {
            int n = row / h, y = row % h;
            size_t to =
                ((size_t)n * (size_t)f->h + (size_t)(f->border + f->step * y)) * (size_t)f->w + (size_t)f->border;
            const ddpm_real *in =
                from + (((size_t)n * (size_t)channels + (size_t)c) * (size_t)h + (size_t)y) * (size_t)w;
            ddpm_real *out = f->data + (size_t)c * f->plane + to;
            for (int x = 0; x < w; x++)
                out[f->step * x] = in[x];
        }
    }
}

/* y[l] = sum_{i,ky,kx} w(i,ky,kx) x[i][l + ky width + kx], l < TILE; w(i,ky,kx) = w[i w_in + (ky kernel + kx) w_tap] */
DDPM_CLONES static void correlate_tile(int channels, int kernel, const ddpm_real *restrict x, size_t plane, int width,
                                       const ddpm_real *restrict w, size_t w_in, int w_tap, ddpm_real *restrict y)
{
    ddpm_real sum[TILE] = {0};
    for (int i = 0; i < channels; i++)
        for (int ky = 0; ky < kernel; ky++)
            for (int kx = 0; kx < kernel; kx++) {
                const ddpm_real *shifted = x + (size_t)i * plane + ky * width + kx;
                ddpm_real tap = *(w + (size_t)i * w_in + (ky * kernel + kx) * w_tap);
                for (int l = 0; l < TILE; l++)
                    sum[l] += tap * shifted[l];
            }
    memcpy(y, sum, sizeof sum);
}

/* The sum above for all positions and outputs, added to y (N,outputs,H,W), whose pixel (y,x) is at step (y,x) of the
 * frame. Weights of output o begin at w + o w_out. Of the jobs the output varies fastest: a tile of x then serves all
 * outputs while it is in the cache. */
static void correlate(const frame *f, int channels, int kernel, const ddpm_real *w, size_t w_out, size_t w_in,
                      int w_tap, const ddpm_tensor *shape, int step, ddpm_real *y)
{
    int outputs = shape->shape[1], h = shape->shape[2], width = shape->shape[3];
    size_t tiles = (f->plane + TILE - 1) / TILE;
    #pragma omp parallel for schedule(static)
    for (size_t job = 0; job < tiles * (size_t)outputs; job++) {
        size_t first = job / (size_t)outputs * TILE, o = job % (size_t)outputs, run;
        size_t end = f->plane - first < TILE ? f->plane : first + TILE;
        ddpm_real tile[TILE];
        correlate_tile(channels, kernel, f->data + first, f->plane, f->w, w + o * w_out, w_in, w_tap, tile);
        for (size_t p = first; p < end; p += run) { /* the part of one row that lies in the tile */
            int row = (int)(p / (size_t)f->w), column = (int)(p % (size_t)f->w), n = row / f->h;
            run = end - p < (size_t)(f->w - column) ? end - p : (size_t)(f->w - column);
            row %= f->h;
            if (row % step || row / step >= h) continue;
            ddpm_real *out = y + (((size_t)n * (size_t)outputs + o) * (size_t)h + (size_t)(row / step)) * (size_t)width;
            const ddpm_real *in = tile + (p - first);
            for (int x = (column + step - 1) / step; x < width && x * step < column + (int)run; x++)
                out[x] += in[x * step - column];
        }
    }
}

/* The frames of a convolution lie in the graph's scratch memory: that of x, and behind it that of dy. */
static frame frame_of_x(const ddpm_graph *g, const ddpm_node *node)
{
    int around = node->attr.conv.pad_start + node->attr.conv.pad_end;
    int h = node->in[0]->shape[2] + around, w = node->in[0]->shape[3] + around;
    return (frame){h, w, node->attr.conv.pad_start, 1, (size_t)g->n * (size_t)h * (size_t)w, g->scratch};
}

static ddpm_result conv2d_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *w = node->in[1]->data;                         /* (Co,Ci,k,k) */
    const ddpm_real *bias = node->in[2] ? node->in[2]->data : NULL; /* (Co) */
    ddpm_real *y = node->out->data;                                 /* (N,Co,Ho,Wo) */
    int ci = node->in[0]->shape[1], co = node->out->shape[1], k = node->in[1]->shape[2], taps = k * k;
    size_t plane = (size_t)pixels(node->out);
    frame x = frame_of_x(g, node);
    fill_frame(&x, g, node->in[0], node->in[0]->data);
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < g->n * co; i++)
        for (size_t p = 0; p < plane; p++)
            y[(size_t)i * plane + p] = bias ? bias[i % co] : 0;
    correlate(&x, ci, k, w, (size_t)(ci * taps), (size_t)taps, 1, node->out, node->attr.conv.stride, y);
    return DDPM_OK;
}

static ddpm_result conv2d_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *w = node->in[1]->data, *grad = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0), *dw = grad_target(g, node, 1), *db = grad_target(g, node, 2);
    int ci = node->in[0]->shape[1], co = node->out->shape[1], k = node->in[1]->shape[2], taps = k * k,
        stride = node->attr.conv.stride;
    if (dx) { /* x[iy] meets tap k-1-j at frame row iy + j: dy lies k-1-p below the top, and the taps run backwards */
        int h = node->in[0]->shape[2] + k - 1, width = node->in[0]->shape[3] + k - 1;
        frame dy = {
            h, width, k - 1 - node->attr.conv.pad_start, stride, (size_t)g->n * (size_t)h * (size_t)width, g->scratch};
        fill_frame(&dy, g, node->out, grad);
        correlate(&dy, co, k, w + taps - 1, (size_t)taps, (size_t)(ci * taps), -1, node->in[0], 1, dx);
    }
    if (dw) {
        frame x = frame_of_x(g, node), dy = x;
        dy.data = x.data + frame_elements(ci, g->n, x.h, x.w, k);
        dy.border = 0;
        dy.step = stride;
        fill_frame(&x, g, node->in[0], node->in[0]->data);
        fill_frame(&dy, g, node->out, grad);
        #pragma omp parallel for schedule(static)
        for (int pair = 0; pair < co * ci; pair++)
            for (int tap = 0; tap < taps; tap++)
                dw[(size_t)pair * (size_t)taps + (size_t)tap] +=
                    (ddpm_real)dot(dy.data + (size_t)(pair / ci) * dy.plane,
                                   x.data + (size_t)(pair % ci) * x.plane + tap / k * x.w + tap % k,
                                   x.plane - (size_t)(tap / k * x.w + tap % k));
    }
    for (int o = 0; o < co && db; o++) {
        double total = 0;
        for (int n = 0; n < g->n; n++)
            total += sum(grad + (size_t)(n * co + o) * (size_t)pixels(node->out), (size_t)pixels(node->out));
        db[o] += (ddpm_real)total;
    }
    return DDPM_OK;
}

/* Linear over channels is a 1x1 convolution, y[n,o,p] = b[o] + sum_i w[o,i] x[n,i,p], and shares these rows. */

/* y[p] += a x[p] */
DDPM_CLONES static void add_scaled(size_t count, ddpm_real a, const ddpm_real *restrict x, ddpm_real *restrict y)
{
    for (size_t p = 0; p < count; p++)
        y[p] += a * x[p];
}

/* ---- GroupNorm ------------------------------------------------------------------------------------------------------
 * Over the (C/G) H W values of a group (Wu & He 2018): mu = mean x, r = 1/sqrt(mean (x - mu)^2 + eps), h = (x - mu) r
 * y = w[c] h + b[c];   dw[c] = sum dy h;   db[c] = sum dy
 * with e = w[c] dy:  dx = r (e - mean e - h mean(e h)) */
DDPM_CLONES static void scale_shift_plane(size_t count, const ddpm_real *restrict x, ddpm_real mean, ddpm_real scale,
                                          ddpm_real shift, ddpm_real *restrict y)
{
    for (size_t p = 0; p < count; p++)
        y[p] = (x[p] - mean) * scale + shift;
}

static ddpm_result group_norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data;                                 /* (N,C,H,W) */
    const ddpm_real *weight = node->in[1]->data, *bias = node->in[2]->data; /* (C) */
    ddpm_real *y = node->out->data, *aux = node->aux->data;                 /* (N,C,H,W), (N,2,G): mu, r */
    int groups = node->attr.norm.groups, channels = node->in[0]->shape[1] / groups;
    size_t plane = (size_t)pixels(node->in[0]), count = plane * (size_t)channels;
    #pragma omp parallel for schedule(static)
    for (int group = 0; group < g->n * groups; group++) {
        int n = group / groups, k = group % groups;
        const ddpm_real *from = x + (size_t)group * count;
        double mean = sum(from, count) / (double)count;
        double variance = sum_products(from, mean, from, mean, count) / (double)count;
        double r = 1 / sqrt(variance + node->attr.norm.eps);
        aux[(2 * n) * groups + k] = (ddpm_real)mean;
        aux[(2 * n + 1) * groups + k] = (ddpm_real)r;
        for (int i = 0; i < channels; i++) {
            int c = k * channels + i;
            scale_shift_plane(plane, from + (size_t)i * plane, (ddpm_real)mean, (ddpm_real)(r * (double)weight[c]),
                              bias[c], y + (size_t)group * count + (size_t)i * plane);
        }
    }
    return DDPM_OK;
}

/* dx += a dy + b h + c */
DDPM_CLONES static void norm_backward_plane(size_t count, const ddpm_real *restrict x, ddpm_real mean, ddpm_real r,
                                            const ddpm_real *restrict dy, ddpm_real a, ddpm_real b, ddpm_real c,
                                            ddpm_real *restrict dx)
{
    for (size_t p = 0; p < count; p++)
        dx[p] += a * dy[p] + b * ((x[p] - mean) * r) + c;
}

static ddpm_result group_norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *weight = node->in[1]->data, *aux = node->aux->data, *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0), *dw = grad_target(g, node, 1), *db = grad_target(g, node, 2);
    int groups = node->attr.norm.groups, all = node->in[0]->shape[1], channels = all / groups;
    size_t plane = (size_t)pixels(node->in[0]), count = plane * (size_t)channels;
    if (dx) {
        #pragma omp parallel for schedule(static)
        for (int group = 0; group < g->n * groups; group++) {
            int n = group / groups, k = group % groups;
            double mean = (double)aux[(2 * n) * groups + k], r = (double)aux[(2 * n + 1) * groups + k], mean_e = 0,
                   mean_eh = 0;
            const ddpm_real *from = x + (size_t)group * count, *dfrom = dy + (size_t)group * count;
            for (int i = 0; i < channels; i++) {
                double w = (double)weight[k * channels + i];
                mean_e += w * sum(dfrom + (size_t)i * plane, plane);
                mean_eh += w * r * sum_products(dfrom + (size_t)i * plane, 0, from + (size_t)i * plane, mean, plane);
            }
            mean_e /= (double)count;
            mean_eh /= (double)count;
            for (int i = 0; i < channels; i++)
                norm_backward_plane(plane, from + (size_t)i * plane, (ddpm_real)mean, (ddpm_real)r,
                                    dfrom + (size_t)i * plane, (ddpm_real)(r * (double)weight[k * channels + i]),
                                    (ddpm_real)(-r * mean_eh), (ddpm_real)(-r * mean_e),
                                    dx + (size_t)group * count + (size_t)i * plane);
        }
    }
    #pragma omp parallel for schedule(static)
    for (int c = 0; c < all; c++) {
        double sum_dyh = 0, sum_dy = 0;
        for (int n = 0; n < g->n; n++) {
            size_t at = ((size_t)n * (size_t)all + (size_t)c) * plane;
            double mean = (double)aux[(2 * n) * groups + c / channels],
                   r = (double)aux[(2 * n + 1) * groups + c / channels];
            sum_dyh += r * sum_products(dy + at, 0, x + at, mean, plane);
            sum_dy += sum(dy + at, plane);
        }
        if (dw) dw[c] += (ddpm_real)sum_dyh;
        if (db) db[c] += (ddpm_real)sum_dy;
    }
    return DDPM_OK;
}

/* ---- Activation -----------------------------------------------------------------------------------------------------
 * s(x) = 1 / (1 + e^-x)
 * silu (Elfwing et al. 2017): y = x s(x), dy/dx = s(x) (1 + x (1 - s(x)))
 * relu: y = max(x,0), dy/dx = 1 where x > 0;   sigmoid: y = s(x), dy/dx = s(x) (1 - s(x)) */
static ddpm_real exp_real(ddpm_real x)
{
    return sizeof x == sizeof(float) ? (ddpm_real)expf((float)x) : (ddpm_real)exp((double)x);
}

static ddpm_real sigmoid(ddpm_real x)
{
    return 1 / (1 + exp_real(-x));
}

static ddpm_result activation_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data;
    ddpm_real *y = node->out->data;
    size_t count = ddpm_elements(node->out, g->n);
    int kind = node->attr.activation.kind;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) {
        if (kind == DDPM_SILU)
            y[i] = x[i] * sigmoid(x[i]);
        else if (kind == DDPM_RELU)
            y[i] = x[i] > 0 ? x[i] : x[i] <= 0 ? 0 : x[i]; /* NaN stays NaN */
        else
            y[i] = sigmoid(x[i]);
    }
    return DDPM_OK;
}

static ddpm_result activation_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0);
    size_t count = ddpm_elements(node->out, g->n);
    int kind = node->attr.activation.kind;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) {
        ddpm_real s = kind == DDPM_RELU ? 0 : sigmoid(x[i]);
        if (kind == DDPM_SILU)
            dx[i] += dy[i] * s * (1 + x[i] * (1 - s));
        else if (kind == DDPM_RELU)
            dx[i] += x[i] > 0 ? dy[i] : 0;
        else
            dx[i] += dy[i] * s * (1 - s);
    }
    return DDPM_OK;
}

/* ---- Attention ------------------------------------------------------------------------------------------------------
 * For each picture and head, q, k, v are (d, L): d = C/heads channels of L = H W tokens (Vaswani et al. 2017).
 * s_ij = q_i . k_j / sqrt d,   p_ij = exp(s_ij - l_i),  l_i = log sum_j exp s_ij,   y_i = sum_j p_ij v_j
 * dv_j = sum_i p_ij dy_i;  dp_ij = dy_i . v_j;  ds_ij = p_ij (dp_ij - sum_m p_im dp_im);
 * dq_i = sum_j ds_ij k_j / sqrt d;  dk_j = sum_i ds_ij q_i / sqrt d
 * aux (N,heads,3,L): l, which lets backward form p again instead of keeping L x L values, and two rows of scratch. */
/* s_j = q_i . k_j / sqrt d for one i and all j */
static void attention_scores(int d, size_t tokens, size_t i, const ddpm_real *q, const ddpm_real *k, ddpm_real *s)
{
    ddpm_real scale = (ddpm_real)(1 / sqrt((double)d));
    memset(s, 0, tokens * sizeof *s);
    for (int c = 0; c < d; c++)
        add_scaled(tokens, scale * q[(size_t)c * tokens + i], k + (size_t)c * tokens, s);
}

static ddpm_result attention_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *q = node->in[0]->data, *k = node->in[1]->data, *v = node->in[2]->data; /* (N,heads,d,L) */
    ddpm_real *y = node->out->data, *aux = node->aux->data; /* (N,heads,d,L), (N,heads,3,L) */
    int heads = node->attr.attention.heads, d = node->out->shape[1] / heads;
    size_t tokens = (size_t)pixels(node->out);
    #pragma omp parallel for schedule(static)
    for (int head = 0; head < g->n * heads; head++) {
        size_t at = (size_t)head * (size_t)d * tokens;
        ddpm_real *l = aux + (size_t)head * 3 * tokens, *p = l + tokens;
        for (size_t i = 0; i < tokens; i++) {
            attention_scores(d, tokens, i, q + at, k + at, p);
            ddpm_real largest = p[0]; /* exp(s - largest) cannot overflow */
            for (size_t j = 1; j < tokens; j++)
                largest = p[j] > largest ? p[j] : largest;
            for (size_t j = 0; j < tokens; j++)
                p[j] = exp_real(p[j] - largest);
            double total = sum(p, tokens);
            l[i] = (ddpm_real)((double)largest + log(total));
            for (int c = 0; c < d; c++)
                y[at + (size_t)c * tokens + i] = (ddpm_real)(dot(p, v + at + (size_t)c * tokens, tokens) / total);
        }
    }
    return DDPM_OK;
}

static ddpm_result attention_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *q = node->in[0]->data, *k = node->in[1]->data, *v = node->in[2]->data, *dy = node->out->grad;
    ddpm_real *dq = grad_target(g, node, 0), *dk = grad_target(g, node, 1), *dv = grad_target(g, node, 2),
              *aux = node->aux->data;
    int heads = node->attr.attention.heads, d = node->out->shape[1] / heads;
    size_t tokens = (size_t)pixels(node->out);
    ddpm_real scale = (ddpm_real)(1 / sqrt((double)d));
    #pragma omp parallel for schedule(static)
    for (int head = 0; head < g->n * heads; head++) {
        size_t at = (size_t)head * (size_t)d * tokens;
        ddpm_real *l = aux + (size_t)head * 3 * tokens, *p = l + tokens, *ds = p + tokens;
        for (size_t i = 0; i < tokens; i++) {
            attention_scores(d, tokens, i, q + at, k + at, p);
            memset(ds, 0, tokens * sizeof *ds);
            for (int c = 0; c < d; c++)
                add_scaled(tokens, dy[at + (size_t)c * tokens + i], v + at + (size_t)c * tokens, ds);
            for (size_t j = 0; j < tokens; j++)
                p[j] = exp_real(p[j] - l[i]);
            ddpm_real mean = (ddpm_real)sum_products(p, 0, ds, 0, tokens);
            for (size_t j = 0; j < tokens; j++)
                ds[j] = p[j] * (ds[j] - mean);
            for (int c = 0; c < d; c++) {
                size_t channel = at + (size_t)c * tokens;
                if (dq) dq[channel + i] += scale * (ddpm_real)dot(ds, k + channel, tokens);
                if (dk) add_scaled(tokens, scale * q[channel + i], ds, dk + channel);
                if (dv) add_scaled(tokens, dy[channel + i], p, dv + channel);
            }
        }
    }
    return DDPM_OK;
}

/* ---- Add: y = (a + b) s;  da = s dy;  db = s dy, summed over pixels where b is (N,C,1,1) ------------------------- */
static ddpm_result add_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *a = node->in[0]->data, *b = node->in[1]->data; /* (N,C,H,W), (N,C,H,W) or (N,C,1,1) */
    ddpm_real *y = node->out->data, scale = (ddpm_real)node->attr.affine.scale;
    size_t plane = (size_t)pixels(node->out), planes = ddpm_elements(node->out, g->n) / plane;
    int wide = pixels(node->in[1]) > 1 || plane == 1;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < planes; i++)
        for (size_t p = 0; p < plane; p++)
            y[i * plane + p] = (a[i * plane + p] + (wide ? b[i * plane + p] : b[i])) * scale;
    return DDPM_OK;
}

static ddpm_result add_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *dy = node->out->grad;
    ddpm_real *da = grad_target(g, node, 0), *db = grad_target(g, node, 1), scale = (ddpm_real)node->attr.affine.scale;
    size_t plane = (size_t)pixels(node->out), planes = ddpm_elements(node->out, g->n) / plane;
    int wide = pixels(node->in[1]) > 1 || plane == 1;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < planes; i++) {
        if (da) add_scaled(plane, scale, dy + i * plane, da + i * plane);
        if (db && wide) add_scaled(plane, scale, dy + i * plane, db + i * plane);
        if (db && !wide) db[i] += scale * (ddpm_real)sum(dy + i * plane, plane);
    }
    return DDPM_OK;
}

/* ---- Concat and slice along channels: copies there, the same copies added back ----------------------------------- */
static ddpm_result concat_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t a = ddpm_elements(node->in[0], 1), b = ddpm_elements(node->in[1], 1);
    for (size_t n = 0; n < (size_t)g->n; n++) {
        memcpy(node->out->data + n * (a + b), node->in[0]->data + n * a, a * sizeof(ddpm_real));
        memcpy(node->out->data + n * (a + b) + a, node->in[1]->data + n * b, b * sizeof(ddpm_real));
    }
    return DDPM_OK;
}

static ddpm_result concat_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t a = ddpm_elements(node->in[0], 1), b = ddpm_elements(node->in[1], 1);
    ddpm_real *da = grad_target(g, node, 0), *db = grad_target(g, node, 1);
    for (size_t n = 0; n < (size_t)g->n; n++) {
        if (da) add_scaled(a, 1, node->out->grad + n * (a + b), da + n * a);
        if (db) add_scaled(b, 1, node->out->grad + n * (a + b) + a, db + n * b);
    }
    return DDPM_OK;
}

/* ---- Upsample, nearest: y[Y,X] = x[Y/f, X/f];  dx[i,j] = sum of dy over its f x f block -------------------------- */
static ddpm_result upsample_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data; /* (N,C,H,W) */
    ddpm_real *y = node->out->data;         /* (N,C,fH,fW) */
    size_t w = (size_t)node->in[0]->shape[3], f = (size_t)node->attr.resample.factor,
           rows = ddpm_elements(node->in[0], g->n) / w;
    #pragma omp parallel for schedule(static)
    for (size_t row = 0; row < rows * f; row++) /* of y, over all planes: it repeats row / f of x */
        for (size_t i = 0; i < w; i++)
            for (size_t k = 0; k < f; k++)
                y[(row * w + i) * f + k] = x[row / f * w + i];
    return DDPM_OK;
}

static ddpm_result upsample_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0);
    size_t w = (size_t)node->in[0]->shape[3], f = (size_t)node->attr.resample.factor,
           rows = ddpm_elements(node->in[0], g->n) / w;
    #pragma omp parallel for schedule(static)
    for (size_t to = 0; to < rows; to++)
        for (size_t row = to * f; row < (to + 1) * f; row++)
            for (size_t i = 0; i < w; i++)
                for (size_t k = 0; k < f; k++)
                    dx[to * w + i] += dy[(row * w + i) * f + k];
    return DDPM_OK;
}

/* ---- Sinusoidal time embedding (Ho et al. 2020; diffusers' Timesteps) -----------------------------------------------
 * e[n,i] = sin(t w_i), e[n,half+i] = cos(t w_i),  w_i = exp(-log(10000) i / (half - freq_shift)),  half = dim/2;
 * flip_sin_to_cos swaps the halves; an odd dim ends in a zero. No gradient: t is not learned. */
static ddpm_result time_embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *t = node->in[0]->data; /* (N) */
    ddpm_real *y = node->out->data;         /* (N,dim) */
    int dim = node->out->shape[1], half = dim / 2, flip = node->attr.time.flip_sin_to_cos;
    for (int n = 0; n < g->n; n++) {
        ddpm_real *e = y + (size_t)n * (size_t)dim;
        e[dim - 1] = 0;
        for (int i = 0; i < half; i++) {
            /* torch forms frequency and angle in float32: at t = 1000 that moves an angle by up to 6e-5 from the
             * exact value */
            float frequency = expf((float)(-log(10000.0)) * (float)i / (float)(half - node->attr.time.freq_shift));
            float angle = (float)t[n] * frequency;
            e[flip ? half + i : i] = (ddpm_real)sinf(angle);
            e[flip ? i : half + i] = (ddpm_real)cosf(angle);
        }
    }
    return DDPM_OK;
}

/* ---- Mean squared error, as a sum a picture: y[n] = sum (x - t)^2;  dx = 2 (x - t) dy[n] = -dt ------------------- */
static ddpm_result mse_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *target = node->in[1]->data; /* (N,C,H,W) */
    size_t count = ddpm_elements(node->in[0], 1);
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < g->n; n++) {
        double total = 0;
        for (size_t i = (size_t)n * count; i < (size_t)(n + 1) * count; i++)
            total += ((double)x[i] - (double)target[i]) * ((double)x[i] - (double)target[i]);
        node->out->data[n] = (ddpm_real)total;
    }
    return DDPM_OK;
}

static ddpm_result mse_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *target = node->in[1]->data, *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0), *dt = grad_target(g, node, 1);
    size_t count = ddpm_elements(node->in[0], 1);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (size_t)g->n * count; i++) {
        ddpm_real d = 2 * (x[i] - target[i]) * dy[i / count];
        if (dx) dx[i] += d;
        if (dt) dt[i] -= d;
    }
    return DDPM_OK;
}

/* ---- 5. The reference backend ------------------------------------------------------------------------------------ */

/* y[n] = sum_k c[k,n] x_k[n], summed in double, clamped */
static ddpm_result host_lincomb(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                                double clamp)
{
    size_t picture = ddpm_elements(y, 1), capacity = (size_t)g->capacity;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (size_t)g->n * picture; i++) {
        double value = 0;
        for (int j = 0; j < k; j++)
            value += (double)c->data[(size_t)j * capacity + i / picture] * (x[j] ? (double)x[j]->data[i] : 1);
        if (clamp > 0 && value > clamp) value = clamp;
        if (clamp > 0 && value < -clamp) value = -clamp;
        y->data[i] = (ddpm_real)value;
    }
    return DDPM_OK;
}

static ddpm_result host_normal(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    size_t picture = ddpm_elements(x, 1);
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < g->n; n++) {
        ddpm_address address = {g->step.seed, g->step.first_picture + (uint64_t)n, g->step.index, purpose};
        ddpm_normals(address, picture, x->data + (size_t)n * picture);
    }
    return DDPM_OK;
}

/* Adam (Kingma & Ba 2015) with torch's clipping and decoupled weight decay, and the moving average:
 * g <- c g;  m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g^2
 * w <- w - lr decay w - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps);   ema <- ema - (1 - d)(ema - w) */
DDPM_CLONES static void adam(const ddpm_adam *s, size_t count, ddpm_real *restrict w, const ddpm_real *restrict grad,
                             ddpm_real *restrict m, ddpm_real *restrict v)
{
    for (size_t i = 0; i < count; i++) {
        ddpm_real g = s->clip * grad[i];
        m[i] += s->one_b1 * (g - m[i]);
        v[i] = s->b2 * v[i] + s->one_b2 * g * g;
        w[i] =
            s->keep * w[i] -
            s->rate * m[i] /
                ((sizeof g == sizeof(float) ? (ddpm_real)sqrtf((float)v[i]) : (ddpm_real)sqrt((double)v[i])) / s->root +
                 s->eps);
    }
}

DDPM_CLONES static void move_average(ddpm_real rate, size_t count, const ddpm_real *restrict w, ddpm_real *restrict ema)
{
    for (size_t i = 0; i < count; i++)
        ema[i] -= rate * (ema[i] - w[i]);
}

static double host_squares(void *state, size_t count, const ddpm_real *x)
{
    (void)state;
    return sum_products(x, 0, x, 0, count);
}

static void host_adam(void *state, const ddpm_adam *s, size_t count, ddpm_real *w, const ddpm_real *grad, ddpm_real *m,
                      ddpm_real *v, ddpm_real *ema)
{
    enum { PART = 4096 }; /* what the average reads again is then still in the cache */
    (void)state;
    #pragma omp parallel for schedule(static)
    for (size_t at = 0; at < count; at += PART) {
        size_t part = count - at < PART ? count - at : PART;
        if (grad) adam(s, part, w + at, grad + at, m + at, v + at);
        if (ema) move_average(s->ema, part, w + at, ema + at);
    }
}

/* Part II: the factors of this step; param->square, the squared norm of its gradient, and all of them unknown again. */
static ddpm_adam adam_factors(const ddpm_step *step);
static void take_square(void *of, ddpm_tensor *param);
static void forget_squares(ddpm_model *model);

static ddpm_result host_update(ddpm_model *model, ddpm_step *step)
{
    ddpm_real *w = model->array[DDPM_WEIGHT], *grad = model->array[DDPM_GRAD], *m = model->array[DDPM_MOMENT1],
              *v = model->array[DDPM_MOMENT2], *ema = model->array[DDPM_EMA];
    const ddpm_backend *backend = backend_of(model->device);
    double total = 0;
    for (int p = model->params - 1; p >= 0; p--) {
        ddpm_tensor *x = model->param[p];
        if (!x->trainable) continue;
        if (x->square < 0) take_square(model, x); /* backward has done so for most */
        if (!isfinite(x->square)) {
            forget_squares(model);
            return ddpm_fail(DDPM_ERR_NONFINITE,
                             "the gradient of '%s' is not finite\n      hint: a smaller learning rate", x->name);
        }
        total += x->square;
    }
    step->grad_norm = sqrt(total);
    const ddpm_adam s = adam_factors(step);
    for (int p = 0, end; p < model->params; p = end) { /* stretches of parameters that are trained, or are not */
        size_t at = model->param[p]->offset, last = at;
        for (end = p; end < model->params && model->param[end]->trainable == model->param[p]->trainable; end++)
            last = model->param[end]->offset + ddpm_elements(model->param[end], 0);
        (backend->adam ? backend->adam : host_adam)(model->device ? model->device->state : NULL, &s, last - at, w + at,
                                                    model->param[p]->trainable ? grad + at : NULL, m + at, v + at,
                                                    ema ? ema + at : NULL);
    }
    forget_squares(model);
    return DDPM_OK;
}

/* These, or what the backend in use has in their place (Part II). */
static ddpm_result lincomb(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                           double clamp);
static ddpm_result normal(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose);

/* ---- 6. Blocks, UNet2DModel, model ----------------------------------------------------------------------------------
 * Network code runs twice: once while a model is created, when it declares the parameters, and once for every
 * network, when it finds them again by name. Names are diffusers'. */

typedef struct builder { /* what every block needs */
    ddpm_graph *g;
    ddpm_model *model;
    const ddpm_unet_config *config;
    ddpm_tensor *temb; /* silu(time + class embedding), which every ResnetBlock2D projects */
} builder;

static ddpm_tensor *conv2d(const builder *b, const char *name, ddpm_tensor *x, int out, int kernel, int stride,
                           int pad_start, int pad_end)
{
    if (!x) return NULL;
    size_t mark = ddpm_enter(b->g, "%s", name);
    int in = x->shape[1];
    double bound = 1 / sqrt((double)in * kernel * kernel);
    ddpm_tensor *weight =
        ddpm_param(b->g, b->model, "weight", 4, (int[]){out, in, kernel, kernel}, DDPM_INIT_UNIFORM, bound, 1);
    ddpm_tensor *bias = ddpm_param(b->g, b->model, "bias", 1, &out, DDPM_INIT_UNIFORM, bound, 1);
    x = ddpm_conv2d(b->g, x, weight, bias, stride, pad_start, pad_end);
    ddpm_leave(b->g, mark);
    return x;
}

static ddpm_tensor *linear(const builder *b, const char *name, ddpm_tensor *x, int out)
{
    if (!x) return NULL;
    size_t mark = ddpm_enter(b->g, "%s", name);
    double bound = 1 / sqrt((double)x->shape[1]);
    ddpm_tensor *weight =
        ddpm_param(b->g, b->model, "weight", 2, (int[]){out, x->shape[1]}, DDPM_INIT_UNIFORM, bound, 1);
    ddpm_tensor *bias = ddpm_param(b->g, b->model, "bias", 1, &out, DDPM_INIT_UNIFORM, bound, 1);
    x = ddpm_linear(b->g, x, weight, bias);
    ddpm_leave(b->g, mark);
    return x;
}

static ddpm_tensor *group_norm(const builder *b, const char *name, ddpm_tensor *x, int groups)
{
    if (!x) return NULL;
    size_t mark = ddpm_enter(b->g, "%s", name);
    ddpm_tensor *weight = ddpm_param(b->g, b->model, "weight", 1, &x->shape[1], DDPM_INIT_ONES, 0, 1);
    ddpm_tensor *bias = ddpm_param(b->g, b->model, "bias", 1, &x->shape[1], DDPM_INIT_ZEROS, 0, 1);
    x = ddpm_group_norm(b->g, x, weight, bias, groups, b->config->norm_eps);
    ddpm_leave(b->g, mark);
    return x;
}

static ddpm_tensor *silu(const builder *b, ddpm_tensor *x)
{
    size_t mark = ddpm_enter(b->g, "silu");
    x = ddpm_activation(b->g, x, DDPM_SILU);
    ddpm_leave(b->g, mark);
    return x;
}

/* TimestepEmbedding: linear_1, silu, linear_2 */
static ddpm_tensor *timestep_embedding(const builder *b, const char *name, ddpm_tensor *x, int dim)
{
    size_t mark = ddpm_enter(b->g, "%s", name);
    x = linear(b, "linear_2", silu(b, linear(b, "linear_1", x, dim)), dim);
    ddpm_leave(b->g, mark);
    return x;
}

static size_t enter_block(ddpm_graph *g, const char *name); /* Part II */
static void leave_block(ddpm_graph *g, size_t mark);

/* Resampling inside a ResnetBlock2D is for models whose config says "resnet"; the lab's do it with convolutions. */
typedef enum resample { RESAMPLE_NONE, RESAMPLE_DOWN, RESAMPLE_UP } resample;
static ddpm_tensor *resample_2x(const builder *b, ddpm_tensor *x, resample how);

/* ResnetBlock2D: h = conv1(silu(norm1 x));  h += time_emb_proj(silu temb);  h = conv2(dropout(silu(norm2 h)));
 * (shortcut(x) + h) / scale_factor. Under scale_shift the embedding modulates norm2's output instead. */
static ddpm_tensor *resnet_block(const builder *b, const char *name, ddpm_tensor *x, int out, double scale_factor,
                                 resample how)
{
    if (!x) return NULL;
    size_t mark = enter_block(b->g, name);
    int groups = b->config->norm_num_groups, scale_shift = b->config->resnet_time_scale_shift == DDPM_SHIFT_SCALE_SHIFT;
    ddpm_tensor *h = silu(b, group_norm(b, "norm1", x, groups));
    if (how != RESAMPLE_NONE) h = resample_2x(b, h, how), x = resample_2x(b, x, how);
    h = conv2d(b, "conv1", h, out, 3, 1, 1, 1);
    ddpm_tensor *t = linear(b, "time_emb_proj", b->temb, scale_shift ? 2 * out : out);
    if (!scale_shift) h = ddpm_add(b->g, h, t, 1);
    h = group_norm(b, "norm2", h, groups);
    if (scale_shift) h = ddpm_modulate(b->g, h, t);
    h = ddpm_dropout(b->g, silu(b, h), b->config->dropout);
    h = conv2d(b, "conv2", h, out, 3, 1, 1, 1);
    if (x && x->shape[1] != out) x = conv2d(b, "conv_shortcut", x, out, 1, 1, 0, 0);
    x = ddpm_add(b->g, x, h, 1 / scale_factor);
    leave_block(b->g, mark);
    return x;
}

/* Attention over pixels: (x + to_out(attention(to_q h, to_k h, to_v h))) / scale_factor with h = group_norm(x), or
 * h = x where groups is 0. heads = channels / attention_head_dim, so the inner width may be smaller than the
 * channels. */
static ddpm_tensor *attention_block(const builder *b, const char *name, ddpm_tensor *x, int groups, double scale_factor)
{
    if (!x) return NULL;
    size_t mark = enter_block(b->g, name);
    int channels = x->shape[1], width = b->config->attention_head_dim ? b->config->attention_head_dim : channels,
        heads = channels / width;
    ddpm_tensor *h = groups ? group_norm(b, "group_norm", x, groups) : x;
    ddpm_tensor *q = linear(b, "to_q", h, heads * width), *k = linear(b, "to_k", h, heads * width),
                *v = linear(b, "to_v", h, heads * width);
    h = linear(b, "to_out.0", ddpm_attention(b->g, q, k, v, heads), channels);
    x = ddpm_add(b->g, x, h, 1 / scale_factor);
    leave_block(b->g, mark);
    return x;
}

/* One of a level's layers: a ResnetBlock2D and, in the Attn blocks, an attention after it. */
static ddpm_tensor *layer(const builder *b, int index, ddpm_tensor *x, int out, ddpm_block_type type)
{
    char name[32];
    snprintf(name, sizeof name, "resnets.%d", index);
    x = resnet_block(b, name, x, out, 1, RESAMPLE_NONE);
    snprintf(name, sizeof name, "attentions.%d", index);
    return type == DDPM_ATTN_BLOCK ? attention_block(b, name, x, b->config->norm_num_groups, 1) : x;
}

/* Downsample2D: 3x3 convolution of stride 2; padding 0 pads right and bottom only. Only Attn blocks heed
 * downsample_type. */
static ddpm_tensor *downsample(const builder *b, ddpm_tensor *x, ddpm_block_type type)
{
    if (!x) return NULL;
    if (type == DDPM_ATTN_BLOCK && b->config->downsample_type == DDPM_RESAMPLE_RESNET)
        return resnet_block(b, "downsamplers.0", x, x->shape[1], 1, RESAMPLE_DOWN);
    return conv2d(b, "downsamplers.0.conv", x, x->shape[1], 3, 2, b->config->downsample_padding, 1);
}

/* Upsample2D: each pixel twice in both directions, then a 3x3 convolution. */
static ddpm_tensor *upsample(const builder *b, ddpm_tensor *x, ddpm_block_type type)
{
    if (!x) return NULL;
    if (type == DDPM_ATTN_BLOCK && b->config->upsample_type == DDPM_RESAMPLE_RESNET)
        return resnet_block(b, "upsamplers.0", x, x->shape[1], 1, RESAMPLE_UP);
    return conv2d(b, "upsamplers.0.conv", ddpm_upsample(b->g, x, 2), x->shape[1], 3, 1, 1, 1);
}

/* UNetMidBlock2D: resnet, attention, resnet, each divided by mid_block_scale_factor. Its attention has a GroupNorm of
 * attn_norm_num_groups; where that is null, of norm_num_groups under "default" and none under "scale_shift". */
static ddpm_tensor *mid_block(const builder *b, ddpm_tensor *x)
{
    if (!x) return NULL;
    const ddpm_unet_config *c = b->config;
    int out = x->shape[1], groups = c->attn_norm_num_groups                            ? c->attn_norm_num_groups
                                    : c->resnet_time_scale_shift == DDPM_SHIFT_DEFAULT ? c->norm_num_groups
                                                                                       : 0;
    size_t mark = ddpm_enter(b->g, "mid_block");
    x = resnet_block(b, "resnets.0", x, out, c->mid_block_scale_factor, RESAMPLE_NONE);
    if (c->add_attention) x = attention_block(b, "attentions.0", x, groups, c->mid_block_scale_factor);
    x = resnet_block(b, "resnets.1", x, out, c->mid_block_scale_factor, RESAMPLE_NONE);
    ddpm_leave(b->g, mark);
    return x;
}

static ddpm_tensor *fourier_projection(const builder *b, ddpm_tensor *t); /* Part II: not in the lab */
static ddpm_tensor *class_embedding(const builder *b, ddpm_tensor *labels, int dim);

static ddpm_tensor *time_projection(const builder *b, ddpm_tensor *t)
{
    const ddpm_unet_config *c = b->config;
    if (c->time_embedding_type == DDPM_TIME_FOURIER) return fourier_projection(b, t);
    return ddpm_time_embedding(b->g, t, c->block_out_channels[0], c->flip_sin_to_cos, c->freq_shift);
}

static int time_embed_dim(const ddpm_unet_config *c)
{
    return c->time_embedding_dim ? c->time_embedding_dim : 4 * c->block_out_channels[0];
}

/* UNet2DModel.forward: sample (N,Cin,H,W), timestep (N,1,1,1), labels as the config asks -> (N,Cout,H,W) */
static ddpm_tensor *unet(builder *b, ddpm_tensor *sample, ddpm_tensor *timestep, ddpm_tensor *labels)
{
    enum { MOST_LAYERS = 64 };
    const ddpm_unet_config *c = b->config;
    ddpm_tensor *skip[DDPM_MAX_LEVELS * (MOST_LAYERS + 1) + 1];
    int skips = 0;
    if (c->center_input_sample) sample = ddpm_affine(b->g, sample, NULL, 2, -1);

    ddpm_tensor *embedding = timestep_embedding(b, "time_embedding", time_projection(b, timestep), time_embed_dim(c));
    if (labels) embedding = ddpm_add(b->g, embedding, class_embedding(b, labels, time_embed_dim(c)), 1);
    b->temb = silu(b, embedding);

    ddpm_tensor *x = skip[skips++] = conv2d(b, "conv_in", sample, c->block_out_channels[0], 3, 1, 1, 1);
    for (int level = 0; level < c->levels; level++) {
        size_t mark = ddpm_enter(b->g, "down_blocks.%d", level);
        for (int i = 0; i < c->layers_per_block; i++)
            x = skip[skips++] = layer(b, i, x, c->block_out_channels[level], c->down_block_types[level]);
        if (level < c->levels - 1) x = skip[skips++] = downsample(b, x, c->down_block_types[level]);
        ddpm_leave(b->g, mark);
    }
    if (c->mid_block_type) x = mid_block(b, x);
    for (int level = 0; level < c->levels;
         level++) { /* the mirror image: each layer takes one skip, last in first out */
        size_t mark = ddpm_enter(b->g, "up_blocks.%d", level);
        for (int i = 0; i <= c->layers_per_block; i++) {
            x = ddpm_concat(b->g, x, skip[--skips]);
            x = layer(b, i, x, c->block_out_channels[c->levels - 1 - level], c->up_block_types[level]);
        }
        if (level < c->levels - 1) x = upsample(b, x, c->up_block_types[level]);
        ddpm_leave(b->g, mark);
    }
    x = conv2d(b, "conv_out", silu(b, group_norm(b, "conv_norm_out", x, c->norm_num_groups)), c->out_channels, 3, 1, 1,
               1);
    return c->time_embedding_type == DDPM_TIME_FOURIER ? ddpm_affine(b->g, x, timestep, 1, 0) : x;
}

/* The label encoder of the lab: two linear layers with nothing between, added to the time embedding. */
static ddpm_tensor *label_encoder(const builder *b, ddpm_tensor *labels, const ddpm_label_config *c)
{
    size_t mark = ddpm_enter(b->g, "label_encoder");
    ddpm_tensor *x = linear(b, "1", linear(b, "0", labels, c->hidden_dim), c->embedding_dim);
    ddpm_leave(b->g, mark);
    return x;
}

int ddpm_label_width(const ddpm_model_config *config)
{
    if (config->label.num_classes) return config->label.num_classes;
    if (config->unet.class_embed_type == DDPM_CLASS_IDENTITY) return time_embed_dim(&config->unet);
    return config->unet.class_embed_type == DDPM_CLASS_TIMESTEP || config->unet.num_class_embeds ? 1 : 0;
}

/* Which combination of a step: of net->coefficients each has (4,capacity). */
typedef enum combination { OF_SAMPLE, OF_TARGET, OF_LOSS, OF_IMAGE, OF_GUIDED, OF_COPY, COMBINATIONS } combination;

static void build_network(ddpm_net *net, ddpm_graph *g, ddpm_model *model, int training)
{
    const ddpm_model_config *c = &model->config;
    int channels = net->channels, height = net->height, width = net->width, labels = ddpm_label_width(c);
    builder b = {g, model, &c->unet, NULL};
    net->sample = ddpm_input(g, "sample", channels, height, width, 0);
    net->timestep = ddpm_input(g, "timestep", 1, 1, 1, 0);
    net->labels = labels ? ddpm_input(g, "labels", labels, 1, 1, 0) : NULL;
    net->noise = ddpm_input(g, "noise", net->out_channels, height, width, 0);
    net->image = ddpm_input(g, "image", channels, height, width, 0);
    net->coefficients = ddpm_input(g, "coefficients", 4 * COMBINATIONS, 1, 1, 0);
    ddpm_tensor *x = net->sample,
                *classes = c->label.num_classes ? label_encoder(&b, net->labels, &c->label) : net->labels;
    if (c->pixel_unshuffle > 1) x = ddpm_pixel_unshuffle(g, x, c->pixel_unshuffle);
    x = unet(&b, x, net->timestep, classes);
    net->prediction = c->pixel_unshuffle > 1 ? ddpm_pixel_shuffle(g, x, c->pixel_unshuffle) : x;
    net->loss = training ? ddpm_mse(g, net->prediction, net->noise) : NULL;
}

static ddpm_result picture_size(const ddpm_model_config *c, int height, int width, ddpm_net *net); /* Part II: checks */

ddpm_result ddpm_net_create(ddpm_net **out, ddpm_model *model, int height, int width, int capacity, int training)
{
    *out = NULL;
    ddpm_net *net = DDPM_MALLOC(sizeof *net);
    if (!net) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: no room for a network");
    memset(net, 0, sizeof *net);
    net->model = model;
    ddpm_result result = picture_size(&model->config, height, width, net);
    if (result == DDPM_OK) result = ddpm_graph_create(&net->graph, model->device, capacity, training);
    if (result == DDPM_OK) {
        build_network(net, net->graph, model, training);
        ddpm_arena *arena = &net->graph->arena;
        net->host_steps = ddpm_arena_alloc(arena, (size_t)capacity * sizeof *net->host_steps);
        net->host_terms = ddpm_arena_alloc(arena, 2 * (size_t)capacity * sizeof *net->host_terms);
        net->host_values = ddpm_arena_alloc(arena, (size_t)capacity * sizeof *net->host_values);
        net->host_coefficients = ddpm_arena_alloc(arena, 4 * COMBINATIONS * (size_t)capacity * sizeof(ddpm_real));
        if (!net->host_steps || !net->host_terms || !net->host_values || !net->host_coefficients)
            result = DDPM_ERR_MEMORY;
    }
    if (result == DDPM_OK) result = ddpm_graph_plan(net->graph, net->loss, &net->prediction, 1);
    if (result == DDPM_OK)
        *out = net;
    else
        ddpm_net_free(net);
    return result;
}

/* ---- 7. Noise schedule ------------------------------------------------------------------------------------------- */

/* abar(s) = cos^2((s + 0.008)/1.008 pi/2)      (Nichol & Dhariwal 2021; diffusers' betas_for_alpha_bar) */
static double squared_cosine(double s)
{
    double c = cos((s + 0.008) / 1.008 * 3.14159265358979323846 / 2);
    return c * c;
}

/* Part II: the ranges of the fields; everything but squaredcos_cap_v2. */
static ddpm_result check_schedule(const ddpm_schedule_config *config);
static void other_betas(ddpm_schedule *s);
static ddpm_result rescale_betas(ddpm_schedule *s);

/* abar_t = (1 - beta_0) ... (1 - beta_t), in double, each value rounded, as torch.cumprod does */
static void multiply_alphas(ddpm_schedule *s)
{
    double product = 1;
    for (int i = 0; i < s->config.num_train_timesteps; i++)
        s->alpha_bar[i] = (float)(product *= (double)(1 - s->beta[i]));
}

ddpm_result ddpm_schedule_create(ddpm_schedule *s, const ddpm_schedule_config *config)
{
    *s = (ddpm_schedule){config ? *config : ddpm_schedule_default(), NULL, NULL};
    int steps = s->config.num_train_timesteps;
    TRY(check_schedule(&s->config));
    s->beta = aligned_alloc_zero(2 * (size_t)steps * sizeof *s->beta);
    if (!s->beta) return DDPM_ERR_MEMORY;
    s->alpha_bar = s->beta + steps;
    for (int i = 0; i < steps; i++) {
        double beta = 1 - squared_cosine((double)(i + 1) / steps) / squared_cosine((double)i / steps);
        s->beta[i] = (float)(beta < 0.999 ? beta : 0.999);
    }
    other_betas(s);
    multiply_alphas(s);
    ddpm_result result = s->config.rescale_betas_zero_snr ? rescale_betas(s) : DDPM_OK;
    if (result != DDPM_OK) ddpm_schedule_free(s);
    return result;
}

void ddpm_schedule_free(ddpm_schedule *s)
{
    aligned_free(s->beta);
    s->beta = s->alpha_bar = NULL;
}

/* Part II: what the combinations of a step multiply by, c[k] for all pictures or, if per_picture, c[k][n]: first all
 * are set, then they are uploaded at once. */
static void set_terms(ddpm_net *net, combination what, int terms, const double *c, int per_picture);
static ddpm_result upload_terms(ddpm_net *net);
static void set_target_terms(ddpm_net *net, const ddpm_schedule *s, const int *t);

static ddpm_result combine(ddpm_net *net, combination what, ddpm_tensor *y, int terms, ddpm_tensor *const *x,
                           double clamp)
{
    ddpm_tensor c = *net->coefficients;
    c.shape[1] = 4;
    c.data += 4 * (size_t)net->graph->capacity * (size_t)what;
    return lincomb(net->graph, y, terms, x, &c, clamp);
}

/* x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps      (Ho et al. 2020, eq. 4) */
static ddpm_result set_noise(ddpm_net *net, const ddpm_schedule *s, const int *t, int n)
{
    double *c = net->host_terms;
    net->graph->n = n;
    for (int i = 0; i < n; i++) {
        c[i] = (double)sqrtf(s->alpha_bar[t[i]]);
        c[n + i] = (double)sqrtf(1 - s->alpha_bar[t[i]]);
        net->host_values[i] = (ddpm_real)t[i];
    }
    set_terms(net, OF_SAMPLE, 2, c, 1);
    set_target_terms(net, s, t);
    return ddpm_upload(net->model->device, net->timestep, DDPM_DATA, n, net->host_values);
}

static ddpm_result add_noise(ddpm_net *net)
{
    return combine(net, OF_SAMPLE, net->sample, 2, (ddpm_tensor *[]){net->image, net->noise}, 0);
}

/* ---- 8. Training ------------------------------------------------------------------------------------------------- */

ddpm_train_config ddpm_train_default(void)
{
    return (ddpm_train_config){0.9, 0.999, 1e-8, 0, 1.0, 0.9999, 529, 0};
}

double ddpm_ema_decay(uint64_t step, double max_decay)
{
    if (step <= 1) return 0;
    double s = (double)(step - 1), decay = (1 + s) / (10 + s);
    return decay < max_decay ? decay : max_decay;
}

void ddpm_step_set(ddpm_step *s, const ddpm_train_config *c, uint64_t steps, double lr)
{
    double step = (double)(steps + 1);
    s->lr = lr, s->beta1 = c->beta1, s->beta2 = c->beta2, s->eps = c->eps;
    s->correction1 = 1 - pow(c->beta1, step), s->correction2 = 1 - pow(c->beta2, step);
    s->weight_decay = c->weight_decay, s->max_grad_norm = c->max_grad_norm;
    s->ema_decay = ddpm_ema_decay(steps + 1, c->ema_decay);
}

/* Part II. Of the batch in progress: its elements; a picture's t; what the network sees of it. Gradients from zero;
 * what the network is to predict, if not eps; someone else's say; the update, asked for. */
static double batch_elements(const ddpm_trainer *trainer);
static int draw_timestep(const ddpm_trainer *trainer, uint64_t picture);
static ddpm_result take_pictures(ddpm_trainer *trainer, int first);
static ddpm_result start_gradients(ddpm_net *net);
static ddpm_result set_target(ddpm_net *net, const ddpm_schedule *s);
static ddpm_result pull_noise(ddpm_net *net, double elements);
static ddpm_result ask_update(ddpm_model *model, ddpm_step *step);
/* run_micro_batch, which a device may repeat; the losses, which ddpm_train_wait will read. */
static ddpm_result repeat_training(ddpm_trainer *trainer, int first);
static ddpm_result fetch_losses(ddpm_net *net, int first);

/* All that varies from step to step goes first: pictures, labels, t, coefficients. The gradient of a picture's loss is
 * 1/elements, times its weight: so many elements have all micro-batches together. */
static ddpm_result prepare_micro_batch(ddpm_trainer *trainer, int first)
{
    ddpm_net *net = trainer->net;
    ddpm_graph *g = net->graph;
    int n = trainer->now.n - first < g->capacity ? trainer->now.n - first : g->capacity;
    g->n = n;
    g->step.seed = trainer->config.seed;
    g->step.first_picture = trainer->picture + (uint64_t)(trainer->now.first + first);
    g->step.index = 0;
    for (int i = 0; i < n; i++)
        net->host_steps[i] = draw_timestep(trainer, g->step.first_picture + (uint64_t)i);
    TRY(set_noise(net, trainer->schedule, net->host_steps, n));
    for (int i = 0; i < n; i++) {
        double weight = ddpm_snr_weight(trainer->schedule, net->host_steps[i], trainer->config.snr_gamma);
        net->host_terms[i] = weight / batch_elements(trainer);
        net->host_terms[n + i] = 0;
    }
    set_terms(net, OF_LOSS, 2, net->host_terms, 1);
    return upload_terms(net);
}

/* Forward and backward of the pictures that have been prepared; gradients add up in the model. 0 times a loss that is
 * not finite is NaN, which spreads to the gradients: then there is no update. */
static ddpm_result run_micro_batch(void *of)
{
    ddpm_trainer *trainer = of;
    ddpm_net *net = trainer->net;
    ddpm_graph *g = net->graph;
    const ddpm_ranks *ranks = trainer->ranks;
    int first = (int)(g->step.first_picture - trainer->picture) - trainer->now.first,
        last = first + g->n == trainer->now.n;
    ddpm_grad_ready ready = backend_of(g->device)->download ? NULL : take_square; /* while it is in the cache */
    if (ranks) ready = last ? ranks->ready : NULL; /* what is squared is the sum of all ranks */
    if (first == 0) TRY(start_gradients(net));
    TRY(normal(g, net->noise, DDPM_RANDOM_NOISE));
    TRY(add_noise(net));
    TRY(set_target(net, trainer->schedule));
    TRY(ddpm_graph_forward(g, g->n));
    if (net->pull) TRY(pull_noise(net, batch_elements(trainer)));
    ddpm_tensor seed = *net->loss;
    seed.data = net->loss->grad;
    TRY(combine(net, OF_LOSS, &seed, 2, (ddpm_tensor *[]){NULL, net->loss}, 0));
    TRY(propagate(g, ready, ranks ? ranks->user : net->model));
    return ranks || !last ? DDPM_OK : ask_update(net->model, &g->step);
}

static ddpm_result start_batch(ddpm_trainer *trainer)
{
    ddpm_net *net = trainer->net;
    if (!trainer->now.n) TRY(ddpm_model_zero_grad(net->model)); /* a rank may have no part in it */
    for (int first = 0; first < trainer->now.n; first += net->graph->capacity) {
        TRY(prepare_micro_batch(trainer, first));
        TRY(take_pictures(trainer, first));
        TRY(repeat_training(trainer, first));
        TRY(fetch_losses(net, first));
    }
    return DDPM_OK;
}

ddpm_result ddpm_train_start(ddpm_trainer *trainer, double lr)
{
    trainer->now = trainer->next;
    trainer->next.all = 0;
    if (!trainer->now.all) return ddpm_fail(DDPM_ERR_ARGUMENT, "a training step before ddpm_train_batch");
    ddpm_step_set(&trainer->net->graph->step, &trainer->config, trainer->step, lr);
    trainer->now.result =
        start_batch(trainer); /* with ranks the others are in this step, too, and hear of it in the wait */
    return trainer->ranks ? DDPM_OK : trainer->now.result;
}

ddpm_result ddpm_train_step(ddpm_trainer *trainer, const ddpm_real *pictures, const ddpm_real *labels, int n, double lr,
                            double *loss)
{
    TRY(ddpm_train_batch(trainer, pictures, labels, n));
    TRY(ddpm_train_start(trainer, lr));
    return ddpm_train_wait(trainer, loss);
}

/* ---- 9. Sampling ------------------------------------------------------------------------------------------------- */

/* Part II: as many channels out as in; linspace and trailing spacing; other predictions than eps; DDIM, DPM-Solver++;
 * guidance; from a picture. */
static ddpm_result predicts_noise(const ddpm_net *net);
static ddpm_result other_timesteps(const ddpm_schedule *s, ddpm_sampler sampler, int steps, int *out);
static void convert_prediction(ddpm_step_terms *terms, ddpm_prediction_type type, double a, double b);
static ddpm_step_terms other_sampler(const ddpm_schedule *s, ddpm_sampler sampler, const int *t, int steps, int i,
                                     double eta);
static ddpm_result check_terms(const ddpm_step_terms *c, int t);
static ddpm_result threshold(ddpm_net *net, const ddpm_schedule_config *config);
static ddpm_result upload_labels(ddpm_net *net, const ddpm_sample_config *c, const ddpm_real *labels, int n);
static ddpm_result start_at(ddpm_net *net, const ddpm_schedule *s, const ddpm_sample_config *c, const int *t,
                            int steps);
static ddpm_result draw_noise(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose, ddpm_torch_rng *rng);

typedef struct drawing { /* a sampling step */
    ddpm_net *net;
    const ddpm_schedule *s;
    const ddpm_sample_config *c;
    ddpm_step_terms terms;
    int t, n;
    ddpm_torch_rng *rng;
} drawing;
/* Part II: uploads t and the coefficients; net->prediction of net->sample; sampling_step, which a device may repeat. */
static ddpm_result prepare_sampling(const drawing *d);
static ddpm_result predict_guided(const drawing *d);
static ddpm_result repeat_sampling(drawing *d);

ddpm_result ddpm_timesteps(const ddpm_schedule *s, ddpm_sampler sampler, int steps, int *out)
{
    int total = s->config.num_train_timesteps;
    if (steps < 1 || steps > total)
        return ddpm_fail(DDPM_ERR_RANGE, "%d sampling steps of a schedule of %d\n      hint: 1 to %d", steps, total,
                         total);
    for (int i = 0; i < steps; i++) /* leading: multiples of T/steps */
        out[i] = (steps - 1 - i) * (total / steps) + s->config.steps_offset;
    return other_timesteps(s, sampler, steps, out);
}

/* With abar = abar_t, abar' = abar of the step after (1 at the end), beta = 1 - abar/abar':
 * x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar), clamped
 * x'  = sqrt(abar') beta / (1 - abar) x_0 + sqrt(1 - beta) (1 - abar') / (1 - abar) x_t + sqrt(var) z
 * var = (1 - abar') / (1 - abar) beta, at least 1e-20; no noise at t = 0
 * (Ho et al. 2020, eq. 7; DDPMScheduler.step, in float32 as there) */
ddpm_step_terms ddpm_step_coefficients(const ddpm_schedule *s, ddpm_sampler sampler, const int *t, int steps, int i,
                                       double eta)
{
    if (sampler != DDPM_SAMPLER_DDPM) return other_sampler(s, sampler, t, steps, i, eta);
    float abar = s->alpha_bar[t[i]], previous = i + 1 < steps ? s->alpha_bar[t[i + 1]] : 1;
    float alpha = abar / previous, beta = 1 - alpha, variance = (1 - previous) / (1 - abar) * beta;
    double signal = (double)sqrtf(abar), noise = (double)sqrtf(1 - abar);
    ddpm_step_terms terms = {.x0_sample = 1 / signal,
                             .x0_prediction = -noise / signal,
                             .clamp = s->config.clip_sample ? s->config.clip_sample_range : 0};
    if (s->config.prediction_type != DDPM_PREDICTS_EPSILON)
        convert_prediction(&terms, s->config.prediction_type, signal, noise);
    terms.image = (double)(sqrtf(previous) * beta / (1 - abar));
    terms.sample = (double)(sqrtf(alpha) * (1 - previous) / (1 - abar));
    if (s->config.variance_type == DDPM_FIXED_LARGE) variance = beta;
    if (t[i] > 0) terms.noise = (double)sqrtf(variance > 1e-20f ? variance : 1e-20f);
    return terms;
}

/* What x_{t-1} is made of. DPM-Solver++ keeps x_0 of the step before where other samplers draw their noise. */
static int step_inputs(const drawing *d, double c[4], ddpm_tensor *x[4])
{
    const ddpm_step_terms *terms = &d->terms;
    int count = 0;
    c[count] = terms->image, x[count++] = d->net->image;
    if (terms->sample != 0) c[count] = terms->sample, x[count++] = d->net->sample;
    if (terms->prediction != 0) c[count] = terms->prediction, x[count++] = d->net->prediction;
    if (terms->noise != 0) c[count] = terms->noise, x[count++] = d->net->noise;
    if (terms->previous != 0) c[count] = terms->previous, x[count++] = d->net->noise;
    return count;
}

static ddpm_result sampling_step(void *of)
{
    const drawing *d = of;
    ddpm_net *net = d->net;
    ddpm_tensor *x[4] = {net->sample, net->prediction};
    double c[4];
    int cut = d->s->config.thresholding;
    TRY(predict_guided(d));
    if (net->guide) TRY(net->guide(net->teacher, net, &d->terms, d->t, d->n));
    TRY(combine(net, OF_IMAGE, net->image, 2, x, cut ? 0 : d->terms.clamp));
    if (cut) TRY(threshold(net, &d->s->config));
    if (d->terms.noise != 0) TRY(draw_noise(net->graph, net->noise, DDPM_RANDOM_STEP, d->rng));
    int count = step_inputs(d, c, x);
    TRY(combine(net, OF_SAMPLE, net->sample, count, x, 0));
    if (d->c->sampler != DDPM_SAMPLER_DPMSOLVER) return DDPM_OK;
    return combine(net, OF_COPY, net->noise, 1, &net->image, 0);
}

ddpm_result ddpm_sample(ddpm_net *net, const ddpm_schedule *s, const ddpm_sample_config *config,
                        const ddpm_real *labels, int n, ddpm_real *pictures, ddpm_sample_callback callback, void *user)
{
    ddpm_sample_config c = config ? *config : ddpm_sample_default();
    ddpm_graph *g = net->graph;
    int steps = c.steps ? c.steps : s->config.num_train_timesteps;
    TRY(predicts_noise(net));
    if (n < 1 || n > g->capacity)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures in a network built for 1 to %d", n, g->capacity);
    if (net->labels && !labels) return ddpm_fail(DDPM_ERR_ARGUMENT, "this model is conditional: it needs labels");
    TRY(ddpm_graph_alloc(g));
    int *t = aligned_alloc_zero((size_t)s->config.num_train_timesteps * sizeof *t); /* the most steps there can be */
    ddpm_torch_rng *rng = aligned_alloc_zero((size_t)(c.torch_rng ? n : 0) * sizeof *rng);
    for (int i = 0; rng && c.torch_rng && i < n; i++)
        ddpm_torch_seed(&rng[i], c.seed + c.first_picture + (uint64_t)i);
    ddpm_result result = t && rng ? ddpm_timesteps(s, c.sampler, steps, t) : DDPM_ERR_MEMORY;
    drawing d = {.net = net, .s = s, .c = &c, .n = n, .rng = c.torch_rng ? rng : NULL};
    g->n = n;
    g->step.seed = c.seed, g->step.first_picture = c.first_picture, g->step.index = 0;
    if (result == DDPM_OK) result = upload_labels(net, &c, labels, n);
    if (result == DDPM_OK) result = draw_noise(g, net->sample, DDPM_RANDOM_START, d.rng);
    if (result == DDPM_OK) result = start_at(net, s, &c, t, steps);
    if (result == DDPM_OK && callback) result = callback(user, net, c.skip, steps);
    for (int i = c.skip; i < steps && result == DDPM_OK; i++) {
        d.t = t[i];
        d.terms = ddpm_step_coefficients(s, c.sampler, t, steps, i, c.eta);
        if (i == c.skip) d.terms.image += d.terms.previous, d.terms.previous = 0; /* no x_0' yet: it counts as x_0 */
        g->step.index = (uint32_t)i;
        result = check_terms(&d.terms, t[i]);
        if (result == DDPM_OK) result = prepare_sampling(&d);
        if (result == DDPM_OK) result = repeat_sampling(&d);
        if (result == DDPM_OK && callback) result = callback(user, net, i + 1, steps);
    }
    if (result == DDPM_OK) result = ddpm_download(g->device, net->sample, DDPM_DATA, n, pictures);
    aligned_free(t);
    aligned_free(rng);
    return result;
}

/* ==== Part II: machinery, and what other models need ============================================================== */

/* ---- Memory ------------------------------------------------------------------------------------------------------ */

/* 64-byte aligned (a cache line, the widest vector) and zeroed; the pointer malloc gave stands just before. */
static void *aligned_alloc_zero(size_t bytes)
{
    char *raw = bytes < SIZE_MAX - 128 ? DDPM_MALLOC(bytes + 64 + sizeof(void *)) : NULL;
    if (!raw) {
        ddpm_fail(DDPM_ERR_MEMORY,
                  "out of memory: %zu bytes refused\n      hint: a smaller batch, picture or model needs less", bytes);
        return NULL;
    }
    uintptr_t aligned = ((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63;
    ((void **)aligned)[-1] = raw;
    return memset((void *)aligned, 0, bytes);
}

static void aligned_free(void *memory)
{
    if (memory) DDPM_FREE(((void **)memory)[-1]);
}

struct ddpm_arena_block {
    struct ddpm_arena_block *next;
    size_t used, size;
    char padding[64 - sizeof(void *) - 2 * sizeof(size_t)]; /* the bytes follow, aligned */
};

void *ddpm_arena_alloc(ddpm_arena *arena, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) {
        ddpm_fail(DDPM_ERR_MEMORY, "out of memory: %zu bytes refused", bytes);
        return NULL;
    }
    bytes = (bytes + 63) & ~(size_t)63;
    struct ddpm_arena_block *block = arena->first;
    if (!block || block->size - block->used < bytes) {
        size_t size = bytes > 32768 ? bytes : 32768;
        block = aligned_alloc_zero(sizeof *block + size);
        if (!block) return NULL;
        *block = (struct ddpm_arena_block){.next = arena->first, .size = size};
        arena->first = block;
    }
    void *memory = (char *)(block + 1) + block->used;
    block->used += bytes;
    return memory;
}

char *ddpm_arena_string(ddpm_arena *arena, const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = ddpm_arena_alloc(arena, bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

void ddpm_arena_free(ddpm_arena *arena)
{
    while (arena->first) {
        struct ddpm_arena_block *next = arena->first->next;
        aligned_free(arena->first);
        arena->first = next;
    }
}

/* Doubles the room of an array of pointers in an arena when it is full (the old array stays until the arena goes). */
static void *grow_pointers(ddpm_arena *arena, void *array, int used, int *room)
{
    if (used < *room) return array;
    int size = *room ? 2 * *room : 64;
    void *larger = ddpm_arena_alloc(arena, (size_t)size * sizeof(void *));
    if (!larger) return NULL;
    if (used) memcpy(larger, array, (size_t)used * sizeof(void *));
    *room = size;
    return larger;
}

/* ---- What backward makes again -----------------------------------------------------------------------------------
 * A tensor that backward reads is kept from forward on, or its node runs forward once more just before (Chen et al.
 * 2016). Always so where that takes a pass over memory and keeps nothing larger: a normalised picture, a concat, an
 * upsampled picture. Under DDPM_RECOMPUTE for all that does not leave its block. */

static int reads_back(const ddpm_node *node, int k) /* does its backward read input k? */
{
    return node->wants && op_reads[node->op] >> k & 1;
}

static ddpm_node *maker_of(const ddpm_graph *g, const ddpm_tensor *x)
{
    for (int i = 0; i < g->nodes; i++)
        if (g->node[i]->out == x && !g->node[i]->fused_into) return g->node[i];
    return NULL;
}

static int is_read(const ddpm_graph *g, const ddpm_tensor *x, int for_again) /* in backward */
{
    for (int i = 0; i < g->nodes; i++)
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            if (g->node[i]->in[k] == x && (reads_back(g->node[i], k) || (for_again && g->node[i]->again))) return 1;
    return 0;
}

static int is_cheap(const ddpm_node *node)
{
    switch (node->op) {
    case DDPM_OP_GROUP_NORM:
    case DDPM_OP_ACTIVATION:
    case DDPM_OP_ADD:
    case DDPM_OP_CONCAT:
    case DDPM_OP_UPSAMPLE:
    case DDPM_OP_MODULATE:
    case DDPM_OP_SLICE:
    case DDPM_OP_PIXEL_UNSHUFFLE:
    case DDPM_OP_PIXEL_SHUFFLE:
    case DDPM_OP_DROPOUT: return !node->fused_into;
    default: return 0;
    }
}

/* Elements a picture that must be kept so that x is there in backward; mark: decides so. */
static size_t cost_of_keeping(const ddpm_graph *g, const ddpm_tensor *x, int mark)
{
    if (!x || x->param || x->input || x->keep || is_read(g, x, 1)) return 0;
    ddpm_node *maker = maker_of(g, x);
    size_t cost = 0, whole = ddpm_elements(x, 1);
    if (!maker || !is_cheap(maker)) return whole;
    for (int k = 0; k < DDPM_MAX_INPUTS; k++)
        cost += cost_of_keeping(g, maker->in[k], 0);
    if (cost >= whole) return whole;
    for (int k = 0; k < DDPM_MAX_INPUTS && mark; k++)
        cost_of_keeping(g, maker->in[k], 1);
    if (mark) maker->again = 1;
    return cost;
}

/* Is x read only inside its maker's block? */
static int stays_inside(const ddpm_graph *g, const ddpm_node *maker)
{
    for (int i = 0; i < g->nodes; i++)
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            if (g->node[i]->in[k] == maker->out && g->node[i]->block != maker->block) return 0;
    return 1;
}

static void mark_again(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes && g->recompute; i++) {
        ddpm_node *node = g->node[i];
        node->again = node->block && !node->fused_into && !node->out->keep && node->op != DDPM_OP_BATCH_NORM &&
                      stays_inside(g, node); /* running statistics move but once */
    }
    for (int i = 0; i < g->nodes; i++) {
        ddpm_node *node = g->node[i];
        if (node->again || !is_cheap(node) || node->out->keep || !is_read(g, node->out, 0)) continue;
        size_t cost = 0;
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            cost += cost_of_keeping(g, node->in[k], 0);
        if (cost >= ddpm_elements(node->out, 1)) continue;
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            cost_of_keeping(g, node->in[k], 1);
        node->again = 1;
    }
}

static void add_task(ddpm_graph *g, ddpm_node *node, int what)
{
    g->task[g->tasks++] = (ddpm_task){node, what, DDPM_NOWHERE};
}

/* x is about to be read in backward; done: of each node, whether it has run again. */
static void want_again(ddpm_graph *g, const ddpm_tensor *x, char *done)
{
    ddpm_node *maker = x && !x->param && !x->input ? maker_of(g, x) : NULL;
    if (!maker || !maker->again || done[maker->id]) return;
    done[maker->id] = 1;
    for (int k = 0; k < DDPM_MAX_INPUTS; k++)
        want_again(g, maker->in[k], done);
    add_task(g, maker, DDPM_AGAIN);
}

static ddpm_result plan_tasks(ddpm_graph *g)
{
    g->task = ddpm_arena_alloc(&g->arena, (3 * (size_t)g->nodes + 1) * sizeof *g->task);
    char *done = ddpm_arena_alloc(&g->arena, (size_t)g->nodes + 1);
    if (!g->task || !done) return DDPM_ERR_MEMORY;
    mark_again(g);
    for (int i = 0; i < g->nodes; i++)
        add_task(g, g->node[i], DDPM_FORWARD);
    g->forwards = g->tasks;
    for (int i = g->nodes - 1; i >= 0; i--) {
        if (!g->node[i]->wants) continue;
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            if (reads_back(g->node[i], k)) want_again(g, g->node[i]->in[k], done);
        add_task(g, g->node[i], DDPM_BACKWARD);
    }
    return DDPM_OK;
}

/* ---- Layout of memory ---------------------------------------------------------------------------------------------
 * Task i happens at time i; the root's gradient comes just before the first backward. What a tensor holds occupies its
 * memory from the first task that writes it to the last that reads it, except between forward and the task that makes
 * it again. Two whose spans do not meet may share the same bytes. */
typedef struct span {
    int first, last;
} span;

typedef struct lifetime {
    const ddpm_tensor *tensor; /* NULL: scratch of one task */
    int which, order;          /* which: DDPM_DATA or DDPM_GRADIENT; order: of creation */
    int fixed;                 /* offset is given */
    span span[2];              /* the second, after being made again, may be empty: first > last */
    size_t bytes, offset;
    size_t *result; /* offset in elements; NULL: not wanted */
} lifetime;

typedef struct lifetimes {
    lifetime *life;
    int count;
} lifetimes;

static int meet(const lifetime *a, const lifetime *b)
{
    for (int i = 0; i < 4; i++)
        if (a->span[i / 2].first <= b->span[i % 2].last && b->span[i % 2].first <= a->span[i / 2].last) return 1;
    return 0;
}

static int larger_first(const void *a, const void *b)
{
    const lifetime *x = a, *y = b;
    if (x->fixed != y->fixed) return y->fixed - x->fixed;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->span[0].first != y->span[0].first ? (x->span[0].first > y->span[0].first ? 1 : -1) : x->order - y->order;
}

static size_t bytes_of(size_t elements) /* whole cache lines */
{
    return (elements * sizeof(ddpm_real) + 63) & ~(size_t)63;
}

static lifetime *add_lifetime(lifetimes *all, int first, int last, size_t elements, size_t *result)
{
    lifetime *l = &all->life[all->count];
    *l = (lifetime){.order = all->count++, .span = {{first, last}, {1, 0}}, .bytes = bytes_of(elements)};
    l->result = result;
    return l;
}

/* x holds something at this time; again: it is made again now. */
static void touch(lifetimes *all, ddpm_tensor *x, int which, int time, int again)
{
    lifetime *l = all->life, *end = all->life + all->count;
    while (l < end && (l->tensor != x || l->which != which))
        l++;
    if (l == end) {
        size_t *result = which == DDPM_DATA ? &x->offset : &x->grad_offset;
        l = add_lifetime(all, time, time, ddpm_elements(x, x->shape[0]), result);
        l->tensor = x, l->which = which;
    }
    span *now = &l->span[again || l->span[1].first <= l->span[1].last];
    if (now->first > now->last) *now = (span){time, time};
    if (time < now->first) now->first = time;
    if (time > now->last) now->last = time;
}

static void touch_task(const ddpm_graph *g, lifetimes *all, int time, int end)
{
    ddpm_task *task = &g->task[time];
    const ddpm_node *node = task->node;
    if (node->fused_into) return;
    int backward = task->what == DDPM_BACKWARD, reads = backward ? (int)op_reads[node->op] : ~0;
    if (node->scratch_elements) add_lifetime(all, time, time, node->scratch_elements, &task->scratch_offset);
    for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
        ddpm_tensor *x = node->in[k];
        if (!x || x->param) continue;
        if (reads >> k & 1) touch(all, x, DDPM_DATA, time, 0);
        if (!backward || !(node->wants >> k & 1)) continue;
        touch(all, x, DDPM_GRADIENT, time, 0);
        if (x->input) touch(all, x, DDPM_GRADIENT, end, 0);
    }
    if (backward)
        touch(all, node->out, DDPM_GRADIENT, time, 0);
    else
        touch(all, node->out, DDPM_DATA, time, task->what == DDPM_AGAIN);
    if (node->aux && reads & DDPM_READS_AUX) touch(all, node->aux, DDPM_DATA, time, 0);
}

/* Under DDPM_SHARE_GRADIENTS the bytes before shared_elements are the model's gradients: free until the first task that
 * writes a parameter's, taken from then on; what belongs to no such parameter is never free. */
static void share_gradients(ddpm_graph *g, lifetimes *all, int end)
{
    int first = all->count;
    for (int time = g->forwards; time < g->tasks; time++)
        for (int k = 0; k < DDPM_MAX_INPUTS && g->task[time].what == DDPM_BACKWARD; k++) {
            const ddpm_tensor *x = g->task[time].node->in[k];
            if (!x || !x->param || !(g->task[time].node->wants >> k & 1)) continue;
            int known = first;
            while (known < all->count && all->life[known].tensor != x)
                known++;
            if (known < all->count) continue;
            lifetime *l = add_lifetime(all, time, end, ddpm_elements(x, 0), NULL);
            l->tensor = x, l->fixed = 1, l->which = DDPM_GRADIENT, l->offset = x->offset * sizeof(ddpm_real);
        }
    /* What lies between them, and a wall behind them, since a tensor lies on one side of it or on the other. */
    size_t from = 0;
    for (int left = all->count - first; left >= 0; left--) {
        const lifetime *next = NULL;
        for (int i = first; i < all->count; i++)
            if (all->life[i].tensor && all->life[i].offset >= from && (!next || all->life[i].offset < next->offset))
                next = &all->life[i];
        size_t to = next ? next->offset : from + 64, beyond = next ? next->offset + next->bytes : 0;
        if (to > from) {
            lifetime *l = add_lifetime(all, -1, end, 0, NULL);
            l->fixed = 1, l->offset = from, l->bytes = to - from;
        }
        if (!next) {
            g->shared_elements = to / sizeof(ddpm_real);
            break;
        }
        from = beyond;
    }
}

static ddpm_result plan_memory(ddpm_graph *g)
{
    int end = g->tasks, parameters = 0;
    for (int i = 0; i < g->nodes; i++)
        for (int k = 0; k < DDPM_MAX_INPUTS; k++)
            parameters += g->node[i]->in[k] && g->node[i]->in[k]->param;
    size_t most = 2 * (size_t)g->tensors + (size_t)g->nodes + (size_t)g->tasks + 2 * (size_t)parameters + 2;
    lifetimes all = {ddpm_arena_alloc(&g->arena, most * sizeof *all.life), 0};
    if (!all.life) return DDPM_ERR_MEMORY;
    for (int i = 0; i < g->tensors; i++)
        if (g->tensor[i]->input) {
            touch(&all, g->tensor[i], DDPM_DATA, -1, 0);
            touch(&all, g->tensor[i], DDPM_DATA, end, 0);
        }
    for (int i = 0; i < g->nodes; i++)
        if (g->node[i]->own_elements) add_lifetime(&all, -1, end, g->node[i]->own_elements, &g->node[i]->own_offset);
    if (g->root) touch(&all, g->root, DDPM_GRADIENT, g->forwards - 1, 0);
    for (int time = 0; time < g->tasks; time++)
        touch_task(g, &all, time, end);
    for (int i = 0; i < g->tensors; i++)
        if (g->tensor[i]->keep) touch(&all, g->tensor[i], DDPM_DATA, end, 0);
    if (g->share) share_gradients(g, &all, end);

    size_t shared = g->shared_elements * sizeof(ddpm_real);
    lifetime *life = all.life;
    qsort(life, (size_t)all.count, sizeof *life, larger_first);
    for (int i = 0; i < all.count; i++) { /* largest first, at the lowest place free for all of its life */
        for (int moved = !life[i].fixed; moved;) {
            moved = 0;
            for (int j = 0; j < i; j++) {
                int overlap =
                    life[i].offset < life[j].offset + life[j].bytes && life[j].offset < life[i].offset + life[i].bytes;
                if (overlap && meet(&life[i], &life[j])) life[i].offset = life[j].offset + life[j].bytes, moved = 1;
            }
        }
        if (life[i].result) *life[i].result = life[i].offset / sizeof(ddpm_real);
        if (life[i].offset + life[i].bytes > shared + g->bytes) g->bytes = life[i].offset + life[i].bytes - shared;
    }
    return DDPM_OK;
}

static ddpm_real *address_of(const ddpm_graph *g, size_t offset)
{
    if (offset == DDPM_NOWHERE) return NULL;
    if (offset < g->shared_elements) return g->gradients + offset;
    return (ddpm_real *)g->memory + (offset - g->shared_elements);
}

static ddpm_result device_alloc(const ddpm_device *device, size_t bytes, void **out)
{
    if (backend_of(device)->alloc) return backend_of(device)->alloc(device->state, bytes, out);
    *out = aligned_alloc_zero(bytes);
    return *out ? DDPM_OK : DDPM_ERR_MEMORY;
}

static void device_free(const ddpm_device *device, void *memory)
{
    if (memory && backend_of(device)->free)
        backend_of(device)->free(device->state, memory);
    else
        aligned_free(memory);
}

/* Under DDPM_SHARE_GRADIENTS: where the model's array of gradients begins. */
static ddpm_result find_gradients(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes && g->share; i++)
        for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
            const ddpm_tensor *x = g->node[i]->in[k];
            if (!x || !x->param || !(g->node[i]->wants >> k & 1)) continue;
            if (!x->grad)
                return ddpm_fail(DDPM_ERR_ARGUMENT,
                                 "'%s': the model holds no gradients\n      hint: ddpm_model_alloc(model, "
                                 "DDPM_FOR_TRAINING) comes before the first forward",
                                 x->name);
            g->gradients = x->grad - x->offset;
        }
    return DDPM_OK;
}

ddpm_result ddpm_graph_alloc(ddpm_graph *g)
{
    if (g->memory) return DDPM_OK;
    TRY(find_gradients(g));
    TRY(device_alloc(g->device, g->bytes, &g->memory));
    for (int i = 0; i < g->tensors; i++) {
        g->tensor[i]->data = address_of(g, g->tensor[i]->offset);
        g->tensor[i]->grad = address_of(g, g->tensor[i]->grad_offset);
    }
    for (int i = 0; i < g->nodes; i++)
        g->node[i]->own = g->node[i]->own_elements ? address_of(g, g->node[i]->own_offset) : NULL;
    return DDPM_OK;
}

ddpm_result ddpm_graph_backward(ddpm_graph *g, const ddpm_real *seed, ddpm_grad_ready ready, void *user)
{
    if (!g->root || !g->n)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "backward needs a root (ddpm_graph_plan) and a forward before it");
    size_t count = ddpm_elements(g->root, g->n);
    ddpm_real *ones = NULL;
    if (!seed) {
        if (!(ones = aligned_alloc_zero(count * sizeof *ones))) return DDPM_ERR_MEMORY;
        for (size_t i = 0; i < count; i++)
            ones[i] = 1;
    }
    ddpm_result result = ddpm_upload(g->device, g->root, DDPM_GRADIENT, g->n, seed ? seed : ones);
    aligned_free(ones);
    return result == DDPM_OK ? propagate(g, ready, user) : result;
}

ddpm_result ddpm_graph_find_nonfinite(ddpm_graph *g)
{
    for (int i = 0; i < g->forwards; i++) {
        const ddpm_node *node = g->task[i].node;
        TRY(run_task(g, &g->task[i]));
        size_t count = ddpm_elements(node->out, g->n), picture = count / (size_t)g->n;
        ddpm_real *host = aligned_alloc_zero(count * sizeof *host);
        if (!host) return DDPM_ERR_MEMORY;
        ddpm_result result = ddpm_download(g->device, node->out, DDPM_DATA, g->n, host);
        size_t at = 0;
        while (result == DDPM_OK && at < count && isfinite(host[at]))
            at++;
        aligned_free(host);
        if (result != DDPM_OK) return result;
        if (at < count)
            return ddpm_fail(
                DDPM_ERR_NONFINITE,
                "node %d, '%s' (%s), is the first with a value that is not finite, for picture %zu of the batch\n"
                "      hint: a smaller learning rate; or look for NaN in its weights with 'ddpm info'",
                i, node->name, ddpm_op_name(node->op), at / picture);
    }
    return DDPM_OK;
}

ddpm_result ddpm_graph_run_node(ddpm_graph *g, const ddpm_node *node, int backward)
{
    for (int i = 0; i < g->tasks; i++)
        if (g->task[i].node == node && g->task[i].what == (backward ? DDPM_BACKWARD : DDPM_FORWARD))
            return run_task(g, &g->task[i]);
    return DDPM_OK;
}

ddpm_result ddpm_upload(const ddpm_device *device, ddpm_tensor *x, int which, int n, const ddpm_real *host)
{
    const ddpm_backend *backend = backend_of(device);
    if (x->version) ++*x->version;
    if (backend->upload) return backend->upload(device->state, x, which, n, host);
    memcpy(which == DDPM_DATA ? x->data : x->grad, host, ddpm_elements(x, n) * sizeof *host);
    return DDPM_OK;
}

ddpm_result ddpm_download(const ddpm_device *device, const ddpm_tensor *x, int which, int n, ddpm_real *host)
{
    const ddpm_backend *backend = backend_of(device);
    if (backend->download) return backend->download(device->state, x, which, n, host);
    memcpy(host, which == DDPM_DATA ? x->data : x->grad, ddpm_elements(x, n) * sizeof *host);
    return DDPM_OK;
}

/* ---- log, cos and sin for the normals ---------------------------------------------------------------------------- */

/* log u for u in (0,1]: u = 2^e m with m in [sqrt(1/2), sqrt 2), f = m - 1, log m = f - f^2/2 + f^3 P(f).
 * P is a near-minimax fit (Lawson) of degree 7; f^3 P errs by less than 6e-9, so rounding (about 1 ulp) dominates. */
static float log_unit(float u)
{
    uint32_t bits;
    memcpy(&bits, &u, 4);
    int e = (int)(bits >> 23) - 127;
    bits = (bits & 0x7FFFFF) | 0x3F800000; /* m in [1,2) */
    float m;
    memcpy(&m, &bits, 4);
    if (m > 1.41421356f) m *= 0.5f, e++;
    float f = m - 1, p = -0.07859546f;
    p = fmaf(p, f, 0.12881622f);
    p = fmaf(p, f, -0.13128768f);
    p = fmaf(p, f, 0.14181197f);
    p = fmaf(p, f, -0.16624554f);
    p = fmaf(p, f, 0.20002286f);
    p = fmaf(p, f, -0.2500081f);
    p = fmaf(p, f, 0.33333316f);
    float square = f * f;
    return fmaf((float)e, 0.69314718f, fmaf(square * f, p, fmaf(-0.5f, square, f)));
}

/* cos and sin of 2 pi u, u in [0,1): the nearest quarter turn is exact, the rest f in [-1/2,1/2] quarter turns goes
 * through near-minimax polynomials of sin(pi f/2)/f and (cos(pi f/2) - 1)/f^2, which err by less than 5e-9. */
static void cos_sin_turn(float u, float *cosine, float *sine)
{
    float quarters = 4 * u;
    int nearest = (int)(quarters + 0.5f);
    float f = quarters - (float)nearest, square = f * f;
    float s = f * fmaf(fmaf(fmaf(-0.004602177f, square, 0.07968023f), square, -0.6459635f), square, 1.5707964f);
    float c = fmaf(
        square, fmaf(fmaf(fmaf(0.0009107611f, square, -0.020863125f), square, 0.2536696f), square, -1.2337005f), 1.0f);
    switch (nearest & 3) {
    case 0: *cosine = c, *sine = s; break;
    case 1: *cosine = -s, *sine = c; break;
    case 2: *cosine = -c, *sine = -s; break;
    default: *cosine = s, *sine = -c; break;
    }
}

/* ---- PyTorch's numbers ------------------------------------------------------------------------------------------- */

void ddpm_torch_seed(ddpm_torch_rng *rng, uint64_t seed)
{
    *rng = (ddpm_torch_rng){.used = 624};
    rng->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        rng->state[i] = 1812433253u * (rng->state[i - 1] ^ rng->state[i - 1] >> 30) + i;
}

/* MT19937: 624 words made at once from the 624 before, then tempered one by one. */
static uint32_t torch_word(ddpm_torch_rng *rng)
{
    if (rng->used == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t *x = rng->state, mixed = (x[i] & 0x80000000u) | (x[(i + 1) % 624] & 0x7fffffffu);
            x[i] = x[(i + 397) % 624] ^ mixed >> 1 ^ (mixed & 1 ? 0x9908b0dfu : 0);
        }
        rng->used = 0;
    }
    uint32_t y = rng->state[rng->used++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

float ddpm_torch_uniform(ddpm_torch_rng *rng)
{
    return (float)(torch_word(rng) & 0xffffff) * 0x1p-24f;
}

static double torch_uniform_double(ddpm_torch_rng *rng) /* 53 bits of two words, the first on top */
{
    uint64_t high = torch_word(rng), bits = high << 32 | torch_word(rng);
    return (double)(bits & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Box-Muller on 16 uniforms: u_j and u_(j+8) give the normals j and j + 8 (ATen's normal_fill_16). */
static void torch_sixteen(const float *u, ddpm_real *out)
{
    for (int j = 0; j < 8; j++) {
        double radius = sqrt(-2 * log((double)(1 - u[j]))), angle = 2 * 3.14159265358979323846 * (double)u[j + 8];
        out[j] = (ddpm_real)(radius * cos(angle));
        out[j + 8] = (ddpm_real)(radius * sin(angle));
    }
}

/* ATen's normal_fill: the uniforms of all elements first; a rest below 16 is drawn anew together with the elements
 * before it. Fewer than 16 are drawn singly, in double, from pairs of which the second waits for the next call
 * (normal_distribution<double>). */
void ddpm_torch_normals(ddpm_torch_rng *rng, size_t count, ddpm_real *out)
{
    for (size_t i = 0; i < count && count < 16; i++) {
        double value = rng->next;
        if (!rng->has_next) {
            double u1 = torch_uniform_double(rng), u2 = torch_uniform_double(rng);
            double radius = sqrt(-2 * log1p(-u2)), angle = 2 * 3.14159265358979323846 * u1;
            rng->next = radius * sin(angle);
            value = radius * cos(angle);
        }
        rng->has_next = !rng->has_next;
        out[i] = (ddpm_real)value;
    }
    float u[16];
    for (size_t i = 0; count >= 16 && i < count + 15 - (count + 15) % 16; i += 16) {
        size_t at = i + 16 <= count ? i : count - 16;
        for (size_t k = i; i != at && k < count; k++)
            ddpm_torch_uniform(rng); /* a rest's own, which go unused */
        for (int k = 0; k < 16; k++)
            u[k] = ddpm_torch_uniform(rng);
        torch_sixteen(u, out + at);
    }
}

/* Noise of n pictures, from their own generators if there are any; else by address. */
static ddpm_result draw_noise(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose, ddpm_torch_rng *rng)
{
    if (!rng) return normal(g, x, purpose);
    size_t picture = ddpm_elements(x, 1);
    ddpm_real *value = aligned_alloc_zero((size_t)g->n * picture * sizeof *value);
    if (!value) return DDPM_ERR_MEMORY;
    for (int i = 0; i < g->n; i++)
        ddpm_torch_normals(&rng[i], picture, value + (size_t)i * picture);
    ddpm_result result = ddpm_upload(g->device, x, DDPM_DATA, g->n, value);
    aligned_free(value);
    return result;
}

/* ---- Devices and backends ---------------------------------------------------------------------------------------- */

static ddpm_result host_open(void **state, int threads, const char *isa)
{
    *state = NULL;
    if (isa) return ddpm_fail(DDPM_ERR_ARGUMENT, "the reference backend has no instruction set '%s' to choose", isa);
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads);
#else
    (void)threads;
#endif
    return DDPM_OK;
}

static const char *host_isa(const void *state)
{
    (void)state;
#ifdef DDPM_CLONES_PICK /* what target_clones picks by */
    return __builtin_cpu_supports("avx512f") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "baseline";
#else
    return "baseline";
#endif
}

const ddpm_backend *ddpm_reference(void)
{
    static const ddpm_backend reference = {
        .name = "reference",
        .rows = reference_rows,
        .open = host_open,
        .lincomb = host_lincomb,
        .normal = host_normal,
        .isa = host_isa,
    };
    return &reference;
}

/* What a backend leaves out runs as the reference's code: on host memory directly, else by way of the host (below). */
static ddpm_result lincomb_on_host(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                                   double clamp);
static ddpm_result normal_on_host(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose);
static ddpm_result update_on_host(ddpm_model *model, ddpm_step *step);

static ddpm_result lincomb(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                           double clamp)
{
    const ddpm_backend *backend = backend_of(g->device);
    if (backend->lincomb) return backend->lincomb(g, y, k, x, c, clamp);
    return (backend->download ? lincomb_on_host : host_lincomb)(g, y, k, x, c, clamp);
}

static ddpm_result normal(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    const ddpm_backend *backend = backend_of(g->device);
    if (backend->normal) return backend->normal(g, x, purpose);
    return (backend->download ? normal_on_host : host_normal)(g, x, purpose);
}

static ddpm_adam adam_factors(const ddpm_step *step)
{
    double clip = step->max_grad_norm > 0 ? step->max_grad_norm / (step->grad_norm + 1e-6) : 1;
    return (ddpm_adam){.clip = (ddpm_real)(clip < 1 ? clip : 1),
                       .one_b1 = (ddpm_real)(1 - step->beta1),
                       .b2 = (ddpm_real)step->beta2,
                       .one_b2 = (ddpm_real)(1 - step->beta2),
                       .keep = (ddpm_real)(1 - step->lr * step->weight_decay),
                       .rate = (ddpm_real)(step->lr / step->correction1),
                       .root = (ddpm_real)sqrt(step->correction2),
                       .eps = (ddpm_real)step->eps,
                       .ema = (ddpm_real)(1 - step->ema_decay)};
}

static void take_square(void *of, ddpm_tensor *param)
{
    const ddpm_model *model = of;
    const ddpm_backend *backend = backend_of(model->device);
    const ddpm_real *grad = (const ddpm_real *)model->array[DDPM_GRAD] + param->offset;
    param->square = (backend->squares ? backend->squares : host_squares)(model->device ? model->device->state : NULL,
                                                                         ddpm_elements(param, 0), grad);
}

static void forget_squares(ddpm_model *model)
{
    for (int p = 0; p < model->params; p++)
        model->param[p]->square = -1;
}

/* The update in two halves: a device of its own is asked for it, then how it went is heard. Elsewhere the second does
 * all. */
static ddpm_result ask_update(ddpm_model *model, ddpm_step *step)
{
    const ddpm_backend *backend = backend_of(model->device);
    return backend->outcome ? backend->update(model, step) : DDPM_OK;
}

static ddpm_result finish_update(ddpm_model *model, ddpm_step *step)
{
    const ddpm_backend *backend = backend_of(model->device);
    model->version++;
    if (backend->outcome) return backend->outcome(model, step);
    if (backend->update) return backend->update(model, step);
    return (backend->download ? update_on_host : host_update)(model, step);
}

ddpm_result ddpm_update(ddpm_model *model, ddpm_step *step)
{
    TRY(ask_update(model, step));
    if (backend_of(model->device)->outcome) TRY(backend_of(model->device)->sync(model->device->state));
    return finish_update(model, step);
}

ddpm_result ddpm_device_open(ddpm_device *device, const ddpm_backend *backend, int threads, const char *isa)
{
    *device = (ddpm_device){backend ? backend : ddpm_reference(), NULL, threads};
#ifdef _OPENMP
    if (threads <= 0) device->threads = omp_get_max_threads();
#else
    device->threads = 1;
#endif
    return device->backend->open ? device->backend->open(&device->state, device->threads, isa) : DDPM_OK;
}

const char *ddpm_device_isa(const ddpm_device *device)
{
    return backend_of(device)->isa ? backend_of(device)->isa(device->state) : "";
}

void ddpm_device_close(ddpm_device *device)
{
    if (device->backend && device->backend->close) device->backend->close(device->state);
    *device = (ddpm_device){NULL, NULL, 0};
}

/* ---- Models: parameters, their arrays ---------------------------------------------------------------------------- */

static ddpm_result check_config(const ddpm_model_config *config);
static void *build_failed(ddpm_graph *g, ddpm_result code);

ddpm_tensor *ddpm_param(ddpm_graph *g, ddpm_model *model, const char *name, int dims, const int *shape, ddpm_init init,
                        double scale, int trainable)
{
    if (g->result != DDPM_OK) return NULL;
    size_t mark = ddpm_enter(g, "%s", name);
    ddpm_tensor *x = ddpm_model_find(model, g->name);
    if (!x && model->declaring) {
        ddpm_tensor **list = grow_pointers(&model->arena, model->param, model->params, &model->param_room);
        x = list ? ddpm_arena_alloc(&model->arena, sizeof *x) : NULL;
        if (!x || !(x->name = ddpm_arena_string(&model->arena, g->name))) return build_failed(g, DDPM_ERR_MEMORY);
        x->dims = dims;
        for (int i = 0; i < 4; i++)
            x->shape[i] = i < dims ? shape[i] : 1;
        x->param = 1;
        x->trainable = trainable != 0;
        x->square = -1;
        x->version = &model->version;
        x->offset = model->elements;
        x->init = init;
        x->init_scale = scale;
        model->elements += (ddpm_elements(x, 0) + 15) & ~(size_t)15; /* each starts on a cache line */
        model->param = list;
        model->param[model->params++] = x;
    }
    if (!x) build_failed(g, ddpm_fail(DDPM_ERR_ARGUMENT, "the model has no parameter '%s'", g->name));
    ddpm_leave(g, mark);
    return x;
}

ddpm_result ddpm_model_declare(ddpm_model **out, const ddpm_device *device, ddpm_build build, void *user)
{
    ddpm_graph *g;
    *out = NULL;
    TRY(ddpm_graph_create(&g, device, 1, 0));
    ddpm_model *model = DDPM_MALLOC(sizeof *model);
    if (!model) {
        ddpm_graph_free(g);
        return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: no room for a model");
    }
    memset(model, 0, sizeof *model);
    model->device = g->device;
    model->declaring = 1;
    build(user, g, model);
    model->declaring = 0;
    ddpm_result result = g->result;
    ddpm_graph_free(g);
    if (result == DDPM_OK)
        *out = model;
    else
        ddpm_model_free(model);
    return result;
}

typedef struct declaration { /* what build_unet is given */
    const ddpm_model_config *config;
    ddpm_net net;
} declaration;

static void build_unet(void *user, ddpm_graph *g, ddpm_model *model)
{
    declaration *d = user;
    model->config = *d->config;
    build_network(&d->net, g, model, 0);
}

ddpm_result ddpm_model_create(ddpm_model **out, const ddpm_model_config *config, const ddpm_device *device)
{
    *out = NULL;
    declaration d = {.config = config};
    TRY(check_config(config));
    TRY(picture_size(config, 0, 0, &d.net));
    return ddpm_model_declare(out, device, build_unet, &d);
}

void ddpm_model_free(ddpm_model *model)
{
    if (!model) return;
    for (int i = 0; i < DDPM_ARRAYS; i++)
        device_free(model->device, model->array[i]);
    ddpm_arena_free(&model->arena);
    DDPM_FREE(model);
}

static ddpm_result zero_array(ddpm_model *model, ddpm_array array);

ddpm_result ddpm_model_init(ddpm_model *model, uint64_t seed)
{
    TRY(ddpm_model_alloc(model, DDPM_FOR_INFERENCE));
    for (int p = 0; p < model->params; p++) {
        ddpm_tensor *x = model->param[p];
        size_t count = ddpm_elements(x, 0);
        ddpm_address address = {seed, (uint64_t)p, 0, DDPM_RANDOM_WEIGHTS};
        ddpm_real *value = aligned_alloc_zero(count * sizeof *value);
        if (!value) return DDPM_ERR_MEMORY;
        if (x->init == DDPM_INIT_NORMAL) ddpm_normals(address, count, value);
        for (size_t i = 0; i < count; i++) {
            uint32_t word[4];
            if (x->init == DDPM_INIT_NORMAL) value[i] *= (ddpm_real)x->init_scale;
            if (x->init == DDPM_INIT_ONES) value[i] = 1;
            if (x->init != DDPM_INIT_UNIFORM) continue;
            if (i % 4 == 0) ddpm_philox(address, (uint32_t)(i / 4), word);
            value[i] = (ddpm_real)(((double)(word[i % 4] >> 8) * 0x1p-23 - 1) * x->init_scale); /* [-scale, scale) */
        }
        ddpm_result result = ddpm_model_set(model, DDPM_WEIGHT, x, value);
        if (result == DDPM_OK && model->array[DDPM_EMA]) result = ddpm_model_set(model, DDPM_EMA, x, value);
        aligned_free(value);
        if (result != DDPM_OK) return result;
    }
    for (int i = DDPM_MOMENT1; i <= DDPM_MOMENT2; i++)
        if (model->array[i]) TRY(zero_array(model, (ddpm_array)i));
    return DDPM_OK;
}

void ddpm_net_free(ddpm_net *net)
{
    if (!net) return;
    ddpm_graph_free(net->graph);
    DDPM_FREE(net);
}

ddpm_result ddpm_model_alloc(ddpm_model *model, unsigned arrays)
{
    for (int i = 0; i < DDPM_ARRAYS; i++)
        if (arrays >> i & 1 && !model->array[i])
            TRY(device_alloc(model->device, model->elements * sizeof(ddpm_real), &model->array[i]));
    return ddpm_model_use(model, model->in_use);
}

ddpm_result ddpm_model_use(ddpm_model *model, ddpm_array array)
{
    if ((array != DDPM_WEIGHT && array != DDPM_EMA) || !model->array[array])
        return ddpm_fail(DDPM_ERR_ARGUMENT, "the model holds no %s\n      hint: ddpm_model_alloc makes the arrays",
                         array == DDPM_EMA ? "moving average" : "weights");
    model->in_use = array;
    model->version++;
    for (int p = 0; p < model->params; p++) {
        model->param[p]->data = (ddpm_real *)model->array[array] + model->param[p]->offset;
        if (model->array[DDPM_GRAD])
            model->param[p]->grad = (ddpm_real *)model->array[DDPM_GRAD] + model->param[p]->offset;
    }
    return DDPM_OK;
}

ddpm_tensor *ddpm_model_find(const ddpm_model *model, const char *name)
{
    for (int p = 0; p < model->params; p++)
        if (!strcmp(model->param[p]->name, name)) return model->param[p];
    return NULL;
}

/* A parameter's part of an array, dressed as a tensor's data. */
static ddpm_tensor array_part(const ddpm_model *model, ddpm_array array, const ddpm_tensor *param)
{
    ddpm_tensor part = *param;
    part.data = (ddpm_real *)model->array[array] + param->offset;
    return part;
}

ddpm_result ddpm_model_get(const ddpm_model *model, ddpm_array array, const ddpm_tensor *param, ddpm_real *out)
{
    if (!model->array[array])
        return ddpm_fail(DDPM_ERR_ARGUMENT, "'%s': this array of the model is not allocated", param->name);
    ddpm_tensor part = array_part(model, array, param);
    return ddpm_download(model->device, &part, DDPM_DATA, 0, out);
}

ddpm_result ddpm_model_set(ddpm_model *model, ddpm_array array, const ddpm_tensor *param, const ddpm_real *in)
{
    if (!model->array[array])
        return ddpm_fail(DDPM_ERR_ARGUMENT, "'%s': this array of the model is not allocated", param->name);
    ddpm_tensor part = array_part(model, array, param);
    return ddpm_upload(model->device, &part, DDPM_DATA, 0, in);
}

static ddpm_result zero_array(ddpm_model *model, ddpm_array array)
{
    const ddpm_backend *backend = backend_of(model->device);
    size_t bytes = model->elements * sizeof(ddpm_real);
    if (backend->zero) return backend->zero(model->device->state, model->array[array], bytes);
    memset(model->array[array], 0, bytes);
    return DDPM_OK;
}

ddpm_result ddpm_model_zero_grad(ddpm_model *model)
{
    if (!model->array[DDPM_GRAD])
        return ddpm_fail(DDPM_ERR_ARGUMENT, "the model holds no gradients\n      hint: ddpm_model_alloc");
    forget_squares(model);
    return zero_array(model, DDPM_GRAD);
}

/* From zero; backward itself does so where activations lie in their memory. */
static ddpm_result start_gradients(ddpm_net *net)
{
    return net->graph->share ? DDPM_OK : ddpm_model_zero_grad(net->model);
}

static ddpm_result check_batch(const ddpm_net *net, int n)
{
    if (!net->graph->share || n <= net->graph->capacity) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "%d pictures in a network built for 1 to %d that shares its gradients' memory: it has no "
                     "micro-batches\n      hint: create it without DDPM_SHARE_GRADIENTS",
                     n, net->graph->capacity);
}

/* ---- Building a graph -------------------------------------------------------------------------------------------- */

ddpm_result ddpm_graph_create(ddpm_graph **out, const ddpm_device *device, int capacity, int training)
{
    static const ddpm_device reference = {NULL, NULL, 0};
    *out = NULL;
    if (capacity < 1)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a graph for %d pictures: the capacity must be at least 1", capacity);
    ddpm_graph *g = DDPM_MALLOC(sizeof *g);
    if (!g) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: no room for a graph");
    memset(g, 0, sizeof *g);
    g->device = device ? device : &reference;
    g->capacity = capacity;
    g->training = training & DDPM_TRAINING;
    g->recompute = (training & DDPM_RECOMPUTE) != 0;
    g->share = (training & DDPM_SHARE_GRADIENTS) != 0;
    *out = g;
    return DDPM_OK;
}

void ddpm_graph_free(ddpm_graph *g)
{
    if (!g) return;
    if (backend_of(g->device)->unplan) backend_of(g->device)->unplan(g);
    device_free(g->device, g->memory);
    ddpm_arena_free(&g->arena);
    DDPM_FREE(g);
}

size_t ddpm_enter(ddpm_graph *g, const char *format, ...)
{
    size_t mark = strlen(g->name), room = sizeof g->name - mark;
    if (mark && room > 1) g->name[mark] = '.', g->name[mark + 1] = 0;
    size_t start = strlen(g->name);
    va_list args;
    va_start(args, format);
    vsnprintf(g->name + start, sizeof g->name - start, format, args);
    va_end(args);
    return mark;
}

void ddpm_leave(ddpm_graph *g, size_t mark)
{
    g->name[mark] = 0;
}

/* A block is what DDPM_RECOMPUTE makes again as a whole. */
static size_t enter_block(ddpm_graph *g, const char *name)
{
    g->block = g->nodes + 1;
    return ddpm_enter(g, "%s", name);
}

static void leave_block(ddpm_graph *g, size_t mark)
{
    g->block = 0;
    ddpm_leave(g, mark);
}

static void *build_failed(ddpm_graph *g, ddpm_result code)
{
    if (g->result == DDPM_OK) g->result = code;
    return NULL;
}

static ddpm_tensor *new_tensor(ddpm_graph *g, const char *name, int c, int h, int w)
{
    if (c < 1 || h < 1 || w < 1 || (double)g->capacity * c * h * w > 0x1p40)
        return build_failed(
            g, ddpm_fail(DDPM_ERR_SHAPE, "%s: a tensor (%d,%d,%d,%d) cannot be", name, g->capacity, c, h, w));
    ddpm_tensor **list = grow_pointers(&g->arena, g->tensor, g->tensors, &g->tensor_room);
    ddpm_tensor *x = list ? ddpm_arena_alloc(&g->arena, sizeof *x) : NULL;
    if (!x || !(x->name = ddpm_arena_string(&g->arena, name))) return build_failed(g, DDPM_ERR_MEMORY);
    x->dims = 4;
    x->shape[0] = g->capacity, x->shape[1] = c, x->shape[2] = h, x->shape[3] = w;
    x->batched = 1;
    x->offset = x->grad_offset = DDPM_NOWHERE;
    g->tensor = list;
    g->tensor[g->tensors++] = x;
    return x;
}

ddpm_tensor *ddpm_input(ddpm_graph *g, const char *name, int c, int h, int w, int need_grad)
{
    ddpm_tensor *x = new_tensor(g, name, c, h, w);
    if (x) x->input = 1, x->need_grad = need_grad != 0;
    return x;
}

/* A node of `inputs` inputs with its output (N,c,h,w) and, if aux_c > 0, auxiliary output (N,aux_c,aux_h,aux_w). An
 * input that is NULL after an earlier failure makes this one fail too; a bias may be NULL by right: pass what is
 * there. */
static ddpm_node *new_node(ddpm_graph *g, ddpm_op op, int inputs, ddpm_tensor *const *in, int c, int h, int w)
{
    if (g->result != DDPM_OK) return NULL;
    ddpm_node **list = grow_pointers(&g->arena, g->node, g->nodes, &g->node_room);
    ddpm_node *node = list ? ddpm_arena_alloc(&g->arena, sizeof *node) : NULL;
    if (!node) return build_failed(g, DDPM_ERR_MEMORY);
    ddpm_tensor *out = new_tensor(g, g->name[0] ? g->name : ddpm_op_name(op), c, h, w);
    if (!out) return NULL;
    node->op = op;
    node->id = g->nodes;
    node->name = out->name;
    node->out = out;
    node->block = g->block;
    memcpy(node->in, in, (size_t)inputs * sizeof *in);
    g->node = list;
    g->node[g->nodes++] = node;
    return node;
}

static ddpm_tensor *new_aux(ddpm_graph *g, ddpm_node *node, int c, int h, int w)
{
    return node->aux = new_tensor(g, node->name, c, h, w);
}

static int same_picture(const ddpm_tensor *a, const ddpm_tensor *b)
{
    return a->shape[1] == b->shape[1] && a->shape[2] == b->shape[2] && a->shape[3] == b->shape[3];
}

static ddpm_tensor *shape_error(ddpm_graph *g, ddpm_op op, const ddpm_tensor *a, const ddpm_tensor *b, const char *rule)
{
    return build_failed(g,
                        ddpm_fail(DDPM_ERR_SHAPE, "%s (%s): (%d,%d,%d,%d) '%s' and (%d,%d,%d,%d) '%s' do not fit: %s",
                                  g->name, ddpm_op_name(op), a->shape[0], a->shape[1], a->shape[2], a->shape[3],
                                  a->name, b->shape[0], b->shape[1], b->shape[2], b->shape[3], b->name, rule));
}

static int one_number(const ddpm_tensor *x) /* a picture: (N,1,1,1) */
{
    return x->shape[1] == 1 && pixels(x) == 1;
}

/* Asks for scratch: the frames of x and dy, or that of dy alone for backward to x, at the graph's capacity. */
static ddpm_tensor *conv_scratch(const ddpm_graph *g, ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0];
    int k = node->in[1]->shape[2], around = node->attr.conv.pad_start + node->attr.conv.pad_end,
        co = node->out->shape[1];
    int h = x->shape[2] + (around > k - 1 ? around : k - 1), w = x->shape[3] + (around > k - 1 ? around : k - 1);
    size_t room = frame_elements(x->shape[1], g->capacity, h, w, k) +
                  (g->training ? frame_elements(co, g->capacity, h, w, k) : 0);
    size_t back = frame_elements(co, g->capacity, h, w, k);
    node->scratch_elements = room < back ? back : room;
    return node->out;
}

ddpm_tensor *ddpm_conv2d(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias, int stride,
                         int pad_start, int pad_end)
{
    if (g->result != DDPM_OK || !x || !weight) return NULL;
    int kernel = weight->shape[2], h = x->shape[2] + pad_start + pad_end - kernel,
        w = x->shape[3] + pad_start + pad_end - kernel;
    if (weight->shape[1] != x->shape[1] || weight->shape[3] != kernel || h < 0 || w < 0 || stride < 1 ||
        pad_start < 0 || pad_end < 0 || pad_start >= kernel || pad_end >= kernel ||
        (bias && bias->shape[0] != weight->shape[0]))
        return shape_error(g, DDPM_OP_CONV2D, x, weight,
                           "the weight is (out,in,k,k), and the padded picture at least (k,k)");
    ddpm_node *node = new_node(g, DDPM_OP_CONV2D, 3, (ddpm_tensor *[]){x, weight, bias}, weight->shape[0],
                               h / stride + 1, w / stride + 1);
    if (!node) return NULL;
    node->attr.conv.stride = stride;
    node->attr.conv.pad_start = pad_start;
    node->attr.conv.pad_end = pad_end;
    return conv_scratch(g, node);
}

ddpm_tensor *ddpm_linear(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias)
{
    if (g->result != DDPM_OK || !x || !weight) return NULL;
    if (weight->shape[1] != x->shape[1] || weight->shape[2] != 1 || weight->shape[3] != 1 ||
        (bias && bias->shape[0] != weight->shape[0]))
        return shape_error(g, DDPM_OP_LINEAR, x, weight, "the weight is (out,in)");
    ddpm_node *node =
        new_node(g, DDPM_OP_LINEAR, 3, (ddpm_tensor *[]){x, weight, bias}, weight->shape[0], x->shape[2], x->shape[3]);
    if (!node) return NULL;
    node->attr.conv.stride = 1;
    return conv_scratch(g, node);
}

ddpm_tensor *ddpm_group_norm(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias, int groups,
                             double eps)
{
    if (g->result != DDPM_OK || !x || !weight || !bias) return NULL;
    int c = x->shape[1];
    if (groups < 1 || c % groups || weight->shape[0] != c || bias->shape[0] != c) {
        ddpm_fail(DDPM_ERR_SHAPE,
                  "%s: %d channels cannot be normalised in %d groups\n      hint: norm_num_groups must divide every "
                  "number of channels in block_out_channels and their sums",
                  g->name, c, groups);
        return build_failed(g, DDPM_ERR_SHAPE);
    }
    ddpm_node *node =
        new_node(g, DDPM_OP_GROUP_NORM, 3, (ddpm_tensor *[]){x, weight, bias}, c, x->shape[2], x->shape[3]);
    if (!node || !new_aux(g, node, 2, groups, 1)) return NULL;
    node->attr.norm.groups = groups;
    node->attr.norm.eps = eps;
    return node->out;
}

ddpm_tensor *ddpm_activation(ddpm_graph *g, ddpm_tensor *x, int kind)
{
    if (g->result != DDPM_OK || !x) return NULL;
    ddpm_node *node = new_node(g, DDPM_OP_ACTIVATION, 1, &x, x->shape[1], x->shape[2], x->shape[3]);
    if (!node) return NULL;
    node->attr.activation.kind = kind;
    return node->out;
}

ddpm_tensor *ddpm_attention(ddpm_graph *g, ddpm_tensor *q, ddpm_tensor *k, ddpm_tensor *v, int heads)
{
    if (g->result != DDPM_OK || !q || !k || !v) return NULL;
    if (!same_picture(q, k) || !same_picture(q, v) || heads < 1 || q->shape[1] % heads)
        return shape_error(g, DDPM_OP_ATTENTION, q, k, "q, k and v are alike, and their channels divide into heads");
    ddpm_node *node =
        new_node(g, DDPM_OP_ATTENTION, 3, (ddpm_tensor *[]){q, k, v}, q->shape[1], q->shape[2], q->shape[3]);
    if (!node || !new_aux(g, node, heads, 3, pixels(q))) return NULL;
    node->attr.attention.heads = heads;
    return node->out;
}

ddpm_tensor *ddpm_add(ddpm_graph *g, ddpm_tensor *a, ddpm_tensor *b, double scale)
{
    if (g->result != DDPM_OK || !a || !b) return NULL;
    if (a->shape[1] != b->shape[1] || (!same_picture(a, b) && pixels(b) != 1))
        return shape_error(g, DDPM_OP_ADD, a, b, "alike, or the second (N,C,1,1)");
    ddpm_node *node = new_node(g, DDPM_OP_ADD, 2, (ddpm_tensor *[]){a, b}, a->shape[1], a->shape[2], a->shape[3]);
    if (!node) return NULL;
    node->attr.affine.scale = scale;
    return node->out;
}

ddpm_tensor *ddpm_concat(ddpm_graph *g, ddpm_tensor *a, ddpm_tensor *b)
{
    if (g->result != DDPM_OK || !a || !b) return NULL;
    if (a->shape[2] != b->shape[2] || a->shape[3] != b->shape[3])
        return shape_error(g, DDPM_OP_CONCAT, a, b, "height and width are the same");
    ddpm_node *node =
        new_node(g, DDPM_OP_CONCAT, 2, (ddpm_tensor *[]){a, b}, a->shape[1] + b->shape[1], a->shape[2], a->shape[3]);
    return node ? node->out : NULL;
}

ddpm_tensor *ddpm_upsample(ddpm_graph *g, ddpm_tensor *x, int factor)
{
    if (g->result != DDPM_OK || !x) return NULL;
    ddpm_node *node = new_node(g, DDPM_OP_UPSAMPLE, 1, &x, x->shape[1], x->shape[2] * factor, x->shape[3] * factor);
    if (!node) return NULL;
    node->attr.resample.factor = factor;
    return node->out;
}

ddpm_tensor *ddpm_time_embedding(ddpm_graph *g, ddpm_tensor *t, int dim, int flip_sin_to_cos, double freq_shift)
{
    if (g->result != DDPM_OK || !t) return NULL;
    if (!one_number(t)) return shape_error(g, DDPM_OP_TIME_EMBEDDING, t, t, "t is (N,1,1,1)");
    ddpm_node *node = new_node(g, DDPM_OP_TIME_EMBEDDING, 1, &t, dim, 1, 1);
    if (!node) return NULL;
    node->attr.time.flip_sin_to_cos = flip_sin_to_cos;
    node->attr.time.freq_shift = freq_shift;
    return node->out;
}

ddpm_tensor *ddpm_mse(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *target)
{
    if (g->result != DDPM_OK || !x || !target) return NULL;
    if (!same_picture(x, target)) return shape_error(g, DDPM_OP_MSE, x, target, "alike");
    ddpm_node *node = new_node(g, DDPM_OP_MSE, 2, (ddpm_tensor *[]){x, target}, 1, 1, 1);
    return node ? node->out : NULL;
}

/* ---- Modulate: y = x (1 + s) + b, s = e[:C], b = e[C:];  dx = dy (1 + s);  ds = sum dy x;  db = sum dy ----------- */
ddpm_tensor *ddpm_modulate(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *scale_shift)
{
    if (g->result != DDPM_OK || !x || !scale_shift) return NULL;
    if (scale_shift->shape[1] != 2 * x->shape[1] || pixels(scale_shift) != 1)
        return shape_error(g, DDPM_OP_MODULATE, x, scale_shift, "the second is (N,2C,1,1)");
    ddpm_node *node =
        new_node(g, DDPM_OP_MODULATE, 2, (ddpm_tensor *[]){x, scale_shift}, x->shape[1], x->shape[2], x->shape[3]);
    return node ? node->out : NULL;
}

static ddpm_result modulate_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *e = node->in[1]->data; /* (N,C,H,W), (N,2C) */
    ddpm_real *y = node->out->data;
    size_t c = (size_t)node->out->shape[1], plane = (size_t)pixels(node->out);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (size_t)g->n * c; i++) {
        ddpm_real scale = e[i / c * 2 * c + i % c], shift = e[i / c * 2 * c + c + i % c];
        scale_shift_plane(plane, x + i * plane, 0, 1 + scale, shift, y + i * plane);
    }
    return DDPM_OK;
}

static ddpm_result modulate_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *e = node->in[1]->data, *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0), *de = grad_target(g, node, 1);
    size_t c = (size_t)node->out->shape[1], plane = (size_t)pixels(node->out);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (size_t)g->n * c; i++) {
        size_t scale = i / c * 2 * c + i % c;
        if (dx) add_scaled(plane, 1 + e[scale], dy + i * plane, dx + i * plane);
        if (de) de[scale] += (ddpm_real)sum_products(dy + i * plane, 0, x + i * plane, 0, plane);
        if (de) de[scale + c] += (ddpm_real)sum(dy + i * plane, plane);
    }
    return DDPM_OK;
}

/* ---- Slice: y = x[:, start : start + count];  dx of the rest is 0 ------------------------------------------------ */
ddpm_tensor *ddpm_slice(ddpm_graph *g, ddpm_tensor *x, int start, int count)
{
    if (g->result != DDPM_OK || !x) return NULL;
    if (start < 0 || count < 1 || count > x->shape[1] - start)
        return build_failed(g, ddpm_fail(DDPM_ERR_SHAPE, "%s (slice): %d channels from %d on, of %d", g->name, count,
                                         start, x->shape[1]));
    ddpm_node *node = new_node(g, DDPM_OP_SLICE, 1, &x, count, x->shape[2], x->shape[3]);
    if (!node) return NULL;
    node->attr.slice.start = start;
    return node->out;
}

static ddpm_result slice_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t part = ddpm_elements(node->out, 1), whole = ddpm_elements(node->in[0], 1);
    size_t start = (size_t)node->attr.slice.start * (size_t)pixels(node->out);
    for (size_t n = 0; n < (size_t)g->n; n++)
        memcpy(node->out->data + n * part, node->in[0]->data + n * whole + start, part * sizeof(ddpm_real));
    return DDPM_OK;
}

static ddpm_result slice_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t part = ddpm_elements(node->out, 1), whole = ddpm_elements(node->in[0], 1);
    size_t start = (size_t)node->attr.slice.start * (size_t)pixels(node->out);
    ddpm_real *dx = grad_target(g, node, 0);
    for (size_t n = 0; n < (size_t)g->n; n++)
        add_scaled(part, 1, node->out->grad + n * part, dx + n * whole + start);
    return DDPM_OK;
}

/* ---- Pool -----------------------------------------------------------------------------------------------------------
 * The largest of a k x k window (its gradient goes to the first that is largest: aux keeps the index) or the mean. */
ddpm_tensor *ddpm_pool(ddpm_graph *g, ddpm_tensor *x, int kind, int kernel, int stride, int pad)
{
    if (g->result != DDPM_OK || !x) return NULL;
    int h = x->shape[2] + 2 * pad - kernel, w = x->shape[3] + 2 * pad - kernel;
    if (kernel < 1 || stride < 1 || pad < 0 || 2 * pad > kernel || h < 0 || w < 0)
        return build_failed(g,
                            ddpm_fail(DDPM_ERR_SHAPE, "%s (pool): kernel %d, stride %d, pad %d on a picture of %dx%d",
                                      g->name, kernel, stride, pad, x->shape[3], x->shape[2]));
    ddpm_node *node = new_node(g, DDPM_OP_POOL, 1, &x, x->shape[1], h / stride + 1, w / stride + 1);
    if (!node ||
        (kind == DDPM_POOL_MAX && !new_aux(g, node, node->out->shape[1], node->out->shape[2], node->out->shape[3])))
        return NULL;
    node->attr.pool.kind = kind;
    node->attr.pool.kernel = kernel;
    node->attr.pool.stride = stride;
    node->attr.pool.pad = pad;
    return node->out;
}

/* One window of a plane: visits its pixels inside the picture. forward: returns max or sum, *at = index of the max. */
static ddpm_real pool_window(const ddpm_node *node, const ddpm_real *x, int oy, int ox, int *at)
{
    int h = node->in[0]->shape[2], w = node->in[0]->shape[3], k = node->attr.pool.kernel;
    int top = oy * node->attr.pool.stride - node->attr.pool.pad,
        left = ox * node->attr.pool.stride - node->attr.pool.pad;
    ddpm_real total = 0;
    *at = -1;
    for (int y = top < 0 ? 0 : top; y < top + k && y < h; y++)
        for (int i = left < 0 ? 0 : left; i < left + k && i < w; i++) {
            total += x[y * w + i];
            if (*at < 0 || x[y * w + i] > x[*at] || isnan(x[y * w + i])) *at = y * w + i;
        }
    return node->attr.pool.kind == DDPM_POOL_MAX ? x[*at] : total / (ddpm_real)(k * k);
}

static ddpm_result pool_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t in = (size_t)pixels(node->in[0]), out = (size_t)pixels(node->out),
           planes = (size_t)g->n * (size_t)node->out->shape[1];
    int width = node->out->shape[3];
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < planes; i++)
        for (size_t p = 0; p < out; p++) {
            int at;
            node->out->data[i * out + p] =
                pool_window(node, node->in[0]->data + i * in, (int)p / width, (int)p % width, &at);
            if (node->aux) node->aux->data[i * out + p] = (ddpm_real)at;
        }
    return DDPM_OK;
}

static ddpm_result pool_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t in = (size_t)pixels(node->in[0]), out = (size_t)pixels(node->out),
           planes = (size_t)g->n * (size_t)node->out->shape[1];
    int width = node->out->shape[3], h = node->in[0]->shape[2], w = node->in[0]->shape[3], k = node->attr.pool.kernel;
    ddpm_real *dx = grad_target(g, node, 0);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < planes; i++)
        for (size_t p = 0; p < out; p++) {
            ddpm_real dy = node->out->grad[i * out + p];
            if (node->aux) {
                dx[i * in + (size_t)node->aux->data[i * out + p]] += dy;
                continue;
            }
            int top = (int)p / width * node->attr.pool.stride - node->attr.pool.pad;
            int left = (int)p % width * node->attr.pool.stride - node->attr.pool.pad;
            for (int y = top < 0 ? 0 : top; y < top + k && y < h; y++)
                for (int x = left < 0 ? 0 : left; x < left + k && x < w; x++)
                    dx[i * in + (size_t)(y * w + x)] += dy / (ddpm_real)(k * k);
        }
    return DDPM_OK;
}

/* ---- PixelUnshuffle and PixelShuffle --------------------------------------------------------------------------------
 * y[n, c f^2 + fy f + fx, i, j] = x[n, c, i f + fy, j f + fx], and back (Shi et al. 2016); each is the other's
 * gradient. */
static ddpm_tensor *new_shuffle(ddpm_graph *g, ddpm_op op, ddpm_tensor *x, int factor, int c, int h, int w)
{
    ddpm_node *node = new_node(g, op, 1, &x, c, h, w);
    if (!node) return NULL;
    node->attr.resample.factor = factor;
    return node->out;
}

ddpm_tensor *ddpm_pixel_unshuffle(ddpm_graph *g, ddpm_tensor *x, int factor)
{
    if (g->result != DDPM_OK || !x) return NULL;
    if (factor < 1 || x->shape[2] % factor || x->shape[3] % factor)
        return build_failed(g, ddpm_fail(DDPM_ERR_SHAPE, "%s (pixel_unshuffle): %dx%d does not divide by %d", g->name,
                                         x->shape[3], x->shape[2], factor));
    return new_shuffle(g, DDPM_OP_PIXEL_UNSHUFFLE, x, factor, x->shape[1] * factor * factor, x->shape[2] / factor,
                       x->shape[3] / factor);
}

ddpm_tensor *ddpm_pixel_shuffle(ddpm_graph *g, ddpm_tensor *x, int factor)
{
    if (g->result != DDPM_OK || !x) return NULL;
    if (factor < 1 || x->shape[1] % factor || x->shape[1] / factor % factor)
        return build_failed(g, ddpm_fail(DDPM_ERR_SHAPE, "%s (pixel_shuffle): %d channels do not divide by %d^2",
                                         g->name, x->shape[1], factor));
    return new_shuffle(g, DDPM_OP_PIXEL_SHUFFLE, x, factor, x->shape[1] / (factor * factor), x->shape[2] * factor,
                       x->shape[3] * factor);
}

/* Adds each element of `from` to its place in `to`; fine is the tensor of many pixels, coarse that of many channels. */
static void shuffle_add(const ddpm_graph *g, const ddpm_node *node, const ddpm_tensor *fine, const ddpm_real *from,
                        ddpm_real *to, int unshuffle)
{
    size_t f = (size_t)node->attr.resample.factor, h = (size_t)fine->shape[2], w = (size_t)fine->shape[3],
           c = (size_t)fine->shape[1];
    #pragma omp parallel for schedule(static)
    for (size_t plane = 0; plane < (size_t)g->n * c; plane++)
        for (size_t y = 0; y < h; y++)
            for (size_t x = 0; x < w; x++) {
                size_t in_fine = (plane * h + y) * w + x;
                size_t in_coarse = ((plane * f * f + y % f * f + x % f) * (h / f) + y / f) * (w / f) + x / f;
                if (unshuffle)
                    to[in_coarse] += from[in_fine];
                else
                    to[in_fine] += from[in_coarse];
            }
}

static ddpm_result shuffle_forward(const ddpm_graph *g, const ddpm_node *node)
{
    int unshuffle = node->op == DDPM_OP_PIXEL_UNSHUFFLE;
    memset(node->out->data, 0, ddpm_elements(node->out, g->n) * sizeof(ddpm_real));
    shuffle_add(g, node, unshuffle ? node->in[0] : node->out, node->in[0]->data, node->out->data, unshuffle);
    return DDPM_OK;
}

static ddpm_result shuffle_backward(const ddpm_graph *g, const ddpm_node *node)
{
    int unshuffle = node->op == DDPM_OP_PIXEL_UNSHUFFLE;
    shuffle_add(g, node, unshuffle ? node->in[0] : node->out, node->out->grad, grad_target(g, node, 0), !unshuffle);
    return DDPM_OK;
}

/* ---- Dropout --------------------------------------------------------------------------------------------------------
 * y = x / (1 - p) with probability 1 - p, else 0 (Srivastava et al. 2014). Backward makes the same mask again. */
ddpm_tensor *ddpm_dropout(ddpm_graph *g, ddpm_tensor *x, double p)
{
    if (g->result != DDPM_OK || !x || !g->training || p <= 0) return x;
    ddpm_node *node = new_node(g, DDPM_OP_DROPOUT, 1, &x, x->shape[1], x->shape[2], x->shape[3]);
    if (!node) return NULL;
    node->attr.affine.scale = p;
    return node->out;
}

static void dropout_add(const ddpm_graph *g, const ddpm_node *node, const ddpm_real *from, ddpm_real *to)
{
    size_t picture = ddpm_elements(node->out, 1);
    double p = g->training ? node->attr.affine.scale : 0; /* a training graph that is sampled from: nothing dropped */
    ddpm_real scale = p < 1 ? (ddpm_real)(1 / (1 - p)) : 0;
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < g->n; n++) {
        ddpm_address address = {g->step.seed, g->step.first_picture + (uint64_t)n, (uint32_t)node->id,
                                DDPM_RANDOM_DROPOUT};
        uint32_t word[4];
        for (size_t i = 0; i < picture; i++) {
            if (i % 4 == 0) ddpm_philox(address, (uint32_t)(i / 4), word);
            if ((double)word[i % 4] * 0x1p-32 >= p)
                to[(size_t)n * picture + i] += scale * from[(size_t)n * picture + i];
        }
    }
}

static ddpm_result dropout_forward(const ddpm_graph *g, const ddpm_node *node)
{
    memset(node->out->data, 0, ddpm_elements(node->out, g->n) * sizeof(ddpm_real));
    dropout_add(g, node, node->in[0]->data, node->out->data);
    return DDPM_OK;
}

static ddpm_result dropout_backward(const ddpm_graph *g, const ddpm_node *node)
{
    dropout_add(g, node, node->out->grad, grad_target(g, node, 0));
    return DDPM_OK;
}

/* ---- Affine: y = scale x / d[n] + shift;  dx = scale dy / d[n] --------------------------------------------------- */
ddpm_tensor *ddpm_affine(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *divisor, double scale, double shift)
{
    if (g->result != DDPM_OK || !x) return NULL;
    if (divisor && !one_number(divisor)) return shape_error(g, DDPM_OP_AFFINE, x, divisor, "the divisor is (N,1,1,1)");
    ddpm_node *node =
        new_node(g, DDPM_OP_AFFINE, 2, (ddpm_tensor *[]){x, divisor}, x->shape[1], x->shape[2], x->shape[3]);
    if (!node) return NULL;
    node->attr.affine.scale = scale;
    node->attr.affine.shift = shift;
    return node->out;
}

static ddpm_result affine_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->out, 1);
    for (size_t n = 0; n < (size_t)g->n; n++) {
        ddpm_real d = node->in[1] ? node->in[1]->data[n] : 1;
        scale_shift_plane(picture, node->in[0]->data + n * picture, 0, (ddpm_real)node->attr.affine.scale / d,
                          (ddpm_real)node->attr.affine.shift, node->out->data + n * picture);
    }
    return DDPM_OK;
}

static ddpm_result affine_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->out, 1);
    ddpm_real *dx = grad_target(g, node, 0);
    for (size_t n = 0; n < (size_t)g->n; n++) {
        ddpm_real d = node->in[1] ? node->in[1]->data[n] : 1;
        add_scaled(picture, (ddpm_real)node->attr.affine.scale / d, node->out->grad + n * picture, dx + n * picture);
    }
    return DDPM_OK;
}

/* ---- Fourier features of log t --------------------------------------------------------------------------------------
 * e = [sin a, cos a],  a[i] = log(t) w[i] 2 pi      (Song et al. 2021; diffusers' GaussianFourierProjection) */
ddpm_tensor *ddpm_fourier_embedding(ddpm_graph *g, ddpm_tensor *t, ddpm_tensor *weight)
{
    if (g->result != DDPM_OK || !t || !weight) return NULL;
    if (!one_number(t)) return shape_error(g, DDPM_OP_FOURIER_EMBEDDING, t, weight, "t is (N,1,1,1)");
    ddpm_node *node =
        new_node(g, DDPM_OP_FOURIER_EMBEDDING, 2, (ddpm_tensor *[]){t, weight}, 2 * weight->shape[0], 1, 1);
    return node ? node->out : NULL;
}

static ddpm_result fourier_embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    int c = node->in[1]->shape[0];
    for (int n = 0; n < g->n; n++)
        for (int i = 0; i < c; i++) { /* in float32 as torch does: the angle's rounding is part of the definition */
            float angle = logf((float)node->in[0]->data[n]) * (float)node->in[1]->data[i] * 2 * 3.14159265358979323846f;
            node->out->data[2 * n * c + i] = (ddpm_real)sinf(angle);
            node->out->data[(2 * n + 1) * c + i] = (ddpm_real)cosf(angle);
        }
    return DDPM_OK;
}

/* ---- Embedding: y[n] = table[index[n]];  dtable[index[n]] += dy[n] ----------------------------------------------- */
ddpm_tensor *ddpm_embedding(ddpm_graph *g, ddpm_tensor *index, ddpm_tensor *table)
{
    if (g->result != DDPM_OK || !index || !table) return NULL;
    if (!one_number(index)) return shape_error(g, DDPM_OP_EMBEDDING, index, table, "the index is (N,1,1,1)");
    ddpm_node *node = new_node(g, DDPM_OP_EMBEDDING, 2, (ddpm_tensor *[]){index, table}, table->shape[1], 1, 1);
    return node ? node->out : NULL;
}

static ddpm_result embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *index = node->in[0]->data, *table = node->in[1]->data; /* (N), (classes,dim) */
    int classes = node->in[1]->shape[0], dim = node->in[1]->shape[1];
    for (int n = 0; n < g->n; n++) {
        if (!(index[n] >= 0 && index[n] < (ddpm_real)classes && index[n] == (ddpm_real)(int)index[n]))
            return ddpm_fail(DDPM_ERR_RANGE, "%s: class label %g of picture %d is not one of 0 to %d", node->name,
                             (double)index[n], n, classes - 1);
        memcpy(node->out->data + (size_t)n * (size_t)dim, table + (size_t)index[n] * (size_t)dim,
               (size_t)dim * sizeof *table);
    }
    return DDPM_OK;
}

static ddpm_result embedding_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t dim = (size_t)node->in[1]->shape[1];
    ddpm_real *dtable = grad_target(g, node, 1);
    for (size_t n = 0; n < (size_t)g->n; n++)
        add_scaled(dim, 1, node->out->grad + n * dim, dtable + (size_t)node->in[0]->data[n] * dim);
    return DDPM_OK;
}

/* ---- BatchNorm (Ioffe & Szegedy 2015): GroupNorm's formulas over (N,H,W) for each channel ---------------------------
 * training: batch statistics; running <- (1 - momentum) running + momentum (mean, unbiased variance)
 * otherwise: running statistics, which are constants to backward. aux (first picture): mu, r */
ddpm_tensor *ddpm_batch_norm(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias,
                             ddpm_tensor *running_mean, ddpm_tensor *running_var, double eps, double momentum)
{
    if (g->result != DDPM_OK || !x || !weight || !bias || !running_mean || !running_var) return NULL;
    const ddpm_tensor *vector[] = {weight, bias, running_mean, running_var};
    for (int i = 0; i < 4; i++)
        if (vector[i]->shape[0] != x->shape[1])
            return shape_error(g, DDPM_OP_BATCH_NORM, x, vector[i], "the second is (C)");
    ddpm_node *node = new_node(g, DDPM_OP_BATCH_NORM, 5, (ddpm_tensor *[]){x, weight, bias, running_mean, running_var},
                               x->shape[1], x->shape[2], x->shape[3]);
    if (!node || !new_aux(g, node, 2, x->shape[1], 1)) return NULL;
    node->attr.norm.eps = eps;
    node->attr.norm.momentum = momentum;
    return node->out;
}

static ddpm_result batch_norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *weight = node->in[1]->data,
                    *bias = node->in[2]->data; /* (N,C,H,W), (C), (C) */
    ddpm_real *running_mean = node->in[3]->data, *running_var = node->in[4]->data, *aux = node->aux->data;
    size_t c = (size_t)node->out->shape[1], plane = (size_t)pixels(node->out);
    double count = (double)g->n * (double)plane, momentum = node->attr.norm.momentum;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < c; i++) {
        double mean = (double)running_mean[i], variance = (double)running_var[i];
        if (g->training) {
            mean = variance = 0;
            for (size_t n = 0; n < (size_t)g->n; n++)
                mean += sum(x + (n * c + i) * plane, plane) / count;
            for (size_t n = 0; n < (size_t)g->n; n++)
                variance += sum_products(x + (n * c + i) * plane, mean, x + (n * c + i) * plane, mean, plane) / count;
            double unbiased = variance * count / (count > 1 ? count - 1 : 1);
            running_mean[i] = (ddpm_real)((1 - momentum) * (double)running_mean[i] + momentum * mean);
            running_var[i] = (ddpm_real)((1 - momentum) * (double)running_var[i] + momentum * unbiased);
        }
        double r = 1 / sqrt(variance + node->attr.norm.eps);
        aux[i] = (ddpm_real)mean;
        aux[c + i] = (ddpm_real)r;
        for (size_t n = 0; n < (size_t)g->n; n++)
            scale_shift_plane(plane, x + (n * c + i) * plane, (ddpm_real)mean, (ddpm_real)(r * (double)weight[i]),
                              bias[i], node->out->data + (n * c + i) * plane);
    }
    return DDPM_OK;
}

static ddpm_result batch_norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_real *x = node->in[0]->data, *weight = node->in[1]->data, *aux = node->aux->data, *dy = node->out->grad;
    ddpm_real *dx = grad_target(g, node, 0), *dw = grad_target(g, node, 1), *db = grad_target(g, node, 2);
    size_t c = (size_t)node->out->shape[1], plane = (size_t)pixels(node->out);
    double count = (double)g->n * (double)plane;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < c; i++) {
        double mean = (double)aux[i], r = (double)aux[c + i], sum_dy = 0, sum_dyh = 0, scale = r * (double)weight[i];
        for (size_t n = 0; n < (size_t)g->n; n++) {
            sum_dy += sum(dy + (n * c + i) * plane, plane);
            sum_dyh += r * sum_products(dy + (n * c + i) * plane, 0, x + (n * c + i) * plane, mean, plane);
        }
        if (dw) dw[i] += (ddpm_real)sum_dyh;
        if (db) db[i] += (ddpm_real)sum_dy;
        double fixed = g->training ? 1 : 0; /* running statistics do not depend on x */
        for (size_t n = 0; n < (size_t)g->n && dx; n++)
            norm_backward_plane(plane, x + (n * c + i) * plane, (ddpm_real)mean, (ddpm_real)r, dy + (n * c + i) * plane,
                                (ddpm_real)scale, (ddpm_real)(-fixed * scale * sum_dyh / count),
                                (ddpm_real)(-fixed * scale * sum_dy / count), dx + (n * c + i) * plane);
    }
    return DDPM_OK;
}

/* ---- Binary cross-entropy -------------------------------------------------------------------------------------------
 * of probabilities, as a sum a picture (torch's BCELoss): y[n] = -sum t log p + (1 - t) log(1 - p), logs at least -100;
 *  dp = (p - t) / max(p (1 - p), 1e-12) */
ddpm_tensor *ddpm_bce(ddpm_graph *g, ddpm_tensor *p, ddpm_tensor *target)
{
    if (g->result != DDPM_OK || !p || !target) return NULL;
    if (!same_picture(p, target)) return shape_error(g, DDPM_OP_BCE, p, target, "alike");
    ddpm_node *node = new_node(g, DDPM_OP_BCE, 2, (ddpm_tensor *[]){p, target}, 1, 1, 1);
    return node ? node->out : NULL;
}

static ddpm_result bce_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t count = ddpm_elements(node->in[0], 1);
    for (size_t n = 0; n < (size_t)g->n; n++) {
        double total = 0;
        for (size_t i = n * count; i < (n + 1) * count; i++) {
            double p = (double)node->in[0]->data[i], t = (double)node->in[1]->data[i], yes = log(p), no = log1p(-p);
            if (!(p >= 0 && p <= 1)) return ddpm_fail(DDPM_ERR_RANGE, "%s: %g is not a probability", node->name, p);
            total -= t * (yes > -100 ? yes : -100) + (1 - t) * (no > -100 ? no : -100);
        }
        node->out->data[n] = (ddpm_real)total;
    }
    return DDPM_OK;
}

static ddpm_result bce_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t count = ddpm_elements(node->in[0], 1);
    ddpm_real *dx = grad_target(g, node, 0);
    for (size_t i = 0; i < (size_t)g->n * count; i++) {
        double p = (double)node->in[0]->data[i], t = (double)node->in[1]->data[i], spread = p * (1 - p);
        dx[i] += (ddpm_real)((p - t) / (spread > 1e-12 ? spread : 1e-12)) * node->out->grad[i / count];
    }
    return DDPM_OK;
}

/* ---- The table --------------------------------------------------------------------------------------------------- */

static const ddpm_row reference_rows[DDPM_OP_COUNT] = {
    [DDPM_OP_CONV2D] = {conv2d_forward, conv2d_backward},
    [DDPM_OP_LINEAR] = {conv2d_forward, conv2d_backward},
    [DDPM_OP_GROUP_NORM] = {group_norm_forward, group_norm_backward},
    [DDPM_OP_ACTIVATION] = {activation_forward, activation_backward},
    [DDPM_OP_ATTENTION] = {attention_forward, attention_backward},
    [DDPM_OP_ADD] = {add_forward, add_backward},
    [DDPM_OP_CONCAT] = {concat_forward, concat_backward},
    [DDPM_OP_UPSAMPLE] = {upsample_forward, upsample_backward},
    [DDPM_OP_TIME_EMBEDDING] = {time_embedding_forward, NULL},
    [DDPM_OP_MSE] = {mse_forward, mse_backward},
    [DDPM_OP_MODULATE] = {modulate_forward, modulate_backward},
    [DDPM_OP_SLICE] = {slice_forward, slice_backward},
    [DDPM_OP_POOL] = {pool_forward, pool_backward},
    [DDPM_OP_PIXEL_UNSHUFFLE] = {shuffle_forward, shuffle_backward},
    [DDPM_OP_PIXEL_SHUFFLE] = {shuffle_forward, shuffle_backward},
    [DDPM_OP_DROPOUT] = {dropout_forward, dropout_backward},
    [DDPM_OP_AFFINE] = {affine_forward, affine_backward},
    [DDPM_OP_FOURIER_EMBEDDING] = {fourier_embedding_forward, NULL},
    [DDPM_OP_EMBEDDING] = {embedding_forward, embedding_backward},
    [DDPM_OP_BATCH_NORM] = {batch_norm_forward, batch_norm_backward},
    [DDPM_OP_BCE] = {bce_forward, bce_backward},
};

/* ---- Blocks and embeddings of other models ----------------------------------------------------------------------- */

/* Downsample2D(use_conv=False) is a mean over 2x2; Upsample2D(use_conv=False) repeats pixels. */
static ddpm_tensor *resample_2x(const builder *b, ddpm_tensor *x, resample how)
{
    return how == RESAMPLE_UP ? ddpm_upsample(b->g, x, 2) : ddpm_pool(b->g, x, DDPM_POOL_MEAN, 2, 2, 0);
}

/* GaussianFourierProjection(scale=16): weights drawn once, N(0, 16^2), not trained. */
static ddpm_tensor *fourier_projection(const builder *b, ddpm_tensor *t)
{
    const int width = b->config->block_out_channels[0];
    ddpm_tensor *weight = ddpm_param(b->g, b->model, "time_proj.weight", 1, &width, DDPM_INIT_NORMAL, 16, 0);
    return ddpm_fourier_embedding(b->g, t, weight);
}

/* class_embed_type identity: labels are embeddings already; timestep: like t; null with num_class_embeds: a table. */
static ddpm_tensor *class_embedding(const builder *b, ddpm_tensor *labels, int dim)
{
    if (b->config->class_embed_type == DDPM_CLASS_IDENTITY) return labels;
    if (b->config->class_embed_type == DDPM_CLASS_TIMESTEP)
        return timestep_embedding(b, "class_embedding", time_projection(b, labels), dim);
    const int shape[2] = {b->config->num_class_embeds, dim};
    size_t mark = ddpm_enter(b->g, "class_embedding");
    labels = ddpm_embedding(b->g, labels, ddpm_param(b->g, b->model, "weight", 2, shape, DDPM_INIT_NORMAL, 1, 1));
    ddpm_leave(b->g, mark);
    return labels;
}

static ddpm_result check_config(const ddpm_model_config *config)
{
    const ddpm_unet_config *c = &config->unet;
    const struct {
        const char *name;
        double value, least, most;
    } field[] = {
        {"levels (length of block_out_channels)", c->levels, 1, DDPM_MAX_LEVELS},
        {"in_channels", c->in_channels, 1, 65536},
        {"out_channels", c->out_channels, 1, 65536},
        {"sample_size", c->sample_size[0], 0, 65536},
        {"sample_size", c->sample_size[1], 0, 65536},
        {"layers_per_block", c->layers_per_block, 1, 64},
        {"norm_num_groups", c->norm_num_groups, 1, 65536},
        {"attn_norm_num_groups", c->attn_norm_num_groups, 0, 65536},
        {"attention_head_dim", c->attention_head_dim, 0, 65536},
        {"norm_eps", c->norm_eps, 0, 1},
        {"dropout", c->dropout, 0, 1},
        {"downsample_padding", c->downsample_padding, 0, 1},
        {"mid_block_scale_factor", c->mid_block_scale_factor, 1e-6, 1e6},
        {"time_embedding_dim", c->time_embedding_dim, 0, 1 << 20},
        {"num_class_embeds", c->num_class_embeds, 0, 1 << 24},
        {"label encoder's num_classes", config->label.num_classes, 0, 1 << 20},
        {"pixel_unshuffle", config->pixel_unshuffle, 0, 64},
    };
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (!(field[i].value >= field[i].least && field[i].value <= field[i].most))
            return ddpm_fail(DDPM_ERR_ARGUMENT, "config: %s is %g, accepted are %g to %g", field[i].name,
                             field[i].value, field[i].least, field[i].most);
    int half = c->block_out_channels[0] / 2;
    if (c->time_embedding_type == DDPM_TIME_POSITIONAL && half > 0 && c->freq_shift == half)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "config: freq_shift is %g, half of block_out_channels[0], and the time embedding divides by "
                         "the difference\n      hint: 0 and 1 are usual",
                         c->freq_shift);
    for (int i = 0; i < c->levels; i++) {
        int channels = c->block_out_channels[i],
            attention = c->down_block_types[i] == DDPM_ATTN_BLOCK ||
                        c->up_block_types[c->levels - 1 - i] == DDPM_ATTN_BLOCK ||
                        (i == c->levels - 1 && c->mid_block_type && c->add_attention);
        if (channels < 1 || channels > 65536)
            return ddpm_fail(DDPM_ERR_ARGUMENT, "config: block_out_channels[%d] is %d, accepted are 1 to 65536", i,
                             channels);
        if (attention && c->attention_head_dim > channels)
            return ddpm_fail(DDPM_ERR_SHAPE, "config: attention_head_dim %d is more than the %d channels of level %d",
                             c->attention_head_dim, channels, i);
    }
    if (config->label.num_classes &&
        (c->class_embed_type != DDPM_CLASS_IDENTITY || config->label.embedding_dim != time_embed_dim(c)))
        return ddpm_fail(
            DDPM_ERR_SHAPE,
            "label encoder: it gives %d values, the UNet's class embedding (%s) takes %d\n      hint: class_embed_type "
            "\"identity\" and embedding_dim %d",
            config->label.embedding_dim, c->class_embed_type == DDPM_CLASS_IDENTITY ? "identity" : "not identity",
            time_embed_dim(c), time_embed_dim(c));
    if (config->label.num_classes && config->label.hidden_dim < 1)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "label encoder: hidden_dim is %d", config->label.hidden_dim);
    return DDPM_OK;
}

ddpm_model_config ddpm_model_default(void)
{
    ddpm_model_config c = {.unet = {.in_channels = 3,
                                    .out_channels = 3,
                                    .flip_sin_to_cos = 1,
                                    .levels = 4,
                                    .mid_block_type = 1,
                                    .layers_per_block = 2,
                                    .mid_block_scale_factor = 1,
                                    .downsample_padding = 1,
                                    .attention_head_dim = 8,
                                    .norm_num_groups = 32,
                                    .norm_eps = 1e-5,
                                    .add_attention = 1},
                           .pixel_unshuffle = 1};
    for (int i = 0; i < 4; i++) {
        c.unet.block_out_channels[i] = 224 * (i + 1);
        c.unet.down_block_types[i] = i > 0 ? DDPM_ATTN_BLOCK : DDPM_PLAIN_BLOCK;
        c.unet.up_block_types[i] = i < 3 ? DDPM_ATTN_BLOCK : DDPM_PLAIN_BLOCK;
    }
    return c;
}

ddpm_model_config ddpm_model_preset(const char *name, int classes)
{
    static const struct {
        const char *name;
        int size, levels, channels[6], attention, layers, groups;
    } presets[] = {
        {"lab", 64, 6, {128, 128, 256, 256, 512, 512}, 4, 2, 32},
        {"small", 32, 4, {64, 128, 128, 256}, 2, 2, 32},
        {"tiny", 32, 2, {32, 64}, 1, 1, 16},
    };
    ddpm_model_config c = ddpm_model_default();
    c.unet.levels = 0;
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++) {
        if (strcmp(presets[p].name, name) != 0) continue;
        c.unet.sample_size[0] = c.unet.sample_size[1] = presets[p].size;
        c.unet.levels = presets[p].levels;
        c.unet.layers_per_block = presets[p].layers;
        c.unet.norm_num_groups = presets[p].groups;
        for (int i = 0; i < c.unet.levels; i++) {
            c.unet.block_out_channels[i] = presets[p].channels[i];
            c.unet.down_block_types[i] = i == presets[p].attention ? DDPM_ATTN_BLOCK : DDPM_PLAIN_BLOCK;
            c.unet.up_block_types[i] =
                c.unet.levels - 1 - i == presets[p].attention ? DDPM_ATTN_BLOCK : DDPM_PLAIN_BLOCK;
        }
        if (classes > 0) {
            c.unet.class_embed_type = DDPM_CLASS_IDENTITY;
            c.label = (ddpm_label_config){classes, 64, time_embed_dim(&c.unet)};
        }
    }
    return c;
}

/* ---- Pictures that a network takes ------------------------------------------------------------------------------- */

/* Size and channels of a picture for this model; 0 asks for the config's own. */
static ddpm_result picture_size(const ddpm_model_config *c, int height, int width, ddpm_net *net)
{
    int factor = c->pixel_unshuffle > 1 ? c->pixel_unshuffle : 1, multiple = factor << (c->unet.levels - 1);
    if (c->unet.in_channels % (factor * factor) || c->unet.out_channels % (factor * factor))
        return ddpm_fail(DDPM_ERR_SHAPE, "in_channels %d and out_channels %d: pixel_unshuffle %d needs multiples of %d",
                         c->unet.in_channels, c->unet.out_channels, factor, factor * factor);
    net->channels = c->unet.in_channels / (factor * factor);
    net->out_channels = c->unet.out_channels / (factor * factor);
    net->height = height ? height : c->unet.sample_size[0] * factor;
    net->width = width ? width : c->unet.sample_size[1] * factor;
    if (!net->height) net->height = multiple;
    if (!net->width) net->width = multiple;
    if (net->height < 1 || net->width < 1 || net->height % multiple || net->width % multiple)
        return ddpm_fail(
            DDPM_ERR_SHAPE,
            "a picture of %dx%d cannot be halved %d times (%d levels)\n      hint: width and height must be "
            "multiples of %d",
            net->width, net->height, c->unet.levels - 1, c->unet.levels, multiple);
    return DDPM_OK;
}

/* The noise of a picture has the picture's channels: a network whose output has others can predict, but not this. */
static ddpm_result predicts_noise(const ddpm_net *net)
{
    if (net->channels == net->out_channels) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_SHAPE,
                     "in_channels %d and out_channels %d differ: such a network cannot be trained or sampled "
                     "as a diffusion model\n      hint: ddpm predict runs it once",
                     net->channels, net->out_channels);
}

/* ---- Other noise schedules --------------------------------------------------------------------------------------- */

ddpm_schedule_config ddpm_schedule_default(void)
{
    return (ddpm_schedule_config){.num_train_timesteps = 1000,
                                  .beta_start = 1e-4,
                                  .beta_end = 0.02,
                                  .clip_sample = 1,
                                  .clip_sample_range = 1,
                                  .dynamic_thresholding_ratio = 0.995,
                                  .sample_max_value = 1,
                                  .set_alpha_to_one = 1,
                                  .solver_order = 2,
                                  .lower_order_final = 1,
                                  .lambda_min_clipped = -(double)INFINITY};
}

static ddpm_result check_schedule(const ddpm_schedule_config *c)
{
    int steps = c->num_train_timesteps;
    if (steps < 2 || steps > 1000000)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "num_train_timesteps is %d\n      hint: 1000 is usual; at least 2", steps);
    const struct {
        const char *name;
        double value, least, most;
    } field[] = {
        {"beta_start", c->beta_start, 0, 1},
        {"beta_end", c->beta_end, 0, 1},
        {"clip_sample_range", c->clip_sample_range, 0, 1e30},
        {"dynamic_thresholding_ratio", c->dynamic_thresholding_ratio, 0, 1},
        {"sample_max_value", c->sample_max_value, 0, 1e30},
        {"steps_offset", c->steps_offset, 0, 1000000},
        {"solver_order", c->solver_order, 1, 2},
    };
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (!(field[i].value >= field[i].least && field[i].value <= field[i].most))
            return ddpm_fail(DDPM_ERR_ARGUMENT, "schedule: %s is %g, accepted are %g to %g", field[i].name,
                             field[i].value, field[i].least, field[i].most);
    for (int i = 0; c->trained_betas && i < steps; i++)
        if (!(c->trained_betas[i] >= 0 && c->trained_betas[i] <= 1))
            return ddpm_fail(DDPM_ERR_ARGUMENT, "schedule: trained_betas[%d] is %g, accepted are 0 to 1", i,
                             c->trained_betas[i]);
    return DDPM_OK;
}

/* torch.linspace in float32: from both ends towards the middle, each value one fused multiply-add. */
static float linspace(float start, float end, int steps, int i)
{
    float step = (end - start) / (float)(steps - 1);
    return i < steps / 2 ? fmaf(step, (float)i, start) : fmaf(-step, (float)(steps - 1 - i), end);
}

/* abar(s) = sqrt(r / (1 + r)), log r = -sign(1/2 - s)/2 log(1 - 2 |1/2 - s| + 1e-6): a Laplace density of log(SNR)
 * (Hang et al. 2024; diffusers' betas_for_alpha_bar) */
static double laplace(double s)
{
    double ratio = exp(-0.5 * copysign(1, 0.5 - s) * log(1 - 2 * fabs(0.5 - s) + 1e-6));
    return sqrt(ratio / (1 + ratio));
}

static float other_beta(const ddpm_schedule_config *c, int i)
{
    int steps = c->num_train_timesteps;
    float root;
    double beta;
    switch (c->beta_schedule) {
    case DDPM_BETA_SCALED_LINEAR: /* linear in sqrt(beta): Rombach et al. 2022 */
        root = linspace((float)sqrt(c->beta_start), (float)sqrt(c->beta_end), steps, i);
        return root * root;
    case DDPM_BETA_SIGMOID: /* of -6 to 6: Xu et al. 2022 (GeoDiff) */
        root = (float)(1 / (1 + exp(-(double)linspace(-6, 6, steps, i))));
        return root * (float)(c->beta_end - c->beta_start) + (float)c->beta_start;
    case DDPM_BETA_LAPLACE:
        beta = 1 - laplace((double)(i + 1) / steps) / laplace((double)i / steps);
        return (float)(beta < 0.999 ? beta : 0.999);
    default: return linspace((float)c->beta_start, (float)c->beta_end, steps, i);
    }
}

static void other_betas(ddpm_schedule *s)
{
    const ddpm_schedule_config *c = &s->config;
    for (int i = 0; i < c->num_train_timesteps; i++)
        if (c->trained_betas)
            s->beta[i] = (float)c->trained_betas[i];
        else if (c->beta_schedule != DDPM_BETA_SQUAREDCOS_CAP_V2)
            s->beta[i] = other_beta(c, i);
}

/* sqrt(abar) shifted so that the last is 0, and scaled so that the first stays (Lin et al. 2023, algorithm 1;
 * diffusers' rescale_zero_terminal_snr, in float32 as there). */
static ddpm_result rescale_betas(ddpm_schedule *s)
{
    int last = s->config.num_train_timesteps - 1;
    float first_root = sqrtf(s->alpha_bar[0]), last_root = sqrtf(s->alpha_bar[last]),
          scale = first_root / (first_root - last_root);
    if (!(first_root > last_root))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "rescale_betas_zero_snr: these betas add no noise\n"
                                            "      hint: alpha_bar must fall from t = 0 to T - 1");
    float before = 1;
    for (int i = 0; i <= last; i++) {
        float root = (sqrtf(s->alpha_bar[i]) - last_root) * scale, square = root * root;
        if (!(before > 0))
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "rescale_betas_zero_snr: alpha_bar is 0 at t = %d already, before the end\n      hint: a "
                             "smaller beta_end or num_train_timesteps",
                             i - 1);
        s->beta[i] = 1 - square / before;
        before = square;
    }
    multiply_alphas(s);
    return DDPM_OK;
}

static void set_terms(ddpm_net *net, combination what, int terms, const double *c, int per_picture)
{
    size_t capacity = (size_t)net->graph->capacity;
    ddpm_real *to = net->host_coefficients + 4 * capacity * (size_t)what;
    for (int k = 0; k < terms; k++)
        for (int n = 0; n < net->graph->n; n++)
            to[(size_t)k * capacity + (size_t)n] = (ddpm_real)c[per_picture ? k * net->graph->n + n : k];
}

static ddpm_result upload_terms(ddpm_net *net)
{
    return ddpm_upload(net->model->device, net->coefficients, DDPM_DATA, net->graph->capacity, net->host_coefficients);
}

ddpm_result ddpm_add_noise(ddpm_net *net, const ddpm_schedule *s, const int *t, int n)
{
    ddpm_graph *g = net->graph;
    if (n < 1 || n > g->capacity)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures in a network built for 1 to %d", n, g->capacity);
    TRY(predicts_noise(net));
    for (int i = 0; i < n; i++)
        if (t[i] < 0 || t[i] >= s->config.num_train_timesteps)
            return ddpm_fail(DDPM_ERR_RANGE, "t[%d] = %d is outside [0,%d)", i, t[i], s->config.num_train_timesteps);
    TRY(ddpm_graph_alloc(g));
    TRY(set_noise(net, s, t, n));
    TRY(upload_terms(net));
    return add_noise(net);
}

/* net->noise becomes what the network is to predict: x_0, or v = sqrt(abar) eps - sqrt(1 - abar) x_0
 * (Salimans & Ho 2022; DDPMScheduler.get_velocity). */
static void set_target_terms(ddpm_net *net, const ddpm_schedule *s, const int *t)
{
    int n = net->graph->n, v = s->config.prediction_type == DDPM_PREDICTS_V;
    for (int i = 0; i < n; i++) {
        net->host_terms[i] = v ? (double)sqrtf(s->alpha_bar[t[i]]) : 1;
        net->host_terms[n + i] = -(double)sqrtf(1 - s->alpha_bar[t[i]]);
    }
    set_terms(net, OF_TARGET, v ? 2 : 1, net->host_terms, 1);
}

static ddpm_result set_target(ddpm_net *net, const ddpm_schedule *s)
{
    if (s->config.prediction_type == DDPM_PREDICTS_EPSILON) return DDPM_OK;
    if (s->config.prediction_type == DDPM_PREDICTS_SAMPLE)
        return combine(net, OF_TARGET, net->noise, 1, &net->image, 0);
    return combine(net, OF_TARGET, net->noise, 2, (ddpm_tensor *[]){net->noise, net->image}, 0);
}

/* ---- Other samplers ---------------------------------------------------------------------------------------------- */

ddpm_sample_config ddpm_sample_default(void)
{
    return (ddpm_sample_config){DDPM_SAMPLER_DDPM, 0, 0, 529, 0, 1, NULL, NULL, 0, 0};
}

/* The first t that DPM-Solver++ uses, plus 1: below it, log(alpha/sigma) is at least lambda_min_clipped. */
static int clipped_steps(const ddpm_schedule *s)
{
    int steps = s->config.num_train_timesteps, zero_snr = s->config.rescale_betas_zero_snr, clipped = 0;
    for (int t = 0; t < steps; t++) {
        float abar = zero_snr && t == steps - 1 ? 0x1p-24f : s->alpha_bar[t];
        float lambda = logf(sqrtf(abar)) - logf(sqrtf(1 - abar));
        clipped += (double)lambda < s->config.lambda_min_clipped;
    }
    return steps - clipped;
}

/* numpy's linspace and arange in double, rounded half to even, as the schedulers' set_timesteps calls them.
 * DPM-Solver++ spreads one step more and leaves out the last, except with trailing. */
static ddpm_result other_timesteps(const ddpm_schedule *s, ddpm_sampler sampler, int steps, int *out)
{
    int solver = sampler == DDPM_SAMPLER_DPMSOLVER, points = solver ? steps + 1 : steps;
    int total = s->config.num_train_timesteps, end = solver ? clipped_steps(s) : total;
    double step = points > 1 ? (double)(end - 1) / (points - 1) : 0;
    double down = ((double)end - (double)total / steps) - end; /* arange's: the second value less the first */
    for (int i = 0; i < steps; i++) {
        int k = points - 1 - i;
        switch (s->config.timestep_spacing) {
        case DDPM_SPACING_LINSPACE: out[i] = i == 0 && points > 1 ? end - 1 : (int)rint(k * step); break;
        case DDPM_SPACING_TRAILING: out[i] = (int)rint(end + i * down) - 1; break;
        case DDPM_SPACING_LEADING: /* of all but DPM-Solver++ it is there already */
            if (solver) out[i] = k * (end / points) + s->config.steps_offset;
            break;
        }
        if (out[i] < 0 || out[i] >= total || (i && out[i] >= out[i - 1]))
            return ddpm_fail(
                DDPM_ERR_RANGE,
                "%d sampling steps cannot be spread: t of step %d would be %d, of T = %d\n      hint: fewer "
                "steps, or another timestep_spacing, steps_offset or lambda_min_clipped",
                steps, i, out[i], total);
    }
    return DDPM_OK;
}

/* x_0 from x_t = a x_0 + b eps and a prediction of eps, of x_0, or of v = a eps - b x_0; a = signal, b = noise. */
static void convert_prediction(ddpm_step_terms *terms, ddpm_prediction_type type, double a, double b)
{
    terms->x0_sample = type == DDPM_PREDICTS_EPSILON ? 1 / a : type == DDPM_PREDICTS_V ? a : 0;
    terms->x0_prediction = type == DDPM_PREDICTS_EPSILON ? -b / a : type == DDPM_PREDICTS_V ? -b : 1;
}

/* x' = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps + sigma z,  abar' of T/steps earlier
 * sigma = eta sqrt((1 - abar')/(1 - abar) (1 - abar/abar'))
 * (Song et al. 2021, eq. 12 and 16; DDIMScheduler.step, in float32 as there)
 * where eps, if x_0 or v is predicted, is that of x_t and of x_0 before clipping. */
static ddpm_step_terms ddim_terms(const ddpm_schedule *s, const int *t, int steps, int i, double eta)
{
    const ddpm_schedule_config *config = &s->config;
    int before = t[i] - config->num_train_timesteps / steps;
    float abar = s->alpha_bar[t[i]], previous = before >= 0                ? s->alpha_bar[before]
                                                : config->set_alpha_to_one ? 1
                                                                           : s->alpha_bar[0];
    float variance = (1 - previous) / (1 - abar) * (1 - abar / previous), sigma = (float)eta * sqrtf(variance);
    float square = 1 - previous - sigma * sigma, direction = square > 0 ? sqrtf(square) : 0;
    double signal = (double)sqrtf(abar), noise = (double)sqrtf(1 - abar);
    ddpm_step_terms terms = {.clamp = config->clip_sample ? config->clip_sample_range : 0,
                             .image = (double)sqrtf(previous),
                             .noise = (double)sigma};
    convert_prediction(&terms, config->prediction_type, signal, noise);
    switch (config->prediction_type) {
    case DDPM_PREDICTS_EPSILON: terms.prediction = (double)direction; break;
    case DDPM_PREDICTS_SAMPLE: /* eps = (x_t - a x_0) / b */
        terms.sample = (double)direction / noise;
        terms.prediction = -(double)direction * signal / noise;
        break;
    case DDPM_PREDICTS_V: /* eps = b x_t + a v */
        terms.sample = (double)direction * noise;
        terms.prediction = (double)direction * signal;
        break;
    }
    return terms;
}

typedef struct solver_point { /* x = alpha x_0 + sigma eps, lambda = log(alpha/sigma) */
    float alpha, sigma, lambda;
} solver_point;

/* Before step i of `steps`; i = steps: after the last. */
static solver_point point_before(const ddpm_schedule *s, const int *t, int steps, int i)
{
    int last = s->config.num_train_timesteps - 1, at = i < steps ? t[i] : 0;
    float abar = s->config.rescale_betas_zero_snr && at == last ? 0x1p-24f : s->alpha_bar[at];
    float ratio = i == steps && s->config.final_sigmas_type == DDPM_FINAL_SIGMA_ZERO ? 0 : sqrtf((1 - abar) / abar);
    float alpha = 1 / sqrtf(ratio * ratio + 1), sigma = ratio * alpha;
    return (solver_point){alpha, sigma, logf(alpha) - logf(sigma)};
}

/* h = lambda' - lambda, r = (lambda - lambda before) / h, x_0' the estimate of the step before:
 * x' = sigma'/sigma x_t - alpha' (e^-h - 1) x_0 + d (x_0 - x_0') / r
 * d = -alpha' (e^-h - 1) / 2  (midpoint)  or  alpha' ((e^-h - 1)/h + 1)  (heun);  0 in a step of first order
 * (Lu et al. 2022, DPM-Solver++ (2M); DPMSolverMultistepScheduler.step, in float32 as there) */
static ddpm_step_terms solver_terms(const ddpm_schedule *s, const int *t, int steps, int i)
{
    const ddpm_schedule_config *c = &s->config;
    solver_point now = point_before(s, t, steps, i), next = point_before(s, t, steps, i + 1);
    float h = next.lambda - now.lambda, growth = next.alpha * (expf(-h) - 1);
    ddpm_step_terms terms = {.sample = (double)(next.sigma / now.sigma), .image = -(double)growth};
    convert_prediction(&terms, c->prediction_type, (double)now.alpha, (double)now.sigma);
    int plain_end = i == steps - 1 && (c->euler_at_final || (c->lower_order_final && steps < 15) ||
                                       c->final_sigmas_type == DDPM_FINAL_SIGMA_ZERO);
    if (c->solver_order == 1 || i == 0 || plain_end) return terms;
    float r = (now.lambda - point_before(s, t, steps, i - 1).lambda) / h;
    float d = c->solver_type == DDPM_SOLVER_MIDPOINT ? -0.5f * growth : next.alpha * ((expf(-h) - 1) / h + 1);
    terms.image += (double)d / (double)r;
    terms.previous = -(double)d / (double)r;
    return terms;
}

static ddpm_step_terms other_sampler(const ddpm_schedule *s, ddpm_sampler sampler, const int *t, int steps, int i,
                                     double eta)
{
    return sampler == DDPM_SAMPLER_DDIM ? ddim_terms(s, t, steps, i, eta) : solver_terms(s, t, steps, i);
}

static ddpm_result check_terms(const ddpm_step_terms *c, int t)
{
    if (isfinite(c->x0_sample + c->x0_prediction + c->image + c->sample + c->prediction + c->noise + c->previous))
        return DDPM_OK;
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "no sampling step is defined at t = %d: nothing of x_0 is left there (or no noise)\n      hint: "
                     "rescale_betas_zero_snr needs prediction_type v_prediction or sample",
                     t);
}

static int ascending(const void *a, const void *b)
{
    ddpm_real x = *(const ddpm_real *)a, y = *(const ddpm_real *)b;
    return (x > y) - (x < y);
}

/* Dynamic thresholding of net->image: x = clamp(x, -q, q) / q for each picture, q the quantile of its |x|, within 1 and
 * sample_max_value (Saharia et al. 2022, section 2.3; DDPMScheduler._threshold_sample, torch.quantile). On the host,
 * which has the time: a network ran before. */
static ddpm_result threshold(ddpm_net *net, const ddpm_schedule_config *config)
{
    int n = net->graph->n;
    size_t picture = ddpm_elements(net->image, 1);
    ddpm_real *image = aligned_alloc_zero(((size_t)n + 1) * picture * sizeof *image);
    if (!image) return DDPM_ERR_MEMORY;
    ddpm_real *sorted = image + (size_t)n * picture;
    float rank = (float)config->dynamic_thresholding_ratio * (float)(picture - 1), below = floorf(rank);
    ddpm_result result = ddpm_download(net->model->device, net->image, DDPM_DATA, n, image);
    for (int k = 0; k < n && result == DDPM_OK; k++) {
        ddpm_real *x = image + (size_t)k * picture, weight = (ddpm_real)(rank - below);
        for (size_t i = 0; i < picture; i++)
            sorted[i] = x[i] < 0 ? -x[i] : x[i];
        qsort(sorted, picture, sizeof *sorted, ascending);
        ddpm_real low = sorted[(size_t)below], high = sorted[(size_t)ceilf(rank)];
        ddpm_real q = weight < (ddpm_real)0.5 ? low + weight * (high - low) : high - (high - low) * (1 - weight);
        if (q < 1) q = 1;
        if (q > (ddpm_real)config->sample_max_value) q = (ddpm_real)config->sample_max_value;
        for (size_t i = 0; i < picture; i++)
            x[i] = (x[i] < -q ? -q : x[i] > q ? q : x[i]) / q;
    }
    if (result == DDPM_OK) result = ddpm_upload(net->model->device, net->image, DDPM_DATA, n, image);
    aligned_free(image);
    return result;
}

/* ---- Classifier-free guidance ------------------------------------------------------------------------------------
 * eps = eps_none + G (eps_label - eps_none)    (Ho & Salimans 2022, eq. 6 with G = 1 + w)
 * as one batch of 2n: pictures 0..n-1 with their labels, n..2n-1 the same x_t with "no label". */

static int is_guided(double guidance)
{
    return guidance != 0 && guidance != 1; /* at 0 and 1 one of the two terms is left */
}

/* The tensor from picture `first` on. */
static ddpm_tensor pictures_from(const ddpm_tensor *x, int first)
{
    ddpm_tensor view = *x;
    view.data += (size_t)first * ddpm_elements(x, 1);
    return view;
}

static ddpm_result check_guidance(const ddpm_net *net, const ddpm_sample_config *c, int n)
{
    int capacity = net->graph->capacity;
    if (c->guidance == 1) return DDPM_OK;
    if (!isfinite(c->guidance)) return ddpm_fail(DDPM_ERR_ARGUMENT, "guidance is not a finite number");
    if (!net->labels)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "guidance %g needs labels, this model has none\n      hint: guidance 1 is without",
                         c->guidance);
    if (!c->none && net->model->config.unet.class_embed_type != DDPM_CLASS_IDENTITY)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "guidance %g: this model's labels are numbers, and none of them is known to mean \"no label\""
                         "\n      hint: `none` of ddpm_sample_config",
                         c->guidance);
    if (is_guided(c->guidance) && n > capacity / 2)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "guidance %g runs %d pictures as %lld, the network was built for %d\n      hint: "
                         "ddpm_net_create with twice the capacity, or fewer pictures at once",
                         c->guidance, n, 2LL * n, capacity);
    return DDPM_OK;
}

static ddpm_result upload_labels(ddpm_net *net, const ddpm_sample_config *c, const ddpm_real *labels, int n)
{
    const ddpm_device *device = net->model->device;
    TRY(check_guidance(net, c, n));
    if (!net->labels) return DDPM_OK;
    if (c->guidance != 0) TRY(ddpm_upload(device, net->labels, DDPM_DATA, n, labels));
    if (c->guidance == 1) return DDPM_OK;
    size_t width = ddpm_elements(net->labels, 1);
    ddpm_real *none = aligned_alloc_zero((size_t)n * width * sizeof *none);
    if (!none) return DDPM_ERR_MEMORY;
    for (size_t i = 0; c->none && i < (size_t)n * width; i++)
        none[i] = c->none[i % width];
    ddpm_tensor place = pictures_from(net->labels, c->guidance != 0 ? n : 0);
    ddpm_result result = ddpm_upload(device, &place, DDPM_DATA, n, none);
    aligned_free(none);
    return result;
}

/* net->sample, pure noise, becomes x_t of the start picture where there is one. */
static ddpm_result start_at(ddpm_net *net, const ddpm_schedule *s, const ddpm_sample_config *c, const int *t, int steps)
{
    if (c->skip < 0 || c->skip >= steps || (c->skip && !c->start))
        return ddpm_fail(
            DDPM_ERR_ARGUMENT,
            "%d of %d sampling steps cannot be left out%s\n      hint: 0 to %d, and a picture to start from", c->skip,
            steps, c->start ? "" : " when starting from noise", steps - 1);
    if (!c->start) return DDPM_OK;
    double abar = (double)s->alpha_bar[t[c->skip]];
    TRY(ddpm_upload(net->model->device, net->image, DDPM_DATA, net->graph->n, c->start));
    set_terms(net, OF_SAMPLE, 2, (double[]){sqrt(abar), sqrt(1 - abar)}, 0);
    TRY(upload_terms(net));
    return combine(net, OF_SAMPLE, net->sample, 2, (ddpm_tensor *[]){net->image, net->sample}, 0);
}

/* Forward as in module.eval(), also on a network built for training: no dropout, running statistics. */
static ddpm_result forward_eval(ddpm_net *net, int n)
{
    ddpm_graph *g = net->graph;
    if (!net->model->array[net->model->in_use])
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "the model holds no weights\n      hint: ddpm_model_alloc, then ddpm_model_init "
                         "or load a file");
    int training = g->training;
    g->training = 0;
    ddpm_result result = ddpm_graph_forward(g, n);
    g->training = training;
    return result;
}

static ddpm_result prepare_sampling(const drawing *d)
{
    ddpm_tensor *x[4];
    double c[4];
    set_terms(d->net, OF_IMAGE, 2, (double[]){d->terms.x0_sample, d->terms.x0_prediction}, 0);
    set_terms(d->net, OF_SAMPLE, step_inputs(d, c, x), c, 0);
    set_terms(d->net, OF_GUIDED, 2, (double[]){d->c->guidance, 1 - d->c->guidance}, 0);
    set_terms(d->net, OF_COPY, 1, (double[]){1}, 0);
    int all = is_guided(d->c->guidance) ? 2 * d->n : d->n;
    for (int i = 0; i < all; i++)
        d->net->host_values[i] = (ddpm_real)d->t;
    TRY(upload_terms(d->net));
    return ddpm_upload(d->net->model->device, d->net->timestep, DDPM_DATA, all, d->net->host_values);
}

/* net->prediction of net->sample. */
static ddpm_result predict_guided(const drawing *d)
{
    ddpm_net *net = d->net;
    if (!is_guided(d->c->guidance)) return forward_eval(net, d->n);
    ddpm_tensor sample = pictures_from(net->sample, d->n), none = pictures_from(net->prediction, d->n);
    TRY(combine(net, OF_COPY, &sample, 1, &net->sample, 0));
    TRY(forward_eval(net, 2 * d->n));
    net->graph->n = d->n;
    return combine(net, OF_GUIDED, net->prediction, 2, (ddpm_tensor *[]){net->prediction, &none}, 0);
}

/* ---- Steps that a device repeats -----------------------------------------------------------------------------------
 * A key holds what the device is asked for by: sizes, which terms there are, which arrays. Whatever has its say on the
 * host keeps a step from being repeated. */

static int arrays_of(const ddpm_model *model)
{
    int there = 0;
    for (int i = 0; i < DDPM_ARRAYS; i++)
        there |= (model->array[i] != NULL) << i;
    return there;
}

static ddpm_result repeat(ddpm_graph *g, const char *key, int on_host, ddpm_result (*work)(void *), void *of)
{
    const ddpm_backend *backend = backend_of(g->device);
    return backend->repeat && !on_host ? backend->repeat(g, key, work, of) : work(of);
}

static ddpm_result repeat_training(ddpm_trainer *trainer, int first)
{
    const ddpm_net *net = trainer->net;
    char key[96];
    snprintf(key, sizeof key, "train %d%s%s, predict %d, array %d of %x", net->graph->n, first ? "" : ", first",
             first + net->graph->n < trainer->now.n ? "" : ", last", (int)trainer->schedule->config.prediction_type,
             (int)net->model->in_use, (unsigned)arrays_of(net->model));
    return repeat(net->graph, key, net->pull || trainer->ranks, run_micro_batch, trainer);
}

static ddpm_result repeat_sampling(drawing *d)
{
    const ddpm_net *net = d->net;
    const ddpm_step_terms *terms = &d->terms;
    char key[96];
    snprintf(key, sizeof key, "sample %d%s by %d, terms %d%d%d%d, clamp %.9g, array %d", d->n,
             is_guided(d->c->guidance) ? " guided" : "", (int)d->c->sampler, terms->sample != 0, terms->prediction != 0,
             terms->noise != 0, terms->previous != 0, terms->clamp, (int)net->model->in_use);
    return repeat(net->graph, key, net->guide || d->s->config.thresholding || d->rng, sampling_step, d);
}

/* ---- Training with other recipes ------------------------------------------------------------------------------ */

ddpm_result ddpm_trainer_init(ddpm_trainer *trainer, ddpm_net *net, const ddpm_schedule *s,
                              const ddpm_train_config *config)
{
    *trainer = (ddpm_trainer){.net = net, .schedule = s, .config = config ? *config : ddpm_train_default()};
    if (!net->loss)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "this network was built without a loss\n      hint: ddpm_net_create(..., training = 1)");
    TRY(predicts_noise(net));
    for (int i = 0; i < DDPM_EMA; i++)
        if (!net->model->array[i])
            return ddpm_fail(DDPM_ERR_ARGUMENT, "the model has no room for gradients and moments\n"
                                                "      hint: ddpm_model_alloc(model, DDPM_FOR_TRAINING)");
    return ddpm_model_use(net->model, DDPM_WEIGHT);
}

int ddpm_part(int n, int rank, int size, int *first)
{
    *first = (int)((int64_t)n * rank / size);
    return (int)((int64_t)n * (rank + 1) / size) - *first;
}

double ddpm_multistep_lr(double lr, int epoch, const int *milestones, int count, double gamma)
{
    for (int i = 0; i < count; i++)
        if (milestones[i] <= epoch) lr *= gamma;
    return lr;
}

double ddpm_cosine_factor(uint64_t step, uint64_t warmup, uint64_t total)
{
    if (step < warmup) return (double)step / (double)warmup;
    if (total == 0) return 1;
    double share = total > warmup ? (double)(step - warmup) / (double)(total - warmup) : 1;
    return share < 1 ? 0.5 * (1 + cos(3.14159265358979323846 * share)) : 0;
}

void ddpm_drop_labels(ddpm_address first, double p, ddpm_real none, int n, int width, ddpm_real *labels)
{
    first.purpose = DDPM_RANDOM_LABEL_DROPOUT;
    for (int i = 0; i < n; i++, first.picture++) {
        uint32_t word[4];
        ddpm_philox(first, 0, word);
        for (int k = 0; k < width && word[0] * 0x1p-32 < p; k++)
            labels[(size_t)i * (size_t)width + (size_t)k] = none;
    }
}

double ddpm_snr_weight(const ddpm_schedule *s, int t, double gamma)
{
    double abar = (double)s->alpha_bar[t], noise = 1 - abar;
    if (gamma <= 0) return 1;
    double least = abar < gamma * noise ? abar : gamma * noise; /* min(snr, gamma) (1 - abar) */
    switch (s->config.prediction_type) {
    case DDPM_PREDICTS_SAMPLE: return least / noise;
    case DDPM_PREDICTS_V: return least; /* snr + 1 = 1 / (1 - abar) */
    default: return abar > 0 ? least / abar : 1;
    }
}

static double weigh_picture(const ddpm_trainer *trainer, int i, int t, double square)
{
    if (trainer->picture_loss) trainer->picture_loss[i] = square / (double)ddpm_elements(trainer->net->prediction, 1);
    if (trainer->picture_t) trainer->picture_t[i] = t;
    return ddpm_snr_weight(trainer->schedule, t, trainer->config.snr_gamma);
}

ddpm_result ddpm_train_batch(ddpm_trainer *trainer, const ddpm_real *pictures, const ddpm_real *labels, int n)
{
    ddpm_net *net = trainer->net;
    const ddpm_backend *backend = backend_of(net->graph->device);
    if (n < 1 || !pictures || (net->labels && !labels))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a training step needs pictures and their labels");
    const ddpm_ranks *ranks = trainer->ranks;
    int first = 0, all = n;
    if (ranks) n = ddpm_part(all, ranks->rank, ranks->size, &first);
    TRY(check_batch(net, n));
    TRY(ddpm_graph_alloc(net->graph));
    if (n > net->losses_room) {
        net->host_losses = ddpm_arena_alloc(&net->graph->arena, (size_t)n * sizeof *net->host_losses);
        net->losses_room = net->host_losses ? n : 0;
        if (!net->host_losses) return DDPM_ERR_MEMORY;
    }
    trainer->next.pictures = pictures, trainer->next.labels = labels;
    trainer->next.n = n, trainer->next.first = first, trainer->next.all = all;
    if (!backend->stage || !n) return DDPM_OK;
    TRY(backend->stage(net->graph, net->image, n, pictures));
    return net->labels ? backend->stage(net->graph, net->labels, n, labels) : DDPM_OK;
}

/* From the host, where they still are. */
static ddpm_result upload_pictures(const ddpm_trainer *trainer, int first)
{
    const ddpm_net *net = trainer->net;
    const ddpm_graph *g = net->graph;
    TRY(ddpm_upload(g->device, net->image, DDPM_DATA, g->n,
                    trainer->now.pictures + (size_t)first * ddpm_elements(net->image, 1)));
    if (!net->labels) return DDPM_OK;
    return ddpm_upload(g->device, net->labels, DDPM_DATA, g->n,
                       trainer->now.labels + (size_t)first * ddpm_elements(net->labels, 1));
}

static ddpm_result take_pictures(ddpm_trainer *trainer, int first)
{
    const ddpm_net *net = trainer->net;
    const ddpm_backend *backend = backend_of(net->graph->device);
    if (!backend->unstage) return upload_pictures(trainer, first);
    TRY(backend->unstage(net->graph, net->image, first));
    return net->labels ? backend->unstage(net->graph, net->labels, first) : DDPM_OK;
}

static ddpm_result fetch_losses(ddpm_net *net, int first)
{
    const ddpm_graph *g = net->graph;
    const ddpm_backend *backend = backend_of(g->device);
    if (backend->fetch) return backend->fetch(g->device->state, net->loss, g->n, net->host_losses + first);
    return ddpm_download(g->device, net->loss, DDPM_DATA, g->n, net->host_losses + first);
}

static ddpm_result await_losses(ddpm_net *net)
{
    const ddpm_backend *backend = backend_of(net->graph->device);
    return backend->fetch ? backend->sync(net->graph->device->state) : DDPM_OK;
}

static double batch_elements(const ddpm_trainer *trainer)
{
    return (double)trainer->now.all * (double)ddpm_elements(trainer->net->image, 1);
}

static int draw_timestep(const ddpm_trainer *trainer, uint64_t picture)
{
    ddpm_address at = {trainer->config.seed, picture, 0, DDPM_RANDOM_TIMESTEP};
    return (int)ddpm_uniform_int(at, (uint32_t)trainer->schedule->config.num_train_timesteps);
}

/* A loss that is not finite already has no say left to hear. */
static ddpm_result pull_noise(ddpm_net *net, double elements)
{
    int n = net->graph->n;
    TRY(ddpm_download(net->model->device, net->loss, DDPM_DATA, n, net->host_values));
    for (int i = 0; i < n; i++)
        if (!isfinite(net->host_values[i])) return DDPM_OK;
    return net->pull(net->teacher, net, n, elements);
}

/* Forward again of the micro-batch whose loss it is. */
static ddpm_result name_nonfinite(ddpm_trainer *trainer)
{
    ddpm_net *net = trainer->net;
    ddpm_graph *g = net->graph;
    int first = 0;
    while (first < trainer->now.n - 1 && isfinite(net->host_losses[first]))
        first++;
    first = first / g->capacity * g->capacity;
    TRY(prepare_micro_batch(trainer, first));
    TRY(upload_pictures(trainer, first));
    TRY(normal(g, net->noise, DDPM_RANDOM_NOISE));
    TRY(add_noise(net));
    TRY(set_target(net, trainer->schedule));
    TRY(ddpm_graph_find_nonfinite(g));
    return ddpm_fail(DDPM_ERR_NONFINITE, "the loss is not finite, though every node is");
}

/* Sums this process's losses. */
static ddpm_result sum_losses(ddpm_trainer *trainer, double *total)
{
    ddpm_net *net = trainer->net;
    TRY(trainer->now.result);
    TRY(await_losses(net));
    for (int k = 0; k < trainer->now.n; k++) {
        double square = (double)net->host_losses[k];
        int i = trainer->now.first + k;
        *total += square * weigh_picture(trainer, i, draw_timestep(trainer, trainer->picture + (uint64_t)i), square);
    }
    if (isfinite(*total)) return DDPM_OK;
    if (!trainer->ranks) return name_nonfinite(trainer);
    return ddpm_fail(DDPM_ERR_NONFINITE, "the loss is not finite"); /* gradients are still on their way */
}

ddpm_result ddpm_train_wait(ddpm_trainer *trainer, double *loss)
{
    ddpm_net *net = trainer->net;
    const ddpm_ranks *ranks = trainer->ranks;
    double total = 0, elements = batch_elements(trainer);
    uint64_t pictures = (uint64_t)trainer->now.all;
    if (!pictures) return ddpm_fail(DDPM_ERR_ARGUMENT, "ddpm_train_wait without ddpm_train_start");
    ddpm_result result = sum_losses(trainer, &total);
    trainer->now.all = 0;
    if (ranks) result = ranks->finish(ranks->user, result, &total);
    if (ranks && result == DDPM_OK) result = ask_update(net->model, &net->graph->step);
    TRY(result);
    TRY(finish_update(net->model, &net->graph->step));
    trainer->grad_norm = net->graph->step.grad_norm;
    trainer->step++;
    trainer->picture += pictures;
    if (loss) *loss = total / elements;
    return DDPM_OK;
}

ddpm_result ddpm_evaluate(ddpm_net *net, const ddpm_schedule *s, ddpm_address first, const ddpm_real *pictures,
                          const ddpm_real *labels, const int *t, int n, double *loss)
{
    ddpm_graph *g = net->graph;
    size_t picture = ddpm_elements(net->image, 1), width = net->labels ? ddpm_elements(net->labels, 1) : 0;
    if (n < 1 || !net->loss || !pictures || (width && !labels))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a loss needs pictures, their labels and a network created for training");
    TRY(predicts_noise(net));
    TRY(ddpm_graph_alloc(g));
    for (int at = 0; at < n; at += g->capacity) {
        int count = n - at < g->capacity ? n - at : g->capacity;
        g->n = count;
        g->step.seed = first.seed, g->step.first_picture = first.picture + (uint64_t)at, g->step.index = first.step;
        TRY(ddpm_upload(g->device, net->image, DDPM_DATA, count, pictures + (size_t)at * picture));
        if (width) TRY(ddpm_upload(g->device, net->labels, DDPM_DATA, count, labels + (size_t)at * width));
        TRY(normal(g, net->noise, (ddpm_purpose)first.purpose));
        TRY(ddpm_add_noise(net, s, t + at, count));
        TRY(set_target(net, s));
        TRY(forward_eval(net, count));
        TRY(ddpm_download(g->device, net->loss, DDPM_DATA, count, net->host_values));
        for (int i = 0; i < count; i++)
            loss[at + i] = (double)net->host_values[i] / (double)picture;
    }
    return DDPM_OK;
}

/* ---- Forward and gradients for tensors from the host ------------------------------------------------------------- */

ddpm_result ddpm_predict(ddpm_net *net, int n, const ddpm_real *sample, const ddpm_real *timestep,
                         const ddpm_real *labels, ddpm_real *prediction)
{
    ddpm_graph *g = net->graph;
    if (n < 1 || n > g->capacity)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures in a network built for 1 to %d", n, g->capacity);
    if (net->labels && !labels) return ddpm_fail(DDPM_ERR_ARGUMENT, "this model is conditional: it needs labels");
    TRY(ddpm_graph_alloc(g));
    TRY(ddpm_upload(g->device, net->sample, DDPM_DATA, n, sample));
    TRY(ddpm_upload(g->device, net->timestep, DDPM_DATA, n, timestep));
    if (net->labels) TRY(ddpm_upload(g->device, net->labels, DDPM_DATA, n, labels));
    TRY(forward_eval(net, n));
    return prediction ? ddpm_download(g->device, net->prediction, DDPM_DATA, n, prediction) : DDPM_OK;
}

ddpm_result ddpm_loss_gradients(ddpm_net *net, int n, const ddpm_real *sample, const ddpm_real *timestep,
                                const ddpm_real *labels, const ddpm_real *target, ddpm_real *prediction, double *loss)
{
    ddpm_graph *g = net->graph;
    size_t picture = ddpm_elements(net->sample, 1), output = ddpm_elements(net->prediction, 1),
           width = net->labels ? ddpm_elements(net->labels, 1) : 0;
    double elements = (double)n * (double)output, total = 0;
    if (n < 1 || !net->loss)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "gradients need pictures, and a network created for training");
    if (width && !labels) return ddpm_fail(DDPM_ERR_ARGUMENT, "this model is conditional: it needs labels");
    TRY(check_batch(net, n));
    TRY(start_gradients(net));
    TRY(ddpm_graph_alloc(g));
    for (int first = 0; first < n; first += g->capacity) {
        int count = n - first < g->capacity ? n - first : g->capacity;
        size_t at = (size_t)first * output;
        g->step.first_picture = (uint64_t)first;
        TRY(ddpm_upload(g->device, net->sample, DDPM_DATA, count, sample + (size_t)first * picture));
        TRY(ddpm_upload(g->device, net->timestep, DDPM_DATA, count, timestep + first));
        TRY(ddpm_upload(g->device, net->noise, DDPM_DATA, count, target + at));
        if (width) TRY(ddpm_upload(g->device, net->labels, DDPM_DATA, count, labels + (size_t)first * width));
        TRY(ddpm_graph_forward(g, count));
        TRY(ddpm_download(g->device, net->loss, DDPM_DATA, count, net->host_values));
        for (int i = 0; i < count; i++) {
            total += (double)net->host_values[i];
            net->host_values[i] = (ddpm_real)(1 / elements);
        }
        if (!isfinite(total)) {
            TRY(ddpm_graph_find_nonfinite(g));
            return ddpm_fail(DDPM_ERR_NONFINITE, "the loss is not finite, though every node is");
        }
        if (net->pull) TRY(net->pull(net->teacher, net, count, elements));
        TRY(ddpm_graph_backward(g, net->host_values, NULL, NULL));
        if (prediction) TRY(ddpm_download(g->device, net->prediction, DDPM_DATA, count, prediction + at));
    }
    if (loss) *loss = total / elements;
    return DDPM_OK;
}

/* ---- What a backend's plan may fold ------------------------------------------------------------------------------ */

ddpm_node *ddpm_fold_silu(ddpm_graph *g, ddpm_node *norm)
{
    ddpm_node *silu = NULL;
    int readers = norm->out->keep ? 2 : 0;
    for (int k = 0; k < g->nodes; k++)
        for (int j = 0; j < DDPM_MAX_INPUTS; j++)
            if (g->node[k]->in[j] == norm->out) silu = g->node[k], readers++;
    if (readers != 1 || silu->op != DDPM_OP_ACTIVATION || silu->attr.activation.kind != DDPM_SILU) return NULL;
    norm->out = silu->out;
    silu->fused_into = norm;
    silu->in[0] = norm->in[0]; /* what lay between needs no memory */
    silu->wants = 0;
    return silu;
}

/* ---- Backends with memory of their own: whatever they leave out runs here, on copies ----------------------------- */

/* A host copy of one tensor's data and gradient, with their present values; `to` is left as a plain NCHW tensor. */
static ddpm_result copy_to_host(const ddpm_graph *g, const ddpm_tensor *from, ddpm_tensor *to, int with_grad)
{
    size_t count = ddpm_elements(from, g->capacity);
    *to = *from;
    to->grad = NULL;
    if (!(to->data = aligned_alloc_zero(count * sizeof(ddpm_real)))) return DDPM_ERR_MEMORY;
    if (from->data) TRY(ddpm_download(g->device, from, DDPM_DATA, g->n, to->data));
    if (!with_grad || !from->grad) return DDPM_OK;
    if (!(to->grad = aligned_alloc_zero(count * sizeof(ddpm_real)))) return DDPM_ERR_MEMORY;
    return ddpm_download(g->device, from, DDPM_GRADIENT, g->n, to->grad);
}

static ddpm_result run_on_host(const ddpm_graph *g, const ddpm_node *node, int backward)
{
    ddpm_tensor host[DDPM_MAX_INPUTS + 2] = {{0}}; /* inputs, output, aux; an input used twice is copied once */
    ddpm_node copy = *node;
    ddpm_result result = DDPM_OK;
    for (int k = 0; k < DDPM_MAX_INPUTS && result == DDPM_OK; k++) {
        int same = 0;
        while (same < k && node->in[same] != node->in[k])
            same++;
        copy.in[k] = node->in[k] ? &host[same] : NULL;
        if (node->in[k] && same == k) result = copy_to_host(g, node->in[k], &host[k], backward);
    }
    copy.out = &host[DDPM_MAX_INPUTS];
    if (result == DDPM_OK) result = copy_to_host(g, node->out, copy.out, backward);
    if (node->aux) {
        copy.aux = &host[DDPM_MAX_INPUTS + 1];
        if (result == DDPM_OK) result = copy_to_host(g, node->aux, copy.aux, 0);
    }
    if (result == DDPM_OK)
        result = (backward ? reference_rows[node->op].backward : reference_rows[node->op].forward)(g, &copy);
    if (result == DDPM_OK && !backward) result = ddpm_upload(g->device, node->out, DDPM_DATA, g->n, copy.out->data);
    if (result == DDPM_OK && !backward && node->aux)
        result = ddpm_upload(g->device, node->aux, DDPM_DATA, g->n, copy.aux->data);
    for (int k = 0; k < DDPM_MAX_INPUTS && result == DDPM_OK; k++) {
        int statistics =
            !backward && node->op == DDPM_OP_BATCH_NORM && k >= 3; /* the one operation that changes inputs */
        if (statistics) result = ddpm_upload(g->device, node->in[k], DDPM_DATA, g->n, copy.in[k]->data);
        if (backward && node->wants >> k & 1)
            result = ddpm_upload(g->device, node->in[k], DDPM_GRADIENT, g->n, copy.in[k]->grad);
    }
    for (int k = 0; k < DDPM_MAX_INPUTS + 2; k++) {
        aligned_free(host[k].data);
        aligned_free(host[k].grad);
    }
    return result;
}

static ddpm_result lincomb_on_host(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                                   double clamp)
{
    enum { MOST = 4 };
    ddpm_tensor host[MOST + 2] = {{0}}, *in[MOST];
    ddpm_result result =
        k <= MOST ? DDPM_OK : ddpm_fail(DDPM_ERR_ARGUMENT, "a combination of %d tensors; at most %d", k, MOST);
    int n = g->n;
    for (int i = 0; i < k && result == DDPM_OK; i++) {
        in[i] = x[i] ? &host[i] : NULL;
        if (x[i]) result = copy_to_host(g, x[i], in[i], 0);
    }
    if (result == DDPM_OK) result = copy_to_host(g, y, &host[MOST], 0);
    g->n = g->capacity; /* coefficients are [k][capacity]: all of them */
    if (result == DDPM_OK) result = copy_to_host(g, c, &host[MOST + 1], 0);
    g->n = n;
    if (result == DDPM_OK) result = host_lincomb(g, &host[MOST], k, in, &host[MOST + 1], clamp);
    if (result == DDPM_OK) result = ddpm_upload(g->device, y, DDPM_DATA, g->n, host[MOST].data);
    for (int i = 0; i < MOST + 2; i++)
        aligned_free(host[i].data);
    return result;
}

static ddpm_result normal_on_host(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    ddpm_tensor host = {0};
    ddpm_result result = copy_to_host(g, x, &host, 0);
    if (result == DDPM_OK) result = host_normal(g, &host, purpose);
    if (result == DDPM_OK) result = ddpm_upload(g->device, x, DDPM_DATA, g->n, host.data);
    aligned_free(host.data);
    return result;
}

static ddpm_result update_on_host(ddpm_model *model, ddpm_step *step)
{
    ddpm_model host = *model;
    ddpm_result result = DDPM_OK;
    memset(host.array, 0, sizeof host.array);
    for (int i = 0; i < DDPM_ARRAYS; i++) {
        if (!model->array[i] || result != DDPM_OK) continue;
        if (!(host.array[i] = aligned_alloc_zero(model->elements * sizeof(ddpm_real)))) result = DDPM_ERR_MEMORY;
        for (int p = 0; p < model->params && result == DDPM_OK; p++)
            result = ddpm_model_get(model, (ddpm_array)i, model->param[p],
                                    (ddpm_real *)host.array[i] + model->param[p]->offset);
    }
    if (result == DDPM_OK) result = host_update(&host, step);
    for (int i = 0; i < DDPM_ARRAYS; i++) {
        for (int p = 0; p < model->params && result == DDPM_OK && host.array[i] && i != DDPM_GRAD; p++)
            result = ddpm_model_set(model, (ddpm_array)i, model->param[p],
                                    (ddpm_real *)host.array[i] + model->param[p]->offset);
        aligned_free(host.array[i]);
    }
    return result;
}

/* ---- Operations of a node, for benchmarks: a multiply-add counts as two ------------------------------------------ */

double ddpm_node_flops(const ddpm_node *node, int n, int backward)
{
    const ddpm_tensor *x = node->in[0], *y = node->out;
    double out = (double)n * y->shape[1] * pixels(y);
    int products = backward ? (node->wants & 1) + (node->wants >> 1 & 1) : 1;
    switch (node->op) {
    case DDPM_OP_CONV2D:
    case DDPM_OP_LINEAR: return 2 * out * x->shape[1] * node->in[1]->shape[2] * node->in[1]->shape[3] * products;
    case DDPM_OP_ATTENTION: return 2 * out * pixels(y) * (backward ? 5 : 2); /* q k and p v; backward forms q k again */
    default: return backward && !node->wants ? 0 : out;
    }
}
