/* tests/test_cpu.c - cpu_backend.c: every instruction set this processor has, at shapes where each algorithm is chosen,
 * against sums in double; the same bits for any number of threads. (The table test, test_vectors.c, runs on it too.)
 *
 * Contents: 1 one convolution twice   2 the truth and its bounds   3 tests   4 main */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "ddpm.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

/* ---- 1. One convolution twice ----
 * y = conv(x) + conv(x), which is exactly twice the convolution; so are the gradients: dx and dw are added to. */

typedef struct shape {
    const char *name;
    int n, ci, co, kernel, stride, pad_start, pad_end, h, w;
    int tile, weight_tile; /* of Winograd's algorithm, where it is chosen: its bound applies; to y and dx, to dw */
} shape;

static const shape shapes[] = {
    {"F(4), 8x8", 5, 32, 48, 3, 1, 1, 1, 8, 8, 4, 4},
    {"F(4), 16x16", 2, 16, 32, 3, 1, 1, 1, 16, 16, 4, 4},
    {"F(4), 32x32, height no multiple of 4", 1, 16, 16, 3, 1, 1, 1, 30, 32, 4, 4},
    {"F(4), 64 wide", 1, 32, 16, 3, 1, 1, 1, 9, 64, 4, 4},
    {"F(4), 128 wide", 1, 16, 16, 3, 1, 1, 1, 8, 128, 4, 4},
    {"F(4), 4x4", 19, 16, 32, 3, 1, 1, 1, 4, 4, 4, 4},
    {"F(4), 8x8, many tiles", 13, 32, 32, 3, 1, 1, 1, 8, 8, 4, 4},
    {"F(4), 16x16, fewer tiles than outputs", 4, 16, 96, 3, 1, 1, 1, 16, 16, 4, 4},
    {"F(4), rows of 3 tiles", 5, 16, 32, 3, 1, 1, 1, 10, 12, 4, 4},
    {"F(4), rows of 5 tiles", 2, 32, 16, 3, 1, 1, 1, 19, 20, 4, 4},
    {"F(4), rows of 6 tiles", 1, 16, 32, 3, 1, 1, 1, 24, 24, 4, 4},
    {"F(4), rows of 12 tiles", 1, 32, 16, 3, 1, 1, 1, 13, 48, 4, 4},
    {"F(4), rows of 24 tiles", 1, 16, 16, 3, 1, 1, 1, 9, 96, 4, 4},
    {"packed 3x3", 1, 20, 13, 3, 1, 1, 1, 11, 13, 0, 0},
    {"bands, two of them and one row", 2, 48, 3, 3, 1, 1, 1, 17, 20, 0, 0},
    {"bands, rows of whole vectors", 1, 16, 1, 3, 1, 1, 1, 8, 64, 0, 0},
    {"bands, more channels than are summed together", 3, 31, 2, 3, 1, 1, 1, 16, 16, 0, 0},
    {"packed stride 2", 2, 16, 24, 3, 2, 1, 1, 16, 16, 0, 0},
    {"packed stride 2, padded at the end", 2, 5, 7, 3, 2, 0, 1, 15, 14, 0, 0},
    {"stride 2 by parities, padded at the end", 2, 16, 16, 3, 2, 0, 1, 15, 14, 0, 0},
    {"stride 2 by parities, five pictures", 5, 16, 32, 3, 2, 1, 1, 9, 8, 0, 0},
    {"packed 1x1, rows as they lie", 1, 24, 16, 1, 1, 0, 0, 20, 16, 0, 0},
    {"packed 1x1, pictures as they lie", 3, 40, 24, 1, 1, 0, 0, 8, 8, 0, 0},
    {"packed 1x1, 16x16 as they lie", 2, 32, 16, 1, 1, 0, 0, 16, 16, 0, 0},
    {"packed 1x1, pictures of 9x7", 4, 40, 24, 1, 1, 0, 0, 9, 7, 0, 0},
    {"packed 5x5", 1, 3, 9, 5, 1, 2, 2, 12, 12, 0, 0},
    {"F(2) at 4x4, F(4) for its weights", 9, 32, 48, 3, 1, 1, 1, 4, 4, 2, 4},
    {"F(2) at 4x4", 5, 32, 48, 3, 1, 1, 1, 4, 4, 2, 2},
    {"batch innermost 4x4", 2, 32, 48, 3, 1, 1, 1, 4, 4, 0, 0},
    {"one picture of 4x4", 1, 32, 48, 3, 1, 1, 1, 4, 4, 0, 0},
    {"batch innermost 2x2", 8, 48, 16, 3, 1, 1, 1, 2, 2, 0, 0},
    {"batch innermost 5x7", 3, 16, 32, 3, 1, 1, 1, 5, 7, 0, 0},
    {"F(2) at 8x8", 1, 16, 48, 3, 1, 1, 1, 8, 8, 2, 2},
    {"F(2) at 8x8, more tiles than outputs", 2, 48, 16, 3, 1, 1, 1, 8, 8, 2, 4},
    {"F(2), 16 wide", 2, 16, 32, 3, 1, 1, 1, 6, 16, 2, 2},
    {"F(2), 32 wide, height no multiple of 2", 1, 16, 32, 3, 1, 1, 1, 7, 32, 2, 2},
    {"F(2), 64 wide", 1, 16, 16, 3, 1, 1, 1, 5, 64, 2, 2},
    {"F(2), rows of 3 tiles", 3, 16, 32, 3, 1, 1, 1, 6, 6, 2, 2},
    {"F(2), rows of 5 tiles", 2, 32, 16, 3, 1, 1, 1, 7, 10, 2, 2},
    {"F(2), rows of 6 tiles", 1, 16, 32, 3, 1, 1, 1, 5, 12, 2, 2},
    {"F(2), rows of 12 tiles", 1, 32, 16, 3, 1, 1, 1, 5, 24, 2, 2},
    {"batch innermost 1x1", 3, 32, 16, 1, 1, 0, 0, 4, 4, 0, 0},
    {"thin 2x2", 4, 48, 33, 3, 1, 1, 1, 2, 2, 0, 0},
    {"thin 4x4", 2, 17, 32, 3, 1, 1, 1, 4, 4, 0, 0},
    {"thin, one pixel", 7, 65, 40, 1, 1, 0, 0, 1, 1, 0, 0},
    {"thin stride 2", 3, 16, 16, 3, 2, 1, 1, 8, 8, 0, 0},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct result {
    float *y, *dx, *dw, *db;
    size_t x_count, y_count, w_count;
} result;

static float *values(size_t count, uint32_t seed, double scale)
{
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    ddpm_normals((ddpm_address){seed, 0, 0, DDPM_RANDOM_USER}, count, x);
    for (size_t i = 0; i < count; i++)
        x[i] *= (float)scale;
    return x;
}

/* Inputs of a case: the same for all instruction sets and threads. */
typedef struct inputs {
    float *x, *w, *b, *dy;
} inputs;

static int out_size(const shape *s, int size)
{
    return (size + s->pad_start + s->pad_end - s->kernel) / s->stride + 1;
}

static inputs make_inputs(const shape *s)
{
    size_t taps = (size_t)(s->ci * s->kernel * s->kernel),
           y = (size_t)(s->n * s->co * out_size(s, s->h) * out_size(s, s->w));
    return (inputs){values((size_t)(s->n * s->ci * s->h * s->w), 1, 1),
                    values((size_t)s->co * taps, 2, 1 / sqrt((double)taps)), values((size_t)s->co, 3, 1),
                    values(y, 4, 1)};
}

static void free_inputs(inputs *in)
{
    free(in->x), free(in->w), free(in->b), free(in->dy);
}

static result run(const shape *s, const inputs *in, const char *isa, int threads)
{
    ddpm_device device;
    ddpm_graph *g;
    OK(ddpm_device_open(&device, ddpm_cpu(), threads, isa));
    assert_string_equal(ddpm_device_isa(&device), isa);
    OK(ddpm_graph_create(&g, &device, s->n + (s->n > 2), 1)); /* from 3 on room for one more than it is run with */
    size_t w_count = (size_t)(s->co * s->ci * s->kernel * s->kernel);
    result r = {.w_count = w_count, .x_count = (size_t)(s->n * s->ci * s->h * s->w)};
    r.dw = calloc(w_count, sizeof *r.dw);
    r.db = calloc((size_t)s->co, sizeof *r.db);
    ddpm_tensor w = {.name = "w",
                     .dims = 4,
                     .shape = {s->co, s->ci, s->kernel, s->kernel},
                     .param = 1,
                     .trainable = 1,
                     .data = in->w,
                     .grad = r.dw};
    ddpm_tensor b = {
        .name = "b", .dims = 1, .shape = {s->co, 1, 1, 1}, .param = 1, .trainable = 1, .data = in->b, .grad = r.db};
    ddpm_tensor *x = ddpm_input(g, "x", s->ci, s->h, s->w, 1);
    ddpm_tensor *one = ddpm_conv2d(g, x, &w, &b, s->stride, s->pad_start, s->pad_end),
                *two = ddpm_conv2d(g, x, &w, &b, s->stride, s->pad_start, s->pad_end), *y = ddpm_add(g, one, two, 1);
    OK(ddpm_graph_plan(g, y, &y, 1));
    OK(ddpm_graph_alloc(g));
    r.y_count = ddpm_elements(y, s->n);
    r.y = calloc(r.y_count, sizeof *r.y);
    r.dx = calloc(r.x_count, sizeof *r.dx);
    OK(ddpm_upload(&device, x, DDPM_DATA, s->n, in->x));
    OK(ddpm_graph_forward(g, s->n));
    OK(ddpm_download(&device, y, DDPM_DATA, s->n, r.y));
    OK(ddpm_graph_backward(g, in->dy, NULL, NULL));
    OK(ddpm_download(&device, x, DDPM_GRADIENT, s->n, r.dx));
    ddpm_graph_free(g);
    ddpm_device_close(&device);
    return r;
}

static void free_result(result *r)
{
    free(r->y), free(r->dx), free(r->dw), free(r->db);
}

/* ---- 2. The truth and its bounds ----
 * Direct: a sum of K products errs by at most gamma(K + 1) sum |x w|, gamma(k) = k u / (1 - k u), u = 2^-24, in any
 * order.
 *
 * Winograd: the same with B, G and A in absolute values holds, but such a bound is some hundred times what happens.
 * Rounding errors being independent to a good approximation (Higham & Mary 2019), their variances add: an element of U,
 * V or M of variance q (in units of the data's) carries u^2 q for each rounding on its way, and there are Ci + R at
 * most on the way to an output. F(4): R = 40 (4 + 4 in B, 4 + 4 in G, Ci + 1 in the sum, 5 + 5 in A, the constants'
 * own). F(2): R = 11 (1 + 1 in B, 2 + 2 in G, Ci + 1 in the sum, 2 + 2 in A; its constants are exact). So with squares
 * of all coefficients and of all data,
 *     sigma^2 = (Ci + R) u^2 (A^T)^2 [ sum_i (G^2 w^2 G^2^T) o (B^2^T x^2 B^2) ] A^2,
 * and all of some ten thousand values lie within 6 sigma. A wrong coefficient or tile is off by thousands of sigma. */

static const double unit = 0x1p-24;

typedef struct transforms {
    int tile;                     /* T; P = T + 2 */
    double roundings;             /* R */
    double bt[36], g[18], at[24]; /* (P,P), (P,3), (T,P) */
} transforms;

#define A 0.70710678118654752
#define B 1.41421356237309505
/* clang-format off */
static const transforms winograd[] = {
    {4, 40,
     {1, 0, -2.5, 0, 1, 0,      0, -2 * A, -2, A, 1, 0,      0, 2 * A, -2, -A, 1, 0,
      0, -B / 2, -0.5, B, 1, 0, 0, B / 2, -0.5, -B, 1, 0,    0, 1, 0, -2.5, 0, 1},
     {1, 0, 0,                  -2. / 3, -2 * A / 3, -1. / 3,  -2. / 3, 2 * A / 3, -1. / 3,
      1. / 6, B / 6, 1. / 3,    1. / 6, -B / 6, 1. / 3,        0, 0, 1},
     {1, 1, 1, 1, 1, 0,         0, A, -A, B, -B, 0,
      0, 0.5, 0.5, 2, 2, 0,     0, A / 2, -A / 2, 2 * B, -2 * B, 1}},
    {2, 11,
     {1, 0, -1, 0,  0, 1, 1, 0,  0, -1, 1, 0,  0, -1, 0, 1},
     {1, 0, 0,      0.5, 0.5, 0.5,  0.5, -0.5, 0.5,  0, 0, 1},
     {1, 1, 1, 0,   0, 1, -1, 1}}};
/* clang-format on */

static const transforms *transforms_of(int tile)
{
    return &winograd[tile == 2];
}

/* out (rows,rows) = M^2 in (M^2)^T, M (rows,columns); transposed: M^T in the place of M */
static void squares(int rows, int columns, const double *m, int transposed, const double *in, double *out)
{
    int from = transposed ? rows : columns, to = transposed ? columns : rows;
    for (int i = 0; i < to; i++)
        for (int j = 0; j < to; j++) {
            double total = 0;
            for (int k = 0; k < from; k++)
                for (int l = 0; l < from; l++) {
                    double a = transposed ? m[k * columns + i] : m[i * columns + k],
                           b = transposed ? m[l * columns + j] : m[j * columns + l];
                    total += a * a * b * b * in[k * from + l];
                }
            out[i * to + j] = total;
        }
}

/* The truth: y without the factor 2; bound: of one rounding, to be multiplied by the number of terms. */
typedef struct truth {
    double *y, *dx, *dw, *db, *y_bound, *dx_bound, *dw_bound, *db_bound;
} truth;

static size_t pixel(const shape *s, int n, int c, int y, int x)
{
    return (size_t)(((n * s->ci + c) * s->h + y) * s->w + x);
}

static truth sum_directly(const shape *s, const inputs *in)
{
    int oh = out_size(s, s->h), ow = out_size(s, s->w), k = s->kernel;
    size_t xs = (size_t)(s->n * s->ci * s->h * s->w), ys = (size_t)(s->n * s->co * oh * ow),
           ws = (size_t)(s->co * s->ci * k * k);
    truth t = {calloc(ys, 8), calloc(xs, 8), calloc(ws, 8), calloc((size_t)s->co, 8),
               calloc(ys, 8), calloc(xs, 8), calloc(ws, 8), calloc((size_t)s->co, 8)};
    for (size_t at_y = 0; at_y < ys; at_y++) {
        int ox = (int)at_y % ow, oy = (int)at_y / ow % oh, o = (int)at_y / (ow * oh) % s->co,
            n = (int)at_y / (ow * oh * s->co);
        double dy = (double)in->dy[at_y];
        t.y[at_y] = (double)in->b[o], t.y_bound[at_y] = fabs((double)in->b[o]);
        t.db[o] += dy, t.db_bound[o] += fabs(dy);
        for (int i = 0; i < s->ci; i++)
            for (int ky = 0; ky < k; ky++)
                for (int kx = 0; kx < k; kx++) {
                    int iy = oy * s->stride + ky - s->pad_start, ix = ox * s->stride + kx - s->pad_start;
                    if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w) continue;
                    size_t p = pixel(s, n, i, iy, ix), q = (size_t)(((o * s->ci + i) * k + ky) * k + kx);
                    double x = (double)in->x[p], w = (double)in->w[q];
                    t.y[at_y] += x * w, t.y_bound[at_y] += fabs(x * w);
                    t.dx[p] += dy * w, t.dx_bound[p] += fabs(dy * w);
                    t.dw[q] += dy * x, t.dw_bound[q] += fabs(dy * x);
                }
    }
    return t;
}

static void free_truth(truth *t)
{
    free(t->y), free(t->dx), free(t->dw), free(t->db);
    free(t->y_bound), free(t->dx_bound), free(t->dw_bound), free(t->db_bound);
}

/* Squares of a patch of one plane, size x size from (y0,x0) on, zero outside: through B^T, or A if it is a tile. */
static void tile_squares(const transforms *f, const float *plane, int h, int w, int y0, int x0, int size, double *out)
{
    double in[36];
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            int inside = y0 + y >= 0 && y0 + y < h && x0 + x >= 0 && x0 + x < w;
            double value = inside ? (double)plane[(y0 + y) * w + x0 + x] : 0;
            in[y * size + x] = value * value;
        }
    if (size == f->tile)
        squares(f->tile, f->tile + 2, f->at, 1, in, out);
    else
        squares(size, size, f->bt, 0, in, out);
}

/* sigma / (u sqrt(terms)) of a stride-1 3x3 convolution of x (n,ci,h,w): weight of (o,i) at w + o w_out + i w_in,
 * flipped or not (the squares of the flipped taps are the flipped squares). */
static void winograd_bound(const transforms *f, int n, int ci, int co, int h, int w, const float *x,
                           const float *weight, int w_out, int w_in, int flip, double *bound)
{
    int tile = f->tile, patch = tile + 2, all = patch * patch;
    double *u = calloc((size_t)(co * ci * all), sizeof *u), *v = calloc((size_t)(ci * all), sizeof *v);
    for (int o = 0; o < co; o++)
        for (int i = 0; i < ci; i++) {
            double g[9];
            for (int s = 0; s < 9; s++) {
                double value = (double)weight[o * w_out + i * w_in + (flip ? 8 - s : s)];
                g[s] = value * value;
            }
            squares(patch, 3, f->g, 0, g, u + (o * ci + i) * all);
        }
    for (int p = 0; p < n; p++)
        for (int ty = 0; ty < h; ty += tile)
            for (int tx = 0; tx < w; tx += tile) {
                for (int i = 0; i < ci; i++)
                    tile_squares(f, x + (p * ci + i) * h * w, h, w, ty - 1, tx - 1, patch, v + i * all);
                for (int o = 0; o < co; o++) {
                    double m[36] = {0}, y[16];
                    for (int i = 0; i < ci; i++)
                        for (int k = 0; k < all; k++)
                            m[k] += u[(o * ci + i) * all + k] * v[i * all + k];
                    squares(tile, patch, f->at, 0, m, y);
                    for (int q = 0; q < tile * tile; q++)
                        if (ty + q / tile < h && tx + q % tile < w)
                            bound[((p * co + o) * h + ty + q / tile) * w + tx + q % tile] = sqrt(y[q]);
                }
            }
    free(u);
    free(v);
}

/* The same of the weights' gradient: sigma^2 = terms u^2 (G^2)^T [ sum over tiles (A^2 dy^2 A^2^T) o (B^2 x^2 B^2) ]
 * G^2 */
static void winograd_weight_bound(const transforms *f, const shape *s, const inputs *in, double *bound)
{
    int tile = f->tile, patch = tile + 2, all = patch * patch;
    double *sum = calloc((size_t)(s->co * s->ci * all), sizeof *sum), *v = calloc((size_t)(s->ci * all), sizeof *v),
           d[36] = {0};
    for (int p = 0; p < s->n; p++)
        for (int ty = 0; ty < s->h; ty += tile)
            for (int tx = 0; tx < s->w; tx += tile) {
                for (int i = 0; i < s->ci; i++)
                    tile_squares(f, in->x + pixel(s, p, i, 0, 0), s->h, s->w, ty - 1, tx - 1, patch, v + i * all);
                for (int o = 0; o < s->co; o++) {
                    tile_squares(f, in->dy + (p * s->co + o) * s->h * s->w, s->h, s->w, ty, tx, tile, d);
                    for (int i = 0; i < s->ci; i++)
                        for (int k = 0; k < all; k++)
                            sum[(o * s->ci + i) * all + k] += d[k] * v[i * all + k];
                }
            }
    for (int pair = 0; pair < s->co * s->ci; pair++) {
        double g[9];
        squares(patch, 3, f->g, 1, sum + pair * all, g);
        for (int q = 0; q < 9; q++)
            bound[pair * 9 + q] = sqrt(g[q]);
    }
    free(sum);
    free(v);
}

/* ---- 3. Tests ---- */

/* |value / 2 - truth| <= factor bound, for all; returns the largest share of the bound. */
static double compare(const shape *s, const char *what, const char *isa, size_t count, const float *value,
                      const double *wanted, const double *bound, double factor)
{
    double worst = 0;
    for (size_t i = 0; i < count; i++) {
        double error = fabs((double)value[i] / 2 - wanted[i]), share = error / (factor * bound[i] + 1e-30);
        if (!(share <= 1))
            fail_msg("%s of %s (%s): [%zu] is %.9g, should be %.9g: %.3g times the bound", what, s->name, isa, i,
                     (double)value[i] / 2, wanted[i], share);
        worst = fmax(worst, share);
    }
    return worst;
}

static void check_isa(const shape *s, const inputs *in, const truth *t, const char *isa)
{
    result r = run(s, in, isa, 1);
    int exact = strchr(isa, '+') != NULL;
    int taps = s->kernel * s->kernel, pixels = s->n * out_size(s, s->h) * out_size(s, s->w);
    double y = unit * (s->ci * taps + 3), dx = unit * (s->co * taps + 3), dw = unit * (pixels + 3);
    if (s->tile && !exact) {
        y = 6 * unit * sqrt(s->ci + transforms_of(s->tile)->roundings);
        dx = 6 * unit * sqrt(s->co + transforms_of(s->tile)->roundings);
    }
    if (s->weight_tile && !exact) {
        int tiles = s->n * ((s->h + s->weight_tile - 1) / s->weight_tile) * (s->w / s->weight_tile);
        dw = 6 * unit * sqrt(tiles + transforms_of(s->weight_tile)->roundings);
    }
    double worst = compare(s, "y", isa, r.y_count, r.y, t->y, t->y_bound, y);
    worst = fmax(worst, compare(s, "dx", isa, r.x_count, r.dx, t->dx, t->dx_bound, dx));
    worst = fmax(worst, compare(s, "dw", isa, r.w_count, r.dw, t->dw, t->dw_bound, dw));
    compare(s, "db", isa, (size_t)s->co, r.db, t->db, t->db_bound, unit * (pixels + 3));
    print_message("           %-40s %-8s worst error %.2f of its bound\n", s->name, isa, worst);
    free_result(&r);
}

static const char *const sets[] = {"baseline", "avx2", "avx512"};

static int available(const char *isa)
{
    ddpm_device device;
    if (ddpm_device_open(&device, ddpm_cpu(), 1, isa) != DDPM_OK) return 0;
    ddpm_device_close(&device);
    return 1;
}

static void test_shapes(void **state)
{
    (void)state;
    assert_true(available("baseline"));
    for (int i = 0; i < SHAPES; i++) {
        const shape *s = &shapes[i];
        inputs in = make_inputs(s);
        truth t = sum_directly(s, &in);
        if (s->weight_tile) winograd_weight_bound(transforms_of(s->weight_tile), s, &in, t.dw_bound);
        if (s->tile) {
            const transforms *f = transforms_of(s->tile);
            winograd_bound(f, s->n, s->ci, s->co, s->h, s->w, in.x, in.w, s->ci * 9, 9, 0, t.y_bound);
            winograd_bound(f, s->n, s->co, s->ci, s->h, s->w, in.dy, in.w, 9, s->ci * 9, 1, t.dx_bound);
        }
        for (int set = 0; set < 3; set++)
            if (available(sets[set])) {
                char exact[24];
                snprintf(exact, sizeof exact, "%s+exact", sets[set]);
                check_isa(s, &in, &t, sets[set]);
                if (s->weight_tile) check_isa(s, &in, &t, exact); /* within the bound of plain sums then */
            }
        free_truth(&t);
        free_inputs(&in);
    }
}

static const char *widest(void)
{
    return available("avx512") ? "avx512" : available("avx2") ? "avx2" : "baseline";
}

static void test_threads(void **state)
{
    (void)state;
    const char *isa = widest();
    for (int i = 0; i < SHAPES; i++) {
        inputs in = make_inputs(&shapes[i]);
        result one = run(&shapes[i], &in, isa, 1);
        for (int threads = 2; threads <= 5; threads += 3) {
            result many = run(&shapes[i], &in, isa, threads);
            assert_memory_equal(one.y, many.y, one.y_count * sizeof *one.y);
            assert_memory_equal(one.dx, many.dx, one.x_count * sizeof *one.dx);
            assert_memory_equal(one.dw, many.dw, one.w_count * sizeof *one.dw);
            assert_memory_equal(one.db, many.db, (size_t)shapes[i].co * sizeof *one.db);
            free_result(&many);
        }
        free_result(&one);
        free_inputs(&in);
    }
}

/* Two training steps and a drawing of a small network: weights, average and pictures. */
typedef struct trained {
    float *array[2], pictures[2 * 3 * 16 * 16];
    size_t elements;
    double loss;
} trained;

/* The norm that backward gathered, of the last micro-batch's gradients, is that of the gradients that are there.
 * Squares are summed in blocks of at most 64 additions a lane, a few more for lanes, blocks and parts (or in double):
 * they err by less than gamma(80), the root by half of it. */
static void check_norm(const ddpm_model *model, double norm)
{
    double square = 0;
    for (int p = 0; p < model->params; p++) {
        size_t count = ddpm_elements(model->param[p], 0);
        float *gradient = calloc(count, sizeof *gradient);
        OK(ddpm_model_get(model, DDPM_GRAD, model->param[p], gradient));
        for (size_t i = 0; i < count; i++)
            square += (double)gradient[i] * (double)gradient[i];
        free(gradient);
    }
    assert_true(square > 0 && fabs(norm - sqrt(square)) <= 40 * unit * sqrt(square));
}

static trained train(const ddpm_backend *backend, const char *isa, int threads)
{
    enum { SIZE = 16, BATCH = 3 };
    trained result = {.array = {NULL, NULL}};
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    ddpm_model_config config = ddpm_model_preset("tiny", 4);
    OK(ddpm_device_open(&device, backend, threads, isa));
    OK(ddpm_model_create(&model, &config, &device));
    OK(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    OK(ddpm_model_init(model, 529));
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, SIZE, SIZE, 2, 1)); /* micro-batches of 2 and 1 */
    OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    float *pictures = values((size_t)BATCH * 3 * SIZE * SIZE, 5, 0.5), labels[BATCH * 4] = {0};
    for (int i = 0; i < BATCH; i++)
        labels[4 * i + i % 4] = 1;
    for (int step = 0; step < 2; step++) {
        OK(ddpm_train_step(&trainer, pictures, labels, BATCH, 1e-3, &result.loss));
        check_norm(model, trainer.grad_norm);
    }
    ddpm_net_free(net);
    OK(ddpm_model_use(model, DDPM_EMA));
    OK(ddpm_net_create(&net, model, SIZE, SIZE, 2, 0));
    ddpm_sample_config sampling = ddpm_sample_default();
    sampling.steps = 2;
    OK(ddpm_sample(net, &schedule, &sampling, labels, 2, result.pictures, NULL, NULL));
    result.elements = model->elements;
    for (int k = 0; k < 2; k++) {
        ddpm_array array = k ? DDPM_EMA : DDPM_WEIGHT;
        result.array[k] = calloc(model->elements, sizeof(float));
        for (int p = 0; p < model->params; p++)
            OK(ddpm_model_get(model, array, model->param[p], result.array[k] + model->param[p]->offset));
    }
    free(pictures);
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    return result;
}

static void free_trained(trained *t)
{
    free(t->array[0]);
    free(t->array[1]);
}

/* Any number of threads: the same bits. The reference: the same loss within 1e-5 of it (a network's own float32 error
 * is 1e-6 of the largest value; see test_vectors.c). */
static void test_training(void **state)
{
    (void)state;
    const char *isa = widest();
    trained reference = train(NULL, NULL, 1), one = train(ddpm_cpu(), isa, 1);
    assert_true(fabs(one.loss - reference.loss) <= 1e-5 * reference.loss);
    trained many = train(ddpm_cpu(), isa, 3);
    for (int k = 0; k < 2; k++)
        assert_memory_equal(one.array[k], many.array[k], one.elements * sizeof(float));
    assert_memory_equal(one.pictures, many.pictures, sizeof one.pictures);
    free_trained(&many);
    free_trained(&one);
    free_trained(&reference);
}

/* Inference keeps the weights' transforms: a network predicts as one just made does, whatever was done to the model
 * since its last prediction. */
enum { KEPT_IN = 2 * 3 * 32 * 32 };

static void predict_with(ddpm_net *net, float *prediction)
{
    float timestep[2] = {10, 500}, *x = values(KEPT_IN, 7, 1);
    OK(ddpm_predict(net, 2, x, timestep, NULL, prediction));
    free(x);
}

static void check_kept(ddpm_model *model, ddpm_net *net, float *before)
{
    static float now[KEPT_IN], fresh[KEPT_IN];
    ddpm_net *other;
    predict_with(net, now);
    OK(ddpm_net_create(&other, model, 0, 0, 2, 0));
    predict_with(other, fresh);
    assert_memory_equal(now, fresh, sizeof now);
    assert_memory_not_equal(now, before, sizeof now);
    memcpy(before, now, sizeof now);
    ddpm_net_free(other);
}

static void test_kept_weights(void **state)
{
    (void)state;
    static float before[KEPT_IN];
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_model_config config = ddpm_model_preset("tiny", 0);
    OK(ddpm_device_open(&device, ddpm_cpu(), 2, NULL));
    OK(ddpm_model_create(&model, &config, &device));
    OK(ddpm_model_alloc(model, DDPM_FOR_INFERENCE | 1 << DDPM_EMA));
    OK(ddpm_model_init(model, 1));
    OK(ddpm_net_create(&net, model, 0, 0, 2, 0));
    check_kept(model, net, before);
    ddpm_tensor *w = ddpm_model_find(model, "down_blocks.0.resnets.0.conv1.weight");
    assert_non_null(w);
    float *value = values(ddpm_elements(w, 0), 8, 0.1);
    OK(ddpm_model_set(model, DDPM_WEIGHT, w, value));
    check_kept(model, net, before);
    OK(ddpm_model_use(model, DDPM_EMA)); /* still that of ddpm_model_init */
    check_kept(model, net, before);
    OK(ddpm_upload(&device, w, DDPM_DATA, 0, value));
    check_kept(model, net, before);
    OK(ddpm_model_init(model, 2));
    check_kept(model, net, before);
    free(value);
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_device_close(&device);
}

/* GroupNorm then SiLU, which plan() folds into one where nobody else reads what lies between: the reference's result.
 * Both are within some 16 u of the truth relative to the largest values (sums over a group in blocks; the bounds of
 * test_vectors.c): 64 u of the largest allows for both. */
static void run_norm_silu(const ddpm_backend *backend, int shared, const float *in, float *weights, const float *dy,
                          float *out)
{
    enum { N = 3, C = 8, H = 5, W = 7, ALL = N * C * H * W };
    ddpm_device device;
    ddpm_graph *g;
    float gradient[2][C] = {{0}};
    /* the reference with one: ThreadSanitizer does not see the barriers of OpenMP */
    OK(ddpm_device_open(&device, backend, backend == ddpm_cpu() ? 2 : 1, NULL));
    OK(ddpm_graph_create(&g, &device, N + 1, 1));
    ddpm_tensor w = {.name = "w",
                     .dims = 1,
                     .shape = {C, 1, 1, 1},
                     .param = 1,
                     .trainable = 1,
                     .data = weights,
                     .grad = gradient[0]};
    ddpm_tensor b = w;
    b.data = weights + C, b.grad = gradient[1];
    ddpm_tensor *x = ddpm_input(g, "x", C, H, W, 1), *h = ddpm_group_norm(g, x, &w, &b, 2, 1e-5);
    ddpm_tensor *y = ddpm_activation(g, h, DDPM_SILU);
    if (shared) y = ddpm_add(g, y, h, 1);
    OK(ddpm_graph_plan(g, y, &y, 1));
    OK(ddpm_graph_alloc(g));
    OK(ddpm_upload(&device, x, DDPM_DATA, N, in));
    OK(ddpm_graph_forward(g, N));
    OK(ddpm_download(&device, y, DDPM_DATA, N, out));
    OK(ddpm_graph_backward(g, dy, NULL, NULL));
    OK(ddpm_download(&device, x, DDPM_GRADIENT, N, out + ALL));
    memcpy(out + 2 * ALL, gradient, sizeof gradient);
    int folded = 0;
    for (int i = 0; i < g->nodes; i++)
        folded += g->node[i]->fused_into != NULL;
    assert_int_equal(folded, backend == ddpm_cpu() && !shared);
    ddpm_graph_free(g);
    ddpm_device_close(&device);
}

static void test_norm_silu(void **state)
{
    enum { ALL = 3 * 8 * 5 * 7, RESULTS = 2 * ALL + 2 * 8 };
    (void)state;
    float *in = values(ALL, 6, 2), *weights = values(16, 7, 1), *dy = values(ALL, 8, 1);
    for (int shared = 0; shared < 2; shared++) {
        float result[2][RESULTS], largest[3] = {0};
        run_norm_silu(ddpm_reference(), shared, in, weights, dy, result[0]);
        run_norm_silu(ddpm_cpu(), shared, in, weights, dy, result[1]);
        for (int i = 0; i < RESULTS; i++)
            largest[i / ALL] = fmaxf(largest[i / ALL], fabsf(result[0][i]));
        for (int i = 0; i < RESULTS; i++)
            if (!(fabs((double)result[0][i] - (double)result[1][i]) <= 64 * unit * (double)largest[i / ALL]))
                fail_msg("shared %d: [%d] is %.9g, the reference has %.9g", shared, i, (double)result[1][i],
                         (double)result[0][i]);
    }
    free(in), free(weights), free(dy);
}

/* Attention twice, as the convolutions: y = 2 attention(q,k,v), gradients are added to. (d,L) of one head at a time. */
typedef struct attention_shape {
    int n, heads, d, h, w;
} attention_shape;

static const attention_shape attention_shapes[] = {
    {2, 3, 8, 4, 4}, {1, 2, 8, 16, 16}, {2, 1, 5, 5, 7}, {1, 1, 24, 9, 11}, {3, 2, 1, 1, 1}};
enum { ATTENTION_SHAPES = sizeof attention_shapes / sizeof *attention_shapes };

/* out: y, dq, dk, dv, each `count` = n heads d L */
static void run_attention(const attention_shape *s, float *const in[4], const char *isa, int threads, float *out)
{
    ddpm_device device;
    ddpm_graph *g;
    size_t count = (size_t)(s->n * s->heads * s->d * s->h * s->w);
    ddpm_tensor *x[3];
    OK(ddpm_device_open(&device, ddpm_cpu(), threads, isa));
    OK(ddpm_graph_create(&g, &device, s->n + 1, 1));
    for (int k = 0; k < 3; k++)
        x[k] = ddpm_input(g, "qkv", s->heads * s->d, s->h, s->w, 1);
    ddpm_tensor *y =
        ddpm_add(g, ddpm_attention(g, x[0], x[1], x[2], s->heads), ddpm_attention(g, x[0], x[1], x[2], s->heads), 1);
    OK(ddpm_graph_plan(g, y, &y, 1));
    OK(ddpm_graph_alloc(g));
    for (int k = 0; k < 3; k++)
        OK(ddpm_upload(&device, x[k], DDPM_DATA, s->n, in[k]));
    OK(ddpm_graph_forward(g, s->n));
    OK(ddpm_download(&device, y, DDPM_DATA, s->n, out));
    OK(ddpm_graph_backward(g, in[3], NULL, NULL));
    for (int k = 0; k < 3; k++)
        OK(ddpm_download(&device, x[k], DDPM_GRADIENT, s->n, out + (size_t)(k + 1) * count));
    ddpm_graph_free(g);
    ddpm_device_close(&device);
}

/* One head in double: values[4] = y, dq, dk, dv and how far float may be from them, to first order. A score is a sum
 * of d products of rounded factors, so it errs by e_ij = u (d + 4) sum |q k| / sqrt d, scaled once more; p_ij
 * relatively by theta_i = 2 max_j e_ij + u (L + 16): twice, for its own score and those it is divided by; the
 * exponential, the sum and the quotient. Every other sum of K terms adds u (K + 4) of the sum of its absolute values.
 * */
static void attention_truth(int d, int tokens, const float *q, const float *k, const float *v, const float *dy,
                            double *value, double *bound)
{
    size_t all = (size_t)(d * tokens), square = (size_t)(tokens * tokens);
    double *p = calloc(4 * square, sizeof *p), *p_bound = p + square, *ds = p_bound + square, *ds_bound = ds + square;
    double scale = 1 / sqrt((double)d);
    memset(value, 0, 4 * all * sizeof *value);
    memset(bound, 0, 4 * all * sizeof *bound);
    for (int i = 0; i < tokens; i++) {
        double *row = p + i * tokens, largest = -1e300, total = 0, worst = 0, mean = 0, mean_bound = 0, mean_size = 0;
        for (int j = 0; j < tokens; j++) {
            double size = 0;
            for (int c = 0; c < d; c++) {
                double product = scale * (double)q[c * tokens + i] * (double)k[c * tokens + j];
                row[j] += product, size += fabs(product);
            }
            largest = fmax(largest, row[j]), worst = fmax(worst, unit * (d + 4) * size);
        }
        for (int j = 0; j < tokens; j++)
            total += row[j] = exp(row[j] - largest);
        for (int j = 0; j < tokens; j++) {
            double dp = 0, dp_size = 0, at = row[j] /= total, theta = 2 * worst + unit * (tokens + 16);
            for (int c = 0; c < d; c++) {
                double product = (double)dy[c * tokens + i] * (double)v[c * tokens + j];
                dp += product, dp_size += fabs(product);
            }
            p_bound[i * tokens + j] = theta * at;
            ds[i * tokens + j] = dp, ds_bound[i * tokens + j] = unit * (d + 4) * dp_size;
            mean += at * dp, mean_size += at * fabs(dp);
            mean_bound += theta * at * fabs(dp) + at * ds_bound[i * tokens + j];
        }
        mean_bound += unit * (tokens + 4) * mean_size;
        for (int j = 0; j < tokens; j++) {
            size_t at = (size_t)(i * tokens + j);
            ds_bound[at] = p_bound[at] * fabs(ds[at] - mean) +
                           p[at] * (ds_bound[at] + mean_bound + 4 * unit * (fabs(ds[at]) + fabs(mean)));
            ds[at] = p[at] * (ds[at] - mean);
        }
    }
    for (int c = 0; c < d; c++)
        for (int i = 0; i < tokens; i++)
            for (int j = 0; j < tokens; j++) {
                size_t at = (size_t)(i * tokens + j), qi = (size_t)(c * tokens + i), kj = (size_t)(c * tokens + j);
                const double factor[4] = {(double)v[kj], scale * (double)k[kj], scale * (double)q[qi], (double)dy[qi]};
                for (int r = 0; r < 4; r++) {
                    int of_p = r == 0 || r == 3;
                    size_t to = (size_t)r * all + (r < 2 ? qi : kj);
                    double x = of_p ? p[at] : ds[at], x_bound = of_p ? p_bound[at] : ds_bound[at];
                    value[to] += x * factor[r];
                    bound[to] += (x_bound + unit * (tokens + 4) * fabs(x)) * fabs(factor[r]);
                }
            }
    free(p);
}

static void test_attention(void **state)
{
    (void)state;
    for (int i = 0; i < ATTENTION_SHAPES; i++) {
        const attention_shape *s = &attention_shapes[i];
        size_t head = (size_t)(s->d * s->h * s->w), count = head * (size_t)(s->n * s->heads);
        float *in[4], *out = calloc(4 * count, sizeof *out), *again = calloc(4 * count, sizeof *again);
        double *value = calloc(8 * head, sizeof *value), *bound = value + 4 * head, worst = 0;
        for (uint32_t k = 0; k < 4; k++)
            in[k] = values(count, 20 + k, k < 2 ? 2 : 1);
        for (int set = 0; set < 3; set++) {
            if (!available(sets[set])) continue;
            run_attention(s, in, sets[set], 1, out);
            run_attention(s, in, sets[set], 3, again);
            assert_memory_equal(out, again, 4 * count * sizeof *out);
            for (size_t at = 0; at < count; at += head) {
                attention_truth(s->d, s->h * s->w, in[0] + at, in[1] + at, in[2] + at, in[3] + at, value, bound);
                for (size_t k = 0; k < 4 * head; k++) {
                    double ours = (double)out[k / head * count + at + k % head] / 2;
                    double share = fabs(ours - value[k]) / (bound[k] + 1e-30);
                    if (!(share <= 1))
                        fail_msg("%s, shape %d, result %zu[%zu] is %.9g, should be %.9g: %.3g times the bound",
                                 sets[set], i, k / head, at + k % head, ours, value[k], share);
                    worst = fmax(worst, share);
                }
            }
        }
        print_message("           %d heads of %dx%dx%d: worst error %.2f of its bound\n", s->heads, s->d, s->h, s->w,
                      worst);
        for (int k = 0; k < 4; k++)
            free(in[k]);
        free(out), free(again), free(value);
    }
}

static void test_isa(void **state)
{
    (void)state;
    ddpm_device device;
    assert_int_equal(ddpm_device_open(&device, ddpm_cpu(), 1, "mmx"), DDPM_ERR_ARGUMENT);
    assert_non_null(strstr(ddpm_error(), "mmx"));
    assert_int_equal(ddpm_device_open(&device, ddpm_cpu(), 1, "baseline+fast"), DDPM_ERR_ARGUMENT);
    assert_int_equal(ddpm_device_open(&device, ddpm_cpu(), 1, "base"), DDPM_ERR_ARGUMENT);
    OK(ddpm_device_open(&device, ddpm_cpu(), 1, "+exact"));
    assert_non_null(strstr(ddpm_device_isa(&device), "+exact"));
    ddpm_device_close(&device);
    OK(ddpm_device_open(&device, ddpm_cpu(), 1, NULL));
    int known = 0;
    for (int set = 0; set < 3; set++)
        known |= strcmp(sets[set], ddpm_device_isa(&device)) == 0;
    assert_true(known);
    ddpm_device_close(&device);
}

/* ---- 4. main ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isa),          cmocka_unit_test(test_shapes),    cmocka_unit_test(test_threads),
        cmocka_unit_test(test_training),     cmocka_unit_test(test_norm_silu), cmocka_unit_test(test_attention),
        cmocka_unit_test(test_kept_weights),
    };
    return cmocka_run_group_tests_name("cpu backend", tests, NULL, NULL);
}
