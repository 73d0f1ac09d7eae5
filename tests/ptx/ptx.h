/* A machine that executes PTX, for tests of the CUDA backend where there is no GPU: what NVRTC made of a kernel runs
 * here, not the kernel's text compiled for another machine.
 *
 * It is built from NVIDIA's "PTX ISA" alone and knows nothing of who wrote the kernel. A warp goes on in lockstep, the
 * lanes that are furthest behind first; lanes that an instruction of the whole warp waits for are awaited. What the
 * standard leaves undefined, or a GPU would not notice, is an error that says where:
 *
 *   - memory that is not there, or not aligned to the access; of shared memory, bytes that nobody wrote
 *   - registers that were not written
 *   - two threads at one byte, one of them writing, that no barrier orders: of a block in shared and global memory,
 *     of different blocks in global memory; a warp orders its lanes by bar.warp.sync alone, not by lockstep
 *   - what cp.async brings, before its thread has waited and a barrier has told the others
 *   - lanes of a warp that are not together at an instruction of the warp; barriers that some threads do not come to
 *   - a launch whose parameters are not as large as the kernel's, or that has more threads than it was compiled for
 *
 * And it counts what decides how fast a kernel can be: instructions, sectors of memory, bank conflicts.
 *
 *   parse.c      text to instructions
 *   memory.c     state spaces, what lies in order, what is counted
 *   execute.c    what an instruction does to a warp
 *   launch.c     blocks, warps, barriers */
#ifndef TESTS_PTX_H
#define TESTS_PTX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ptx_module ptx_module;
typedef struct ptx_kernel ptx_kernel;

/* What a launch did; where only some of its blocks ran, as if the others were like them. Instructions are a warp's. */
typedef struct {
    int64_t blocks, instructions, barriers;
    int64_t arithmetic, special, products;  /* of them: of floats and integers; exp2, 1/x, sqrt and the like; mma */
    int64_t conversions, shuffles, branches;
    int64_t shared_requests, shared_passes; /* loads and stores, ldmatrix too: and the 128 bytes a clock that they take */
    int64_t shared_least;                   /* passes that as many bytes take where no two lanes meet in a bank */
    int64_t global_requests, sectors;       /* of 32 bytes */
    int64_t sectors_least;                  /* that as many different bytes fill */
    int64_t bytes_read, bytes_written;      /* of global memory: each access, cp.async too */
} ptx_counts;

typedef struct {
    bool backwards;                         /* from the last block and warp to the first */
    bool orders_blocks;                     /* global memory is watched, too: slow */
    int sampled;                            /* where not 0: of a launch that moves more than most_moved bytes, by its */
    int64_t most_moved;                     /* first block, about so many blocks run. Indices that others follow are few */
    /* Whether global memory is there; how many bytes from its beginning it lies, and of how many. */
    const char *(*memory)(const void *at, size_t bytes, size_t *block_bytes);
    ptx_counts *counts;                     /* added to, or NULL */
} ptx_options;

/* The functions of a text; it is copied. NULL, and why: what is not understood, and in which line. The caller frees
 * both. */
ptx_module *ptx_read(const char *text, char **why);
void ptx_free(ptx_module *module);
const ptx_kernel *ptx_find(const ptx_module *module, const char *name);

/* Runs every block. shared_bytes are of dynamic shared memory; params as the driver is given them. NULL, or what is
 * wrong, for the caller to free. Launches of several threads must not overlap. */
char *ptx_launch(const ptx_kernel *kernel, const unsigned grid[3], unsigned threads, unsigned shared_bytes,
                 const void *params, size_t params_bytes, const ptx_options *options);

/* What one launch wrote is no matter for the next. Called when memory is given back. */
void ptx_forget(const void *at, size_t bytes);

#endif
