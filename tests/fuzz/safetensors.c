/* A file of arrays, made of the bytes in three ways: as they are; with the header's length put right, as far as a line's end is the
 * header; and by the bytes as a recipe, because mutations rarely make a header whose numbers agree. A recipe says of each array its name,
 * dtype and shape, and at most one thing that is wrong with its place; whether the whole is a good file is told here in other words
 * than the reader's, and the reader must say the same. */
#include "tests/fuzz/fuzz.h"

#include <stdbool.h>

#include "nanogpt/safetensors.h"
#include "rax.h"

/* -- any bytes ------------------------------------------------------------------------------------------------------ */

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

/* -- a recipe ------------------------------------------------------------------------------------------------------- */

enum { ROWS = 6, AXES = 4, HEADER_ROOM = 4096, DATA_ROOM = 8192, ROW_DATA = 1024 };

static const struct { const char *name, *json; } names[] = {
    { "a", "a" }, { "b", "b" }, { "A", "A" }, { "", "" }, { "a.b", "a\\u002eb" }, { "\303\251", "\303\251" }, { "\"\n", "\\\"\\n" }, { "c_attn.weight", "c_attn.weight" },
};
/* The first eight are no mistakes. JSON's numbers are doubles here, so that beyond 2^53 none is what was written. */
static const int64_t lengths[] = { 1, 2, 3, 5, 7, 16, 0, 33, 65536, (int64_t)1 << 31, ((int64_t)1 << 32) + 1, (int64_t)1 << 53, INT64_C(1) << 62, INT64_MAX, -1, INT64_MIN };

typedef struct {
    int name;
    gpt_array_type type;
    int rank;
    int64_t shape[AXES], begin, end;
} row;

typedef struct { const uint8_t *at, *end; } recipe;
static int take(recipe *r) { return r->at < r->end ? *r->at++ : 0; }

/* -1: no file can have it. */
static int64_t bytes_of(const row *it)
{
    __int128 bytes = (__int128)gpt_array_type_bytes(it->type);
    for (int d = 0; d < it->rank; d++) {
        if (it->shape[d] < 0 || it->shape[d] > (int64_t)1 << 53)
            return -1;
        bytes *= it->shape[d];
        if (bytes > INT64_MAX)
            return -1;
    }
    return (int64_t)bytes;
}

/* Every array has its bytes, within the data; no name is there twice; none lies in another; together they are as much as there is. */
static bool is_good(const row *rows, int count, int64_t data_bytes)
{
    int64_t sum = 0;
    for (int i = 0; i < count; i++) {
        const row *a = &rows[i];
        if (a->begin < 0 || a->begin > a->end || a->end > data_bytes || a->end - a->begin != bytes_of(a))
            return false;
        for (int j = 0; j < count; j++)
            if (j != i && (a->name == rows[j].name || (a->begin < rows[j].end && rows[j].begin < a->end)))
                return false;
        sum += a->end - a->begin;
    }
    return sum == data_bytes;
}

/* What an array's row says of its place, which is right where `what` is small. */
static void spoil(row *it, int what)
{
    int64_t *number = what & 1 ? &it->begin : &it->end;
    int by = what >> 4;
    switch (what >> 1 & 7) {
    case 0: case 1: break;
    case 2: *number += by + 1; break;
    case 3: *number -= by + 1; break;
    case 4: it->begin += by; it->end += by; break;
    case 5: it->end -= it->begin; it->begin = 0; break;
    case 6: *number = lengths[by]; break;
    case 7: it->end = it->begin - by; break;
    }
}

static void check_file(const row *rows, int count, bool good, const char *header, const uint8_t *data, size_t data_bytes)
{
    static uint8_t bytes[8 + HEADER_ROOM + DATA_ROOM];
    uint64_t header_bytes = strlen(header);
    memcpy(bytes, &header_bytes, 8);
    memcpy(bytes + 8, header, header_bytes);
    memcpy(bytes + 8 + header_bytes, data, data_bytes);
    fuzz_file file = fuzz_open(bytes, 8 + header_bytes + data_bytes);
    gpt_safetensors *arrays = gpt_safetensors_open(file.path);

    FUZZ_CHECK(good == (arrays != NULL), "a %s file of %zu bytes of data: %s: %s", good ? "good" : "bad", data_bytes, rax_error(), header);
    FUZZ_CHECK(good || (*rax_error() && !strchr(rax_error(), '\n')), "refused in no line, or in two: %s", rax_error());
    FUZZ_CHECK(!good || gpt_safetensors_count(arrays) == count, "%d arrays, not %d: %s", gpt_safetensors_count(arrays), count, header);
    for (int i = 0; good && i < count; i++) {
        const row *it = &rows[i];
        const gpt_array *array = gpt_safetensors_find(arrays, names[it->name].name);
        FUZZ_CHECK(array && array == gpt_safetensors_at(arrays, i) && array->type == it->type && array->rank == it->rank &&
                   memcmp(array->shape, it->shape, sizeof *it->shape * (size_t)it->rank) == 0, "array %d is not as the header has it: %s", i, header);
        FUZZ_CHECK(memcmp(array->data, data + it->begin, (size_t)(it->end - it->begin)) == 0, "array %d has other bytes: %s", i, header);
        static float f32[DATA_ROOM];
        bool has_f32 = it->type == GPT_F64 || it->type == GPT_F32 || it->type == GPT_F16 || it->type == GPT_BF16;
        FUZZ_CHECK(gpt_safetensors_read_f32(arrays, names[it->name].name, it->rank, it->shape, f32) == has_f32, "array %d: %s: %s", i, rax_error(), header);
    }
    rax_error_clear();
    gpt_safetensors_close(arrays);
    fuzz_close(&file);
}

/* First a byte that says which array lies first, one of bytes that are too many or, from 128, too few; then of each array its name, dtype,
 * rank, lengths, and what its row says of its place. */
static void read_recipe(recipe r)
{
    static uint8_t data[DATA_ROOM];
    row rows[ROWS];
    int count = 0, first = take(&r), rest = take(&r);
    int64_t laid = 0, data_bytes;
    char header[HEADER_ROOM] = "{";
    size_t n = 1;

    for (; count < ROWS && r.at < r.end; count++) {
        row *it = &rows[count];
        *it = (row){ .name = take(&r) % (int)(sizeof names / sizeof *names), .type = (gpt_array_type)(take(&r) % (GPT_BOOL + 1)), .rank = take(&r) % (AXES + 1) };
        for (int d = 0; d < it->rank; d++)
            it->shape[d] = lengths[take(&r) % (int)(sizeof lengths / sizeof *lengths)];
        it->end = take(&r);                          /* until it is laid */
    }
    for (int i = 0; i < count; i++) {
        row *it = &rows[(i + first) % count];
        int64_t bytes = bytes_of(it);
        int what = (int)it->end;
        it->begin = laid;
        laid += bytes < 0 || bytes > ROW_DATA ? 8 : bytes;
        it->end = laid;
        spoil(it, what);
    }
    data_bytes = laid + (rest < 128 ? rest : 128 - rest);
    data_bytes = data_bytes < 0 ? 0 : data_bytes;
    for (int i = 0; i < data_bytes; i++)
        data[i] = (uint8_t)(i * 37 + first);

    for (int i = 0; i < count; i++) {
        row *it = &rows[i];
        n += (size_t)snprintf(header + n, sizeof header - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", names[it->name].json, gpt_array_type_name(it->type));
        for (int d = 0; d < it->rank; d++)
            n += (size_t)snprintf(header + n, sizeof header - n, "%s%lld", d ? "," : "", (long long)it->shape[d]);
        n += (size_t)snprintf(header + n, sizeof header - n, "],\"data_offsets\":[%lld,%lld]}", (long long)it->begin, (long long)it->end);
    }
    n += (size_t)snprintf(header + n, sizeof header - n, "}");
    FUZZ_CHECK(n < sizeof header, "no room for the header");
    check_file(rows, count, is_good(rows, count, data_bytes), header, data, (size_t)data_bytes);
}

/* ------------------------------------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    read_arrays(bytes, count);
    read_recipe((recipe){ bytes, bytes + count });
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
