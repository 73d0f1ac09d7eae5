/* The text form of a kernel list, made to be read and to be parsed back:
 *
 *     kernels "step" arena 2048 workspace 0 {
 *       b0: f32[4096] param 0 "x"
 *       b1: f32[64] const [0, 0.5, ...]
 *       b2: f32[4096] result 0 "y" -> param 0               takes over the memory of parameter 0
 *       b3: f32[4096] temp at 1024                          ; mlp.c:12
 *       b4: f32[64] moving b3 by 64 from 0 in r0            elements 64 i and on of b3, in iteration i of repeat 0
 *
 *       k0: loop "layer_norm+add" [8,64 | 64]               ; mlp.c:14
 *         e0: f32 = load b0[512,64,1]                       strides by axis
 *         e1: f32 row = reduce_sum e0                       after the bar are the axes of a row
 *         e2: f32 = load b1[0,0,1]+7+64*clamp(e9,10)
 *         e3: f32 = add e0, e1
 *         store b3[512,64,1] = e3
 *         sum_outer b5[0,0,1] += e3
 *       k1: list "add" [ | 4096]                                loops of one form: the first, then the bindings of the others,
 *         e0: f32 = load b0[1]                                  expressions and outputs in order
 *         e1: f32 = value 0.5
 *         e2: f32 = mul e0, e1
 *         store b2[1] = e2
 *         also [ | 64] b4[1], 0.25, b5[1]
 *       k2: repeat "scan" r0 count 8 reverse {
 *         k3: contraction "matmul" f32 batch [4] m 8 n 16 k 32
 *           a [4,8 | 32]
 *             e0: f32 = load ...
 *             operand = e0
 *           ...
 *       }
 *     }
 */
#include "ir/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMENT_COLUMN = 60 };

typedef struct { base_text *out; const kl_program *program; int depth; size_t line_start; } printer;

/* -- words, numbers, lines ---------------------------------------------------------------------------------------------- */

/* As few digits as give the same number of the dtype. */
static void print_number(base_text *out, ir_dtype dtype, double value)
{
    char digits[40];
    bool narrow = dtype == IR_F32 || dtype == IR_BF16;
    if (dtype == IR_BOOL || isnan(value)) {
        base_text_add(out, "%s", dtype != IR_BOOL ? "nan" : value != 0 ? "true" : "false");
        return;
    }
    if (dtype == IR_I32) {
        base_text_add(out, "%.0f", value);
        return;
    }
    for (int n = 6; n <= 17; n++) {
        snprintf(digits, sizeof digits, "%.*g", n, value);
        double again = strtod(digits, NULL);
        if (narrow ? (float)again == (float)value : again == value)
            break;
    }
    base_text_add(out, "%s", digits);
}

static void print_dims(base_text *out, int n, const int64_t *dim)
{
    for (int i = 0; i < n; i++)
        base_text_add(out, "%s%lld", i ? "," : "", (long long)dim[i]);
}

static void begin_line(printer *p)
{
    p->line_start = p->out->len;
    base_text_add(p->out, "%*s", 2 * p->depth, "");
}

static void end_line(printer *p, ir_place place)
{
    if (place.file) {
        int column = (int)(p->out->len - p->line_start);
        base_text_add(p->out, "%*s; ", MAX(2, COMMENT_COLUMN - column), "");
        for (const char *c = place.file; *c; c++)
            base_text_bytes(p->out, (unsigned char)*c < 0x20 ? "?" : c, 1);
        base_text_add(p->out, ":%d", MAX(0, place.line));
    }
    base_text_add(p->out, "\n");
}

static const ir_place nowhere = { NULL, 0 };

/* -- buffers ------------------------------------------------------------------------------------------------------------ */

static void print_buffer(printer *p, int which)
{
    const kl_buffer *b = &p->program->buffers[which];
    base_text *out = p->out;
    begin_line(p);
    base_text_add(out, "b%d: %s[%lld] ", which, ir_dtype_name(b->dtype), (long long)b->count);
    switch (b->kind) {
    case KL_PARAM:
        base_text_add(out, "param %d", b->index);
        break;
    case KL_RESULT:
        base_text_add(out, "result %d", b->index);
        break;
    case KL_CONST:
        base_text_add(out, "const [");
        for (int64_t i = 0; i < b->count; i++) {
            base_text_add(out, "%s", i ? "," : "");
            print_number(out, b->dtype, ir_element(b->dtype, b->data, i));
        }
        base_text_add(out, "]");
        break;
    case KL_TEMP:
        base_text_add(out, "temp at %lld", (long long)b->arena_offset);
        break;
    case KL_MOVING:
        base_text_add(out, "moving b%d by %lld from %lld in r%d", b->base, (long long)b->step, (long long)b->offset, b->repeat);
        break;
    }
    if (b->name) {
        base_text_add(out, " ");
        ir_print_quoted(out, b->name);
    }
    if (b->kind == KL_RESULT && b->donated >= 0)
        base_text_add(out, " -> param %d", b->donated);
    end_line(p, b->place);
}

/* -- loops -------------------------------------------------------------------------------------------------------------- */

static void print_view(base_text *out, const kl_view *view, int n_axes)
{
    if (view->buffer >= 0)
        base_text_add(out, "b%d", view->buffer);
    base_text_add(out, "[");
    print_dims(out, n_axes, view->stride);
    base_text_add(out, "]");
    if (view->offset)
        base_text_add(out, "+%lld", (long long)view->offset);
    for (int i = 0; i < view->n_dynamic; i++)
        base_text_add(out, "+%lld*clamp(e%d,%lld)", (long long)view->dynamic[i].stride, view->dynamic[i].expr, (long long)view->dynamic[i].limit);
}

static void print_expr(printer *p, const kl_loop *loop, int which)
{
    const kl_expr *e = &loop->exprs[which];
    base_text *out = p->out;
    begin_line(p);
    base_text_add(out, "e%d: %s%s = ", which, ir_dtype_name(e->dtype), e->row ? " row" : "");
    switch (e->kind) {
    case KL_LOAD:
        base_text_add(out, "load ");
        print_view(out, &e->view, loop->n_axes);
        break;
    case KL_VALUE:
        base_text_add(out, "value ");
        print_number(out, e->dtype, e->value);
        break;
    case KL_INDEX:
        base_text_add(out, "index ");
        print_view(out, &e->view, loop->n_axes);
        break;
    case KL_OP:
    case KL_REDUCE:
    case KL_RANDOM:
        base_text_add(out, "%s", OP_NAME(e->op));
        for (int i = 0; i < e->n_args; i++)
            base_text_add(out, "%s e%d", i ? "," : "", e->args[i]);
        if (e->kind == KL_RANDOM) {
            base_text_add(out, " site %u ", e->site);
            print_view(out, &e->view, loop->n_axes);
        }
        break;
    case KL_PRODUCT:
        base_text_add(out, "product");
        break;
    }
    end_line(p, nowhere);
}

static void print_output(printer *p, const kl_loop *loop, const kl_output *output)
{
    static const char *const names[] = { [KL_STORE] = "store", [KL_SUM_OUTER] = "sum_outer", [KL_SUM_ALL] = "sum_all" };
    begin_line(p);
    if (output->view.buffer < 0) {
        base_text_add(p->out, "operand = e%d", output->expr);
    } else {
        base_text_add(p->out, "%s ", names[output->kind]);
        print_view(p->out, &output->view, loop->n_axes);
        base_text_add(p->out, " %s e%d", output->accumulate ? "+=" : "=", output->expr);
    }
    end_line(p, nowhere);
}

static void print_extents(base_text *out, const kl_loop *loop)
{
    base_text_add(out, " [");
    print_dims(out, loop->n_outer, loop->extent);
    base_text_add(out, "%s|%s", loop->n_outer ? " " : "", loop->n_axes > loop->n_outer ? " " : "");
    print_dims(out, loop->n_axes - loop->n_outer, loop->extent + loop->n_outer);
    base_text_add(out, "]");
}

/* Goes on in the line of the head. */
static void print_loop(printer *p, const kl_loop *loop, ir_place place)
{
    print_extents(p->out, loop);
    end_line(p, place);
    p->depth++;
    for (int i = 0; i < loop->n_exprs; i++)
        print_expr(p, loop, i);
    for (int i = 0; i < loop->n_outputs; i++)
        print_output(p, loop, &loop->outputs[i]);
    p->depth--;
}

/* What the first loop of a list has at these places, this one has there. */
static void print_bindings(printer *p, const kl_loop *loop)
{
    base_text *out = p->out;
    const char *between = " ";
    begin_line(p);
    base_text_add(out, "also");
    print_extents(out, loop);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        if (e->kind == KL_OP || e->kind == KL_REDUCE || e->kind == KL_PRODUCT)
            continue;
        base_text_add(out, "%s", between);
        if (e->kind == KL_RANDOM)
            base_text_add(out, "site %u ", e->site);
        if (e->kind == KL_VALUE)
            print_number(out, e->dtype, e->value);
        else
            print_view(out, &e->view, loop->n_axes);
        between = ", ";
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        base_text_add(out, "%s", between);
        print_view(out, &loop->outputs[i].view, loop->n_axes);
        between = ", ";
    }
    end_line(p, nowhere);
}

static void print_list(printer *p, const kl_list *list, ir_place place)
{
    print_loop(p, &list->loops[0], place);
    p->depth++;
    for (int i = 1; i < list->n; i++)
        print_bindings(p, &list->loops[i]);
    p->depth--;
}

/* -- kernels ------------------------------------------------------------------------------------------------------------ */

static void print_contraction(printer *p, const kl_contraction *c, ir_place place)
{
    base_text_add(p->out, " %s batch [", ir_dtype_name(c->dtype));
    print_dims(p->out, c->n_batch, c->batch);
    base_text_add(p->out, "] m %lld n %lld k %lld", (long long)c->m, (long long)c->n, (long long)c->k);
    if (c->algorithm)
        base_text_add(p->out, " algorithm %d", c->algorithm);
    end_line(p, place);
    const struct { const char *name; const kl_loop *loop; } parts[] = { { "a", &c->a }, { "b", &c->b }, { "c", &c->c } };
    p->depth++;
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        begin_line(p);
        base_text_add(p->out, "%s", parts[i].name);
        print_loop(p, parts[i].loop, nowhere);
    }
    p->depth--;
}

static void print_named_view(printer *p, const char *name, const kl_view *view, int n_axes)
{
    if (view->buffer < 0)
        return;
    begin_line(p);
    base_text_add(p->out, "%s = ", name);
    print_view(p->out, view, n_axes);
    end_line(p, nowhere);
}

static void print_attention(printer *p, const kl_attention *a, ir_place place)
{
    base_text *out = p->out;
    base_text_add(out, " %s%s batch %lld heads %lld rows %lld keys %lld head_dim %lld%s scale ", ir_dtype_name(a->dtype), a->backward ? " backward" : "",
                  (long long)a->batch, (long long)a->heads, (long long)a->rows, (long long)a->keys, (long long)a->head_dim, a->causal ? " causal" : "");
    print_number(out, IR_F64, a->scale);
    base_text_add(out, " dropout ");
    print_number(out, IR_F64, a->dropout);
    base_text_add(out, " site %u gradients %s", a->site, ir_dtype_name(a->grad_dtype));
    end_line(p, place);
    p->depth++;
    print_named_view(p, "q", &a->q, 4);
    print_named_view(p, "k", &a->k, 4);
    print_named_view(p, "v", &a->v, 4);
    print_named_view(p, "out", &a->out, 4);
    print_named_view(p, "lse", &a->lse, 3);
    print_named_view(p, "dout", &a->dout, 4);
    print_named_view(p, "dlse", &a->dlse, 3);
    print_named_view(p, "dq", &a->dq, 4);
    print_named_view(p, "dk", &a->dk, 4);
    print_named_view(p, "dv", &a->dv, 4);
    print_named_view(p, "seed", &a->seed, 1);
    print_named_view(p, "counter", &a->counter, 0);
    p->depth--;
}

static void print_scatter(printer *p, const kl_scatter *s, ir_place place)
{
    base_text_add(p->out, " %s pre %lld positions %lld rows %lld post %lld", ir_dtype_name(s->dtype), (long long)s->pre, (long long)s->positions,
                  (long long)s->rows, (long long)s->post);
    end_line(p, place);
    p->depth++;
    print_named_view(p, "target", &s->target, 3);
    print_named_view(p, "indices", &s->indices, 1);
    print_named_view(p, "updates", &s->updates, 3);
    p->depth--;
}

static void print_kernel(printer *p, const kl_kernel *kernel)
{
    static const char *const names[] = { [KL_LOOP] = "loop", [KL_LIST] = "list", [KL_CONTRACTION] = "contraction", [KL_ATTENTION] = "attention",
                                         [KL_SCATTER] = "scatter", [KL_REPEAT] = "repeat" };
    begin_line(p);
    base_text_add(p->out, "k%d: %s ", kernel->id, names[kernel->kind]);
    ir_print_quoted(p->out, kernel->name ? kernel->name : "");
    switch (kernel->kind) {
    case KL_LOOP:
        print_loop(p, &kernel->loop, kernel->place);
        return;
    case KL_LIST:
        print_list(p, &kernel->list, kernel->place);
        return;
    case KL_CONTRACTION:
        print_contraction(p, &kernel->contraction, kernel->place);
        return;
    case KL_ATTENTION:
        print_attention(p, kernel->attention, kernel->place);
        return;
    case KL_SCATTER:
        print_scatter(p, &kernel->scatter, kernel->place);
        return;
    case KL_REPEAT:
        base_text_add(p->out, " r%d count %lld%s {", kernel->repeat.id, (long long)kernel->repeat.count, kernel->repeat.reverse ? " reverse" : "");
        end_line(p, kernel->place);
        p->depth++;
        for (int i = 0; i < kernel->repeat.n_body; i++)
            print_kernel(p, kernel->repeat.body[i]);
        p->depth--;
        begin_line(p);
        base_text_add(p->out, "}\n");
        return;
    }
}

void kl_print(base_text *text, const kl_program *program)
{
    printer p = { .out = text, .program = program };
    base_text_add(text, "kernels ");
    ir_print_quoted(text, program->name);
    base_text_add(text, " arena %lld workspace %lld {\n", (long long)program->memory.arena_bytes, (long long)program->memory.workspace_bytes);
    p.depth = 1;
    for (int i = 0; i < program->n_buffers; i++)
        print_buffer(&p, i);
    base_text_add(text, "\n");
    for (int i = 0; i < program->n_kernels; i++)
        print_kernel(&p, program->kernels[i]);
    base_text_add(text, "}\n");
}
