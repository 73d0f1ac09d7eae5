/* Memory of intermediates: one block for all programs that the pool runs. It runs one at a time, and no intermediate outlives its run, so the
 * training step and the evaluation step of one process take what the larger of them needs.
 *
 * The block grows when a larger program comes, and may move then: programs look where it is before each run. */
#include "backend_cpu/backend.h"

bool cpu_arena_join(cpu_arena *arena, size_t bytes)
{
    if (bytes > arena->bytes) {
        char *grown = base_try_grow(arena->at, bytes);
        if (!grown)
            return false;
        arena->at = grown;
        arena->bytes = bytes;
    }
    arena->programs++;
    return true;
}

void cpu_arena_leave(cpu_arena *arena)
{
    if (--arena->programs > 0)
        return;
    base_free(arena->at);
    *arena = (cpu_arena){0};
}
