/* From a graph to a kernel list.
 *
 * cluster.c has said which nodes are computed together and which are stored, place.c where those lie. What is left is to write
 * each cluster as a loop and each anchor (matmul, attention, scatter, scan, concatenation...) as its kernels, and to put
 * them in an order.
 *
 * A loop's expressions are found from its outputs backwards: eval(node, where) gives the expression of node's element at the
 * index forms `where`, which view ops rewrite on the way down to a load. Where a reshape cuts across the loop's axes, an axis
 * is split in two and the loop is built again; where that cannot help, the node is given memory (stored), and the whole graph is lowered
 * again: each round stores at least one node more, so that the rounds end.
 *
 * Graph results and a scan's carries are first values of their own and then copied to where they belong; coalesce.c drops the copies. */
#include "ir/lower.h"

#include <limits.h>
#include <string.h>

typedef struct { kl_kernel **at; int n, cap; } kernel_list;

/* A step of the lowering: kernels that stay together, in order. */
typedef struct { kernel_list kernels; int64_t key; } unit;
enum { LAST = INT_MAX };          /* the key of the unit that ends the list: it may overwrite what the others read */

typedef struct {
    kl_program *program;
    base_arena *scratch;
    lower_state *state;
    int n_units, cap_units;
    unit *units;
    bool again, progress;         /* a node was found that must be stored; something new is known of it */
    bool *forced, *forced_dense, *forced_apart;       /* by mark, over the rounds */
} lowering;

static void lower_graph(kl_program *program, const ir_graph *graph, const node_place *params, base_arena *scratch,
                        void (*finish)(lowering *l, void *context), void *context, kernel_list *out);

/* -- units ------------------------------------------------------------------------------------------------------------ */

static unit *new_unit(lowering *l, int64_t key)
{
    l->units = kl_grown(l->scratch, l->units, l->n_units, &l->cap_units, sizeof(unit));
    l->units[l->n_units] = (unit){ .key = key };
    return &l->units[l->n_units++];
}

static kl_kernel *new_kernel(lowering *l, kernel_list *list, kl_kind kind, const ir_node *node, const char *name)
{
    kl_kernel *kernel = ARENA_NEW(l->program->arena, kl_kernel, 1);
    kernel->kind = kind;
    kernel->name = base_arena_text(l->program->arena, "%s", name);
    if (node) {
        kernel->place = node->place;
        if (kernel->place.file)
            kernel->place.file = base_arena_text(l->program->arena, "%s", node->place.file);
    }
    list->at = kl_grown(l->program->arena, list->at, list->n, &list->cap, sizeof(*list->at));
    list->at[list->n++] = kernel;
    return kernel;
}

static void force(lowering *l, bool *flag)
{
    l->progress |= !*flag;
    *flag = true;
}

/* In the next round node has memory of its own, row-major where dense; what has that already and is still asked for is computed apart
 * from all others. */
static void must_store(lowering *l, const ir_node *node, bool dense)
{
    const node_info *info = INFO(l->state, node);
    bool not_enough = info->stored && (!dense || info->keep_dense);
    force(l, &l->forced[node->mark]);
    if (dense)
        force(l, &l->forced_dense[node->mark]);
    if (not_enough)
        force(l, &l->forced_apart[node->mark]);
    l->again = true;
}

/* -- loops ------------------------------------------------------------------------------------------------------------- */

typedef struct { const ir_node *node; index_form *where; int expr; } evaluated;

typedef struct {
    lowering *l;
    index_space space;
    int cluster;                       /* whose stored nodes are computed here; -1 none */
    const ir_node *root;               /* computed here though it is stored; NULL: none */
    kl_loop loop;
    int cap_exprs, cap_outputs;
    int n_done, cap_done;
    evaluated *done;
    bool failed, refine;
    form_refinement how;
    const ir_node *behind;             /* of refine: what is read at forms that need another axis */
} builder;

static bool expr_equal(const kl_expr *a, const kl_expr *b)
{
    if (a->kind != b->kind || a->op != b->op || a->dtype != b->dtype || a->n_args != b->n_args ||
        memcmp(&a->value, &b->value, sizeof a->value) || a->site != b->site ||
        memcmp(a->args, b->args, sizeof a->args) || a->view.buffer != b->view.buffer || a->view.offset != b->view.offset ||
        memcmp(a->view.stride, b->view.stride, sizeof a->view.stride) || a->view.n_dynamic != b->view.n_dynamic)
        return false;
    return !a->view.n_dynamic || !memcmp(a->view.dynamic, b->view.dynamic, sizeof(kl_dynamic) * (size_t)a->view.n_dynamic);
}

static int add_expr(builder *b, kl_expr expr)
{
    kl_loop *loop = &b->loop;
    expr.row = expr.kind != KL_PRODUCT;
    for (int i = 0; i < expr.n_args; i++)
        expr.row &= loop->exprs[expr.args[i]].row || expr.kind == KL_REDUCE;
    for (int i = b->space.n_outer; i < b->space.n_axes; i++)
        expr.row &= expr.view.stride[i] == 0;
    for (int i = 0; i < expr.view.n_dynamic; i++)
        expr.row &= loop->exprs[expr.view.dynamic[i].expr].row;
    for (int i = 0; i < loop->n_exprs; i++)
        if (expr_equal(&loop->exprs[i], &expr))
            return i;
    loop->exprs = kl_grown(b->l->program->arena, loop->exprs, loop->n_exprs, &b->cap_exprs, sizeof(kl_expr));
    loop->exprs[loop->n_exprs] = expr;
    return loop->n_exprs++;
}

static int add_op(builder *b, ir_op op, ir_dtype dtype, int n, const int *args)
{
    kl_expr expr = { .kind = KL_OP, .op = op, .dtype = dtype, .n_args = n, .view.buffer = -1 };
    for (int i = 0; i < n; i++)
        expr.args[i] = args[i];
    return add_expr(b, expr);
}

static int add_value(builder *b, ir_dtype dtype, double value)
{
    return add_expr(b, (kl_expr){ .kind = KL_VALUE, .dtype = dtype, .value = value, .view.buffer = -1 });
}

static bool view_from_form(kl_program *program, int buffer, const index_form *form, kl_view *view)
{
    *view = (kl_view){ .buffer = buffer, .offset = form->offset };
    memcpy(view->stride, form->coef, sizeof view->stride);
    if (form->n_dynamic) {
        view->n_dynamic = form->n_dynamic;
        view->dynamic = ARENA_NEW(program->arena, kl_dynamic, form->n_dynamic);
        memcpy(view->dynamic, form->dynamic, sizeof(kl_dynamic) * (size_t)form->n_dynamic);
    }
    return true;
}

/* The view of a placed value at the forms of its axes. */
static bool view_at(kl_program *program, const node_place *place, const ir_type *type, const index_form *where, int n_axes, kl_view *view)
{
    index_form at = form_constant(place->offset);
    for (int i = 0; i < type->rank; i++)
        if (!form_add(&at, &where[i], place->stride[i], n_axes))
            return false;
    return view_from_form(program, place->buffer, &at, view);
}

/* -- view ops rewrite forms -------------------------------------------------------------------------------------------- */

/* The forms of a view node's operand, from those of the view. */
static form_answer forms_below(const index_space *space, const ir_node *node, const index_form *where, index_form *below, form_refinement *how)
{
    const ir_type *type = &node->args[0]->type;
    if (node->op == OP_transpose) {
        for (int i = 0; i < type->rank; i++)
            below[node->attr.axes[i]] = where[i];
    } else if (node->op == OP_broadcast) {
        for (int i = 0; i < type->rank; i++)
            below[i] = type->dim[i] == 1 ? form_constant(0) : where[node->attr.axes[i]];
    } else if (node->op == OP_slice) {
        for (int i = 0; i < type->rank; i++) {
            below[i] = where[i];
            below[i].offset += node->attr.start[i];
        }
    } else if (node->op == OP_reshape) {
        index_form linear;
        if (!form_merge(where, node->type.dim, node->type.rank, space->n_axes, &linear))
            return FORM_NONE;
        return form_split(space, &linear, type->dim, type->rank, below, how);
    } else {                                              /* identities once gradients are taken */
        for (int i = 0; i < type->rank; i++)
            below[i] = where[i];
    }
    return FORM_OK;
}

/* -- eval -------------------------------------------------------------------------------------------------------------- */

static int eval(builder *b, ir_node *node, const index_form *where);

static int fail(builder *b, ir_node *node, bool dense)
{
    must_store(b->l, node, dense);
    b->failed = true;
    return -1;
}

/* The loop is to be built again with another axis. */
static int refine(builder *b, const ir_node *behind, const form_refinement *how)
{
    b->failed = b->refine = true;
    b->how = *how;
    b->behind = behind;
    return -1;
}

static int load(builder *b, ir_node *node, const index_form *where)
{
    kl_expr expr = { .kind = KL_LOAD, .dtype = node->type.dtype };
    if (!view_at(b->l->program, &INFO(b->l->state, node)->place, &node->type, where, b->space.n_axes, &expr.view))
        return fail(b, node, false);
    return add_expr(b, expr);
}

/* Whether node's value is an expression of this loop, stored or not. */
static bool is_computed_here(const builder *b, const ir_node *node)
{
    int cluster = INFO(b->l->state, node)->cluster;
    return node == b->root || (cluster >= 0 && cluster == b->cluster && !is_outer_sum(node));
}

static int eval_view(builder *b, ir_node *node, const index_form *where)
{
    ir_node *x = node->args[0];
    const node_info *info = INFO(b->l->state, x);
    index_form below[IR_MAX_RANK];
    form_refinement how;
    if (node->op == OP_reshape && info->stored && info->place.placed && info->place.dense && !is_computed_here(b, x)) {
        index_form linear;                                /* row-major memory needs no coordinates */
        kl_expr expr = { .kind = KL_LOAD, .dtype = x->type.dtype };
        if (form_merge(where, node->type.dim, node->type.rank, b->space.n_axes, &linear)) {
            linear.offset += info->place.offset;
            view_from_form(b->l->program, info->place.buffer, &linear, &expr.view);
            return add_expr(b, expr);
        }
    }
    switch (forms_below(&b->space, node, where, below, &how)) {
    case FORM_OK:
        return eval(b, x, below);
    case FORM_REFINE:
        return refine(b, x, &how);
    case FORM_NONE:
        break;
    }
    return fail(b, x, true);
}

/* A dynamic term for a form: the i32 scalar `start`, kept within [0, limit]. */
static bool add_dynamic(builder *b, index_form *form, ir_node *start, const index_form *where, int64_t limit)
{
    int expr = eval(b, start, where);
    if (expr >= 0)
        form->dynamic[form->n_dynamic++] = (kl_dynamic){ expr, 1, limit };
    return expr >= 0;
}

static int eval_indexed(builder *b, ir_node *node, const index_form *where)
{
    ir_node *x = node->args[0];
    index_form below[IR_MAX_RANK];
    int n_dynamic = x->type.rank;                         /* what the load may come to have */
    for (int i = 0; i < node->type.rank; i++)
        n_dynamic += where[i].n_dynamic;
    if (n_dynamic > KL_MAX_DYNAMIC)
        return fail(b, node, false);
    if (node->op == OP_gather) {
        int axis = node->attr.axis, more = node->args[1]->type.rank;
        for (int i = 0; i < x->type.rank; i++)
            below[i] = i < axis ? where[i] : i > axis ? where[i + more - 1] : form_constant(0);
        if (!add_dynamic(b, &below[axis], node->args[1], where + axis, x->type.dim[axis] - 1))
            return -1;
    } else {
        for (int i = 0; i < x->type.rank; i++) {
            below[i] = where[i];
            int64_t limit = x->type.dim[i] - node->type.dim[i];
            if (limit > 0 && !add_dynamic(b, &below[i], node->args[1 + i], NULL, limit))
                return -1;
        }
    }
    return eval(b, x, below);
}

static int eval_random(builder *b, ir_node *node, const index_form *where)
{
    kl_expr expr = { .kind = KL_RANDOM, .op = node->op, .dtype = IR_I32, .n_args = 3, .site = node->attr.site };
    index_form linear, first = form_constant(0), second = form_constant(1);
    if (!form_merge(where, node->type.dim, node->type.rank, b->space.n_axes, &linear) || linear.n_dynamic)
        return fail(b, node, false);
    expr.args[0] = eval(b, node->args[0], &first);
    expr.args[1] = eval(b, node->args[0], &second);
    expr.args[2] = eval(b, node->args[1], NULL);
    if (b->failed)
        return -1;
    view_from_form(b->l->program, -1, &linear, &expr.view);
    return add_expr(b, expr);
}

static int eval_iota(builder *b, ir_node *node, const index_form *where)
{
    const index_form *form = &where[node->attr.axis];
    kl_expr expr = { .kind = KL_INDEX, .dtype = IR_I32, .view = { .buffer = -1, .offset = form->offset } };
    memcpy(expr.view.stride, form->coef, sizeof expr.view.stride);
    int sum = add_expr(b, expr);
    for (int i = 0; i < form->n_dynamic; i++) {
        const kl_dynamic *term = &form->dynamic[i];
        int low = add_op(b, OP_max, IR_I32, 2, (int[]){ term->expr, add_value(b, IR_I32, 0) });
        int within = add_op(b, OP_min, IR_I32, 2, (int[]){ low, add_value(b, IR_I32, (double)term->limit) });
        int scaled = add_op(b, OP_mul, IR_I32, 2, (int[]){ within, add_value(b, IR_I32, (double)term->stride) });
        sum = add_op(b, OP_add, IR_I32, 2, (int[]){ sum, scaled });
    }
    return node->type.dtype == IR_I32 ? sum : add_op(b, OP_cast, node->type.dtype, 1, &sum);
}

/* A reduction inside its loop: its own axes are the row, what it goes over is the row's inside. */
static int eval_reduce(builder *b, ir_node *node, const index_form *where)
{
    ir_node *x = node->args[0];
    bool gone[IR_MAX_RANK] = {0};
    int64_t dim[IR_MAX_RANK], inner = 1, size = 1;
    int n = 0;
    index_form part[IR_MAX_RANK], below[IR_MAX_RANK];
    form_refinement how;

    if (node->op == OP_argmax)
        gone[node->attr.axis] = true;
    for (int i = 0; i < node->attr.n_axes; i++)
        gone[node->attr.axes[i]] = true;
    for (int i = 0; i < x->type.rank; i++)
        if (gone[i])
            size *= dim[n++] = x->type.dim[i];
    for (int i = b->space.n_outer; i < b->space.n_axes; i++) {
        inner *= b->space.extent[i];
        for (int j = 0; j < node->type.rank; j++)
            if (where[j].coef[i])
                return fail(b, node, false);
    }
    if (inner != size)
        return fail(b, node, false);
    index_form linear = form_linear(&b->space, b->space.n_outer, b->space.n_axes);
    switch (form_split(&b->space, &linear, dim, n, part, &how)) {
    case FORM_REFINE:
        return refine(b, node, &how);
    case FORM_NONE:
        return fail(b, node, false);
    case FORM_OK:
        break;
    }
    for (int i = 0, kept = 0, lost = 0; i < x->type.rank; i++)
        below[i] = gone[i] ? part[lost++] : where[kept++];
    kl_expr expr = { .kind = KL_REDUCE, .op = node->op, .dtype = node->type.dtype, .n_args = 1, .view.buffer = -1 };
    expr.args[0] = eval(b, x, below);
    return expr.args[0] < 0 ? -1 : add_expr(b, expr);
}

static int eval_fresh(builder *b, ir_node *node, const index_form *where)
{
    const node_info *info = INFO(b->l->state, node);
    if (node->op == OP_constant)
        return add_value(b, node->type.dtype, node->attr.value);
    if (node->op == OP_iota)
        return eval_iota(b, node, where);
    bool here = is_computed_here(b, node);
    if (info->stored && !here)
        return load(b, node, where);
    switch (role_of(node)) {
    case ROLE_VIEW:
        return eval_view(b, node, where);
    case ROLE_LOOP:
        break;
    case ROLE_LEAF:
    case ROLE_ANCHOR:
        CHECK(false, "%%%d %s: expected to be stored", node->id, OP_NAME(node->op));
    }
    if (is_reduce(node))
        return here ? eval_reduce(b, node, where) : fail(b, node, false);
    if (node->op == OP_random_bits)
        return eval_random(b, node, where);
    if (node->op == OP_gather || node->op == OP_dynamic_slice)
        return eval_indexed(b, node, where);
    int args[KL_MAX_ARGS];
    for (int i = 0; i < node->n_args; i++)
        if ((args[i] = eval(b, node->args[i], where)) < 0)
            return -1;
    return add_op(b, node->op, node->type.dtype, node->n_args, args);
}

static int eval(builder *b, ir_node *node, const index_form *where)
{
    if (b->failed)
        return -1;
    for (int i = 0; i < b->n_done; i++) {
        bool same = b->done[i].node == node;
        for (int j = 0; j < node->type.rank && same; j++)
            same = form_equal(&b->done[i].where[j], &where[j], b->space.n_axes);
        if (same)
            return b->done[i].expr;
    }
    int expr = eval_fresh(b, node, where);
    if (expr < 0)
        return -1;
    b->done = kl_grown(b->l->scratch, b->done, b->n_done, &b->cap_done, sizeof(evaluated));
    index_form *copy = ARENA_NEW(b->l->scratch, index_form, node->type.rank);
    if (node->type.rank)
        memcpy(copy, where, sizeof(index_form) * (size_t)node->type.rank);
    b->done[b->n_done++] = (evaluated){ node, copy, expr };
    return expr;
}

/* -- outputs ----------------------------------------------------------------------------------------------------------- */

static void add_output(builder *b, kl_output_kind kind, int expr, kl_view view)
{
    b->loop.outputs = kl_grown(b->l->program->arena, b->loop.outputs, b->loop.n_outputs, &b->cap_outputs, sizeof(kl_output));
    b->loop.outputs[b->loop.n_outputs++] = (kl_output){ kind, expr, view, false };
}

/* The forms of type's axes where its linear index runs over the axes [from, to) of the loop. */
static bool spread(builder *b, const ir_node *node, const ir_type *type, int from, int to, index_form *where)
{
    index_form linear = form_linear(&b->space, from, to);
    form_refinement how;
    switch (form_split(&b->space, &linear, type->dim, type->rank, where, &how)) {
    case FORM_OK:
        return true;
    case FORM_REFINE:
        refine(b, node, &how);
        return false;
    case FORM_NONE:
        break;
    }
    fail(b, (ir_node *)node, false);
    return false;
}

/* A value that stays the same along its row is added once a row: the row's sum of it. */
static int times_inner(builder *b, int expr, int64_t inner)
{
    ir_dtype dtype = b->loop.exprs[expr].dtype, wide = dtype == IR_BF16 ? IR_F32 : dtype;
    if (inner == 1)
        return expr;
    if (wide != dtype)
        expr = add_op(b, OP_cast, wide, 1, &expr);
    expr = add_op(b, OP_mul, wide, 2, (int[]){ expr, add_value(b, wide, (double)inner) });
    return wide == dtype ? expr : add_op(b, OP_cast, dtype, 1, &expr);
}

static void output(builder *b, ir_node *node)
{
    index_space *space = &b->space;
    index_form where[IR_MAX_RANK], at[IR_MAX_RANK];
    const node_place *place = &INFO(b->l->state, node)->place;
    kl_output_kind kind = KL_STORE;
    int64_t rows = 1, total = 1, count = ir_type_count(&node->type);
    int expr;
    for (int i = 0; i < space->n_axes; i++) {
        rows *= i < space->n_outer ? space->extent[i] : 1;
        total *= space->extent[i];
    }
    if (is_outer_sum(node)) {
        ir_node *x = node->args[0];
        bool of_rows = ir_type_count(&x->type) != total;
        CHECK(!of_rows || ir_type_count(&x->type) == rows, "%%%d: expected a full or a row value under the sum", node->id);
        kind = kind_of_reduce(node) == REDUCE_LEADING ? KL_SUM_OUTER : KL_SUM_ALL;
        if (!spread(b, x, &x->type, 0, of_rows ? space->n_outer : space->n_axes, where) ||
            !spread(b, node, &node->type, kind == KL_SUM_OUTER ? space->n_outer : space->n_axes, space->n_axes, at))
            return;
        expr = eval(b, x, where);
        if (expr >= 0 && kind == KL_SUM_ALL && !of_rows && b->loop.exprs[expr].row)
            expr = times_inner(b, expr, total / rows);
    } else {
        bool row = count != total;
        if (!spread(b, node, &node->type, 0, row ? space->n_outer : space->n_axes, where))
            return;
        memcpy(at, where, sizeof at);
        expr = eval(b, node, where);
    }
    kl_view view;
    if (expr < 0)
        return;
    view_at(b->l->program, place, &node->type, at, space->n_axes, &view);
    add_output(b, kind, expr, view);
}

/* No room for another axis. Memory that is row-major is read at any linear index, without axes; where it is this loop itself that
 * computes what is read, its nodes are computed one by one. */
static void too_many_axes(builder *b)
{
    lowering *l = b->l;
    if (!is_computed_here(b, b->behind)) {
        must_store(l, b->behind, true);
        return;
    }
    for (int i = 0; b->cluster >= 0 && i < l->state->clusters[b->cluster]->n_nodes; i++) {
        const ir_node *node = l->state->clusters[b->cluster]->nodes[i];
        must_store(l, node, true);
        force(l, &l->forced_apart[node->mark]);
    }
}

/* Starts the builder over with the axis split that it asked for. False where it asked for none, or there is no room for it. */
static bool retry_refined(builder *b)
{
    builder fresh = { .l = b->l, .space = b->space, .cluster = b->cluster, .root = b->root };
    if (!b->failed || !b->refine)
        return false;
    if (!space_refine(&fresh.space, &b->how)) {
        too_many_axes(b);
        return false;
    }
    *b = fresh;
    return true;
}

static void finish_loop(builder *b, kl_loop *loop)
{
    *loop = b->loop;
    loop->n_axes = b->space.n_axes;
    loop->n_outer = b->space.n_outer;
    memcpy(loop->extent, b->space.extent, sizeof loop->extent);
    kl_merge_axes(loop);
}

/* Room for a loop over no elements: whatever has elements is what sums and maxima of nothing are. */
static void fill(lowering *l, kernel_list *list, ir_node *node, const node_place *place, double value)
{
    builder b = { .l = l, .cluster = -1 };
    index_form where[IR_MAX_RANK];
    kl_view view;
    if (ir_type_count(&node->type) == 0)
        return;
    b.space.n_axes = MAX(1, node->type.rank);
    b.space.n_outer = b.space.n_axes - 1;
    b.space.extent[0] = 1;
    for (int i = 0; i < node->type.rank; i++) {
        b.space.extent[i] = node->type.dim[i];
        where[i] = form_axis(i);
    }
    view_at(l->program, place, &node->type, where, b.space.n_axes, &view);
    add_output(&b, KL_STORE, add_value(&b, node->type.dtype, value), view);
    finish_loop(&b, &new_kernel(l, list, KL_LOOP, node, "fill")->loop);
}

/* A loop that writes node, computed in place where it is not stored or is `root`, to `place` of node's type. */
static void copy_to(lowering *l, kernel_list *list, ir_node *node, const node_place *place, bool root, const char *name)
{
    if (ir_type_count(&node->type) == 0)
        return;
    builder b = { .l = l, .cluster = -1, .root = root ? node : NULL };
    b.space.n_axes = MAX(1, node->type.rank);
    b.space.n_outer = b.space.n_axes - 1;
    b.space.extent[0] = 1;
    for (int i = 0; i < node->type.rank; i++)
        b.space.extent[i] = node->type.dim[i];
    do {
        index_form where[IR_MAX_RANK];
        kl_view view;
        if (spread(&b, node, &node->type, 0, b.space.n_axes, where)) {
            int expr = eval(&b, node, where);
            if (expr >= 0) {
                view_at(l->program, place, &node->type, where, b.space.n_axes, &view);
                add_output(&b, KL_STORE, expr, view);
            }
        }
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &new_kernel(l, list, KL_LOOP, node, name)->loop);
}

/* -- clusters --------------------------------------------------------------------------------------------------------- */

static index_space space_of(const node_cluster *cluster)
{
    index_space space = {0};
    if (cluster->alone) {
        const ir_node *node = cluster->nodes[0];
        const ir_type *type = &node->args[0]->type;
        if (is_reduce(node)) {                            /* what stays, then what goes */
            bool gone[IR_MAX_RANK] = {0};
            if (node->op == OP_argmax)
                gone[node->attr.axis] = true;
            for (int i = 0; i < node->attr.n_axes; i++)
                gone[node->attr.axes[i]] = true;
            for (int pass = 0; pass < 2; pass++) {
                for (int i = 0; i < type->rank; i++)
                    if (gone[i] == (pass == 1) && type->dim[i] != 1)
                        space.extent[space.n_axes++] = type->dim[i];
                if (pass == 0)
                    space.n_outer = space.n_axes;
            }
            if (space.n_axes == space.n_outer)
                space.extent[space.n_axes++] = 1;
            return space;
        }
    }
    for (int i = cluster->n_cuts - 1; i >= 0; i--) {
        int64_t below = i ? cluster->cuts[i - 1] : 1;
        if (cluster->inner && cluster->cuts[i] > cluster->inner)
            space.n_outer = space.n_axes + 1;
        space.extent[space.n_axes++] = cluster->cuts[i] / below;
    }
    if (space.n_axes == space.n_outer)                    /* rows of one element */
        space.extent[space.n_axes++] = 1;
    if (!cluster->inner)
        space.n_outer = space.n_axes - 1;
    return space;
}

static const char *name_of(lowering *l, const node_cluster *cluster)
{
    base_text text = {0};
    int n = 0;
    for (int i = 0; i < cluster->n_nodes && n < 4; i++) {
        const ir_node *node = cluster->nodes[i];
        if (!INFO(l->state, node)->stored)
            continue;
        bool told = text.at && strstr(text.at, OP_NAME(node->op));
        if (!told)
            base_text_add(&text, "%s%s", n++ ? "+" : "", OP_NAME(node->op));
    }
    char *name = base_arena_text(l->scratch, "%s", text.at ? text.at : "");
    base_text_free(&text);
    return name;
}

/* What a reduction over no elements gives. */
static double of_nothing(const ir_node *node)
{
    if (node->op == OP_reduce_max)
        return node->type.dtype == IR_I32 ? INT32_MIN : -__builtin_inf();
    return 0;
}

static void lower_cluster(lowering *l, const node_cluster *cluster)
{
    int64_t key = -1;
    ir_node *last = NULL;
    for (int i = 0; i < cluster->n_nodes; i++) {
        ir_node *node = cluster->nodes[i];
        if (INFO(l->state, node)->stored && node->mark > key) {
            key = node->mark;
            last = node;
        }
    }
    if (!last)
        return;
    unit *u = new_unit(l, key);
    if (cluster->total == 0) {
        for (int i = 0; i < cluster->n_nodes; i++) {
            ir_node *node = cluster->nodes[i];
            if (INFO(l->state, node)->stored && ir_type_count(&node->type) > 0)
                fill(l, &u->kernels, node, &INFO(l->state, node)->place, of_nothing(node));
        }
        return;
    }
    builder b = { .l = l, .space = space_of(cluster), .cluster = cluster->id };
    do {
        for (int i = 0; i < cluster->n_nodes && !b.failed; i++)
            if (INFO(l->state, cluster->nodes[i])->stored)
                output(&b, cluster->nodes[i]);
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &new_kernel(l, &u->kernels, KL_LOOP, last, name_of(l, cluster))->loop);
}

/* -- anchors: operands -------------------------------------------------------------------------------------------------- */

/* An operand as it lies, through any views. Where that is no place it is stored in the next round. */
static bool operand_place(lowering *l, ir_node *node, node_place *place)
{
    if (kl_place_of_view(l->state, node, place))
        return true;
    must_store(l, node, true);
    return false;
}

/* The same, its elements in row-major order taken for those of another type. */
static bool operand_place_as(lowering *l, ir_node *node, const ir_type *type, node_place *place)
{
    node_place own;
    if (!operand_place(l, node, &own))
        return false;
    if (kl_place_through_reshape(type, &node->type, &own, place))
        return true;
    must_store(l, node, true);
    return false;
}

static kl_view view_of_place(const node_place *place, int rank)
{
    kl_view view = { .buffer = place->buffer, .offset = place->offset };
    for (int i = 0; i < rank; i++)
        view.stride[i] = place->stride[i];
    return view;
}

/* -- anchors: kernels --------------------------------------------------------------------------------------------------- */

static kl_loop plain_operand(lowering *l, int n_batch, const int64_t *batch, int64_t rows, int64_t columns, kl_view view, ir_dtype dtype)
{
    kl_loop loop = { .n_axes = n_batch + 2, .n_outer = n_batch + 1, .n_exprs = 1, .n_outputs = 1 };
    for (int i = 0; i < n_batch; i++)
        loop.extent[i] = batch[i];
    loop.extent[n_batch] = rows;
    loop.extent[n_batch + 1] = columns;
    loop.exprs = ARENA_NEW(l->program->arena, kl_expr, 1);
    loop.exprs[0] = (kl_expr){ .kind = KL_LOAD, .dtype = dtype, .view = view, .row = view.stride[n_batch + 1] == 0 };
    loop.outputs = ARENA_NEW(l->program->arena, kl_output, 1);
    loop.outputs[0] = (kl_output){ .kind = KL_STORE, .expr = 0, .view = { .buffer = -1 } };
    return loop;
}

static void lower_matmul(lowering *l, kernel_list *list, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    int rank = node->type.rank, n_batch = rank - 2;
    const node_place *out = &INFO(l->state, node)->place;
    node_place a, b;
    if (ir_type_count(&node->type) == 0)
        return;
    bool ok = operand_place(l, lhs, &a);
    ok = operand_place(l, rhs, &b) && ok;
    if (!ok)
        return;
    int64_t m = node->type.dim[rank - 2], n = node->type.dim[rank - 1], k = lhs->type.dim[rank - 1];
    ir_dtype sum = lhs->type.dtype == IR_F64 ? IR_F64 : IR_F32;

    kl_contraction *c = &new_kernel(l, list, KL_CONTRACTION, node, "matmul")->contraction;
    c->n_batch = n_batch;
    for (int i = 0; i < n_batch; i++)
        c->batch[i] = node->type.dim[i];
    c->m = m;
    c->n = n;
    c->k = k;
    c->dtype = lhs->type.dtype;
    c->a = plain_operand(l, n_batch, c->batch, m, k, view_of_place(&a, rank), c->dtype);
    c->b = plain_operand(l, n_batch, c->batch, k, n, view_of_place(&b, rank), c->dtype);
    c->c = plain_operand(l, n_batch, c->batch, m, n, (kl_view){ .buffer = -1 }, sum);
    c->c.exprs[0] = (kl_expr){ .kind = KL_PRODUCT, .dtype = sum, .view.buffer = -1 };
    if (node->type.dtype != sum) {
        kl_expr *exprs = ARENA_NEW(l->program->arena, kl_expr, 2);
        exprs[0] = c->c.exprs[0];
        exprs[1] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = node->type.dtype, .n_args = 1, .args = { 0 }, .view.buffer = -1 };
        c->c.exprs = exprs;
        c->c.n_exprs = 2;
    }
    c->c.outputs[0] = (kl_output){ .kind = KL_STORE, .expr = c->c.n_exprs - 1, .view = view_of_place(out, rank) };
}

/* The place of a tuple's result; a result that nobody reads gets memory all the same. */
static kl_view result_view(lowering *l, ir_node *tuple, int index)
{
    const ir_type *type = &tuple->tuple[index];
    for (ir_node *node = tuple->next; node; node = node->next)
        if (node->op == OP_result && node->args[0] == tuple && node->attr.index == index)
            return view_of_place(&INFO(l->state, node)->place, type->rank);
    node_place place = { .buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_TEMP, .dtype = type->dtype, .count = ir_type_count(type),
                                                                          .place = tuple->place }) };
    ir_row_major(type, place.stride);
    return view_of_place(&place, type->rank);
}

static void lower_attention(lowering *l, kernel_list *list, ir_node *node)
{
    bool backward = node->op == OP_attention_vjp, ok = true;
    int n_views = backward ? 7 : 3;
    node_place places[9];
    for (int i = 0; i < node->n_args; i++) {
        const ir_node *base = view_base(l->state, node->args[i]);
        places[i] = (node_place){ .buffer = -1 };
        if (i < 5 || i >= n_views || base->op != OP_constant || base->attr.value != 0)       /* a cotangent of zeros needs no memory */
            ok = operand_place(l, node->args[i], &places[i]) && ok;
    }
    if (!ok)
        return;
    const ir_type *q = &node->args[0]->type, *k = &node->args[1]->type;
    kl_attention *a = &new_kernel(l, list, KL_ATTENTION, node, backward ? "attention_vjp" : "attention")->attention;
    *a = (kl_attention){ .backward = backward, .batch = q->dim[0], .heads = q->dim[1], .rows = q->dim[2], .keys = k->dim[2],
                         .head_dim = q->dim[3], .causal = node->attr.causal, .scale = node->attr.scale, .dropout = node->attr.dropout,
                         .site = node->attr.site, .dtype = q->dtype, .grad_dtype = q->dtype };
    kl_view *views[] = { &a->q, &a->k, &a->v, &a->out, &a->lse, &a->dout, &a->dlse };
    for (int i = 0; i < n_views; i++)
        *views[i] = view_of_place(&places[i], node->args[i]->type.rank);
    a->seed.buffer = a->counter.buffer = -1;
    if (node->attr.dropout > 0) {
        a->seed = view_of_place(&places[n_views], 1);
        a->counter = view_of_place(&places[n_views + 1], 0);
    }
    if (backward) {
        a->dq = result_view(l, node, 0);
        a->dk = result_view(l, node, 1);
        a->dv = result_view(l, node, 2);
        a->grad_dtype = node->tuple[0].dtype;
    } else {
        a->out = result_view(l, node, 0);
        a->lse = result_view(l, node, 1);
        a->dout.buffer = a->dlse.buffer = a->dq.buffer = a->dk.buffer = a->dv.buffer = -1;
    }
}

static void lower_scatter(lowering *l, kernel_list *list, ir_node *node)
{
    ir_node *indices = node->args[1], *updates = node->args[2];
    const node_place *place = &INFO(l->state, node)->place;
    int axis = node->attr.axis;
    kl_scatter s = { .pre = 1, .post = 1, .positions = ir_type_count(&indices->type), .rows = node->type.dim[axis], .dtype = node->type.dtype };
    for (int i = 0; i < node->type.rank; i++)
        *(i < axis ? &s.pre : &s.post) *= i == axis ? 1 : node->type.dim[i];
    ir_type box = ir_type_of(updates->type.dtype, 3, (int64_t[]){ s.pre, s.positions, s.post }), line = ir_type_of(IR_I32, 1, &s.positions);
    node_place from, at;
    copy_to(l, list, node->args[0], place, false, "scatter_base");
    if (ir_type_count(&box) == 0)
        return;
    bool ok = operand_place_as(l, updates, &box, &from);
    ok = operand_place_as(l, indices, &line, &at) && ok;
    if (!ok)
        return;
    s.updates = view_of_place(&from, 3);
    s.indices = view_of_place(&at, 1);
    CHECK(place->dense, "%%%d scatter_add: expected a row-major place", node->id);
    s.target = (kl_view){ .buffer = place->buffer, .offset = place->offset, .stride = { s.rows * s.post, s.post, 1 } };
    new_kernel(l, list, KL_SCATTER, node, "scatter_add")->scatter = s;
}

static void lower_update_slice(lowering *l, kernel_list *list, ir_node *node)
{
    ir_node *base = node->args[0], *update = node->args[1];
    const node_place *place = &INFO(l->state, node)->place;
    copy_to(l, list, base, place, false, "update_base");
    if (ir_type_count(&update->type) == 0)
        return;
    builder b = { .l = l, .cluster = -1 };
    b.space.n_axes = MAX(1, update->type.rank);
    b.space.n_outer = b.space.n_axes - 1;
    b.space.extent[0] = 1;
    for (int i = 0; i < update->type.rank; i++)
        b.space.extent[i] = update->type.dim[i];
    do {
        index_form where[IR_MAX_RANK], at[IR_MAX_RANK];
        kl_view view;
        if (!spread(&b, update, &update->type, 0, b.space.n_axes, where))
            continue;
        int expr = eval(&b, update, where);
        memcpy(at, where, sizeof at);
        for (int i = 0; i < update->type.rank && expr >= 0; i++) {
            int64_t limit = base->type.dim[i] - update->type.dim[i];
            if (limit > 0 && !add_dynamic(&b, &at[i], node->args[2 + i], NULL, limit))
                expr = -1;
        }
        if (expr < 0)
            continue;
        if (!view_at(l->program, place, &node->type, at, b.space.n_axes, &view)) {
            fail(&b, update, true);
            continue;
        }
        add_output(&b, KL_STORE, expr, view);
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &new_kernel(l, list, KL_LOOP, node, "update_slice")->loop);
}

static void lower_concatenate(lowering *l, kernel_list *list, ir_node *node)
{
    node_place part = INFO(l->state, node)->place;
    part.dense = false;
    for (int i = 0; i < node->n_args; i++) {
        ir_node *x = node->args[i];
        const node_place *base = &INFO(l->state, view_base(l->state, x))->place;
        if (!base->placed || base->buffer != part.buffer)     /* else it was made in its part: see place.c */
            copy_to(l, list, x, &part, false, "concatenate");
        part.offset += x->type.dim[node->attr.axis] * part.stride[node->attr.axis];
    }
}

static void lower_pad(lowering *l, kernel_list *list, ir_node *node)
{
    node_place place = INFO(l->state, node)->place;
    fill(l, list, node, &place, node->attr.value);
    for (int i = 0; i < node->type.rank; i++)
        place.offset += node->attr.start[i] * place.stride[i];
    place.dense = false;
    copy_to(l, list, node->args[0], &place, false, "pad");
}

/* -- scan --------------------------------------------------------------------------------------------------------------- */

typedef struct { const ir_node *scan; node_place *carries, *ys; } scan_ends;

/* Whether a value is a view of a parameter's memory that is about to be overwritten. */
static bool reads_param(const lowering *l, const ir_node *node, int from, int to)
{
    const ir_node *base = view_base(l->state, node);
    return base->op == OP_parameter && base->attr.index >= from && base->attr.index < to;
}

static node_place new_place(lowering *l, const ir_node *node)
{
    node_place place = { .placed = true, .dense = true };
    place.buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_TEMP, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                          .place = node->place });
    ir_row_major(&node->type, place.stride);
    return place;
}

/* The end of a body: what the next iteration starts from, and the ys. */
static void end_iteration(lowering *l, void *context)
{
    scan_ends *ends = context;
    const ir_graph *body = l->state->graph;
    int n_carry = ends->scan->attr.n_carry;
    unit *u = new_unit(l, LAST);
    node_place *via = ARENA_NEW(l->scratch, node_place, body->n_results);
    for (int i = 0; i < body->n_results; i++) {
        ir_node *node = body->results[i];
        if (i < n_carry && node->op == OP_parameter && node->attr.index == i)
            continue;                                     /* stays what it was */
        if (i < n_carry && reads_param(l, node, 0, n_carry)) {
            via[i] = new_place(l, node);                  /* of another carry, which may be overwritten first */
            copy_to(l, &u->kernels, node, &via[i], false, "carry");
        }
        if (i >= n_carry)
            copy_to(l, &u->kernels, node, &ends->ys[i - n_carry], false, "stack");
    }
    for (int i = 0; i < n_carry; i++) {
        ir_node *node = body->results[i];
        if (node->op == OP_parameter && node->attr.index == i)
            continue;
        node_info *info = INFO(l->state, node);
        node_info saved = *info;
        if (via[i].placed) {
            info->stored = true;
            info->place = via[i];
        }
        copy_to(l, &u->kernels, node, &ends->carries[i], false, "carry");
        *info = saved;
    }
}

static void lower_scan(lowering *l, kernel_list *list, ir_node *node)
{
    const ir_graph *body = node->attr.body;
    int n_carry = node->attr.n_carry, n_xs = node->attr.n_xs, n_ys = node->n_tuple - n_carry;
    node_place *params = ARENA_NEW(l->scratch, node_place, node->n_args);
    scan_ends ends = { .scan = node };
    ends.carries = ARENA_NEW(l->scratch, node_place, n_carry);
    ends.ys = ARENA_NEW(l->scratch, node_place, n_ys);
    bool ok = true;
    for (int i = n_carry; i < node->n_args; i++)
        ok = operand_place(l, node->args[i], &params[i]) && ok;
    if (!ok)
        return;
    int id = l->program->n_repeats++;
    for (int i = 0; i < n_carry; i++) {
        kl_view view = result_view(l, node, i);
        node_place place = { .buffer = view.buffer, .offset = view.offset, .placed = true };
        memcpy(place.stride, view.stride, sizeof place.stride);
        int64_t dense[IR_MAX_RANK];
        ir_row_major(&node->tuple[i], dense);
        place.dense = true;
        for (int j = 0; j < node->tuple[i].rank; j++)
            place.dense &= dense[j] == place.stride[j] || node->tuple[i].dim[j] == 1;
        params[i] = ends.carries[i] = place;
        copy_to(l, list, node->args[i], &place, false, "carry");
    }
    for (int i = 0; i < n_xs + n_ys; i++) {
        bool y = i >= n_xs;
        int which = y ? n_carry + i - n_xs : n_carry + i;
        const ir_type *type = y ? &node->tuple[which] : &node->args[which]->type;
        node_place whole = y ? (node_place){ .placed = true } : params[which];
        if (y) {
            kl_view view = result_view(l, node, which);
            whole.buffer = view.buffer;
            whole.offset = view.offset;
            memcpy(whole.stride, view.stride, sizeof whole.stride);
        }
        node_place slice = { .placed = true, .dense = true };
        int64_t span = 1, dense = 1;
        for (int j = type->rank - 1; j >= 1; j--) {
            slice.stride[j - 1] = whole.stride[j];
            slice.dense &= whole.stride[j] == dense || type->dim[j] == 1;
            dense *= type->dim[j];
            span += (type->dim[j] - 1) * whole.stride[j];
        }
        if (ir_type_count(type) == 0)
            span = 0;
        slice.buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_MOVING, .dtype = type->dtype, .count = span, .base = whole.buffer,
                                                              .repeat = id, .offset = whole.offset, .step = whole.stride[0] });
        *(y ? &ends.ys[i - n_xs] : &params[which]) = slice;
    }
    kernel_list inside = {0};
    if (node->attr.count > 0)
        lower_graph(l->program, body, params, l->scratch, end_iteration, &ends, &inside);
    if (!inside.n)
        return;
    kl_repeat *repeat = &new_kernel(l, list, KL_REPEAT, node, "scan")->repeat;
    *repeat = (kl_repeat){ .id = id, .count = node->attr.count, .reverse = node->attr.reverse, .n_body = inside.n, .body = inside.at };
}

/* -- a whole graph ------------------------------------------------------------------------------------------------------ */

static void lower_node(lowering *l, ir_node *node)
{
    const node_info *info = INFO(l->state, node);
    if (node->op == OP_result || node->op == OP_parameter || node->op == OP_literal)
        return;
    unit *u = new_unit(l, node->mark);
    kernel_list list = {0};
    size_t at = (size_t)(u - l->units);
    if (role_of(node) != ROLE_ANCHOR) {
        if (info->stored)
            copy_to(l, &list, node, &info->place, true, OP_NAME(node->op));
    } else if (node->op == OP_matmul) {
        lower_matmul(l, &list, node);
    } else if (node->op == OP_attention || node->op == OP_attention_vjp) {
        lower_attention(l, &list, node);
    } else if (node->op == OP_scatter_add) {
        lower_scatter(l, &list, node);
    } else if (node->op == OP_update_slice) {
        lower_update_slice(l, &list, node);
    } else if (node->op == OP_concatenate) {
        lower_concatenate(l, &list, node);
    } else if (node->op == OP_pad) {
        lower_pad(l, &list, node);
    } else if (node->op == OP_scan) {
        lower_scan(l, &list, node);
    } else {
        CHECK(false, "%%%d %s: expected an op that kernels are known for; composites must have been decomposed", node->id, OP_NAME(node->op));
    }
    l->units[at].kernels = list;
}

typedef struct { const kl_program *program; base_arena *arena; int *at[2], n[2], cap[2]; } touched;

static void touch(void *context, const kl_access *access)
{
    touched *t = context;
    int which = access->write, buffer = kl_root_buffer(t->program, access->view->buffer);
    for (int i = 0; i < t->n[which]; i++)
        if (t->at[which][i] == buffer)
            return;
    t->at[which] = kl_grown(t->arena, t->at[which], t->n[which], &t->cap[which], sizeof(int));
    t->at[which][t->n[which]++] = buffer;
}

static void touch_all(kl_kernel *kernel, touched *t)
{
    kl_visit(kernel, touch, t);
    if (kernel->kind == KL_REPEAT)
        for (int i = 0; i < kernel->repeat.n_body; i++)
            touch_all(kernel->repeat.body[i], t);
}

/* -- order -------------------------------------------------------------------------------------------------------------- */

typedef struct { int *at, n, cap; } int_list;

static void append(base_arena *arena, int_list *list, int value)
{
    list->at = kl_grown(arena, list->at, list->n, &list->cap, sizeof *list->at);
    list->at[list->n++] = value;
}

/* Units that are ready, a heap with the least key on top. */
typedef struct { const unit *units; int *at, n; } ready_units;

static void push(ready_units *heap, int unit)
{
    int i = heap->n++;
    for (; i > 0 && heap->units[heap->at[(i - 1) / 2]].key > heap->units[unit].key; i = (i - 1) / 2)
        heap->at[i] = heap->at[(i - 1) / 2];
    heap->at[i] = unit;
}

static int pop(ready_units *heap)
{
    int top = heap->at[0], moved = heap->at[--heap->n], i = 0;
    for (int child; (child = 2 * i + 1) < heap->n; i = child) {
        if (child + 1 < heap->n && heap->units[heap->at[child + 1]].key < heap->units[heap->at[child]].key)
            child++;
        if (heap->units[heap->at[child]].key >= heap->units[moved].key)
            break;
        heap->at[i] = heap->at[child];
    }
    heap->at[i] = moved;
    return top;
}

static void emit(lowering *l, const unit *u, kernel_list *out)
{
    for (int i = 0; i < u->kernels.n; i++) {
        out->at = kl_grown(l->program->arena, out->at, out->n, &out->cap, sizeof(*out->at));
        out->at[out->n++] = u->kernels.at[i];
    }
}

/* Puts the units in an order in which whatever a unit reads has been written, the earliest in the graph first where there is
 * a choice. */
static void order_units(lowering *l, kernel_list *out)
{
    int n = l->n_units, done = 0;
    base_arena *arena = l->scratch;
    int_list *writers = ARENA_NEW(arena, int_list, l->program->n_buffers), *users = ARENA_NEW(arena, int_list, n);
    touched *touches = ARENA_NEW(arena, touched, n);
    int *waits_for = ARENA_NEW(arena, int, n);
    ready_units ready = { .units = l->units, .at = ARENA_NEW(arena, int, n) };
    for (int i = 0; i < n; i++) {
        touches[i] = (touched){ .program = l->program, .arena = arena };
        for (int j = 0; j < l->units[i].kernels.n; j++)
            touch_all(l->units[i].kernels.at[j], &touches[i]);
        for (int j = 0; j < touches[i].n[1] && l->units[i].key != LAST; j++)
            append(arena, &writers[touches[i].at[1][j]], i);
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < touches[i].n[0]; j++) {
            const int_list *from = &writers[touches[i].at[0][j]];
            bool writes_too = false;      /* then it reads its own part of a concatenation: nobody but its maker reads a part */
            for (int k = 0; k < from->n; k++)
                writes_too |= from->at[k] == i;
            for (int k = 0; k < from->n && !writes_too; k++) {
                append(arena, &users[from->at[k]], i);
                waits_for[i]++;
            }
        }
        if (waits_for[i] == 0 && l->units[i].key != LAST)
            push(&ready, i);
    }
    for (; ready.n > 0; done++) {
        int next = pop(&ready);
        emit(l, &l->units[next], out);
        for (int i = 0; i < users[next].n; i++)
            if (--waits_for[users[next].at[i]] == 0 && l->units[users[next].at[i]].key != LAST)
                push(&ready, users[next].at[i]);
    }
    for (int i = 0; i < n; i++)
        if (l->units[i].key == LAST) {
            emit(l, &l->units[i], out);
            done++;
        }
    CHECK(done == n, "graph %s: expected the kernels to have an order", l->state->graph->name);
}

/* -- a graph in rounds -------------------------------------------------------------------------------------------------- */

static lower_state *new_state(const ir_graph *graph, base_arena *arena)
{
    lower_state *state = ARENA_NEW(arena, lower_state, 1);
    state->graph = graph;
    state->arena = arena;
    for (ir_node *node = graph->first; node; node = node->next)
        node->mark = state->n_infos++;
    state->infos = ARENA_NEW(arena, node_info, state->n_infos);
    state->n_clusters = state->n_infos;
    state->clusters = ARENA_NEW(arena, node_cluster *, state->n_clusters);
    for (ir_node *node = graph->first; node; node = node->next)
        state->infos[node->mark] = (node_info){ .node = node, .cluster = -1 };
    return state;
}

/* A body's parameter may be a view of memory outside; here it is needed row by row. */
static void copy_parameter(lowering *l, ir_node *node)
{
    node_info *info = INFO(l->state, node);
    node_place place = new_place(l, node);
    unit *u = new_unit(l, -1);
    info->stored = true;
    copy_to(l, &u->kernels, node, &place, false, "copy");
    info->place = place;
}

/* finish adds the units that take the graph's results to where they belong. */
static void lower_graph(kl_program *program, const ir_graph *graph, const node_place *params, base_arena *scratch,
                        void (*finish)(lowering *l, void *context), void *context, kernel_list *out)
{
    lowering l = { .program = program, .scratch = scratch };
    int n_nodes = new_state(graph, scratch)->n_infos, n_buffers = program->n_buffers, n_repeats = program->n_repeats;
    l.forced = ARENA_NEW(scratch, bool, n_nodes);
    l.forced_dense = ARENA_NEW(scratch, bool, n_nodes);
    l.forced_apart = ARENA_NEW(scratch, bool, n_nodes);
    for (;;) {
        program->n_buffers = n_buffers;
        program->n_repeats = n_repeats;
        lower_state *state = l.state = new_state(graph, scratch);
        l.n_units = l.cap_units = 0;
        l.units = NULL;
        l.again = l.progress = false;
        for (int i = 0; i < n_nodes; i++) {
            node_info *info = &state->infos[i];
            info->stored = l.forced[i];
            info->never_inline = l.forced_apart[i];
            info->keep_dense = l.forced_dense[i] || info->node->op == OP_scatter_add;
            if (info->node->op == OP_parameter)
                info->place = params[info->node->attr.index];
            if (info->node->op == OP_parameter && l.forced_dense[i] && !info->place.dense)
                copy_parameter(&l, info->node);
            if (info->node->op == OP_literal) {
                int64_t bytes = ir_type_bytes(&info->node->type);
                void *data = base_arena_alloc(program->arena, (size_t)bytes);
                memcpy(data, info->node->attr.data, (size_t)bytes);
                info->place = (node_place){ .placed = true, .dense = true };
                info->place.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_CONST, .dtype = info->node->type.dtype,
                                                                         .count = ir_type_count(&info->node->type), .data = data });
                ir_row_major(&info->node->type, info->place.stride);
            }
        }
        kl_cluster(state);
        kl_place(state, program);
        for (ir_node *node = graph->first; node; node = node->next) {
            node_info *info = INFO(state, node);
            if (info->cluster < 0 && (info->stored || role_of(node) == ROLE_ANCHOR))
                lower_node(&l, node);
            else if (info->cluster == (int)node->mark)
                lower_cluster(&l, state->clusters[info->cluster]);
        }
        finish(&l, context);
        if (!l.again)
            break;
        CHECK(l.progress, "graph %s: expected each round of the lowering to store a node more", graph->name);
    }
    order_units(&l, out);
}

/* -- the program -------------------------------------------------------------------------------------------------------- */

/* Results go to their memory at the very end: it may be that of a parameter, which everything else has read by then. */
static void end_program(lowering *l, void *context)
{
    const ir_graph *graph = l->state->graph;
    kl_program *program = l->program;
    node_place *via = ARENA_NEW(l->scratch, node_place, graph->n_results);
    unit *u = new_unit(l, LAST);
    kernel_list list = {0};
    size_t at = (size_t)(u - l->units);
    (void)context;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < graph->n_results; i++) {
            ir_node *node = graph->results[i];
            const ir_node *base = view_base(l->state, node);
            bool stays = node->op == OP_parameter && graph->donated[i] == node->attr.index;
            bool donated = false;
            for (int j = 0; j < graph->n_results && base->op == OP_parameter; j++)
                donated |= graph->donated[j] == base->attr.index;
            if (pass == 0 && donated && !stays) {         /* another result will overwrite what this one reads */
                via[i] = new_place(l, node);
                copy_to(l, &list, node, &via[i], false, "result");
            }
            if (pass == 0)
                continue;
            node_place place = { .placed = true, .dense = true };
            place.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_RESULT, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                               .index = i, .donated = graph->donated[i],
                                                               .name = graph->result_names[i] ? base_arena_text(program->arena, "%s", graph->result_names[i]) : NULL });
            ir_row_major(&node->type, place.stride);
            if (stays)
                continue;
            node_info *info = INFO(l->state, node), saved = *info;
            if (via[i].placed) {
                info->stored = true;
                info->place = via[i];
            }
            copy_to(l, &list, node, &place, false, "result");
            *info = saved;
        }
    }
    l->units[at].kernels = list;
}

kl_program *kl_lower(const ir_graph *graph)
{
    kl_program *program;
    base_arena *arena = base_arena_new(), *scratch = base_arena_new();
    program = ARENA_NEW(arena, kl_program, 1);
    program->arena = arena;
    program->name = base_arena_text(arena, "%s", graph->name);
    program->n_params = graph->n_params;
    program->n_results = graph->n_results;
    node_place *params = ARENA_NEW(scratch, node_place, graph->n_params);
    for (int i = 0; i < graph->n_params; i++) {
        const ir_node *node = graph->params[i];
        params[i] = (node_place){ .placed = true, .dense = true };
        params[i].buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_PARAM, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                               .index = i, .name = node->attr.name ? base_arena_text(arena, "%s", node->attr.name) : NULL });
        ir_row_major(&node->type, params[i].stride);
    }
    kernel_list list = {0};
    lower_graph(program, graph, params, scratch, end_program, NULL, &list);
    program->kernels = list.at;
    program->n_kernels = list.n;
    base_arena_free(scratch);
    kl_coalesce(program);
    kl_accumulate(program);
    kl_tidy(program);
    return program;
}
