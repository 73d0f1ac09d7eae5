/* For the tests of one program, after cmocka.h: a folder of this run, removed at the end, and files in it; a look at what leaks. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/base.h"

static char scratch[64];

/* Good for a while: more than one test asks for. */
static inline char *in_scratch(const char *name)
{
    static char path[64][256];
    static int turn;
    turn = (turn + 1) % 64;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static inline int make_scratch(void **state)
{
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/rax-test-XXXXXX");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int remove_one(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
    (void)s, (void)type, (void)ftw;
    return remove(path);
}

static inline int remove_scratch(void **state)
{
    (void)state;
    return nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void write_file(const char *path, const void *at, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(at, 1, size, file), size);
    fclose(file);
}

static inline char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        fail_msg("%s: expected a file", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *text = base_alloc(*size + 1);
    assert_int_equal(fread(text, 1, *size, file), *size);
    fclose(file);
    return text;
}

/* Between the two, what is written to standard error goes to a file, which the second gives. */
static int stderr_before;

static inline void catch_stderr(void)
{
    fflush(stderr);
    stderr_before = dup(STDERR_FILENO);
    int to = open(in_scratch("stderr"), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(to, STDERR_FILENO);
    close(to);
}

static inline char *caught_stderr(void)
{
    size_t size;
    fflush(stderr);
    dup2(stderr_before, STDERR_FILENO);
    close(stderr_before);
    return read_file(in_scratch("stderr"), &size);
}

/* The last test of a program: every block of the tests before it is free again. */
static inline void nothing_leaks(void **state)
{
    (void)state;
    assert_int_equal(base_alloc_count(), 0);
}

#endif
