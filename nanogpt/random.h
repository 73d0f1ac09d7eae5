/* Random numbers on the host: initial weights, and the draws of sampling. A number depends on the seed and on where it
 * stands, never on what was drawn before. */
#ifndef GPT_RANDOM_H
#define GPT_RANDOM_H

#include <stdint.h>

/* What is drawn from one seed is told apart by the third word of the counter, the site. A step's own random ops have small
 * sites, and the batches of data/ have 0xDA7A0000 and on. */
enum { GPT_SITE_WEIGHTS = 0x17A10000, GPT_SITE_SAMPLING = 0x5A3B0000 };

/* Uniform in [0, 1), a multiple of 2^-53, of two words of rax.h's generator. */
double gpt_uniform(uint64_t seed, uint32_t site, uint32_t row, uint32_t column);

/* count normal numbers with mean 0 and this deviation, by Box and Muller. */
void gpt_normal(uint64_t seed, uint32_t site, double deviation, int64_t count, float *out);

#endif
