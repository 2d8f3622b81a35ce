/* tests/test_schedules.c - diffusers' DDPMScheduler, DDIMScheduler and DPMSolverMultistepScheduler against what they
 * compute themselves (tests/vectors/schedulers.safetensors, made by tests/parity/make_scheduler_vectors.py): tables,
 * timesteps, and whole trajectories through ddpm_sample. Each case is configured by the scheduler_config.json that
 * diffusers wrote for it. With an argument, another file of the same form (`make parity`: all fields crossed).
 * Contents: 1 cases  2 tables  3 timesteps  4 a network that says what was recorded  5 trajectories  6 refusals
 *           7 training targets  8 main */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ddpm.h"
#include "io/config.h"
#include "tests/vectors.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

static const double unit = 0x1p-24; /* u: relative error of one rounded float32 operation */

/* ---- 1. Cases ---- */

static const char *file_name = "tests/vectors/schedulers.safetensors";
static vectors file;

static int open_file(void **state)
{
    (void)state;
    vectors_open(&file, file_name);
    return 0;
}

static int close_file(void **state)
{
    (void)state;
    vectors_close(&file);
    return 0;
}

/* Calls `check` for every name in the metadata that begins with `group`, and says how many there were. */
static void for_each(const char *group, void (*check)(const char *name, ddpm_schedule_config *config))
{
    int cases = 0;
    for (int i = 0; i < file.file.pairs; i++) {
        const char *name = file.file.metadata[i].key, *text = file.file.metadata[i].value;
        ddpm_schedule_config config;
        if (strncmp(name, group, strlen(group)) != 0) continue;
        OK(io_schedule_config_parse(text, strlen(text), name, &config));
        check(name, &config);
        io_schedule_config_free(&config);
        cases++;
    }
    print_message("           %d cases\n", cases);
    assert_true(cases > 0);
}

/* ---- 2. Tables ---- */

static double inexact; /* the largest distance of what is not exact, in units of its bound */

/* Bounds of |beta - diffusers' beta|, 0: to the bit. torch's own exp and sqrt err by 1 ulp, 2 u.
 * sigmoid: beta = s (end - start) + start; exp 2 u, sum, quotient and our own rounding 3 u, product and sum 2 u: 7 u b.
 * Zero terminal SNR: q = sqrt(abar) - sqrt(abar_T), 3 u of either root and u of q off; 1 - beta is the square of the
 * quotient of two q, of q_0 r_0/(r_0 - r_T) at t = 0, and 0 at the end. */
static double root_error(const ddpm_schedule *plain, int t, double *q)
{
    double r = sqrt((double)plain->alpha_bar[t]),
           r_t = sqrt((double)plain->alpha_bar[plain->config.num_train_timesteps - 1]);
    *q = r - r_t;
    return *q > 0 ? 3 * unit * (r + r_t) / *q + unit : 0;
}

static double beta_bound(const ddpm_schedule *plain, int t)
{
    const ddpm_schedule_config *c = &plain->config;
    double q, before;
    if (!c->rescale_betas_zero_snr)
        return c->beta_schedule == DDPM_BETA_SIGMOID && !c->trained_betas ? 7 * unit * (double)plain->beta[t] : 0;
    double error = root_error(plain, t, &q);
    if (t == c->num_train_timesteps - 1) return 0;
    if (t == 0) return (double)plain->alpha_bar[0] * (4 * error + 12 * unit) + unit; /* q_0 is there twice */
    double error_before = root_error(plain, t - 1, &before);
    return q / before * (q / before) * (2 * (error + error_before) + 10 * unit) + unit;
}

/* alpha_bar is what our betas give, to the bit; beside diffusers', each step adds its bound and a rounding of 1 -
 * beta. */
static void compare_table(const char *name, const ddpm_schedule *s, const ddpm_schedule *plain)
{
    const float *beta = vectors_floats(&file, "%s/beta", name),
                *alpha_bar = vectors_floats(&file, "%s/alpha_bar", name);
    double product = 1, drift = 0;
    for (int t = 0; t < s->config.num_train_timesteps; t++) {
        double b = (double)beta[t], ours = (double)s->beta[t], abar = (double)s->alpha_bar[t],
               theirs = (double)alpha_bar[t], bound = beta_bound(plain, t);
        product *= (double)(1 - s->beta[t]);
        drift += b < 1 && bound > 0 ? (bound + unit) / (1 - b) : 0;
        double error = fabs(ours - b), far = fabs(abar - theirs), limit = drift > 0 ? (drift + unit) * theirs : 0;
        if (error > bound || far > limit || abar != (double)(float)product)
            fail_msg("%s, t = %d: beta %.9g, diffusers %.9g; alpha_bar %.9g, diffusers %.9g", name, t, ours, b, abar,
                     theirs);
        if (error > 0) inexact = fmax(inexact, error / bound);
        if (far > 0) inexact = fmax(inexact, far / limit);
    }
    if (s->config.rescale_betas_zero_snr) assert_true(s->alpha_bar[s->config.num_train_timesteps - 1] == 0);
}

static void check_table(const char *name, ddpm_schedule_config *config)
{
    ddpm_schedule s, plain;
    ddpm_schedule_config without = *config;
    if (config->rescale_betas_zero_snr && config->beta_schedule == DDPM_BETA_SIGMOID) {
        char unscaled[200]; /* from torch's own sigmoid, so that only the rescaling is compared */
        snprintf(unscaled, sizeof unscaled, "%.*s", (int)(strlen(name) - strlen("_zero")), name);
        without.trained_betas = vectors_doubles(&file, "%s/beta", unscaled);
    }
    OK(ddpm_schedule_create(&s, &without));
    without.rescale_betas_zero_snr = 0;
    OK(ddpm_schedule_create(&plain, &without));
    plain.config.rescale_betas_zero_snr = config->rescale_betas_zero_snr;
    compare_table(name, &s, &plain);
    ddpm_schedule_free(&plain);
    ddpm_schedule_free(&s);
}

static void test_tables(void **state)
{
    (void)state;
    inexact = 0;
    for_each("table/", check_table);
    print_message("           sigmoid and zero SNR at most %.2f of their bounds off, all others to the bit\n", inexact);
}

/* ---- 3. Timesteps ---- */

static void check_timesteps(const char *name, ddpm_schedule_config *config)
{
    ddpm_schedule s;
    OK(ddpm_schedule_create(&s, config));
    const double *count = vectors_doubles(&file, "%s/count", name),
                 *expected = vectors_doubles(&file, "%s/timestep", name);
    size_t lists = vectors_find(&file, "%s/count", name)->elements,
           all = vectors_find(&file, "%s/timestep", name)->elements, at = 0;
    int *t = calloc((size_t)config->num_train_timesteps, sizeof *t);
    assert_non_null(t);
    for (size_t i = 0; i < lists; i++) {
        int steps = (int)count[i];
        ddpm_result result = ddpm_timesteps(&s, config->scheduler, steps, t);
        if ((result == DDPM_OK) != (expected[at] >= 0))
            fail_msg("%s, %d steps: %s", name, steps,
                     result == DDPM_OK ? "diffusers has no usable list" : ddpm_error());
        for (int k = 0; k < steps && result == DDPM_OK; k++)
            if (t[k] != (int)expected[at + (size_t)k])
                fail_msg("%s, %d steps: t[%d] = %d, diffusers %g", name, steps, k, t[k], expected[at + (size_t)k]);
        at += result == DDPM_OK ? (size_t)steps : 1;
    }
    assert_true(at == all);
    free(t);
    ddpm_schedule_free(&s);
}

static void test_timesteps(void **state)
{
    (void)state;
    for_each("steps/", check_timesteps);
}

/* ---- 4. A network that says what was recorded ---- */

enum { PICTURES = 2, PICTURE = 6, COUNT = PICTURES * PICTURE };

static struct {
    const float *start, *prediction, *noise; /* of this step: (PICTURES,1,2,3) */
    ddpm_real *noise_place;                  /* where a step's noise goes */
} recorded;

static ddpm_result say_what_was_recorded(const ddpm_graph *g, const ddpm_node *node)
{
    if (strcmp(node->name, "conv_out") != 0) return ddpm_reference()->rows[DDPM_OP_CONV2D].forward(g, node);
    memcpy(node->out->data, recorded.prediction, ddpm_elements(node->out, g->n) * sizeof(ddpm_real));
    return DDPM_OK;
}

static ddpm_result draw_what_was_recorded(ddpm_graph *g, ddpm_tensor *x, ddpm_purpose purpose)
{
    memcpy(x->data, purpose == DDPM_RANDOM_START ? recorded.start : recorded.noise,
           ddpm_elements(x, g->n) * sizeof(ddpm_real));
    return DDPM_OK;
}

static ddpm_net *recorded_network(ddpm_device *device, ddpm_model **model)
{
    static ddpm_row rows[DDPM_OP_COUNT];
    static ddpm_backend backend = {.name = "recorded", .rows = rows, .normal = draw_what_was_recorded};
    memcpy(rows, ddpm_reference()->rows, sizeof rows);
    rows[DDPM_OP_CONV2D].forward = say_what_was_recorded;
    ddpm_model_config config = ddpm_model_default();
    config.unet.in_channels = config.unet.out_channels = 1;
    config.unet.levels = config.unet.layers_per_block = 1;
    config.unet.block_out_channels[0] = 4;
    config.unet.down_block_types[0] = config.unet.up_block_types[0] = DDPM_PLAIN_BLOCK;
    config.unet.mid_block_type = 0;
    config.unet.norm_num_groups = 2;
    ddpm_net *net;
    OK(ddpm_device_open(device, &backend, 1, NULL));
    OK(ddpm_model_create(model, &config, device));
    OK(ddpm_model_alloc(*model, DDPM_FOR_INFERENCE));
    OK(ddpm_net_create(&net, *model, 2, 3, PICTURES, 0));
    return net;
}

/* ---- 5. Trajectories ---- */

typedef struct walk {
    const char *name;
    const ddpm_schedule *schedule;
    int steps;
    double eta;
    const float *prediction, *noise;   /* (steps,COUNT) */
    const double *path, *image, *time; /* diffusers' */
    int t[1000];
    float x[COUNT];            /* x_t before the step */
    double image_bound[COUNT]; /* of x_0 of the step before */
    double worst;
} walk;

/* How far alpha' (e^-h - 1) and the coefficient d/r of x_0 - x_0' may be from diffusers', which computes the same with
 * logs and exps of 1 ulp each. A log errs by 2 u of its value on either side, so lambda = log alpha - log sigma is
 * 4 u (|log alpha| + |log sigma|) + u |lambda| off, h by the sum of two of these and u h, e^-h by that and 4 u. */
typedef struct slack {
    double growth, bend, d; /* errors of the two, and |d/r| */
} slack;

static double lambda_of(const ddpm_schedule *s, int t, double *error)
{
    int last = s->config.num_train_timesteps - 1;
    double abar = s->config.rescale_betas_zero_snr && t == last ? 0x1p-24 : (double)s->alpha_bar[t];
    double a = log(abar) / 2, b = log1p(-abar) / 2;
    *error = 4 * unit * (fabs(a) + fabs(b)) + unit * fabs(a - b);
    return a - b;
}

static slack solver_slack(const walk *w, int k, const ddpm_step_terms *terms)
{
    const ddpm_schedule_config *c = &w->schedule->config;
    slack out = {0, 0, 0};
    double e_now, e_next, e_before, now = lambda_of(w->schedule, w->t[k], &e_now);
    if (k == w->steps - 1 && c->final_sigmas_type == DDPM_FINAL_SIGMA_ZERO) return out; /* e^-h is 0 */
    double next = lambda_of(w->schedule, k + 1 < w->steps ? w->t[k + 1] : 0, &e_next), h = next - now,
           e_h = e_now + e_next + unit * h;
    double alpha = sqrt(1 / (1 + exp(-2 * next))), fall = exp(-h), e_fall = fall * (e_h + 4 * unit);
    out.growth = alpha * (e_fall + unit * (1 - fall));
    if (terms->previous == 0) return out;
    double r = (now - lambda_of(w->schedule, w->t[k - 1], &e_before)) / h,
           e_r = (e_now + e_before) / (r * h) + e_h / h + 3 * unit;
    double e_d = c->solver_type == DDPM_SOLVER_MIDPOINT
                     ? out.growth / 2
                     : alpha * (e_fall / h + (1 - fall) / h * (e_h / h + 2 * unit) + 2 * unit);
    out.d = fabs(terms->previous);
    out.bend = e_d / r + out.d * e_r;
    return out;
}

/* DDIM's coefficient of eps is sqrt(1 - abar' - sigma^2). torch's root in sigma errs by 1 ulp, so sigma^2 by 6 u of it
 * and the difference by that and 2 u; its root by a share of itself, or, near 0, by at most the root of the error. */
static double direction_slack(const walk *w, int k, const ddpm_step_terms *c, double x, double out)
{
    const ddpm_schedule_config *config = &w->schedule->config;
    if (config->scheduler != DDPM_SAMPLER_DDIM || w->eta == 0) return 0;
    double abar = (double)w->schedule->alpha_bar[w->t[k]], a = sqrt(abar), b = sqrt(1 - abar),
           error = (6 * c->noise * c->noise + 2) * unit,
           square = fmax(1 - c->image * c->image - c->noise * c->noise, 0);
    double eps = config->prediction_type == DDPM_PREDICTS_EPSILON  ? fabs(out)
                 : config->prediction_type == DDPM_PREDICTS_SAMPLE ? (fabs(x) + a * fabs(out)) / b
                                                                   : b * fabs(x) + a * fabs(out);
    return eps * (square > error ? error / sqrt(square) : sqrt(2 * error));
}

/* x_0 and x after a step from diffusers' x before it, so that no error hides in, or grows with, the others. A term has
 * been through at most 8 rounded operations, the same as in diffusers but for the last; x itself was rounded once: 10 u
 * of the terms' absolute values. Dynamic thresholding divides by a quantile, which is as exact as the largest |x_0| and
 * the position in the sorted list (2 u of at most 5 elements): 20 u more of the largest mass. fixed_small_log takes
 * exp(log(var)/2): u |log(var)| more. */
static ddpm_result compare_step(void *user, ddpm_net *net, int done, int steps)
{
    walk *w = user;
    int k = done - 1;
    float image[COUNT], x[COUNT];
    recorded.prediction = w->prediction + (size_t)done * COUNT;
    recorded.noise = w->noise + (size_t)done * COUNT;
    if (!done) return ddpm_download(net->model->device, net->sample, DDPM_DATA, PICTURES, w->x);
    assert_int_equal(steps, w->steps);
    assert_int_equal(w->t[k], (int)w->time[k]);
    OK(ddpm_download(net->model->device, net->sample, DDPM_DATA, PICTURES, x));
    OK(ddpm_download(net->model->device, net->image, DDPM_DATA, PICTURES, image));
    const ddpm_schedule_config *config = &w->schedule->config;
    const float *out = w->prediction + (size_t)k * COUNT, *z = w->noise + (size_t)k * COUNT;
    const double *path = w->path + (size_t)k * COUNT, *truth = w->image + (size_t)k * COUNT;
    ddpm_step_terms c = ddpm_step_coefficients(w->schedule, config->scheduler, w->t, steps, k, w->eta);
    double largest[PICTURES] = {0}, mass0[COUNT],
           log_slack = config->variance_type == DDPM_FIXED_SMALL_LOG && c.noise > 0 ? 2 * fabs(log(c.noise)) : 0;
    slack s = config->scheduler == DDPM_SAMPLER_DPMSOLVER ? solver_slack(w, k, &c) : (slack){0, 0, 0};
    for (int i = 0; i < COUNT; i++) {
        mass0[i] = fabs(c.x0_sample * (double)w->x[i]) + fabs(c.x0_prediction * (double)out[i]);
        largest[i / PICTURE] = fmax(largest[i / PICTURE], mass0[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        double bound0 = 10 * unit * mass0[i] + (config->thresholding ? 20 * unit * largest[i / PICTURE] : 0);
        double before = k ? truth[i - COUNT] : 0, bound_before = k ? w->image_bound[i] : 0;
        double mass = fabs(c.image) * fabs(truth[i]) + s.d * fabs(truth[i]) + fabs(c.sample * (double)w->x[i]) +
                      fabs(c.prediction * (double)out[i]) + fabs(c.previous * before);
        double bound = (fabs(c.image) + s.d) * bound0 + 10 * unit * mass + fabs(c.previous) * bound_before +
                       (10 + log_slack) * unit * fabs(c.noise * (double)z[i]) + s.growth * fabs(truth[i]) +
                       s.bend * fabs(truth[i] - before) + direction_slack(w, k, &c, (double)w->x[i], (double)out[i]) +
                       0x1p-126;
        double e0 = fabs((double)image[i] - truth[i]) / (bound0 + 0x1p-126), e = fabs((double)x[i] - path[i]) / bound;
        if (!(e <= 1) || !(e0 <= 1))
            fail_msg(
                "%s, step %d (t = %d), element %d: x %.9g, diffusers %.9g (%.3g of the bound); x_0 %.9g, diffusers "
                "%.9g (%.3g)",
                w->name, k, w->t[k], i, (double)x[i], path[i], e, (double)image[i], truth[i], e0);
        w->worst = fmax(w->worst, fmax(e, e0));
        w->image_bound[i] = bound0;
        w->x[i] = (float)path[i];
    }
    return ddpm_upload(net->model->device, net->sample, DDPM_DATA, PICTURES, w->x);
}

static ddpm_device device;
static ddpm_model *model;
static ddpm_net *net;
static double worst_of_all;

static void check_path(const char *name, ddpm_schedule_config *config)
{
    ddpm_schedule s;
    const double *attr = vectors_doubles(&file, "%s/attr", name);
    walk w = {.name = name, .schedule = &s, .steps = (int)attr[0], .eta = attr[1]};
    float last[COUNT];
    OK(ddpm_schedule_create(&s, config));
    if (vectors_find(&file, "%s/alpha_bar", name))
        memcpy(s.alpha_bar, vectors_floats(&file, "%s/alpha_bar", name),
               (size_t)config->num_train_timesteps * sizeof *s.alpha_bar);
    assert_true(w.steps <= 1000 && (int)vectors_find(&file, "%s/start", name)->elements == COUNT);
    recorded.start = vectors_floats(&file, "%s/start", name);
    w.prediction = vectors_floats(&file, "%s/prediction", name);
    w.noise = vectors_floats(&file, "%s/noise", name);
    w.path = vectors_doubles(&file, "%s/path", name);
    w.image = vectors_doubles(&file, "%s/image", name);
    w.time = vectors_doubles(&file, "%s/timestep", name);
    OK(ddpm_timesteps(&s, config->scheduler, w.steps, w.t));
    ddpm_sample_config sample = ddpm_sample_default();
    sample.sampler = config->scheduler;
    sample.steps = w.steps;
    sample.eta = w.eta;
    OK(ddpm_sample(net, &s, &sample, NULL, PICTURES, last, compare_step, &w));
    worst_of_all = fmax(worst_of_all, w.worst);
    ddpm_schedule_free(&s);
}

static void test_paths(void **state)
{
    (void)state;
    worst_of_all = 0;
    net = recorded_network(&device, &model);
    for_each("path/", check_path);
    print_message("           worst error %.2f of its bound\n", worst_of_all);
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_device_close(&device);
}

/* ---- 6. Refusals ---- */

static void check_refused(const ddpm_schedule_config *config, const char *words)
{
    ddpm_schedule s;
    ddpm_result result = ddpm_schedule_create(&s, config);
    assert_null(s.beta); /* nothing is left to free */
    if (result != DDPM_ERR_ARGUMENT || !strstr(ddpm_error(), words))
        fail_msg("result %d, '%s' does not say '%s'", (int)result, ddpm_error(), words);
}

#define REFUSED(change, words)                                                                                         \
    do {                                                                                                               \
        ddpm_schedule_config c = ddpm_schedule_default();                                                              \
        change;                                                                                                        \
        check_refused(&c, words);                                                                                      \
    } while (0)

static void test_refused_schedules(void **state)
{
    (void)state;
    double betas[1000] = {0};
    REFUSED((c.beta_schedule = DDPM_BETA_LINEAR, c.beta_start = c.beta_end = 0.9, c.rescale_betas_zero_snr = 1),
            "before the end");
    REFUSED(c.beta_start = -1, "beta_start is -1");
    REFUSED(c.beta_end = (double)NAN, "beta_end");
    REFUSED(c.clip_sample_range = -1, "clip_sample_range");
    REFUSED(c.dynamic_thresholding_ratio = 1.5, "dynamic_thresholding_ratio");
    REFUSED(c.sample_max_value = -1, "sample_max_value");
    REFUSED(c.steps_offset = -1, "steps_offset");
    REFUSED(c.solver_order = 3, "solver_order is 3");
    betas[7] = 1.5;
    REFUSED(c.trained_betas = betas, "trained_betas[7] is 1.5");
    betas[7] = 0;
    REFUSED((c.trained_betas = betas, c.rescale_betas_zero_snr = 1), "no noise");
}

/* x_0 cannot come from eps where nothing of x_0 is left: refused before the network runs. */
static void test_epsilon_needs_a_signal(void **state)
{
    (void)state;
    static const float zeros[2 * COUNT];
    ddpm_schedule_config config = ddpm_schedule_default();
    config.rescale_betas_zero_snr = 1;
    config.timestep_spacing = DDPM_SPACING_TRAILING;
    ddpm_schedule s;
    OK(ddpm_schedule_create(&s, &config));
    net = recorded_network(&device, &model);
    float out[COUNT];
    ddpm_sample_config sample = ddpm_sample_default();
    sample.steps = 2;
    recorded.start = recorded.noise = recorded.prediction = zeros;
    assert_int_equal(ddpm_sample(net, &s, &sample, NULL, PICTURES, out, NULL, NULL), DDPM_ERR_ARGUMENT);
    assert_non_null(strstr(ddpm_error(), "v_prediction"));
    s.config.timestep_spacing = DDPM_SPACING_LEADING; /* does not reach T - 1 */
    OK(ddpm_sample(net, &s, &sample, NULL, PICTURES, out, NULL, NULL));
    s.config.prediction_type = DDPM_PREDICTS_V;
    s.config.timestep_spacing = DDPM_SPACING_TRAILING;
    OK(ddpm_sample(net, &s, &sample, NULL, PICTURES, out, NULL, NULL));
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    ddpm_schedule_free(&s);
}

/* ---- 7. Training targets ---- */

/* With a network of zero weights the loss is the mean square of what it is asked for: eps, x_0, or
 * v = sqrt(abar) eps - sqrt(1 - abar) x_0, recomputed here from the addressed noise. float32 rounds the products, the
 * sum and the squares: 8 u of the mean of squares. */
static void test_targets(void **state)
{
    (void)state;
    enum { N = 3, ROOM = 3 * 32 * 32 };
    static float picture[N * ROOM], eps[ROOM];
    for (int type = 0; type < 3; type++) {
        ddpm_model_config config = ddpm_model_preset("tiny", 0);
        ddpm_schedule_config schedule = ddpm_schedule_default();
        schedule.prediction_type = (ddpm_prediction_type)type;
        ddpm_schedule s;
        ddpm_model *m;
        ddpm_net *n;
        ddpm_trainer trainer;
        double loss, expected = 0;
        OK(ddpm_schedule_create(&s, &schedule));
        OK(ddpm_model_create(&m, &config, NULL));
        OK(ddpm_model_alloc(m, DDPM_FOR_TRAINING)); /* zeros */
        OK(ddpm_net_create(&n, m, 8, 8, 2, 1));
        OK(ddpm_trainer_init(&trainer, n, &s, NULL));
        for (int i = 0; i < N * 3 * 64; i++)
            picture[i] = sinf(0.1f * (float)i);
        OK(ddpm_train_step(&trainer, picture, NULL, N, 0, &loss));
        for (int k = 0; k < N; k++) {
            ddpm_address at = {trainer.config.seed, (uint64_t)k, 0, DDPM_RANDOM_NOISE}, time = at;
            time.purpose = DDPM_RANDOM_TIMESTEP;
            double abar = (double)s.alpha_bar[ddpm_uniform_int(time, 1000)];
            ddpm_normals(at, 3 * 64, eps);
            for (int i = 0; i < 3 * 64; i++) {
                double x0 = (double)picture[k * 3 * 64 + i], e = (double)eps[i];
                double target = type == DDPM_PREDICTS_EPSILON  ? e
                                : type == DDPM_PREDICTS_SAMPLE ? x0
                                                               : sqrt(abar) * e - sqrt(1 - abar) * x0;
                expected += target * target / (N * 3 * 64);
            }
        }
        if (!(fabs(loss - expected) <= 8 * unit * expected))
            fail_msg("prediction type %d: loss %.9g, expected %.9g", type, loss, expected);
        ddpm_net_free(n);
        ddpm_model_free(m);
        ddpm_schedule_free(&s);
    }
}

/* ---- 8. Main ---- */

int main(int argc, char **argv)
{
    if (argc > 1) file_name = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tables, open_file, close_file),
        cmocka_unit_test_setup_teardown(test_timesteps, open_file, close_file),
        cmocka_unit_test_setup_teardown(test_paths, open_file, close_file),
        cmocka_unit_test(test_refused_schedules),
        cmocka_unit_test(test_epsilon_needs_a_signal),
        cmocka_unit_test(test_targets),
    };
    return cmocka_run_group_tests_name("schedules", tests, NULL, NULL);
}
