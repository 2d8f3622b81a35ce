/* lab/dataset.c - training data as batches: see lab/dataset.h.
 * A source lists (path, labels); a queue of decode threads fetches an epoch's pictures in the epoch's order. Order,
 * position and cache belong to the thread that asks for batches, so only the queue needs a lock.
 *
 * Contents:  1 the parts   2 the source: train.json   3 the decode queue   4 opening   5 epochs and batches */
#include "lab/dataset.h"

#include "io/file.h"
#include "io/picture.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. The parts ------------------------------------------------------------------------------------------------ */

enum { AHEAD = 256, MAX_WORKERS = 256, MAX_SIDE = 8192 }; /* AHEAD: most pictures decoded before they are asked for */

typedef struct slot { /* what came of decoding one picture */
    int filled;
    ddpm_result result;
    char *error; /* ddpm_error() is a thread's own: the text travels here */
    io_picture picture;
} slot;

/* Pictures list[0..count-1] are decoded in this order: list[i] arrives in slot[i % AHEAD]. Threads claim the next one
 * while claimed < taken + AHEAD, so a slot is empty when its next picture comes. The lock guards the second group. */
typedef struct decode_queue {
    uint32_t *list, count;
    pthread_t thread[MAX_WORKERS];
    int threads;

    pthread_mutex_t lock;
    pthread_cond_t arrived, room; /* slot[taken % AHEAD] is filled; a slot is empty again, or stop */
    uint32_t claimed, taken;
    int stop;
    slot slot[AHEAD];
} decode_queue;

struct lab_dataset_private {
    char description[160];
    uint32_t *order;    /* of the epoch in progress */
    int position;       /* pictures of it already handed out; -1: no epoch */
    io_picture *cached; /* of each picture, all zero where it is not kept */
    size_t cached_bytes, picture_bytes;
    decode_queue queue;
};

/* ---- 2. The source: train.json ----------------------------------------------------------------------------------
 * A source fills ds->classes, labels, path and count from config: another form of data set is another such function. */

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A JSON object may repeat a key; a picture counted twice with two label sets would be a silent error. */
static ddpm_result check_all_different(const char *const *file, int count, const char *list_path)
{
    const char **sorted = malloc((size_t)count * sizeof *sorted);
    if (!sorted) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d file names", list_path, count);
    memcpy(sorted, file, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_text);
    ddpm_result result = DDPM_OK;
    for (int i = 1; i < count && !result; i++)
        if (!strcmp(sorted[i - 1], sorted[i]))
            result = ddpm_fail(DDPM_ERR_FORMAT,
                               "%s: picture '%.200s' is listed twice\n"
                               "      hint: keep the entry with the right labels",
                               list_path, sorted[i]);
    free(sorted);
    return result;
}

/* Reads {file name: [class name, ...]} into file[0..*count-1] (pointing into the JSON) and ds->labels. */
static ddpm_result read_entries(const cJSON *json, const char *list_path, lab_dataset *ds, const char **file,
                                int *count)
{
    const cJSON *item;
    *count = 0;
    cJSON_ArrayForEach (item, json) {
        char where[512];
        snprintf(where, sizeof where, "%.250s: entry %d (counted from 0), '%.200s'", list_path, *count, item->string);
        ddpm_result result = lab_label_sets_add_json(&ds->labels, &ds->classes, item, 1, where);
        if (result) return result;
        file[(*count)++] = item->string;
    }
    return DDPM_OK;
}

/* Counts the files that `directory` holds into *found; *missing is the index of the first that it does not. */
static ddpm_result count_pictures(const char *directory, const char *const *file, int count, int *found, int *missing)
{
    *found = 0;
    *missing = 0;
    for (int i = 0; i < count && io_is_directory(directory); i++) {
        char *path = io_join(directory, file[i]);
        if (!path) return DDPM_ERR_MEMORY;
        *missing = *found == i ? i : *missing;
        *found += io_is_file(path);
        free(path);
    }
    return DDPM_OK;
}

/* Puts directory and file names together: ds->path. */
static ddpm_result set_paths(lab_dataset *ds, const char *directory, const char *const *file, int count)
{
    ds->path = calloc((size_t)count, sizeof *ds->path);
    if (!ds->path) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d file names", directory, count);
    ds->count = count;
    for (int i = 0; i < count; i++) {
        ds->path[i] = io_join(directory, file[i]);
        if (!ds->path[i]) return DDPM_ERR_MEMORY;
    }
    return DDPM_OK;
}

/* Takes the first place that holds every picture. If none does, the one with the most of them is named in the error. */
static ddpm_result find_pictures(lab_dataset *ds, const lab_dataset_config *config, const char *list_path,
                                 const char *const *file, int count)
{
    static const char *const beside[] = {"", "iclevr", "images", "../iclevr"};
    int places = config->image_dir ? 1 : (int)(sizeof beside / sizeof *beside), most = -1, first_missing = 0;
    char tried[600] = "", best[150] = "";
    size_t used = 0;
    for (int i = 0; i < places; i++) {
        char *directory = config->image_dir ? io_join(config->image_dir, "") : io_join(config->data, beside[i]);
        int found = 0, missing = 0;
        ddpm_result result = directory ? count_pictures(directory, file, count, &found, &missing) : DDPM_ERR_MEMORY;
        if (!result && found == count) result = set_paths(ds, directory, file, count);
        if (!result && found > most) {
            most = found;
            first_missing = missing;
            snprintf(best, sizeof best, "%s", directory);
        }
        if (directory)
            used += (size_t)snprintf(tried + used, sizeof tried - used, "%s%.140s", i ? ", " : "", directory);
        free(directory);
        if (result || found == count) return result;
    }
    return ddpm_fail(DDPM_ERR_FILE,
                     "%s: %d of %d pictures are missing, the first is '%.200s' (in %s)\n"
                     "      hint: tried %s; put the pictures there or name their folder",
                     list_path, count - most, count, file[first_missing], best, tried);
}

static ddpm_result read_list(const cJSON *json, const char *list_path, const lab_dataset_config *config,
                             lab_dataset *ds)
{
    if (!cJSON_IsObject(json) || !json->child)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: %s\n      hint: the lab's form is "
                         "{\"CLEVR_train_000000_0.png\": [\"gray cube\"], ...}",
                         list_path, cJSON_IsObject(json) ? "the data set is empty" : "not a JSON object");
    int count = cJSON_GetArraySize(json);
    const char **file = calloc((size_t)count, sizeof *file);
    if (!file) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d file names", list_path, count);
    ddpm_result result = read_entries(json, list_path, ds, file, &count);
    if (!result) result = check_all_different(file, count, list_path);
    if (!result) result = find_pictures(ds, config, list_path, file, count);
    free(file);
    return result;
}

/* The lab's form: train.json with several labels a picture, the class file beside it. */
static ddpm_result read_multi_label(const lab_dataset_config *config, lab_dataset *ds)
{
    cJSON *json = NULL;
    char *list_path = io_join(config->data, "train.json");
    if (!list_path) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    if (!io_is_file(list_path))
        result = ddpm_fail(DDPM_ERR_FILE,
                           "%s: no such file\n      hint: a data set is a folder with train.json, "
                           "objects.json and pictures; 'ddpm render --out DIR' makes one",
                           list_path);
    if (!result) result = lab_classes_find(config->data, &ds->classes);
    if (!result) result = lab_json_read(list_path, &json);
    if (!result) result = read_list(json, list_path, config, ds);
    cJSON_Delete(json);
    free(list_path);
    return result;
}

/* ---- 3. The decode queue ----------------------------------------------------------------------------------------- */

static ddpm_result decode(const lab_dataset *ds, uint32_t index, io_picture *out)
{
    io_picture original;
    ddpm_result result = io_picture_read(ds->path[index], ds->config.channels, &original);
    if (result) return result;
    result = io_picture_resize(&original, ds->config.width, ds->config.height, out);
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
        made.result = decode(ds, q->list[i], &made.picture);
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
        if (q->slot[i].filled && !q->slot[i].result) io_picture_free(&q->slot[i].picture);
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

/* Waits for the next picture of the list; io_picture_free it. A failed one stays where it is. */
static ddpm_result queue_take(decode_queue *q, io_picture *out)
{
    pthread_mutex_lock(&q->lock);
    slot *next = &q->slot[q->taken % AHEAD];
    while (!next->filled)
        pthread_cond_wait(&q->arrived, &q->lock);
    ddpm_result result = next->result;
    if (result) {
        ddpm_fail(result, "%s", next->error ? next->error : "a decode thread ran out of memory");
    } else {
        *out = next->picture;
        *next = (slot){0};
        q->taken++;
        pthread_cond_signal(&q->room);
    }
    pthread_mutex_unlock(&q->lock);
    return result;
}

/* ---- 4. Opening -------------------------------------------------------------------------------------------------- */

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

static ddpm_result check_config(const lab_dataset_config *config)
{
    if (!config->data)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "no data folder given\n      hint: name the folder that holds train.json");
    if (config->width < 1 || config->width > MAX_SIDE || config->height < 1 || config->height > MAX_SIDE)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: pictures of %dx%d were asked for\n      hint: each side must be 1 to %d", config->data,
                         config->width, config->height, MAX_SIDE);
    if (config->channels != 1 && config->channels != 3)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: pictures of %d channels were asked for\n"
                         "      hint: 3 for colour, 1 for gray",
                         config->data, config->channels);
    if (config->workers < 0 || config->workers > MAX_WORKERS)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: %d decode threads were asked for\n      hint: 0 (one) to %d",
                         config->data, config->workers, MAX_WORKERS);
    return DDPM_OK;
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
    p->picture_bytes = (size_t)config->width * (size_t)config->height * (size_t)config->channels;
    return ds;
}

static ddpm_result allocate(lab_dataset *ds)
{
    struct lab_dataset_private *p = ds->p;
    size_t count = (size_t)ds->count;
    p->order = calloc(count, sizeof *p->order);
    p->cached = calloc(count, sizeof *p->cached);
    p->queue.list = calloc(count, sizeof *p->queue.list);
    if (!p->order || !p->cached || !p->queue.list)
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the order of %d pictures", ds->count);
    return DDPM_OK;
}

static void describe(lab_dataset *ds)
{
    char number[16];
    int n = ds->count;
    if (n >= 1000000)
        snprintf(number, sizeof number, "%d,%03d,%03d", n / 1000000, n / 1000 % 1000, n % 1000);
    else if (n >= 1000)
        snprintf(number, sizeof number, "%d,%03d", n / 1000, n % 1000);
    else
        snprintf(number, sizeof number, "%d", n);
    snprintf(ds->p->description, sizeof ds->p->description, "%s picture%s, %d class%s, multi-label, from train.json",
             number, n == 1 ? "" : "s", ds->classes.count, ds->classes.count == 1 ? "" : "es");
}

ddpm_result lab_dataset_open(const lab_dataset_config *config, lab_dataset **out)
{
    *out = NULL;
    ddpm_result result = check_config(config);
    if (result) return result;
    lab_dataset *ds = create(config);
    if (!ds) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to open the data set", config->data);
    result = read_multi_label(config, ds);
    if (!result) result = allocate(ds);
    if (result) {
        lab_dataset_close(ds);
        return result;
    }
    describe(ds);
    *out = ds;
    return DDPM_OK;
}

void lab_dataset_close(lab_dataset *ds)
{
    if (!ds) return;
    struct lab_dataset_private *p = ds->p;
    queue_stop(&p->queue);
    pthread_mutex_destroy(&p->queue.lock);
    pthread_cond_destroy(&p->queue.arrived);
    pthread_cond_destroy(&p->queue.room);
    for (int i = 0; i < ds->count; i++) {
        free(ds->path[i]);
        if (p->cached) io_picture_free(&p->cached[i]);
    }
    free(ds->path);
    free(p->order);
    free(p->cached);
    free(p->queue.list);
    lab_label_sets_free(&ds->labels);
    lab_classes_free(&ds->classes);
    free(p);
    free(ds);
}

const char *lab_dataset_describe(const lab_dataset *ds)
{
    return ds->p->description;
}

/* ---- 5. Epochs and batches --------------------------------------------------------------------------------------- */

ddpm_result lab_dataset_start_epoch(lab_dataset *ds, uint32_t epoch)
{
    return lab_dataset_resume_epoch(ds, epoch, 0);
}

ddpm_result lab_dataset_resume_epoch(lab_dataset *ds, uint32_t epoch, int position)
{
    struct lab_dataset_private *p = ds->p;
    if (position < 0 || position > ds->count)
        return ddpm_fail(DDPM_ERR_RANGE,
                         "picture %d of an epoch was asked for, the data set has %d\n"
                         "      hint: has the data changed since the run was stopped?",
                         position, ds->count);
    queue_stop(&p->queue);
    ddpm_shuffle((ddpm_address){.seed = ds->config.seed, .step = epoch, .purpose = DDPM_RANDOM_SHUFFLE},
                 (uint32_t)ds->count, p->order);
    for (int i = position; i < ds->count; i++)
        if (!p->cached[p->order[i]].pixel) p->queue.list[p->queue.count++] = p->order[i];
    ddpm_result result = queue_start(ds);
    p->position = result ? -1 : position;
    return result;
}

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

/* The epoch's next picture, which is `index`: from the cache, or else it is the next of the queue. */
static ddpm_result next_picture(lab_dataset *ds, uint32_t index, ddpm_real *out)
{
    struct lab_dataset_private *p = ds->p;
    if (p->cached[index].pixel) {
        io_picture_to_real(&p->cached[index], out);
        return DDPM_OK;
    }
    io_picture picture;
    ddpm_result result = queue_take(&p->queue, &picture);
    if (result) return result;
    io_picture_to_real(&picture, out);
    keep_or_free(ds, index, &picture);
    return DDPM_OK;
}

ddpm_result lab_dataset_next(lab_dataset *ds, int n, ddpm_real *pictures, ddpm_real *labels, int *got)
{
    struct lab_dataset_private *p = ds->p;
    *got = 0;
    if (p->position < 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a batch was asked for, but no epoch was started\n"
                                            "      hint: call lab_dataset_start_epoch first");
    if (n < 1) return ddpm_fail(DDPM_ERR_ARGUMENT, "a batch of %d pictures was asked for\n      hint: at least 1", n);
    int left = ds->count - p->position, batch = n < left ? n : left;
    size_t elements = p->picture_bytes, classes = (size_t)ds->classes.count; /* a byte becomes an element */
    for (size_t i = 0; i < (size_t)batch; i++) {
        uint32_t index = p->order[p->position];
        ddpm_result result = next_picture(ds, index, pictures + i * elements);
        if (!result && labels)
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
    io_picture decoded = {0};
    ddpm_result result = cached->pixel ? DDPM_OK : decode(ds, (uint32_t)index, &decoded);
    if (!result) io_picture_to_real(cached->pixel ? cached : &decoded, picture);
    io_picture_free(&decoded);
    if (!result && labels) result = lab_multi_hot(&ds->labels, index, 1, ds->classes.count, labels);
    return result;
}
