/* lab/dataset.c - training data as batches: see lab/dataset.h.
 * lab/source.c lists (path, labels); a queue of decode threads fetches an epoch's pictures in the epoch's order. Order,
 * position and cache belong to the thread that asks for batches, so only the queue needs a lock.
 *
 * Contents:  1 the parts   2 the decode queue   3 opening   4 the survey   5 epochs and batches */
#include "lab/dataset.h"

#include "io/picture.h"
#include "lab/source.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. The parts ------------------------------------------------------------------------------------------------ */

enum { AHEAD = 256, MAX_WORKERS = 256, MAX_SIDE = 8192 }; /* AHEAD: most pictures decoded before they are asked for */

typedef struct decoded {
    io_picture picture; /* in the final size */
    int width, height;  /* of the original */
    uint64_t hash;      /* of its pixels, for the survey */
} decoded;

typedef struct slot { /* what came of decoding one picture */
    int filled;
    ddpm_result result;
    char *error; /* ddpm_error() is a thread's own: the text travels here */
    decoded made;
} slot;

/* Pictures list[0..count-1] are decoded in this order: list[i] arrives in slot[i % AHEAD]. Threads claim the next one
 * while claimed < taken + AHEAD, so a slot is empty when its next picture comes. The lock guards the second group. */
typedef struct decode_queue {
    uint32_t *list, count;
    int hashing; /* for the survey */
    pthread_t thread[MAX_WORKERS];
    int threads;

    pthread_mutex_t lock;
    pthread_cond_t arrived, room; /* slot[taken % AHEAD] is filled; a slot is empty again, or stop */
    uint32_t claimed, taken;
    int stop;
    slot slot[AHEAD];
} decode_queue;

struct lab_dataset_private {
    char description[160], from[32];
    uint32_t epoch;        /* in progress */
    uint32_t *order;       /* of its pictures, those that are handed out here: `end` of them */
    uint32_t *part;        /* the training pictures, then from part[count - held_out] on the held-out ones */
    int position, end;     /* pictures of it already handed out; -1: no epoch */
    int batch, rank, size; /* of lab_dataset_share */
    io_picture *cached;    /* of each picture, all zero where it is not kept */
    size_t cached_bytes, picture_bytes;
    decode_queue queue;
};

/* ---- 2. The decode queue ----------------------------------------------------------------------------------------- */

/* FNV-1a's rule (Fowler, Noll, Vo) on words of eight bytes, folded so that the high bits count below. */
static uint64_t hash_bytes(const unsigned char *bytes, size_t size, uint64_t hash)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
        hash = (hash ^ word) * UINT64_C(1099511628211);
        hash ^= hash >> 32;
    }
    return hash;
}

static uint64_t hash_picture(const io_picture *picture)
{
    const int size[] = {picture->width, picture->height, picture->channels};
    uint64_t hash = hash_bytes((const unsigned char *)size, sizeof size, UINT64_C(14695981039346656037));
    size_t bytes = (size_t)picture->width * (size_t)picture->height * (size_t)picture->channels;
    return hash_bytes(picture->pixel, bytes, hash);
}

static ddpm_result decode(const lab_dataset *ds, uint32_t index, decoded *out)
{
    io_picture original;
    const lab_dataset_config *c = &ds->config;
    ddpm_result result = io_picture_read(ds->path[index], c->channels, &original);
    if (result) return result;
    out->width = original.width;
    out->height = original.height;
    out->hash = ds->p->queue.hashing ? hash_picture(&original) : 0;
    result = c->resize == LAB_CROP ? io_picture_resize_crop(&original, c->width, c->height, &out->picture)
                                   : io_picture_resize(&original, c->width, c->height, &out->picture);
    io_picture_free(&original);
    return result;
}

static char *copy_text(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

/* A decode thread: claims pictures until all are claimed or it is told to stop. */
static void *decode_thread(void *argument)
{
    const lab_dataset *ds = argument;
    decode_queue *q = &ds->p->queue;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (!q->stop && q->claimed < q->count && q->claimed - q->taken >= AHEAD)
            pthread_cond_wait(&q->room, &q->lock);
        if (q->stop || q->claimed >= q->count) break;
        uint32_t i = q->claimed++;
        pthread_mutex_unlock(&q->lock);

        slot made = {.filled = 1};
        made.result = decode(ds, q->list[i], &made.made);
        if (made.result) made.error = copy_text(ddpm_error());

        pthread_mutex_lock(&q->lock);
        q->slot[i % AHEAD] = made;
        if (i == q->taken) pthread_cond_signal(&q->arrived);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* Ends the threads (each after the picture it is at) and empties the slots. */
static void queue_stop(decode_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->stop = 1;
    pthread_cond_broadcast(&q->room);
    pthread_mutex_unlock(&q->lock);
    while (q->threads)
        pthread_join(q->thread[--q->threads], NULL);
    for (int i = 0; i < AHEAD; i++) {
        if (q->slot[i].filled && !q->slot[i].result) io_picture_free(&q->slot[i].made.picture);
        free(q->slot[i].error);
        q->slot[i] = (slot){0};
    }
    q->stop = 0;
    q->claimed = q->taken = q->count = 0;
}

/* Starts decoding list[0..count-1]. Fewer threads than asked for are good enough, but not none. */
static ddpm_result queue_start(lab_dataset *ds)
{
    decode_queue *q = &ds->p->queue;
    uint32_t wanted = ds->config.workers ? (uint32_t)ds->config.workers : 1;
    while ((uint32_t)q->threads < wanted && (uint32_t)q->threads < q->count) {
        if (pthread_create(&q->thread[q->threads], NULL, decode_thread, ds)) break;
        q->threads++;
    }
    if (q->count && !q->threads)
        return ddpm_fail(DDPM_ERR_MEMORY, "the system does not allow one more thread, pictures cannot be decoded\n"
                                          "      hint: look at `ulimit -u` and at the free memory");
    return DDPM_OK;
}

/* Waits for the next picture of the list; io_picture_free it. A failed one stays where it is, unless queue_drop takes
 * it away. */
static ddpm_result queue_take(decode_queue *q, decoded *out)
{
    pthread_mutex_lock(&q->lock);
    slot *next = &q->slot[q->taken % AHEAD];
    while (!next->filled)
        pthread_cond_wait(&q->arrived, &q->lock);
    ddpm_result result = next->result;
    if (result) {
        ddpm_fail(result, "%s", next->error ? next->error : "a decode thread ran out of memory");
    } else {
        *out = next->made;
        *next = (slot){0};
        q->taken++;
        pthread_cond_signal(&q->room);
    }
    pthread_mutex_unlock(&q->lock);
    return result;
}

static void queue_drop(decode_queue *q)
{
    pthread_mutex_lock(&q->lock);
    slot *failed = &q->slot[q->taken % AHEAD];
    free(failed->error);
    *failed = (slot){0};
    q->taken++;
    pthread_cond_signal(&q->room);
    pthread_mutex_unlock(&q->lock);
}

/* ---- 3. Opening -------------------------------------------------------------------------------------------------- */

lab_dataset_config lab_dataset_default(const char *data)
{
    return (lab_dataset_config){.data = data,
                                .width = 64,
                                .height = 64,
                                .channels = 3,
                                .workers = 1,
                                .cache_bytes = (size_t)1 << 30,
                                .seed = 529};
}

static ddpm_result check_size(const char *where, int width, int height, int channels)
{
    if (width < 1 || width > MAX_SIDE || height < 1 || height > MAX_SIDE)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: pictures of %dx%d were asked for\n      hint: each side must be 1 to %d", where, width,
                         height, MAX_SIDE);
    if (channels != 1 && channels != 3)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: pictures of %d channels were asked for\n"
                         "      hint: 3 for colour, 1 for gray",
                         where, channels);
    return DDPM_OK;
}

static ddpm_result check_config(const lab_dataset_config *config)
{
    if (!config->data) return ddpm_fail(DDPM_ERR_ARGUMENT, "no data folder given\n      hint: name the data's folder");
    if (config->workers < 0 || config->workers > MAX_WORKERS)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: %d decode threads were asked for\n      hint: 0 (one) to %d",
                         config->data, config->workers, MAX_WORKERS);
    int later = config->width == 0 && config->height == 0;
    return later ? DDPM_OK : check_size(config->data, config->width, config->height, config->channels);
}

/* An empty data set that lab_dataset_close can free. */
static lab_dataset *create(const lab_dataset_config *config)
{
    lab_dataset *ds = calloc(1, sizeof *ds);
    struct lab_dataset_private *p = calloc(1, sizeof *p);
    if (!ds || !p || pthread_mutex_init(&p->queue.lock, NULL) || pthread_cond_init(&p->queue.arrived, NULL) ||
        pthread_cond_init(&p->queue.room, NULL)) {
        free(p);
        free(ds);
        return NULL;
    }
    ds->p = p;
    ds->config = *config;
    ds->config.data = ds->config.image_dir = NULL;
    p->position = -1;
    lab_dataset_share(ds, 1, 0, 1);
    p->picture_bytes = (size_t)config->width * (size_t)config->height * (size_t)config->channels;
    return ds;
}

static ddpm_result allocate(lab_dataset *ds)
{
    struct lab_dataset_private *p = ds->p;
    size_t count = (size_t)ds->count;
    p->order = calloc(count, sizeof *p->order);
    p->part = calloc(count, sizeof *p->part);
    p->cached = calloc(count, sizeof *p->cached);
    p->queue.list = calloc(count, sizeof *p->queue.list);
    if (!p->order || !p->part || !p->cached || !p->queue.list)
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the order of %d pictures", ds->count);
    return lab_dataset_divide(ds, 0, 0);
}

static void describe(lab_dataset *ds)
{
    static const char *const form[] = {"multi-label", "single-label", "unconditional"};
    char number[16], classes[32] = "";
    int n = ds->count;
    if (n >= 1000000)
        snprintf(number, sizeof number, "%d,%03d,%03d", n / 1000000, n / 1000 % 1000, n % 1000);
    else if (n >= 1000)
        snprintf(number, sizeof number, "%d,%03d", n / 1000, n % 1000);
    else
        snprintf(number, sizeof number, "%d", n);
    if (ds->classes.count)
        snprintf(classes, sizeof classes, "%d class%s, ", ds->classes.count, ds->classes.count == 1 ? "" : "es");
    snprintf(ds->p->description, sizeof ds->p->description, "%s picture%s, %s%s, from %s", number, n == 1 ? "" : "s",
             classes, form[ds->kind], ds->p->from);
}

ddpm_result lab_dataset_open(const lab_dataset_config *config, lab_dataset **out)
{
    *out = NULL;
    ddpm_result result = check_config(config);
    if (result) return result;
    lab_dataset *ds = create(config);
    if (!ds) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to open the data set", config->data);
    result = lab_source_read(config, ds, ds->p->from, sizeof ds->p->from);
    if (!result) result = allocate(ds);
    if (result) {
        lab_dataset_close(ds);
        return result;
    }
    describe(ds);
    *out = ds;
    return DDPM_OK;
}

static void empty_cache(lab_dataset *ds)
{
    for (int i = 0; ds->p->cached && i < ds->count; i++)
        io_picture_free(&ds->p->cached[i]);
    ds->p->cached_bytes = 0;
}

void lab_dataset_close(lab_dataset *ds)
{
    if (!ds) return;
    struct lab_dataset_private *p = ds->p;
    queue_stop(&p->queue);
    pthread_mutex_destroy(&p->queue.lock);
    pthread_cond_destroy(&p->queue.arrived);
    pthread_cond_destroy(&p->queue.room);
    empty_cache(ds);
    for (int i = 0; i < ds->count; i++)
        free(ds->path[i]);
    free(ds->path);
    free(p->order);
    free(p->part);
    free(p->cached);
    free(p->queue.list);
    lab_label_sets_free(&ds->labels);
    lab_classes_free(&ds->classes);
    free(p);
    free(ds);
}

ddpm_result lab_dataset_set_size(lab_dataset *ds, int width, int height, int channels)
{
    ddpm_result result = check_size("the data set", width, height, channels);
    if (result) return result;
    queue_stop(&ds->p->queue);
    empty_cache(ds);
    ds->p->position = -1;
    ds->config.width = width;
    ds->config.height = height;
    ds->config.channels = channels;
    ds->p->picture_bytes = (size_t)width * (size_t)height * (size_t)channels;
    return DDPM_OK;
}

const char *lab_dataset_describe(const lab_dataset *ds)
{
    return ds->p->description;
}

/* ---- 4. The survey ----------------------------------------------------------------------------------------------- */

/* Keeps a decoded picture for later epochs if the cache has room, else frees it. */
static void keep_or_free(lab_dataset *ds, uint32_t index, io_picture *picture)
{
    struct lab_dataset_private *p = ds->p;
    if (p->picture_bytes > ds->config.cache_bytes - p->cached_bytes) {
        io_picture_free(picture);
        return;
    }
    p->cached[index] = *picture;
    p->cached_bytes += p->picture_bytes;
}

static ddpm_result add_finding(lab_survey *survey, lab_trouble trouble, const char *path, const char *about)
{
    if (survey->findings == survey->room) {
        int room = survey->room ? 2 * survey->room : 64;
        lab_finding *moved = realloc(survey->finding, (size_t)room * sizeof *moved);
        if (!moved) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to list %d pictures", room);
        survey->finding = moved;
        survey->room = room;
    }
    lab_finding finding = {trouble, copy_text(path), copy_text(about)};
    if (!finding.path || !finding.about) {
        free(finding.path);
        free(finding.about);
        return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to list it", path);
    }
    survey->finding[survey->findings++] = finding;
    survey->count[trouble]++;
    return DDPM_OK;
}

void lab_survey_free(lab_survey *survey)
{
    for (int i = 0; i < survey->findings; i++) {
        free(survey->finding[i].path);
        free(survey->finding[i].about);
    }
    free(survey->finding);
    *survey = (lab_survey){0};
}

typedef struct seen { /* a picture's pixels */
    uint64_t hash;
    int index, width, height;
    int readable;
} seen;

/* Decodes all, in their order. What cannot be read is a finding; anything else that fails, a failure. */
static ddpm_result decode_all(lab_dataset *ds, seen *seen, void (*progress)(void *, int, int), void *user,
                              lab_survey *out)
{
    decode_queue *q = &ds->p->queue;
    for (int i = 0; i < ds->count; i++)
        q->list[q->count++] = (uint32_t)i;
    ddpm_result result = queue_start(ds);
    for (int i = 0; i < ds->count && !result; i++) {
        decoded made = {0};
        result = queue_take(q, &made);
        seen[i] = (struct seen){made.hash, i, made.width, made.height, !result};
        if (!result) {
            keep_or_free(ds, (uint32_t)i, &made.picture);
        } else if (result != DDPM_ERR_MEMORY) {
            char why[400];
            snprintf(why, sizeof why, "%.*s", (int)strcspn(ddpm_error(), "\n"), ddpm_error());
            result = add_finding(out, LAB_UNREADABLE, ds->path[i], why);
            queue_drop(q);
        }
        if (progress) progress(user, i + 1, ds->count);
    }
    return result;
}

static int compare_seen(const void *a, const void *b)
{
    const seen *one = a, *other = b;
    if (one->hash != other->hash) return one->hash < other->hash ? -1 : 1;
    return one->index - other->index;
}

static int compare_first(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Sorted by hash, equal pictures follow one another, the first of them first. */
static ddpm_result find_duplicates(const lab_dataset *ds, const seen *seen, lab_survey *out)
{
    int pairs = 0, (*pair)[2] = malloc((size_t)ds->count * sizeof *pair);
    struct seen *sorted = malloc((size_t)ds->count * sizeof *sorted);
    if (!pair || !sorted) {
        free(pair);
        free(sorted);
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory to compare %d pictures", ds->count);
    }
    memcpy(sorted, seen, (size_t)ds->count * sizeof *sorted);
    qsort(sorted, (size_t)ds->count, sizeof *sorted, compare_seen);
    for (int i = 1, first = 0; i < ds->count; i++) {
        if (sorted[i].hash != sorted[first].hash || !sorted[first].readable) {
            first = i;
        } else if (sorted[i].readable) {
            pair[pairs][0] = sorted[i].index;
            pair[pairs++][1] = sorted[first].index;
        }
    }
    qsort(pair, (size_t)pairs, sizeof *pair, compare_first);
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < pairs && !result; i++)
        result = add_finding(out, LAB_DUPLICATE, ds->path[pair[i][0]], ds->path[pair[i][1]]);
    free(sorted);
    free(pair);
    return result;
}

static ddpm_result find_tiny(const lab_dataset *ds, const seen *seen, lab_survey *out)
{
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < ds->count && !result; i++) {
        char size[32];
        if (!seen[i].readable || (seen[i].width >= ds->config.width && seen[i].height >= ds->config.height)) continue;
        snprintf(size, sizeof size, "%dx%d", seen[i].width, seen[i].height);
        result = add_finding(out, LAB_TINY, ds->path[i], size);
    }
    return result;
}

/* Closes the gaps that pictures leave which cannot be read. */
static ddpm_result leave_out(lab_dataset *ds, const seen *seen)
{
    lab_label_sets labels = {0};
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < ds->count && !result && ds->labels.count; i++)
        if (seen[i].readable)
            result = lab_label_sets_add(&labels, ds->labels.label + ds->labels.start[i],
                                        ds->labels.start[i + 1] - ds->labels.start[i]);
    if (result) {
        lab_label_sets_free(&labels);
        return result;
    }
    int kept = 0;
    for (int i = 0; i < ds->count; i++) {
        io_picture cached = ds->p->cached[i];
        ds->p->cached[i] = (io_picture){0};
        if (seen[i].readable) {
            ds->p->cached[kept] = cached;
            ds->path[kept++] = ds->path[i];
        } else {
            free(ds->path[i]);
        }
    }
    ds->count = kept;
    lab_label_sets_free(&ds->labels);
    ds->labels = labels;
    describe(ds);
    return lab_dataset_divide(ds, 0, 0);
}

static ddpm_result survey(lab_dataset *ds, seen *seen, void (*progress)(void *, int, int), void *user, lab_survey *out)
{
    ddpm_result result = decode_all(ds, seen, progress, user, out);
    if (!result && out->count[LAB_UNREADABLE] == ds->count)
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "none of the %d pictures can be read; the first: %s\n      hint: PNG and JPEG files can be",
                           ds->count, out->finding[0].about);
    if (!result) result = find_tiny(ds, seen, out);
    if (!result) result = find_duplicates(ds, seen, out);
    if (!result && out->count[LAB_UNREADABLE]) result = leave_out(ds, seen);
    return result;
}

ddpm_result lab_dataset_survey(lab_dataset *ds, void (*progress)(void *user, int done, int total), void *user,
                               lab_survey *out)
{
    decode_queue *q = &ds->p->queue;
    int count = ds->count;
    *out = (lab_survey){0};
    seen *seen = calloc((size_t)count, sizeof *seen);
    if (!seen) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to look at %d pictures", count);
    queue_stop(q);
    empty_cache(ds);
    ds->p->position = -1;
    q->hashing = 1;
    ddpm_result result = survey(ds, seen, progress, user, out);
    queue_stop(q);
    q->hashing = 0;
    free(seen);
    if (result) lab_survey_free(out);
    return result;
}

/* ---- 5. Epochs and batches --------------------------------------------------------------------------------------- */

ddpm_result lab_dataset_divide(lab_dataset *ds, int held_out, int most)
{
    enum { RUN = 3 };
    struct lab_dataset_private *p = ds->p;
    int64_t runs = (ds->count + RUN - 1) / RUN, wanted = (held_out + RUN - 1) / RUN;
    if (held_out < 0 || held_out >= ds->count)
        return ddpm_fail(DDPM_ERR_RANGE,
                         "%d pictures are to be held out, the data set has %d\n"
                         "      hint: fewer, so that some are left to train on",
                         held_out, ds->count);
    int training = 0, held = 0;
    for (int i = 0; i < ds->count; i++) {
        int64_t run = i / RUN;
        if (held < held_out && (run + 1) * wanted / runs > run * wanted / runs)
            p->part[ds->count - held_out + held++] = (uint32_t)i;
        else if (training < ds->count - held_out)
            p->part[training++] = (uint32_t)i;
        else /* the last run is shorter than the others: what it lacks is made up here */
            p->part[ds->count - held_out + held++] = (uint32_t)i;
    }
    ds->training = most > 0 && most < training ? most : training;
    ds->held_out = held;
    p->position = -1;
    return DDPM_OK;
}

int lab_dataset_held_out(const lab_dataset *ds, int i)
{
    return (int)ds->p->part[ds->count - ds->held_out + i];
}

void lab_dataset_share(lab_dataset *ds, int batch, int rank, int size)
{
    ds->p->batch = batch;
    ds->p->rank = rank;
    ds->p->size = size;
}

ddpm_result lab_dataset_start_epoch(lab_dataset *ds, uint32_t epoch)
{
    return lab_dataset_resume_epoch(ds, epoch, 0);
}

ddpm_result lab_dataset_resume_epoch(lab_dataset *ds, uint32_t epoch, int position)
{
    struct lab_dataset_private *p = ds->p;
    if (!ds->config.width) return check_size("the data set", 0, 0, ds->config.channels);
    if (position < 0 || position > ds->training)
        return ddpm_fail(DDPM_ERR_RANGE,
                         "picture %d of an epoch was asked for, the data set has %d\n"
                         "      hint: has the data changed since the run was stopped?",
                         position, ds->training);
    queue_stop(&p->queue);
    ddpm_shuffle((ddpm_address){.seed = ds->config.seed, .step = epoch, .purpose = DDPM_RANDOM_SHUFFLE},
                 (uint32_t)ds->training, p->order);
    for (int i = 0; i < ds->training && ds->training < ds->count; i++)
        p->order[i] = p->part[p->order[i]];
    p->end = 0;
    for (int at = position; at < ds->training; at += p->batch) { /* what is handed out here moves to the front */
        int left = ds->training - at, first;
        int own = ddpm_part(left < p->batch ? left : p->batch, p->rank, p->size, &first);
        for (int i = 0; i < own; i++)
            p->order[p->end++] = p->order[at + first + i];
    }
    for (int i = 0; i < p->end; i++)
        if (!p->cached[p->order[i]].pixel) p->queue.list[p->queue.count++] = p->order[i];
    ddpm_result result = queue_start(ds);
    p->position = result ? -1 : 0;
    p->epoch = epoch;
    return result;
}

/* Mirrors left to right: (channels,height,width). */
static void flip(const lab_dataset_config *config, ddpm_real *picture)
{
    int width = config->width, rows = config->channels * config->height;
    for (ddpm_real *row = picture; rows > 0; rows--, row += width)
        for (int left = 0, right = width - 1; left < right; left++, right--) {
            ddpm_real swap = row[left];
            row[left] = row[right];
            row[right] = swap;
        }
}

/* The epoch's next picture, which is `index`: from the cache, or else it is the next of the queue. */
static ddpm_result next_picture(lab_dataset *ds, uint32_t index, ddpm_real *out)
{
    struct lab_dataset_private *p = ds->p;
    if (p->cached[index].pixel) {
        io_picture_to_real(&p->cached[index], out);
        return DDPM_OK;
    }
    decoded made;
    ddpm_result result = queue_take(&p->queue, &made);
    if (result) return result;
    io_picture_to_real(&made.picture, out);
    keep_or_free(ds, index, &made.picture);
    return DDPM_OK;
}

/* By its address, so that a picture is mirrored in the same epochs whatever the batch and the threads. */
static int is_flipped(const lab_dataset *ds, uint32_t index)
{
    ddpm_address address = {
        .seed = ds->config.seed, .picture = index, .step = ds->p->epoch, .purpose = LAB_RANDOM_FLIP};
    return ds->config.random_flip && ddpm_uniform_int(address, 2) == 1;
}

ddpm_result lab_dataset_next(lab_dataset *ds, int n, ddpm_real *pictures, ddpm_real *labels, int *got)
{
    struct lab_dataset_private *p = ds->p;
    *got = 0;
    if (p->position < 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a batch was asked for, but no epoch was started\n"
                                            "      hint: call lab_dataset_start_epoch first");
    if (n < 1) return ddpm_fail(DDPM_ERR_ARGUMENT, "a batch of %d pictures was asked for\n      hint: at least 1", n);
    int left = p->end - p->position, batch = n < left ? n : left;
    size_t elements = p->picture_bytes, classes = (size_t)ds->classes.count; /* a byte becomes an element */
    for (size_t i = 0; i < (size_t)batch; i++) {
        uint32_t index = p->order[p->position];
        ddpm_result result = next_picture(ds, index, pictures + i * elements);
        if (!result && is_flipped(ds, index)) flip(&ds->config, pictures + i * elements);
        if (!result && labels && classes)
            result = lab_multi_hot(&ds->labels, (int)index, 1, ds->classes.count, labels + i * classes);
        if (result) return result;
        p->position++;
    }
    *got = batch;
    return DDPM_OK;
}

ddpm_result lab_dataset_get(lab_dataset *ds, int index, ddpm_real *picture, ddpm_real *labels)
{
    if (index < 0 || index >= ds->count)
        return ddpm_fail(DDPM_ERR_RANGE, "picture %d was asked for, the data set has %d\n      hint: count from 0",
                         index, ds->count);
    const io_picture *cached = &ds->p->cached[index];
    decoded made = {0};
    ddpm_result result = cached->pixel ? DDPM_OK : decode(ds, (uint32_t)index, &made);
    if (!result) io_picture_to_real(cached->pixel ? cached : &made.picture, picture);
    io_picture_free(&made.picture);
    if (!result && labels && ds->classes.count)
        result = lab_multi_hot(&ds->labels, index, 1, ds->classes.count, labels);
    return result;
}
