/* Shared by the files that turn a graph into a kernel list: roles.c, cluster.c,
 * choose_stored.c, place.c, affine.c, lower*.c. Not for others. */
#ifndef IR_LOWER_H
#define IR_LOWER_H

#include "ir/kernels.h"

/* -- affine.c --------------------------------------------------------------------------------------------------------- */

/* An index as a function of a kernel's axes: offset + sum of axis index * coef, plus dynamic terms. Never negative. */
typedef struct {
    int64_t offset, coef[KL_MAX_AXES];
    int n_dynamic;
    kl_dynamic dynamic[KL_MAX_DYNAMIC];
} index_form;

typedef struct { int n_axes, n_outer; int64_t extent[KL_MAX_AXES]; } index_space;

/* What may come of a question about forms. REFINE: the answer would be affine if axis `axis` were two, the inner one of `inner`. */
typedef enum { FORM_OK, FORM_REFINE, FORM_NONE } form_answer;
typedef struct { int axis; int64_t inner; } form_refinement;

index_form kl_form_constant(int64_t value);
index_form kl_form_axis(int axis);
/* into += form * factor; false where there are too many dynamic terms. */
bool kl_form_add(index_form *into, const index_form *form, int64_t factor, int n_axes);
/* The row-major linear index of coordinates, of dims dim. */
bool kl_form_merge(const index_form *coordinate, const int64_t *dim, int rank, int n_axes, index_form *linear);
/* The coordinates of a row-major linear index below the product of dims. */
form_answer kl_form_split(const index_space *space, const index_form *linear, const int64_t *dim, int rank, index_form *coordinate,
                          form_refinement *refine);
/* Row-major over the axes [from, to) of the space. */
index_form kl_form_linear(const index_space *space, int from, int to);
bool kl_space_refine(index_space *space, const form_refinement *refine);      /* false where there are too many axes */

/* -- what is known of a node; node->mark is its index in lower_state.info ------------------------------------------------ */

typedef struct { int buffer; int64_t offset, stride[IR_MAX_RANK]; bool placed, dense; } node_place;

typedef struct {
    ir_node *node;
    int cluster;             /* of a node that a loop computes; -1 of others */
    bool stored;             /* has memory: parameters, what kernels other than loops make, and what crosses between kernels */
    bool keep_dense;         /* its memory must be row-major */
    bool never_inline;       /* a loop must load it, whatever its cost */
    node_place place;
    int n_users;
    ir_node *user;           /* the only one, where n_users is 1 */
    ir_node *results;        /* of a tuple: one that is picked from it; of that: the next one, or NULL */
    ir_node *transposer;     /* one of them that transposes the value, its last axis staying last */
} node_info;

/* The nodes of a cluster are computed by one loop. Its full values have `total` elements; where there are reductions over
 * inner axes, or sums over outer ones, a row has `inner`, and row values have total / inner; 0: no rows yet. */
typedef struct {
    int id, first, last;     /* the least and the greatest mark of its nodes */
    int64_t total, inner;
    int n_nodes, cap_nodes;
    ir_node **nodes;
    bool alone;              /* a reduction over middle axes, or what lowering asks to be apart: nothing joins it */
    int n_cuts;              /* ascending products of trailing dims of all shapes: each divides the next */
    int64_t cuts[2 * KL_MAX_AXES];
} node_cluster;

typedef struct lower_state {
    const ir_graph *graph;
    base_arena *arena;       /* scratch of this round of the lowering */
    int n_infos;
    node_info *infos;
    int n_clusters;          /* of these, NULL where merged into another */
    node_cluster **clusters;
} lower_state;

#define INFO(state, n) (&(state)->infos[(n)->mark])

/* -- roles.c ---------------------------------------------------------------------------------------------------------- */

/* What a node is to the lowering. */
typedef enum {
    ROLE_LEAF,        /* parameter, literal: has memory; constant, iota: an expression without memory */
    ROLE_VIEW,        /* reshape, transpose, broadcast, slice: the same elements elsewhere */
    ROLE_LOOP,        /* elementwise, reductions, random, gather, dynamic_slice: expressions */
    ROLE_ANCHOR       /* a kernel, or several, of its own */
} node_role;
node_role kl_role_of(const ir_node *node);
bool kl_has_memory_of_its_own(const ir_node *node);          /* parameter, literal, anchors and their results */
bool kl_is_free(const ir_node *node);                         /* constant, iota */
ir_node *kl_view_base(const lower_state *state, const ir_node *node);   /* what is under a chain of views that are not stored */

typedef enum { REDUCE_TRAILING, REDUCE_LEADING, REDUCE_EVERYTHING, REDUCE_MIDDLE } reduce_kind;
reduce_kind kl_kind_of_reduce(const ir_node *node);
bool kl_is_reduce(const ir_node *node);
bool kl_is_outer_sum(const ir_node *node);                    /* its value exists only after its kernel */

/* -- cluster.c, choose_stored.c --------------------------------------------------------------------------------------- */

void kl_cluster(lower_state *state);                          /* fills clusters */
void kl_choose_stored(lower_state *state);                    /* and then stored, of every node that needs memory */

/* -- place.c ---------------------------------------------------------------------------------------------------------- */

/* Gives each stored node that has none yet a place, in buffers added to program. */
void kl_place(lower_state *state, kl_program *program);
bool kl_is_dense(const ir_type *type, const int64_t *stride);     /* row-major, but for axes of one */
/* Where a node lies that is stored, or a view of what is. False where it is neither, or its axes have no strides. */
bool kl_place_of_view(lower_state *state, const ir_node *node, node_place *place);
/* The strides of a value of type `from` that is read as type `to`, both of one linear index, where `to` has the place `as`.
 * False where the axes do not go together. */
bool kl_place_through_reshape(const ir_type *from, const ir_type *to, const node_place *as, node_place *place);

/* -- lower.c ---------------------------------------------------------------------------------------------------------- */

/* A step of the lowering: kernels that stay together, in order. Units are ordered by what they read, then by key. */
typedef struct { kl_sequence kernels; int64_t key; } lower_unit;
enum { UNIT_FIRST = -1, UNIT_LAST = INT32_MAX };          /* the last may overwrite what the others read */

/* What a loop in the making grows in; one is made at a time, and the next takes the room over. */
typedef struct { const ir_node *node; int form, expr; } evaluated;      /* form: the first word of its forms */
typedef struct {
    kl_expr *exprs;
    kl_output *outputs;
    evaluated *done;
    int64_t *forms;               /* of a form: its offset, its coefs along the loop's axes, how many dynamic terms, and three words each */
    int cap_exprs, cap_outputs, cap_done, cap_forms;
} loop_room;

typedef struct {
    kl_program *program;
    base_arena *scratch;
    lower_state *state;
    int n_units, cap_units;
    lower_unit *units;
    bool again, progress;         /* a node was found that must be stored; something new is known of it */
    bool *forced, *forced_dense, *forced_apart;       /* by mark, over the rounds */
    loop_room room;
} lowering;

lower_unit *kl_new_unit(lowering *l, int64_t key);
kl_kernel *kl_new_kernel(lowering *l, kl_sequence *list, kl_kind kind, const ir_node *node, const char *name);
node_place kl_new_place(lowering *l, const ir_node *node);                 /* row-major, in a buffer of its own */
/* In the next round node has memory of its own, row-major where dense; what has that already and is still asked for is computed apart
 * from all others. */
void kl_must_store(lowering *l, const ir_node *node, bool dense);
void kl_force(lowering *l, bool *flag);
/* Adds the kernels of a graph, whose parameters have these places, to out. finish adds the units that take its results to where they belong. */
void kl_lower_graph(kl_program *program, const ir_graph *graph, const node_place *params, base_arena *scratch,
                    void (*finish)(lowering *l, void *context), void *context, kl_sequence *out);

/* -- lower_eval.c ----------------------------------------------------------------------------------------------------- */

/* A loop in the making. */
typedef struct {
    lowering *l;
    index_space space;
    int cluster;                  /* whose stored nodes are computed here; -1 none */
    const ir_node *root;          /* computed here though it is stored; NULL: none */
    kl_loop loop;                 /* its expressions and outputs are in the lowering's room until the loop is finished */
    int n_done, n_forms;
    bool failed, refine;          /* nothing comes of this loop; but may with another axis */
    form_refinement how;
    const ir_node *behind;        /* of refine: what is read at forms that need the axis */
} loop_builder;

/* The expression of node's element at `where`; -1 where the builder has failed. */
int kl_eval(loop_builder *b, ir_node *node, const index_form *where);
int kl_eval_failed(loop_builder *b, ir_node *node, bool dense);            /* node must be stored; -1 */
int kl_eval_refined(loop_builder *b, const ir_node *behind, const form_refinement *how);       /* -1 */
bool kl_is_computed_here(const loop_builder *b, const ir_node *node);
int kl_add_op(loop_builder *b, ir_op op, ir_dtype dtype, int n, const int *args);
int kl_add_value(loop_builder *b, ir_dtype dtype, double value);
/* A dynamic term for a form: the i32 scalar `start`, kept within [0, limit]. */
bool kl_add_dynamic(loop_builder *b, index_form *form, ir_node *start, const index_form *where, int64_t limit);
/* The view of a placed value at the forms of its axes; false where there are too many dynamic terms. */
bool kl_view_at(kl_program *program, const node_place *place, const ir_type *type, const index_form *where, int n_axes, kl_view *view);

/* -- lower_loops.c ---------------------------------------------------------------------------------------------------- */

void kl_lower_cluster(lowering *l, const node_cluster *cluster);
/* A loop that writes node, computed in place where it is not stored or is `root`, to `place` of node's type. */
void kl_copy_to(lowering *l, kl_sequence *list, ir_node *node, const node_place *place, bool root, const char *name);
void kl_fill(lowering *l, kl_sequence *list, ir_node *node, const node_place *place, double value);
void kl_lower_update_slice(lowering *l, kl_sequence *list, ir_node *node);

/* -- lower_anchors.c, lower_scan.c, lower_order.c --------------------------------------------------------------------- */

void kl_lower_anchor(lowering *l, kl_sequence *list, ir_node *node);
/* An operand as it lies, through any views. Where that is no place it is stored in the next round. */
bool kl_operand_place(lowering *l, ir_node *node, node_place *place);
/* The place of a tuple's result; a result that nobody reads gets memory all the same. */
kl_view kl_result_view(lowering *l, ir_node *tuple, int index);
void kl_lower_scan(lowering *l, kl_sequence *list, ir_node *node);
void kl_order_units(lowering *l, kl_sequence *out);

/* Units, the one of the least key on top. at: room for as many as are in it at a time. */
typedef struct { const int64_t *key; int *at, n; } unit_heap;
void kl_heap_push(unit_heap *heap, int unit);
int kl_heap_pop(unit_heap *heap);

#endif
