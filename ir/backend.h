/* ir/backend.h: what a backend must do, as one struct of functions, filled in once by each backend. The tracer knows nothing
 * else of it: the interpreter, the CPU and the GPU are the same to it.
 *
 * In: a graph after the passes, verified, composites decomposed but for those that the backend keeps. graph->donated[] says
 * which result takes over which parameter's memory: then both have one address at every run. A result may be a parameter itself,
 * also one whose memory another result takes over: (a, b) may become (b, a) in place. Out: a program that is run any
 * number of times, by one thread at a time. */
#ifndef IR_BACKEND_H
#define IR_BACKEND_H

#include <stdio.h>

#include "ir/ir.h"

/* -- what a compilation tells the user --------------------------------------------------------------------------------- */

/* Phases with their times, in order, and lines of text with the level from which on they are shown: 1 the compile trace (what
 * became of the graph, the memory table), 2 every kernel, 3 why each was chosen. Lines carry no prefix and no newline. */
enum { IR_MAX_PHASES = 16 };
typedef struct {
    int n_phases;
    struct { const char *name; double ms; } phases[IR_MAX_PHASES];
    base_text lines;                      /* each a digit, its level; its text; '\n' */
} ir_compile_report;

static inline void ir_report_phase(ir_compile_report *report, const char *name, double ms)
{
    if (report->n_phases < IR_MAX_PHASES) {
        report->phases[report->n_phases].name = name;
        report->phases[report->n_phases++].ms = ms;
    }
}
#define ir_report_line(report, level, ...) \
    (base_text_add(&(report)->lines, "%d", (level)), base_text_add(&(report)->lines, __VA_ARGS__), base_text_add(&(report)->lines, "\n"))

/* -- where time goes ---------------------------------------------------------------------------------------------------- */

/* A thread at a kernel, or (kernel -1) waiting for others. Nanoseconds of CLOCK_MONOTONIC. */
typedef struct { int kernel, thread; int64_t begin_ns, end_ns; } ir_event;

typedef struct {
    const char *name, *how;               /* "matmul+gelu"; "generated 12x32", or NULL */
    const char *shape;                    /* "256x3072x768"; NULL where a name says enough */
    ir_place place;                       /* the user's line */
    ir_dtype dtype;                       /* that it computes products in, or f32 */
    int64_t runs;
    double busy_ns, idle_ns;              /* of all runs, added over threads: computing, and waiting while it was computed */
    double flops, bytes;                  /* of one run */
} ir_kernel_profile;

/* Of all runs but the first, which touches its memory for the first time; of that where there was no other. */
typedef struct {
    const char *device;                   /* its name, and one thread; NULL: threads of the CPU */
    int threads;
    int64_t runs;
    double wall_ns;
    int n_kernels;
    ir_kernel_profile *kernels;           /* by number; runs is 0 where it is no work of its own */
    int n_events;
    const ir_event *events;
} ir_profile;

/* What the machine (device: its name) or all threads can do: arithmetic on registers alone, by the instructions that products use; memory that no
 * cache holds, read, and read and written in place (both counted). GFLOP/s, GB/s. */
typedef struct { const char *device; int threads; double f32_gflops, bf16_gflops, read_gbs, update_gbs; } ir_peak;

/* -- a backend --------------------------------------------------------------------------------------------------------- */

typedef struct ir_executable ir_executable;   /* each backend's own */

typedef struct {
    int threads;                          /* 0: all that the process may use */
    const char *isa;                      /* NULL: the machine's own */
    bool tf32;                            /* products in f32 may round their operands to ten bits */
    const char *cache_dir;                /* of compiled objects; NULL: the default; "": none */
    bool tune;                            /* where there is a choice, time what there is and keep the fastest */
} ir_backend_settings;

typedef struct {
    const char *name;                     /* of the step */
    int verbose;                          /* what is the use of a line of a higher level: nobody reads it */
    const char *dump_dir;                 /* a folder for kernels, LLVM IR and assembly; NULL: write nothing */
    bool verify;                          /* check what the backend makes on the way */
    int host_scalars;                     /* so many last parameters are scalars in host memory, wherever the backend's memory is */
} ir_compile_options;

typedef struct {
    const char *name;                                                  /* "cpu" */

    /* Optional. Composites for which there is a kernel: the passes leave them whole. */
    bool (*keep_composite)(const ir_node *node);
    /* Optional. Called before the first compile, and again at will while no program exists; the last call holds. False and
     * base_error on what the machine cannot do. Text is copied. */
    bool (*configure)(const ir_backend_settings *settings);
    /* Optional. Ends threads and frees what the process keeps. All programs are freed before; configure may follow. */
    void (*shutdown)(void);
    /* Optional. The machine as the backend sees it, for people: lines of "name  value". */
    void (*print_info)(FILE *out);

    /* Optional, all four or none: where params and results are memory of the backend's own and not of the host. New memory is zeroed;
     * NULL, or false, and base_error. Copies come after all runs before them, in order: upload returns once `from` may be written again,
     * download when the bytes are there. */
    void *(*memory_new)(size_t bytes);
    void (*memory_free)(void *memory);
    bool (*upload)(void *to, const void *from, size_t bytes);
    bool (*download)(void *to, const void *from, size_t bytes);
    /* Optional. Until all runs are done; false and base_error where one has failed. */
    bool (*wait)(void);

    /* NULL and base_error where the program does not fit the machine. May change the graph, which its owner frees afterwards:
     * the program keeps nothing of it. */
    ir_executable *(*compile)(ir_graph *graph, const ir_compile_options *options, ir_compile_report *report);
    /* params[i] and results[i] are the data, row-major, of parameter and result i. False and base_error only before any result
     * is written: a call that fails has changed nothing. With memory of its own a backend may return before the results are there. */
    bool (*run)(ir_executable *program, void *const *params, void *const *results);
    /* Optional. As run, with the params and results of the run before, which may hold other elements. */
    bool (*run_again)(ir_executable *program);
    /* Optional. When the last run came to its first kernel on the calling thread, ms of CLOCK_MONOTONIC. */
    double (*began_ms)(const ir_executable *program);
    void (*free)(ir_executable *program);
    size_t (*arena_bytes)(const ir_executable *program);               /* of all intermediates together */

    /* Optional, both or none. From now on runs are timed, and events of the first traced_runs are kept. Until it is asked for it
     * costs nothing. */
    void (*profile)(ir_executable *program, int traced_runs);
    /* What was seen so far; NULL where nobody asked. The program's; valid until the next run or question. */
    const ir_profile *(*profile_of)(ir_executable *program);
    /* Optional. Measures the machine, now. False and base_error. */
    bool (*measure_peak)(ir_peak *peak);
    /* Optional; with it `tune` is obeyed. How products are computed, where that is a choice, with a digest of what tuning has chosen; "": none. */
    const char *(*tuned)(void);
} ir_backend;

#endif
