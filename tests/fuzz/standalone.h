/* tests/fuzz/standalone.h - a main() for a fuzz target where libFuzzer is not there: replays the seeds and then a fixed
 * sequence of mutations of them, the same on every run. With -DFUZZ_STANDALONE; clang's -fsanitize=fuzzer brings its
 * own. Inputs live in blocks of exactly their size, so that AddressSanitizer sees a read one byte beyond. */
#ifndef TESTS_FUZZ_STANDALONE_H
#define TESTS_FUZZ_STANDALONE_H
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef FUZZ_STANDALONE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fuzz_seed {
    const void *data;
    size_t size;
} fuzz_seed;

static uint32_t fuzz_random(uint32_t *state) /* xorshift32 (Marsaglia 2003) */
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

/* One to four changes: a byte set to something telling or random, a bit flipped, a stretch copied, the end cut off. */
static size_t fuzz_mutate(uint8_t *data, size_t size, uint32_t *state)
{
    static const char telling[] = "\"{}[],:0123456789-.eE\\ \xff_nt";
    for (uint32_t changes = 1 + fuzz_random(state) % 4; changes && size; changes--) {
        size_t at = fuzz_random(state) % size, from = fuzz_random(state) % size, count = fuzz_random(state) % 16;
        switch (fuzz_random(state) % 6) {
        case 0: data[at] = (uint8_t)fuzz_random(state); break;
        case 1: data[at] ^= (uint8_t)(1u << fuzz_random(state) % 8); break;
        case 2: size = at; break;
        case 3: memmove(data + at, data + from, count < size - (at > from ? at : from) ? count : 0); break;
        default: data[at] = (uint8_t)telling[fuzz_random(state) % sizeof telling]; break;
        }
    }
    return size;
}

static int fuzz_standalone(const fuzz_seed *seed, int seeds, int iterations)
{
    uint32_t state = 529;
    for (int i = 0; i < iterations; i++) {
        const fuzz_seed *s = &seed[i % seeds];
        uint8_t *data = malloc(s->size + 1);
        if (!data) return 1;
        memcpy(data, s->data, s->size);
        size_t size = i < seeds ? s->size : fuzz_mutate(data, s->size, &state);
        uint8_t *exact = malloc(size ? size : 1);
        if (!exact) {
            free(data);
            return 1;
        }
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    printf("%d inputs\n", iterations);
    return 0;
}
#endif
#endif /* TESTS_FUZZ_STANDALONE_H */
