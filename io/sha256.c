/* io/sha256.c - see io/sha256.h. Names are those of FIPS 180-4. */
#include "io/sha256.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 64 };

typedef struct hash {
    uint32_t h[8];
    uint64_t bytes;
    unsigned char block[BLOCK]; /* the last bytes % BLOCK of them */
} hash;

static const uint32_t k[64] = {/* 4.2.2 */
                               0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
                               0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
                               0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
                               0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
                               0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
                               0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
                               0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
                               0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
                               0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
                               0xc67178f2};

static uint32_t rotr(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

/* 6.2.2 */
static void compress(uint32_t h[8], const unsigned char *block)
{
    uint32_t w[64], v[8];
    for (int t = 0; t < 16; t++, block += 4)
        w[t] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = s1 + w[t - 7] + s0 + w[t - 16];
    }
    memcpy(v, h, sizeof v);
    for (int t = 0; t < 64; t++) {
        uint32_t a = v[0], b = v[1], c = v[2], e = v[4];
        uint32_t t1 = v[7] + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[t] + w[t];
        uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += v[i];
}

static void start(hash *s)
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}; /* 5.3.3 */
    *s = (hash){.bytes = 0};
    memcpy(s->h, first, sizeof first);
}

static void add(hash *s, const unsigned char *data, size_t size)
{
    while (size > 0) {
        size_t used = s->bytes % BLOCK, part = BLOCK - used < size ? BLOCK - used : size;
        memcpy(s->block + used, data, part);
        s->bytes += part;
        data += part;
        size -= part;
        if (used + part == BLOCK) compress(s->h, s->block);
    }
}

/* 5.1.1: a 1 bit, zeros, the length in bits */
static void finish(hash *s, io_sha256_text out)
{
    static const unsigned char one[BLOCK] = {0x80};
    uint64_t bits = s->bytes * 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(bits >> (56 - 8 * i));
    size_t used = s->bytes % BLOCK;
    add(s, one, used < BLOCK - 8 ? BLOCK - 8 - used : 2 * BLOCK - 8 - used);
    add(s, length, sizeof length);
    for (int i = 0; i < 8; i++)
        snprintf(out + 8 * i, 9, "%08x", (unsigned)s->h[i]);
}

void io_sha256(const void *data, size_t size, io_sha256_text out)
{
    hash s;
    start(&s);
    add(&s, data, size);
    finish(&s, out);
}

ddpm_result io_sha256_file(const char *path, io_sha256_text out)
{
    unsigned char part[1 << 14];
    size_t got;
    hash s;
    FILE *file = fopen(path, "rb");
    if (!file)
        return ddpm_fail(DDPM_ERR_FILE, "%s: cannot be read: %s\n      hint: is it there?", path, strerror(errno));
    start(&s);
    while ((got = fread(part, 1, sizeof part, file)) > 0)
        add(&s, part, got);
    int failed = ferror(file);
    fclose(file);
    if (failed) return ddpm_fail(DDPM_ERR_FILE, "%s: reading it failed\n      hint: is the disk in order?", path);
    finish(&s, out);
    return DDPM_OK;
}
