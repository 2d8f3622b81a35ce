/* io/json.h - JSON text into a cJSON tree, with an error that names file, line and column. cJSON keeps the members of
 * an object in the order of the text, duplicates too: who reads an object walks its members once and judges each. */
#ifndef IO_JSON_H
#define IO_JSON_H
#include <cjson/cJSON.h>
#include <stddef.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parses `size` bytes; text[size] must be a 0 byte (io_read_file puts one there). Nothing but white space may follow
 * the value. -Infinity, which Python writes, is understood. `name` is the file's for the error. cJSON_Delete() the
 * result; NULL after DDPM_ERR_FORMAT (a lack of memory too, which cJSON does not tell from bad text). */
cJSON *io_json_parse(const char *text, size_t size, const char *name);
/* io_read_file and io_json_parse in one. On failure *out is NULL. */
ddpm_result io_json_read(const char *path, cJSON **out);
/* A value as one line of JSON for an error message, at most `size` - 1 characters ("..." where cut). Returns `out`. */
const char *io_json_text(const cJSON *value, char *out, size_t size);
/* 1 and the number in *out if `value` is a whole number in [low, high], |low| and |high| at most 2^53; else 0. */
int io_json_integer(const cJSON *value, int64_t low, int64_t high, int64_t *out);

#ifdef __cplusplus
}
#endif
#endif /* IO_JSON_H */
