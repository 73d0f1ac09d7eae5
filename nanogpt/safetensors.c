/* safetensors: 8 bytes of header length N, N bytes of JSON, then the arrays.
 *
 *     {"__metadata__":{"format":"pt"},"wte":{"dtype":"F32","shape":[65,32],"data_offsets":[0,8320]}, ...}
 *
 * Offsets count from the end of the header. The arrays fill the file: no overlap, no gap, no rest. */
#include "nanogpt/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "nanogpt/files.h"
#include "rax.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the arrays of a file are little endian, and are used as they lie"
#endif

enum { HEADER_MOST = 100000000 };                    /* the format's own limit */

static const struct { const char *name; size_t bytes; } types[] = {
    [GPT_F64] = { "F64", 8 }, [GPT_F32] = { "F32", 4 }, [GPT_F16] = { "F16", 2 }, [GPT_BF16] = { "BF16", 2 },
    [GPT_F8_E4M3] = { "F8_E4M3", 1 }, [GPT_F8_E5M2] = { "F8_E5M2", 1 },
    [GPT_I64] = { "I64", 8 }, [GPT_I32] = { "I32", 4 }, [GPT_I16] = { "I16", 2 }, [GPT_I8] = { "I8", 1 },
    [GPT_U64] = { "U64", 8 }, [GPT_U32] = { "U32", 4 }, [GPT_U16] = { "U16", 2 }, [GPT_U8] = { "U8", 1 },
    [GPT_BOOL] = { "BOOL", 1 },
};
enum { TYPES = sizeof types / sizeof types[0] };

struct gpt_safetensors {
    char *path;
    const unsigned char *map;
    size_t bytes;
    cJSON *header;              /* names are borrowed from it */
    int64_t *shapes;            /* of all arrays, one behind the other */
    gpt_array *arrays;          /* in the header's order */
    const gpt_array **by_name;
    int count;
};

const char *gpt_array_type_name(gpt_array_type type) { return types[type].name; }
size_t gpt_array_type_bytes(gpt_array_type type) { return types[type].bytes; }

int64_t gpt_array_count(const gpt_array *array)
{
    int64_t count = 1;
    for (int i = 0; i < array->rank; i++)
        count *= array->shape[i];
    return count;
}

size_t gpt_array_bytes(const gpt_array *array) { return (size_t)gpt_array_count(array) * types[array->type].bytes; }

/* -- the header ----------------------------------------------------------------------------------------------------- */

/* One row of the header into `array`, its shape into `shape`, where there is room for it. */
static bool read_row(const gpt_safetensors *file, const cJSON *row, const unsigned char *data, size_t data_bytes,
                     gpt_array *array, int64_t *shape)
{
    const char *name = row->string;
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(row, "dtype");
    const cJSON *axes = cJSON_GetObjectItemCaseSensitive(row, "shape"), *axis;
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(row, "data_offsets");
    int64_t begin, end, bytes;
    int known = 0;

    if (!cJSON_IsString(type))
        return rax_fail(RAX_MISTAKE, "%s: %.200s: has no dtype", file->path, name);
    while (known < TYPES && strcmp(types[known].name, type->valuestring) != 0)
        known++;
    if (known == TYPES)
        return rax_fail(RAX_MISTAKE, "%s: %.200s: unknown dtype '%.40s'", file->path, name, type->valuestring);
    if (!cJSON_IsArray(axes))
        return rax_fail(RAX_MISTAKE, "%s: %.200s: has no shape", file->path, name);

    *array = (gpt_array){ .name = name, .type = (gpt_array_type)known, .shape = shape };
    bytes = (int64_t)types[known].bytes;
    cJSON_ArrayForEach(axis, axes) {
        if (!gpt_json_integer(axis, 0, INT64_MAX, &shape[array->rank]))
            return rax_fail(RAX_MISTAKE, "%s: %.200s: shape: axis %d is no length", file->path, name, array->rank);
        if (__builtin_mul_overflow(bytes, shape[array->rank], &bytes))
            return rax_fail(RAX_MISTAKE, "%s: %.200s: shape: the product of the axes is too large", file->path, name);
        array->rank++;
    }

    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !gpt_json_integer(offsets->child, 0, INT64_MAX, &begin) ||
        !gpt_json_integer(offsets->child->next, 0, INT64_MAX, &end))
        return rax_fail(RAX_MISTAKE, "%s: %.200s: data_offsets: expected two byte offsets", file->path, name);
    if (begin > end || (uint64_t)end > data_bytes)
        return rax_fail(RAX_MISTAKE, "%s: %.200s: data_offsets: [%lld, %lld] is not within the file's %zu bytes of data",
                        file->path, name, (long long)begin, (long long)end, data_bytes);
    if (end - begin != bytes)
        return rax_fail(RAX_MISTAKE, "%s: %.200s: data_offsets: %lld bytes, but dtype and shape need %lld", file->path, name,
                        (long long)(end - begin), (long long)bytes);
    array->data = data + begin;
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const gpt_array *const *)a)->name, (*(const gpt_array *const *)b)->name);
}

static int compare_places(const void *a, const void *b)
{
    const gpt_array *x = *(const gpt_array *const *)a, *y = *(const gpt_array *const *)b;
    const char *at = x->data, *bt = y->data;
    if (at != bt)
        return at < bt ? -1 : 1;
    size_t xs = gpt_array_bytes(x), ys = gpt_array_bytes(y);         /* an empty one begins where the next does */
    return xs < ys ? -1 : xs > ys;
}

static bool check_places(gpt_safetensors *file, const unsigned char *data)
{
    const unsigned char *filled = data;

    qsort(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_places);
    for (int i = 0; i < file->count; i++) {
        const unsigned char *begin = file->by_name[i]->data;
        if (begin != filled)
            return rax_fail(RAX_MISTAKE, "%s: %.200s: data_offsets: %s", file->path, file->by_name[i]->name,
                            begin < filled ? "overlaps another array" : "leaves a gap before it");
        filled += gpt_array_bytes(file->by_name[i]);
    }
    if (filled != file->map + file->bytes)
        return rax_fail(RAX_MISTAKE, "%s: %zu bytes at the end belong to no array", file->path, (size_t)(file->map + file->bytes - filled));
    return true;
}

static bool check_names(gpt_safetensors *file)
{
    qsort(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    for (int i = 1; i < file->count; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            return rax_fail(RAX_MISTAKE, "%s: %.200s: is there twice", file->path, file->by_name[i]->name);
    return true;
}

static bool read_header(gpt_safetensors *file)
{
    uint64_t header_bytes;
    size_t axes = 0, rows = 0;
    const cJSON *row;

    if (file->bytes < sizeof header_bytes)
        return rax_fail(RAX_MISTAKE, "%s: is no safetensors file: it has %zu bytes", file->path, file->bytes);
    memcpy(&header_bytes, file->map, sizeof header_bytes);
    if (header_bytes > file->bytes - sizeof header_bytes || header_bytes > HEADER_MOST)
        return rax_fail(RAX_MISTAKE, "%s: is truncated or no safetensors file: a header of %llu bytes in a file of %zu", file->path,
                        (unsigned long long)header_bytes, file->bytes);

    const unsigned char *data = file->map + sizeof header_bytes + header_bytes;
    size_t data_bytes = file->bytes - sizeof header_bytes - (size_t)header_bytes;
    file->header = gpt_json_parse(file->path, (const char *)file->map + sizeof header_bytes, (size_t)header_bytes);
    if (!file->header)
        return false;
    if (!cJSON_IsObject(file->header))
        return rax_fail(RAX_MISTAKE, "%s: the header is no JSON object", file->path);

    cJSON_ArrayForEach(row, file->header) {
        axes += (size_t)cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(row, "shape"));
        rows++;
    }
    file->shapes = rax_alloc(sizeof *file->shapes * (axes + 1));
    file->arrays = rax_alloc(sizeof *file->arrays * (rows + 1));
    file->by_name = rax_alloc(sizeof *file->by_name * (rows + 1));

    int64_t *shape = file->shapes;
    cJSON_ArrayForEach(row, file->header) {
        if (strcmp(row->string, "__metadata__") == 0)
            continue;
        gpt_array *array = &file->arrays[file->count];
        if (!read_row(file, row, data, data_bytes, array, shape))
            return false;
        shape += array->rank;
        file->by_name[file->count++] = array;
    }
    return check_places(file, data) && check_names(file);
}

/* -- reading -------------------------------------------------------------------------------------------------------- */

static bool map_file(gpt_safetensors *file)
{
    struct stat found;
    bool mapped = false;
    int handle = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* as gpt_file_read */

    if (handle < 0 || fstat(handle, &found) != 0) {
        rax_fail(RAX_MISTAKE, "%s: cannot be read: %s", file->path, strerror(errno));
    } else if (!S_ISREG(found.st_mode)) {
        rax_fail(RAX_MISTAKE, "%s: is not a file", file->path);
    } else if (found.st_size == 0) {                 /* which cannot be mapped */
        rax_fail(RAX_MISTAKE, "%s: is empty", file->path);
    } else {
        void *map = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, handle, 0);
        mapped = map != MAP_FAILED;
        if (mapped) {
            file->map = map;
            file->bytes = (size_t)found.st_size;
        } else {
            rax_fail(RAX_FAILURE, "%s: cannot be mapped: %s", file->path, strerror(errno));
        }
    }
    if (handle >= 0)
        close(handle);
    return mapped;
}

gpt_safetensors *gpt_safetensors_open(const char *path)
{
    gpt_safetensors *file = rax_alloc(sizeof *file);
    file->path = gpt_format("%s", path);
    if (map_file(file) && read_header(file))
        return file;
    gpt_safetensors_close(file);
    return NULL;
}

void gpt_safetensors_close(gpt_safetensors *file)
{
    if (!file)
        return;
    if (file->map)
        munmap((void *)file->map, file->bytes);
    cJSON_Delete(file->header);
    rax_free(file->shapes);
    rax_free(file->arrays);
    rax_free(file->by_name);
    rax_free(file->path);
    rax_free(file);
}

int gpt_safetensors_count(const gpt_safetensors *file) { return file->count; }
const gpt_array *gpt_safetensors_at(const gpt_safetensors *file, int index) { return &file->arrays[index]; }
const char *gpt_safetensors_path(const gpt_safetensors *file) { return file->path; }

/* What was read of a file counts as the process's memory as long as it is mapped: pages that lie wholly in here are no more. They come back
 * where they are looked at again. */
static void give_back(const unsigned char *from, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)from + page - 1) / page * page, end = ((uintptr_t)from + bytes) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

uint64_t gpt_safetensors_digest(const gpt_safetensors *file)
{
    enum { CHUNK = 8 << 20 };
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return XXH3_64bits(file->map, file->bytes);
    XXH3_64bits_reset(state);
    for (size_t at = 0; at < file->bytes; at += CHUNK) {
        size_t bytes = file->bytes - at < CHUNK ? file->bytes - at : CHUNK;
        XXH3_64bits_update(state, file->map + at, bytes);
        give_back(file->map + at, bytes);
    }
    uint64_t digest = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return digest;
}

const gpt_array *gpt_safetensors_find(const gpt_safetensors *file, const char *name)
{
    gpt_array wanted = { .name = name };
    const gpt_array *key = &wanted;
    const gpt_array **found = bsearch(&key, file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    return found ? *found : NULL;
}

/* -- conversion ----------------------------------------------------------------------------------------------------- */

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* 1 sign, 5 exponent (bias 15), 10 fraction bits, to 1, 8 (bias 127), 23. */
static float from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0)                               /* a subnormal: fraction * 2^-24, which f32 holds as a normal */
        return from_bits(sign) + (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

bool gpt_array_read_f32(const gpt_safetensors *file, const gpt_array *array, float *out)
{
    int64_t count = gpt_array_count(array);
    const unsigned char *at = array->data;           /* perhaps unaligned */
    uint16_t half;
    double wide;

    if (array->type == GPT_F32) {
        memcpy(out, at, gpt_array_bytes(array));
    } else if (array->type == GPT_F16) {
        for (int64_t i = 0; i < count; i++)
            memcpy(&half, at + 2 * i, 2), out[i] = from_f16(half);
    } else if (array->type == GPT_BF16) {
        for (int64_t i = 0; i < count; i++)
            memcpy(&half, at + 2 * i, 2), out[i] = from_bits((uint32_t)half << 16);
    } else if (array->type == GPT_F64) {
        for (int64_t i = 0; i < count; i++)
            memcpy(&wide, at + 8 * i, 8), out[i] = (float)wide;
    } else {
        return rax_fail(RAX_MISTAKE, "%s: %.200s: expected a dtype of F32, F16, BF16 or F64, got %s", file->path, array->name,
                        types[array->type].name);
    }
    return true;
}

static char *shape_text(int rank, const int64_t *shape)
{
    char *text = gpt_format("%s", "[");
    for (int i = 0; i < rank; i++) {
        char *more = gpt_format("%s%s%lld", text, i ? "," : "", (long long)shape[i]);
        rax_free(text);
        text = more;
    }
    char *closed = gpt_format("%s]", text);
    rax_free(text);
    return closed;
}

bool gpt_safetensors_read_f32(const gpt_safetensors *file, const char *name, int rank, const int64_t *shape, float *out)
{
    const gpt_array *array = gpt_safetensors_find(file, name);

    if (!array)
        return rax_fail(RAX_MISTAKE, "%s: %s: is missing", file->path, name);
    bool same = array->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = array->shape[i] == shape[i];
    if (!same) {
        char *got = shape_text(array->rank, array->shape), *wanted = shape_text(rank, shape);
        rax_fail(RAX_MISTAKE, "%s: %s: expected shape %.200s, got %.200s", file->path, name, wanted, got);
        rax_free(got);
        rax_free(wanted);
        return false;
    }
    if (!gpt_array_read_f32(file, array, out))
        return false;
    give_back(array->data, gpt_array_bytes(array));
    return true;
}

/* -- writing -------------------------------------------------------------------------------------------------------- */

typedef struct { const gpt_array *array; int place; } written;

static int compare_written(const void *a, const void *b)
{
    const written *x = a, *y = b;
    size_t xs = types[x->array->type].bytes, ys = types[y->array->type].bytes;
    return xs != ys ? (xs > ys ? -1 : 1) : x->place - y->place;
}

static char *header_text(const written *order, int count)
{
    cJSON *header = cJSON_CreateObject();
    double offset = 0;                               /* exact: no file has 2^53 bytes */

    cJSON_AddStringToObject(cJSON_AddObjectToObject(header, "__metadata__"), "format", "pt");
    for (int i = 0; i < count; i++) {
        const gpt_array *array = order[i].array;
        cJSON *row = cJSON_AddObjectToObject(header, array->name);
        cJSON_AddStringToObject(row, "dtype", types[array->type].name);
        cJSON *shape = cJSON_AddArrayToObject(row, "shape"), *offsets;
        for (int d = 0; d < array->rank; d++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)array->shape[d]));
        offsets = cJSON_AddArrayToObject(row, "data_offsets");
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(offset));
        offset += (double)gpt_array_bytes(array);
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(offset));
    }
    char *printed = cJSON_PrintUnformatted(header);
    int bytes = (int)strlen(printed);
    char *text = gpt_format("%-*s", (bytes + 7) / 8 * 8, printed);               /* spaces, so that the arrays are aligned */
    cJSON_free(printed);
    cJSON_Delete(header);
    return text;
}

bool gpt_safetensors_write(const char *path, const gpt_array *arrays, int count, uint64_t *digest)
{
    written *order = rax_alloc(sizeof *order * ((size_t)count + 1));
    for (int i = 0; i < count; i++)
        order[i] = (written){ &arrays[i], i };
    qsort(order, (size_t)count, sizeof *order, compare_written);

    char *header = header_text(order, count);
    uint64_t header_bytes = strlen(header);
    gpt_new_file *file = gpt_new_file_open(path);
    gpt_new_file_write(file, &header_bytes, sizeof header_bytes);
    gpt_new_file_write(file, header, header_bytes);
    for (int i = 0; i < count; i++)
        gpt_new_file_write(file, order[i].array->data, gpt_array_bytes(order[i].array));
    rax_free(header);
    rax_free(order);
    return gpt_new_file_commit(file, digest);
}
