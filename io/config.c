/* io/config.c - see io/config.h. One table a kind of file lists its fields; one reader and one writer walk the tables.
 *
 * Contents:  1 the tables   2 reading a field   3 reading a file   4 writing   5 the kinds of files */
#include "io/config.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"

/* ---- 1. The tables --------------------------------------------------------------------------------------------- */

typedef enum field_kind {
    INTEGER,  /* int in [low, high]; null, where allowed, is stored as low - 1 */
    REAL,     /* double in [low, high] */
    BOOLEAN,  /* int, 0 or 1 */
    CHOICE,   /* an enum: the index in `accepted` */
    FIXED,    /* not stored: any of `accepted` means the same, the first is written */
    UNUSED,   /* not stored: any number, which has no effect at the values that other fields may have */
    INTEGERS, /* int[DDPM_MAX_LEVELS] */
    CHOICES,  /* enum[DDPM_MAX_LEVELS] */
    SIZE,     /* int[2]: a number, a pair, or null for 0 */
    REALS,    /* double *, owned; null for none */
    TEXTS     /* char **, owned */
} field_kind;
enum { NULLABLE = 1, REQUIRED = 2, READ_ONLY = 4 };

typedef struct field {
    const char *name;
    field_kind kind;
    size_t offset, count;        /* of the value and, of a list, of its length (int) in the document */
    double low, high;            /* of numbers and each number of a list */
    const char *const *accepted; /* JSON texts, ended by NULL */
    unsigned flags;
} field;

typedef struct form { /* a kind of file */
    const char *what;
    const field *fields; /* ended by a NULL name */
} form;

/* clang-format off */
#define AT(member) offsetof(DOCUMENT, member)
#define JSON(...) .accepted = (const char *const[]){__VA_ARGS__, NULL}
#define NUMBER_ROW(member, type, from, to, bits) \
    {.name = #member, .kind = (type), .offset = AT(member), .low = (from), .high = (to), .flags = (bits)}
#define INTEGER_ROW(member, from, to) NUMBER_ROW(member, INTEGER, from, to, 0)
#define NULLABLE_ROW(member, from, to) NUMBER_ROW(member, INTEGER, from, to, NULLABLE)
#define REQUIRED_ROW(member, from, to) NUMBER_ROW(member, INTEGER, from, to, REQUIRED)
#define REAL_ROW(member, from, to) NUMBER_ROW(member, REAL, from, to, 0)
#define BOOLEAN_ROW(member) {.name = #member, .kind = BOOLEAN, .offset = AT(member)}
#define CHOICE_ROW(member, ...) {.name = #member, .kind = CHOICE, .offset = AT(member), JSON(__VA_ARGS__)}
#define FIXED_ROW(title, ...) {.name = (title), .kind = FIXED, JSON(__VA_ARGS__)}
#define UNUSED_ROW(title, value) {.name = (title), .kind = UNUSED, JSON(value)}

enum { MANY = 1 << 20 }; /* more than any count or size that makes sense; keeps products of two within 64 bits */

/* A UNet2DModel. The config comes first in the document: offsets in it are offsets in the document. */
#define DOCUMENT ddpm_unet_config
typedef struct unet_document {
    ddpm_unet_config config;
    int channels, downs, ups; /* lengths of the three lists, which must agree */
} unet_document;
static const field unet_fields[] = {
    FIXED_ROW("_class_name", "\"UNet2DModel\""),
    FIXED_ROW("_diffusers_version", "\"0.42.1\""),
    {.name = "sample_size", .kind = SIZE, .offset = AT(sample_size), .low = 1, .high = MANY},
    INTEGER_ROW(in_channels, 1, MANY),
    INTEGER_ROW(out_channels, 1, MANY),
    BOOLEAN_ROW(center_input_sample),
    CHOICE_ROW(time_embedding_type, "\"positional\"", "\"fourier\""),
    NULLABLE_ROW(time_embedding_dim, 1, MANY),
    REAL_ROW(freq_shift, -DBL_MAX, DBL_MAX),
    BOOLEAN_ROW(flip_sin_to_cos),
    {.name = "down_block_types", .kind = CHOICES, .offset = AT(down_block_types),
     .count = offsetof(unet_document, downs), JSON("\"DownBlock2D\"", "\"AttnDownBlock2D\"")},
    CHOICE_ROW(mid_block_type, "null", "\"UNetMidBlock2D\""),
    {.name = "up_block_types", .kind = CHOICES, .offset = AT(up_block_types),
     .count = offsetof(unet_document, ups), JSON("\"UpBlock2D\"", "\"AttnUpBlock2D\"")},
    {.name = "block_out_channels", .kind = INTEGERS, .offset = AT(block_out_channels),
     .count = offsetof(unet_document, channels), .low = 1, .high = MANY},
    INTEGER_ROW(layers_per_block, 1, 1000),
    REAL_ROW(mid_block_scale_factor, -DBL_MAX, DBL_MAX),
    INTEGER_ROW(downsample_padding, 0, 1),
    CHOICE_ROW(downsample_type, "\"conv\"", "\"resnet\""),
    CHOICE_ROW(upsample_type, "\"conv\"", "\"resnet\""),
    REAL_ROW(dropout, 0, 1),
    FIXED_ROW("act_fn", "\"silu\"", "\"swish\""), /* two names of one function in diffusers' table of activations */
    NULLABLE_ROW(attention_head_dim, 1, MANY),
    INTEGER_ROW(norm_num_groups, 1, MANY),
    NULLABLE_ROW(attn_norm_num_groups, 1, MANY),
    REAL_ROW(norm_eps, 0, DBL_MAX),
    CHOICE_ROW(resnet_time_scale_shift, "\"default\"", "\"scale_shift\""),
    BOOLEAN_ROW(add_attention),
    CHOICE_ROW(class_embed_type, "null", "\"timestep\"", "\"identity\""),
    NULLABLE_ROW(num_class_embeds, 1, MANY),
    FIXED_ROW("num_train_timesteps", "null"), /* only for time_embedding_type "learned" */
    {.name = NULL}};
static const form unet_form = {"the config.json of a diffusers UNet2DModel", unet_fields};
#undef DOCUMENT

#define DOCUMENT ddpm_schedule_config
/* What the three schedulers share; `betas`: the names of beta_schedule that the class knows. trained_betas' length is
 * in the document, behind the config. */
typedef struct schedule_document {
    ddpm_schedule_config config;
    int trained;
} schedule_document;
#define SCHEDULE_ROWS(title, ...) \
    FIXED_ROW("_class_name", title), \
    FIXED_ROW("_diffusers_version", "\"0.42.1\""), \
    INTEGER_ROW(num_train_timesteps, 1, MANY), \
    REAL_ROW(beta_start, 0, 1), \
    REAL_ROW(beta_end, 0, 1), \
    CHOICE_ROW(beta_schedule, "\"squaredcos_cap_v2\"", "\"linear\"", "\"scaled_linear\"", __VA_ARGS__), \
    {.name = "trained_betas", .kind = REALS, .offset = AT(trained_betas), \
     .count = offsetof(schedule_document, trained), .low = 0, .high = 1}, \
    CHOICE_ROW(prediction_type, "\"epsilon\"", "\"sample\"", "\"v_prediction\""), \
    BOOLEAN_ROW(thresholding), \
    REAL_ROW(dynamic_thresholding_ratio, 0, 1), \
    REAL_ROW(sample_max_value, 0, DBL_MAX), \
    CHOICE_ROW(timestep_spacing, "\"leading\"", "\"linspace\"", "\"trailing\""), \
    INTEGER_ROW(steps_offset, 0, MANY), \
    BOOLEAN_ROW(rescale_betas_zero_snr)
#define READ_ONLY_ROW(member) {.name = #member, .kind = BOOLEAN, .offset = AT(member), .flags = READ_ONLY}
static const field ddpm_fields[] = {
    SCHEDULE_ROWS("\"DDPMScheduler\"", "\"sigmoid\"", "\"laplace\""),
    CHOICE_ROW(variance_type, "\"fixed_small\"", "\"fixed_small_log\"", "\"fixed_large\""),
    BOOLEAN_ROW(clip_sample),
    REAL_ROW(clip_sample_range, DBL_MIN, DBL_MAX),
    READ_ONLY_ROW(set_alpha_to_one), /* DDIMScheduler's: diffusers passes it over */
    {.name = NULL}};
static const field ddim_fields[] = {
    SCHEDULE_ROWS("\"DDIMScheduler\"", NULL),
    BOOLEAN_ROW(clip_sample),
    REAL_ROW(clip_sample_range, DBL_MIN, DBL_MAX),
    BOOLEAN_ROW(set_alpha_to_one),
    {.name = "variance_type", .kind = FIXED, JSON("\"fixed_small\""), .flags = READ_ONLY}, /* DDPMScheduler's */
    {.name = NULL}};
static const field solver_fields[] = {
    SCHEDULE_ROWS("\"DPMSolverMultistepScheduler\"", NULL),
    INTEGER_ROW(solver_order, 1, 2),
    FIXED_ROW("algorithm_type", "\"dpmsolver++\""),
    CHOICE_ROW(solver_type, "\"midpoint\"", "\"heun\""),
    BOOLEAN_ROW(lower_order_final),
    BOOLEAN_ROW(euler_at_final),
    CHOICE_ROW(final_sigmas_type, "\"zero\"", "\"sigma_min\""),
    REAL_ROW(lambda_min_clipped, -(double)INFINITY, DBL_MAX),
    FIXED_ROW("use_karras_sigmas", "false"),
    FIXED_ROW("use_exponential_sigmas", "false"),
    FIXED_ROW("use_beta_sigmas", "false"),
    FIXED_ROW("use_lu_lambdas", "false"),
    FIXED_ROW("use_flow_sigmas", "false"),
    UNUSED_ROW("flow_shift", "1.0"), /* of use_flow_sigmas */
    FIXED_ROW("use_dynamic_shifting", "false"),
    FIXED_ROW("time_shift_type", "\"exponential\""),
    FIXED_ROW("variance_type", "null"),
    READ_ONLY_ROW(clip_sample), /* this and the next are DDPMScheduler's */
    {.name = "clip_sample_range", .kind = REAL, .offset = AT(clip_sample_range), .low = DBL_MIN, .high = DBL_MAX,
     .flags = READ_ONLY},
    {.name = NULL}};
static const form schedule_forms[] = { /* in the order of ddpm_sampler */
    {"the scheduler_config.json of a DDPMScheduler", ddpm_fields},
    {"the scheduler_config.json of a DDIMScheduler", ddim_fields},
    {"the scheduler_config.json of a DPMSolverMultistepScheduler", solver_fields}};
static const char *const schedule_class[] = {"DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", NULL};
#undef DOCUMENT

#define DOCUMENT ddpm_label_config
static const field label_fields[] = {REQUIRED_ROW(num_classes, 1, MANY), REQUIRED_ROW(hidden_dim, 1, MANY),
                                     REQUIRED_ROW(embedding_dim, 1, MANY), {.name = NULL}};
static const form label_form = {"a label encoder's config.json", label_fields};
#undef DOCUMENT

#define DOCUMENT io_model_info
static const field model_fields[] = {
    FIXED_ROW("_class_name", "\"DDPMPipeline\""),
    FIXED_ROW("_diffusers_version", "\"0.42.1\""),
    FIXED_ROW("unet", "[\"diffusers\",\"UNet2DModel\"]"),
    FIXED_ROW("scheduler", "[\"diffusers\",\"DDPMScheduler\"]", "[\"diffusers\",\"DDIMScheduler\"]",
              "[\"diffusers\",\"DPMSolverMultistepScheduler\"]"),
    INTEGER_ROW(version, 1, IO_MODEL_VERSION),
    {.name = "class_names", .kind = TEXTS, .offset = AT(class_name), .count = AT(classes)},
    NULLABLE_ROW(none_class, 0, MANY),
    REAL_ROW(label_dropout, 0, 1),
    INTEGER_ROW(pixel_unshuffle, 1, 64),
    NULLABLE_ROW(height, 1, MANY),
    NULLABLE_ROW(width, 1, MANY),
    INTEGER_ROW(num_inference_steps, 0, MANY),
    REAL_ROW(guidance_scale, -100, 100),
    REAL_ROW(guide_scale, 0, 1e6),
    INTEGER_ROW(tries, 1, 1000),
    {.name = NULL}};
static const form model_form = {"a model_index.json", model_fields};
#undef DOCUMENT

#define DOCUMENT io_evaluator_config
static const field evaluator_fields[] = {
    FIXED_ROW("_class_name", "\"ResNet18\""),
    {.name = "width", .kind = REAL, .offset = AT(width), .low = 1.0 / 64, .high = 16, .flags = REQUIRED},
    REQUIRED_ROW(sample_size, 8, 4096),
    {.name = "class_names", .kind = TEXTS, .offset = AT(class_name), .count = AT(classes), .flags = REQUIRED},
    {.name = NULL}};
static const form evaluator_form = {"an evaluator's config.json", evaluator_fields};
#undef DOCUMENT
/* clang-format on */

/* Enums are stored through int. */
_Static_assert(sizeof(ddpm_block_type) == sizeof(int) && sizeof(ddpm_class_type) == sizeof(int),
               "enums have int's size");

/* ---- 2. Reading a field ---------------------------------------------------------------------------------------- */

enum { TEXT = 80 }; /* room for a value in a message */

static const char *type_name(const cJSON *value)
{
    return cJSON_IsNumber(value)   ? "a number"
           : cJSON_IsString(value) ? "a string"
           : cJSON_IsArray(value)  ? "a list"
           : cJSON_IsObject(value) ? "an object"
           : cJSON_IsBool(value)   ? "true or false"
                                   : "null";
}

/* What a field takes, for a message. */
static void describe(const field *f, char *out, size_t size)
{
    size_t used = 0;
    const char *null = f->flags & NULLABLE ? ", or null" : "";
    switch (f->kind) {
    case INTEGER: snprintf(out, size, "a whole number from %.0f to %.0f%s", f->low, f->high, null); return;
    case INTEGERS: snprintf(out, size, "a list of whole numbers from %.0f to %.0f", f->low, f->high); return;
    case SIZE:
        snprintf(out, size, "a whole number from %.0f to %.0f, a pair [height, width] of them, or null", f->low,
                 f->high);
        return;
    case REAL:
        if (f->high == DBL_MAX)
            snprintf(out, size, "a number%s", f->low == 0 ? ", not negative" : f->low > 0 ? " above 0" : "");
        else
            snprintf(out, size, "a number from %g to %g", f->low, f->high);
        return;
    case BOOLEAN: snprintf(out, size, "true, false"); return;
    case UNUSED: snprintf(out, size, "a number"); return;
    case TEXTS: snprintf(out, size, "a list of strings"); return;
    case REALS: snprintf(out, size, "a list of numbers from %g to %g, or null", f->low, f->high); return;
    case CHOICES: used = (size_t)snprintf(out, size, "a list of "); break;
    case CHOICE:
    case FIXED: break;
    }
    for (int i = 0; f->accepted[i] && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", f->accepted[i]);
}

static ddpm_result refuse(const char *name, const field *f, const cJSON *value, ddpm_result code)
{
    char text[TEXT], accepted[200];
    describe(f, accepted, sizeof accepted);
    int typed = cJSON_IsNumber(value) || cJSON_IsString(value); /* "2" looks like 2: say what it is */
    return ddpm_fail(code, "%s: %s is %s%s%s%s; accepted: %s\n      hint: %s", name, f->name,
                     io_json_text(value, text, sizeof text), typed ? " (" : "", typed ? type_name(value) : "",
                     typed ? ")" : "", accepted,
                     code == DDPM_ERR_UNSUPPORTED
                         ? "this program does not implement other values; train or convert to an accepted one"
                         : "correct the value in the file");
}

/* Index of a value in the accepted texts, or -1. */
static int choose(const field *f, const cJSON *value)
{
    char text[TEXT];
    io_json_text(value, text, sizeof text);
    for (int i = 0; f->accepted[i]; i++)
        if (!strcmp(text, f->accepted[i])) return i;
    return -1;
}

static int whole(const field *f, const cJSON *value, int *out)
{
    int64_t number = (int64_t)f->low - 1;
    if (!(f->flags & NULLABLE && cJSON_IsNull(value)) &&
        !io_json_integer(value, (int64_t)f->low, (int64_t)f->high, &number))
        return 0;
    *out = (int)number;
    return 1;
}

/* A wrong string for a choice is something diffusers may know; another type is a mistake. */
static ddpm_result code_for(const cJSON *value)
{
    return cJSON_IsString(value) ? DDPM_ERR_UNSUPPORTED : DDPM_ERR_ARGUMENT;
}

static ddpm_result read_list(const char *name, const field *f, const cJSON *value, unsigned char *document)
{
    int entry[DDPM_MAX_LEVELS] = {0}, count = cJSON_IsArray(value) ? cJSON_GetArraySize(value) : 0;
    if (count < 1) return refuse(name, f, value, DDPM_ERR_ARGUMENT);
    if (count > DDPM_MAX_LEVELS)
        return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                         "%s: %s has %d entries; accepted: at most %d levels\n"
                         "      hint: DDPM_MAX_LEVELS in ddpm.h can be raised; build again after that",
                         name, f->name, count, DDPM_MAX_LEVELS);
    int i = 0;
    for (const cJSON *item = value->child; item; item = item->next, i++) {
        if (f->kind == CHOICES && (entry[i] = choose(f, item)) < 0) return refuse(name, f, item, code_for(item));
        if (f->kind == INTEGERS && !whole(f, item, &entry[i])) return refuse(name, f, item, DDPM_ERR_ARGUMENT);
    }
    memcpy(document + f->offset, entry, sizeof entry);
    memcpy(document + f->count, &count, sizeof count);
    return DDPM_OK;
}

static ddpm_result read_size(const char *name, const field *f, const cJSON *value, unsigned char *document)
{
    int size[2] = {0, 0};
    const cJSON *height = cJSON_IsArray(value) ? value->child : value,
                *width = cJSON_IsArray(value) ? cJSON_GetArrayItem(value, 1) : value;
    int pair = !cJSON_IsArray(value) || cJSON_GetArraySize(value) == 2;
    if (!cJSON_IsNull(value) && (!pair || !whole(f, height, &size[0]) || !whole(f, width, &size[1])))
        return refuse(name, f, value, DDPM_ERR_ARGUMENT);
    memcpy(document + f->offset, size, sizeof size);
    return DDPM_OK;
}

static void free_texts(char **text, int count)
{
    for (int i = 0; i < count; i++)
        free(text[i]);
    free(text);
}

/* Copies of `count` texts, or NULL with the error recorded. */
static char **copy_texts(const char *const *text, int count)
{
    char **copy = calloc((size_t)count + 1, sizeof *copy);
    for (int i = 0; copy && i < count; i++) {
        size_t size = strlen(text[i]) + 1;
        copy[i] = malloc(size);
        if (!copy[i]) {
            free_texts(copy, i);
            copy = NULL;
        } else
            memcpy(copy[i], text[i], size);
    }
    if (!copy) ddpm_fail(DDPM_ERR_MEMORY, "no memory for %d class names\n      hint: close other programs", count);
    return copy;
}

static ddpm_result read_texts(const char *name, const field *f, const cJSON *value, unsigned char *document)
{
    int count = cJSON_IsArray(value) ? cJSON_GetArraySize(value) : -1, i = 0;
    const char **text = count >= 0 ? malloc(((size_t)count + 1) * sizeof *text) : NULL;
    if (count < 0) return refuse(name, f, value, DDPM_ERR_ARGUMENT);
    if (!text)
        return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d class names\n      hint: close other programs", name,
                         count);
    for (const cJSON *item = value->child; item; item = item->next) {
        if (!cJSON_IsString(item)) {
            free(text);
            return refuse(name, f, item, DDPM_ERR_ARGUMENT);
        }
        text[i++] = item->valuestring;
    }
    char **copy = copy_texts(text, count);
    free(text);
    if (!copy) return DDPM_ERR_MEMORY;
    memcpy(document + f->offset, &copy, sizeof copy);
    memcpy(document + f->count, &count, sizeof count);
    return DDPM_OK;
}

static ddpm_result read_reals(const char *name, const field *f, const cJSON *value, unsigned char *document)
{
    int count = cJSON_IsArray(value) ? cJSON_GetArraySize(value) : 0, i = 0;
    if (cJSON_IsNull(value)) return DDPM_OK;
    if (count < 1) return refuse(name, f, value, DDPM_ERR_ARGUMENT);
    double *list = malloc((size_t)count * sizeof *list);
    if (!list)
        return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %d numbers\n      hint: close other programs", name,
                         count);
    for (const cJSON *item = value->child; item; item = item->next) {
        list[i++] = item->valuedouble;
        if (cJSON_IsNumber(item) && item->valuedouble >= f->low && item->valuedouble <= f->high) continue;
        free(list);
        return refuse(name, f, item, DDPM_ERR_ARGUMENT);
    }
    memcpy(document + f->offset, &list, sizeof list);
    memcpy(document + f->count, &count, sizeof count);
    return DDPM_OK;
}

static ddpm_result read_field(const char *name, const field *f, const cJSON *value, unsigned char *document)
{
    int integer = 0;
    switch (f->kind) {
    case INTEGER:
        if (!whole(f, value, &integer)) return refuse(name, f, value, DDPM_ERR_ARGUMENT);
        break;
    case BOOLEAN:
        if (!cJSON_IsBool(value)) return refuse(name, f, value, DDPM_ERR_ARGUMENT);
        integer = cJSON_IsTrue(value);
        break;
    case CHOICE:
        if ((integer = choose(f, value)) < 0) return refuse(name, f, value, code_for(value));
        break;
    case REAL:
        if (!cJSON_IsNumber(value) || !(value->valuedouble >= f->low && value->valuedouble <= f->high))
            return refuse(name, f, value, DDPM_ERR_ARGUMENT);
        memcpy(document + f->offset, &value->valuedouble, sizeof(double));
        return DDPM_OK;
    case FIXED: return choose(f, value) < 0 ? refuse(name, f, value, DDPM_ERR_UNSUPPORTED) : DDPM_OK;
    case UNUSED: return cJSON_IsNumber(value) ? DDPM_OK : refuse(name, f, value, DDPM_ERR_ARGUMENT);
    case INTEGERS:
    case CHOICES: return read_list(name, f, value, document);
    case SIZE: return read_size(name, f, value, document);
    case TEXTS: return read_texts(name, f, value, document);
    case REALS: return read_reals(name, f, value, document);
    }
    memcpy(document + f->offset, &integer, sizeof integer);
    return DDPM_OK;
}

/* ---- 3. Reading a file ----------------------------------------------------------------------------------------- */

static ddpm_result read_member(const char *name, const form *form, const cJSON *value, unsigned char *document,
                               uint64_t *seen)
{
    char text[TEXT];
    if (value->string[0] == '_') return DDPM_OK;
    int row = 0;
    while (form->fields[row].name && strcmp(form->fields[row].name, value->string))
        row++;
    if (!form->fields[row].name)
        return ddpm_fail(
            DDPM_ERR_UNSUPPORTED,
            "%s: field '%.80s' with value %s is unknown; accepted: the fields of %s\n"
            "      hint: a misspelling, or a feature this program does not have; remove it if it has no effect",
            name, value->string, io_json_text(value, text, sizeof text), form->what);
    if (*seen >> row & 1)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: field '%s' is there twice\n      hint: keep one of the two", name,
                         value->string);
    *seen |= UINT64_C(1) << row;
    return read_field(name, &form->fields[row], value, document);
}

/* `document` holds the defaults, and on failure possibly some of the values. */
static ddpm_result read_form(const char *name, const form *form, const cJSON *object, void *document)
{
    uint64_t seen = 0; /* one bit a row; no table has 64 */
    if (!cJSON_IsObject(object))
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: not a JSON object\n      hint: %s was expected", name, form->what);
    for (const cJSON *value = object->child; value; value = value->next) {
        ddpm_result result = read_member(name, form, value, document, &seen);
        if (result) return result;
    }
    for (int row = 0; form->fields[row].name; row++)
        if (form->fields[row].flags & REQUIRED && !(seen >> row & 1))
            return ddpm_fail(DDPM_ERR_FORMAT, "%s: field '%s' is missing\n      hint: %s was expected", name,
                             form->fields[row].name, form->what);
    return DDPM_OK;
}

static ddpm_result parse_form(const char *text, size_t size, const char *name, const form *form, void *document)
{
    cJSON *object = io_json_parse(text, size, name);
    ddpm_result result = object ? read_form(name, form, object, document) : DDPM_ERR_FORMAT;
    cJSON_Delete(object);
    return result;
}

/* ---- 4. Writing ------------------------------------------------------------------------------------------------ */

/* The shortest text that reads back as the same double (cJSON's own may be off in the last bit). */
static cJSON *real_value(double value)
{
    char text[40];
    for (int digits = 1; digits <= DBL_DECIMAL_DIG; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    char *comma = strchr(text, ','); /* a program may have set a locale that writes 0,5 */
    if (comma) *comma = '.';
    if (isinf(value)) return cJSON_CreateRaw(value < 0 ? "-Infinity" : "Infinity"); /* as Python's json writes it */
    return isfinite(value) ? cJSON_CreateRaw(text) : cJSON_CreateNull();
}

static cJSON *integer_value(const field *f, int value)
{
    return f->flags & NULLABLE && value == f->low - 1 ? cJSON_CreateNull() : cJSON_CreateNumber(value);
}

static cJSON *choice_value(const field *f, int index)
{
    int count = 0;
    while (f->accepted[count])
        count++;
    return index >= 0 && index < count ? cJSON_CreateRaw(f->accepted[index]) : cJSON_CreateNumber(index);
}

static cJSON *list_value(const field *f, const unsigned char *document)
{
    int count, entry[DDPM_MAX_LEVELS];
    memcpy(&count, document + f->count, sizeof count);
    memcpy(entry, document + f->offset, sizeof entry);
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; list && i < count && i < DDPM_MAX_LEVELS; i++)
        if (!cJSON_AddItemToArray(list,
                                  f->kind == CHOICES ? choice_value(f, entry[i]) : cJSON_CreateNumber(entry[i]))) {
            cJSON_Delete(list);
            return NULL;
        }
    return list;
}

static cJSON *size_value(const unsigned char *place)
{
    int size[2];
    memcpy(size, place, sizeof size);
    if (!size[0] && !size[1]) return cJSON_CreateNull();
    return size[0] == size[1] ? cJSON_CreateNumber(size[0]) : cJSON_CreateIntArray(size, 2);
}

static cJSON *texts_value(const field *f, const unsigned char *document)
{
    char **text;
    int count;
    memcpy(&text, document + f->offset, sizeof text);
    memcpy(&count, document + f->count, sizeof count);
    return count ? cJSON_CreateStringArray((const char *const *)text, count) : cJSON_CreateArray();
}

static cJSON *reals_value(const field *f, const unsigned char *document)
{
    double *number;
    int count;
    memcpy(&number, document + f->offset, sizeof number);
    memcpy(&count, document + f->count, sizeof count);
    if (!number) return cJSON_CreateNull();
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; list && i < count; i++)
        if (!cJSON_AddItemToArray(list, real_value(number[i]))) {
            cJSON_Delete(list);
            return NULL;
        }
    return list;
}

static cJSON *field_value(const field *f, const unsigned char *document)
{
    const unsigned char *place = document + f->offset;
    int integer;
    double real;
    switch (f->kind) {
    case REAL: memcpy(&real, place, sizeof real); return real_value(real);
    case FIXED:
    case UNUSED: return cJSON_CreateRaw(f->accepted[0]);
    case INTEGERS:
    case CHOICES: return list_value(f, document);
    case SIZE: return size_value(place);
    case TEXTS: return texts_value(f, document);
    case REALS: return reals_value(f, document);
    default: break;
    }
    memcpy(&integer, place, sizeof integer);
    return f->kind == INTEGER  ? integer_value(f, integer)
           : f->kind == CHOICE ? choice_value(f, integer)
                               : cJSON_CreateBool(integer);
}

/* Writes a document's fields. `scratch`, a document of defaults, receives what reading the text again gives: a value
 * that could not be read back is refused before anything is written. */
static ddpm_result write_form(const char *path, const form *form, const void *document, void *scratch)
{
    cJSON *object = cJSON_CreateObject();
    int made = object != NULL;
    for (const field *f = form->fields; made && f->name; f++) {
        if (f->flags & READ_ONLY) continue;
        cJSON *value = field_value(f, document);
        made = cJSON_AddItemToObject(object, f->name, value);
        if (!made) cJSON_Delete(value);
    }
    char *text = made ? cJSON_Print(object) : NULL;
    cJSON_Delete(object);
    if (!text) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for its text\n      hint: close other programs", path);
    size_t length = strlen(text);
    ddpm_result result = parse_form(text, length, path, form, scratch);
    text[length] = '\n'; /* in place of the 0: a text file ends with a newline */
    if (!result) result = io_write_file(path, text, length + 1);
    cJSON_free(text);
    return result;
}

/* ---- 5. The kinds of files ------------------------------------------------------------------------------------- */

/* Reads the file and parses it: the form of each _read below. */
#define READ(parse)                                                                                                    \
    unsigned char *text;                                                                                               \
    size_t size;                                                                                                       \
    ddpm_result result = io_read_file(path, &text, &size);                                                             \
    if (!result) result = parse((const char *)text, size, path, out);                                                  \
    free(text);                                                                                                        \
    return result

ddpm_result io_unet_config_parse(const char *text, size_t size, const char *name, ddpm_unet_config *out)
{
    ddpm_unet_config config = ddpm_model_default().unet;
    unet_document document = {config, config.levels, config.levels, config.levels};
    ddpm_result result = parse_form(text, size, name, &unet_form, &document);
    if (result) return result;
    if (document.channels != document.downs || document.channels != document.ups)
        return ddpm_fail(
            DDPM_ERR_ARGUMENT,
            "%s: block_out_channels has %d entries, down_block_types %d, up_block_types %d; accepted: as many of each\n"
            "      hint: one that is left out has diffusers' default of %d",
            name, document.channels, document.downs, document.ups, config.levels);
    document.config.levels = document.channels;
    for (int i = document.channels; i < DDPM_MAX_LEVELS; i++) { /* nothing of a longer default stays */
        document.config.block_out_channels[i] = 0;
        document.config.down_block_types[i] = document.config.up_block_types[i] = DDPM_PLAIN_BLOCK;
    }
    *out = document.config;
    return DDPM_OK;
}

ddpm_result io_unet_config_read(const char *path, ddpm_unet_config *out)
{
    READ(io_unet_config_parse);
}

ddpm_result io_unet_config_write(const char *path, const ddpm_unet_config *config)
{
    unet_document document = {*config, config->levels, config->levels, config->levels}, scratch = document;
    return write_form(path, &unet_form, &document, &scratch);
}

/* The scheduler that a file is of, by its _class_name; DDPMScheduler if it has none. */
static ddpm_result schedule_kind(const char *name, const cJSON *object, ddpm_sampler *out)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, "_class_name");
    char text[TEXT];
    *out = DDPM_SAMPLER_DDPM;
    for (int i = 0; value && schedule_class[i]; i++)
        if (cJSON_IsString(value) && !strcmp(value->valuestring, schedule_class[i])) {
            *out = (ddpm_sampler)i;
            return DDPM_OK;
        }
    if (!value) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_UNSUPPORTED,
                     "%s: _class_name is %s; accepted: \"%s\", \"%s\", \"%s\"\n"
                     "      hint: diffusers converts: DDPMScheduler.from_config(scheduler.config).save_pretrained(...)",
                     name, io_json_text(value, text, sizeof text), schedule_class[0], schedule_class[1],
                     schedule_class[2]);
}

void io_schedule_config_free(ddpm_schedule_config *config)
{
    double *betas;
    memcpy(&betas, &config->trained_betas, sizeof betas); /* const to all others */
    free(betas);
    config->trained_betas = NULL;
}

/* The defaults of __init__: DDPMScheduler's but for what others have otherwise. */
static ddpm_result read_schedule(const char *name, const cJSON *object, schedule_document *document)
{
    ddpm_sampler kind;
    *document = (schedule_document){ddpm_schedule_default(), 0};
    ddpm_schedule_config *config = &document->config;
    ddpm_result result = schedule_kind(name, object, &kind);
    if (result) return result;
    config->scheduler = kind;
    config->beta_schedule = DDPM_BETA_LINEAR;
    if (kind == DDPM_SAMPLER_DPMSOLVER) config->timestep_spacing = DDPM_SPACING_LINSPACE;
    result = read_form(name, &schedule_forms[kind], object, document);
    if (!result && config->trained_betas && document->trained != config->num_train_timesteps)
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s: trained_betas has %d numbers, num_train_timesteps is %d\n      hint: as many of each",
                           name, document->trained, config->num_train_timesteps);
    if (result) io_schedule_config_free(config);
    return result;
}

ddpm_result io_schedule_config_parse(const char *text, size_t size, const char *name, ddpm_schedule_config *out)
{
    schedule_document document;
    cJSON *object = io_json_parse(text, size, name);
    ddpm_result result = object ? read_schedule(name, object, &document) : DDPM_ERR_FORMAT;
    cJSON_Delete(object);
    if (!result) *out = document.config;
    return result;
}

ddpm_result io_schedule_config_read(const char *path, ddpm_schedule_config *out)
{
    READ(io_schedule_config_parse);
}

ddpm_result io_schedule_config_write(const char *path, const ddpm_schedule_config *config)
{
    schedule_document document = {*config, config->num_train_timesteps}, scratch = document;
    if ((unsigned)config->scheduler > DDPM_SAMPLER_DPMSOLVER)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: there is no scheduler of number %d", path, (int)config->scheduler);
    scratch.config.trained_betas = NULL;
    ddpm_result result = write_form(path, &schedule_forms[config->scheduler], &document, &scratch);
    io_schedule_config_free(&scratch.config);
    return result;
}

ddpm_result io_label_config_parse(const char *text, size_t size, const char *name, ddpm_label_config *out)
{
    ddpm_label_config config = {0};
    ddpm_result result = parse_form(text, size, name, &label_form, &config);
    if (!result) *out = config;
    return result;
}

ddpm_result io_label_config_read(const char *path, ddpm_label_config *out)
{
    READ(io_label_config_parse);
}

ddpm_result io_label_config_write(const char *path, const ddpm_label_config *config)
{
    ddpm_label_config scratch = *config;
    return write_form(path, &label_form, config, &scratch);
}

io_model_info io_model_info_default(void)
{
    return (io_model_info){
        .none_class = -1, .pixel_unshuffle = 1, .guidance_scale = 1, .tries = 1, .version = IO_MODEL_VERSION};
}

void io_model_info_free(io_model_info *info)
{
    free_texts(info->class_name, info->classes);
    *info = io_model_info_default();
}

ddpm_result io_model_info_set_classes(io_model_info *info, const char *const *class_name, int classes)
{
    char **copy = copy_texts(class_name, classes);
    if (!copy) return DDPM_ERR_MEMORY;
    free_texts(info->class_name, info->classes);
    info->class_name = copy;
    info->classes = classes;
    return DDPM_OK;
}

ddpm_result io_model_info_parse(const char *text, size_t size, const char *name, io_model_info *out)
{
    io_model_info info = io_model_info_default();
    ddpm_result result = parse_form(text, size, name, &model_form, &info);
    if (result)
        io_model_info_free(&info);
    else
        *out = info;
    return result;
}

ddpm_result io_model_info_read(const char *path, io_model_info *out)
{
    READ(io_model_info_parse);
}

ddpm_result io_model_info_write(const char *path, const io_model_info *info)
{
    io_model_info document = *info, scratch = io_model_info_default();
    document.version = IO_MODEL_VERSION;
    ddpm_result result = write_form(path, &model_form, &document, &scratch);
    io_model_info_free(&scratch);
    return result;
}

void io_evaluator_config_free(io_evaluator_config *config)
{
    free_texts(config->class_name, config->classes);
    *config = (io_evaluator_config){0};
}

ddpm_result io_evaluator_config_parse(const char *text, size_t size, const char *name, io_evaluator_config *out)
{
    io_evaluator_config config = {0};
    ddpm_result result = parse_form(text, size, name, &evaluator_form, &config);
    if (!result && !config.classes)
        result = ddpm_fail(DDPM_ERR_ARGUMENT, "%s: class_names is empty; accepted: at least one name", name);
    if (result)
        io_evaluator_config_free(&config);
    else
        *out = config;
    return result;
}

ddpm_result io_evaluator_config_read(const char *path, io_evaluator_config *out)
{
    READ(io_evaluator_config_parse);
}

ddpm_result io_evaluator_config_write(const char *path, const io_evaluator_config *config)
{
    io_evaluator_config scratch = {0};
    ddpm_result result = write_form(path, &evaluator_form, config, &scratch);
    io_evaluator_config_free(&scratch);
    return result;
}
