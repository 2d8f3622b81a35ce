/* lab/dataset.h - the lab's training data as batches: train.json, its pictures, multi-hot labels.
 * Decode threads read and resize every picture once, ahead of its use; it is then kept in memory at its final size.
 * What a batch holds depends on the data, the seed and the epoch alone: never on threads, timing or the cache.
 *
 *     lab_dataset_config config = lab_dataset_default("DATA");
 *     lab_dataset *ds;  lab_dataset_open(&config, &ds);
 *     lab_dataset_start_epoch(ds, 0);
 *     while (!lab_dataset_next(ds, 32, pictures, labels, &got) && got) train on `got` pictures;
 *     lab_dataset_close(ds);
 *
 * Contents:  1 opening   2 epochs and batches   3 single pictures */
#ifndef LAB_DATASET_H
#define LAB_DATASET_H
#include "lab/labels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Opening -------------------------------------------------------------------------------------------------- */

typedef struct lab_dataset_config {
    const char *data;      /* folder with train.json {file name: [class name, ...]} and objects.json (or object.json) */
    const char *image_dir; /* folder of the pictures; NULL: data, data/iclevr, data/images or data/../iclevr */
    int width, height;     /* every picture is squeezed to this: bilinear with antialias, as PIL does */
    int channels;          /* 3, or 1 for gray */
    int workers;           /* decode threads; 0: one */
    size_t cache_bytes;    /* decoded pictures are kept up to this: width*height*channels bytes each */
    uint64_t seed;         /* of the order */
} lab_dataset_config;
lab_dataset_config lab_dataset_default(const char *data); /* 64x64, 3 channels, 1 worker, 1 GiB, seed 529 */

typedef struct lab_dataset {   /* read only for callers */
    lab_dataset_config config; /* its strings are not kept: NULL */
    int count;                 /* pictures, at least 1 */
    char **path;               /* path[i] of picture i, in train.json's order */
    lab_label_sets labels;     /* set i belongs to picture i; may be empty */
    lab_classes classes;
    struct lab_dataset_private *p;
} lab_dataset;

/* Reads the lists and finds every picture, but decodes none. DDPM_ERR_ARGUMENT: a nonsensical config. DDPM_ERR_FILE:
 * train.json, the class file or pictures are missing (names the places tried, the first such picture, how many).
 * DDPM_ERR_FORMAT, DDPM_ERR_RANGE: an empty or wrong train.json (names entry and label). */
ddpm_result lab_dataset_open(const lab_dataset_config *config, lab_dataset **out);
/* Ends the decode threads and frees everything; at any moment, also within an epoch. NULL is allowed. */
void lab_dataset_close(lab_dataset *ds);

/* "18,009 pictures, 24 classes, multi-label, from train.json"; lives as long as the data set. */
const char *lab_dataset_describe(const lab_dataset *ds);

/* ---- 2. Epochs and batches --------------------------------------------------------------------------------------- */

/* Begins an epoch: the order is ddpm_shuffle at {seed, 0, epoch, DDPM_RANDOM_SHUFFLE}. Starts decode threads if a
 * picture is not yet in memory; an epoch in progress is dropped. */
ddpm_result lab_dataset_start_epoch(lab_dataset *ds, uint32_t epoch);
/* The same from picture `position` of the epoch's order on, 0 to count: for a run that was stopped within it.
 * DDPM_ERR_RANGE beyond. */
ddpm_result lab_dataset_resume_epoch(lab_dataset *ds, uint32_t epoch, int position);
/* The next pictures of the epoch: n of them, fewer at its end, none (*got = 0) after it.
 *   pictures  (n,channels,height,width) in [-1,1]: (v/255 - 0.5)/0.5
 *   labels    (n,classes) of 0 and 1, or NULL
 * A picture that cannot be read is an error naming the file: *got is 0, and asking again gives the same error. */
ddpm_result lab_dataset_next(lab_dataset *ds, int n, ddpm_real *pictures, ddpm_real *labels, int *got);

/* ---- 3. Single pictures ------------------------------------------------------------------------------------------ */

/* Picture `index` (in train.json's order) in the form of lab_dataset_next; an epoch in progress is not disturbed.
 * DDPM_ERR_RANGE outside [0,count). */
ddpm_result lab_dataset_get(lab_dataset *ds, int index, ddpm_real *picture, ddpm_real *labels);

#ifdef __cplusplus
}
#endif
#endif /* LAB_DATASET_H */
