/* What must hold of a kernel list: that every view stays inside its buffer for all indices, that expressions come in order and have the
 * dtypes that the op table gives them, that what is called a row value is one, that no two indices store to one element, that what
 * a kernel overwrites it reads at the same index or not at all, that temporaries are written before they are read, and that of
 * buffers alive at one time no two share memory. */
#include "ir/kernels.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const kl_program *program;
    base_text *why;
    const kl_kernel *kernel;           /* now */
    const kl_repeat **repeats;         /* by id */
    bool *inside;                      /* by id: whether the walk is in its body */
    bool *written;                     /* by buffer */
} verifier;

static bool wrong(verifier *v, const char *format, ...) PRINTF_LIKE(2, 3);
static bool wrong(verifier *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (v->kernel)
        base_text_add(v->why, "k%d \"%s\": ", v->kernel->id, v->kernel->name ? v->kernel->name : "");
    base_text_addv(v->why, format, args);
    va_end(args);
    return false;
}

/* -- buffers ------------------------------------------------------------------------------------------------------------ */

static bool note_repeats(verifier *v, kl_kernel *const *kernels, int n)
{
    for (int i = 0; i < n; i++) {
        const kl_repeat *repeat = &kernels[i]->repeat;
        if (kernels[i]->kind != KL_REPEAT)
            continue;
        v->kernel = kernels[i];
        if (repeat->id < 0 || repeat->id >= v->program->n_repeats || v->repeats[repeat->id])
            return wrong(v, "repeat %d: expected a number of its own below %d", repeat->id, v->program->n_repeats);
        if (repeat->count < 0)
            return wrong(v, "repeat %d: expected a count, got %lld", repeat->id, (long long)repeat->count);
        v->repeats[repeat->id] = repeat;
        if (!note_repeats(v, repeat->body, repeat->n_body))
            return false;
    }
    v->kernel = NULL;
    return true;
}

static bool moving_fits(verifier *v, int which)
{
    const kl_program *program = v->program;
    const kl_buffer *b = &program->buffers[which];
    int steps = 0;
    for (int at = which; program->buffers[at].kind == KL_MOVING; at = program->buffers[at].base) {
        if (program->buffers[at].base < 0 || program->buffers[at].base >= program->n_buffers || ++steps > program->n_buffers)
            return wrong(v, "b%d: expected to move over another buffer", which);
        if (at != which && program->buffers[at].repeat == b->repeat)
            return wrong(v, "b%d: moves over b%d, which moves in the same repeat", which, at);
    }
    const kl_buffer *base = &program->buffers[b->base];
    if (b->repeat < 0 || b->repeat >= program->n_repeats || b->dtype != base->dtype)
        return wrong(v, "b%d: expected a repeat below %d and the dtype of b%d", which, program->n_repeats, b->base);
    if (!v->repeats[b->repeat] || v->repeats[b->repeat]->count == 0 || b->count == 0)
        return true;                                      /* of a repeat that came to nothing */
    int64_t last;
    if (__builtin_mul_overflow(v->repeats[b->repeat]->count - 1, b->step, &last) || __builtin_add_overflow(last, b->offset, &last))
        return wrong(v, "b%d: moves beyond 64 bits", which);
    int64_t low = MIN(b->offset, last), high = MAX(b->offset, last);
    if (low < 0 || high > base->count - b->count)
        return wrong(v, "b%d: of %lld elements, begins at elements %lld to %lld of b%d, which has %lld", which, (long long)b->count,
                     (long long)low, (long long)high, b->base, (long long)base->count);
    return true;
}

static bool buffers_fit(verifier *v)
{
    const kl_program *program = v->program;
    for (int i = 0; i < program->n_buffers; i++) {
        const kl_buffer *b = &program->buffers[i];
        if (b->count < 0 || b->count > INT64_MAX / 16 || b->dtype >= IR_TUPLE)
            return wrong(v, "b%d: expected a dtype and a number of elements", i);
        switch (b->kind) {
        case KL_PARAM:
            if (b->index < 0 || b->index >= program->n_params)
                return wrong(v, "b%d: parameter %d of %d", i, b->index, program->n_params);
            break;
        case KL_RESULT:
            if (b->index < 0 || b->index >= program->n_results || b->donated >= program->n_params)
                return wrong(v, "b%d: result %d of %d", i, b->index, program->n_results);
            break;
        case KL_CONST:
            if (!b->data && b->count > 0)
                return wrong(v, "b%d: a constant without data", i);
            break;
        case KL_TEMP:
            break;
        case KL_MOVING:
            if (!moving_fits(v, i))
                return false;
            break;
        }
    }
    return true;
}

static bool may_touch(verifier *v, int buffer, bool write, bool read)
{
    const kl_program *program = v->program;
    if (buffer < 0 || buffer >= program->n_buffers)
        return wrong(v, "b%d: no such buffer", buffer);
    int root = kl_root_buffer(program, buffer);
    for (int at = buffer; at != root; at = program->buffers[at].base)
        if (!v->inside[program->buffers[at].repeat])
            return wrong(v, "b%d: moves in repeat %d, outside of which it is used", buffer, program->buffers[at].repeat);
    kl_buffer_kind kind = program->buffers[root].kind;
    if (write && (kind == KL_PARAM || kind == KL_CONST))
        return wrong(v, "b%d: cannot be written", buffer);
    if (read && kind == KL_TEMP && program->buffers[root].count > 0 && !v->written[root])
        return wrong(v, "b%d: is read before anything is written to it", buffer);
    return true;
}

/* -- views -------------------------------------------------------------------------------------------------------------- */

static bool is_empty(int n_axes, const int64_t *extent)
{
    for (int i = 0; i < n_axes; i++)
        if (extent[i] == 0)
            return true;
    return false;
}

static bool view_fits(verifier *v, const kl_view *view, int n_axes, const int64_t *extent, ir_dtype dtype, const char *what)
{
    const kl_buffer *buffer = &v->program->buffers[view->buffer];
    int64_t low = view->offset, high = view->offset;
    if (buffer->dtype != dtype)
        return wrong(v, "%s: is %s, and b%d is %s", what, ir_dtype_name(dtype), view->buffer, ir_dtype_name(buffer->dtype));
    if (is_empty(n_axes, extent))
        return true;
    for (int i = 0; i < n_axes; i++) {
        int64_t reach;
        if (__builtin_mul_overflow(extent[i] - 1, view->stride[i], &reach) ||
            __builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high))
            return wrong(v, "%s: an index beyond 64 bits", what);
    }
    for (int i = 0; i < view->n_dynamic; i++) {
        int64_t reach;
        if (view->dynamic[i].limit < 0 || __builtin_mul_overflow(view->dynamic[i].limit, view->dynamic[i].stride, &reach) ||
            __builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high))
            return wrong(v, "%s: a dynamic term beyond 64 bits", what);
    }
    if (low < 0 || high >= buffer->count)
        return wrong(v, "%s: reaches elements %lld to %lld of b%d, which has %lld", what, (long long)low, (long long)high, view->buffer,
                     (long long)buffer->count);
    return true;
}

static bool dynamic_fits(verifier *v, const kl_loop *loop, const kl_view *view, int before, const char *what)
{
    for (int i = 0; i < view->n_dynamic; i++) {
        int expr = view->dynamic[i].expr;
        if (expr < 0 || expr >= before || loop->exprs[expr].dtype != IR_I32)
            return wrong(v, "%s: expected an i32 before it for an index, got e%d", what, expr);
    }
    return true;
}

/* Each index its own element: by ascending strides, each step is beyond all that the smaller ones reach. */
static bool is_injective(const kl_view *view, int n_axes, const int64_t *extent)
{
    bool used[KL_MAX_AXES] = { false };
    int64_t reach = 0;
    if (is_empty(n_axes, extent))
        return true;
    for (int round = 0; round < n_axes; round++) {
        int next = -1;
        for (int i = 0; i < n_axes; i++)
            if (!used[i] && extent[i] > 1 && (next < 0 || view->stride[i] < view->stride[next]))
                next = i;
        if (next < 0)
            break;
        if (view->stride[next] <= reach)
            return false;
        reach += view->stride[next] * (extent[next] - 1);
        used[next] = true;
    }
    return true;
}

/* Whether both keep to different columns of a matrix with rows of `row` elements. */
static bool in_other_columns(const kl_view *a, const kl_view *b, int n_axes, const int64_t *extent, int64_t row)
{
    const kl_view *both[] = { a, b };
    int64_t low[2], high[2];
    for (int k = 0; k < 2; k++) {
        low[k] = high[k] = both[k]->offset % row;
        for (int i = 0; i < n_axes; i++)
            if (both[k]->stride[i] % row != 0)
                high[k] += both[k]->stride[i] * (extent[i] - 1);
        if (both[k]->n_dynamic || low[k] < 0 || high[k] >= row)
            return false;
    }
    return high[0] < low[1] || high[1] < low[0];
}

static bool are_disjoint(const kl_view *a, const kl_view *b, int n_axes, const int64_t *extent)
{
    for (int i = 0; i < 2 * n_axes; i++) {
        int64_t row = i < n_axes ? a->stride[i] : b->stride[i - n_axes];
        if (row > 0 && in_other_columns(a, b, n_axes, extent, row))
            return true;
    }
    return in_other_columns(a, b, n_axes, extent, INT64_MAX);
}

/* -- loops -------------------------------------------------------------------------------------------------------------- */

typedef enum { LOOP_ALONE, LOOP_OPERAND, LOOP_EPILOGUE } loop_use;

/* The type that the op table gives the op on scalars of these dtypes. */
static bool op_fits(verifier *v, const kl_loop *loop, const kl_expr *e, const char *what)
{
    ir_node args[KL_MAX_ARGS] = {0}, *pointers[KL_MAX_ARGS], node = { .op = e->op, .n_args = e->n_args, .args = pointers };
    ir_type type = ir_scalar(e->dtype);
    base_text why = {0};
    node.type = type;
    for (int i = 0; i < e->n_args; i++) {
        args[i].type = ir_scalar(loop->exprs[e->args[i]].dtype);
        pointers[i] = &args[i];
    }
    bool good = (ir_op_table[e->op].shape(&node, &type, &why) && type.dtype == e->dtype) ||
                wrong(v, "%s: %s does not give %s%s%s", what, OP_NAME(e->op), ir_dtype_name(e->dtype), why.len ? ": " : "", why.len ? why.at : "");
    base_text_free(&why);
    return good;
}

static bool is_still_along_rows(const kl_loop *loop, const kl_view *view)
{
    for (int i = loop->n_outer; i < loop->n_axes; i++)
        if (loop->extent[i] > 1 && view->stride[i] != 0)
            return false;
    for (int i = 0; i < view->n_dynamic; i++)
        if (!loop->exprs[view->dynamic[i].expr].row)
            return false;
    return true;
}

static bool expr_fits(verifier *v, const kl_loop *loop, int which, loop_use use, ir_dtype sum)
{
    const kl_expr *e = &loop->exprs[which];
    char what[16];
    snprintf(what, sizeof what, "e%d", which);
    if (e->dtype >= IR_TUPLE || e->n_args < 0 || e->n_args > KL_MAX_ARGS)
        return wrong(v, "%s: expected a dtype and up to %d operands", what, KL_MAX_ARGS);
    bool row = true;
    for (int i = 0; i < e->n_args; i++) {
        if (e->args[i] < 0 || e->args[i] >= which)
            return wrong(v, "%s: expected operands before it, got e%d", what, e->args[i]);
        row &= loop->exprs[e->args[i]].row;
    }
    if (!dynamic_fits(v, loop, &e->view, which, what))
        return false;
    switch (e->kind) {
    case KL_LOAD:
        row = is_still_along_rows(loop, &e->view);
        if (e->n_args)
            return wrong(v, "%s: a load has no operands", what);
        if (!may_touch(v, e->view.buffer, false, true) || !view_fits(v, &e->view, loop->n_axes, loop->extent, e->dtype, what))
            return false;
        break;
    case KL_VALUE:
        break;
    case KL_INDEX:
        row = is_still_along_rows(loop, &e->view);
        if (e->dtype != IR_I32 || e->view.n_dynamic)
            return wrong(v, "%s: expected an i32 without dynamic terms", what);
        break;
    case KL_OP:
        if (e->op >= IR_OPS || ir_op_table[e->op].class != IR_ELEMENTWISE || ir_op_table[e->op].arity != e->n_args)
            return wrong(v, "%s: expected an elementwise op and its operands", what);
        if (!op_fits(v, loop, e, what))
            return false;
        break;
    case KL_REDUCE:
        row = true;
        if (use == LOOP_EPILOGUE || (use == LOOP_OPERAND && which <= loop->outputs[0].expr))
            return wrong(v, "%s: a product's operands and epilogue have no reductions", what);
        if (e->n_args != 1 || e->op >= IR_OPS || ir_op_table[e->op].class != IR_REDUCTION ||
            e->dtype != (e->op == OP_argmax ? IR_I32 : loop->exprs[e->args[0]].dtype))
            return wrong(v, "%s: expected a reduction of one operand", what);
        if (!e->row)
            return wrong(v, "%s: a reduction is a row value", what);
        break;
    case KL_RANDOM:
        row &= is_still_along_rows(loop, &e->view);
        if (e->op != OP_random_bits || e->n_args != 3 || e->dtype != IR_I32 || e->view.n_dynamic)
            return wrong(v, "%s: expected random_bits of seed and counter", what);
        for (int i = 0; i < 3; i++)
            if (loop->exprs[e->args[i]].dtype != IR_I32)
                return wrong(v, "%s: expected operands of i32", what);
        break;
    case KL_PRODUCT:
        row = false;
        if (use != LOOP_EPILOGUE || e->dtype != sum)
            return wrong(v, "%s: expected a product in an epilogue, of %s", what, ir_dtype_name(sum));
        break;
    }
    return !e->row || row || wrong(v, "%s: is called a row value and varies along the row", what);
}

static bool output_fits(verifier *v, const kl_loop *loop, const kl_output *o, loop_use use, ir_dtype operand)
{
    if (o->expr < 0 || o->expr >= loop->n_exprs)
        return wrong(v, "output: no e%d", o->expr);
    const kl_expr *e = &loop->exprs[o->expr];
    if (use == LOOP_OPERAND && o == loop->outputs)
        return (o->kind == KL_STORE && o->view.buffer < 0 && !o->accumulate && e->dtype == operand) ||
               wrong(v, "expected an operand of %s, got %s", ir_dtype_name(operand), ir_dtype_name(e->dtype));
    if (!may_touch(v, o->view.buffer, true, o->accumulate) || !dynamic_fits(v, loop, &o->view, loop->n_exprs, "output") ||
        !view_fits(v, &o->view, loop->n_axes, loop->extent, e->dtype, "output"))
        return false;
    int n_still = 0;                                      /* leading axes along which a sum stands still */
    int64_t extent[KL_MAX_AXES];
    memcpy(extent, loop->extent, sizeof extent);
    switch (o->kind) {
    case KL_STORE:
        if (is_empty(loop->n_axes, extent))
            return true;
        if (e->row && is_still_along_rows(loop, &o->view))
            for (int i = loop->n_outer; i < loop->n_axes; i++)
                extent[i] = 1;
        return is_injective(&o->view, loop->n_axes, extent) || wrong(v, "output of e%d: two indices store to one element", o->expr);
    case KL_SUM_OUTER:
        n_still = loop->n_outer;
        break;
    case KL_SUM_ALL:
        n_still = loop->n_axes;
        break;
    }
    for (int i = 0; i < n_still; i++) {
        if (o->view.stride[i] != 0)
            return wrong(v, "output of e%d: a sum moves along an axis that it goes over", o->expr);
        extent[i] = 1;
    }
    return (!o->view.n_dynamic && is_injective(&o->view, loop->n_axes, extent)) || wrong(v, "output of e%d: sums overlap", o->expr);
}

/* What the loop writes it reads at the same index, or elsewhere. */
static bool aliases_fit(verifier *v, const kl_loop *loop)
{
    const kl_program *program = v->program;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        for (int j = 0; o->view.buffer >= 0 && j < loop->n_exprs; j++) {
            const kl_view *in = &loop->exprs[j].view;
            if (loop->exprs[j].kind != KL_LOAD || kl_memory_of(program, in->buffer) != kl_memory_of(program, o->view.buffer))
                continue;
            bool moving = program->buffers[in->buffer].kind == KL_MOVING || program->buffers[o->view.buffer].kind == KL_MOVING;
            if ((moving && in->buffer != o->view.buffer) || (o->kind == KL_STORE && kl_same_view(&o->view, in)) ||
                are_disjoint(&o->view, in, loop->n_axes, loop->extent))
                continue;
            return wrong(v, "e%d: reads b%d at other indices than output %d writes it", j, in->buffer, i);
        }
    }
    return true;
}

static void note_written(verifier *v, const kl_view *view)
{
    if (view->buffer >= 0)
        v->written[kl_root_buffer(v->program, view->buffer)] = true;
}

static bool loop_fits(verifier *v, const kl_loop *loop, loop_use use, ir_dtype operand, ir_dtype sum)
{
    if (loop->n_axes < 1 || loop->n_axes > KL_MAX_AXES || loop->n_outer < 0 || loop->n_outer > loop->n_axes)
        return wrong(v, "expected 1 to %d axes, got %d, of them %d outer", KL_MAX_AXES, loop->n_axes, loop->n_outer);
    for (int i = 0; i < loop->n_axes; i++)
        if (loop->extent[i] < 0)
            return wrong(v, "axis %d: expected an extent, got %lld", i, (long long)loop->extent[i]);
    if (loop->n_outputs < 1)
        return wrong(v, "expected outputs");
    for (int i = 0; i < loop->n_exprs; i++)
        if (!expr_fits(v, loop, i, use, sum))
            return false;
    for (int i = 0; i < loop->n_outputs; i++)
        if (!output_fits(v, loop, &loop->outputs[i], use, operand))
            return false;
    if (!aliases_fit(v, loop))
        return false;
    for (int i = 0; i < loop->n_outputs; i++)
        note_written(v, &loop->outputs[i].view);
    return true;
}

/* -- lists of loops ----------------------------------------------------------------------------------------------------- */

typedef struct { verifier *v; int *toucher, *writer, now; int clash; } list_check;      /* by memory: which loop, from 1 on */

static void check_apart(void *context, const kl_access *access)
{
    list_check *c = context;
    int memory = kl_memory_of(c->v->program, access->view->buffer), toucher = c->toucher[memory], writer = c->writer[memory];
    if ((writer && writer != c->now) || (access->write && toucher && toucher != c->now))
        c->clash = access->view->buffer;
    if (toucher == 0 || toucher == c->now)
        c->toucher[memory] = c->now;
    else
        c->toucher[memory] = INT32_MAX;                    /* several read it */
    if (access->write)
        c->writer[memory] = c->now;
}

static bool list_of_loops_fits(verifier *v, const kl_list *list)
{
    size_t bytes = sizeof(int) * (size_t)v->program->n_buffers;
    if (list->n < 1)
        return wrong(v, "expected loops");
    for (int i = 0; i < list->n; i++) {
        if (!loop_fits(v, &list->loops[i], LOOP_ALONE, IR_F32, IR_F32))
            return false;
        if (!kl_same_form(&list->loops[0], &list->loops[i]))
            return wrong(v, "loop %d: is of another form than the first", i);
    }
    list_check c = { v, base_alloc(bytes), base_alloc(bytes), 0, -1 };
    for (int i = 0; i < list->n && c.clash < 0; i++) {
        kl_kernel one = { .kind = KL_LOOP, .loop = list->loops[i] };
        c.now = i + 1;
        kl_visit(&one, check_apart, &c);
    }
    base_free(c.toucher);
    base_free(c.writer);
    return c.clash < 0 || wrong(v, "b%d: one loop of the list writes what another one touches", c.clash);
}

/* -- the other kernels -------------------------------------------------------------------------------------------------- */

static bool matrix_fits(verifier *v, const kl_contraction *c, const kl_loop *loop, int64_t rows, int64_t columns, const char *what)
{
    bool good = loop->n_axes == c->n_batch + 2 && loop->n_outer == c->n_batch + 1 && loop->extent[c->n_batch] == rows &&
                loop->extent[c->n_batch + 1] == columns;
    for (int i = 0; i < c->n_batch && good; i++)
        good = loop->extent[i] == c->batch[i];
    return good || wrong(v, "%s: expected axes batch, %lld | %lld", what, (long long)rows, (long long)columns);
}

static bool contraction_fits(verifier *v, const kl_contraction *c)
{
    ir_dtype sum = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    if (!ir_dtype_is_float(c->dtype))
        return wrong(v, "expected operands of a float dtype, got %s", ir_dtype_name(c->dtype));
    if (c->n_batch < 0 || c->n_batch > KL_MAX_AXES - 2)
        return wrong(v, "expected at most %d batch axes, got %d", KL_MAX_AXES - 2, c->n_batch);
    return matrix_fits(v, c, &c->a, c->m, c->k, "a") && matrix_fits(v, c, &c->b, c->k, c->n, "b") && matrix_fits(v, c, &c->c, c->m, c->n, "c") &&
           loop_fits(v, &c->a, LOOP_OPERAND, c->dtype, sum) && loop_fits(v, &c->b, LOOP_OPERAND, c->dtype, sum) &&
           loop_fits(v, &c->c, LOOP_EPILOGUE, c->dtype, sum);
}

static bool plain_view(verifier *v, const kl_view *view, bool write, int n_axes, const int64_t *extent, ir_dtype dtype, const char *what)
{
    if (view->n_dynamic)
        return wrong(v, "%s: expected no dynamic terms", what);
    return may_touch(v, view->buffer, write, !write) && view_fits(v, view, n_axes, extent, dtype, what) &&
           (!write || is_injective(view, n_axes, extent) || wrong(v, "%s: two indices are one element", what));
}

static bool attention_fits(verifier *v, const kl_attention *a)
{
    int64_t rows[] = { a->batch, a->heads, a->rows, a->head_dim }, keys[] = { a->batch, a->heads, a->keys, a->head_dim }, two = 2;
    ir_dtype wide = a->dtype == IR_F64 ? IR_F64 : IR_F32;
    if (!ir_dtype_is_float(a->dtype) || (a->backward && !ir_dtype_is_float(a->grad_dtype)))
        return wrong(v, "expected float dtypes");
    for (int i = 0; i < 4; i++)
        if (rows[i] < 0 || keys[i] < 0)
            return wrong(v, "expected sizes of attention");
    if (!plain_view(v, &a->q, false, 4, rows, a->dtype, "q") || !plain_view(v, &a->k, false, 4, keys, a->dtype, "k") ||
        !plain_view(v, &a->v, false, 4, keys, a->dtype, "v"))
        return false;
    if (a->dropout > 0 && (!plain_view(v, &a->seed, false, 1, &two, IR_I32, "seed") || !plain_view(v, &a->counter, false, 0, NULL, IR_I32, "counter")))
        return false;
    if (!plain_view(v, &a->out, !a->backward, 4, rows, a->dtype, "out") || !plain_view(v, &a->lse, !a->backward, 3, rows, wide, "lse"))
        return false;
    if (!a->backward) {
        note_written(v, &a->out);
        note_written(v, &a->lse);
        return true;
    }
    if (!plain_view(v, &a->dout, false, 4, rows, a->dtype, "dout") ||
        (a->dlse.buffer >= 0 && !plain_view(v, &a->dlse, false, 3, rows, wide, "dlse")) ||
        !plain_view(v, &a->dq, true, 4, rows, a->grad_dtype, "dq") || !plain_view(v, &a->dk, true, 4, keys, a->grad_dtype, "dk") ||
        !plain_view(v, &a->dv, true, 4, keys, a->grad_dtype, "dv"))
        return false;
    note_written(v, &a->dq);
    note_written(v, &a->dk);
    note_written(v, &a->dv);
    return true;
}

static bool scatter_fits(verifier *v, const kl_scatter *s)
{
    int64_t target[] = { s->pre, s->rows, s->post }, updates[] = { s->pre, s->positions, s->post };
    if (s->pre < 0 || s->rows < 0 || s->positions < 0 || s->post < 0)
        return wrong(v, "expected sizes of scatter");
    if (s->rows == 0 && s->pre * s->positions * s->post > 0)
        return wrong(v, "no rows to add to");
    return plain_view(v, &s->updates, false, 3, updates, s->dtype, "updates") &&
           plain_view(v, &s->indices, false, 1, &s->positions, IR_I32, "indices") && may_touch(v, s->target.buffer, true, true) &&
           plain_view(v, &s->target, true, 3, target, s->dtype, "target");
}

static bool list_fits(verifier *v, kl_kernel *const *kernels, int n)
{
    for (int i = 0; i < n; i++) {
        const kl_kernel *kernel = v->kernel = kernels[i];
        bool good = true;
        switch (kernel->kind) {
        case KL_LOOP:        good = loop_fits(v, &kernel->loop, LOOP_ALONE, IR_F32, IR_F32); break;
        case KL_LIST:        good = list_of_loops_fits(v, &kernel->list); break;
        case KL_CONTRACTION: good = contraction_fits(v, &kernel->contraction); break;
        case KL_ATTENTION:   good = attention_fits(v, kernel->attention); break;
        case KL_SCATTER:     good = scatter_fits(v, &kernel->scatter); break;
        case KL_REPEAT:
            v->inside[kernel->repeat.id] = true;
            good = list_fits(v, kernel->repeat.body, kernel->repeat.n_body);
            v->inside[kernel->repeat.id] = false;
            break;
        }
        if (!good)
            return false;
    }
    v->kernel = NULL;
    return true;
}

/* -- the memory plan ---------------------------------------------------------------------------------------------------- */

typedef struct { const kl_program *program; int in, out; const kl_view *load, *store; int n; } place_taking;

static void note_views(void *context, const kl_access *access)
{
    place_taking *t = context;
    int root = kl_root_buffer(t->program, access->view->buffer);
    if (root == t->in || root == t->out)
        t->n++;
    if (root == t->in && !access->write && access->loop)
        t->load = access->view;
    if (root == t->out && access->write && access->loop)
        t->store = access->view;
}

/* Whether kernel number at may store `out` where `in`, which dies there, lies. */
static bool takes_place(const kl_program *program, kl_kernel *const *kernels, int n, int at, int in, int out)
{
    for (int i = 0; i < n; i++) {
        if (kernels[i]->kind == KL_REPEAT && at > kernels[i]->id && at <= kl_last_id(kernels[i]))
            return takes_place(program, kernels[i]->repeat.body, kernels[i]->repeat.n_body, at, in, out);
        if (kernels[i]->id != at)
            continue;
        place_taking t = { program, in, out, NULL, NULL, 0 };
        kl_visit(kernels[i], note_views, &t);
        return kernels[i]->kind == KL_LOOP && t.n == 2 && t.load && t.store && kl_same_view(t.load, t.store);
    }
    return false;
}

static bool plan_fits(verifier *v)
{
    const kl_program *program = v->program;
    bool good = true;
    kl_life *lives = base_alloc(sizeof *lives * (size_t)program->n_buffers);
    kl_lives(program, lives);
    for (int i = 0; i < program->n_buffers && good; i++) {
        const kl_buffer *a = &program->buffers[i];
        int64_t bytes = kl_bytes(a);
        if (a->kind != KL_TEMP || lives[i].last < 0 || bytes == 0)
            continue;
        if (a->arena_offset < 0 || a->arena_offset % 8 || a->arena_offset + bytes > program->memory.arena_bytes)
            good = wrong(v, "b%d: lies outside of the arena", i);
        for (int j = 0; j < i && good; j++) {
            const kl_buffer *b = &program->buffers[j];
            if (b->kind != KL_TEMP || lives[j].last < 0 || b->arena_offset + kl_bytes(b) <= a->arena_offset ||
                a->arena_offset + bytes <= b->arena_offset || lives[j].last < lives[i].first || lives[i].last < lives[j].first || b->count == 0)
                continue;
            int in = lives[i].last == lives[j].first ? i : j, out = i + j - in;
            good = (lives[in].done == lives[out].born && a->arena_offset == b->arena_offset &&
                    takes_place(program, program->kernels, program->n_kernels, lives[out].born, in, out)) ||
                   wrong(v, "b%d and b%d: share memory while both are alive", j, i);
        }
    }
    base_free(lives);
    return good;
}

bool kl_verify(const kl_program *program, base_text *why)
{
    verifier v = { .program = program, .why = why };
    v.repeats = base_alloc(sizeof *v.repeats * (size_t)program->n_repeats);
    v.inside = base_alloc(sizeof *v.inside * (size_t)program->n_repeats);
    v.written = base_alloc(sizeof *v.written * (size_t)program->n_buffers);
    bool good = note_repeats(&v, program->kernels, program->n_kernels) && buffers_fit(&v) && list_fits(&v, program->kernels, program->n_kernels) &&
                (program->memory.arena_bytes == 0 || plan_fits(&v));
    base_free(v.repeats);
    base_free(v.inside);
    base_free(v.written);
    return good;
}
