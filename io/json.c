/* io/json.c - see io/json.h.
 *
 * Contents:  1 text to tree   2 tree to text   3 values */
#include "io/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

/* ---- 1. Text to tree ------------------------------------------------------------------------------------------- */

static ddpm_result not_json(const char *text, const char *at, const char *name)
{
    size_t line = 1, column = 1;
    for (const char *p = text; p < at; p++) {
        column++;
        if (*p == '\n') {
            line++;
            column = 1;
        }
    }
    return ddpm_fail(DDPM_ERR_FORMAT, "%s: not valid JSON at line %zu, column %zu\n      hint: %s", name, line, column,
                     "is the file complete? (too little memory looks the same)");
}

/* Python writes -Infinity, which JSON does not have: a copy with a number below all doubles in its place, as long. */
static char *without_infinity(const char *text, size_t size)
{
    static const char word[] = "-Infinity", number[] = "-1e999999";
    const size_t length = sizeof word - 1;
    char *copy = malloc(size + 1);
    if (!copy) return NULL;
    memcpy(copy, text, size + 1);
    for (size_t i = 0, quoted = 0; i + length <= size; i++) {
        if (copy[i] == '"') quoted = !quoted;
        if (quoted && copy[i] == '\\') i++;
        if (!quoted && !memcmp(copy + i, word, length)) memcpy(copy + i, number, length);
    }
    return copy;
}

static cJSON *parse(const char *text, size_t size, const char *name)
{
    /* The length passed includes the closing 0: cJSON before 1.7.18 may look one byte beyond it (CVE-2023-53154). */
    const char *zero = memchr(text, 0, size), *end = text;
    cJSON *value = zero ? NULL : cJSON_ParseWithLengthOpts(text, size + 1, &end, 1);
    if (!value) not_json(text, zero ? zero : end ? end : text, name);
    return value;
}

cJSON *io_json_parse(const char *text, size_t size, const char *name)
{
    if (!strstr(text, "-Infinity")) return parse(text, size, name);
    char *copy = without_infinity(text, size);
    cJSON *value = NULL;
    if (copy)
        value = parse(copy, size, name);
    else
        ddpm_fail(DDPM_ERR_FORMAT, "%s: no memory for its text\n      hint: close other programs", name);
    free(copy);
    return value;
}

ddpm_result io_json_read(const char *path, cJSON **out)
{
    unsigned char *text;
    size_t size;
    *out = NULL;
    ddpm_result result = io_read_file(path, &text, &size);
    if (!result && !(*out = io_json_parse((const char *)text, size, path))) result = DDPM_ERR_FORMAT;
    free(text);
    return result;
}

/* ---- 2. Tree to text ------------------------------------------------------------------------------------------- */

const char *io_json_text(const cJSON *value, char *out, size_t size)
{
    if (cJSON_PrintPreallocated((cJSON *)value, out, (int)size, 0)) return out; /* reads only; needs no memory */
    char *text = cJSON_PrintUnformatted(value);
    snprintf(out, size, "%s", text ? text : "?");
    if (text && strlen(text) >= size && size > 4) memcpy(out + size - 4, "...", 4);
    cJSON_free(text);
    return out;
}

/* ---- 3. Values ------------------------------------------------------------------------------------------------- */

int io_json_integer(const cJSON *value, int64_t low, int64_t high, int64_t *out)
{
    /* cJSON holds numbers as doubles: whole numbers are exact up to 2^53, and the range check comes before the cast. */
    if (!cJSON_IsNumber(value) || !(value->valuedouble >= (double)low && value->valuedouble <= (double)high)) return 0;
    int64_t whole = (int64_t)value->valuedouble;
    if ((double)whole != value->valuedouble) return 0;
    *out = whole;
    return 1;
}
