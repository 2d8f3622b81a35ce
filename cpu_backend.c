/* cpu_backend.c - the operation table again, fast: convolutions as products of packed panels or in the Winograd domain,
 * everything else at the speed of memory. What a row computes stands in ddpm_impl.c; here is only how.
 *
 * Tensors are plain NCHW in host memory. Work is divided by outputs, never by sums, and what is computed for an output
 * does not depend on how many threads there are: so neither do the bits. All memory a step needs is in the graph's
 * scratch, asked for in plan().
 *
 * Rows run on all threads of a team at once (cpu_team.h): each thread calls the same row, takes its share of the
 * outputs, and meets the others at barrier() where it needs what they wrote. There is no OpenMP here.
 *
 * Contents: 1 instruction sets, threads   2 direct convolution   3 Winograd   4 which one, and the rows
 *           5 elementwise rows   6 update   7 the backend */
#ifdef __linux__
#define _DEFAULT_SOURCE 1 /* madvise */
#endif
#include "cpu_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu_team.h"

#ifdef __GNUC__ /* gcc and clang: vectors. Elsewhere ddpm_cpu() is the reference (section 7) */

/* ---- 1. Instruction sets, threads -------------------------------------------------------------------------------- */

typedef struct cpu_product { /* C (m,n) (+)= A (m,k) B (k,n) */
    int m, n, k;
    const float *a; /* packed panels, or with row m at a + m a_row if that is not 0 */
    size_t a_row;
    const float *b; /* row k at b + k ldb; readable up to whole vectors unless copy_b */
    size_t ldb;
    float *c; /* row m at c + m ldc */
    size_t ldc;
    const float *bias; /* NULL, or of each row: where its sums begin */
    int accumulate, copy_b;
} cpu_product;

typedef struct cpu_taps {               /* see taps_tile in cpu_kernels.h */
    int inputs, rows, columns, vectors; /* taps: r < rows, s < columns */
    const float *w, *x;
    size_t w_out, w_in; /* weight of (m, i, r, s) at w + m w_out + i w_in + r w_row + s w_tap */
    int w_row, w_tap;
    size_t x_in, x_row, x_step;
    float *y; /* output m at y + m ldy */
    size_t ldy;
} cpu_taps;

typedef struct cpu_pictures { /* (n,channels,h,w) */
    int n, channels, h, w;
    float *data;
} cpu_pictures;

typedef struct cpu_head { /* attention of one head of one picture: (d, tokens) each; NULL: not wanted */
    int d;
    size_t tokens;
    float scale; /* 1 / sqrt d */
    const float *q, *k, *v, *dy;
    float *y, *dq, *dk, *dv;
    float *largest, *total, *mean; /* (tokens): of a query's scores (times log2 e), of 2^(score - largest), of dp */
    int add_q, add_k, add_v;       /* gradients are added to */
} cpu_head;

typedef struct cpu_transforms { /* Winograd's, of tiles of one size */
    int tile, frequencies;      /* T, (T + 2)^2 */
    void (*input)(const cpu_pictures *p, size_t first, int from, int to, float *v, size_t plane, size_t width);
    void (*output)(const cpu_pictures *p, size_t first, int from, int to, const float *m, size_t plane, size_t width,
                   const float *bias, int accumulate);
    void (*gradient)(const cpu_pictures *p, size_t first, int from, int to, float *d, size_t plane, size_t width);
    void (*turned)(const cpu_pictures *p, size_t first, int c, float *v, size_t plane, size_t width, size_t tile);
    void (*weights)(int o, int from, int to, int ci, const float *w, size_t w_out, size_t w_in, int w_tap, float *u,
                    size_t plane);
    void (*weight_gradient)(const float *du, size_t plane, float *dw, int accumulate);
} cpu_transforms;

enum { TILE_4, TILE_2 }; /* F(4x4,3x3), F(2x2,3x3): places in cpu_kernels' winograd */

typedef struct cpu_kernels { /* what cpu_kernels.h defines for one instruction set */
    const char *isa;
    int lanes, rows; /* floats in a vector; rows of a packed panel */
    void (*pack)(int rows, int k, const float *from, size_t row, ptrdiff_t column, float *panel);
    void (*turn)(int rows, int columns, const float *from, size_t from_row, float *to, size_t to_row);
    void (*product)(const cpu_product *p);
    void (*taps)(const cpu_taps *t);
    void (*one_picture)(int inputs, const float *w, size_t w_out, size_t w_in, int w_tap, const float *x, float *y);
    void (*dot)(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc);
    cpu_transforms winograd[2];
    void (*silu)(size_t count, const float *x, float *y);
    void (*silu_backward)(size_t count, const float *x, const float *dy, float *dx, int accumulate);
    void (*add)(size_t count, const float *a, const float *b, float scale, float *y);
    void (*add_one)(size_t count, const float *a, float b, float scale, float *y);
    void (*add_scaled)(size_t count, const float *a, float scale, float *y, int accumulate);
    void (*difference)(size_t count, const float *a, const float *b, float scale, float *y, int accumulate);
    double (*square_errors)(size_t count, const float *a, const float *b);
    void (*twice)(size_t count, const float *x, float *y);
    void (*twice_backward)(size_t count, const float *a, const float *b, float *dx, int accumulate);
    void (*sums)(size_t count, const float *a, const float *b, float shift, double *out);
    double (*sum)(size_t count, const float *x);
    double (*squares)(size_t count, const float *x, float mean);
    void (*normalise)(size_t count, const float *x, float mean, float scale, float shift, int silu, float *y);
    void (*normalise_silu_backward)(size_t count, const float *x, float mean, float scale, float shift, float *dy);
    void (*normalise_backward)(size_t count, const float *x, float mean, const float *dy, float a, float b, float c,
                               float *dx, int accumulate);
    void (*adam)(const ddpm_adam *s, size_t count, float *w, const float *grad, float *m, float *v, float *ema);
    void (*attend)(const cpu_head *h, size_t first, float *work);
    void (*attend_queries)(const cpu_head *h, size_t first, float *work);
    void (*attend_keys)(const cpu_head *h, size_t first, float *work);
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
#define ROOT(x) ((CPU(vec))_mm_sqrt_ps(x))
#define MAXIMUM(a, b) ((CPU(vec))_mm_max_ps(a, b))
#define ISA_NAME "baseline"
#include "cpu_kernels.h"
#undef ROOT
#undef MAXIMUM
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
#define ROOT(x) ((CPU(vec))_mm256_sqrt_ps((__m256)(x)))
#define MAXIMUM(a, b) ((CPU(vec))_mm256_max_ps((__m256)(a), (__m256)(b)))
#define ISA_NAME "avx2"
#include "cpu_kernels.h"
#undef ROOT
#undef MAXIMUM
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
#define LOAD_NINE(p) ((CPU(vec))_mm512_maskz_loadu_ps(0x1FF, (p)))
#define ROOT(x) ((CPU(vec))_mm512_sqrt_ps((__m512)(x)))
#define MAXIMUM(a, b) ((CPU(vec))_mm512_max_ps((__m512)(a), (__m512)(b)))
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
#define ROOT(x) ((CPU(vec))vsqrtq_f32((float32x4_t)(x)))
#define MAXIMUM(a, b) ((CPU(vec))vmaxq_f32((float32x4_t)(a), (float32x4_t)(b)))
#define BROADCAST(x) ((CPU(vec))vdupq_n_f32(x))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#define ROOT(x) ((CPU(vec)){sqrtf((x)[0]), sqrtf((x)[1]), sqrtf((x)[2]), sqrtf((x)[3])})
#define MAXIMUM(a, b) CPU(choose)((a) > (b), a, b)
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
    cpu_team *team;
    int exact;    /* no Winograd */
    char isa[24]; /* "avx512", "avx512+exact" */
} cpu_state;

static const cpu_kernels *const instruction_sets[] = {/* the widest first */
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
    size_t length = isa ? strcspn(isa, "+") : 0;
    int exact = isa && strcmp(isa + length, "+exact") == 0, known = !isa || !isa[length] || exact;
    for (int i = INSTRUCTION_SETS - 1; i >= 0 && known; i--) {
        const char *name = instruction_sets[i]->isa;
        if (processor_has(instruction_sets[i]) && (!length || (!strncmp(isa, name, length) && !name[length])))
            kernels = instruction_sets[i];
    }
    *state = NULL;
    if (!kernels)
        return ddpm_fail(
            DDPM_ERR_ARGUMENT,
            "this processor or this build has no instruction set '%s'\n      hint: baseline, avx2, avx512; "
            "left out, the widest is taken; '+exact' behind it: no Winograd",
            isa);
    cpu_state *s = malloc(sizeof *s);
    if (!s) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: %zu bytes refused", sizeof *s);
    *s = (cpu_state){.kernels = kernels, .threads = threads > 0 ? threads : 1, .exact = exact};
    snprintf(s->isa, sizeof s->isa, "%s%s", kernels->isa, exact ? "+exact" : "");
    ddpm_result result = cpu_team_open(&s->team, s->threads);
    if (result != DDPM_OK) {
        free(s);
        return result;
    }
#ifdef _OPENMP
    omp_set_num_threads(s->threads); /* for the reference's rows */
#endif
    *state = s;
    return DDPM_OK;
}

static void cpu_close(void *state)
{
    cpu_state *s = state;
    if (s != NULL) cpu_team_close(s->team);
    free(s);
}

static const char *cpu_isa(const void *state)
{
    return ((const cpu_state *)state)->isa;
}

static const cpu_state *state_of(const ddpm_graph *g)
{
    return g->device->state;
}

/* This thread's share of `count` things: first ... end - 1. */
static void share(size_t count, size_t *first, size_t *end)
{
    size_t threads = (size_t)cpu_team_count(), i = (size_t)cpu_team_index();
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
    int n, capacity, ci, co, kernel, stride, pad, h, w, oh, ow;
    const float *x, *weight,
        *bias; /* (n,ci,h,w); weight of (o, i, tap) at weight + o w_out + i w_in + tap w_tap; (co) */
    float *y;  /* (n,co,oh,ow) */
    size_t w_out, w_in;
    int w_tap;
    int accumulate;                 /* add to y instead of storing */
    const cpu_transforms *winograd; /* or NULL */
    float *kept; /* the transformed weights, kept from run to run; NULL: made into scratch each time */
    int current; /* they are those of the weights as they are now */
} conv;

enum {
    BLOCK = 48,              /* pixels, or tiles, worked on together: a multiple of every register tile */
    SMALL_FRAME = 512 << 10, /* floats */
    FEW_PIXELS = 64          /* up to here weights are read as they lie; above they are packed */
};

static size_t line(size_t elements) /* rounded up to whole cache lines */
{
    return (elements + 15) & ~(size_t)15;
}

static size_t panels_of(const cpu_kernels *k, int rows)
{
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it takes an element of k->winograd for NULL, hence k */
    return (size_t)((rows + k->rows - 1) / k->rows);
}

/* The columns of a block of pixels: where row (i, tap) of them is read, the same for all channels i. Pictures at least
 * 16 wide are copied in runs, a row of the picture at a time; smaller ones through a table. */
enum { DEPTH = 64, MOST_TAPS = 49, LARGEST_TABLE = 128 * MOST_TAPS };
typedef struct columns {
    const conv *c;
    const float *x; /* channel 0 of the first pixel's picture */
    size_t first;
    int count, runs;                /* pixels; copied in runs? */
    int32_t index[LARGEST_TABLE];   /* [tap][pixel] into the channel; 0 outside the picture */
    uint32_t inside[LARGEST_TABLE]; /* all bits inside, none outside */
} columns;

static void find_columns(const conv *c, size_t first, int count, columns *k)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow, picture = (size_t)c->ci * (size_t)c->h * (size_t)c->w,
           n0 = first / plane;
    k->c = c, k->first = first, k->count = count;
    k->x = c->x + n0 * picture;
    k->runs = c->ow >= 16 || c->kernel * c->kernel > MOST_TAPS;
    for (int p = 0; p < count && !k->runs; p++) {
        size_t n = (first + (size_t)p) / plane - n0, at = (first + (size_t)p) % plane;
        int top = (int)at / c->ow * c->stride - c->pad, left = (int)at % c->ow * c->stride - c->pad;
        for (int tap = 0; tap < c->kernel * c->kernel; tap++) {
            int y = top + tap / c->kernel, x = left + tap % c->kernel, in = y >= 0 && y < c->h && x >= 0 && x < c->w;
            k->index[tap * count + p] = in ? (int32_t)(n * picture) + y * c->w + x : 0;
            k->inside[tap * count + p] = in ? 0xFFFFFFFFu : 0;
        }
    }
}

/* One row of the picture: pixels of y's row oy from ox on, of channel plane x, to `to`. */
static void copy_run(const conv *c, const float *x, int oy, int ox, int tap, int run, float *to)
{
    int y = oy * c->stride + tap / c->kernel - c->pad, left = ox * c->stride + tap % c->kernel - c->pad;
    int begin = 0, end = y < 0 || y >= c->h ? 0 : run; /* those inside the picture */
    while (begin < end && left + begin * c->stride < 0)
        begin++;
    while (end > begin && left + (end - 1) * c->stride >= c->w)
        end--;
    for (int p = 0; p < begin; p++)
        to[p] = 0;
    for (int p = end; p < run; p++)
        to[p] = 0;
    if (begin == end) return;
    const float *from = x + (ptrdiff_t)y * c->w + left;
    if (c->stride == 1)
        memcpy(to + begin, from + begin, (size_t)(end - begin) * sizeof *to);
    else if (c->stride == 2) /* as a loop of its own it becomes shuffles of vectors */
        for (int p = begin; p < end; p++)
            to[p] = from[p * 2];
    else
        for (int p = begin; p < end; p++)
            to[p] = from[p * c->stride];
}

/* Rows (i, tap) for all taps, to out + tap row. */
static void fill_columns(const columns *k, int i, float *out, size_t row)
{
    const conv *c = k->c;
    size_t plane = (size_t)c->oh * (size_t)c->ow, in_plane = (size_t)c->h * (size_t)c->w;
    int taps = c->kernel * c->kernel;
    if (!k->runs) {
        const uint32_t *x = (const uint32_t *)(const void *)(k->x + (size_t)i * in_plane);
        for (int tap = 0; tap < taps; tap++) {
            const int32_t *index = k->index + tap * k->count;
            const uint32_t *inside = k->inside + tap * k->count;
            float *to = out + (size_t)tap * row;
            for (int p = 0; p < k->count; p++) {
                uint32_t bits = x[index[p]] & inside[p];
                memcpy(to + p, &bits, sizeof bits);
            }
        }
        return;
    }
    for (int done = 0, run; done < k->count; done += run) { /* the pixels of one row */
        size_t n = (k->first + (size_t)done) / plane - k->first / plane;
        int at = (int)((k->first + (size_t)done) % plane), oy = at / c->ow, ox = at % c->ow;
        run = k->count - done < c->ow - ox ? k->count - done : c->ow - ox;
        for (int tap = 0; tap < taps; tap++)
            copy_run(c, k->x + (n * (size_t)c->ci + (size_t)i) * in_plane, oy, ox, tap, run,
                     out + (size_t)tap * row + done);
    }
}

/* y of pixels first ... from a block (co, row), for outputs from ... to - 1. */
static void store_pixels(const conv *c, size_t first, int count, int from, int to, const float *block, size_t row)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    for (int done = 0, run; done < count; done += run) { /* the pixels of one picture */
        size_t n = (first + (size_t)done) / plane, at = (first + (size_t)done) % plane;
        run = (size_t)(count - done) < plane - at ? count - done : (int)(plane - at);
        for (int o = from; o < to; o++) {
            float *y = c->y + (n * (size_t)c->co + (size_t)o) * plane + at;
            const float *in = block + (size_t)o * row + done;
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
 * (block, panel), blocks slowest. A 1x1 kernel reads each channel but once, and so in longer pieces, for memory's sake.
 * Scratch: all packed weights; for each thread a block of columns and one of y. */
typedef struct packed_sizes {
    size_t width, row;                  /* pixels of a block; floats from one of its rows to the next */
    size_t packed, columns, block, all; /* floats of each part; of all of them together */
} packed_sizes;

/* Columns of a 1x1 kernel are the picture itself; a small one's rows are near each other. */
static int as_they_lie(const conv *c)
{
    int plane = c->oh * c->ow;
    return c->kernel == 1 && c->stride == 1 && c->pad == 0 && plane >= 64 && plane <= 256 && plane % 16 == 0;
}

static packed_sizes sizes_of_packed(const cpu_state *s, const conv *c)
{
    size_t rows = panels_of(s->kernels, c->co) * (size_t)s->kernels->rows, k = (size_t)(c->ci * c->kernel * c->kernel);
    packed_sizes z = {.width = BLOCK, .row = BLOCK, .packed = line(rows * k)};
    if (c->kernel == 1 && (c->oh * c->ow >= 4 * BLOCK || as_they_lie(c))) {
        z.width = as_they_lie(c) ? (size_t)(c->oh * c->ow) : 4 * BLOCK;
        z.row = z.width + 16; /* an odd number of cache lines */
    }
    z.columns = line(k * z.row);
    z.block = line(rows * z.row);
    z.all = z.packed + (size_t)s->threads * (z.columns + z.block);
    return z;
}

/* A 1x1 kernel sees no rows: all of a picture is one. */
static conv without_rows(const conv *c)
{
    conv flat = *c;
    if (c->kernel == 1 && c->stride == 1 && c->pad == 0) {
        flat.w = flat.ow = c->h * c->w;
        flat.h = flat.oh = 1;
    }
    return flat;
}

static void packed_forward(const cpu_state *s, const conv *given, float *scratch)
{
    const cpu_kernels *kernels = s->kernels;
    const conv flat = without_rows(given), *c = &flat;
    const packed_sizes z = sizes_of_packed(s, c);
    int taps = c->kernel * c->kernel, k = c->ci * taps;
    size_t panels = panels_of(kernels, c->co), mr = (size_t)kernels->rows;
    size_t plane = (size_t)c->oh * (size_t)c->ow, pixels = (size_t)c->n * plane;
    size_t stretch = plane < z.width ? pixels : plane; /* what blocks do not cross */
    size_t each = (stretch + z.width - 1) / z.width, blocks = pixels / stretch * each;
    float *packed = scratch;
    size_t first, end;
    share(panels * (size_t)c->ci, &first, &end);
    for (size_t job = first; job < end; job++) { /* one input channel of one panel */
        size_t panel = job / (size_t)c->ci, i = job % (size_t)c->ci;
        kernels->pack(c->co - (int)(panel * mr), taps, c->weight + panel * mr * c->w_out + i * c->w_in, c->w_out,
                      c->w_tap, packed + (panel * (size_t)k + i * (size_t)taps) * mr);
    }
    cpu_team_barrier();
    float *column = packed + z.packed + (size_t)cpu_team_index() * (z.columns + z.block), *block = column + z.columns;
    columns where;
    share(blocks * panels, &first, &end);
    for (size_t job = first, run; job < end; job += run) {
        size_t block_of = job / panels, from = job % panels, inside = block_of % each * z.width;
        size_t at = block_of / each * stretch + inside;
        run = end - job < panels - from ? end - job : panels - from;
        int count = (int)(stretch - inside < z.width ? stretch - inside : z.width), from_row = (int)(from * mr);
        int to_row = (int)((from + run) * mr) < c->co ? (int)((from + run) * mr) : c->co;
        const float *picture = c->x + at / plane * (size_t)c->ci * plane; /* of those as they lie */
        if (!as_they_lie(c)) find_columns(c, at, count, &where);
        for (int i = 0; i < c->ci && !as_they_lie(c); i++) {
            for (int p = 0; p < count && taps == 1 && i + 4 < c->ci && stretch == plane; p += 16)
                __builtin_prefetch(where.x + (size_t)(i + 4) * plane + inside + p); /* planes are far apart */
            fill_columns(&where, i, column + (size_t)(i * taps) * z.row, z.row);
        }
        cpu_product p = {.m = to_row - from_row,
                         .n = count,
                         .k = k,
                         .a = packed + from * mr * (size_t)k,
                         .b = as_they_lie(c) ? picture + inside : column,
                         .ldb = as_they_lie(c) ? plane : z.row,
                         .c = block + from * mr * z.row,
                         .ldc = z.row};
        if (stretch == plane) { /* of one picture: in place */
            p.c = c->y + (at / plane * (size_t)c->co + from * mr) * plane + inside;
            p.ldc = plane;
            p.bias = c->bias ? c->bias + from * mr : NULL;
            p.accumulate = c->accumulate;
        }
        kernels->product(&p);
        if (stretch != plane) store_pixels(c, at, count, from_row, to_row, block, z.row);
    }
}

/* Small pictures, stride 1, as many pixels out as in: the batch is turned innermost, (Ci,h,w,n), so that a row of
 * outputs of all pictures fills vectors, a tap is a shift by n, and taps that fall outside above or below are left out
 * (at 4x4 a sixth of them). Each weight is read as it lies, once for a row. Where even a row is shorter than a vector,
 * all rows are one, with zeros around the picture, and what falls between two rows is thrown away. To a 1x1 kernel all
 * is one row. Scratch: the frame of zeros with the batch in it; for each thread the outputs of a panel. */
typedef struct small_sizes {
    conv c;                     /* a 1x1 kernel's as one row */
    int whole;                  /* all rows as one */
    int vectors;                /* of a row */
    size_t row, channel, frame; /* floats of a row, of a channel, of the frame */
    size_t y_row, y;            /* floats of a row of outputs, of an output */
} small_sizes;

static small_sizes sizes_of_small(const cpu_state *s, const conv *given)
{
    small_sizes z = {.c = *given};
    size_t lanes = (size_t)s->kernels->lanes, n = (size_t)given->n, length;
    if (z.c.kernel == 1) z.c.w = z.c.ow = given->h * given->w, z.c.h = z.c.oh = 1;
    z.whole = n * (size_t)z.c.w < lanes;
    z.row = n * (size_t)(z.c.w + 2 * z.c.pad);
    z.channel = z.row * (size_t)(z.c.h + (z.whole ? 2 * z.c.pad : 0));
    length = z.whole ? z.row * (size_t)(z.c.h - 1) + n * (size_t)z.c.w : n * (size_t)z.c.w;
    z.vectors = (int)((length + lanes - 1) / lanes);
    z.frame = line(z.channel * (size_t)z.c.ci + lanes * (size_t)z.vectors); /* the last vectors read beyond the end */
    z.y_row = z.whole ? z.row : lanes * (size_t)z.vectors;
    z.y = line(z.whole ? lanes * (size_t)z.vectors : z.y_row * (size_t)z.c.h);
    return z;
}

static size_t small_scratch(const cpu_state *s, const conv *c, int capacity)
{
    size_t most = 0;
    for (int n = 1; n <= capacity; n++) { /* zeros above and below may make the frame of a smaller batch larger */
        conv some = *c;
        some.n = n;
        small_sizes z = sizes_of_small(s, &some);
        size_t room = z.frame + (size_t)s->threads * z.y * (size_t)s->kernels->rows;
        most = room > most ? room : most;
    }
    return most;
}

/* The batch's channel i into its place in the frame. */
static void fill_frame(const small_sizes *z, int i, float *channel)
{
    const conv *c = &z->c;
    size_t n = (size_t)c->n, plane = (size_t)c->h * (size_t)c->w;
    memset(channel, 0, z->channel * sizeof *channel);
    for (size_t k = 0; k < n; k++)
        for (int y = 0; y < c->h; y++) {
            const float *x = c->x + (k * (size_t)c->ci + (size_t)i) * plane + (size_t)(y * c->w);
            float *to = channel + (size_t)(y + (z->whole ? c->pad : 0)) * z->row + (size_t)c->pad * n + k;
            for (int at = 0; at < c->w; at++)
                to[(size_t)at * n] = x[at];
        }
}

static void store_small(const small_sizes *z, int o, const float *y)
{
    const conv *c = &z->c;
    size_t n = (size_t)c->n, plane = (size_t)c->h * (size_t)c->w;
    float bias = c->bias ? c->bias[o] : 0;
    for (size_t k = 0; k < n; k++)
        for (int at = 0; at < c->h; at++) {
            float *to = c->y + (k * (size_t)c->co + (size_t)o) * plane + (size_t)(at * c->w);
            const float *from = y + (size_t)at * z->y_row + k;
            for (int x = 0; x < c->w; x++)
                to[x] = (c->accumulate ? to[x] : bias) + from[(size_t)x * n];
        }
}

static void small_forward(const cpu_state *s, const conv *given, float *scratch)
{
    const small_sizes z = sizes_of_small(s, given);
    const conv *c = &z.c;
    size_t first, end, mr = (size_t)s->kernels->rows;
    float *frame = scratch, *own = frame + z.frame + (size_t)cpu_team_index() * z.y * mr;
    share((size_t)c->ci, &first, &end);
    for (size_t i = first; i < end; i++)
        fill_frame(&z, (int)i, frame + i * z.channel);
    cpu_team_barrier();
    share((size_t)c->co / mr, &first, &end);
    for (size_t panel = first; panel < end; panel++) {
        for (int y = 0; y < (z.whole ? 1 : c->h); y++) {
            int skip = z.whole || y >= c->pad ? 0 : c->pad - y; /* taps above the picture */
            int below = z.whole || y + c->pad < c->h ? 0 : y + c->pad + 1 - c->h;
            cpu_taps t = {.inputs = c->ci,
                          .rows = c->kernel - skip - below,
                          .columns = c->kernel,
                          .vectors = z.vectors,
                          .w = c->weight + panel * mr * c->w_out + (ptrdiff_t)(skip * c->kernel) * c->w_tap,
                          .x = frame + (size_t)(z.whole ? 0 : y + skip - c->pad) * z.row,
                          .w_out = c->w_out,
                          .w_in = c->w_in,
                          .w_row = c->kernel * c->w_tap,
                          .w_tap = c->w_tap,
                          .x_in = z.channel,
                          .x_row = z.row,
                          .x_step = (size_t)c->n,
                          .y = own + (size_t)y * z.y_row,
                          .ldy = z.y};
            s->kernels->taps(&t);
        }
        for (size_t m = 0; m < mr; m++)
            store_small(&z, (int)(panel * mr + m), own + m * z.y);
    }
}

/* One picture of 4x4: threads take vectors of outputs. */
static void one_picture_forward(const cpu_state *s, const conv *c)
{
    float y[16 * 16];
    size_t lanes = (size_t)s->kernels->lanes, first, end;
    share((size_t)c->co / lanes, &first, &end);
    for (size_t o = first * lanes; o < end * lanes; o += lanes) {
        s->kernels->one_picture(c->ci, c->weight + o * c->w_out, c->w_out, c->w_in, c->w_tap, c->x, y);
        for (size_t i = 0; i < lanes * 16; i++)
            c->y[o * 16 + i] = (c->accumulate ? c->y[o * 16 + i] : c->bias ? c->bias[o + i / 16] : 0) + y[i];
    }
}

/* A range of `count` for this thread, a multiple of `step` where it can be. */
static void range(int count, int step, int *first, int *end)
{
    size_t a, b;
    share((size_t)((count + step - 1) / step), &a, &b);
    *first = (int)a * step;
    *end = (int)b * step < count ? (int)b * step : count;
}

/* A 3x3 kernel with fewer outputs than a panel has rows, as a UNet's last: columns would be nine copies of the input
 * for three products each. Threads take bands of rows, whose inputs lie in a frame of zeros of their own; outputs that
 * are not there have weights of zero. Scratch for each thread: frame, weights, a row of outputs. */
enum { BAND = 8 };
typedef struct band_sizes {
    int vectors;                /* of a row */
    size_t row, channel, frame; /* floats of a row, of a channel, of the frame */
    size_t weights, y, all;     /* of the weights, of an output's row, of all threads */
} band_sizes;

static band_sizes sizes_of_bands(const cpu_state *s, const conv *c)
{
    size_t lanes = (size_t)s->kernels->lanes, mr = (size_t)s->kernels->rows;
    band_sizes z = {.vectors = (int)(((size_t)c->ow + lanes - 1) / lanes), .row = (size_t)c->w + 2};
    z.channel = z.row * (BAND + 2);
    z.y = lanes * (size_t)z.vectors;
    z.frame = line(z.channel * (size_t)c->ci + z.y); /* the last vectors read beyond the end */
    z.weights = line(9 * (size_t)c->ci * mr);
    z.all = (size_t)s->threads * (z.frame + z.weights + z.y * mr);
    return z;
}

static void banded_forward(const cpu_state *s, const conv *c, float *scratch)
{
    const band_sizes z = sizes_of_bands(s, c);
    size_t plane = (size_t)c->h * (size_t)c->w, w_out = 9 * (size_t)c->ci, first, end;
    float *frame = scratch + (size_t)cpu_team_index() * (z.all / (size_t)s->threads), *weights = frame + z.frame,
          *out = weights + z.weights;
    memset(frame, 0, (z.frame + z.weights) * sizeof *frame);
    for (int o = 0; o < c->co; o++)
        memcpy(weights + (size_t)o * w_out, c->weight + (size_t)o * c->w_out, w_out * sizeof *weights);
    size_t bands = ((size_t)c->h + BAND - 1) / BAND;
    share((size_t)c->n * bands, &first, &end);
    for (size_t job = first; job < end; job++) {
        size_t n = job / bands;
        int top = (int)(job % bands) * BAND, rows = c->h - top < BAND ? c->h - top : BAND;
        for (int i = 0; i < c->ci; i++)
            for (int r = 0; r < rows + 2; r++) {
                int y = top + r - 1;
                float *to = frame + (size_t)i * z.channel + (size_t)r * z.row + 1;
                if (y < 0 || y >= c->h)
                    memset(to, 0, (size_t)c->w * sizeof *to);
                else
                    memcpy(to, c->x + (n * (size_t)c->ci + (size_t)i) * plane + (size_t)(y * c->w),
                           (size_t)c->w * sizeof *to);
            }
        for (int r = 0; r < rows; r++) {
            cpu_taps t = {.inputs = c->ci,
                          .rows = 3,
                          .columns = 3,
                          .vectors = z.vectors,
                          .w = weights,
                          .x = frame + (size_t)r * z.row,
                          .w_out = w_out,
                          .w_in = 9,
                          .w_row = 3,
                          .w_tap = 1,
                          .x_in = z.channel,
                          .x_row = z.row,
                          .x_step = 1,
                          .y = out,
                          .ldy = z.y};
            s->kernels->taps(&t);
            for (int o = 0; o < c->co; o++) {
                float *to = c->y + (n * (size_t)c->co + (size_t)o) * plane + (size_t)((top + r) * c->w);
                for (int x = 0; x < c->w; x++)
                    to[x] = (c->bias ? c->bias[o] : 0) + out[(size_t)o * z.y + (size_t)x];
            }
        }
    }
}

/* Its weights' gradient, dw[o][i][r][s] = sum over y, x of x[i][y][x] dy[o][y+1-r][x+1-s]: dy, of few channels, lies
 * three times, moved by a column each and with a row of zeros above and below; then a tap is a dot product of a
 * picture's plane as it lies. Threads take input channels. Scratch for each: dy so; sums over pictures; of one. */
enum { TOGETHER = 12 }; /* input channels: with them dy stays in the second-level cache */

static size_t banded_weight_scratch(const conv *c) /* of one thread */
{
    return line(3 * (size_t)(c->co * (c->h + 2) * c->w)) + line(9 * (size_t)(c->co * c->ci)) +
           line((size_t)(c->co * TOGETHER));
}

static void banded_weight(const cpu_state *s, const conv *c, const float *dy, float *dw, int accumulate, float *scratch)
{
    size_t w = (size_t)c->w, plane = (size_t)c->h * w, framed = plane + 2 * w, ci = (size_t)c->ci, co = (size_t)c->co;
    float *moved = scratch + (size_t)cpu_team_index() * banded_weight_scratch(c), *sums = moved + line(3 * co * framed),
          *one = sums + line(9 * co * ci);
    int first, end;
    range(c->ci, TOGETHER, &first, &end);
    memset(moved, 0, 3 * co * framed * sizeof *moved);
    memset(sums, 0, 9 * co * ci * sizeof *sums);
    for (size_t n = 0; n < (size_t)c->n && first < end; n++) {
        for (size_t o = 0; o < co; o++) {
            const float *from = dy + (n * co + o) * plane;
            float *left = moved + o * framed + w, *same = left + co * framed, *right = same + co * framed;
            memcpy(same, from, plane * sizeof *same);
            for (size_t at = 0; at < plane; at += w) {
                memcpy(left + at, from + at + 1, (w - 1) * sizeof *left);
                memcpy(right + at + 1, from + at, (w - 1) * sizeof *right);
            }
        }
        for (int i = first; i < end; i += TOGETHER) {
            int some = end - i < TOGETHER ? end - i : TOGETHER;
            for (size_t tap = 0; tap < 9; tap++) {
                s->kernels->dot(c->co, some, (int)plane, moved + tap % 3 * co * framed + (2 - tap / 3) * w, framed,
                                c->x + (n * ci + (size_t)i) * plane, plane, one, TOGETHER);
                for (size_t o = 0; o < co; o++)
                    for (int k = 0; k < some; k++)
                        sums[(o * ci + (size_t)(i + k)) * 9 + tap] += one[o * TOGETHER + (size_t)k];
            }
        }
    }
    for (size_t o = 0; o < co; o++)
        for (size_t k = 9 * (size_t)first; k < 9 * (size_t)end; k++)
            dw[o * 9 * ci + k] = (accumulate ? dw[o * 9 * ci + k] : 0) + sums[o * 9 * ci + k];
}

/* Few pixels: then nearly all the time goes into reading the weights, which stay as they lie. Scratch: (pixels, K). */
static void thin_forward(const cpu_state *s, const conv *c, float *scratch)
{
    int taps = c->kernel * c->kernel, k = c->ci * taps, plane = c->oh * c->ow, pixels = c->n * plane;
    float *row = scratch, *turned = scratch + line((size_t)k * FEW_PIXELS); /* (pixels,k); (k,pixels) */
    float y[4 * FEW_PIXELS];
    size_t first, end;
    share((size_t)c->ci, &first, &end);
    columns where;
    find_columns(c, 0, pixels, &where);
    for (size_t i = first; i < end; i++)
        fill_columns(&where, (int)i, turned + i * (size_t)(taps * FEW_PIXELS), FEW_PIXELS);
    s->kernels->turn((int)(end - first) * taps, pixels, turned + first * (size_t)(taps * FEW_PIXELS), FEW_PIXELS,
                     row + first * (size_t)taps, (size_t)k);
    cpu_team_barrier();
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

/* dw (Co,K) (+)= dy (Co,pixels) columns^T. A thread has a range of input channels, or of outputs where these are
 * more, to itself, and goes through the pixels in blocks. Scratch for each thread: the block's columns both ways;
 * packed dy. */
typedef struct weight_sizes {
    int depth, together;            /* pixels of a block; channels of a chunk */
    size_t row;                     /* floats from a pixel's columns of a chunk to the next pixel's */
    size_t turned, columns, packed; /* floats of each part */
    size_t all;                     /* of all threads' */
} weight_sizes;

static weight_sizes sizes_of_weight(const cpu_state *s, const conv *c)
{
    size_t rows = panels_of(s->kernels, c->co) * (size_t)s->kernels->rows, taps = (size_t)(c->kernel * c->kernel);
    weight_sizes z = {.depth = c->kernel == 1 ? 256 : 128, .together = c->kernel == 1 ? 128 : 16};
    z.row = taps * (size_t)z.together + 16; /* an odd number of cache lines */
    z.turned = line(taps * (size_t)(z.together * z.depth));
    z.columns = line(z.row * (size_t)z.depth + 64);
    z.packed = line(rows * (size_t)z.depth);
    z.all = (size_t)s->threads * (z.turned + z.columns + z.packed);
    return z;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): clang-tidy 14 does not see dw copied into the product */
static void direct_weight(const cpu_state *s, const conv *c, const float *dy, float *dw, int accumulate, float *scratch)
{
    const cpu_kernels *kernels = s->kernels;
    int taps = c->kernel * c->kernel, by_input = c->ci >= c->co;
    const weight_sizes z = sizes_of_weight(s, c);
    size_t plane = (size_t)c->oh * (size_t)c->ow, pixels = (size_t)c->n * plane, mr = (size_t)kernels->rows,
           w_out = (size_t)(c->ci * taps);
    int i0 = 0, i1 = c->ci, o0 = 0, o1 = c->co;
    if (by_input)
        range(c->ci, 16, &i0, &i1);
    else
        range(c->co, 16, &o0, &o1);
    columns where;
    float *turned = scratch + (size_t)cpu_team_index() * (z.turned + z.columns + z.packed), *row = turned + z.turned,
          *packed = row + z.columns;
    for (size_t at = 0, count; at < pixels && i0 < i1 && o0 < o1; at += count) {
        size_t n0 = at / plane, q0 = at % plane;
        count = pixels - at < (size_t)z.depth ? pixels - at : (size_t)z.depth;
        if (plane >= 64 && count > plane - q0) count = plane - q0; /* within a picture dy is read as it lies */
        int as_it_lies = q0 + count <= plane && (o1 - o0) % (int)mr == 0;
        for (int o = o0; o < o1 && !as_it_lies; o += (int)mr)
            for (size_t done = 0, run; done < count; done += run) { /* the pixels of one picture */
                size_t n = (at + done) / plane, q = (at + done) % plane;
                run = count - done < plane - q ? count - done : plane - q;
                kernels->pack(o1 - o, (int)run, dy + (n * (size_t)c->co + (size_t)o) * plane + q, plane, 1,
                              packed + (size_t)(o - o0) * count + done * mr);
            }
        find_columns(c, at, (int)count, &where);
        for (int i = i0; i < i1; i += z.together) {
            int some = i1 - i < z.together ? i1 - i : z.together;
            const float *from = turned;
            size_t from_row = (size_t)z.depth;
            if (c->kernel == 1 && c->stride == 1 && c->pad == 0 && q0 + count <= plane)
                from = c->x + (n0 * (size_t)c->ci + (size_t)i) * plane + q0, from_row = plane;
            else
                for (int j = 0; j < some; j++)
                    fill_columns(&where, i + j, turned + (size_t)(j * taps * z.depth), (size_t)z.depth);
            kernels->turn(some * taps, (int)count, from, from_row, row, z.row);
            cpu_product p = {.m = o1 - o0,
                             .n = some * taps,
                             .k = (int)count,
                             .a = as_it_lies ? dy + (n0 * (size_t)c->co + (size_t)o0) * plane + q0 : packed,
                             .a_row = as_it_lies ? plane : 0,
                             .b = row,
                             .ldb = z.row,
                             .c = dw + (size_t)o0 * w_out + (size_t)(i * taps),
                             .ldc = w_out,
                             .accumulate = accumulate || at > 0};
            kernels->product(&p);
        }
    }
}

/* dx from the columns' gradient dy^T w (pixels,K), a block of pixels at a time: serves strides and few pixels. A thread
 * has a range of input channels to itself. Scratch: packed dy of a block, for each thread; its part of the columns. */
static size_t columns_scratch(const cpu_state *s, const conv *c) /* of one thread */
{
    return line((size_t)(DEPTH + s->kernels->rows) * (size_t)c->co) +
           line((size_t)(c->ci * c->kernel * c->kernel) * DEPTH + 64);
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
    size_t plane = (size_t)c->oh * (size_t)c->ow, pixels = (size_t)c->n * plane;
    int i0, i1;
    range(c->ci, 16, &i0, &i1);
    int k = (i1 - i0) * taps;
    float *packed = scratch + (size_t)cpu_team_index() * columns_scratch(s, c),
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
        cpu_product product = {.m = count,
                               .n = k,
                               .k = c->co,
                               .a = packed,
                               .b = c->weight + (size_t)(i0 * taps),
                               .ldb = (size_t)(c->ci * taps),
                               .c = block,
                               .ldc = (size_t)k,
                               .copy_b = 1};
        kernels->product(&product);
        scatter_columns(c, at, count, i0, i1, block, dx);
    }
}

/* dx of a 3x3 kernel with stride 2. Pixel (y,x) was read through the taps that have its parity,
 *     dx[i][y][x] = sum over o and r, s with y + p - r and x + p - s even of w[o][i][r][s] dy[o][(y+p-r)/2][(x+p-s)/2],
 * so the pixels of each of four parities are a convolution of dy with 1, 2, 2 and 4 taps. Some pictures at a time lie
 * in a frame of zeros with the batch innermost, as in small_forward. Scratch: the frame; for each thread two rows. */
typedef struct strided_sizes {
    int together; /* pictures */
    size_t row, channel, frame;
    size_t y; /* floats of a row of one parity */
} strided_sizes;

static strided_sizes sizes_of_strided(const cpu_state *s, const conv *c)
{
    strided_sizes z = {.together = (BLOCK + c->ow - 1) / c->ow};
    size_t lanes = (size_t)s->kernels->lanes, most = (size_t)(z.together * (c->w / 2 + 1));
    z.row = (size_t)(z.together * (c->ow + 2));
    z.channel = z.row * (size_t)(c->oh + 2);
    z.frame = line(z.channel * (size_t)c->co + 4 * lanes); /* the last vectors read beyond the end */
    z.y = line(most + lanes);
    return z;
}

static size_t strided_scratch(const cpu_state *s, const conv *c)
{
    strided_sizes z = sizes_of_strided(s, c);
    return z.frame + (size_t)s->threads * z.y * (size_t)s->kernels->rows;
}

static void strided_data(const cpu_state *s, const conv *c, const float *dy, float *dx, float *scratch)
{
    const strided_sizes z = sizes_of_strided(s, c);
    size_t first, end, mr = (size_t)s->kernels->rows, lanes = (size_t)s->kernels->lanes;
    size_t plane = (size_t)c->oh * (size_t)c->ow, in_plane = (size_t)c->h * (size_t)c->w;
    float *own = scratch + z.frame + (size_t)cpu_team_index() * z.y * mr;
    for (int n = 0, some; n < c->n; n += some) {
        some = c->n - n < z.together ? c->n - n : z.together;
        share((size_t)c->co, &first, &end);
        for (size_t o = first; o < end; o++) {
            float *channel = scratch + o * z.channel;
            memset(channel, 0, z.channel * sizeof *channel);
            for (int k = 0; k < some; k++)
                for (int y = 0; y < c->oh; y++)
                    for (int x = 0; x < c->ow; x++)
                        channel[(size_t)(y + 1) * z.row + (size_t)((x + 1) * some + k)] =
                            dy[((size_t)(n + k) * (size_t)c->co + o) * plane + (size_t)(y * c->ow + x)];
        }
        cpu_team_barrier();
        share((size_t)c->ci / mr * (size_t)c->h, &first, &end);
        for (size_t job = first; job < end; job++) { /* a row of a panel */
            size_t panel = job / (size_t)c->h;
            int y = (int)(job % (size_t)c->h), odd = (y + c->pad) % 2; /* odd: through tap row 1 alone */
            for (int right = 0; right < 2 && right < c->w; right++) {
                int side = (right + c->pad) % 2, count = (c->w - right + 1) / 2;
                int row = (y + c->pad - (odd ? 1 : 2) + 2) / 2 - 1, /* of dy, under the first tap; -1 is in the frame */
                    column = (right + c->pad - (side ? 1 : 2) + 2) / 2 - 1;
                cpu_taps t = {.inputs = c->co,
                              .rows = odd ? 1 : 2,
                              .columns = side ? 1 : 2,
                              .vectors = (int)(((size_t)(count * some) + lanes - 1) / lanes),
                              .w = c->weight + panel * mr * c->w_in + (odd ? 3 : 6) + (side ? 1 : 2),
                              .x = scratch + (size_t)(row + 1) * z.row + (size_t)((column + 1) * some),
                              .w_out = c->w_in,
                              .w_in = c->w_out,
                              .w_row = -6,
                              .w_tap = -2,
                              .x_in = z.channel,
                              .x_row = z.row,
                              .x_step = (size_t)some,
                              .y = own,
                              .ldy = z.y};
                s->kernels->taps(&t);
                for (size_t m = 0; m < mr; m++)
                    for (int k = 0; k < some; k++) {
                        const float *from = own + m * z.y + k;
                        float *to = dx + ((size_t)(n + k) * (size_t)c->ci + panel * mr + m) * in_plane +
                                    (size_t)(y * c->w + right);
                        if (c->accumulate)
                            for (int x = 0; x < count; x++)
                                to[2 * x] += from[x * some];
                        else
                            for (int x = 0; x < count; x++)
                                to[2 * x] = from[x * some];
                    }
            }
        }
        cpu_team_barrier();
    }
}

/* ---- 3. Winograd ----------------------------------------------------------------------------------------------------
 * F(4x4,3x3): a tile of 16 outputs from 36 products a pair of channels instead of 144; F(2x2,3x3): one of 4 from 16
 * instead of 36 (transforms: cpu_kernels.h). For each of the 36 or 16 frequencies f, with t the tiles of the batch,
 *     M_f (Co,t) = U_f (Co,Ci) V_f (Ci,t);        backward to the weights: dU_f (Co,Ci) = D_f (Co,t) V_f^T (t,Ci)
 * where U = G w G^T, V = B^T X B, Y = A^T M A, D = A dY A^T, dw = G^T dU G. Backward to x is a forward (conv_of_dx).
 *
 * The smaller of V and U lies whole in scratch, the other is made a piece at a time. Many tiles: all weights are
 * transformed, then a thread works on WIDTH tiles at a time and on CHUNK outputs of them: V of the tiles (0.9 MiB at
 * 128 channels) and M of the outputs (0.2 MiB) stay in the second-level cache while U streams past them, a chunk's
 * from end to end. Fewer tiles than outputs: all tiles are transformed, then a thread transforms the weights of SLICE
 * outputs (0.6 MiB at 256 inputs) and lets V stream past them; U, larger than the weights, never leaves the cache.
 * Inference keeps U of the first kind, until the model says that its weights have changed. */

enum { WIDTH = 48, CHUNK = 32, SLICE = 16, GAP = 16 }; /* GAP: floats between planes, lest they share cache sets */

typedef struct winograd { /* sizes of one convolution, in floats */
    int by_weights;       /* V lies whole */
    size_t frequencies;
    int chunk;      /* outputs together */
    size_t groups;  /* of `lanes` tiles, in the batch */
    size_t width;   /* of a block: WIDTH tiles, or all there are */
    size_t blocks;  /* in the largest batch */
    size_t chunks;  /* of outputs */
    size_t u, v, m; /* planes of one frequency: U of a chunk, V of a block, M of both */
} winograd;

static size_t tiles_of(const conv *c, int pictures)
{
    int tile = c->winograd->tile; /* NOLINT(clang-analyzer-core.NullDereference): it does not follow transforms_for */
    return (size_t)pictures * (size_t)((c->oh + tile - 1) / tile) * (size_t)(c->ow / tile);
}

static winograd winograd_of(const cpu_state *s, const conv *c)
{
    size_t lanes = (size_t)s->kernels->lanes, most = tiles_of(c, c->capacity);
    size_t width = most < WIDTH ? (most + lanes - 1) / lanes * lanes : WIDTH;
    int by_weights = most < (size_t)c->co, chunk = by_weights ? SLICE : CHUNK;
    return (winograd){.by_weights = by_weights,
                      .frequencies = (size_t)c->winograd->frequencies,
                      .chunk = chunk,
                      .groups = (tiles_of(c, c->n) + lanes - 1) / lanes,
                      .width = width,
                      .blocks = (most + width - 1) / width,
                      .chunks = (size_t)((c->co + chunk - 1) / chunk),
                      .u = (size_t)(chunk * c->ci + GAP),
                      .v = width * (size_t)c->ci + GAP,
                      .m = width * (size_t)chunk + GAP};
}

static size_t transformed_weights(const cpu_state *s, const conv *c)
{
    winograd w = winograd_of(s, c);
    return w.frequencies * w.chunks * w.u;
}

static size_t winograd_scratch(const cpu_state *s, const conv *c)
{
    winograd w = winograd_of(s, c);
    if (w.by_weights) return w.frequencies * (w.blocks * w.v + (size_t)s->threads * (w.u + w.m));
    return (c->kept ? 0 : transformed_weights(s, c)) + w.frequencies * (size_t)s->threads * (w.v + w.m);
}

/* U[chunk][f][panel][input][row of the panel]: this thread's share. */
static void winograd_weights(const cpu_state *s, const conv *c, const winograd *w, float *u)
{
    const cpu_kernels *k = s->kernels;
    size_t first, end;
    share((size_t)(c->co / k->lanes) * (size_t)c->ci, &first, &end);
    for (size_t job = first, run; job < end; job += run) {
        int o = (int)(job / (size_t)c->ci) * k->lanes, i = (int)(job % (size_t)c->ci), in_chunk = o % CHUNK;
        run = end - job < (size_t)(c->ci - i) ? end - job : (size_t)(c->ci - i);
        c->winograd->weights(in_chunk, i, i + (int)run, c->ci, c->weight + (size_t)(o - in_chunk) * c->w_out, c->w_out,
                             c->w_in, c->w_tap, u + (size_t)(o / CHUNK) * w->frequencies * w->u, w->u);
    }
}

/* Outputs of one chunk, with its U, of tiles in V. */
static void winograd_outputs(const cpu_state *s, const conv *c, const winograd *w, size_t group, size_t groups,
                             size_t chunk, const float *u, const float *v, float *m)
{
    const cpu_kernels *k = s->kernels;
    const cpu_pictures y = {c->n, c->co, c->oh, c->ow, c->y};
    int from = (int)chunk * w->chunk, to = from + w->chunk < c->co ? from + w->chunk : c->co;
    for (size_t f = 0; f < w->frequencies; f++) {
        cpu_product p = {.m = to - from,
                         .n = (int)groups * k->lanes,
                         .k = c->ci,
                         .a = u + f * w->u,
                         .b = v + f * w->v,
                         .ldb = w->width,
                         .c = m + f * w->m,
                         .ldc = w->width};
        k->product(&p);
    }
    for (size_t i = 0; i < groups; i++)
        c->winograd->output(&y, (group + i) * (size_t)k->lanes, from, to, m + i * (size_t)k->lanes, w->m, w->width,
                            c->bias, c->accumulate);
}

/* Threads take chunks of outputs. Scratch: V; for each thread U and M of a chunk. */
static void winograd_by_weights(const cpu_state *s, const conv *c, const winograd *w, float *scratch)
{
    const cpu_kernels *k = s->kernels;
    const cpu_pictures x = {c->n, c->ci, c->h, c->w, (float *)c->x};
    size_t lanes = (size_t)k->lanes, most = w->width / lanes, block = w->frequencies * w->v, first, end;
    size_t strips = (size_t)c->ci / 16; /* of channels */
    float *v = scratch, *u = v + w->blocks * block + w->frequencies * (size_t)cpu_team_index() * (w->u + w->m),
          *m = u + w->frequencies * w->u;
    share(w->groups * strips, &first, &end);
    for (size_t job = first; job < end; job++) {
        size_t group = job / strips;
        int from = (int)(job % strips) * 16;
        c->winograd->input(&x, group * lanes, from, from + 16, v + group / most * block + group % most * lanes, w->v,
                           w->width);
    }
    cpu_team_barrier();
    share(w->chunks, &first, &end);
    for (size_t chunk = first; chunk < end; chunk++) {
        for (int o = 0; o < SLICE; o += k->lanes)
            c->winograd->weights(o, 0, c->ci, c->ci, c->weight + chunk * SLICE * c->w_out, c->w_out, c->w_in, c->w_tap,
                                 u, w->u);
        for (size_t group = 0; group < w->groups; group += most)
            winograd_outputs(s, c, w, group, w->groups - group < most ? w->groups - group : most, chunk, u,
                             v + group / most * block, m);
    }
}

/* Threads take stretches of the list of (group, chunk), groups slowest, whole groups WIDTH tiles together: a group that
 * two of them share is transformed twice. */
static void winograd_forward(const cpu_state *s, const conv *c, float *scratch)
{
    const cpu_kernels *k = s->kernels;
    const winograd w = winograd_of(s, c);
    const cpu_pictures x = {c->n, c->ci, c->h, c->w, (float *)c->x};
    size_t most = w.width / (size_t)k->lanes, first, end;
    if (w.by_weights) {
        winograd_by_weights(s, c, &w, scratch);
        return;
    }
    float *u = c->kept ? c->kept : scratch, *own = c->kept ? scratch : u + transformed_weights(s, c);
    float *v = own + w.frequencies * (size_t)cpu_team_index() * (w.v + w.m), *m = v + w.frequencies * w.v;
    if (!c->current) {
        winograd_weights(s, c, &w, u);
        cpu_team_barrier();
    }
    share(w.groups * w.chunks, &first, &end);
    for (size_t job = first, groups, chunks; job < end; job += groups * chunks) {
        size_t group = job / w.chunks, chunk = job % w.chunks, whole = chunk ? 0 : (end - job) / w.chunks;
        groups = whole > most ? most : whole ? whole : 1;
        chunks = whole || end - job > w.chunks - chunk ? w.chunks - chunk : end - job;
        for (size_t i = 0; i < groups; i++)
            c->winograd->input(&x, (group + i) * (size_t)k->lanes, 0, c->ci, v + i * (size_t)k->lanes, w.v, w.width);
        for (size_t last = chunk + chunks; chunk < last; chunk++)
            winograd_outputs(s, c, &w, group, groups, chunk, u + chunk * w.frequencies * w.u, v, m);
    }
}

/* dw (+)= ..., summed over blocks of `deep` tiles, which all threads transform together. Where one block is all, a
 * thread goes through dU by outputs, SLICE at a time, and turns them into dw at once; else dU is summed whole.
 * Scratch: V, D of a block; dU, or of SLICE outputs for each thread. */
enum { DEEP = 96, DEEPEST = 128 };

typedef struct winograd_weight_sizes {
    int once;                   /* one block is all */
    size_t deep;                /* tiles of a block */
    size_t row, v, d_row, d, u; /* a tile's channels in V, an output's tiles in D; planes of one frequency */
} winograd_weight_sizes;

static winograd_weight_sizes sizes_of_winograd_weight(const cpu_state *s, const conv *c)
{
    size_t lanes = (size_t)s->kernels->lanes, tiles = (tiles_of(c, c->capacity) + lanes - 1) / lanes * lanes;
    winograd_weight_sizes z = {.once = tiles <= DEEPEST, .row = (size_t)(c->ci + GAP)};
    z.deep = z.once ? tiles : DEEP;
    z.d_row = z.deep + GAP;
    z.v = z.deep * z.row + GAP + 64;
    z.d = z.d_row * (size_t)c->co + GAP;
    z.u = (size_t)(z.once ? SLICE : c->co) * (size_t)c->ci + GAP;
    return z;
}

static size_t winograd_weight_scratch(const cpu_state *s, const conv *c)
{
    winograd_weight_sizes z = sizes_of_winograd_weight(s, c);
    return (size_t)c->winograd->frequencies * (z.v + z.d + (z.once ? (size_t)s->threads : 1) * z.u);
}

static void winograd_weight(const cpu_state *s, const conv *c, const float *dy, float *dw, int accumulate,
                            float *scratch)
{
    const cpu_kernels *k = s->kernels;
    const winograd_weight_sizes z = sizes_of_winograd_weight(s, c);
    size_t lanes = (size_t)k->lanes, mr = (size_t)k->rows, first, end;
    size_t there = tiles_of(c, c->n), tiles = (there + lanes - 1) / lanes * lanes;
    size_t ci = (size_t)c->ci / lanes, co = (size_t)c->co / lanes; /* in vectors */
    size_t rows = z.once ? SLICE : mr, pieces = (size_t)c->co / rows, in_row = (size_t)c->ci * 9;
    cpu_pictures x = {c->n, c->ci, c->h, c->w, (float *)c->x}, y = {c->n, c->co, c->oh, c->ow, (float *)dy};
    const cpu_transforms *t = c->winograd;
    size_t frequencies = (size_t)t->frequencies;
    float *v = scratch, *d = v + frequencies * z.v, *du = d + frequencies * z.d;
    if (z.once) du += frequencies * z.u * (size_t)cpu_team_index();
    for (size_t tile = 0; tile < tiles; tile += z.deep) {
        size_t groups = (tiles - tile < z.deep ? tiles - tile : z.deep) / lanes;
        size_t deep = there - tile < z.deep ? there - tile : z.deep;
        share(groups * (ci + co), &first, &end);
        for (size_t job = first; job < end; job++) {
            size_t at = job / (ci + co) * lanes, channel = job % (ci + co);
            if (channel < ci)
                t->turned(&x, tile + at, (int)(channel * lanes), v, z.v, z.row, at);
            else
                t->gradient(&y, tile + at, (int)((channel - ci) * lanes), (int)((channel - ci + 1) * lanes), d + at,
                            z.d, z.d_row);
        }
        cpu_team_barrier();
        /* Jobs: (piece, frequency), frequencies fastest where pieces are slices, or the other way around. */
        if (z.once)
            share(pieces, &first, &end);
        else
            share(frequencies * pieces, &first, &end);
        for (size_t job = first, run; job < end; job += run) {
            size_t f = job / pieces, from = job % pieces;
            run = end - job < pieces - from ? end - job : pieces - from;
            if (z.once) run = 1;
            cpu_product p = {.m = (int)(run * rows),
                             .n = c->ci,
                             .k = (int)deep,
                             .a = d + f * z.d + from * rows * z.d_row,
                             .a_row = z.d_row,
                             .b = v + f * z.v,
                             .ldb = z.row,
                             .c = du + f * z.u + (z.once ? 0 : from * rows * (size_t)c->ci),
                             .ldc = (size_t)c->ci,
                             .accumulate = tile > 0};
            if (!z.once) {
                k->product(&p);
                continue;
            }
            for (f = 0; f < frequencies; f++, p.a += z.d, p.b += z.v, p.c += z.u)
                k->product(&p);
            for (size_t i = 0; i < rows * ci; i++)
                t->weight_gradient(du + i * lanes, z.u, dw + from * rows * in_row + i * lanes * 9, accumulate);
        }
        cpu_team_barrier();
    }
    if (z.once) return;
    share((size_t)c->co * ci, &first, &end);
    for (size_t job = first; job < end; job++)
        t->weight_gradient(du + job * lanes, z.u, dw + job * lanes * 9, accumulate);
}

/* ---- 4. Which one, and the rows ---------------------------------------------------------------------------------- */

/* Winograd needs 3x3, stride 1, padding 1, whole vectors of channels and rows of whole tiles; pictures of two tiles by
 * two at least, or, where T = 4, of one. */
static int winograd_fits(const ddpm_graph *g, const ddpm_node *node, int tile)
{
    const ddpm_tensor *w = node->in[1], *y = node->out;
    int whole = y->shape[3] % tile == 0 && y->shape[3] >= 2 * tile && y->shape[2] >= 2 * tile;
    whole |= tile == 4 && y->shape[2] == 4 && y->shape[3] == 4;
    return whole && w->shape[2] == 3 && node->attr.conv.stride == 1 && node->attr.conv.pad_start == 1 &&
           node->attr.conv.pad_end == 1 && w->shape[0] % 16 == 0 && w->shape[1] % 16 == 0 && !state_of(g)->exact;
}

static int tiles_in(const ddpm_graph *g, const ddpm_node *node, int tile)
{
    return g->capacity * (node->out->shape[3] / tile) * ((node->out->shape[2] + tile - 1) / tile);
}

/* The rule for y and dx, and the one for dw. Winograd pays where the transform of the weights is spread over enough
 * tiles: F(4x4,3x3) from 16 tiles on (to the weights' gradient from 8), else F(2x2,3x3) from 12: a picture of 8x8 has
 * 16 of them, three of 4x4 have 12. Small pictures with fewer tiles, and few pixels, read the weights as they lie.
 * Everything else is packed. It looks at the graph's capacity, so that all runs of a graph use the same algorithm. */
enum { TILES_4 = 16, TILES_2 = 12 };

static const cpu_transforms *transforms_for(const ddpm_graph *g, const ddpm_node *node, int least_4, int least_2)
{
    const cpu_transforms *t = state_of(g)->kernels->winograd;
    if (winograd_fits(g, node, 4) && tiles_in(g, node, 4) >= least_4) return &t[TILE_4];
    if (winograd_fits(g, node, 2) && tiles_in(g, node, 2) >= least_2) return &t[TILE_2];
    return NULL;
}

static const cpu_transforms *winograd_for_weights(const ddpm_graph *g, const ddpm_node *node)
{
    return transforms_for(g, node, TILES_4 / 2, TILES_2);
}

static conv conv_of(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0], *w = node->in[1], *y = node->out;
    int taps = w->shape[2] * w->shape[3];
    return (conv){.n = g->n,
                  .capacity = g->capacity,
                  .ci = x->shape[1],
                  .co = y->shape[1],
                  .kernel = w->shape[2],
                  .stride = node->attr.conv.stride,
                  .pad = node->attr.conv.pad_start,
                  .h = x->shape[2],
                  .w = x->shape[3],
                  .oh = y->shape[2],
                  .ow = y->shape[3],
                  .x = x->data,
                  .weight = w->data,
                  .bias = node->in[2] ? node->in[2]->data : NULL,
                  .y = y->data,
                  .winograd = transforms_for(g, node, TILES_4, TILES_2),
                  .w_out = (size_t)(x->shape[1] * taps),
                  .w_in = (size_t)taps,
                  .w_tap = 1};
}

/* Backward to x at stride 1 is a convolution of dy: x[iy] meets tap k-1-j at row iy + j - (k-1-p) of dy. So the taps
 * run backwards, the roles of inputs and outputs are exchanged, and the padding is k-1-p. */
static conv conv_of_dx(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node), d = c;
    d.ci = c.co, d.co = c.ci;
    d.h = c.oh, d.w = c.ow, d.oh = c.h, d.ow = c.w;
    d.pad = c.kernel - 1 - c.pad;
    d.x = node->out->grad, d.y = node->in[0]->grad, d.bias = NULL;
    d.weight = c.weight ? c.weight + c.kernel * c.kernel - 1 : NULL; /* NULL while planning: only sizes are asked */
    d.w_out = c.w_in, d.w_in = c.w_out, d.w_tap = -1;
    d.accumulate = (int)(node->accumulate & 1);
    return d;
}

static int few_pixels(const ddpm_graph *g, const ddpm_node *node)
{
    return g->capacity * node->out->shape[2] * node->out->shape[3] <= FEW_PIXELS;
}

static int one_picture_fits(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node);
    return g->capacity == 1 && c.kernel == 3 && c.stride == 1 && c.pad == 1 && c.h == 4 && c.w == 4 && c.oh == 4 &&
           c.ow == 4 && c.ci % 16 == 0 && c.co % 16 == 0;
}

/* At least half of what `small_forward` computes must be outputs, and the frame stay in the second-level cache or
 * near. */
static int small_pays(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node);
    c.n = g->capacity;
    if (c.kernel > 3 || c.stride != 1 || c.pad != c.kernel / 2 || c.oh != c.h || c.ow != c.w || c.h * c.w > 64 ||
        c.co % 16 || c.ci % 16)
        return 0;
    if (as_they_lie(&c) && c.n >= 2) return 0; /* nothing to turn */
    small_sizes z = sizes_of_small(state_of(g), &c);
    size_t computed = (size_t)(z.vectors * state_of(g)->kernels->lanes) * (size_t)(z.whole ? 1 : z.c.h);
    return 2 * (size_t)(c.n * c.h * c.w) >= computed && z.frame <= SMALL_FRAME;
}

static int strided_pays(const conv *c)
{
    return c->kernel == 3 && c->stride == 2 && c->ci % 16 == 0;
}

/* Rows of outputs fill vectors; the frame of a band stays in the second-level cache or near. */
static int banded_pays(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node);
    const cpu_state *s = state_of(g);
    return c.kernel == 3 && c.stride == 1 && c.pad == 1 && c.oh == c.h && c.ow == c.w && c.co < s->kernels->rows &&
           c.w >= s->kernels->lanes && c.ci >= 16 && sizes_of_bands(s, &c).frame <= SMALL_FRAME;
}

typedef enum algorithm { THIN, TURNED, ONE_PICTURE, BANDED, PACKED, WINOGRAD } algorithm;

static algorithm choose(const ddpm_graph *g, const ddpm_node *node)
{
    if (transforms_for(g, node, TILES_4, TILES_2)) return WINOGRAD;
    if (one_picture_fits(g, node)) return ONE_PICTURE;
    if (small_pays(g, node)) return TURNED;
    if (banded_pays(g, node)) return BANDED;
    return few_pixels(g, node) ? THIN : PACKED;
}

/* What an inference graph keeps for a convolution: its transformed weights, in memory of its own. */
typedef struct kept_weights {
    unsigned version; /* of the model's weights that they are made from */
} kept_weights;

static ddpm_result keep_weights(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes && !g->training; i++) {
        ddpm_node *node = g->node[i];
        if (node->op != DDPM_OP_CONV2D || choose(g, node) != WINOGRAD || !node->in[1]->version) continue;
        conv c = conv_of(g, node);
        if (winograd_of(state_of(g), &c).by_weights) continue;
        kept_weights *kept = ddpm_arena_alloc(&g->arena, sizeof *kept);
        if (!kept) return DDPM_ERR_MEMORY;
        kept->version = *node->in[1]->version - 1;
        node->own_elements = transformed_weights(state_of(g), &c);
        node->plan = kept;
    }
    return DDPM_OK;
}

static ddpm_result conv_forward(const ddpm_graph *g, const ddpm_node *node)
{
    conv c = conv_of(g, node);
    kept_weights *kept = node->plan;
    algorithm how = choose(g, node);
    if (kept) {
        c.kept = node->own;
        c.current = kept->version == *node->in[1]->version;
    }
    if (how == WINOGRAD)
        winograd_forward(state_of(g), &c, g->scratch);
    else if (how == TURNED)
        small_forward(state_of(g), &c, g->scratch);
    else if (how == ONE_PICTURE)
        one_picture_forward(state_of(g), &c);
    else if (how == BANDED)
        banded_forward(state_of(g), &c, g->scratch);
    else if (how == THIN)
        thin_forward(state_of(g), &c, g->scratch);
    else
        packed_forward(state_of(g), &c, g->scratch);
    /* Behind the row's barrier: all threads have read it. */
    if (kept && !c.current && cpu_team_index() == 0) kept->version = *node->in[1]->version;
    return DDPM_OK;
}

static void bias_gradient(const cpu_state *s, const conv *c, const float *dy, float *db, int accumulate)
{
    size_t plane = (size_t)c->oh * (size_t)c->ow;
    size_t first, end;
    share((size_t)c->co, &first, &end);
    for (size_t o = first; o < end; o++) {
        double total = 0;
        for (int n = 0; n < c->n; n++)
            total += s->kernels->sum(plane, dy + ((size_t)n * (size_t)c->co + o) * plane);
        db[o] = (accumulate ? db[o] : 0) + (float)total;
    }
}

static ddpm_result conv_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_state *s = state_of(g);
    conv c = conv_of(g, node);
    const float *dy = node->out->grad;
    algorithm how = choose(g, node);
    if (node->wants & 1 && how == WINOGRAD) {
        conv d = conv_of_dx(g, node);
        winograd_forward(s, &d, g->scratch);
    } else if (node->wants & 1 && how == TURNED) {
        conv d = conv_of_dx(g, node);
        small_forward(s, &d, g->scratch);
    } else if (node->wants & 1 && how == ONE_PICTURE) {
        conv d = conv_of_dx(g, node);
        one_picture_forward(s, &d);
    } else if (node->wants & 1 && c.stride == 1 && (how == PACKED || how == BANDED)) {
        conv d = conv_of_dx(g, node);
        packed_forward(s, &d, g->scratch);
    } else if (node->wants & 1 && strided_pays(&c)) {
        c.accumulate = (int)(node->accumulate & 1);
        strided_data(s, &c, dy, node->in[0]->grad, g->scratch);
    } else if (node->wants & 1) {
        c.accumulate = (int)(node->accumulate & 1);
        direct_data(s, &c, dy, node->in[0]->grad, g->scratch);
    }
    if (node->wants & 1) cpu_team_barrier(); /* they use the same scratch */
    c.winograd = winograd_for_weights(g, node);
    if (node->wants & 2 && c.winograd)
        winograd_weight(s, &c, dy, node->in[1]->grad, node->accumulate >> 1 & 1, g->scratch);
    else if (node->wants & 2 && how == BANDED)
        banded_weight(s, &c, dy, node->in[1]->grad, node->accumulate >> 1 & 1, g->scratch);
    else if (node->wants & 2)
        direct_weight(s, &c, dy, node->in[1]->grad, node->accumulate >> 1 & 1, g->scratch);
    if (node->wants & 4) bias_gradient(s, &c, dy, node->in[2]->grad, node->accumulate >> 2 & 1);
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
    size_t size;
    if (choose(g, node) == WINOGRAD) {
        conv d = conv_of_dx(g, node);
        size = winograd_scratch(s, &c);
        if (node->wants & 1) size = larger(size, winograd_scratch(s, &d));
        c.winograd = winograd_for_weights(g, node);
        if (node->wants & 2) size = larger(size, winograd_weight_scratch(s, &c));
        return size;
    }
    conv dx = conv_of_dx(g, node);
    if (choose(g, node) == TURNED)
        size = larger(small_scratch(s, &c, g->capacity), small_scratch(s, &dx, g->capacity));
    else if (choose(g, node) == ONE_PICTURE)
        size = 0;
    else if (choose(g, node) == BANDED)
        size = larger(sizes_of_bands(s, &c).all, (size_t)s->threads * banded_weight_scratch(&c));
    else if (few_pixels(g, node))
        size = 2 * line((size_t)(c.ci * c.kernel * c.kernel) * FEW_PIXELS);
    else
        size = sizes_of_packed(s, &c).all;
    if (node->wants & 1) size = larger(size, sizes_of_packed(s, &dx).all);
    if (node->wants & 1) size = larger(size, (size_t)s->threads * columns_scratch(s, &c));
    if (node->wants & 1 && strided_pays(&c)) size = larger(size, strided_scratch(s, &c));
    c.winograd = winograd_for_weights(g, node);
    if (node->wants & 2) size = larger(size, c.winograd ? winograd_weight_scratch(s, &c) : sizes_of_weight(s, &c).all);
    return size;
}

/* ---- 5. Elementwise rows ----------------------------------------------------------------------------------------- */

static size_t plane_of(const ddpm_tensor *x)
{
    return (size_t)x->shape[2] * (size_t)x->shape[3];
}

static float *gradient_of(const ddpm_node *node, int k) /* NULL if nobody wants it */
{
    return node->wants >> k & 1 ? node->in[k]->grad : NULL;
}

static int adds_to(const ddpm_node *node, int k)
{
    return (int)(node->accumulate >> k & 1);
}

/* This thread's share of an array, in whole vectors. */
static void share_array(size_t count, size_t *first, size_t *length)
{
    size_t end;
    share((count + 15) / 16, first, &end);
    *first *= 16;
    *length = end * 16 < count ? end * 16 - *first : count > *first ? count - *first : 0;
}

/* A tensor from picture `first` on. */
static ddpm_tensor *pictures_from(ddpm_tensor *x, int first, ddpm_tensor *view)
{
    if (!x || !x->batched || first == 0) return x;
    *view = *x;
    if (x->data) view->data = x->data + ddpm_elements(x, first);
    if (x->grad) view->grad = x->grad + ddpm_elements(x, first);
    return view;
}

/* Rows whose pictures do not meet, and that cost too little to be written again: the reference's code, each thread on
 * pictures of its own (OpenMP, in it, has one thread then). */
static ddpm_result reference_on_pictures(const ddpm_graph *g, const ddpm_node *node, int backward)
{
    const ddpm_row *row = &ddpm_reference()->rows[node->op];
    size_t first, end;
    ddpm_tensor view[DDPM_MAX_INPUTS + 2];
    ddpm_graph part = *g;
    ddpm_node own = *node;
    share((size_t)g->n, &first, &end);
    if (first == end) return DDPM_OK;
    part.n = (int)(end - first);
    part.step.first_picture += first;
    for (int k = 0; k < DDPM_MAX_INPUTS; k++)
        own.in[k] = pictures_from(node->in[k], (int)first, &view[k]);
    own.out = pictures_from(node->out, (int)first, &view[DDPM_MAX_INPUTS]);
    own.aux = pictures_from(node->aux, (int)first, &view[DDPM_MAX_INPUTS + 1]);
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
#endif
    ddpm_result result = (backward ? row->backward : row->forward)(&part, &own);
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    return result;
}

static ddpm_result pictures_forward(const ddpm_graph *g, const ddpm_node *node)
{
    return reference_on_pictures(g, node, 0);
}

static ddpm_result pictures_backward(const ddpm_graph *g, const ddpm_node *node)
{
    return reference_on_pictures(g, node, 1);
}

static ddpm_result activation_forward(const ddpm_graph *g, const ddpm_node *node)
{
    if (node->attr.activation.kind != DDPM_SILU) return pictures_forward(g, node);
    size_t at, length;
    share_array(ddpm_elements(node->out, g->n), &at, &length);
    state_of(g)->kernels->silu(length, node->in[0]->data + at, node->out->data + at);
    return DDPM_OK;
}

static ddpm_result activation_backward(const ddpm_graph *g, const ddpm_node *node)
{
    if (node->attr.activation.kind != DDPM_SILU) return pictures_backward(g, node);
    size_t at, length;
    share_array(ddpm_elements(node->out, g->n), &at, &length);
    state_of(g)->kernels->silu_backward(length, node->in[0]->data + at, node->out->grad + at, node->in[0]->grad + at,
                                        adds_to(node, 0));
    return DDPM_OK;
}

/* plan() lets a GroupNorm do the SiLU that follows it, where nothing else reads what lies between: y is then written
 * once and never kept; backward computes it again from x. */
static int folded_silu(const ddpm_node *node)
{
    return node->plan != NULL;
}

static ddpm_result norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_state *s = state_of(g);
    const float *weight = node->in[1]->data, *bias = node->in[2]->data;
    float *aux = node->aux->data; /* (N,2,G): mean, r */
    int groups = node->attr.norm.groups, channels = node->in[0]->shape[1] / groups;
    size_t plane = plane_of(node->in[0]), count = plane * (size_t)channels;
    size_t first, end;
    share((size_t)(g->n * groups), &first, &end);
    for (int group = (int)first; group < (int)end; group++) {
        int n = group / groups, k = group % groups;
        const float *x = node->in[0]->data + (size_t)group * count;
        float *y = node->out->data + (size_t)group * count;
        float *mean = &aux[2 * n * groups + k], *r = mean + groups;
        if (!g->again) {
            double total = s->kernels->sum(count, x), squares;
            *mean = (float)(total / (double)count);
            squares = s->kernels->squares(count, x, *mean);
            *r = (float)(1 / sqrt(squares / (double)count + node->attr.norm.eps));
        }
        for (int i = 0; i < channels; i++)
            s->kernels->normalise(plane, x + (size_t)i * plane, *mean, *r * weight[k * channels + i],
                                  bias[k * channels + i], folded_silu(node), y + (size_t)i * plane);
    }
    return DDPM_OK;
}

/* Each channel's sums of dy and dy (x - mean) serve dx as well as dw and db. Scratch: them, (N,C,2) doubles. */
static ddpm_result norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_state *s = state_of(g);
    const float *weight = node->in[1]->data, *bias = node->in[2]->data, *aux = node->aux->data;
    float *dx = gradient_of(node, 0), *dw = gradient_of(node, 1), *db = gradient_of(node, 2);
    double *sums = (double *)(void *)g->scratch;
    int groups = node->attr.norm.groups, all = node->in[0]->shape[1], channels = all / groups;
    size_t plane = plane_of(node->in[0]), count = plane * (size_t)channels;
    size_t first, end;
    share((size_t)(g->n * groups), &first, &end);
    for (int group = (int)first; group < (int)end; group++) {
        int n = group / groups, k = group % groups;
        const float *x = node->in[0]->data + (size_t)group * count;
        float *dy = node->out->grad + (size_t)group * count;
        double mean_e = 0, mean_eh = 0, *own = sums + 2 * (size_t)group * (size_t)channels;
        float mean = aux[(2 * n) * groups + k];
        double r = (double)aux[(2 * n + 1) * groups + k];
        for (int i = 0; i < channels; i++) {
            double w = (double)weight[k * channels + i];
            if (folded_silu(node)) /* nobody reads this gradient afterwards */
                s->kernels->normalise_silu_backward(plane, x + (size_t)i * plane, mean, (float)(r * w),
                                                    bias[k * channels + i], dy + (size_t)i * plane);
            s->kernels->sums(plane, dy + (size_t)i * plane, x + (size_t)i * plane, mean, own + 2 * i);
            mean_e += w * own[2 * i] / (double)count;
            mean_eh += w * r * own[2 * i + 1] / (double)count;
        }
        for (int i = 0; i < channels && dx; i++)
            s->kernels->normalise_backward(plane, x + (size_t)i * plane, mean, dy + (size_t)i * plane,
                                           (float)(r * (double)weight[k * channels + i]), (float)(-r * r * mean_eh),
                                           (float)(-r * mean_e), dx + (size_t)group * count + (size_t)i * plane,
                                           adds_to(node, 0));
    }
    cpu_team_barrier();
    share((size_t)all, &first, &end);
    for (int c = (int)first; c < (int)end; c++) {
        double sum_dy = 0, sum_dyh = 0;
        for (int n = 0; n < g->n; n++) {
            const double *own = sums + 2 * ((size_t)n * (size_t)all + (size_t)c);
            sum_dy += own[0];
            sum_dyh += (double)aux[(2 * n + 1) * groups + c / channels] * own[1];
        }
        if (dw) dw[c] = (adds_to(node, 1) ? dw[c] : 0) + (float)sum_dyh;
        if (db) db[c] = (adds_to(node, 2) ? db[c] : 0) + (float)sum_dy;
    }
    return DDPM_OK;
}

/* b may be (N,C,1,1): a plane then adds one number. */
static ddpm_result add_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_kernels *kernels = state_of(g)->kernels;
    const float *a = node->in[0]->data, *b = node->in[1]->data;
    float *y = node->out->data, scale = (float)node->attr.affine.scale;
    size_t at, length, count = ddpm_elements(node->out, g->n), plane = plane_of(node->out);
    if (ddpm_elements(node->in[1], 1) == ddpm_elements(node->out, 1)) {
        share_array(count, &at, &length);
        kernels->add(length, a + at, b + at, scale, y + at);
        return DDPM_OK;
    }
    size_t first, end;
    share(count / plane, &first, &end);
    for (size_t i = first; i < end; i++)
        kernels->add_one(plane, a + i * plane, b[i], scale, y + i * plane);
    return DDPM_OK;
}

static ddpm_result add_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_kernels *kernels = state_of(g)->kernels;
    const float *dy = node->out->grad;
    float *da = gradient_of(node, 0), *db = gradient_of(node, 1), scale = (float)node->attr.affine.scale;
    size_t plane = plane_of(node->out), first, end;
    int wide = ddpm_elements(node->in[1], 1) == ddpm_elements(node->out, 1);
    share(ddpm_elements(node->out, g->n) / plane, &first, &end);
    for (size_t i = first; i < end; i++) {
        if (da) kernels->add_scaled(plane, dy + i * plane, scale, da + i * plane, adds_to(node, 0));
        if (db && wide) kernels->add_scaled(plane, dy + i * plane, scale, db + i * plane, adds_to(node, 1));
        if (db && !wide) {
            float sum = scale * (float)kernels->sum(plane, dy + i * plane);
            db[i] = adds_to(node, 1) ? db[i] + sum : sum;
        }
    }
    return DDPM_OK;
}

/* Concat: pictures of a and b in turn. */
static ddpm_result concat_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t size[2] = {ddpm_elements(node->in[0], 1), ddpm_elements(node->in[1], 1)};
    for (int i = 0; i < 2 * g->n; i++) {
        size_t at, length, n = (size_t)(i / 2);
        share_array(size[i % 2], &at, &length);
        memcpy(node->out->data + n * (size[0] + size[1]) + (i % 2 ? size[0] : 0) + at,
               node->in[i % 2]->data + n * size[i % 2] + at, length * sizeof(float));
    }
    return DDPM_OK;
}

static ddpm_result concat_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_kernels *kernels = state_of(g)->kernels;
    size_t size[2] = {ddpm_elements(node->in[0], 1), ddpm_elements(node->in[1], 1)};
    for (int i = 0; i < 2 * g->n; i++) {
        size_t at, length, n = (size_t)(i / 2);
        float *to = gradient_of(node, i % 2);
        share_array(size[i % 2], &at, &length);
        if (to)
            kernels->add_scaled(length, node->out->grad + n * (size[0] + size[1]) + (i % 2 ? size[0] : 0) + at, 1,
                                to + n * size[i % 2] + at, adds_to(node, i % 2));
    }
    return DDPM_OK;
}

/* As ddpm_impl.c's, with the sums of section 5's kernels. Threads take channels. */
static ddpm_result batch_norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_kernels *kernels = state_of(g)->kernels;
    const float *x = node->in[0]->data, *weight = node->in[1]->data, *bias = node->in[2]->data;
    float *running_mean = node->in[3]->data, *running_var = node->in[4]->data, *aux = node->aux->data;
    size_t c = (size_t)node->out->shape[1], plane = plane_of(node->out), first, end;
    double count = (double)g->n * (double)plane, momentum = node->attr.norm.momentum;
    share(c, &first, &end);
    for (size_t i = first; i < end; i++) {
        double mean = (double)running_mean[i], variance = (double)running_var[i];
        if (g->training) {
            mean = variance = 0;
            for (size_t n = 0; n < (size_t)g->n; n++)
                mean += kernels->sum(plane, x + (n * c + i) * plane) / count;
            for (size_t n = 0; n < (size_t)g->n; n++)
                variance += kernels->squares(plane, x + (n * c + i) * plane, (float)mean) / count;
            double unbiased = variance * count / (count > 1 ? count - 1 : 1);
            running_mean[i] = (float)((1 - momentum) * (double)running_mean[i] + momentum * mean);
            running_var[i] = (float)((1 - momentum) * (double)running_var[i] + momentum * unbiased);
        }
        double r = 1 / sqrt(variance + node->attr.norm.eps);
        aux[i] = (float)mean;
        aux[c + i] = (float)r;
        for (size_t n = 0; n < (size_t)g->n; n++)
            kernels->normalise(plane, x + (n * c + i) * plane, (float)mean, (float)(r * (double)weight[i]), bias[i], 0,
                               node->out->data + (n * c + i) * plane);
    }
    return DDPM_OK;
}

static ddpm_result batch_norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const cpu_kernels *kernels = state_of(g)->kernels;
    const float *x = node->in[0]->data, *weight = node->in[1]->data, *aux = node->aux->data, *dy = node->out->grad;
    float *dx = gradient_of(node, 0), *dw = gradient_of(node, 1), *db = gradient_of(node, 2);
    size_t c = (size_t)node->out->shape[1], plane = plane_of(node->out), first, end;
    double count = (double)g->n * (double)plane, batch = g->training ? 1 : 0; /* running ones do not depend on x */
    share(c, &first, &end);
    for (size_t i = first; i < end; i++) {
        double r = (double)aux[c + i], sum_dy = 0, sum_dyh = 0, scale = r * (double)weight[i];
        for (size_t n = 0; n < (size_t)g->n; n++) {
            double both[2];
            kernels->sums(plane, dy + (n * c + i) * plane, x + (n * c + i) * plane, aux[i], both);
            sum_dy += both[0];
            sum_dyh += r * both[1];
        }
        if (dw) dw[i] = (adds_to(node, 1) ? dw[i] : 0) + (float)sum_dyh;
        if (db) db[i] = (adds_to(node, 2) ? db[i] : 0) + (float)sum_dy;
        for (size_t n = 0; n < (size_t)g->n && dx; n++)
            kernels->normalise_backward(plane, x + (n * c + i) * plane, aux[i], dy + (n * c + i) * plane, (float)scale,
                                        (float)(-batch * scale * r * sum_dyh / count),
                                        (float)(-batch * scale * sum_dy / count), dx + (n * c + i) * plane,
                                        adds_to(node, 0));
    }
    return DDPM_OK;
}

/* Threads take blocks of queries, or of keys, of all heads of all pictures. Scratch for each: the kernels' work.
 * aux (N,heads,3,L): largest, total, mean. */
static size_t attention_work(const cpu_state *s, const ddpm_node *node)
{
    size_t d = (size_t)(node->out->shape[1] / node->attr.attention.heads), tokens = plane_of(node->out);
    return line((size_t)s->kernels->lanes * (node->wants ? 4 * d + 2 * tokens : 2 * d));
}

static cpu_head head_of(const ddpm_node *node, size_t head)
{
    cpu_head h = {.d = node->out->shape[1] / node->attr.attention.heads, .tokens = plane_of(node->out)};
    size_t at = head * (size_t)h.d * h.tokens;
    h.scale = (float)(1 / sqrt((double)h.d));
    h.q = node->in[0]->data + at, h.k = node->in[1]->data + at, h.v = node->in[2]->data + at;
    h.y = node->out->data + at;
    h.largest = node->aux->data + head * 3 * h.tokens;
    h.total = h.largest + h.tokens, h.mean = h.total + h.tokens;
    if (!node->wants) return h;
    h.dy = node->out->grad + at;
    h.dq = gradient_of(node, 0), h.dk = gradient_of(node, 1), h.dv = gradient_of(node, 2);
    if (h.dq) h.dq += at;
    if (h.dk) h.dk += at;
    if (h.dv) h.dv += at;
    h.add_q = adds_to(node, 0), h.add_k = adds_to(node, 1), h.add_v = adds_to(node, 2);
    return h;
}

static void attend(const ddpm_graph *g, const ddpm_node *node,
                   void (*kernel)(const cpu_head *h, size_t first, float *work))
{
    const cpu_state *s = state_of(g);
    size_t lanes = (size_t)s->kernels->lanes, blocks = (plane_of(node->out) + lanes - 1) / lanes, first, end;
    float *work = g->scratch + (size_t)cpu_team_index() * attention_work(s, node);
    share((size_t)(g->n * node->attr.attention.heads) * blocks, &first, &end);
    for (size_t job = first; job < end; job++) {
        const cpu_head h = head_of(node, job / blocks);
        kernel(&h, job % blocks * lanes, work);
    }
}

static ddpm_result attention_forward(const ddpm_graph *g, const ddpm_node *node)
{
    attend(g, node, state_of(g)->kernels->attend);
    return DDPM_OK;
}

static ddpm_result attention_backward(const ddpm_graph *g, const ddpm_node *node)
{
    attend(g, node, state_of(g)->kernels->attend_queries);
    cpu_team_barrier(); /* the keys read means of all queries */
    if (node->wants & 6) attend(g, node, state_of(g)->kernels->attend_keys);
    return DDPM_OK;
}

/* Rows of pixels [0, (N C H)) of x, each written `factor` times, `factor` pixels for one. */
static ddpm_result upsample_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0];
    size_t f = (size_t)node->attr.resample.factor, w = (size_t)x->shape[3], first, end;
    share((size_t)(g->n * x->shape[1] * x->shape[2]), &first, &end);
    for (size_t row = first; row < end; row++) {
        const float *from = x->data + row * w;
        float *to = node->out->data + row * f * f * w;
        if (f == 2)
            state_of(g)->kernels->twice(w, from, to);
        else
            for (size_t i = 0; i < f * w; i++)
                to[i] = from[i / f];
        for (size_t copy = 1; copy < f; copy++)
            memcpy(to + copy * f * w, to, f * w * sizeof *to);
    }
    return DDPM_OK;
}

static ddpm_result upsample_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0];
    size_t f = (size_t)node->attr.resample.factor, w = (size_t)x->shape[3], first, end;
    share((size_t)(g->n * x->shape[1] * x->shape[2]), &first, &end);
    for (size_t row = first; row < end; row++) {
        const float *from = node->out->grad + row * f * f * w;
        float *to = x->grad + row * w;
        if (f == 2) {
            state_of(g)->kernels->twice_backward(w, from, from + 2 * w, to, adds_to(node, 0));
            continue;
        }
        for (size_t i = 0; i < w; i++) {
            float sum = adds_to(node, 0) ? to[i] : 0;
            for (size_t k = 0; k < f * f; k++)
                sum += from[k / f * f * w + i * f + k % f];
            to[i] = sum;
        }
    }
    return DDPM_OK;
}

/* Pictures are divided among threads: a sum is one thread's. */
static ddpm_result mse_forward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->in[0], 1), first, end;
    share((size_t)g->n, &first, &end);
    for (size_t n = first; n < end; n++)
        node->out->data[n] = (float)state_of(g)->kernels->square_errors(picture, node->in[0]->data + n * picture,
                                                                        node->in[1]->data + n * picture);
    return DDPM_OK;
}

static ddpm_result mse_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->in[0], 1), at, length;
    share_array(picture, &at, &length);
    for (size_t n = 0; n < (size_t)g->n; n++)
        for (int k = 0; k < 2; k++) {
            float *to = gradient_of(node, k), twice = (k ? -2.0f : 2.0f) * node->out->grad[n];
            size_t from = n * picture + at;
            if (to)
                state_of(g)->kernels->difference(length, node->in[0]->data + from, node->in[1]->data + from, twice,
                                                 to + from, adds_to(node, k));
        }
    return DDPM_OK;
}

/* ---- 6. Update --------------------------------------------------------------------------------------------------- */

/* A sum is cut into the same PARTS for any number of threads. */
enum { PARTS = 64, SMALL = 1 << 14 }; /* SMALL: what one thread does before others would have woken up */

typedef struct squares_call {
    const cpu_kernels *kernels;
    size_t count;
    const float *x;
    double part[PARTS];
} squares_call;

static ddpm_result sum_squares(void *arg)
{
    squares_call *call = arg;
    size_t first, end, size = line((call->count + PARTS - 1) / PARTS);
    share(PARTS, &first, &end);
    for (size_t i = first; i < end; i++) {
        size_t at = i * size < call->count ? i * size : call->count;
        call->part[i] = call->kernels->squares(call->count - at < size ? call->count - at : size, call->x + at, 0);
    }
    return DDPM_OK;
}

static double cpu_squares(void *state, size_t count, const float *x)
{
    cpu_state *s = state;
    squares_call call = {.kernels = s->kernels, .count = count, .x = x};
    if (count <= SMALL) return s->kernels->squares(count, x, 0);
    cpu_team_run(s->team, sum_squares, &call);
    double total = 0;
    for (int i = 0; i < PARTS; i++)
        total += call.part[i];
    return total;
}

typedef struct adam_call {
    const cpu_kernels *kernels;
    const ddpm_adam *s;
    size_t count;
    float *w, *m, *v, *ema;
    const float *grad;
} adam_call;

static ddpm_result update_share(void *arg)
{
    const adam_call *c = arg;
    size_t at, length;
    share_array(c->count, &at, &length);
    float *ema = c->ema ? c->ema + at : NULL;
    if (c->grad)
        c->kernels->adam(c->s, length, c->w + at, c->grad + at, c->m + at, c->v + at, ema);
    else if (ema)
        for (size_t i = 0; i < length; i++)
            ema[i] -= c->s->ema * (ema[i] - c->w[at + i]);
    return DDPM_OK;
}

/* NOLINTBEGIN(readability-non-const-parameter): clang-tidy 14 does not see them copied into the call */
static void cpu_adam(void *state, const ddpm_adam *s, size_t count, float *w, const float *grad, float *m, float *v,
                     float *ema)
/* NOLINTEND(readability-non-const-parameter) */
{
    cpu_state *cpu = state;
    adam_call call = {cpu->kernels, s, count, w, m, v, ema, grad};
    cpu_team_run(cpu->team, update_share, &call);
}

/* ---- 7. The backend ---------------------------------------------------------------------------------------------- */

static ddpm_result cpu_plan(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes; i++) {
        ddpm_node *node = g->node[i];
        if (node->op == DDPM_OP_CONV2D || node->op == DDPM_OP_LINEAR) node->scratch_elements = conv_scratch(g, node);
        if (node->op == DDPM_OP_ATTENTION)
            node->scratch_elements = (size_t)state_of(g)->threads * attention_work(state_of(g), node);
        if (node->op == DDPM_OP_GROUP_NORM) node->plan = ddpm_fold_silu(g, node);
        if (node->op == DDPM_OP_GROUP_NORM) /* (N,C,2) doubles */
            node->scratch_elements = 4 * (size_t)(g->capacity * node->out->shape[1]);
    }
    return keep_weights(g);
}

/* In huge pages where the system has them: the planes of V and M are many pages apart. */
static ddpm_result cpu_alloc(void *state, size_t bytes, void **out)
{
    enum { HUGE_PAGE = 2 << 20 };
    size_t alignment = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    (void)state;
    *out =
        bytes < SIZE_MAX - HUGE_PAGE ? aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment) : NULL;
    if (!*out)
        return ddpm_fail(DDPM_ERR_MEMORY,
                         "out of memory: %zu bytes refused\n      hint: a smaller batch, picture or model needs less",
                         bytes);
#ifdef MADV_HUGEPAGE
    if (alignment == HUGE_PAGE) (void)madvise(*out, bytes, MADV_HUGEPAGE); /* advice: no harm if it is not taken */
#endif
    memset(*out, 0, bytes);
    return DDPM_OK;
}

static void cpu_free(void *state, void *memory)
{
    (void)state;
    free(memory);
}

static const ddpm_row team_rows[DDPM_OP_COUNT] = {
    /* what each thread calls */
    [DDPM_OP_CONV2D] = {conv_forward, conv_backward},
    [DDPM_OP_LINEAR] = {conv_forward, conv_backward},
    [DDPM_OP_GROUP_NORM] = {norm_forward, norm_backward},
    [DDPM_OP_ACTIVATION] = {activation_forward, activation_backward},
    [DDPM_OP_ATTENTION] = {attention_forward, attention_backward},
    [DDPM_OP_ADD] = {add_forward, add_backward},
    [DDPM_OP_CONCAT] = {concat_forward, concat_backward},
    [DDPM_OP_UPSAMPLE] = {upsample_forward, upsample_backward},
    [DDPM_OP_MSE] = {mse_forward, mse_backward},
    [DDPM_OP_BATCH_NORM] = {batch_norm_forward, batch_norm_backward},
    [DDPM_OP_MODULATE] = {pictures_forward, pictures_backward},
    [DDPM_OP_SLICE] = {pictures_forward, pictures_backward},
    [DDPM_OP_POOL] = {pictures_forward, pictures_backward},
    [DDPM_OP_PIXEL_UNSHUFFLE] = {pictures_forward, pictures_backward},
    [DDPM_OP_PIXEL_SHUFFLE] = {pictures_forward, pictures_backward},
    [DDPM_OP_DROPOUT] = {pictures_forward, pictures_backward},
    [DDPM_OP_AFFINE] = {pictures_forward, pictures_backward},
    [DDPM_OP_BCE] = {pictures_forward, pictures_backward},
};

typedef struct row_call {
    ddpm_row_fn row;
    const ddpm_graph *g;
    const ddpm_node *node;
} row_call;

static ddpm_result call_row(void *arg)
{
    const row_call *call = arg;
    return call->row(call->g, call->node);
}

static ddpm_result cpu_forward(const ddpm_graph *g, const ddpm_node *node)
{
    row_call call = {team_rows[node->op].forward, g, node};
    return cpu_team_run(state_of(g)->team, call_row, &call);
}

static ddpm_result cpu_backward(const ddpm_graph *g, const ddpm_node *node)
{
    row_call call = {team_rows[node->op].backward, g, node};
    return cpu_team_run(state_of(g)->team, call_row, &call);
}

/* What is missing here a network does once for each picture, not for each pixel: the reference's rows serve. */
#define ROW(op) [DDPM_OP_##op] = {cpu_forward, cpu_backward}
static const ddpm_row cpu_rows[DDPM_OP_COUNT] = {
    ROW(CONV2D), ROW(LINEAR),          ROW(GROUP_NORM),    ROW(ACTIVATION), ROW(ATTENTION), ROW(ADD),
    ROW(CONCAT), ROW(UPSAMPLE),        ROW(MSE),           ROW(MODULATE),   ROW(SLICE),     ROW(POOL),
    ROW(AFFINE), ROW(PIXEL_UNSHUFFLE), ROW(PIXEL_SHUFFLE), ROW(DROPOUT),    ROW(BCE),       ROW(BATCH_NORM),
};

/* Noise and linear combinations: as the reference's, in threads' shares. */
typedef struct tensor_call {
    ddpm_graph *g;
    ddpm_tensor *y, *const *x;
    const ddpm_tensor *c;
    int terms;
    double clamp;
    ddpm_purpose purpose;
} tensor_call;

static ddpm_result combine_share(void *arg)
{
    const tensor_call *t = arg;
    size_t picture = ddpm_elements(t->y, 1), capacity = (size_t)t->g->capacity, at, length;
    share_array(picture, &at, &length);
    for (size_t n = 0; n < (size_t)t->g->n; n++)
        for (size_t i = n * picture + at; i < n * picture + at + length; i++) {
            double value = 0;
            for (int j = 0; j < t->terms; j++)
                value += (double)t->c->data[(size_t)j * capacity + n] * (t->x[j] ? (double)t->x[j]->data[i] : 1);
            if (t->clamp > 0 && value > t->clamp) value = t->clamp;
            if (t->clamp > 0 && value < -t->clamp) value = -t->clamp;
            t->y->data[i] = (float)value;
        }
    return DDPM_OK;
}

static ddpm_result cpu_lincomb(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                               double clamp)
{
    tensor_call t = {.g = g, .y = y, .x = x, .c = c, .terms = k, .clamp = clamp};
    return cpu_team_run(state_of(g)->team, combine_share, &t);
}

static ddpm_result normal_share(void *arg)
{
    const tensor_call *t = arg;
    size_t picture = ddpm_elements(t->y, 1), first, end;
    share((size_t)t->g->n, &first, &end);
    for (size_t n = first; n < end; n++) {
        const ddpm_step *step = &t->g->step;
        ddpm_address address = {step->seed, step->first_picture + n, step->index, t->purpose};
        ddpm_normals(address, picture, t->y->data + n * picture);
    }
    return DDPM_OK;
}

static ddpm_result cpu_normal(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    tensor_call t = {.g = g, .y = x, .purpose = purpose};
    return cpu_team_run(state_of(g)->team, normal_share, &t);
}

const ddpm_backend *ddpm_cpu(void)
{
    static const ddpm_backend cpu = {
        .name = "cpu",
        .rows = cpu_rows,
        .open = cpu_open,
        .close = cpu_close,
        .plan = cpu_plan,
        .alloc = cpu_alloc,
        .free = cpu_free,
        .lincomb = cpu_lincomb,
        .normal = cpu_normal,
        .squares = cpu_squares,
        .adam = cpu_adam,
        .isa = cpu_isa,
    };
    return &cpu;
}

#else
const ddpm_backend *ddpm_cpu(void)
{
    return ddpm_reference();
}
#endif
