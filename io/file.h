/* io/file.h - whole files in and out: every error names the path and the system's reason, and no half-written file ever
 * stands under its final name. Writing goes to "PATH.tmp-PID" in the same directory, is flushed to the disk (fsync),
 * and is then renamed, so a reader sees the old file or the new one and nothing between.
 *
 * Contents:  1 reading   2 writing   3 directories and paths */
#ifndef IO_FILE_H
#define IO_FILE_H
#include <stddef.h>
#include <stdio.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Reading ---- */

/* The whole file at `path` in *data, `*size` bytes and one 0 byte more, so that text needs no copy; free() it.
 * DDPM_ERR_FILE: missing, not readable, a directory; DDPM_ERR_MEMORY. On failure *data is NULL and *size 0. */
ddpm_result io_read_file(const char *path, unsigned char **data, size_t *size);

/* ---- 2. Writing ---- */

/* Replaces (or makes) the file at `path` with `size` bytes, atomically. On failure (DDPM_ERR_FILE, DDPM_ERR_MEMORY)
 * what stood at `path` is unchanged and the temporary is gone. */
ddpm_result io_write_file(const char *path, const void *data, size_t size);

/* DDPM_OK if a file could be made, or replaced, at `path` now; asked before the work whose result is to go there.
 * DDPM_ERR_FILE, DDPM_ERR_MEMORY as io_write_file; nothing is left behind. */
ddpm_result io_can_write(const char *path);

/* The same as io_write_file in pieces: open, put as often as needed, then commit or abandon. After a failed put or
 * commit the temporary is removed and the writer closed; io_writer_abandon is then harmless, and so it is on a writer
 * that is all zero. */
typedef struct io_writer {
    FILE *file;
    char *path, *temporary;
} io_writer;
ddpm_result io_writer_open(io_writer *writer, const char *path);
ddpm_result io_writer_put(io_writer *writer, const void *data, size_t size);
ddpm_result io_writer_commit(io_writer *writer);
void io_writer_abandon(io_writer *writer);

/* ---- 3. Directories and paths ---- */

/* mkdir -p: makes `path` and what is missing above it; a directory that exists is success. */
ddpm_result io_make_directory(const char *path);
/* Removes the file or the directory `path` with all it holds (links are removed, not followed). Missing is success. */
ddpm_result io_remove_tree(const char *path);
/* Replaces directory `target` by the finished directory `fresh` beside it, with two renames: the old one steps aside
 * ("TARGET.old-PID"), the new one takes its name, then the old one is deleted. On failure the old one stands under its
 * name again. */
ddpm_result io_replace_directory(const char *fresh, const char *target);
/* 1 if `path` leads to a regular file, or a directory; links are followed. */
int io_is_file(const char *path);
int io_is_directory(const char *path);
/* "directory/name" in new memory (no second slash if directory ends in one; just name if it is empty); free() it.
 * NULL without memory, with the error recorded. */
char *io_join(const char *directory, const char *name);
/* "PATH.suffix-PID" in new memory, slashes at the end of PATH dropped: a name beside PATH that no other process uses.
 * */
char *io_beside(const char *path, const char *suffix);

#ifdef __cplusplus
}
#endif
#endif /* IO_FILE_H */
