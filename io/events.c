/* io/events.c - TensorBoard's event files (see io/events.h).
 *
 * Contents:  1 checksum   2 protocol buffers   3 records   4 the writer */
#include "io/events.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file.h"

/* ---- 1. Checksum ------------------------------------------------------------------------------------------------
 * CRC-32C (Castagnoli; RFC 3720, B.4), reflected, polynomial 0x1EDC6F41. A record is a few dozen bytes: bit by bit
 * will do. */

static uint32_t crc32c(const unsigned char *data, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

/* TFRecord's mask (tensorflow/core/lib/hash/crc32c.h): a checksum of data that holds checksums is a weak one. */
static uint32_t masked(uint32_t crc)
{
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

/* ---- 2. Protocol buffers ----------------------------------------------------------------------------------------
 * A field is its number and wire type, then its value: (number << 3 | type) with type 0 varint, 1 eight bytes, 2 a
 * length and that many bytes, 5 four bytes; numbers least significant byte first. */

enum { VARINT = 0, EIGHT_BYTES = 1, BYTES = 2, FOUR_BYTES = 5, MAX_TAG = 1000, MAX_EVENT = MAX_TAG + 100 };

typedef struct message {
    unsigned char byte[MAX_EVENT];
    size_t size;
} message;

static void put_number(message *m, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        m->byte[m->size++] = (unsigned char)(value >> 8 * i);
}

static void put_varint(message *m, uint64_t value)
{
    for (; value > 127; value >>= 7)
        m->byte[m->size++] = (unsigned char)(value | 128);
    m->byte[m->size++] = (unsigned char)value;
}

static void put_key(message *m, int field, int type)
{
    put_varint(m, (uint64_t)(field << 3 | type));
}

static void put_bytes(message *m, int field, const void *data, size_t size)
{
    put_key(m, field, BYTES);
    put_varint(m, size);
    memcpy(m->byte + m->size, data, size);
    m->size += size;
}

static void put_double(message *m, int field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, EIGHT_BYTES);
    put_number(m, bits, 8);
}

static void put_float(message *m, int field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, FOUR_BYTES);
    put_number(m, bits, 4);
}

/* ---- 3. Records: length, its checksum, the bytes, their checksum ------------------------------------------------ */

static ddpm_result write_record(io_events *events, const message *m)
{
    message head = {.size = 0}, tail = {.size = 0};
    put_number(&head, m->size, 8);
    put_number(&head, masked(crc32c(head.byte, 8)), 4);
    put_number(&tail, masked(crc32c(m->byte, m->size)), 4);
    if (fwrite(head.byte, 1, head.size, events->file) != head.size ||
        fwrite(m->byte, 1, m->size, events->file) != m->size ||
        fwrite(tail.byte, 1, tail.size, events->file) != tail.size || fflush(events->file) != 0)
        return ddpm_fail(DDPM_ERR_FILE, "%s: writing failed: %s\n      hint: is the disk full?", events->path,
                         strerror(errno));
    return DDPM_OK;
}

/* ---- 4. The writer ---------------------------------------------------------------------------------------------- */

/* Opens the first name that is free; two runs that begin in one second get two files. */
static ddpm_result open_new(io_events *events, const char *directory, double now)
{
    for (int count = 0; count < 1000; count++) {
        char name[96];
        snprintf(name, sizeof name, "events.out.tfevents.%010lld.ddpm.%ld.%d", (long long)now, (long)getpid(), count);
        if ((events->path = io_join(directory, name)) == NULL) return DDPM_ERR_MEMORY;
        int descriptor = open(events->path, O_WRONLY | O_CREAT | O_EXCL, 0666);
        int taken = descriptor < 0 && errno == EEXIST;
        if (descriptor >= 0 && (events->file = fdopen(descriptor, "wb")) != NULL) return DDPM_OK;
        ddpm_result result =
            ddpm_fail(DDPM_ERR_FILE, "%s cannot be made: %s\n      hint: is there room, and the right to?",
                      events->path, strerror(errno));
        if (descriptor >= 0) close(descriptor);
        free(events->path);
        events->path = NULL;
        if (!taken) return result;
    }
    return ddpm_fail(DDPM_ERR_FILE, "%s is full of event files of this second", directory);
}

ddpm_result io_events_open(io_events *events, const char *directory, double now)
{
    *events = (io_events){NULL, NULL};
    ddpm_result result = io_make_directory(directory);
    if (result == DDPM_OK) result = open_new(events, directory, now);
    if (result != DDPM_OK) return result;
    message event = {.size = 0};
    put_double(&event, 1, now);                /* wall_time */
    put_bytes(&event, 3, "brain.Event:2", 13); /* file_version */
    result = write_record(events, &event);
    if (result != DDPM_OK) io_events_close(events);
    return result;
}

ddpm_result io_events_scalar(io_events *events, const char *tag, uint64_t step, double now, float value)
{
    size_t length = strlen(tag);
    if (length > MAX_TAG)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: a tag of %zu bytes, at most %d are possible", events->path, length,
                         MAX_TAG);
    message point = {.size = 0}, summary = {.size = 0}, event = {.size = 0};
    put_bytes(&point, 1, tag, length); /* Summary.Value: tag */
    put_float(&point, 2, value);       /* simple_value */
    put_bytes(&summary, 1, point.byte, point.size);
    put_double(&event, 1, now); /* Event: wall_time */
    put_key(&event, 2, VARINT); /* step */
    put_varint(&event, step);
    put_bytes(&event, 5, summary.byte, summary.size);
    return write_record(events, &event);
}

ddpm_result io_events_close(io_events *events)
{
    ddpm_result result = DDPM_OK;
    if (events->file != NULL && fclose(events->file) != 0)
        result = ddpm_fail(DDPM_ERR_FILE, "%s: writing failed: %s\n      hint: is the disk full?", events->path,
                           strerror(errno));
    free(events->path);
    *events = (io_events){NULL, NULL};
    return result;
}
