/* tests/cuda_on_cpu.h - cuda_backend.cu without a GPU: the C++ compiler takes the file with this header in front
 * (g++ -x c++ -include tests/cuda_on_cpu.h), and its kernels run on the processor.
 *
 * Every thread of a block is a fiber: __syncthreads, warp shuffles, votes and wmma have their real meaning, and the
 * order in which threads, warps, blocks and streams run can be varied. Launches and asynchronous copies are deferred
 * until something synchronises. Device memory is NaN at first and cannot be touched outside kernels. Where the kernels
 * are compiled with -fsanitize=thread,alignment (without its libraries: the runtime has the functions that this calls),
 * every access is checked: bounds, races, uninitialised shared memory, host pointers, alignment. tests/cuda/planted.cu
 * shows each check catching a mistake.
 *
 * Not seen: weak memory order, blocks that wait for each other, an overflow from one array into its neighbour in shared
 * memory, a launch that needs too many registers. Shared memory is the one dynamic array: `extern __shared__`; a static
 * one does not compile here.
 *
 * Contents: 1 for tests (C)   2 the language   3 threads and warps   4 arithmetic, number formats   5 tensor cores
 *           6 memory, streams, graphs, devices */
#ifndef TESTS_CUDA_ON_CPU_H
#define TESTS_CUDA_ON_CPU_H
#include <stddef.h>
#include <stdint.h>

/* ---- 1. For tests (C) -------------------------------------------------------------------------------------------- */
#ifdef __cplusplus
extern "C" {
#endif

/* The order of threads in a warp, warps in a block, blocks in a grid, streams: 0 forward, 1 backward, else shuffled. */
void cuda_on_cpu_order(unsigned order);
int cuda_on_cpu_checked(void); /* are the kernels compiled with checks? */
/* Mistakes seen since the last call. text: the first one, "" if none. A program that ends with some uncounted exits
 * with 99. */
int cuda_on_cpu_mistakes(char *text, size_t size);
/* The device there seems to be: compute capability (80 is 8.0; 0: no device), bytes of memory. At first 80, 8 GiB. */
void cuda_on_cpu_device(int capability, size_t memory);
/* Kernels with `part` in their names fail when they should run, as by an access that is not allowed, which stays an
 * error. NULL: they run again, and it is forgotten. */
void cuda_on_cpu_fail(const char *part);
int cuda_on_cpu_buffers(void);            /* device buffers not yet freed */
unsigned long cuda_on_cpu_launches(void); /* kernels launched so far, those in a replayed graph too */
unsigned long cuda_on_cpu_stalls(void);   /* times that the host has waited for the device, or allocated */

#ifdef __cplusplus
}

/* clang-format off */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>

/* ---- 2. The language --------------------------------------------------------------------------------------------- */

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __shared__ __attribute__((weak)) /* of a variable that is not extern: does not compile */
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct cudaStream;
namespace cuda_on_cpu {
struct place { /* in the source, for reports */
    const char *file;
    int line;
};
#define CUDA_HERE cuda_on_cpu::place here = {__builtin_FILE(), __builtin_LINE()}

extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

struct unchecked { /* while one lives, accesses are not checked */
    unchecked();
    ~unchecked();
};

/* A launch: `run` is called once by each thread, unchecked until it calls begin_kernel. */
void begin_kernel();
struct work {
    const char *name;
    const void *kernel;
    dim3 grid, block;
    size_t shared;
    place where;
    std::function<void()> run;
};
void submit(cudaStream *stream, const work &w);

template <class... P, class... A>
void launch(place where, const char *name, dim3 grid, dim3 block, size_t shared, cudaStream *stream,
            void (*kernel)(P...), A &&...arguments)
{
    using copy = std::tuple<std::decay_t<P>...>; /* arguments are copied when a kernel is launched */
    auto held = std::make_shared<copy>(static_cast<std::decay_t<P>>(arguments)...);
    auto run = [=] {
        auto own = std::make_pair(kernel, *held); /* this thread's arguments, on its stack */
        begin_kernel();
        std::apply(own.first, own.second);
    };
    submit(stream, {name, (const void *)kernel, grid, block, shared, where, run});
}
} // namespace cuda_on_cpu

#define LAUNCH(kernel, grid, block, shared, stream, ...)                                                               \
    cuda_on_cpu::launch({__FILE__, __LINE__}, #kernel, grid, block, shared, stream, kernel, __VA_ARGS__)
#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_size)
#define gridDim (cuda_on_cpu::grid_size)

/* ---- 3. Threads and warps ---------------------------------------------------------------------------------------- */

namespace cuda_on_cpu {
enum exchange { SYNC, FROM_LANE, FROM_BELOW, FROM_ABOVE, FROM_XOR, BALLOT, CALL };
void block_barrier(place where);
/* Waits for the lanes of `mask`, who must call the same; returns what this lane gets. */
uint64_t warp_exchange(exchange how, unsigned mask, uint64_t value, int argument, int width, place where);
/* All 32 lanes call this; `function` runs once with what each has passed. */
void warp_call(void (*function)(void *const lane[32]), void *mine, place where);
unsigned lane_index();
void touch_atomically(void *address, size_t bytes); /* to the checks: an access that may meet others */

template <class T> T shuffle(exchange how, unsigned mask, T value, int argument, int width, place where)
{
    static_assert(sizeof(T) <= 8, "at most eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_exchange(how, mask, bits, argument, width, where);
    memcpy(&value, &bits, sizeof value);
    return value;
}
} // namespace cuda_on_cpu

constexpr int warpSize = 32;
inline void __syncthreads(CUDA_HERE) { cuda_on_cpu::block_barrier(here); }
inline void __syncwarp(unsigned mask = ~0u, CUDA_HERE) { warp_exchange(cuda_on_cpu::SYNC, mask, 0, 0, 32, here); }
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CUDA_HERE)
{
    return shuffle(cuda_on_cpu::FROM_LANE, mask, v, lane, width, here);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CUDA_HERE)
{
    return shuffle(cuda_on_cpu::FROM_BELOW, mask, v, (int)by, width, here);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CUDA_HERE)
{
    return shuffle(cuda_on_cpu::FROM_ABOVE, mask, v, (int)by, width, here);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, CUDA_HERE)
{
    return shuffle(cuda_on_cpu::FROM_XOR, mask, v, by, width, here);
}
inline unsigned __ballot_sync(unsigned mask, int yes, CUDA_HERE)
{
    return (unsigned)warp_exchange(cuda_on_cpu::BALLOT, mask, yes != 0, 0, 32, here);
}
inline int __any_sync(unsigned mask, int yes, CUDA_HERE) { return __ballot_sync(mask, yes, here) != 0; }
inline int __all_sync(unsigned mask, int yes, CUDA_HERE) { return __ballot_sync(mask, !yes, here) == 0; }

/* Fibers are not interrupted between two of their calls: a read and a write in a row are atomic. */
template <class T, class F> T cuda_on_cpu_atomic(T *p, F change)
{
    cuda_on_cpu::touch_atomically(p, sizeof *p);
    cuda_on_cpu::unchecked here;
    T old = *p;
    *p = change(old);
    return old;
}
inline int atomicAdd(int *p, int v) { return cuda_on_cpu_atomic(p, [=](int old) { return old + v; }); }
inline int atomicMin(int *p, int v) { return cuda_on_cpu_atomic(p, [=](int old) { return v < old ? v : old; }); }
inline int atomicMax(int *p, int v) { return cuda_on_cpu_atomic(p, [=](int old) { return v > old ? v : old; }); }
inline int atomicCAS(int *p, int expected, int v)
{
    return cuda_on_cpu_atomic(p, [=](int old) { return old == expected ? v : old; });
}

/* Asynchronous copies into shared memory land when they are waited for, not before. */
namespace cuda_on_cpu {
void copy_later(void *to, const void *from, size_t bytes, place where);
void close_group();
void wait_for_groups(int all_but);
} // namespace cuda_on_cpu
inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes, CUDA_HERE)
{
    cuda_on_cpu::copy_later(to, from, bytes, here);
}
inline void __pipeline_commit() { cuda_on_cpu::close_group(); }
inline void __pipeline_wait_prior(int all_but) { cuda_on_cpu::wait_for_groups(all_but); }

/* ---- 4. Arithmetic, number formats ------------------------------------------------------------------------------- */

template <class T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T max(T a, T b) { return a < b ? b : a; }
inline int __float_as_int(float f)
{
    int i;
    memcpy(&i, &f, 4);
    return i;
}
inline float __int_as_float(int i)
{
    float f;
    memcpy(&f, &i, 4);
    return f;
}
inline unsigned __float_as_uint(float f) { return (unsigned)__float_as_int(f); }
inline float __uint_as_float(unsigned i) { return __int_as_float((int)i); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

/* bfloat16: the upper half of a float, rounded to the nearest, ties to even. */
struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16(float f)
{
    unsigned u = __float_as_uint(f);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
    return {(uint16_t)((u + 0x7FFFu + (u >> 16 & 1)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float((unsigned)b.bits << 16); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }

struct __half {
    _Float16 value;
};
inline __half __float2half(float f) { return {(_Float16)f}; }
inline float __half2float(__half h) { return (float)h.value; }

/* ---- 5. Tensor cores: nvcuda::wmma 16x16x16 (bf16, half) and 16x16x8 (TF32) --------------------------------------
 * Which lane holds which element is not defined by CUDA either: here lane l holds elements l, l + 32, ... */

namespace nvcuda
{
namespace wmma
{
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision
{
struct tf32 {}; /* ten bits of mantissa, held in a float */
} // namespace precision

/* TF32: round to nearest, ties away from zero (PTX: cvt.rna.tf32.f32). */
inline float __float_to_tf32(float f)
{
    unsigned u = __float_as_uint(f);
    if ((u & 0x7F800000u) == 0x7F800000u) return f;
    return __uint_as_float((u + 0x1000u) & ~0x1FFFu);
}

inline float value_of(float f, bool *exact)
{
    *exact = (__float_as_uint(f) & 0x1FFFu) == 0 || (__float_as_uint(f) & 0x7F800000u) == 0x7F800000u;
    return f;
}
inline float value_of(__nv_bfloat16 b, bool *exact) { return *exact = true, __bfloat162float(b); }
inline float value_of(__half h, bool *exact) { return *exact = true, __half2float(h); }

template <class T> struct held {
    typedef T type;
};
template <> struct held<precision::tf32> {
    typedef float type;
};

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static_assert(M == 16 && N == 16 && (std::is_same<Use, accumulator>::value ||
                                         K == (std::is_same<T, precision::tf32>::value ? 8 : 16)),
                  "16x16x16, or 16x16x8 of tf32");
    static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M,
                         columns = std::is_same<Use, matrix_a>::value ? K : N, num_elements = rows * columns / 32;
    typename held<T>::type x[num_elements];
};

template <class F, class T> void fill_fragment(F &f, T value)
{
    for (auto &x : f.x)
        x = value;
}

void check_tile(const void *p, size_t row_bytes, cuda_on_cpu::place where);

/* Element (r,c) lies at p[r * row + c * column]. */
template <class F, class T, class Do> void visit(F &f, T *p, unsigned stride, bool row_major, Do each,
                                                 cuda_on_cpu::place here)
{
    check_tile(p, stride * sizeof(T), here);
    cuda_on_cpu::warp_exchange(cuda_on_cpu::SYNC, ~0u, 0, 0, 32, here);
    for (int i = 0; i < F::num_elements; i++) {
        unsigned e = cuda_on_cpu::lane_index() + 32 * (unsigned)i, r = e / F::columns, c = e % F::columns;
        each(f.x[i], p[row_major ? r * stride + c : c * stride + r]);
    }
}
template <class Use, int M, int N, int K, class T, class L, class S>
void load_matrix_sync(fragment<Use, M, N, K, T, L> &f, const S *p, unsigned stride, CUDA_HERE)
{
    visit(f, p, stride, std::is_same<L, row_major>::value, [](S &x, const S &m) { x = m; }, here);
}
template <int M, int N, int K, class T>
void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *p, unsigned stride, layout_t layout, CUDA_HERE)
{
    visit(f, p, stride, layout == mem_row_major, [](T &x, const T &m) { x = m; }, here);
}
template <int M, int N, int K, class T>
void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout, CUDA_HERE)
{
    visit(f, p, stride, layout == mem_row_major, [](const T &x, T &m) { m = x; }, here);
}

void report_precision(cuda_on_cpu::place where);

/* d = a b + c, summed in float. Products of the formats are exact in float; a TF32 operand that was not rounded to
 * TF32 is a mistake: a GPU would drop its lower bits. */
template <int K, class T, class LA, class LB>
void mma_sync(fragment<accumulator, 16, 16, K, float> &d, const fragment<matrix_a, 16, 16, K, T, LA> &a,
              const fragment<matrix_b, 16, 16, K, T, LB> &b,
              const fragment<accumulator, 16, 16, K, float> &c, CUDA_HERE)
{
    struct operands {
        fragment<accumulator, 16, 16, K, float> *d;
        const fragment<matrix_a, 16, 16, K, T, LA> *a;
        const fragment<matrix_b, 16, 16, K, T, LB> *b;
        const fragment<accumulator, 16, 16, K, float> *c;
        cuda_on_cpu::place where;
    } mine = {&d, &a, &b, &c, here};
    cuda_on_cpu::warp_call(
        [](void *const lane[32]) {
            float left[16][K], right[K][16], sum[16][16];
            bool all_exact = true;
            for (int l = 0; l < 32; l++) {
                const operands *o = (const operands *)lane[l];
                for (int i = 0; i < o->a->num_elements; i++) {
                    bool exact_a, exact_b;
                    int e = l + 32 * i;
                    left[e / K][e % K] = value_of(o->a->x[i], &exact_a);
                    right[e / 16][e % 16] = value_of(o->b->x[i], &exact_b);
                    all_exact = all_exact && exact_a && exact_b;
                }
                for (int i = 0; i < 8; i++)
                    sum[(l + 32 * i) / 16][(l + 32 * i) % 16] = o->c->x[i];
            }
            for (int r = 0; r < 16; r++)
                for (int k = 0; k < K; k++)
                    for (int n = 0; n < 16; n++)
                        sum[r][n] += left[r][k] * right[k][n];
            for (int l = 0; l < 32; l++)
                for (int i = 0; i < 8; i++)
                    ((const operands *)lane[l])->d->x[i] = sum[(l + 32 * i) / 16][(l + 32 * i) % 16];
            if (!all_exact) report_precision(((const operands *)lane[0])->where);
        },
        &mine, here);
}
} // namespace wmma
} // namespace nvcuda

/* ---- 6. Memory, streams, graphs, devices ------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef struct cudaStream *cudaStream_t;
typedef struct cudaEvent *cudaEvent_t;
typedef struct cudaGraph *cudaGraph_t;
typedef struct cudaGraphExec *cudaGraphExec_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};

extern "C" {
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cuda_on_cpu_malloc(void **memory, size_t bytes);
cudaError_t cuda_on_cpu_malloc_host(void **memory, size_t bytes);
cudaError_t cuda_on_cpu_shared_limit(const void *kernel, int bytes);
cudaError_t cuda_on_cpu_instantiate(cudaGraphExec_t *exec, cudaGraph_t graph);
}
template <class T> cudaError_t cudaMalloc(T **memory, size_t bytes)
{
    return cuda_on_cpu_malloc((void **)memory, bytes);
}
template <class T> cudaError_t cudaMallocHost(T **memory, size_t bytes)
{
    return cuda_on_cpu_malloc_host((void **)memory, bytes);
}
template <class F> cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int value)
{
    return cuda_on_cpu_shared_limit((const void *)kernel, value);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    return cuda_on_cpu_instantiate(exec, graph);
}
#endif /* __cplusplus */
#endif /* TESTS_CUDA_ON_CPU_H */
