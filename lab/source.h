/* lab/source.h - which pictures a data set has and what they show, recognised from what lies in its folder. The first
 * of these that is there says it:
 *     train.json              {file name: [class name, ...]}, with objects.json or object.json: the lab's form
 *     metadata.jsonl, .csv    Hugging Face's `imagefolder`: file_name, and label (one name) or labels (several)
 *     folders of pictures     one folder a class
 *     pictures                no labels
 * Used by lab_dataset_open alone; no picture is read here. */
#ifndef LAB_SOURCE_H
#define LAB_SOURCE_H
#include "lab/dataset.h"

/* Fills kind, count, path, labels and classes of an empty data set, and `from`, the words that say where they come from
 * ("train.json"). Errors as in lab_dataset_open; what was filled by then is lab_dataset_close's to free. */
ddpm_result lab_source_read(const lab_dataset_config *config, lab_dataset *ds, char *from, size_t from_size);

/* For the fuzz target and tests: metadata.csv's text as rows. Calls `row` for each line with its fields, which live
 * until it returns; stops at its first failure. RFC 4180; `name` is the file's for errors, `line` counts from 1.
 * DDPM_ERR_FORMAT: a quote in the wrong place, a 0 byte; DDPM_ERR_MEMORY. */
typedef ddpm_result (*lab_csv_row)(void *user, int line, char **field, int fields);
ddpm_result lab_csv_parse(const char *text, size_t size, const char *name, lab_csv_row row, void *user);

#endif /* LAB_SOURCE_H */
