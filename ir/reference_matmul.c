/* The interpreter's matrix product: each element is one chain of products and sums with k ascending, in f32 for f32 and bf16
 * and in f64 for f64, each operation rounded (the build sets -ffp-contract=off). The bits are those of the three plain loops:
 * only the order in which elements are visited is chosen, so that an oracle of a training step is bearable.
 *
 *     for each block of K, for some strips of NR columns:  copy the strips, each K x NR, as wide values
 *         for each MR rows:                                copy the rows, K x MR, likewise
 *             for each strip: MR x NR sums in registers    begun from the result so far, written back after the block
 */
#include "ir/ir.h"

#include <string.h>

/* One function compiled for several instruction sets, chosen when the program starts. Not under a sanitizer, whose runtime is
 * not yet there when the choice is made. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#if defined(__x86_64__) && defined(__has_attribute) && !defined(SANITIZED)
#if __has_attribute(target_clones)
#define VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef VECTOR_CLONES
#define VECTOR_CLONES
#endif

/* A vector is a cache line of values; the compiler splits it where registers are shorter. MR rows of one vector each leave
 * room in 16 registers of 32 bytes for the strip's vector and a broadcast. */
enum { VECTOR_BYTES = 64, MR = 6, KC = 256, STRIPS = 16 };

typedef struct { int64_t m, n, k; } extent;

/* tile: sums += rows (KC x MR) times strip (KC x NR), both packed. */
#define MATMUL(suffix, storage, sum, LOAD)                                                                                \
    enum { NR_##suffix = VECTOR_BYTES / sizeof(sum) };                                                                    \
    typedef sum vector_##suffix __attribute__((vector_size(VECTOR_BYTES), may_alias));                                    \
                                                                                                                          \
    VECTOR_CLONES static void tile_##suffix(int64_t k, const sum *rows, const sum *strip, sum *sums)                      \
    {                                                                                                                     \
        vector_##suffix s0, s1, s2, s3, s4, s5, b, *s = (vector_##suffix *)sums;                                          \
        s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3], s4 = s[4], s5 = s[5];                                                 \
        for (int64_t p = 0; p < k; p++, rows += MR, strip += NR_##suffix) {                                               \
            b = *(const vector_##suffix *)strip;                                                                          \
            s0 += rows[0] * b, s1 += rows[1] * b, s2 += rows[2] * b;                                                      \
            s3 += rows[3] * b, s4 += rows[4] * b, s5 += rows[5] * b;                                                      \
        }                                                                                                                 \
        s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3, s[4] = s4, s[5] = s5;                                                 \
    }                                                                                                                     \
                                                                                                                          \
    static void pack_strips_##suffix(int64_t k, int64_t n, const storage *restrict b, int64_t stride, sum *restrict strips)\
    {                                                                                                                     \
        for (int64_t j0 = 0; j0 < n; j0 += NR_##suffix, strips += k * NR_##suffix)                                        \
            for (int64_t p = 0; p < k; p++) {                                                                             \
                const storage *restrict row = b + p * stride + j0;                                                        \
                sum *restrict to = strips + p * NR_##suffix;                                                              \
                if (n - j0 >= NR_##suffix) {                                                                              \
                    for (int64_t j = 0; j < NR_##suffix; j++)                                                             \
                        to[j] = LOAD(row[j]);                                                                             \
                } else {                                                                                                  \
                    for (int64_t j = 0; j < NR_##suffix; j++)                                                             \
                        to[j] = j0 + j < n ? LOAD(row[j]) : 0;                                                            \
                }                                                                                                         \
            }                                                                                                             \
    }                                                                                                                     \
                                                                                                                          \
    /* The last row again where there are fewer than MR: its sums are not kept. */                                        \
    static void pack_rows_##suffix(int64_t k, int64_t m, const storage *a, int64_t stride, sum *rows)                     \
    {                                                                                                                     \
        for (int64_t i = 0; i < MR; i++)                                                                                  \
            for (int64_t p = 0; p < k; p++)                                                                               \
                rows[p * MR + i] = LOAD(a[MIN(i, m - 1) * stride + p]);                                                   \
    }                                                                                                                     \
                                                                                                                          \
    /* The m x n corner of a tile, to it or from it.                                                                      \
     * Beyond the corner a tile computes what nobody reads. */                                                            \
    static void copy_sums_##suffix(int64_t m, int64_t n, sum *to, int64_t to_stride, const sum *from, int64_t from_stride)\
    {                                                                                                                     \
        for (int64_t i = 0; i < m; i++, to += to_stride, from += from_stride)                                             \
            if (n == NR_##suffix)                                                                                         \
                memcpy(to, from, VECTOR_BYTES);              /* of a known size: no call */                               \
            else                                                                                                          \
                memcpy(to, from, sizeof(sum) * (size_t)n);                                                                \
    }                                                                                                                     \
                                                                                                                          \
    /* c += a b, where all are row-major. */                                                                              \
    static void multiply_##suffix(extent e, const storage *a, const storage *b, sum *c)                                   \
    {                                                                                                                     \
        enum { NR = NR_##suffix, NC = STRIPS * NR };                                                                      \
        _Alignas(VECTOR_BYTES) sum rows[KC * MR], sums[MR * NR] = { 0 };                                                  \
        sum *strips = base_alloc(sizeof(sum) * KC * NC);                                                                  \
        for (int64_t k0 = 0; k0 < e.k; k0 += KC)                                                                          \
            for (int64_t n0 = 0; n0 < e.n; n0 += NC) {                                                                    \
                int64_t kc = MIN(KC, e.k - k0), nc = MIN((int64_t)NC, e.n - n0);                                          \
                pack_strips_##suffix(kc, nc, b + k0 * e.n + n0, e.n, strips);                                             \
                for (int64_t m0 = 0; m0 < e.m; m0 += MR) {                                                                \
                    int64_t mr = MIN(MR, e.m - m0);                                                                       \
                    pack_rows_##suffix(kc, mr, a + m0 * e.k + k0, e.k, rows);                                             \
                    for (int64_t j = 0; j < nc; j += NR) {                                                                \
                        sum *tile = c + m0 * e.n + n0 + j;                                                                \
                        int64_t nr = MIN((int64_t)NR, nc - j);                                                            \
                        copy_sums_##suffix(mr, nr, sums, NR, tile, e.n);                                                  \
                        tile_##suffix(kc, rows, strips + j * kc, sums);                                                   \
                        copy_sums_##suffix(mr, nr, tile, e.n, sums, NR);                                                  \
                    }                                                                                                     \
                }                                                                                                         \
            }                                                                                                             \
        base_free(strips);                                                                                                \
    }

/* As ir_bf16_to_f32, where the compiler sees it. */
static inline float widened(uint16_t bits)
{
    union { uint32_t bits; float value; } wide = { (uint32_t)bits << 16 };
    return wide.value;
}

#define AS_IS(value) (value)
MATMUL(f32, float, float, AS_IS)
MATMUL(f64, double, double, AS_IS)
MATMUL(bf16, uint16_t, float, widened)

/* A product of bf16 whose result is bf16 too is summed in f32 beside it, a few rows at a time. */
static void multiply_to_bf16(extent e, const uint16_t *a, const uint16_t *b, uint16_t *c)
{
    enum { ROWS = 96 };
    float *wide = base_alloc(sizeof(float) * (size_t)(ROWS * e.n));
    for (int64_t m0 = 0; m0 < e.m; m0 += ROWS) {
        extent part = { MIN(ROWS, e.m - m0), e.n, e.k };
        memset(wide, 0, sizeof(float) * (size_t)(part.m * e.n));
        multiply_bf16(part, a + m0 * e.k, b, wide);
        for (int64_t i = 0; i < part.m * e.n; i++)
            c[m0 * e.n + i] = ir_f32_to_bf16(wide[i]);
    }
    base_free(wide);
}

void ref_matmul(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    const ir_type *lhs = &args[0]->type, *type = &result->type;
    extent e = { type->dim[type->rank - 2], type->dim[type->rank - 1], lhs->dim[lhs->rank - 1] };
    int64_t batches = 1;
    for (int i = 0; i < type->rank - 2; i++)
        batches *= type->dim[i];
    memset(result->data, 0, (size_t)ir_type_bytes(type));
    for (int64_t i = 0; i < batches; i++) {
        int64_t a = i * e.m * e.k, b = i * e.k * e.n, c = i * e.m * e.n;
        switch (lhs->dtype) {
        case IR_F32:
            multiply_f32(e, (const float *)args[0]->data + a, (const float *)args[1]->data + b, (float *)result->data + c);
            break;
        case IR_F64:
            multiply_f64(e, (const double *)args[0]->data + a, (const double *)args[1]->data + b, (double *)result->data + c);
            break;
        case IR_BF16: {
            const uint16_t *x = (const uint16_t *)args[0]->data + a, *y = (const uint16_t *)args[1]->data + b;
            if (type->dtype == IR_F32)
                multiply_bf16(e, x, y, (float *)result->data + c);
            else
                multiply_to_bf16(e, x, y, (uint16_t *)result->data + c);
            break;
        }
        case IR_I32: case IR_BOOL: case IR_TUPLE:
            CHECK(false, "%%%d matmul: expected operands of a float dtype, got %s", node->id, ir_dtype_name(lhs->dtype));
        }
    }
}
