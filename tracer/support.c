/* What rax.h says of errors and memory, over base/: the kinds are the same numbers on both sides. */
#include "base/base.h"
#include "rax.h"

#include <stdio.h>
#include <string.h>

_Static_assert((int)RAX_FAILURE == (int)BASE_FAILURE && (int)RAX_MISTAKE == (int)BASE_MISTAKE, "exit statuses");

const char *rax_error(void) { return base_error(); }
rax_error_kind rax_error_kind_of(void) { return (rax_error_kind)base_error_kind_of(); }
void rax_error_clear(void) { base_error_clear(); }

bool rax_fail(rax_error_kind kind, const char *format, ...)
{
    char text[2048];
    bool breaks = strchr(format, '\n') != NULL;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *at = text; *at; at++)                 /* a name in a damaged file may be anything */
        if (((unsigned char)*at < ' ' && !(breaks && *at == '\n')) || *at == 127)
            *at = '?';
    return base_fail((base_error_kind)kind, "%s", text);
}

void *rax_alloc(size_t bytes) { return base_alloc(bytes); }

void *rax_try_alloc(size_t bytes)
{
    void *memory = base_try_alloc(bytes);
    if (!memory)
        rax_fail(RAX_FAILURE, "out of memory: %zu bytes were asked for", bytes);
    return memory;
}

void rax_free(void *memory) { base_free(memory); }
