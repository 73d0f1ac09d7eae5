/* A loop's expressions, from its outputs backwards: kl_eval(node, where) gives the expression of node's element at the index forms
 * `where`, which view ops rewrite on the way down to a load.
 *
 *     y = transpose(x) + b, y stored, loop axes (i, j)        eval(y, (i, j)):  add(eval(transpose(x), (i, j)), eval(b, (i, j)))
 *                                                             eval(x, (j, i)):  load x, strides 1 and n
 *
 * Where a reshape cuts across the loop's axes, an axis is split in two and the loop is built again (refined); where that
 * cannot help, what is read must be stored, and the whole graph is lowered again (failed). */
#include "ir/lower.h"

#include <string.h>

/* -- expressions -------------------------------------------------------------------------------------------------------- */

static bool expr_equal(const kl_expr *a, const kl_expr *b)
{
    if (a->kind != b->kind || a->op != b->op || a->dtype != b->dtype || a->n_args != b->n_args ||
        memcmp(&a->value, &b->value, sizeof a->value) || a->site != b->site ||
        memcmp(a->args, b->args, sizeof a->args) || a->view.buffer != b->view.buffer || a->view.offset != b->view.offset ||
        memcmp(a->view.stride, b->view.stride, sizeof a->view.stride) || a->view.n_dynamic != b->view.n_dynamic)
        return false;
    return !a->view.n_dynamic || !memcmp(a->view.dynamic, b->view.dynamic, sizeof(kl_dynamic) * (size_t)a->view.n_dynamic);
}

static int add_expr(loop_builder *b, kl_expr expr)
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
    loop_room *room = &b->l->room;
    loop->exprs = room->exprs = base_arena_grown(b->l->scratch, room->exprs, loop->n_exprs, &room->cap_exprs, sizeof(kl_expr));
    loop->exprs[loop->n_exprs] = expr;
    return loop->n_exprs++;
}

int kl_add_op(loop_builder *b, ir_op op, ir_dtype dtype, int n, const int *args)
{
    kl_expr expr = { .kind = KL_OP, .op = op, .dtype = dtype, .n_args = n, .view.buffer = -1 };
    for (int i = 0; i < n; i++)
        expr.args[i] = args[i];
    return add_expr(b, expr);
}

int kl_add_value(loop_builder *b, ir_dtype dtype, double value)
{
    return add_expr(b, (kl_expr){ .kind = KL_VALUE, .dtype = dtype, .value = value, .view.buffer = -1 });
}

static void view_from_form(kl_program *program, int buffer, const index_form *form, kl_view *view)
{
    *view = (kl_view){ .buffer = buffer, .offset = form->offset };
    memcpy(view->stride, form->coef, sizeof view->stride);
    if (form->n_dynamic) {
        view->n_dynamic = form->n_dynamic;
        view->dynamic = ARENA_NEW(program->arena, kl_dynamic, form->n_dynamic);
        memcpy(view->dynamic, form->dynamic, sizeof(kl_dynamic) * (size_t)form->n_dynamic);
    }
}

/* The view of a placed value at the forms of its axes. */
bool kl_view_at(kl_program *program, const node_place *place, const ir_type *type, const index_form *where, int n_axes, kl_view *view)
{
    index_form at = kl_form_constant(place->offset);
    for (int i = 0; i < type->rank; i++)
        if (!kl_form_add(&at, &where[i], place->stride[i], n_axes))
            return false;
    view_from_form(program, place->buffer, &at, view);
    return true;
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
            below[i] = type->dim[i] == 1 ? kl_form_constant(0) : where[node->attr.axes[i]];
    } else if (node->op == OP_slice) {
        for (int i = 0; i < type->rank; i++) {
            below[i] = where[i];
            below[i].offset += node->attr.start[i];
        }
    } else if (node->op == OP_reshape) {
        index_form linear;
        if (!kl_form_merge(where, node->type.dim, node->type.rank, space->n_axes, &linear))
            return FORM_NONE;
        return kl_form_split(space, &linear, type->dim, type->rank, below, how);
    } else {                                              /* identities once gradients are taken */
        for (int i = 0; i < type->rank; i++)
            below[i] = where[i];
    }
    return FORM_OK;
}

/* -- eval -------------------------------------------------------------------------------------------------------------- */

int kl_eval_failed(loop_builder *b, ir_node *node, bool dense)
{
    kl_must_store(b->l, node, dense);
    b->failed = true;
    return -1;
}

/* The loop is to be built again with another axis. */
int kl_eval_refined(loop_builder *b, const ir_node *behind, const form_refinement *how)
{
    b->failed = b->refine = true;
    b->how = *how;
    b->behind = behind;
    return -1;
}

static int load(loop_builder *b, ir_node *node, const index_form *where)
{
    kl_expr expr = { .kind = KL_LOAD, .dtype = node->type.dtype };
    if (!kl_view_at(b->l->program, &INFO(b->l->state, node)->place, &node->type, where, b->space.n_axes, &expr.view))
        return kl_eval_failed(b, node, false);
    return add_expr(b, expr);
}

/* Whether node's value is an expression of this loop, stored or not. */
bool kl_is_computed_here(const loop_builder *b, const ir_node *node)
{
    int cluster = INFO(b->l->state, node)->cluster;
    return node == b->root || (cluster >= 0 && cluster == b->cluster && !kl_is_outer_sum(node));
}

static int eval_view(loop_builder *b, ir_node *node, const index_form *where)
{
    ir_node *x = node->args[0];
    const node_info *info = INFO(b->l->state, x);
    index_form below[IR_MAX_RANK];
    form_refinement how;
    if (node->op == OP_reshape && info->stored && info->place.placed && info->place.dense && !kl_is_computed_here(b, x)) {
        index_form linear;                                /* row-major memory needs no coordinates */
        kl_expr expr = { .kind = KL_LOAD, .dtype = x->type.dtype };
        if (kl_form_merge(where, node->type.dim, node->type.rank, b->space.n_axes, &linear)) {
            linear.offset += info->place.offset;
            view_from_form(b->l->program, info->place.buffer, &linear, &expr.view);
            return add_expr(b, expr);
        }
    }
    switch (forms_below(&b->space, node, where, below, &how)) {
    case FORM_OK:
        return kl_eval(b, x, below);
    case FORM_REFINE:
        return kl_eval_refined(b, x, &how);
    case FORM_NONE:
        break;
    }
    return kl_eval_failed(b, x, true);
}

/* A dynamic term for a form: the i32 scalar `start`, kept within [0, limit]. */
bool kl_add_dynamic(loop_builder *b, index_form *form, ir_node *start, const index_form *where, int64_t limit)
{
    int expr = kl_eval(b, start, where);
    if (expr >= 0)
        form->dynamic[form->n_dynamic++] = (kl_dynamic){ expr, 1, limit };
    return expr >= 0;
}

static int eval_indexed(loop_builder *b, ir_node *node, const index_form *where)
{
    ir_node *x = node->args[0];
    index_form below[IR_MAX_RANK];
    int n_dynamic = x->type.rank;                         /* what the load may come to have */
    for (int i = 0; i < node->type.rank; i++)
        n_dynamic += where[i].n_dynamic;
    if (n_dynamic > KL_MAX_DYNAMIC)
        return kl_eval_failed(b, node, false);
    if (node->op == OP_gather) {
        int axis = node->attr.axis, more = node->args[1]->type.rank;
        for (int i = 0; i < x->type.rank; i++)
            below[i] = i < axis ? where[i] : i > axis ? where[i + more - 1] : kl_form_constant(0);
        if (!kl_add_dynamic(b, &below[axis], node->args[1], where + axis, x->type.dim[axis] - 1))
            return -1;
    } else {
        for (int i = 0; i < x->type.rank; i++) {
            below[i] = where[i];
            int64_t limit = x->type.dim[i] - node->type.dim[i];
            if (limit > 0 && !kl_add_dynamic(b, &below[i], node->args[1 + i], NULL, limit))
                return -1;
        }
    }
    return kl_eval(b, x, below);
}

static int eval_random(loop_builder *b, ir_node *node, const index_form *where)
{
    kl_expr expr = { .kind = KL_RANDOM, .op = node->op, .dtype = IR_I32, .n_args = 3, .site = node->attr.site };
    index_form linear, first = kl_form_constant(0), second = kl_form_constant(1);
    if (!kl_form_merge(where, node->type.dim, node->type.rank, b->space.n_axes, &linear) || linear.n_dynamic)
        return kl_eval_failed(b, node, false);
    expr.args[0] = kl_eval(b, node->args[0], &first);
    expr.args[1] = kl_eval(b, node->args[0], &second);
    expr.args[2] = kl_eval(b, node->args[1], NULL);
    if (b->failed)
        return -1;
    view_from_form(b->l->program, -1, &linear, &expr.view);
    return add_expr(b, expr);
}

static int eval_iota(loop_builder *b, ir_node *node, const index_form *where)
{
    const index_form *form = &where[node->attr.axis];
    kl_expr expr = { .kind = KL_INDEX, .dtype = IR_I32, .view = { .buffer = -1, .offset = form->offset } };
    memcpy(expr.view.stride, form->coef, sizeof expr.view.stride);
    int sum = add_expr(b, expr);
    for (int i = 0; i < form->n_dynamic; i++) {
        const kl_dynamic *term = &form->dynamic[i];
        int low = kl_add_op(b, OP_max, IR_I32, 2, (int[]){ term->expr, kl_add_value(b, IR_I32, 0) });
        int within = kl_add_op(b, OP_min, IR_I32, 2, (int[]){ low, kl_add_value(b, IR_I32, (double)term->limit) });
        int scaled = kl_add_op(b, OP_mul, IR_I32, 2, (int[]){ within, kl_add_value(b, IR_I32, (double)term->stride) });
        sum = kl_add_op(b, OP_add, IR_I32, 2, (int[]){ sum, scaled });
    }
    return node->type.dtype == IR_I32 ? sum : kl_add_op(b, OP_cast, node->type.dtype, 1, &sum);
}

/* A reduction inside its loop: its own axes are the row, what it goes over is the row's inside. */
static int eval_reduce(loop_builder *b, ir_node *node, const index_form *where)
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
                return kl_eval_failed(b, node, false);
    }
    if (inner != size)
        return kl_eval_failed(b, node, false);
    index_form linear = kl_form_linear(&b->space, b->space.n_outer, b->space.n_axes);
    switch (kl_form_split(&b->space, &linear, dim, n, part, &how)) {
    case FORM_REFINE:
        return kl_eval_refined(b, node, &how);
    case FORM_NONE:
        return kl_eval_failed(b, node, false);
    case FORM_OK:
        break;
    }
    for (int i = 0, kept = 0, lost = 0; i < x->type.rank; i++)
        below[i] = gone[i] ? part[lost++] : where[kept++];
    kl_expr expr = { .kind = KL_REDUCE, .op = node->op, .dtype = node->type.dtype, .n_args = 1, .view.buffer = -1 };
    expr.args[0] = kl_eval(b, x, below);
    return expr.args[0] < 0 ? -1 : add_expr(b, expr);
}

static int eval_fresh(loop_builder *b, ir_node *node, const index_form *where)
{
    const node_info *info = INFO(b->l->state, node);
    if (node->op == OP_constant)
        return kl_add_value(b, node->type.dtype, node->attr.value);
    if (node->op == OP_iota)
        return eval_iota(b, node, where);
    bool here = kl_is_computed_here(b, node);
    if (info->stored && !here)
        return load(b, node, where);
    switch (kl_role_of(node)) {
    case ROLE_VIEW:
        return eval_view(b, node, where);
    case ROLE_LOOP:
        break;
    case ROLE_LEAF:
    case ROLE_ANCHOR:
        CHECK(false, "%%%d %s: expected to be stored", node->id, OP_NAME(node->op));
    }
    if (kl_is_reduce(node))
        return here ? eval_reduce(b, node, where) : kl_eval_failed(b, node, false);
    if (node->op == OP_random_bits)
        return eval_random(b, node, where);
    if (node->op == OP_gather || node->op == OP_dynamic_slice)
        return eval_indexed(b, node, where);
    int args[KL_MAX_ARGS];
    for (int i = 0; i < node->n_args; i++)
        if ((args[i] = kl_eval(b, node->args[i], where)) < 0)
            return -1;
    return kl_add_op(b, node->op, node->type.dtype, node->n_args, args);
}

/* Puts the forms down for forms_are_at; the number of the first word. */
static int keep_forms(loop_builder *b, int n, const index_form *where)
{
    loop_room *room = &b->l->room;
    int first = b->n_forms, words = 0;
    for (int i = 0; i < n; i++)
        words += 2 + b->space.n_axes + 3 * where[i].n_dynamic;
    while (first + words > room->cap_forms)
        room->forms = base_arena_grown(b->l->scratch, room->forms, room->cap_forms, &room->cap_forms, sizeof(int64_t));
    int64_t *to = &room->forms[first];
    for (int i = 0; i < n; i++) {
        *to++ = where[i].offset;
        for (int axis = 0; axis < b->space.n_axes; axis++)
            *to++ = where[i].coef[axis];
        *to++ = where[i].n_dynamic;
        for (int j = 0; j < where[i].n_dynamic; j++) {
            *to++ = where[i].dynamic[j].expr;
            *to++ = where[i].dynamic[j].stride;
            *to++ = where[i].dynamic[j].limit;
        }
    }
    b->n_forms = first + words;
    return first;
}

static bool forms_are_at(const loop_builder *b, const int64_t *kept, int n, const index_form *where)
{
    for (int i = 0; i < n; i++) {
        const index_form *form = &where[i];
        if (*kept++ != form->offset)
            return false;
        for (int axis = 0; axis < b->space.n_axes; axis++)
            if (*kept++ != form->coef[axis])
                return false;
        if (*kept++ != form->n_dynamic)
            return false;
        for (int j = 0; j < form->n_dynamic; j++, kept += 3)
            if (kept[0] != form->dynamic[j].expr || kept[1] != form->dynamic[j].stride || kept[2] != form->dynamic[j].limit)
                return false;
    }
    return true;
}

int kl_eval(loop_builder *b, ir_node *node, const index_form *where)
{
    loop_room *room = &b->l->room;
    if (b->failed)
        return -1;
    for (int i = 0; i < b->n_done; i++)
        if (room->done[i].node == node && forms_are_at(b, &room->forms[room->done[i].form], node->type.rank, where))
            return room->done[i].expr;
    int expr = eval_fresh(b, node, where);
    if (expr < 0)
        return -1;
    room->done = base_arena_grown(b->l->scratch, room->done, b->n_done, &room->cap_done, sizeof(evaluated));
    int form = keep_forms(b, node->type.rank, where);
    room->done[b->n_done++] = (evaluated){ node, form, expr };
    return expr;
}
