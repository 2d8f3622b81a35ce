/* io/sha256.h - SHA-256 (FIPS 180-4) of memory and files, as sha256sum prints it: which weights made a result. */
#ifndef IO_SHA256_H
#define IO_SHA256_H
#include <stddef.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef char io_sha256_text[65]; /* 64 lower-case hexadecimal digits and a 0 */

void io_sha256(const void *data, size_t size, io_sha256_text out);
/* Of a file's bytes. DDPM_ERR_FILE: it cannot be read. */
ddpm_result io_sha256_file(const char *path, io_sha256_text out);

#ifdef __cplusplus
}
#endif
#endif /* IO_SHA256_H */
