/* safetensors files: what is written is read back, other programs' files are read, and whatever the bytes, the reader stays
 * within them and says in one line what is wrong. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "nanogpt/files.h"
#include "nanogpt/safetensors.h"
#include "rax.h"
#include "tests/scratch.h"

static char path[256];

static int make_folder(void **state)
{
    int made = make_scratch(state);
    snprintf(path, sizeof path, "%s/m.safetensors", scratch);
    return made;
}

/* A file of this header and so many bytes of data; the error of opening it, without the folder. */
static const char *open_header(const char *header, size_t data_bytes)
{
    static char bytes[8192];
    uint64_t length = strlen(header);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    memset(bytes + 8 + length, 1, data_bytes);
    write_file(path, bytes, 8 + length + data_bytes);
    rax_error_clear();
    gpt_safetensors *file = gpt_safetensors_open(path);
    if (file) {
        gpt_safetensors_close(file);
        return NULL;
    }
    assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    assert_null(strchr(rax_error(), '\n'));
    assert_memory_equal(rax_error(), scratch, strlen(scratch));
    return rax_error() + strlen(scratch) + 1;
}

static void test_round_trip(void **state)
{
    (void)state;
    float wte[6] = { 1, -2, 3.5f, 0.0f, 1e-42f, INFINITY }, scalar = 7;
    int64_t step = -5;
    uint8_t mask[3] = { 1, 0, 1 };
    int64_t s23[] = { 2, 3 }, s3[] = { 3 }, s0[] = { 0, 4 };
    const gpt_array arrays[] = {
        { "mask", GPT_BOOL, 1, s3, mask }, { "wte \"quoted\" \xc3\xa9", GPT_F32, 2, s23, wte }, { "scalar", GPT_F32, 0, NULL, &scalar },
        { "empty", GPT_F32, 2, s0, NULL }, { "step", GPT_I64, 0, NULL, &step },
    };
    uint64_t digest;

    assert_true(gpt_safetensors_write(path, arrays, COUNT_OF(arrays), &digest));
    gpt_safetensors *file = gpt_safetensors_open(path);
    assert_non_null(file);
    assert_int_equal(gpt_safetensors_count(file), COUNT_OF(arrays));
    assert_true(gpt_safetensors_digest(file) == digest);

    /* wider elements first, otherwise in order, so that all are aligned */
    static const char *const order[] = { "step", "wte \"quoted\" \xc3\xa9", "scalar", "empty", "mask" };
    for (size_t i = 0; i < COUNT_OF(order); i++) {
        const gpt_array *array = gpt_safetensors_at(file, (int)i);
        assert_string_equal(array->name, order[i]);
        assert_ptr_equal(gpt_safetensors_find(file, order[i]), array);
        assert_true((uintptr_t)array->data % gpt_array_type_bytes(array->type) == 0);
    }
    for (size_t i = 0; i < COUNT_OF(arrays); i++) {
        const gpt_array *array = gpt_safetensors_find(file, arrays[i].name);
        assert_int_equal(array->type, arrays[i].type);
        assert_int_equal(array->rank, arrays[i].rank);
        assert_int_equal(gpt_array_bytes(array), gpt_array_bytes(&arrays[i]));
        if (gpt_array_bytes(array) > 0)
            assert_memory_equal(array->data, arrays[i].data, gpt_array_bytes(array));
    }
    assert_null(gpt_safetensors_find(file, "wte"));

    float out[6];
    assert_true(gpt_safetensors_read_f32(file, arrays[1].name, 2, s23, out));
    assert_memory_equal(out, wte, sizeof wte);
    assert_true(gpt_safetensors_read_f32(file, "scalar", 0, NULL, out));
    assert_true(out[0] == 7);
    assert_false(gpt_safetensors_read_f32(file, "wpe", 2, s23, out));
    assert_non_null(strstr(rax_error(), "m.safetensors: wpe: is missing"));
    assert_false(gpt_safetensors_read_f32(file, arrays[1].name, 1, s3, out));
    assert_non_null(strstr(rax_error(), ": expected shape [3], got [2,3]"));
    assert_false(gpt_safetensors_read_f32(file, "step", 0, NULL, out));
    assert_non_null(strstr(rax_error(), "step: expected a dtype of F32, F16, BF16 or F64, got I64"));
    gpt_safetensors_close(file);
}

static void test_no_arrays(void **state)
{
    (void)state;
    assert_true(gpt_safetensors_write(path, NULL, 0, NULL));
    gpt_safetensors *file = gpt_safetensors_open(path);
    assert_non_null(file);
    assert_int_equal(gpt_safetensors_count(file), 0);
    assert_null(gpt_safetensors_find(file, "x"));
    gpt_safetensors_close(file);
    assert_null(open_header("{}", 0));
}

static void test_conversions(void **state)
{
    (void)state;
    static const struct { uint16_t bits; float value; } halves[] = {
        { 0x3c00, 1 }, { 0xc000, -2 }, { 0x7bff, 65504 }, { 0x0400, 0x1p-14f }, { 0x0001, 0x1p-24f }, { 0x83ff, -1023 * 0x1p-24f },
        { 0x0000, 0.0f }, { 0x8000, -0.0f }, { 0x7c00, INFINITY }, { 0xfc00, -INFINITY }, { 0x3555, 0.333251953125f },
    };
    static const struct { uint16_t bits; float value; } brains[] = {
        { 0x3f80, 1 }, { 0xc000, -2 }, { 0x8000, -0.0f }, { 0x7f80, INFINITY }, { 0x0001, 0x1p-133f }, { 0x3eab, 0.333984375f },
    };
    static const double wides[] = { 1, -0.0, 0.1, 1 + 0x1p-24, 1 + 0x1.8p-24, 1e300 };
    int64_t nh = COUNT_OF(halves), nb = COUNT_OF(brains), nw = COUNT_OF(wides);
    uint16_t h[COUNT_OF(halves)], b[COUNT_OF(brains)], nan = 0x7e01;
    float out[16];

    for (size_t i = 0; i < COUNT_OF(halves); i++)
        h[i] = halves[i].bits;
    for (size_t i = 0; i < COUNT_OF(brains); i++)
        b[i] = brains[i].bits;
    const gpt_array arrays[] = { { "h", GPT_F16, 1, &nh, h }, { "b", GPT_BF16, 1, &nb, b }, { "w", GPT_F64, 1, &nw, wides },
                                 { "nan", GPT_F16, 0, NULL, &nan } };
    assert_true(gpt_safetensors_write(path, arrays, COUNT_OF(arrays), NULL));
    gpt_safetensors *file = gpt_safetensors_open(path);

    assert_true(gpt_safetensors_read_f32(file, "h", 1, &nh, out));
    for (size_t i = 0; i < COUNT_OF(halves); i++)
        assert_memory_equal(&out[i], &halves[i].value, 4);
    assert_true(gpt_safetensors_read_f32(file, "b", 1, &nb, out));
    for (size_t i = 0; i < COUNT_OF(brains); i++)
        assert_memory_equal(&out[i], &brains[i].value, 4);
    assert_true(gpt_safetensors_read_f32(file, "w", 1, &nw, out));
    assert_true(out[0] == 1 && out[1] == 0 && signbit(out[1]) && out[2] == 0.1f && out[3] == 1 && out[4] == 1 + 0x1p-23f && isinf(out[5]));
    assert_true(gpt_safetensors_read_f32(file, "nan", 0, NULL, out));
    assert_true(isnan(out[0]));
    gpt_safetensors_close(file);
}

/* A header of any length puts the arrays at any address. */
static void test_unaligned(void **state)
{
    (void)state;
    static const char header[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}  ";
    char bytes[256];
    float values[2] = { 3, 4 }, out[2];
    int64_t two = 2;
    for (uint64_t length = sizeof header - 3; length <= sizeof header - 1; length++) {
        memcpy(bytes, &length, 8);
        memcpy(bytes + 8, header, length);
        memcpy(bytes + 8 + length, values, 8);
        write_file(path, bytes, 8 + length + 8);
        gpt_safetensors *file = gpt_safetensors_open(path);
        assert_non_null(file);
        assert_true(gpt_safetensors_read_f32(file, "x", 1, &two, out));
        assert_memory_equal(out, values, 8);
        gpt_safetensors_close(file);
    }
}

static void test_mistakes(void **state)
{
    (void)state;
#define ROW(name, type, shape, begin, end) "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
    static const struct { const char *header; size_t data; const char *error; } cases[] = {
        { "[1]", 0, "m.safetensors: the header is no JSON object" },
        { "{\"x\":", 0, "m.safetensors:1: JSON syntax error at the end of the text" },
        { "{" ROW("x", "F33", "[2]", 0, 8) "}", 8, "m.safetensors: x: unknown dtype 'F33'" },
        { "{\"x\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "m.safetensors: x: has no dtype" },
        { "{\"x\":3}", 0, "m.safetensors: x: has no dtype" },
        { "{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "m.safetensors: x: has no shape" },
        { "{\"x\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "m.safetensors: x: data_offsets: expected two byte offsets" },
        { "{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "m.safetensors: x: data_offsets: expected two byte offsets" },
        { "{" ROW("x", "F32", "[-2]", 0, 8) "}", 8, "m.safetensors: x: shape: axis 0 is no length" },
        { "{" ROW("x", "F32", "[2,\"a\"]", 0, 8) "}", 8, "m.safetensors: x: shape: axis 1 is no length" },
        { "{" ROW("x", "F32", "[1.5]", 0, 8) "}", 8, "m.safetensors: x: shape: axis 0 is no length" },
        { "{" ROW("x", "F32", "[4294967296,4294967296,2]", 0, 8) "}", 8, "m.safetensors: x: shape: the product of the axes is too large" },
        { "{" ROW("x", "F64", "[2305843009213693952]", 0, 8) "}", 8, "m.safetensors: x: shape: axis 0 is no length" },
        { "{" ROW("x", "F32", "[2]", 0, 16) "}", 8, "m.safetensors: x: data_offsets: [0, 16] is not within the file's 8 bytes of data" },
        { "{" ROW("x", "F32", "[2]", 8, 0) "}", 8, "m.safetensors: x: data_offsets: [8, 0] is not within the file's 8 bytes of data" },
        { "{" ROW("x", "F32", "[2]", -8, 0) "}", 8, "m.safetensors: x: data_offsets: expected two byte offsets" },
        { "{" ROW("x", "F32", "[3]", 0, 8) "}", 8, "m.safetensors: x: data_offsets: 8 bytes, but dtype and shape need 12" },
        { "{" ROW("x", "F32", "[2]", 0, 8) "," ROW("y", "F32", "[2]", 4, 12) "}", 12, "m.safetensors: y: data_offsets: overlaps another array" },
        { "{" ROW("x", "F32", "[2]", 0, 8) "," ROW("y", "F32", "[2]", 12, 20) "}", 20, "m.safetensors: y: data_offsets: leaves a gap before it" },
        { "{" ROW("x", "F32", "[2]", 4, 12) "}", 12, "m.safetensors: x: data_offsets: leaves a gap before it" },
        { "{" ROW("x", "F32", "[2]", 0, 8) "}", 11, "m.safetensors: 3 bytes at the end belong to no array" },
        { "{" ROW("x", "F32", "[2]", 0, 8) "," ROW("x", "F32", "[2]", 8, 16) "}", 16, "m.safetensors: x: is there twice" },
        { "{" ROW("a\\n\\u001b[2Jb", "F3\\r", "[2]", 0, 8) "}", 8, "m.safetensors: a??[2Jb: unknown dtype 'F3?'" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *error = open_header(cases[i].header, cases[i].data);
        assert_non_null(error);
        assert_string_equal(error, cases[i].error);
    }
    assert_null(open_header("{\"__metadata__\":{\"format\":\"pt\"}," ROW("a", "F32", "[0]", 0, 0) "," ROW("x", "F32", "[2]", 0, 8) "}", 8));
}

static void test_no_file(void **state)
{
    (void)state;
    assert_null(gpt_safetensors_open("/nowhere/m.safetensors"));
    assert_string_equal(rax_error(), "/nowhere/m.safetensors: cannot be read: No such file or directory");
    assert_null(gpt_safetensors_open(scratch));
    assert_non_null(strstr(rax_error(), ": is not a file"));
    write_file(path, "", 0);
    assert_null(gpt_safetensors_open(path));
    assert_non_null(strstr(rax_error(), ": is empty"));
    write_file(path, "1234567", 7);
    assert_null(gpt_safetensors_open(path));
    write_file(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    assert_null(gpt_safetensors_open(path));
    assert_non_null(strstr(rax_error(), "truncated or no safetensors file"));
    assert_false(gpt_safetensors_write("/nowhere/m.safetensors", NULL, 0, NULL));
    assert_string_equal(rax_error(), "/nowhere/m.safetensors: cannot be written: No such file or directory");
    assert_int_equal(rax_error_kind_of(), RAX_FAILURE);
}

/* -- damaged files -------------------------------------------------------------------------------------------------- */

/* Opens, and reads every byte of every array. The file fills whole pages, so that a read beyond it is a fault. */
static void read_all(void)
{
    gpt_safetensors *file = gpt_safetensors_open(path);
    for (int i = 0; file && i < gpt_safetensors_count(file); i++) {
        const gpt_array *array = gpt_safetensors_at(file, i);
        const unsigned char *at = array->data;
        unsigned sum = 0;
        for (size_t b = 0; b < gpt_array_bytes(array); b++)
            sum += at[b];
        assert_true(sum <= gpt_array_bytes(array) * 255);
        float *out = rax_alloc(sizeof *out * ((size_t)gpt_array_count(array) + 1));
        gpt_array_read_f32(file, array, out);
        rax_free(out);
    }
    gpt_safetensors_close(file);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    return *seed ^= *seed << 5;
}

static void test_damaged_bytes(void **state)
{
    (void)state;
    enum { BYTES = 4096 };
    static unsigned char good[BYTES], bad[BYTES];
    static const char head[] = "{" ROW("a", "F16", "[4,5]", 0, 40) "," ROW("b", "F64", "[2]", 40, 56) ",\"__metadata__\":{\"format\":\"pt\"},"
                               "\"c\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[56,%d]}}";
    char header[512];
    int rest = 0;
    for (int round = 0; round < 4; round++) {        /* the length of the numbers settles */
        uint64_t length = ((uint64_t)snprintf(header, sizeof header, head, rest / 4, 56 + rest) + 7) & ~7ull;
        rest = BYTES - 8 - (int)length - 56;
    }
    uint64_t length = (strlen(header) + 7) & ~7ull;
    memset(good, ' ', BYTES);
    memcpy(good, &length, 8);
    memcpy(good + 8, header, strlen(header));
    write_file(path, good, BYTES);
    gpt_safetensors *file = gpt_safetensors_open(path);
    assert_non_null(file);
    gpt_safetensors_close(file);

    uint32_t seed = 12345;
    for (int round = 0; round < 6000; round++) {
        memcpy(bad, good, BYTES);
        for (uint32_t n = next_random(&seed) % 4 + 1; n > 0; n--) {
            uint32_t at = next_random(&seed) % (8 + (uint32_t)length), how = next_random(&seed);
            static const char marks[] = "0123456789[]{},:\"\\-.eE ";
            bad[at] = how % 3 ? (unsigned char)marks[how / 3 % (sizeof marks - 1)] : (unsigned char)(how >> 8);
            if (how % 11 == 0)
                memmove(bad + at, bad + at + how % 7, BYTES - at - how % 7);
        }
        write_file(path, bad, BYTES);
        read_all();
    }
    for (size_t bytes = 0; bytes < BYTES; bytes += bytes < 8 + length ? 1 : 97) {
        write_file(path, good, bytes);
        assert_null(gpt_safetensors_open(path));
    }
}

/* -- files of other programs ---------------------------------------------------------------------------------------- */

static void test_golden_files(void **state)
{
    (void)state;
    static const char *const paths[] = { "../shared/golden/tiny/init/model.safetensors", "../shared/golden/tiny/final.safetensors",
                                         "../shared/golden/tiny-nobias/init/model.safetensors" };
    if (access(paths[0], R_OK) != 0)
        skip();
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        gpt_safetensors *file = gpt_safetensors_open(paths[i]);
        if (!file)
            print_error("%s\n", rax_error());
        assert_non_null(file);
        const gpt_array *wte = gpt_safetensors_find(file, "transformer.wte.weight");
        assert_non_null(wte);
        assert_int_equal(wte->rank, 2);

        /* written again and read again: the same arrays */
        int count = gpt_safetensors_count(file);
        assert_true(gpt_safetensors_write(path, gpt_safetensors_at(file, 0), count, NULL));
        gpt_safetensors *again = gpt_safetensors_open(path);
        assert_int_equal(gpt_safetensors_count(again), count);
        for (int k = 0; k < count; k++) {
            const gpt_array *a = gpt_safetensors_at(file, k), *b = gpt_safetensors_find(again, a->name);
            assert_int_equal(gpt_array_bytes(a), gpt_array_bytes(b));
            assert_memory_equal(a->data, b->data, gpt_array_bytes(a));
        }
        gpt_safetensors_close(again);
        gpt_safetensors_close(file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_no_arrays),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_unaligned),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_damaged_bytes),
        cmocka_unit_test(test_golden_files),
        cmocka_unit_test(nothing_leaks),
    };
    return cmocka_run_group_tests_name("safetensors", tests, make_folder, remove_scratch);
}
