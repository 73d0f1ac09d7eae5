/* Static arguments, told by use and by observation.
 *
 * A leaf is a scalar argument, or a field of a record argument. Nobody declares which are static:
 *
 *   use            while a step is traced, record_arguments.c notes for each leaf whether the step asked for its C value (READ) or
 *                  for a tensor of it (TAKEN). A record handed out as a C struct counts as READ for all its fields, since what
 *                  C code does with a pointer cannot be seen.
 *   observation    every call compares each leaf with the call before. A field that is TAKEN and has changed is a parameter in
 *                  every trace from then on (varies).
 *
 * What was READ is guarded: another value is a miss. A miss traces again; if the graph is the same as one that is
 * compiled, the value was not needed, and the program is used again without a compilation. So a field that nothing
 * depends on costs a trace at each new value, never a compilation, and never a wrong result.
 *
 * A field that varies and lies in a record that was handed out may be READ as well. Whether it is, is found out by
 * experiment (compile.c): the step is traced again with other values in the struct, the field as a tensor remaining a
 * parameter. If every graph is the same, nobody looks at the value, and it is not guarded: its changes cost nothing.
 * The values tried are the one before, and for floats 0, the negative and the double, since `if (config->decay > 0)`
 * tells only those apart. Whole numbers get no invented values: they are sizes and indices, which the step's C code
 * must be able to trust. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tracer/tracer.h"

/* -- numbers ---------------------------------------------------------------------------------------------------------- */

static bool is_float(const trace_leaf *leaf)
{
    return leaf->type == RAX_FIELD_FLOAT || leaf->type == RAX_FIELD_DOUBLE;
}

bool trace_number_equal(const trace_leaf *leaf, trace_number a, trace_number b)
{
    if (leaf->type != RAX_FIELD_TEXT)
        return a.bits == b.bits;
    return a.text == b.text || (a.text && b.text && strcmp(a.text, b.text) == 0);
}

static trace_number from_double(double value)
{
    trace_number number = {0};
    memcpy(&number.bits, &value, sizeof value);
    return number;
}

double trace_number_value(const trace_leaf *leaf, trace_number number)
{
    double value;
    if (!is_float(leaf))
        return (double)(int64_t)number.bits;
    memcpy(&value, &number.bits, sizeof value);
    return value;
}

/* The shortest text that reads back to the same number. */
static void print_double(base_text *text, double value, bool is_single)
{
    char digits[40];
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        double back = strtod(digits, NULL);
        if (back == value || isnan(value) || (is_single && (float)back == (float)value))
            break;
    }
    base_text_add(text, "%s", digits);
}

void trace_number_print(base_text *text, const trace_leaf *leaf, trace_number number)
{
    switch (leaf->type) {
    case RAX_FIELD_INT:
    case RAX_FIELD_INT64: base_text_add(text, "%lld", (long long)number.bits); break;
    case RAX_FIELD_FLOAT:
    case RAX_FIELD_DOUBLE: print_double(text, trace_number_value(leaf, number), leaf->type == RAX_FIELD_FLOAT); break;
    case RAX_FIELD_BOOL: base_text_add(text, "%s", number.bits ? "true" : "false"); break;
    case RAX_FIELD_TEXT:
        if (number.text)
            base_text_add(text, "\"%s\"", number.text);
        else
            base_text_add(text, "NULL");
        break;
    }
}

void trace_number_store(const trace_leaf *leaf, trace_number number, void *scalar)
{
    double value = trace_number_value(leaf, number);
    switch (leaf->dtype) {
    case IR_F32: *(float *)scalar = (float)value; break;
    case IR_F64: *(double *)scalar = value; break;
    case IR_I32: *(int32_t *)scalar = (int32_t)value; break;
    case IR_BOOL: *(uint8_t *)scalar = value != 0; break;
    case IR_BF16:
    case IR_TUPLE: base_bug(__FILE__, __LINE__, "leaf %s: expected no scalar of %s", leaf->name, ir_dtype_name(leaf->dtype));
    }
}

void trace_number_to_field(const trace_leaf *leaf, trace_number number, void *field)
{
    switch (leaf->type) {
    case RAX_FIELD_INT: *(int *)field = (int)(int64_t)number.bits; break;
    case RAX_FIELD_INT64: *(int64_t *)field = (int64_t)number.bits; break;
    case RAX_FIELD_FLOAT: *(float *)field = (float)trace_number_value(leaf, number); break;
    case RAX_FIELD_DOUBLE: *(double *)field = trace_number_value(leaf, number); break;
    case RAX_FIELD_BOOL: *(bool *)field = number.bits != 0; break;
    case RAX_FIELD_TEXT: *(const char **)field = number.text; break;
    }
}

static trace_number from_field(rax_field_type type, const void *field)
{
    switch (type) {
    case RAX_FIELD_INT: return (trace_number){ .bits = (uint64_t)(int64_t)*(const int *)field };
    case RAX_FIELD_INT64: return (trace_number){ .bits = (uint64_t)*(const int64_t *)field };
    case RAX_FIELD_FLOAT: return from_double(*(const float *)field);
    case RAX_FIELD_DOUBLE: return from_double(*(const double *)field);
    case RAX_FIELD_BOOL: return (trace_number){ .bits = *(const bool *)field };
    case RAX_FIELD_TEXT: return (trace_number){ .text = *(const char *const *)field };
    }
    return (trace_number){0};
}

int trace_probes(const trace_leaf *leaf, trace_number probes[MAX_PROBES])
{
    int n = 0;
    probes[n++] = leaf->previous;
    if (leaf->type == RAX_FIELD_BOOL)
        probes[0].bits = !leaf->value.bits;
    if (is_float(leaf)) {
        double value = trace_number_value(leaf, leaf->value);
        probes[n++] = from_double(0);
        probes[n++] = from_double(value != 0 ? -value : -1);
        probes[n++] = from_double(value != 0 ? 2 * value : 1);
    }
    return n;
}

/* -- leaves ----------------------------------------------------------------------------------------------------------- */

static bool same_record_type(const rax_record_type *a, const rax_record_type *b)
{
    if (a == b)
        return true;
    if (a->n_fields != b->n_fields || a->bytes != b->bytes)
        return false;
    for (int i = 0; i < a->n_fields; i++)
        if (a->fields[i].type != b->fields[i].type || a->fields[i].offset != b->fields[i].offset ||
            strcmp(a->fields[i].name, b->fields[i].name) != 0)
            return false;
    return true;
}

static ir_dtype field_dtype(rax_field_type type)
{
    switch (type) {
    case RAX_FIELD_INT:
    case RAX_FIELD_INT64: return IR_I32;
    case RAX_FIELD_FLOAT:
    case RAX_FIELD_DOUBLE: return IR_F32;
    case RAX_FIELD_BOOL: return IR_BOOL;
    case RAX_FIELD_TEXT: break;
    }
    return IR_TUPLE;                               /* no tensor */
}

static rax_field_type scalar_field_type(ir_dtype dtype)
{
    return dtype == IR_I32 ? RAX_FIELD_INT64 : dtype == IR_BOOL ? RAX_FIELD_BOOL : RAX_FIELD_DOUBLE;
}

static void make_leaves(rax_fn *fn, const rax_value *args)
{
    trace_statics *statics = &fn->statics;
    const trace_signature *signature = fn->signature;
    statics->n = 0;
    statics->first = ARENA_NEW(fn->arena, int, signature->n + 1);
    statics->records = ARENA_NEW(fn->arena, const rax_record_type *, signature->n);
    for (int i = 0; i < signature->n; i++) {
        statics->first[i] = statics->n;
        if (signature->args[i].kind == ARG_RECORD)
            statics->n += args[i].record_type->n_fields;
        statics->n += signature->args[i].kind == ARG_SCALAR;
    }
    statics->first[signature->n] = statics->n;
    statics->leaves = ARENA_NEW(fn->arena, trace_leaf, statics->n);
    for (int i = 0; i < signature->n; i++) {
        const trace_arg *arg = &signature->args[i];
        trace_leaf *leaf = &statics->leaves[statics->first[i]];
        if (arg->kind == ARG_SCALAR)
            *leaf = (trace_leaf){ .arg = i, .field = -1, .name = arg->name, .type = scalar_field_type(arg->pattern.dtype),
                                  .dtype = arg->pattern.dtype };
        statics->records[i] = arg->kind == ARG_RECORD ? args[i].record_type : NULL;
        for (int j = 0; arg->kind == ARG_RECORD && j < args[i].record_type->n_fields; j++) {
            const rax_field *field = &args[i].record_type->fields[j];
            leaf[j] = (trace_leaf){ .arg = i, .field = j, .type = field->type, .dtype = field_dtype(field->type),
                                    .name = base_arena_text(fn->arena, "%s.%s", arg->name, field->name) };
        }
    }
}

/* Takes the leaf's value of this call. Text is copied only where it has changed. */
static void observe(rax_fn *fn, trace_leaf *leaf, trace_number value, bool first)
{
    if (!first && trace_number_equal(leaf, leaf->value, value))
        return;
    if (leaf->type == RAX_FIELD_TEXT && value.text)
        value.text = base_strdup(value.text);
    if (leaf->previous.text)
        base_free((void *)leaf->previous.text);
    leaf->previous = leaf->value;
    leaf->value = value;
    leaf->changes += !first;
    fn->leaves_changed = true;
}

static bool scalar_value(const rax_fn *fn, const trace_leaf *leaf, double given, trace_number *value)
{
    if (leaf->type == RAX_FIELD_DOUBLE)
        *value = from_double(leaf->dtype == IR_F32 ? (double)(float)given : given);
    else if (leaf->type == RAX_FIELD_BOOL)
        value->bits = given != 0;
    else if (given == floor(given) && given >= INT32_MIN && given <= INT32_MAX)
        value->bits = (uint64_t)(int64_t)given;
    else
        return rax_fail(RAX_MISTAKE, "%s: arg %d %s: %.17g is no i32", fn->name, leaf->arg, leaf->name, given);
    return true;
}

static bool scalars_are_sound(const rax_fn *fn, const rax_value *args)
{
    trace_number value = {0};
    for (int i = 0; i < fn->statics.n; i++) {
        const trace_leaf *leaf = &fn->statics.leaves[i];
        if (leaf->field < 0 && !scalar_value(fn, leaf, args[leaf->arg].number, &value))
            return false;
    }
    return true;
}

bool trace_statics_observe_number(rax_fn *fn, trace_leaf *leaf, double given)
{
    trace_number value = {0};
    if (!scalar_value(fn, leaf, given, &value))
        return false;
    observe(fn, leaf, value, false);
    return true;
}

bool trace_statics_observe(rax_fn *fn, const rax_value *args)
{
    trace_statics *statics = &fn->statics;
    bool first = !statics->known;
    for (int i = 0; !first && i < fn->signature->n; i++)
        if (statics->records[i] && !same_record_type(statics->records[i], args[i].record_type))
            return rax_fail(RAX_MISTAKE, "%s: arg %d %s: a %s, where it was a %s at the first call", fn->name, i,
                            fn->signature->args[i].name, args[i].record_type->name, statics->records[i]->name);
    if (first) {
        make_leaves(fn, args);
        if (!scalars_are_sound(fn, args))
            return false;                          /* nothing was seen: the next call is the first */
        statics->known = true;
    }
    for (int i = 0; i < statics->n; i++) {
        trace_leaf *leaf = &statics->leaves[i];
        const rax_value *arg = &args[leaf->arg];
        trace_number value = {0};
        if (leaf->field >= 0)
            value = from_field(leaf->type, (const char *)arg->record + arg->record_type->fields[leaf->field].offset);
        else if (!scalar_value(fn, leaf, arg->number, &value))
            return false;
        observe(fn, leaf, value, first);
    }
    return true;
}

void trace_statics_free(trace_statics *statics)
{
    for (int i = 0; i < statics->n; i++)
        if (statics->leaves[i].type == RAX_FIELD_TEXT) {
            base_free((void *)statics->leaves[i].value.text);
            base_free((void *)statics->leaves[i].previous.text);
        }
}
