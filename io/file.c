/* io/file.c - see io/file.h.
 *
 * Contents:  1 errors and paths   2 reading   3 writing   4 directories */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- 1. Errors and paths -------------------------------------------------------------------------------------- */

/* What a user can do about an errno. */
static const char *way_out(int error)
{
    switch (error) {
    case ENOENT: return "check the spelling, and that the path is relative to where the program was started";
    case EACCES:
    case EPERM: return "check the permissions of the file and of the directories above it (ls -l)";
    case EROFS: return "the file system is read-only: choose another place";
    case EISDIR: return "this is a directory; name a file in it";
    case EEXIST: return "this is a file, not a directory: choose another name";
    case ENOTDIR: return "a part of the path before the last is a file, not a directory";
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return "the disk is full, or a quota or limit (ulimit -f) is reached: free some space or write elsewhere";
    case EMFILE:
    case ENFILE: return "too many open files: raise the limit (ulimit -n)";
    case ENAMETOOLONG: return "choose a shorter name";
    case ENOMEM: return "free some memory";
    default: return "check that the disk is healthy and the path reachable";
    }
}

static ddpm_result system_error(const char *path, const char *action, int error)
{
    return ddpm_fail(error == ENOMEM ? DDPM_ERR_MEMORY : DDPM_ERR_FILE, "%s: cannot %s: %s\n      hint: %s", path,
                     action, strerror(error), way_out(error));
}

static ddpm_result no_memory(const char *path, size_t size)
{
    return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for %zu bytes\n      hint: close other programs", path, size);
}

char *io_join(const char *directory, const char *name)
{
    size_t length = strlen(directory);
    const char *slash = length && directory[length - 1] != '/' ? "/" : "";
    size_t size = length + strlen(name) + 2;
    char *path = malloc(size);
    if (!path) {
        no_memory(directory, size);
        return NULL;
    }
    snprintf(path, size, "%s%s%s", directory, slash, name);
    return path;
}

int io_is_file(const char *path)
{
    struct stat status;
    return !stat(path, &status) && S_ISREG(status.st_mode);
}

int io_is_directory(const char *path)
{
    struct stat status;
    return !stat(path, &status) && S_ISDIR(status.st_mode);
}

char *io_beside(const char *path, const char *suffix)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') /* a directory given as "model/" */
        length--;
    size_t size = length + strlen(suffix) + 32;
    char *name = malloc(size);
    if (!name) {
        no_memory(path, size);
        return NULL;
    }
    snprintf(name, size, "%.*s.%s-%ld", (int)length, path, suffix, (long)getpid());
    return name;
}

/* ---- 2. Reading ------------------------------------------------------------------------------------------------ */

/* Reads to the end whatever the size was said to be: pipes and /proc have none. `size` is the first guess. */
static ddpm_result read_all(FILE *file, const char *path, size_t guess, unsigned char **data, size_t *size)
{
    size_t room = guess + 1, used = 0;
    unsigned char *bytes = malloc(room);
    while (bytes) {
        used += fread(bytes + used, 1, room - used, file);
        if (used < room) break;
        unsigned char *larger = room <= SIZE_MAX / 2 ? realloc(bytes, room * 2) : NULL;
        if (!larger) free(bytes);
        bytes = larger;
        room *= 2;
    }
    if (!bytes) return no_memory(path, room);
    if (ferror(file)) {
        int error = errno;
        free(bytes);
        return system_error(path, "read", error);
    }
    bytes[used] = 0;
    *data = bytes;
    *size = used;
    return DDPM_OK;
}

ddpm_result io_read_file(const char *path, unsigned char **data, size_t *size)
{
    *data = NULL;
    *size = 0;
    FILE *file = fopen(path, "rb");
    if (!file) return system_error(path, "open", errno);
    struct stat status;
    ddpm_result result;
    if (fstat(fileno(file), &status))
        result = system_error(path, "read", errno);
    else if (S_ISDIR(status.st_mode)) /* fopen of a directory succeeds, only reading fails */
        result = system_error(path, "read", EISDIR);
    else if (status.st_size < 0 || (uintmax_t)status.st_size >= SIZE_MAX / 2)
        result = no_memory(path, SIZE_MAX / 2);
    else
        result = read_all(file, path, (size_t)status.st_size, data, size);
    fclose(file);
    return result;
}

/* ---- 3. Writing ------------------------------------------------------------------------------------------------ */

/* Makes the new name itself survive a power cut: POSIX wants the directory synced as well. Some file systems cannot
 * (EINVAL): then there is nothing more to be done, and it is no failure of the write. */
static ddpm_result sync_directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 1;
    char *directory = malloc(length + 1);
    if (!directory) return no_memory(path, length + 1);
    memcpy(directory, slash ? path : ".", length);
    directory[length] = 0;
    ddpm_result result = DDPM_OK;
    int descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        result = errno == EACCES ? DDPM_OK : system_error(directory, "open", errno); /* writable, unreadable: allowed */
    else {
        if (fsync(descriptor) && errno != EINVAL && errno != EROFS) result = system_error(directory, "sync", errno);
        close(descriptor);
    }
    free(directory);
    return result;
}

ddpm_result io_writer_open(io_writer *writer, const char *path)
{
    *writer = (io_writer){0};
    struct stat status;
    if (!stat(path, &status) && !S_ISREG(status.st_mode)) { /* renaming onto /dev/null would replace it for everyone */
        if (S_ISDIR(status.st_mode)) return system_error(path, "write", EISDIR);
        return ddpm_fail(DDPM_ERR_FILE, "%s: cannot write: not a regular file\n      hint: name a file", path);
    }
    size_t size = strlen(path) + 1;
    writer->path = malloc(size);
    writer->temporary = io_beside(path, "tmp");
    if (!writer->path || !writer->temporary) {
        free(writer->path);
        free(writer->temporary);
        *writer = (io_writer){0};
        return no_memory(path, size);
    }
    memcpy(writer->path, path, size);
    writer->file = fopen(writer->temporary, "wb");
    if (!writer->file) {
        ddpm_result result = system_error(path, "write", errno);
        io_writer_abandon(writer);
        return result;
    }
    return DDPM_OK;
}

void io_writer_abandon(io_writer *writer)
{
    if (writer->file) {
        fclose(writer->file);
        remove(writer->temporary);
    }
    free(writer->path);
    free(writer->temporary);
    *writer = (io_writer){0};
}

ddpm_result io_can_write(const char *path)
{
    io_writer writer;
    ddpm_result result = io_writer_open(&writer, path);
    io_writer_abandon(&writer);
    return result;
}

static ddpm_result write_failed(io_writer *writer, int error)
{
    ddpm_result result = system_error(writer->path, "write", error);
    io_writer_abandon(writer);
    return result;
}

ddpm_result io_writer_put(io_writer *writer, const void *data, size_t size)
{
    if (!writer->file)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "io_writer_put: the writer is closed\n      hint: an earlier write failed");
    if (size && fwrite(data, 1, size, writer->file) != size) return write_failed(writer, errno);
    return DDPM_OK;
}

ddpm_result io_writer_commit(io_writer *writer)
{
    if (!writer->file)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "io_writer_commit: the writer is closed\n      hint: an earlier write failed");
    if (fflush(writer->file) || fsync(fileno(writer->file))) return write_failed(writer, errno);
    int closed = fclose(writer->file);
    writer->file = NULL;
    if (closed || rename(writer->temporary, writer->path)) {
        int error = errno;
        remove(writer->temporary);
        return write_failed(writer, error);
    }
    ddpm_result result = sync_directory_of(writer->path);
    io_writer_abandon(writer); /* nothing is left but the names */
    return result;
}

ddpm_result io_write_file(const char *path, const void *data, size_t size)
{
    io_writer writer;
    ddpm_result result = io_writer_open(&writer, path);
    if (!result) result = io_writer_put(&writer, data, size);
    if (!result) result = io_writer_commit(&writer);
    return result;
}

/* ---- 4. Directories -------------------------------------------------------------------------------------------- */

ddpm_result io_make_directory(const char *path)
{
    char *copy = io_join(path, "");
    if (!copy) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    /* Each slash ends a directory to be made, the one that io_join added the last. */
    for (char *p = copy + 1; *copy && *p && !result; p++) {
        if (*p != '/') continue;
        *p = 0;
        if (mkdir(copy, 0777)) {
            int error = errno;
            if (!io_is_directory(copy)) result = system_error(copy, "make the directory", error);
        }
        *p = '/';
    }
    free(copy);
    return result;
}

static ddpm_result remove_entries(const char *path)
{
    DIR *directory = opendir(path);
    if (!directory) return system_error(path, "open", errno);
    ddpm_result result = DDPM_OK;
    for (struct dirent *entry; !result && (entry = readdir(directory));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char *child = io_join(path, entry->d_name);
        result = child ? io_remove_tree(child) : DDPM_ERR_MEMORY;
        free(child);
    }
    closedir(directory);
    return result;
}

ddpm_result io_remove_tree(const char *path)
{
    struct stat status;
    if (lstat(path, &status)) return errno == ENOENT ? DDPM_OK : system_error(path, "remove", errno);
    if (S_ISDIR(status.st_mode)) {
        ddpm_result result = remove_entries(path);
        if (result) return result;
    }
    return remove(path) ? system_error(path, "remove", errno) : DDPM_OK;
}

ddpm_result io_replace_directory(const char *fresh, const char *target)
{
    char *old = io_beside(target, "old");
    if (!old) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    struct stat status;
    int there = !lstat(target, &status), moved = 0;
    if (there && !io_is_directory(target))
        result = system_error(target, "replace", ENOTDIR);
    else if (there)
        result = io_remove_tree(old); /* left by a process that had our number and was killed */
    if (!result && there && !(moved = !rename(target, old))) result = system_error(target, "rename", errno);
    if (!result && rename(fresh, target)) {
        result = system_error(target, "replace", errno);
        if (moved) (void)!rename(old, target); /* the first failure is the one to report */
    }
    if (!result) result = sync_directory_of(fresh); /* where both are, named without a slash at its end */
    if (!result && moved) io_remove_tree(old);      /* what stays of it does not make the replacement a failure */
    free(old);
    return result;
}
