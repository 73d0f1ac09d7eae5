/* The kernel list: what a program does, in the five shapes of kernel that a backend knows. It is the interface between the
 * compiler's middle and its backends: both take the same list.
 *
 * In: a graph of primitive ops (and composites that the backend keeps). Out: kernels in order, the buffers they read and
 * write, and where each buffer lies.
 *
 *   roles.c            what a node is to the lowering
 *   cluster.c          which nodes are computed together
 *   choose_stored.c    which values get memory at all
 *   place.c            where a stored value lies: buffer, offset, strides; concatenations and transposes as views
 *   lower.c            the lowering as a whole, in rounds
 *   lower_loops.c, lower_eval.c             clusters to loops; a loop's expressions
 *   lower_anchors.c, lower_scan.c           contractions, attention, scatter; repeat
 *   lower_order.c      the order of kernels
 *   affine.c           index forms: what views are computed with
 *   loop_shape.c       what a loop consists of; merges its axes where every view allows it; numbers its expressions anew; sums in parts
 *   coalesce.c         drops copies by letting the producer write to the copy's place
 *   accumulate.c       adds sums to their accumulator at once
 *   narrow_stores.c    stores gradients of attention in the type that they are read in
 *   hoist.c            does before a repeat what is the same in all its iterations
 *   kernels.c          buffers, walking over kernels and views
 *   fuse_epilogues.c   loops that read a product join it
 *   store_derived.c    stores what a value's only reader makes of it in its place
 *   fold_casts.c       products cast their second operand themselves
 *   list_loops.c       independent loops of one form become one kernel
 *   split_products.c   and leave it again where a backend's products take less
 *   memory_plan.c      live ranges, offsets in one arena, what the program needs
 *   print_kernels.c, parse_kernels.c        the text form, both ways
 *   verify_kernels.c   what must hold of a list
 *   run_kernels.c, run_attention.c          the kernel list's own interpreter: an oracle for backends
 *   kernel_cost.c      flops and bytes
 *
 * A kernel reads and writes views of buffers. Order in the list is order of execution; a kernel sees all that earlier ones
 * wrote. Within a kernel nothing is ordered but what is stated here. */
#ifndef IR_KERNELS_H
#define IR_KERNELS_H

#include "ir/backend.h"

/* A kernel's index space may have more axes than a tensor: reshapes split axes. A view's dynamic terms: a start an axis, and some indices besides. */
enum { KL_MAX_AXES = 12, KL_MAX_DYNAMIC = 12, KL_MAX_ARGS = 3 };

/* -- buffers ---------------------------------------------------------------------------------------------------------- */

typedef enum {
    KL_PARAM,       /* parameter `index` of the graph; read only, unless a result that was donated its memory aliases it */
    KL_RESULT,      /* result `index`; where donated >= 0 its memory is that of parameter `donated` */
    KL_CONST,       /* `data`, of the program */
    KL_TEMP,        /* in the arena */
    KL_MOVING       /* inside repeat `repeat`: elements offset + iteration * step of buffer `base` and on */
} kl_buffer_kind;

typedef struct {
    kl_buffer_kind kind;
    ir_dtype dtype;
    int64_t count;              /* elements */
    int index;
    int donated;
    const void *data;
    int base, repeat;           /* KL_MOVING: base is never itself moving in the same repeat, but may be in an outer one */
    int64_t offset, step;
    int64_t arena_offset;       /* KL_TEMP: bytes, by the memory plan */
    const char *name;           /* of the parameter or result, or NULL */
    ir_place place;             /* the user's line that made the value */
} kl_buffer;

/* -- expressions ------------------------------------------------------------------------------------------------------ */

/* Where in a buffer an element of the kernel's index space lies: offset + sum over axes of index * stride, plus for each dynamic
 * term clamp(value of expression expr, 0, limit) * stride. All in elements. A dynamic expression is i32; it may vary along
 * any axis that its own operands vary along. */
typedef struct { int expr; int64_t stride, limit; } kl_dynamic;
typedef struct {
    int buffer;
    int64_t offset;
    int64_t stride[KL_MAX_AXES];
    int n_dynamic;
    kl_dynamic *dynamic;
} kl_view;

typedef enum {
    KL_LOAD,        /* the element of view */
    KL_VALUE,       /* value, of dtype */
    KL_INDEX,       /* i32: view.offset + sum of index * view.stride (view.buffer is -1) */
    KL_OP,          /* an elementwise op of the op table on args; dtype is the result's */
    KL_REDUCE,      /* op reduce_sum, reduce_max or argmax of args[0] over all inner axes; argmax: i32, row-major over them */
    KL_RANDOM,      /* random_bits at element view.offset + sum of index * view.stride (64 bits): args are loads or values of
                       seed low, seed high, counter; site is value's */
    KL_PRODUCT      /* in a contraction's epilogue: the sum over K, in the accumulator's dtype */
} kl_expr_kind;

/* Operands come before users. row: the value does not vary along inner axes. Arithmetic on bf16 is done in f32 and rounded. */
typedef struct {
    kl_expr_kind kind;
    ir_op op;
    ir_dtype dtype;
    int n_args, args[KL_MAX_ARGS];
    kl_view view;
    double value;
    uint32_t site;
    bool row;
} kl_expr;

typedef enum {
    KL_STORE,       /* at every index; once a row where the strides along the inner axes are 0, which only a row value may have */
    KL_SUM_OUTER,   /* the sum over all outer axes, for each inner index; strides along outer axes are 0. Added up by blocks of
                       rows whose number depends on the extents alone, and the blocks in order. */
    KL_SUM_ALL      /* the sum over all axes (of a row value: over the outer axes), likewise by blocks; all strides are 0 */
} kl_output_kind;

typedef struct {
    kl_output_kind kind;
    int expr;                   /* of the buffer's dtype; sums are made in f32 (f64 for f64) */
    kl_view view;
    bool accumulate;            /* += what is there */
} kl_output;

/* -- kernels ---------------------------------------------------------------------------------------------------------- */

/* A loop: expressions over an index space of n_axes, of which the first n_outer are outer: their index is a row. Reductions
 * run over the inner axes of a row. Rows are independent. Without KL_REDUCE and KL_SUM_OUTER the split means nothing and the
 * backend may cut anywhere. An output may alias a load whose view is the same, element by element. Where an extent is 0 there
 * is no row either: nothing is stored, and sums are 0. */
typedef struct {
    int n_axes, n_outer;
    int64_t extent[KL_MAX_AXES];
    int n_exprs;
    kl_expr *exprs;
    int n_outputs;
    kl_output *outputs;
} kl_loop;

/* Loops of one form (kl_same_form) over other buffers, all at once: the update of every parameter, a sum over every gradient. No loop
 * touches memory that another one writes. What may differ from loop to loop is what a backend would make an argument of its code:
 * extents; of a view the buffer, the offset, and strides, though 0 stays 0 and 1 stays 1; the number of a KL_VALUE; a site; the stride and
 * limit of a dynamic term. loops[0] is as good as any other to generate code from. */
typedef struct {
    int n;                      /* at least 1 */
    kl_loop *loops;
} kl_list;

/* C[batch,m,n] = epilogue(sum over k of a[batch,m,k] * b[batch,k,n]), k ascending. Operands have one dtype (f32, f64, bf16);
 * the sum is f32, f64 for f64.
 *   a: expressions over axes batch..., M, K; n_outer is their number less one. Its only output (buffer -1) is the operand.
 *   b: over batch..., K, N, likewise.
 *   c: over batch..., M, N; n_outer is their number less one: a row is a row of C. KL_PRODUCT stands for the sum.
 * None of them has a KL_REDUCE that an operand or c needs. Where legalise has made it so an operand's loop has outputs behind the first: sums of its elements.
 * A plain product has one KL_LOAD in a and in b, and one KL_PRODUCT (and a cast if need be) in c. */
typedef struct {
    int n_batch;
    int64_t batch[KL_MAX_AXES];
    int64_t m, n, k;
    ir_dtype dtype;             /* of the operands */
    kl_loop a, b, c;
    int algorithm;              /* set by legalise: the backend's own number */
} kl_contraction;

/* Attention and its gradient as the op table says. Views over axes batch, head, row, column; of lse over batch, head, row. */
typedef struct {
    bool backward;
    int64_t batch, heads, rows, keys, head_dim;         /* B, H, T, S, D */
    bool causal;
    double scale, dropout;
    uint32_t site;
    ir_dtype dtype;                                      /* of q, k, v, out */
    kl_view q, k, v, out, lse;                           /* forward: reads q, k, v; writes out, lse. backward reads all five, */
    kl_view dout, dlse, dq, dk, dv;                      /* and dout, dlse (dlse.buffer -1: zeros); writes dq, dk, dv */
    ir_dtype grad_dtype;                                 /* of dq, dk, dv */
    kl_view seed, counter;                               /* with dropout */
} kl_attention;

/* target[pre, index(p), post] += updates[pre, p, post], p in order; an index out of range is moved to the nearest in range.
 * Views: target over axes pre, row, post; indices over p; updates over pre, p, post. */
typedef struct {
    int64_t pre, positions, rows, post;
    ir_dtype dtype;
    kl_view target, indices, updates;
} kl_scatter;

typedef struct kl_kernel kl_kernel;

/* The body, count times; iteration i has number i, or count-1-i where reverse: that is what moves its KL_MOVING buffers. */
typedef struct {
    int id;
    int64_t count;
    bool reverse;
    int n_body;
    kl_kernel **body;
} kl_repeat;

typedef enum { KL_LOOP, KL_LIST, KL_CONTRACTION, KL_ATTENTION, KL_SCATTER, KL_REPEAT } kl_kind;

struct kl_kernel {
    kl_kind kind;
    int id;                     /* position in the program, counting bodies, from 0 */
    const char *name;           /* from its ops: "layer_norm+add"; for people, not unique */
    ir_place place;
    union {
        kl_loop loop;
        kl_list list;
        kl_contraction contraction;
        kl_attention *attention;    /* apart: three times as large as all the others, and few */
        kl_scatter scatter;
        kl_repeat repeat;
    };
};

/* -- programs --------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t params_bytes, results_bytes, consts_bytes;      /* results: those with memory of their own */
    int64_t temps_bytes;                                     /* the arena without reuse */
    int64_t live_bytes;                                      /* the most that lives at once: no arena is smaller */
    int64_t workspace_bytes;                                 /* stated by legalise: the last bytes of the arena */
    int64_t arena_bytes;                                     /* what is taken */
    int peak_kernel;                                         /* where live_bytes live */
    int alignment;                                           /* of what lies in the arena, as the backend wishes before it is planned; 0: 64 */
} kl_memory;

typedef struct {
    base_arena *arena;
    const char *name;
    int n_buffers, cap_buffers;
    kl_buffer *buffers;
    int n_params, n_results;                                 /* of the graph */
    int n_kernels;                                           /* at the top level */
    kl_kernel **kernels;
    int n_ids;                                               /* kernels in all, bodies included */
    int n_repeats;
    kl_memory memory;
} kl_program;

/* -- lower.c ---------------------------------------------------------------------------------------------------------- */

/* Lowers a graph that has been through the passes. The program has an arena of its own and keeps nothing of the graph. */
kl_program *kl_lower(const ir_graph *graph);
void kl_program_free(kl_program *program);

/* For passes over the list, and for whoever makes one by hand. */
int kl_add_buffer(kl_program *program, kl_buffer buffer);
void kl_renumber(kl_program *program);                       /* kernel ids */
void kl_tidy(kl_program *program);                           /* drops buffers that no kernel touches, and numbers all anew */
/* A list in the making. */
typedef struct { base_arena *arena; kl_kernel **at; int n, cap; } kl_sequence;
void kl_append(kl_sequence *into, kl_kernel *kernel);        /* nothing where kernel is NULL */
/* Calls visit for every view that the kernel reads or writes (not for those of a repeat's body). */
typedef struct { kl_view *view; bool write, accumulate; ir_dtype dtype; kl_loop *loop; } kl_access;
void kl_visit(kl_kernel *kernel, void (*visit)(void *context, const kl_access *access), void *context);
void kl_visit_all(kl_kernel *kernel, void (*visit)(void *context, const kl_access *access), void *context);     /* for those too */
/* By buffer, how many views in the whole program read it and write it, through itself or through what moves along it. In the program's arena. */
typedef struct { const kl_program *program; int *reads, *writes; } kl_uses;
kl_uses kl_count_uses(kl_program *program);
/* The id of the last kernel in a repeat, or the kernel's own. */
int kl_last_id(const kl_kernel *kernel);
/* Whether both name the same element at every index; never where there are dynamic terms. Buffers are not compared. */
bool kl_same_view(const kl_view *a, const kl_view *b);
/* Whether the view runs through count elements in the order of the loop's indices. */
bool kl_is_row_major(const kl_loop *loop, const kl_view *view, int64_t count);
int64_t kl_matrices(const kl_contraction *c);                /* products in the batch */
/* Whether buffers, neither of them moving, are one memory: one buffer, or a parameter and the result that has its place. */
bool kl_share_memory(const kl_program *program, int a, int b);
int64_t kl_bytes(const kl_buffer *buffer);
/* The buffer under a chain of KL_MOVING; whether one of the chain moves in that repeat. */
int kl_root_buffer(const kl_program *program, int buffer);
bool kl_moves_with(const kl_program *program, int buffer, int repeat);
/* What memory a buffer is in, by the number of one buffer of that memory: a result that has a parameter's place is the parameter. */
int kl_memory_of(const kl_program *program, int buffer);
int *kl_memories(const kl_program *program);                 /* of every buffer, in one walk; the caller frees it */
/* Flops and bytes of one execution, as the compile trace tells them: 2 M N K a contraction; elements read and written. */
void kl_cost(const kl_program *program, const kl_kernel *kernel, double *flops, double *bytes);
/* What an elementwise op takes, about, where an addition of f32 takes a half: for backends to share work out by. */
double kl_op_cost(ir_op op, ir_dtype dtype);
/* A profile of all kernels by id, but for how each was done and what it took; texts are the list's and the arena's. */
ir_profile *kl_profile_new(const kl_program *program, base_arena *arena);

/* -- loop_shape.c, coalesce.c, accumulate.c, narrow_stores.c, hoist.c -------------------------------------------------- */

int64_t kl_rows(const kl_loop *loop);                        /* indices of the outer axes */
int64_t kl_inner(const kl_loop *loop);                       /* and of the others */
int kl_loops_of(kl_kernel *kernel, kl_loop **loops);         /* the loops of a loop or of a list, which have one form; none of another kernel */
bool kl_has_expr(const kl_loop *loop, kl_expr_kind kind);
int kl_count_outputs(const kl_loop *loop, kl_output_kind kind);
/* Whether the output is a row value that is stored, or counts in a sum, once a row, and not at each of a row's elements. */
bool kl_is_once_a_row(const kl_loop *loop, const kl_output *output);
/* With expressions and outputs of its own, and room for more expressions. What they point to is shared. */
kl_loop kl_copy_loop(base_arena *arena, const kl_loop *loop, int more_exprs);
/* Marks an expression and all that it is computed from; what the outputs, and their places, are computed from. */
void kl_need_expr(const kl_loop *loop, int which, bool *needed);
void kl_need_outputs(const kl_loop *loop, bool *needed);
/* Of the loop's first so many expressions, and of its outputs, whoever reads expression `from` reads `to`. */
void kl_redirect_expr(base_arena *arena, kl_loop *loop, int readers, int from, int to);
/* Numbers the expressions anew: those that no output needs go, and operands come before users, wherever they stood. */
void kl_tidy_exprs(base_arena *arena, kl_loop *loop);
void kl_merge_axes(kl_loop *loop);
/* For backends that make a loop's sums in parts: the loop that adds up, in order, what `parts` parts have left of its outputs of one kind,
 * over outer axes or over everything. By output, offset bytes into workspace (buffer program->n_buffers), lie the parts side by side, each
 * as long as the sum, in f32 where it is bf16. No outputs: there is none of that kind. */
kl_loop kl_finish_sums(const kl_program *program, base_arena *arena, const kl_loop *loop, kl_output_kind kind, const int64_t *offset, int64_t parts);
void kl_coalesce(kl_program *program);
void kl_accumulate(kl_program *program);
void kl_narrow_stores(kl_program *program, bool sums);        /* sums: of rounded values, too */
void kl_hoist(kl_program *program);

/* -- fuse_epilogues.c -------------------------------------------------------------------------------------------------- */

/* For backends whose products have epilogues: before memory is planned. */
void kl_fuse_epilogues(kl_program *program);

/* -- store_derived.c --------------------------------------------------------------------------------------------------- */

/* For backends whose products have epilogues of any expression: after kl_fuse_epilogues. */
void kl_store_derived(kl_program *program);

/* -- fold_casts.c ------------------------------------------------------------------------------------------------------ */

/* For backends whose products pack the second operand in bf16, whatever it is in memory: before memory is planned. */
void kl_fold_casts(kl_program *program);

/* -- list_loops.c ------------------------------------------------------------------------------------------------------ */

/* For backends to which a kernel less is worth something: after legalise, before memory is planned. early: bytes of a temporary that may be
 * made earlier for it, as long as no more lives at once. */
void kl_list_loops(kl_program *program, int64_t early);
/* Whether both are the same code, given other arguments: see kl_list. */
bool kl_same_form(const kl_loop *a, const kl_loop *b);

/* -- split_products.c -------------------------------------------------------------------------------------------------- */

/* Makes an operand a row-major matrix of dtype in memory, or of the epilogue a plain product to such a one; returns the loop that is to stand
 * before, or after, the contraction. */
kl_kernel *kl_split_operand(kl_program *program, kl_kernel *kernel, bool is_b, ir_dtype dtype);
kl_kernel *kl_split_epilogue(kl_program *program, kl_kernel *kernel);
/* Calls rewrite for every contraction, bodies of repeats included; it appends what stands in the contraction's place, itself
 * most of the time. Kernels of other kinds stay. */
typedef void kl_rewrite(void *context, kl_program *program, kl_kernel *product, kl_sequence *into);
void kl_rewrite_products(kl_program *program, kl_rewrite *rewrite, void *context);

/* -- memory_plan.c ---------------------------------------------------------------------------------------------------- */

/* Sets arena_offset of every KL_TEMP (64-byte aligned, or more where memory.alignment says so) and program->memory. Buffers whose lives do not overlap share memory;
 * a loop's output may take the place of an input that dies there and is read by the same view. A buffer that lives into a
 * repeat lives through it. Without reuse (for tests) every buffer has its own place. */
void kl_plan_memory(kl_program *program, bool reuse);
/* By buffer under its moving views: the ids of the first and last kernel during which it holds something; and of the kernels with
 * which it begins and ends to live, repeats where it lives through them. last is -1 where no kernel touches it. */
typedef struct { int first, last, born, done; } kl_life;
void kl_lives(const kl_program *program, kl_life *lives);

/* -- print_kernels.c, parse_kernels.c ---------------------------------------------------------------------------------- */

void kl_print(base_text *text, const kl_program *program);
void kl_print_memory(base_text *text, const kl_program *program);        /* the memory table */
kl_program *kl_parse(const char *file, const char *text, size_t len);    /* NULL and base_error on a mistake */
/* What must hold: ranges of every view inside its buffer for all indices, dtypes, order of expressions, row flags. */
bool kl_verify(const kl_program *program, base_text *why);

/* -- run_kernels.c ---------------------------------------------------------------------------------------------------- */

/* Runs the list plainly; params and results by index, results that were donated memory point to it. Follows arena_offset, so
 * that a wrong plan shows. False where memory is refused. */
bool kl_run(const kl_program *program, void *const *params, void *const *results);

#endif
