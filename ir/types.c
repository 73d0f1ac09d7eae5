/* Dtypes and shapes: what a tensor is made of and how long it is on each axis, and how both are written: f32[B=8,64]. */
#include "ir/ir.h"

#include <math.h>
#include <string.h>

/* -- dtypes ----------------------------------------------------------------------------------------------------------- */

static const struct { const char *name; int bytes; bool is_float; } dtypes[IR_DTYPES] = {
    [IR_F32]  = { "f32",  4, true  },
    [IR_F64]  = { "f64",  8, true  },
    [IR_BF16] = { "bf16", 2, true  },
    [IR_I32]  = { "i32",  4, false },
    [IR_BOOL] = { "bool", 1, false },
};

int ir_dtype_bytes(ir_dtype dtype)
{
    CHECK(dtype < IR_TUPLE, "ir_dtype_bytes: expected a dtype of elements, got %d", (int)dtype);
    return dtypes[dtype].bytes;
}

const char *ir_dtype_name(ir_dtype dtype) { return dtype < IR_TUPLE ? dtypes[dtype].name : "tuple"; }

bool ir_dtype_is_float(ir_dtype dtype) { return dtype < IR_TUPLE && dtypes[dtype].is_float; }

bool ir_dtype_parse(const char *text, size_t len, ir_dtype *dtype)
{
    for (int i = 0; i < IR_DTYPES; i++)
        if (strlen(dtypes[i].name) == len && memcmp(dtypes[i].name, text, len) == 0) {
            *dtype = (ir_dtype)i;
            return true;
        }
    return false;
}

/* -- types ------------------------------------------------------------------------------------------------------------ */

ir_type ir_type_of(ir_dtype dtype, int rank, const int64_t *dim)
{
    CHECK(rank >= 0 && rank <= IR_MAX_RANK, "ir_type_of: expected a rank of 0 to %d, got %d", IR_MAX_RANK, rank);
    ir_type type = { .dtype = dtype, .rank = rank };
    for (int i = 0; i < rank; i++)
        type.dim[i] = dim[i];
    return type;
}

ir_type ir_scalar(ir_dtype dtype) { return (ir_type){ .dtype = dtype }; }

ir_type ir_type_with_dtype(ir_type type, ir_dtype dtype)
{
    type.dtype = dtype;
    return type;
}

bool ir_shape_equal(const ir_type *a, const ir_type *b)
{
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

bool ir_type_equal(const ir_type *a, const ir_type *b) { return a->dtype == b->dtype && ir_shape_equal(a, b); }

/* Does not overflow on the types of a graph: ir_type_is_sound (shape_rules.h) bounds the product. */
int64_t ir_type_count(const ir_type *type)
{
    int64_t count = 1;
    for (int i = 0; i < type->rank; i++)
        count *= type->dim[i];
    return count;
}

int64_t ir_type_bytes(const ir_type *type) { return ir_type_count(type) * ir_dtype_bytes(type->dtype); }

void ir_type_print(base_text *text, const ir_type *type)
{
    base_text_add(text, "%s[", ir_dtype_name(type->dtype));
    for (int i = 0; i < type->rank; i++) {
        base_text_add(text, "%s", i ? "," : "");
        if (type->dim_name[i])
            base_text_add(text, "%s=", type->dim_name[i]);
        base_text_add(text, "%lld", (long long)type->dim[i]);
    }
    base_text_add(text, "]");
}

void ir_row_major(const ir_type *type, int64_t *stride)
{
    int64_t step = 1;
    for (int i = type->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= type->dim[i];
    }
}

/* -- elements --------------------------------------------------------------------------------------------------------- */

double ir_element(ir_dtype dtype, const void *data, int64_t i)
{
    switch (dtype) {
    case IR_F32:   return ((const float *)data)[i];
    case IR_F64:   return ((const double *)data)[i];
    case IR_BF16:  return ir_bf16_to_f32(((const uint16_t *)data)[i]);
    case IR_I32:   return ((const int32_t *)data)[i];
    case IR_BOOL:  return ((const uint8_t *)data)[i] != 0;
    case IR_TUPLE: break;
    }
    CHECK(false, "expected a dtype of elements, got %s", ir_dtype_name(dtype));
    return 0;
}

float ir_bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t ir_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value))
        return (uint16_t)(bits >> 16 | 0x40);              /* quiet, so that a payload in the lower half alone stays a NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

int32_t ir_f64_to_i32(double value)
{
    return isnan(value) ? 0 : value >= 2147483647.0 ? INT32_MAX : value <= -2147483648.0 ? INT32_MIN : (int32_t)value;
}
