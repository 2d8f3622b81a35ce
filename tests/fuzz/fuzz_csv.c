/* tests/fuzz/fuzz_csv.c - any bytes as metadata.csv: an error, or rows whose fields are whole strings that together are
 * no longer than the file. */
#include <stdlib.h>
#include <string.h>

#include "lab/source.h"
#include "tests/fuzz/standalone.h"

typedef struct count {
    size_t bytes;
    int line;
} count;

static ddpm_result row(void *user, int line, char **field, int fields)
{
    count *c = user;
    if (line != ++c->line || fields < 1) abort();
    for (int i = 0; i < fields; i++)
        c->bytes += strlen(field[i]);
    return DDPM_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    count c = {0, 0};
    lab_csv_parse((const char *)data, size, "input", row, &c);
    if (c.bytes > size) abort();
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
#define SEED(text)                                                                                                     \
    {                                                                                                                  \
        text, sizeof text - 1                                                                                          \
    }
    static const fuzz_seed seed[] = {
        SEED("file_name,label\nred/1.png,cat\r\nred/2.png,\"a \"\"b\"\", c\"\n"),
        SEED("\xef\xbb\xbf\"file_name\",labels\r\n\"1\n2.png\",\r\n,\"\""),
    };
    return fuzz_standalone(seed, sizeof seed / sizeof *seed, 20000);
}
#endif
