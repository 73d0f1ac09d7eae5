/* What rax.h says of errors, memory, CPUs and numbers on the host, over base/ and ir/: the kinds are the same numbers on both sides. */
#include "ir/ir.h"
#include "rax.h"

_Static_assert((int)RAX_FAILURE == (int)BASE_FAILURE && (int)RAX_MISTAKE == (int)BASE_MISTAKE, "exit statuses");

const char *rax_error(void) { return base_error(); }
rax_error_kind rax_error_kind_of(void) { return base_error_kind_of() == BASE_MISTAKE ? RAX_MISTAKE : RAX_FAILURE; }
void rax_error_clear(void) { base_error_clear(); }

bool rax_fail(rax_error_kind kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    base_failv((base_error_kind)kind, format, args);
    va_end(args);
    return false;
}

void *rax_alloc(size_t bytes) { return base_alloc(bytes); }

void *rax_try_alloc(size_t bytes)
{
    void *memory = base_try_alloc(bytes);
    if (!memory)
        rax_fail(RAX_FAILURE, "out of memory: %zu bytes were asked for", bytes);
    return memory;
}

int rax_usable_cpus(void) { return base_usable_cpus(); }
void rax_free(void *memory) { base_free(memory); }

void rax_philox_words(uint64_t seed, const uint32_t counter[4], uint32_t word[4])
{
    ir_philox(counter, (uint32_t[]){ (uint32_t)seed, (uint32_t)(seed >> 32) }, word);
}
