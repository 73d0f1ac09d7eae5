/* Kernels of their own: products, attention, scatter, concatenations, padding. Operands are taken where they lie. */
#include "ir/lower.h"

#include <string.h>

/* -- operands ----------------------------------------------------------------------------------------------------------- */

/* An operand as it lies, through any views. Where that is no place it is stored in the next round. */
bool kl_operand_place(lowering *l, ir_node *node, node_place *place)
{
    if (kl_place_of_view(l->state, node, place))
        return true;
    kl_must_store(l, node, true);
    return false;
}

/* The same, its elements in row-major order taken for those of another type. */
static bool operand_place_as(lowering *l, ir_node *node, const ir_type *type, node_place *place)
{
    node_place own;
    if (!kl_operand_place(l, node, &own))
        return false;
    if (kl_place_through_reshape(type, &node->type, &own, place))
        return true;
    kl_must_store(l, node, true);
    return false;
}

static kl_view view_of_place(const node_place *place, int rank)
{
    kl_view view = { .buffer = place->buffer, .offset = place->offset };
    for (int i = 0; i < rank; i++)
        view.stride[i] = place->stride[i];
    return view;
}

/* -- kernels ------------------------------------------------------------------------------------------------------------ */

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

static void lower_matmul(lowering *l, kl_sequence *list, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    int rank = node->type.rank, n_batch = rank - 2;
    const node_place *out = &INFO(l->state, node)->place;
    node_place a, b;
    if (ir_type_count(&node->type) == 0)
        return;
    bool ok = kl_operand_place(l, lhs, &a);
    ok = kl_operand_place(l, rhs, &b) && ok;
    if (!ok)
        return;
    int64_t m = node->type.dim[rank - 2], n = node->type.dim[rank - 1], k = lhs->type.dim[rank - 1];
    ir_dtype sum = lhs->type.dtype == IR_F64 ? IR_F64 : IR_F32;

    kl_contraction *c = &kl_new_kernel(l, list, KL_CONTRACTION, node, "matmul")->contraction;
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
kl_view kl_result_view(lowering *l, ir_node *tuple, int index)
{
    const ir_type *type = &tuple->tuple[index];
    for (ir_node *node = INFO(l->state, tuple)->results; node; node = INFO(l->state, node)->results)
        if (node->attr.index == index)
            return view_of_place(&INFO(l->state, node)->place, type->rank);
    node_place place = { .buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_TEMP, .dtype = type->dtype, .count = ir_type_count(type),
                                                                          .place = tuple->place }) };
    ir_row_major(type, place.stride);
    return view_of_place(&place, type->rank);
}

static void lower_attention(lowering *l, kl_sequence *list, ir_node *node)
{
    bool backward = node->op == OP_attention_vjp, ok = true;
    int n_views = backward ? 7 : 3;
    node_place places[9];
    for (int i = 0; i < node->n_args; i++) {
        const ir_node *base = kl_view_base(l->state, node->args[i]);
        places[i] = (node_place){ .buffer = -1 };
        if (i != 6 || !backward || base->op != OP_constant || base->attr.value != 0)        /* lse's cotangent is mostly zeros: no memory */
            ok = kl_operand_place(l, node->args[i], &places[i]) && ok;
    }
    if (!ok)
        return;
    const ir_type *q = &node->args[0]->type, *k = &node->args[1]->type;
    kl_kernel *kernel = kl_new_kernel(l, list, KL_ATTENTION, node, backward ? "attention_vjp" : "attention");
    kl_attention *a = kernel->attention = ARENA_NEW(l->program->arena, kl_attention, 1);
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
        a->dq = kl_result_view(l, node, 0);
        a->dk = kl_result_view(l, node, 1);
        a->dv = kl_result_view(l, node, 2);
        a->grad_dtype = node->tuple[0].dtype;
    } else {
        a->out = kl_result_view(l, node, 0);
        a->lse = kl_result_view(l, node, 1);
        a->dout.buffer = a->dlse.buffer = a->dq.buffer = a->dk.buffer = a->dv.buffer = -1;
    }
}

static void lower_scatter(lowering *l, kl_sequence *list, ir_node *node)
{
    ir_node *indices = node->args[1], *updates = node->args[2];
    const node_place *place = &INFO(l->state, node)->place;
    int axis = node->attr.axis;
    kl_scatter s = { .pre = 1, .post = 1, .positions = ir_type_count(&indices->type), .rows = node->type.dim[axis], .dtype = node->type.dtype };
    for (int i = 0; i < node->type.rank; i++)
        *(i < axis ? &s.pre : &s.post) *= i == axis ? 1 : node->type.dim[i];
    ir_type box = ir_type_of(updates->type.dtype, 3, (int64_t[]){ s.pre, s.positions, s.post }), line = ir_type_of(IR_I32, 1, &s.positions);
    node_place from, at;
    kl_copy_to(l, list, node->args[0], place, false, "scatter_base");
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
    kl_new_kernel(l, list, KL_SCATTER, node, "scatter_add")->scatter = s;
}

static void lower_concatenate(lowering *l, kl_sequence *list, ir_node *node)
{
    node_place part = INFO(l->state, node)->place;
    part.dense = false;
    for (int i = 0; i < node->n_args; i++) {
        ir_node *x = node->args[i];
        const node_place *base = &INFO(l->state, kl_view_base(l->state, x))->place;
        if (!base->placed || base->buffer != part.buffer)     /* else it was made in its part: see place.c */
            kl_copy_to(l, list, x, &part, false, "concatenate");
        part.offset += x->type.dim[node->attr.axis] * part.stride[node->attr.axis];
    }
}

static void lower_pad(lowering *l, kl_sequence *list, ir_node *node)
{
    node_place place = INFO(l->state, node)->place;
    kl_fill(l, list, node, &place, node->attr.value);
    for (int i = 0; i < node->type.rank; i++)
        place.offset += node->attr.start[i] * place.stride[i];
    place.dense = false;
    kl_copy_to(l, list, node->args[0], &place, false, "pad");
}

void kl_lower_anchor(lowering *l, kl_sequence *list, ir_node *node)
{
    if (node->op == OP_matmul)
        lower_matmul(l, list, node);
    else if (node->op == OP_attention || node->op == OP_attention_vjp)
        lower_attention(l, list, node);
    else if (node->op == OP_scatter_add)
        lower_scatter(l, list, node);
    else if (node->op == OP_update_slice)
        kl_lower_update_slice(l, list, node);
    else if (node->op == OP_concatenate)
        lower_concatenate(l, list, node);
    else if (node->op == OP_pad)
        lower_pad(l, list, node);
    else if (node->op == OP_scan)
        kl_lower_scan(l, list, node);
    else
        CHECK(false, "%%%d %s: expected an op that kernels are known for; composites must have been decomposed", node->id, OP_NAME(node->op));
}
