/* Batches of token ids. A loader keeps no position: micro-batch m is a function of seed, stream, m and the file, so that a
 * run that is resumed at iteration it goes on with the batches that it would have had, and needs no state for it. */
#include "data/data.h"
#include "rax.h"

#include <string.h>

__extension__ typedef unsigned __int128 u128;

struct data_loader {
    const data_tokens *tokens;
    data_order order;
    uint64_t seed;
    uint32_t stream;
    size_t B, T;
    uint64_t count;                  /* whole batches in sequential order */
};

/* Dropout and weights draw from the same key with counters {…, site, …}; no program has this many sites. */
static const uint32_t BATCH_SITE = 0xDA7A0000u;

data_loader *data_loader_new(const data_tokens *tokens, data_order order, uint64_t seed, uint32_t stream, int B, int T)
{
    size_t batch = (size_t)B * (size_t)T;

    if (tokens->count < (size_t)T + 1) {
        rax_fail(RAX_MISTAKE, "%s: %zu tokens are too few for a row of %d and its next token",
                 tokens->path, tokens->count, T);
        return NULL;
    }
    if (order == DATA_SEQUENTIAL && tokens->count < batch + 1) {
        rax_fail(RAX_MISTAKE, "%s: %zu tokens are too few for one batch of %d x %d and its next token",
                 tokens->path, tokens->count, B, T);
        return NULL;
    }
    data_loader *loader = rax_alloc(sizeof *loader);
    *loader = (data_loader){ tokens, order, seed, stream, (size_t)B, (size_t)T, (tokens->count - 1) / batch };
    return loader;
}

void data_loader_free(data_loader *loader) { rax_free(loader); }

uint64_t data_loader_count(const data_loader *loader) { return loader->count; }

static void fill(const uint16_t *ids, size_t count, int32_t *x, int32_t *y)
{
    for (size_t i = 0; i < count; i++)
        x[i] = ids[i];
    for (size_t i = 0; i < count; i++)
        y[i] = ids[i + 1];
}

static size_t random_start(const data_loader *loader, uint64_t m, uint32_t row)
{
    uint32_t counter[4] = { row, (uint32_t)(m >> 32), BATCH_SITE + loader->stream, (uint32_t)m };
    uint32_t word[4];

    rax_philox_words(loader->seed, counter, word);
    uint64_t w = word[0] | (uint64_t)word[1] << 32;
    return (size_t)((u128)w * (loader->tokens->count - loader->T) >> 64);
}

void data_loader_batch(const data_loader *loader, uint64_t m, int32_t *x, int32_t *y)
{
    size_t B = loader->B, T = loader->T;

    for (size_t r = 0; r < B; r++) {
        size_t start = loader->order == DATA_SEQUENTIAL ? (m % loader->count * B + r) * T
                                                        : random_start(loader, m, (uint32_t)r);
        fill(loader->tokens->ids + start, T, x + r * T, y + r * T);
    }
}

size_t data_loader_walk(const data_loader *loader, uint64_t k, int32_t *x, int32_t *y)
{
    size_t batch = loader->B * loader->T, targets = loader->tokens->count - 1;

    if (k > targets / batch || k * batch == targets)
        return 0;
    size_t start = k * batch, real = targets - start < batch ? targets - start : batch;
    fill(loader->tokens->ids + start, real, x, y);
    for (size_t i = real; i < batch; i++)
        x[i] = 0, y[i] = -1;
    return real;
}
