/* Where stored values lie. A value is row-major in a buffer of its own unless its only reader moves it without need:
 *
 *   - The reader transposes it, the last axis staying last: the value is written in the transposed order at once, so that a
 *     reshape behind the transpose costs nothing (the heads of attention).
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

/* The strides of a value of type `from` that is read as type `to`, both of one linear index, where `to` has the place `as`.
 * False where the axes do not go together. */
static bool place_through_reshape(const ir_type *from, const ir_type *to, const node_place *as, node_place *place)
{
    if (ir_type_count(from) == 0)
        return false;
    *place = (node_place){ .placed = true, .offset = as->offset, .buffer = as->buffer };
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
    if (info->n_users != 1 || info->keep_dense || !info->user)
        return plain;
    ir_node *user = info->user;
    bool moved = INFO(state, user)->stored;         /* a view with memory of its own copies: nothing is gained */
    if (user->op == OP_reshape && !moved) {
        node_place as = wanted_place(state, program, user);
        if (place_through_reshape(&node->type, &user->type, &as, &place) && last_axis_is_unit(&node->type, &place)) {
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
