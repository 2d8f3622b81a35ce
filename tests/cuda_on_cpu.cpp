/* tests/cuda_on_cpu.cpp - the runtime of cuda_on_cpu.h. One thread of the system runs everything, so every run of a test
 * is the same. Compiled without -fsanitize: it has the functions that the compiler's checks in the kernels call.
 *
 * Contents: 1 reports   2 fibers   3 memory   4 the record of accesses   5 barriers and warps   6 a block, a grid
 *           7 streams and graphs   8 the API   9 what the compiler calls */
#include "tests/cuda_on_cpu.h"

#include <algorithm>
#include <cstdarg>
#include <deque>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

enum : size_t {
    KIB = 1024,
    MOST_SHARED = 99 * KIB,  /* of a block, on the smallest device meant: an RTX 4090 */
    USUAL_SHARED = 48 * KIB, /* without asking */
    STACK = 64 * KIB,        /* of a fiber */
    ARENA = 16ull << 30,     /* addresses of device memory, */
    DRY_ARENA = 1ull << 40,  /* and where nothing runs */
    GAP = 4096,              /* between two buffers: nobody's */
};

alignas(256) extern unsigned char cuda_shared[]; /* what kernels declare as `extern __shared__` */
alignas(256) unsigned char cuda_shared[MOST_SHARED + GAP];

extern "C" char __executable_start, _end; /* the linker's: first and last address of the program's own data */

namespace cuda_on_cpu
{
uint3 thread_index, block_index;
dim3 block_size, grid_size;

static bool checking; /* some kernel was compiled with checks */
static int uncounted; /* depth of `unchecked` */
static unsigned order_of_things;
static unsigned long launches, stalls;

unchecked::unchecked()
{
    uncounted++;
}
unchecked::~unchecked()
{
    uncounted--;
}

/* ---- 1. Reports -------------------------------------------------------------------------------------------------- */

struct fiber;
static fiber *running; /* NULL: host code */
static const work *current;
static int mistakes;
static std::string first_mistake;

/* file:line of an address in the program, by the system's addr2line. */
static std::string source_of(uintptr_t code)
{
    if (mistakes) return ""; /* only the first is told */
    char command[200], answer[400] = "";
    snprintf(command, sizeof command, "addr2line -se /proc/%d/exe 0x%lx 2> /dev/null", (int)getpid(),
             (unsigned long)(code - (uintptr_t)&__executable_start - 1));
    if (FILE *pipe = popen(command, "r")) {
        if (!fgets(answer, sizeof answer, pipe)) answer[0] = 0;
        pclose(pipe);
    }
    answer[strcspn(answer, " \n")] = 0;
    return answer;
}

static std::string running_thread();

__attribute__((format(printf, 1, 2))) static void report(const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    std::string whole = (current ? std::string(current->name) + running_thread() : "host") + ": " + text;
    if (!mistakes++) first_mistake = whole;
}

static void say_at_exit()
{
    if (!mistakes) return;
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: %d mistakes; the first: %s\n", mistakes, first_mistake.c_str());
    _exit(99);
}

/* ---- 2. Fibers --------------------------------------------------------------------------------------------------- */

enum state { READY, AT_BARRIER, IN_WARP, DONE };

struct pending_copy {
    void *to;
    const void *from;
    size_t bytes;
    int group;
    uintptr_t code;
};

struct fiber { /* a thread of the block that runs */
    void *stack_pointer;
    char *stack;
    unsigned number, lane, warp;
    uint3 index;
    enum state state;
    place where; /* it waits */
    exchange how;
    unsigned mask;
    uint64_t value;
    int argument, width;
    void *payload;
    void (*call)(void *const lane[32]);
    std::vector<pending_copy> copies;
    int groups; /* of copies, closed so far */
};

static std::vector<fiber> fibers(1024);
static unsigned threads; /* of the block that runs */
static void *scheduler;

#ifndef __x86_64__
#error "tests/cuda_on_cpu.cpp switches fibers on x86-64 only; elsewhere leave the emulated tests out"
#endif
/* Saves the registers that a function keeps and the stack pointer at *save, and takes up what was saved at `next`. */
extern "C" void cuda_on_cpu_switch(void **save, void *next);
__asm__(".text\n"
        ".type cuda_on_cpu_switch, @function\n"
        "cuda_on_cpu_switch:\n"
        "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
        "    ret\n");

static void to_scheduler()
{
    cuda_on_cpu_switch(&running->stack_pointer, scheduler);
}

void begin_kernel()
{
    uncounted--;
}

static void fiber_body()
{
    uncounted++;
    current->run();
    if (!running->copies.empty()) report("a thread ends before its asynchronous copies");
    running->state = DONE;
    to_scheduler();
    abort(); /* is never resumed */
}

static void resume(fiber *f)
{
    running = f;
    thread_index = f->index;
    cuda_on_cpu_switch(&scheduler, f->stack_pointer);
    running = nullptr;
}

static void start(fiber *f)
{
    if (!f->stack) {
        f->stack =
            (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        mprotect(f->stack, 4096, PROT_NONE); /* too deep a stack faults */
    }
    void **top = (void **)(f->stack + STACK - 64);
    *--top = nullptr; /* fiber_body's return address: aligned as after a call */
    *--top = (void *)fiber_body;
    top -= 6; /* registers */
    f->stack_pointer = top;
    f->state = READY;
    f->copies.clear();
    f->groups = 0;
}

static std::string running_thread()
{
    char text[100] = "";
    if (running)
        snprintf(text, sizeof text, " block (%u,%u,%u) thread (%u,%u,%u)", block_index.x, block_index.y, block_index.z,
                 running->index.x, running->index.y, running->index.z);
    return text;
}

/* ---- 3. Memory --------------------------------------------------------------------------------------------------- */

/* Where launches are to be noted (`make cuda-report`), kernels and copies do not run, and memory is addresses only. */
static const char *const noted = getenv("CUDA_ON_CPU_LAUNCHES");
static const size_t arena_size = noted ? DRY_ARENA : ARENA;
static char *arena;
static size_t arena_used = GAP, arena_limit = 8ull << 30;
static std::map<char *, size_t> buffers, pinned; /* device buffers; host memory from cudaMallocHost */

static bool in_arena(const void *p)
{
    return arena && (size_t)((const char *)p - arena) < arena_size;
}

static void *reserve(size_t bytes, int protection)
{
    void *p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("cuda_on_cpu");
        abort();
    }
    return p;
}

/* Host code that reads device memory faults, as it would with a GPU. */
static void open_arena(bool open)
{
    mprotect(arena, arena_used, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static std::map<char *, size_t>::iterator buffer_of(std::map<char *, size_t> &all, const void *p)
{
    auto next = all.upper_bound((char *)p);
    return next == all.begin() ? all.end() : std::prev(next);
}

static bool inside(std::map<char *, size_t> &all, const void *p, size_t bytes)
{
    auto it = buffer_of(all, p);
    return it != all.end() && (const char *)p + bytes <= it->first + it->second;
}

static std::string name_of(const char *p)
{
    char text[120];
    if (!in_arena(p)) {
        snprintf(text, sizeof text, "shared memory, byte %ld of %zu", (long)(p - (char *)cuda_shared),
                 current ? current->shared : 0);
        return text;
    }
    auto it = buffer_of(buffers, p);
    if (it == buffers.end()) return "memory before the first device buffer";
    long at = p - it->first, size = (long)it->second;
    snprintf(text, sizeof text,
             at < size ? "byte %ld of a device buffer of %ld" : "%ld bytes into a device buffer of %ld", at, size);
    return text;
}

/* ---- 4. The record of accesses -----------------------------------------------------------------------------------
 * For every two bytes of device and shared memory, who wrote and read them last. `moment` counts the intervals between
 * barriers of all blocks, one after the other, so it tells launch, block and interval. Two accesses of different
 * threads in one launch are ordered if a barrier of their block lies between them, or, in one warp, a warp operation.
 * Blocks are not ordered. Unordered, with at least one a write (and not both atomic): a race. */

struct stamp {
    uint32_t moment;
    uint16_t thread, warp_moment;
    uint32_t code; /* offset in the program */
};
struct cell {
    stamp write, read, other_read; /* other_read: of another thread, unordered with `read` */
    bool allocated, written, atomic;
};
static cell *device_cells, *shared_cells;
static uint32_t moment = 1, block_start, launch_start;
static uint16_t warp_moment[32];

static bool unordered(const stamp &s)
{
    if (s.moment < launch_start) return false;
    if (s.moment < block_start) return true; /* another block of this launch */
    return s.moment == moment && s.thread != running->number &&
           !(s.thread / 32u == running->warp && s.warp_moment < warp_moment[running->warp]);
}

static bool check_cell(cell *c, const stamp &now, bool write, bool atomic, uint32_t *other)
{
    bool race = false;
    if (unordered(c->write) && !(atomic && c->atomic)) race = true, *other = c->write.code;
    if (write && !atomic && unordered(c->read)) race = true, *other = c->read.code;
    if (write && !atomic && unordered(c->other_read)) race = true, *other = c->other_read.code;
    if (write) {
        c->write = now, c->written = true, c->atomic = atomic;
    } else {
        if (unordered(c->read)) c->other_read = c->read;
        c->read = now;
    }
    return race;
}

static void access(const void *address, size_t bytes, bool write, bool atomic, uintptr_t code)
{
    char *p = (char *)address;
    if (uncounted) return;
    bool global = in_arena(p), shared = (size_t)(p - (char *)cuda_shared) < sizeof cuda_shared;
    if (!running) return; /* the arena is closed to host code */
    if (!global && !shared) {
        if ((size_t)(p - running->stack) < STACK) return;
        if (p >= &__executable_start && p < &_end && !write) return; /* a constant */
        unchecked here;
        report("%s host memory at %s", write ? "writes" : "reads", source_of(code).c_str());
        return;
    }
    unchecked here;
    if ((uintptr_t)p % (bytes < 16 ? bytes : 16))
        report("%zu bytes not aligned to that (%s) at %s", bytes, name_of(p).c_str(), source_of(code).c_str());
    cell *cells = shared ? shared_cells : device_cells;
    size_t first = (size_t)(p - (shared ? (char *)cuda_shared : arena)) / 2, count = (bytes + 1) / 2;
    stamp now = {moment, (uint16_t)running->number, warp_moment[running->warp],
                 (uint32_t)(code - (uintptr_t)&__executable_start)};
    bool outside = false, unset = false, race = false;
    uint32_t other = 0;
    for (size_t i = first; i < first + count; i++) {
        cell *c = &cells[i];
        if (!c->allocated) {
            outside = true;
            continue;
        }
        if ((!write || atomic) && !c->written) unset = true;
        race |= check_cell(c, now, write, atomic, &other);
    }
    const char *what = write ? "writes" : "reads";
    if (outside) report("%s out of bounds: %s at %s", what, name_of(p).c_str(), source_of(code).c_str());
    if (unset) report("reads what nobody has written: %s at %s", name_of(p).c_str(), source_of(code).c_str());
    if (race)
        report("race: %s %s at %s, and another thread at %s", what, name_of(p).c_str(), source_of(code).c_str(),
               source_of((uintptr_t)&__executable_start + other).c_str());
}

void touch_atomically(void *address, size_t bytes)
{
    if (checking) access(address, bytes, true, true, (uintptr_t)__builtin_return_address(0));
}

template <class F> static void cells_of(const void *p, size_t bytes, F change)
{
    if (!checking) return;
    size_t first = (size_t)((const char *)p - arena) / 2;
    for (size_t i = first; i < first + (bytes + 1) / 2; i++)
        change(&device_cells[i]);
}

/* A copy or a fill by the host, when it happens. */
static bool host_touches(const void *p, size_t bytes, bool write, const char *what)
{
    if (!inside(buffers, p, bytes)) {
        report("%s of %zu bytes outside a device buffer", what, bytes);
        return false;
    }
    bool unset = false;
    cells_of(p, bytes, [&](cell *c) {
        if (write)
            c->written = true, c->write = stamp();
        else if (!c->written)
            unset = true;
    });
    if (unset) report("%s reads what nobody has written: %s", what, name_of((const char *)p).c_str());
    return true;
}

/* ---- 5. Barriers and warps --------------------------------------------------------------------------------------- */

unsigned lane_index()
{
    return running->lane;
}

void block_barrier(place where)
{
    running->state = AT_BARRIER;
    running->where = where;
    to_scheduler();
}

uint64_t warp_exchange(exchange how, unsigned mask, uint64_t value, int argument, int width, place where)
{
    fiber *f = running;
    if (!(mask >> f->lane & 1)) {
        report("lane %u calls with mask 0x%08x, which leaves it out, at %s:%d", f->lane, mask, where.file, where.line);
        mask = 1u << f->lane;
    }
    if (width < 1 || width > 32 || (width & (width - 1)))
        report("a width of %d is no power of two up to 32, at %s:%d", width, where.file, where.line);
    f->how = how, f->mask = mask, f->value = value, f->argument = argument, f->width = width, f->where = where;
    f->state = IN_WARP;
    to_scheduler();
    return f->value;
}

void warp_call(void (*function)(void *const lane[32]), void *mine, place where)
{
    running->call = function;
    running->payload = mine;
    warp_exchange(CALL, ~0u, 0, 0, 32, where);
}

static int source_lane(const fiber *f)
{
    int lane = (int)f->lane, first = lane & ~(f->width - 1), last = first + f->width - 1, from = lane;
    switch (f->how) {
    case FROM_LANE: return first | (f->argument & (f->width - 1));
    case FROM_BELOW: from = lane - f->argument; break;
    case FROM_ABOVE: from = lane + f->argument; break;
    case FROM_XOR: from = lane ^ f->argument; break;
    default: break;
    }
    return from < first || from > last ? lane : from;
}

/* All lanes that `leader` names have arrived: what each of them gets. */
static void answer(fiber *warp, unsigned present, const fiber *leader)
{
    uint64_t given[32] = {0};
    unsigned votes = 0;
    if (leader->how == CALL && present != ~0u) report("a tensor-core operation without all 32 lanes of the warp");
    if (leader->how == CALL && present == ~0u) {
        void *lane[32];
        for (int i = 0; i < 32; i++)
            lane[i] = warp[i].payload;
        unchecked here;
        leader->call(lane);
    }
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) given[i] = warp[i].value, votes |= (unsigned)(warp[i].value & 1) << i;
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        fiber *f = &warp[i];
        int from = source_lane(f);
        if (!(present >> from & 1)) {
            report("lane %d reads lane %d, which does not take part, at %s:%d", i, from, f->where.file, f->where.line);
            f->value = ~0ull;
        } else {
            f->value = f->how == BALLOT ? votes : given[from];
        }
        f->state = READY;
    }
}

static bool resolve(unsigned warp_number)
{
    fiber *warp = &fibers[warp_number * 32];
    unsigned lanes = std::min(32u, threads - warp_number * 32);
    bool any = false;
    for (unsigned i = 0; i < lanes; i++) {
        if (warp[i].state != IN_WARP) continue;
        unsigned present = 0;
        bool all = true;
        for (unsigned k = 0; k < lanes; k++) {
            if (!(warp[i].mask >> k & 1) || warp[k].state == DONE) continue;
            present |= 1u << k;
            all = all && warp[k].state == IN_WARP && warp[k].how == warp[i].how && warp[k].mask == warp[i].mask;
        }
        if (!all) continue;
        warp_moment[warp_number] = (uint16_t)(warp_moment[warp_number] + 1);
        answer(warp, present, &warp[i]);
        any = true;
    }
    return any;
}

void copy_later(void *to, const void *from, size_t bytes, place where)
{
    if ((bytes != 4 && bytes != 8 && bytes != 16) || (uintptr_t)to % bytes || (uintptr_t)from % bytes)
        report("an asynchronous copy of %zu bytes needs 4, 8 or 16 and both places aligned to it, at %s:%d", bytes,
               where.file, where.line);
    unchecked here;
    running->copies.push_back({to, from, bytes, running->groups, (uintptr_t)__builtin_return_address(0)});
}

void close_group()
{
    running->groups++;
}

void wait_for_groups(int all_but)
{
    auto &copies = running->copies;
    size_t done = 0;
    for (; done < copies.size() && copies[done].group < running->groups - all_but; done++) {
        const pending_copy &c = copies[done];
        if (checking) access(c.from, c.bytes, false, false, c.code), access(c.to, c.bytes, true, false, c.code);
        memcpy(c.to, c.from, c.bytes);
    }
    copies.erase(copies.begin(), copies.begin() + (long)done);
}

/* ---- 6. A block, a grid ------------------------------------------------------------------------------------------ */

static std::vector<unsigned> arrange(size_t count)
{
    static uint64_t random = 1;
    std::vector<unsigned> order(count);
    for (size_t i = 0; i < count; i++)
        order[i] = (unsigned)(order_of_things == 1 ? count - 1 - i : i);
    for (size_t i = count; order_of_things > 1 && i > 1; i--) {
        random = (random + order_of_things) * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    return order;
}

/* Everyone waits: releases a barrier, or reports why nobody can go on. False: the block is over, or stuck. */
static bool release_barrier()
{
    const fiber *first = nullptr, *stuck = nullptr;
    unsigned done = 0, waiting = 0;
    bool different = false;
    for (unsigned i = 0; i < threads; i++) {
        const fiber *f = &fibers[i];
        done += f->state == DONE;
        if (f->state == IN_WARP) stuck = f;
        if (f->state != AT_BARRIER) continue;
        waiting++;
        if (!first) first = f;
        different = different || f->where.line != first->where.line || strcmp(f->where.file, first->where.file) != 0;
    }
    if (done == threads) return false;
    if (stuck) {
        report("a lane waits at %s:%d for lanes of mask 0x%08x that are elsewhere", stuck->where.file,
               stuck->where.line, stuck->mask);
        return false;
    }
    if (done)
        report("%u threads have ended while %u wait at __syncthreads, %s:%d", done, waiting, first->where.file,
               first->where.line);
    if (different)
        report("threads wait at different __syncthreads, one at %s:%d", first->where.file, first->where.line);
    for (unsigned i = 0; i < threads; i++)
        if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
    moment++;
    return true;
}

static void run_block(const std::vector<unsigned> &warps, const std::vector<unsigned> &lanes)
{
    memset(cuda_shared, 0xFF, current->shared); /* NaN */
    if (checking)
        for (size_t i = 0; i < (current->shared + 1) / 2; i++)
            shared_cells[i] = cell(), shared_cells[i].allocated = true;
    memset(warp_moment, 0, sizeof warp_moment);
    block_start = ++moment;
    for (unsigned i = 0; i < threads; i++)
        start(&fibers[i]);
    do {
        for (unsigned warp : warps)
            do {
                for (unsigned lane : lanes) {
                    unsigned i = warp * 32 + lane;
                    if (i < threads && fibers[i].state == READY) resume(&fibers[i]);
                }
            } while (resolve(warp));
    } while (release_barrier());
}

static bool fails(const work &w); /* part 7 */

static void run_grid(const work &w)
{
    if (fails(w)) return;
    current = &w;
    grid_size = w.grid;
    block_size = w.block;
    threads = w.block.x * w.block.y * w.block.z;
    launch_start = moment + 1;
    launches++;
    for (unsigned i = 0; i < threads; i++) {
        fiber *f = &fibers[i];
        f->number = i, f->lane = i % 32, f->warp = i / 32;
        f->index = {i % w.block.x, i / w.block.x % w.block.y, i / (w.block.x * w.block.y)};
    }
    if (checking) std::fill(shared_cells, shared_cells + sizeof cuda_shared / 2, cell());
    auto warps = arrange((threads + 31) / 32), lanes = arrange(32);
    for (unsigned b : arrange((size_t)w.grid.x * w.grid.y * w.grid.z)) {
        block_index = {b % w.grid.x, b / w.grid.x % w.grid.y, b / (w.grid.x * w.grid.y)};
        run_block(warps, lanes);
    }
    moment++;
    current = nullptr;
}

/* ---- 7. Streams and graphs --------------------------------------------------------------------------------------- */

typedef std::function<void()> job;
} // namespace cuda_on_cpu
using namespace cuda_on_cpu;

struct cudaGraph {
    std::vector<job> jobs;
};
struct cudaGraphExec {
    std::vector<job> jobs;
};
struct cudaStream {
    std::deque<job> jobs;
    cudaGraph *capture;
};
struct cudaEvent {
    cudaStream *stream;
    unsigned long asked, reached; /* how often recorded; how many of these have happened */
};

namespace cuda_on_cpu
{
static cudaStream default_stream;
static std::vector<cudaStream *> streams = {&default_stream};
static std::unordered_map<const void *, size_t> shared_limit;
static cudaError_t last_error = cudaSuccess;

static void begin()
{
    if (arena) return;
    arena = (char *)reserve(arena_size, PROT_NONE);
    if (checking) {
        device_cells = (cell *)reserve(ARENA / 2 * sizeof(cell), PROT_READ | PROT_WRITE);
        shared_cells = (cell *)reserve(sizeof cuda_shared / 2 * sizeof(cell), PROT_READ | PROT_WRITE);
    }
    atexit(say_at_exit);
}

static cudaError_t fail(cudaError_t error)
{
    return last_error = error;
}

static const char *failing; /* cuda_on_cpu_fail */

static bool fails(const work &w)
{
    if (failing && strstr(w.name, failing)) fail(cudaErrorIllegalAddress);
    return last_error == cudaErrorIllegalAddress;
}

static void add_job(cudaStream *stream, job j)
{
    if (!stream) stream = &default_stream;
    if (stream->capture)
        stream->capture->jobs.push_back(j);
    else
        stream->jobs.push_back(j);
}

static void take_one(cudaStream *stream)
{
    job j = stream->jobs.front();
    stream->jobs.pop_front();
    j();
}

static void drain(cudaStream *stream)
{
    begin();
    open_arena(true);
    while (!stream->jobs.empty())
        take_one(stream);
    open_arena(false);
}

static bool capturing()
{
    for (const cudaStream *s : streams)
        if (s->capture) return true;
    return false;
}

/* What the host may not do while a stream is captured. */
static bool stalls_host(const char *what)
{
    stalls++;
    if (capturing()) report("%s while a stream is being captured", what);
    return capturing();
}

/* "launch THREADS SHARED KERNEL", at the end of the file. */
static void note_launch(const work &w, uint64_t count)
{
    static std::map<const void *, std::string> names;
    std::string &name = names[w.kernel];
    if (name.empty()) {
        char command[300], answer[500] = "";
        snprintf(command, sizeof command, "addr2line -fCe /proc/%d/exe 0x%lx", (int)getpid(),
                 (unsigned long)((uintptr_t)w.kernel - (uintptr_t)&__executable_start));
        if (FILE *pipe = popen(command, "r")) {
            if (!fgets(answer, sizeof answer, pipe)) answer[0] = 0;
            pclose(pipe);
        }
        name = answer;
    }
    if (FILE *file = fopen(noted, "a")) {
        fprintf(file, "launch %lu %zu %s", (unsigned long)count, w.shared, name.c_str());
        fclose(file);
    }
}

void submit(cudaStream *stream, const work &w)
{
    begin();
    uint64_t count = (uint64_t)w.block.x * w.block.y * w.block.z;
    auto allowed = shared_limit.find(w.kernel);
    const char *bad = nullptr;
    if (!count || count > 1024 || w.block.z > 64) bad = "block";
    if (!w.grid.x || !w.grid.y || !w.grid.z || w.grid.x > 0x7FFFFFFFu || w.grid.y > 65535 || w.grid.z > 65535)
        bad = "grid";
    if (w.shared > (allowed == shared_limit.end() ? USUAL_SHARED : allowed->second)) bad = "shared memory";
    if (bad) {
        report("%s: %s out of limits: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory, %s:%d", w.name,
               bad, w.grid.x, w.grid.y, w.grid.z, w.block.x, w.block.y, w.block.z, w.shared, w.where.file,
               w.where.line);
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    if (noted) {
        note_launch(w, count);
        return;
    }
    add_job(stream, [=] { run_grid(w); });
    if (getenv("CUDA_LAUNCH_BLOCKING")) drain(stream ? stream : &default_stream);
}
} // namespace cuda_on_cpu

/* ---- 8. The API -------------------------------------------------------------------------------------------------- */

namespace nvcuda
{
namespace wmma
{
void check_tile(const void *p, size_t row_bytes, place where)
{
    if ((uintptr_t)p % 32 || row_bytes % 16)
        report("a wmma tile begins at a multiple of 32 bytes and has rows of a multiple of 16, at %s:%d", where.file,
               where.line);
}
void report_precision(place where)
{
    report("an operand of mma_sync was not rounded to TF32, at %s:%d", where.file, where.line);
}
} // namespace wmma
} // namespace nvcuda

static int capability = 80;

extern "C" {
void cuda_on_cpu_order(unsigned order)
{
    order_of_things = order;
}
int cuda_on_cpu_checked(void)
{
    return checking;
}
int cuda_on_cpu_mistakes(char *text, size_t size)
{
    int count = mistakes;
    snprintf(text, size, "%s", first_mistake.c_str());
    first_mistake.clear();
    mistakes = 0;
    return count;
}
void cuda_on_cpu_device(int cc, size_t memory)
{
    capability = cc;
    arena_limit = memory;
}
void cuda_on_cpu_fail(const char *part)
{
    failing = part;
    if (!part) last_error = cudaSuccess;
}
int cuda_on_cpu_buffers(void)
{
    return (int)(buffers.size() + pinned.size());
}
unsigned long cuda_on_cpu_launches(void)
{
    return launches;
}
unsigned long cuda_on_cpu_stalls(void)
{
    return stalls;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    }
    return "cudaError";
}
const char *cudaGetErrorString(cudaError_t error)
{
    return cudaGetErrorName(error);
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    if (error != cudaErrorIllegalAddress) last_error = cudaSuccess;
    return error;
}
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = capability > 0;
    return capability > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    *p = {"CUDA on the CPU", arena_limit, capability / 10, capability % 10, 4};
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    return *version = 13000, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    return *version = 13000, cudaSuccess;
}
static size_t in_use(void)
{
    size_t bytes = 0;
    for (auto &b : buffers)
        bytes += b.second;
    return bytes;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *total_bytes = arena_limit;
    *free_bytes = arena_limit - std::min(arena_limit, in_use());
    return cudaSuccess;
}

cudaError_t cuda_on_cpu_malloc(void **memory, size_t bytes)
{
    begin();
    if (stalls_host("cudaMalloc")) return fail(cudaErrorStreamCaptureUnsupported);
    size_t room = (bytes + 255) / 256 * 256 + GAP;
    if (in_use() + bytes > arena_limit || arena_used + room > arena_size) return fail(cudaErrorMemoryAllocation);
    *memory = arena + arena_used;
    arena_used += room;
    buffers[(char *)*memory] = bytes;
    cells_of(*memory, bytes, [](cell *c) { *c = cell(), c->allocated = true; });
    if (noted) return cudaSuccess;
    open_arena(true);
    memset(*memory, 0xFF, bytes); /* NaN */
    open_arena(false);
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory)
{
    if (!memory) return cudaSuccess;
    if (stalls_host("cudaFree")) return fail(cudaErrorStreamCaptureUnsupported);
    cudaDeviceSynchronize();
    auto it = buffers.find((char *)memory);
    if (it == buffers.end()) {
        report("cudaFree of what is no device buffer");
        return fail(cudaErrorInvalidValue);
    }
    cells_of(memory, it->second, [](cell *c) { *c = cell(); });
    buffers.erase(it);
    if (buffers.empty()) { /* begin again */
        madvise(arena, arena_used, MADV_DONTNEED);
        if (checking) madvise(device_cells, arena_used / 2 * sizeof(cell), MADV_DONTNEED);
        arena_used = GAP;
    }
    return cudaSuccess;
}
cudaError_t cuda_on_cpu_malloc_host(void **memory, size_t bytes)
{
    if (stalls_host("cudaMallocHost")) return fail(cudaErrorStreamCaptureUnsupported);
    *memory = malloc(bytes);
    if (!*memory) return fail(cudaErrorMemoryAllocation);
    memset(*memory, 0xFF, bytes);
    pinned[(char *)*memory] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *memory)
{
    cudaDeviceSynchronize();
    if (memory && !pinned.erase((char *)memory)) report("cudaFreeHost of what cudaMallocHost did not give");
    free(memory);
    return cudaSuccess;
}

static void copy_now(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    bool ok = kind == cudaMemcpyHostToDevice || host_touches(from, bytes, false, "a copy");
    ok = (kind == cudaMemcpyDeviceToHost || host_touches(to, bytes, true, "a copy")) && ok;
    if (ok) memcpy(to, from, bytes);
}
/* From memory that is not pinned, CUDA copies before it returns; from pinned memory, when the stream gets there. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    begin();
    if (noted) return cudaSuccess;
    const void *host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : nullptr;
    bool is_pinned = !host || inside(pinned, host, bytes);
    if (host && in_arena(host)) report("a copy takes device memory for the host's");
    if (!is_pinned && stream && stream->capture) report("a captured copy of host memory that is not pinned");
    if (!is_pinned) stalls++; /* at least until it is in pinned memory of CUDA's own */
    if (kind == cudaMemcpyHostToDevice && !is_pinned) {
        auto held = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
        add_job(stream, [=] { copy_now(to, held->data(), bytes, kind); });
    } else {
        add_job(stream, [=] { copy_now(to, from, bytes, kind); });
    }
    if (kind == cudaMemcpyDeviceToHost && !is_pinned) return cudaStreamSynchronize(stream);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    begin();
    if (noted) return cudaSuccess;
    add_job(stream, [=] {
        if (host_touches(to, bytes, true, "cudaMemset")) memset(to, value, bytes);
    });
    return cudaSuccess;
}
cudaError_t cuda_on_cpu_shared_limit(const void *kernel, int bytes)
{
    if (bytes < 0 || (size_t)bytes > MOST_SHARED) return fail(cudaErrorInvalidValue);
    shared_limit[kernel] = (size_t)bytes;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new cudaStream();
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    drain(stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stalls_host("cudaStreamSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
    for (size_t i = 0; order_of_things == 1 && i < streams.size(); i++) /* the others were quicker */
        drain(streams[i]);
    drain(stream ? stream : &default_stream);
    return last_error;
}
cudaError_t cudaDeviceSynchronize(void)
{
    if (stalls_host("cudaDeviceSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
    for (unsigned i : arrange(streams.size()))
        drain(streams[i]);
    return last_error;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new cudaEvent();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    cudaDeviceSynchronize();
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->stream = stream ? stream : &default_stream;
    unsigned long mine = ++event->asked;
    add_job(stream, [=] { event->reached = std::max(event->reached, mine); });
    return cudaSuccess;
}
static void reach(cudaEvent *event, unsigned long what)
{
    while (event->reached < what && !event->stream->jobs.empty())
        take_one(event->stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (stalls_host("cudaEventSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
    begin();
    open_arena(true);
    reach(event, event->asked);
    open_arena(false);
    return last_error;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    unsigned long what = event->asked;
    add_job(stream, [=] { reach(event, what); });
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    if (!stream || stream->capture) return fail(cudaErrorInvalidValue);
    stream->capture = new cudaGraph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (!stream->capture) return fail(cudaErrorInvalidValue);
    *graph = stream->capture;
    stream->capture = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cuda_on_cpu_instantiate(cudaGraphExec_t *exec, cudaGraph_t graph)
{
    *exec = new cudaGraphExec{graph->jobs};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (const job &j : exec->jobs)
        add_job(stream, j);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    cudaDeviceSynchronize();
    delete exec;
    return cudaSuccess;
}

/* ---- 9. What the compiler calls ----------------------------------------------------------------------------------
 * -fsanitize=thread: one call before each access, one in the place of each atomic. -fsanitize=alignment: one when a reference is not aligned. */

#define CODE ((uintptr_t)__builtin_return_address(0))
void __tsan_init(void);
void __tsan_init(void)
{
    checking = true;
}
void __tsan_func_entry(void *);
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit(void);
void __tsan_func_exit(void)
{
}
#define HOOK(name, bytes, write)                                                                                       \
    void name(void *p);                                                                                                \
    void name(void *p)                                                                                                 \
    {                                                                                                                  \
        cuda_on_cpu::access(p, bytes, write, false, CODE);                                                             \
    }
#define HOOKS(bytes)                                                                                                   \
    HOOK(__tsan_read##bytes, bytes, false)                                                                             \
    HOOK(__tsan_write##bytes, bytes, true)                                                                             \
    HOOK(__tsan_unaligned_read##bytes, bytes, false)                                                                   \
    HOOK(__tsan_unaligned_write##bytes, bytes, true)                                                                   \
    HOOK(__tsan_volatile_read##bytes, bytes, false)                                                                    \
    HOOK(__tsan_volatile_write##bytes, bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, unsigned long bytes);
void __tsan_read_range(void *p, unsigned long bytes)
{
    for (unsigned long i = 0; i < bytes; i += 4)
        cuda_on_cpu::access((char *)p + i, 4, false, false, CODE);
}
void __tsan_write_range(void *p, unsigned long bytes);
void __tsan_write_range(void *p, unsigned long bytes)
{
    for (unsigned long i = 0; i < bytes; i += 4)
        cuda_on_cpu::access((char *)p + i, 4, true, false, CODE);
}
void __tsan_vptr_update(void **, void *);
void __tsan_vptr_update(void **, void *)
{
}
void __tsan_vptr_read(void **);
void __tsan_vptr_read(void **)
{
}

int __tsan_atomic32_fetch_add(volatile int *p, int by, int order); /* of shared_ptr, in host code */
int __tsan_atomic32_fetch_add(volatile int *p, int by, int)
{
    return __atomic_fetch_add(p, by, __ATOMIC_SEQ_CST);
}

struct ubsan_reference { /* what the compiler passes: where in the source, then more */
    const char *file;
    unsigned line, column;
};
void __ubsan_handle_type_mismatch_v1(const ubsan_reference *where, uintptr_t pointer);
void __ubsan_handle_type_mismatch_v1(const ubsan_reference *where, uintptr_t pointer)
{
    report("0x%lx is not aligned for its type at %s:%u", (unsigned long)pointer, where->file, where->line);
}
}
