/* The compiler part of backend_cpu: from a kernel list to launches, in this order.
 *
 *   legalise.c       splits off what the chosen algorithms cannot take
 *   loops.c          plans loops: tasks, arguments, the key of the code that they need; loop_emit.c generates that code
 *   expressions_plan.c, expressions.c
 *                    the code of a kernel's expressions at a place of its index space: for loops, prologues and epilogues
 *   random.c         Philox in vectors
 *   contraction.c    products: OpenBLAS, which blas.c opens
 *   attention.c, scatter.c
 *   requests.c       code by key: from the process, the disk, or LLVM
 *   arena.c          memory of intermediates
 *   execute.c        launches in stages; the walk of all threads through them
 *   profile.c        what the walk notes where it is timed
 *   peak.c           what the machine can do at best, measured
 *   backend.c        the whole way, and what the process keeps: machine, threads, compiled functions
 *
 * A kernel kind plugs in by one planner: it looks at a kernel and says how it runs, as a cpu_plan. Planning calls no LLVM: code
 * is asked for by a key, and generated only where neither the process nor the disk has it. Runtime (threads, jit, loader,
 * cache) is runtime.h; includes ir/ and base/ beside it. */
#ifndef CPU_BACKEND_H
#define CPU_BACKEND_H

#include <llvm-c/Types.h>

#include "backend_cpu/runtime.h"
#include "ir/backend.h"
#include "ir/kernels.h"

/* -- how a kernel runs ------------------------------------------------------------------------------------------------ */

/* One task of one phase: generated, or written in C. args are the kernel's own, fixed when the program is compiled.
 * buffers[b] is where buffer b of the program begins in this run and iteration; number program->n_buffers is the
 * workspace. scratch is this thread's own, 64-byte aligned, of no content. Tasks of a phase run in any order, on any
 * thread, at the same time: what a task computes must not depend on that. */
typedef void cpu_task(const int64_t *args, char *const *buffers, int64_t task, char *scratch);

enum { CPU_MAX_PHASES = 4, CPU_MAX_WORKSPACE_ARGS = 64 };

/* A phase begins when all tasks of the one before it have ended. */
typedef struct {
    int function;                 /* from cpu_request, or -1 where `code` is given */
    cpu_task *code;
    int arg_base;                 /* its args are the kernel's from this one on */
    int64_t tasks;                /* from shapes and the machine alone, never from the number of threads */
    double work;                  /* of all tasks together, in nanoseconds on one core, roughly: small phases stay on one thread */
} cpu_phase;

typedef struct cpu_plan cpu_plan;
typedef struct cpu_linked cpu_linked;
struct cpu_plan {
    int n_phases;
    cpu_phase phases[CPU_MAX_PHASES];
    int n_args, cap_args;
    int64_t *args;
    size_t scratch_bytes;         /* of each thread */
    size_t workspace_bytes;       /* shared by the phases of this kernel, 64-byte aligned, of no content before */
    int n_workspace_args, workspace_args[CPU_MAX_WORKSPACE_ARGS];      /* offsets in it: what is added to them is where it lies */
    int n_parts;                  /* of a list: a plan a loop, side by side. Then n_phases is the most of any, and phases and args */
    cpu_plan *parts;              /* are the parts'; workspace_bytes is of all together, and their args know where theirs begins */
    const char *how;              /* for the compile trace: "openblas", "generated 12x32"; NULL: nothing to say */
    /* Optional: called once the requested functions are in memory, for C code that calls them by address. */
    void (*link)(cpu_plan *plan, const cpu_linked *linked);
    void *context;                /* of link, and whatever else the planner keeps; in the compiler's arena */
};

/* -- one compilation -------------------------------------------------------------------------------------------------- */

/* How small work may get, in nanoseconds on one core: a task, and a stage that all threads share. Tests make them small. */
typedef struct { double task_ns, shared_ns; } cpu_grain;

typedef struct cpu_request cpu_request;
typedef struct cpu_store cpu_store;          /* requests.h */
typedef struct {
    const cpu_machine *machine;
    kl_program *program;
    base_arena *arena;            /* of the compiled program: contexts of emit and link live here */
    base_arena *args;             /* of the compiled program: arguments of plans. Another one, so that what was planned for code that exists
                                     already can be given back; where it is the same, nothing is */
    ir_compile_report *report;
    int verbose;
    int n_requests, cap_requests;
    cpu_request *requests;
    cpu_store *store;
    cpu_grain grain;
} cpu_compiler;

/* Adds to module the function `name`, of type cpu_task (cpu_task_type), and whatever it calls. Runs on any thread, and only
 * where the code is not there already: nothing that running needs may come of it. */
typedef void cpu_emit(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name);

/* Code with this key: the text must say all that the code depends on but the machine. Equal keys are one function. cost is
 * what compiling it takes, in LLVM instructions, roughly. Returns the number for cpu_phase.function. context must live in
 * compiler->arena or longer. */
int cpu_request_code(cpu_compiler *compiler, const char *key, double cost, cpu_emit *emit, const void *context);
struct cpu_request { const char *key; size_t length; double cost; cpu_emit *emit; const void *context; char name[40]; };

/* void (const int64_t *args, char *const *buffers, int64_t task, char *scratch), in the module's context. */
LLVMTypeRef cpu_task_type(LLVMModuleRef module);

/* What link sees: where a requested function is, and the code that it came with, for other symbols of its emit. */
struct cpu_linked { const cpu_compiler *compiler; void *const *address; const cpu_code *const *code; };

/* Arguments: each returns its index in args. A view is two: the buffer's number and the offset of its first element in
 * bytes; its strides are values, added by whoever needs them. */
int cpu_arg(cpu_compiler *compiler, cpu_plan *plan, int64_t value);
int cpu_arg_view(cpu_compiler *compiler, cpu_plan *plan, const kl_view *view, ir_dtype dtype);
/* The same of a place in the kernel's workspace: bytes from its beginning. A view with buffer program->n_buffers is one, too. */
int cpu_arg_workspace(cpu_compiler *compiler, cpu_plan *plan, size_t offset);
/* The same, for C code at run time. */
static inline char *cpu_pointer(const int64_t *args, char *const *buffers, int index) { return buffers[args[index]] + args[index + 1]; }

/* -- planners: one a kernel kind ---------------------------------------------------------------------------------------- */

/* plan is {0} to begin with. False and base_error where the kernel cannot be had. */
typedef bool cpu_planner(cpu_compiler *compiler, const kl_kernel *kernel, cpu_plan *plan);
cpu_planner cpu_plan_loop, cpu_plan_list;               /* loops.c */
cpu_planner cpu_plan_contraction;        /* contraction.c */
cpu_planner cpu_plan_attention;          /* attention.c */
cpu_planner cpu_plan_scatter;            /* scatter.c */

/* -- legalise.c ------------------------------------------------------------------------------------------------------- */

void cpu_legalise(kl_program *program, const cpu_machine *machine);

/* -- arena.c ---------------------------------------------------------------------------------------------------------- */

typedef struct { char *at; size_t bytes; int programs; } cpu_arena;
/* One program more, which needs so many bytes: then at may be another. False where the machine refuses; nothing has changed then. */
bool cpu_arena_join(cpu_arena *arena, size_t bytes);
void cpu_arena_leave(cpu_arena *arena);                                  /* the last program's leaving frees the memory */

/* -- execute.c -------------------------------------------------------------------------------------------------------- */

/* A compiled program: launches in stages. */
typedef struct cpu_execution cpu_execution;

/* plans by kernel id (of repeats: unused), linked: every phase has its code. Puts kernels into stages and workspace into its
 * place; takes no memory yet. program and plans are borrowed until it is freed. */
cpu_execution *cpu_execution_new(const kl_program *program, cpu_plan *plans, int threads, cpu_grain grain);
/* Memory of shared, or of its own where the pool does not run it. False and base_error where the machine refuses. */
bool cpu_execution_allocate(cpu_execution *execution, cpu_arena *shared);
void cpu_execution_free(cpu_execution *execution);
void cpu_execute(cpu_execution *execution, cpu_pool *pool, void *const *params, void *const *results);
void cpu_execute_again(cpu_execution *execution, cpu_pool *pool);        /* with those of the run before */
double cpu_execution_began_ms(const cpu_execution *execution);           /* when thread 0 came to the first kernel of the last run */
size_t cpu_execution_bytes(const cpu_execution *execution);              /* arena, workspace, scratch */
size_t cpu_execution_workspace(const cpu_execution *execution);          /* workspace, scratch */
int cpu_execution_stages(const cpu_execution *execution);                /* barriers of a run, repeats counted once */
/* From now on every task is timed, and each of the first traced_runs runs keeps its events. */
void cpu_execution_profile(cpu_execution *execution, int traced_runs);
/* What has been seen; kernels has room for every id, and all but times and runs is filled in. */
void cpu_execution_read_profile(cpu_execution *execution, ir_profile *profile);

/* -- profile.c -------------------------------------------------------------------------------------------------------- */

/* A phase of a kernel in its stage. */
typedef struct { int kernel, stage; int64_t tasks; bool first_phase; } cpu_profile_item;
typedef struct cpu_profile cpu_profile;
cpu_profile *cpu_profile_new(int threads, int n_items, const cpu_profile_item *items, int n_stages, int traced_runs);   /* borrows items */
void cpu_profile_free(cpu_profile *profile);                              /* NULL is fine */
/* By the thread that begins and ends the run. */
void cpu_profile_begin(cpu_profile *profile);
void cpu_profile_end(cpu_profile *profile);
/* By every thread, about itself: a task that began at begin has ended; so has a stage, and the waiting in its barrier since waits
 * (0: there is none). */
void cpu_profile_task(cpu_profile *profile, int thread, int item, int64_t begin);
void cpu_profile_stage(cpu_profile *profile, int thread, int stage, int64_t begin, int64_t waits);
void cpu_profile_read(const cpu_profile *profile, ir_kernel_profile *kernels);       /* adds to runs, busy_ns, idle_ns, by id */
void cpu_profile_totals(cpu_profile *profile, ir_profile *into);

/* -- backend.c -------------------------------------------------------------------------------------------------------- */

extern const ir_backend cpu_backend;
void cpu_set_grain(cpu_grain grain);             /* until the next configure; for tests */
/* The backend's compile from the kernel list on, which it takes. */
ir_executable *cpu_compile_list(kl_program *list, const ir_compile_options *options, ir_compile_report *report);

#endif
