/* cpu_kernels.h - the inner loops of cpu_backend.c, which includes this file once for each instruction set.
 * Single-threaded, on plain float arrays; they know nothing of graphs. Before each include cpu_backend.c defines
 *     CPU(name)      the name of a function or type in this instruction set
 *     LANES          floats in a vector            MR, NV   the register tile: MR rows by NV vectors
 *     FMA(a, b, c)   a * b + c, rounded once where the processor can
 *     BROADCAST(x)   a vector of x
 *     ISA_NAME       "avx512"           KEEP(v)    keeps v in a register of its own here
 *
 * Contents: 1 vectors   2 matrix products   3 Winograd transforms   4 elementwise   5 the table */

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
#define BEFORE 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define NEXT 1, 2, 3, 4, 5, 6, 7, 8
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

/* LANES x LANES in place: each round of zips (v[i], v[i + LANES/2]) moves one bit of the row number into the column's. */
INLINE void CPU(transpose)(VEC *v)
{
    for (int round = 1; round < LANES; round *= 2) {
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
 * C (+)= A B. A is packed in panels of MR rows, [row / MR][k][MR], so that the tile reads it from end to end; B has rows
 * of ldb floats. One tile of C stays in registers for all of its k: MR broadcasts and NV loads feed MR NV
 * multiply-adds. Every element of C is summed over k in ascending order, in blocks of KC, wherever it lies. */

enum { CPU(NR) = NV * LANES, CPU(KC) = 256 };

INLINE void CPU(tile)(const int nv, int k, const float *a, const float *b, size_t ldb, float *c, size_t ldc, int rows,
                      int columns, int accumulate)
{
    VEC sum[MR][NV];
    EACH(m, MR) EACH(v, nv) sum[m][v] = (VEC){0};
    for (int i = 0; i < k; i++) {
        VEC x[NV];
        EACH(v, nv) x[v] = CPU(load)(b + v * LANES);
        EACH(m, MR)
        {
            VEC w = BROADCAST(a[m]);
            KEEP(w);
            EACH(v, nv) sum[m][v] = FMA(w, x[v], sum[m][v]);
        }
        a += MR;
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
static void CPU(strip)(const cpu_product *p, int k, const float *a, const float *b, size_t ldb, float *c, int columns,
                       int accumulate)
{
    int vectors = (columns + LANES - 1) / LANES;
    for (int m = 0; m < p->m; m += MR) {
        const float *panel = a + (size_t)m * (size_t)p->k;
        float *to = c + (size_t)m * p->ldc;
        int rows = p->m - m < MR ? p->m - m : MR;
        if (vectors == 1)
            CPU(tile)(1, k, panel, b, ldb, to, p->ldc, rows, columns, accumulate);
        else if (vectors == 2)
            CPU(tile)(2, k, panel, b, ldb, to, p->ldc, rows, columns, accumulate);
        else
            CPU(tile)(NV, k, panel, b, ldb, to, p->ldc, rows, columns, accumulate);
    }
}

static void CPU(product)(const cpu_product *p)
{
    float copy[CPU(KC) * CPU(NR)] __attribute__((aligned(64)));
    for (int n = 0; n < p->n; n += CPU(NR)) {
        int columns = p->n - n < CPU(NR) ? p->n - n : CPU(NR);
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
            CPU(strip)(p, depth, p->a + (size_t)k * MR, b, ldb, p->c + n, columns, p->accumulate || k);
        }
    }
}

/* Rows first ... first + MR - 1 of A, A[i][k] = from[i row + k column], as a panel; rows beyond `rows` are zeros. */
static void CPU(pack)(int rows, int k, const float *from, size_t row, size_t column, float *panel)
{
    if (rows < MR) memset(panel, 0, (size_t)k * MR * sizeof *panel);
    for (int i = 0; i < k; i++)
        for (int m = 0; m < (rows < MR ? rows : MR); m++)
            panel[(size_t)i * MR + (size_t)m] = from[(size_t)m * row + (size_t)i * column];
}

/* C[i][j] = sum_k a[i lda + k] b[j ldb + k]: both rows as they lie in memory, for so few columns that packing A would cost
 * more than the product. LANES partial sums, added in pairs at the end. */
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

/* sum of x, in LANES partial sums of at most 4096 numbers each at a time */
static double CPU(sum)(const float *x, size_t count)
{
    double total = 0;
    while (count) {
        size_t part = count < 4096 ? count : 4096, i = 0;
        VEC sum = {0};
        for (; i + LANES <= part; i += LANES)
            sum += CPU(load)(x + i);
        total += (double)CPU(total)(sum);
        for (; i < part; i++)
            total += (double)x[i];
        x += part;
        count -= part;
    }
    return total;
}

/* ---- 5. The table ------------------------------------------------------------------------------------------------ */

static const cpu_kernels CPU(kernels) = {
    .isa = ISA_NAME, .lanes = LANES, .rows = MR, .pack = CPU(pack), .product = CPU(product), .dot = CPU(dot), .sum = CPU(sum),
};

#undef VEC
#undef EVEN
#undef ODD
#undef ZIP_LOW
#undef ZIP_HIGH
#undef NEXT
#undef BEFORE
