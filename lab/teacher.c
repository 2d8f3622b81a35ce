/* lab/teacher.c - see lab/teacher.h. */
#include "lab/teacher.h"

#include "lab/augment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void lab_teacher_free(lab_teacher *t)
{
    if (t == NULL) return;
    lab_evaluator_net_free(t->net);
    free(t->class_index);
    free(t->labels);
    free(t->sample);
    free(t->prediction);
    free(t->image);
    free(t->gradient);
    free(t);
}

static ddpm_result match_classes(lab_teacher *t, const lab_evaluator *ev, const lab_classes *classes)
{
    for (int i = 0; i < classes->count; i++) {
        t->class_index[i] = lab_class_index(&ev->classes, classes->name[i]);
        if (t->class_index[i] < 0)
            return ddpm_fail(DDPM_ERR_RANGE,
                             "the evaluator that is to guide knows no class '%s'\n"
                             "      hint: ddpm train-evaluator on the model's own data makes one that does",
                             classes->name[i]);
    }
    return DDPM_OK;
}

ddpm_result lab_teacher_create(lab_teacher **out, lab_evaluator *ev, const lab_classes *classes,
                               const ddpm_schedule *schedule, double scale, int capacity)
{
    *out = NULL;
    lab_teacher *t = calloc(1, sizeof *t);
    if (t == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for a guide");
    t->schedule = schedule;
    t->scale = scale;
    t->classes = classes->count;
    ddpm_result result = lab_evaluator_net_create(&t->net, ev, capacity, LAB_GUIDING);
    if (result == DDPM_OK) {
        size_t n = (size_t)capacity, picture = ddpm_elements(t->net->picture, 1);
        t->class_index = calloc((size_t)classes->count + 1, sizeof *t->class_index);
        t->labels = calloc(n * ((size_t)ev->config.classes + (size_t)classes->count), sizeof *t->labels);
        t->sample = malloc(n * picture * sizeof *t->sample);
        t->prediction = malloc(n * picture * sizeof *t->prediction);
        t->image = malloc(n * picture * sizeof *t->image);
        t->gradient = malloc(n * picture * sizeof *t->gradient);
        if (t->class_index == NULL || t->labels == NULL || t->sample == NULL || t->prediction == NULL ||
            t->image == NULL || t->gradient == NULL)
            result = ddpm_fail(DDPM_ERR_MEMORY, "no memory for a guide of %d pictures", capacity);
    }
    if (result == DDPM_OK) result = match_classes(t, ev, classes);
    if (result == DDPM_OK)
        *out = t;
    else
        lab_teacher_free(t);
    return result;
}

ddpm_result lab_teacher_fits(const lab_teacher *t, const ddpm_net *net)
{
    int size = t->net->ev->config.sample_size;
    if (net->channels != 3 || net->out_channels != 3 || net->height != size || net->width != size)
        return ddpm_fail(DDPM_ERR_SHAPE,
                         "the evaluator that guides takes pictures of %dx%d, the model draws %dx%d\n"
                         "      hint: ddpm train-evaluator --resolution %d",
                         size, size, net->width, net->height, net->height);
    if (net->labels == NULL || ddpm_elements(net->labels, 1) != (size_t)t->classes)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "the evaluator guides to sets of its classes, the model takes other labels\n"
                         "      hint: a model of a multi-label data set");
    if (net->loss != NULL && t->schedule->config.prediction_type != DDPM_PREDICTS_EPSILON)
        return ddpm_fail(DDPM_ERR_UNSUPPORTED, "an evaluator has its say only where the network predicts epsilon\n"
                                               "      hint: --beta 0");
    return DDPM_OK;
}

/* n pictures' labels in the evaluator's classes, (n,classes) at t->labels. */
static void translate(lab_teacher *t, const ddpm_real *labels, int n)
{
    int own = t->net->ev->config.classes;
    memset(t->labels, 0, (size_t)n * (size_t)own * sizeof *t->labels);
    for (int i = 0; i < n * t->classes; i++)
        if (labels[i] > 0) t->labels[i / t->classes * own + t->class_index[i % t->classes]] = 1;
}

/* What is wanted of n pictures. */
static ddpm_result fetch_labels(lab_teacher *t, const ddpm_net *net, int n)
{
    ddpm_real *own = t->labels + (size_t)t->net->graph->capacity * (size_t)t->net->ev->config.classes;
    ddpm_result result =
        t->wanted == NULL ? ddpm_download(net->model->device, net->labels, DDPM_DATA, n, own) : DDPM_OK;
    if (result == DDPM_OK) translate(t, t->wanted != NULL ? t->wanted : own, n);
    return result;
}

/* x_t and the prediction of n pictures. */
static ddpm_result fetch_state(lab_teacher *t, const ddpm_net *net, int n)
{
    ddpm_result result = lab_teacher_fits(t, net);
    if (result == DDPM_OK && n > t->net->graph->capacity)
        result = ddpm_fail(DDPM_ERR_ARGUMENT, "%d pictures for a guide of at most %d", n, t->net->graph->capacity);
    if (result == DDPM_OK) result = fetch_labels(t, net, n);
    if (result == DDPM_OK) result = ddpm_download(net->model->device, net->sample, DDPM_DATA, n, t->sample);
    if (result == DDPM_OK) result = ddpm_download(net->model->device, net->prediction, DDPM_DATA, n, t->prediction);
    return result;
}

static int labelled(const lab_teacher *t, int picture)
{
    int classes = t->net->ev->config.classes, found = 0;
    for (int c = 0; c < classes; c++)
        found |= t->labels[picture * classes + c] > 0;
    return found;
}

static ddpm_real clamp(double x, double limit)
{
    return (ddpm_real)(limit > 0 && x > limit ? limit : limit > 0 && x < -limit ? -limit : x);
}

/* x + move, but not out of [-limit, limit]; 0: anywhere */
static double moved(double x, double move, double limit)
{
    double to = x + move;
    if (limit > 0 && move > 0 && to > limit) return x > limit ? x : limit;
    if (limit > 0 && move < 0 && to < -limit) return x < -limit ? x : -limit;
    return to;
}

void lab_teacher_view(const ddpm_step *step, int k, int size, ddpm_real *picture, ddpm_real *scratch, int back)
{
    ddpm_address address = {step->seed, step->first_picture + (uint64_t)k, step->index, LAB_RANDOM_VIEW};
    uint32_t word[4];
    ddpm_philox(address, 0, word);
    int mirrored = (int)(word[0] >> 31), dx = (int)(word[1] % (2 * LAB_VIEW_SHIFT + 1)) - LAB_VIEW_SHIFT,
        dy = (int)(word[2] % (2 * LAB_VIEW_SHIFT + 1)) - LAB_VIEW_SHIFT;
    for (int c = 0; c < 3; c++, picture += size * size) {
        memcpy(scratch, picture, (size_t)(size * size) * sizeof *scratch);
        (back ? lab_move_back : lab_move)(scratch, size, size, mirrored, dx, dy, picture);
    }
}

ddpm_result lab_teacher_guide(void *teacher, ddpm_net *net, const ddpm_step_terms *terms, int time, int n)
{
    lab_teacher *t = teacher;
    ddpm_result result = fetch_state(t, net, n);
    if (result != DDPM_OK) return result;
    size_t picture = ddpm_elements(net->sample, 1);
    for (size_t i = 0; i < (size_t)n * picture; i++)
        t->image[i] =
            clamp(terms->x0_sample * (double)t->sample[i] + terms->x0_prediction * (double)t->prediction[i], 1);
    for (int k = 0; k < n; k++)
        lab_teacher_view(&net->graph->step, k, net->width, t->image + (size_t)k * picture, t->gradient, 0);
    result = lab_evaluator_gradient(t->net, n, t->image, t->labels, NULL, t->gradient);
    for (int k = 0; k < n && result == DDPM_OK; k++)
        lab_teacher_view(&net->graph->step, k, net->width, t->gradient + (size_t)k * picture, t->image, 1);
    const ddpm_schedule_config *s = &t->schedule->config;
    double move = t->scale * (1 - (double)t->schedule->alpha_bar[time]);
    double limit = s->clip_sample ? s->clip_sample_range : 0;
    for (int k = 0; k < n && result == DDPM_OK; k++) {
        if (!labelled(t, k)) continue;
        for (size_t i = (size_t)k * picture; i < (size_t)(k + 1) * picture; i++) {
            double from = terms->x0_sample * (double)t->sample[i] + terms->x0_prediction * (double)t->prediction[i],
                   to = moved(from, move * (double)t->gradient[i], limit);
            t->prediction[i] += (ddpm_real)((to - from) / terms->x0_prediction);
        }
    }
    return result == DDPM_OK ? ddpm_upload(net->model->device, net->prediction, DDPM_DATA, n, t->prediction) : result;
}

/* (x_t - sqrt(1 - abar) eps) / sqrt(abar) of element i */
static double estimate(const lab_teacher *t, size_t i, double abar)
{
    return ((double)t->sample[i] - sqrt(1 - abar) * (double)t->prediction[i]) / sqrt(abar);
}

/* Moves the target of picture k: see ddpm_net's pull. d x_0 / d eps = -sqrt(1 - abar) / sqrt(abar), and the weight is
 * abar: the gradient to add is beta sqrt(abar) sqrt(1 - abar) grad log p / (n classes), 0 where x_0 was clamped. */
static void move_target(const lab_teacher *t, size_t k, double abar, size_t picture, double elements, ddpm_real *noise)
{
    double pictures = elements / (double)picture; /* of all micro-batches together */
    double weight = t->scale * sqrt(abar) * sqrt(1 - abar) / (pictures * t->net->ev->config.classes);
    for (size_t i = k * picture; i < (k + 1) * picture; i++)
        if (fabs(estimate(t, i, abar)) <= 1) noise[i] -= (ddpm_real)(weight * elements / 2 * (double)t->gradient[i]);
}

ddpm_result lab_teacher_pull(void *teacher, ddpm_net *net, int n, double elements)
{
    lab_teacher *t = teacher;
    const ddpm_device *device = net->model->device;
    size_t picture = ddpm_elements(net->sample, 1);
    ddpm_real *noise = t->image; /* after x_0 has been looked at */
    ddpm_real *time = calloc(2 * (size_t)n, sizeof *time);
    if (time == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the times of %d pictures", n);
    ddpm_real *log_p = time + n;
    ddpm_result result = fetch_state(t, net, n);
    if (result == DDPM_OK) result = ddpm_download(device, net->timestep, DDPM_DATA, n, time);
    for (size_t i = 0; i < (size_t)n * picture && result == DDPM_OK; i++)
        t->image[i] = clamp(estimate(t, i, (double)t->schedule->alpha_bar[(int)time[i / picture]]), 1);
    if (result == DDPM_OK) result = lab_evaluator_gradient(t->net, n, t->image, t->labels, log_p, t->gradient);
    if (result == DDPM_OK) result = ddpm_download(device, net->noise, DDPM_DATA, n, noise);
    for (int k = 0; k < n && result == DDPM_OK; k++) {
        if (!labelled(t, k)) continue;
        move_target(t, (size_t)k, (double)t->schedule->alpha_bar[(int)time[k]], picture, elements, noise);
        t->log_p += (double)log_p[k];
        t->pictures++;
    }
    if (result == DDPM_OK) result = ddpm_upload(device, net->noise, DDPM_DATA, n, noise);
    free(time);
    return result;
}

ddpm_result lab_teacher_opinion(lab_teacher *t, const ddpm_real *picture, const ddpm_real *labels, double *log_p)
{
    enum { VIEWS = 4 };
    int size = t->net->ev->config.sample_size;
    size_t plane = (size_t)size * (size_t)size, elements = 3 * plane;
    ddpm_result result = DDPM_OK;
    translate(t, labels, 1);
    for (size_t i = 0; i < elements; i++)
        t->sample[i] = clamp((double)picture[i], 1);
    *log_p = 0;
    for (int view = 0; view < VIEWS && result == DDPM_OK; view++) {
        int mirrored = view % 2, shift = view / 2;
        ddpm_real one;
        for (size_t at = 0; at < elements; at += plane)
            lab_move(t->sample + at, size, size, mirrored, 2 * shift, shift, t->image + at);
        result = lab_evaluator_gradient(t->net, 1, t->image, t->labels, &one, NULL);
        if (result == DDPM_OK) *log_p += (double)one / VIEWS;
    }
    return result;
}
