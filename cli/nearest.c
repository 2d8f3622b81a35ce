/* cli/nearest.c - ddpm nearest: beside each drawn picture the training picture that is nearest to it, so that one can
 * see whether a model has learned its pictures by heart.
 *
 * Contents: 1 options   2 pictures and distances   3 the figure   4 the command */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "io/picture.h"
#include "lab/dataset.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *data, *images, *image_dir, *out;
    int n, workers, resize;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", CLI_REQUIRED,
     "the training pictures, as for ddpm train", &set.data, 0, 0, 1},
    {"images", NULL, CLI_TEXT, "DIR", CLI_REQUIRED,
     "folder of drawn pictures, as ddpm sample --out-dir writes it", &set.images, 0, 0, 2},
    {"image-dir", NULL, CLI_TEXT, "DIR", "(DATA, or iclevr or images in or beside it)",
     "folder of a list's pictures", &set.image_dir, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "FILE.png", "nearest.png",
     "pairs of a drawn and its nearest training picture, four pairs in a row, the closest first", &set.out, 0, 0, 0},
    {"n", NULL, CLI_INT, "N", "32", "drawn pictures to look at", &set.n, 1, 100000, 0},
    {"resize", NULL, CLI_CHOICE, "squeeze|crop", "squeeze",
     "as the model was trained", &set.resize, 0, 0, 0},
    {"workers", "num_workers dataloader_num_workers", CLI_INT, "N", "2",
     "threads that decode pictures", &set.workers, 1, 256, 0},
    {0},
};
/* clang-format on */

/* ---- 2. Pictures and distances ------------------------------------------------------------------------------- */

typedef struct query { /* a picture whose nearest training picture is looked for */
    ddpm_real *pixel;
    const char *path; /* NULL: a training picture, for comparison */
    int self;         /* its index among the training pictures, which does not count; or -1 */
    int nearest;      /* or -1, while none is known */
    double squares;   /* sum of (a - b)^2 over all elements */
} query;

enum { COMPARED = 64 }; /* training pictures that are looked for among the others */

typedef struct search {
    lab_dataset *data, *drawn;
    int width, height, drawn_queries, queries;
    size_t elements; /* of a picture */
    query *query;    /* the drawn ones, then those for comparison */
    ddpm_real *pixels, *candidate;
} search;

static void close_search(search *s)
{
    lab_dataset_close(s->data);
    lab_dataset_close(s->drawn);
    free(s->query);
    free(s->pixels);
    free(s->candidate);
}

static void on_read(void *user, int done, int total)
{
    cli_progress *bar = user;
    bar->total = total;
    cli_progress_show(bar, done, "%d of %d", done, total);
}

/* All pictures of a folder, decoded once; what cannot be read is left out. */
static ddpm_result open_pictures(const char *path, const char *image_dir, int width, int height, lab_dataset **out)
{
    lab_dataset_config config = lab_dataset_default(path);
    config.image_dir = image_dir;
    config.unconditional = 1;
    config.width = width;
    config.height = height;
    config.resize = set.resize == 0 ? LAB_SQUEEZE : LAB_CROP;
    config.workers = set.workers;
    cli_progress bar;
    lab_survey survey = {0};
    ddpm_result result = lab_dataset_open(&config, out);
    cli_progress_start(&bar, "read", 1);
    if (result == DDPM_OK) result = lab_dataset_survey(*out, on_read, &bar, &survey);
    cli_progress_clear(&bar);
    if (survey.count[LAB_UNREADABLE] > 0)
        cli_note("%d of the files in %s cannot be read, as %s", survey.count[LAB_UNREADABLE], path,
                 survey.finding[0].about);
    lab_survey_free(&survey);
    return result;
}

/* The drawn pictures say how large all are to be. */
static ddpm_result measure_drawn(search *s)
{
    lab_dataset_config config = lab_dataset_default(set.images);
    io_picture first = {0};
    lab_dataset *list = NULL;
    config.unconditional = 1;
    config.width = config.height = 0;
    ddpm_result result = lab_dataset_open(&config, &list);
    if (result == DDPM_OK) result = io_picture_read(list->path[0], 3, &first);
    s->width = first.width;
    s->height = first.height;
    io_picture_free(&first);
    lab_dataset_close(list);
    return result;
}

static int is_strip(const char *path) /* of ddpm sample --strip, in the same folder */
{
    const char *slash = strrchr(path, '/');
    return strncmp(slash != NULL ? slash + 1 : path, "strip_", 6) == 0;
}

static ddpm_result add_query(search *s, lab_dataset *from, int index, const char *path)
{
    query *q = &s->query[s->queries];
    *q = (query){.path = path, .self = path != NULL ? -1 : index, .nearest = -1, .squares = INFINITY};
    q->pixel = s->pixels + (size_t)s->queries++ * s->elements;
    return lab_dataset_get(from, index, q->pixel, NULL);
}

static ddpm_result choose_queries(search *s)
{
    int most = set.n < s->drawn->count ? set.n : s->drawn->count;
    int compared = COMPARED < s->data->count ? COMPARED : s->data->count;
    s->elements = (size_t)3 * (size_t)s->width * (size_t)s->height;
    s->query = cli_alloc((size_t)(most + compared), sizeof *s->query);
    s->pixels = cli_alloc((size_t)(most + compared) * s->elements, sizeof *s->pixels);
    s->candidate = cli_alloc(s->elements, sizeof *s->candidate);
    ddpm_result result = s->query != NULL && s->pixels != NULL && s->candidate != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
    for (int i = 0; result == DDPM_OK && i < s->drawn->count && s->queries < most; i++)
        if (!is_strip(s->drawn->path[i])) result = add_query(s, s->drawn, i, s->drawn->path[i]);
    s->drawn_queries = s->queries;
    for (int i = 0; result == DDPM_OK && i < compared; i++)
        result = add_query(s, s->data, (int)((int64_t)i * s->data->count / compared), NULL);
    if (result == DDPM_OK && s->drawn_queries == 0)
        result = ddpm_fail(DDPM_ERR_FILE, "%s: no drawn pictures, only strips\n      hint: ddpm sample --out-dir DIR",
                           set.images);
    return result;
}

/* Gives up where the sum is past the least one found so far. */
static void compare(query *q, const ddpm_real *candidate, int index, size_t elements)
{
    enum { CHUNK = 1024 };
    double squares = 0;
    for (size_t start = 0; start < elements && squares < q->squares; start += CHUNK) {
        size_t end = start + CHUNK < elements ? start + CHUNK : elements;
        ddpm_real sum = 0;
        for (size_t i = start; i < end; i++) {
            ddpm_real d = q->pixel[i] - candidate[i];
            sum += d * d;
        }
        squares += (double)sum;
    }
    if (squares >= q->squares || index == q->self) return;
    q->squares = squares;
    q->nearest = index;
}

static ddpm_result look_at_all(search *s)
{
    cli_progress bar;
    ddpm_result result = DDPM_OK;
    cli_progress_start(&bar, "compare", s->data->count);
    for (int i = 0; result == DDPM_OK && i < s->data->count; i++) {
        result = lab_dataset_get(s->data, i, s->candidate, NULL);
        if (result != DDPM_OK) break;
        #pragma omp parallel for
        for (int k = 0; k < s->queries; k++)
            compare(&s->query[k], s->candidate, i, s->elements);
        cli_progress_show(&bar, i + 1, "%d of %d", i + 1, s->data->count);
    }
    cli_progress_clear(&bar);
    return result;
}

/* ---- 3. The figure ------------------------------------------------------------------------------------------- */

static int by_distance(const void *a, const void *b)
{
    const query *one = a, *other = b;
    if (one->squares != other->squares) return one->squares < other->squares ? -1 : 1;
    return (one->pixel > other->pixel) - (one->pixel < other->pixel); /* as they came */
}

/* Root of the mean square, in levels of 0 to 255. */
static double levels(const search *s, const query *q)
{
    return 127.5 * sqrt(q->squares / (double)s->elements);
}

static ddpm_result write_figure(const search *s)
{
    enum { COLUMNS = 8, PADDING = 2 };
    int count = 2 * s->drawn_queries;
    ddpm_real *pairs = cli_alloc((size_t)count * s->elements, sizeof *pairs);
    ddpm_result result = pairs != NULL ? DDPM_OK : DDPM_ERR_MEMORY;
    for (int i = 0; result == DDPM_OK && i < s->drawn_queries; i++) {
        ddpm_real *pair = pairs + (size_t)(2 * i) * s->elements;
        memcpy(pair, s->query[i].pixel, s->elements * sizeof *pair);
        result = lab_dataset_get(s->data, s->query[i].nearest, pair + s->elements, NULL);
    }
    io_picture figure = {0};
    if (result == DDPM_OK)
        result = io_make_grid_real(pairs, count, 3, s->height, s->width, COLUMNS, PADDING, 0, &figure);
    if (result == DDPM_OK) result = io_picture_write_png(set.out, &figure, NULL, 0);
    io_picture_free(&figure);
    free(pairs);
    return result;
}

static void report(search *s)
{
    int compared = s->queries - s->drawn_queries;
    for (int i = 0; i < s->drawn_queries; i++)
        printf("%.2f %s %s\n", levels(s, &s->query[i]), s->query[i].path, s->data->path[s->query[i].nearest]);
    printf("%s\n", set.out);
    cli_note("distances are root mean squares in levels of 0 to 255; the median of %d drawn pictures is %.2f",
             s->drawn_queries, levels(s, &s->query[s->drawn_queries / 2]));
    if (s->data->count > 1)
        cli_note("training pictures themselves are %.2f from the nearest other one (median of %d)",
                 levels(s, &s->query[s->drawn_queries + compared / 2]), compared);
}

/* ---- 4. The command ------------------------------------------------------------------------------------------ */

static ddpm_result nearest(search *s)
{
    ddpm_result result = cli_can_write_png(set.out);
    if (result == DDPM_OK) result = measure_drawn(s);
    if (result == DDPM_OK) result = open_pictures(set.images, NULL, s->width, s->height, &s->drawn);
    if (result == DDPM_OK) result = open_pictures(set.data, set.image_dir, s->width, s->height, &s->data);
    if (result == DDPM_OK) result = choose_queries(s);
    if (result == DDPM_OK) result = look_at_all(s);
    if (result != DDPM_OK) return result;
    qsort(s->query, (size_t)s->drawn_queries, sizeof *s->query, by_distance);
    qsort(s->query + s->drawn_queries, (size_t)(s->queries - s->drawn_queries), sizeof *s->query, by_distance);
    result = write_figure(s);
    if (result == DDPM_OK) report(s);
    return result;
}

static int run(const cli_context *context)
{
    (void)context;
    search s = {0};
    int status = cli_exit(nearest(&s));
    close_search(&s);
    return status;
}

const cli_command cli_nearest = {
    "nearest",
    "DATA DIR [--out FILE.png]",
    "finds the nearest training picture of each drawn one",
    "Prints distance, drawn picture and training picture, the closest pair first. A model that draws its training\n"
    "pictures has distances near 0; one that has learned what they have in common is as far from them as they are\n"
    "from each other.",
    options,
    run,
    NULL};
