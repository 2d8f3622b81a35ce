/* cli/draw.c - label sets to pictures; see cli/draw.h.
 *
 * Contents: 1 frames of a strip   2 drawing   3 writing */
#include "cli/draw.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/judge.h"
#include "cli/options.h"
#include "cli/sampler.h"
#include "lab/teacher.h"

/* ---- 1. Frames of a strip ------------------------------------------------------------------------------------ */

typedef struct batch_state {
    const cli_drawing *drawing;
    ddpm_real *starts; /* the picture to start from, as often as the capacity; or NULL */
    cli_progress *bar;
    int first, n;             /* pictures of this batch */
    int attempt;              /* 0; from 1 on a picture of the batch is drawn again */
    int end;                  /* then of that batch: pictures up to there */
    int redrawn;              /* pictures that needed another attempt */
    ddpm_real *values;        /* n pictures */
    ddpm_real *none;          /* the labels that mean "no label" */
    io_picture *frames;       /* (n, 2, frames), or NULL */
    ddpm_real *again;         /* room for one more picture, */
    io_picture *again_frames; /* (2, frames) */
    lab_teacher *teacher;     /* or NULL */
} batch_state;

static ddpm_result keep_frame(batch_state *b, ddpm_net *net, const ddpm_tensor *from, int frame)
{
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    ddpm_result result = ddpm_download(net->model->device, from, DDPM_DATA, b->n, b->values);
    for (int i = 0; result == DDPM_OK && i < b->n; i++) {
        io_picture *out = &b->frames[i * 2 * b->drawing->frames + frame];
        if (out->pixel == NULL)
            result = io_picture_from_real(b->values + (size_t)i * picture, net->channels, net->height, net->width, out);
    }
    return result;
}

/* Frame k is x_t after round(k steps / (frames - 1)) of the steps taken; with few steps some frames are the same. The
 * estimate of x_0 that belongs to it is made by the step that follows. */
static ddpm_result on_step(void *user, ddpm_net *net, int done, int steps)
{
    batch_state *b = user;
    int frames = b->drawing->frames;
    double work = b->attempt > 0 ? b->end : b->first + (double)b->n * done / steps;
    char last[16] = "", again[48] = "";
    if (b->n > 1) snprintf(last, sizeof last, "-%d", b->first + b->n);
    if (b->attempt > 0) snprintf(again, sizeof again, ", try %d of %d", b->attempt + 1, b->drawing->tries);
    cli_progress_show(b->bar, work, "picture%s %d%s of %d%s, step %d/%d%s", b->n > 1 ? "s" : "", b->first + 1, last,
                      b->drawing->count, again, done, steps, b->drawing->status != NULL ? b->drawing->status : "");
    ddpm_result result = DDPM_OK;
    for (int k = 0; result == DDPM_OK && k < frames; k++) {
        int first = b->drawing->sample.skip, all = steps - first;
        int moment = first + (2 * k * all + frames - 1) / (2 * (frames - 1));
        if (moment == done) result = keep_frame(b, net, net->sample, k);
        if (result == DDPM_OK && (moment == done - 1 || (moment == steps && done == steps)))
            result = keep_frame(b, net, net->image, frames + k);
    }
    return result;
}

/* ---- 2. Drawing ---------------------------------------------------------------------------------------------- */

static void free_pictures(io_picture *picture, int count)
{
    for (int i = 0; picture != NULL && i < count; i++)
        io_picture_free(&picture[i]);
}

/* Multi-hot vectors for a label encoder, class indices for an Embedding (num_class_embeds). */
static ddpm_result set_labels(const cli_drawing *d, int first, int n, ddpm_real *labels)
{
    const cli_model *m = d->model;
    int encoder = m->model->config.label.num_classes, classes = encoder > 0 ? encoder : m->classes.count;
    ddpm_result result = DDPM_OK;
    if (ddpm_label_width(&m->model->config) == 0) return DDPM_OK;
    for (int i = 0; result == DDPM_OK && i < n; i++)
        result = lab_multi_hot(d->sets, (first + i) % d->sets->count, 1, classes, labels + (size_t)i * (size_t)classes);
    if (result == DDPM_OK && encoder == 0) result = lab_class_labels(labels, n, classes, m->info.none_class, labels);
    return result;
}

/* Another attempt is what the same picture would be with so much more of a seed: also of one that is PyTorch's, of
 * which the low 32 bits count. */
enum { SEEDS_APART = 1000003 };

static ddpm_result draw_values(batch_state *b, ddpm_net *net, ddpm_real *labels)
{
    const cli_drawing *d = b->drawing;
    ddpm_sample_config config = d->sample;
    config.seed += (uint64_t)b->attempt * SEEDS_APART;
    config.first_picture += (uint64_t)b->first;
    config.none = b->none;
    config.start = b->starts;
    ddpm_result result = set_labels(d, b->first, b->n, labels);
    if (b->teacher != NULL) b->teacher->wanted = labels;
    if (result != DDPM_OK) return result;
    return ddpm_sample(net, &d->model->schedule, &config, net->labels != NULL ? labels : NULL, b->n, b->values, on_step,
                       b);
}

/* Rejection sampling by a classifier (Razavi, van den Oord & Vinyals 2019): picture i of the batch is drawn
 * again until the guide finds its labels in it, or often enough; the one that the guide is surest of stays. */
static ddpm_result improve(batch_state *b, ddpm_net *net, ddpm_real *labels, int i)
{
    const cli_drawing *d = b->drawing;
    int frames = 2 * d->frames;
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    batch_state one = *b;
    ddpm_real *best = b->values + (size_t)i * picture;
    one.first += i, one.n = 1, one.end = b->first + b->n, one.values = b->again, one.frames = b->again_frames;
    double surest, sure;
    ddpm_result result = set_labels(d, one.first, 1, labels);
    if (result == DDPM_OK) result = lab_teacher_opinion(b->teacher, best, labels, &surest);
    b->redrawn += result == DDPM_OK && surest < LAB_RECOGNISED;
    for (one.attempt = 1; result == DDPM_OK && surest < LAB_RECOGNISED && one.attempt < d->tries; one.attempt++) {
        result = draw_values(&one, net, labels);
        if (result == DDPM_OK) result = lab_teacher_opinion(b->teacher, one.values, labels, &sure);
        if (result == DDPM_OK && sure > surest) {
            surest = sure;
            memcpy(best, one.values, picture * sizeof *best);
            for (int k = 0; k < frames; k++) {
                io_picture worse = b->frames[i * frames + k];
                b->frames[i * frames + k] = one.frames[k];
                one.frames[k] = worse;
            }
        }
        free_pictures(one.frames, frames);
    }
    return result;
}

static ddpm_result draw_batch(batch_state *b, ddpm_net *net, ddpm_real *labels)
{
    const cli_drawing *d = b->drawing;
    size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
    ddpm_result result = draw_values(b, net, labels);
    for (int i = 0; result == DDPM_OK && b->teacher != NULL && d->tries > 1 && i < b->n; i++)
        result = improve(b, net, labels, i);
    for (int i = 0; result == DDPM_OK && i < b->n; i++) {
        io_picture out = {0};
        result = io_picture_from_real(b->values + (size_t)i * picture, net->channels, net->height, net->width, &out);
        if (result == DDPM_OK)
            result = d->take(d->user, b->first + i, &out, b->frames != NULL ? &b->frames[i * 2 * d->frames] : NULL);
        io_picture_free(&out);
    }
    free_pictures(b->frames, b->n * 2 * d->frames);
    return result;
}

static ddpm_result is_there(const cli_drawing *d, int index, int *there)
{
    *there = 0;
    return d->look != NULL ? d->look(d->user, index, there) : DDPM_OK;
}

/* The next pictures to draw: b->first, the first from there on that is missing, and the b->n up to one that is not. */
static ddpm_result next_batch(batch_state *b)
{
    const cli_drawing *d = b->drawing;
    int there = 0;
    ddpm_result result = DDPM_OK;
    for (b->n = 0; b->n == 0 && b->first < d->count;) {
        result = is_there(d, b->first, &there);
        if (result != DDPM_OK) return result;
        b->first += there;
        b->n = !there;
    }
    while (result == DDPM_OK && b->n > 0 && b->n < d->batch && b->first + b->n < d->count && !there) {
        result = is_there(d, b->first + b->n, &there);
        b->n += !there;
    }
    return result;
}

static ddpm_result draw_all(const cli_drawing *d, ddpm_net *net, batch_state *b, ddpm_real *labels)
{
    double started = cli_seconds();
    int drawn = 0;
    cli_progress_start(b->bar, "draw", d->count);
    ddpm_result result = next_batch(b);
    while (result == DDPM_OK && b->n > 0) {
        result = draw_batch(b, net, labels);
        drawn += b->n;
        b->first += b->n;
        if (result == DDPM_OK) result = next_batch(b);
    }
    cli_progress_clear(b->bar);
    if (result != DDPM_OK) return result;
    cli_short total;
    double seconds = cli_seconds() - started;
    if (drawn < d->count) cli_note("%d of %d pictures were there already", d->count - drawn, d->count);
    if (drawn > 0 && !d->quiet)
        cli_note("%d picture%s of %dx%d, %d %s step%s: %s, %.3g s a picture", drawn, drawn == 1 ? "" : "s", net->width,
                 net->height, d->sample.steps, cli_sampler_name(d->sample.sampler), d->sample.steps == 1 ? "" : "s",
                 cli_duration(seconds, total), seconds / drawn);
    if (b->redrawn > 0 && !d->quiet)
        cli_note("%d of them drawn again, at most %d times: the guide did not find its labels in the first", b->redrawn,
                 d->tries - 1);
    return DDPM_OK;
}

ddpm_result cli_check_guidance(const cli_model *model, double guidance)
{
    if (guidance == 1 || model->info.label_dropout > 0) return DDPM_OK;
    if (ddpm_label_width(&model->model->config) == 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s takes no labels, so guidance %g has nothing to go towards\n"
                         "      hint: leave out --guidance",
                         model->path, guidance);
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "%s was trained without label dropout, so guidance %g has nothing to start from\n"
                     "      hint: ddpm train --cond-drop 0.1 trains for it; --guidance 1 draws without; if it was "
                     "trained so elsewhere, say it in model_index.json: \"label_dropout\": 0.1",
                     model->path, guidance);
}

/* The labels that mean "no label": a multi-hot of zeros or of the class set apart; an index. NULL: out of memory. */
static ddpm_real *no_label(const cli_model *model)
{
    int width = ddpm_label_width(&model->model->config), none = model->info.none_class;
    ddpm_real *labels = cli_alloc((size_t)width + 1, sizeof *labels);
    if (labels != NULL && none >= 0 && model->model->config.label.num_classes > 0) labels[none] = 1;
    if (labels != NULL && none >= 0 && model->model->config.label.num_classes == 0) labels[0] = (ddpm_real)none;
    return labels;
}

/* A class that is no name, a vector or a timestep, cannot be drawn by its name. */
static ddpm_result check_labels(const cli_drawing *d)
{
    const ddpm_model_config *config = &d->model->model->config;
    int width = ddpm_label_width(config);
    int named = config->label.num_classes > 0 || (config->unet.num_class_embeds > 0 && d->model->classes.count > 0);
    if (width > 0 && !named)
        return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                         "%s takes class indices or embeddings without names, not label sets\n"
                         "      hint: ddpm predict runs it on tensors",
                         d->model->path);
    if (width > 0 && d->sets->count == 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s draws what labels name, and none is given\n"
                         "      hint: ddpm sample \"%s\", or --labels-file FILE",
                         d->model->path, d->model->classes.count > 0 ? d->model->classes.name[0] : "CLASS, CLASS");
    return DDPM_OK;
}

ddpm_result cli_open_guide(const cli_context *context, const cli_option *options, cli_guide *guide, cli_drawing *d)
{
    const io_model_info *info = &d->model->info;
    int scaled = cli_given_name(options, "guide-scale");
    if (!scaled) guide->scale = guide->path != NULL ? 1 : info->guide_scale;
    if (!cli_given_name(options, "tries"))
        guide->tries = guide->path != NULL || (scaled && guide->scale == 0) ? 1 : info->tries;
    d->guide_scale = guide->scale;
    d->tries = guide->tries;
    if (d->guide_scale == 0 && d->tries == 1) return DDPM_OK;
    char *own = guide->path == NULL ? cli_find_evaluator(d->model->path, "evaluator") : NULL;
    if (guide->path == NULL && own == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = lab_evaluator_load(guide->path != NULL ? guide->path : own, &context->device, &d->guide);
    free(own);
    return result;
}

/* The evaluator that guides, at work on this network. */
static ddpm_result set_teacher(const cli_drawing *d, batch_state *b, ddpm_net *net, int capacity)
{
    if (d->guide == NULL) return DDPM_OK;
    if (d->model->classes.count == 0 || d->model->model->config.label.num_classes == 0)
        return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                         "%s draws no label sets that an evaluator could guide to\n"
                         "      hint: without --guide",
                         d->model->path);
    ddpm_result result =
        lab_teacher_create(&b->teacher, d->guide, &d->model->classes, &d->model->schedule, d->guide_scale, capacity);
    if (result == DDPM_OK) result = lab_teacher_fits(b->teacher, net);
    net->guide = d->guide_scale != 0 ? lab_teacher_guide : NULL;
    net->teacher = b->teacher;
    return result;
}

/* DDPM_ERR_MEMORY, before anything is drawn, if a batch cannot fit. */
static ddpm_result check_memory(const ddpm_net *net, const lab_teacher *teacher, int capacity)
{
    cli_short total, room, fitting;
    double guide = teacher != NULL ? (double)teacher->net->graph->bytes : 0, available;
    double bytes = (double)net->graph->bytes + guide;
    ddpm_result result = cli_room(net->model->device, &available);
    if (result != DDPM_OK || available <= 0 || bytes <= available) return result;
    int fits = cli_largest_batch(net->model, net->height, net->width, net->graph->capacity / capacity, 0, capacity,
                                 guide / capacity, available);
    snprintf(fitting, sizeof fitting, fits > 0 ? "--batch-size %d fits" : "no --batch-size fits", fits);
    return ddpm_fail(DDPM_ERR_MEMORY,
                     "to draw %d picture%s at once takes %s of memory, %s are available\n"
                     "      hint: %s; a smaller model needs less",
                     capacity, capacity == 1 ? "" : "s", cli_bytes(bytes, total), cli_bytes(available, room), fitting);
}

ddpm_result cli_draw(const cli_drawing *d)
{
    ddpm_result result = check_labels(d);
    if (result == DDPM_OK) result = cli_check_guidance(d->model, d->sample.guidance);
    if (result != DDPM_OK) return result;
    ddpm_net *net = NULL;
    cli_progress bar;
    batch_state b = {.drawing = d, .bar = &bar};
    ddpm_real *labels = NULL;
    int capacity = d->batch < d->count ? d->batch : d->count;
    result = ddpm_net_create(&net, d->model->model, d->model->info.height, d->model->info.width,
                             d->sample.guidance != 1 ? 2 * capacity : capacity, 0);
    if (result == DDPM_OK) {
        size_t picture = (size_t)net->channels * (size_t)net->height * (size_t)net->width;
        b.values = cli_alloc((size_t)capacity * picture, sizeof *b.values);
        int width = ddpm_label_width(&d->model->model->config), classes = d->model->classes.count;
        labels = cli_alloc((size_t)capacity * (size_t)((width > classes ? width : classes) + 1), sizeof *labels);
        b.frames = d->frames > 0 ? cli_alloc((size_t)capacity * 2 * (size_t)d->frames, sizeof *b.frames) : NULL;
        b.none = no_label(d->model);
        b.again = d->tries > 1 ? cli_alloc(picture, sizeof *b.again) : NULL;
        b.again_frames = d->tries > 1 ? cli_alloc(2 * (size_t)d->frames + 1, sizeof *b.again_frames) : NULL;
        b.starts = d->image != NULL ? cli_alloc((size_t)capacity * picture, sizeof *b.starts) : NULL;
        for (int i = 0; b.starts != NULL && i < capacity; i++)
            memcpy(b.starts + (size_t)i * picture, d->image, picture * sizeof *b.starts);
        if (b.values == NULL || labels == NULL || b.none == NULL || (d->frames > 0 && b.frames == NULL) ||
            (d->tries > 1 && (b.again == NULL || b.again_frames == NULL)) || (d->image != NULL && b.starts == NULL))
            result = DDPM_ERR_MEMORY;
    }
    if (result == DDPM_OK) result = set_teacher(d, &b, net, capacity);
    if (result == DDPM_OK) result = check_memory(net, b.teacher, capacity);
    if (result == DDPM_OK) result = draw_all(d, net, &b, labels);
    lab_teacher_free(b.teacher);
    free_pictures(b.frames, capacity * 2 * d->frames);
    free(b.frames);
    free(b.again_frames);
    free(b.again);
    free(b.values);
    free(b.none);
    free(b.starts);
    free(labels);
    ddpm_net_free(net);
    return result;
}

ddpm_result cli_read_image(const cli_model *model, const char *path, io_picture *picture, ddpm_real **image)
{
    const ddpm_model_config *c = &model->model->config;
    int factor = c->pixel_unshuffle > 1 ? c->pixel_unshuffle : 1;
    io_picture original;
    *image = NULL;
    *picture = (io_picture){0};
    ddpm_result result = io_picture_read(path, c->unet.in_channels / (factor * factor), &original);
    if (result == DDPM_OK) result = io_picture_resize(&original, model->info.width, model->info.height, picture);
    io_picture_free(&original);
    if (result != DDPM_OK) return result;
    size_t elements = (size_t)picture->width * (size_t)picture->height * (size_t)picture->channels;
    *image = cli_alloc(elements, sizeof **image);
    if (*image == NULL) {
        io_picture_free(picture);
        return DDPM_ERR_MEMORY;
    }
    io_picture_to_real(picture, *image);
    return DDPM_OK;
}

/* What the model's schedule and the options say beyond the number of steps: of the sampler in use, and no more. */
static char *settings_text(const ddpm_sample_config *c, const ddpm_schedule_config *s)
{
    static const char *const variance[] = {"fixed_small", "fixed_small_log", "fixed_large"};
    static const char *const solver[] = {"midpoint", "heun"}, *const sigma[] = {"zero", "sigma_min"};
    switch (c->sampler) {
    case DDPM_SAMPLER_DDIM: return cli_text("eta %.9g, alpha_to_one %d", c->eta, s->set_alpha_to_one);
    case DDPM_SAMPLER_DPMSOLVER:
        return cli_text("order %d, %s, lower_order_final %d, euler_at_final %d, final sigma %s, lambda_min %.9g",
                        s->solver_order, solver[s->solver_type], s->lower_order_final, s->euler_at_final,
                        sigma[s->final_sigmas_type], s->lambda_min_clipped);
    default: return cli_text("variance %s", variance[s->variance_type]);
    }
}

/* What is done to each step's estimate of x_0. */
static char *limits_text(const ddpm_sample_config *c, const ddpm_schedule_config *s)
{
    if (s->thresholding)
        return cli_text(", x_0 thresholded at %.9g up to %.9g", s->dynamic_thresholding_ratio, s->sample_max_value);
    if (s->clip_sample && c->sampler != DDPM_SAMPLER_DPMSOLVER)
        return cli_text(", x_0 clipped to %.9g", s->clip_sample_range);
    return cli_text("%s", "");
}

char *cli_sampling_text(const cli_drawing *d)
{
    static const char *const sampler[] = {"ddpm", "ddim", "dpmsolver++"};
    static const char *const spacing[] = {"leading", "linspace", "trailing"};
    const ddpm_sample_config *c = &d->sample;
    const ddpm_schedule_config *s = &d->model->schedule.config;
    char *settings = settings_text(c, s), *limits = limits_text(c, s), *text = NULL;
    char *from = cli_text("%s", ""), *guide = cli_text("%s", "");
    if (d->image != NULL) {
        free(from);
        from = cli_text(", the first %d left out from %s", c->skip, d->image_path);
    }
    if (d->guide != NULL) {
        free(guide);
        guide = cli_text(", guide %s at %.9g, %d %s", d->guide->path, d->guide_scale, d->tries,
                         d->tries == 1 ? "try" : "tries");
    }
    if (settings != NULL && limits != NULL && from != NULL && guide != NULL)
        text = cli_text("%s, %d steps (%s, offset %d), %s, guidance %.9g, %s noise%s%s%s", sampler[c->sampler],
                        c->steps, spacing[s->timestep_spacing], s->steps_offset, settings, c->guidance,
                        c->torch_rng ? "torch" : "philox", limits, guide, from);
    free(guide);
    free(from);
    free(limits);
    free(settings);
    return text;
}

/* ---- 3. Writing ---------------------------------------------------------------------------------------------- */

ddpm_result cli_write_picture(const cli_context *context, const cli_drawing *d, const char *path, const char *labels,
                              const io_picture *picture)
{
    cli_short seed;
    char *sampling = cli_sampling_text(d);
    if (sampling == NULL) return DDPM_ERR_MEMORY;
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)d->sample.seed);
    io_text text[] = {{"seed", seed},
                      {"sampling", sampling},
                      {"command", context->command_line},
                      {"model", d->model->path},
                      {"version", cli_version()},
                      {"labels", labels}};
    ddpm_result result = io_picture_write_png(path, picture, text, labels != NULL ? 6 : 5);
    if (result == DDPM_OK) printf("%s\n", path);
    free(sampling);
    return result;
}

ddpm_result cli_write_grid(const cli_context *context, const cli_drawing *d, const char *path, const char *labels,
                           const io_picture *pictures, int count, int per_row)
{
    io_picture grid;
    ddpm_result result = io_make_grid(pictures, count, per_row, 2, &grid);
    if (result != DDPM_OK) return result;
    result = cli_write_picture(context, d, path, labels, &grid);
    io_picture_free(&grid);
    return result;
}
