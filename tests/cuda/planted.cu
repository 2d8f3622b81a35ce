/* tests/cuda/planted.cu - every check of the emulated GPU catches a mistake that was planted for it, and none speaks up
 * at the same kernel without it. Built with checks only.
 *
 * Contents: 1 kernels   2 mistakes of the host   3 each with what must be said   4 main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}

extern __shared__ float4 cuda_shared[];

/* ---- 1. Kernels: `plant` 0 is right ---- */

/* y[i] = sum of the block's x */
static __global__ void block_total(int plant, const float *x, float *y, float *host)
{
    float *s = reinterpret_cast<float *>(cuda_shared);
    int t = (int)threadIdx.x, i = (int)(blockIdx.x * blockDim.x) + t;
    enum { OUT_OF_BOUNDS = 1, BEYOND_SHARED, NO_BARRIER, UNSET, HOST_POINTER, MISALIGNED, EARLY_EXIT, TWO_BARRIERS, BLOCKS };
    s[plant == BEYOND_SHARED ? t + 1 : t] = x[plant == OUT_OF_BOUNDS ? i + 1 : i];
    if (plant == EARLY_EXIT && t == 5) return;
    if (plant == TWO_BARRIERS && t < 32)
        __syncthreads();
    else if (plant != NO_BARRIER)
        __syncthreads();
    float total = 0;
    for (int k = 0; k < (int)blockDim.x; k++)
        if (plant != UNSET || k != 3) total += s[k];
    if (plant == UNSET) total += s[blockDim.x + 3]; /* there, but never written */
    if (plant == HOST_POINTER && t == 0) host[0] = total;
    if (plant == MISALIGNED && t == 0) *reinterpret_cast<float2 *>(y + 1) = make_float2(0, 0);
    y[plant == BLOCKS ? t : i] = total;
}

static __global__ void warp_total(int plant, const float *x, float *y)
{
    enum { MASK = 1, SOME_LANES, SOURCE, WIDTH, NO_SYNCWARP };
    float *s = reinterpret_cast<float *>(cuda_shared);
    int t = (int)threadIdx.x;
    float v = x[t];
    if (plant == SOME_LANES && t >= 16) {
        y[t] = v;
        return;
    }
    for (int offset = 16; offset; offset /= 2)
        v += __shfl_xor_sync(plant == MASK ? 0xFFFFu : ~0u, v, offset, plant == WIDTH ? 24 : 32);
    if (plant == SOURCE && t < 16) v = __shfl_sync(0xFFFFu, v, 20);
    s[t] = v;
    if (plant != NO_SYNCWARP) __syncwarp();
    y[t] = s[31 - t];
}

static __global__ void add_up(int plant, int *count)
{
    if (plant)
        *count += 1; /* all threads of all blocks at once */
    else
        atomicAdd(count, 1);
}

static __global__ void copy_later(int plant, const float *x, float *y)
{
    enum { NO_WAIT = 1, BYTES, LEFT };
    float *s = reinterpret_cast<float *>(cuda_shared);
    int t = (int)threadIdx.x;
    __pipeline_memcpy_async(s + t, x + t, plant == BYTES ? 2 : 4);
    __pipeline_commit();
    if (plant != NO_WAIT && plant != LEFT) __pipeline_wait_prior(0);
    if (plant != LEFT) y[t] = s[t];
}

static __global__ void tensor_core(int plant, const float *x, float *y)
{
    enum { UNROUNDED = 1, TILE_ALIGNMENT };
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 8, precision::tf32, row_major> a;
    fragment<matrix_b, 16, 16, 8, precision::tf32, row_major> b;
    fragment<accumulator, 16, 16, 8, float> c;
    fill_fragment(c, 0.0f);
    load_matrix_sync(a, x + (plant == TILE_ALIGNMENT ? 4 : 0), 8);
    load_matrix_sync(b, x, 16);
    for (int i = 0; i < a.num_elements && plant != UNROUNDED; i++)
        a.x[i] = __float_to_tf32(a.x[i]);
    for (int i = 0; i < b.num_elements; i++)
        b.x[i] = __float_to_tf32(b.x[i]);
    mma_sync(c, a, b, c);
    store_matrix_sync(y, c, 16, mem_row_major);
}

/* ---- 2. Mistakes of the host ---- */

struct memory { /* on the device */
    float *x, *y;
    int *count;
    cudaStream_t stream;
};
enum { THREADS = 64, BLOCKS = 4, COUNT = THREADS * BLOCKS };

static void host_side(int plant, const memory &m)
{
    enum { TOO_MANY_THREADS = 1, TOO_MUCH_SHARED, GRID, COPY_BOUNDS, FREE_TWICE, SYNC_IN_CAPTURE, UNPINNED_IN_CAPTURE,
           MALLOC_IN_CAPTURE };
    float host[COUNT] = {0};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    bool capture = plant == 0 || plant >= SYNC_IN_CAPTURE;
    if (capture) cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal);
    LAUNCH(block_total, dim3(BLOCKS, plant == GRID ? 70000 : 1), plant == TOO_MANY_THREADS ? 1056 : THREADS,
           plant == TOO_MUCH_SHARED ? 60000 : THREADS * sizeof(float), m.stream, 0, m.x, m.y, nullptr);
    if (plant == SYNC_IN_CAPTURE) cudaStreamSynchronize(m.stream);
    if (plant == UNPINNED_IN_CAPTURE) cudaMemcpyAsync(m.x, host, sizeof host, cudaMemcpyHostToDevice, m.stream);
    float *more = nullptr;
    if (plant == MALLOC_IN_CAPTURE) cudaMalloc(&more, sizeof host);
    if (capture) {
        cudaStreamEndCapture(m.stream, &graph);
        cudaGraphInstantiate(&exec, graph, 0);
        for (int i = 0; i < 2; i++)
            cudaGraphLaunch(exec, m.stream);
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
    }
    if (plant == COPY_BOUNDS)
        cudaMemcpyAsync(host, m.x + COUNT / 2, sizeof host, cudaMemcpyDeviceToHost, m.stream);
    if (plant == FREE_TWICE) cudaFree(m.x + 1);
    cudaStreamSynchronize(m.stream);
    cudaGetLastError();
}

/* Two streams: one brings x, the other computes with it. */
static void two_streams(int plant, const memory &m)
{
    enum { NO_WAIT = 1 };
    float *fresh, *pinned;
    cudaStream_t arrivals;
    cudaEvent_t arrived;
    cudaStreamCreateWithFlags(&arrivals, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming);
    cudaMalloc(&fresh, COUNT * sizeof(float));
    cudaMallocHost(&pinned, COUNT * sizeof(float));
    for (int i = 0; i < COUNT; i++)
        pinned[i] = (float)i;
    cudaMemcpyAsync(fresh, pinned, COUNT * sizeof(float), cudaMemcpyHostToDevice, arrivals);
    cudaEventRecord(arrived, arrivals);
    if (plant != NO_WAIT) cudaStreamWaitEvent(m.stream, arrived, 0);
    LAUNCH(block_total, BLOCKS, THREADS, THREADS * sizeof(float), m.stream, 0, fresh, m.y, nullptr);
    cudaStreamSynchronize(m.stream);
    cudaEventDestroy(arrived);
    cudaStreamDestroy(arrivals);
    cudaFreeHost(pinned);
    cudaFree(fresh);
}

/* ---- 3. Each with what must be said ---- */

enum kind { BLOCK, WARP_, ATOMIC, COPY, TENSOR, HOST, STREAMS };
static const struct {
    enum kind kind;
    int plant;
    const char *said, *or_said; /* one of them, by the order of the threads */
} planted[] = {
    {BLOCK, 1, "out of bounds"},       {BLOCK, 2, "out of bounds"},      {BLOCK, 3, "race", "nobody has written"},
    {BLOCK, 4, "nobody has written"},  {BLOCK, 5, "host memory"},        {BLOCK, 6, "not aligned"},
    {BLOCK, 7, "have ended while"},    {BLOCK, 8, "different __sync"},   {BLOCK, 9, "race"},
    {WARP_, 1, "leaves it out"},       {WARP_, 2, "not take part", "elsewhere"},      {WARP_, 3, "does not take part"},
    {WARP_, 4, "no power of two"},     {WARP_, 5, "race", "nobody has written"},               {ATOMIC, 1, "race"},
    {COPY, 1, "nobody has written"},   {COPY, 2, "4, 8 or 16"},          {COPY, 3, "before its asynchronous copies"},
    {TENSOR, 1, "rounded to TF32"},    {TENSOR, 2, "multiple of 32"},    {HOST, 1, "out of limits"},
    {HOST, 2, "out of limits"},        {HOST, 3, "out of limits"},       {HOST, 4, "outside a device buffer"},
    {HOST, 5, "no device buffer"},     {HOST, 6, "being captured"},      {HOST, 7, "not pinned"},
    {HOST, 8, "being captured"},       {STREAMS, 1, "nobody has written"},
};
enum { PLANTED = sizeof planted / sizeof *planted };

static void run(enum kind kind, int plant, unsigned order, char *said, size_t size)
{
    memory m;
    float host[COUNT + 8];
    for (int i = 0; i < COUNT; i++)
        host[i] = 1.0f / (float)(i + 3);
    cuda_on_cpu_order(order);
    cudaMalloc(&m.x, COUNT * sizeof(float));
    cudaMalloc(&m.y, (COUNT + 8) * sizeof(float));
    cudaMalloc(&m.count, sizeof(int));
    cudaStreamCreateWithFlags(&m.stream, cudaStreamNonBlocking);
    cudaMemcpyAsync(m.x, host, COUNT * sizeof(float), cudaMemcpyHostToDevice, m.stream);
    cudaMemsetAsync(m.count, 0, sizeof(int), m.stream);
    size_t shared = THREADS * sizeof(float);
    if (kind == BLOCK)
        LAUNCH(block_total, BLOCKS, THREADS, plant == 4 ? 2 * shared : shared, m.stream, plant, m.x, m.y, host);
    if (kind == WARP_) LAUNCH(warp_total, 1, 32, shared, m.stream, plant, m.x, m.y);
    if (kind == ATOMIC) LAUNCH(add_up, BLOCKS, THREADS, 0, m.stream, plant, m.count);
    if (kind == COPY) LAUNCH(copy_later, 1, THREADS, shared, m.stream, plant, m.x, m.y);
    if (kind == TENSOR) LAUNCH(tensor_core, 1, 32, 0, m.stream, plant, m.x, m.y);
    if (kind == HOST) host_side(plant, m);
    if (kind == STREAMS) two_streams(plant, m);
    cudaStreamSynchronize(m.stream);
    cudaFree(m.x);
    cudaFree(m.y);
    cudaFree(m.count);
    cudaStreamDestroy(m.stream);
    cuda_on_cpu_mistakes(said, size);
}

static void test_right_ones(void **)
{
    char said[600];
    for (unsigned order = 0; order < 3; order++)
        for (int kind = BLOCK; kind <= STREAMS; kind++) {
            run((enum kind)kind, 0, order, said, sizeof said);
            assert_string_equal(said, "");
        }
}

static void test_planted(void **)
{
    char said[600];
    for (int i = 0; i < PLANTED; i++)
        for (unsigned order = 0; order < 3; order++) {
            if (planted[i].kind == STREAMS && order == 1) continue; /* there the other stream happens to be first */
            run(planted[i].kind, planted[i].plant, order, said, sizeof said);
            if (!strstr(said, planted[i].said) && !(planted[i].or_said && strstr(said, planted[i].or_said)))
                fail_msg("kind %d, mistake %d, order %u: '%s' should say '%s'", planted[i].kind, planted[i].plant,
                         order, said, planted[i].said);
        }
    print_message("           %d mistakes, each in three orders\n", PLANTED);
}

/* ---- 4. main ---- */

int main()
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_right_ones), cmocka_unit_test(test_planted)};
    assert_true(cuda_on_cpu_checked());
    return cmocka_run_group_tests_name("the emulated GPU's checks", tests, NULL, NULL);
}
