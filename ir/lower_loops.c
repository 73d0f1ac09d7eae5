/* Loops: a cluster's outputs by way of lower_eval.c, copies of values to places, fills, slices updated. */
#include "ir/lower.h"

#include <string.h>

/* -- outputs ----------------------------------------------------------------------------------------------------------- */

static void add_output(loop_builder *b, kl_output_kind kind, int expr, kl_view view)
{
    loop_room *room = &b->l->room;
    b->loop.outputs = room->outputs = base_arena_grown(b->l->scratch, room->outputs, b->loop.n_outputs, &room->cap_outputs, sizeof(kl_output));
    b->loop.outputs[b->loop.n_outputs++] = (kl_output){ kind, expr, view, false };
}

/* The forms of type's axes where its linear index runs over the axes [from, to) of the loop. */
static bool spread(loop_builder *b, const ir_node *node, const ir_type *type, int from, int to, index_form *where)
{
    index_form linear = kl_form_linear(&b->space, from, to);
    form_refinement how;
    switch (kl_form_split(&b->space, &linear, type->dim, type->rank, where, &how)) {
    case FORM_OK:
        return true;
    case FORM_REFINE:
        kl_eval_refined(b, node, &how);
        return false;
    case FORM_NONE:
        break;
    }
    kl_eval_failed(b, (ir_node *)node, false);
    return false;
}

/* A value that stays the same along its row is added once a row: the row's sum of it. */
static int times_inner(loop_builder *b, int expr, int64_t inner)
{
    ir_dtype dtype = b->loop.exprs[expr].dtype, wide = dtype == IR_BF16 ? IR_F32 : dtype;
    if (inner == 1)
        return expr;
    if (wide != dtype)
        expr = kl_add_op(b, OP_cast, wide, 1, &expr);
    expr = kl_add_op(b, OP_mul, wide, 2, (int[]){ expr, kl_add_value(b, wide, (double)inner) });
    return wide == dtype ? expr : kl_add_op(b, OP_cast, dtype, 1, &expr);
}

static void output(loop_builder *b, ir_node *node)
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
    if (kl_is_outer_sum(node)) {
        ir_node *x = node->args[0];
        bool of_rows = ir_type_count(&x->type) != total;
        CHECK(!of_rows || ir_type_count(&x->type) == rows, "%%%d: expected a full or a row value under the sum", node->id);
        kind = kl_kind_of_reduce(node) == REDUCE_LEADING ? KL_SUM_OUTER : KL_SUM_ALL;
        if (!spread(b, x, &x->type, 0, of_rows ? space->n_outer : space->n_axes, where) ||
            !spread(b, node, &node->type, kind == KL_SUM_OUTER ? space->n_outer : space->n_axes, space->n_axes, at))
            return;
        expr = kl_eval(b, x, where);
        if (expr >= 0 && kind == KL_SUM_ALL && !of_rows && b->loop.exprs[expr].row)
            expr = times_inner(b, expr, total / rows);
    } else {
        bool row = count != total;
        if (!spread(b, node, &node->type, 0, row ? space->n_outer : space->n_axes, where))
            return;
        memcpy(at, where, sizeof at);
        expr = kl_eval(b, node, where);
    }
    kl_view view;
    if (expr < 0)
        return;
    kl_view_at(b->l->program, place, &node->type, at, space->n_axes, &view);
    add_output(b, kind, expr, view);
}

/* No room for another axis. Memory that is row-major is read at any linear index, without axes; where it is this loop itself that
 * computes what is read, its nodes are computed one by one. */
static void too_many_axes(loop_builder *b)
{
    lowering *l = b->l;
    if (!kl_is_computed_here(b, b->behind)) {
        kl_must_store(l, b->behind, true);
        return;
    }
    for (int i = 0; b->cluster >= 0 && i < l->state->clusters[b->cluster]->n_nodes; i++) {
        const ir_node *node = l->state->clusters[b->cluster]->nodes[i];
        kl_must_store(l, node, true);
        kl_force(l, &l->forced_apart[node->mark]);
    }
}

/* Starts the loop_builder over with the axis split that it asked for. False where it asked for none, or there is no room for it. */
static bool retry_refined(loop_builder *b)
{
    loop_builder fresh = { .l = b->l, .space = b->space, .cluster = b->cluster, .root = b->root };
    if (!b->failed || !b->refine)
        return false;
    if (!kl_space_refine(&fresh.space, &b->how)) {
        too_many_axes(b);
        return false;
    }
    *b = fresh;
    return true;
}

static void finish_loop(loop_builder *b, kl_loop *loop)
{
    *loop = kl_copy_loop(b->l->program->arena, &b->loop, 0);
    loop->n_axes = b->space.n_axes;
    loop->n_outer = b->space.n_outer;
    memcpy(loop->extent, b->space.extent, sizeof loop->extent);
    kl_merge_axes(loop);
}

/* A row is the last axis. */
static index_space space_of_type(const ir_type *type)
{
    index_space space = { .n_axes = MAX(1, type->rank), .extent = { 1 } };
    space.n_outer = space.n_axes - 1;
    for (int i = 0; i < type->rank; i++)
        space.extent[i] = type->dim[i];
    return space;
}

/* Room for a loop over no elements: whatever has elements is what sums and maxima of nothing are. */
void kl_fill(lowering *l, kl_sequence *list, ir_node *node, const node_place *place, double value)
{
    loop_builder b = { .l = l, .cluster = -1, .space = space_of_type(&node->type) };
    index_form where[IR_MAX_RANK];
    kl_view view;
    if (ir_type_count(&node->type) == 0)
        return;
    for (int i = 0; i < node->type.rank; i++)
        where[i] = kl_form_axis(i);
    kl_view_at(l->program, place, &node->type, where, b.space.n_axes, &view);
    add_output(&b, KL_STORE, kl_add_value(&b, node->type.dtype, value), view);
    finish_loop(&b, &kl_new_kernel(l, list, KL_LOOP, node, "fill")->loop);
}

/* A loop that writes node, computed in place where it is not stored or is `root`, to `place` of node's type. */
void kl_copy_to(lowering *l, kl_sequence *list, ir_node *node, const node_place *place, bool root, const char *name)
{
    if (ir_type_count(&node->type) == 0)
        return;
    loop_builder b = { .l = l, .cluster = -1, .root = root ? node : NULL, .space = space_of_type(&node->type) };
    do {
        index_form where[IR_MAX_RANK];
        kl_view view;
        if (spread(&b, node, &node->type, 0, b.space.n_axes, where)) {
            int expr = kl_eval(&b, node, where);
            if (expr >= 0) {
                kl_view_at(l->program, place, &node->type, where, b.space.n_axes, &view);
                add_output(&b, KL_STORE, expr, view);
            }
        }
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &kl_new_kernel(l, list, KL_LOOP, node, name)->loop);
}

/* -- clusters --------------------------------------------------------------------------------------------------------- */

static index_space space_of(const node_cluster *cluster)
{
    index_space space = {0};
    if (cluster->alone) {
        const ir_node *node = cluster->nodes[0];
        const ir_type *type = &node->args[0]->type;
        if (kl_is_reduce(node)) {                            /* what stays, then what goes */
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

void kl_lower_cluster(lowering *l, const node_cluster *cluster)
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
    lower_unit *u = kl_new_unit(l, key);
    if (cluster->total == 0) {
        for (int i = 0; i < cluster->n_nodes; i++) {
            ir_node *node = cluster->nodes[i];
            if (INFO(l->state, node)->stored && ir_type_count(&node->type) > 0)
                kl_fill(l, &u->kernels, node, &INFO(l->state, node)->place, of_nothing(node));
        }
        return;
    }
    loop_builder b = { .l = l, .space = space_of(cluster), .cluster = cluster->id };
    do {
        for (int i = 0; i < cluster->n_nodes && !b.failed; i++)
            if (INFO(l->state, cluster->nodes[i])->stored)
                output(&b, cluster->nodes[i]);
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &kl_new_kernel(l, &u->kernels, KL_LOOP, last, name_of(l, cluster))->loop);
}

/* -- update_slice ------------------------------------------------------------------------------------------------------ */

void kl_lower_update_slice(lowering *l, kl_sequence *list, ir_node *node)
{
    ir_node *base = node->args[0], *update = node->args[1];
    const node_place *place = &INFO(l->state, node)->place;
    kl_copy_to(l, list, base, place, false, "update_base");
    if (ir_type_count(&update->type) == 0)
        return;
    loop_builder b = { .l = l, .cluster = -1, .space = space_of_type(&update->type) };
    do {
        index_form where[IR_MAX_RANK], at[IR_MAX_RANK];
        kl_view view;
        if (!spread(&b, update, &update->type, 0, b.space.n_axes, where))
            continue;
        int expr = kl_eval(&b, update, where);
        memcpy(at, where, sizeof at);
        for (int i = 0; i < update->type.rank && expr >= 0; i++) {
            int64_t limit = base->type.dim[i] - update->type.dim[i];
            if (limit > 0 && !kl_add_dynamic(&b, &at[i], node->args[2 + i], NULL, limit))
                expr = -1;
        }
        if (expr < 0)
            continue;
        if (!kl_view_at(l->program, place, &node->type, at, b.space.n_axes, &view)) {
            kl_eval_failed(&b, update, true);
            continue;
        }
        add_output(&b, KL_STORE, expr, view);
    } while (retry_refined(&b));
    if (!b.failed)
        finish_loop(&b, &kl_new_kernel(l, list, KL_LOOP, node, "update_slice")->loop);
}
