/* Inference: what a shape rule may rely on is checked before it is called, and what it answers after. */
#include "ir/shape_rules.h"

#include <math.h>
#include <string.h>

bool ir_type_is_sound(const ir_type *type, base_text *why)
{
    static const char word_bytes[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    int64_t count = 1;
    if (type->dtype >= IR_TUPLE)
        return ir_because(why, "a tensor is not a tuple");
    if (type->rank < 0 || type->rank > IR_MAX_RANK)
        return ir_because(why, "rank %d is not supported: at most %d is", type->rank, IR_MAX_RANK);
    for (int i = 0; i < type->rank; i++) {
        const char *name = type->dim_name[i];
        if (type->dim[i] < 0)
            return ir_because(why, "%T has %D on axis %d", type, type, i, i);
        if (name && (strspn(name, word_bytes) != strlen(name) || *name == '\0' || (*name >= '0' && *name <= '9')))
            return ir_because(why, "axis %d is named '%s', which is no word", i, name);
        int64_t factor = MAX(type->dim[i], 1);
        if (factor > IR_MAX_ELEMENTS / count)
            return ir_because(why, "%T has over 2^40 elements", type);
        count *= factor;
    }
    return true;
}

/* Where ir_tuple_set finds the caller's arena, and leaves what it was given: the inferred node's note points here. */
typedef struct { base_arena *arena; int n; ir_type *types; } tuple_room;

void ir_tuple_set(const ir_node *node, ir_type *type, int n, const ir_type *types)
{
    tuple_room *room = node->note;
    room->n = n;
    room->types = ARENA_NEW(room->arena, ir_type, n);
    memcpy(room->types, types, sizeof *types * (size_t)n);
    *type = (ir_type){ .dtype = IR_TUPLE };
}

bool ir_infer_in(base_arena *arena, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
                 ir_type *type, int *n_tuple, ir_type **tuple, base_text *why)
{
    const ir_op_info *info = &ir_op_table[op];
    tuple_room room = { .arena = arena };
    ir_node node = { .op = op, .n_args = n_args, .args = (ir_node **)args, .note = &room };
    if (attr)
        node.attr = *attr;

    if (info->arity != VARIADIC && n_args != info->arity)
        return ir_because(why, "expected %d operand%s, got %d", info->arity, info->arity == 1 ? "" : "s", n_args);
    for (int i = 0; i < n_args; i++)
        if (args[i]->type.dtype == IR_TUPLE && op != OP_result)
            return ir_because(why, "operand %d has several results, and none is picked", i);
    if (node.attr.n_axes < 0 || node.attr.n_axes > IR_MAX_RANK)
        return ir_because(why, "%d axes are not supported: at most %d are", node.attr.n_axes, IR_MAX_RANK);
    *type = ir_scalar(IR_F32);
    if (info->attributes & RESULT_TYPE) {
        if (!stated)
            return ir_because(why, "expected a stated result type, got none");
        if (!ir_type_is_sound(stated, why))
            return false;
        *type = node.type = *stated;
    }
    if (!info->shape(&node, type, why))
        return false;
    *n_tuple = room.n;
    *tuple = room.types;
    if (type->dtype != IR_TUPLE)
        return ir_type_is_sound(type, why);
    for (int i = 0; i < room.n; i++)
        if (!ir_type_is_sound(&room.types[i], why))
            return false;
    return true;
}

double ir_round_to(ir_dtype dtype, double value)
{
    if (dtype == IR_I32 || dtype == IR_BOOL)
        return value;
    if (isnan(value))
        return NAN;
    if (dtype == IR_F64)
        return value;
    float narrow = (float)value;
    return dtype == IR_BF16 ? ir_bf16_to_f32(ir_f32_to_bf16(narrow)) : narrow;
}
