/* Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
 * (SC11): ten rounds of two 32x32-bit products. A value depends on its key and counter and on nothing else, so that it can be
 * computed anywhere, again, and in any order: dropout masks are, in the backward pass.
 *
 * A tensor's random bits: the key is the seed; the counter is low and high word of i/4, site, and the op's counter operand;
 * element i, row-major, takes word i mod 4. */
#include "ir/ir.h"

#include <string.h>

enum { ROUNDS = 10 };

void ir_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t word[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;                    /* the golden ratio and the square root of 3, less 1, as fractions of 2^32 */
        k1 += 0xBB67AE85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

void ref_random_bits(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    const uint32_t *key = args[0]->data;
    uint32_t counter[4] = { 0, 0, node->attr.site, *(const uint32_t *)args[1]->data }, word[4];
    uint32_t *y = result->data;
    int64_t count = ir_type_count(&result->type);
    for (int64_t i = 0; i < count; i += 4) {
        counter[0] = (uint32_t)(i >> 2);
        counter[1] = (uint32_t)(i >> 34);
        ir_philox(counter, key, word);
        memcpy(y + i, word, sizeof word[0] * (size_t)MIN(count - i, 4));
    }
}
