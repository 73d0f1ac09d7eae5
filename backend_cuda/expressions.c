/* Expressions as CUDA C. Each becomes a declaration of its own, so that the text reads like the kernel list:
 *
 *     %3 = load b1            rax_f32x4 t3; t3 = *(const rax_f32x4 *)(p0 + x0 * 768 + x1); float e3[V]; EACH e3[j] = t3.v[j];
 *     %4 = mul %3, %2         float e4[V]; EACH e4[j] = e3[j] * e2;
 *
 * bf16 is computed in f32 and rounded. Extents, strides and constants are in the text, for the compiler to divide by and fold; what differs
 * between kernels of equal form (addresses, offsets, sites) are parameters. */
#include "backend_cuda/expressions.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* -- types ---------------------------------------------------------------------------------------------------------------- */

static const struct { const char *memory, *in_register, *suffix, *vector, *load, *store; } types[IR_DTYPES] = {
    [IR_F32]  = { "float", "float", "f32", "rax_f32", "", "" },
    [IR_F64]  = { "double", "double", "f64", "rax_f64", "", "" },
    [IR_BF16] = { "rax_u16", "float", "f32", "rax_bf16", "rax_from_bf16", "rax_to_bf16" },
    [IR_I32]  = { "int", "int", "i32", "rax_i32", "", "" },
    [IR_BOOL] = { "unsigned char", "int", "i32", "rax_bool", "", "(unsigned char)" },
};
const char *cuda_memory_type(ir_dtype dtype) { return types[dtype].memory; }
const char *cuda_register_type(ir_dtype dtype) { return types[dtype].in_register; }
const char *cuda_suffix(ir_dtype dtype) { return types[dtype].suffix; }

/* -- planning --------------------------------------------------------------------------------------------------------------- */

/* Whether the place depends on the index along an axis. In a list another loop's axis may be longer than 1. */
static bool steps_along(const cuda_expressions *x, const kl_view *view, int axis)
{
    return view->stride[axis] != 0 && (x->loop->extent[axis] > 1 || x->writer->listed);
}

static bool inner_strides_are_zero(const cuda_expressions *x, const kl_view *view)
{
    for (int i = x->n_outer; i < x->loop->n_axes; i++)
        if (steps_along(x, view, i))
            return false;
    return true;
}

/* Every index of a buffer, and every product of an index and a stride, fits into 31 bits. */
static bool fits_int(const cuda_expressions *x, const kl_view *view)
{
    double reach = 0;
    for (int i = 0; i < x->loop->n_axes; i++)
        reach += fabs((double)view->stride[i] * (double)x->loop->extent[i]);
    for (int i = 0; i < view->n_dynamic; i++)
        reach += fabs((double)view->dynamic[i].stride * (double)view->dynamic[i].limit);
    return reach < 2e9;
}

bool cuda_is_aligned(const kl_program *p, int buffer, int64_t offset, int of)
{
    for (; buffer < p->n_buffers && p->buffers[buffer].kind == KL_MOVING; buffer = p->buffers[buffer].base)
        if (p->buffers[buffer].offset % of || p->buffers[buffer].step % of)
            return false;
    return offset % of == 0;
}

bool cuda_view_is_vector(const kl_program *program, const kl_loop *loop, const kl_view *view, int V)
{
    int last = loop->n_axes - 1;
    bool fits = V > 1 && view->stride[last] == 1 && cuda_is_aligned(program, view->buffer, view->offset, V);
    for (int i = 0; i < last; i++)
        fits &= loop->extent[i] == 1 || view->stride[i] % V == 0;
    for (int i = 0; i < view->n_dynamic; i++)
        fits &= view->dynamic[i].stride % V == 0;
    return fits;
}

static void classify(cuda_expressions *x, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    bool has_view = e->kind == KL_LOAD || e->kind == KL_INDEX || e->kind == KL_RANDOM;
    int last = x->loop->n_axes - 1;
    x->uniform[i] = !has_view || inner_strides_are_zero(x, &e->view);
    x->lanes[i] = has_view && steps_along(x, &e->view, last) && last >= x->n_outer;
    for (int a = 0; a < e->n_args && e->kind != KL_REDUCE; a++) {
        x->uniform[i] &= x->uniform[e->args[a]];
        x->lanes[i] |= x->lanes[e->args[a]];
    }
    for (int d = 0; has_view && d < e->view.n_dynamic; d++) {
        x->uniform[i] &= x->uniform[e->view.dynamic[d].expr];
        x->lanes[i] |= x->lanes[e->view.dynamic[d].expr];
    }
    x->lanes[i] &= !x->uniform[i];
}

bool cuda_can_hold(const cuda_expressions *x, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    bool can = e->kind == KL_LOAD && x->lanes[i];
    for (int d = 0; can && d < e->view.n_dynamic; d++)
        can = x->uniform[e->view.dynamic[d].expr];
    return can;
}

static bool dynamic_is_the_same(const cuda_expressions *x, const kl_view *view)
{
    for (int d = 0; d < view->n_dynamic; d++)
        if (x->lanes[view->dynamic[d].expr])
            return false;
    return true;
}

/* What is rounded to bf16 for nothing but to be stored so. */
static bool *find_unrounded(base_arena *arena, const kl_loop *loop)
{
    bool *unrounded = ARENA_NEW(arena, bool, loop->n_exprs);
    for (int i = 0; i < loop->n_outputs; i++)
        unrounded[loop->outputs[i].expr] = loop->exprs[loop->outputs[i].expr].kind == KL_OP && loop->exprs[loop->outputs[i].expr].dtype == IR_BF16;
    for (int i = 0; i < loop->n_exprs; i++)
        for (int a = 0; a < loop->exprs[i].n_args; a++)
            unrounded[loop->exprs[i].args[a]] = false;
    for (int i = 0; i < loop->n_outputs; i++)
        unrounded[loop->outputs[i].expr] &= loop->outputs[i].kind == KL_STORE && !loop->outputs[i].accumulate;
    return unrounded;
}

cuda_expressions *cuda_expressions_plan(cuda_writer *w, const kl_loop *loop, int n_outer, int V)
{
    base_arena *arena = w->compiler->arena;
    cuda_expressions *x = ARENA_NEW(arena, cuda_expressions, 1);
    int n = loop->n_exprs + loop->n_outputs;
    double total = 1;
    *x = (cuda_expressions){ .writer = w, .loop = loop, .n_outer = n_outer, .V = V, .index_type = "int" };
    x->uniform = ARENA_NEW(arena, bool, loop->n_exprs);
    x->lanes = ARENA_NEW(arena, bool, loop->n_exprs);
    x->written_down = ARENA_NEW(arena, bool, loop->n_exprs);
    x->random_run = ARENA_NEW(arena, bool, loop->n_exprs);
    x->kept = ARENA_NEW(arena, bool, loop->n_exprs);
    x->filled = ARENA_NEW(arena, bool, loop->n_exprs);
    x->held = ARENA_NEW(arena, bool, loop->n_exprs);
    x->unrounded = find_unrounded(arena, loop);
    x->site = ARENA_NEW(arena, int, loop->n_exprs);
    x->param = ARENA_NEW(arena, int, n);
    x->vector = ARENA_NEW(arena, bool, n);
    for (int i = 0; i < loop->n_axes; i++)
        total *= (double)loop->extent[i];
    bool narrow = total < 1e9;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        classify(x, i);
        if (e->kind == KL_LOAD) {
            narrow &= fits_int(x, &e->view);
            x->vector[i] = x->lanes[i] && dynamic_is_the_same(x, &e->view) && cuda_view_is_vector(w->compiler->program, loop, &e->view, V);
            x->param[i] = cuda_param_view(w, &e->view, e->dtype, false);
        } else if (e->kind == KL_INDEX || e->kind == KL_RANDOM) {
            x->param[i] = cuda_param_value(w, e->view.offset);
        }
        if (e->kind == KL_RANDOM) {
            x->site[i] = cuda_param_value(w, e->site);
            x->random_run[i] = V % 4 == 0 && x->lanes[i] && e->view.offset % 4 == 0 && e->view.stride[loop->n_axes - 1] == 1;
            for (int a = 0; a < loop->n_axes - 1; a++)
                x->random_run[i] &= loop->extent[a] == 1 || e->view.stride[a] % 4 == 0;
            for (int a = 0; a < e->n_args; a++)
                x->random_run[i] &= !x->lanes[e->args[a]];
        }
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        int at = loop->n_exprs + i;
        if (o->kind != KL_STORE)
            continue;
        narrow &= fits_int(x, &o->view);
        x->vector[at] = dynamic_is_the_same(x, &o->view) && cuda_view_is_vector(w->compiler->program, loop, &o->view, V);
        x->param[at] = cuda_param_view(w, &o->view, loop->exprs[o->expr].dtype, true);
    }
    x->index_type = narrow ? "int" : "rax_i64";
    return x;
}

void cuda_forget_place(cuda_expressions *x)
{
    for (int i = 0; i < x->loop->n_exprs; i++) {
        x->filled[i] |= x->kept[i] && x->written_down[i];
        x->written_down[i] &= x->uniform[i];
    }
}

/* -- places ------------------------------------------------------------------------------------------------------------------ */

const char *cuda_operand(const cuda_expressions *x, int expr)
{
    static _Thread_local char names[4][32];
    static _Thread_local int next;
    char *name = names[next++ & 3];
    snprintf(name, sizeof names[0], x->lanes[expr] ? "e%d[j]" : "e%d", expr);
    return name;
}

void cuda_write_place(const cuda_expressions *x, base_text *text, const kl_view *view, bool j, const char *type)
{
    const char *plus = "";
    int last = x->loop->n_axes - 1;
    for (int i = 0; i < x->loop->n_axes; i++)
        if (steps_along(x, view, i)) {
            base_text_add(text, "%s(%s)x%d", plus, type, i);
            if (view->stride[i] != 1)
                base_text_add(text, " * %s", cuda_number(x->writer, view->stride[i], type));
            plus = " + ";
        }
    if (j && steps_along(x, view, last)) {
        base_text_add(text, "%sj", plus);
        if (view->stride[last] != 1)
            base_text_add(text, " * (%s)%s", type, cuda_number(x->writer, view->stride[last], type));
        plus = " + ";
    }
    for (int d = 0; d < view->n_dynamic; d++) {
        base_text_add(text, "%s(%s)rax_clamp(%s, %s) * ", plus, type, cuda_operand(x, view->dynamic[d].expr), cuda_number(x->writer, view->dynamic[d].limit, "rax_i64"));
        base_text_add(text, "%s", cuda_number(x->writer, view->dynamic[d].stride, type));
        plus = " + ";
    }
    if (!*plus)
        base_text_add(text, "0");
}

/* -- ops ----------------------------------------------------------------------------------------------------------------------- */

/* By class of the operands: $0, $1, $2 are they, ~ is the suffix of C's functions (f or nothing), % that of common.cu's (f32 or f64). */
static const struct { const char *floats, *whole, *bools; } forms[IR_OPS] = {
    [OP_neg]     = { "-$0", "rax_sub_i32(0, $0)", NULL },
    [OP_abs]     = { "fabs~($0)", "rax_abs_i32($0)", NULL },
    [OP_sign]    = { "rax_sign_%($0)", "rax_sign_i32($0)", NULL },
    [OP_floor]   = { "floor~($0)", NULL, NULL },
    [OP_exp]     = { "exp~($0)", NULL, NULL },
    [OP_log]     = { "log~($0)", NULL, NULL },
    [OP_sqrt]    = { "sqrt~($0)", NULL, NULL },
    [OP_rsqrt]   = { "1 / sqrt~($0)", NULL, NULL },
    [OP_tanh]    = { "tanh~($0)", NULL, NULL },
    [OP_sigmoid] = { "rax_sigmoid_%($0)", NULL, NULL },
    [OP_sin]     = { "sin~($0)", NULL, NULL },
    [OP_cos]     = { "cos~($0)", NULL, NULL },
    [OP_erf]     = { "erf~($0)", NULL, NULL },
    [OP_erf_inv] = { "rax_erf_inv_%($0)", NULL, NULL },
    [OP_not]     = { NULL, NULL, "!$0" },
    [OP_add]     = { "$0 + $1", "rax_add_i32($0, $1)", NULL },
    [OP_sub]     = { "$0 - $1", "rax_sub_i32($0, $1)", NULL },
    [OP_mul]     = { "$0 * $1", "rax_mul_i32($0, $1)", NULL },
    [OP_div]     = { "$0 / $1", "rax_div_i32($0, $1)", NULL },
    [OP_rem]     = { "fmod~($0, $1)", "rax_rem_i32($0, $1)", NULL },
    [OP_pow]     = { "pow~($0, $1)", NULL, NULL },
    [OP_max]     = { "rax_max_%($0, $1)", "rax_max_i32($0, $1)", NULL },
    [OP_min]     = { "rax_min_%($0, $1)", "rax_min_i32($0, $1)", NULL },
    [OP_and]     = { NULL, NULL, "$0 & $1" },
    [OP_or]      = { NULL, NULL, "$0 | $1" },
    [OP_eq]      = { "$0 == $1", "$0 == $1", "$0 == $1" },
    [OP_ne]      = { "$0 != $1", "$0 != $1", "$0 != $1" },
    [OP_lt]      = { "$0 < $1", "$0 < $1", "$0 < $1" },
    [OP_le]      = { "$0 <= $1", "$0 <= $1", "$0 <= $1" },
};

static void write_form(const cuda_expressions *x, base_text *text, const char *form, const kl_expr *e, ir_dtype of)
{
    for (const char *c = form; *c; c++)
        if (*c == '$')
            base_text_add(text, "%s", cuda_operand(x, e->args[*++c - '0']));
        else if (*c == '~')
            base_text_add(text, "%s", of == IR_F64 ? "" : "f");
        else if (*c == '%')
            base_text_add(text, "%s", cuda_suffix(of));
        else
            base_text_bytes(text, c, 1);
}

static void write_cast(const cuda_expressions *x, base_text *text, const kl_expr *e, ir_dtype from, bool rounds)
{
    const char *operand = cuda_operand(x, e->args[0]);
    switch (e->dtype) {
    case IR_F32: case IR_F64:
        base_text_add(text, "(%s)%s", cuda_register_type(e->dtype), operand);
        break;
    case IR_BF16:
        base_text_add(text, rounds ? "rax_round_bf16((float)%s)" : "(float)%s", operand);
        break;
    case IR_I32:
        if (ir_dtype_is_float(from))
            base_text_add(text, "rax_i32_of_%s(%s)", cuda_suffix(from), operand);
        else
            base_text_add(text, "%s", operand);
        break;
    case IR_BOOL:
        base_text_add(text, "%s != 0", operand);
        break;
    case IR_TUPLE:
        break;
    }
}

int cuda_exp_below(const kl_loop *loop, int i)
{
    const kl_expr *e = &loop->exprs[i], *below = e->kind == KL_OP ? &loop->exprs[e->args[0]] : NULL;
    if (!below || e->op != OP_exp || below->kind != KL_OP || below->op != OP_sub)
        return -1;
    const kl_expr *most = &loop->exprs[below->args[1]];
    return most->kind == KL_REDUCE && most->op == OP_reduce_max && most->args[0] == below->args[0] ? below->args[1] : -1;
}

static void write_op(const cuda_expressions *x, base_text *text, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    bool rounds = e->dtype == IR_BF16 && !x->unrounded[i];
    ir_dtype of = x->loop->exprs[e->args[0]].dtype;
    if (e->op == OP_cast) {
        write_cast(x, text, e, of, rounds);
        return;
    }
    if (e->op == OP_select) {
        base_text_add(text, "%s ? %s : %s", cuda_operand(x, e->args[0]), cuda_operand(x, e->args[1]), cuda_operand(x, e->args[2]));
        return;
    }
    const char *form = ir_dtype_is_float(of) ? forms[e->op].floats : of == IR_I32 ? forms[e->op].whole : forms[e->op].bools;
    if (cuda_exp_below(x->loop, i) >= 0)
        form = "rax_exp_below_%($0)";
    CHECK(form, "%s: expected an elementwise op of %s", OP_NAME(e->op), ir_dtype_name(of));
    if (rounds)
        base_text_add(text, "rax_round_bf16(");
    write_form(x, text, form, e, of);
    if (rounds)
        base_text_add(text, ")");
}

/* To the last bit: nine digits tell every float, seventeen every double. */
static void write_value(const cuda_expressions *x, base_text *text, ir_dtype dtype, double value)
{
    char digits[64];
    if (dtype == IR_BOOL || dtype == IR_I32) {
        int32_t whole = dtype == IR_BOOL ? value != 0 : value != value ? 0 : value >= 2147483647.0 ? INT32_MAX : value <= -2147483648.0 ? INT32_MIN : (int32_t)value;
        base_text_add(text, whole == INT32_MIN ? "-2147483647 - 1" : "%s", cuda_number(x->writer, whole, "int"));
        return;
    }
    if (dtype == IR_BF16)
        value = ir_bf16_to_f32(ir_f32_to_bf16((float)value));
    if (dtype == IR_F32)
        value = (float)value;
    if (x->writer->listed && dtype != IR_F64) {
        float single = (float)value;
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        base_text_add(text, "%s", cuda_number(x->writer, bits, "float"));
        return;
    }
    if (isnan(value) || isinf(value)) {
        base_text_add(text, isnan(value) ? "RAX_NAN" : value > 0 ? "RAX_INFINITY" : "-RAX_INFINITY");
        return;
    }
    snprintf(digits, sizeof digits, dtype == IR_F64 ? "%.17g" : "%.9g", value);
    base_text_add(text, "%s%s%s", digits, strpbrk(digits, ".e") ? "" : ".0", dtype == IR_F64 ? "" : "f");
}

/* -- expressions ------------------------------------------------------------------------------------------------------------------ */

/* What V neighbours are in memory: "rax_f32x4", "float". */
static const char *place_type(const cuda_expressions *x, ir_dtype dtype)
{
    static _Thread_local char name[32];
    snprintf(name, sizeof name, x->V > 1 ? "%sx%d" : "%s", x->V > 1 ? types[dtype].vector : types[dtype].memory, x->V);
    return name;
}

static const char *each_of(const cuda_expressions *x) { return x->V > 1 ? ".v[j]" : ""; }

static const char *const kept_place = "it * THREADS + threadIdx.x";

/* `to`, of the place's type, from memory; or from where its row is kept. */
static void write_neighbours(const cuda_expressions *x, base_text *text, int i, const char *to)
{
    const kl_expr *e = &x->loop->exprs[i];
    bool kept = x->kept[i] && x->filled[i];
    if (kept)
        base_text_add(text, "if (it < KEPT) %s = k%d[%s]; else ", to, i, kept_place);
    if (x->vector[i]) {
        base_text_add(text, "%s = *(const %s *)(p%d + ", to, place_type(x, e->dtype), x->param[i]);
        cuda_write_place(x, text, &e->view, false, x->index_type);
        base_text_add(text, "); ");
        return;
    }
    base_text_add(text, "EACH %s%s = p%d[", to, each_of(x), x->param[i]);
    cuda_write_place(x, text, &e->view, true, x->index_type);
    base_text_add(text, "]; ");
}

void cuda_write_kept(const cuda_expressions *x, base_text *text, int i, size_t offset)
{
    const char *type = place_type(x, x->loop->exprs[i].dtype);
    base_text_add(text, "        %s *const k%d = (%s *)(memory + %lld * KEPT * THREADS);\n", type, i, type, (long long)offset);
}

void cuda_write_held(const cuda_expressions *x, base_text *text, const char *indent, int i, const char *n)
{
    base_text_add(text, "%s%s h%d[%s];\n", indent, place_type(x, x->loop->exprs[i].dtype), i, n);
}

void cuda_write_ahead(const cuda_expressions *x, base_text *text, const char *indent, int i)
{
    char to[48];
    snprintf(to, sizeof to, "h%d[%s]", i, x->held_at);
    base_text_add(text, "%s", indent);
    write_neighbours(x, text, i, to);
    base_text_add(text, "\n");
}

static void write_load(const cuda_expressions *x, base_text *text, const char *indent, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    const char *load = types[e->dtype].load;
    char from[48];
    if (!x->lanes[i]) {
        base_text_add(text, "%sconst %s e%d = %s(p%d[", indent, cuda_register_type(e->dtype), i, load, x->param[i]);
        cuda_write_place(x, text, &e->view, false, x->index_type);
        base_text_add(text, "]);\n");
        return;
    }
    base_text_add(text, "%s", indent);
    if (x->held[i]) {
        snprintf(from, sizeof from, "h%d[%s]", i, x->held_at);
    } else {
        snprintf(from, sizeof from, "t%d", i);
        base_text_add(text, "%s %s; ", place_type(x, e->dtype), from);
        write_neighbours(x, text, i, from);
    }
    if (x->kept[i] && !x->filled[i])
        base_text_add(text, "if (it < KEPT) k%d[%s] = %s; ", i, kept_place, from);
    base_text_add(text, "%s e%d[V]; EACH e%d[j] = %s(%s%s);\n", cuda_register_type(e->dtype), i, i, load, from, each_of(x));
}

void cuda_write_expression(cuda_expressions *x, base_text *text, const char *indent, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    if (x->written_down[i])
        return;
    CHECK(e->kind != KL_REDUCE && e->kind != KL_PRODUCT, "e%d: expected a reduction to be there by now", i);
    for (int a = 0; a < e->n_args; a++)
        cuda_write_expression(x, text, indent, e->args[a]);
    for (int d = 0; e->kind != KL_OP && e->kind != KL_VALUE && d < e->view.n_dynamic; d++)
        cuda_write_expression(x, text, indent, e->view.dynamic[d].expr);
    x->written_down[i] = true;
    if (e->kind == KL_LOAD) {
        write_load(x, text, indent, i);
        return;
    }
    if (e->kind == KL_RANDOM) {
        cuda_write_random(x, text, indent, i);
        return;
    }
    if (x->lanes[i])
        base_text_add(text, "%s%s e%d[V]; EACH e%d[j] = ", indent, cuda_register_type(e->dtype), i, i);
    else
        base_text_add(text, "%sconst %s e%d = ", indent, cuda_register_type(e->dtype), i);
    if (e->kind == KL_VALUE) {
        write_value(x, text, e->dtype, e->value);
    } else if (e->kind == KL_INDEX) {
        base_text_add(text, "(int)(p%d + ", x->param[i]);
        cuda_write_place(x, text, &e->view, x->lanes[i], "rax_i64");
        base_text_add(text, ")");
    } else {
        write_op(x, text, i);
    }
    base_text_add(text, ";\n");
}

/* The text of what goes to memory: the value, or its sum with what is there. */
static void write_stored(const cuda_expressions *x, base_text *text, const kl_output *o, const char *old)
{
    ir_dtype dtype = x->loop->exprs[o->expr].dtype;
    const char *value = cuda_operand(x, o->expr);
    if (!o->accumulate)
        base_text_add(text, "%s(%s)", types[dtype].store, value);
    else if (dtype == IR_I32)
        base_text_add(text, "rax_add_i32(%s, %s)", old, value);
    else
        base_text_add(text, "%s(%s(%s) + %s)", types[dtype].store, types[dtype].load, old, value);
}

void cuda_write_store(cuda_expressions *x, base_text *text, const char *indent, int output, bool once)
{
    const kl_output *o = &x->loop->outputs[output];
    ir_dtype dtype = x->loop->exprs[o->expr].dtype;
    int at = x->loop->n_exprs + output, param = x->param[at];
    if (x->vector[at] && !once && dtype == IR_BF16 && x->lanes[o->expr] && !o->accumulate) {
        base_text_add(text, "%s{ rax_twox%d t, *to = (rax_twox%d *)(p%d + ", indent, x->V / 2, x->V / 2, param);
        cuda_write_place(x, text, &o->view, false, x->index_type);
        base_text_add(text, "); RAX_UNROLL for (int j = 0; j < V; j += 2) t.v[j / 2] = rax_two_to_bf16(e%d[j], e%d[j + 1]); *to = t; }\n", o->expr, o->expr);
        return;
    }
    if (x->vector[at] && !once) {
        base_text_add(text, "%s{ %sx%d t, *to = (%sx%d *)(p%d + ", indent, types[dtype].vector, x->V, types[dtype].vector, x->V, param);
        cuda_write_place(x, text, &o->view, false, x->index_type);
        base_text_add(text, "); %sEACH t.v[j] = ", o->accumulate ? "t = *to; " : "");
        write_stored(x, text, o, "t.v[j]");
        base_text_add(text, "; *to = t; }\n");
        return;
    }
    base_text_add(text, "%s%s{ %s *to = p%d + ", indent, once ? "" : "EACH ", cuda_memory_type(dtype), param);
    cuda_write_place(x, text, &o->view, !once, x->index_type);
    base_text_add(text, "; *to = ");
    write_stored(x, text, o, "*to");
    base_text_add(text, "; }\n");
}
