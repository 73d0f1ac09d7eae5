/* tracer/: what rax.h promises, over ir/.
 *
 * In: a user's step, and the arrays, numbers and records it is called with. Out: a graph of what the step does, handed to a
 * backend at the first call of a kind and found again at all later ones. Includes base/, ir/ and rax.h; backends.c alone knows
 * which backends there are.
 *
 *   support.c              errors and memory of rax.h
 *   intern.c               one copy of each name, type and list of types, so that equality is a comparison of pointers
 *   pool.c                 what handles point to, used again
 *   tensor.c               handles: arrays, and values of a trace; generations
 *   tree.c                 ordered lists of named tensors
 *   signature.c            "x: i32[B,T], params: tree{...}": parsing, and checking arguments against it
 *   record.c               a trace: scopes, errors, how an op becomes a node
 *   record_elementwise.c   ops, by section of rax.h
 *   record_movement.c
 *   record_composites.c
 *   record_control.c       scan, custom gradients, gradients
 *   record_arguments.c     what a step asks of its arguments, and what it returns
 *   statics.c              which leaves of the arguments are static: by use, and by observation
 *   compile_cache.c        programs by what they depend on; why a call found none
 *   compile.c              a miss: trace, passes, backend
 *   call.c                 a call: check, run, results and donation
 *   repeated_call.c        a call that is like the one before
 *   report.c               the compile trace
 *   profile.c              where a function's time goes
 *   backends.c             the backends; settings
 *   interpreter.c          the interpreter as a backend
 *   compile_text.c         a graph as text, through every stage
 */
#ifndef TRACER_H
#define TRACER_H

#include <pthread.h>

#include "base/base.h"
#include "ir/backend.h"
#include "ir/ir.h"
#include "rax.h"

/* -- intern.c --------------------------------------------------------------------------------------------------------- */

/* Names and types live until rax_shutdown. */
typedef struct { int n; const char *const *names; const ir_type *const *types; } trace_tree_type;
const char *trace_intern(const char *text);
const char *trace_intern_find(const char *text);                   /* NULL where nobody has interned it */
const ir_type *trace_intern_type(const ir_type *type);             /* names of dims play no part and are not kept */
const trace_tree_type *trace_intern_tree(int n, const char *const *names, const ir_type *const *types);
void trace_intern_free(void);

/* -- pool.c ----------------------------------------------------------------------------------------------------------- */

/* Bodies of handles: those that are spare, and all of them, by blocks. One that is taken is zeroed at first, later as it was given. */
typedef struct {
    pthread_mutex_t lock;
    size_t bytes;                        /* of a body */
    void **spare, **blocks;
    int n_spare, cap_spare, n_blocks, cap_blocks;
} trace_pool;
void *trace_pool_take(trace_pool *pool);
void trace_pool_give(trace_pool *pool, void *body);
const void *trace_pool_at(const trace_pool *pool, int i);          /* the i-th of all; NULL where they end */
void trace_pool_free(trace_pool *pool);

/* Why a handle is out of date: "is out of date: the call at train.c:48 has taken over its memory". in_a_step: "was a value of". */
typedef enum { LOST_FREED, LOST_DONATED, LOST_TRACE_OVER } trace_loss;
void trace_add_loss(base_text *why, trace_loss lost, rax_place at, const char *in_a_step);

/* -- tensor.c --------------------------------------------------------------------------------------------------------- */

typedef struct trace trace;
typedef struct trace_scope trace_scope;

/* What a handle points to. Bodies are used again and never given back to the system, so that a handle that is out of date
 * can be told from one that is not: its generation is another. */
typedef enum { TENSOR_NONE, TENSOR_ARRAY, TENSOR_VALUE } trace_tensor_kind;
/* What a call looks at comes first, and lies in one line of the cache. */
typedef struct rax_tensor_body {
    _Alignas(64) trace_tensor_kind kind;
    uint32_t generation;                 /* see trace_tensor_generation */
    const ir_type *type;                 /* of an array: interned; of a value: its node's; NULL where poisoned */
    void *data;                          /* where programs find it: memory of the host, or of a backend that has its own */
    struct rax_tree_body *tree;          /* an array that a tree has taken */
    rax_place lost_at;                   /* the donating call */
    trace_loss lost;                     /* why the generation before is out of date */
    bool host_written;
    void *host;                          /* where the backend has memory of its own: what the user is looking at, until the next call; or NULL */
    struct rax_tensor_body *next_lent;
    trace *owner;                        /* of a value */
    trace_scope *scope;
    ir_node *node;                       /* NULL: poisoned by an error */
    struct rax_tensor_body *next;        /* in the list of the trace's values */
} rax_tensor_body;

typedef struct rax_tree_body {
    _Alignas(64) bool used;
    bool is_value;
    uint32_t generation;
    uint32_t donations;                  /* added to the generations of its leaves: one count makes them all out of date */
    trace_loss lost;
    rax_place lost_at;
    uint64_t layout;                     /* no other has the same leaves at the same places; 0: no leaves */
    const trace_tree_type *type;         /* of arrays: NULL until asked for, and after a leaf was added */
    int n, cap;
    const char **names;                  /* interned */
    rax_tensor_body **leaves;            /* NULL: not set yet, inside a step */
    void **data;                         /* of arrays, side by side for a call */
    trace *owner;
    struct rax_tree_body *next;
} rax_tree_body;

static inline uint32_t trace_tensor_generation(const rax_tensor_body *body)
{
    return body->generation + (body->tree ? body->tree->donations : 0);
}
static inline rax_tensor trace_handle(rax_tensor_body *body) { return (rax_tensor){ body, trace_tensor_generation(body) }; }

rax_tensor_body *trace_body_new(trace_tensor_kind kind);
void trace_body_lose(rax_tensor_body *body, trace_loss why, rax_place place);      /* handles so far are out of date */
void trace_body_free(rax_tensor_body *body);
/* The body, or NULL and the reason: "is out of date: the call at train.c:48 has taken over its memory". */
rax_tensor_body *trace_body(rax_tensor tensor, base_text *why);
rax_tensor_body *trace_array_new(const ir_type *type);                              /* interned; NULL where memory is refused */
bool trace_type_from(rax_dtype dtype, rax_shape shape, ir_type *type, base_text *why);
void trace_type_print(base_text *text, const ir_type *type);                        /* without names of dims */
/* Arrays that the user was looking at in host memory are the backend's again: what may have been written is copied back. */
bool trace_return_lent(void);
int64_t trace_array_count(void);                                                    /* that exist */
void trace_bodies_free(void);

/* -- tree.c ----------------------------------------------------------------------------------------------------------- */

rax_tree_body *trace_tree(rax_tree tree, base_text *why);
static inline rax_tree trace_tree_handle(rax_tree_body *body) { return (rax_tree){ body, body->generation }; }
rax_tree_body *trace_tree_new(trace *owner);                                        /* NULL: a tree of arrays */
void trace_tree_append(rax_tree_body *tree, const char *interned, rax_tensor_body *leaf);
const trace_tree_type *trace_tree_type_of(rax_tree_body *tree);
rax_tree_body *trace_tree_of_arrays(const trace_tree_type *type);                   /* zeros; NULL where memory is refused */
void trace_tree_body_free(rax_tree_body *tree);
void trace_trees_free(void);

/* -- signature.c ------------------------------------------------------------------------------------------------------ */

typedef struct { int64_t dim; const char *name; } trace_dim;       /* name NULL: the number; "_": any */
typedef struct {
    bool given;                          /* false: anything */
    ir_dtype dtype;
    bool open;                           /* "...": any axes, then those listed */
    int rank;
    trace_dim dims[IR_MAX_RANK];
} trace_pattern;

typedef enum { ARG_TREE, ARG_TENSOR, ARG_SCALAR, ARG_RECORD } trace_arg_kind;
typedef struct { const char *name; trace_pattern pattern; } trace_leaf_pattern;
typedef struct {
    const char *name;
    trace_arg_kind kind;
    trace_pattern pattern;               /* of a tensor; a scalar's dtype */
    int n_leaves;
    trace_leaf_pattern *leaves;          /* of a tree: those that are stated */
} trace_arg;
typedef struct { int n; trace_arg *args; } trace_signature;

/* NULL and an error on a mistake. Lives in the arena; names are interned. */
trace_signature *trace_signature_parse(base_arena *arena, const char *function, const char *text);
/* types[i] is of tensor argument i, trees[i] of tree argument i. Checks all and that equal names are equal dims. */
bool trace_signature_check(const trace_signature *signature, const char *function, const ir_type *const *types,
                           const trace_tree_type *const *trees, base_text *why);
/* The type with the names that the signature has for its dims. leaf: of a tree, else NULL. */
ir_type trace_signature_name(const trace_arg *arg, const char *leaf, const ir_type *type);

/* -- statics.c -------------------------------------------------------------------------------------------------------- */

/* A leaf is a scalar argument, or a field of a record argument. Values are compared bit by bit, text by content. */
typedef struct { uint64_t bits; const char *text; } trace_number;  /* bits: of a double, or of an int64 */
typedef enum { USE_NONE = 0, USE_READ = 1, USE_TAKEN = 2 } trace_use;   /* as a C value; as a tensor */
typedef struct {
    int arg, field;                      /* field -1: a scalar */
    const char *name;                    /* "step", "config.n_layer" */
    rax_field_type type;
    ir_dtype dtype;                      /* as a tensor */
    trace_number value;                  /* at the latest call */
    trace_number previous;               /* before it last changed */
    int64_t changes;
    bool varies;                         /* a field taken as a tensor, seen to change: dynamic in traces from now on */
    bool was_taken;
    int needed, retraced;                /* misses that it caused: with a compilation, and without */
    bool warned;
    rax_place read_at;
} trace_leaf;

typedef struct {
    int n;
    trace_leaf *leaves;
    int *first;                          /* by argument: its first leaf; one more at the end */
    const rax_record_type **records;     /* by argument */
    bool known;                          /* leaves exist, with values: a call was observed, and its record types seen */
} trace_statics;

bool trace_number_equal(const trace_leaf *leaf, trace_number a, trace_number b);
double trace_number_value(const trace_leaf *leaf, trace_number number);
void trace_number_print(base_text *text, const trace_leaf *leaf, trace_number number);
/* Reads every leaf's value from the arguments, counts changes, and sets fn->leaves_changed where any is another than before.
 * The first call makes the leaves; one that fails is none. False and an error where a number is none of its dtype, or a record is of another type. */
bool trace_statics_observe(rax_fn *fn, const rax_value *args);
bool trace_statics_observe_number(rax_fn *fn, trace_leaf *leaf, double given);      /* of one scalar argument */
void trace_statics_free(trace_statics *statics);
/* Values that a probe tries in the place of a leaf's own: see statics.c. */
enum { MAX_PROBES = 4 };
int trace_probes(const trace_leaf *leaf, trace_number probes[MAX_PROBES]);
/* Writes the number as the leaf's dtype to memory, and as the field's C type into a record. */
void trace_number_store(const trace_leaf *leaf, trace_number number, void *scalar);
void trace_number_to_field(const trace_leaf *leaf, trace_number number, void *field);

/* -- record.c --------------------------------------------------------------------------------------------------------- */

/* A graph that is being recorded: the step's own, or the body of a scan or of a custom gradient in it. Values of outer scopes
 * that are used inside become parameters of the body, and operands of the op that has it. */
struct trace_scope {
    ir_graph *graph;
    trace_scope *outer;
    bool closed;
    int n_captured, cap;
    ir_node **captured;                  /* nodes of outer's graph */
    ir_node **inside;                    /* the body's parameters for them, from the first captured on */
};

/* One recording of a step. */
struct trace {
    rax_fn *fn;
    const rax_value *args;
    ir_graph *graph;
    trace_scope root, *scope;
    rax_tensor_body *values;
    rax_tree_body *trees;
    char *error;
    rax_error_kind error_kind;
    uint32_t next_site;
    double gradient_ms;

    /* arguments: the handles of trees and tensors; for each leaf how it was used, its parameter where it is dynamic */
    rax_tree_body **arg_trees;
    rax_tensor_body **arg_tensors;
    trace_number *numbers;               /* by leaf: what the step sees */
    trace_use *uses;
    rax_place *read_at;
    rax_tensor_body **leaf_tensors;
    void **record_copies;                /* by argument: NULL where the step has not asked for it */
    int n_dynamic;
    int *dynamic;                        /* leaves that are parameters, in order of their parameters */

    int n_results;
    struct trace_result { bool given, is_tree; rax_tree_body *tree; rax_tensor_body *tensor; } *results;
};

extern _Thread_local trace *trace_current;

/* Keeps the first error of the trace: "train.c:48: matmul: ...". Lines after the first are indented below the text. Outside
 * a step it is the thread's error. Always false. */
bool trace_error(rax_place place, const char *op, const char *format, ...) PRINTF_LIKE(3, 4);
/* The tensor as a node of the scope being recorded; NULL where it is poisoned, or after an error, which names it as given. */
ir_node *trace_operand(rax_place place, const char *op, const char *name, rax_tensor tensor);
ir_node *trace_lift(trace_scope *scope, trace_scope *from, ir_node *node);
/* A handle of a node of the scope being recorded; poisoned where node is NULL. */
rax_tensor trace_value(ir_node *node);
/* The graph being recorded; nodes are born at place from now on. */
ir_graph *trace_graph(rax_place place);
/* ir_add for what a user may get wrong. op is what it is called in the message. NULL after an error. */
ir_node *trace_add(rax_place place, const char *op, ir_op what, int n, ir_node *const *args, const ir_attr *attr,
                   const ir_type *stated);
/* False and an error, with the cast that would help, where the dtypes differ. */
bool trace_same_dtype(rax_place place, const char *op, const ir_node *lhs, const ir_node *rhs, const char *lhs_name,
                      const char *rhs_name);
void trace_dim_print(base_text *text, const ir_type *type, int axis);               /* "C=4 on axis 2" */
/* Axis -1 is the last. False and an error where there is no such axis. */
bool trace_axis(rax_place place, const char *op, const ir_node *x, int *axis);
/* x repeated to the shape of type (dtype: x's), which it must fit. */
ir_node *trace_broadcast(ir_node *x, const ir_type *type);
/* The shape that n nodes broadcast to, leaving their last `apart` axes aside. False and an error where they do not. */
bool trace_common_shape(rax_place place, const char *op, int n, ir_node *const *nodes, const char *const *names, int apart,
                        ir_type *type);
ir_node *trace_scalar(ir_graph *graph, ir_dtype dtype, double value);

void trace_begin(trace *t, rax_fn *fn, const rax_value *args);
void trace_end(trace *t);                /* its handles are out of date; the graph stays the caller's */

/* -- record_arguments.c ----------------------------------------------------------------------------------------------- */

/* Parameters for all trees and tensors among the arguments. */
void trace_arguments_begin(trace *t);
/* Sets the graph's results from what the step returned. False and an error of the trace where some are missing. */
bool trace_results_end(trace *t);

/* -- compile_cache.c, compile.c --------------------------------------------------------------------------------------- */

/* What a program depends on besides static leaves: the types of the arguments, and which result goes where. */
typedef union { const void *type; intptr_t donor; } trace_key;     /* donor: the argument that a result takes over, or -1 */

typedef struct trace_program {
    int references;                      /* entries that use it */
    uint64_t hash;                       /* of the graph as recorded */
    const ir_backend *backend;
    ir_executable *compiled;
    int n_params, n_results;
    void **params, **results;            /* rebuilt at each call */
    int n_dynamic;
    int *dynamic;                        /* leaves, and */
    uint64_t *scalars;                   /* where they are put for the program */
    const trace_tree_type **result_trees;    /* by result of the function */
    const ir_type **result_types;
} trace_program;

/* A guard row: a call with this key and these values of its guarded leaves runs this program. */
typedef struct trace_entry {
    struct trace_entry *next;            /* the most recently used first */
    trace_key *key;
    int n_guards;
    int *guards;                         /* leaves */
    trace_number *values;                /* text is owned */
    trace_program *program;
    bool returned_to;                    /* the trace has told once that a call came back to it */
} trace_entry;

enum { MAX_ENTRIES = 64, MAX_ROWS = 8 };
bool trace_cache_holds(const rax_fn *fn, const trace_entry *entry);  /* its guards: leaves have the values that it is for */
trace_entry *trace_cache_find(rax_fn *fn, const trace_key *key);
trace_entry *trace_cache_add(rax_fn *fn, const trace_key *key, int n_guards, const int *guards, trace_program *program);
trace_program *trace_cache_program(rax_fn *fn, const trace_key *key, uint64_t hash);
/* Why nothing was found: in what the nearest entry differs. nearest may be NULL. */
const trace_entry *trace_cache_explain(rax_fn *fn, const trace_key *key, base_text *text);
void trace_program_release(trace_program *program);                  /* freed with its last entry */
void trace_cache_free(rax_fn *fn);

/* A folder for what a compilation writes: DUMP_DIR/train_step-1. NULL where nothing is to be written, or, after a warning, can be. */
char *trace_dump_folder(const char *name, int64_t number);
/* Traces and compiles for the key and the leaves' values; NULL and an error. */
trace_entry *trace_compile(rax_place place, rax_fn *fn, const trace_key *key, const rax_value *args);

/* -- call.c, repeated_call.c ------------------------------------------------------------------------------------------ */

typedef struct { rax_place place; rax_fn *fn; int n_args, n_results; const rax_value *args; const rax_into *results; } trace_call;

/* The memory of an argument was taken over: *into is its new handle, and all others are out of date. */
void trace_call_donated(const trace_call *c, const rax_into *into);

/* What the call before was given, and where its results went: NULL before the first. */
typedef struct trace_repeat trace_repeat;
/* Keeps the call, which has run entry's program, to compare the next one with. Forgets the one before where that is of no use. */
void trace_repeat_keep(const trace_call *c, const trace_entry *entry);
void trace_repeat_forget(rax_fn *fn);
void trace_repeat_free(rax_fn *fn);
/* The program, where the call is like the one that was kept but for numbers that no program is chosen by: then params and results are as
 * they are to be, and numbers have been put where it reads them. NULL also where something is wrong with the call: the long way says what. */
const trace_program *trace_repeat_fits(const trace_call *c);
void trace_repeat_renew(const trace_call *c);                        /* handles of what was taken over, after the run */

enum { RECENT_CALLS = 64 };
struct rax_fn {
    base_arena *arena;
    const char *name;
    rax_step *step;
    trace_signature *signature;
    trace_statics statics;
    trace_entry *entries;
    int n_entries, n_results;            /* n_results: of the first call; -1 before it */
    trace_key *key;                      /* of the call in progress */
    trace_entry *last;                   /* what the call before ran */
    trace_repeat *repeat;
    bool leaves_changed;                 /* since then */
    bool announced;
    rax_fn_stats stats;
    char *last_miss;
    float check_us[RECENT_CALLS];
    double checked_ms, called_ms;        /* of all hits */
    base_arena *profile_arena;           /* of the last rax_profile_of, or NULL */
};
struct rax_args { trace *t; };
struct rax_results { trace *t; };

/* -- report.c --------------------------------------------------------------------------------------------------------- */

int trace_verbose(void);                 /* -1: not even the line a compiled function */
void trace_say(int level, const char *format, ...) PRINTF_LIKE(2, 3);               /* "[RAX] ..." on standard error */
void trace_say_lines(const base_text *lines);                                       /* as in ir_compile_report */
/* The line a compiled function; later ones say why. known: the user was warned of the reason. */
void trace_announce(rax_fn *fn, const trace *t, const bool *guarded, bool known);
void trace_report_arguments(rax_fn *fn, const trace *t, const bool *guarded);
void trace_report_passes(const ir_pass_options *passes);
void trace_report_function(rax_fn *fn);

/* -- backends.c ------------------------------------------------------------------------------------------------------- */

const rax_settings *trace_settings(void);
const ir_backend *trace_backend(void);   /* NULL and an error where it cannot be had */
const ir_backend *trace_memory(void);    /* the backend in whose own memory arrays lie; NULL: they lie in the host's */
extern const ir_backend trace_interpreter;

#endif
