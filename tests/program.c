/* tests/program.c - see tests/program.h. */
#include "tests/program.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/picture.h"

char program[1024] = "./ddpm", folder[256];
char *out, *err;

char *in_folder(const char *name)
{
    static char path[4][600];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

void read_back(const char *name, char **text)
{
    size_t size;
    free(*text);
    assert_int_equal(io_read_file(in_folder(name), (unsigned char **)text, &size), DDPM_OK);
}

/* Runs `PROGRAM arguments` by the shell in this directory; "@" in the arguments stands for the test's folder,
 * `before` for what the command begins with (VAR=value). Returns the exit status; out and err hold what it
 * printed. */
int run_with(const char *before, const char *arguments)
{
    char command[4096];
    int used = snprintf(command, sizeof command, "%s \"%s\" ", before, program);
    for (const char *c = arguments; *c != '\0' && used < 3000; c++)
        used += *c == '@' ? snprintf(command + used, sizeof command - (size_t)used, "%s", folder)
                          : snprintf(command + used, sizeof command - (size_t)used, "%c", *c);
    snprintf(command + used, sizeof command - (size_t)used, " > \"%s\" 2> \"%s\" < /dev/null", in_folder("stdout"),
             in_folder("stderr"));
    int status = system(command); /* NOLINT(cert-env33-c): the shell redirects, nothing here is from outside */
    read_back("stdout", &out);
    read_back("stderr", &err);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

pid_t start(const char *arguments)
{
    char text[1000], *word[64];
    int used = 0, words = 0;
    for (const char *c = arguments; *c != '\0' && used < 700; c++)
        used += *c == '@' ? snprintf(text + used, sizeof text - (size_t)used, "%s", folder)
                          : snprintf(text + used, sizeof text - (size_t)used, "%c", *c);
    word[words++] = program;
    for (char *w = strtok(text, " "); w != NULL && words < 63; w = strtok(NULL, " "))
        word[words++] = w;
    word[words] = NULL;
    const char *stdout_path = in_folder("stdout"), *stderr_path = in_folder("stderr");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child > 0) return child;
    if (freopen(stdout_path, "w", stdout) != NULL && freopen(stderr_path, "w", stderr) != NULL) execv(program, word);
    _exit(127);
}

int finish(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    read_back("stdout", &out);
    read_back("stderr", &err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int run(const char *arguments)
{
    return run_with("", arguments);
}

void assert_has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) fail_msg("'%s' is not in:\n%s", part, text);
}

/* Runs and wants this exit status and this text on stderr. */
void assert_fails(int status, const char *arguments, const char *part)
{
    int got = run(arguments);
    if (got != status) fail_msg("ddpm %s: exit status %d instead of %d, it said:\n%s", arguments, got, status, err);
    assert_has(err, part);
    assert_has(err, "ddpm: ");
}

void assert_runs(const char *arguments)
{
    int got = run(arguments);
    if (got != 0) fail_msg("ddpm %s: exit status %d, it said:\n%s", arguments, got, err);
}

void shell(const char *command)
{
    char text[2048];
    int used = 0;
    for (const char *c = command; *c != '\0' && used < 1500; c++)
        used += *c == '@' ? snprintf(text + used, sizeof text - (size_t)used, "%s", folder)
                          : snprintf(text + used, sizeof text - (size_t)used, "%c", *c);
    assert_int_equal(system(text), 0); /* NOLINT(cert-env33-c): as above */
}

void make_small_lab(void)
{
    assert_runs("render --out @/data --scenes 8 --size 32x24 --seed 3");
    shell("echo '{\"sample_size\": 8, \"in_channels\": 3, \"out_channels\": 3, \"layers_per_block\": 1, "
          "\"block_out_channels\": [8, 16], \"down_block_types\": [\"DownBlock2D\", \"AttnDownBlock2D\"], "
          "\"up_block_types\": [\"AttnUpBlock2D\", \"UpBlock2D\"], \"norm_num_groups\": 4, \"dropout\": 0.1, "
          "\"class_embed_type\": \"identity\"}' > @/config.json");
}

void assert_picture(const char *name, int width, int height)
{
    io_picture picture;
    assert_int_equal(io_picture_read(in_folder(name), 3, &picture), DDPM_OK);
    assert_int_equal(picture.width, width);
    assert_int_equal(picture.height, height);
    io_picture_free(&picture);
}

void assert_text(const char *name, const char *keyword, const char *wanted)
{
    char *text;
    assert_int_equal(io_picture_read_text(in_folder(name), keyword, &text), DDPM_OK);
    assert_non_null(text);
    assert_has(text, wanted);
    free(text);
}

/* build/cc/tests/test_cli -> build/cc/ddpm: the program of the same compiler and flags, if it was built. */
static void find_program(void)
{
    char self[900];
    const char *given = getenv("DDPM");
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (given != NULL && *given != '\0') {
        snprintf(program, sizeof program, "%s", given);
        return;
    }
    self[length > 0 ? length : 0] = '\0';
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(self, '/');
        if (slash == NULL) return;
        *slash = '\0';
    }
    char beside[1000];
    snprintf(beside, sizeof beside, "%s/ddpm", self);
    if (access(beside, X_OK) == 0) snprintf(program, sizeof program, "%s", beside);
}

int make_folder(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    find_program();
    unsetenv("DDPM_MEMORY_LIMIT");
    snprintf(folder, sizeof folder, "%.150s/test_ddpm_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

int remove_folder(void **state)
{
    (void)state;
    free(out);
    free(err);
    return io_remove_tree(folder) ? -1 : 0;
}
