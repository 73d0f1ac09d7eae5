/* What handles point to: bodies of one size, in blocks that are kept until rax_shutdown, so that looking at an old handle is never a
 * read of memory that is gone. A body that comes back is handed out again as it is, and its generation goes on counting. */
#include "tracer/tracer.h"

enum { BLOCK_BODIES = 64 };

static void add_block(trace_pool *pool)
{
    pool->blocks = base_grown(pool->blocks, pool->n_blocks, &pool->cap_blocks, sizeof *pool->blocks);
    char *bodies = pool->blocks[pool->n_blocks++] = base_alloc(pool->bytes * BLOCK_BODIES);
    for (int i = BLOCK_BODIES - 1; i >= 0; i--) {
        pool->spare = base_grown(pool->spare, pool->n_spare, &pool->cap_spare, sizeof *pool->spare);
        pool->spare[pool->n_spare++] = bodies + pool->bytes * (size_t)i;
    }
}

void *trace_pool_take(trace_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->n_spare == 0)
        add_block(pool);
    void *body = pool->spare[--pool->n_spare];
    pthread_mutex_unlock(&pool->lock);
    return body;
}

void trace_pool_give(trace_pool *pool, void *body)
{
    pthread_mutex_lock(&pool->lock);
    pool->spare = base_grown(pool->spare, pool->n_spare, &pool->cap_spare, sizeof *pool->spare);
    pool->spare[pool->n_spare++] = body;
    pthread_mutex_unlock(&pool->lock);
}

const void *trace_pool_at(const trace_pool *pool, int i)
{
    return i < pool->n_blocks * BLOCK_BODIES ? (char *)pool->blocks[i / BLOCK_BODIES] + pool->bytes * (size_t)(i % BLOCK_BODIES) : NULL;
}

void trace_pool_free(trace_pool *pool)
{
    for (int i = 0; i < pool->n_blocks; i++)
        base_free(pool->blocks[i]);
    base_free(pool->blocks);
    base_free(pool->spare);
    pool->blocks = pool->spare = NULL;
    pool->n_blocks = pool->cap_blocks = pool->n_spare = pool->cap_spare = 0;
}

void trace_add_loss(base_text *why, trace_loss lost, rax_place at, const char *in_a_step)
{
    switch (lost) {
    case LOST_DONATED:
        base_text_add(why, "is out of date: the call at %s:%d has taken over its memory", at.file, at.line);
        break;
    case LOST_FREED:
        base_text_add(why, "is out of date: it was freed");
        break;
    case LOST_TRACE_OVER:
        base_text_add(why, "is out of date: it %s a step that is over", in_a_step);
        break;
    }
}
