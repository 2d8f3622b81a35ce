/* lab/dataset.h - training data as batches: pictures of one size and multi-hot labels, from the lab's train.json or
 * anyone's folders of pictures (lab/source.h says how the form is recognised).
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

typedef enum lab_kind {
    LAB_MULTI_LABEL, /* a picture shows any number of the classes */
    LAB_ONE_CLASS,   /* exactly one */
    LAB_UNLABELLED   /* nobody says: unconditional */
} lab_kind;

typedef enum lab_resize {
    LAB_SQUEEZE, /* to the size asked for, whatever the aspect: io_picture_resize */
    LAB_CROP     /* the middle of the picture, aspect kept: io_picture_resize_crop */
} lab_resize;

typedef struct lab_dataset_config {
    const char *data;      /* the folder */
    const char *image_dir; /* of a list's pictures; NULL: data, data/iclevr, data/images or data/../iclevr */
    int unconditional;     /* leave all labels aside */
    int width, height;     /* of every picture; 0, 0: lab_dataset_set_size says it later */
    int channels;          /* 3, or 1 for gray */
    lab_resize resize;
    int random_flip;    /* half of the pictures, others in every epoch, are mirrored left to right */
    int workers;        /* decode threads; 0: one */
    size_t cache_bytes; /* decoded pictures are kept up to this: width*height*channels bytes each */
    uint64_t seed;      /* of order and flips */
} lab_dataset_config;
lab_dataset_config lab_dataset_default(const char *data); /* 64x64, 3 channels, 1 worker, 1 GiB, seed 529 */

typedef struct lab_dataset {   /* read only for callers */
    lab_dataset_config config; /* its strings are not kept: NULL */
    lab_kind kind;
    int listed;             /* the pictures are those of a list; 0: all that lie in the folder */
    int count;              /* pictures, at least 1 */
    int training, held_out; /* how many of them epochs hand out, and how many never: lab_dataset_divide */
    char **path;            /* path[i] of picture i: in the order of the list, or sorted */
    lab_label_sets labels;  /* set i belongs to picture i; no sets at all if LAB_UNLABELLED */
    lab_classes classes;    /* count 0 if LAB_UNLABELLED */
    struct lab_dataset_private *p;
} lab_dataset;

/* Finds out what the folder holds and every picture's file, but decodes none. DDPM_ERR_ARGUMENT: a nonsensical config.
 * DDPM_ERR_FILE: no data set there, or pictures of a list are missing (names the places tried, the first such picture,
 * how many). DDPM_ERR_FORMAT, DDPM_ERR_RANGE: a list that is empty or wrong (names entry and label), folders that
 * leave a doubt. */
ddpm_result lab_dataset_open(const lab_dataset_config *config, lab_dataset **out);
/* Ends the decode threads and frees everything; at any moment, also within an epoch. NULL is allowed. */
void lab_dataset_close(lab_dataset *ds);

/* The size of all pictures from now on, for who must know the classes first. Ends an epoch in progress.
 * DDPM_ERR_ARGUMENT. */
ddpm_result lab_dataset_set_size(lab_dataset *ds, int width, int height, int channels);

/* "18,009 pictures, 24 classes, multi-label, from train.json"; lives as long as the data set. */
const char *lab_dataset_describe(const lab_dataset *ds);

typedef enum lab_trouble { LAB_UNREADABLE, LAB_TINY, LAB_DUPLICATE, LAB_TROUBLES } lab_trouble;
typedef struct lab_finding {
    lab_trouble trouble;
    char *path;
    char *about; /* why it cannot be read; "20x30"; the first picture of the same pixels */
} lab_finding;
typedef struct lab_survey { /* start from {0}, lab_survey_free */
    lab_finding *finding;   /* by trouble, then in the order of the pictures */
    int findings, room, count[LAB_TROUBLES];
} lab_survey;

/* Decodes every picture once, keeps what the cache has room for, and lists those that cannot be read, are smaller than
 * the size asked for, or have the very pixels of an earlier one. Those that cannot be read are then no longer part of
 * the data set; the others are. progress may be NULL. DDPM_ERR_FORMAT: none can be read (tells why the first cannot).
 */
ddpm_result lab_dataset_survey(lab_dataset *ds, void (*progress)(void *user, int done, int total), void *user,
                               lab_survey *out);
void lab_survey_free(lab_survey *survey);

/* Sets `held_out` pictures aside, which epochs then leave out: runs of three in the order of the pictures (the lab's
 * three of a scene), evenly spread; and of the others, if `most` > 0, epochs hand out the first `most` alone. Before an
 * epoch; DDPM_ERR_RANGE if nothing is left to train on. */
ddpm_result lab_dataset_divide(lab_dataset *ds, int held_out, int most);
/* Index for lab_dataset_get of held-out picture i in [0,held_out). */
int lab_dataset_held_out(const lab_dataset *ds, int i);

/* For several processes that share the work: of every `batch` pictures of an epoch (its last ones may be fewer) this
 * one gets its part by ddpm_part alone, from the next epoch on. 1, 0, 1: all of them. */
void lab_dataset_share(lab_dataset *ds, int batch, int rank, int size);

/* ---- 2. Epochs and batches --------------------------------------------------------------------------------------- */

enum { LAB_RANDOM_FLIP = DDPM_RANDOM_USER + 4 };

/* Begins an epoch: the order is ddpm_shuffle of the training pictures at {seed, 0, epoch, DDPM_RANDOM_SHUFFLE}. Starts
 * decode threads if a picture is not yet in memory; an epoch in progress is dropped. */
ddpm_result lab_dataset_start_epoch(lab_dataset *ds, uint32_t epoch);
/* The same from picture `position` of the epoch's order on, 0 to training: for a run that was stopped within it.
 * DDPM_ERR_RANGE beyond. Under lab_dataset_share a position counts all pictures, and batches begin there. */
ddpm_result lab_dataset_resume_epoch(lab_dataset *ds, uint32_t epoch, int position);
/* The next pictures of the epoch: n of them, fewer at its end, none (*got = 0) after it.
 *   pictures  (n,channels,height,width) in [-1,1]: (v/255 - 0.5)/0.5
 *             with random_flip mirrored if ddpm_uniform_int at {seed, picture, epoch, LAB_RANDOM_FLIP} of 2 is 1
 *   labels    (n,classes) of 0 and 1, or NULL; not touched if LAB_UNLABELLED
 * A picture that cannot be read is an error naming the file: *got is 0, and asking again gives the same error. */
ddpm_result lab_dataset_next(lab_dataset *ds, int n, ddpm_real *pictures, ddpm_real *labels, int *got);

/* ---- 3. Single pictures ------------------------------------------------------------------------------------------ */

/* Picture `index`, unmirrored, else in the form of lab_dataset_next; an epoch in progress is not disturbed.
 * DDPM_ERR_RANGE outside [0,count). */
ddpm_result lab_dataset_get(lab_dataset *ds, int index, ddpm_real *picture, ddpm_real *labels);

#ifdef __cplusplus
}
#endif
#endif /* LAB_DATASET_H */
