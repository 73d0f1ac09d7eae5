/* What fuzz targets share. A target is one function that takes any bytes: it may refuse them, it must not read outside of them, leak, or
 * say yes to what it then cannot use. `make fuzz` builds them; build-fuzz/fuzz/graph_text FOLDER runs one, with examples from the folder. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

#define FUZZ_CHECK(condition, ...)                      \
    do {                                                \
        if (!(condition)) {                             \
            fprintf(stderr, "fuzz: " __VA_ARGS__);      \
            fprintf(stderr, "\n");                      \
            abort();                                    \
        }                                               \
    } while (0)

/* A file in memory that holds these bytes, by a path; for fuzz_close. */
typedef struct { int descriptor; char path[32]; } fuzz_file;

static inline fuzz_file fuzz_open(const void *bytes, size_t count)
{
    fuzz_file file = { .descriptor = memfd_create("fuzz", 0) };
    FUZZ_CHECK(file.descriptor >= 0 && write(file.descriptor, bytes, count) == (ssize_t)count, "no file in memory");
    snprintf(file.path, sizeof file.path, "/proc/self/fd/%d", file.descriptor);
    return file;
}

static inline void fuzz_close(fuzz_file *file) { close(file->descriptor); }

#endif
