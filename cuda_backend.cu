/* cuda_backend.cu - the operation table again, on an NVIDIA GPU. What a row computes stands in ddpm_impl.c; here is how.
 *
 * Tensors lie in device memory with pixels outside and channels inside: (N,H,W,C) where the core says (N,C,H,W), and
 * (out,ky,kx,in) where a weight is (out,in,ky,kx). Four channels of a pixel are one 128-bit access, a convolution is a
 * product of matrices whose rows are pixels, and attention has its tokens. Only upload and download know the other form.
 *
 * Sums have one fixed order: inside a thread, then a warp, a block, then blocks in order in a second kernel. No float
 * atomics. The file is compiled without contraction (--fmad=false); fused multiply-adds are written as fmaf.
 *
 * tests/cuda_on_cpu.h runs these kernels without a GPU. It holds the file to: LAUNCH for <<<>>>; one dynamic array of
 * shared memory, at most 48 KiB; full-mask warp operations; no inline PTX.
 *
 * The host runs ahead: rows and the update only ask, small copies go through pinned memory, a batch travels on a stream
 * of its own, and a step that has been seen once is recorded as a CUDA graph and from then on repeated.
 *
 * Contents: 1 the device   2 memory, mail   3 two forms   4 batches   5 steps that are repeated   6 sums
 *           7 elementwise rows   8 convolution   9 norms   10 attention   11 rows that move or pick
 *           12 embeddings, losses   13 noise, combinations   14 update   15 the backend */
#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <mma.h>
#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif
#include "cuda_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Kernels lay structs of their own over this. */
extern __shared__ float4 cuda_shared[];

/* ---- 1. The device ----------------------------------------------------------------------------------------------- */

typedef enum precision { FP32, TF32, BF16 } precision;
static const char *const precision_names[] = {"fp32", "tf32", "bf16"};

typedef struct trouble { /* what a kernel found wrong with its data; the first one stays */
    int code;            /* 0: nothing; else ddpm_result */
    int node, picture;
} trouble;

typedef struct outcome { /* of an update, decided on the device */
    double grad_norm;
    ddpm_adam adam;
    int finite;
} outcome;

typedef struct report { /* what the host is told when it waits */
    trouble found;
    outcome update;
} report;

typedef struct letter { /* a small copy to the host: in the mail, and where it goes */
    const char *from;
    void *to;
    size_t bytes;
} letter;

typedef struct recording { /* of what a graph's device is asked for under a key */
    const ddpm_graph *g;
    char key[96];
    cudaGraphExec_t exec; /* NULL: it has run once, and not been recorded yet */
    struct recording *next;
} recording;

typedef struct request { /* to the device: a row, or a recorded step; both NULL: nothing */
    const ddpm_node *node;
    const recording *step;
    uint64_t picture; /* the first in the step */
} request;

constexpr size_t MAIL = (size_t)4 << 20;
constexpr int MOST_LETTERS = 64, MOST_RECORDINGS = 16;

typedef struct cuda_state {
    precision how;
    char isa[160];                 /* "tf32 on NVIDIA ..." */
    cudaStream_t stream, arrivals; /* what computes; what brings batches */
    float *stage;                  /* of a tensor in the host's form */
    size_t stage_bytes;
    char *mail; /* pinned, MAIL bytes: small copies go through it, and it is empty again after a wait */
    size_t mail_used;
    letter letter_of[MOST_LETTERS];
    int letters;
    report *news, *told; /* on the device; the host's copy, pinned */
    ddpm_step *step;     /* on the device: what rows read of ddpm_graph.step, */
    ddpm_step sent;      /* and what it holds */
    double *squares;     /* on the device: partial sums of the norm */
    size_t square_room;
    recording *recorded; /* the one used last first */
    int is_recording;
    int step_by_step; /* nothing is recorded: CUDA_LAUNCH_BLOCKING is set, and then an error names its operation */
    const ddpm_graph *last;   /* that was run: whose node the news are of */
    unsigned long asked;      /* since the host last waited: rows and recorded steps, */
    request earliest, newest; /* and the first and the last of them */
} cuda_state;

static cuda_state *state_of(const ddpm_graph *g)
{
    return (cuda_state *)g->device->state;
}

#define HINT                                                                                                           \
    "\n      hint: with CUDA_LAUNCH_BLOCKING=1 in the environment each operation is waited for, and the error names "  \
    "the one; ddpm selftest --backend cuda tries them one by one"

/* x NULL: it is of no tensor. */
static ddpm_result cuda_failed(cudaError_t error, const char *what, const ddpm_tensor *x)
{
    char of[200] = "";
    if (x)
        snprintf(of, sizeof of, " of '%.120s' (%d,%d,%d,%d)", x->name, x->shape[0], x->shape[1], x->shape[2],
                 x->shape[3]);
    return ddpm_fail(DDPM_ERR_BACKEND, "cuda: %s%s: %s (%s)" HINT, what, of, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

#define CUDA_OF(call, what, x)                                                                                         \
    do {                                                                                                               \
        cudaError_t cuda_error = (call);                                                                               \
        if (cuda_error != cudaSuccess) return cuda_failed(cuda_error, what, x);                                        \
    } while (0)
#define CUDA(call, what) CUDA_OF(call, what, NULL)
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        ddpm_result try_result = (call);                                                                               \
        if (try_result != DDPM_OK) return try_result;                                                                  \
    } while (0)

static void ask(cuda_state *s, request r)
{
    if (!s->asked++) s->earliest = r;
    s->newest = r;
}

static void describe(const request *r, char *text, size_t size)
{
    const ddpm_node *node = r->node;
    if (node) {
        const int *x = node->in[0]->shape, *y = node->out->shape;
        snprintf(text, size, "node %d, '%.120s' (%s), (%d,%d,%d,%d) -> (%d,%d,%d,%d)", node->id, node->name,
                 ddpm_op_name(node->op), x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]);
    } else if (r->step) {
        snprintf(text, size, "the recorded step '%s', pictures from %llu on", r->step->key,
                 (unsigned long long)r->picture);
    } else {
        snprintf(text, size, "the device");
    }
}

static void forget_requests(cuda_state *s)
{
    s->asked = 0;
    s->earliest = s->newest = request();
}

/* The device goes on while the host does, so that an error may be of one of the `others`, asked for before r and since
 * the host last waited. */
static ddpm_result request_failed(const cuda_state *s, request r, unsigned long others, cudaError_t error,
                                  const char *when)
{
    char what[300], earliest[300], before[360] = "";
    describe(&r, what, sizeof what);
    describe(&s->earliest, earliest, sizeof earliest);
    if (others) snprintf(before, sizeof before, ", or one of the %lu before it, from %s on", others, earliest);
    return ddpm_fail(DDPM_ERR_BACKEND, "cuda: %s%s%s: %s (%s)" HINT, when, what, before, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

/* What a row returns after its launches. */
static ddpm_result launched(const ddpm_graph *g, const ddpm_node *node)
{
    cuda_state *s = state_of(g);
    const request row = {node, NULL, 0};
    s->last = g;
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return request_failed(s, row, s->asked, error, "");
    if (!s->step_by_step && !s->is_recording) ask(s, row);
    return DDPM_OK;
}

constexpr int THREADS = 256, WARP = 32;
constexpr size_t MOST_BLOCKS = 8192;
static const unsigned EVERYONE = 0xFFFFFFFFu;

static size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static unsigned blocks_for(size_t items)
{
    size_t blocks = ceil_div(items ? items : 1, THREADS);
    return (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

static __device__ __forceinline__ size_t first_item()
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}
static __device__ __forceinline__ size_t item_step()
{
    return (size_t)gridDim.x * blockDim.x;
}

/* ---- 2. Memory --------------------------------------------------------------------------------------------------- */

static ddpm_result cuda_zero(void *state, void *memory, size_t bytes)
{
    if (bytes) CUDA(cudaMemsetAsync(memory, 0, bytes, ((cuda_state *)state)->stream), "cudaMemset");
    return DDPM_OK;
}

static ddpm_result cuda_alloc(void *state, size_t bytes, void **out)
{
    *out = NULL;
    size_t free_bytes = 0, total = 0;
    cudaError_t error = cudaMalloc(out, bytes ? bytes : 1);
    if (error == cudaSuccess) return cuda_zero(state, *out, bytes);
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total);
    return ddpm_fail(DDPM_ERR_MEMORY,
                     "out of device memory: %.1f MiB refused, %.1f of %.1f MiB are free\n"
                     "      hint: a smaller batch, picture or model needs less",
                     (double)bytes / 1048576, (double)free_bytes / 1048576, (double)total / 1048576);
}

static void cuda_free(void *state, void *memory)
{
    (void)state;
    (void)cudaFree(memory);
}

/* Room for `bytes` at *memory, which has *room: kept from call to call, so that a step allocates nothing. */
static ddpm_result grow(cuda_state *s, void **memory, size_t *room, size_t bytes)
{
    if (*room >= bytes) return DDPM_OK;
    (void)cudaFree(*memory);
    *memory = NULL, *room = 0;
    TRY(cuda_alloc(s, bytes, memory));
    *room = bytes;
    return DDPM_OK;
}

/* What kernels found in their data is told when the host next waits: rows themselves do not wait for the device. */
static ddpm_result tell_trouble(cuda_state *s)
{
    trouble t = s->told->found;
    if (!t.code) return DDPM_OK;
    memset(&s->told->found, 0, sizeof t);
    TRY(cuda_zero(s, &s->news->found, sizeof t));
    const char *name = s->last && t.node < s->last->nodes ? s->last->node[t.node]->name : "";
    return ddpm_fail(
        (ddpm_result)t.code,
        "node %d, '%s': picture %d has a value outside the operation's range (an index, or a probability)\n"
        "      hint: class labels count from 0; --backend reference names the value",
        t.node, name, t.picture);
}

static ddpm_result cuda_sync(void *state)
{
    cuda_state *s = (cuda_state *)state;
    int letters = s->letters;
    s->letters = 0, s->mail_used = 0;
    cudaError_t error = cudaStreamSynchronize(s->stream);
    if (error != cudaSuccess)
        return request_failed(s, s->newest, s->asked ? s->asked - 1 : 0, error, "while waiting for ");
    forget_requests(s);
    for (int i = 0; i < letters; i++)
        memcpy(s->letter_of[i].to, s->letter_of[i].from, s->letter_of[i].bytes);
    return tell_trouble(s);
}

/* Room in the mail; NULL where so much does not go through it. */
static ddpm_result mail_room(cuda_state *s, size_t bytes, char **room)
{
    *room = NULL;
    if (bytes > MAIL) return DDPM_OK;
    if (s->mail_used + bytes > MAIL) TRY(cuda_sync(s));
    *room = s->mail + s->mail_used;
    s->mail_used += (bytes + 63) / 64 * 64;
    return DDPM_OK;
}

static ddpm_result send(cuda_state *s, void *to, const void *host, size_t bytes, const ddpm_tensor *of)
{
    char *room;
    TRY(mail_room(s, bytes, &room));
    if (room) memcpy(room, host, bytes);
    CUDA_OF(cudaMemcpyAsync(to, room ? room : host, bytes, cudaMemcpyHostToDevice, s->stream), "upload", of);
    return DDPM_OK;
}

/* At `host` after the next wait. */
static ddpm_result receive(cuda_state *s, void *host, const void *from, size_t bytes, const ddpm_tensor *of)
{
    char *room;
    if (s->letters == MOST_LETTERS) TRY(cuda_sync(s));
    TRY(mail_room(s, bytes, &room));
    CUDA_OF(cudaMemcpyAsync(room ? room : host, from, bytes, cudaMemcpyDeviceToHost, s->stream), "download", of);
    if (room) s->letter_of[s->letters++] = {room, host, bytes};
    return DDPM_OK;
}

static ddpm_result receive_news(cuda_state *s)
{
    CUDA(cudaMemcpyAsync(s->told, s->news, sizeof *s->told, cudaMemcpyDeviceToHost, s->stream), "download");
    return DDPM_OK;
}

/* ---- 3. Two forms ------------------------------------------------------------------------------------------------ */

static size_t pixels(const ddpm_tensor *x)
{
    return (size_t)x->shape[2] * (size_t)x->shape[3];
}
static int channels(const ddpm_tensor *x)
{
    return x->shape[1];
}

/* (planes of) rows x columns -> columns x rows: NCHW to NHWC with rows = channels, and back with rows = pixels. */
static __global__ void transpose(size_t count, unsigned rows, unsigned columns, const float *from, float *to)
{
    for (size_t i = first_item(); i < count; i += item_step()) {
        size_t plane = i / ((size_t)rows * columns), at = i % ((size_t)rows * columns);
        to[i] = from[plane * rows * columns + at % rows * columns + at / rows];
    }
}

static ddpm_result cuda_upload(void *state, ddpm_tensor *x, int which, int n, const float *host)
{
    cuda_state *s = (cuda_state *)state;
    float *to = which == DDPM_DATA ? x->data : x->grad;
    size_t count = ddpm_elements(x, n);
    int turned = pixels(x) > 1 && channels(x) > 1;
    if (turned) TRY(grow(s, (void **)&s->stage, &s->stage_bytes, count * sizeof *host));
    TRY(send(s, turned ? s->stage : to, host, count * sizeof *host, x));
    if (turned)
        LAUNCH(transpose, blocks_for(count), THREADS, 0, s->stream, count, (unsigned)channels(x), (unsigned)pixels(x),
               s->stage, to);
    CUDA_OF(cudaGetLastError(), "upload", x);
    return DDPM_OK;
}

static ddpm_result cuda_fetch(void *state, const ddpm_tensor *x, int n, float *host)
{
    return receive((cuda_state *)state, host, x->data, ddpm_elements(x, n) * sizeof *host, x);
}

static ddpm_result cuda_download(void *state, const ddpm_tensor *x, int which, int n, float *host)
{
    cuda_state *s = (cuda_state *)state;
    const float *from = which == DDPM_DATA ? x->data : x->grad;
    size_t count = ddpm_elements(x, n);
    int turned = pixels(x) > 1 && channels(x) > 1;
    if (turned) {
        TRY(grow(s, (void **)&s->stage, &s->stage_bytes, count * sizeof *host));
        LAUNCH(transpose, blocks_for(count), THREADS, 0, s->stream, count, (unsigned)pixels(x), (unsigned)channels(x),
               from, s->stage);
        CUDA_OF(cudaGetLastError(), "download", x);
    }
    TRY(receive_news(s));
    TRY(receive(s, host, turned ? s->stage : from, count * sizeof *host, x));
    return cuda_sync(s);
}

static __device__ __forceinline__ float4 load4(const float *p)
{
    return *reinterpret_cast<const float4 *>(p);
}
static __device__ __forceinline__ void store4(float *p, float4 v)
{
    *reinterpret_cast<float4 *>(p) = v;
}
/* V channels, V = 1 or 4, as one access */
template <int V> static __device__ __forceinline__ void load(const float *p, float (&v)[V])
{
    if (V == 4) {
        float4 q = load4(p);
        v[0] = q.x, v[1 % V] = q.y, v[2 % V] = q.z, v[3 % V] = q.w;
    } else {
        v[0] = *p;
    }
}
template <int V> static __device__ __forceinline__ void store(float *p, const float (&v)[V])
{
    if (V == 4)
        store4(p, make_float4(v[0], v[1 % V], v[2 % V], v[3 % V]));
    else
        *p = v[0];
}

/* ---- 4. Batches ----------------------------------------------------------------------------------------------------
 * A batch goes through pinned memory into a place of its own on the device while the step before still computes, and is
 * taken from there, into the device's form, when its own step begins. Two pinned places in turn: the copy out of one was
 * over before the last wait. */
typedef struct batch { /* of an input tensor, at its `device` */
    float *pinned[2], *data;
    size_t room; /* of each, in bytes */
    int turn, n;
    cudaEvent_t arrived, taken;
} batch;

static void free_batch(batch *b)
{
    if (!b) return;
    for (int i = 0; i < 2; i++)
        (void)cudaFreeHost(b->pinned[i]);
    (void)cudaFree(b->data);
    if (b->arrived) (void)cudaEventDestroy(b->arrived);
    if (b->taken) (void)cudaEventDestroy(b->taken);
    free(b);
}

static ddpm_result make_batch(cuda_state *s, ddpm_tensor *x, size_t bytes)
{
    if (x->device && ((batch *)x->device)->room >= bytes) return DDPM_OK;
    CUDA_OF(cudaStreamSynchronize(s->arrivals), "a batch", x);
    free_batch((batch *)x->device);
    batch *b = (batch *)calloc(1, sizeof *b);
    x->device = b;
    if (!b) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    for (int i = 0; i < 2; i++)
        CUDA_OF(cudaMallocHost(&b->pinned[i], bytes), "pinned memory", x);
    TRY(cuda_alloc(s, bytes, (void **)&b->data));
    CUDA(cudaEventCreateWithFlags(&b->arrived, cudaEventDisableTiming), "cudaEventCreate");
    CUDA(cudaEventCreateWithFlags(&b->taken, cudaEventDisableTiming), "cudaEventCreate");
    CUDA_OF(cudaEventRecord(b->taken, s->stream), "a batch", x); /* it has been zeroed */
    b->room = bytes;
    return DDPM_OK;
}

static ddpm_result cuda_stage(ddpm_graph *g, ddpm_tensor *x, int n, const float *host)
{
    cuda_state *s = state_of(g);
    size_t bytes = ddpm_elements(x, n) * sizeof *host;
    TRY(make_batch(s, x, bytes));
    batch *b = (batch *)x->device;
    b->turn ^= 1, b->n = n;
    memcpy(b->pinned[b->turn], host, bytes);
    CUDA_OF(cudaStreamWaitEvent(s->arrivals, b->taken, 0), "a batch", x);
    CUDA_OF(cudaMemcpyAsync(b->data, b->pinned[b->turn], bytes, cudaMemcpyHostToDevice, s->arrivals), "a batch", x);
    CUDA_OF(cudaEventRecord(b->arrived, s->arrivals), "a batch", x);
    return DDPM_OK;
}

static ddpm_result cuda_unstage(ddpm_graph *g, ddpm_tensor *x, int first)
{
    cuda_state *s = state_of(g);
    batch *b = (batch *)x->device;
    const float *from = b->data + (size_t)first * ddpm_elements(x, 1);
    size_t count = ddpm_elements(x, g->n);
    CUDA_OF(cudaStreamWaitEvent(s->stream, b->arrived, 0), "a batch", x);
    LAUNCH(transpose, blocks_for(count), THREADS, 0, s->stream, count, (unsigned)channels(x), (unsigned)pixels(x), from,
           x->data);
    CUDA_OF(cudaGetLastError(), "a batch", x);
    if (first + g->n >= b->n) CUDA_OF(cudaEventRecord(b->taken, s->stream), "a batch", x);
    return DDPM_OK;
}

/* ---- 5. Steps that are repeated ------------------------------------------------------------------------------------
 * The first time a key is seen its work is done as it is asked for, and memory grows to what it needs; the second time
 * the stream records it as a CUDA graph; then the graph is launched. All that varies lies in memory: tensors, and the
 * step struct, which follows the host's before each launch. */

static ddpm_result send_step(cuda_state *s, const ddpm_step *step)
{
    if (s->is_recording || !memcmp(&s->sent, step, sizeof *step)) return DDPM_OK;
    memcpy(&s->sent, step, sizeof *step);
    return send(s, s->step, step, sizeof *step, NULL);
}

static void free_recording(cuda_state *s, recording *r)
{
    if (!r) return;
    if (r->exec) (void)cudaStreamSynchronize(s->stream); /* it may be running */
    if (r->exec) (void)cudaGraphExecDestroy(r->exec);
    if (s->earliest.step == r || s->newest.step == r) forget_requests(s);
    free(r);
}

/* Those of one graph; NULL: all. */
static void forget_recordings(cuda_state *s, const ddpm_graph *g)
{
    for (recording **at = &s->recorded, *r; (r = *at) != NULL;) {
        if (g && r->g != g) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        free_recording(s, r);
    }
}

/* Brought to the front; NULL: there is none. */
static recording *find_recording(cuda_state *s, const ddpm_graph *g, const char *key)
{
    for (recording **at = &s->recorded, *r; (r = *at) != NULL; at = &r->next)
        if (r->g == g && !strcmp(r->key, key)) {
            *at = r->next, r->next = s->recorded, s->recorded = r;
            return r;
        }
    return NULL;
}

/* A new one in front, the one that has waited longest goes. */
static ddpm_result add_recording(cuda_state *s, const ddpm_graph *g, const char *key)
{
    recording *r = (recording *)calloc(1, sizeof *r), **last = &s->recorded;
    if (!r) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    r->g = g;
    snprintf(r->key, sizeof r->key, "%s", key);
    r->next = s->recorded, s->recorded = r;
    for (int i = 0; i < MOST_RECORDINGS && *last; i++)
        last = &(*last)->next;
    recording *old = *last;
    *last = NULL;
    free_recording(s, old);
    return DDPM_OK;
}

static ddpm_result record(cuda_state *s, recording *r, ddpm_result (*work)(void *), void *of)
{
    cudaGraph_t graph = NULL;
    CUDA(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal), r->key);
    s->is_recording = 1;
    ddpm_result result = work(of);
    s->is_recording = 0;
    cudaError_t error = cudaStreamEndCapture(s->stream, &graph);
    if (result == DDPM_OK && error == cudaSuccess) error = cudaGraphInstantiate(&r->exec, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    return result == DDPM_OK && error != cudaSuccess ? cuda_failed(error, r->key, NULL) : result;
}

static ddpm_result cuda_repeat(ddpm_graph *g, const char *key, ddpm_result (*work)(void *of), void *of)
{
    cuda_state *s = state_of(g);
    recording *r = find_recording(s, g, key);
    s->last = g;
    if (s->step_by_step) return work(of);
    if (!r) {
        TRY(work(of));
        return add_recording(s, g, key);
    }
    TRY(send_step(s, &g->step));
    if (!r->exec) TRY(record(s, r, work, of));
    ask(s, {NULL, r, g->step.first_picture});
    CUDA(cudaGraphLaunch(r->exec, s->stream), r->key);
    return DDPM_OK;
}

/* ---- 6. Sums ----------------------------------------------------------------------------------------------------- */

template <class T> static __device__ __forceinline__ T warp_sum(T v)
{
    for (int offset = 16; offset; offset /= 2)
        v += __shfl_xor_sync(EVERYONE, v, offset);
    return v;
}

/* Of all threads of a block, a whole number of warps; in every thread, in the order of the warps. `room`: 32 values,
 * free again after the next barrier. */
template <class T> static __device__ T block_sum(T v, T *room)
{
    v = warp_sum(v);
    __syncthreads(); /* room may still be read */
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    T total = room[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++)
        total += room[w];
    return total;
}

/* Sums over pixels, for each channel: of a matrix (rows, columns) of each picture, two sums of terms that a functor
 * gives. One block sums a chunk of rows for 32 columns. partial (pictures, chunks, columns, 2) */
constexpr int SUM_COLUMNS = 32, SUM_LANES = 8;
constexpr size_t CHUNK = 128, MOST_CHUNKS = 128;

static int chunks_of(size_t rows)
{
    size_t chunks = ceil_div(rows, CHUNK);
    return (int)(chunks < MOST_CHUNKS ? chunks : MOST_CHUNKS);
}

template <class Term>
static __global__ void column_sums(Term term, size_t rows, int columns, size_t chunk, float2 *partial)
{
    float2 *shared = reinterpret_cast<float2 *>(cuda_shared); /* (SUM_LANES, SUM_COLUMNS) */
    int column = (int)(blockIdx.x * SUM_COLUMNS + threadIdx.x);
    size_t first = blockIdx.y * chunk, end = first + chunk < rows ? first + chunk : rows;
    float2 total = make_float2(0, 0);
    if (column < columns)
        for (size_t row = first + threadIdx.y; row < end; row += SUM_LANES) {
            float2 t = term(blockIdx.z, row, column);
            total.x += t.x, total.y += t.y;
        }
    shared[threadIdx.y * SUM_COLUMNS + threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y || column >= columns) return;
    for (int lane = 1; lane < SUM_LANES; lane++) {
        float2 t = shared[lane * SUM_COLUMNS + (int)threadIdx.x];
        total.x += t.x, total.y += t.y;
    }
    partial[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * (size_t)columns + (size_t)column] = total;
}

/* The chunks' sums in order, handed to `give(picture, column, sum of x, sum of y)`. */
template <class Give>
static __global__ void finish_sums(Give give, int pictures, int chunks, int columns, const float2 *partial)
{
    size_t count = (size_t)pictures * (size_t)columns;
    for (size_t i = first_item(); i < count; i += item_step()) {
        size_t picture = i / (size_t)columns, column = i % (size_t)columns;
        double x = 0, y = 0;
        for (int k = 0; k < chunks; k++) {
            float2 t = partial[(picture * (size_t)chunks + (size_t)k) * (size_t)columns + column];
            x += (double)t.x, y += (double)t.y;
        }
        give((int)picture, (int)column, x, y);
    }
}

template <class Term, class Give>
static void sum_columns(const ddpm_graph *g, Term term, Give give, int pictures, size_t rows, int columns)
{
    cudaStream_t stream = state_of(g)->stream;
    float2 *partial = reinterpret_cast<float2 *>(g->scratch);
    for (int first = 0; first < pictures; first += 65535) { /* the limit of grid.z */
        int count = pictures - first < 65535 ? pictures - first : 65535, chunks = chunks_of(rows);
        dim3 grid((unsigned)ceil_div((size_t)columns, SUM_COLUMNS), (unsigned)chunks, (unsigned)count);
        LAUNCH(column_sums<Term>, grid, dim3(SUM_COLUMNS, SUM_LANES), SUM_COLUMNS * SUM_LANES * sizeof(float2), stream,
               term, rows, columns, ceil_div(rows, (size_t)chunks), partial);
        LAUNCH(finish_sums<Give>, blocks_for((size_t)count * (size_t)columns), THREADS, 0, stream, give, count, chunks,
               columns, partial);
    }
}

static size_t sums_scratch(int pictures, size_t rows, int columns) /* in floats */
{
    return 2 * (size_t)pictures * (size_t)chunks_of(rows) * (size_t)columns;
}

/* ---- 7. Elementwise rows ----------------------------------------------------------------------------------------- */

static float *gradient_of(const ddpm_node *node, int k) /* NULL if nobody wants it */
{
    return node->wants >> k & 1 ? node->in[k]->grad : NULL;
}
static int adds_to(const ddpm_node *node, int k)
{
    return (int)(node->accumulate >> k & 1);
}

/* y[i] = op(i, a[i], b[i]), or added to y[i]; b NULL: op sees a twice. Four values an access. */
template <class Op> static __global__ void map(Op op, size_t count, const float *a, const float *b, float *y, int add)
{
    size_t whole = count / 4 * 4;
    if (!b) b = a;
    for (size_t i = 4 * first_item(); i < whole; i += 4 * item_step()) {
        float4 p = load4(a + i), q = load4(b + i), r = make_float4(0, 0, 0, 0);
        if (add) r = load4(y + i);
        r.x += op(i, p.x, q.x), r.y += op(i + 1, p.y, q.y), r.z += op(i + 2, p.z, q.z), r.w += op(i + 3, p.w, q.w);
        store4(y + i, r);
    }
    for (size_t i = whole + first_item(); i < count; i += item_step())
        y[i] = (add ? y[i] : 0) + op(i, a[i], b[i]);
}

template <class Op>
static void launch_map(const ddpm_graph *g, Op op, size_t count, const float *a, const float *b, float *y, int add)
{
    LAUNCH(map<Op>, blocks_for(ceil_div(count, 4)), THREADS, 0, state_of(g)->stream, op, count, a, b, y, add);
}

static __device__ __forceinline__ float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}
static __device__ __forceinline__ float silu(float x)
{
    return x * sigmoid(x);
}
static __device__ __forceinline__ float silu_slope(float x)
{
    float s = sigmoid(x);
    return s * (1 + x * (1 - s));
}

struct activate {
    int kind;
    __device__ float operator()(size_t, float x, float) const
    {
        if (kind == DDPM_SILU) return silu(x);
        if (kind == DDPM_RELU) return x > 0 ? x : x <= 0 ? 0 : x; /* NaN stays NaN */
        return sigmoid(x);
    }
};
struct activate_backward {
    int kind;
    __device__ float operator()(size_t, float x, float dy) const
    {
        if (kind == DDPM_SILU) return dy * silu_slope(x);
        if (kind == DDPM_RELU) return x > 0 ? dy : 0;
        return dy * sigmoid(x) * (1 - sigmoid(x));
    }
};

static ddpm_result activation_forward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_map(g, activate{node->attr.activation.kind}, ddpm_elements(node->out, g->n), node->in[0]->data, NULL,
               node->out->data, 0);
    return launched(g, node);
}
static ddpm_result activation_backward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_map(g, activate_backward{node->attr.activation.kind}, ddpm_elements(node->out, g->n), node->in[0]->data,
               node->out->grad, node->in[0]->grad, adds_to(node, 0));
    return launched(g, node);
}

struct scaled_sum {
    float scale;
    __device__ float operator()(size_t, float a, float b) const
    {
        return (a + b) * scale;
    }
};
struct scaled {
    float scale;
    __device__ float operator()(size_t, float a, float) const
    {
        return scale * a;
    }
};
struct scaled_sum_narrow { /* b (N,C) */
    float scale;
    size_t picture, columns; /* elements a picture; channels */
    const float *b;
    __device__ float operator()(size_t i, float a, float) const
    {
        return (a + b[i / picture * columns + i % columns]) * scale;
    }
};
struct gradient_of_narrow {
    float scale;
    int columns, add;
    float *db;
    __device__ void operator()(int picture, int column, double sum, double) const
    {
        float *to = db + (size_t)picture * (size_t)columns + (size_t)column;
        *to = (add ? *to : 0) + scale * (float)sum;
    }
};
struct value_at { /* of a matrix (pictures, rows, columns) */
    const float *x;
    size_t rows, columns;
    __device__ float2 operator()(size_t picture, size_t row, int column) const
    {
        return make_float2(x[(picture * rows + row) * columns + (size_t)column], 0);
    }
};

static int is_wide(const ddpm_node *node)
{
    return pixels(node->in[1]) > 1 || pixels(node->out) == 1;
}

static ddpm_result add_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *a = node->in[0]->data, *b = node->in[1]->data;
    float scale = (float)node->attr.affine.scale, *y = node->out->data;
    size_t count = ddpm_elements(node->out, g->n);
    if (is_wide(node))
        launch_map(g, scaled_sum{scale}, count, a, b, y, 0);
    else
        launch_map(g, scaled_sum_narrow{scale, ddpm_elements(node->out, 1), (size_t)channels(node->out), b}, count, a,
                   NULL, y, 0);
    return launched(g, node);
}

static ddpm_result add_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *dy = node->out->grad;
    float scale = (float)node->attr.affine.scale, *da = gradient_of(node, 0), *db = gradient_of(node, 1);
    size_t count = ddpm_elements(node->out, g->n);
    int c = channels(node->out);
    if (da) launch_map(g, scaled{scale}, count, dy, NULL, da, adds_to(node, 0));
    if (db && is_wide(node)) launch_map(g, scaled{scale}, count, dy, NULL, db, adds_to(node, 1));
    if (db && !is_wide(node))
        sum_columns(g, value_at{dy, pixels(node->out), (size_t)c}, gradient_of_narrow{scale, c, adds_to(node, 1), db},
                    g->n, pixels(node->out), c);
    return launched(g, node);
}

struct divided {
    float scale, shift;
    size_t picture;
    const float *divisor; /* (N), or NULL */
    __device__ float operator()(size_t i, float x, float) const
    {
        return x * (divisor ? scale / divisor[i / picture] : scale) + shift;
    }
};

static ddpm_result affine_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *d = node->in[1] ? node->in[1]->data : NULL;
    size_t picture = ddpm_elements(node->out, 1);
    launch_map(g, divided{(float)node->attr.affine.scale, (float)node->attr.affine.shift, picture, d},
               (size_t)g->n * picture, node->in[0]->data, NULL, node->out->data, 0);
    return launched(g, node);
}
static ddpm_result affine_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *d = node->in[1] ? node->in[1]->data : NULL;
    size_t picture = ddpm_elements(node->out, 1);
    launch_map(g, divided{(float)node->attr.affine.scale, 0, picture, d}, (size_t)g->n * picture, node->out->grad, NULL,
               node->in[0]->grad, adds_to(node, 0));
    return launched(g, node);
}

struct modulated { /* e (N,2C): scale, shift; backward has no shift */
    size_t picture, columns;
    const float *e;
    int shift;
    __device__ float operator()(size_t i, float x, float) const
    {
        const float *own = e + i / picture * 2 * columns + i % columns;
        return x * (1 + own[0]) + (shift ? own[columns] : 0);
    }
};
struct two_sums { /* sum dy, sum dy x */
    const float *dy, *x;
    size_t rows, columns;
    __device__ float2 operator()(size_t picture, size_t row, int column) const
    {
        size_t i = (picture * rows + row) * columns + (size_t)column;
        return make_float2(dy[i], dy[i] * x[i]);
    }
};
struct gradient_of_scale_shift {
    int columns, add;
    float *de;
    __device__ void operator()(int picture, int column, double sum_dy, double sum_dyx) const
    {
        float *own = de + (size_t)picture * 2 * (size_t)columns + (size_t)column;
        own[0] = (add ? own[0] : 0) + (float)sum_dyx;
        own[columns] = (add ? own[columns] : 0) + (float)sum_dy;
    }
};

static ddpm_result modulate_forward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_map(g, modulated{ddpm_elements(node->out, 1), (size_t)channels(node->out), node->in[1]->data, 1},
               ddpm_elements(node->out, g->n), node->in[0]->data, NULL, node->out->data, 0);
    return launched(g, node);
}
static ddpm_result modulate_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *dy = node->out->grad;
    float *dx = gradient_of(node, 0), *de = gradient_of(node, 1);
    int c = channels(node->out);
    if (dx)
        launch_map(g, modulated{ddpm_elements(node->out, 1), (size_t)c, node->in[1]->data, 0},
                   ddpm_elements(node->out, g->n), dy, NULL, dx, adds_to(node, 0));
    if (de)
        sum_columns(g, two_sums{dy, node->in[0]->data, pixels(node->out), (size_t)c},
                    gradient_of_scale_shift{c, adds_to(node, 1), de}, g->n, pixels(node->out), c);
    return launched(g, node);
}

/* ---- 8. Convolution ------------------------------------------------------------------------------------------------
 * Three products of matrices, C (m,n) = sum over k of A (m,k) B (k,n), none of which is ever laid out in memory: a block
 * gathers 64 x 16 tiles of A and B into shared memory and makes a 64 x 64 tile of C.
 *   forward    m pixels of y,  n outputs,      k (tap,input):   A gathers x,  B is the weight
 *   to x       m pixels of x,  n inputs,       k (tap,output):  A gathers dy, B is the weight
 *   to weight  m outputs,      n (tap,input),  k pixels of y:   A is dy,      B gathers x
 * Linear is the same with one tap. Where m n makes too few blocks, k is split among several, whose sums a second kernel
 * adds in order. */
constexpr int TILE = 64, DEPTH = 16;
constexpr size_t WANTED_BLOCKS = 256;

typedef enum pass { FORWARD, TO_X, TO_WEIGHT } pass;

/* Pictures that a tile is gathered from, and how pixel (y,x) of the others meets tap (ky,kx):
 * row (y up + dir ky + shift) / down of the gathered picture, if that is whole and inside. */
typedef struct gathered {
    const float *data; /* (N,h,w,c) */
    int h, w, c;
    int other_h, other_w; /* of the pictures that count pixels */
    int kernel, up, down, dir, shift;
} gathered;

typedef struct product {
    gathered from;
    const float *plain; /* the operand that lies as it is: the weight (out,taps,in), or dy (pixels,out) */
    int inputs, outputs;
    int m, n, k;
    int splits, k_per_split; /* a multiple of DEPTH */
    const float *bias;       /* (n) or NULL */
    float *c;                /* (m,n) */
    float *partial;          /* (splits,m,n), if there is more than one */
    int add;                 /* c += */
} product;

/* The pixel of the gathered pictures that pixel (n,y,x) of the others meets at a tap; NULL: outside, a zero. */
static __device__ __forceinline__ const float *pixel_at(const gathered &f, int n, int y, int x, int tap)
{
    int ky = tap / f.kernel, kx = tap - ky * f.kernel;
    y = y * f.up + f.dir * ky + f.shift, x = x * f.up + f.dir * kx + f.shift;
    if (f.down > 1) {
        if (y < 0 || x < 0 || y % f.down || x % f.down) return NULL;
        y /= f.down, x /= f.down;
    }
    if (y < 0 || x < 0 || y >= f.h || x >= f.w) return NULL;
    return f.data + (((size_t)n * (size_t)f.h + (size_t)y) * (size_t)f.w + (size_t)x) * (size_t)f.c;
}

typedef struct place { /* of a counted pixel */
    int n, y, x;
} place;

static __device__ __forceinline__ place place_of(const gathered &f, int pixel)
{
    int row = pixel / f.other_w;
    return {row / f.other_h, row % f.other_h, pixel - row * f.other_w};
}

/* Each thread brings four elements of each operand for every step of DEPTH. Where the operand runs along k in memory,
 * they are (row = thread / 4, k = 4 (thread % 4) ...); where along m or n, (k = thread / 16, columns 4 (thread % 16)
 * ...). V is 4 if four elements are always one aligned access, else 1. */

/* A of FORWARD and TO_X: a row is a pixel, k is (tap, channel). The division of k happens only when the tap changes. */
template <int V> struct gather_along_k {
    gathered f;
    place at;
    int k, end, tap, channel;
    bool inside;
    const float *pixel;

    __device__ gather_along_k(const product &p, int first_row, int k0, int k_end) : f(p.from), k(k0), end(k_end)
    {
        int row = first_row + (int)threadIdx.x / 4;
        inside = row < p.m;
        at = place_of(f, inside ? row : 0);
        k += (int)threadIdx.x % 4 * 4;
        tap = k / f.c, channel = k % f.c;
        pixel = inside && k < end ? pixel_at(f, at.n, at.y, at.x, tap) : NULL;
    }
    __device__ void bring(float (&v)[4])
    {
        v[0] = v[1] = v[2] = v[3] = 0;
        if (V == 4) {
            if (k < end && pixel) load<4>(pixel + channel, v);
        } else {
            for (int i = 0; i < 4; i++) {
                if (!inside || k + i >= end) continue;
                const float *p = pixel_at(f, at.n, at.y, at.x, (k + i) / f.c);
                if (p) v[i] = p[(k + i) % f.c];
            }
        }
        k += DEPTH, channel += DEPTH;
        if (V == 4 && channel >= f.c) {
            while (channel >= f.c)
                channel -= f.c, tap++;
            pixel = inside && k < end ? pixel_at(f, at.n, at.y, at.x, tap) : NULL;
        }
    }
};

/* B of FORWARD: weight row n, contiguous along k. */
template <int V> struct weight_along_k {
    const float *row;
    int k, end;
    __device__ weight_along_k(const product &p, int first_column, int k0, int k_end) : end(k_end)
    {
        int n = first_column + (int)threadIdx.x / 4;
        row = n < p.n ? p.plain + (size_t)n * (size_t)p.k : NULL;
        k = k0 + (int)threadIdx.x % 4 * 4;
    }
    __device__ void bring(float (&v)[4])
    {
        v[0] = v[1] = v[2] = v[3] = 0;
        if (V == 4) {
            if (row && k < end) load<4>(row + k, v);
        } else {
            for (int i = 0; i < 4; i++)
                if (row && k + i < end) v[i] = row[k + i];
        }
        k += DEPTH;
    }
};

/* B of TO_X: k is (tap, output), n the input: weight (output,tap,n). */
template <int V> struct weight_along_n {
    const product &p;
    int n, k, end, taps;
    __device__ weight_along_n(const product &job, int first_column, int k0, int k_end) : p(job), end(k_end)
    {
        n = first_column + (int)threadIdx.x % 16 * 4;
        k = k0 + (int)threadIdx.x / 16;
        taps = p.from.kernel * p.from.kernel;
    }
    __device__ void bring(float (&v)[4])
    {
        v[0] = v[1] = v[2] = v[3] = 0;
        if (k < end && n < p.n) {
            int tap = k / p.outputs, output = k - tap * p.outputs;
            const float *from = p.plain + ((size_t)output * (size_t)taps + (size_t)tap) * (size_t)p.inputs + n;
            if (V == 4)
                load<4>(from, v);
            else
                for (int i = 0; i < 4; i++)
                    v[i] = n + i < p.n ? from[i] : 0;
        }
        k += DEPTH;
    }
};

/* A of TO_WEIGHT: dy (pixels,outputs). */
template <int V> struct gradient_along_m {
    const product &p;
    int m, k, end;
    __device__ gradient_along_m(const product &job, int first_row, int k0, int k_end) : p(job), end(k_end)
    {
        m = first_row + (int)threadIdx.x % 16 * 4;
        k = k0 + (int)threadIdx.x / 16;
    }
    __device__ void bring(float (&v)[4])
    {
        v[0] = v[1] = v[2] = v[3] = 0;
        if (k < end && m < p.m) {
            const float *from = p.plain + (size_t)k * (size_t)p.outputs + m;
            if (V == 4)
                load<4>(from, v);
            else
                for (int i = 0; i < 4; i++)
                    v[i] = m + i < p.m ? from[i] : 0;
        }
        k += DEPTH;
    }
};

/* B of TO_WEIGHT: k is a pixel of y, n is (tap, channel), the same for all of a thread's steps. */
template <int V> struct gather_along_n {
    gathered f;
    place at;
    int k, end, n, columns, tap, channel;
    __device__ gather_along_n(const product &p, int first_column, int k0, int k_end)
        : f(p.from), end(k_end), columns(p.n)
    {
        n = first_column + (int)threadIdx.x % 16 * 4;
        k = k0 + (int)threadIdx.x / 16;
        tap = n / f.c, channel = n - tap * f.c;
        at = place_of(f, k < end ? k : 0);
    }
    __device__ void bring(float (&v)[4])
    {
        v[0] = v[1] = v[2] = v[3] = 0;
        if (V == 4) {
            const float *p = k < end && n < columns ? pixel_at(f, at.n, at.y, at.x, tap) : NULL;
            if (p) load<4>(p + channel, v);
        } else {
            for (int i = 0; i < 4; i++) {
                if (k >= end || n + i >= columns) continue;
                const float *p = pixel_at(f, at.n, at.y, at.x, (n + i) / f.c);
                if (p) v[i] = p[(n + i) % f.c];
            }
        }
        k += DEPTH, at.x += DEPTH;
        while (at.x >= f.other_w) {
            at.x -= f.other_w;
            if (++at.y == f.other_h) at.y = 0, at.n++;
        }
    }
};

template <int PASS, int V> struct operands;
template <int V> struct operands<FORWARD, V> {
    typedef gather_along_k<V> a;
    typedef weight_along_k<V> b;
    static constexpr bool a_along_k = true, b_along_k = true;
};
template <int V> struct operands<TO_X, V> {
    typedef gather_along_k<V> a;
    typedef weight_along_n<V> b;
    static constexpr bool a_along_k = true, b_along_k = false;
};
template <int V> struct operands<TO_WEIGHT, V> {
    typedef gradient_along_m<V> a;
    typedef gather_along_n<V> b;
    static constexpr bool a_along_k = false, b_along_k = false;
};

/* Rows of a tile in shared memory are padded so that stores along k meet at most two to a bank, and begin where wmma
 * wants them. */
template <int HOW> struct number;
template <> struct number<FP32> {
    typedef float type;
    static constexpr int row = TILE + 4;
    static __device__ float make(float f)
    {
        return f;
    }
};
template <> struct number<TF32> {
    typedef float type;
    static constexpr int row = TILE + 4;
    static __device__ float make(float f)
    {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
        return nvcuda::wmma::__float_to_tf32(f);
#else
        return f;
#endif
    }
};
template <> struct number<BF16> {
    typedef __nv_bfloat16 type;
    static constexpr int row = TILE + 8;
    static __device__ __nv_bfloat16 make(float f)
    {
        return __float2bfloat16(f);
    }
};

constexpr int RESULT_ROW = TILE + 4;
template <int HOW> union tiles { /* shared memory of a block */
    struct {
        typename number<HOW>::type a[2][DEPTH][number<HOW>::row], b[2][DEPTH][number<HOW>::row];
    } in;
    float out[TILE][RESULT_ROW];
};

template <int HOW, bool ALONG_K>
static __device__ __forceinline__ void put(typename number<HOW>::type (*tile)[number<HOW>::row], const float (&v)[4])
{
    int t = (int)threadIdx.x;
    for (int i = 0; i < 4; i++)
        if (ALONG_K)
            tile[t % 4 * 4 + i][t / 4] = number<HOW>::make(v[i]);
        else
            tile[t / 16][t % 16 * 4 + i] = number<HOW>::make(v[i]);
}

/* Products of a step, and where their sums end: a 4 x 4 part of the tile for each thread, or 16 x 32 for each warp. */
template <int HOW> struct multiply;
template <> struct multiply<FP32> {
    float sum[4][4];
    __device__ void clear()
    {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                sum[i][j] = 0;
    }
    __device__ void step(const float (*a)[TILE + 4], const float (*b)[TILE + 4])
    {
        int x = (int)threadIdx.x % 16 * 4, y = (int)threadIdx.x / 16 * 4;
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float u[4], v[4];
            load<4>(&a[k][y], u);
            load<4>(&b[k][x], v);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
    }
    __device__ void finish(float (*out)[RESULT_ROW])
    {
        int x = (int)threadIdx.x % 16 * 4, y = (int)threadIdx.x / 16 * 4;
        for (int i = 0; i < 4; i++)
            store<4>(&out[y + i][x], sum[i]);
    }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <int K, class T> struct multiply_on_tensor_cores {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, K, float> sum[2];
    __device__ void clear()
    {
        nvcuda::wmma::fill_fragment(sum[0], 0.0f);
        nvcuda::wmma::fill_fragment(sum[1], 0.0f);
    }
    template <class S, int ROW> __device__ void step(const S (*a)[ROW], const S (*b)[ROW])
    {
        using namespace nvcuda::wmma;
        int warp = (int)threadIdx.x / WARP, y = warp % 4 * 16, x = warp / 4 * 32;
#pragma unroll
        for (int k = 0; k < DEPTH; k += K) {
            fragment<matrix_a, 16, 16, K, T, col_major> left;
            fragment<matrix_b, 16, 16, K, T, row_major> right;
            load_matrix_sync(left, &a[k][y], ROW);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                load_matrix_sync(right, &b[k][x + 16 * j], ROW);
                mma_sync(sum[j], left, right, sum[j]);
            }
        }
    }
    __device__ void finish(float (*out)[RESULT_ROW])
    {
        using namespace nvcuda::wmma;
        int warp = (int)threadIdx.x / WARP, y = warp % 4 * 16, x = warp / 4 * 32;
        for (int j = 0; j < 2; j++)
            store_matrix_sync(&out[y][x + 16 * j], sum[j], RESULT_ROW, mem_row_major);
    }
};
template <> struct multiply<TF32> : multiply_on_tensor_cores<8, nvcuda::wmma::precision::tf32> {
};
template <> struct multiply<BF16> : multiply_on_tensor_cores<16, __nv_bfloat16> {
};
#else /* never launched there: see cuda_open */
template <> struct multiply<TF32> : multiply<FP32> {
};
template <> struct multiply<BF16> {
    __device__ void clear()
    {
    }
    template <class S> __device__ void step(S, S)
    {
    }
    __device__ void finish(float (*)[RESULT_ROW])
    {
    }
};
#endif

/* 256 threads; grid (n tiles, m tiles, splits). While one pair of tiles is multiplied the next is on its way. */
template <int PASS, int HOW, int V> static __global__ void __launch_bounds__(THREADS, 2) convolve(product p)
{
    tiles<HOW> &shared = *reinterpret_cast<tiles<HOW> *>(cuda_shared);
    typedef operands<PASS, V> kind;
    int m0 = (int)blockIdx.y * TILE, n0 = (int)blockIdx.x * TILE, k0 = (int)blockIdx.z * p.k_per_split;
    int end = k0 + p.k_per_split < p.k ? k0 + p.k_per_split : p.k;
    typename kind::a a(p, m0, k0, end);
    typename kind::b b(p, n0, k0, end);
    multiply<HOW> tile;
    tile.clear();
    float u[4], v[4];
    a.bring(u), b.bring(v);
    put<HOW, kind::a_along_k>(shared.in.a[0], u);
    put<HOW, kind::b_along_k>(shared.in.b[0], v);
    __syncthreads();
    int now = 0;
    for (int k = k0; k < end; k += DEPTH) {
        bool more = k + DEPTH < end;
        if (more) a.bring(u), b.bring(v);
        tile.step(shared.in.a[now], shared.in.b[now]);
        if (more) {
            put<HOW, kind::a_along_k>(shared.in.a[now ^ 1], u);
            put<HOW, kind::b_along_k>(shared.in.b[now ^ 1], v);
        }
        __syncthreads();
        now ^= 1;
    }
    tile.finish(shared.out);
    __syncthreads();
    float *to = p.splits > 1 ? p.partial + (size_t)blockIdx.z * (size_t)p.m * (size_t)p.n : p.c;
    int bias = p.bias && p.splits == 1, add = p.add && p.splits == 1;
    for (int i = (int)threadIdx.x; i < TILE * TILE / 4; i += THREADS) {
        int y = i / (TILE / 4), x = i % (TILE / 4) * 4, row = m0 + y, column = n0 + x;
        if (row >= p.m || column >= p.n) continue;
        float *out = to + (size_t)row * (size_t)p.n + (size_t)column;
        if (p.n % 4 == 0) {
            float r[4], old[4], extra[4];
            load<4>(&shared.out[y][x], r);
            if (add) load<4>(out, old);
            if (bias) load<4>(p.bias + column, extra);
            for (int j = 0; j < 4; j++)
                r[j] += (bias ? extra[j] : 0) + (add ? old[j] : 0);
            store<4>(out, r);
        } else {
            for (int j = 0; j < 4 && column + j < p.n; j++)
                out[j] = shared.out[y][x + j] + (bias ? p.bias[column + j] : 0) + (add ? out[j] : 0);
        }
    }
}

struct summed { /* of the splits, in order */
    const float *partial, *bias;
    size_t count, columns;
    int splits;
    __device__ float operator()(size_t i, float sum, float) const
    {
        for (int s = 1; s < splits; s++)
            sum += partial[(size_t)s * count + i];
        return sum + (bias ? bias[i % columns] : 0);
    }
};

template <int PASS, int HOW> static void launch_convolve(const product &p, int v, dim3 grid, cudaStream_t stream)
{
    if (v == 4)
        LAUNCH((convolve<PASS, HOW, 4>), grid, THREADS, sizeof(tiles<HOW>), stream, p);
    else
        LAUNCH((convolve<PASS, HOW, 1>), grid, THREADS, sizeof(tiles<HOW>), stream, p);
}

template <int PASS> static void run_product(const ddpm_graph *g, product p, int v)
{
    const cuda_state *s = state_of(g);
    p.k_per_split = (int)ceil_div(ceil_div((size_t)p.k, (size_t)p.splits), DEPTH) * DEPTH;
    p.partial = g->scratch;
    dim3 grid((unsigned)ceil_div((size_t)p.n, TILE), (unsigned)ceil_div((size_t)p.m, TILE), (unsigned)p.splits);
    if (s->how == BF16)
        launch_convolve<PASS, BF16>(p, v, grid, s->stream);
    else if (s->how == TF32)
        launch_convolve<PASS, TF32>(p, v, grid, s->stream);
    else
        launch_convolve<PASS, FP32>(p, v, grid, s->stream);
    size_t count = (size_t)p.m * (size_t)p.n;
    if (p.splits > 1)
        launch_map(g, summed{p.partial, p.bias, count, (size_t)p.n, p.splits}, count, p.partial, NULL, p.c, p.add);
}

/* Into how many parts k is split: by the graph's capacity, so that all runs of a graph sum in the same order. */
static int splits_of(size_t m, size_t n, size_t k)
{
    size_t tiles = ceil_div(m, TILE) * ceil_div(n, TILE), most = k / (8 * DEPTH);
    size_t splits = WANTED_BLOCKS / tiles < most ? WANTED_BLOCKS / tiles : most;
    return splits > 1 ? (int)splits : 1;
}

static product product_of(const ddpm_graph *g, const ddpm_node *node, pass what, int pictures)
{
    const ddpm_tensor *x = node->in[0], *w = node->in[1], *y = node->out;
    int kernel = w->shape[2], stride = node->attr.conv.stride, pad = node->attr.conv.pad_start, taps = kernel * kernel;
    product p;
    memset(&p, 0, sizeof p);
    p.inputs = x->shape[1], p.outputs = y->shape[1];
    int x_pixels = pictures * (int)pixels(x), y_pixels = pictures * (int)pixels(y);
    if (what == TO_X) {
        p.from = {y->grad, y->shape[2], y->shape[3], p.outputs, x->shape[2], x->shape[3], kernel, 1, stride, -1, pad};
        p.plain = w->data;
        p.m = x_pixels, p.n = p.inputs, p.k = taps * p.outputs;
        p.c = x->grad, p.add = adds_to(node, 0);
        return p;
    }
    p.from = {x->data, x->shape[2], x->shape[3], p.inputs, y->shape[2], y->shape[3], kernel, stride, 1, 1, -pad};
    if (what == FORWARD) {
        p.plain = w->data;
        p.m = y_pixels, p.n = p.outputs, p.k = taps * p.inputs;
        p.c = y->data, p.bias = node->in[2] ? node->in[2]->data : NULL;
    } else {
        p.plain = y->grad;
        p.m = p.outputs, p.n = taps * p.inputs, p.k = y_pixels;
        p.c = w->grad, p.add = adds_to(node, 1);
    }
    (void)g;
    return p;
}

static product split_product(const ddpm_graph *g, const ddpm_node *node, pass what)
{
    product full = product_of(g, node, what, g->capacity), p = product_of(g, node, what, g->n);
    p.splits = splits_of((size_t)full.m, (size_t)full.n, (size_t)full.k);
    return p;
}

static size_t product_scratch(const ddpm_graph *g, const ddpm_node *node, pass what)
{
    product p = product_of(g, node, what, g->capacity);
    int splits = splits_of((size_t)p.m, (size_t)p.n, (size_t)p.k);
    return splits > 1 ? (size_t)splits * (size_t)p.m * (size_t)p.n : 0;
}

static ddpm_result conv_forward(const ddpm_graph *g, const ddpm_node *node)
{
    product p = split_product(g, node, FORWARD);
    run_product<FORWARD>(g, p, p.inputs % 4 ? 1 : 4);
    return launched(g, node);
}

struct gradient_of_bias {
    float *db;
    int add;
    __device__ void operator()(int, int column, double sum, double) const
    {
        db[column] = (add ? db[column] : 0) + (float)sum;
    }
};

static ddpm_result conv_backward(const ddpm_graph *g, const ddpm_node *node)
{
    if (node->wants & 1) {
        product p = split_product(g, node, TO_X);
        run_product<TO_X>(g, p, p.inputs % 4 || p.outputs % 4 ? 1 : 4);
    }
    if (node->wants & 2) {
        product p = split_product(g, node, TO_WEIGHT);
        run_product<TO_WEIGHT>(g, p, p.inputs % 4 || p.outputs % 4 ? 1 : 4);
    }
    if (node->wants & 4) {
        size_t rows = (size_t)g->n * pixels(node->out);
        int c = channels(node->out);
        sum_columns(g, value_at{node->out->grad, rows, (size_t)c},
                    gradient_of_bias{node->in[2]->grad, adds_to(node, 2)}, 1, rows, c);
    }
    return launched(g, node);
}

/* ---- 9. Norms ------------------------------------------------------------------------------------------------------
 * GroupNorm, with the SiLU that follows it where plan() has folded that in: one block for a group of a picture, one
 * reading of its values, which stay in registers (KEEP accesses of V channels a thread; 0: too many, read again).
 * A thread always has the same V channels of the group: `lanes` = channels / V threads share a pixel. */
typedef struct norm_job {
    const float *x, *weight, *bias, *dy;
    float *y, *aux, *dx;                       /* aux (N,2,G): mean, r */
    float2 *sums;                              /* (N,C): of dy and dy h */
    int pixels, channels, groups, lanes, used; /* used: threads that have work, lanes times a whole number */
    float eps;
    int silu, add;
} norm_job;

constexpr int MOST_THREADS = 512; /* 128 registers a thread: x and dy of backward fit */

/* This thread's V channels of pixel i of its share; NULL beyond. */
template <int V> struct norm_part {
    size_t offset;      /* of the first pixel's, in elements */
    unsigned step;      /* between two */
    int count, channel; /* of its pixels; its first channel */
    __device__ norm_part(const norm_job &p)
    {
        int per_group = p.channels / p.groups, picture = (int)blockIdx.x / p.groups, group = (int)blockIdx.x % p.groups;
        int t = (int)threadIdx.x, at_once = p.used / p.lanes, first = t / p.lanes;
        channel = group * per_group + t % p.lanes * V;
        count = t < p.used && first < p.pixels ? (p.pixels - first + at_once - 1) / at_once : 0;
        offset = ((size_t)picture * (size_t)p.pixels + (size_t)first) * (size_t)p.channels + (size_t)channel;
        step = (unsigned)(at_once * p.channels);
    }
};

template <int V, int KEEP> static __global__ void __launch_bounds__(MOST_THREADS, 1) norm_forward(norm_job p)
{
    float *room = reinterpret_cast<float *>(cuda_shared);
    norm_part<V> own(p);
    constexpr int HELD = KEEP ? KEEP : 1;
    float held[HELD][V], sum = 0, square = 0, size = (float)(p.channels / p.groups) * (float)p.pixels;
    const float *x = p.x + own.offset;
    for (int i = 0; i < (KEEP ? KEEP : own.count); i++) {
        if (KEEP && i >= own.count) continue;
        load<V>(x + (unsigned)i * own.step, held[i % HELD]);
        for (int j = 0; j < V; j++)
            sum += held[i % HELD][j];
    }
    float mean = block_sum(sum, room) / size;
    for (int i = 0; i < (KEEP ? KEEP : own.count); i++) {
        if (KEEP && i >= own.count) continue;
        if (!KEEP) load<V>(x + (unsigned)i * own.step, held[0]);
        for (int j = 0; j < V; j++) {
            float d = held[i % HELD][j] - mean;
            square = fmaf(d, d, square);
        }
    }
    float r = 1 / sqrtf(block_sum(square, room) / size + p.eps);
    if (threadIdx.x == 0) {
        float *aux = p.aux + blockIdx.x / (unsigned)p.groups * 2 * (unsigned)p.groups + blockIdx.x % (unsigned)p.groups;
        aux[0] = mean;
        aux[p.groups] = r;
    }
    if (!own.count) return;
    float weight[V], bias[V];
    for (int j = 0; j < V; j++)
        weight[j] = p.weight[own.channel + j] * r, bias[j] = p.bias[own.channel + j];
    float *y = p.y + own.offset;
    for (int i = 0; i < (KEEP ? KEEP : own.count); i++) {
        if (KEEP && i >= own.count) continue;
        if (!KEEP) load<V>(x + (unsigned)i * own.step, held[0]);
        float out[V];
        for (int j = 0; j < V; j++) {
            float z = (held[i % HELD][j] - mean) * weight[j] + bias[j];
            out[j] = p.silu ? silu(z) : z;
        }
        store<V>(y + (unsigned)i * own.step, out);
    }
}

/* Sums over the group's pixels for each of its channels, of dy and dy h, into totals (channels,2) of shared memory.
 * Lanes of a warp with the same channels are summed by shuffles where `lanes` divides 32. */
template <int V> static __device__ void sum_channels(const norm_job &p, float (&sum)[2 * V], float *room, float *totals)
{
    int t = (int)threadIdx.x, threads = (int)blockDim.x, rows = p.used, width = p.lanes * V;
    bool by_warp = WARP % p.lanes == 0;
    if (by_warp) {
        for (int offset = WARP / 2; offset >= p.lanes; offset /= 2)
            for (int j = 0; j < 2 * V; j++)
                sum[j] += __shfl_xor_sync(EVERYONE, sum[j], offset);
        rows = threads / WARP * p.lanes; /* a row of `room` for each lane < lanes of a warp */
    }
    int lane = t % WARP, row = by_warp ? t / WARP * p.lanes + lane : t;
    if (by_warp ? lane < p.lanes : t < rows)
        for (int j = 0; j < 2 * V; j++)
            room[row * 2 * V + j] = sum[j];
    __syncthreads();
    for (int i = t; i < 2 * width; i += threads) { /* channel i / 2, sum i % 2 */
        int from = i / 2 / V, j = i / 2 % V + i % 2 * V;
        float total = 0;
        for (int k = from; k < rows; k += p.lanes)
            total += room[k * 2 * V + j];
        totals[i] = total;
    }
    __syncthreads();
}

/* With e = w dy: dx = r (e - mean e - h mean(e h)); dy is that of z = h w + b if SiLU follows. */
template <int V, int KEEP> static __global__ void __launch_bounds__(MOST_THREADS, 1) norm_backward(norm_job p)
{
    float *room = reinterpret_cast<float *>(cuda_shared); /* (threads,2V), then totals (channels of the group,2) */
    float *totals = room + blockDim.x * 2 * V;
    norm_part<V> own(p);
    constexpr int HELD = KEEP ? KEEP : 1;
    int per_group = p.channels / p.groups, group = (int)blockIdx.x % p.groups, picture = (int)blockIdx.x / p.groups;
    const float *aux = p.aux + (size_t)picture * 2 * (size_t)p.groups + group;
    float mean = aux[0], r = aux[p.groups], weight[V], bias[V], sum[2 * V];
    for (int j = 0; j < V; j++) {
        weight[j] = own.count ? p.weight[own.channel + j] : 0, bias[j] = own.count ? p.bias[own.channel + j] : 0;
        sum[j] = sum[V + j] = 0;
    }
    const float *x = p.x + own.offset, *dy = p.dy + own.offset;
    float h[HELD][V], d[HELD][V];
    auto bring = [&](int i) { /* h and the gradient of z */
                              float(&hi)[V] = h[i % HELD], (&di)[V] = d[i % HELD];
                              load<V>(x + (unsigned)i * own.step, hi);
                              load<V>(dy + (unsigned)i * own.step, di);
                              for (int j = 0; j < V; j++) {
                                  hi[j] = (hi[j] - mean) * r;
                                  if (p.silu) di[j] *= silu_slope(hi[j] * weight[j] + bias[j]);
                              }
    };
    for (int i = 0; i < (KEEP ? KEEP : own.count); i++) {
        if (KEEP && i >= own.count) continue;
        bring(i);
        for (int j = 0; j < V; j++)
            sum[j] += d[i % HELD][j], sum[V + j] = fmaf(d[i % HELD][j], h[i % HELD][j], sum[V + j]);
    }
    sum_channels<V>(p, sum, room, totals);
    float mean_e = 0, mean_eh = 0, size = (float)per_group * (float)p.pixels;
    for (int c = 0; c < per_group; c++) {
        float w = p.weight[group * per_group + c];
        mean_e = fmaf(w, totals[2 * c], mean_e), mean_eh = fmaf(w, totals[2 * c + 1], mean_eh);
    }
    mean_e /= size, mean_eh /= size;
    float2 *sums = p.sums + (size_t)picture * (size_t)p.channels + (size_t)(group * per_group);
    for (int c = (int)threadIdx.x; c < per_group; c += (int)blockDim.x)
        sums[c] = make_float2(totals[2 * c], totals[2 * c + 1]);
    if (!p.dx) return;
    float *dx = p.dx + own.offset;
    for (int i = 0; i < (KEEP ? KEEP : own.count); i++) {
        if (KEEP && i >= own.count) continue;
        if (!KEEP) bring(i);
        float out[V];
        if (p.add)
            load<V>(dx + (unsigned)i * own.step, out);
        else
            for (int j = 0; j < V; j++)
                out[j] = 0;
        for (int j = 0; j < V; j++)
            out[j] += r * (weight[j] * d[i % HELD][j] - mean_e - h[i % HELD][j] * mean_eh);
        store<V>(dx + (unsigned)i * own.step, out);
    }
}

/* Threads and registers for a group: as many threads as there are accesses, up to 512. */
typedef struct norm_shape {
    int v, lanes, used, threads, keep;
} norm_shape;

static norm_shape norm_shape_of(const ddpm_node *node, int backward)
{
    norm_shape s;
    int per_group = channels(node->in[0]) / node->attr.norm.groups, plane = (int)pixels(node->in[0]);
    s.v = per_group % 4 ? 1 : 4;
    s.lanes = per_group / s.v;
    int at_once = MOST_THREADS / s.lanes;
    if (at_once > plane) at_once = plane;
    s.used = s.lanes * at_once;
    s.threads = (int)ceil_div((size_t)s.used, WARP) * WARP;
    int count = (int)ceil_div((size_t)plane, (size_t)at_once);
    s.keep = count <= 1 ? 1 : count <= 4 ? 4 : count <= (backward ? 8 : 16) ? (backward ? 8 : 16) : 0;
    if (s.v == 1 && s.keep) s.keep = 8;
    if (s.v == 1 && count > 8) s.keep = 0;
    return s;
}

#define LAUNCH_NORM(kernel, most, s, shared)                                                                           \
    do {                                                                                                               \
        unsigned grid = (unsigned)(g->n * node->attr.norm.groups), threads = (unsigned)(s).threads;                    \
        cudaStream_t stream = state_of(g)->stream;                                                                     \
        if ((s).v == 4 && (s).keep == 1)                                                                               \
            LAUNCH((kernel<4, 1>), grid, threads, shared, stream, job);                                                \
        else if ((s).v == 4 && (s).keep == 4)                                                                          \
            LAUNCH((kernel<4, 4>), grid, threads, shared, stream, job);                                                \
        else if ((s).v == 4 && (s).keep == most)                                                                       \
            LAUNCH((kernel<4, most>), grid, threads, shared, stream, job);                                             \
        else if ((s).v == 4)                                                                                           \
            LAUNCH((kernel<4, 0>), grid, threads, shared, stream, job);                                                \
        else if ((s).keep)                                                                                             \
            LAUNCH((kernel<1, 8>), grid, threads, shared, stream, job);                                                \
        else                                                                                                           \
            LAUNCH((kernel<1, 0>), grid, threads, shared, stream, job);                                                \
    } while (0)

static norm_job norm_job_of(const ddpm_node *node, norm_shape s)
{
    norm_job job;
    memset(&job, 0, sizeof job);
    job.x = node->in[0]->data, job.weight = node->in[1]->data, job.bias = node->in[2]->data, job.aux = node->aux->data;
    job.pixels = (int)pixels(node->in[0]), job.channels = channels(node->in[0]), job.groups = node->attr.norm.groups;
    job.lanes = s.lanes, job.used = s.used;
    job.eps = (float)node->attr.norm.eps;
    job.silu = node->plan != NULL; /* see ddpm_fold_silu */
    return job;
}

static ddpm_result group_norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    norm_shape s = norm_shape_of(node, 0);
    norm_job job = norm_job_of(node, s);
    job.y = node->out->data;
    LAUNCH_NORM(norm_forward, 16, s, 32 * sizeof(float));
    return launched(g, node);
}

struct gradients_of_norm { /* of weight and bias, NULL where they are not wanted */
    float *dw, *db;
    int add_w, add_b;
    __device__ void operator()(int, int column, double sum_dy, double sum_dyh) const
    {
        if (dw) dw[column] = (add_w ? dw[column] : 0) + (float)sum_dyh;
        if (db) db[column] = (add_b ? db[column] : 0) + (float)sum_dy;
    }
};
static gradients_of_norm gradients_of_norm_at(const ddpm_node *node)
{
    return {gradient_of(node, 1), gradient_of(node, 2), adds_to(node, 1), adds_to(node, 2)};
}

static ddpm_result group_norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    norm_shape s = norm_shape_of(node, 1);
    norm_job job = norm_job_of(node, s);
    job.dy = node->out->grad, job.dx = gradient_of(node, 0), job.add = adds_to(node, 0);
    job.sums = reinterpret_cast<float2 *>(g->scratch);
    int per_group = job.channels / job.groups;
    LAUNCH_NORM(norm_backward, 8, s, (size_t)(s.threads * 2 * s.v + 2 * per_group) * sizeof(float));
    if (node->wants & 6) /* pictures are the chunks of a sum over the batch */
        LAUNCH(finish_sums<gradients_of_norm>, blocks_for((size_t)job.channels), THREADS, 0, state_of(g)->stream,
               gradients_of_norm_at(node), 1, g->n, job.channels, job.sums);
    return launched(g, node);
}

/* BatchNorm: sums over pictures and pixels for each channel. aux: mean, r */
struct batch_values {
    const float *x;
    size_t columns;
    const float *mean; /* NULL: sum of x; else of (x - mean)^2 */
    __device__ float2 operator()(size_t, size_t row, int column) const
    {
        float v = x[row * columns + (size_t)column];
        if (mean) v -= mean[column], v *= v;
        return make_float2(v, 0);
    }
};
struct batch_mean {
    float *mean;
    double count;
    __device__ void operator()(int, int column, double sum, double) const
    {
        mean[column] = (float)(sum / count);
    }
};
struct batch_variance { /* running statistics follow */
    float *aux, *running_mean, *running_var;
    int columns;
    double count, momentum, eps;
    __device__ void operator()(int, int column, double sum, double) const
    {
        double variance = sum / count, unbiased = variance * count / (count > 1 ? count - 1 : 1);
        running_mean[column] = (float)((1 - momentum) * (double)running_mean[column] + momentum * (double)aux[column]);
        running_var[column] = (float)((1 - momentum) * (double)running_var[column] + momentum * unbiased);
        aux[columns + column] = (float)(1 / sqrt(variance + eps));
    }
};
static __global__ void use_running_statistics(float *aux, const float *mean, const float *var, int columns, double eps)
{
    for (size_t c = first_item(); c < (size_t)columns; c += item_step()) {
        aux[c] = mean[c];
        aux[(size_t)columns + c] = (float)(1 / sqrt((double)var[c] + eps));
    }
}
struct batch_normalise {
    const float *aux, *weight, *bias;
    size_t columns;
    __device__ float operator()(size_t i, float x, float) const
    {
        size_t c = i % columns;
        return (x - aux[c]) * (aux[columns + c] * weight[c]) + bias[c];
    }
};
struct batch_gradient_sums { /* of dy, dy h */
    const float *dy, *x, *aux;
    size_t columns;
    __device__ float2 operator()(size_t, size_t row, int column) const
    {
        size_t i = row * columns + (size_t)column;
        return make_float2(dy[i], dy[i] * (x[i] - aux[column]) * aux[columns + (size_t)column]);
    }
};
struct batch_gradients { /* keeps the sums' means in scratch, for dx */
    gradients_of_norm give;
    float *means;
    double count;
    int columns;
    __device__ void operator()(int, int column, double sum_dy, double sum_dyh) const
    {
        give(0, column, sum_dy, sum_dyh);
        means[column] = (float)(sum_dy / count), means[columns + column] = (float)(sum_dyh / count);
    }
};
struct batch_normalise_backward {
    const float *aux, *weight, *means; /* means NULL: running statistics do not depend on x */
    size_t columns;
    __device__ float operator()(size_t i, float x, float dy) const
    {
        size_t c = i % columns;
        float r = aux[columns + c], h = (x - aux[c]) * r;
        if (means) dy -= means[c] + h * means[columns + c];
        return r * weight[c] * dy;
    }
};

static ddpm_result batch_norm_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *x = node->in[0]->data;
    float *aux = node->aux->data;
    int c = channels(node->out);
    size_t rows = (size_t)g->n * pixels(node->out), columns = (size_t)c;
    if (g->training) {
        sum_columns(g, batch_values{x, columns, NULL}, batch_mean{aux, (double)rows}, 1, rows, c);
        sum_columns(g, batch_values{x, columns, aux},
                    batch_variance{aux, node->in[3]->data, node->in[4]->data, c, (double)rows, node->attr.norm.momentum,
                                   node->attr.norm.eps},
                    1, rows, c);
    } else {
        LAUNCH(use_running_statistics, blocks_for(columns), THREADS, 0, state_of(g)->stream, aux, node->in[3]->data,
               node->in[4]->data, c, node->attr.norm.eps);
    }
    launch_map(g, batch_normalise{aux, node->in[1]->data, node->in[2]->data, columns}, rows * columns, x, NULL,
               node->out->data, 0);
    return launched(g, node);
}

static ddpm_result batch_norm_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const float *x = node->in[0]->data, *aux = node->aux->data, *dy = node->out->grad;
    int c = channels(node->out);
    size_t rows = (size_t)g->n * pixels(node->out), columns = (size_t)c;
    float *means = g->scratch + sums_scratch(1, rows, c);
    sum_columns(g, batch_gradient_sums{dy, x, aux, columns},
                batch_gradients{gradients_of_norm_at(node), means, (double)rows, c}, 1, rows, c);
    if (node->wants & 1)
        launch_map(g, batch_normalise_backward{aux, node->in[1]->data, g->training ? means : NULL, columns},
                   rows * columns, x, dy, node->in[0]->grad, adds_to(node, 0));
    return launched(g, node);
}

/* ---- 10. Attention -------------------------------------------------------------------------------------------------
 * One warp for a token i of a picture and head. Its 32 lanes are first 32 other tokens, for the dot products, and then
 * d channels, for the sums over tokens. aux (N,heads,3,L): l, and D_i = sum_j p_ij dp_ij. */
typedef struct attention_job {
    const float *q, *k, *v, *dy; /* (N,L,C) */
    float *y, *dq, *dk, *dv, *aux;
    int rows, heads, d, tokens, columns; /* rows: n heads tokens */
    float scale;
    int add; /* bit k: input k's gradient is added to */
} attention_job;

constexpr int ATTENTION_WARPS = 4;

template <int V> static __device__ __forceinline__ float dot(const float *a, const float *b, int d)
{
    float total = 0;
    for (int c = 0; c < d; c += V) {
        float u[V], v[V];
        load<V>(a + c, u), load<V>(b + c, v);
        for (int j = 0; j < V; j++)
            total = fmaf(u[j], v[j], total);
    }
    return total;
}

struct attention_row { /* where token `index` of the row's picture and head is */
    size_t base, aux;
    int token;
    __device__ attention_row(const attention_job &p, int row)
    {
        int head = row / p.tokens;
        token = row % p.tokens;
        base = (size_t)(head / p.heads) * (size_t)p.tokens * (size_t)p.columns + (size_t)(head % p.heads) * (size_t)p.d;
        aux = (size_t)head * 3 * (size_t)p.tokens;
    }
    __device__ size_t of(const attention_job &p, int index) const
    {
        return base + (size_t)index * (size_t)p.columns;
    }
};

/* Shared memory of a warp: `vectors` of d values each, then 64 values of the tile of tokens. */
static __device__ float *warp_room(const attention_job &p, int vectors)
{
    return reinterpret_cast<float *>(cuda_shared) + threadIdx.x / WARP * (unsigned)(vectors * p.d + 64);
}
static size_t attention_shared(int d, int vectors)
{
    return ATTENTION_WARPS * (size_t)(vectors * d + 64) * sizeof(float);
}

/* Exponentials are taken against the largest score so far; what was summed before is scaled when that changes
 * (Milakov & Gimelshein 2018). */
template <int V> static __global__ void attention_query(attention_job p)
{
    int lane = (int)(threadIdx.x % WARP), number = (int)(blockIdx.x * ATTENTION_WARPS + threadIdx.x / WARP);
    if (number >= p.rows) return; /* a whole warp; no barrier follows */
    attention_row row(p, number);
    float *own = warp_room(p, 2), *sum = own + p.d, *weight = sum + p.d;
    for (int c = lane; c < p.d; c += WARP)
        own[c] = p.q[row.of(p, row.token) + (size_t)c] * p.scale, sum[c] = 0;
    __syncwarp();
    float largest = -INFINITY, total = 0;
    for (int first = 0; first < p.tokens; first += WARP) {
        int j = first + lane, count = p.tokens - first < WARP ? p.tokens - first : WARP;
        float s = j < p.tokens ? dot<V>(own, p.k + row.of(p, j), p.d) : -INFINITY, now = s;
        for (int offset = 16; offset; offset /= 2)
            now = fmaxf(now, __shfl_xor_sync(EVERYONE, now, offset));
        now = fmaxf(now, largest);
        float e = expf(s - now), shrink = expf(largest - now);
        total = total * shrink + warp_sum(e);
        largest = now;
        weight[lane] = e;
        __syncwarp();
        for (int c = lane; c < p.d; c += WARP) {
            float a = sum[c] * shrink;
            for (int t = 0; t < count; t++)
                a = fmaf(weight[t], p.v[row.of(p, first + t) + (size_t)c], a);
            sum[c] = a;
        }
        __syncwarp();
    }
    for (int c = lane; c < p.d; c += WARP)
        p.y[row.of(p, row.token) + (size_t)c] = sum[c] / total;
    if (lane == 0) p.aux[row.aux + (size_t)row.token] = largest + logf(total);
}

/* D_i and dq_i: one pass over the tokens for each. */
template <int V> static __global__ void attention_query_backward(attention_job p)
{
    int lane = (int)(threadIdx.x % WARP), number = (int)(blockIdx.x * ATTENTION_WARPS + threadIdx.x / WARP);
    if (number >= p.rows) return;
    attention_row row(p, number);
    float *q = warp_room(p, 3), *dy = q + p.d, *sum = dy + p.d, *weight = sum + p.d;
    for (int c = lane; c < p.d; c += WARP) {
        q[c] = p.q[row.of(p, row.token) + (size_t)c] * p.scale;
        dy[c] = p.dy[row.of(p, row.token) + (size_t)c];
        sum[c] = 0;
    }
    __syncwarp();
    float l = p.aux[row.aux + (size_t)row.token], expected = 0;
    for (int j = lane; j < p.tokens; j += WARP)
        expected = fmaf(expf(dot<V>(q, p.k + row.of(p, j), p.d) - l), dot<V>(dy, p.v + row.of(p, j), p.d), expected);
    expected = warp_sum(expected);
    if (lane == 0) p.aux[row.aux + (size_t)(p.tokens + row.token)] = expected;
    if (!p.dq) return;
    for (int first = 0; first < p.tokens; first += WARP) {
        int j = first + lane, count = p.tokens - first < WARP ? p.tokens - first : WARP;
        weight[lane] = j < p.tokens ? expf(dot<V>(q, p.k + row.of(p, j), p.d) - l) *
                                          (dot<V>(dy, p.v + row.of(p, j), p.d) - expected)
                                    : 0;
        __syncwarp();
        for (int c = lane; c < p.d; c += WARP)
            for (int t = 0; t < count; t++)
                sum[c] = fmaf(weight[t], p.k[row.of(p, first + t) + (size_t)c], sum[c]);
        __syncwarp();
    }
    for (int c = lane; c < p.d; c += WARP) {
        float *to = p.dq + row.of(p, row.token) + c;
        *to = (p.add & 1 ? *to : 0) + p.scale * sum[c];
    }
}

/* dk_j and dv_j: over all queries i. */
template <int V> static __global__ void attention_key_backward(attention_job p)
{
    int lane = (int)(threadIdx.x % WARP), number = (int)(blockIdx.x * ATTENTION_WARPS + threadIdx.x / WARP);
    if (number >= p.rows) return;
    attention_row row(p, number);
    float *k = warp_room(p, 4), *v = k + p.d, *sum_k = v + p.d, *sum_v = sum_k + p.d, *chance = sum_v + p.d,
          *weight = chance + WARP;
    for (int c = lane; c < p.d; c += WARP) {
        k[c] = p.k[row.of(p, row.token) + (size_t)c] * p.scale;
        v[c] = p.v[row.of(p, row.token) + (size_t)c];
        sum_k[c] = sum_v[c] = 0;
    }
    __syncwarp();
    for (int first = 0; first < p.tokens; first += WARP) {
        int i = first + lane, count = p.tokens - first < WARP ? p.tokens - first : WARP;
        chance[lane] = weight[lane] = 0;
        if (i < p.tokens) {
            const float *aux = p.aux + row.aux + i;
            chance[lane] = expf(dot<V>(k, p.q + row.of(p, i), p.d) - aux[0]);
            weight[lane] = chance[lane] * (dot<V>(v, p.dy + row.of(p, i), p.d) - aux[p.tokens]);
        }
        __syncwarp();
        for (int c = lane; c < p.d; c += WARP)
            for (int t = 0; t < count; t++) {
                size_t at = row.of(p, first + t) + (size_t)c;
                sum_k[c] = fmaf(weight[t], p.q[at], sum_k[c]);
                sum_v[c] = fmaf(chance[t], p.dy[at], sum_v[c]);
            }
        __syncwarp();
    }
    for (int c = lane; c < p.d; c += WARP) { /* dk before dv: they may be one tensor */
        size_t at = row.of(p, row.token) + (size_t)c;
        if (p.dk) p.dk[at] = (p.add & 2 ? p.dk[at] : 0) + p.scale * sum_k[c];
        if (p.dv) p.dv[at] = (p.add & 4 ? p.dv[at] : 0) + sum_v[c];
    }
}

static attention_job attention_job_of(const ddpm_graph *g, const ddpm_node *node)
{
    attention_job job;
    memset(&job, 0, sizeof job);
    job.q = node->in[0]->data, job.k = node->in[1]->data, job.v = node->in[2]->data, job.aux = node->aux->data;
    job.heads = node->attr.attention.heads, job.tokens = (int)pixels(node->out), job.columns = channels(node->out);
    job.d = job.columns / job.heads, job.rows = g->n * job.heads * job.tokens;
    job.scale = (float)(1 / sqrt((double)job.d));
    return job;
}

#define LAUNCH_ATTENTION(kernel, vectors)                                                                              \
    do {                                                                                                               \
        unsigned grid = (unsigned)ceil_div((size_t)job.rows, ATTENTION_WARPS), threads = ATTENTION_WARPS * WARP;       \
        if (job.d % 4 == 0)                                                                                            \
            LAUNCH(kernel<4>, grid, threads, attention_shared(job.d, vectors), state_of(g)->stream, job);              \
        else                                                                                                           \
            LAUNCH(kernel<1>, grid, threads, attention_shared(job.d, vectors), state_of(g)->stream, job);              \
    } while (0)

static ddpm_result attention_forward(const ddpm_graph *g, const ddpm_node *node)
{
    attention_job job = attention_job_of(g, node);
    job.y = node->out->data;
    LAUNCH_ATTENTION(attention_query, 2);
    return launched(g, node);
}

static ddpm_result attention_backward(const ddpm_graph *g, const ddpm_node *node)
{
    attention_job job = attention_job_of(g, node);
    job.dy = node->out->grad;
    job.dq = gradient_of(node, 0), job.dk = gradient_of(node, 1), job.dv = gradient_of(node, 2);
    job.add = (int)node->accumulate;
    LAUNCH_ATTENTION(attention_query_backward, 3);
    if (job.dk || job.dv) LAUNCH_ATTENTION(attention_key_backward, 4);
    return launched(g, node);
}

/* ---- 11. Rows that move or pick ---------------------------------------------------------------------------------- */

/* `columns` channels of each pixel, from one tensor's channels to another's. */
template <int V>
static __global__ void copy_channels(size_t rows, int columns, const float *from, int from_all, float *to, int to_all,
                                     int add)
{
    size_t each = (size_t)(columns / V), count = rows * each;
    for (size_t i = first_item(); i < count; i += item_step()) {
        size_t row = i / each, c = i % each * V;
        float v[V], old[V];
        load<V>(from + row * (size_t)from_all + c, v);
        float *out = to + row * (size_t)to_all + c;
        if (add) {
            load<V>(out, old);
            for (int j = 0; j < V; j++)
                v[j] += old[j];
        }
        store<V>(out, v);
    }
}

static void launch_copy(const ddpm_graph *g, size_t rows, int columns, const float *from, int from_all, int from_first,
                        float *to, int to_all, int to_first, int add)
{
    cudaStream_t stream = state_of(g)->stream;
    if (!to) return;
    if ((columns | from_all | from_first | to_all | to_first) % 4 == 0)
        LAUNCH(copy_channels<4>, blocks_for(rows * (size_t)columns / 4), THREADS, 0, stream, rows, columns,
               from + from_first, from_all, to + to_first, to_all, add);
    else
        LAUNCH(copy_channels<1>, blocks_for(rows * (size_t)columns), THREADS, 0, stream, rows, columns,
               from + from_first, from_all, to + to_first, to_all, add);
}

static ddpm_result concat_forward(const ddpm_graph *g, const ddpm_node *node)
{
    int a = channels(node->in[0]), b = channels(node->in[1]);
    size_t rows = (size_t)g->n * pixels(node->out);
    launch_copy(g, rows, a, node->in[0]->data, a, 0, node->out->data, a + b, 0, 0);
    launch_copy(g, rows, b, node->in[1]->data, b, 0, node->out->data, a + b, a, 0);
    return launched(g, node);
}
static ddpm_result concat_backward(const ddpm_graph *g, const ddpm_node *node)
{
    int a = channels(node->in[0]), b = channels(node->in[1]);
    size_t rows = (size_t)g->n * pixels(node->out);
    launch_copy(g, rows, a, node->out->grad, a + b, 0, gradient_of(node, 0), a, 0, adds_to(node, 0));
    launch_copy(g, rows, b, node->out->grad, a + b, a, gradient_of(node, 1), b, 0, adds_to(node, 1));
    return launched(g, node);
}

static ddpm_result slice_forward(const ddpm_graph *g, const ddpm_node *node)
{
    int whole = channels(node->in[0]), part = channels(node->out);
    launch_copy(g, (size_t)g->n * pixels(node->out), part, node->in[0]->data, whole, node->attr.slice.start,
                node->out->data, part, 0, 0);
    return launched(g, node);
}
static ddpm_result slice_backward(const ddpm_graph *g, const ddpm_node *node)
{
    int whole = channels(node->in[0]), part = channels(node->out);
    float *dx = node->in[0]->grad;
    if (!adds_to(node, 0)) TRY(cuda_zero(state_of(g), dx, ddpm_elements(node->in[0], g->n) * sizeof *dx));
    launch_copy(g, (size_t)g->n * pixels(node->out), part, node->out->grad, part, 0, dx, whole, node->attr.slice.start,
                1);
    return launched(g, node);
}

/* y[i] = sum of the elements of `from` that a functor lists for i, or added to y[i] */
template <class Pick> static __global__ void pick(Pick from, size_t count, float *y, int add)
{
    for (size_t i = first_item(); i < count; i += item_step())
        y[i] = (add ? y[i] : 0) + from(i);
}
template <class Pick> static void launch_pick(const ddpm_graph *g, Pick from, size_t count, float *y, int add)
{
    LAUNCH(pick<Pick>, blocks_for(count), THREADS, 0, state_of(g)->stream, from, count, y, add);
}

struct spot { /* of element i of (N,h,w,c) */
    size_t n;
    int y, x, c;
    __device__ spot(size_t i, int h, int w, int columns)
    {
        c = (int)(i % (size_t)columns), i /= (size_t)columns;
        x = (int)(i % (size_t)w), i /= (size_t)w;
        y = (int)(i % (size_t)h), n = i / (size_t)h;
    }
};
static __device__ __forceinline__ size_t element(size_t n, int y, int x, int c, int h, int w, int columns)
{
    return ((n * (size_t)h + (size_t)y) * (size_t)w + (size_t)x) * (size_t)columns + (size_t)c;
}

struct upsampled {
    const float *from;
    int h, w, c, factor; /* of the small picture */
    __device__ float operator()(size_t i) const
    {
        spot s(i, h * factor, w * factor, c);
        return from[element(s.n, s.y / factor, s.x / factor, s.c, h, w, c)];
    }
};
struct upsampled_backward {
    const float *from;
    int h, w, c, factor;
    __device__ float operator()(size_t i) const
    {
        spot s(i, h, w, c);
        float total = 0;
        for (int y = 0; y < factor; y++)
            for (int x = 0; x < factor; x++)
                total += from[element(s.n, s.y * factor + y, s.x * factor + x, s.c, h * factor, w * factor, c)];
        return total;
    }
};

static ddpm_result upsample_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0];
    launch_pick(g, upsampled{x->data, x->shape[2], x->shape[3], x->shape[1], node->attr.resample.factor},
                ddpm_elements(node->out, g->n), node->out->data, 0);
    return launched(g, node);
}
static ddpm_result upsample_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0];
    launch_pick(g,
                upsampled_backward{node->out->grad, x->shape[2], x->shape[3], x->shape[1], node->attr.resample.factor},
                ddpm_elements(x, g->n), x->grad, adds_to(node, 0));
    return launched(g, node);
}

struct pooled {
    const float *from;
    float *index; /* of the largest, as y w + x; NULL: mean */
    int h, w, c, out_h, out_w, kernel, stride, pad;
    __device__ float operator()(size_t i) const
    {
        spot s(i, out_h, out_w, c);
        int top = s.y * stride - pad, left = s.x * stride - pad, best = -1;
        float total = 0, largest = 0;
        for (int y = top < 0 ? 0 : top; y < top + kernel && y < h; y++)
            for (int x = left < 0 ? 0 : left; x < left + kernel && x < w; x++) {
                float v = from[element(s.n, y, x, s.c, h, w, c)];
                total += v;
                if (best < 0 || v > largest || v != v) largest = v, best = y * w + x;
            }
        if (!index) return total / (float)(kernel * kernel);
        index[i] = (float)best;
        return largest;
    }
};
struct pooled_backward { /* of the windows that hold a pixel */
    const float *dy, *index;
    int h, w, c, out_h, out_w, kernel, stride, pad;
    __device__ float operator()(size_t i) const
    {
        spot s(i, h, w, c);
        int first_y = s.y + pad - kernel + 1, first_x = s.x + pad - kernel + 1;
        float total = 0;
        for (int y = first_y > 0 ? (first_y + stride - 1) / stride : 0; y < out_h && y * stride <= s.y + pad; y++)
            for (int x = first_x > 0 ? (first_x + stride - 1) / stride : 0; x < out_w && x * stride <= s.x + pad; x++) {
                size_t at = element(s.n, y, x, s.c, out_h, out_w, c);
                if (!index)
                    total += dy[at] / (float)(kernel * kernel);
                else if ((int)index[at] == s.y * w + s.x)
                    total += dy[at];
            }
        return total;
    }
};

static ddpm_result pool_forward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0], *y = node->out;
    launch_pick(g,
                pooled{x->data, node->aux ? node->aux->data : NULL, x->shape[2], x->shape[3], x->shape[1], y->shape[2],
                       y->shape[3], node->attr.pool.kernel, node->attr.pool.stride, node->attr.pool.pad},
                ddpm_elements(y, g->n), y->data, 0);
    return launched(g, node);
}
static ddpm_result pool_backward(const ddpm_graph *g, const ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0], *y = node->out;
    launch_pick(g,
                pooled_backward{y->grad, node->aux ? node->aux->data : NULL, x->shape[2], x->shape[3], x->shape[1],
                                y->shape[2], y->shape[3], node->attr.pool.kernel, node->attr.pool.stride,
                                node->attr.pool.pad},
                ddpm_elements(x, g->n), x->grad, adds_to(node, 0));
    return launched(g, node);
}

/* Pixel (un)shuffle: coarse channel c f^2 + fy f + fx of (y,x) is fine channel c of (y f + fy, x f + fx). */
struct shuffled {
    const float *from;
    int to_fine, h, w, c, factor; /* h, w: of the coarse picture; c: of the fine one */
    __device__ float operator()(size_t i) const
    {
        int f = factor;
        if (to_fine) {
            spot s(i, h * f, w * f, c);
            return from[element(s.n, s.y / f, s.x / f, (s.c * f + s.y % f) * f + s.x % f, h, w, c * f * f)];
        }
        spot s(i, h, w, c * f * f);
        return from[element(s.n, s.y * f + s.c / f % f, s.x * f + s.c % f, s.c / (f * f), h * f, w * f, c)];
    }
};

static ddpm_result shuffle(const ddpm_graph *g, const ddpm_node *node, const float *from, float *to, int to_fine,
                           int add)
{
    const ddpm_tensor *fine = node->op == DDPM_OP_PIXEL_UNSHUFFLE ? node->in[0] : node->out;
    int f = node->attr.resample.factor;
    launch_pick(g, shuffled{from, to_fine, fine->shape[2] / f, fine->shape[3] / f, fine->shape[1], f},
                ddpm_elements(fine, g->n), to, add);
    return launched(g, node);
}
static ddpm_result shuffle_forward(const ddpm_graph *g, const ddpm_node *node)
{
    return shuffle(g, node, node->in[0]->data, node->out->data, node->op == DDPM_OP_PIXEL_SHUFFLE, 0);
}
static ddpm_result shuffle_backward(const ddpm_graph *g, const ddpm_node *node)
{
    return shuffle(g, node, node->out->grad, node->in[0]->grad, node->op == DDPM_OP_PIXEL_UNSHUFFLE, adds_to(node, 0));
}

/* ---- 12. Embeddings, losses -------------------------------------------------------------------------------------- */

struct time_features { /* angles in float as torch forms them; what is done with one, in double, then rounded */
    const float *t;
    int dim, flip;
    double freq_shift;
    __device__ float operator()(size_t i) const
    {
        int k = (int)(i % (size_t)dim), half = dim / 2;
        if (k >= 2 * half) return 0;
        int index = k % half, sine = (k < half) != (flip != 0);
        float frequency =
            (float)exp((double)((float)(-log(10000.0)) * (float)index / (float)((double)half - freq_shift)));
        float angle = t[i / (size_t)dim] * frequency;
        return (float)(sine ? sin((double)angle) : cos((double)angle));
    }
};
struct fourier_features {
    const float *t, *weight;
    int columns;
    __device__ float operator()(size_t i) const
    {
        size_t k = i % (2 * (size_t)columns);
        float angle = (float)log((double)t[i / (2 * (size_t)columns)]) * weight[k % (size_t)columns] * 2 *
                      3.14159265358979323846f;
        return (float)(k < (size_t)columns ? sin((double)angle) : cos((double)angle));
    }
};

static ddpm_result time_embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_pick(g,
                time_features{node->in[0]->data, channels(node->out), node->attr.time.flip_sin_to_cos,
                              node->attr.time.freq_shift},
                ddpm_elements(node->out, g->n), node->out->data, 0);
    return launched(g, node);
}
static ddpm_result fourier_embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_pick(g, fourier_features{node->in[0]->data, node->in[1]->data, node->in[1]->shape[0]},
                ddpm_elements(node->out, g->n), node->out->data, 0);
    return launched(g, node);
}

static trouble *trouble_of(const ddpm_graph *g)
{
    return &state_of(g)->news->found;
}

static __device__ void find_trouble(trouble *found, int code, int node, int picture)
{
    if (atomicCAS(&found->code, 0, code) == 0) found->node = node, found->picture = picture;
}

struct embedded {
    const float *index, *table;
    int classes, dim, node;
    trouble *found;
    __device__ float operator()(size_t i) const
    {
        size_t n = i / (size_t)dim;
        float k = index[n];
        if (!(k >= 0 && k < (float)classes && k == (float)(int)k)) {
            if (i % (size_t)dim == 0) find_trouble(found, DDPM_ERR_RANGE, node, (int)n);
            return 0;
        }
        return table[(size_t)k * (size_t)dim + i % (size_t)dim];
    }
};

static ddpm_result embedding_forward(const ddpm_graph *g, const ddpm_node *node)
{
    launch_pick(g,
                embedded{node->in[0]->data, node->in[1]->data, node->in[1]->shape[0], node->in[1]->shape[1], node->id,
                         trouble_of(g)},
                ddpm_elements(node->out, g->n), node->out->data, 0);
    return launched(g, node);
}

/* One thread a column: pictures of the same class are added in their order. */
static __global__ void embedding_gradient(int n, int classes, int dim, const float *index, const float *dy,
                                          float *dtable)
{
    for (size_t c = first_item(); c < (size_t)dim; c += item_step())
        for (int i = 0; i < n; i++)
            if (index[i] >= 0 && index[i] < (float)classes)
                dtable[(size_t)index[i] * (size_t)dim + c] += dy[(size_t)i * (size_t)dim + c];
}

static ddpm_result embedding_backward(const ddpm_graph *g, const ddpm_node *node)
{
    int dim = node->in[1]->shape[1];
    if (!adds_to(node, 1))
        TRY(cuda_zero(g->device->state, node->in[1]->grad, ddpm_elements(node->in[1], 0) * sizeof(float)));
    LAUNCH(embedding_gradient, blocks_for((size_t)dim), THREADS, 0, state_of(g)->stream, g->n, node->in[1]->shape[0],
           dim, node->in[0]->data, node->out->grad, node->in[1]->grad);
    return launched(g, node);
}

/* A sum in double over a picture's elements: one block a picture. */
template <class Term> static __global__ void picture_sums(Term term, size_t picture, float *y)
{
    double *room = reinterpret_cast<double *>(cuda_shared), total = 0;
    for (size_t i = threadIdx.x; i < picture; i += blockDim.x)
        total += term(blockIdx.x, blockIdx.x * picture + i);
    total = block_sum(total, room);
    if (threadIdx.x == 0) y[blockIdx.x] = (float)total;
}
template <class Term> static ddpm_result sum_pictures(const ddpm_graph *g, const ddpm_node *node, Term term)
{
    LAUNCH(picture_sums<Term>, (unsigned)g->n, THREADS, 32 * sizeof(double), state_of(g)->stream, term,
           ddpm_elements(node->in[0], 1), node->out->data);
    return launched(g, node);
}

struct squared_error {
    const float *x, *target;
    __device__ double operator()(size_t, size_t i) const
    {
        double d = (double)x[i] - (double)target[i];
        return d * d;
    }
};
struct squared_error_backward {
    const float *dy;
    size_t picture;
    float sign;
    __device__ float operator()(size_t i, float x, float target) const
    {
        return sign * (2 * (x - target) * dy[i / picture]);
    }
};
static ddpm_result mse_forward(const ddpm_graph *g, const ddpm_node *node)
{
    return sum_pictures(g, node, squared_error{node->in[0]->data, node->in[1]->data});
}
static ddpm_result mse_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->in[0], 1);
    for (int k = 0; k < 2; k++)
        if (gradient_of(node, k))
            launch_map(g, squared_error_backward{node->out->grad, picture, k ? -1.0f : 1.0f}, (size_t)g->n * picture,
                       node->in[0]->data, node->in[1]->data, gradient_of(node, k), adds_to(node, k));
    return launched(g, node);
}

struct cross_entropy {
    const float *p, *target;
    int node;
    trouble *found;
    __device__ double operator()(size_t n, size_t i) const
    {
        double x = (double)p[i], t = (double)target[i];
        if (!(x >= 0 && x <= 1)) {
            find_trouble(found, DDPM_ERR_RANGE, node, (int)n);
            return 0;
        }
        double yes = log(x), no = log1p(-x);
        return -(t * (yes > -100 ? yes : -100) + (1 - t) * (no > -100 ? no : -100));
    }
};
struct cross_entropy_backward {
    const float *dy;
    size_t picture;
    __device__ float operator()(size_t i, float x, float target) const
    {
        double p = (double)x, spread = p * (1 - p);
        return (float)((p - (double)target) / (spread > 1e-12 ? spread : 1e-12)) * dy[i / picture];
    }
};
static ddpm_result bce_forward(const ddpm_graph *g, const ddpm_node *node)
{
    return sum_pictures(g, node, cross_entropy{node->in[0]->data, node->in[1]->data, node->id, trouble_of(g)});
}
static ddpm_result bce_backward(const ddpm_graph *g, const ddpm_node *node)
{
    size_t picture = ddpm_elements(node->in[0], 1);
    launch_map(g, cross_entropy_backward{node->out->grad, picture}, (size_t)g->n * picture, node->in[0]->data,
               node->in[1]->data, node->in[0]->grad, adds_to(node, 0));
    return launched(g, node);
}

/* ---- 13. Noise, combinations ---------------------------------------------------------------------------------------
 * The core's Philox, logarithm, cosine and sine again, operation by operation: the same bits. */

struct words {
    unsigned at[4];
};

static __device__ words philox(ddpm_address address, unsigned block)
{
    unsigned key0 = (unsigned)address.seed, key1 = (unsigned)(address.seed >> 32);
    unsigned c0 = block, c1 = address.step, c2 = (unsigned)address.picture,
             c3 = (address.purpose << 24) ^ (unsigned)(address.picture >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

static __device__ float log_unit(float u)
{
    unsigned bits = __float_as_uint(u);
    int e = (int)(bits >> 23) - 127;
    float m = __uint_as_float((bits & 0x7FFFFF) | 0x3F800000);
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

static __device__ float2 cos_sin_turn(float u)
{
    float quarters = 4 * u;
    int nearest = (int)(quarters + 0.5f);
    float f = quarters - (float)nearest, square = f * f;
    float s = f * fmaf(fmaf(fmaf(-0.004602177f, square, 0.07968023f), square, -0.6459635f), square, 1.5707964f);
    float c = fmaf(
        square, fmaf(fmaf(fmaf(0.0009107611f, square, -0.020863125f), square, 0.2536696f), square, -1.2337005f), 1.0f);
    switch (nearest & 3) {
    case 0: return make_float2(c, s);
    case 1: return make_float2(-s, c);
    case 2: return make_float2(-c, -s);
    default: return make_float2(s, -c);
    }
}

/* Streams count a picture's elements in the core's order: element i of (C,pixels) is at (i % pixels, i / pixels). */
static __device__ __forceinline__ size_t place_of_element(size_t i, size_t plane, size_t columns)
{
    return i % plane * columns + i / plane;
}

static __global__ void fill_normals(const ddpm_step *step, unsigned purpose, int n, size_t columns, size_t plane,
                                    float *x)
{
    size_t picture = columns * plane, each = (picture + 3) / 4, count = (size_t)n * each;
    for (size_t k = first_item(); k < count; k += item_step()) {
        size_t block = k % each;
        ddpm_address address = {step->seed, step->first_picture + k / each, step->index, purpose};
        words w = philox(address, (unsigned)block);
        for (int pair = 0; pair < 4; pair += 2) {
            float u1 = (float)((w.at[pair] >> 8) + 1) * 5.9604644775390625e-8f,
                  u2 = (float)(w.at[pair + 1] >> 8) * 5.9604644775390625e-8f;
            float radius = sqrtf(-2 * log_unit(u1));
            float2 turn = cos_sin_turn(u2);
            size_t i = 4 * block + (size_t)pair;
            float *own = x + k / each * picture;
            if (i < picture) own[place_of_element(i, plane, columns)] = radius * turn.x;
            if (i + 1 < picture) own[place_of_element(i + 1, plane, columns)] = radius * turn.y;
        }
    }
}

static ddpm_result cuda_normal(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    cuda_state *s = state_of(g);
    TRY(send_step(s, &g->step));
    LAUNCH(fill_normals, blocks_for(ddpm_elements(x, g->n) / 4 + 1), THREADS, 0, s->stream, s->step, (unsigned)purpose,
           g->n, (size_t)channels(x), pixels(x), x->data);
    CUDA_OF(cudaGetLastError(), "normals", x);
    return DDPM_OK;
}

static __global__ void drop(const ddpm_step *step, unsigned node, double p, int n, size_t columns, size_t plane,
                            const float *from, float *to, int add)
{
    size_t picture = columns * plane, each = (picture + 3) / 4, count = (size_t)n * each;
    float scale = p < 1 ? (float)(1 / (1 - p)) : 0;
    for (size_t k = first_item(); k < count; k += item_step()) {
        ddpm_address address = {step->seed, step->first_picture + k / each, node, DDPM_RANDOM_DROPOUT};
        words w = philox(address, (unsigned)(k % each));
        for (size_t j = 0; j < 4 && k % each * 4 + j < picture; j++) {
            size_t at = k / each * picture + place_of_element(k % each * 4 + j, plane, columns);
            float kept = (double)w.at[j] * 2.3283064365386963e-10 >= p ? scale * from[at] : 0;
            to[at] = (add ? to[at] : 0) + kept;
        }
    }
}

static ddpm_result dropout(const ddpm_graph *g, const ddpm_node *node, const float *from, float *to, int add)
{
    cuda_state *s = state_of(g);
    TRY(send_step(s, &g->step));
    LAUNCH(drop, blocks_for(ddpm_elements(node->out, g->n) / 4 + 1), THREADS, 0, s->stream, s->step, (unsigned)node->id,
           g->training ? node->attr.affine.scale : 0, g->n, (size_t)channels(node->out), pixels(node->out), from, to,
           add);
    return launched(g, node);
}
static ddpm_result dropout_forward(const ddpm_graph *g, const ddpm_node *node)
{
    return dropout(g, node, node->in[0]->data, node->out->data, 0);
}
static ddpm_result dropout_backward(const ddpm_graph *g, const ddpm_node *node)
{
    return dropout(g, node, node->out->grad, node->in[0]->grad, adds_to(node, 0));
}

constexpr int MOST_TERMS = 4;
typedef struct terms {
    const float *x[MOST_TERMS], *c;
    int count;
    size_t capacity, picture;
    double clamp;
} terms;

static __global__ void combine(terms t, size_t count, float *y)
{
    for (size_t i = first_item(); i < count; i += item_step()) {
        double value = 0;
        for (int k = 0; k < t.count; k++)
            value += (double)t.c[(size_t)k * t.capacity + i / t.picture] * (t.x[k] ? (double)t.x[k][i] : 1);
        if (t.clamp > 0 && value > t.clamp) value = t.clamp;
        if (t.clamp > 0 && value < -t.clamp) value = -t.clamp;
        y[i] = (float)value;
    }
}

static ddpm_result cuda_lincomb(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                                double clamp)
{
    terms t = {{NULL}, c->data, k, (size_t)g->capacity, ddpm_elements(y, 1), clamp};
    if (k > MOST_TERMS) return ddpm_fail(DDPM_ERR_ARGUMENT, "a combination of %d tensors; at most %d", k, MOST_TERMS);
    for (int i = 0; i < k; i++)
        t.x[i] = x[i] ? x[i]->data : NULL;
    size_t count = ddpm_elements(y, g->n);
    LAUNCH(combine, blocks_for(count), THREADS, 0, state_of(g)->stream, t, count, y->data);
    CUDA_OF(cudaGetLastError(), "a linear combination", y);
    return DDPM_OK;
}

/* ---- 14. Update ----------------------------------------------------------------------------------------------------
 * Neighbouring parameters are one run of the flat arrays. Partial sums of squares, their total in order with the factor
 * of the clipping and whether all is finite, then Adam and the average in one pass that does nothing if it is not. */
typedef struct run {
    size_t first, count;
    int trainable;
} run;

/* The run that parameter p begins; returns the parameter after it. */
static int run_from(const ddpm_model *model, int p, run *r)
{
    *r = {model->param[p]->offset, 0, (int)model->param[p]->trainable};
    while (p < model->params && (int)model->param[p]->trainable == r->trainable)
        p++;
    r->count = (p < model->params ? model->param[p]->offset : model->elements) - r->first;
    return p;
}

/* Runs are summed whole, also what lies between two parameters so that each begins a vector; there activations may have
 * been (DDPM_SHARE_GRADIENTS). */
static ddpm_result clear_between(const ddpm_model *model, cudaStream_t stream)
{
    float *grad = (float *)model->array[DDPM_GRAD];
    for (int p = 0; p < model->params; p++) {
        size_t end = model->param[p]->offset + ddpm_elements(model->param[p], 0),
               next = p + 1 < model->params ? model->param[p + 1]->offset : model->elements;
        if (end < next)
            CUDA(cudaMemsetAsync(grad + end, 0, (next - end) * sizeof *grad, stream), "padding of the gradients");
    }
    return DDPM_OK;
}

static unsigned blocks_of_run(const run *r)
{
    size_t blocks = ceil_div(r->count, 16 * THREADS);
    return (unsigned)(blocks < 1024 ? blocks : 1024);
}

static __global__ void sum_squares(size_t count, const float *grad, double *partial)
{
    double *room = reinterpret_cast<double *>(cuda_shared), total = 0;
    for (size_t i = 4 * first_item(); i < count; i += 4 * item_step()) { /* runs are whole vectors */
        float4 v = load4(grad + i);
        total += (double)v.x * (double)v.x + (double)v.y * (double)v.y + (double)v.z * (double)v.z +
                 (double)v.w * (double)v.w;
    }
    total = block_sum(total, room);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

/* The factors of adam_factors() in ddpm_impl.c, from the step struct, so that a recorded update follows it. */
static __global__ void decide(size_t count, const double *partial, const ddpm_step *step, outcome *result)
{
    double *room = reinterpret_cast<double *>(cuda_shared), total = 0;
    for (size_t i = threadIdx.x; i < count; i += blockDim.x)
        total += partial[i];
    total = block_sum(total, room);
    if (threadIdx.x) return;
    double norm = sqrt(total), clip = step->max_grad_norm > 0 ? step->max_grad_norm / (norm + 1e-6) : 1;
    ddpm_adam adam = {(float)(clip < 1 ? clip : 1),
                      (float)(1 - step->beta1),
                      (float)step->beta2,
                      (float)(1 - step->beta2),
                      (float)(1 - step->lr * step->weight_decay),
                      (float)(step->lr / step->correction1),
                      (float)sqrt(step->correction2),
                      (float)step->eps,
                      (float)(1 - step->ema_decay)};
    *result = {norm, adam, isfinite(total)};
}

typedef struct adam_job {
    float *w, *m, *v, *ema; /* ema NULL: none kept */
    const float *grad;
    int trainable;
} adam_job;

static __device__ __forceinline__ void adam(const ddpm_adam &p, float grad, float *w, float *m, float *v)
{
    float g = p.clip * grad;
    *m += p.one_b1 * (g - *m);
    *v = p.b2 * *v + p.one_b2 * g * g;
    *w = p.keep * *w - p.rate * *m / (sqrtf(*v) / p.root + p.eps);
}

static __global__ void update_run(adam_job p, size_t first, size_t count, const outcome *result)
{
    if (!result->finite) return;
    const ddpm_adam factor = result->adam;
    for (size_t i = first + 4 * first_item(); i < first + count; i += 4 * item_step()) {
        float4 w = load4(p.w + i);
        if (p.trainable) {
            float4 g = load4(p.grad + i), m = load4(p.m + i), v = load4(p.v + i);
            adam(factor, g.x, &w.x, &m.x, &v.x);
            adam(factor, g.y, &w.y, &m.y, &v.y);
            adam(factor, g.z, &w.z, &m.z, &v.z);
            adam(factor, g.w, &w.w, &m.w, &v.w);
            store4(p.w + i, w), store4(p.m + i, m), store4(p.v + i, v);
        }
        if (p.ema) {
            float4 e = load4(p.ema + i);
            e.x -= factor.ema * (e.x - w.x), e.y -= factor.ema * (e.y - w.y);
            e.z -= factor.ema * (e.z - w.z), e.w -= factor.ema * (e.w - w.w);
            store4(p.ema + i, e);
        }
    }
}

static ddpm_result name_nonfinite(ddpm_model *model)
{
    for (int p = model->params - 1; p >= 0; p--) {
        const ddpm_tensor *x = model->param[p];
        size_t count = ddpm_elements(x, 0), at = 0;
        if (!x->trainable) continue;
        float *host = (float *)malloc(count * sizeof *host);
        if (!host) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
        ddpm_result result = ddpm_model_get(model, DDPM_GRAD, x, host);
        while (result == DDPM_OK && at < count && isfinite(host[at]))
            at++;
        free(host);
        if (result != DDPM_OK) return result;
        if (at < count)
            return ddpm_fail(DDPM_ERR_NONFINITE,
                             "the gradient of '%s' is not finite\n      hint: a smaller learning rate", x->name);
    }
    return ddpm_fail(DDPM_ERR_NONFINITE,
                     "the norm of the gradients is not finite\n      hint: a smaller learning rate");
}

static ddpm_result cuda_update(ddpm_model *model, ddpm_step *step)
{
    cuda_state *s = (cuda_state *)model->device->state;
    run r;
    size_t blocks = 0;
    for (int p = 0; p < model->params;) {
        p = run_from(model, p, &r);
        if (r.trainable) blocks += blocks_of_run(&r);
    }
    if (s->square_room < blocks * sizeof(double)) forget_recordings(s, NULL); /* they know the old place */
    TRY(grow(s, (void **)&s->squares, &s->square_room, (blocks ? blocks : 1) * sizeof(double)));
    TRY(send_step(s, step));
    TRY(clear_between(model, s->stream));
    const float *grad = (const float *)model->array[DDPM_GRAD];
    size_t at = 0;
    for (int p = 0; p < model->params;) {
        p = run_from(model, p, &r);
        if (!r.trainable) continue;
        LAUNCH(sum_squares, blocks_of_run(&r), THREADS, 32 * sizeof(double), s->stream, r.count, grad + r.first,
               s->squares + at);
        at += blocks_of_run(&r);
    }
    LAUNCH(decide, 1, THREADS, 32 * sizeof(double), s->stream, blocks, s->squares, s->step, &s->news->update);
    adam_job job = {(float *)model->array[DDPM_WEIGHT],
                    (float *)model->array[DDPM_MOMENT1],
                    (float *)model->array[DDPM_MOMENT2],
                    (float *)model->array[DDPM_EMA],
                    grad,
                    0};
    for (int p = 0; p < model->params;) {
        p = run_from(model, p, &r);
        job.trainable = r.trainable;
        LAUNCH(update_run, blocks_for(r.count / 4), THREADS, 0, s->stream, job, r.first, r.count, &s->news->update);
    }
    CUDA(cudaGetLastError(), "update");
    return receive_news(s);
}

static ddpm_result cuda_outcome(ddpm_model *model, ddpm_step *step)
{
    const outcome *told = &((cuda_state *)model->device->state)->told->update;
    step->grad_norm = told->grad_norm;
    return told->finite ? DDPM_OK : name_nonfinite(model);
}

/* ---- 15. The backend --------------------------------------------------------------------------------------------- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t scratch_of(const ddpm_graph *g, const ddpm_node *node) /* in floats */
{
    int c = channels(node->out);
    size_t rows = (size_t)g->capacity * pixels(node->out), most = 0;
    switch (node->op) {
    case DDPM_OP_CONV2D:
    case DDPM_OP_LINEAR:
        most = product_scratch(g, node, FORWARD);
        if (node->wants & 1) most = larger(most, product_scratch(g, node, TO_X));
        if (node->wants & 2) most = larger(most, product_scratch(g, node, TO_WEIGHT));
        return larger(most, sums_scratch(1, rows, c));
    case DDPM_OP_GROUP_NORM: return 2 * (size_t)g->capacity * (size_t)c;
    case DDPM_OP_BATCH_NORM: return sums_scratch(1, rows, c) + 2 * (size_t)c;
    case DDPM_OP_ADD:
    case DDPM_OP_MODULATE: return sums_scratch(g->capacity, pixels(node->out), c);
    default: return 0;
    }
}

static ddpm_result check_limits(const ddpm_node *node)
{
    constexpr int MOST_HEAD = 512;
    if (node->op == DDPM_OP_GROUP_NORM) {
        int per_group = channels(node->in[0]) / node->attr.norm.groups, most = MOST_THREADS;
        if (per_group / (per_group % 4 ? 1 : 4) > most)
            return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                             "%s: a group of %d channels; on CUDA at most %d (%d if no multiple "
                             "of 4)\n      hint: more norm_num_groups, or --backend cpu",
                             node->name, per_group, 4 * most, most);
    }
    if (node->op == DDPM_OP_ATTENTION && channels(node->out) / node->attr.attention.heads > MOST_HEAD)
        return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                         "%s: a head of %d channels; on CUDA at most %d\n      hint: a smaller attention_head_dim, or "
                         "--backend cpu",
                         node->name, channels(node->out) / node->attr.attention.heads, MOST_HEAD);
    return DDPM_OK;
}

static ddpm_result cuda_plan(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes; i++) {
        ddpm_node *node = g->node[i];
        TRY(check_limits(node));
        if (node->op == DDPM_OP_GROUP_NORM) node->plan = ddpm_fold_silu(g, node);
        node->scratch_elements = scratch_of(g, node);
    }
    return DDPM_OK;
}

static void cuda_unplan(ddpm_graph *g)
{
    cuda_state *s = state_of(g);
    if (s->last == g) s->last = NULL;
    forget_requests(s); /* its nodes go */
    forget_recordings(s, g);
    for (int i = 0; i < g->tensors; i++)
        free_batch((batch *)g->tensor[i]->device);
}

static ddpm_result cuda_room(void *state, size_t *free_bytes)
{
    size_t total;
    (void)state;
    CUDA(cudaMemGetInfo(free_bytes, &total), "cudaMemGetInfo");
    return DDPM_OK;
}

static void cuda_close(void *state)
{
    cuda_state *s = (cuda_state *)state;
    if (!s) return;
    forget_recordings(s, NULL);
    (void)cudaFree(s->stage);
    (void)cudaFree(s->news);
    (void)cudaFree(s->step);
    (void)cudaFree(s->squares);
    (void)cudaFreeHost(s->mail);
    (void)cudaFreeHost(s->told);
    if (s->arrivals) (void)cudaStreamDestroy(s->arrivals);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    free(s);
}

static ddpm_result choose_precision(cuda_state *s, const cudaDeviceProp *device, const char *isa)
{
    int tensor_cores = device->major >= 8;
    s->how = tensor_cores ? TF32 : FP32;
    for (int i = 0; isa && i <= BF16; i++)
        if (!strcmp(isa, precision_names[i])) s->how = (precision)i, isa = NULL;
    if (isa)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "cuda has no precision '%s'\n      hint: --isa fp32, tf32 or bf16", isa);
    if (s->how != FP32 && !tensor_cores)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s needs compute capability 8.0, %s has %d.%d\n      hint: --isa fp32 computes on any",
                         precision_names[s->how], device->name, device->major, device->minor);
    int driver = 0;
    CUDA(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    snprintf(s->isa, sizeof s->isa, "%s on %.64s (sm_%d%d, %.1f GiB, driver for CUDA %d.%d)", precision_names[s->how],
             device->name, device->major, device->minor, (double)device->totalGlobalMem / 1073741824, driver / 1000,
             driver % 1000 / 10);
    return DDPM_OK;
}

static ddpm_result open_device(cuda_state *s, const char *isa)
{
    cudaDeviceProp device;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count < 1)
        return ddpm_fail(DDPM_ERR_BACKEND,
                         "cuda: no device (%s)\n      hint: nvidia-smi shows what the driver sees; --backend cpu needs "
                         "none",
                         error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    CUDA(cudaSetDevice(0), "cudaSetDevice");
    CUDA(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    TRY(choose_precision(s, &device, isa));
    CUDA(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "cudaStreamCreate");
    CUDA(cudaStreamCreateWithFlags(&s->arrivals, cudaStreamNonBlocking), "cudaStreamCreate");
    CUDA(cudaMallocHost(&s->mail, MAIL), "pinned memory");
    CUDA(cudaMallocHost(&s->told, sizeof *s->told), "pinned memory");
    memset(s->told, 0, sizeof *s->told);
    s->step_by_step = getenv("CUDA_LAUNCH_BLOCKING") != NULL;
    TRY(cuda_alloc(s, sizeof *s->step, (void **)&s->step)); /* zeros, as s->sent */
    return cuda_alloc(s, sizeof *s->news, (void **)&s->news);
}

static ddpm_result cuda_open(void **state, int threads, const char *isa)
{
    (void)threads;
    *state = NULL;
    cuda_state *s = (cuda_state *)calloc(1, sizeof *s);
    if (!s) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    ddpm_result result = open_device(s, isa);
    if (result == DDPM_OK)
        *state = s;
    else
        cuda_close(s);
    return result;
}

static const char *cuda_isa(const void *state)
{
    return ((const cuda_state *)state)->isa;
}

/* In the order of DDPM_OPS: C++17 has no designators for arrays. */
static const ddpm_row cuda_rows[] = {
    {conv_forward, conv_backward},             /* conv2d */
    {conv_forward, conv_backward},             /* linear */
    {group_norm_forward, group_norm_backward}, /* group_norm */
    {activation_forward, activation_backward}, /* activation */
    {attention_forward, attention_backward},   /* attention */
    {add_forward, add_backward},               /* add */
    {concat_forward, concat_backward},         /* concat */
    {upsample_forward, upsample_backward},     /* upsample */
    {time_embedding_forward, NULL},            /* time_embedding */
    {mse_forward, mse_backward},               /* mse */
    {modulate_forward, modulate_backward},     /* modulate */
    {slice_forward, slice_backward},           /* slice */
    {pool_forward, pool_backward},             /* pool */
    {shuffle_forward, shuffle_backward},       /* pixel_unshuffle */
    {shuffle_forward, shuffle_backward},       /* pixel_shuffle */
    {dropout_forward, dropout_backward},       /* dropout */
    {affine_forward, affine_backward},         /* affine */
    {fourier_embedding_forward, NULL},         /* fourier_embedding */
    {embedding_forward, embedding_backward},   /* embedding */
    {batch_norm_forward, batch_norm_backward}, /* batch_norm */
    {bce_forward, bce_backward},               /* bce */
};
static_assert(sizeof cuda_rows / sizeof *cuda_rows == DDPM_OP_COUNT, "a row for each operation");

extern "C" const ddpm_backend *ddpm_cuda(void)
{
    static const ddpm_backend cuda = {"cuda",       cuda_rows,   cuda_open,  cuda_close,   cuda_plan,     cuda_unplan,
                                      cuda_alloc,   cuda_free,   cuda_zero,  cuda_upload,  cuda_download, cuda_sync,
                                      cuda_lincomb, cuda_normal, NULL,       NULL,         cuda_isa,      cuda_update,
                                      cuda_outcome, cuda_fetch,  cuda_stage, cuda_unstage, cuda_repeat,   cuda_room};
    return &cuda;
}

extern "C" void *ddpm_cuda_stream(const ddpm_device *device)
{
    return ((cuda_state *)device->state)->stream;
}
