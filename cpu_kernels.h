/* cpu_kernels.h - the inner loops of cpu_backend.c, which includes this file once for each instruction set.
 * Single-threaded, on plain float arrays; they know nothing of graphs. Before each include cpu_backend.c defines
 *     CPU(name)      the name of a function or type in this instruction set
 *     LANES          floats in a vector            MR, NV   the register tile: MR rows by NV vectors
 *     FMA(a, b, c)   a * b + c, rounded once where the processor can
 *     BROADCAST(x)   a vector of x                 ROOT(x)  square roots
 *     MAXIMUM(a, b)  the larger, of NaNs the one in b
 *     ISA_NAME       "avx512"           KEEP(v)    keeps v in a register of its own here
 *
 * Contents: 1 vectors   2 matrix products   3 Winograd transforms   4 elementwise   5 attention   6 the table */

/* clang-format off */
/* ---- 1. Vectors (of gcc and clang) ------------------------------------------------------------------------------- */

typedef float CPU(vec) __attribute__((vector_size(4 * LANES)));
typedef float CPU(loose) __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */
typedef int32_t CPU(ivec) __attribute__((vector_size(4 * LANES)));
#define VEC CPU(vec)

INLINE VEC CPU(load)(const float *p)
{
    return *(const CPU(loose) *)p;
}

INLINE void CPU(store)(float *p, VEC v)
{
    *(CPU(loose) *)p = v;
}

/* Lists of lanes for __builtin_shufflevector(a, b, ...): every second lane of a and b; their lanes in turn, first and
 * second half; the lanes one further; the lanes one back. */
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define NEXT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define LOWER 0, 1, 2, 3, 4, 5, 6, 7
#define UPPER 8, 9, 10, 11, 12, 13, 14, 15
#define BEFORE 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define NEXT 1, 2, 3, 4, 5, 6, 7, 8
#define LOWER 0, 1, 2, 3
#define UPPER 4, 5, 6, 7
#define BEFORE 7, 8, 9, 10, 11, 12, 13, 14
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#define NEXT 1, 2, 3, 4
#define BEFORE 3, 4, 5, 6
#endif
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* LANES x LANES in place: each round of zips (v[i], v[i + LANES/2]) moves one bit of the row number into the column's.
 * */
INLINE void CPU(transpose)(VEC *v)
{
    EACH(round, LANES == 16 ? 4 : LANES == 8 ? 3 : 2)
    {
        VEC w[LANES];
        EACH(i, LANES / 2)
        {
            w[2 * i] = SHUFFLE(v[i], v[i + LANES / 2], ZIP_LOW);
            w[2 * i + 1] = SHUFFLE(v[i], v[i + LANES / 2], ZIP_HIGH);
        }
        EACH(i, LANES) v[i] = w[i];
    }
}

INLINE float CPU(total)(VEC v)
{
    float lane[LANES], sum = 0;
    CPU(store)(lane, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    sum = lane[0];
    return sum;
}

/* ---- 2. Matrix products ---------------------------------------------------------------------------------------------
 * C (+)= A B. A is packed in panels of MR rows, [row / MR][k][MR], so that the tile reads it from end to end; B has
 * rows of ldb floats. Or A is read as it lies, row m at a + m a_row, where packing would cost as much as the product;
 * its rows are then a multiple of MR. One tile of C stays in registers for all of its k: MR broadcasts and NV loads
 * feed MR NV multiply-adds. Every element of C is summed over k in ascending order, in blocks of KC, wherever it lies.
 * The sums of earlier products, to which the first block adds, are far away and asked for early. All indices of `sum`
 * are constants: with others gcc keeps it in memory and copies it twice for each tile. */

enum { CPU(NR) = NV * LANES, CPU(KC) = 256, CPU(NEAR) = 1, CPU(FAR) = 2 }; /* of accumulate: where C lies */

INLINE void CPU(tile)(const int nv, int k, const float *a, size_t a_row, const float *b, size_t ldb, float *c,
                      size_t ldc, int rows, int columns, const float *bias, int accumulate)
{
    VEC sum[MR][NV];
    const float *half = a + 4 * a_row;    /* eight rows through two pointers */
    const size_t three = 3 * a_row;
    EACH(m, MR) EACH(v, nv) sum[m][v] = (VEC){0};
    for (int m = 0; accumulate == CPU(FAR) && m < rows; m++)
        EACH(v, nv) __builtin_prefetch(c + (size_t)m * ldc + v * LANES, 1);
    if (bias) EACH(m, MR) if (m < rows) EACH(v, nv) sum[m][v] = BROADCAST(bias[m]);
    for (int i = 0; i < k; i++) {
        VEC x[NV];
        EACH(v, nv) x[v] = CPU(load)(b + v * LANES);
        EACH(m, MR)
        {
            VEC w = BROADCAST(a_row ? (m < 4 ? a : half)[m % 4 == 3 ? three : (size_t)(m % 4) * a_row] : a[m]);
            KEEP(w);
            EACH(v, nv) sum[m][v] = FMA(w, x[v], sum[m][v]);
        }
        a += a_row ? 1 : MR;
        half++;
        b += ldb;
    }
    if (columns == nv * LANES) {
        EACH(m, MR) if (m < rows) EACH(v, nv)
        {
            float *to = c + (size_t)m * ldc + v * LANES;
            CPU(store)(to, accumulate ? CPU(load)(to) + sum[m][v] : sum[m][v]);
        }
        return;
    }
    float edge[MR][NV * LANES];
    EACH(m, MR) EACH(v, nv) CPU(store)(edge[m] + v * LANES, sum[m][v]);
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++)
            c[(size_t)m * ldc + (size_t)n] = (accumulate ? c[(size_t)m * ldc + (size_t)n] : 0) + edge[m][n];
}

/* The part of C that is at most NR columns wide, for k of one block. */
INLINE void CPU(strip_of)(const int nv, const int packed, const cpu_product *p, int k, const float *a, const float *b,
                          size_t ldb, float *c, int columns, const float *bias, int accumulate)
{
    size_t apart = packed ? (size_t)p->k : p->a_row;
    for (int m = 0; m < p->m; m += MR)
        CPU(tile)(nv, k, a + (size_t)m * apart, packed ? 0 : p->a_row, b, ldb, c + (size_t)m * p->ldc, p->ldc,
                  p->m - m < MR ? p->m - m : MR, columns, bias ? bias + m : NULL, accumulate);
}

static void CPU(strip)(const cpu_product *p, int k, const float *a, const float *b, size_t ldb, float *c, int columns,
                       const float *bias, int accumulate)
{
    int vectors = (columns + LANES - 1) / LANES;
    if (vectors == 1 && !p->a_row)
        CPU(strip_of)(1, 1, p, k, a, b, ldb, c, columns, bias, accumulate);
    else if (vectors == 1)
        CPU(strip_of)(1, 0, p, k, a, b, ldb, c, columns, bias, accumulate);
    else if (vectors == 2 && !p->a_row)
        CPU(strip_of)(2, 1, p, k, a, b, ldb, c, columns, bias, accumulate);
    else if (vectors == 2)
        CPU(strip_of)(2, 0, p, k, a, b, ldb, c, columns, bias, accumulate);
    else if (!p->a_row)
        CPU(strip_of)(NV, 1, p, k, a, b, ldb, c, columns, bias, accumulate);
    else
        CPU(strip_of)(NV, 0, p, k, a, b, ldb, c, columns, bias, accumulate);
}

static void CPU(product)(const cpu_product *p)
{
    float copy[CPU(KC) * CPU(NR)] __attribute__((aligned(64)));
    for (int n = 0, columns; n < p->n; n += columns) {
        columns = p->n - n < CPU(NR) ? p->n - n : CPU(NR);
        if (NV == 3 && p->n - n == 4 * LANES) columns = 2 * LANES; /* rather than three vectors and one */
        for (int k = 0; k < p->k; k += CPU(KC)) {
            int depth = p->k - k < CPU(KC) ? p->k - k : CPU(KC);
            const float *b = p->b + (size_t)k * p->ldb + n;
            size_t ldb = p->ldb;
            if (p->copy_b) { /* rows far apart, or not readable beyond their end: side by side, zeros behind */
                for (int i = 0; i < depth; i++) {
                    memcpy(copy + i * CPU(NR), b + (size_t)i * ldb, (size_t)columns * sizeof *copy);
                    memset(copy + i * CPU(NR) + columns, 0, (size_t)(CPU(NR) - columns) * sizeof *copy);
                }
                b = copy;
                ldb = CPU(NR);
            }
            CPU(strip)(p, depth, p->a + (size_t)k * (p->a_row ? 1 : MR), b, ldb, p->c + n, columns, k ? NULL : p->bias,
                       k ? CPU(NEAR) : p->accumulate ? CPU(FAR) : 0);
        }
    }
}

/* MR outputs of a convolution for `vectors` vectors of positions p, weights as they lie:
 *     y[m][p] = sum over inputs i and taps (r, s) of w[m][i][r][s] x[i][p + r x_row + s x_step] */
INLINE void CPU(taps_tile)(const int nv, const int one_tap, const cpu_taps *t, const float *x, float *y)
{
    VEC sum[MR][NV];
    EACH(m, MR) EACH(v, nv) sum[m][v] = (VEC){0};
    const size_t one = t->w_out, three = 3 * one; /* so that eight rows need two pointers */
    const int far = t->w_in > 1024;               /* too far apart for the processor to guess */
    for (int i = 0; i < t->inputs; i++, x += t->x_in)
        for (int r = 0; r < (one_tap ? 1 : t->rows); r++) {
            const float *w = t->w + (size_t)i * t->w_in + (ptrdiff_t)r * t->w_row;
            const float *in = x + (size_t)r * t->x_row;
            if (far && r == 0)
                EACH(m, MR) __builtin_prefetch(w + (i + 4 < t->inputs ? 4 * t->w_in : 0) + (size_t)m * one);
            for (int s = 0; s < (one_tap ? 1 : t->columns); s++, w += t->w_tap, in += t->x_step) {
                const float *later = w + 4 * one;
                VEC column[NV];
                EACH(v, nv) column[v] = CPU(load)(in + v * LANES);
                EACH(m, MR)
                {
                    VEC each = BROADCAST((m < 4 ? w : later)[m % 4 == 3 ? three : (size_t)(m % 4) * one]);
                    KEEP(each);
                    EACH(v, nv) sum[m][v] = FMA(each, column[v], sum[m][v]);
                }
            }
        }
    EACH(m, MR) EACH(v, nv) CPU(store)(y + (size_t)m * t->ldy + v * LANES, sum[m][v]);
}

static void CPU(taps)(const cpu_taps *t)
{
    const int one_tap = t->rows * t->columns == 1;
    for (int v = 0; v < t->vectors;) {
        int left = t->vectors - v, some = left >= NV && left != NV + 1 ? NV : left > 1 ? 2 : 1;
        const float *x = t->x + v * LANES;
        float *y = t->y + v * LANES;
        if (some == 1 && one_tap)
            CPU(taps_tile)(1, 1, t, x, y);
        else if (some == 1)
            CPU(taps_tile)(1, 0, t, x, y);
        else if (some == 2)
            CPU(taps_tile)(2, 0, t, x, y);
        else
            CPU(taps_tile)(NV, 0, t, x, y);
        v += some;
    }
}

/* Rows first ... first + MR - 1 of A, A[i][k] = from[i row + k column], as a panel; rows beyond `rows` are zeros. */
static void CPU(pack)(int rows, int k, const float *from, size_t row, ptrdiff_t column, float *panel)
{
    if (rows < MR) memset(panel, 0, (size_t)k * MR * sizeof *panel);
    for (int i = 0; i < k; i++)
        for (int m = 0; m < (rows < MR ? rows : MR); m++)
            panel[(size_t)i * MR + (size_t)m] = from[(ptrdiff_t)((size_t)m * row) + i * column];
}

/* to (columns,rows) = from (rows,columns)^T */
static void CPU(turn)(int rows, int columns, const float *from, size_t from_row, float *to, size_t to_row)
{
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < columns; j += LANES) {
            VEC block[LANES];
            const float *in = from + (size_t)i * from_row + (size_t)j;
            float *out = to + (size_t)j * to_row + (size_t)i;
            if (rows - i < LANES || columns - j < LANES) {
                for (int a = 0; a < LANES && i + a < rows; a++)
                    for (int b = 0; b < LANES && j + b < columns; b++)
                        out[(size_t)b * to_row + (size_t)a] = in[(size_t)a * from_row + (size_t)b];
                continue;
            }
            EACH(k, LANES) block[k] = CPU(load)(in + (size_t)k * from_row);
            CPU(transpose)(block);
            EACH(k, LANES) CPU(store)(out + (size_t)k * to_row, block[k]);
        }
}

/* The nine taps of LANES outputs and one input, from at + k w_out on, in the order of memory: tap[s] or, where w_tap is
 * negative, tap[8 - s] */
INLINE void CPU(load_taps)(const float *at, size_t w_out, int w_tap, VEC *tap)
{
    VEC block[LANES];
#if LANES == 16
    EACH(k, LANES) block[k] = LOAD_NINE(at + (size_t)k * w_out);
    CPU(transpose)(block);
    EACH(s, 9) tap[s] = block[w_tap < 0 ? 8 - s : s];
#else
    float last[LANES];
    for (int first = 0; first < 8; first += LANES) {
        EACH(k, LANES) block[k] = CPU(load)(at + (size_t)k * w_out + first);
        CPU(transpose)(block);
        EACH(s, LANES) tap[w_tap < 0 ? 8 - first - s : first + s] = block[s];
    }
    for (int k = 0; k < LANES; k++)
        last[k] = at[(size_t)k * w_out + 8];
    tap[w_tap < 0 ? 0 : 8] = CPU(load)(last);
#endif
}

/* The taps of LANES outputs and as many inputs, rows of 9 LANES floats w_out apart: those of input i at tap + 9 i */
INLINE void CPU(load_rows)(const float *at, size_t w_out, VEC *tap)
{
    for (int block = 0; block < 9; block++, at += LANES, tap += LANES) {
        EACH(k, LANES)
        {
            __builtin_prefetch(at + (size_t)k * w_out + 9 * LANES);
            tap[k] = CPU(load)(at + (size_t)k * w_out);
        }
        CPU(transpose)(tap);
    }
}

/* The taps of LANES outputs, from w on, and `count` inputs from `first` of `inputs` on: those of the first + i-th at
 * tap + 9 i. Weight of (o, i, tap) at w + o w_out + i w_in + tap w_tap; what follows is asked for. */
INLINE void CPU(gather_taps)(const float *w, size_t w_out, size_t w_in, int w_tap, int first, int count, int inputs,
                             VEC *tap)
{
    const float *nine = w + (size_t)first * w_in + (w_tap < 0 ? -8 : 0); /* in the order of memory */
    if (w_in == 9 && count == LANES) {
        CPU(load_rows)(nine, w_out, tap);
        return;
    }
    for (int i = 0; i < count; i++, nine += w_in, tap += 9) {
        for (size_t line = 0; first + i + 4 < inputs && line < 9 * LANES + 15; line += 16) /* as far apart as rows */
            __builtin_prefetch(nine + 4 * w_in + line);
        CPU(load_taps)(nine, w_out, w_tap, tap);
    }
}

/* s += the taps of LANES inputs with pixels p0 ... p0 + count - 1 of x (LANES,4,4), sums of LANES outputs each */
INLINE void CPU(add_pixels)(const int p0, const int count, const VEC *tap, const float *x, VEC *sum)
{
    VEC s[16];
    EACH(p, count) s[p] = sum[p0 + p];
    for (int i = 0; i < LANES; i++, tap += 9, x += 16)
        EACH(t, 9) EACH(p, count)
        {
            const int row = (p0 + p) / 4 + t / 3 - 1, column = (p0 + p) % 4 + t % 3 - 1;
            if (row >= 0 && row < 4 && column >= 0 && column < 4)
                s[p] = FMA(tap[t], BROADCAST(x[4 * row + column]), s[p]);
        }
    EACH(p, count) sum[p0 + p] = s[p];
}

/* y (LANES,4,4) of one picture x (inputs,4,4), 3x3 with padding 1, inputs a multiple of LANES. Lanes are outputs: the
 * weights have to be turned, but no lane is wasted and no tap meets the padding. */
static void CPU(one_picture)(int inputs, const float *w, size_t w_out, size_t w_in, int w_tap, const float *x, float *y)
{
    enum { PIXELS = LANES == 16 ? 16 : 8 }; /* whose sums are in registers */
    VEC tap[9 * LANES], sum[16] = {{0}};
    for (int first = 0; first < inputs; first += LANES) {
        CPU(gather_taps)(w, w_out, w_in, w_tap, first, LANES, inputs, tap);
        EACH(part, 16 / PIXELS) CPU(add_pixels)(part * PIXELS, PIXELS, tap, x + first * 16, sum);
    }
    CPU(turn)(16, LANES, (const float *)sum, LANES, y, 16);
}

/* C[i][j] = sum_k a[i lda + k] b[j ldb + k]: both rows as they lie in memory, for so few columns that packing A would
 * cost more than the product. LANES partial sums, added in pairs at the end. */
enum { CPU(DOT_COLUMNS) = LANES == 16 ? 6 : 2 };

INLINE void CPU(dot_tile)(int k, const float *const *a, const float *const *b, float *c)
{
    VEC sum[DOT_ROWS][CPU(DOT_COLUMNS)];
    EACH(i, DOT_ROWS) EACH(j, CPU(DOT_COLUMNS)) sum[i][j] = (VEC){0};
    int at = 0;
    for (; at + LANES <= k; at += LANES) {
        VEC x[DOT_ROWS];
        EACH(i, DOT_ROWS) x[i] = CPU(load)(a[i] + at);
        EACH(j, CPU(DOT_COLUMNS))
        {
            VEC y = CPU(load)(b[j] + at);
            EACH(i, DOT_ROWS) sum[i][j] = FMA(x[i], y, sum[i][j]);
        }
    }
    EACH(i, DOT_ROWS) EACH(j, CPU(DOT_COLUMNS))
    {
        float total = CPU(total)(sum[i][j]);
        for (int rest = at; rest < k; rest++)
            total += a[i][rest] * b[j][rest];
        c[i * CPU(DOT_COLUMNS) + j] = total;
    }
}

static void CPU(dot)(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc)
{
    for (int i = 0; i < m; i += DOT_ROWS)
        for (int j = 0; j < n; j += CPU(DOT_COLUMNS)) {
            const float *rows[DOT_ROWS], *columns[CPU(DOT_COLUMNS)]; /* beyond the edge: the last one again */
            float tile[DOT_ROWS * CPU(DOT_COLUMNS)];
            for (int r = 0; r < DOT_ROWS; r++)
                rows[r] = a + (size_t)(i + r < m ? i + r : m - 1) * lda;
            for (int r = 0; r < CPU(DOT_COLUMNS); r++)
                columns[r] = b + (size_t)(j + r < n ? j + r : n - 1) * ldb;
            CPU(dot_tile)(k, rows, columns, tile);
            for (int r = 0; r < DOT_ROWS && i + r < m; r++)
                for (int q = 0; q < CPU(DOT_COLUMNS) && j + q < n; q++)
                    c[(size_t)(i + r) * ldc + (size_t)(j + q)] = tile[r * CPU(DOT_COLUMNS) + q];
        }
}

/* ---- 3. Winograd transforms -----------------------------------------------------------------------------------------
 * A TxT tile Y of a 3x3 convolution from the (T+2)x(T+2) patch X under it (Winograd 1980; Lavin & Gray 2016):
 *     Y = A^T [ (G w G^T) o (B^T X B) ] A,        o: element by element, summed over input channels
 * and its adjoints. T = 2 has the interpolation points 0, 1, -1 and infinity, T = 4 has 0, a, -a, b, -b and infinity,
 * a = 1/sqrt 2, b = sqrt 2: then a^2 + b^2 = 5/2, a^2 b^2 = 1, and errors are a quarter of those of the usual points 1
 * and 2.
 *
 *        | 1   0  -5/2  0   1  0 |         |  1      0       0   |           | 1  1   1  1   1   0 |
 *        | 0  -2a  -2   a   1  0 |         | -2/3 -2a/3   -1/3   |           | 0  a  -a  b  -b   0 |
 *   B^T= | 0   2a  -2  -a   1  0 |     G = | -2/3  2a/3   -1/3   |     A^T = | 0 1/2 1/2 2   2   0 |     T = 4
 *        | 0 -b/2 -1/2  b   1  0 |         |  1/6   b/6    1/3   |           | 0 a/2-a/2 2b -2b  1 |
 *        | 0  b/2 -1/2 -b   1  0 |         |  1/6  -b/6    1/3   |
 *        | 0   1   0  -5/2  0  1 |         |  0      0       1   |
 *
 *        | 1  0 -1  0 |                    |  1    0    0  |
 *   B^T= | 0  1  1  0 |                G = | 1/2  1/2  1/2 |           A^T = | 1  1  1  0 |              T = 2
 *        | 0 -1  1  0 |                    | 1/2 -1/2  1/2 |                 | 0  1 -1  1 |
 *        | 0 -1  0  1 |                    |  0    0    1  |
 *
 * Error: rounding errors being independent to a good approximation (Higham & Mary 2019), their variances add. An
 * element of U, V or M of variance q carries u^2 q for each rounding on its way to an output, Ci + R at most. T = 4:
 * R = 40, 8 each in B, G, 1 and Ci in the sum, 10 in A, the constants' own. T = 2: R = 11, 2 in B, 4 in G (halves are
 * exact), 1 and Ci in the sum, 4 in A. With squares taken element by element, u = 2^-24,
 *     sigma^2 = (Ci + R) u^2 (A^T)^2 [ sum_i (G^2 w^2 (G^2)^T) o ((B^T)^2 x^2 B^2) ] A^2,
 * which tests/test_cpu.c computes for every output and multiplies by 6. For x and w of variance 1 it comes to u
 * sqrt(Ci (Ci + R)) times 21.4 in the corners of a tile, 13.7 on its edges, 8.7 inside for T = 4; times 5 everywhere
 * for T = 2. The same reckoning gives 9 u Ci for the direct sum, which in the worst case errs by (9 Ci + 1) u sum
 * |x w|.
 *
 * Lanes are LANES tiles that follow each other along rows, then down, then through the batch. The columns of a
 * patch are every T-th pixel: LANES tiles are read as T vectors and separated by rounds of even and odd lanes. Where
 * T = 4, pictures of 4x4 are a tile each: LANES of them are read whole and turned.
 *
 * T is a constant wherever it is used: these are templates, which the end of the section makes functions of. */

enum { CPU(PATCH) = 6, CPU(MOST) = 36 }; /* T + 2 and its square, at most */
static const float CPU(zeros)[4 * LANES]; /* rows outside the picture */

#define POINT_A 0.70710678118654752f
#define POINT_B 1.41421356237309505f
#define SCALED(c, x) (BROADCAST(c) * (x))
#define PLUS(a, c, x) FMA(BROADCAST(c), x, a) /* a + c x */

/* o = B^T d; o[i] at o + i step */
INLINE void CPU(bt)(const int T, const VEC *d, VEC *o, int step)
{
    if (T == 2) {
        o[0] = d[0] - d[2];
        o[step] = d[1] + d[2];
        o[2 * step] = d[2] - d[1];
        o[3 * step] = d[3] - d[1];
        return;
    }
    VEC e = PLUS(d[4], -2.0f, d[2]), f = PLUS(d[3], -2.0f, d[1]);
    o[0] = PLUS(d[0] + d[4], -2.5f, d[2]);
    o[step] = PLUS(e, POINT_A, f);
    o[2 * step] = PLUS(e, -POINT_A, f);
    e = PLUS(d[4], -0.5f, d[2]);
    f = PLUS(d[3], -0.5f, d[1]);
    o[3 * step] = PLUS(e, POINT_B, f);
    o[4 * step] = PLUS(e, -POINT_B, f);
    o[5 * step] = PLUS(d[1] + d[5], -2.5f, d[3]);
}

/* y = A^T m */
INLINE void CPU(at)(const int T, const VEC *m, VEC *y, int step)
{
    VEC p = m[1] + m[2], q = m[1] - m[2];
    if (T == 2) {
        y[0] = m[0] + p;
        y[step] = q + m[3];
        return;
    }
    VEC r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[step] = PLUS(SCALED(POINT_A, q), POINT_B, s);
    y[2 * step] = PLUS(SCALED(0.5f, p), 2.0f, r);
    y[3 * step] = PLUS(PLUS(m[5], 0.5f * POINT_A, q), 2.0f * POINT_B, s);
}

/* o = A y */
INLINE void CPU(a)(const int T, const VEC *y, VEC *o, int step)
{
    if (T == 2) {
        o[0] = y[0];
        o[step] = y[0] + y[1];
        o[2 * step] = y[0] - y[1];
        o[3 * step] = y[1];
        return;
    }
    VEC e = PLUS(y[0], 0.5f, y[2]), f = PLUS(y[1], 0.5f, y[3]);
    o[0] = y[0];
    o[step] = PLUS(e, POINT_A, f);
    o[2 * step] = PLUS(e, -POINT_A, f);
    e = PLUS(y[0], 2.0f, y[2]);
    f = PLUS(y[1], 2.0f, y[3]);
    o[3 * step] = PLUS(e, POINT_B, f);
    o[4 * step] = PLUS(e, -POINT_B, f);
    o[5 * step] = y[3];
}

/* o = G g, the three of g `from` apart */
INLINE void CPU(g)(const int T, const VEC *g, int from, VEC *o, int step)
{
    VEC g0 = g[0], g1 = g[from], g2 = g[2 * from];
    if (T == 2) {
        VEC e = SCALED(0.5f, g0 + g2), f = SCALED(0.5f, g1);
        o[0] = g0;
        o[step] = e + f;
        o[2 * step] = e - f;
        o[3 * step] = g2;
        return;
    }
    VEC e = PLUS(SCALED(-2.0f / 3, g0), -1.0f / 3, g2), f = SCALED(-2.0f / 3 * POINT_A, g1);
    o[0] = g0;
    o[step] = e + f;
    o[2 * step] = e - f;
    e = PLUS(SCALED(1.0f / 6, g0), 1.0f / 3, g2);
    f = SCALED(POINT_B / 6, g1);
    o[3 * step] = e + f;
    o[4 * step] = e - f;
    o[5 * step] = g2;
}

/* o = G^T u */
INLINE void CPU(gt)(const int T, const VEC *u, VEC *o, int step)
{
    VEC p = u[1] + u[2], q = u[1] - u[2];
    if (T == 2) {
        o[0] = PLUS(u[0], 0.5f, p);
        o[step] = SCALED(0.5f, q);
        o[2 * step] = PLUS(u[3], 0.5f, p);
        return;
    }
    VEC r = u[3] + u[4], s = u[3] - u[4];
    o[0] = PLUS(PLUS(u[0], -2.0f / 3, p), 1.0f / 6, r);
    o[step] = PLUS(SCALED(-2.0f / 3 * POINT_A, q), POINT_B / 6, s);
    o[2 * step] = PLUS(PLUS(u[5], -1.0f / 3, p), 1.0f / 3, r);
}

/* Where LANES tiles lie: in `parts` stretches of equally many, none of which goes on in the next row of tiles. */
typedef struct CPU(group) {
    int parts, pixels;       /* of a part in a row */
    float *row[LANES][6];    /* channel 0's row under patch row i of part s; NULL: outside the picture or the batch */
    float *vector[4][6];     /* the same for the T vectors that hold all parts, where there are at most T */
    int before, after;       /* is there a pixel to the left of the first tile, to the right of the last? */
    CPU(ivec) left, right;   /* all bits where there is one beside the lane's tile */
    size_t plane;
    int whole;                         /* tiles are pictures: these, `picture` floats apart */
    float *first;
    size_t pictures, picture;
} CPU(group);

static CPU(group) CPU(find_tiles)(int T, const cpu_pictures *p, size_t first, int rows, int first_row)
{
    int across = p->w / T, down = (p->h + T - 1) / T, tiles = LANES;
    while (across % tiles != 0)
        tiles /= 2; /* the greatest common divisor: LANES is a power of two */
    CPU(group) g = {.parts = LANES / tiles, .pixels = T * tiles, .plane = (size_t)p->h * (size_t)p->w};
    int32_t left[LANES] = {0}, right[LANES] = {0};
    if (T == 4 && p->w == 4 && p->h == 4) {
        g.whole = 1;
        g.picture = (size_t)p->channels * g.plane;
        g.pictures = (size_t)p->n > first ? (size_t)p->n - first : 0;
        g.first = p->data + first * g.picture;
        return g;
    }
    for (int s = 0; s < g.parts; s++) {
        size_t tile = first + (size_t)(s * tiles), n = tile / (size_t)(across * down);
        int tx = (int)(tile % (size_t)across), ty = (int)(tile / (size_t)across % (size_t)down);
        if (n >= (size_t)p->n) continue;
        for (int i = 0; i < rows; i++) {
            int y = T * ty + i + first_row;
            if (y >= 0 && y < p->h)
                g.row[s][i] = p->data + n * (size_t)p->channels * g.plane + (size_t)y * (size_t)p->w + T * tx;
        }
        for (int lane = 0; lane < tiles; lane++) {
            left[s * tiles + lane] = tx + lane > 0 ? -1 : 0;
            right[s * tiles + lane] = tx + lane + 1 < across ? -1 : 0;
        }
    }
    for (int v = 0; v < T && g.parts <= T; v++)
        for (int i = 0; i < rows; i++) {
            float *row = g.row[v * g.parts / T][i];
            g.vector[v][i] = row ? row + v % (T / g.parts) * LANES : NULL;
        }
    memcpy(&g.left, left, sizeof left);
    memcpy(&g.right, right, sizeof right);
    g.before = left[0] != 0;
    g.after = right[LANES - 1] != 0;
    return g;
}

/* Patch row i of channel c, columns apart: column[k] is pixel k of every tile, -1 <= k <= T, at column[1 + k]. */
INLINE void CPU(load_row)(const int T, const CPU(group) *g, int i, int c, VEC *column, int neighbours)
{
    float buffer[4 * LANES];
    VEC v[4];
    if (g->parts <= T) {
        EACH(k, T)
        {
            const float *row = g->vector[k][i];
            v[k] = CPU(load)(row ? row + (size_t)c * g->plane : CPU(zeros));
        }
    } else {
        for (int s = 0; s < g->parts; s++) {
            const float *row = g->row[s][i];
            const float *from = row ? row + (size_t)c * g->plane : CPU(zeros);
            float *to = buffer + s * g->pixels;
            if (g->pixels == 8)
                memcpy(to, from, 8 * sizeof *to);
            else if (g->pixels == 4)
                memcpy(to, from, 4 * sizeof *to);
            else
                memcpy(to, from, 2 * sizeof *to);
        }
        EACH(k, T) v[k] = CPU(load)(buffer + k * LANES);
    }
    if (T == 2) {
        column[1] = SHUFFLE(v[0], v[1], EVEN);
        column[2] = SHUFFLE(v[0], v[1], ODD);
    } else {
        VEC even0 = SHUFFLE(v[0], v[1], EVEN), even1 = SHUFFLE(v[2], v[3], EVEN);
        VEC odd0 = SHUFFLE(v[0], v[1], ODD), odd1 = SHUFFLE(v[2], v[3], ODD);
        column[1] = SHUFFLE(even0, even1, EVEN);
        column[2] = SHUFFLE(odd0, odd1, EVEN);
        column[3] = SHUFFLE(even0, even1, ODD);
        column[4] = SHUFFLE(odd0, odd1, ODD);
    }
    if (!neighbours) return;
    VEC left = {0}, right = {0};
    const float *first = g->row[0][i], *last = g->row[g->parts - 1][i];
    if (first && g->before) left[LANES - 1] = *(first + (size_t)c * g->plane - 1);
    if (last && g->after) right[0] = last[(size_t)c * g->plane + (size_t)g->pixels];
    column[0] = (VEC)((CPU(ivec))SHUFFLE(left, column[T], BEFORE) & g->left);
    column[T + 1] = (VEC)((CPU(ivec))SHUFFLE(column[1], right, NEXT) & g->right);
}

/* Channel c of whole pictures of 16 pixels: each pixel's vector, and back. */
INLINE void CPU(load_pixels)(const CPU(group) *g, int c, VEC *pixel)
{
    for (int at = 0; at < 16; at += LANES) {
        const float *from = g->first + (size_t)c * 16 + at;
        EACH(k, LANES) pixel[at + k] = (size_t)k < g->pictures ? CPU(load)(from + (size_t)k * g->picture) : (VEC){0};
        CPU(transpose)(pixel + at);
    }
}

INLINE void CPU(store_pixels)(const CPU(group) *g, int c, VEC *pixel, int accumulate)
{
    for (int at = 0; at < 16; at += LANES) {
        CPU(transpose)(pixel + at);
        EACH(k, LANES) if ((size_t)k < g->pictures)
        {
            float *to = g->first + (size_t)c * 16 + at + (size_t)k * g->picture;
            CPU(store)(to, accumulate ? CPU(load)(to) + pixel[at + k] : pixel[at + k]);
        }
    }
}

/* v = B^T X B of LANES tiles of one channel */
INLINE void CPU(transform_x)(const int T, const CPU(group) *g, int c, VEC *v)
{
    const int P = T + 2;
    VEC t[CPU(MOST)], row[CPU(PATCH)], pixel[16];
    if (T == 4 && g->whole) {
        CPU(load_pixels)(g, c, pixel);
        row[0] = row[5] = (VEC){0};
        EACH(i, P)
        {
            EACH(j, 4) row[1 + j] = i > 0 && i < 5 ? pixel[4 * i - 4 + j] : (VEC){0};
            CPU(bt)(T, row, t + i, P);
        }
    } else
        for (int i = 0; i < P; i++) {
            CPU(load_row)(T, g, i, c, row, 1);
            CPU(bt)(T, row, t + i, P); /* t[column][row] */
        }
    EACH(j, P) CPU(bt)(T, t + P * j, v + j, P);
}

/* v = A Y A^T */
INLINE void CPU(transform_dy)(const int T, const CPU(group) *g, int c, VEC *v)
{
    const int P = T + 2, whole = T == 4 && g->whole;
    VEC t[4 * CPU(PATCH)], row[CPU(PATCH)], pixel[16];
    if (whole) CPU(load_pixels)(g, c, pixel);
    for (int i = 0; i < T; i++) {
        if (!whole) CPU(load_row)(T, g, i, c, row, 0);
        CPU(a)(T, whole ? pixel + 4 * i : row + 1, t + i, T);
    }
    EACH(j, P) CPU(a)(T, t + T * j, v + j, P);
}

/* Channels are a plane apart, too far for the processor to guess: asks for the patch rows of one early (measured: 7 %
 * of a 64x64 convolution). */
INLINE void CPU(prefetch)(const int T, const CPU(group) *g, int c)
{
    for (int i = 0; i < T + 2 && g->parts <= T; i++)
        for (int v = 0; v < T; v += LANES < 16 ? 16 / LANES : 1)
            if (g->vector[v][i]) __builtin_prefetch(g->vector[v][i] + (size_t)c * g->plane);
}

/* V[f][channel][tile] of LANES tiles from `first` on and channels from ... to - 1: v + f plane + channel width */
INLINE void CPU(input)(const int T, const cpu_pictures *p, size_t first, int from, int to, float *v, size_t plane,
                       size_t width)
{
    const int P = T + 2;
    CPU(group) g = CPU(find_tiles)(T, p, first, P, -1);
    for (int c = from; c < to; c++) {
        VEC out[CPU(MOST)];
        CPU(prefetch)(T, &g, c + 4 < p->channels ? c + 4 : c);
        CPU(transform_x)(T, &g, c, out);
        EACH(f, P * P) CPU(store)(v + (size_t)f * plane + (size_t)c * width, out[f]);
    }
}

/* Row i of the tiles of channel c from q[0 ... T - 1], b added, to where load_row reads it */
INLINE void CPU(store_row)(const int T, const CPU(group) *g, int i, int c, const VEC *q, VEC b, int accumulate)
{
    VEC v[4];
    if (T == 2) {
        v[0] = SHUFFLE(q[0], q[1], ZIP_LOW) + b;
        v[1] = SHUFFLE(q[0], q[1], ZIP_HIGH) + b;
    } else {
        VEC a0 = SHUFFLE(q[0], q[2], ZIP_LOW), a1 = SHUFFLE(q[0], q[2], ZIP_HIGH);
        VEC b0 = SHUFFLE(q[1], q[3], ZIP_LOW), b1 = SHUFFLE(q[1], q[3], ZIP_HIGH);
        v[0] = SHUFFLE(a0, b0, ZIP_LOW) + b;
        v[1] = SHUFFLE(a0, b0, ZIP_HIGH) + b;
        v[2] = SHUFFLE(a1, b1, ZIP_LOW) + b;
        v[3] = SHUFFLE(a1, b1, ZIP_HIGH) + b;
    }
    if (g->parts <= T) {
        EACH(k, T)
        {
            float *row = g->vector[k][i];
            if (!row) continue;
            row += (size_t)c * g->plane;
            CPU(store)(row, accumulate ? CPU(load)(row) + v[k] : v[k]);
        }
        return;
    }
    float buffer[4 * LANES];
    EACH(k, T) CPU(store)(buffer + k * LANES, v[k]);
    for (int s = 0; s < g->parts; s++) {
        if (!g->row[s][i]) continue;
        float *row = g->row[s][i] + (size_t)c * g->plane;
        for (int k = 0; k < g->pixels; k++)
            row[k] = (accumulate ? row[k] : 0) + buffer[g->pixels * s + k];
    }
}

/* y = A^T M A (+ bias) of LANES tiles and outputs from ... to - 1, M of these laid out as V; added to y if accumulate
 * */
INLINE void CPU(output)(const int T, const cpu_pictures *p, size_t first, int from, int to, const float *m,
                        size_t plane, size_t width, const float *bias, int accumulate)
{
    const int P = T + 2;
    CPU(group) g = CPU(find_tiles)(T, p, first, T, 0);
    for (int c = from; c < to; c++) {
        const float *in = m + (size_t)(c - from) * width;
        VEC row[CPU(PATCH)], t[4 * CPU(PATCH)], y[16];
        EACH(i, P)
        {
            EACH(j, P) row[j] = CPU(load)(in + (size_t)(P * i + j) * plane);
            CPU(at)(T, row, t + i, P); /* t[column][row] */
        }
        EACH(j, T) CPU(at)(T, t + P * j, y + j, T);
        VEC b = BROADCAST(bias ? bias[c] : 0.0f);
        if (T == 4 && g.whole) {
            EACH(i, 16) y[i] += b;
            CPU(store_pixels)(&g, c, y, accumulate);
            continue;
        }
        for (int i = 0; i < T; i++)
            CPU(store_row)(T, &g, i, c, y + T * i, b, accumulate);
    }
}

/* D = A Y A^T of LANES tiles and channels from ... to - 1, laid out as V */
INLINE void CPU(gradient)(const int T, const cpu_pictures *p, size_t first, int from, int to, float *d, size_t plane,
                          size_t width)
{
    CPU(group) g = CPU(find_tiles)(T, p, first, T, 0);
    for (int c = from; c < to; c++) {
        VEC out[CPU(MOST)];
        CPU(prefetch)(T, &g, c + 4 < p->channels ? c + 4 : c);
        CPU(transform_dy)(T, &g, c, out);
        EACH(f, (T + 2) * (T + 2)) CPU(store)(d + (size_t)f * plane + (size_t)c * width, out[f]);
    }
}

/* V tiles by channels: B^T X B of LANES tiles and channels c ... c + LANES - 1 to v + f plane + tile width + channel;
 * v points at tile 0 of channel 0, `tile` is the first one's place in it. */
INLINE void CPU(turned)(const int T, const cpu_pictures *p, size_t first, int c, float *v, size_t plane, size_t width,
                        size_t tile)
{
    CPU(group) g = CPU(find_tiles)(T, p, first, T + 2, -1);
    VEC all[LANES][CPU(MOST)];
    for (int k = 0; k < LANES; k++) {
        CPU(prefetch)(T, &g, c + k + 4 < p->channels ? c + k + 4 : c);
        CPU(transform_x)(T, &g, c + k, all[k]);
    }
    v += tile * width + (size_t)c;
    for (int f = 0; f < (T + 2) * (T + 2); f++, v += plane) {
        VEC block[LANES];
        EACH(k, LANES) block[k] = all[k][f];
        CPU(transpose)(block);
        EACH(k, LANES) CPU(store)(v + (size_t)k * width, block[k]);
    }
}

/* v to a panel, its upper half to the next one where panels are half as high */
INLINE void CPU(store_panels)(VEC v, float *panel, size_t next)
{
#if MR < LANES
    typedef float half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
    *(half *)panel = SHUFFLE(v, v, LOWER);
    *(half *)(panel + next) = SHUFFLE(v, v, UPPER);
#else
    (void)next;
    CPU(store)(panel, v);
#endif
}

/* U = G w G^T for outputs o ... o + LANES - 1 and inputs from ... to - 1, in panels: u[f plane + ((o / MR) ci + i) MR +
 * o % MR]. weight of (o, i, tap) at w + o w_out + i w_in + tap w_tap. */
INLINE void CPU(weights)(const int T, int o, int from, int to, int ci, const float *w, size_t w_out, size_t w_in,
                         int w_tap, float *u, size_t plane)
{
    const int P = T + 2;
    u += (size_t)(o / MR) * (size_t)ci * MR + (size_t)(o % MR);
    for (int first = from, count; first < to; first += count) {
        VEC tap[9 * LANES];
        count = to - first < LANES ? to - first : LANES;
        CPU(gather_taps)(w + (size_t)o * w_out, w_out, w_in, w_tap, first, count, to, tap);
        for (int i = 0; i < count; i++) {
            VEC t[3 * CPU(PATCH)], v[CPU(MOST)];
            EACH(j, 3) CPU(g)(T, tap + 9 * i + j, 3, t + j, 3);
            EACH(k, P) CPU(g)(T, t + 3 * k, 1, v + P * k, 1);
            float *panel = u + (size_t)(first + i) * MR;
            EACH(f, P * P) CPU(store_panels)(v[f], panel + (size_t)f * plane, (size_t)ci * MR);
        }
    }
}

/* dw (+)= G^T dU G for one output and inputs i ... i + LANES - 1: dU[f] at du + f plane, dw (inputs,9) */
INLINE void CPU(weight_gradient)(const int T, const float *du, size_t plane, float *dw, int accumulate)
{
    const int P = T + 2;
    VEC row[CPU(PATCH)], t[3 * CPU(PATCH)], g[16];
    float turned[9 * LANES + 16];
    EACH(i, P)
    {
        EACH(j, P) row[j] = CPU(load)(du + (size_t)(P * i + j) * plane);
        CPU(gt)(T, row, t + i, P); /* t[column][row] */
    }
    EACH(j, 3) CPU(gt)(T, t + P * j, g + j, 3);
    EACH(i, 7) g[9 + i] = (VEC){0};
    for (int s = LANES == 16 ? 0 : 8 - LANES; s >= 0; s -= LANES) {
        CPU(transpose)(g + s);
        EACH(k, LANES) CPU(store)(turned + 9 * k + s, g[s + k]); /* a row's end beyond its 9 is the next one's */
    }
    if (LANES < 16) {
        float last[LANES];
        CPU(store)(last, g[8]);
        for (int k = 0; k < LANES; k++)
            turned[9 * k + 8] = last[k];
    }
    EACH(v, 9)
    {
        float *to = dw + v * LANES;
        VEC own = CPU(load)(turned + v * LANES);
        CPU(store)(to, accumulate ? CPU(load)(to) + own : own);
    }
}

#define TRANSFORMS(T)                                                                                                  \
    static void CPU(input_##T)(const cpu_pictures *p, size_t first, int from, int to, float *v, size_t plane,          \
                               size_t width)                                                                           \
    {                                                                                                                  \
        CPU(input)(T, p, first, from, to, v, plane, width);                                                            \
    }                                                                                                                  \
    static void CPU(output_##T)(const cpu_pictures *p, size_t first, int from, int to, const float *m, size_t plane,   \
                                size_t width, const float *bias, int accumulate)                                       \
    {                                                                                                                  \
        CPU(output)(T, p, first, from, to, m, plane, width, bias, accumulate);                                         \
    }                                                                                                                  \
    static void CPU(gradient_##T)(const cpu_pictures *p, size_t first, int from, int to, float *d, size_t plane,       \
                                  size_t width)                                                                        \
    {                                                                                                                  \
        CPU(gradient)(T, p, first, from, to, d, plane, width);                                                         \
    }                                                                                                                  \
    static void CPU(turned_##T)(const cpu_pictures *p, size_t first, int c, float *v, size_t plane, size_t width,      \
                                size_t tile)                                                                           \
    {                                                                                                                  \
        CPU(turned)(T, p, first, c, v, plane, width, tile);                                                            \
    }                                                                                                                  \
    static void CPU(weights_##T)(int o, int from, int to, int ci, const float *w, size_t w_out, size_t w_in,           \
                                 int w_tap, float *u, size_t plane)                                                    \
    {                                                                                                                  \
        CPU(weights)(T, o, from, to, ci, w, w_out, w_in, w_tap, u, plane);                                             \
    }                                                                                                                  \
    static void CPU(weight_gradient_##T)(const float *du, size_t plane, float *dw, int accumulate)                     \
    {                                                                                                                  \
        CPU(weight_gradient)(T, du, plane, dw, accumulate);                                                            \
    }
TRANSFORMS(4)
TRANSFORMS(2)
#define TRANSFORMS_OF(T)                                                                                               \
    {T, (T + 2) * (T + 2), CPU(input_##T), CPU(output_##T), CPU(gradient_##T), CPU(turned_##T), CPU(weights_##T),      \
     CPU(weight_gradient_##T)}

/* ---- 4. Elementwise ---------------------------------------------------------------------------------------------- */

typedef uint32_t CPU(uvec) __attribute__((vector_size(4 * LANES)));

INLINE VEC CPU(choose)(CPU(ivec) yes, VEC a, VEC b)
{
    return (VEC)(((CPU(ivec))a & yes) | ((CPU(ivec))b & ~yes));
}

/* e^x = 2^n e^r, n = x / ln 2 rounded (by adding 1.5 2^23, which leaves n in the low bits), |r| <= ln 2 / 2 from two
 * parts of ln 2; e^r = 1 + r + r^2 p(r), p of degree 5 (Cephes' expf). Relative error below 3 u: p's own 0.2 u, two
 * roundings to sum it. 2^n in two factors, so that results go to denormals and infinity as they should. NaN stays NaN.
 * */
INLINE VEC CPU(exponential)(VEC x)
{
    const VEC most = BROADCAST(104.0f), magic = BROADCAST(12582912.0f);
    x = CPU(choose)(x > most, most, x);
    x = CPU(choose)(x < -most, -most, x);
    VEC shifted = FMA(x, BROADCAST(1.44269504f), magic), n = shifted - magic;
    VEC r = FMA(n, BROADCAST(-0.693359375f), x);
    r = FMA(n, BROADCAST(2.12194440e-4f), r);
    VEC p = FMA(BROADCAST(1.9875691500e-4f), r, BROADCAST(1.3981999507e-3f));
    p = FMA(p, r, BROADCAST(8.3334519073e-3f));
    p = FMA(p, r, BROADCAST(4.1665795894e-2f));
    p = FMA(p, r, BROADCAST(1.6666665459e-1f));
    p = FMA(p, r, BROADCAST(5.0000001201e-1f));
    p = FMA(p, r * r, r) + 1.0f;
    CPU(ivec) whole = (CPU(ivec))shifted - 0x4B400000, half = whole >> 1;
    VEC low = (VEC)((CPU(uvec))(half + 127) << 23), high = (VEC)((CPU(uvec))(whole - half + 127) << 23);
    return p * low * high;
}

INLINE VEC CPU(sigmoid)(VEC x)
{
    return 1.0f / (1.0f + CPU(exponential)(-x));
}

/* d silu(x) / dx = s (1 + x (1 - s)) */
INLINE VEC CPU(silu_slope)(VEC x)
{
    VEC s = CPU(sigmoid)(x);
    return s * FMA(x, 1.0f - s, BROADCAST(1.0f));
}

/* A vector, or what is left of one: zeros behind it; nothing is stored there. */
INLINE VEC CPU(get)(const float *p, size_t left)
{
    float rest[LANES] = {0};
    if (left >= LANES) return CPU(load)(p);
    memcpy(rest, p, left * sizeof *rest);
    return CPU(load)(rest);
}

INLINE void CPU(put)(float *p, size_t left, VEC v)
{
    float rest[LANES];
    if (left >= LANES) {
        CPU(store)(p, v);
        return;
    }
    CPU(store)(rest, v);
    memcpy(p, rest, left * sizeof *rest);
}

static void CPU(silu)(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i += LANES) {
        VEC v = CPU(get)(x + i, count - i);
        CPU(put)(y + i, count - i, v * CPU(sigmoid)(v));
    }
}

/* dx (+)= dy silu'(x) */
static void CPU(silu_backward)(size_t count, const float *x, const float *dy, float *dx, int accumulate)
{
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i;
        VEC d = CPU(get)(dy + i, left) * CPU(silu_slope)(CPU(get)(x + i, left));
        CPU(put)(dx + i, left, accumulate ? CPU(get)(dx + i, left) + d : d);
    }
}

/* y = (a + b) scale; y (+)= a scale */
static void CPU(add)(size_t count, const float *a, const float *b, float scale, float *y)
{
    for (size_t i = 0; i < count; i += LANES)
        CPU(put)(y + i, count - i, SCALED(scale, CPU(get)(a + i, count - i) + CPU(get)(b + i, count - i)));
}

/* y = (a + b) scale, b the same everywhere; y (+)= (a - b) scale */
static void CPU(add_one)(size_t count, const float *a, float b, float scale, float *y)
{
    for (size_t i = 0; i < count; i += LANES)
        CPU(put)(y + i, count - i, SCALED(scale, CPU(get)(a + i, count - i) + b));
}

static void CPU(difference)(size_t count, const float *a, const float *b, float scale, float *y, int accumulate)
{
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i;
        VEC v = SCALED(scale, CPU(get)(a + i, left) - CPU(get)(b + i, left));
        CPU(put)(y + i, left, accumulate ? CPU(get)(y + i, left) + v : v);
    }
}

/* Each pixel twice: y (2 count). Backward: dx (+)= sums of 2x2 pixels of two rows a and b. */
static void CPU(twice)(size_t count, const float *x, float *y)
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        VEC v = CPU(load)(x + i);
        CPU(store)(y + 2 * i, SHUFFLE(v, v, ZIP_LOW));
        CPU(store)(y + 2 * i + LANES, SHUFFLE(v, v, ZIP_HIGH));
    }
    for (; i < count; i++)
        y[2 * i] = y[2 * i + 1] = x[i];
}

static void CPU(twice_backward)(size_t count, const float *a, const float *b, float *dx, int accumulate)
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        VEC low = CPU(load)(a + 2 * i) + CPU(load)(b + 2 * i);
        VEC high = CPU(load)(a + 2 * i + LANES) + CPU(load)(b + 2 * i + LANES);
        VEC v = SHUFFLE(low, high, EVEN) + SHUFFLE(low, high, ODD);
        CPU(store)(dx + i, accumulate ? CPU(load)(dx + i) + v : v);
    }
    for (; i < count; i++) {
        float v = (a[2 * i] + b[2 * i]) + (a[2 * i + 1] + b[2 * i + 1]);
        dx[i] = accumulate ? dx[i] + v : v;
    }
}

static void CPU(add_scaled)(size_t count, const float *a, float scale, float *y, int accumulate)
{
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i;
        VEC v = SCALED(scale, CPU(get)(a + i, left));
        CPU(put)(y + i, left, accumulate ? CPU(get)(y + i, left) + v : v);
    }
}

/* out[0] = sum a; out[1] = sum a (b - shift). Float sums of SUM_BLOCK numbers at most (16 additions a lane on 512 bits,
 * then pairs), which double adds up. */
enum { CPU(SUM_BLOCK) = 64 * LANES };

static void CPU(sums)(size_t count, const float *a, const float *b, float shift, double *out)
{
    out[0] = out[1] = 0;
    for (size_t first = 0; first < count; first += CPU(SUM_BLOCK)) {
        size_t end = count - first < CPU(SUM_BLOCK) ? count : first + CPU(SUM_BLOCK);
        VEC one[4] = {{0}}, two[4] = {{0}};
        for (size_t i = first; i < end; i += LANES) {
            size_t left = end - i, k = i / LANES % 4;
            VEC v = CPU(get)(a + i, left), w = CPU(get)(b + i, left) - shift;
            one[k] += v;
            two[k] = FMA(v, w, two[k]);
        }
        out[0] += (double)CPU(total)((one[0] + one[1]) + (one[2] + one[3]));
        out[1] += (double)CPU(total)((two[0] + two[1]) + (two[2] + two[3]));
    }
}

static double CPU(sum)(size_t count, const float *x)
{
    double total = 0;
    for (size_t first = 0; first < count; first += CPU(SUM_BLOCK)) {
        size_t end = count - first < CPU(SUM_BLOCK) ? count : first + CPU(SUM_BLOCK);
        VEC one[4] = {{0}};
        for (size_t i = first; i < end; i += LANES)
            one[i / LANES % 4] += CPU(get)(x + i, end - i);
        total += (double)CPU(total)((one[0] + one[1]) + (one[2] + one[3]));
    }
    return total;
}

/* sum (x - mean)^2 */
static double CPU(squares)(size_t count, const float *x, float mean)
{
    double total = 0;
    for (size_t first = 0; first < count; first += CPU(SUM_BLOCK)) {
        size_t end = count - first < CPU(SUM_BLOCK) ? count : first + CPU(SUM_BLOCK);
        VEC one[4] = {{0}};
        for (size_t i = first; i < end; i += LANES) {
            VEC v = (end - i < LANES ? CPU(get)(x + i, end - i) : CPU(load)(x + i)) - mean;
            size_t k = i / LANES % 4;
            if (end - i < LANES) { /* the zeros behind the end are no data */
                for (size_t lane = end - i; lane < LANES; lane++)
                    v[lane] = 0;
            }
            one[k] = FMA(v, v, one[k]);
        }
        total += (double)CPU(total)((one[0] + one[1]) + (one[2] + one[3]));
    }
    return total;
}

/* sum (a - b)^2 */
static double CPU(square_errors)(size_t count, const float *a, const float *b)
{
    double total = 0;
    for (size_t first = 0; first < count; first += CPU(SUM_BLOCK)) {
        size_t end = count - first < CPU(SUM_BLOCK) ? count : first + CPU(SUM_BLOCK);
        VEC one[4] = {{0}};
        for (size_t i = first; i < end; i += LANES) {
            VEC v = CPU(get)(a + i, end - i) - CPU(get)(b + i, end - i);
            one[i / LANES % 4] = FMA(v, v, one[i / LANES % 4]);
        }
        total += (double)CPU(total)((one[0] + one[1]) + (one[2] + one[3]));
    }
    return total;
}

/* y = (x - mean) scale + shift, then silu of it if asked for */
static void CPU(normalise)(size_t count, const float *x, float mean, float scale, float shift, int silu, float *y)
{
    for (size_t i = 0; i < count; i += LANES) {
        VEC v = FMA(CPU(get)(x + i, count - i) - mean, BROADCAST(scale), BROADCAST(shift));
        CPU(put)(y + i, count - i, silu ? v * CPU(sigmoid)(v) : v);
    }
}

/* dy <- dy silu'(y), y = (x - mean) scale + shift as above */
static void CPU(normalise_silu_backward)(size_t count, const float *x, float mean, float scale, float shift, float *dy)
{
    for (size_t i = 0; i < count; i += LANES) {
        VEC y = FMA(CPU(get)(x + i, count - i) - mean, BROADCAST(scale), BROADCAST(shift));
        CPU(put)(dy + i, count - i, CPU(get)(dy + i, count - i) * CPU(silu_slope)(y));
    }
}

/* dx (+)= a dy + b (x - mean) + c */
static void CPU(normalise_backward)(size_t count, const float *x, float mean, const float *dy, float a, float b,
                                    float c, float *dx, int accumulate)
{
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i;
        VEC d = PLUS(PLUS(BROADCAST(c), b, CPU(get)(x + i, left) - mean), a, CPU(get)(dy + i, left));
        CPU(put)(dx + i, left, accumulate ? CPU(get)(dx + i, left) + d : d);
    }
}

/* Adam, and the moving average, in one pass (formulas: ddpm_impl.c) */
static void CPU(adam)(const ddpm_adam *s, size_t count, float *w, const float *grad, float *m, float *v, float *ema)
{
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i;
        VEC g = SCALED(s->clip, CPU(get)(grad + i, left)), m1 = CPU(get)(m + i, left), w1 = CPU(get)(w + i, left);
        m1 = PLUS(m1, s->one_b1, g - m1);
        VEC v1 = PLUS(SCALED(s->b2, CPU(get)(v + i, left)), s->one_b2, g * g);
        w1 = SCALED(s->keep, w1) - SCALED(s->rate, m1) / (ROOT(v1) / s->root + s->eps);
        CPU(put)(m + i, left, m1);
        CPU(put)(v + i, left, v1);
        CPU(put)(w + i, left, w1);
        if (!ema) continue;
        VEC e = CPU(get)(ema + i, left);
        CPU(put)(ema + i, left, PLUS(e, -s->ema, e - w1));
    }
}

/* ---- 5. Attention ---------------------------------------------------------------------------------------------------
 * Formulas: ddpm_impl.c. Lanes are LANES queries (forward, dq) or keys (dk, dv), so that nothing is summed across
 * lanes: with q' = q log2 e / sqrt d one vector s_j = sum_c q'_c k_c[j] holds the scores of all of them with token j,
 * p_j = 2^(s_j - l). Tokens j come in steps of AHEAD, sums independent of each other. */

enum { CPU(AHEAD) = LANES == 16 ? 8 : 4, CPU(TOKENS) = 64 }; /* TOKENS: between two looks at the largest score */

/* 2^x for x <= 0 or little above: 2^n 2^f, n = x rounded (by adding 1.5 2^23 + 127, which leaves n + 127 in the low
 * bits), |f| <= 1/2 exact; 2^f by a minimax polynomial of degree 6 with a relative error of 0.3 u, two roundings to
 * sum it: below 2 u. Below -126 it stays 2^-126. NaN stays NaN. */
INLINE VEC CPU(power)(VEC x)
{
    const VEC magic = BROADCAST(12583039.0f);
    x = MAXIMUM(BROADCAST(-126.0f), x);
    VEC shifted = x + magic, f = x - (shifted - magic);
    VEC p = FMA(BROADCAST(0.000153458124f), f, BROADCAST(0.00133999309f));
    p = FMA(p, f, BROADCAST(0.00961848907f));
    p = FMA(p, f, BROADCAST(0.0555032864f));
    p = FMA(p, f, BROADCAST(0.240226462f));
    p = FMA(p, f, BROADCAST(0.693147182f));
    p = FMA(p, f, BROADCAST(1.0f));
    return p * (VEC)((CPU(uvec))shifted << 23);
}

/* out[c] = factor x[c], d vectors of tokens first ...; zeros beyond the last */
INLINE void CPU(gather)(const cpu_head *h, const float *x, size_t first, float factor, float *out)
{
    for (int c = 0; c < h->d; c++)
        CPU(store)(out + c * LANES, SCALED(factor, CPU(get)(x + (size_t)c * h->tokens + first, h->tokens - first)));
}

/* x[c] (+)= factor out[c] */
INLINE void CPU(scatter)(const cpu_head *h, float *x, size_t first, VEC factor, const float *out, int accumulate)
{
    for (int c = 0; c < h->d; c++) {
        float *to = x + (size_t)c * h->tokens + first;
        VEC v = CPU(load)(out + c * LANES) * factor;
        CPU(put)(to, h->tokens - first, accumulate ? CPU(get)(to, h->tokens - first) + v : v);
    }
}

/* s[b] = sum_c a_c x_c[j + b], b < ahead: a of the lanes, x of tokens j ... */
INLINE void CPU(meet)(const cpu_head *h, const int ahead, const float *a, const float *x, size_t j, VEC *s)
{
    EACH(b, ahead) s[b] = (VEC){0};
    for (int c = 0; c < h->d; c++) {
        const float *from = x + (size_t)c * h->tokens + j;
        VEC lanes = CPU(load)(a + c * LANES);
        EACH(b, ahead) s[b] = FMA(lanes, BROADCAST(from[b]), s[b]);
    }
}

/* sum_c += sum_b p[b] x_c[j + b] */
INLINE void CPU(gain)(const cpu_head *h, const int ahead, const VEC *p, const float *x, size_t j, float *sum)
{
    for (int c = 0; c < h->d; c++) {
        const float *from = x + (size_t)c * h->tokens + j;
        VEC v = CPU(load)(sum + c * LANES);
        EACH(b, ahead) v = FMA(p[b], BROADCAST(from[b]), v);
        CPU(store)(sum + c * LANES, v);
    }
}

INLINE VEC CPU(scores)(const cpu_head *h, const int ahead, const float *q, size_t j, float *out, VEC largest)
{
    VEC s[CPU(AHEAD)];
    CPU(meet)(h, ahead, q, h->k, j, s);
    EACH(b, ahead)
    {
        CPU(store)(out + b * LANES, s[b]);
        largest = MAXIMUM(largest, s[b]);
    }
    return largest;
}

INLINE VEC CPU(take_values)(const cpu_head *h, const int ahead, const float *s, VEC largest, size_t j, float *y)
{
    VEC p[CPU(AHEAD)], total = {0};
    EACH(b, ahead)
    {
        p[b] = CPU(power)(CPU(load)(s + b * LANES) - largest);
        total += p[b];
    }
    CPU(gain)(h, ahead, p, h->v, j, y);
    return total;
}

/* y and l of queries first ..., a block of TOKENS keys after the other: what was summed with a smaller largest score is
 * scaled down (Milakov & Gimelshein 2018). work: 2 d vectors. */
static void CPU(attend)(const cpu_head *h, size_t first, float *work)
{
    enum { AHEAD = CPU(AHEAD), TOKENS = CPU(TOKENS) };
    float s[TOKENS * LANES] __attribute__((aligned(64))), *q = work, *y = q + h->d * LANES;
    VEC largest = BROADCAST(-3e38f), total = {0};
    CPU(gather)(h, h->q, first, h->scale * 1.44269504f, q);
    memset(y, 0, (size_t)h->d * LANES * sizeof *y);
    for (size_t j = 0; j < h->tokens; j += TOKENS) {
        size_t count = h->tokens - j < TOKENS ? h->tokens - j : TOKENS, i = 0;
        VEC before = largest, block = {0};
        for (; i + AHEAD <= count; i += AHEAD)
            largest = CPU(scores)(h, AHEAD, q, j + i, s + i * LANES, largest);
        for (; i < count; i++)
            largest = CPU(scores)(h, 1, q, j + i, s + i * LANES, largest);
        VEC less = CPU(power)(before - largest);
        for (int c = 0; c < h->d && j > 0; c++)
            CPU(store)(y + c * LANES, CPU(load)(y + c * LANES) * less);
        for (i = 0; i + AHEAD <= count; i += AHEAD)
            block += CPU(take_values)(h, AHEAD, s + i * LANES, largest, j + i, y);
        for (; i < count; i++)
            block += CPU(take_values)(h, 1, s + i * LANES, largest, j + i, y);
        total = total * less + block;
    }
    CPU(scatter)(h, h->y, first, 1.0f / total, y, 0);
    CPU(put)(h->largest + first, h->tokens - first, largest);
    CPU(put)(h->total + first, h->tokens - first, total);
}

/* p and dp of queries first ... with tokens j ..., to rows of work; returns the lanes' sums of p dp */
INLINE VEC CPU(query_step)(const cpu_head *h, const int ahead, const float *q, const float *dy, VEC largest, VEC share,
                           size_t j, float *p_row, float *dp_row)
{
    VEC s[CPU(AHEAD)], dp[CPU(AHEAD)], mean = {0};
    CPU(meet)(h, ahead, q, h->k, j, s);
    CPU(meet)(h, ahead, dy, h->v, j, dp);
    EACH(b, ahead)
    {
        VEC p = CPU(power)(s[b] - largest) * share;
        mean = FMA(p, dp[b], mean);
        CPU(store)(p_row + (j + (size_t)b) * LANES, p);
        CPU(store)(dp_row + (j + (size_t)b) * LANES, dp[b]);
    }
    return mean;
}

INLINE void CPU(query_gain)(const cpu_head *h, const int ahead, VEC mean, size_t j, const float *p_row,
                            const float *dp_row, float *dq)
{
    VEC ds[CPU(AHEAD)];
    EACH(b, ahead)
    {
        size_t at = (j + (size_t)b) * LANES;
        ds[b] = CPU(load)(p_row + at) * (CPU(load)(dp_row + at) - mean);
    }
    CPU(gain)(h, ahead, ds, h->k, j, dq);
}

/* dq of queries first ..., and the mean of dp that their keys will ask for. work: 3 d + 2 tokens vectors. */
static void CPU(attend_queries)(const cpu_head *h, size_t first, float *work)
{
    enum { AHEAD = CPU(AHEAD) };
    size_t wide = (size_t)h->d * LANES, left = h->tokens - first, j = 0;
    float *q = work, *dy = q + wide, *dq = dy + wide, *p_row = dq + wide, *dp_row = p_row + h->tokens * LANES;
    VEC largest = CPU(get)(h->largest + first, left), total = CPU(get)(h->total + first, left), mean = {0};
    VEC share = 1.0f / MAXIMUM(total, BROADCAST(1.0f)); /* one score is the largest; lanes beyond the end have 0 */
    CPU(gather)(h, h->q, first, h->scale * 1.44269504f, q);
    CPU(gather)(h, h->dy, first, 1, dy);
    memset(dq, 0, wide * sizeof *dq);
    for (; j + AHEAD <= h->tokens; j += AHEAD)
        mean += CPU(query_step)(h, AHEAD, q, dy, largest, share, j, p_row, dp_row);
    for (; j < h->tokens; j++)
        mean += CPU(query_step)(h, 1, q, dy, largest, share, j, p_row, dp_row);
    CPU(put)(h->mean + first, left, mean);
    if (!h->dq) return;
    for (j = 0; j + AHEAD <= h->tokens; j += AHEAD)
        CPU(query_gain)(h, AHEAD, mean, j, p_row, dp_row, dq);
    for (; j < h->tokens; j++)
        CPU(query_gain)(h, 1, mean, j, p_row, dp_row, dq);
    CPU(scatter)(h, h->dq, first, BROADCAST(h->scale), dq, h->add_q);
}

INLINE void CPU(key_step)(const cpu_head *h, const int ahead, const float *k, const float *v, size_t i, float *dk,
                          float *dv)
{
    VEC p[CPU(AHEAD)], ds[CPU(AHEAD)];
    CPU(meet)(h, ahead, k, h->q, i, p);
    CPU(meet)(h, ahead, v, h->dy, i, ds);
    EACH(b, ahead)
    {
        size_t at = i + (size_t)b;
        p[b] = SCALED(1.0f / h->total[at], CPU(power)(p[b] - h->largest[at]));
        ds[b] = p[b] * (ds[b] - h->mean[at]);
    }
    CPU(gain)(h, ahead, p, h->dy, i, dv);
    CPU(gain)(h, ahead, ds, h->q, i, dk);
}

/* dk and dv of keys first .... work: 4 d vectors. */
static void CPU(attend_keys)(const cpu_head *h, size_t first, float *work)
{
    enum { AHEAD = CPU(AHEAD) };
    size_t wide = (size_t)h->d * LANES, i = 0;
    float *k = work, *v = k + wide, *dk = v + wide, *dv = dk + wide;
    CPU(gather)(h, h->k, first, h->scale * 1.44269504f, k);
    CPU(gather)(h, h->v, first, 1, v);
    memset(dk, 0, 2 * wide * sizeof *dk);
    for (; i + AHEAD <= h->tokens; i += AHEAD)
        CPU(key_step)(h, AHEAD, k, v, i, dk, dv);
    for (; i < h->tokens; i++)
        CPU(key_step)(h, 1, k, v, i, dk, dv);
    if (h->dk) CPU(scatter)(h, h->dk, first, BROADCAST(h->scale), dk, h->add_k);
    if (h->dv) CPU(scatter)(h, h->dv, first, BROADCAST(1.0f), dv, h->add_v);
}

/* ---- 6. The table ------------------------------------------------------------------------------------------------ */

static const cpu_kernels CPU(kernels) = {
    .isa = ISA_NAME, .lanes = LANES, .rows = MR,
    .pack = CPU(pack), .turn = CPU(turn), .product = CPU(product), .taps = CPU(taps), .dot = CPU(dot), .sum = CPU(sum),
    .one_picture = CPU(one_picture),
    .winograd = {[TILE_4] = TRANSFORMS_OF(4), [TILE_2] = TRANSFORMS_OF(2)},
    .silu = CPU(silu), .silu_backward = CPU(silu_backward), .add = CPU(add), .add_one = CPU(add_one),
    .add_scaled = CPU(add_scaled), .difference = CPU(difference), .square_errors = CPU(square_errors),
    .twice = CPU(twice), .twice_backward = CPU(twice_backward),
    .sums = CPU(sums), .squares = CPU(squares), .normalise = CPU(normalise),
    .normalise_silu_backward = CPU(normalise_silu_backward), .normalise_backward = CPU(normalise_backward),
    .adam = CPU(adam), .attend = CPU(attend), .attend_queries = CPU(attend_queries), .attend_keys = CPU(attend_keys),
};

#undef VEC
#undef TRANSFORMS
#undef TRANSFORMS_OF
#undef POINT_A
#undef POINT_B
#undef SCALED
#undef PLUS
#undef SHUFFLE
#undef EVEN
#undef ODD
#undef ZIP_LOW
#undef ZIP_HIGH
#undef NEXT
#undef BEFORE
#undef LOWER
#undef UPPER
