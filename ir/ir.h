/* ir/ is the compiler's middle: programs as graphs of tensor ops, and what is done with them before a machine is known.
 *
 * In: a graph recorded by the tracer, or parsed from text. Out: its results, by the interpreter; or a kernel list with a
 * memory plan (kernels.h), which a backend compiles. Includes base/ alone. A backend's or a user's words do not occur here.
 *
 *   types.c            dtypes, shapes, their text
 *   ops.c, ops.def     the op table; not_elementwise.def for switches over elementwise ops
 *   infer.c            the type of a node from its operands, or why there is none: shape_rules.c, shape_rules_composite.c,
 *                      shape_checks.c
 *   graph.c            nodes in order, operands before users; adding, redirecting, cloning
 *   hash.c             whether graphs, and attributes, are equal
 *   snapshot.c         a graph as it was before passes went over it
 *   print.c, lexer.c, parse.c         the text form, both ways
 *   verify.c           what must hold between passes
 *   gradient.c         reverse-mode differentiation; vjp_rules.c, vjp_scan.c, one rule an op
 *   decompose.c        composites into the other ops; composites.c, one decomposition an op
 *   merge_loss.c narrow.c cse.c dce.c passes, one a file
 *   simplify.c         likewise, with its rules: fold_constants.c, simplify_arithmetic.c, simplify_movement.c
 *   passes.c           the list of passes, and their runner
 *   interpret.c, reference*.c, philox.c         the oracle
 */
#ifndef IR_H
#define IR_H

#include <stdio.h>

#include "base/base.h"

/* -- types.c ---------------------------------------------------------------------------------------------------------- */

typedef enum { IR_F32, IR_F64, IR_BF16, IR_I32, IR_BOOL, IR_TUPLE } ir_dtype;      /* a bool is a byte, 0 or 1 */
enum { IR_DTYPES = IR_TUPLE };                                                       /* how many have elements */

/* More axes than this are refused with an error where a user makes a tensor. */
enum { IR_MAX_RANK = 8 };

/* A dim may have a name from a signature ("B"); names are for messages and text, and take no part in equality. A name lives
 * as long as the graph's arena. */
typedef struct {
    ir_dtype dtype;
    int rank;
    int64_t dim[IR_MAX_RANK];
    const char *dim_name[IR_MAX_RANK];     /* NULL where there is none */
} ir_type;

ir_type ir_type_of(ir_dtype dtype, int rank, const int64_t *dim);
ir_type ir_scalar(ir_dtype dtype);
ir_type ir_type_with_dtype(ir_type type, ir_dtype dtype);
bool ir_type_equal(const ir_type *a, const ir_type *b);
bool ir_shape_equal(const ir_type *a, const ir_type *b);          /* the dtype may differ */
int64_t ir_type_count(const ir_type *type);                        /* elements; 1 for a scalar */
int64_t ir_type_bytes(const ir_type *type);
int ir_dtype_bytes(ir_dtype dtype);
const char *ir_dtype_name(ir_dtype dtype);                         /* "f32" */
bool ir_dtype_parse(const char *text, size_t len, ir_dtype *dtype);
bool ir_dtype_is_float(ir_dtype dtype);
void ir_type_print(base_text *text, const ir_type *type);          /* f32[B=8,64] */
void ir_row_major(const ir_type *type, int64_t *stride);           /* in elements */
double ir_element(ir_dtype dtype, const void *data, int64_t i);      /* data[i]; every dtype's values are doubles */
/* bf16 is the upper half of an f32, rounded to nearest even. */
float ir_bf16_to_f32(uint16_t bits);
uint16_t ir_f32_to_bf16(float value);
int32_t ir_f64_to_i32(double value);                               /* truncates; what is too large becomes the nearest i32, NaN 0 */

/* -- ops.c ------------------------------------------------------------------------------------------------------------ */

typedef enum { IR_LEAF, IR_ELEMENTWISE, IR_REDUCTION, IR_CONTRACTION, IR_MOVEMENT, IR_INDEXING, IR_RANDOM, IR_CONTROL, IR_COMPOSITE } ir_class;

typedef enum {
#define OP(name, ...) OP_##name,
#include "ir/ops.def"
#undef OP
    IR_OPS
} ir_op;

enum {
    ATTR_INDEX = 1, ATTR_NAME = 2, ATTR_VALUE = 4, ATTR_DATA = 8, ATTR_AXIS = 16, ATTR_AXES = 32, ATTR_START = 64,
    ATTR_SITE = 128, ATTR_BODY = 256, ATTR_SCAN = 512, ATTR_EPSILON = 1024, ATTR_ATTENTION = 2048,
    RESULT_TYPE = 4096, VARIADIC = -1
};

typedef struct ir_node ir_node;
typedef struct ir_graph ir_graph;
typedef struct ir_vjp ir_vjp;
typedef struct ir_array ir_array;

typedef struct {
    const char *name;
    int arity;                 /* VARIADIC: see the shape rule */
    ir_class class;
    unsigned attributes;       /* an or of ATTR_ bits and RESULT_TYPE */
    bool (*shape)(const ir_node *node, ir_type *type, base_text *why);
    void (*vjp)(ir_vjp *context);                     /* NULL for no_vjp */
    void (*decompose)(ir_graph *graph, const ir_node *node, ir_node **results);       /* composites: results[i] is what result i is */
    void (*reference)(const ir_node *node, const ir_array *const *args, ir_array *result);  /* the others; NULL: the interpreter itself */
    const char *help;
} ir_op_info;

extern const ir_op_info ir_op_table[IR_OPS];
bool ir_op_parse(const char *name, size_t len, ir_op *op);
#define OP_NAME(op) (ir_op_table[op].name)

/* -- graph.c ---------------------------------------------------------------------------------------------------------- */

typedef struct { const char *file; int line; } ir_place;           /* where the user wrote it; file NULL: nowhere */

/* The attributes of all ops in one struct: an op has those that its row names; the others stay zero. */
typedef struct {
    int index;                        /* parameter, result */
    const char *name;                 /* parameter; NULL or text of the graph's arena */
    double value;                     /* constant (i32 and bool too), pad, bernoulli's p of false */
    const void *data;                 /* literal: row-major elements in the graph's arena */
    int axis;
    int n_axes;
    int axes[IR_MAX_RANK];            /* reductions: ascending; transpose: the permutation; broadcast: where each operand axis goes */
    int64_t start[IR_MAX_RANK];       /* slice, pad */
    uint32_t site;                    /* random ops and attention with dropout */
    ir_graph *body;                   /* scan, custom_gradient */
    int64_t count;                    /* scan: iterations */
    int n_carry, n_xs;                /* scan: operands are carries, xs, constants in this order */
    bool reverse;                     /* scan: the last slice first */
    double epsilon;
    bool causal;                      /* attention */
    double scale;                     /* attention: scores are scale * q k^T */
    double dropout;                   /* attention: probability of a zero; no seed and counter operands where it is 0 */
} ir_attr;

/* What every walk over a graph looks at comes first, in one cache line: most passes read little else of most nodes. */
struct ir_node {
    ir_op op;
    int id;                           /* printed as %id; unique in its graph, ascending in order after ir_graph_renumber */
    int n_args, n_tuple;
    ir_node **args;
    ir_node *prev, *next;
    int64_t mark;                     /* scratch of whoever walks the graph; of no value between passes */
    void *note;                       /* likewise */
    ir_type *tuple;
    ir_type type;                     /* of a tuple: dtype IR_TUPLE, and tuple[] says of what */
    ir_attr attr;
    ir_place place;
    const char *born;                 /* the pass that made it; NULL: the trace */
};

/* Nodes stand in an order in which operands come before users. Everything lives in the graph's arena; a body shares the
 * arena of its parent. */
struct ir_graph {
    base_arena *arena;
    bool owns_arena;
    const char *name;
    ir_node *first, *last;
    int n_nodes, n_with_body;          /* in the list; of these, with a body: most graphs have none, and nobody walks them for it */
    int next_id;
    int n_params, n_results;
    ir_node **params;                 /* OP_parameter nodes by index */
    ir_node **results;
    const char **result_names;        /* an entry may be NULL */
    int *donated;                     /* by result: the parameter whose memory it takes over, or -1 */
    ir_place place;                   /* new nodes are born here */
    const char *pass;                 /* new nodes are born by it */
    ir_node *before;                  /* new nodes go before this one; NULL: at the end */
    uint32_t next_site;
    ir_node **recent;                 /* IR_RECENT of them, or NULL; see ir_share_scalars */
};

ir_graph *ir_graph_new(const char *name);                                          /* with an arena of its own */
ir_graph *ir_graph_new_body(ir_graph *parent, const char *name);
void ir_graph_free(ir_graph *graph);                                               /* its bodies with it */

/* From here on constants, ops on scalars and scalars broadcast are made once, as far as a small table remembers them; NULL ends it. For a pass that adds
 * nodes in the order of the list, and removes none of these: decompositions would make the same for each of a hundred parameters, and cse merge it. */
enum { IR_RECENT = 256 };
void ir_share_scalars(ir_graph *graph, ir_node **recent);

/* Adds a node. attr may be NULL; stated is the result type, for ops with RESULT_TYPE, else NULL. A type error here is a bug:
 * who may err tries. */
ir_node *ir_add(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated);
/* The same for what a user may get wrong: NULL and why, as ir_infer says it. */
ir_node *ir_try_add(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated, base_text *why);
/* The type that such a node would have (for a tuple: dtype IR_TUPLE, *tuple and *n_tuple in the graph's arena), or false and why,
 * without the op's name: "lhs f32[2,3] has 3 on axis 1, rhs f32[4,5] has 4 on axis 0". */
bool ir_infer(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
              ir_type *type, int *n_tuple, ir_type **tuple, base_text *why);
/* For shape rules of tuple ops: room for the tuple in the node's arena is made by this. */
void ir_tuple_set(const ir_node *node, ir_type *type, int n, const ir_type *types);

ir_node *ir_parameter(ir_graph *graph, ir_type type, const char *name);            /* the next index */
void ir_set_results(ir_graph *graph, int n, ir_node *const *results, const char *const *names);   /* names may be NULL */

/* Shorthands for rules and passes. Operands of binary ops have one shape. */
ir_node *ir_unary(ir_graph *graph, ir_op op, ir_node *x);
ir_node *ir_binary(ir_graph *graph, ir_op op, ir_node *lhs, ir_node *rhs);
ir_node *ir_select(ir_graph *graph, ir_node *condition, ir_node *yes, ir_node *no);
ir_node *ir_constant(ir_graph *graph, ir_type type, double value);
ir_node *ir_constant_like(ir_graph *graph, const ir_node *x, double value);
ir_node *ir_cast(ir_graph *graph, ir_node *x, ir_dtype dtype);                     /* x itself where it has that dtype */
ir_node *ir_reshape(ir_graph *graph, ir_node *x, ir_type type);                    /* x itself where nothing changes */
ir_node *ir_transpose(ir_graph *graph, ir_node *x, const int *perm);
ir_node *ir_swap_last(ir_graph *graph, ir_node *x);                                /* transposes the last two axes */
ir_node *ir_broadcast(ir_graph *graph, ir_node *x, ir_type type, const int *axes); /* axes: x->type.rank of them */
ir_node *ir_broadcast_scalar(ir_graph *graph, ir_node *scalar, ir_type shape);     /* the shape's dims, the scalar's dtype */
ir_node *ir_broadcast_back(ir_graph *graph, ir_node *reduced, ir_type shape, int n_axes, const int *axes);   /* undoes a reduction over axes */
ir_node *ir_reduce(ir_graph *graph, ir_op op, ir_node *x, int n_axes, const int *axes);
ir_node *ir_reduce_last(ir_graph *graph, ir_op op, ir_node *x);
ir_node *ir_matmul(ir_graph *graph, ir_node *lhs, ir_node *rhs, ir_dtype result);
ir_node *ir_slice(ir_graph *graph, ir_node *x, const int64_t *start, ir_type type);
ir_node *ir_iota(ir_graph *graph, ir_type type, int axis);
ir_node *ir_result(ir_graph *graph, ir_node *tuple, int index);

/* Users of old, and graph results, read new from now on; old stays, for dce. */
void ir_redirect(ir_graph *graph, ir_node *old, ir_node *new_node);
void ir_remove(ir_graph *graph, ir_node *node);                                    /* no one may read it any more */
/* Copies node into graph, its operands replaced by args (of the same types, or types are inferred anew). Bodies are shared. */
ir_node *ir_clone_node(ir_graph *graph, const ir_node *node, ir_node *const *args);
/* Adds the nodes of body to graph with its parameters replaced by args; results[i] becomes the node of body's result i. */
void ir_inline(ir_graph *graph, const ir_graph *body, ir_node *const *args, ir_node **results);
ir_graph *ir_graph_clone(const ir_graph *graph);                                    /* deep, into an arena of its own */
void ir_renumber(ir_graph *graph);
int ir_count_nodes(const ir_graph *graph);                                         /* bodies included */

/* -- hash.c ----------------------------------------------------------------------------------------------------------- */

static inline uint64_t ir_mixed(uint64_t hash, uint64_t word) { return (hash ^ word) * 0x9e3779b97f4a7c15 + (hash >> 29); }
uint64_t ir_graph_hash(const ir_graph *graph);                                     /* equal for graphs with equal text but for places */
bool ir_attr_equal(ir_op op, const ir_attr *a, const ir_attr *b, const ir_type *type);   /* in what the op has; bodies by their hash */

/* -- snapshot.c ------------------------------------------------------------------------------------------------------- */

/* The graph as it is now, and as it was then: what passes do to it is undone. It must live as long as the snapshot. */
typedef struct ir_snapshot ir_snapshot;
ir_snapshot *ir_snapshot_take(ir_graph *graph);
void ir_snapshot_restore(const ir_snapshot *snapshot);
void ir_snapshot_free(ir_snapshot *snapshot);                                      /* NULL is fine */

/* -- print.c, parse.c ------------------------------------------------------------------------------------------------- */

/* graph train_step(%0: f32[64,784] "x", %1: f32[784,256] "params.w1") {
 *   %2: f32[64,256] = matmul %0, %1                  ; mlp.c:14
 *   %3: f32[64] = reduce_sum %2 {axes=[1]}
 *   return %3 "loss", %1 "params.w1" -> %1           (the second result takes over the memory of parameter %1)
 * }
 * Bodies are printed in braces after the attributes, indented. Numbers are printed so that they parse back to the same bits. */
void ir_print(base_text *text, const ir_graph *graph);
char *ir_to_text(const ir_graph *graph);                                            /* the caller frees it */
/* NULL on a mistake in the text: "FILE:LINE: ..." in base_error. Never reads beyond len bytes; refuses what does not verify. */
ir_graph *ir_parse(const char *file, const char *text, size_t len);
/* In quotes, with backslashes before what ends it, and control characters by number. */
void ir_print_quoted(base_text *out, const char *text);

/* -- verify.c --------------------------------------------------------------------------------------------------------- */

/* Order, arities, types by the shape rules, parameters, results, donations, bodies. False and why. */
bool ir_verify(const ir_graph *graph, base_text *why);

/* -- gradient.c ------------------------------------------------------------------------------------------------------- */

/* Adds to graph the gradients of the scalar loss for each of wrt: into[i] is d loss / d wrt[i], of wrt[i]'s type; zeros where
 * the loss does not depend on it. Only what lies between wrt and the loss is differentiated. */
void ir_gradient(ir_graph *graph, ir_node *loss, int n, ir_node *const *wrt, ir_node **into);

/* What a rule of vjp_rules.c sees. */
struct ir_vjp {
    ir_graph *graph;
    ir_node *node;
    ir_node *dy;                      /* cotangent of the result; of a tuple NULL, see dys */
    ir_node **dys;                    /* of a tuple: by result, NULL where none has arrived */
    ir_node **dx;                     /* to be set: the cotangent of each operand, or left NULL for zero */
    const bool *wanted;               /* by operand: whether its cotangent is of use */
};

/* -- passes ----------------------------------------------------------------------------------------------------------- */

/* A pass changes the graph (bodies included, by the runner), and may leave a note for the trace: "41 merged". */
typedef struct { base_text note; bool (*keep_composite)(const ir_node *node); } ir_pass_context;
typedef void ir_pass_function(ir_graph *graph, ir_pass_context *context);
/* How much of the logits linear_cross_entropy has at a time; tests make it small. */
extern int64_t ir_logits_bytes;
ir_pass_function ir_pass_decompose, ir_pass_simplify, ir_pass_cse, ir_pass_dce, ir_pass_merge_loss, ir_pass_narrow;

typedef struct { const char *name; double ms; int nodes_before, nodes_after; char *note; } ir_pass_report;
typedef struct {
    bool verify;                                      /* between passes */
    const char *dump_dir;                             /* NULL, or where NN-pass.rax go */
    FILE *out;                                        /* NULL, or where all of them are printed */
    bool (*keep_composite)(const ir_node *node);      /* composites for which the backend has a kernel; NULL: none */
    int n_reports;                                    /* filled in: a report a pass */
    ir_pass_report *reports;                          /* freed by ir_pass_reports_free */
} ir_pass_options;
void ir_run_passes(ir_graph *graph, ir_pass_options *options);
void ir_pass_reports_free(ir_pass_options *options);

/* -- interpret.c ------------------------------------------------------------------------------------------------------ */

/* A dense row-major array. data is borrowed or owned as its maker says. */
struct ir_array { ir_type type; void *data; };

/* Runs the graph plainly, node by node, freeing what is dead. params[i] has parameter i's type; results[i].data has room for
 * result i. False where memory is refused. bf16 is rounded where the graph says so; a sum of a product is f32 (f64 for f64). */
bool ir_interpret(const ir_graph *graph, const ir_array *params, ir_array *results);

/* The same for a graph that runs often: what ir_interpret does before the first node is done once. The program has a copy of the graph. */
typedef struct ir_program ir_program;
ir_program *ir_prepare(const ir_graph *graph);
bool ir_run(ir_program *program, const ir_array *params, ir_array *results);
void ir_program_free(ir_program *program);                                         /* NULL is fine */

/* Philox4x32-10 (Salmon et al., SC11): four words from a counter and a key. */
void ir_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t word[4]);

#endif
