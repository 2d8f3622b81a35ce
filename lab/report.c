/* lab/report.c - gathers what a report shows into one JSON object, and puts that into the page (see lab/report.h).
 * A cJSON call without memory returns NULL, and those that follow on NULL fail too: it is looked at once a function.
 *
 * Contents: 1 files as text   2 curves   3 samples   4 tests   5 runs   6 the page */
#include "lab/report.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"

extern const unsigned char lab_report_page[]; /* lab/report.html, ended by a 0 */

enum { MAX_POINTS = 600, MAX_COLUMNS = 64, MAX_SAMPLES = 24, MAX_STRIPS = 12, MAX_SHOWN = 8, FRAMES = 11 };

static ddpm_result no_memory(const char *path)
{
    return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for the report", path);
}

/* ---- 1. Files as text --------------------------------------------------------------------------------------- */

/* "data:image/png;base64,..." (RFC 4648) in new memory. */
static char *data_uri(const unsigned char *data, size_t size)
{
    static const char head[] = "data:image/png;base64,";
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *text = malloc(sizeof head + (size + 2) / 3 * 4);
    if (text == NULL) return NULL;
    memcpy(text, head, sizeof head - 1);
    char *to = text + sizeof head - 1;
    for (size_t i = 0; i < size; i += 3) {
        unsigned left = size - i < 3 ? (unsigned)(size - i) : 3;
        unsigned long bits = (unsigned long)data[i] << 16;
        if (left > 1) bits |= (unsigned long)data[i + 1] << 8;
        if (left > 2) bits |= data[i + 2];
        for (unsigned k = 0; k < 4; k++)
            *to++ = k <= left ? digit[bits >> (18 - 6 * k) & 63] : '=';
    }
    *to = '\0';
    return text;
}

/* Adds the PNG at directory/name to `to` under `key`. *found: 0, and nothing is added, if there is no such file. */
static ddpm_result add_picture(cJSON *to, const char *key, const char *directory, const char *name, int *found)
{
    char *path = io_join(directory, name), *uri = NULL;
    if (path == NULL) return DDPM_ERR_MEMORY;
    unsigned char *data = NULL;
    size_t size = 0;
    ddpm_result result = DDPM_OK;
    *found = io_is_file(path);
    if (*found) result = io_read_file(path, &data, &size);
    if (*found && result == DDPM_OK &&
        ((uri = data_uri(data, size)) == NULL || cJSON_AddStringToObject(to, key, uri) == NULL))
        result = no_memory(path);
    free(data);
    free(uri);
    free(path);
    return result;
}

/* directory/name parsed, in *out; NULL if there is no such file. */
static ddpm_result read_json(const char *directory, const char *name, cJSON **out)
{
    *out = NULL;
    char *path = io_join(directory, name);
    if (path == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = io_is_file(path) ? io_json_read(path, out) : DDPM_OK;
    free(path);
    return result;
}

/* ---- 2. Curves: metrics.csv, the mean of each of at most MAX_POINTS groups of rows ------------------------------ */

typedef struct column {
    char *name;
    double sum[MAX_POINTS];
    int count[MAX_POINTS];
} column;

/* Cuts the next field off a row: up to a comma or the end of the line. *row: what follows, NULL at the last one. */
static char *next_field(char **row)
{
    char *field = *row, *end = field + strcspn(field, ",\r\n");
    *row = *end == ',' ? end + 1 : NULL;
    *end = '\0';
    return field;
}

/* Numbers of one row into the group's sums; empty fields and what is no finite number count as missing. */
static void take_row(char *row, column *columns, int count, int group)
{
    for (int i = 0; i < count && row != NULL; i++) {
        char *field = next_field(&row), *end;
        double value = strtod(field, &end);
        if (end == field || *end != '\0' || !isfinite(value)) continue;
        columns[i].sum[group] += value;
        columns[i].count[group]++;
    }
}

/* The columns as arrays with null for what is missing; those without a number are left out. */
static int add_columns(cJSON *metrics, const column *columns, int count, int groups)
{
    int made = metrics != NULL;
    for (int i = 0; made && i < count; i++) {
        int numbers = 0;
        for (int k = 0; k < groups; k++)
            numbers += columns[i].count[k] > 0;
        if (numbers == 0) continue;
        cJSON *values = cJSON_AddArrayToObject(metrics, columns[i].name);
        made = values != NULL;
        for (int k = 0; made && k < groups; k++) {
            int n = columns[i].count[k];
            made = cJSON_AddItemToArray(values, n > 0 ? cJSON_CreateNumber(columns[i].sum[k] / n) : cJSON_CreateNull());
        }
    }
    return made;
}

static ddpm_result add_table(cJSON *run, char *text, const char *path)
{
    int count = 0, rows = 0, row = 0;
    for (const char *p = text; (p = strchr(p, '\n')) != NULL; p++)
        rows++;
    rows--; /* the header; a row that is being written has no end yet, and waits for the next report */
    if (rows < 1) return DDPM_OK;
    column *columns = calloc(MAX_COLUMNS, sizeof *columns);
    if (columns == NULL) return no_memory(path);
    char *line = text, *next = strchr(text, '\n') + 1;
    for (char *rest = line; count < MAX_COLUMNS && rest != NULL;)
        columns[count++].name = next_field(&rest);
    int groups = rows < MAX_POINTS ? rows : MAX_POINTS;
    for (line = next; row < rows; line = next, row++) {
        next = strchr(line, '\n') + 1;
        take_row(line, columns, count, (int)((long long)row * groups / rows));
    }
    ddpm_result result = DDPM_OK;
    if (strcmp(columns[0].name, "step") != 0)
        result = ddpm_fail(DDPM_ERR_FORMAT, "%s: its first column is '%.20s', not 'step'", path, columns[0].name);
    else if (!add_columns(cJSON_AddObjectToObject(run, "metrics"), columns, count, groups))
        result = no_memory(path);
    free(columns);
    return result;
}

static ddpm_result add_metrics(cJSON *run, const char *directory)
{
    unsigned char *text = NULL;
    size_t size = 0;
    char *path = io_join(directory, "metrics.csv");
    if (path == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = io_is_file(path) ? io_read_file(path, &text, &size) : DDPM_OK;
    if (result == DDPM_OK && text != NULL) result = add_table(run, (char *)text, path);
    free(text);
    free(path);
    return result;
}

/* ---- 3. Names in a directory ---------------------------------------------------------------------------------- */

typedef struct entry {
    char name[128];
    long long number; /* the last one in the name; -1 if there is none */
} entry;

static long long last_number(const char *name)
{
    long long number = -1;
    for (const char *p = name; *p != '\0';) {
        if (*p < '0' || *p > '9') {
            p++;
            continue;
        }
        char *end;
        number = strtoll(p, &end, 10);
        p = end;
    }
    return number;
}

static int by_number(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->number != y->number) return x->number < y->number ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The names in a directory that end in `ending`, by number, then by name; none if it does not exist. free(*out). */
static ddpm_result list(const char *directory, const char *ending, entry **out, int *count)
{
    int room = 0;
    *out = NULL;
    *count = 0;
    DIR *open = opendir(directory);
    if (open == NULL) return DDPM_OK;
    ddpm_result result = DDPM_OK;
    for (struct dirent *d; result == DDPM_OK && (d = readdir(open)) != NULL;) {
        size_t length = strlen(d->d_name), tail = strlen(ending);
        if (d->d_name[0] == '.' || length >= sizeof(*out)->name || length < tail ||
            strcmp(d->d_name + length - tail, ending) != 0)
            continue;
        if (*count == room) {
            room = room > 0 ? 2 * room : 64;
            entry *more = realloc(*out, (size_t)room * sizeof *more);
            if (more == NULL) {
                result = no_memory(directory);
                break;
            }
            *out = more;
        }
        entry *e = &(*out)[(*count)++];
        memcpy(e->name, d->d_name, length + 1);
        e->number = last_number(e->name);
    }
    closedir(open);
    if (*count > 1) qsort(*out, (size_t)*count, sizeof **out, by_number);
    return result;
}

/* samples/ of a run; of many, MAX_SAMPLES evenly spaced with the first and the last. */
static ddpm_result add_samples(cJSON *run, const char *directory)
{
    char *folder = io_join(directory, "samples");
    if (folder == NULL) return DDPM_ERR_MEMORY;
    entry *found;
    int count, there;
    ddpm_result result = list(folder, ".png", &found, &count);
    int shown = count < MAX_SAMPLES ? count : MAX_SAMPLES;
    cJSON *samples = count > 0 ? cJSON_AddArrayToObject(run, "samples") : NULL;
    for (int i = 0; result == DDPM_OK && i < shown; i++) {
        const entry *e = &found[shown > 1 ? (long long)i * (count - 1) / (shown - 1) : 0];
        cJSON *sample = cJSON_CreateObject();
        char label[160];
        snprintf(label, sizeof label, "%.*s", (int)(strlen(e->name) - strlen(".png")), e->name);
        if (!cJSON_AddItemToArray(samples, sample) || cJSON_AddStringToObject(sample, "label", label) == NULL)
            result = no_memory(folder);
        else
            result = add_picture(sample, "image", folder, e->name, &there);
    }
    free(found);
    free(folder);
    return result;
}

/* ---- 4. Tests: results.json with the pictures beside it ------------------------------------------------------- */

static const char *text_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return text != NULL ? text : "";
}

/* One strip with its labels, if it is there. */
static ddpm_result add_strip(cJSON *strips, const char *directory, const char *name, const char *labels)
{
    int found = 0;
    cJSON *strip = cJSON_CreateObject();
    ddpm_result result = cJSON_AddStringToObject(strip, "labels", labels) != NULL ? DDPM_OK : no_memory(directory);
    if (result == DDPM_OK) result = add_picture(strip, "image", directory, name, &found);
    if (result == DDPM_OK && found && !cJSON_AddItemToArray(strips, strip)) result = no_memory(directory);
    if (result != DDPM_OK || !found) cJSON_Delete(strip);
    return result;
}

static ddpm_result add_strips(cJSON *test, const char *directory, const char *type, const cJSON *results)
{
    cJSON *strips = cJSON_AddArrayToObject(test, "strips");
    const cJSON *sets = cJSON_GetObjectItemCaseSensitive(results, "sets"), *one;
    ddpm_result result = add_strip(strips, directory, "required_strip.png", "the lab's required set");
    int i = 0;
    cJSON_ArrayForEach (one, sets) {
        char name[160];
        snprintf(name, sizeof name, "strips/%.100s_%d.png", type, i++);
        if (result == DDPM_OK && cJSON_GetArraySize(strips) < MAX_STRIPS)
            result = add_strip(strips, directory, name, text_of(one, "labels"));
    }
    return result;
}

/* Beyond MAX_SHOWN tests of a run the figures alone: a sweep has many.
 * results.json holds one object for each type that was tested: {"test": {...}, "new_test": {...}}. */
static ddpm_result add_test(cJSON *tests, const char *directory, const char *name, const cJSON *results)
{
    const char *type = results->string;
    cJSON *test = cJSON_CreateObject(), *copy = cJSON_Duplicate(results, 1);
    char label[320], grid[160];
    int found;
    snprintf(label, sizeof label, "%.128s, %.128s", name, type);
    snprintf(grid, sizeof grid, "%.100s_grid.png", type);
    if (!cJSON_AddItemToObject(test, "results", copy)) cJSON_Delete(copy);
    if (!cJSON_AddItemToArray(tests, test) || copy == NULL || cJSON_AddStringToObject(test, "name", label) == NULL ||
        cJSON_AddNumberToObject(test, "frames", FRAMES) == NULL)
        return no_memory(directory);
    if (cJSON_GetArraySize(tests) > MAX_SHOWN) return DDPM_OK;
    ddpm_result result = add_picture(test, "grid", directory, grid, &found);
    return result == DDPM_OK ? add_strips(test, directory, type, results) : result;
}

static ddpm_result add_results(cJSON *tests, const char *directory, const char *name)
{
    cJSON *results;
    const cJSON *one;
    ddpm_result result = read_json(directory, "results.json", &results);
    cJSON_ArrayForEach (one, results) {
        if (result == DDPM_OK && cJSON_IsObject(one) && one->string != NULL)
            result = add_test(tests, directory, name, one);
    }
    cJSON_Delete(results);
    return result;
}

/* The test in `directory` itself, and those one level below. */
static ddpm_result add_tests(cJSON *run, const char *directory, const char *name)
{
    cJSON *tests = cJSON_AddArrayToObject(run, "tests");
    entry *found = NULL;
    int count = 0;
    ddpm_result result = tests != NULL ? add_results(tests, directory, name) : no_memory(directory);
    if (result == DDPM_OK) result = list(directory, "", &found, &count);
    for (int i = 0; result == DDPM_OK && i < count; i++) {
        char *below = io_join(directory, found[i].name);
        result = below != NULL ? add_results(tests, below, found[i].name) : DDPM_ERR_MEMORY;
        free(below);
    }
    free(found);
    return result;
}

/* ---- 5. Runs -------------------------------------------------------------------------------------------------- */

/* The last part of a path, at most 128 bytes of it. */
static void last_part(const char *path, char out[129])
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    snprintf(out, 129, "%.*s", (int)(end - start < 128 ? end - start : 128), path + start);
}

static ddpm_result add_run(cJSON *runs, const char *directory)
{
    char name[129];
    last_part(directory, name);
    if (!io_is_directory(directory))
        return ddpm_fail(DDPM_ERR_FILE,
                         "%s is not a directory\n      hint: a run of ddpm train, or what ddpm test wrote", directory);
    cJSON *run = cJSON_CreateObject(), *settings;
    if (!cJSON_AddItemToArray(runs, run) || cJSON_AddStringToObject(run, "name", name) == NULL)
        return no_memory(directory);
    ddpm_result result = read_json(directory, "args.json", &settings);
    if (result == DDPM_OK && settings != NULL && !cJSON_AddItemToObject(run, "settings", settings))
        result = no_memory(directory);
    if (result == DDPM_OK) result = add_metrics(run, directory);
    if (result == DDPM_OK) result = add_samples(run, directory);
    if (result == DDPM_OK) result = add_tests(run, directory, name);
    if (result != DDPM_OK) return result;
    int empty = !cJSON_HasObjectItem(run, "metrics") && !cJSON_HasObjectItem(run, "samples") &&
                cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(run, "tests")) == 0;
    return empty ? ddpm_fail(DDPM_ERR_ARGUMENT,
                             "%s holds neither metrics.csv nor samples/ nor a results.json: nothing to report\n"
                             "      hint: a run of ddpm train, or what ddpm test wrote",
                             directory)
                 : DDPM_OK;
}

/* ---- 6. The page ---------------------------------------------------------------------------------------------- */

/* The page with `json` in the place of @DATA@. Inside a <script>, "</" would end it: JSON may write it as "<\/". */
static ddpm_result write_page(const char *path, const char *json)
{
    static const char place[] = "@DATA@";
    const char *page = (const char *)lab_report_page, *at = strstr(page, place);
    io_writer writer;
    ddpm_result result = io_writer_open(&writer, path);
    if (result == DDPM_OK) result = io_writer_put(&writer, page, (size_t)(at - page));
    for (const char *cut; result == DDPM_OK && (cut = strstr(json, "</")) != NULL; json = cut + 2) {
        result = io_writer_put(&writer, json, (size_t)(cut - json));
        if (result == DDPM_OK) result = io_writer_put(&writer, "<\\/", 3);
    }
    if (result == DDPM_OK) result = io_writer_put(&writer, json, strlen(json));
    at += sizeof place - 1;
    if (result == DDPM_OK) result = io_writer_put(&writer, at, strlen(at));
    return result == DDPM_OK ? io_writer_commit(&writer) : result;
}

ddpm_result lab_report_write(const lab_report_config *config, const char *path)
{
    cJSON *data = cJSON_CreateObject(), *runs = cJSON_AddArrayToObject(data, "runs");
    ddpm_result result = DDPM_OK;
    if (runs == NULL || cJSON_AddStringToObject(data, "title", config->title) == NULL ||
        cJSON_AddStringToObject(data, "made", config->made) == NULL ||
        cJSON_AddStringToObject(data, "version", config->version) == NULL)
        result = no_memory(path);
    for (int i = 0; result == DDPM_OK && i < config->directories; i++)
        result = add_run(runs, config->directory[i]);
    char *json = result == DDPM_OK ? cJSON_PrintUnformatted(data) : NULL;
    if (result == DDPM_OK) result = json != NULL ? write_page(path, json) : no_memory(path);
    cJSON_free(json);
    cJSON_Delete(data);
    return result;
}
