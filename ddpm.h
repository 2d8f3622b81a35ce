/* ddpm.h - conditional denoising diffusion (DDPM, Ho et al. 2020) in plain C: train and sample diffusers' UNet2DModel.
 *
 * Usage, complete (examples/embed.c is this as a program; in ONE source file define DDPM_IMPLEMENTATION first):
 *
 *     ddpm_model_config config = ddpm_model_preset("tiny", 24);            // a UNet, a label encoder for 24 classes
 *     ddpm_model *model;       ddpm_model_create(&model, &config, NULL);   // NULL: the reference backend, all threads
 *     ddpm_model_alloc(model, DDPM_FOR_TRAINING);  ddpm_model_init(model, 529);
 *     ddpm_schedule schedule;  ddpm_schedule_create(&schedule, NULL);      // T = 1000, squaredcos_cap_v2
 *     ddpm_net *net;           ddpm_net_create(&net, model, 32, 32, 16, 1);
 *     ddpm_trainer trainer;    ddpm_trainer_init(&trainer, net, &schedule, NULL);
 *     double loss;             ddpm_train_step(&trainer, pictures, labels, 16, 1e-4, &loss);    // as often as you like
 *     ddpm_model_use(model, DDPM_EMA);
 *     ddpm_sample(net, &schedule, NULL, labels, 16, pictures, NULL, NULL);  // pictures: (16,3,32,32) in [-1,1]
 *     ddpm_net_free(net);  ddpm_schedule_free(&schedule);  ddpm_model_free(model);
 *
 * Every function that can fail returns a ddpm_result; ddpm_error() then says what, where and what to do about it.
 * Nothing here prints, exits or keeps global state (the error text is thread-local). Functions that take a model, net
 * or graph are not to be called on the same one from two threads at once; inside, they use OpenMP's threads.
 *
 * What it does not do: half precision, text conditioning, latents. Files, pictures and data sets are in io/ and lab/.
 *
 * Contents:  1 errors, memory   2 random numbers   3 tensors, operations, graph   4 backends
 *            5 model            6 noise schedule   7 training                     8 sampling
 * C11, and valid C++17 (a CUDA backend is C++). Overridable before the include: DDPM_REAL (float or double), DDPM_API
 * (linkage), DDPM_MALLOC/DDPM_FREE, DDPM_ASSERT (off by default; guards internal invariants only). */
/* clang-format off */
#ifndef DDPM_H
#define DDPM_H
#include <stddef.h>
#include <stdint.h>

#ifndef DDPM_REAL
#define DDPM_REAL float
#endif
#ifndef DDPM_API
#define DDPM_API extern
#endif
#ifdef __cplusplus
extern "C" {
#endif
typedef DDPM_REAL ddpm_real;

/* ---- 1. Errors and memory ---------------------------------------------------------------------------------------- */

typedef enum ddpm_result {
    DDPM_OK,
    DDPM_ERR_ARGUMENT,    /* a value that no model could accept */
    DDPM_ERR_SHAPE,       /* tensors, pictures or levels that do not fit each other */
    DDPM_ERR_RANGE,       /* a label or timestep outside its range */
    DDPM_ERR_MEMORY,      /* an allocation failed, or is known to be too large */
    DDPM_ERR_FILE,        /* the operating system refused a file; the text holds its reason */
    DDPM_ERR_FORMAT,      /* a file was read and is not what it should be */
    DDPM_ERR_UNSUPPORTED, /* valid for diffusers, not implemented here */
    DDPM_ERR_NONFINITE,   /* NaN or infinity appeared in a loss or gradient */
    DDPM_ERR_BACKEND,     /* the backend's device failed */
    DDPM_STOPPED          /* a callback asked to stop: not a failure */
} ddpm_result;

/* This thread's last failure: what happened, where (file, tensor, shape), and after "hint:" a way out. Never NULL. */
DDPM_API const char *ddpm_error(void);

/* Records a printf-style message for ddpm_error() and returns `code`. For io/, lab/ and backends as well. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
DDPM_API ddpm_result ddpm_fail(ddpm_result code, const char *format, ...);

/* An arena: many small allocations with one lifetime, freed together. Start from {0}. */
typedef struct ddpm_arena {
    struct ddpm_arena_block *first;
} ddpm_arena;
DDPM_API void *ddpm_arena_alloc(ddpm_arena *arena, size_t bytes); /* zeroed, 64-byte aligned; NULL: see ddpm_error() */
DDPM_API char *ddpm_arena_string(ddpm_arena *arena, const char *text);
DDPM_API void ddpm_arena_free(ddpm_arena *arena);

/* ---- 2. Random numbers ----------------------------------------------------------------------------------------------
 * Counter-based (Philox 4x32-10, Salmon et al. 2011): a number has an address instead of a history, so that batch size,
 * micro-batches, threads, ranks and a resumed run all see the same noise. */

typedef enum ddpm_purpose { /* which stream of numbers: two purposes never share one */
    DDPM_RANDOM_WEIGHTS,    /* initialisation; picture = index of the parameter */
    DDPM_RANDOM_NOISE,      /* eps of add_noise */
    DDPM_RANDOM_TIMESTEP,   /* t of add_noise */
    DDPM_RANDOM_DROPOUT,    /* step = index of the node */
    DDPM_RANDOM_START,      /* x_T of sampling */
    DDPM_RANDOM_STEP,       /* z of a sampling step; step = its index */
    DDPM_RANDOM_SHUFFLE,    /* order of the data; step = epoch */
    DDPM_RANDOM_USER,       /* for the caller's own use: this value and above, up to 127 */
    DDPM_RANDOM_LABEL_DROPOUT = 128,
    DDPM_RANDOM_HELD_OUT    /* eps of a held-out picture */
} ddpm_purpose;

typedef struct ddpm_address {
    uint64_t seed;
    uint64_t picture; /* index of the first picture in the whole run, below 2^56; picture i of a batch adds i */
    uint32_t step;
    uint32_t purpose; /* ddpm_purpose */
} ddpm_address;

/* Four 32-bit words: block number `block` of the stream at `address`. */
DDPM_API void ddpm_philox(ddpm_address address, uint32_t block, uint32_t word[4]);
/* `count` standard normals of one picture's stream, computed in float by Box-Muller with our own log and sincos
 * (explicit fma): the same bits on every processor. |value| < 5.8; relative error of a value below 1e-6. */
DDPM_API void ddpm_normals(ddpm_address address, size_t count, ddpm_real *out);
/* Uniform integer in [0, range), range >= 1: floor(word * range / 2^32). */
DDPM_API uint32_t ddpm_uniform_int(ddpm_address address, uint32_t range);
/* A permutation of 0..count-1 (Fisher-Yates) for `address`. */
DDPM_API void ddpm_shuffle(ddpm_address address, uint32_t count, uint32_t *order);

/* PyTorch's generator on the CPU (Mersenne Twister, Matsumoto & Nishimura 1998), which has a history: for drawing the
 * picture that diffusers draws. */
typedef struct ddpm_torch_rng {
    uint32_t state[624];
    int used, has_next;
    double next; /* the other normal of a pair that was drawn singly */
} ddpm_torch_rng;
DDPM_API void ddpm_torch_seed(ddpm_torch_rng *rng, uint64_t seed); /* Generator().manual_seed(seed): its low 32 bits */
DDPM_API float ddpm_torch_uniform(ddpm_torch_rng *rng);            /* rand(1): in [0,1), 24 bits, exactly torch's */
/* randn(count), within 4e-6: from 16 on torch's logarithm, cosine and sine are its own, and depend on the processor. */
DDPM_API void ddpm_torch_normals(ddpm_torch_rng *rng, size_t count, ddpm_real *out);

/* ---- 3. Tensors, operations, graph ----------------------------------------------------------------------------------
 * A graph is a list of nodes in execution order. It is built for a capacity of N pictures and run for any n <= N.
 * Shapes are checked while building; memory is known after ddpm_graph_plan, before anything is allocated. */

/* The operation table: one line an operation makes its enumerator, its name and its row. The last column says what its
 * backward reads, which decides how long a tensor is kept: inputs 0..2 and the auxiliary output. */
enum { DDPM_READS_0 = 1, DDPM_READS_1 = 2, DDPM_READS_2 = 4, DDPM_READS_AUX = 32 };
#define DDPM_OPS(X)                                                                                                    \
    X(CONV2D, "conv2d", DDPM_READS_0 | DDPM_READS_1)                                                                   \
    X(LINEAR, "linear", DDPM_READS_0 | DDPM_READS_1)                                                                   \
    X(GROUP_NORM, "group_norm", DDPM_READS_0 | DDPM_READS_1 | DDPM_READS_AUX)                                          \
    X(ACTIVATION, "activation", DDPM_READS_0)                                                                          \
    X(ATTENTION, "attention", DDPM_READS_0 | DDPM_READS_1 | DDPM_READS_2 | DDPM_READS_AUX)                             \
    X(ADD, "add", 0)                                                                                                   \
    X(CONCAT, "concat", 0)                                                                                             \
    X(UPSAMPLE, "upsample", 0)                                                                                         \
    X(TIME_EMBEDDING, "time_embedding", 0)                                                                             \
    X(MSE, "mse", DDPM_READS_0 | DDPM_READS_1)                                                                         \
    X(MODULATE, "modulate", DDPM_READS_0 | DDPM_READS_1)                                                               \
    X(SLICE, "slice", 0)                                                                                               \
    X(POOL, "pool", DDPM_READS_AUX)                                                                                    \
    X(PIXEL_UNSHUFFLE, "pixel_unshuffle", 0)                                                                           \
    X(PIXEL_SHUFFLE, "pixel_shuffle", 0)                                                                               \
    X(DROPOUT, "dropout", 0)                                                                                           \
    X(AFFINE, "affine", DDPM_READS_1)                                                                                  \
    X(FOURIER_EMBEDDING, "fourier_embedding", 0)                                                                       \
    X(EMBEDDING, "embedding", DDPM_READS_0)                                                                            \
    X(BATCH_NORM, "batch_norm", DDPM_READS_0 | DDPM_READS_1 | DDPM_READS_AUX)                                          \
    X(BCE, "bce", DDPM_READS_0 | DDPM_READS_1)
#define DDPM_OP_ENUM(op, name, reads) DDPM_OP_##op,
typedef enum ddpm_op { DDPM_OPS(DDPM_OP_ENUM) DDPM_OP_COUNT } ddpm_op;
DDPM_API const char *ddpm_op_name(ddpm_op op); /* "conv2d" */

#define DDPM_NOWHERE SIZE_MAX /* the offset of what needs no memory */
typedef struct ddpm_tensor {
    const char *name; /* diffusers' name for a parameter; else the name of the node that makes it */
    int dims;         /* what shape[] means to a file; entries beyond are 1 */
    int shape[4];     /* (N,C,H,W); (out,in,kh,kw) of a weight. shape[0] is the capacity when batched */
    unsigned batched : 1, param : 1, trainable : 1, need_grad : 1, input : 1, keep : 1; /* keep: see ddpm_graph_plan */
    ddpm_real *data, *grad; /* contiguous NCHW in the reference; a backend may keep its own form behind them */
    size_t offset, grad_offset; /* of data and grad, in elements: in the graph's memory; in the model's flat arrays */
    int init;               /* of a parameter: ddpm_init and its scale */
    double init_scale;
    double square;          /* of a parameter: squared norm of its gradient, negative until it is known */
    unsigned *version;      /* of a parameter: its model's; NULL for one that belongs to no model */
    void *device;           /* a backend's own */
} ddpm_tensor;

#define DDPM_MAX_INPUTS 5
typedef struct ddpm_node { /* constant once planned: what varies from step to step is in ddpm_step or in tensors */
    ddpm_op op;
    int id;
    const char *name; /* where in the network: "down_blocks.0.resnets.1.conv1" */
    ddpm_tensor *in[DDPM_MAX_INPUTS], *out, *aux;
    union {
        struct { int stride, pad_start, pad_end; } conv;
        struct { int groups; double eps, momentum; } norm;
        struct { int heads; } attention;
        struct { int kind, kernel, stride, pad; } pool;
        struct { int kind; } activation;
        struct { int flip_sin_to_cos; double freq_shift; } time;
        struct { int start; } slice;
        struct { int factor; } resample;                        /* upsample, pixel_(un)shuffle */
        struct { double scale, shift; } affine;                 /* also add (scale), dropout (scale = p) */
    } attr;
    unsigned wants;      /* bit i: backward must produce in[i]->grad */
    unsigned accumulate; /* bit i: backward adds into in[i]->grad; else it is the first writer and stores */
    unsigned again;      /* backward runs forward again just before out is read, instead of keeping out */
    int block;           /* ddpm_graph.block when it was built */
    size_t scratch_elements; /* that its rows want at g->scratch */
    size_t own_elements, own_offset; /* a backend's own memory for it, which lasts from run to run, */
    ddpm_real *own;                  /* and where it is once allocated */
    unsigned final;      /* bit i: after this node's backward the gradient of parameter in[i] is complete */
    struct ddpm_node *fused_into; /* a backend's plan: that node does this one's work */
    void *plan;                   /* a backend's own */
} ddpm_node;

/* Forward of all nodes, then backward of those that have one, and before it forward AGAIN of what it reads and nobody
 * kept. */
enum { DDPM_FORWARD, DDPM_BACKWARD, DDPM_AGAIN };
typedef struct ddpm_task {
    ddpm_node *node;
    int what;
    size_t scratch_offset; /* in elements, as a tensor's */
} ddpm_task;

/* What changes from step to step: rows and the update read it through graph->step, so that a step can be captured
 * once. */
typedef struct ddpm_step {
    uint64_t seed, first_picture;       /* address of the batch's first picture, for noise and dropout, */
    uint32_t index;                     /* and which step of sampling */
    double lr, beta1, beta2, eps;       /* Adam */
    double correction1, correction2;    /* 1 - beta^t */
    double weight_decay;                /* decoupled (AdamW) */
    double max_grad_norm;               /* 0: no clipping */
    double ema_decay;
    double grad_norm;                   /* out: norm of all gradients, before clipping */
} ddpm_step;

/* The same as factors (adam() in ddpm_impl.c): one_b1 = 1 - beta1, keep = 1 - lr weight_decay, rate = lr / correction1,
 * root = sqrt(correction2), ema = 1 - ema_decay. */
typedef struct ddpm_adam {
    ddpm_real clip, one_b1, b2, one_b2, keep, rate, root, eps, ema;
} ddpm_adam;

typedef struct ddpm_graph {
    ddpm_node **node;
    int nodes;
    ddpm_tensor **tensor; /* activations; parameters belong to the model */
    int tensors;
    int capacity, n;  /* n: pictures of the run in progress */
    int training;     /* dropout and batch statistics on; gradients of trainable parameters wanted */
    int recompute, share; /* of ddpm_graph_create */
    int block;        /* what is built now is part of this block; 0: of none. DDPM_RECOMPUTE keeps what leaves one */
    ddpm_task *task;  /* what runs, in this order, known after ddpm_graph_plan */
    int tasks, forwards; /* all; those of forward */
    int again;        /* the forward row that runs now is a DDPM_AGAIN: its aux is still what it left there */
    ddpm_tensor *root; /* where backward starts */
    ddpm_step step;
    size_t bytes;     /* of all activations, their gradients and scratch, known after ddpm_graph_plan */
    size_t shared_elements; /* DDPM_SHARE_GRADIENTS: offsets below lie in the model's array of gradients */
    ddpm_real *gradients;   /* which begins here */
    const struct ddpm_device *device;
    ddpm_real *scratch; /* of the row that runs; what it leaves there is gone after it */
    void *memory;     /* those bytes, from the backend */
    void *state;      /* a backend's own, made by its plan() */
    ddpm_arena arena;
    ddpm_result result; /* the first failure while building; ddpm_graph_plan returns it */
    char name[256];     /* prefix for the names of what is built next: see ddpm_enter */
    int node_room, tensor_room;
} ddpm_graph;

/* An empty graph on `device` (NULL: reference). training 0, or a sum of
 *   DDPM_TRAINING         rows behave as in module.train() and parameters get gradients;
 *   DDPM_RECOMPUTE        of each block (a ResnetBlock2D, an attention) only what leaves it is kept for backward, which
 *                         runs the rest of its forward again (Chen et al. 2016): the same bits, less memory, more time;
 *   DDPM_SHARE_GRADIENTS  until a parameter's gradient is written its memory serves activations. backward then starts
 *                         all gradients from zero, so that they cannot add up over micro-batches, and any forward
 *                         destroys them. All parameters must be of one model. */
enum { DDPM_TRAINING = 1, DDPM_RECOMPUTE = 2, DDPM_SHARE_GRADIENTS = 4 };
DDPM_API ddpm_result ddpm_graph_create(ddpm_graph **out, const struct ddpm_device *device, int capacity, int training);
DDPM_API void ddpm_graph_free(ddpm_graph *g);

/* Names nest like modules: mark = ddpm_enter(g, "resnets.%d", i); ...; ddpm_leave(g, mark). */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
DDPM_API size_t ddpm_enter(ddpm_graph *g, const char *format, ...);
DDPM_API void ddpm_leave(ddpm_graph *g, size_t mark);

/* Builders. x is (N,C,H,W); a vector a picture is (N,C,1,1). They return the output, or NULL after a failure: the
 * first one is kept in the graph, later builders pass NULL on, ddpm_graph_plan returns it. So network code needs no
 * checks. The comments name torch's module or function. */
DDPM_API ddpm_tensor *ddpm_input(ddpm_graph *g, const char *name, int c, int h, int w, int need_grad);

/* Conv2d: weight (Cout,Cin,k,k), bias (Cout) or NULL; zeros before (top, left) and after (bottom, right), each < k. */
DDPM_API ddpm_tensor *ddpm_conv2d(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias, int stride,
                                  int pad_start, int pad_end);
/* Linear over the channels of each pixel: weight (Cout,Cin), bias (Cout) or NULL. */
DDPM_API ddpm_tensor *ddpm_linear(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias);
/* GroupNorm: weight (C), bias (C); groups divides C. */
DDPM_API ddpm_tensor *ddpm_group_norm(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias, int groups,
                                      double eps);
/* SiLU, ReLU, Sigmoid. */
enum { DDPM_SILU, DDPM_RELU, DDPM_SIGMOID };
DDPM_API ddpm_tensor *ddpm_activation(ddpm_graph *g, ddpm_tensor *x, int kind);
/* scaled_dot_product_attention over the H*W tokens of a picture; heads divides C. */
DDPM_API ddpm_tensor *ddpm_attention(ddpm_graph *g, ddpm_tensor *q, ddpm_tensor *k, ddpm_tensor *v, int heads);
/* (a + b) * scale; b like a, or (N,C,1,1) for every pixel. */
DDPM_API ddpm_tensor *ddpm_add(ddpm_graph *g, ddpm_tensor *a, ddpm_tensor *b, double scale);
/* cat((a, b), dim=1), and x[:, start:start+count]. */
DDPM_API ddpm_tensor *ddpm_concat(ddpm_graph *g, ddpm_tensor *a, ddpm_tensor *b);
DDPM_API ddpm_tensor *ddpm_slice(ddpm_graph *g, ddpm_tensor *x, int start, int count);
/* interpolate(scale_factor=factor, mode="nearest"). */
DDPM_API ddpm_tensor *ddpm_upsample(ddpm_graph *g, ddpm_tensor *x, int factor);
/* diffusers' Timesteps: t (N,1,1,1), any real -> (N,dim,1,1). */
DDPM_API ddpm_tensor *ddpm_time_embedding(ddpm_graph *g, ddpm_tensor *t, int dim, int flip_sin_to_cos,
                                          double freq_shift);
/* diffusers' GaussianFourierProjection(log=True): t (N,1,1,1) > 0, weight (C) -> (N,2C,1,1). */
DDPM_API ddpm_tensor *ddpm_fourier_embedding(ddpm_graph *g, ddpm_tensor *t, ddpm_tensor *weight);
/* Embedding: index (N,1,1,1), table (classes,dim) -> (N,dim,1,1); DDPM_ERR_RANGE when it runs, for an index outside. */
DDPM_API ddpm_tensor *ddpm_embedding(ddpm_graph *g, ddpm_tensor *index, ddpm_tensor *table);
/* x * (1 + scale) + shift; scale_shift (N,2C,1,1) holds scale, then shift. */
DDPM_API ddpm_tensor *ddpm_modulate(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *scale_shift);
/* MaxPool2d; AvgPool2d (padding counts as zeros in the mean). */
enum { DDPM_POOL_MAX, DDPM_POOL_MEAN };
DDPM_API ddpm_tensor *ddpm_pool(ddpm_graph *g, ddpm_tensor *x, int kind, int kernel, int stride, int pad);
/* PixelUnshuffle, PixelShuffle. */
DDPM_API ddpm_tensor *ddpm_pixel_unshuffle(ddpm_graph *g, ddpm_tensor *x, int factor);
DDPM_API ddpm_tensor *ddpm_pixel_shuffle(ddpm_graph *g, ddpm_tensor *x, int factor);
/* Dropout; returns x itself in a graph that is not for training. */
DDPM_API ddpm_tensor *ddpm_dropout(ddpm_graph *g, ddpm_tensor *x, double p);
/* scale * x / divisor[n] + shift; divisor (N,1,1,1), or NULL for 1. */
DDPM_API ddpm_tensor *ddpm_affine(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *divisor, double scale, double shift);
/* BatchNorm2d, all vectors (C): batch statistics when training (running ones follow), running ones otherwise. */
DDPM_API ddpm_tensor *ddpm_batch_norm(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *weight, ddpm_tensor *bias,
                                      ddpm_tensor *running_mean, ddpm_tensor *running_var, double eps,
                                      double momentum);
/* Losses, summed over a picture's elements: (N,1,1,1). Squared error; BCELoss(reduction="sum") of probabilities. */
DDPM_API ddpm_tensor *ddpm_mse(ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *target);
DDPM_API ddpm_tensor *ddpm_bce(ddpm_graph *g, ddpm_tensor *p, ddpm_tensor *target);

/* Ends building: marks what needs a gradient, who stores and who adds, lets the backend plan, lays out memory by
 * lifetime.
 *   root  where backward will start, or NULL (forward only). Tensors named in `keep` survive the whole run.
 *   Sets g->bytes; allocates nothing large. Returns the first failure of any builder, with its error text. */
DDPM_API ddpm_result ddpm_graph_plan(ddpm_graph *g, ddpm_tensor *root, ddpm_tensor *const *keep, int keeps);
/* Allocates g->bytes; called by the first forward if the caller does not. */
DDPM_API ddpm_result ddpm_graph_alloc(ddpm_graph *g);
/* Runs all nodes for n pictures, 1 <= n <= capacity. */
DDPM_API ddpm_result ddpm_graph_forward(ddpm_graph *g, int n);
typedef void (*ddpm_grad_ready)(void *user, ddpm_tensor *param);
/* Backpropagation from the root for the pictures of the last forward.
 *   seed   gradient of the root, n x its elements a picture, in host memory; NULL: ones
 *   ready  called as each parameter's gradient becomes final (ranks then begin to reduce it); may be NULL
 *   Parameters' gradients are added to (under DDPM_SHARE_GRADIENTS stored), all others are stored. */
DDPM_API ddpm_result ddpm_graph_backward(ddpm_graph *g, const ddpm_real *seed, ddpm_grad_ready ready, void *user);
/* Runs forward again, node by node: DDPM_ERR_NONFINITE naming the first node whose output has a NaN or infinity and
 * that picture, or DDPM_OK. For finding out why a loss went wrong. */
DDPM_API ddpm_result ddpm_graph_find_nonfinite(ddpm_graph *g);
/* Runs one node's row alone, on whatever its tensors hold after a forward and backward: for benchmarks. */
DDPM_API ddpm_result ddpm_graph_run_node(ddpm_graph *g, const ddpm_node *node, int backward);

/* Copies between host memory (contiguous NCHW) and a tensor, first n pictures; n is ignored for parameters. */
enum { DDPM_DATA, DDPM_GRADIENT };
DDPM_API ddpm_result ddpm_upload(const struct ddpm_device *device, ddpm_tensor *x, int which, int n,
                                 const ddpm_real *host);
DDPM_API ddpm_result ddpm_download(const struct ddpm_device *device, const ddpm_tensor *x, int which, int n,
                                   ddpm_real *host);

DDPM_API size_t ddpm_elements(const ddpm_tensor *x, int n);  /* n pictures' elements; all of a parameter's */
/* Floating-point operations of a node for n pictures, a multiply-add as two; direct convolution. backward: of its
 * wants. */
DDPM_API double ddpm_node_flops(const ddpm_node *node, int n, int backward);

/* ---- 4. Backends ----------------------------------------------------------------------------------------------------
 * A backend fills the operation table again. Rows it leaves NULL run as download, reference row, upload, so that it
 * can be written row by row. Nothing above this table knows which backend runs. CONTRIBUTING.md tells how to add
 * one. */

typedef ddpm_result (*ddpm_row_fn)(const ddpm_graph *g, const ddpm_node *node);
typedef struct ddpm_row {
    ddpm_row_fn forward, backward;
} ddpm_row;

typedef struct ddpm_device { /* an opened backend */
    const struct ddpm_backend *backend;
    void *state;
    int threads;
} ddpm_device;

typedef enum ddpm_array { DDPM_WEIGHT, DDPM_GRAD, DDPM_MOMENT1, DDPM_MOMENT2, DDPM_EMA, DDPM_ARRAYS } ddpm_array;
typedef struct ddpm_model ddpm_model;

/* Entries from plan on may be NULL: then memory is the host's, tensors are plain NCHW, and the reference's code
 * serves. */
typedef struct ddpm_backend {
    const char *name;
    const ddpm_row *rows; /* DDPM_OP_COUNT rows */
    ddpm_result (*open)(void **state, int threads, const char *isa);
    void (*close)(void *state);
    /* Layouts, algorithms, fusion; sets each node's scratch_elements. unplan frees what plan made. */
    ddpm_result (*plan)(ddpm_graph *g);
    void (*unplan)(ddpm_graph *g);
    ddpm_result (*alloc)(void *state, size_t bytes, void **out); /* zeroed */
    void (*free)(void *state, void *memory);
    ddpm_result (*zero)(void *state, void *memory, size_t bytes);
    ddpm_result (*upload)(void *state, ddpm_tensor *x, int which, int n, const ddpm_real *host);
    ddpm_result (*download)(void *state, const ddpm_tensor *x, int which, int n, ddpm_real *host);
    ddpm_result (*sync)(void *state);
    /* y[n] = sum_k c[k * capacity + n] x_k[n], then clamped to [-clamp, clamp] if clamp > 0. y may be one of x; an x_k
     * that is NULL counts as ones. Serves add_noise, guidance and every sampler; not differentiable. c is a tensor
     * (capacity,4,1,1) read as [k][n]. y, x_k and c may be views: copies of a tensor's struct whose data begin at a
     * later picture, each picture being C*H*W elements; upload and download meet them too. */
    ddpm_result (*lincomb)(ddpm_graph *g, ddpm_tensor *y, int k, ddpm_tensor *const *x, const ddpm_tensor *c,
                           double clamp);
    /* Picture i: ddpm_normals at {seed, first_picture + i, index, purpose}, of g->step but for the last. */
    ddpm_result (*normal)(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose);
    /* The update, on host memory, of parameters next to each other: the sum of x^2; and clipping, Adam and the average
     * in one pass, without Adam if grad is NULL, without the average if ema is NULL. */
    double (*squares)(void *state, size_t count, const ddpm_real *x);
    void (*adam)(void *state, const ddpm_adam *s, size_t count, ddpm_real *w, const ddpm_real *grad, ddpm_real *m,
                 ddpm_real *v, ddpm_real *ema);
    const char *(*isa)(const void *state); /* the instruction set in use, for people: "avx512" */

    /* For a device that computes while the host goes on. update: all of ddpm_update, for memory of its own; where there
     * is outcome, update only asks for it, and outcome, after a sync, tells how it ended. */
    ddpm_result (*update)(ddpm_model *model, ddpm_step *step);
    ddpm_result (*outcome)(ddpm_model *model, ddpm_step *step);
    /* download, done by the time of the next sync. */
    ddpm_result (*fetch)(void *state, const ddpm_tensor *x, int n, ddpm_real *host);
    /* A batch of n pictures, more than the capacity if need be, sets out for the device while that computes; unstage
     * makes those from `first` on, g->n of them, x's data. */
    ddpm_result (*stage)(ddpm_graph *g, ddpm_tensor *x, int n, const ddpm_real *host);
    ddpm_result (*unstage)(ddpm_graph *g, ddpm_tensor *x, int first);
    /* Runs work(of), which asks the device for what is the same whenever the key is, but for what g->step and tensors
     * hold, and copies nothing to or from the host: it may be recorded, and the record repeated. */
    ddpm_result (*repeat)(ddpm_graph *g, const char *key, ddpm_result (*work)(void *of), void *of);
    ddpm_result (*room)(void *state, size_t *free_bytes); /* of the device's memory */
} ddpm_backend;

/* For a backend's plan(): where nobody but one SiLU reads a GroupNorm's output, and it is not to be kept, the norm's
 * output becomes the SiLU's and the SiLU (fused_into the norm) runs no more. Returns the SiLU; NULL: nothing is
 * changed. The norm's row must then do both. */
DDPM_API ddpm_node *ddpm_fold_silu(ddpm_graph *g, ddpm_node *norm);

DDPM_API const ddpm_backend *ddpm_reference(void);
/* Opens a backend (NULL: reference). threads 0: all that OpenMP offers; becomes OpenMP's number for the calling thread.
 * isa: NULL, or a backend's name for an instruction set. */
DDPM_API ddpm_result ddpm_device_open(ddpm_device *device, const ddpm_backend *backend, int threads, const char *isa);
DDPM_API void ddpm_device_close(ddpm_device *device);
DDPM_API const char *ddpm_device_isa(const ddpm_device *device); /* "avx512", ...; "" if the backend does not say */

/* ---- 5. Model: diffusers' UNet2DModel, with the label encoder of the lab ----------------------------------------- */

#define DDPM_MAX_LEVELS 8
typedef enum ddpm_block_type { DDPM_PLAIN_BLOCK, DDPM_ATTN_BLOCK } ddpm_block_type; /* DownBlock2D, AttnDownBlock2D */
typedef enum ddpm_resample_type { DDPM_RESAMPLE_CONV, DDPM_RESAMPLE_RESNET } ddpm_resample_type;
typedef enum ddpm_time_type { DDPM_TIME_POSITIONAL, DDPM_TIME_FOURIER } ddpm_time_type;
typedef enum ddpm_time_shift { DDPM_SHIFT_DEFAULT, DDPM_SHIFT_SCALE_SHIFT } ddpm_time_shift;
typedef enum ddpm_class_type { DDPM_CLASS_NONE, DDPM_CLASS_TIMESTEP, DDPM_CLASS_IDENTITY } ddpm_class_type;

typedef struct ddpm_unet_config { /* the fields of UNet2DModel's config.json, with its names; 0 stands for null */
    int sample_size[2];           /* height, width; 0: any */
    int in_channels, out_channels;
    int center_input_sample;
    ddpm_time_type time_embedding_type;
    int time_embedding_dim;       /* 0: 4 x block_out_channels[0] */
    double freq_shift;
    int flip_sin_to_cos;
    int levels;                   /* length of the next three */
    ddpm_block_type down_block_types[DDPM_MAX_LEVELS], up_block_types[DDPM_MAX_LEVELS];
    int block_out_channels[DDPM_MAX_LEVELS];
    int mid_block_type;           /* 1: UNetMidBlock2D; 0: null */
    int layers_per_block;
    double mid_block_scale_factor;
    int downsample_padding;       /* 1, or 0: pad right and bottom only */
    ddpm_resample_type downsample_type, upsample_type; /* heeded by the Attn blocks only, as in diffusers */
    double dropout;
    int attention_head_dim;       /* channels a head: heads = channels / attention_head_dim; 0: one head */
    int norm_num_groups, attn_norm_num_groups;
    double norm_eps;
    ddpm_time_shift resnet_time_scale_shift;
    int add_attention;            /* attention in the mid block */
    ddpm_class_type class_embed_type;
    int num_class_embeds;         /* with class_embed_type null: classes of an Embedding */
} ddpm_unet_config;

typedef struct ddpm_label_config { /* Linear(num_classes, hidden_dim), Linear(hidden_dim, embedding_dim) */
    int num_classes;               /* 0: no label encoder */
    int hidden_dim, embedding_dim; /* embedding_dim = the UNet's time embedding width */
} ddpm_label_config;

typedef struct ddpm_model_config {
    ddpm_unet_config unet;
    ddpm_label_config label;
    int pixel_unshuffle; /* 1: none; r: the UNet sees (C r^2, H/r, W/r) of a (C,H,W) picture */
} ddpm_model_config;

/* diffusers' defaults for every field of UNet2DModel, no label encoder. */
DDPM_API ddpm_model_config ddpm_model_default(void);
/* "lab": (128,128,256,256,512,512), attention at the fifth level, 64x64. "small": (64,128,128,256), attention at the
 * third, 32x32. "tiny": (32,64), attention at the second, one layer a block, 16 groups, 32x32. classes > 0 adds the
 * label encoder (hidden_dim 64) with class_embed_type identity. An unknown name gives levels = 0, which
 * ddpm_model_create refuses. */
DDPM_API ddpm_model_config ddpm_model_preset(const char *name, int classes);

struct ddpm_model {
    ddpm_model_config config;
    const ddpm_device *device;
    ddpm_tensor **param; /* in execution order, so that gradients become final from the last to the first */
    int params, param_room;
    size_t elements;                /* of all parameters together */
    void *array[DDPM_ARRAYS];       /* flat, in the backend's form; NULL where not allocated */
    ddpm_array in_use;              /* DDPM_WEIGHT or DDPM_EMA: what the parameters' data points at */
    unsigned version;               /* raised whenever what the networks compute with may have changed, for backends
                                       that keep a form of it; who writes into an array directly raises it too */
    int declaring;                  /* being created: ddpm_param declares */
    ddpm_arena arena;
};

/* Checks the config (DDPM_ERR_ARGUMENT, _SHAPE or _UNSUPPORTED name the field) and declares all parameters; allocates
 * no arrays. device: NULL for the reference on all threads; else it must outlive the model. */
DDPM_API ddpm_result ddpm_model_create(ddpm_model **out, const ddpm_model_config *config, const ddpm_device *device);
DDPM_API void ddpm_model_free(ddpm_model *model);
enum { DDPM_FOR_INFERENCE = 1 << DDPM_WEIGHT, DDPM_FOR_GRADIENTS = DDPM_FOR_INFERENCE | 1 << DDPM_GRAD,
       DDPM_FOR_TRAINING = (1 << DDPM_ARRAYS) - 1 };
/* Allocates the arrays of the set that are missing, zeroed. Each has 4 (DDPM_REAL float) bytes an element. */
DDPM_API ddpm_result ddpm_model_alloc(ddpm_model *model, unsigned arrays);
/* PyTorch's initialisation: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, N(0,1) for embeddings, norms 1
 * and 0; the EMA array, if there, becomes a copy, moments become 0. */
DDPM_API ddpm_result ddpm_model_init(ddpm_model *model, uint64_t seed);
/* Which array the networks compute with from now on: DDPM_WEIGHT or DDPM_EMA (DDPM_ERR_ARGUMENT if not allocated). */
DDPM_API ddpm_result ddpm_model_use(ddpm_model *model, ddpm_array array);
DDPM_API ddpm_tensor *ddpm_model_find(const ddpm_model *model, const char *name); /* NULL if there is none */
/* One parameter's part of one array, to and from host memory in the parameter's shape. */
DDPM_API ddpm_result ddpm_model_get(const ddpm_model *model, ddpm_array array, const ddpm_tensor *param,
                                    ddpm_real *out);
DDPM_API ddpm_result ddpm_model_set(ddpm_model *model, ddpm_array array, const ddpm_tensor *param,
                                    const ddpm_real *in);
DDPM_API ddpm_result ddpm_model_zero_grad(ddpm_model *model);

/* Finds parameter `name` (below the graph's current prefix) in the model, or declares it while the model is being
 * created. For code that builds networks of its own on the same table (an evaluator). shape has `dims` entries.
 * init: how ddpm_model_init fills it. */
typedef enum ddpm_init { DDPM_INIT_UNIFORM, DDPM_INIT_NORMAL, DDPM_INIT_ONES, DDPM_INIT_ZEROS } ddpm_init;
DDPM_API ddpm_tensor *ddpm_param(ddpm_graph *g, ddpm_model *model, const char *name, int dims, const int *shape,
                                 ddpm_init init, double scale, int trainable);
/* A model of such a network: it has the parameters that `build`, called once on a graph of one picture, asks for; its
 * config stays zero. The same code then builds the graphs that compute. */
typedef void (*ddpm_build)(void *user, ddpm_graph *g, ddpm_model *model);
DDPM_API ddpm_result ddpm_model_declare(ddpm_model **out, const ddpm_device *device, ddpm_build build, void *user);

struct ddpm_step_terms; /* of section 8 */
/* A network: a model's graph at one picture size with its inputs, outputs and the tensors that training and sampling
 * need. All are (N,C,H,W) of the picture (before pixel_unshuffle) unless said otherwise. */
typedef struct ddpm_net {
    ddpm_model *model;
    ddpm_graph *graph;
    int channels, height, width; /* of a picture */
    int out_channels;            /* of the prediction and the noise; training and sampling need the same as channels */
    ddpm_tensor *sample;         /* x_t: what the UNet sees */
    ddpm_tensor *timestep;       /* (N,1,1,1), real */
    ddpm_tensor *labels;         /* (N,L,1,1), L = ddpm_label_width(); NULL for an unconditional model */
    ddpm_tensor *prediction;     /* of the noise */
    ddpm_tensor *noise;          /* training: eps, the target; sampling: z */
    ddpm_tensor *image;          /* training: x_0; sampling: its estimate */
    ddpm_tensor *loss;           /* (N,1,1,1) sums of squares; NULL unless training */
    ddpm_tensor *coefficients;   /* of all linear combinations of a step */
    int *host_steps;             /* (capacity): for t, */
    double *host_terms;          /* (2,capacity): coefficients of one of them, */
    ddpm_real *host_coefficients; /* of all of them as they are uploaded, */
    ddpm_real *host_values;      /* (capacity): and what is on its way to or from a tensor */
    ddpm_real *host_losses;      /* of the pictures of a training step */
    int losses_room;
    /* Somebody else's say, NULL where nobody has one; `teacher` is given to both. They may return a failure.
     *   guide  of ddpm_sample: may change `prediction` of n pictures at time t before the step uses it
     *   pull   of training, between forward and backward: may move `noise`. The gradient of the prediction is
     *          2 (prediction - noise) / elements: moving noise by -g elements / 2 adds g to it */
    ddpm_result (*guide)(void *teacher, struct ddpm_net *net, const struct ddpm_step_terms *terms, int t, int n);
    ddpm_result (*pull)(void *teacher, struct ddpm_net *net, int n, double elements);
    void *teacher;
} ddpm_net;

/* Builds and plans it. height or width 0: the config's sample_size; where that is 0, too, the smallest that there is.
 * training: as of ddpm_graph_create. DDPM_ERR_SHAPE names a size the levels cannot halve. */
DDPM_API ddpm_result ddpm_net_create(ddpm_net **out, ddpm_model *model, int height, int width, int capacity,
                                     int training);
DDPM_API void ddpm_net_free(ddpm_net *net);
/* Labels a picture carries: num_classes of the label encoder (multi-hot); 1 for an Embedding (index) or
 * class_embed_type timestep; the embedding's width for identity without an encoder; 0 when unconditional. */
DDPM_API int ddpm_label_width(const ddpm_model_config *config);
/* prediction = UNet(sample, timestep, labels) for n <= capacity pictures in host memory. labels may be NULL if width
 * is 0. */
DDPM_API ddpm_result ddpm_predict(ddpm_net *net, int n, const ddpm_real *sample, const ddpm_real *timestep,
                                  const ddpm_real *labels, ddpm_real *prediction);

/* ---- 6. Noise schedule: diffusers' DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler --------------------- */

typedef enum ddpm_beta_schedule {
    DDPM_BETA_SQUAREDCOS_CAP_V2,
    DDPM_BETA_LINEAR,
    DDPM_BETA_SCALED_LINEAR,
    DDPM_BETA_SIGMOID, /* this and laplace: in diffusers of DDPMScheduler only */
    DDPM_BETA_LAPLACE
} ddpm_beta_schedule;
typedef enum ddpm_prediction_type { /* what the network is trained to say about x_t */
    DDPM_PREDICTS_EPSILON,          /* eps */
    DDPM_PREDICTS_SAMPLE,           /* x_0 */
    DDPM_PREDICTS_V                 /* v = sqrt(abar) eps - sqrt(1 - abar) x_0   (Salimans & Ho 2022) */
} ddpm_prediction_type;
typedef enum ddpm_sampler { DDPM_SAMPLER_DDPM, DDPM_SAMPLER_DDIM, DDPM_SAMPLER_DPMSOLVER } ddpm_sampler;
typedef enum ddpm_variance_type { DDPM_FIXED_SMALL, DDPM_FIXED_SMALL_LOG, DDPM_FIXED_LARGE } ddpm_variance_type;
typedef enum ddpm_spacing { DDPM_SPACING_LEADING, DDPM_SPACING_LINSPACE, DDPM_SPACING_TRAILING } ddpm_spacing;
typedef enum ddpm_solver_type { DDPM_SOLVER_MIDPOINT, DDPM_SOLVER_HEUN } ddpm_solver_type;
typedef enum ddpm_final_sigmas { DDPM_FINAL_SIGMA_ZERO, DDPM_FINAL_SIGMA_MIN } ddpm_final_sigmas;

typedef struct ddpm_schedule_config { /* fields of scheduler_config.json, with its names */
    int num_train_timesteps;          /* T */
    ddpm_beta_schedule beta_schedule;
    double beta_start, beta_end;      /* of all but squaredcos_cap_v2 and laplace */
    int clip_sample;                  /* x_0 to [-clip_sample_range, clip_sample_range]; not in DPM-Solver++ */
    double clip_sample_range;
    const double *trained_betas;      /* (T) in place of beta_schedule; NULL: none. The caller's, while s lives */
    int rescale_betas_zero_snr;       /* abar_(T-1) = 0 (Lin et al. 2023, algorithm 1); not for epsilon */
    ddpm_prediction_type prediction_type;
    /* From here on what only sampling reads: it may be changed in a ddpm_schedule that exists. */
    ddpm_sampler scheduler;           /* the file's class, which ddpm_sample_config need not follow */
    int thresholding;                 /* x_0 cut at a quantile of |x_0|, and divided by it (Saharia et al. 2022) */
    double dynamic_thresholding_ratio, sample_max_value;
    ddpm_spacing timestep_spacing;    /* Lin et al. 2023, table 2 */
    int steps_offset;                 /* of leading */
    ddpm_variance_type variance_type; /* DDPM; of the two small ones only the rounding differs */
    int set_alpha_to_one;             /* DDIM: abar after the last step is 1; else abar_0 */
    int solver_order;                 /* DPM-Solver++ (Lu et al. 2022): 1 or 2 */
    ddpm_solver_type solver_type;
    int lower_order_final, euler_at_final;
    ddpm_final_sigmas final_sigmas_type;
    double lambda_min_clipped;        /* steps start where log(alpha/sigma) is at least this; -INFINITY: at T */
} ddpm_schedule_config;
/* 1000, squaredcos_cap_v2, 1e-4, 0.02, clip to 1, epsilon; the rest as in diffusers' DDPMScheduler and
 * DPMSolverMultistepScheduler (leading, fixed_small, set_alpha_to_one; order 2, midpoint, lower_order_final, zero). */
DDPM_API ddpm_schedule_config ddpm_schedule_default(void);

typedef struct ddpm_schedule {
    ddpm_schedule_config config;
    float *beta, *alpha_bar; /* T values each, float32 in diffusers' order of operations */
} ddpm_schedule;
/* config NULL: the default. DDPM_ERR_ARGUMENT names the field that is out of range; s then holds no memory. */
DDPM_API ddpm_result ddpm_schedule_create(ddpm_schedule *s, const ddpm_schedule_config *config);
DDPM_API void ddpm_schedule_free(ddpm_schedule *s);

/* x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps      (Ho et al. 2020, eq. 4; DDPMScheduler.add_noise)
 * on a network's tensors: net->sample from net->image and net->noise, t for each of n pictures; also sets
 * net->timestep. DDPM_ERR_RANGE names the first t outside [0,T): x_t is then unchanged. DDPM_ERR_SHAPE: out_channels
 * are others than the picture's. */
DDPM_API ddpm_result ddpm_add_noise(ddpm_net *net, const ddpm_schedule *s, const int *t, int n);

/* ---- 7. Training ------------------------------------------------------------------------------------------------- */

typedef struct ddpm_train_config {
    double beta1, beta2, eps, weight_decay; /* Adam (Kingma & Ba 2015); weight_decay as AdamW */
    double max_grad_norm;                   /* torch.nn.utils.clip_grad_norm_; 0: off */
    double ema_decay;                       /* largest decay of diffusers' EMAModel */
    uint64_t seed;
    double snr_gamma;                       /* min-SNR weighting (Hang et al. 2023) with this gamma; 0: off */
} ddpm_train_config;
DDPM_API ddpm_train_config ddpm_train_default(void); /* 0.9, 0.999, 1e-8, 0; 1.0; 0.9999; 529; 0 */

/* Several processes that train together (comm/): each computes its part of a step's pictures, then all make the same
 * update with the sum of their gradients. In every step every one of them must come to `finish`, once.
 *   ready   as of ddpm_graph_backward; called while the last micro-batch's runs
 *   finish  waits until the model's gradients and *total are the sums of all ranks. `result` is this rank's own; all
 *           ranks get the same one back: DDPM_OK, or somebody's failure with its text */
typedef struct ddpm_ranks {
    int rank, size;
    ddpm_grad_ready ready;
    ddpm_result (*finish)(void *user, ddpm_result result, double *total);
    void *user;
} ddpm_ranks;
/* How many of n pictures rank `rank` of `size` has; *first: those before them. In order, at most one more than
 * others. */
DDPM_API int ddpm_part(int n, int rank, int size, int *first);

typedef struct ddpm_trainer {
    ddpm_net *net;
    const ddpm_schedule *schedule;
    ddpm_train_config config;
    const ddpm_ranks *ranks; /* NULL: this process trains alone */
    uint64_t step, picture; /* optimiser steps and pictures so far: with the arrays, all that a resumed run needs */
    double grad_norm;       /* of the last step, before clipping */
    double *picture_loss;   /* the caller's, n entries or NULL: a step leaves each picture's mean squared error there */
    int *picture_t;         /* and its t here */
    /* Batches, handed over and of the step in progress: this process's pictures, `n` of `all`, after `first` others. */
    struct { const ddpm_real *pictures, *labels; int n, first, all; ddpm_result result; } next, now;
} ddpm_trainer;
/* net must have been created for training, its model allocated DDPM_FOR_TRAINING (EMA may be absent). config NULL:
 * default. */
DDPM_API ddpm_result ddpm_trainer_init(ddpm_trainer *trainer, ddpm_net *net, const ddpm_schedule *s,
                                       const ddpm_train_config *config);
/* One optimiser step on n pictures in [-1,1], (n,C,H,W), labels (n,L). n may exceed the network's capacity: it then
 * runs as micro-batches whose gradients add up (not under DDPM_SHARE_GRADIENTS: DDPM_ERR_ARGUMENT). loss: mean squared
 * error over all elements of all of them, divided once; with snr_gamma the weighted one. DDPM_ERR_NONFINITE names the
 * first node that went wrong; the weights are then unchanged. With trainer->ranks, n is the number of all ranks'
 * pictures together, and pictures and labels hold this rank's part (ddpm_part), which may be empty. */
DDPM_API ddpm_result ddpm_train_step(ddpm_trainer *trainer, const ddpm_real *pictures, const ddpm_real *labels, int n,
                                     double lr, double *loss);
/* The same in three parts, for a device that computes while the host goes on: batch, start; batch, wait, start; batch,
 * wait, start; ...; wait. Between start and wait the next batch can be read, and be on its way. Pictures and labels
 * stay as they are until the wait for their step. A part out of turn is DDPM_ERR_ARGUMENT. */
DDPM_API ddpm_result ddpm_train_batch(ddpm_trainer *trainer, const ddpm_real *pictures, const ddpm_real *labels, int n);
DDPM_API ddpm_result ddpm_train_start(ddpm_trainer *trainer, double lr);
DDPM_API ddpm_result ddpm_train_wait(ddpm_trainer *trainer, double *loss);
/* The last part of it, for loops of one's own: clips the gradients that are there, makes one step of Adam and moves the
 * average, all in one pass over memory. step->grad_norm is set. DDPM_ERR_NONFINITE names a parameter whose gradient is
 * not finite; nothing is then changed. */
DDPM_API ddpm_result ddpm_update(ddpm_model *model, ddpm_step *step);
/* Sets what the update reads of it, after `steps` steps. */
DDPM_API void ddpm_step_set(ddpm_step *step, const ddpm_train_config *config, uint64_t steps, double lr);
/* Loss and gradients alone: sets the model's gradients to d(mse)/d(parameter) for given x_t, t, labels and target,
 * all in host memory, n pictures of any number (micro-batches as above). prediction may be NULL. */
DDPM_API ddpm_result ddpm_loss_gradients(ddpm_net *net, int n, const ddpm_real *sample, const ddpm_real *timestep,
                                         const ddpm_real *labels, const ddpm_real *target, ddpm_real *prediction,
                                         double *loss);

/* Mean squared error of each of n pictures (any number) at given t and the noise at `first` + i, as in module.eval()
 * and with the model's array in use: a figure that can be compared from epoch to epoch, as on held-out pictures. net:
 * created for training; labels (n,L) as in ddpm_train_step. DDPM_ERR_RANGE: t outside [0,T). */
DDPM_API ddpm_result ddpm_evaluate(ddpm_net *net, const ddpm_schedule *s, ddpm_address first,
                                   const ddpm_real *pictures, const ddpm_real *labels, const int *t, int n,
                                   double *loss);
/* What a picture's squared error weighs in the loss under min-SNR weighting (Hang et al. 2023, section 3.4): with
 * snr = abar_t / (1 - abar_t) it is min(snr, gamma) where the network predicts x_0, over snr where the noise, over
 * snr + 1 where v. gamma 0: 1. */
DDPM_API double ddpm_snr_weight(const ddpm_schedule *s, int t, double gamma);

/* torch's MultiStepLR stepped once an epoch: lr gamma^(number of milestones <= epoch). */
DDPM_API double ddpm_multistep_lr(double lr, int epoch, const int *milestones, int count, double gamma);
/* What a learning rate is multiplied by at optimiser step `step`, counted from 0: diffusers'
 * get_cosine_schedule_with_warmup, rising to 1 over `warmup` steps and falling to 0 at step `total`; total 0: no fall
 * (get_constant_schedule_with_warmup). */
DDPM_API double ddpm_cosine_factor(uint64_t step, uint64_t warmup, uint64_t total);
/* Label dropout, so that one network learns both terms of classifier-free guidance (Ho & Salimans 2022, algorithm 1):
 * with probability p all labels of a picture become `none` (0 for a multi-hot, the extra class for an index).
 *   first   seed and index in the run of the first picture: batch size and resuming do not matter; purpose is set here
 *   labels  (n,width), in place */
DDPM_API void ddpm_drop_labels(ddpm_address first, double p, ddpm_real none, int n, int width, ddpm_real *labels);
/* diffusers' EMAModel.get_decay: 0 at s <= 0, else min(max_decay, (1 + s)/(10 + s)), s = step - 1, step counted from
 * 1. */
DDPM_API double ddpm_ema_decay(uint64_t step, double max_decay);

/* ---- 8. Sampling ------------------------------------------------------------------------------------------------- */

typedef struct ddpm_sample_config {
    ddpm_sampler sampler;
    int steps;            /* 0: T */
    double eta;           /* DDIM: 0 deterministic ... 1 */
    uint64_t seed;
    uint64_t first_picture; /* address of the first picture's noise: batches of one job go on counting */
    /* G of classifier-free guidance (Ho & Salimans 2022, eq. 6 with G = 1 + w; diffusers' guidance_scale):
     *     eps = eps_none + G (eps_label - eps_none)
     * 1: none; 0: unconditional; above 1 towards the label. Other values than 0 and 1 run n pictures as 2n, which must
     * fit the network's capacity; the model must have been trained with labels left out now and then. */
    double guidance;
    const ddpm_real *none; /* (L): the labels that mean "no label"; NULL: zeros, an empty multi-hot */
    /* To start from pictures instead of from noise alone (SDEdit, Meng et al. 2022; diffusers' img2img pipelines): the
     * first `skip` steps are left out, and the next one, at t, gets x_t = sqrt(abar_t) start + sqrt(1 - abar_t) eps. */
    const ddpm_real *start; /* (n,C,H,W) in [-1,1]; NULL: none */
    int skip;               /* 0 <= skip < steps; only with start */
    /* 1: noise is PyTorch's, picture i drawing from a generator of its own with manual_seed(seed + first_picture + i):
     * what diffusers draws alone with that one, and together with a list of them. */
    int torch_rng;
} ddpm_sample_config;
DDPM_API ddpm_sample_config ddpm_sample_default(void); /* DDPM, T steps, seed 529, guidance 1 */

/* t of each of `steps` steps, descending, as the sampler's set_timesteps gives them: `out` has `steps` entries.
 * DDPM_ERR_RANGE: steps outside [1,T], or so many that two would coincide or leave [0,T). */
DDPM_API ddpm_result ddpm_timesteps(const ddpm_schedule *s, ddpm_sampler sampler, int steps, int *out);

/* One sampling step as two linear combinations, the same for every sampler; `out` is the network's, x_0' the estimate
 * of the step before:
 *     x_0     = clamp(x0_sample x_t + x0_prediction out)
 *     x_{t-1} = image x_0 + sample x_t + prediction out + noise z + previous x_0'
 * DDPM: eq. 7 of Ho et al. 2020; DDIM: eq. 12 of Song et al. 2021; DPM-Solver++: algorithm 2 of Lu et al. 2022. */
typedef struct ddpm_step_terms {
    double x0_sample, x0_prediction, clamp; /* clamp 0: none */
    double image, sample, prediction, noise, previous;
} ddpm_step_terms;
/* Of step i of the `steps` at times t. eta: DDIM's. */
DDPM_API ddpm_step_terms ddpm_step_coefficients(const ddpm_schedule *s, ddpm_sampler sampler, const int *t, int steps,
                                                int i, double eta);

/* Called before the first step (done = skip: net->sample is what that gets) and after each one (net->image is the
 * estimate of x_0). Anything but DDPM_OK ends sampling with that result. */
typedef ddpm_result (*ddpm_sample_callback)(void *user, ddpm_net *net, int done, int steps);
/* Draws n <= capacity pictures (2n <= capacity with guidance), (n,C,H,W), for labels (n,L) (NULL if unconditional).
 * Noise is addressed by picture, so a picture does not depend on the batch it was drawn in. config NULL: the default.
 * DDPM_ERR_ARGUMENT: guidance of a model without labels, or without "no label" where labels are class indices. */
DDPM_API ddpm_result ddpm_sample(ddpm_net *net, const ddpm_schedule *s, const ddpm_sample_config *config,
                                 const ddpm_real *labels, int n, ddpm_real *pictures, ddpm_sample_callback callback,
                                 void *user);

#ifdef __cplusplus
}
#endif
#ifdef DDPM_IMPLEMENTATION
#include "ddpm_impl.c"
#endif
#endif /* DDPM_H */
