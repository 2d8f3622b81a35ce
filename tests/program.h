/* tests/program.h - the program as its users meet it, for the tests of the command line: run as a process in a folder
 * of the test program's own. The program is $DDPM, else the `ddpm` two directories above this test's executable, else
 * ./ddpm. */
#ifndef TESTS_PROGRAM_H
#define TESTS_PROGRAM_H
#include <sys/types.h>

extern char program[1024], folder[256];
extern char *out, *err; /* what the last run printed */

/* For cmocka_run_group_tests: makes the folder and finds the program; removes it. */
int make_folder(void **state);
int remove_folder(void **state);

char *in_folder(const char *name);             /* its path; valid for the next three calls */
void read_back(const char *name, char **text); /* replaces *text by a file's content; free() it */

/* Runs `PROGRAM arguments` by the shell in this directory; "@" in the arguments stands for the test's folder,
 * `before` for what the command begins with (VAR=value). Returns the exit status. */
int run_with(const char *before, const char *arguments);
int run(const char *arguments);
/* The same without waiting for its end, words separated by blanks; finish waits: the exit status, or minus the signal
 * that ended it. */
pid_t start(const char *arguments);
int finish(pid_t child);
void assert_has(const char *text, const char *part);
/* Runs and wants this exit status and this text on stderr. */
void assert_fails(int status, const char *arguments, const char *part);
void assert_runs(const char *arguments);
void shell(const char *command); /* with "@" as above; must succeed */
void assert_picture(const char *name, int width, int height);
void assert_text(const char *name, const char *keyword, const char *wanted); /* in a PNG's text chunks */

/* @/data, 24 pictures of 8 scenes, and @/config.json, a network that trains on them in seconds. */
void make_small_lab(void);

#endif
