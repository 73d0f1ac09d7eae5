/* scan: a repeat. Carries lie where the scan's results do, begin as copies of the operands, and get their next values by copies at the
 * end of the body; slices and ys are moving views. coalesce.c drops what copies it can. */
#include "ir/lower.h"

#include <string.h>

typedef struct { const ir_node *scan; node_place *carries, *ys; } scan_ends;

/* Whether a value is a view of a parameter's memory that is about to be overwritten. */
static bool reads_param(const lowering *l, const ir_node *node, int from, int to)
{
    const ir_node *base = kl_view_base(l->state, node);
    return base->op == OP_parameter && base->attr.index >= from && base->attr.index < to;
}

/* The end of a body: what the next iteration starts from, and the ys. */
static void end_iteration(lowering *l, void *context)
{
    scan_ends *ends = context;
    const ir_graph *body = l->state->graph;
    int n_carry = ends->scan->attr.n_carry;
    lower_unit *u = kl_new_unit(l, UNIT_LAST);
    node_place *via = ARENA_NEW(l->scratch, node_place, body->n_results);
    for (int i = 0; i < body->n_results; i++) {
        ir_node *node = body->results[i];
        if (i < n_carry && node->op == OP_parameter && node->attr.index == i)
            continue;                                     /* stays what it was */
        if (i < n_carry && reads_param(l, node, 0, n_carry)) {
            via[i] = kl_new_place(l, node);                  /* of another carry, which may be overwritten first */
            kl_copy_to(l, &u->kernels, node, &via[i], false, "carry");
        }
        if (i >= n_carry)
            kl_copy_to(l, &u->kernels, node, &ends->ys[i - n_carry], false, "stack");
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
        kl_copy_to(l, &u->kernels, node, &ends->carries[i], false, "carry");
        *info = saved;
    }
}

static node_place place_of_result(lowering *l, ir_node *scan, int index)
{
    kl_view view = kl_result_view(l, scan, index);
    node_place place = { .buffer = view.buffer, .offset = view.offset, .placed = true };
    memcpy(place.stride, view.stride, sizeof place.stride);
    place.dense = kl_is_dense(&scan->tuple[index], place.stride);
    return place;
}

/* What iteration number i has of a value: element i of its first axis, in a buffer that moves. */
static node_place moving_slice(lowering *l, const ir_type *type, const node_place *whole, int repeat)
{
    ir_type slice = ir_type_of(type->dtype, type->rank - 1, type->dim + 1);
    node_place place = { .placed = true };
    int64_t span = 1;
    for (int i = 0; i < slice.rank; i++) {
        place.stride[i] = whole->stride[i + 1];
        span += (slice.dim[i] - 1) * place.stride[i];
    }
    if (ir_type_count(type) == 0)
        span = 0;
    place.dense = kl_is_dense(&slice, place.stride);
    place.buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_MOVING, .dtype = type->dtype, .count = span, .base = whole->buffer,
                                                          .repeat = repeat, .offset = whole->offset, .step = whole->stride[0] });
    return place;
}

void kl_lower_scan(lowering *l, kl_sequence *list, ir_node *node)
{
    const ir_graph *body = node->attr.body;
    int n_carry = node->attr.n_carry, n_xs = node->attr.n_xs, n_ys = node->n_tuple - n_carry;
    node_place *params = ARENA_NEW(l->scratch, node_place, node->n_args);
    scan_ends ends = { .scan = node };
    ends.carries = ARENA_NEW(l->scratch, node_place, n_carry);
    ends.ys = ARENA_NEW(l->scratch, node_place, n_ys);
    bool ok = true;
    for (int i = n_carry; i < node->n_args; i++)
        ok = kl_operand_place(l, node->args[i], &params[i]) && ok;
    if (!ok)
        return;
    int id = l->program->n_repeats++;
    for (int i = 0; i < n_carry; i++) {
        params[i] = ends.carries[i] = place_of_result(l, node, i);
        kl_copy_to(l, list, node->args[i], &params[i], false, "carry");
    }
    for (int i = n_carry; i < n_carry + n_xs; i++)
        params[i] = moving_slice(l, &node->args[i]->type, &params[i], id);
    for (int i = 0; i < n_ys; i++) {
        node_place whole = place_of_result(l, node, n_carry + i);
        ends.ys[i] = moving_slice(l, &node->tuple[n_carry + i], &whole, id);
    }
    kl_sequence inside = { .arena = l->program->arena };
    if (node->attr.count > 0)
        kl_lower_graph(l->program, body, params, l->scratch, end_iteration, &ends, &inside);
    if (!inside.n)
        return;
    kl_repeat *repeat = &kl_new_kernel(l, list, KL_REPEAT, node, "scan")->repeat;
    *repeat = (kl_repeat){ .id = id, .count = node->attr.count, .reverse = node->attr.reverse, .n_body = inside.n, .body = inside.at };
}
