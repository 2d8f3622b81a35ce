/* lab/labels.h - class names and label sets: the lab's objects.json and test.json, or a typed "red sphere, cyan cube".
 * A class is an index 0..classes-1 with a name; a label set is the classes of one picture, which the model sees as a
 * multi-hot vector. Names are compared without regard to (ASCII) case, everywhere. Nothing is ever ignored or guessed.
 *
 * Contents:  1 classes   2 label sets   3 names back, nearest names   4 JSON files */
#ifndef LAB_LABELS_H
#define LAB_LABELS_H
#include "ddpm.h"
#include "io/json.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Classes -------------------------------------------------------------------------------------------------- */

enum { LAB_MAX_CLASSES = 1024 };

struct lab_class_entry {
    const char *name;
    int index;
};
typedef struct lab_classes {        /* start from {0}; one allocation, freed by lab_classes_free */
    char **name;                    /* name[index] */
    int count;                      /* 1 to LAB_MAX_CLASSES */
    struct lab_class_entry *sorted; /* by name: for lab_class_index */
} lab_classes;

/* Reads {"gray cube": 0, ...}. DDPM_ERR_FORMAT unless there are 1 to LAB_MAX_CLASSES classes with different, non-empty
 * names and the indices 0..n-1 each once: the text names the index that is missing and the one that is double. */
ddpm_result lab_classes_read(const char *path, lab_classes *out);
/* Reads objects.json in `directory` or, where there is none, object.json (copies of the lab have either name).
 * DDPM_ERR_FILE if neither is there. */
ddpm_result lab_classes_find(const char *directory, lab_classes *out);
/* Classes 0..count-1 from their names, which are copied. `where` begins the error text; checks and code as above. */
ddpm_result lab_classes_from_names(const char *const *name, int count, const char *where, lab_classes *out);
void lab_classes_free(lab_classes *classes);

/* The index of a name, or -1. */
int lab_class_index(const lab_classes *classes, const char *name);

/* ---- 2. Label sets ----------------------------------------------------------------------------------------------- */

typedef struct lab_label_sets { /* start from {0} */
    int count;                  /* number of sets */
    int *label;                 /* class indices of all sets, one set after the other */
    int *start; /* count + 1 entries: set i is label[start[i]] .. label[start[i + 1] - 1]; NULL while empty */
    int label_room, set_room;
} lab_label_sets;

/* How many labels set `i` has. */
static inline int lab_set_size(const lab_label_sets *sets, int i)
{
    return sets->start[i + 1] - sets->start[i];
}

/* Reads an array of arrays of class names (test.json). DDPM_ERR_FORMAT or, for an unknown label, DDPM_ERR_RANGE names
 * the file, the entry (counted from 0) and the label. The empty set [] is DDPM_ERR_ARGUMENT unless allow_empty. */
ddpm_result lab_label_sets_read(const char *path, const lab_classes *classes, int allow_empty, lab_label_sets *out);
/* Appends one set written as "red sphere, cyan cube": a class's whole name, or names split at commas, blanks around
 * them dropped. DDPM_ERR_RANGE: an unknown one (names the nearest, and which there are). A blank text is the
 * empty set if allow_empty, else DDPM_ERR_ARGUMENT. After a failure of this and of the next two functions `sets` is
 * unchanged. */
ddpm_result lab_label_sets_add_text(lab_label_sets *sets, const lab_classes *classes, const char *text,
                                    int allow_empty);
/* Appends the set of a JSON array of class names. `where` ("train.json: entry 3") begins the error text. */
ddpm_result lab_label_sets_add_json(lab_label_sets *sets, const lab_classes *classes, const cJSON *array,
                                    int allow_empty, const char *where);
/* Appends one set of `count` class indices; they are not checked here, lab_multi_hot does that. */
ddpm_result lab_label_sets_add(lab_label_sets *sets, const int *label, int count);
void lab_label_sets_free(lab_label_sets *sets);

/* Sets first .. first+count-1 as multi-hot vectors: out (count,classes), 1 where the class is in the set, else 0.
 * DDPM_ERR_RANGE names the first set or label that does not exist. */
ddpm_result lab_multi_hot(const lab_label_sets *sets, int first, int count, int classes, ddpm_real *out);

/* Multi-hot vectors (count,classes) as class indices (count): what a model with an Embedding takes (num_class_embeds).
 * A vector of zeros becomes `none`, the extra class that stands for "no label"; none < 0: there is none. out may be
 * multi_hot. DDPM_ERR_RANGE names the first picture of several classes, or of none where there is no such class. */
ddpm_result lab_class_labels(const ddpm_real *multi_hot, int count, int classes, int none, ddpm_real *out);

/* ---- 3. Names back, nearest names -------------------------------------------------------------------------------- */

/* "red sphere, cyan cube", or "none" for the empty set; free() it. NULL and an error without memory. `set` exists. */
char *lab_set_caption(const lab_label_sets *sets, int set, const lab_classes *classes);
/* "red_sphere+cyan_cube": the same for a file name, without extension: ASCII letters, digits, '-', '_' and '+' only, at
 * most 200 bytes. Different sets may share a name: number the files too. */
char *lab_set_file_name(const lab_label_sets *sets, int set, const lab_classes *classes);

/* Index of the candidate with the smallest edit distance (Levenshtein 1966) to `word`, without regard to case; the
 * first of several; -1 if there are none. Only the first 63 bytes of a word count. */
int lab_nearest(const char *word, const char *const *candidates, int count);

/* ---- 4. JSON files ----------------------------------------------------------------------------------------------- */

/* Reads and parses a whole file; cJSON_Delete it. DDPM_ERR_FILE, or DDPM_ERR_FORMAT naming line and column. */
ddpm_result lab_json_read(const char *path, cJSON **out);

#ifdef __cplusplus
}
#endif
#endif /* LAB_LABELS_H */
