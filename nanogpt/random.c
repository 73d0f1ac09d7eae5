/* Philox on the host. */
#include "nanogpt/random.h"

#include <math.h>

void gpt_philox(uint64_t seed, const uint32_t counter[4], uint32_t out[4])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p = (uint64_t)0xD2511F53 * a, q = (uint64_t)0xCD9E8D57 * c;
        a = (uint32_t)(q >> 32) ^ b ^ key0, b = (uint32_t)q;
        c = (uint32_t)(p >> 32) ^ d ^ key1, d = (uint32_t)p;
        key0 += 0x9E3779B9, key1 += 0xBB67AE85;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

double gpt_uniform(uint64_t seed, uint32_t site, uint32_t row, uint32_t column)
{
    uint32_t word[4];
    gpt_philox(seed, (uint32_t[]){ column, row, site, 0 }, word);
    return (double)(((uint64_t)word[1] << 32 | word[0]) >> 11) * 0x1p-53;
}

void gpt_normal(uint64_t seed, uint32_t site, double deviation, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t word[4];
        double normal[4];
        gpt_philox(seed, (uint32_t[]){ (uint32_t)(i / 4), (uint32_t)((uint64_t)i / 4 >> 32), site, 0 }, word);
        for (int pair = 0; pair < 4; pair += 2) {
            double u = (word[pair] + 1.0) * 0x1p-32, angle = word[pair + 1] * (2 * M_PI * 0x1p-32);     /* 0 < u <= 1 */
            double radius = deviation * sqrt(-2 * log(u));
            normal[pair] = radius * cos(angle);
            normal[pair + 1] = radius * sin(angle);
        }
        for (int64_t j = i; j < count && j < i + 4; j++)
            out[j] = (float)normal[j - i];
    }
}
