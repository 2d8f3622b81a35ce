/* io/events.h - scalars for TensorBoard: an event file is a row of TFRecords, each a protocol buffer of the type
 * tensorflow.Event (tensorboard/compat/proto/event.proto, summary.proto). Only what a curve needs is written.
 *
 * Contents:  the writer */
#ifndef IO_EVENTS_H
#define IO_EVENTS_H
#include <stdint.h>
#include <stdio.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An event file being written. TensorBoard reads it while it grows, and reads all event files of a directory as one
 * run: whoever resumes opens another one. Start from {0}. */
typedef struct io_events {
    FILE *file;
    char *path;
} io_events;

/* Makes DIRECTORY (and what is missing above it) and in it events.out.tfevents.SECONDS.ddpm.PID.COUNT, a name that no
 * file there has; its first record says the version. now: seconds since 1970. DDPM_ERR_FILE, DDPM_ERR_MEMORY. */
ddpm_result io_events_open(io_events *events, const char *directory, double now);
/* One point of curve `tag` ("loss/train"; a slash makes a group; at most 1000 bytes). The record is in the file when
 * this returns. value may be a NaN: TensorBoard shows a gap. DDPM_ERR_ARGUMENT: the tag is too long. */
ddpm_result io_events_scalar(io_events *events, const char *tag, uint64_t step, double now, float value);
/* Harmless on one that is all zero. DDPM_ERR_FILE if the last bytes did not reach the file. */
ddpm_result io_events_close(io_events *events);

#ifdef __cplusplus
}
#endif
#endif /* IO_EVENTS_H */
