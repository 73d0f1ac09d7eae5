/* What the shape rules are written with: reasons, checks that give them, and the names of dims. */
#include "ir/shape_rules.h"

#include <string.h>

/* -- reasons ---------------------------------------------------------------------------------------------------------- */

bool ir_because(base_text *why, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (const char *at = format; *at; at++) {
        if (*at != '%') {
            base_text_bytes(why, at, 1);
            continue;
        }
        switch (*++at) {
        case 'T':
            ir_type_print(why, va_arg(args, const ir_type *));
            break;
        case 'D': {
            const ir_type *type = va_arg(args, const ir_type *);
            int axis = va_arg(args, int);
            if (type->dim_name[axis])
                base_text_add(why, "%s=", type->dim_name[axis]);
            base_text_add(why, "%lld", (long long)type->dim[axis]);
            break;
        }
        case 'd': base_text_add(why, "%d", va_arg(args, int)); break;
        case 'l': base_text_add(why, "%lld", (long long)va_arg(args, int64_t)); break;
        case 'f': base_text_add(why, "%g", va_arg(args, double)); break;
        case 's': base_text_add(why, "%s", va_arg(args, const char *)); break;
        default: base_bug(__FILE__, __LINE__, "because: expected one of %%T %%D %%d %%l %%f %%s in \"%s\"", format);
        }
    }
    va_end(args);
    return false;
}

const ir_type *ir_arg_type(const ir_node *node, int arg) { return &node->args[arg]->type; }

/* -- checks that rules share ------------------------------------------------------------------------------------------- */

bool ir_has_args(const ir_node *node, int low, int high, base_text *why)
{
    if (node->n_args >= low && node->n_args <= high)
        return true;
    if (low == high)
        return ir_because(why, "expected %d operands, got %d", low, node->n_args);
    return ir_because(why, "expected %d to %d operands, got %d", low, high, node->n_args);
}

bool ir_same_dtype(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return a->dtype == b->dtype ||
           ir_because(why, "%s %T is %s, %s %T is %s", a_name, a, ir_dtype_name(a->dtype), b_name, b, ir_dtype_name(b->dtype));
}

bool ir_same_rank(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return a->rank == b->rank ||
           ir_because(why, "%s %T has rank %d, %s %T has rank %d", a_name, a, a->rank, b_name, b, b->rank);
}

bool ir_same_dim(const char *a_name, const ir_type *a, int a_axis, const char *b_name, const ir_type *b, int b_axis,
                 base_text *why)
{
    return a->dim[a_axis] == b->dim[b_axis] ||
           ir_because(why, "%s %T has %D on axis %d, %s %T has %D on axis %d", a_name, a, a, a_axis, a_axis, b_name, b, b, b_axis, b_axis);
}

bool ir_same_shape(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    if (!ir_same_rank(a_name, a, b_name, b, why))
        return false;
    for (int i = 0; i < a->rank; i++)
        if (!ir_same_dim(a_name, a, i, b_name, b, i, why))
            return false;
    return true;
}

bool ir_same_type(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return ir_same_shape(a_name, a, b_name, b, why) && ir_same_dtype(a_name, a, b_name, b, why);
}

bool ir_is_rank(const char *name, const ir_type *type, int rank, base_text *why)
{
    return type->rank == rank || ir_because(why, "%s %T has rank %d, expected %d", name, type, type->rank, rank);
}

bool ir_is_dtype(const char *name, const ir_type *type, ir_dtype dtype, base_text *why)
{
    return type->dtype == dtype ||
           ir_because(why, "%s %T is %s, expected %s", name, type, ir_dtype_name(type->dtype), ir_dtype_name(dtype));
}

bool ir_is_float(const char *name, const ir_type *type, base_text *why)
{
    return ir_dtype_is_float(type->dtype) ||
           ir_because(why, "%s %T is %s, expected f32, f64 or bf16", name, type, ir_dtype_name(type->dtype));
}

bool ir_is_number(const char *name, const ir_type *type, base_text *why)
{
    return type->dtype != IR_BOOL || ir_because(why, "%s %T is bool, expected f32, f64, bf16 or i32", name, type);
}

bool ir_is_scalar_i32(const char *name, const ir_type *type, base_text *why)
{
    return (type->rank == 0 && type->dtype == IR_I32) || ir_because(why, "%s %T is not i32[]", name, type);
}

bool ir_has_axis(const char *name, const ir_type *type, int axis, base_text *why)
{
    if (axis >= 0 && axis < type->rank)
        return true;
    if (type->rank == 0)
        return ir_because(why, "%s %T has no axis %d: it is a scalar", name, type, axis);
    return ir_because(why, "%s %T has axes 0 to %d, got axis %d", name, type, type->rank - 1, axis);
}

bool ir_axes_ascend(const char *name, const ir_type *type, const ir_attr *attr, base_text *why)
{
    for (int i = 0; i < attr->n_axes; i++) {
        if (!ir_has_axis(name, type, attr->axes[i], why))
            return false;
        if (i > 0 && attr->axes[i] <= attr->axes[i - 1])
            return ir_because(why, "axes are to ascend, got %d after %d", attr->axes[i], attr->axes[i - 1]);
    }
    return true;
}

bool ir_is_seed_and_counter(const ir_type *seed, const ir_type *counter, base_text *why)
{
    if (seed->dtype != IR_I32 || seed->rank != 1 || seed->dim[0] != 2)
        return ir_because(why, "seed %T is not i32[2]", seed);
    return ir_is_scalar_i32("counter", counter, why);
}

/* -- names of dims ----------------------------------------------------------------------------------------------------- */

void ir_borrow_name(ir_type *to, int to_axis, const ir_type *from, int from_axis)
{
    if (!to->dim_name[to_axis])
        to->dim_name[to_axis] = from->dim_name[from_axis];
}

void ir_borrow_names(ir_type *to, const ir_type *from)
{
    for (int i = 0; i < to->rank; i++)
        ir_borrow_name(to, i, from, i);
}

void ir_drop_axes(ir_type *type, const ir_type *from, int n_axes, const int *axes)
{
    *type = ir_scalar(from->dtype);
    for (int i = 0, next = 0; i < from->rank; i++) {
        if (next < n_axes && axes[next] == i) {
            next++;
            continue;
        }
        type->dim[type->rank] = from->dim[i];
        type->dim_name[type->rank++] = from->dim_name[i];
    }
}
