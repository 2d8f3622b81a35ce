/* cli/options.h - the command line's options: one table a command, from which parsing, checking, --help and the
 * settings written into a run (args.json) are all derived. A default stands in the table as text and is parsed
 * like an argument, so that what --help shows is what happens.
 *
 * Contents: 1 tables   2 parsing   3 help and nearest names   4 settings as JSON */
#ifndef DDPM_CLI_OPTIONS_H
#define DDPM_CLI_OPTIONS_H

/* ---- 1. Tables ----------------------------------------------------------------------------------------------- */

typedef enum cli_kind {
    CLI_FLAG,   /* int: 1 when given; takes no value */
    CLI_INT,    /* int in [low, high] */
    CLI_SEED,   /* uint64_t, any */
    CLI_REAL,   /* double in [low, high] */
    CLI_TEXT,   /* const char *, pointing into argv; NULL when not given */
    CLI_CHOICE, /* int: which of the words in `argument`, separated by '|' */
    CLI_SIZE,   /* int[2]: width, height; "N" stands for NxN; each in [low, high] */
    CLI_LIST,   /* cli_list: whole numbers separated by commas, each in [low, high] */
    CLI_TEXTS   /* cli_texts: one more each time it is given; as a position: all arguments from there on */
} cli_kind;

enum { CLI_LIST_MAX = 32 };
typedef struct cli_list {
    int value[CLI_LIST_MAX], count;
} cli_list;
typedef struct cli_texts { /* pointing into argv */
    const char *value[CLI_LIST_MAX];
    int count;
} cli_texts;

typedef struct cli_option {
    const char *name, *aliases; /* without dashes; aliases separated by spaces, or NULL */
    cli_kind kind;
    const char *argument; /* what --help calls the value, "DIR"; the words of a CLI_CHOICE, "ddpm|ddim"; NULL: a flag */
    const char *fallback; /* the default as one would type it; in parentheses: a description, the value stays zero;
                                   CLI_REQUIRED: must be given; NULL: nothing */
    const char *help;
    void *value;
    double low, high; /* of numbers */
    int position;     /* 1, 2: may also be given without its name, as that argument of the command; 0: may not */
} cli_option;
extern const char CLI_REQUIRED[];

typedef struct cli_ranks { /* that the options ask for; 0: none were named */
    int processes, gpus;
} cli_ranks;

struct cli_context;
typedef struct cli_command {
    const char *name, *usage;                      /* "train", "DATA --out RUN" */
    const char *summary;                           /* one line */
    const char *details;                           /* printed by --help below the usage; may be NULL */
    const cli_option *option;                      /* ends with a NULL name */
    int (*run)(const struct cli_context *context); /* returns the exit status */
    cli_ranks (*ranks)(void);                      /* after parsing; NULL: the command cannot be shared */
} cli_command;

enum { CLI_DONE, CLI_FAILED, CLI_USAGE }; /* exit statuses */

/* ---- 2. Parsing ---------------------------------------------------------------------------------------------- */

/* Sets every option of both tables (the command's own and the global ones) to its default, then reads argv.
 * --name value and --name=value; dashes and underscores are the same; "--" ends the options. Returns CLI_DONE or,
 * after printing what is wrong, CLI_USAGE. *help becomes 1 when --help or -h was met; nothing is then required. */
int cli_parse(const cli_command *command, const cli_option *global, int argc, char **argv, int *help);

/* Prints "ddpm: ..." and a pointer to the command's --help; returns CLI_USAGE. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
int cli_usage_error(const char *command, const char *format, ...);

/* 1 if the option's value came from the command line of the last cli_parse, 0 if it is its default or a file's. */
int cli_given(const cli_option *option);
int cli_given_name(const cli_option *table, const char *name); /* the same of the table's option of that name */

/* ---- 3. Help and nearest names ------------------------------------------------------------------------------- */

void cli_print_help(const cli_command *command, const cli_option *global); /* to stdout */

/* Levenshtein's distance: the fewest insertions, deletions and replacements that turn a into b. Names are compared as
 * options are: '-' is '_'. */
int cli_edit_distance(const char *a, const char *b);

/* ---- 4. Settings as JSON ------------------------------------------------------------------------------------- */

struct cJSON; /* cJSON.h's */
/* Adds every option of the table with its current value to a JSON object, under its name with underscores.
 * Returns 0 when memory ran out. */
int cli_settings_to_json(const cli_option *option, struct cJSON *object);
/* The way back: options that were not given on the command line get the values that the object has for them; texts
 * then point into it. An option that it lacks keeps its value. Returns NULL, or what is wrong with which value, or
 * that it has none for any option, in static memory. */
const char *cli_settings_from_json(const cli_option *option, const struct cJSON *object);
/* 1 if the object has another value for the option than the option has now; 0 also if it has none. */
int cli_setting_differs(const cli_option *option, const struct cJSON *object);

#endif
