/* cpu_backend.c - the operation table again, fast: convolutions as products of packed panels or in the Winograd domain,
 * everything else at the speed of memory. What a row computes stands in ddpm_impl.c; here is only how.
 *
 * Tensors are plain NCHW in host memory. Work is divided by outputs, never by sums, and what is computed for an output
 * does not depend on how many threads there are: so neither do the bits. All memory a step needs is in the graph's
 * scratch, asked for in plan().
 *
 * Contents: 1 instruction sets   2 direct convolution   3 Winograd   4 which one, and the rows   5 elementwise rows
 *           6 update   7 the backend */
#include "cpu_backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __GNUC__ /* gcc and clang: vectors. Elsewhere ddpm_cpu() is the reference (section 7) */

/* ---- 1. Instruction sets ----------------------------------------------------------------------------------------- */

typedef struct cpu_product { /* C (m,n) (+)= A (m,k) B (k,n) */
    int m, n, k;
    const float *a; /* packed panels */
    const float *b; /* row k at b + k ldb; readable up to whole vectors unless copy_b */
    size_t ldb;
    float *c; /* row m at c + m ldc */
    size_t ldc;
    int accumulate, copy_b;
} cpu_product;

typedef struct cpu_kernels { /* what cpu_kernels.h defines for one instruction set */
    const char *isa;
    int lanes, rows; /* floats in a vector; rows of a packed panel */
    void (*pack)(int rows, int k, const float *from, size_t row, size_t column, float *panel);
    void (*product)(const cpu_product *p);
    void (*dot)(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc);
    double (*sum)(const float *x, size_t count);
} cpu_kernels;

#ifdef __clang__
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC unroll 64") for (int i = 0; i < (n); i++)
#endif
enum { DOT_ROWS = 4 }; /* of the tile of `dot` */
#define INLINE static inline __attribute__((always_inline, unused))

/* clang-format off */
#if defined(__x86_64__)
#include <immintrin.h>
#define CPU(name) name##_baseline
#define LANES 4
#define MR 4
#define NV 2
#define FMA(a, b, c) ((a) * (b) + (c))
#define BROADCAST(x) ((CPU(vec))_mm_set1_ps(x))
#define KEEP(v) __asm__("" : "+x"(v))
#define ISA_NAME "baseline"
#include "cpu_kernels.h"
#undef CPU
#undef LANES
#undef NV
#undef FMA
#undef BROADCAST
#undef ISA_NAME

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define CPU(name) name##_avx2
#define LANES 8
#define NV 3
#define FMA(a, b, c) ((CPU(vec))_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define BROADCAST(x) ((CPU(vec))_mm256_set1_ps(x))
#define ISA_NAME "avx2"
#include "cpu_kernels.h"
#undef CPU
#undef LANES
#undef MR
#undef FMA
#undef BROADCAST
#undef KEEP
#undef ISA_NAME
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,prefer-vector-width=512")
#endif
#define CPU(name) name##_avx512
#define LANES 16
#define MR 8
#define FMA(a, b, c) ((CPU(vec))_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define BROADCAST(x) ((CPU(vec))_mm512_set1_ps(x))
#define KEEP(v) __asm__("" : "+v"(v))
#define ISA_NAME "avx512"
#include "cpu_kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
#ifdef __aarch64__
#include <arm_neon.h>
#define FMA(a, b, c) ((CPU(vec))vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define BROADCAST(x) ((CPU(vec))vdupq_n_f32(x))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#define BROADCAST(x) ((CPU(vec)){x, x, x, x})
#endif
#define CPU(name) name##_baseline
#define LANES 4
#define MR 8
#define NV 3
#define KEEP(v) ((void)0)
#define ISA_NAME "baseline"
#include "cpu_kernels.h"
#endif
/* clang-format on */

typedef struct cpu_state {
    const cpu_kernels *kernels;
    int threads;
} cpu_state;

static const cpu_kernels *const instruction_sets[] = { /* the widest first */
#ifdef __x86_64__
    &kernels_avx512, &kernels_avx2,
#endif
    &kernels_baseline};
enum { INSTRUCTION_SETS = sizeof instruction_sets / sizeof *instruction_sets };

static int processor_has(const cpu_kernels *k)
{
#ifdef __x86_64__
    if (k == &kernels_avx512) return __builtin_cpu_supports("avx512f") != 0;
    if (k == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return k == &kernels_baseline;
}

static ddpm_result cpu_open(void **state, int threads, const char *isa)
{
    const cpu_kernels *kernels = NULL;
    for (int i = INSTRUCTION_SETS - 1; i >= 0; i--)
        if (processor_has(instruction_sets[i]) && (!isa || strcmp(isa, instruction_sets[i]->isa) == 0))
            kernels = instruction_sets[i];
    *state = NULL;
    if (!kernels)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "this processor or this build has no instruction set '%s'\n      hint: baseline, avx2, avx512; "
                         "left out, the widest is taken",
                         isa);
    cpu_state *s = malloc(sizeof *s);
    if (!s) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: %zu bytes refused", sizeof *s);
    *s = (cpu_state){kernels, threads > 0 ? threads : 1};
#ifdef _OPENMP
    omp_set_num_threads(s->threads); /* for the reference's rows */
#endif
    *state = s;
    return DDPM_OK;
}

static void cpu_close(void *state)
{
    free(state);
}

static const cpu_state *state_of(const ddpm_graph *g)
{
    return g->device->state;
}

static int thread_index(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int thread_count(void)
{
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

/* This thread's share of `count` things: first ... end - 1. */
static void share(size_t count, size_t *first, size_t *end)
{
    size_t threads = (size_t)thread_count(), i = (size_t)thread_index();
    *first = count * i / threads;
    *end = count * (i + 1) / threads;
}

/* ---- 2. Direct convolution ------------------------------------------------------------------------------------------
 * A convolution is the product of the weights (Co, K), K = Ci k k, and the columns (K, pixels) of its input, of which
 * only a block at a time exists (implicit GEMM):
 *     y (Co, pixels) = w (Co, K) columns (K, pixels)
 *     dw (Co, K) = dy (Co, pixels) columns^T (pixels, K);        columns' gradient (pixels, K) = dy^T w
 * Pixels are those of all pictures of the batch, one after the other. */

typedef struct conv { /* of n pictures; also the one that computes dx (see section 4) */
    int n, ci, co, kernel, stride, pad, h, w, oh, ow;
    const float *x, *weight, *bias; /* (n,ci,h,w); weight of (o, i, tap) at weight + o w_out + i w_in + tap w_tap; (co) */
    float *y;                       /* (n,co,oh,ow) */
    size_t w_out, w_in;
    int w_tap;
    int accumulate; /* add to y instead of storing */
} conv;

enum {
    BLOCK = 48,     /* pixels, or tiles, worked on together: a multiple of every register tile */
    FEW_PIXELS = 64 /* up to here weights are read as they lie; above they are packed */
};

static size_t line(size_t elements) /* rounded up to whole cache lines */
{
    return (elements + 15) & ~(size_t)15;
}

static size_t panels_of(const cpu_kernels *k, int rows)
{
    return (size_t)((rows + k->rows - 1) / k->rows);
}

/* Row k = (i, ky, kx) of the columns of pixels first ... first + count - 1, to out[k * row]. */
static void fill_columns(const conv *c, int i, size_t first, int count, float *out, size_t row)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    for (int done = 0, run; done < count; done += run) { /* the pixels of one output row */
        size_t pixel = first + (size_t)done, n = pixel / plane;
        int oy = (int)(pixel % plane) / c->ow, ox = (int)(pixel % plane) % c->ow;
        run = count - done < c->ow - ox ? count - done : c->ow - ox;
        const float *x = c->x + (n * (size_t)c->ci + (size_t)i) * (size_t)c->h * (size_t)c->w;
        for (int tap = 0; tap < c->kernel * c->kernel; tap++) {
            int y = oy * c->stride + tap / c->kernel - c->pad, left = ox * c->stride + tap % c->kernel - c->pad;
            float *to = out + (size_t)tap * row + done;
            if (y < 0 || y >= c->h) {
                memset(to, 0, (size_t)run * sizeof *to);
                continue;
            }
            const float *from = x + (ptrdiff_t)y * c->w + left;
            int begin = 0, end = run; /* those inside the picture */
            while (begin < end && left + begin * c->stride < 0)
                to[begin++] = 0;
            while (end > begin && left + (end - 1) * c->stride >= c->w)
                to[--end] = 0;
            if (c->stride == 1)
                memcpy(to + begin, from + begin, (size_t)(end - begin) * sizeof *to);
            else
                for (int p = begin; p < end; p++)
                    to[p] = from[p * c->stride];
        }
    }
}

/* y of pixels first ... from (co, BLOCK), for outputs from ... to - 1. */
static void store_pixels(const conv *c, size_t first, int count, int from, int to, const float *block)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    for (int done = 0, run; done < count; done += run) { /* the pixels of one picture */
        size_t n = (first + (size_t)done) / plane, at = (first + (size_t)done) % plane;
        run = (size_t)(count - done) < plane - at ? count - done : (int)(plane - at);
        for (int o = from; o < to; o++) {
            float *y = c->y + (n * (size_t)c->co + (size_t)o) * plane + at;
            const float *in = block + (size_t)o * BLOCK + done;
            float bias = c->bias ? c->bias[o] : 0;
            if (c->accumulate)
                for (int p = 0; p < run; p++)
                    y[p] += in[p];
            else
                for (int p = 0; p < run; p++)
                    y[p] = in[p] + bias;
        }
    }
}

/* Many pixels: weights packed, then blocks of columns against panels of weights. Threads take stretches of the list of
 * (block, panel), blocks slowest. Scratch: all packed weights; for each thread a block of columns and one of y. */
static size_t packed_scratch(const cpu_state *s, int ci, int co, int taps, size_t *own)
{
    size_t rows = panels_of(s->kernels, co) * (size_t)s->kernels->rows, k = (size_t)ci * (size_t)taps;
    *own = line(k * BLOCK) + line(rows * BLOCK);
    return line(rows * k) + (size_t)s->threads * *own;
}

static void packed_forward(const cpu_state *s, const conv *c, float *scratch)
{
    const cpu_kernels *kernels = s->kernels;
    int taps = c->kernel * c->kernel, k = c->ci * taps;
    size_t panels = panels_of(kernels, c->co), mr = (size_t)kernels->rows, own;
    size_t pixels = (size_t)c->n * (size_t)c->oh * (size_t)c->ow, blocks = (pixels + BLOCK - 1) / BLOCK;
    packed_scratch(s, c->ci, c->co, taps, &own);
    float *packed = scratch, *privates = scratch + line(panels * mr * (size_t)k);
    #pragma omp parallel num_threads(s->threads)
    {
        size_t first, end;
        share(panels * (size_t)c->ci, &first, &end);
        for (size_t job = first; job < end; job++) { /* one input channel of one panel */
            size_t panel = job / (size_t)c->ci, i = job % (size_t)c->ci;
            kernels->pack(c->co - (int)(panel * mr), taps, c->weight + panel * mr * c->w_out + i * c->w_in, c->w_out,
                          (size_t)c->w_tap, packed + (panel * (size_t)k + i * (size_t)taps) * mr);
        }
        #pragma omp barrier
        float *columns = privates + (size_t)thread_index() * own, *block = columns + line((size_t)k * BLOCK);
        share(blocks * panels, &first, &end);
        for (size_t job = first; job < end;) {
            size_t at = job / panels * BLOCK, from = job % panels;
            size_t to = end - job < panels - from ? from + (end - job) : panels;
            int count = (int)(pixels - at < BLOCK ? pixels - at : BLOCK);
            int rows = (int)(to * mr) < c->co ? (int)(to * mr) : c->co;
            for (int i = 0; i < c->ci; i++)
                fill_columns(c, i, at, count, columns + (size_t)(i * taps) * BLOCK, BLOCK);
            cpu_product p = {.m = rows - (int)(from * mr), .n = count, .k = k, .a = packed + from * mr * (size_t)k,
                             .b = columns, .ldb = BLOCK, .c = block + from * mr * BLOCK, .ldc = BLOCK};
            kernels->product(&p);
            store_pixels(c, at, count, (int)(from * mr), rows, block);
            job += to - from;
        }
    }
}

/* Few pixels: then nearly all the time goes into reading the weights, which stay as they lie. Scratch: (pixels, K). */
static void thin_forward(const cpu_state *s, const conv *c, float *scratch)
{
    int taps = c->kernel * c->kernel, k = c->ci * taps, plane = c->oh * c->ow, pixels = c->n * plane;
    float *row = scratch, *turned = scratch + line((size_t)k * FEW_PIXELS); /* (pixels,k); (k,pixels) */
    #pragma omp parallel num_threads(s->threads)
    {
        float y[4 * FEW_PIXELS];
        size_t first, end;
        share((size_t)c->ci, &first, &end);
        for (size_t i = first; i < end; i++) {
            fill_columns(c, (int)i, 0, pixels, turned + i * (size_t)(taps * FEW_PIXELS), FEW_PIXELS);
            for (int tap = (int)i * taps; tap < (int)(i + 1) * taps; tap++)
                for (int p = 0; p < pixels; p++)
                    row[(size_t)p * (size_t)k + (size_t)tap] = turned[(size_t)tap * FEW_PIXELS + (size_t)p];
        }
        #pragma omp barrier
        share((size_t)(c->co + 3) / 4, &first, &end);
        for (int o = (int)first * 4; o < (int)end * 4 && o < c->co; o += 4) {
            int rows = c->co - o < 4 ? c->co - o : 4;
            s->kernels->dot(rows, pixels, k, c->weight + (size_t)o * c->w_out, c->w_out, row, (size_t)k, y, FEW_PIXELS);
            for (int m = 0; m < rows; m++)
                for (int p = 0; p < pixels; p++)
                    c->y[((size_t)(p / plane) * (size_t)c->co + (size_t)(o + m)) * (size_t)plane + (size_t)(p % plane)] =
                        y[m * FEW_PIXELS + p] + (c->bias ? c->bias[o + m] : 0);
        }
    }
}

/* dw (Co,K) += dy (Co,pixels) columns^T. A thread has a range of input channels, or of outputs where these are more, to
 * itself, and goes through the pixels in blocks. Scratch for each thread: the block's columns both ways; packed dy. */
enum { DEPTH = 64 }; /* pixels of such a block */

static size_t weight_scratch(const cpu_state *s, int ci, int co, int taps, size_t *own)
{
    size_t rows = panels_of(s->kernels, co) * (size_t)s->kernels->rows, k = (size_t)ci * (size_t)taps;
    *own = line((size_t)taps * DEPTH) + line(k * DEPTH + 64) + line(rows * DEPTH);
    return (size_t)s->threads * *own;
}

/* A range of `count` for this thread, a multiple of `step` where it can be. */
static void range(int count, int step, int *first, int *end)
{
    size_t a, b;
    share((size_t)((count + step - 1) / step), &a, &b);
    *first = (int)a * step;
    *end = (int)b * step < count ? (int)b * step : count;
}

static void direct_weight(const cpu_state *s, const conv *c, const float *dy, float *dw, float *scratch)
{
    const cpu_kernels *kernels = s->kernels;
    int taps = c->kernel * c->kernel, by_input = c->ci >= c->co;
    size_t plane = (size_t)c->oh * (size_t)c->ow, pixels = (size_t)c->n * plane, mr = (size_t)kernels->rows, own;
    size_t all = weight_scratch(s, c->ci, c->co, taps, &own);
    (void)all;
    #pragma omp parallel num_threads(s->threads)
    {
        int i0 = 0, i1 = c->ci, o0 = 0, o1 = c->co;
        if (by_input)
            range(c->ci, 16, &i0, &i1);
        else
            range(c->co, 16, &o0, &o1);
        int k = (i1 - i0) * taps;
        float *turned = scratch + (size_t)thread_index() * own, *row = turned + line((size_t)taps * DEPTH),
              *packed = row + line((size_t)(c->ci * taps) * DEPTH + 64);
        for (size_t at = 0; at < pixels && i0 < i1 && o0 < o1; at += DEPTH) {
            int count = (int)(pixels - at < DEPTH ? pixels - at : DEPTH);
            for (int i = i0; i < i1; i++) {
                fill_columns(c, i, at, count, turned, DEPTH);
                for (int tap = 0; tap < taps; tap++)
                    for (int p = 0; p < count; p++)
                        row[(size_t)p * (size_t)k + (size_t)((i - i0) * taps + tap)] = turned[tap * DEPTH + p];
            }
            for (int o = o0; o < o1; o += (int)mr)
                for (int done = 0, run; done < count; done += run) { /* the pixels of one picture */
                    size_t n = (at + (size_t)done) / plane, q = (at + (size_t)done) % plane;
                    run = (size_t)(count - done) < plane - q ? count - done : (int)(plane - q);
                    kernels->pack(o1 - o, run, dy + (n * (size_t)c->co + (size_t)o) * plane + q, plane, 1,
                                  packed + (size_t)(o - o0) * (size_t)count + (size_t)done * mr);
                }
            cpu_product p = {.m = o1 - o0, .n = k, .k = count, .a = packed, .b = row, .ldb = (size_t)k,
                             .c = dw + (size_t)o0 * (size_t)(c->ci * taps) + (size_t)(i0 * taps),
                             .ldc = (size_t)(c->ci * taps), .accumulate = 1};
            kernels->product(&p);
        }
    }
}

/* dx from the columns' gradient dy^T w (pixels,K), a block of pixels at a time: serves strides and few pixels. A thread has
 * a range of input channels to itself. Scratch: packed dy of a block, for each thread; its part of the columns. */
static size_t columns_scratch(const cpu_state *s, int ci, int co, int taps, size_t *own)
{
    size_t rows = DEPTH + (size_t)s->kernels->rows;
    *own = line(rows * (size_t)co) + line((size_t)ci * (size_t)taps * DEPTH + 64);
    return (size_t)s->threads * *own;
}

/* Adds column block (count,k) of channels i0 ... i1 - 1 to where its pixels were read from. */
static void scatter_columns(const conv *c, size_t first, int count, int i0, int i1, const float *block, float *dx)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    int taps = c->kernel * c->kernel;
    for (int p = 0; p < count; p++) {
        size_t n = (first + (size_t)p) / plane, q = (first + (size_t)p) % plane;
        int top = (int)q / c->ow * c->stride - c->pad, left = (int)q % c->ow * c->stride - c->pad;
        const float *in = block + (size_t)p * (size_t)((i1 - i0) * taps);
        float *to = dx + (n * (size_t)c->ci + (size_t)i0) * (size_t)c->h * (size_t)c->w;
        for (int i = i0; i < i1; i++, in += taps, to += (size_t)c->h * (size_t)c->w)
            for (int tap = 0; tap < taps; tap++) {
                int y = top + tap / c->kernel, x = left + tap % c->kernel;
                if (y >= 0 && y < c->h && x >= 0 && x < c->w) to[y * c->w + x] += in[tap];
            }
    }
}

static void direct_data(const cpu_state *s, const conv *c, const float *dy, float *dx, float *scratch)
{
    const cpu_kernels *kernels = s->kernels;
    int taps = c->kernel * c->kernel, mr = kernels->rows;
    size_t plane = (size_t)c->oh * (size_t)c->ow, pixels = (size_t)c->n * plane, own;
    size_t all = columns_scratch(s, c->ci, c->co, taps, &own);
    (void)all;
    #pragma omp parallel num_threads(s->threads)
    {
        int i0, i1;
        range(c->ci, 16, &i0, &i1);
        int k = (i1 - i0) * taps;
        float *packed = scratch + (size_t)thread_index() * own,
              *block = packed + line((size_t)(DEPTH + mr) * (size_t)c->co);
        for (int n = 0; n < c->n && !c->accumulate && i0 < i1; n++)
            memset(dx + ((size_t)n * (size_t)c->ci + (size_t)i0) * (size_t)c->h * (size_t)c->w, 0,
                   (size_t)(i1 - i0) * (size_t)c->h * (size_t)c->w * sizeof *dx);
        for (size_t at = 0; at < pixels && i0 < i1; at += DEPTH) {
            int count = (int)(pixels - at < DEPTH ? pixels - at : DEPTH);
            for (int p = 0; p < count; p++) { /* A[p][o] = dy[o][p], in panels */
                size_t n = (at + (size_t)p) / plane, q = (at + (size_t)p) % plane;
                float *to = packed + (size_t)(p / mr * mr) * (size_t)c->co + (size_t)(p % mr);
                for (int o = 0; o < c->co; o++)
                    to[o * mr] = dy[(n * (size_t)c->co + (size_t)o) * plane + q];
            }
            cpu_product product = {.m = count, .n = k, .k = c->co, .a = packed, .b = c->weight + (size_t)(i0 * taps),
                                   .ldb = (size_t)(c->ci * taps), .c = block, .ldc = (size_t)k, .copy_b = 1};
            kernels->product(&product);
            scatter_columns(c, at, count, i0, i1, block, dx);
        }
    }
}

/* ---- 4. Which one, and the rows ---------------------------------------------------------------------------------- */

static conv conv_of(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0], *w = node->in[1], *y = node->out;
    int taps = w->shape[2] * w->shape[3];
    return (conv){.n = g->n, .ci = x->shape[1], .co = y->shape[1], .kernel = w->shape[2],
                  .stride = node->attr.conv.stride, .pad = node->attr.conv.pad_start,
                  .h = x->shape[2], .w = x->shape[3], .oh = y->shape[2], .ow = y->shape[3],
                  .x = x->data, .weight = w->data, .bias = node->in[2] ? node->in[2]->data : NULL, .y = y->data,
                  .w_out = (size_t)(x->shape[1] * taps), .w_in = (size_t)taps, .w_tap = 1};
}

/* Backward to x at stride 1 is a convolution of dy: x[iy] meets tap k-1-j at row iy + j - (k-1-p) of dy. So the taps run
 * backwards, the roles of inputs and outputs are exchanged, and the padding is k-1-p. */
static conv conv_of_dx(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node), d = c;
    d.ci = c.co, d.co = c.ci;
    d.h = c.oh, d.w = c.ow, d.oh = c.h, d.ow = c.w;
    d.pad = c.kernel - 1 - c.pad;
    d.x = node->out->grad, d.y = node->in[0]->grad, d.bias = NULL;
    d.weight = c.weight + c.kernel * c.kernel - 1;
    d.w_out = c.w_in, d.w_in = c.w_out, d.w_tap = -1;
    d.accumulate = (int)(node->accumulate & 1);
    return d;
}

static int few_pixels(const ddpm_graph *g, const ddpm_node *node)
{
    return g->capacity * node->out->shape[2] * node->out->shape[3] <= FEW_PIXELS;
}

static ddpm_result cpu_conv_forward(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node);
    if (few_pixels(g, node))
        thin_forward(state_of(g), &c, g->scratch);
    else
        packed_forward(state_of(g), &c, g->scratch);
    return DDPM_OK;
}

static void bias_gradient(const cpu_state *s, const conv *c, const float *dy, float *db)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    #pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int o = 0; o < c->co; o++) {
        double total = 0;
        for (int n = 0; n < c->n; n++)
            total += s->kernels->sum(dy + ((size_t)n * (size_t)c->co + (size_t)o) * plane, plane);
        db[o] += (float)total;
    }
}

static ddpm_result cpu_conv_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_state *s = state_of(g);
    conv c = conv_of(g, node);
    const float *dy = node->out->grad;
    if (node->wants & 1 && c.stride == 1 && !few_pixels(g, node)) {
        conv d = conv_of_dx(g, node);
        packed_forward(s, &d, g->scratch);
    } else if (node->wants & 1) {
        c.accumulate = (int)(node->accumulate & 1);
        direct_data(s, &c, dy, node->in[0]->grad, g->scratch);
    }
    if (node->wants & 2) direct_weight(s, &c, dy, node->in[1]->grad, g->scratch);
    if (node->wants & 4) bias_gradient(s, &c, dy, node->in[2]->grad);
    return DDPM_OK;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t conv_scratch(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_state *s = state_of(g);
    conv c = conv_of(g, node);
    int taps = c.kernel * c.kernel;
    size_t own, size;
    if (few_pixels(g, node))
        size = 2 * line((size_t)(c.ci * taps) * FEW_PIXELS);
    else
        size = packed_scratch(s, c.ci, c.co, taps, &own);
    if (node->wants & 1) size = larger(size, packed_scratch(s, c.co, c.ci, taps, &own));
    if (node->wants & 1) size = larger(size, columns_scratch(s, c.ci, c.co, taps, &own));
    if (node->wants & 2) size = larger(size, weight_scratch(s, c.ci, c.co, taps, &own));
    return size;
}

/* ---- 7. The backend ---------------------------------------------------------------------------------------------- */

static ddpm_result cpu_plan(ddpm_graph *g)
{
    g->scratch_elements = 0; /* the reference's convolutions are not used */
    for (int i = 0; i < g->nodes; i++) {
        const ddpm_node *node = g->node[i];
        if (node->op == DDPM_OP_CONV2D || node->op == DDPM_OP_LINEAR)
            g->scratch_elements = larger(g->scratch_elements, conv_scratch(g, node));
    }
    return DDPM_OK;
}

static const ddpm_row cpu_rows[DDPM_OP_COUNT] = {
    [DDPM_OP_CONV2D] = {cpu_conv_forward, cpu_conv_backward},
    [DDPM_OP_LINEAR] = {cpu_conv_forward, cpu_conv_backward},
};

const ddpm_backend *ddpm_cpu(void)
{
    static const ddpm_backend cpu = {
        .name = "cpu",
        .rows = cpu_rows,
        .open = cpu_open,
        .close = cpu_close,
        .plan = cpu_plan,
    };
    return &cpu;
}

const char *ddpm_cpu_isa(const ddpm_device *device)
{
    return device->backend == ddpm_cpu() ? ((const cpu_state *)device->state)->kernels->isa : "";
}

#else
const ddpm_backend *ddpm_cpu(void)
{
    return ddpm_reference();
}

const char *ddpm_cpu_isa(const ddpm_device *device)
{
    (void)device;
    return "";
}
#endif
