/* io/gif.h - pictures as an animated GIF: noise becoming a picture, on any page. Every frame has up to 256 colours of
 * its own, chosen by median cut. */
#ifndef IO_GIF_H
#define IO_GIF_H
#include "io/picture.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes `count` frames of one size, shown `delay` hundredths of a second each and the last one `hold`, for ever again.
 * comment: ASCII, kept in the file; NULL: none. Atomic, as io_write_file.
 * DDPM_ERR_ARGUMENT: no frames, delay or hold outside 0 to 65535, a side above 65535; DDPM_ERR_SHAPE: frames of
 * different sizes; DDPM_ERR_FILE, DDPM_ERR_MEMORY. */
ddpm_result io_gif_write(const char *path, const io_picture *frame, int count, int delay, int hold,
                         const char *comment);

#ifdef __cplusplus
}
#endif
#endif /* IO_GIF_H */
