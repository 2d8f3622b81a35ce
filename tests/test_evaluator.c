/* tests/test_evaluator.c - lab/evaluator, lab/score, lab/augment: the network against torch's, its files, its training;
 * the accuracy by hand; what augmentation does and does not do; guidance and fine-tuning.
 *
 * Contents:  1 helpers   2 the network   3 files   4 training   5 accuracy   6 augmentation   7 a teacher */
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
#include "io/file.h"
#include "lab/augment.h"
#include "lab/evaluator.h"
#include "lab/score.h"
#include "lab/teacher.h"
#include "tests/vectors.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)
#define DIRECTORY "tests/vectors/evaluator"

/* ---- 1. Helpers -------------------------------------------------------------------------------------------------- */

static char folder[200];

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_evaluator_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return io_remove_tree(folder) ? -1 : 0;
}

/* folder/name; the next call's text overwrites it. */
static const char *in_folder(const char *name)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void assert_error_has(const char *part)
{
    if (!strstr(ddpm_error(), part)) fail_msg("'%s' is not in the error: %s", part, ddpm_error());
}

/* The largest |value - truth|, relative to the truth's largest; NaN counts as infinite. */
static double distance(size_t count, const float *value, const double *truth)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        double error = fabs((double)value[i] - truth[i]);
        worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
        largest = fmax(largest, fabs(truth[i]));
    }
    return worst / largest;
}

/* Bound of a float32 network: torch's own float32 distance from the truth is of the size that rounding makes (the sums
 * are the same, their order is not); 8 times that, plus 256 units in the last place for tensors where torch was
 * lucky. */
static double bound(vectors *truth, int which)
{
    return 8 * vectors_doubles(truth, "float32")[which] + 256 * 0x1p-24;
}

static void check(const char *what, double error, double limit)
{
    if (!(error <= limit)) fail_msg("%s: %.3g off, bound %.3g", what, error, limit);
}

/* ---- 2. The network ---------------------------------------------------------------------------------------------- */

enum { PICTURES = 4, CLASSES = 24, ELEMENTS = 3 * 48 * 48 };

static void open_device(ddpm_device *device, int which)
{
    OK(ddpm_device_open(device, which ? ddpm_cpu() : ddpm_reference(), 2, NULL));
}

/* module.eval(): scores, and the gradient of log p with respect to the picture; in two portions, as the capacity is
 * less than the number of pictures. */
static void evaluates_as_torch(void **state)
{
    (void)state;
    vectors v;
    vectors_open(&v, DIRECTORY "/truth.safetensors");
    const float *picture = vectors_floats(&v, "picture"), *labels = vectors_floats(&v, "labels");
    float scores[PICTURES * CLASSES], log_p[PICTURES],
        *gradient = vectors_alloc(&v, PICTURES * ELEMENTS * sizeof(float));
    for (int which = 0; which < 2; which++) {
        ddpm_device device;
        lab_evaluator *ev;
        lab_evaluator_net *scoring, *guiding;
        open_device(&device, which);
        OK(lab_evaluator_load(DIRECTORY, &device, &ev));
        OK(lab_evaluator_net_create(&scoring, ev, 3, LAB_SCORING));
        OK(lab_evaluator_net_create(&guiding, ev, 3, LAB_GUIDING));
        OK(lab_evaluator_scores(scoring, PICTURES, picture, scores));
        check("scores", distance(PICTURES * CLASSES, scores, vectors_doubles(&v, "eval.scores")), bound(&v, 2));
        OK(lab_evaluator_gradient(guiding, PICTURES, picture, labels, log_p, gradient));
        check("gradient", distance(PICTURES * ELEMENTS, gradient, vectors_doubles(&v, "eval.gradient")), bound(&v, 3));
        for (int i = 0; i < PICTURES; i++) { /* the gradient is that of this: 24 logarithms of float32 scores */
            double sum = 0;
            for (int c = 0; c < CLASSES; c++) {
                double p = (double)scores[i * CLASSES + c];
                sum += labels[i * CLASSES + c] > 0 ? log(p) : log1p(-p);
            }
            assert_true(fabs((double)log_p[i] - sum) <= 1e-5 * fabs(sum));
        }
        lab_evaluator_net_free(scoring);
        lab_evaluator_net_free(guiding);
        lab_evaluator_free(ev);
        ddpm_device_close(&device);
    }
    vectors_close(&v);
}

/* module.train(): scores, loss, every parameter's gradient, running statistics. Gradients are read before the update
 * can use them up: a learning rate of 0 leaves the weights, and the gradients stay where they are. */
static void trains_as_torch(void **state)
{
    (void)state;
    vectors v;
    vectors_open(&v, DIRECTORY "/truth.safetensors");
    const float *picture = vectors_floats(&v, "picture"), *labels = vectors_floats(&v, "labels");
    float scores[PICTURES * CLASSES];
    for (int which = 0; which < 2; which++) {
        ddpm_device device;
        lab_evaluator *ev;
        lab_evaluator_net *net;
        double loss, worst = 0;
        int gradients = 0, statistics = 0;
        ddpm_train_config config = ddpm_train_default();
        open_device(&device, which);
        OK(lab_evaluator_load(DIRECTORY, &device, &ev));
        OK(ddpm_model_alloc(ev->model, DDPM_FOR_TRAINING));
        OK(lab_evaluator_net_create(&net, ev, PICTURES, LAB_TRAINING));
        OK(lab_evaluator_train_step(net, PICTURES, picture, labels, &config, 0, 0, &loss));
        OK(ddpm_download(&device, net->scores, DDPM_DATA, PICTURES, scores));
        check("scores", distance(PICTURES * CLASSES, scores, vectors_doubles(&v, "train.scores")), bound(&v, 0));
        double truth = vectors_doubles(&v, "train.loss")[0];
        check("loss", fabs(loss - truth) / truth, bound(&v, 0));
        for (int i = 0; i < ev->model->params; i++) {
            const ddpm_tensor *p = ev->model->param[i];
            size_t count = ddpm_elements(p, 1);
            const char *kind = p->trainable ? "grad" : "after";
            float *value = vectors_alloc(&v, count * sizeof *value);
            OK(ddpm_model_get(ev->model, p->trainable ? DDPM_GRAD : DDPM_WEIGHT, p, value));
            if (strstr(p->name, "num_batches_tracked")) {
                assert_true(value[0] == 1); /* one step */
                continue;
            }
            double error = distance(count, value, vectors_doubles(&v, "%s.%s", kind, p->name));
            check(p->name, error, bound(&v, p->trainable ? 1 : 0));
            worst = fmax(worst, error);
            gradients += p->trainable != 0;
            statistics += p->trainable == 0;
        }
        assert_int_equal(gradients, 62);  /* 20 convolutions, 20 norms' weights and biases, fc's weight and bias */
        assert_int_equal(statistics, 40); /* two of each norm */
        print_message("           %s: worst gradient %.1e (bound %.1e)\n", device.backend->name, worst, bound(&v, 1));
        lab_evaluator_net_free(net);
        lab_evaluator_free(ev);
        ddpm_device_close(&device);
    }
    vectors_close(&v);
}

/* The shipped width, where the CPU backend takes its fast paths: it and the reference from the same weights. Sums of
 * fewer than 128 x 9 products in another order, through 20 layers that each keep the size of what they get: 2^-24 for
 * each layer's worst case of some dozens of roundings; 1e-4 of the largest is 30 times what is measured and far below
 * what a wrong path makes. */
static void backends_agree(void **state)
{
    (void)state;
    static char *names[] = {"a", "b", "c"};
    io_evaluator_config config = {names, 3, 0.25, 64};
    enum { N = 2, SIZE = 3 * 64 * 64 };
    static float picture[N * SIZE], gradient[2][N * SIZE];
    float labels[N * 3] = {1, 0, 1, 0, 1, 0}, scores[2][N * 3];
    ddpm_normals((ddpm_address){3, 0, 0, DDPM_RANDOM_USER}, N * SIZE, picture);
    for (int which = 0; which < 2; which++) {
        ddpm_device device;
        lab_evaluator *ev;
        lab_evaluator_net *scoring, *guiding;
        open_device(&device, which);
        OK(lab_evaluator_create(&config, &device, &ev));
        OK(ddpm_model_init(ev->model, 5));
        OK(lab_evaluator_net_create(&scoring, ev, N, LAB_SCORING));
        OK(lab_evaluator_net_create(&guiding, ev, N, LAB_GUIDING));
        OK(lab_evaluator_scores(scoring, N, picture, scores[which]));
        OK(lab_evaluator_gradient(guiding, N, picture, labels, NULL, gradient[which]));
        lab_evaluator_net_free(scoring);
        lab_evaluator_net_free(guiding);
        lab_evaluator_free(ev);
        ddpm_device_close(&device);
    }
    double largest = 0, off = 0;
    for (int i = 0; i < N * 3; i++)
        check("score", fabs((double)(scores[0][i] - scores[1][i])), 1e-4);
    for (int i = 0; i < N * SIZE; i++) {
        largest = fmax(largest, fabs((double)gradient[0][i]));
        off = fmax(off, fabs((double)(gradient[0][i] - gradient[1][i])));
    }
    assert_true(largest > 0);
    check("gradient", off / largest, 1e-4);
}

/* ---- 3. Files ---------------------------------------------------------------------------------------------------- */

static void assert_same_weights(const lab_evaluator *a, const lab_evaluator *b)
{
    assert_int_equal(a->model->params, b->model->params);
    for (int i = 0; i < a->model->params; i++) {
        const ddpm_tensor *p = a->model->param[i], *q = b->model->param[i];
        assert_string_equal(p->name, q->name);
        assert_memory_equal(p->data, q->data, ddpm_elements(p, 1) * sizeof(float));
    }
}

static void saves_and_loads(void **state)
{
    (void)state;
    lab_evaluator *ev, *back;
    OK(lab_evaluator_load(DIRECTORY, NULL, &ev));
    assert_string_equal(ev->path, DIRECTORY);
    assert_string_equal(ev->config.class_name[23], "yellow cylinder");
    static const io_dtype dtypes[] = {IO_F32, IO_F16}; /* the weights are exact in both */
    for (int i = 0; i < 2; i++) {
        const char *path = in_folder(i ? "half" : "single");
        OK(lab_evaluator_save(path, ev, DDPM_WEIGHT, dtypes[i]));
        OK(lab_evaluator_load(path, NULL, &back));
        assert_true(back->config.width == ev->config.width && back->config.sample_size == 48);
        assert_same_weights(ev, back);
        lab_evaluator_free(back);
    }
    OK(lab_evaluator_load(DIRECTORY "/model.safetensors", NULL, &back)); /* a state_dict alone: width from shapes */
    assert_true(back->config.width == ev->config.width && back->config.sample_size == 64);
    for (int i = 0; i < CLASSES; i++)
        assert_string_equal(back->config.class_name[i], ev->config.class_name[i]);
    assert_same_weights(ev, back);
    lab_evaluator_free(back);
    lab_evaluator_free(ev);
}

static void refuses_files(void **state)
{
    (void)state;
    lab_evaluator *ev;
    OK(io_write_file(in_folder("checkpoint.pth"), "x", 1));
    assert_int_equal(lab_evaluator_load(in_folder("checkpoint.pth"), NULL, &ev), DDPM_ERR_UNSUPPORTED);
    assert_error_has("torch.load(");
    assert_null(ev);
    assert_int_equal(lab_evaluator_load(in_folder("nowhere"), NULL, &ev), DDPM_ERR_FILE);
    assert_error_has("train-evaluator");
    assert_int_equal(lab_evaluator_load(DIRECTORY "/truth.safetensors", NULL, &ev), DDPM_ERR_FORMAT);
    assert_error_has("conv1.weight and fc.0.weight");

    lab_evaluator *good;
    OK(lab_evaluator_load(DIRECTORY, NULL, &good));
    OK(lab_evaluator_save(in_folder("other"), good, DDPM_WEIGHT, IO_F32));
    lab_evaluator_free(good);
    static const char wide[] = "{\"width\": 0.0625, \"sample_size\": 48, \"class_names\": [\"a\", \"b\"]}";
    OK(io_write_file(in_folder("other/config.json"), wide, sizeof wide - 1));
    assert_int_equal(lab_evaluator_load(in_folder("other"), NULL, &ev), DDPM_ERR_SHAPE);
    assert_error_has("has shape [2], the config needs [4]");
    assert_error_has("config.json beside it");
    static const char none[] = "{\"width\": 0.0625, \"sample_size\": 48, \"class_names\": []}";
    OK(io_write_file(in_folder("other/config.json"), none, sizeof none - 1));
    assert_int_equal(lab_evaluator_load(in_folder("other"), NULL, &ev), DDPM_ERR_ARGUMENT);
    assert_error_has("class_names is empty");
    static const char missing[] = "{\"sample_size\": 48, \"class_names\": [\"a\"]}";
    OK(io_write_file(in_folder("other/config.json"), missing, sizeof missing - 1));
    assert_int_equal(lab_evaluator_load(in_folder("other"), NULL, &ev), DDPM_ERR_FORMAT);
    assert_error_has("field 'width' is missing");

    static char *names[] = {"a"};
    io_evaluator_config config = {names, 1, 0.001, 64};
    assert_int_equal(lab_evaluator_create(&config, NULL, &ev), DDPM_ERR_ARGUMENT);
    assert_error_has("width 0.001");
}

/* ---- 4. Training ------------------------------------------------------------------------------------------------- */

enum { BATCH = 6, SIDE = 32, PIXELS = 3 * SIDE * SIDE };

/* Pictures of noise around one of three colours; label: which. */
static void make_batch(float *picture, float *labels)
{
    ddpm_normals((ddpm_address){1, 0, 0, DDPM_RANDOM_USER}, BATCH * PIXELS, picture);
    for (int i = 0; i < BATCH * PIXELS; i++) {
        int n = i / PIXELS, channel = i / (SIDE * SIDE) % 3;
        picture[i] = 0.3f * picture[i] + (channel == n % 3 ? 0.8f : -0.8f);
    }
    for (int i = 0; i < BATCH * 3; i++)
        labels[i] = i % 3 == i / 3 % 3;
}

/* Trains `steps` steps and hands back the averaged weights. The evaluator must be freed. */
static lab_evaluator *train(ddpm_device *device, int steps, double *first, double *last)
{
    static float picture[BATCH * PIXELS];
    static char *names[] = {"red", "green", "blue"};
    float labels[BATCH * 3];
    io_evaluator_config config = {names, 3, 0.125, SIDE};
    ddpm_train_config adam = ddpm_train_default();
    lab_evaluator *ev;
    lab_evaluator_net *net;
    make_batch(picture, labels);
    OK(lab_evaluator_create(&config, device, &ev));
    OK(ddpm_model_alloc(ev->model, DDPM_FOR_TRAINING));
    OK(ddpm_model_init(ev->model, 2));
    OK(lab_evaluator_net_create(&net, ev, BATCH, LAB_TRAINING));
    for (int i = 0; i < steps; i++)
        OK(lab_evaluator_train_step(net, BATCH, picture, labels, &adam, (uint64_t)i, 3e-3, i ? last : first));
    lab_evaluator_net_free(net);
    return ev;
}

static void learns(void **state)
{
    (void)state;
    double first, last;
    ddpm_device device;
    lab_evaluator_net *net;
    float picture[PIXELS], scores[3];
    open_device(&device, 1);
    lab_evaluator *ev = train(&device, 60, &first, &last);
    assert_true(first > 0.4); /* log 2 where nothing is known */
    assert_true(last < 0.05);
    for (int i = 0; i < PIXELS; i++)
        picture[i] = i / (SIDE * SIDE) == 1 ? 0.8f : -0.8f; /* green without noise */
    OK(lab_evaluator_net_create(&net, ev, 1, LAB_SCORING));
    OK(lab_evaluator_scores(net, 1, picture, scores)); /* with the running statistics */
    assert_true(scores[1] > scores[0] && scores[1] > scores[2]);
    lab_evaluator_net_free(net);
    assert_int_equal(lab_evaluator_net_create(&net, ev, 1, LAB_TRAINING), DDPM_OK);
    assert_int_equal(lab_evaluator_scores(net, 1, picture, scores), DDPM_ERR_ARGUMENT);
    assert_error_has("made for another use");
    lab_evaluator_net_free(net);
    lab_evaluator_free(ev);
    ddpm_device_close(&device);
}

static void same_bits_for_any_threads(void **state)
{
    (void)state;
    lab_evaluator *ev[2];
    double first, last[2] = {0, 0};
    ddpm_device device[2];
    for (int i = 0; i < 2; i++) {
        OK(ddpm_device_open(&device[i], ddpm_cpu(), i ? 3 : 1, NULL));
        ev[i] = train(&device[i], 3, &first, &last[i]);
    }
    assert_true(last[0] == last[1] && last[0] > 0);
    assert_same_weights(ev[0], ev[1]);
    for (int i = 0; i < 2; i++) {
        lab_evaluator_free(ev[i]);
        ddpm_device_close(&device[i]);
    }
}

/* ---- 5. Accuracy ------------------------------------------------------------------------------------------------- */

static void counts_hits(void **state)
{
    (void)state;
    lab_tally t;
    int hits;
    OK(lab_tally_create(&t, 4));
    OK(lab_tally_add(&t, (ddpm_real[]){0.9f, 0.1f, 0.8f, 0.2f}, (int[]){2, 0}, 2, &hits)); /* both */
    assert_int_equal(hits, 2);
    OK(lab_tally_add(&t, (ddpm_real[]){0.9f, 0.1f, 0.8f, 0.2f}, (int[]){3}, 1, &hits)); /* 0 in the place of 3 */
    assert_int_equal(hits, 0);
    OK(lab_tally_add(&t, (ddpm_real[]){0.9f, 0.7f, 0.8f, 0.2f}, (int[]){3, 1, 0}, 3, &hits)); /* 2 for 3 */
    assert_int_equal(hits, 2);
    OK(lab_tally_add(&t, (ddpm_real[]){0.5f, 0.5f, 0.5f, 0.5f}, (int[]){1}, 1, &hits)); /* of equals the first */
    assert_int_equal(hits, 0);
    OK(lab_tally_add(&t, (ddpm_real[]){0.9f, 0.8f, 0.2f, 0.3f}, (int[]){2, 3}, 2, &hits)); /* 3 goes with 0, 2 with 1 */
    assert_int_equal(hits, 0);
    OK(lab_tally_add(&t, (ddpm_real[]){0, 0, 0, 0}, NULL, 0, &hits));
    assert_int_equal(t.pictures, 5);
    assert_int_equal(t.objects, 9);
    assert_int_equal(t.hits, 4);
    assert_true(fabs(lab_tally_pictures(&t).value - (1 + 2.0 / 3) / 5) < 1e-12);
    assert_true(fabs(lab_tally_objects(&t).value - 4.0 / 9) < 1e-12);
    assert_int_equal(t.present[3], 3);
    assert_int_equal(t.found[3], 0);
    assert_int_equal(t.taken[3 * 4 + 0], 2);
    assert_int_equal(t.taken[3 * 4 + 2], 1);
    assert_int_equal(t.taken[1 * 4 + 0], 1);
    assert_int_equal(t.taken[2 * 4 + 1], 1);

    assert_int_equal(lab_tally_add(&t, (ddpm_real[]){0, 0, 0, 0}, (int[]){4}, 1, NULL), DDPM_ERR_RANGE);
    assert_error_has("label 4 of a picture is no class");
    assert_int_equal(lab_tally_add(&t, (ddpm_real[]){0, 0, 0, 0}, (int[]){1, 1}, 2, NULL), DDPM_ERR_RANGE);
    assert_int_equal(lab_tally_add(&t, (ddpm_real[]){0, NAN, 0, 0}, (int[]){1}, 1, NULL), DDPM_ERR_NONFINITE);
    assert_int_equal(t.pictures, 5); /* refused pictures are not counted */
    lab_tally_free(&t);
}

/* Wilson's limits are the means p from which the share seen lies just z standard errors: |share - p| =
 * z sqrt(p (1 - p) / n). And 8 of 10 has the interval 0.490 to 0.943. */
static void intervals(void **state)
{
    (void)state;
    static const double cases[][2] = {{8, 10}, {70.5, 72}, {1, 1000}, {72, 72}, {0, 20}};
    const double z = 1.959963984540054;
    for (int i = 0; i < 5; i++) {
        double n = cases[i][1], share = cases[i][0] / n;
        lab_accuracy a = lab_wilson(cases[i][0], n);
        assert_true(a.value == share && a.low <= share && a.high >= share);
        check("low", fabs(share - a.low - z * sqrt(a.low * (1 - a.low) / n)), 1e-9);
        check("high", fabs(a.high - share - z * sqrt(a.high * (1 - a.high) / n)), 1e-9);
    }
    assert_true(fabs(lab_wilson(8, 10).low - 0.490) < 5e-4 && fabs(lab_wilson(8, 10).high - 0.943) < 5e-4);
    lab_accuracy none = lab_wilson(0, 0);
    assert_true(none.value == 0 && none.low == 0 && none.high == 1);
}

/* ---- 6. Augmentation --------------------------------------------------------------------------------------------- */

enum { HEIGHT = 6, WIDTH = 8, PLANE = HEIGHT * WIDTH };

static void fill(ddpm_real *x)
{
    for (int i = 0; i < 3 * PLANE; i++)
        x[i] = (ddpm_real)(i % 97) / 97 - 0.5f;
}

static void augment(const lab_augmentation *a, uint64_t picture, ddpm_real *x)
{
    ddpm_real scratch[3 * PLANE];
    fill(x);
    lab_augment(a, (ddpm_address){7, picture, 2, DDPM_RANDOM_USER}, 3, HEIGHT, WIDTH, x, scratch);
}

static void moves_pixels(void **state)
{
    (void)state;
    ddpm_real x[3 * PLANE], original[3 * PLANE];
    fill(original);
    augment(&(lab_augmentation){0}, 0, x);
    assert_memory_equal(x, original, sizeof x); /* nothing asked for, nothing done */
    augment(&(lab_augmentation){.flip = 1}, 0, x);
    for (int i = 0; i < 3 * PLANE; i++)
        assert_true(x[i] == original[i - i % WIDTH + WIDTH - 1 - i % WIDTH]);
    int moved = 0;
    for (uint64_t picture = 0; picture < 20; picture++) { /* some shift explains every pixel */
        augment(&(lab_augmentation){.shift = 2}, picture, x);
        int found = 0;
        for (int d = 0; d < 25; d++) {
            int dx = d % 5 - 2, dy = d / 5 - 2, same = 1;
            for (int i = 0; i < 3 * PLANE; i++) {
                int c = i / PLANE, row = i % PLANE / WIDTH + dy, column = i % WIDTH + dx;
                row = row < 0 ? 0 : row >= HEIGHT ? HEIGHT - 1 : row;
                column = column < 0 ? 0 : column >= WIDTH ? WIDTH - 1 : column;
                same &= x[i] == original[c * PLANE + row * WIDTH + column];
            }
            found += same;
            moved += same && d != 12;
        }
        assert_int_equal(found, 1);
    }
    assert_true(moved > 10);
}

static void softens_and_colours(void **state)
{
    (void)state;
    ddpm_real x[3 * PLANE], flat[3 * PLANE], scratch[3 * PLANE];
    ddpm_address address = {7, 1, 2, DDPM_RANDOM_USER};
    static const lab_augmentation soft[] = {{.halved = 1}, {.blurred = 1}};
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 3 * PLANE; i++)
            flat[i] = 0.25f;
        lab_augment(&soft[k], address, 3, HEIGHT, WIDTH, flat, scratch);
        for (int i = 0; i < 3 * PLANE; i++)
            assert_true(flat[i] == 0.25f); /* sums to one, at the edges too */
    }
    /* torch: interpolate(avg_pool2d(x, 2), scale_factor=2, mode="bilinear") of one bright coarse pixel, at its corner:
     * 9/16, 3/16, 1/16 */
    for (int i = 0; i < 3 * PLANE; i++)
        x[i] = i == 0 || i == 1 || i == WIDTH || i == WIDTH + 1 ? 1 : 0;
    lab_augment(&soft[0], address, 3, HEIGHT, WIDTH, x, scratch);
    assert_true(x[0] == 1 && x[WIDTH + 1] == 9 / 16.0f && x[WIDTH + 2] == 3 / 16.0f && x[2 * WIDTH + 2] == 1 / 16.0f);
    assert_true(x[3] == 0 && x[1] == 0.75f);

    double sum = 0, squares = 0;
    int clipped = 0;
    enum { TIMES = 50 };
    for (uint64_t picture = 0; picture < TIMES; picture++) {
        ddpm_real again[3 * PLANE];
        lab_augmentation all = lab_augmentation_default();
        augment(&all, picture, x);
        augment(&all, picture, again);
        assert_memory_equal(x, again, sizeof x); /* addressed, not drawn in sequence */
        for (int i = 0; i < 3 * PLANE; i++)
            assert_true(x[i] >= -1 && x[i] <= 1);
        for (int i = 0; i < 3 * PLANE; i++)
            x[i] = 0;
        lab_augment(&(lab_augmentation){.noisy = 1, .noise = 3}, (ddpm_address){7, picture, 0, DDPM_RANDOM_USER}, 3,
                    HEIGHT, WIDTH, x, scratch);
        for (int i = 0; i < 3 * PLANE; i++)
            clipped += x[i] == 1 || x[i] == -1;
        for (int i = 0; i < 3 * PLANE; i++)
            x[i] = 0;
        lab_augment(&(lab_augmentation){.noisy = 1, .noise = 0.12}, (ddpm_address){7, picture, 0, DDPM_RANDOM_USER}, 3,
                    HEIGHT, WIDTH, x, scratch);
        for (int i = 0; i < 3 * PLANE; i++)
            sum += (double)x[i], squares += (double)x[i] * (double)x[i];
    }
    assert_true(clipped > 0);
    /* sigma = 0.12 u, u uniform: E sigma^2 = 0.12^2 / 3; the mean of 50 values of u^2, each of standard deviation 0.3,
     * is within 40% of 1/3 but for 3 standard errors. */
    double count = TIMES * 3.0 * PLANE, expected = 0.12 * 0.12 / 3;
    assert_true(fabs(sum / count) < 4 * sqrt(expected / count));
    assert_true(squares / count > 0.6 * expected && squares / count < 1.4 * expected);
}

/* ---- 7. A teacher ------------------------------------------------------------------------------------------------ */

enum { DRAWN = 3, SMALL = 16, ALL = 3 * SMALL * SMALL, KINDS = 3 };

typedef struct school { /* a tiny model and an evaluator with its classes in another order */
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    lab_evaluator *ev;
    lab_teacher *teacher;
    lab_classes classes;
    float sample[DRAWN * ALL], labels[DRAWN * KINDS], noise[DRAWN * ALL];
} school;

static void open_school(school *s, double scale)
{
    static char *own[] = {"red", "green", "blue"}, *evaluators[] = {"blue", "red", "green"};
    static const float labels[DRAWN * KINDS] = {1, 0, 1, 0, 0, 0, 0, 1, 0}; /* the second picture has none */
    io_evaluator_config config = {evaluators, KINDS, 1.0 / 32, SMALL};
    ddpm_model_config model = ddpm_model_preset("tiny", KINDS);
    open_device(&s->device, 1);
    OK(lab_classes_from_names((const char *const *)own, KINDS, "own", &s->classes));
    OK(ddpm_model_create(&s->model, &model, &s->device));
    OK(ddpm_model_alloc(s->model, DDPM_FOR_GRADIENTS));
    OK(ddpm_model_init(s->model, 4));
    OK(ddpm_net_create(&s->net, s->model, SMALL, SMALL, DRAWN, 1));
    OK(ddpm_schedule_create(&s->schedule, NULL));
    OK(lab_evaluator_create(&config, &s->device, &s->ev));
    OK(ddpm_model_init(s->ev->model, 6));
    OK(lab_teacher_create(&s->teacher, s->ev, &s->classes, &s->schedule, scale, DRAWN));
    memcpy(s->labels, labels, sizeof labels);
    ddpm_normals((ddpm_address){8, 0, 0, DDPM_RANDOM_USER}, DRAWN * ALL, s->noise);
    ddpm_normals((ddpm_address){9, 0, 0, DDPM_RANDOM_USER}, DRAWN * ALL, s->sample);
    for (int i = 0; i < DRAWN * ALL; i++)
        s->sample[i] *= 0.3f;
    s->net->teacher = s->teacher;
}

static void close_school(school *s)
{
    lab_teacher_free(s->teacher);
    lab_evaluator_free(s->ev);
    ddpm_schedule_free(&s->schedule);
    ddpm_net_free(s->net);
    ddpm_model_free(s->model);
    lab_classes_free(&s->classes);
    ddpm_device_close(&s->device);
}

/* log p of the wanted labels (in the evaluator's order) for pictures in [-1,1] */
static void log_p_of(school *s, const float *pictures, float *log_p)
{
    float labels[DRAWN * KINDS], gradient[DRAWN * ALL];
    static const int at[KINDS] = {1, 2, 0};
    for (int i = 0; i < DRAWN * KINDS; i++)
        labels[i / KINDS * KINDS + at[i % KINDS]] = s->labels[i];
    OK(lab_evaluator_gradient(s->teacher->net, DRAWN, pictures, labels, log_p, gradient));
}

static double x0_of(const school *s, const ddpm_step_terms *terms, const float *prediction, int i)
{
    double x = terms->x0_sample * (double)s->sample[i] + terms->x0_prediction * (double)prediction[i];
    return x > 1 ? 1 : x < -1 ? -1 : x;
}

/* A small push raises log p of what the guide sees, the picture as its view V has it, by s (1 - abar) |V^T grad|^2, to
 * first order, whatever the step's view is; pictures without labels stay as they are. */
static void guides(void **state)
{
    (void)state;
    enum { T = 300 };
    static school s;
    float before[DRAWN * ALL], after[DRAWN * ALL], x0[DRAWN * ALL] = {0}, log_p[2][DRAWN], time[DRAWN] = {T, T, T};
    float plain[ALL], scratch[SMALL * SMALL];
    int views = 0;
    const double scale = 0.004;
    open_school(&s, scale);
    ddpm_step_terms terms = {.x0_sample = 1 / sqrt((double)s.schedule.alpha_bar[T])};
    terms.x0_prediction = -sqrt(1 - (double)s.schedule.alpha_bar[T]) * terms.x0_sample;
    for (uint32_t step = 0; step < 4; step++) {
        s.net->graph->step.index = step;
        OK(ddpm_predict(s.net, DRAWN, s.sample, time, s.labels, before));
        OK(lab_teacher_guide(s.teacher, s.net, &terms, T, DRAWN));
        OK(ddpm_download(&s.device, s.net->prediction, DDPM_DATA, DRAWN, after));
        for (int k = 0; k < 2; k++) {
            for (int i = 0; i < DRAWN * ALL; i++)
                x0[i] = (float)x0_of(&s, &terms, k ? after : before, i);
            memcpy(plain, x0, sizeof plain);
            for (int i = 0; i < DRAWN; i++)
                lab_teacher_view(&s.net->graph->step, i, SMALL, x0 + (ptrdiff_t)i * ALL, scratch, 0);
            views += memcmp(plain, x0, sizeof plain) != 0;
            log_p_of(&s, x0, log_p[k]);
        }
        assert_memory_equal(before + ALL, after + ALL, ALL * sizeof *before);
        for (int k = 0; k < DRAWN; k += 2) {
            double rise = 0;
            for (int i = k * ALL; i < (k + 1) * ALL; i++) { /* x_0 moved by s (1 - abar) V^T grad */
                double move = terms.x0_prediction * ((double)after[i] - (double)before[i]);
                rise += move * move / (scale * (1 - (double)s.schedule.alpha_bar[T]));
            }
            double got = (double)log_p[1][k] - (double)log_p[0][k];
            print_message("# step %u picture %d: rise %.3g, predicted %.3g\n", step, k, got, rise);
            assert_true(rise > 1e-5);                  /* 5% of it is twice a float's step at log p of 2 */
            check("rise", fabs(got / rise - 1), 0.05); /* second order: ReLUs that switch, pixels at the clamp */
        }
    }
    assert_true(views >= 6); /* a view of its own in each step: 1 in 98 is the picture itself */
    /* What is wanted may be another thing than what the network was told. */
    static const float other[DRAWN * KINDS] = {0, 0, 0, 0, 1, 0, 0, 0, 0};
    s.teacher->wanted = other;
    OK(ddpm_predict(s.net, DRAWN, s.sample, time, s.labels, before));
    OK(lab_teacher_guide(s.teacher, s.net, &terms, T, DRAWN));
    OK(ddpm_download(&s.device, s.net->prediction, DDPM_DATA, DRAWN, after));
    assert_memory_equal(before, after, ALL * sizeof *before);
    assert_memory_not_equal(before + ALL, after + ALL, ALL * sizeof *before);
    assert_memory_equal(before + 2 * ALL, after + 2 * ALL, ALL * sizeof *before);
    close_school(&s);
}

/* The loss that fine-tuning follows, from predictions: mean squared error + beta sum abar (-log p) / (n classes). */
static double tuned_loss(school *s, const float *time, double beta)
{
    float prediction[DRAWN * ALL], x0[DRAWN * ALL], log_p[DRAWN];
    double loss = 0;
    OK(ddpm_predict(s->net, DRAWN, s->sample, time, s->labels, prediction));
    for (int i = 0; i < DRAWN * ALL; i++) {
        double abar = (double)s->schedule.alpha_bar[(int)time[i / ALL]],
               e = (double)prediction[i] - (double)s->noise[i];
        ddpm_step_terms terms = {.x0_sample = 1 / sqrt(abar), .x0_prediction = -sqrt(1 - abar) / sqrt(abar)};
        x0[i] = (float)x0_of(s, &terms, prediction, i);
        loss += e * e / (DRAWN * ALL);
    }
    log_p_of(s, x0, log_p);
    for (int k = 0; k < DRAWN; k++)
        if (k != 1) loss -= beta * (double)s->schedule.alpha_bar[(int)time[k]] * (double)log_p[k] / (DRAWN * KINDS);
    return loss;
}

/* The gradient of that loss with respect to conv_out.bias, which moves every pixel's prediction, against central
 * differences in float32: a step h errs by some 1e-7 / h of the loss, and by h^2; 3% covers both at h = 0.01. The
 * squared error's own gradient is taken away first: it is exact and would hide the other. */
static void pulls(void **state)
{
    (void)state;
    static school s;
    const double beta = 20, h = 0.01;
    float time[DRAWN] = {100, 400, 250}, gradient[2][3], bias[3];
    open_school(&s, beta);
    const ddpm_tensor *p = ddpm_model_find(s.model, "conv_out.bias");
    for (int with = 0; with < 2; with++) {
        s.net->pull = with ? lab_teacher_pull : NULL;
        OK(ddpm_model_zero_grad(s.model));
        OK(ddpm_loss_gradients(s.net, DRAWN, s.sample, time, s.labels, s.noise, NULL, NULL));
        OK(ddpm_model_get(s.model, DDPM_GRAD, p, gradient[with]));
    }
    OK(ddpm_model_get(s.model, DDPM_WEIGHT, p, bias));
    for (int c = 0; c < 3; c++) {
        double loss[2][2]; /* beta or none; before, behind */
        for (int i = 0; i < 4; i++) {
            float moved[3] = {bias[0], bias[1], bias[2]};
            moved[c] += (float)(i % 2 ? h : -h);
            OK(ddpm_model_set(s.model, DDPM_WEIGHT, p, moved));
            loss[i / 2][i % 2] = tuned_loss(&s, time, i / 2 ? 0 : beta);
        }
        OK(ddpm_model_set(s.model, DDPM_WEIGHT, p, bias));
        double slope = ((loss[0][1] - loss[0][0]) - (loss[1][1] - loss[1][0])) / (2 * h);
        double pulled = (double)gradient[1][c] - (double)gradient[0][c];
        assert_true(fabs(slope) > 1e-4);
        check("gradient of the score", fabs(pulled - slope) / fabs(slope), 0.03);
    }
    close_school(&s);
}

/* The mean of log p over the picture, its mirror image, and both moved; what lies outside [-1,1] is not seen. */
static void has_an_opinion(void **state)
{
    (void)state;
    static school s;
    static float view[DRAWN * ALL];
    float log_p[DRAWN];
    double opinion, mean = 0;
    int outside = 0;
    open_school(&s, 1);
    for (int i = 0; i < ALL; i++) {
        s.sample[i] *= 3;
        outside += fabsf(s.sample[i]) > 1;
    }
    assert_in_range(outside, ALL / 10, ALL / 2);
    OK(lab_teacher_opinion(s.teacher, s.sample, s.labels, &opinion));
    for (int i = 0; i < ALL; i++)
        s.sample[i] = fmaxf(-1, fminf(1, s.sample[i]));
    for (int k = 0; k < 4; k++) {
        for (int c = 0; c < 3; c++)
            lab_move(s.sample + c * SMALL * SMALL, SMALL, SMALL, k & 1, k & 2, k >> 1, view + c * SMALL * SMALL);
        log_p_of(&s, view, log_p);
        mean += (double)log_p[0] / 4;
    }
    check("opinion", fabs(opinion - mean) / fabs(mean), 1e-7); /* the same floats, added alike */
    close_school(&s);
}

static void teacher_refuses(void **state)
{
    (void)state;
    static school s;
    static char *others[] = {"pink"};
    lab_teacher *t;
    lab_classes pink;
    ddpm_net *net;
    ddpm_step_terms terms = {.x0_sample = 1, .x0_prediction = -1};
    open_school(&s, 1);
    OK(lab_classes_from_names((const char *const *)others, 1, "others", &pink));
    assert_int_equal(lab_teacher_create(&t, s.ev, &pink, &s.schedule, 1, 1), DDPM_ERR_RANGE);
    assert_error_has("no class 'pink'");
    assert_null(t);
    lab_classes_free(&pink);
    OK(ddpm_net_create(&net, s.model, 32, 32, 1, 0));
    assert_int_equal(lab_teacher_guide(s.teacher, net, &terms, 5, 1), DDPM_ERR_SHAPE);
    assert_error_has("--resolution 32");
    assert_int_equal(lab_teacher_guide(s.teacher, s.net, &terms, 5, DRAWN + 1), DDPM_ERR_ARGUMENT);
    ddpm_net_free(net);
    close_school(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evaluates_as_torch),
        cmocka_unit_test(trains_as_torch),
        cmocka_unit_test(backends_agree),
        cmocka_unit_test(saves_and_loads),
        cmocka_unit_test(refuses_files),
        cmocka_unit_test(learns),
        cmocka_unit_test(same_bits_for_any_threads),
        cmocka_unit_test(counts_hits),
        cmocka_unit_test(intervals),
        cmocka_unit_test(moves_pixels),
        cmocka_unit_test(softens_and_colours),
        cmocka_unit_test(guides),
        cmocka_unit_test(pulls),
        cmocka_unit_test(has_an_opinion),
        cmocka_unit_test(teacher_refuses),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
