/* tests/fuzz/fuzz_safetensors.c - any bytes as a safetensors file: an error or tensors that are really there, never a
 * crash. What was accepted is read whole, found by name, and converted. */
#include <stdlib.h>

#include "io/safetensors.h"
#include "tests/fuzz/standalone.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    io_safetensors file;
    if (io_safetensors_parse(data, size, "input", &file)) return 0;
    for (int i = 0; i < file.tensors; i++) {
        const io_tensor *tensor = &file.tensor[i];
        if (io_safetensors_find(&file, tensor->name) != tensor) abort();
        double *value = malloc((tensor->elements + 1) * sizeof *value);
        if (!value || io_tensor_doubles(tensor, value) || io_tensor_floats(tensor, (float *)(void *)value)) abort();
        free(value);
    }
    io_safetensors_close(&file);
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
    /* a header of `length` bytes, the data behind it */
#define SEED(length, text)                                                                                             \
    {                                                                                                                  \
        length "\0\0\0\0\0\0\0" text, sizeof text + 7                                                                  \
    }
    static const fuzz_seed seed[] = {
        SEED("\x02", "{}"),
        SEED("\x49", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"__metadata__\":{}} 1234"),
        SEED("\x6d", "{\"a\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[0,4]},"
                     "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[4,12]}}123412345678"),
        SEED("\x50",
             "{\"__metadata__\":{\"k\":\"v\"},\"e\":{\"dtype\":\"U8\",\"shape\":[0,3],\"data_offsets\":[0,0]}}"),
    };
    return fuzz_standalone(seed, sizeof seed / sizeof *seed, 20000);
}
#endif
