/* cli/options.c - parses arguments by table, explains what it does not understand, prints the help.
 *
 * Contents: 1 names   2 values   3 parsing   4 help   5 settings as JSON */
#include "cli/options.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char CLI_REQUIRED[] = "(required)";

/* ---- 1. Names ------------------------------------------------------------------------------------------------ */

static char plain(char c)
{
    return c == '-' ? '_' : c;
}

static int same_name(const char *a, const char *b, size_t b_length)
{
    size_t i = 0;
    for (; i < b_length && a[i] != '\0'; i++)
        if (plain(a[i]) != plain(b[i])) return 0;
    return a[i] == '\0' && i == b_length;
}

/* One row of the dynamic programme at a time: row[j] = distance between the first i letters of a and the first j
 * of b. */
int cli_edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 63 };
    int row[LONGEST + 1];
    size_t length = strlen(b);
    if (strlen(a) > LONGEST || length > LONGEST) return INT_MAX;
    for (size_t j = 0; j <= length; j++)
        row[j] = (int)j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= length; j++) {
            int replace = diagonal + (plain(a[i - 1]) != plain(b[j - 1]));
            int shorter = 1 + (row[j] < row[j - 1] ? row[j] : row[j - 1]);
            diagonal = row[j];
            row[j] = replace < shorter ? replace : shorter;
        }
    }
    return row[length];
}

/* Copies the next space-separated word of *text to `word`; 0 at the end. */
static int next_word(const char **text, char *word, size_t room)
{
    if (*text == NULL) return 0;
    *text += strspn(*text, " ");
    size_t length = strcspn(*text, " ");
    if (length == 0 || length >= room) return 0;
    memcpy(word, *text, length);
    word[length] = '\0';
    *text += length;
    return 1;
}

static int option_has_name(const cli_option *option, const char *name, size_t length)
{
    if (same_name(option->name, name, length)) return 1;
    char alias[64];
    for (const char *rest = option->aliases; next_word(&rest, alias, sizeof alias);)
        if (same_name(alias, name, length)) return 1;
    return 0;
}

static const cli_option *find_option(const cli_option *table, const char *name, size_t length)
{
    for (; table->name != NULL; table++)
        if (option_has_name(table, name, length)) return table;
    return NULL;
}

/* Keeps in `best` the name or alias of the table that is nearest to `name`. */
static void nearest_option(const cli_option *table, const char *name, char *best, size_t room, int *distance)
{
    for (; table->name != NULL; table++) {
        char alias[64];
        const char *rest = table->aliases;
        snprintf(alias, sizeof alias, "%s", table->name);
        do {
            int d = cli_edit_distance(alias, name);
            if (d < *distance) {
                *distance = d;
                snprintf(best, room, "%s", alias);
            }
        } while (next_word(&rest, alias, sizeof alias));
    }
}

int cli_usage_error(const char *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "ddpm: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n      see: ddpm %s --help\n", command);
    return CLI_USAGE;
}

/* ---- 2. Values ----------------------------------------------------------------------------------------------- */

/* A value that cannot be used is described in this much text. */
typedef char complaint[200];

static int parse_int(const char *text, size_t length, const cli_option *o, int *out, complaint why)
{
    char digits[32] = "";
    char *end = digits;
    long value = 0;
    errno = 0;
    if (length > 0 && length < sizeof digits && text[0] != ' ') {
        memcpy(digits, text, length);
        digits[length] = '\0';
        value = strtol(digits, &end, 10);
    }
    if (end == digits || *end != '\0') {
        snprintf(why, sizeof(complaint), "is not a whole number");
        return 0;
    }
    if (errno != 0 || (double)value < o->low || (double)value > o->high) {
        snprintf(why, sizeof(complaint), "is outside %.0f to %.0f", o->low, o->high);
        return 0;
    }
    *out = (int)value;
    return 1;
}

static int parse_seed(const char *text, uint64_t *out, complaint why)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0) {
        snprintf(why, sizeof(complaint), "is not a whole number of 0 to 2^64 - 1");
        return 0;
    }
    *out = value;
    return 1;
}

static int parse_real(const char *text, const cli_option *o, double *out, complaint why)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || text[0] == ' ' || !isfinite(value)) {
        snprintf(why, sizeof(complaint), "is not a number");
        return 0;
    }
    if (value < o->low || value > o->high) {
        snprintf(why, sizeof(complaint), "is outside %g to %g", o->low, o->high);
        return 0;
    }
    *out = value;
    return 1;
}

static int parse_choice(const char *text, const cli_option *o, int *out, complaint why)
{
    int index = 0;
    for (const char *word = o->argument;; index++) {
        size_t length = strcspn(word, "|");
        if (same_name(text, word, length)) {
            *out = index;
            return 1;
        }
        if (word[length] == '\0') break;
        word += length + 1;
    }
    snprintf(why, sizeof(complaint), "is not one of %s", o->argument);
    return 0;
}

static int parse_size(const char *text, const cli_option *o, int size[2], complaint why)
{
    const char *x = strchr(text, 'x');
    size_t first = x != NULL ? (size_t)(x - text) : strlen(text);
    const char *second = x != NULL ? x + 1 : text;
    if (parse_int(text, first, o, &size[0], why) && parse_int(second, strlen(second), o, &size[1], why)) return 1;
    if (strstr(why, "outside") == NULL) snprintf(why, sizeof(complaint), "is not a size: N, or WIDTHxHEIGHT");
    return 0;
}

static int parse_list(const char *text, const cli_option *o, cli_list *list, complaint why)
{
    for (list->count = 0;;) {
        size_t length = strcspn(text, ",");
        if (list->count == CLI_LIST_MAX) {
            snprintf(why, sizeof(complaint), "has more than %d entries", CLI_LIST_MAX);
            return 0;
        }
        if (!parse_int(text, length, o, &list->value[list->count], why)) return 0;
        list->count++;
        if (text[length] == '\0') return 1;
        text += length + 1;
    }
}

static int add_text(const char *text, cli_texts *texts, complaint why)
{
    if (texts->count == CLI_LIST_MAX) {
        snprintf(why, sizeof(complaint), "is one too many: at most %d", CLI_LIST_MAX);
        return 0;
    }
    texts->value[texts->count++] = text;
    return 1;
}

static int set_value(const cli_option *o, const char *text, complaint why)
{
    switch (o->kind) {
    case CLI_FLAG: *(int *)o->value = 1; return 1;
    case CLI_INT: return parse_int(text, strlen(text), o, o->value, why);
    case CLI_SEED: return parse_seed(text, o->value, why);
    case CLI_REAL: return parse_real(text, o, o->value, why);
    case CLI_TEXT: *(const char **)o->value = text; return 1;
    case CLI_CHOICE: return parse_choice(text, o, o->value, why);
    case CLI_SIZE: return parse_size(text, o, o->value, why);
    case CLI_LIST: return parse_list(text, o, o->value, why);
    case CLI_TEXTS: return add_text(text, o->value, why);
    }
    return 0;
}

static void set_zero(const cli_option *o)
{
    switch (o->kind) {
    case CLI_SEED: *(uint64_t *)o->value = 0; break;
    case CLI_REAL: *(double *)o->value = 0; break;
    case CLI_TEXT: *(const char **)o->value = NULL; break;
    case CLI_SIZE: ((int *)o->value)[0] = ((int *)o->value)[1] = 0; break;
    case CLI_LIST: ((cli_list *)o->value)->count = 0; break;
    case CLI_TEXTS: ((cli_texts *)o->value)->count = 0; break;
    default: *(int *)o->value = 0;
    }
}

/* ---- 3. Parsing ---------------------------------------------------------------------------------------------- */

static void set_defaults(const cli_option *table)
{
    for (; table->name != NULL; table++) {
        complaint why;
        set_zero(table);
        if (table->fallback != NULL && table->fallback[0] != '(') set_value(table, table->fallback, why);
    }
}

enum { CLI_TABLE_MAX = 96 };
static const cli_option *parsed[2];  /* the tables of the last cli_parse, [0] the command's, [1] the global one, */
static char given[2][CLI_TABLE_MAX]; /* and which of their options were given */

int cli_given(const cli_option *option)
{
    for (int k = 0; k < 2; k++)
        for (int i = 0; parsed[k] != NULL && parsed[k][i].name != NULL; i++)
            if (&parsed[k][i] == option) return given[k][i];
    return 0;
}

int cli_given_name(const cli_option *table, const char *name)
{
    while (table->name != NULL && strcmp(table->name, name) != 0)
        table++;
    return table->name != NULL && cli_given(table);
}

static int parse_named(const cli_command *command, const cli_option *global, char ***argument)
{
    const char *name = **argument + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const cli_option *table = command->option;
    const cli_option *option = find_option(table, name, length);
    if (option == NULL) option = find_option(table = global, name, length);
    if (option == NULL) {
        char unknown[64], best[64] = "help";
        snprintf(unknown, sizeof unknown, "%.*s", (int)(length < 63 ? length : 63), name);
        int distance = cli_edit_distance("help", unknown);
        nearest_option(command->option, unknown, best, sizeof best, &distance);
        nearest_option(global, unknown, best, sizeof best, &distance);
        return cli_usage_error(command->name, "%s: unknown option --%.*s\n      hint: did you mean --%s?",
                               command->name, (int)length, name, best);
    }
    const char *value = equals != NULL ? equals + 1 : NULL;
    if (option->kind == CLI_FLAG && value != NULL)
        return cli_usage_error(command->name, "%s: --%s takes no value", command->name, option->name);
    if (option->kind != CLI_FLAG && value == NULL) {
        const char *next = (*argument)[1];
        if (next == NULL || strncmp(next, "--", 2) == 0)
            return cli_usage_error(command->name, "%s: --%s needs a value: --%s %s", command->name, option->name,
                                   option->name, option->argument);
        value = next;
        (*argument)++;
    }
    complaint why;
    if (!set_value(option, value, why))
        return cli_usage_error(command->name, "%s: --%s: '%s' %s", command->name, option->name, value, why);
    given[table == global][option - table] = 1;
    return CLI_DONE;
}

static int parse_positional(const cli_command *command, const char *text, int position)
{
    for (const cli_option *o = command->option; o->name != NULL; o++) {
        if (o->position == 0 || (o->kind == CLI_TEXTS ? o->position > position : o->position != position)) continue;
        complaint why;
        if (!set_value(o, text, why))
            return cli_usage_error(command->name, "%s: %s: '%s' %s", command->name, o->name, text, why);
        given[0][o - command->option] = 1;
        return CLI_DONE;
    }
    return cli_usage_error(command->name, "%s: unexpected argument '%s'\n      hint: a text with spaces needs quotes",
                           command->name, text);
}

int cli_parse(const cli_command *command, const cli_option *global, int argc, char **argv, int *help)
{
    int only_positional = 0, position = 0;
    *help = 0;
    memset(given, 0, sizeof given);
    parsed[0] = command->option;
    parsed[1] = global;
    set_defaults(command->option);
    set_defaults(global);
    for (char **argument = argv; argument < argv + argc && *argument != NULL; argument++) {
        const char *text = *argument;
        int status = CLI_DONE;
        if (!only_positional && strcmp(text, "--") == 0) {
            only_positional = 1;
        } else if (!only_positional && (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0)) {
            *help = 1;
            return CLI_DONE;
        } else if (!only_positional && strncmp(text, "--", 2) == 0) {
            status = parse_named(command, global, &argument);
        } else if (!only_positional && text[0] == '-' && text[1] != '\0') {
            status =
                cli_usage_error(command->name, "%s: unknown option %s\n      hint: options begin with two dashes: -%s",
                                command->name, text, text);
        } else {
            status = parse_positional(command, text, ++position);
        }
        if (status != CLI_DONE) return status;
    }
    for (const cli_option *o = command->option; o->name != NULL; o++)
        if (o->fallback == CLI_REQUIRED && !given[0][o - command->option])
            return cli_usage_error(command->name, "%s: %s%s is missing\n      usage: ddpm %s %s", command->name,
                                   o->position ? "" : "--", o->position ? o->argument : o->name, command->name,
                                   command->usage);
    return CLI_DONE;
}

/* ---- 4. Help ------------------------------------------------------------------------------------------------- */

enum { HELP_INDENT = 28, HELP_WIDTH = 100 };

/* Prints the words of a text from column HELP_INDENT on, broken before HELP_WIDTH. */
static void print_wrapped(const char *text)
{
    int column = HELP_INDENT;
    for (const char *word = text; *word != '\0'; word += strspn(word, " ")) {
        int length = (int)strcspn(word, " ");
        if (column > HELP_INDENT && column + 1 + length > HELP_WIDTH) {
            printf("\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        column += printf(column > HELP_INDENT ? " %.*s" : "%.*s", length, word);
        word += length;
    }
    printf("\n");
}

/* "epochs between checkpoints (default 3); also --save_per_epoch, --save_model_epochs" */
static void describe_option(const cli_option *o, char *text, size_t room)
{
    char alias[64];
    const char *before = "; also";
    int used = snprintf(text, room, "%s", o->help);
    if (o->fallback != NULL)
        used +=
            snprintf(text + used, room - (size_t)used, o->fallback[0] == '(' ? " %s" : " (default %s)", o->fallback);
    for (const char *rest = o->aliases; next_word(&rest, alias, sizeof alias); before = ",")
        used += snprintf(text + used, room - (size_t)used, "%s --%s", before, alias);
}

static void print_option(const cli_option *o)
{
    char text[1024];
    describe_option(o, text, sizeof text);
    int column = printf("  --%s%s%s", o->name, o->argument != NULL ? " " : "", o->argument != NULL ? o->argument : "");
    if (column >= HELP_INDENT)
        printf("\n%*s", HELP_INDENT, "");
    else
        printf("%*s", HELP_INDENT - column, "");
    print_wrapped(text);
}

void cli_print_help(const cli_command *command, const cli_option *global)
{
    printf("usage: ddpm %s %s\n\nddpm %s %s.\n", command->name, command->usage, command->name, command->summary);
    if (command->details != NULL) printf("%s\n", command->details);
    printf("\nOptions: --name value or --name=value; dashes and underscores are the same.\n");
    for (const cli_option *o = command->option; o->name != NULL; o++)
        print_option(o);
    printf("\nEverywhere:\n");
    for (const cli_option *o = global; o->name != NULL; o++)
        print_option(o);
    printf("  --help                    this text\n");
}

/* ---- 5. Settings as JSON ------------------------------------------------------------------------------------- */

static cJSON *value_to_json(const cli_option *o)
{
    char number[32];
    switch (o->kind) {
    case CLI_FLAG: return cJSON_CreateBool(*(const int *)o->value);
    case CLI_INT: return cJSON_CreateNumber(*(const int *)o->value);
    case CLI_REAL: return cJSON_CreateNumber(*(const double *)o->value);
    case CLI_LIST:
        return cJSON_CreateIntArray(((const cli_list *)o->value)->value, ((const cli_list *)o->value)->count);
    case CLI_TEXTS: return cJSON_CreateStringArray(((cli_texts *)o->value)->value, ((cli_texts *)o->value)->count);
    case CLI_SIZE: return cJSON_CreateIntArray(o->value, 2);
    case CLI_SEED: /* beyond 2^53 as text: a double cannot hold every uint64_t */
        snprintf(number, sizeof number, "%llu", (unsigned long long)*(const uint64_t *)o->value);
        return *(const uint64_t *)o->value >> 53 != 0 ? cJSON_CreateString(number) : cJSON_CreateRaw(number);
    case CLI_TEXT:
        return *(const char **)o->value != NULL ? cJSON_CreateString(*(const char **)o->value) : cJSON_CreateNull();
    case CLI_CHOICE: {
        const char *word = o->argument;
        for (int i = *(const int *)o->value; i > 0; i--)
            word += strcspn(word, "|") + 1;
        char text[64];
        snprintf(text, sizeof text, "%.*s", (int)strcspn(word, "|"), word);
        return cJSON_CreateString(text);
    }
    }
    return NULL;
}

static void option_key(const cli_option *option, char *key, size_t size)
{
    size_t i = 0;
    for (; option->name[i] != '\0' && i + 1 < size; i++)
        key[i] = plain(option->name[i]);
    key[i] = '\0';
}

int cli_settings_to_json(const cli_option *option, cJSON *object)
{
    for (; option->name != NULL; option++) {
        char key[64];
        option_key(option, key, sizeof key);
        cJSON *value = value_to_json(option);
        if (value == NULL || !cJSON_AddItemToObject(object, key, value)) {
            cJSON_Delete(value);
            return 0;
        }
    }
    return 1;
}

/* A JSON value as one would type it; 0 if no option is typed like that. */
static int json_to_text(const cJSON *item, const cli_option *o, char *text, size_t size)
{
    if (cJSON_IsNumber(item)) return snprintf(text, size, "%.17g", item->valuedouble) > 0;
    if (cJSON_IsString(item)) return (size_t)snprintf(text, size, "%s", item->valuestring) < size;
    if (!cJSON_IsArray(item)) return 0;
    size_t used = 0;
    const cJSON *entry;
    text[0] = '\0';
    cJSON_ArrayForEach (entry, item) {
        const char *between = used == 0 ? "" : o->kind == CLI_SIZE ? "x" : ",";
        if (!cJSON_IsNumber(entry) || used + 32 > size) return 0;
        used += (size_t)snprintf(text + used, size - used, "%s%.17g", between, entry->valuedouble);
    }
    return 1;
}

/* Zero is what "not given" looks like where the table's default is a description. */
static int stands_for_nothing(const cJSON *item, const cli_option *o)
{
    int zero = cJSON_IsNull(item) || (cJSON_IsNumber(item) && item->valuedouble == 0);
    if (cJSON_IsArray(item)) zero = item->child == NULL || (item->child->valuedouble == 0 && o->kind == CLI_SIZE);
    return zero && (o->fallback == NULL || o->fallback[0] == '(' || o->kind == CLI_TEXT || o->kind == CLI_LIST);
}

const char *cli_settings_from_json(const cli_option *option, const cJSON *object)
{
    static char wrong[400];
    int found = 0;
    for (; option->name != NULL; option++) {
        char key[64], text[1024];
        complaint why;
        option_key(option, key, sizeof key);
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
        found |= item != NULL;
        if (item == NULL || cli_given(option)) continue;
        if (stands_for_nothing(item, option)) {
            set_zero(option);
        } else if (option->kind == CLI_FLAG && cJSON_IsBool(item)) {
            *(int *)option->value = cJSON_IsTrue(item);
        } else if (option->kind == CLI_TEXT && cJSON_IsString(item)) {
            *(const char **)option->value = item->valuestring;
        } else if (option->kind == CLI_FLAG || option->kind == CLI_TEXT ||
                   !json_to_text(item, option, text, sizeof text)) {
            snprintf(wrong, sizeof wrong, "%s: this is not the kind of value that --%s takes", key, option->name);
            return wrong;
        } else if (!set_value(option, text, why)) {
            snprintf(wrong, sizeof wrong, "%s: '%.100s' %.180s", key, text, why);
            return wrong;
        }
    }
    return found ? NULL : "it holds no setting";
}

int cli_setting_differs(const cli_option *option, const cJSON *object)
{
    char key[64];
    option_key(option, key, sizeof key);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    cJSON *now = item != NULL ? value_to_json(option) : NULL;
    char *one = now != NULL ? cJSON_PrintUnformatted(now) : NULL,
         *other = now != NULL ? cJSON_PrintUnformatted(item) : NULL;
    int differs = one != NULL && other != NULL && strcmp(one, other) != 0;
    cJSON_Delete(now);
    free(one);
    free(other);
    return differs;
}
