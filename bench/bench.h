/* bench/: what `rax bench` measures. In: settings of a run. Out: results, in the order in which they were measured. A user of
 * rax.h and of nanogpt/'s step; includes these alone.
 *
 *   workloads.def    the five training steps, and workloads.c: their sizes in C
 *   measure.c        cases, and how they are timed
 *   program.c        a case that is a rax function called again and again
 *   report.c         the table, JSON, the comparison with an earlier run
 *   one file a subject: products.c, attention.c, loops.c (layer norm, softmax, gelu, cross-entropy, embedding, AdamW,
 *   random), calls.c (dispatch), steps.c (whole training steps, and compiling them), growth.c (both by context and batch)
 *   groups.c         what can be named on the command line
 *
 * compare.py, with peer_step.py and peer_products.py, runs other programs on the same work. */
#ifndef BENCH_H
#define BENCH_H

#include "nanogpt/config.h"
#include "rax.h"

/* -- workloads.c ------------------------------------------------------------------------------------------------------ */

enum { BENCH_WORKLOADS = 5 };
typedef struct { const char *name; int layers, heads, width, context, batch, vocab; bool bias; } bench_workload;
extern const bench_workload bench_workloads[BENCH_WORKLOADS];
double bench_parameters(const bench_workload *w);         /* weights, the tied output layer once */
double bench_step_flops(const bench_workload *w);         /* 6 a weight in a product and token, 6 L B T^2 C for attention */

/* -- a run ------------------------------------------------------------------------------------------------------------ */

typedef enum { BENCH_F32, BENCH_BF16, BENCH_MEMORY, BENCH_NOTHING } bench_bound;      /* what bounds a case */

typedef struct {
    char name[80];                       /* "matmul/gpt2/up/forward f32 generated" */
    bench_bound bound;
    double median_ms, low_ms, high_ms;   /* of one call; the quartiles */
    double gflops, gbs;                  /* 0: not counted */
    double share;                        /* of the bound's peak */
    double planned_mb;                   /* the program's intermediates, as planned; 0: none, or not known */
} bench_result;

typedef struct bench bench;
struct bench {
    rax_settings settings;               /* what rax was configured with; who configures it anew goes back to it */
    bool workload[BENCH_WORKLOADS], f32, bf16;
    const gpt_config *config;            /* whose step is measured with the workloads'; NULL: none */
    int repeats;
    double sample_ms;                    /* as many calls as take so long are timed together */
    rax_peak peak;
    int n_results, cap_results;
    bench_result *results;
    void (*show)(bench *b, const bench_result *result);      /* each result as it comes; NULL: nothing */
    int (*stop)(void);                   /* asked between cases */
    void *context;                       /* of show */
};

/* -- measure.c -------------------------------------------------------------------------------------------------------- */

/* One of call and sample is set. call does the work once; sample does it and says how many milliseconds count. free: the context's end;
 * NULL: nothing to do. */
typedef struct {
    char name[80];
    bench_bound bound;
    double flops, bytes;                 /* of a call; 0: not counted */
    bool (*call)(void *context);
    bool (*sample)(void *context, double *ms);
    double (*planned_mb)(const void *context);                /* NULL: not known */
    void (*free)(void *context);
    void *context;
} bench_case;

/* Times the cases, a sample of each in turn, so that what else happens on the machine falls on all alike, and frees them. A first call of each
 * (which compiles) is not counted. False: rax_error(). */
bool bench_measure(bench *b, int n, bench_case *cases);

/* -- program.c -------------------------------------------------------------------------------------------------------- */

/* A function and what it is called with. */
enum { BENCH_MAX_ARGS = 6, BENCH_MAX_RESULTS = 4 };
typedef struct {
    rax_fn *fn;
    int n_args, n_results;
    rax_value args[BENCH_MAX_ARGS];      /* tensors are the program's */
    rax_tensor result[BENCH_MAX_RESULTS];
    const char *products;                /* RAX_PRODUCTS while it compiles; NULL: as it is */
} bench_program;

bench_program *bench_program_new(rax_step *step, const char *signature, int n_results);
void bench_program_free(void *program);
/* An argument of noise in (-1, 1), or of ids below `below`; false where memory is refused. */
bool bench_pass_noise(bench_program *program, rax_dtype dtype, rax_shape shape);
bool bench_pass_ids(bench_program *program, rax_shape shape, int below);
bench_case bench_case_of(bench_program *program, bench_bound bound, double flops, double bytes, const char *name, ...)
    __attribute__((format(printf, 5, 6)));

/* -- report.c --------------------------------------------------------------------------------------------------------- */

typedef struct bench_baseline bench_baseline;
bench_baseline *bench_baseline_open(const char *path);                /* what bench_print_json printed; NULL: rax_error() */
void bench_baseline_free(bench_baseline *baseline);
/* The table: its head, and a row. baseline NULL: no comparison. */
void bench_print_peak(FILE *out, const rax_peak *peak);                  /* one line */
void bench_print_head(const bench *b, const bench_baseline *baseline);
void bench_print_row(const bench_result *result, const bench_baseline *baseline);
void bench_print_json(const bench *b);

/* -- groups.c --------------------------------------------------------------------------------------------------------- */

typedef struct { const char *name, *help; bool (*run)(bench *b); bool asked; } bench_group;      /* asked: only where it is named */
extern const bench_group bench_groups[];
extern const int bench_group_count;
bool bench_products(bench *b);           /* products.c */
bool bench_attention(bench *b);          /* attention.c */
bench_case bench_attention_case(const bench_workload *w, bool bf16, bool gradient, const char *name);      /* of its batch, context, heads */
bool bench_layer_norm(bench *b);         /* loops.c */
bool bench_softmax(bench *b);
bool bench_gelu(bench *b);
bool bench_cross_entropy(bench *b);
bool bench_embedding(bench *b);
bool bench_adamw(bench *b);
bool bench_random(bench *b);
bool bench_dispatch(bench *b);           /* calls.c */
bool bench_compile(bench *b);            /* steps.c */
bool bench_step(bench *b);
bench_case bench_step_case(bench *b, const bench_workload *w, bool bf16, const char *name);      /* context NULL: rax_error() */
bool bench_growth(bench *b);             /* growth.c */

#endif
