/* lab/labels.c - class names and label sets: see lab/labels.h.
 * Every label that comes in, from a file or the command line, passes add_label(): it refuses unknown and double ones.
 *
 * Contents:  1 text, nearest names   2 JSON files   3 classes   4 label sets   5 names back */
#include "lab/labels.h"

#include "io/file.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char blanks[] = " \t\r\n";

/* ---- 1. Text, nearest names -------------------------------------------------------------------------------------- */

static int lower(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : (unsigned char)c;
}

/* strcmp without regard to ASCII case, in every locale. */
static int compare_names(const char *a, const char *b)
{
    while (*a && lower(*a) == lower(*b)) {
        a++;
        b++;
    }
    return lower(*a) - lower(*b);
}

/* Levenshtein's distance: d(i,j) = min(d(i-1,j) + 1, d(i,j-1) + 1, d(i-1,j-1) + [a_i != b_j]), d(i,0) = i, d(0,j) = j.
 * One row is kept: row[j] = d(i,j), `diagonal` = d(i-1,j-1). */
static int edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 63 };
    int row[LONGEST + 1], n = 0;
    for (row[0] = 0; n < LONGEST && b[n]; n++)
        row[n + 1] = n + 1;
    for (int i = 0; i < LONGEST && a[i]; i++) {
        int diagonal = row[0];
        row[0] = i + 1;
        for (int j = 0; j < n; j++) {
            int best = diagonal + (lower(a[i]) != lower(b[j]));
            diagonal = row[j + 1];
            if (best > row[j] + 1) best = row[j] + 1;
            if (best > row[j + 1] + 1) best = row[j + 1] + 1;
            row[j + 1] = best;
        }
    }
    return row[n];
}

int lab_nearest(const char *word, const char *const *candidates, int count)
{
    int nearest = -1, smallest = INT_MAX;
    for (int i = 0; i < count; i++) {
        int distance = edit_distance(word, candidates[i]);
        if (distance < smallest) {
            smallest = distance;
            nearest = i;
        }
    }
    return nearest;
}

/* Writes the names of all classes, or as many as fit: "cat, dog, ... (1000 in all)". */
static void list_names(const lab_classes *classes, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < classes->count; i++) {
        size_t room = size - used, rest = sizeof ", ... (1024 in all)";
        if (strlen(classes->name[i]) + 2 + rest > room) {
            snprintf(text + used, room, "%s... (%d in all)", i ? ", " : "", classes->count);
            return;
        }
        used += (size_t)snprintf(text + used, room, "%s%s", i ? ", " : "", classes->name[i]);
    }
}

/* ---- 2. JSON files ----------------------------------------------------------------------------------------------- */

ddpm_result lab_json_read(const char *path, cJSON **out)
{
    unsigned char *text;
    size_t size;
    *out = NULL;
    ddpm_result result = io_read_file(path, &text, &size);
    if (result) return result;
    *out = io_json_parse((const char *)text, size, path);
    free(text);
    return *out ? DDPM_OK : DDPM_ERR_FORMAT;
}

/* ---- 3. Classes -------------------------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b)
{
    return compare_names(((const struct lab_class_entry *)a)->name, ((const struct lab_class_entry *)b)->name);
}

static ddpm_result check_class_count(int count, const char *where)
{
    if (count >= 1 && count <= LAB_MAX_CLASSES) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: %d classes, there must be 1 to %d\n"
                     "      hint: the lab's form is {\"gray cube\": 0, \"red cube\": 1, ...}",
                     where, count, LAB_MAX_CLASSES);
}

/* Sorts the names, so that equal ones stand together. */
static ddpm_result sort_classes(lab_classes *classes, const char *where)
{
    struct lab_class_entry *sorted = classes->sorted;
    qsort(sorted, (size_t)classes->count, sizeof *sorted, compare_entries);
    for (int i = 1; i < classes->count; i++)
        if (!compare_names(sorted[i - 1].name, sorted[i].name))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: classes %d and %d are both called '%.80s'\n"
                             "      hint: names must differ in more than upper and lower case",
                             where, sorted[i - 1].index, sorted[i].index, sorted[i].name);
    return DDPM_OK;
}

ddpm_result lab_classes_from_names(const char *const *name, int count, const char *where, lab_classes *out)
{
    *out = (lab_classes){0};
    ddpm_result result = check_class_count(count, where);
    if (result) return result;
    size_t n = (size_t)count, tables = n * (sizeof *out->name + sizeof *out->sorted), text_size = 0;
    for (int i = 0; i < count; i++) {
        if (!name[i] || !name[i][0])
            return ddpm_fail(DDPM_ERR_FORMAT, "%s: class %d has no name\n      hint: every class needs one of its own",
                             where, i);
        text_size += strlen(name[i]) + 1;
    }
    char *block = malloc(tables + text_size); /* entries, then pointers, then text: falling alignment */
    if (!block) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d class names", where, count);
    out->count = count;
    out->sorted = (struct lab_class_entry *)(void *)block;
    out->name = (char **)(void *)(block + n * sizeof *out->sorted);
    char *text = block + tables;
    for (int i = 0; i < count; i++) {
        size_t length = strlen(name[i]) + 1;
        out->name[i] = memcpy(text, name[i], length);
        out->sorted[i] = (struct lab_class_entry){text, i};
        text += length;
    }
    result = sort_classes(out, where);
    if (result) lab_classes_free(out);
    return result;
}

void lab_classes_free(lab_classes *classes)
{
    free(classes->sorted);
    *classes = (lab_classes){0};
}

int lab_class_index(const lab_classes *classes, const char *name)
{
    struct lab_class_entry key = {name, 0};
    const struct lab_class_entry *found =
        bsearch(&key, classes->sorted, (size_t)classes->count, sizeof key, compare_entries);
    return found ? found->index : -1;
}

/* The first index that no class has. One exists whenever an index is double or out of range. */
static int missing_index(const cJSON *json, int count)
{
    char seen[LAB_MAX_CLASSES] = {0};
    int64_t index;
    const cJSON *item;
    cJSON_ArrayForEach (item, json)
        if (io_json_integer(item, 0, count - 1, &index)) seen[index] = 1;
    int missing = 0;
    while (missing < count - 1 && seen[missing])
        missing++;
    return missing;
}

/* Orders the members of a JSON object by their value, the index: name[index], each index once. */
static ddpm_result order_by_index(const cJSON *json, int count, const char *path, const char **name)
{
    const cJSON *item;
    cJSON_ArrayForEach (item, json) {
        int64_t index;
        char value[40];
        if (!io_json_integer(item, 0, count - 1, &index))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: class '%.80s' has index %s, and none has index %d\n"
                             "      hint: the indices of %d classes are 0 to %d, each once",
                             path, item->string, io_json_text(item, value, sizeof value), missing_index(json, count),
                             count, count - 1);
        if (name[index])
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: classes '%.80s' and '%.80s' both have index %d, and none has index %d\n"
                             "      hint: the indices of %d classes are 0 to %d, each once",
                             path, name[index], item->string, (int)index, missing_index(json, count), count, count - 1);
        name[index] = item->string;
    }
    return DDPM_OK;
}

static ddpm_result classes_from_json(const cJSON *json, const char *path, lab_classes *out)
{
    if (!cJSON_IsObject(json))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: not a JSON object\n"
                         "      hint: the lab's form is {\"gray cube\": 0, \"red cube\": 1, ...}",
                         path);
    const char *name[LAB_MAX_CLASSES] = {0};
    int count = cJSON_GetArraySize(json);
    ddpm_result result = check_class_count(count, path);
    if (!result) result = order_by_index(json, count, path, name);
    return result ? result : lab_classes_from_names(name, count, path, out);
}

ddpm_result lab_classes_read(const char *path, lab_classes *out)
{
    cJSON *json;
    *out = (lab_classes){0};
    ddpm_result result = lab_json_read(path, &json);
    if (!result) result = classes_from_json(json, path, out);
    cJSON_Delete(json);
    return result;
}

ddpm_result lab_classes_find(const char *directory, lab_classes *out)
{
    static const char *const file[] = {"objects.json", "object.json"};
    *out = (lab_classes){0};
    for (int i = 0; i < 2; i++) {
        char *path = io_join(directory, file[i]);
        if (!path) return DDPM_ERR_MEMORY;
        int found = io_is_file(path);
        ddpm_result result = found ? lab_classes_read(path, out) : DDPM_OK;
        free(path);
        if (found) return result;
    }
    return ddpm_fail(DDPM_ERR_FILE,
                     "%s: no class file here, tried objects.json and object.json\n"
                     "      hint: it maps every class to its index: {\"gray cube\": 0, \"red cube\": 1, ...}",
                     directory);
}

/* ---- 4. Label sets ----------------------------------------------------------------------------------------------- */

/* Makes room for `need` ints, at least doubling so that appending is linear in all. */
static ddpm_result reserve(int **array, int *room, int need)
{
    if (*array && need <= *room) return DDPM_OK;
    int larger = *room > INT_MAX / 2 ? INT_MAX : *room * 2;
    if (larger < need) larger = need < 64 ? 64 : need;
    int *moved = (size_t)larger > SIZE_MAX / sizeof **array ? NULL : realloc(*array, (size_t)larger * sizeof **array);
    if (!moved) {
        ddpm_fail(DDPM_ERR_MEMORY, "no memory for %d label set entries", larger);
        return DDPM_ERR_MEMORY;
    }
    *array = moved;
    *room = larger;
    return DDPM_OK;
}

ddpm_result lab_label_sets_add(lab_label_sets *sets, const int *label, int count)
{
    int used = sets->start ? sets->start[sets->count] : 0;
    if (count > INT_MAX - used || sets->count > INT_MAX - 2)
        return ddpm_fail(DDPM_ERR_MEMORY, "more than %d labels in one list", INT_MAX);
    ddpm_result result = reserve(&sets->label, &sets->label_room, used + count);
    if (!result) result = reserve(&sets->start, &sets->set_room, sets->count + 2);
    if (result) return result;
    if (count) memcpy(sets->label + used, label, (size_t)count * sizeof *label);
    sets->start[sets->count++] = used;
    sets->start[sets->count] = used + count;
    return DDPM_OK;
}

void lab_label_sets_free(lab_label_sets *sets)
{
    free(sets->label);
    free(sets->start);
    *sets = (lab_label_sets){0};
}

/* Looks `name` up and adds it to the set label[0..*count-1], which has room for every class. */
static ddpm_result add_label(const lab_classes *classes, const char *name, const char *where, int *label, int *count)
{
    int index = lab_class_index(classes, name);
    if (index < 0) {
        char names[500];
        list_names(classes, names, sizeof names);
        return ddpm_fail(DDPM_ERR_RANGE,
                         "%.300s: unknown label '%.80s'\n      hint: did you mean '%.80s'? There are: %s", where, name,
                         classes->name[lab_nearest(name, (const char *const *)classes->name, classes->count)], names);
    }
    for (int i = 0; i < *count; i++)
        if (label[i] == index)
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: label '%.80s' stands there twice\n"
                             "      hint: a set says which classes a picture shows, it cannot count them",
                             where, name);
    label[(*count)++] = index;
    return DDPM_OK;
}

static ddpm_result check_not_empty(int count, int allow_empty, const char *where)
{
    if (count || allow_empty) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: no label in the set\n      hint: name at least one class: \"red sphere\"",
                     where);
}

ddpm_result lab_label_sets_add_json(lab_label_sets *sets, const lab_classes *classes, const cJSON *array,
                                    int allow_empty, const char *where)
{
    int label[LAB_MAX_CLASSES], count = 0;
    if (!cJSON_IsArray(array))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: not an array of class names\n"
                         "      hint: a label set is [\"red sphere\", \"cyan cube\"]",
                         where);
    const cJSON *item;
    cJSON_ArrayForEach (item, array) {
        if (!cJSON_IsString(item))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: a label that is not a string\n"
                             "      hint: a label set is [\"red sphere\", \"cyan cube\"]",
                             where);
        ddpm_result result = add_label(classes, item->valuestring, where, label, &count);
        if (result) return result;
    }
    ddpm_result result = check_not_empty(count, allow_empty, where);
    return result ? result : lab_label_sets_add(sets, label, count);
}

static ddpm_result label_sets_from_json(const cJSON *json, const char *path, const lab_classes *classes,
                                        int allow_empty, lab_label_sets *out)
{
    if (!cJSON_IsArray(json) || !json->child)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: not an array of label sets\n"
                         "      hint: the lab's form is [[\"gray cube\"], [\"red sphere\", \"cyan cube\"], ...]",
                         path);
    int entry = 0;
    const cJSON *item;
    cJSON_ArrayForEach (item, json) {
        char where[512];
        snprintf(where, sizeof where, "%.460s: entry %d (counted from 0)", path, entry++);
        ddpm_result result = lab_label_sets_add_json(out, classes, item, allow_empty, where);
        if (result) return result;
    }
    return DDPM_OK;
}

ddpm_result lab_label_sets_read(const char *path, const lab_classes *classes, int allow_empty, lab_label_sets *out)
{
    cJSON *json;
    *out = (lab_label_sets){0};
    ddpm_result result = lab_json_read(path, &json);
    if (!result) result = label_sets_from_json(json, path, classes, allow_empty, out);
    if (result) lab_label_sets_free(out);
    cJSON_Delete(json);
    return result;
}

/* Cuts `copy` at its commas, drops blanks around each piece and looks the pieces up. */
static ddpm_result split_labels(char *copy, const lab_classes *classes, const char *where, int *label, int *count)
{
    for (char *piece = copy, *next; piece; piece = next) {
        next = strchr(piece, ',');
        if (next) *next++ = 0;
        piece += strspn(piece, blanks);
        size_t length = strlen(piece);
        while (length && strchr(blanks, piece[length - 1]))
            piece[--length] = 0;
        if (!length)
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "%s: nothing between two commas\n"
                             "      hint: write class names between single commas: \"red sphere, cyan cube\"",
                             where);
        ddpm_result result = add_label(classes, piece, where, label, count);
        if (result) return result;
    }
    return DDPM_OK;
}

ddpm_result lab_label_sets_add_text(lab_label_sets *sets, const lab_classes *classes, const char *text, int allow_empty)
{
    int label[LAB_MAX_CLASSES], count = 0;
    char where[160];
    snprintf(where, sizeof where, "label set \"%.120s\"", text);
    size_t size = strlen(text) + 1;
    ddpm_result result = DDPM_OK;
    const char *name = text + strspn(text, blanks);
    if (*name && lab_class_index(classes, name) >= 0) { /* as a whole: a name may hold a comma */
        result = add_label(classes, name, where, label, &count);
    } else if (*name) {
        char *copy = malloc(size);
        if (!copy) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %zu bytes", where, size);
        result = split_labels(memcpy(copy, text, size), classes, where, label, &count);
        free(copy);
    } else {
        result = check_not_empty(0, allow_empty, where);
    }
    return result ? result : lab_label_sets_add(sets, label, count);
}

ddpm_result lab_multi_hot(const lab_label_sets *sets, int first, int count, int classes, ddpm_real *out)
{
    if (first < 0 || count < 0 || first > sets->count || count > sets->count - first)
        return ddpm_fail(DDPM_ERR_RANGE, "%d label sets from %d on were asked for, there are %d", count, first,
                         sets->count);
    for (int i = 0; i < count; i++) {
        ddpm_real *vector = out + (size_t)i * (size_t)classes;
        for (int c = 0; c < classes; c++)
            vector[c] = 0;
        for (int k = sets->start[first + i]; k < sets->start[first + i + 1]; k++) {
            if (sets->label[k] < 0 || sets->label[k] >= classes)
                return ddpm_fail(DDPM_ERR_RANGE,
                                 "label set %d holds class %d, there are %d classes\n"
                                 "      hint: do the label file and the model belong to the same class file?",
                                 first + i, sets->label[k], classes);
            vector[sets->label[k]] = 1;
        }
    }
    return DDPM_OK;
}

ddpm_result lab_class_labels(const ddpm_real *multi_hot, int count, int classes, int none, ddpm_real *out)
{
    for (int i = 0; i < count; i++) {
        const ddpm_real *vector = multi_hot + (size_t)i * (size_t)classes;
        int found = none, several = 0;
        for (int c = 0, first = 1; c < classes; c++) {
            if (!(vector[c] > 0)) continue;
            several |= !first;
            found = c;
            first = 0;
        }
        if (several || found < 0)
            return ddpm_fail(DDPM_ERR_RANGE,
                             "picture %d has %s, and the model takes exactly one\n"
                             "      hint: name one class",
                             i, several ? "several classes" : "no class");
        out[i] = (ddpm_real)found;
    }
    return DDPM_OK;
}

/* ---- 5. Names back ----------------------------------------------------------------------------------------------- */

/* The names of a set with `separator` between them, "none" for the empty set. */
static char *join_names(const lab_label_sets *sets, int set, const lab_classes *classes, const char *separator)
{
    static const char none[] = "none";
    const int *label = sets->label + sets->start[set];
    int count = sets->start[set + 1] - sets->start[set];
    size_t size = sizeof none, gap = strlen(separator);
    for (int i = 0; i < count; i++)
        size += strlen(classes->name[label[i]]) + gap;
    char *text = malloc(size), *end = text;
    if (!text) {
        ddpm_fail(DDPM_ERR_MEMORY, "no memory for the %zu bytes of a label set's names", size);
        return NULL;
    }
    memcpy(text, none, sizeof none);
    for (int i = 0; i < count; i++)
        end += sprintf(end, "%s%s", i ? separator : "", classes->name[label[i]]);
    return text;
}

char *lab_set_caption(const lab_label_sets *sets, int set, const lab_classes *classes)
{
    return join_names(sets, set, classes, ", ");
}

char *lab_set_file_name(const lab_label_sets *sets, int set, const lab_classes *classes)
{
    enum { LONGEST = 200 };
    char *text = join_names(sets, set, classes, "+");
    if (!text) return NULL;
    for (char *c = text; *c; c++)
        if (!((lower(*c) >= 'a' && lower(*c) <= 'z') || (*c >= '0' && *c <= '9') || *c == '-' || *c == '+')) *c = '_';
    if (strlen(text) > LONGEST) text[LONGEST] = 0;
    return text;
}
