/* What the tracer's tests share: arrays from lists, calls with few words, errors compared as text. */
#ifndef TESTS_TRACER_SUPPORT_H
#define TESTS_TRACER_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "rax.h"

#define F32(...) rax_tensor_from(RAX_F32, RAX_SHAPE(sizeof((float[]){__VA_ARGS__}) / sizeof(float)), (float[]){__VA_ARGS__})
#define I32(...) rax_tensor_from(RAX_I32, RAX_SHAPE(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), (int32_t[]){__VA_ARGS__})
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Ends the test with rax's message where the call fails. */
#define CALL(fn, args, results) \
    do { if (!rax_call(fn, args, results)) fail_msg("%s", rax_error()); } while (0)

/* What went to standard error between the two calls. The text is the caller's. */
static FILE *captured_file;
static int captured_stderr = -1;

static inline void capture_stderr(void)
{
    fflush(stderr);
    captured_file = tmpfile();
    captured_stderr = dup(2);
    dup2(fileno(captured_file), 2);
}

static inline char *captured(void)
{
    base_text text = {0};
    char part[4096];
    fflush(stderr);
    dup2(captured_stderr, 2);
    close(captured_stderr);
    rewind(captured_file);
    for (size_t n; (n = fread(part, 1, sizeof part, captured_file)) > 0;)
        base_text_bytes(&text, part, n);
    fclose(captured_file);
    return base_text_take(&text);
}

/* Nothing is said of compilations; blocks that are allocated now and are not given back are a leak. */
static size_t blocks_at_start;
static inline int count_blocks(void **state)
{
    (void)state;
    blocks_at_start = base_alloc_count();
    return !rax_configure(&(rax_settings){ .quiet = true });
}
static inline int expect_no_leak(void **state)
{
    (void)state;
    rax_shutdown();
    rax_error_clear();
    if (base_alloc_count() != blocks_at_start)
        fprintf(stderr, "# %zd blocks are left over\n", (ssize_t)base_alloc_count() - (ssize_t)blocks_at_start);
    return base_alloc_count() != blocks_at_start;
}
#define TEST(name) cmocka_unit_test_setup_teardown(name, count_blocks, expect_no_leak)

#endif
