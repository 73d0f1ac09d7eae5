/* A GPU that is none: a stand-in for libcuda, NVRTC and cuBLASLt, so that the CUDA backend runs from end to end on a machine without one.
 *
 * Device memory is host memory with guards round every block. NVRTC's "cubin" is a shared library: the kernel's own text behind
 * the first part of cuda_emulator.h, compiled by the C compiler. cuBLASLt's product is three plain loops. A stream does nothing until somebody waits for it,
 * so that a wait that is missing shows: what it should have waited for is not there yet. With eager_copies the streams after the first do
 * everything at once, as far as their waits let them: then a wait that they lack shows. What is captured becomes a graph, and only a launch
 * of it runs.
 *
 * Checked at every call: addresses lie inside blocks of memory, pinned memory is pinned, nothing is freed that is still to be used, nothing but
 * launches and products happens while a stream is captured.
 *
 * RAX_TEST_CUDA=ptx has kernels compiled by NVRTC itself, to PTX, and executed by tests/ptx in place of the emulator; RAX_TEST_CUDA=device runs tests on the
 * machine's own GPU and libraries.
 *
 *   cuda_standin_streams.h      what is queued and done, and when
 *   cuda_standin_products.h     cuBLASLt
 *   cuda_standin_compiler.h     NVRTC
 *   cuda_standin_driver.h       libcuda */
#ifndef TESTS_CUDA_STANDIN_H
#define TESTS_CUDA_STANDIN_H

#include "tests/graphs.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend_cuda/backend.h"
#include "tests/ptx/ptx.h"

enum { BLOCK_GUARD = 512, SAMPLED_FROM = 64 << 20, SHARED_OPTIN = 232448 };

#define STANDIN_CHECK(condition, ...)                                       \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "stand-in: " __VA_ARGS__);                      \
            fprintf(stderr, "\n");                                          \
            abort();                                                        \
        }                                                                   \
    } while (0)

/* -- memory -------------------------------------------------------------------------------------------------------------- */

enum { LARGE = 16 << 20 };                    /* a block that is zero until it is written: memory that nobody touches costs nothing */
typedef struct block { struct block *next; char *at; size_t bytes; bool pinned; } block;
static struct {
    block *blocks;
    size_t device_bytes, most_bytes;          /* most: what the device has */
    int arch_major, arch_minor, nvrtc_version;
    bool backwards;                           /* the emulator goes from the last thread to the first: each graph the other way than the last */
    int newest_target;                        /* where not 0, the one architecture that its NVRTC knows */
    int ptx_taken;                            /* compiled code that was taken as PTX */
    int refused_epilogue;                     /* bits of one that there is no algorithm for */
    int launches, products, tf32_products, epilogues, questions, asked_epilogues, graph_launches, captures, early_waits, compiled, compiled_by_nvrtc;
    int blocking_waits, stream_waits;         /* of the host: for an event that was not there yet; for a whole stream */
    int copies_ahead;                         /* into memory, while the first stream had a graph before it */
    bool eager_copies;
    int fails_at, fails_with;                 /* the launch of this number, counted from 1, ends the device, which gives this error from then on */
    int dead;                                 /* that error, once it has happened */
    int driver;                               /* its version, where not 0 */
    bool fast_second;                         /* of the algorithms of a product the second is faster than the others */
    int slow_epilogue;                        /* where not 0: products with one of these bits take longest, and shortest are other epilogues than a vector's sum */
    int algorithm;                            /* that the last product took */
    const cuda_library *nvrtc;                /* not NULL: what is compiled for the stand-in is compiled for sm_80 and sm_90, too */
    bool only_nvrtc;                          /* and only by it, for the stand-in's own architecture: kernels cannot be launched */
    bool runs_ptx;                            /* kernels are PTX; see below */
    int sampled_blocks;                       /* where not 0: of a launch that moves much about so many blocks run, on what is there, and only of a function's
                                               * first two launches; no products */
    ptx_counts counted;                       /* of what ran as PTX */
    int attention_kernels, attention_spills;  /* of what it compiled alone: kernels of attention, and those of them that have not registers enough */
    int keeping_kernels, keeping_alone;       /* kernels that keep rows in half of a multiprocessor's shared memory, and those whose registers leave no room for a second block */
} standin = { .most_bytes = (size_t)8 << 30, .arch_major = 9, .nvrtc_version = 130 };

/* RAX_TEST_CUDA=ptx: NVRTC itself compiles kernels, to PTX, which tests/ptx executes. A program that finds no NVRTC says so and ends with this.
 * RAX_TEST_ARCH=80: the architecture, where a test does not choose one. */
enum { EXIT_NO_NVRTC = 77 };
__attribute__((constructor)) static void standin_read_environment(void)
{
    const char *kind = getenv("RAX_TEST_CUDA"), *architecture = getenv("RAX_TEST_ARCH");
    standin.runs_ptx = kind && !strcmp(kind, "ptx");
    if (architecture)
        standin.arch_major = atoi(architecture) / 10, standin.arch_minor = atoi(architecture) % 10;
}

static block *block_of(const void *at, size_t bytes, bool pinned)
{
    for (block *b = standin.blocks; b; b = b->next)
        if (b->pinned == pinned && (const char *)at >= b->at && (const char *)at + bytes <= b->at + b->bytes)
            return b;
    return NULL;
}

static void check_block_guards(const block *b)
{
    for (int i = 1; i <= BLOCK_GUARD; i++)
        STANDIN_CHECK((unsigned char)b->at[-i] == 0xa5 && (unsigned char)b->at[b->bytes + (size_t)i - 1] == 0xa5, "a block of %zu bytes was written outside of it", b->bytes);
}

static void *new_block(size_t bytes, bool pinned)
{
    block *b = malloc(sizeof *b);
    size_t room = (bytes + 2 * BLOCK_GUARD + 511) & ~(size_t)511;
    char *memory = bytes >= LARGE ? mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : aligned_alloc(512, room);
    STANDIN_CHECK(memory && memory != MAP_FAILED, "no memory for %zu bytes", bytes);
    *b = (block){ standin.blocks, memory + BLOCK_GUARD, bytes, pinned };
    memset(memory, 0xa5, BLOCK_GUARD);
    if (bytes < LARGE)
        memset(b->at, 0xff, bytes);
    memset(b->at + bytes, 0xa5, BLOCK_GUARD);
    standin.blocks = b;
    standin.device_bytes += pinned ? 0 : bytes;
    return b->at;
}

static void free_block(void *at, bool pinned)
{
    for (block **b = &standin.blocks; *b; b = &(*b)->next)
        if ((*b)->at == at && (*b)->pinned == pinned) {
            block *dead = *b;
            check_block_guards(dead);
            ptx_forget(dead->at, dead->bytes);
            *b = dead->next;
            standin.device_bytes -= pinned ? 0 : dead->bytes;
            if (dead->bytes >= LARGE)
                munmap(dead->at - BLOCK_GUARD, (dead->bytes + 2 * BLOCK_GUARD + 511) & ~(size_t)511);
            else
                free(dead->at - BLOCK_GUARD);
            free(dead);
            return;
        }
    STANDIN_CHECK(false, "freed what is no block");
}

#include "tests/cuda_standin_streams.h"
#include "tests/cuda_standin_products.h"
#include "tests/cuda_standin_compiler.h"
#include "tests/cuda_standin_driver.h"

/* -- the three libraries as one -------------------------------------------------------------------------------------------------- */

static const cuda_library standin_library = {
#define LIBRARY(name, files, source)
#define FUNCTION(name, symbol, parameters) .name = si_##name,
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
};

/* RAX_TEST_CUDA=device: the tests run on the machine's own GPU and libraries. What only the stand-in can count or provoke is left out. */
static bool standin_is_device(void)
{
    const char *wanted = getenv("RAX_TEST_CUDA");
    return wanted && !strcmp(wanted, "device");
}

static void standin_use(void)
{
    if (!standin_is_device())
        cuda_library_use(&standin_library);
}

MAYBE_UNUSED static void standin_begin_with(const ir_backend_settings *settings)
{
    standin_use();
    if (!cuda_backend.configure(settings))
        fail_msg("%s", base_error());
}

MAYBE_UNUSED static void standin_begin(const char *cache_dir) { standin_begin_with(&(ir_backend_settings){ .cache_dir = cache_dir }); }

/* Everything was given back. */
MAYBE_UNUSED static void standin_end(void)
{
    cuda_backend.shutdown();
    cuda_library_use(NULL);
    if (standin.blocks)
        fail_msg("stand-in: %zu bytes were not freed", standin.blocks->bytes);
    n_streams = 0;
}

#endif
