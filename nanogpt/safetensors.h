/* Named arrays in a file, in the safetensors format: 8 bytes of header length, a JSON header, then the bytes of the arrays,
 * little endian, row-major, without gaps. (huggingface/safetensors, "Format"; of offsets, sizes and
 * overlaps this reader refuses what that one refuses, of the header's JSON it takes a little more: what cJSON takes.)
 *
 * A file is mapped, and an array's data points into the map: it is valid until the file is closed, and need not be aligned.
 * Whatever the bytes of a file, the reader stays within them; a damaged file is an error that names the file and the array. */
#ifndef GPT_SAFETENSORS_H
#define GPT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    GPT_F64, GPT_F32, GPT_F16, GPT_BF16, GPT_F8_E4M3, GPT_F8_E5M2,
    GPT_I64, GPT_I32, GPT_I16, GPT_I8, GPT_U64, GPT_U32, GPT_U16, GPT_U8, GPT_BOOL
} gpt_array_type;

const char *gpt_array_type_name(gpt_array_type type);     /* "F32" */
size_t gpt_array_type_bytes(gpt_array_type type);

/* Rank 0 is a scalar; an axis may be 0 long. Everything is borrowed. */
typedef struct {
    const char *name;
    gpt_array_type type;
    int rank;
    const int64_t *shape;
    const void *data;
} gpt_array;

int64_t gpt_array_count(const gpt_array *array);          /* elements */
size_t gpt_array_bytes(const gpt_array *array);

typedef struct gpt_safetensors gpt_safetensors;
gpt_safetensors *gpt_safetensors_open(const char *path);  /* NULL: rax_error() */
void gpt_safetensors_close(gpt_safetensors *file);        /* NULL is fine */
int gpt_safetensors_count(const gpt_safetensors *file);
const gpt_array *gpt_safetensors_at(const gpt_safetensors *file, int index);             /* in the header's order */
const gpt_array *gpt_safetensors_find(const gpt_safetensors *file, const char *name);    /* NULL: there is none */
const char *gpt_safetensors_path(const gpt_safetensors *file);
uint64_t gpt_safetensors_digest(const gpt_safetensors *file);                            /* XXH3 of all its bytes */

/* Elements as f32: F32 as they are, F16 and BF16 exactly, F64 rounded to nearest. Another type is an error. */
bool gpt_array_read_f32(const gpt_safetensors *file, const gpt_array *array, float *out);

/* The array of this name, which must have this shape, as f32. Errors name the file, the array, and both shapes. */
bool gpt_safetensors_read_f32(const gpt_safetensors *file, const char *name, int rank, const int64_t *shape, float *out);

/* Writes a file with metadata {"format":"pt"}: to a temporary name beside it, flushed to the disk, then renamed, so that the
 * path names the old file or the whole new one. The arrays keep their order, but that wider elements come first, so that all
 * are aligned. digest may be NULL. */
bool gpt_safetensors_write(const char *path, const gpt_array *arrays, int count, uint64_t *digest);

#endif
