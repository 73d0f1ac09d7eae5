/* A block emulator: the C that a CUDA kernel is, compiled for the CPU and run block by block. Its first part comes before the kernel's own text; all of it, with
 * RAX_EMULATOR defined, is a library that kernels call, compiled once.
 *
 * The threads of a block are fibers, each with a stack of its own, that take turns: one runs until it comes to a barrier or to the end. At a
 * barrier of the block the next thread goes on, at one of a warp the next lane; whoever finds all there passes. So a block wait of n
 * threads costs n switches, and a race shows as one order of events, always the same: the stand-in runs a program forwards and then backwards, from the
 * last block and thread to the first, so that what depends on an order has two results. A thread that waits for what can never come (a
 * barrier that others do not reach) ends the process with a line.
 *
 * Memory that is shared is static: one block runs at a time. */
#define RAX_EMULATED 1

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RAX_KERNEL(threads) static void
#define RAX_DEVICE static inline
#define RAX_CONSTANT const
#define RAX_SHARED static
#define RAX_DYNAMIC_SHARED(name) unsigned char *name = rax_dynamic_shared
#define RAX_ALIGN(bytes) __attribute__((aligned(bytes), may_alias))
#define RAX_UNROLL
#define RAX_UNROLL_4
/* A kernel's entry for the launcher: its parameters lie side by side, 8 bytes each. */
#define RAX_ENTRY(name, ...) void name##_entry(const int64_t *p) { name(__VA_ARGS__); }

enum { RAX_MOST_THREADS = 1024, RAX_STACK_BYTES = 64 << 10, RAX_SHARED_BYTES = 232448 };
typedef struct { unsigned x, y, z; } rax_index;
extern rax_index threadIdx, blockIdx, blockDim, gridDim;
extern unsigned char rax_dynamic_shared[RAX_SHARED_BYTES + 64];
void rax_block_wait(void);
void rax_warp_wait(void);
float rax_shuffle_f32(float value, int mask);
double rax_shuffle_f64(double value, int mask);
int rax_shuffle_i32(int value, int mask);
void rax_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
void rax_matrices(uint32_t *to, const uint16_t *row);
void rax_matrices_transposed(uint32_t *to, const uint16_t *row);
void rax_copy_16(void *to, const void *from, int is_there);
void rax_copy_4(void *to, const void *from, int is_there);
void rax_copies_wait(void);

static inline uint32_t rax_bits_of_f32(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float rax_f32_of_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t rax_multiply_high(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

#ifdef RAX_EMULATOR
#include <ucontext.h>

rax_index threadIdx, blockIdx, blockDim, gridDim;
_Alignas(16) unsigned char rax_dynamic_shared[RAX_SHARED_BYTES + 64];

/* -- fibers -------------------------------------------------------------------------------------------------------------- */

/* GCC's own: the C library's are watched by sanitizers, which know nothing of these stacks. */
typedef struct { void *at[5]; int started, done, block_waits, warp_waits; } rax_fiber;
static rax_fiber rax_fibers[RAX_MOST_THREADS];
static _Alignas(16) char rax_stacks[RAX_MOST_THREADS * RAX_STACK_BYTES];
static void *rax_launcher[5];
static int rax_current, rax_alive, rax_progress, rax_backwards;
static int rax_block_arrived, rax_block_round, rax_warp_arrived[32], rax_warp_round[32], rax_warp_alive[32];
static void (*rax_entry)(const int64_t *);
static const int64_t *rax_params;

static void __attribute__((noinline, noreturn)) rax_leave(void) { __builtin_longjmp(rax_launcher, 1); }

static void rax_body(void)
{
    for (;;) {
        rax_entry(rax_params);
        rax_fiber *self = &rax_fibers[rax_current];
        self->done = 1;
        rax_alive--;
        rax_warp_alive[rax_current / 32]--;
        rax_progress++;
        if (!__builtin_setjmp(self->at))
            rax_leave();
    }
}

static void __attribute__((noinline)) rax_enter(int thread)
{
    rax_fiber *f = &rax_fibers[thread];
    rax_current = thread;
    threadIdx.x = (unsigned)thread;
    if (f->started)
        __builtin_longjmp(f->at, 1);
    static ucontext_t fresh;
    f->started = 1;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = rax_stacks + (size_t)thread * RAX_STACK_BYTES;
    fresh.uc_stack.ss_size = RAX_STACK_BYTES;
    fresh.uc_link = NULL;
    makecontext(&fresh, rax_body, 0);
    setcontext(&fresh);
}

static void __attribute__((noinline)) rax_switch(int thread)
{
    if (thread != rax_current && !__builtin_setjmp(rax_fibers[rax_current].at))
        rax_enter(thread);
}

/* The next thread after the current one, in its warp or in the block, that has not ended. */
static int rax_next(int first, int n)
{
    for (int i = 1; i <= n; i++) {
        int t = first + (rax_current - first + (rax_backwards ? n - i : i)) % n;
        if (!rax_fibers[t].done)
            return t;
    }
    return rax_current;
}

static void rax_stuck(const char *what)
{
    fprintf(stderr, "cuda emulator: block %u, thread %u: a %s wait that others do not come to\n", blockIdx.x, threadIdx.x, what);
    abort();
}

void rax_block_wait(void)
{
    int round = rax_block_round, turns = 0, n = (int)blockDim.x;
    rax_progress++;
    if (++rax_block_arrived == rax_alive) {
        rax_block_arrived = 0;
        rax_block_round++;
        return;
    }
    for (int seen = rax_progress; rax_block_round == round;) {
        rax_switch(rax_next(0, n));
        turns = seen == rax_progress ? turns + 1 : 0;
        seen = rax_progress;
        if (turns > 2 * n)
            rax_stuck("block");
    }
}

void rax_warp_wait(void)
{
    int warp = rax_current / 32, first = 32 * warp, n = (int)blockDim.x - first, round = rax_warp_round[warp], turns = 0;
    n = n < 32 ? n : 32;
    rax_progress++;
    if (++rax_warp_arrived[warp] == rax_warp_alive[warp]) {
        rax_warp_arrived[warp] = 0;
        rax_warp_round[warp]++;
        return;
    }
    for (int seen = rax_progress; rax_warp_round[warp] == round;) {
        rax_switch(rax_next(first, n));
        turns = seen == rax_progress ? turns + 1 : 0;
        seen = rax_progress;
        if (turns > 2 * n)
            rax_stuck("warp");
    }
}

static int rax_n_copies[RAX_MOST_THREADS];                      /* of asynchronous copies under way */

static void rax_aligned(const void *at, int bytes, const char *what)
{
    if ((uintptr_t)at % (unsigned)bytes) {
        fprintf(stderr, "cuda emulator: %s is not aligned to %d bytes\n", what, bytes);
        abort();
    }
}

/* Runs one block. A thread that ends leaves the next to go on. */
static void __attribute__((noinline)) rax_run_block(void)
{
    int n = (int)blockDim.x;
    rax_alive = n;
    rax_block_arrived = 0;
    memset(rax_warp_arrived, 0, sizeof rax_warp_arrived);
    memset(rax_warp_alive, 0, sizeof rax_warp_alive);
    memset(rax_n_copies, 0, sizeof rax_n_copies);
    for (int i = 0; i < n; i++) {
        rax_fibers[i].done = 0;
        rax_warp_alive[i / 32]++;
    }
    volatile int next = rax_backwards ? n - 1 : 0;
    while (rax_alive > 0) {
        /* one that ended may be what others wait for at a barrier */
        if (rax_block_arrived > 0 && rax_block_arrived == rax_alive) {
            rax_block_arrived = 0;
            rax_block_round++;
        }
        while (rax_fibers[next].done)
            next = (next + (rax_backwards ? n - 1 : 1)) % n;
        if (!__builtin_setjmp(rax_launcher))
            rax_enter(next);
        next = rax_current;
    }
}

void rax_emulate(void (*entry)(const int64_t *), const unsigned grid[3], unsigned threads, unsigned shared_bytes, const int64_t *params, int backwards)
{
    if (threads > RAX_MOST_THREADS || shared_bytes > RAX_SHARED_BYTES) {
        fprintf(stderr, "cuda emulator: no machine has blocks of %u threads and %u bytes\n", threads, shared_bytes);
        abort();
    }
    rax_entry = entry;
    rax_params = params;
    gridDim = (rax_index){ grid[0], grid[1], grid[2] };
    blockDim = (rax_index){ threads, 1, 1 };
    memset(rax_dynamic_shared, 0xff, sizeof rax_dynamic_shared);         /* NaN until written */
    rax_backwards = backwards;
    for (unsigned i = 0, n = grid[0] * grid[1] * grid[2]; i < n; i++) {
        unsigned block = backwards ? n - 1 - i : i;
        blockIdx = (rax_index){ block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1] };
        rax_run_block();
    }
}

/* -- what a warp does together --------------------------------------------------------------------------------------------- */

static union { float f32; double f64; int i32; } rax_lanes[RAX_MOST_THREADS];
#define RAX_SHUFFLE(type, name)                                                              \
    type rax_shuffle_##name(type value, int mask)                                            \
    {                                                                                        \
        int self = rax_current;                                                              \
        rax_lanes[self].name = value;                                                        \
        rax_warp_wait();                                                                     \
        type other = rax_lanes[self ^ mask].name;                                            \
        rax_warp_wait();                                                                     \
        return other;                                                                        \
    }
RAX_SHUFFLE(float, f32)
RAX_SHUFFLE(double, f64)
RAX_SHUFFLE(int, i32)

/* mma.sync.m16n8k16: of the operands' fragments each lane has a part; the words of a lane hold two bf16. */
static uint32_t rax_fragments[RAX_MOST_THREADS][6];
static double rax_fragment_at(int first, int row, int k, int reg)
{
    uint32_t word = rax_fragments[first + (row & 7) * 4 + (k & 7) / 2][reg], bits = (k & 1 ? word >> 16 : word & 0xffff) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
void rax_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    int self = rax_current, first = self & ~31, g = (self & 31) >> 2, t = self & 3;
    memcpy(rax_fragments[self], a, 16);
    rax_fragments[self][4] = b0, rax_fragments[self][5] = b1;
    rax_warp_wait();
    for (int e = 0; e < 4; e++) {
        double sum = c[e];
        for (int k = 0; k < 16; k++)
            sum += rax_fragment_at(first, g, k, (e >> 1) + 2 * (k >> 3)) * rax_fragment_at(first, 2 * t + (e & 1), k, 4 + (k >> 3));
        c[e] = (float)sum;
    }
    rax_warp_wait();
}

/* ldmatrix.x4: lane 8 i + r brings the address of row r of matrix i. */
static const uint16_t *rax_matrix_rows[RAX_MOST_THREADS];
static void __attribute__((noinline)) rax_ldmatrix(uint32_t *to, const uint16_t *row, int transposed)
{
    int self = rax_current, first = self & ~31, g = (self & 31) >> 2, t = self & 3;
    rax_aligned(row, 16, "a row of a matrix");
    rax_matrix_rows[self] = row;
    rax_warp_wait();
    for (int i = 0; i < 4; i++) {
        const uint16_t **rows = &rax_matrix_rows[first + 8 * i];
        to[i] = transposed ? rows[2 * t][g] | (uint32_t)rows[2 * t + 1][g] << 16 : rows[g][2 * t] | (uint32_t)rows[g][2 * t + 1] << 16;
    }
    rax_warp_wait();
}
void rax_matrices(uint32_t *to, const uint16_t *row) { rax_ldmatrix(to, row, 0); }
void rax_matrices_transposed(uint32_t *to, const uint16_t *row) { rax_ldmatrix(to, row, 1); }

/* cp.async: until its thread has waited there is NaN in the copy's place, and what is copied is what lies there then. */
enum { RAX_MOST_COPIES = 256 };
static struct { void *to; const void *from; int bytes; } rax_copies[RAX_MOST_THREADS][RAX_MOST_COPIES];
static void rax_copy(void *to, const void *from, int bytes, int is_there)
{
    rax_aligned(to, bytes, "the target of a copy");
    rax_aligned(from, bytes, "the source of a copy");
    if (rax_n_copies[rax_current] == RAX_MOST_COPIES) {
        fprintf(stderr, "cuda emulator: more than %d copies of a thread under way\n", RAX_MOST_COPIES);
        abort();
    }
    memset(to, 0xff, (size_t)bytes);
    rax_copies[rax_current][rax_n_copies[rax_current]].to = to;
    rax_copies[rax_current][rax_n_copies[rax_current]].bytes = bytes;
    rax_copies[rax_current][rax_n_copies[rax_current]++].from = is_there ? from : NULL;
}
void rax_copy_16(void *to, const void *from, int is_there) { rax_copy(to, from, 16, is_there); }
void rax_copy_4(void *to, const void *from, int is_there) { rax_copy(to, from, 4, is_there); }
void rax_copies_wait(void)
{
    static const char zeros[16];
    for (int i = 0; i < rax_n_copies[rax_current]; i++)
        memcpy(rax_copies[rax_current][i].to, rax_copies[rax_current][i].from ? rax_copies[rax_current][i].from : zeros, (size_t)rax_copies[rax_current][i].bytes);
    rax_n_copies[rax_current] = 0;
}
#endif
