/* lab/source.c - which pictures a data set has and what they show: see lab/source.h.
 * Every form becomes a listing first: file names and (picture, class name) pairs. What is common to all then follows:
 * the pictures are looked for, the names become classes.
 *
 * Contents:  1 the listing   2 where pictures are   3 train.json   4 metadata.jsonl   5 metadata.csv
 *            6 folders of pictures   7 which of them it is */
#include "lab/source.h"

#include "io/file.h"

#include <csv.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. The listing ---------------------------------------------------------------------------------------------- */

typedef struct mark { /* picture `picture` shows a `name` */
    int picture;
    const char *name;
} mark;

typedef struct listing {
    const lab_dataset_config *config;
    const char *where; /* path of the list or folder, for errors */
    ddpm_arena text;   /* holds all strings */
    const char **file; /* relative to the pictures' folder */
    mark *mark;        /* in the order of the pictures */
    int files, file_room, marks, mark_room;
    int scalars, sets; /* pictures that came with `label`, one name, and with `labels`, any number */
} listing;

static void listing_free(listing *l)
{
    ddpm_arena_free(&l->text);
    free(l->file);
    free(l->mark);
}

/* Makes room for one element more, at least doubling, so that appending is linear in all. */
static ddpm_result grow(void **array, int *room, int count, size_t size)
{
    if (count < *room) return DDPM_OK;
    int larger = *room > INT_MAX / 2 ? INT_MAX : *room * 2;
    if (larger < 256) larger = 256;
    void *moved = count == INT_MAX ? NULL : realloc(*array, (size_t)larger * size);
    if (!moved) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for a list of %d pictures", larger);
    *array = moved;
    *room = larger;
    return DDPM_OK;
}

static ddpm_result add_file(listing *l, const char *file)
{
    void *array = (void *)l->file;
    ddpm_result result = grow(&array, &l->file_room, l->files, sizeof *l->file);
    l->file = array;
    if (result) return result;
    l->file[l->files] = ddpm_arena_string(&l->text, file);
    return l->file[l->files++] ? DDPM_OK : DDPM_ERR_MEMORY;
}

/* The picture added last shows a `name` of `length` bytes, blanks at its ends dropped. */
static ddpm_result add_mark(listing *l, const char *name, size_t length, const char *where)
{
    static const char blanks[] = " \t\r\n";
    while (length && strchr(blanks, name[0])) {
        name++;
        length--;
    }
    while (length && strchr(blanks, name[length - 1]))
        length--;
    if (!length)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: a label without a name\n      hint: every picture needs its class's name", where);
    void *array = l->mark;
    ddpm_result result = grow(&array, &l->mark_room, l->marks, sizeof *l->mark);
    l->mark = array;
    char *copy = result ? NULL : ddpm_arena_alloc(&l->text, length + 1);
    if (!copy) return DDPM_ERR_MEMORY;
    memcpy(copy, name, length);
    l->mark[l->marks++] = (mark){l->files - 1, copy};
    return DDPM_OK;
}

/* "red sphere, cyan cube": a name between each two commas; a blank text is the empty set. */
static ddpm_result add_marks(listing *l, const char *names, const char *where)
{
    if (!names[strspn(names, " \t\r\n")]) return DDPM_OK;
    for (;;) {
        size_t length = strcspn(names, ",");
        ddpm_result result = add_mark(l, names, length, where);
        if (result || !names[length]) return result;
        names += length + 1;
    }
}

static int is_number(const char *name)
{
    return name[strspn(name, "0123456789")] == 0;
}

/* The order in which names become classes: whole numbers by value, so that the labels 0, 1, ... keep their indices,
 * then the rest byte by byte, as Hugging Face and torchvision sort folders. */
static int compare_names(const char *a, const char *b)
{
    int numbers = is_number(a) - is_number(b);
    if (numbers) return -numbers;
    size_t lengths[] = {strlen(a), strlen(b)};
    if (is_number(a) && lengths[0] != lengths[1]) return lengths[0] < lengths[1] ? -1 : 1;
    return strcmp(a, b);
}

static int compare_name_pointers(const void *a, const void *b)
{
    return compare_names(*(const char *const *)a, *(const char *const *)b);
}

/* The listing's names, each once and in order, become ds->classes. */
static ddpm_result make_classes(const listing *l, lab_dataset *ds)
{
    const char **name = malloc(((size_t)l->marks + 1) * sizeof *name);
    if (!name) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d labels", l->where, l->marks);
    int count = 0;
    for (int i = 0; i < l->marks; i++)
        name[i] = l->mark[i].name;
    qsort(name, (size_t)l->marks, sizeof *name, compare_name_pointers);
    for (int i = 0; i < l->marks; i++)
        if (!count || strcmp(name[count - 1], name[i]) != 0) name[count++] = name[i];
    ddpm_result result = lab_classes_from_names(name, count, l->where, &ds->classes);
    free(name);
    return result;
}

/* The listing's marks become one label set a picture. */
static ddpm_result make_label_sets(const listing *l, lab_dataset *ds)
{
    int label[LAB_MAX_CLASSES], next = 0;
    for (int i = 0; i < l->files; i++) {
        int count = 0;
        for (; next < l->marks && l->mark[next].picture == i; next++) {
            int index = lab_class_index(&ds->classes, l->mark[next].name);
            for (int k = 0; k < count; k++)
                if (label[k] == index)
                    return ddpm_fail(DDPM_ERR_FORMAT,
                                     "%s: picture '%.200s' has the label '%.80s' twice\n"
                                     "      hint: labels say which classes a picture shows, they cannot count them",
                                     l->where, l->file[i], l->mark[next].name);
            label[count++] = index;
        }
        ddpm_result result = lab_label_sets_add(&ds->labels, label, count);
        if (result) return result;
    }
    return DDPM_OK;
}

static ddpm_result set_labels(const listing *l, lab_dataset *ds)
{
    if (!l->files)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: no pictures are listed\n      hint: each line names one", l->where);
    if (l->config->unconditional) return DDPM_OK;
    if (!l->marks)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: no picture has a label\n      hint: --unconditional trains without",
                         l->where);
    ds->kind = l->scalars ? LAB_ONE_CLASS : LAB_MULTI_LABEL;
    ddpm_result result = make_classes(l, ds);
    return result ? result : make_label_sets(l, ds);
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A picture listed twice, with two label sets, would be a silent error. */
static ddpm_result check_all_different(const listing *l)
{
    const char **sorted = malloc((size_t)l->files * sizeof *sorted);
    if (!sorted) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d file names", l->where, l->files);
    memcpy(sorted, l->file, (size_t)l->files * sizeof *sorted);
    qsort(sorted, (size_t)l->files, sizeof *sorted, compare_text);
    ddpm_result result = DDPM_OK;
    for (int i = 1; i < l->files && !result; i++)
        if (!strcmp(sorted[i - 1], sorted[i]))
            result = ddpm_fail(DDPM_ERR_FORMAT,
                               "%s: picture '%.200s' is listed twice\n"
                               "      hint: keep the entry with the right labels",
                               l->where, sorted[i]);
    free(sorted);
    return result;
}

/* ---- 2. Where pictures are --------------------------------------------------------------------------------------- */

/* Counts the files that `directory` holds into *found; *missing is the index of the first that it does not. */
static ddpm_result count_pictures(const char *directory, const listing *l, int *found, int *missing)
{
    *found = 0;
    *missing = 0;
    for (int i = 0; i < l->files && io_is_directory(directory); i++) {
        char *path = io_join(directory, l->file[i]);
        if (!path) return DDPM_ERR_MEMORY;
        *missing = *found == i ? i : *missing;
        *found += io_is_file(path);
        free(path);
    }
    return DDPM_OK;
}

/* Puts directory and file names together: ds->path. */
static ddpm_result set_paths(const listing *l, const char *directory, lab_dataset *ds)
{
    ds->path = calloc((size_t)l->files, sizeof *ds->path);
    if (!ds->path) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d file names", directory, l->files);
    ds->count = l->files;
    for (int i = 0; i < l->files; i++) {
        ds->path[i] = io_join(directory, l->file[i]);
        if (!ds->path[i]) return DDPM_ERR_MEMORY;
    }
    return DDPM_OK;
}

/* Takes the first place that holds every picture. If none does, the one with the most of them is named in the error. */
static ddpm_result find_pictures(const listing *l, lab_dataset *ds)
{
    static const char *const beside[] = {"", "iclevr", "images", "../iclevr"};
    const lab_dataset_config *config = l->config;
    int places = config->image_dir ? 1 : (int)(sizeof beside / sizeof *beside), most = -1, first_missing = 0;
    char tried[600] = "", best[150] = "";
    size_t used = 0;
    for (int i = 0; i < places; i++) {
        char *directory = config->image_dir ? io_join(config->image_dir, "") : io_join(config->data, beside[i]);
        int found = 0, missing = 0;
        ddpm_result result = directory ? count_pictures(directory, l, &found, &missing) : DDPM_ERR_MEMORY;
        if (!result && found == l->files) result = set_paths(l, directory, ds);
        if (!result && found > most) {
            most = found;
            first_missing = missing;
            snprintf(best, sizeof best, "%s", directory);
        }
        if (directory)
            used += (size_t)snprintf(tried + used, sizeof tried - used, "%s%.140s", i ? ", " : "", directory);
        free(directory);
        if (result || found == l->files) return result;
    }
    return ddpm_fail(DDPM_ERR_FILE,
                     "%s: %d of %d pictures are missing, the first is '%.200s' (in %s)\n"
                     "      hint: tried %s; --image-dir names another folder",
                     l->where, l->files - most, l->files, l->file[first_missing], best, tried);
}

/* ---- 3. train.json ----------------------------------------------------------------------------------------------- */

/* Reads {file name: [class name, ...]}: the class file says what a name means. */
static ddpm_result read_entries(const cJSON *json, listing *l, lab_dataset *ds)
{
    const cJSON *item;
    cJSON_ArrayForEach (item, json) {
        char where[512];
        snprintf(where, sizeof where, "%.250s: entry %d (counted from 0), '%.200s'", l->where, l->files, item->string);
        ddpm_result result = DDPM_OK;
        if (!l->config->unconditional) result = lab_label_sets_add_json(&ds->labels, &ds->classes, item, 1, where);
        if (!result) result = add_file(l, item->string);
        if (result) return result;
    }
    return DDPM_OK;
}

static ddpm_result read_train_json(listing *l, lab_dataset *ds)
{
    cJSON *json = NULL;
    ddpm_result result = DDPM_OK;
    if (!l->config->unconditional) {
        ds->kind = LAB_MULTI_LABEL;
        result = lab_classes_find(l->config->data, &ds->classes);
    }
    if (!result) result = lab_json_read(l->where, &json);
    if (!result && (!cJSON_IsObject(json) || !json->child))
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "%s: %s\n      hint: the lab's form is "
                           "{\"CLEVR_train_000000_0.png\": [\"gray cube\"], ...}",
                           l->where, cJSON_IsObject(json) ? "the data set is empty" : "not a JSON object");
    if (!result) result = read_entries(json, l, ds);
    cJSON_Delete(json);
    return result;
}

/* ---- 4. metadata.jsonl ------------------------------------------------------------------------------------------- */

static ddpm_result no_label(const char *where)
{
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: neither label nor labels\n"
                     "      hint: label is a class's name, labels a list of names; --unconditional trains without",
                     where);
}

/* A picture has `label`, one name, or `labels`, any number of them: the whole list must have the same. */
static ddpm_result count_form(listing *l, int scalar, const char *where)
{
    l->scalars += scalar;
    l->sets += !scalar;
    if (!l->scalars || !l->sets) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: %s here, and %s before\n"
                     "      hint: a list has one label a picture (label: \"cat\") or sets (labels: [\"cat\"])",
                     where, scalar ? "one label" : "a set of labels", scalar ? "sets of labels" : "one label");
}

/* A name may be a string or, as class indices are, a whole number. */
static ddpm_result add_json_name(listing *l, const cJSON *value, const char *where)
{
    char digits[32];
    int64_t number;
    if (cJSON_IsString(value)) return add_mark(l, value->valuestring, strlen(value->valuestring), where);
    if (!io_json_integer(value, 0, INT_MAX, &number))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: a label that is neither a name nor a whole number: %s\n"
                         "      hint: \"label\": \"cat\", or \"labels\": [\"cat\", \"dog\"]",
                         where, io_json_text(value, digits, sizeof digits));
    snprintf(digits, sizeof digits, "%d", (int)number);
    return add_mark(l, digits, strlen(digits), where);
}

static ddpm_result add_json_labels(listing *l, const cJSON *object, const char *where)
{
    const cJSON *one = cJSON_GetObjectItemCaseSensitive(object, "label"), *item;
    const cJSON *several = cJSON_GetObjectItemCaseSensitive(object, "labels");
    if (!one && !several) return no_label(where);
    const cJSON *value = one ? one : several;
    ddpm_result result = count_form(l, one && !cJSON_IsArray(one), where);
    if (result) return result;
    if (one && !cJSON_IsArray(one)) return add_json_name(l, one, where);
    if (cJSON_IsString(value)) return add_marks(l, value->valuestring, where);
    if (!cJSON_IsArray(value)) return add_json_name(l, value, where);
    cJSON_ArrayForEach (item, value)
        if ((result = add_json_name(l, item, where))) return result;
    return DDPM_OK;
}

static ddpm_result add_json_line(listing *l, const char *line, size_t length, const char *where)
{
    cJSON *object = io_json_parse(line, length, where);
    if (!object) return DDPM_ERR_FORMAT;
    const cJSON *file = cJSON_GetObjectItemCaseSensitive(object, "file_name");
    ddpm_result result = DDPM_OK;
    if (!cJSON_IsString(file))
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "%s: no file_name\n"
                           "      hint: a line is {\"file_name\": \"0001.png\", \"label\": \"cat\"}",
                           where);
    if (!result) result = add_file(l, file->valuestring);
    if (!result && !l->config->unconditional) result = add_json_labels(l, object, where);
    cJSON_Delete(object);
    return result;
}

static ddpm_result read_json_lines(listing *l, lab_dataset *ds)
{
    unsigned char *text;
    size_t size;
    ddpm_result result = io_read_file(l->where, &text, &size);
    if (result) return result;
    char *line = (char *)text, *end = line + size;
    for (int number = 1; !result && line < end; number++) {
        char where[512];
        char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) stop = end;
        *stop = 0;
        snprintf(where, sizeof where, "%.460s: line %d", l->where, number);
        if (line[strspn(line, " \t\r")]) result = add_json_line(l, line, (size_t)(stop - line), where);
        line = stop + 1;
    }
    free(text);
    return result ? result : set_labels(l, ds);
}

/* ---- 5. metadata.csv --------------------------------------------------------------------------------------------- */

enum { MAX_COLUMNS = 256 };

typedef struct csv_reader { /* one row at a time, for libcsv's callbacks */
    const char *name;
    lab_csv_row row;
    void *user;
    int line;                  /* of the row in progress, counted in rows */
    size_t start[MAX_COLUMNS]; /* of its fields in `text` */
    int fields;
    char *text;
    size_t used, room;
    ddpm_result result;
} csv_reader;

static void on_field(void *field, size_t length, void *user)
{
    csv_reader *r = user;
    if (r->result) return;
    if (r->fields == MAX_COLUMNS || memchr(field, 0, length)) {
        r->result = ddpm_fail(DDPM_ERR_FORMAT, "%s: row %d %s\n      hint: is it a text file with commas?", r->name,
                              r->line, r->fields == MAX_COLUMNS ? "has more than 256 fields" : "holds a 0 byte");
        return;
    }
    if (length >= r->room - r->used) {
        size_t room = 2 * r->room + length + 1;
        char *moved = realloc(r->text, room);
        if (!moved) {
            r->result = ddpm_fail(DDPM_ERR_MEMORY, "%s: row %d: no memory for %zu bytes", r->name, r->line, room);
            return;
        }
        r->text = moved;
        r->room = room;
    }
    r->start[r->fields++] = r->used;
    memcpy(r->text + r->used, field, length);
    r->used += length;
    r->text[r->used++] = 0;
}

static void on_row(int terminator, void *user)
{
    csv_reader *r = user;
    char *field[MAX_COLUMNS];
    (void)terminator;
    for (int i = 0; i < r->fields; i++)
        field[i] = r->text + r->start[i];
    if (!r->result) r->result = r->row(r->user, r->line, field, r->fields);
    r->line++;
    r->fields = 0;
    r->used = 0;
}

static int no_space(unsigned char c) /* RFC 4180: spaces are part of a field */
{
    (void)c;
    return 0;
}

ddpm_result lab_csv_parse(const char *text, size_t size, const char *name, lab_csv_row row, void *user)
{
    csv_reader r = {.name = name, .row = row, .user = user, .line = 1};
    struct csv_parser parser;
    if (csv_init(&parser, CSV_STRICT | CSV_STRICT_FINI))
        return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to read it", name);
    csv_set_space_func(&parser, no_space);
    if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) { /* the byte order mark that spreadsheets write */
        text += 3;
        size -= 3;
    }
    int complete = csv_parse(&parser, text, size, on_field, on_row, &r) == size;
    if (complete) complete = csv_fini(&parser, on_field, on_row, &r) == 0;
    if (!complete && !r.result)
        r.result = csv_error(&parser) == CSV_EPARSE
                       ? ddpm_fail(DDPM_ERR_FORMAT,
                                   "%s: row %d has a quote in the wrong place\n"
                                   "      hint: a field with commas or quotes stands in quotes, and quotes in it are "
                                   "doubled: \"a \"\"b\"\", c\"",
                                   name, r.line)
                       : ddpm_fail(DDPM_ERR_MEMORY, "%s: row %d: no memory for it", name, r.line);
    csv_free(&parser);
    free(r.text);
    return r.result;
}

typedef struct csv_columns {
    listing *listing;
    int file, label, labels, count; /* which column; -1: none */
} csv_columns;

static ddpm_result read_header(csv_columns *c, char **field, int fields)
{
    c->file = c->label = c->labels = -1;
    c->count = fields;
    for (int i = 0; i < fields; i++) {
        if (!strcmp(field[i], "file_name")) c->file = i;
        if (!strcmp(field[i], "label")) c->label = i;
        if (!strcmp(field[i], "labels")) c->labels = i;
    }
    if (c->file < 0)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: no column file_name\n      hint: the first line names the columns: file_name,label",
                         c->listing->where);
    if (c->listing->config->unconditional) return DDPM_OK;
    return c->label < 0 && c->labels < 0 ? no_label(c->listing->where) : DDPM_OK;
}

static ddpm_result add_csv_row(void *user, int line, char **field, int fields)
{
    csv_columns *c = user;
    listing *l = c->listing;
    char where[512];
    if (line == 1) return read_header(c, field, fields);
    snprintf(where, sizeof where, "%.460s: row %d", l->where, line);
    if (fields != c->count)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s has %d fields, the first line %d\n      hint: a comma within a field needs "
                         "quotes around the field",
                         where, fields, c->count);
    ddpm_result result = add_file(l, field[c->file]);
    if (result || l->config->unconditional) return result;
    result = count_form(l, c->label >= 0, where);
    if (result) return result;
    return c->label >= 0 ? add_mark(l, field[c->label], strlen(field[c->label]), where)
                         : add_marks(l, field[c->labels], where);
}

static ddpm_result read_csv(listing *l, lab_dataset *ds)
{
    unsigned char *text;
    size_t size;
    ddpm_result result = io_read_file(l->where, &text, &size);
    if (result) return result;
    csv_columns columns = {.listing = l};
    result = lab_csv_parse((const char *)text, size, l->where, add_csv_row, &columns);
    free(text);
    return result ? result : set_labels(l, ds);
}

/* ---- 6. Folders of pictures -------------------------------------------------------------------------------------- */

/* What a picture's name ends in. Kinds that cannot be read are listed too, so that the survey names them instead of
 * training going on without them unsaid. */
static int is_picture_name(const char *name)
{
    static const char *const ending[] = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"};
    const char *dot = strrchr(name, '.');
    if (!dot || dot == name) return 0;
    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++) {
        size_t k = 0;
        while (dot[k] && (dot[k] == ending[i][k] || (dot[k] >= 'A' && dot[k] <= 'Z' && dot[k] + 32 == ending[i][k])))
            k++;
        if (!dot[k] && !ending[i][k]) return 1;
    }
    return 0;
}

enum { DEEPEST = 16 };

/* Adds the pictures in DATA/below and in its folders; names that begin with a dot are left alone. */
static ddpm_result walk(listing *l, const char *below, int depth)
{
    char *path = io_join(l->config->data, below);
    DIR *directory = path ? opendir(path) : NULL;
    ddpm_result result = DDPM_OK;
    if (!path) return DDPM_ERR_MEMORY;
    if (!directory)
        result = ddpm_fail(DDPM_ERR_FILE, "%s: this folder cannot be read\n      hint: look at its permissions", path);
    else if (depth > DEEPEST)
        result = ddpm_fail(DDPM_ERR_FILE,
                           "%s: folders within folders, %d deep\n      hint: does a link lead back to where it lies?",
                           path, depth);
    for (struct dirent *entry; !result && (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        char *name = io_join(below, entry->d_name);
        char *full = name ? io_join(l->config->data, name) : NULL;
        if (!full)
            result = DDPM_ERR_MEMORY;
        else if (io_is_directory(full))
            result = walk(l, name, depth + 1);
        else if (is_picture_name(entry->d_name))
            result = add_file(l, name);
        free(full);
        free(name);
    }
    if (directory) closedir(directory);
    free(path);
    return result;
}

/* How far all file names lie in one common folder: "train/cat/1.png", "train/dog/1.png": 6. */
static size_t common_folder(const listing *l)
{
    for (size_t length = 0;;) {
        const char *slash = strchr(l->file[0] + length, '/');
        if (!slash) return length;
        size_t longer = (size_t)(slash - l->file[0]) + 1;
        for (int i = 1; i < l->files; i++)
            if (strncmp(l->file[i], l->file[0], longer) != 0) return length;
        length = longer;
    }
}

/* Folders named after parts of a data set are no classes. */
static ddpm_result check_no_split(const listing *l, const lab_classes *classes)
{
    static const char *const split[] = {"train", "training", "test", "testing", "val", "valid", "validation", "eval"};
    int train = 0;
    for (int c = 0; c < classes->count; c++) {
        int found = 0;
        for (size_t i = 0; i < sizeof split / sizeof *split; i++)
            found |= !strcmp(classes->name[c], split[i]);
        if (!found) return DDPM_OK;
        if (!strncmp(classes->name[c], "train", 5)) train = c;
    }
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: the folders %s and %s are parts of a data set, not classes\n"
                     "      hint: name the one to train on: %s/%s",
                     l->where, classes->name[0], classes->name[1], l->where, classes->name[train]);
}

/* Pictures in several folders: each folder's name is the class of all that lies in it. */
static ddpm_result name_by_folder(listing *l, size_t common, lab_dataset *ds)
{
    int files = l->files;
    for (int i = 0; i < files; i++) {
        ddpm_result result;
        l->files = i + 1; /* add_mark is about the last picture */
        result = add_mark(l, l->file[i] + common, strcspn(l->file[i] + common, "/"), l->where);
        l->files = files;
        if (result) return result;
    }
    l->scalars = files;
    ddpm_result result = set_labels(l, ds);
    return result ? result : check_no_split(l, &ds->classes);
}

static ddpm_result nothing_here(const listing *l)
{
    return ddpm_fail(DDPM_ERR_FILE,
                     "%s: no data set here: neither train.json, metadata.jsonl nor metadata.csv, and no pictures\n"
                     "      hint: pictures are .png and .jpg, in one folder or one folder a class; "
                     "'ddpm render --out DIR' makes a data set",
                     l->where);
}

static ddpm_result read_folders(listing *l, lab_dataset *ds, char *from, size_t from_size)
{
    if (l->config->image_dir)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: --image-dir %s says where the pictures of a list are, and there is no list\n"
                         "      hint: a list is train.json, metadata.jsonl or metadata.csv",
                         l->where, l->config->image_dir);
    ddpm_result result = walk(l, "", 0);
    if (result) return result;
    if (!l->files) return nothing_here(l);
    qsort(l->file, (size_t)l->files, sizeof *l->file, compare_text);
    size_t common = common_folder(l);
    int inside = 0;
    const char *outside = NULL;
    for (int i = 0; i < l->files; i++) {
        int deeper = strchr(l->file[i] + common, '/') != NULL;
        inside += deeper;
        if (!deeper) outside = l->file[i];
    }
    snprintf(from, from_size, "%s", inside ? "its folders" : "a folder of pictures");
    if (l->config->unconditional || !inside) return DDPM_OK;
    if (outside)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: %d pictures lie in folders, which would be their classes, and %d do not, as %.200s\n"
                         "      hint: put every picture into the folder of its class; or --unconditional takes all",
                         l->where, inside, l->files - inside, outside);
    return name_by_folder(l, common, ds);
}

/* ---- 7. Which of them it is -------------------------------------------------------------------------------------- */

/* Reads a list by its name if it is there: *found. */
static ddpm_result try_list(listing *l, const char *name, ddpm_result (*read)(listing *, lab_dataset *),
                            lab_dataset *ds, int *found)
{
    char *path = io_join(l->config->data, name);
    if (!path) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    *found = io_is_file(path);
    if (*found) {
        l->where = path;
        result = read(l, ds);
        if (!result) result = check_all_different(l);
        if (!result) result = find_pictures(l, ds);
        l->where = l->config->data;
    }
    free(path);
    return result;
}

ddpm_result lab_source_read(const lab_dataset_config *config, lab_dataset *ds, char *from, size_t from_size)
{
    static const struct {
        const char *name;
        ddpm_result (*read)(listing *, lab_dataset *);
    } list[] = {{"train.json", read_train_json}, {"metadata.jsonl", read_json_lines}, {"metadata.csv", read_csv}};
    listing l = {.config = config, .where = config->data};
    ds->kind = LAB_UNLABELLED;
    if (io_is_file(config->data))
        return ddpm_fail(DDPM_ERR_FILE,
                         "%s: is a file, not a folder\n"
                         "      hint: a data set is a folder of pictures, with or without a list in it",
                         config->data);
    if (!io_is_directory(config->data))
        return ddpm_fail(DDPM_ERR_FILE,
                         "%s: no such folder\n"
                         "      hint: a data set is a folder of pictures; 'ddpm render --out DIR' makes one",
                         config->data);
    int found = 0;
    ddpm_result result = DDPM_OK;
    for (size_t i = 0; !result && !found && i < sizeof list / sizeof *list; i++) {
        result = try_list(&l, list[i].name, list[i].read, ds, &found);
        if (found) snprintf(from, from_size, "%s", list[i].name);
    }
    ds->listed = found;
    if (!result && !found) result = read_folders(&l, ds, from, from_size);
    if (!result && !found) result = set_paths(&l, config->data, ds);
    listing_free(&l);
    return result;
}
