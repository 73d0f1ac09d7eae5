/* Numbers of rax.h's generator, Philox, on the host.
 *
 * Normal numbers come by the hundred million, so they are made in blocks, in vectors, and by all threads. Each depends on its
 * own place alone: who makes it does not matter. Logarithm, sine and cosine are series of their own for that, exact to about
 * the last bit of a double: no library's rounding is in the numbers. */
#include "nanogpt/random.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "rax.h"

double gpt_uniform(uint64_t seed, uint32_t site, uint32_t row, uint32_t column)
{
    uint32_t word[4];
    rax_philox_words(seed, (uint32_t[]){ column, row, site, 0 }, word);
    return (double)(((uint64_t)word[1] << 32 | word[0]) >> 11) * 0x1p-53;
}

/* -- normal numbers --------------------------------------------------------------------------------------------------- */

/* Counters in a block, four numbers each. */
enum { LANES = 64 };
typedef uint64_t words[LANES];       /* 32 bits in each: what a vector multiplies to 64 */
typedef double reals[LANES];

/* For what is part of a function that is compiled for several CPUs. */
#define INLINE static inline __attribute__((always_inline))

/* Words 0 to 3 of the counters first, first + 1, ... */
INLINE void philox_lanes(uint64_t seed, uint32_t site, uint64_t first, words w[4])
{
    const uint64_t low = 0xFFFFFFFF;
    uint64_t key0 = seed & low, key1 = seed >> 32;
    for (int i = 0; i < LANES; i++) {
        w[0][i] = (first + (uint64_t)i) & low;
        w[1][i] = (first + (uint64_t)i) >> 32;
        w[2][i] = site;
        w[3][i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            uint64_t p = (w[0][i] & low) * 0xD2511F53, q = (w[2][i] & low) * 0xCD9E8D57;
            w[0][i] = q >> 32 ^ w[1][i] ^ key0;
            w[1][i] = q & low;
            w[2][i] = p >> 32 ^ w[3][i] ^ key1;
            w[3][i] = p & low;
        }
        key0 = (key0 + 0x9E3779B9) & low, key1 = (key1 + 0xBB67AE85) & low;
    }
}

/* Eight doubles, and their bits: a CPU without vectors of 64 bytes takes them in parts. A cast from one to the other keeps the bits. */
enum { WIDE = 8 };
typedef double wide __attribute__((vector_size(64)));
typedef uint64_t bits __attribute__((vector_size(64)));

/* A function is compiled for CPUs of several kinds, and the one at hand chooses at the start. Each does the same arithmetic on each number,
 * and never in one rounding what is written as two, so the numbers are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EACH_CPU
#endif

/* A word below 2^52 as a double, by the bits of 2^52 + word: SSE2 has no conversion. */
INLINE void word_to_real(const bits *word, wide *real) { *real = (wide)(*word | 0x4330000000000000) - 0x1p52; }

/* log x for x > 0, no subnormal. x = 2^e m with m in [0.7, 1.41), and log m = 2 artanh((m - 1) / (m + 1)), an odd series. */
INLINE void log_series(wide *x)
{
    const uint64_t half = 0x3FE6A09E00000000;        /* the bits of about sqrt(1/2): where m begins */
    bits exponent = ((bits)*x - half + (1023ULL << 52)) >> 52;
    wide e;
    word_to_real(&exponent, &e);
    e -= 1023;
    wide m = (wide)((bits)*x - ((exponent - 1023) << 52));
    wide s = (m - 1) / (m + 1), t = s * s;
    wide series = t * (1.0 / 23) + 1.0 / 21;
    series = series * t + 1.0 / 19;
    series = series * t + 1.0 / 17;
    series = series * t + 1.0 / 15;
    series = series * t + 1.0 / 13;
    series = series * t + 1.0 / 11;
    series = series * t + 1.0 / 9;
    series = series * t + 1.0 / 7;
    series = series * t + 1.0 / 5;
    series = series * t + 1.0 / 3;
    *x = e * 0x1.62e42fefa38p-1 + (2 * s + (2 * s * t * series + e * 0x1.ef35793c7673p-45));
}

/* Sine and cosine for 0 <= x < 7: of what is left beside the nearest multiple of pi/2, by Taylor's series. */
INLINE void sine_and_cosine(const wide *x, wide *sine, wide *cosine)
{
    wide shifted = *x * 0x1.45f306dc9c883p-1 + 0x1.8p52, k = shifted - 0x1.8p52;
    bits quarter = (bits)shifted & 3;
    wide r = *x - k * 0x1.921fb544p0 - k * 0x1.0b4611a626331p-34, t = r * r;     /* k has 3 bits: the first product is exact */
    wide s = t * (1.0 / 355687428096000) - 1.0 / 1307674368000;                     /* 1/17!, 1/15! */
    wide c = t * (-1.0 / 6402373705728000) + 1.0 / 20922789888000;                  /* 1/18!, 1/16! */
    s = s * t + 1.0 / 6227020800;
    c = c * t - 1.0 / 87178291200;
    s = s * t - 1.0 / 39916800;
    c = c * t + 1.0 / 479001600;
    s = s * t + 1.0 / 362880;
    c = c * t - 1.0 / 3628800;
    s = s * t - 1.0 / 5040;
    c = c * t + 1.0 / 40320;
    s = s * t + 1.0 / 120;
    c = c * t - 1.0 / 720;
    s = s * t - 1.0 / 6;
    c = c * t + 1.0 / 24;
    s = r + r * t * s;
    c = 1 - 0.5 * t + t * t * c;
    /* the quarters: (s, c), (c, -s), (-s, -c), (-c, s); a mask chooses, a flipped sign bit negates */
    bits swapped = -(quarter & 1);
    *sine = (wide)((((bits)s & ~swapped) | ((bits)c & swapped)) ^ (quarter & 2) << 62);
    *cosine = (wide)((((bits)c & ~swapped) | ((bits)s & swapped)) ^ ((quarter + 1) & 2) << 62);
}

/* Two numbers of each lane, by Box and Muller. u is in (0, 1]. */
INLINE void box_muller(const words radius_word, const words angle_word, double deviation, reals first, reals second)
{
    for (int i = 0; i < LANES; i += WIDE) {
        bits radius_bits, angle_bits;
        wide radius, angle, sine, cosine;
        memcpy(&radius_bits, radius_word + i, sizeof radius_bits);
        memcpy(&angle_bits, angle_word + i, sizeof angle_bits);
        word_to_real(&radius_bits, &radius);
        radius = (radius + 1) * 0x1p-32;
        log_series(&radius);
        for (int j = 0; j < WIDE; j++)
            radius[j] = sqrt(-2 * radius[j]);
        radius *= deviation;
        word_to_real(&angle_bits, &angle);
        angle *= 2 * M_PI * 0x1p-32;
        sine_and_cosine(&angle, &sine, &cosine);
        cosine *= radius;
        sine *= radius;
        memcpy(first + i, &cosine, sizeof cosine);
        memcpy(second + i, &sine, sizeof sine);
    }
}

/* Elements first * 4 and on, as many as a block has or are left. */
FOR_EACH_CPU static void normal_block(uint64_t seed, uint32_t site, double deviation, uint64_t first, int64_t count, float *out)
{
    words w[4];
    reals normal[4];
    philox_lanes(seed, site, first, w);
    box_muller(w[0], w[1], deviation, normal[0], normal[1]);
    box_muller(w[2], w[3], deviation, normal[2], normal[3]);
    for (int64_t i = 0; i < count && i < 4 * LANES; i++)
        out[i] = (float)normal[i % 4][i / 4];
}

/* -- by all threads --------------------------------------------------------------------------------------------------- */

/* Blocks that one thread takes at a time, and as few as are worth a thread. */
enum { MAX_THREADS = 64, CHUNK = 16 };
typedef struct {
    uint64_t seed;
    uint32_t site;
    double deviation;
    int64_t count;
    float *out;
    atomic_llong next;               /* the next chunk */
} normals;

static void *make_normals(void *argument)
{
    normals *n = argument;
    const int64_t chunk = (int64_t)CHUNK * 4 * LANES;
    for (int64_t from; (from = atomic_fetch_add(&n->next, 1) * chunk) < n->count;)
        for (int64_t i = from; i < from + chunk && i < n->count; i += 4 * LANES)
            normal_block(n->seed, n->site, n->deviation, (uint64_t)i / 4, n->count - i, n->out + i);
    return NULL;
}

void gpt_normal(uint64_t seed, uint32_t site, double deviation, int64_t count, float *out)
{
    normals n = { .seed = seed, .site = site, .deviation = deviation, .count = count, .out = out };
    pthread_t threads[MAX_THREADS];
    int started = 0, wanted = rax_usable_cpus() - 1;
    int64_t worth = count / (4 * CHUNK * 4 * LANES);
    while (started < wanted && started < worth && started < MAX_THREADS && pthread_create(&threads[started], NULL, make_normals, &n) == 0)
        started++;                   /* those that the system does not give are done without */
    make_normals(&n);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}
