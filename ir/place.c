/* Where stored values lie. A value is row-major in a buffer of its own unless its only reader moves it without need:
 *
 *   - The reader transposes it, the last axis staying last: the value is written in the transposed order at once, so that a
 *     reshape behind the transpose costs nothing (the heads of attention). Other readers may be there too.
 *   - The reader concatenates it: the value is written into its part of the concatenation.
 *
 * Both at once, through reshapes, as often as they follow one another. */
#include "ir/lower.h"

#include <string.h>

static node_place row_major_place(const ir_type *type)
{
    node_place place = { .placed = true, .dense = true };
    ir_row_major(type, place.stride);
    return place;
}

bool kl_is_dense(const ir_type *type, const int64_t *stride)
{
    int64_t dense[IR_MAX_RANK];
    bool is = true;
    ir_row_major(type, dense);
    for (int i = 0; i < type->rank; i++)
        is &= stride[i] == dense[i] || type->dim[i] == 1;
    return is;
}

bool kl_place_through_reshape(const ir_type *from, const ir_type *to, const node_place *as, node_place *place)
{
    *place = (node_place){ .placed = true, .offset = as->offset, .buffer = as->buffer };
    if (as->dense || ir_type_count(from) == 0) {          /* of nothing, any strides will do */
        place->dense = true;
        ir_row_major(from, place->stride);
        return true;
    }
    /* Walk both shapes from the last axis. An axis of `from` is a run of axes of `to`, or an even part of one. */
    int j = to->rank - 1;
    int64_t left = 1, stride = 0;            /* what is left of axis j of `to`, and the stride of its next element */
    for (int i = from->rank - 1; i >= 0; i--) {
        int64_t need = from->dim[i];
        if (need == 1)
            continue;
        int64_t first = 0, reach = 1;        /* the stride of axis i, and how many of its elements are settled */
        while (reach < need) {
            while (left == 1 && j >= 0) {
                left = to->dim[j];
                stride = as->stride[j--];
            }
            int64_t take = MIN(left, need / reach);
            if (left == 1 || need % reach != 0 || left % take != 0 || (need / reach) % take != 0)
                return false;
            if (reach == 1)
                first = stride;
            else if (stride != first * reach)
                return false;
            reach *= take;
            left /= take;
            stride *= take;
        }
        place->stride[i] = first;
    }
    return true;
}

bool kl_place_of_view(lower_state *state, const ir_node *node, node_place *place)
{
    const node_info *info = INFO(state, node);
    if (info->stored) {
        *place = info->place;
        return place->placed;
    }
    if (kl_role_of(node) != ROLE_VIEW)
        return false;
    const ir_node *x = node->args[0];
    node_place below;
    if (!kl_place_of_view(state, x, &below))
        return false;
    if (node->op == OP_reshape)
        return kl_place_through_reshape(&node->type, &x->type, &below, place);
    *place = below;
    for (int i = 0; i < node->type.rank && node->op == OP_transpose; i++)
        place->stride[i] = below.stride[node->attr.axes[i]];
    for (int i = 0; i < x->type.rank && node->op == OP_slice; i++)
        place->offset += node->attr.start[i] * below.stride[i];
    if (node->op == OP_broadcast) {
        memset(place->stride, 0, sizeof place->stride);
        for (int i = 0; i < x->type.rank; i++)
            place->stride[node->attr.axes[i]] = x->type.dim[i] == 1 ? 0 : below.stride[i];
    }
    place->dense = kl_is_dense(&node->type, place->stride);
    return true;
}

static bool last_axis_is_unit(const ir_type *type, const node_place *place)
{
    for (int i = type->rank - 1; i >= 0; i--)
        if (type->dim[i] != 1)
            return place->stride[i] == 1;
    return true;
}

static node_place wanted_place(lower_state *state, kl_program *program, ir_node *node);

/* The place of a stored node; makes its buffer. */
static const node_place *settle(lower_state *state, kl_program *program, ir_node *node)
{
    node_info *info = INFO(state, node);
    if (!info->place.placed) {
        node_place place = wanted_place(state, program, node);
        if (place.buffer < 0)
            place.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_TEMP, .dtype = node->type.dtype,
                                                               .count = ir_type_count(&node->type), .place = node->place });
        info->place = place;
    }
    return &info->place;
}

/* Where node would best lie, for its reader's sake: buffer -1 is one of its own. */
static node_place wanted_place(lower_state *state, kl_program *program, ir_node *node)
{
    const node_info *info = INFO(state, node);
    node_place plain = row_major_place(&node->type), place;
    plain.buffer = -1;
    if (info->keep_dense)
        return plain;
    if (info->n_users != 1 && info->transposer && !INFO(state, info->transposer)->stored) {
        const ir_node *user = info->transposer;           /* the others read it as it lies */
        node_place as = row_major_place(&user->type);
        for (int i = 0; i < user->type.rank; i++)
            plain.stride[user->attr.axes[i]] = as.stride[i];
        plain.dense = false;
    }
    if (info->n_users != 1 || !info->user)
        return plain;
    ir_node *user = info->user;
    bool moved = INFO(state, user)->stored;         /* a view with memory of its own copies: nothing is gained */
    if (user->op == OP_reshape && !moved) {
        node_place as = wanted_place(state, program, user);
        if (kl_place_through_reshape(&node->type, &user->type, &as, &place) && last_axis_is_unit(&node->type, &place)) {
            place.dense = as.dense;
            return place;
        }
    } else if (user->op == OP_transpose && !moved) {
        node_place as = wanted_place(state, program, user);
        place = (node_place){ .placed = true, .offset = as.offset, .buffer = as.buffer };
        for (int i = 0; i < user->type.rank; i++)
            place.stride[user->attr.axes[i]] = as.stride[i];
        if (last_axis_is_unit(&node->type, &place))
            return place;
    } else if (user->op == OP_concatenate) {
        const node_place *whole = settle(state, program, user);
        place = *whole;
        place.dense = false;
        int64_t start = 0;
        for (int i = 0; user->args[i] != node; i++)
            start += user->args[i]->type.dim[user->attr.axis];
        place.offset += start * whole->stride[user->attr.axis];
        return place;
    }
    return plain;
}

static void count_users(lower_state *state)
{
    for (int i = 0; i < state->n_infos; i++) {
        ir_node *node = state->infos[i].node;
        for (int j = 0; j < node->n_args; j++) {
            node_info *arg = INFO(state, node->args[j]);
            arg->n_users++;
            arg->user = node;
            if (node->op == OP_transpose && node->attr.axes[node->type.rank - 1] == node->type.rank - 1)
                arg->transposer = node;
        }
    }
    for (int i = 0; i < state->graph->n_results; i++) {
        node_info *info = INFO(state, state->graph->results[i]);
        info->n_users++;
        info->user = NULL;
    }
}

void kl_place(lower_state *state, kl_program *program)
{
    count_users(state);
    for (int i = 0; i < state->n_infos; i++) {
        node_info *info = &state->infos[i];
        if (info->stored && !info->place.placed && info->node->type.dtype != IR_TUPLE)
            settle(state, program, info->node);
    }
}
