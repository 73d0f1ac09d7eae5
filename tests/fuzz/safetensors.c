/* A file of arrays. The first bytes are the header's length, which mutations rarely get right: it is put right in every second input. */
#include "tests/fuzz/fuzz.h"

#include "nanogpt/safetensors.h"
#include "rax.h"

static void read_arrays(const void *bytes, size_t count)
{
    fuzz_file file = fuzz_open(bytes, count);
    gpt_safetensors *arrays = gpt_safetensors_open(file.path);
    for (int i = 0; arrays && i < gpt_safetensors_count(arrays); i++) {
        const gpt_array *array = gpt_safetensors_at(arrays, i);
        size_t size = gpt_array_bytes(array), elements = (size_t)gpt_array_count(array);
        FUZZ_CHECK(size <= count && gpt_safetensors_find(arrays, array->name) == array, "array '%s' of %zu bytes", array->name, size);
        void *copy = malloc(size + 1);
        memcpy(copy, array->data, size);
        free(copy);
        float *f32 = malloc(elements * sizeof *f32 + 1);
        gpt_array_read_f32(arrays, array, f32);
        free(f32);
    }
    if (arrays)
        gpt_safetensors_digest(arrays);
    else
        FUZZ_CHECK(*rax_error(), "refused without a word");
    rax_error_clear();
    gpt_safetensors_close(arrays);
    fuzz_close(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    read_arrays(bytes, count);
    const uint8_t *end = count > 8 ? memchr(bytes + 8, '\n', count - 8) : NULL;       /* as far as a line's end is the header */
    if (end) {
        uint64_t len = (uint64_t)(end - bytes) - 8;
        uint8_t *mended = malloc(count);
        memcpy(mended, bytes, count);
        memcpy(mended, &len, 8);
        memmove(mended + 8 + len, end + 1, count - 9 - len);
        read_arrays(mended, count - 1);
        free(mended);
    }
    return 0;
}
