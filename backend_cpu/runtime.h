/* backend_cpu/runtime.h: what the CPU backend stands on. Nothing here knows of tensors or kernels: LLVM modules come in, and
 * functions to call on many threads go out. Includes base/ and nothing else of RAX.
 *
 *   machine.c        what this CPU is: instruction set, caches, CPUs that the process may use
 *   threads.c        one pool of threads that walk a step together: regions, barriers, tasks
 *   llvm_library.c   LLVM itself, opened when it is first needed
 *   jit.c            LLVM module -> object code; the only file of these that calls LLVM
 *   loader.c         object code -> functions in memory
 *
 * The way of a kernel: cpu_cache_key of what describes it, base_cache_get; on a miss cpu_jit_compile and base_cache_put; then
 * cpu_code_load and cpu_code_find. On a hit no LLVM function is called.
 *
 * Functions that return false or NULL have set base_error. */
#ifndef CPU_RUNTIME_H
#define CPU_RUNTIME_H

#include <llvm-c/Types.h>
#include <stdatomic.h>

#include "base/object_cache.h"

/* -- machine.c ------------------------------------------------------------------------------------------------------ */

/* What generated code may use; each level has all that the one before it has. Off x86 the level is always generic, which
 * there means what LLVM knows of the host. */
typedef enum {
    CPU_GENERIC,       /* x86-64 with SSE2 */
    CPU_AVX2,          /* x86-64-v3: AVX2, FMA, F16C, BMI */
    CPU_AVX512,        /* x86-64-v4: AVX-512 F, BW, CD, DQ, VL */
    CPU_AVX512BF16,    /* and dpbf16ps */
    CPU_AMX,           /* and AMX-TILE, AMX-BF16, where the system lets this process have tiles */
    CPU_ISA_COUNT
} cpu_isa;
const char *cpu_isa_name(cpu_isa isa);                  /* "generic", "avx2", "avx512", "avx512bf16", "amx" */

typedef struct {
    char name[64];                                      /* "AMD EPYC", as the CPU calls itself; "unknown" */
    char vendor[16];                                    /* "AuthenticAMD"; "" off x86 */
    int family, model, stepping;                        /* 0 off x86 */
    uint32_t features[8];                               /* cpuid's words, or the kernel's hwcaps: a hypervisor may hide some */
    cpu_isa isa, own_isa, best_isa;                     /* what is in force; the most the CPU has; the most that may be asked for */
    int f32_lanes;                                      /* floats in a vector of isa: 4, 8, 16 from AVX-512 on */
    size_t l1d_bytes, l2_bytes, l3_bytes;               /* of one core; l3 is shared by the cores of one cache */
    int cpus;                                           /* that the process may use: affinity and cgroup quota; at least 1 */
    char digest[33];                                    /* hex; of all above that generated code may depend on, so not of cpus */
} cpu_machine;

/* isa: a name as above, "" for the most the CPU has, or NULL for what the environment's RAX_ISA says, unset being "".
 * RAX_EMULATED_ISA names a level up to which somebody carries out what the CPU lacks (tests/amx): it may be asked for, and is never chosen.
 * Mistakes: an unknown name; more than the CPU has. */
bool cpu_machine_detect(cpu_machine *machine, const char *isa);
bool cpu_machine_set_isa(cpu_machine *machine, cpu_isa isa);      /* lanes and digest follow */

/* -- threads.c ------------------------------------------------------------------------------------------------------ */

/* A pool of n threads, of which the caller's is number 0. One region runs at a time, entered by one thread at a time.
 * Threads that wait spin for a while and then sleep; where there are fewer CPUs than threads they sleep at once. */
typedef struct cpu_pool cpu_pool;
cpu_pool *cpu_pool_new(int threads);                    /* 0: as many as usable CPUs. NULL where the system gives no threads */
void cpu_pool_free(cpu_pool *pool);                     /* NULL is fine; joins; in a forked child it only frees */
int cpu_pool_threads(const cpu_pool *pool);

/* Runs body on all threads at once, and returns when all have. The threads compute with the caller's rounding and
 * denormal modes, so that bits do not depend on who computes. No system call, lock or allocation while workers are awake. */
typedef void cpu_body(void *context, int thread, int n_threads);
void cpu_pool_run(cpu_pool *pool, cpu_body *body, void *context);

/* Inside a region: returns when all n threads have come here; what they wrote before is visible after. All threads of the
 * region must come, and equally often. */
void cpu_barrier(cpu_pool *pool);

/* Tasks 0..n-1, taken by whoever is free: cpu_next_task gives the next task, or n or more when none is left. A task's
 * result must not depend on who takes it. Reset by one thread, with a barrier between that and the first use. */
typedef struct { _Alignas(64) atomic_llong next; } cpu_tasks;
static inline void cpu_tasks_reset(cpu_tasks *tasks) { atomic_store_explicit(&tasks->next, 0, memory_order_relaxed); }
static inline int64_t cpu_next_task(cpu_tasks *tasks, int64_t chunk)    /* the first of chunk tasks in a row */
{
    return atomic_fetch_add_explicit(&tasks->next, chunk, memory_order_relaxed);
}

/* -- llvm_library.c ------------------------------------------------------------------------------------------------- */

/* To be called before any function of LLVM is (cpu_jit_new does). Failure: the library is not there. */
bool cpu_llvm_open(void);

/* -- jit.c ---------------------------------------------------------------------------------------------------------- */


/* A compiler for one machine. Kernels need not name the target: the jit sets triple and data layout of the module, and for
 * every function with a body target-cpu, target-features, prefer-vector-width, min-legal-vector-width and nounwind. Without
 * these LLVM splits vectors of 512 bits, and kernels run at a fifth of their speed. */
typedef struct cpu_jit cpu_jit;
cpu_jit *cpu_jit_new(const cpu_machine *machine);
void cpu_jit_free(cpu_jit *jit);                        /* NULL is fine */
/* The cache's key of what text describes, compiled by this LLVM for this machine. */
base_key cpu_cache_key(const cpu_machine *machine, const void *text, size_t size);
const char *cpu_jit_version(void);                      /* "19.1.7", of the LLVM that this was built with; calls nothing */
void cpu_jit_set_verify(cpu_jit *jit, bool verify);     /* LLVM's verifier before compiling; off at first */
/* From now on every module leaves NAME.ll, NAME.opt.ll and NAME.s in folder, NAME being the module's identifier, with what
 * is no letter, digit, '-', '_' or '.' replaced by '_'. NULL: no more. The folder must exist. */
void cpu_jit_set_dump(cpu_jit *jit, const char *folder);

/* An empty module with target and data layout set, in a context of the caller. */
LLVMModuleRef cpu_jit_module(const cpu_jit *jit, const char *name, LLVMContextRef llvm);

/* Optimises module in place and gives its object code. Any number of threads may do so with modules of different contexts.
 * Failure: what LLVM rejects; a dump that cannot be written. */
bool cpu_jit_compile(const cpu_jit *jit, LLVMModuleRef module, base_bytes *object);

/* Builds and compiles n modules, each in a context of its own, on up to `threads` threads (0: the usable CPUs). build fills
 * module i on some thread, and may fail with base_fail; of several failures the one with the lowest i is reported, and no
 * object is left. objects has room for n, and they do not depend on the number of threads. A module costs some 0.6 ms
 * beside what its functions cost, a GEMM tile some 3 ms. */
typedef bool cpu_build(void *context, int i, LLVMModuleRef module);
bool cpu_jit_compile_many(const cpu_jit *jit, int n, cpu_build *build, void *context, int threads, base_bytes *objects);

/* -- loader.c ------------------------------------------------------------------------------------------------------- */

/* Code in memory: objects that may call each other, functions of the C library that LLVM calls on its own (memcpy, memset,
 * fmaf, expf ...), and what externals names. objects are needed only during the call.
 * Failure: a damaged object; a name that two objects define, or none; no memory. With RAX_PERF set, /tmp/perf-PID.map names
 * the functions for perf. */
typedef struct cpu_code cpu_code;
typedef struct { const char *name; void *address; } cpu_symbol;
cpu_code *cpu_code_load(const base_bytes *objects, int n, const cpu_symbol *externals, int n_externals);
void *cpu_code_find(const cpu_code *code, const char *name);     /* NULL and no error where no object defines it */
size_t cpu_code_bytes(const cpu_code *code);                     /* of memory taken */
void cpu_code_free(cpu_code *code);                              /* NULL is fine */

/* The same through LLVM's ORC: what cpu_code_load does where it has no loader of its own. In jit.c. Objects are linked when
 * first looked for: a name that none defines is a NULL of cpu_code_find. */
cpu_code *cpu_code_load_orc(const base_bytes *objects, int n, const cpu_symbol *externals, int n_externals);

/* Between the two: a cpu_code begins with these. The functions of the C library that code may call. */
struct cpu_code {
    void *(*find)(const cpu_code *code, const char *name);
    void (*free)(cpu_code *code);
    size_t bytes;
};
const cpu_symbol *cpu_runtime_functions(int *n);

#endif
