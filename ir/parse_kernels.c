/* Text to kernel list: what print_kernels.c writes. Nothing in the text is believed: numbers are bounded as they are read, names of
 * buffers and expressions must be known, and the verifier looks at the whole, so that what is returned may be run.
 *
 * Functions are named for what they read. They return false once the error is set, and so does all that called them. */
#include "ir/lexer.h"
#include "ir/kernels.h"

#include <limits.h>
#include <string.h>

#define MOST ((int64_t)1 << 48)            /* of any count, stride or offset: sums of a few products are far from 64 bits */
enum { MAX_DEPTH = 32 };

typedef struct { ir_lexer lexer; kl_program *program; int depth; } parser;

/* -- pieces ------------------------------------------------------------------------------------------------------------- */

static bool number(parser *p, int64_t *value) { return ir_lex_integer(&p->lexer, -MOST, MOST, value); }
static bool natural(parser *p, int64_t *value) { return ir_lex_integer(&p->lexer, 0, MOST, value); }

static bool named_natural(parser *p, const char *name, int64_t *value) { return ir_lex_expect(&p->lexer, name) && natural(p, value); }

/* A letter and a number below `below`: b3, e7, r0. */
static bool name_of(parser *p, const char *letter, int below, int *which)
{
    if (!ir_lex_expect(&p->lexer, letter) || !ir_lex_small(&p->lexer, 0, INT_MAX - 1, which))
        return false;
    return *which < below || ir_lex_wrong(&p->lexer, "%s%d is not known here", letter, *which);
}

static bool dtype(parser *p, ir_dtype *result) { return ir_lex_dtype(&p->lexer, "a dtype", result); }

/* Numbers up to `end`, which is read; at most KL_MAX_AXES of them. */
static bool list(parser *p, const char *end, bool may_be_negative, int *n, int64_t *to)
{
    for (*n = 0; !ir_lex_accept(&p->lexer, end); ++*n) {
        if (*n == KL_MAX_AXES)
            return ir_lex_wrong(&p->lexer, "more than %d axes", KL_MAX_AXES);
        if ((*n > 0 && !ir_lex_expect(&p->lexer, ",")) || !(may_be_negative ? number(p, &to[*n]) : natural(p, &to[*n])))
            return false;
    }
    return true;
}

/* Of the comment of the line where the parser stands, `; FILE:LINE`. Any other is no place. */
static ir_place line_place(parser *p)
{
    const char *text;
    size_t len, file_len;
    int line;
    if (!ir_lex_comment(&p->lexer, &text, &len) || !ir_lex_is_place(text, len, &file_len, &line))
        return (ir_place){0};
    return (ir_place){ base_arena_text(p->program->arena, "%.*s", (int)file_len, text), line };
}

/* -- buffers ------------------------------------------------------------------------------------------------------------ */

static bool elements(parser *p, kl_buffer *buffer)
{
    base_text data = {0};
    bool good = ir_lex_expect(&p->lexer, "[");
    for (int64_t n = 0; good && !ir_lex_accept(&p->lexer, "]"); n++) {
        double value;
        uint64_t nan_bits, bits = 0;
        good = n < buffer->count || ir_lex_wrong(&p->lexer, "more than %lld elements", (long long)buffer->count);
        good = good && (n == 0 || ir_lex_expect(&p->lexer, ",")) && ir_lex_value_of(&p->lexer, buffer->dtype, &value, &nan_bits);
        if (good) {
            ir_array array = { ir_scalar(buffer->dtype), &bits };
            ir_node constant = { .op = OP_constant, .attr.value = value };
            ir_op_table[OP_constant].reference(&constant, NULL, &array);
            base_text_bytes(&data, &bits, (size_t)ir_dtype_bytes(buffer->dtype));
        }
    }
    good = good && (data.len == (size_t)kl_bytes(buffer) ||
                    ir_lex_wrong(&p->lexer, "expected %lld elements", (long long)buffer->count));
    if (good) {
        void *copy = base_arena_alloc(p->program->arena, MAX(data.len, (size_t)1));
        if (data.len > 0)
            memcpy(copy, data.at, data.len);
        buffer->data = copy;
    }
    base_text_free(&data);
    return good;
}

static bool kind_of_buffer(parser *p, kl_buffer *b)
{
    ir_lexer *lexer = &p->lexer;
    kl_program *program = p->program;
    if (ir_lex_accept(lexer, "param")) {
        b->kind = KL_PARAM;
        program->n_params++;
        return ir_lex_small(lexer, 0, INT_MAX - 1, &b->index);
    }
    if (ir_lex_accept(lexer, "result")) {
        b->kind = KL_RESULT;
        program->n_results++;
        return ir_lex_small(lexer, 0, INT_MAX - 1, &b->index);
    }
    if (ir_lex_accept(lexer, "const")) {
        b->kind = KL_CONST;
        return elements(p, b);
    }
    if (ir_lex_accept(lexer, "temp")) {
        b->kind = KL_TEMP;
        return ir_lex_expect(lexer, "at") && natural(p, &b->arena_offset);
    }
    b->kind = KL_MOVING;
    return ir_lex_expect(lexer, "moving") && name_of(p, "b", INT_MAX, &b->base) && ir_lex_expect(lexer, "by") && number(p, &b->step) &&
           ir_lex_expect(lexer, "from") && number(p, &b->offset) && ir_lex_expect(lexer, "in") && name_of(p, "r", INT_MAX, &b->repeat);
}

static bool buffer(parser *p)
{
    ir_lexer *lexer = &p->lexer;
    kl_buffer b = { .donated = -1 };
    int which;
    b.place = line_place(p);
    if (!name_of(p, "b", INT_MAX, &which))
        return false;
    if (which != p->program->n_buffers)
        return ir_lex_wrong(lexer, "expected b%d", p->program->n_buffers);
    if (!ir_lex_expect(lexer, ":") || !dtype(p, &b.dtype) || !ir_lex_expect(lexer, "[") || !natural(p, &b.count) || !ir_lex_expect(lexer, "]") ||
        !kind_of_buffer(p, &b))
        return false;
    ir_lex_skip_space(lexer);
    if (ir_lex_peek(lexer) == '"' && !ir_lex_quoted(lexer, p->program->arena, &b.name))
        return false;
    if (b.kind == KL_RESULT && ir_lex_accept(lexer, "->") && !(ir_lex_expect(lexer, "param") && ir_lex_small(lexer, 0, INT_MAX - 1, &b.donated)))
        return false;
    kl_add_buffer(p->program, b);
    return true;
}

/* -- loops -------------------------------------------------------------------------------------------------------------- */

typedef struct { kl_loop *loop; int cap_exprs, cap_outputs; } loop_parts;

/* What stands behind a view's buffer. Dynamic terms name expressions below n_exprs. */
static bool view_parts(parser *p, kl_view *view, int n_axes, int n_exprs)
{
    ir_lexer *lexer = &p->lexer;
    int n;
    if (!ir_lex_expect(lexer, "[") || !list(p, "]", true, &n, view->stride))
        return false;
    if (n != n_axes)
        return ir_lex_wrong(lexer, "%d strides, expected %d", n, n_axes);
    kl_dynamic dynamic[KL_MAX_DYNAMIC];
    while (!ir_lex_at_text(lexer, "+=") && ir_lex_accept(lexer, "+")) {
        int64_t value;
        if (!number(p, &value))
            return false;
        if (!ir_lex_accept(lexer, "*")) {
            view->offset = value;
            continue;
        }
        if (view->n_dynamic == KL_MAX_DYNAMIC)
            return ir_lex_wrong(lexer, "more than %d dynamic terms", KL_MAX_DYNAMIC);
        kl_dynamic *d = &dynamic[view->n_dynamic++];
        d->stride = value;
        if (!ir_lex_expect(lexer, "clamp") || !ir_lex_expect(lexer, "(") || !name_of(p, "e", n_exprs, &d->expr) || !ir_lex_expect(lexer, ",") ||
            !natural(p, &d->limit) || !ir_lex_expect(lexer, ")"))
            return false;
    }
    if (view->n_dynamic) {
        view->dynamic = ARENA_NEW(p->program->arena, kl_dynamic, view->n_dynamic);
        memcpy(view->dynamic, dynamic, sizeof(kl_dynamic) * (size_t)view->n_dynamic);
    }
    return true;
}

static bool view_of(parser *p, kl_view *view, int n_axes, int n_exprs)
{
    *view = (kl_view){0};
    return name_of(p, "b", p->program->n_buffers, &view->buffer) && view_parts(p, view, n_axes, n_exprs);
}

static bool operands(parser *p, kl_expr *e, int n_exprs)
{
    ir_lex_skip_blanks(&p->lexer);
    if (ir_lex_peek(&p->lexer) != 'e')
        return true;
    do {
        if (e->n_args == KL_MAX_ARGS)
            return ir_lex_wrong(&p->lexer, "more than %d operands", KL_MAX_ARGS);
        if (!name_of(p, "e", n_exprs, &e->args[e->n_args++]))
            return false;
    } while (ir_lex_accept(&p->lexer, ","));
    return true;
}

static bool what_expr(parser *p, const kl_loop *loop, kl_expr *e)
{
    ir_lexer *lexer = &p->lexer;
    const char *text;
    size_t len;
    uint64_t nan_bits;
    int64_t site;
    if (!ir_lex_word(lexer, "an op", &text, &len))
        return false;
    if (ir_lex_is_word(text, len, "load")) {
        e->kind = KL_LOAD;
        return view_of(p, &e->view, loop->n_axes, loop->n_exprs);
    }
    if (ir_lex_is_word(text, len, "value")) {
        e->kind = KL_VALUE;
        return ir_lex_value_of(lexer, e->dtype, &e->value, &nan_bits);
    }
    if (ir_lex_is_word(text, len, "index")) {
        e->kind = KL_INDEX;
        return view_parts(p, &e->view, loop->n_axes, loop->n_exprs);
    }
    if (ir_lex_is_word(text, len, "product")) {
        e->kind = KL_PRODUCT;
        return true;
    }
    if (!ir_op_parse(text, len, &e->op))
        return ir_lex_wrong(lexer, "no op is named '%.*s'", (int)MIN(len, 40), text);
    if (!operands(p, e, loop->n_exprs))
        return false;
    if (ir_op_table[e->op].class == IR_REDUCTION) {
        e->kind = KL_REDUCE;
    } else if (e->op == OP_random_bits) {
        e->kind = KL_RANDOM;
        if (!ir_lex_expect(lexer, "site") || !ir_lex_integer(lexer, 0, UINT32_MAX, &site))
            return false;
        e->site = (uint32_t)site;
        return view_parts(p, &e->view, loop->n_axes, loop->n_exprs);
    } else {
        e->kind = KL_OP;
    }
    return true;
}

static bool expr(parser *p, loop_parts *parts)
{
    kl_loop *loop = parts->loop;
    kl_expr e = { .view.buffer = -1 };
    int which;
    if (!name_of(p, "e", INT_MAX, &which))
        return false;
    if (which != loop->n_exprs)
        return ir_lex_wrong(&p->lexer, "expected e%d", loop->n_exprs);
    if (!ir_lex_expect(&p->lexer, ":") || !dtype(p, &e.dtype))
        return false;
    e.row = ir_lex_accept(&p->lexer, "row");
    if (!ir_lex_expect(&p->lexer, "=") || !what_expr(p, loop, &e))
        return false;
    loop->exprs = base_arena_grown(p->program->arena, loop->exprs, loop->n_exprs, &parts->cap_exprs, sizeof e);
    loop->exprs[loop->n_exprs++] = e;
    return true;
}

/* *none where no output comes next. */
static bool output(parser *p, loop_parts *parts, bool *none)
{
    ir_lexer *lexer = &p->lexer;
    kl_loop *loop = parts->loop;
    kl_output o = {0};
    *none = false;
    if (ir_lex_accept(lexer, "operand")) {
        o.view.buffer = -1;
        if (!ir_lex_expect(lexer, "="))
            return false;
    } else {
        if (ir_lex_accept(lexer, "store"))
            o.kind = KL_STORE;
        else if (ir_lex_accept(lexer, "sum_outer"))
            o.kind = KL_SUM_OUTER;
        else if (ir_lex_accept(lexer, "sum_all"))
            o.kind = KL_SUM_ALL;
        else {
            *none = true;
            return true;
        }
        if (!view_of(p, &o.view, loop->n_axes, loop->n_exprs))
            return false;
        o.accumulate = ir_lex_accept(lexer, "+=");
        if (!o.accumulate && !ir_lex_expect(lexer, "="))
            return false;
    }
    if (!name_of(p, "e", loop->n_exprs, &o.expr))
        return false;
    loop->outputs = base_arena_grown(p->program->arena, loop->outputs, loop->n_outputs, &parts->cap_outputs, sizeof o);
    loop->outputs[loop->n_outputs++] = o;
    return true;
}

static bool extents(parser *p, kl_loop *loop)
{
    int64_t inner[KL_MAX_AXES];
    int n_inner;
    if (!ir_lex_expect(&p->lexer, "[") || !list(p, "|", false, &loop->n_outer, loop->extent) || !list(p, "]", false, &n_inner, inner))
        return false;
    if (loop->n_outer + n_inner > KL_MAX_AXES)
        return ir_lex_wrong(&p->lexer, "more than %d axes", KL_MAX_AXES);
    loop->n_axes = loop->n_outer + n_inner;
    memcpy(loop->extent + loop->n_outer, inner, sizeof(int64_t) * (size_t)n_inner);
    return true;
}

static bool loop(parser *p, kl_loop *loop)
{
    loop_parts parts = { .loop = loop };
    bool none = false;
    if (!extents(p, loop))
        return false;
    while (ir_lex_at_text(&p->lexer, "e"))
        if (!expr(p, &parts))
            return false;
    while (!none)
        if (!output(p, &parts, &none))
            return false;
    return true;
}

static bool binding(parser *p, const kl_loop *loop, kl_expr *e, int n_exprs)
{
    uint64_t nan_bits;
    int64_t site;
    switch (e->kind) {
    case KL_LOAD:
        return view_of(p, &e->view, loop->n_axes, n_exprs);
    case KL_VALUE:
        return ir_lex_value_of(&p->lexer, e->dtype, &e->value, &nan_bits);
    case KL_RANDOM:
        if (!ir_lex_expect(&p->lexer, "site") || !ir_lex_integer(&p->lexer, 0, UINT32_MAX, &site))
            return false;
        e->site = (uint32_t)site;
        e->view = (kl_view){ .buffer = -1 };
        return view_parts(p, &e->view, loop->n_axes, n_exprs);
    case KL_INDEX:
        e->view = (kl_view){ .buffer = -1 };
        return view_parts(p, &e->view, loop->n_axes, n_exprs);
    case KL_OP:
    case KL_REDUCE:
    case KL_PRODUCT:
        break;
    }
    return true;
}

/* Another loop of the first one's form: its extents and bindings. */
static bool bindings(parser *p, const kl_loop *first, kl_loop *loop)
{
    base_arena *arena = p->program->arena;
    bool begun = false;
    *loop = *first;
    if (!extents(p, loop))
        return false;
    if (loop->n_axes != first->n_axes || loop->n_outer != first->n_outer)
        return ir_lex_wrong(&p->lexer, "expected %d axes, %d of them outer", first->n_axes, first->n_outer);
    loop->exprs = ARENA_NEW(arena, kl_expr, loop->n_exprs);
    loop->outputs = ARENA_NEW(arena, kl_output, loop->n_outputs);
    for (int i = 0; i < loop->n_exprs; i++) {
        kl_expr *e = &loop->exprs[i];
        *e = first->exprs[i];
        bool bound = e->kind != KL_OP && e->kind != KL_REDUCE && e->kind != KL_PRODUCT;
        if ((bound && begun && !ir_lex_expect(&p->lexer, ",")) || !binding(p, loop, e, i))
            return false;
        begun |= bound;
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        loop->outputs[i] = first->outputs[i];
        if ((begun && !ir_lex_expect(&p->lexer, ",")) || !view_of(p, &loop->outputs[i].view, loop->n_axes, loop->n_exprs))
            return false;
        begun = true;
    }
    return true;
}

static bool list_of_loops(parser *p, kl_list *list)
{
    int cap = 0;
    kl_loop next = {0};
    if (!loop(p, &next))
        return false;
    do {
        if (list->n > 0 && !bindings(p, &list->loops[0], &next))
            return false;
        list->loops = base_arena_grown(p->program->arena, list->loops, list->n, &cap, sizeof next);
        list->loops[list->n++] = next;
    } while (ir_lex_accept(&p->lexer, "also"));
    return true;
}

/* -- kernels ------------------------------------------------------------------------------------------------------------ */

static bool contraction(parser *p, kl_contraction *c)
{
    return dtype(p, &c->dtype) && ir_lex_expect(&p->lexer, "batch") && ir_lex_expect(&p->lexer, "[") && list(p, "]", false, &c->n_batch, c->batch) &&
           named_natural(p, "m", &c->m) && named_natural(p, "n", &c->n) && named_natural(p, "k", &c->k) &&
           (!ir_lex_accept(&p->lexer, "algorithm") || ir_lex_small(&p->lexer, INT_MIN + 1, INT_MAX, &c->algorithm)) &&
           ir_lex_expect(&p->lexer, "a") && loop(p, &c->a) && ir_lex_expect(&p->lexer, "b") && loop(p, &c->b) && ir_lex_expect(&p->lexer, "c") &&
           loop(p, &c->c);
}

/* `name = view` lines, in this order; those that are missing have buffer -1. */
typedef struct { const char *name; kl_view *view; int n_axes; } named_view;

static bool named_views(parser *p, const named_view *views, size_t n)
{
    for (size_t i = 0; i < n; i++)
        views[i].view->buffer = -1;
    for (size_t i = 0; i < n; i++) {
        ir_lexer before = p->lexer;
        const char *text;
        size_t len;
        ir_lex_skip_space(&p->lexer);
        bool is_it = ir_lex_is_word_byte(ir_lex_peek(&p->lexer), true) && ir_lex_word(&p->lexer, "a name", &text, &len) &&
                     ir_lex_is_word(text, len, views[i].name) && ir_lex_accept(&p->lexer, "=");
        if (!is_it)
            p->lexer = before;
        else if (!view_of(p, views[i].view, views[i].n_axes, 0))
            return false;
    }
    return true;
}

static bool attention(parser *p, kl_attention *a)
{
    ir_lexer *lexer = &p->lexer;
    uint64_t nan_bits;
    int64_t site;
    const named_view views[] = { { "q", &a->q, 4 }, { "k", &a->k, 4 }, { "v", &a->v, 4 }, { "out", &a->out, 4 }, { "lse", &a->lse, 3 },
                                 { "dout", &a->dout, 4 }, { "dlse", &a->dlse, 3 }, { "dq", &a->dq, 4 }, { "dk", &a->dk, 4 }, { "dv", &a->dv, 4 },
                                 { "seed", &a->seed, 1 }, { "counter", &a->counter, 0 } };
    if (!dtype(p, &a->dtype))
        return false;
    a->backward = ir_lex_accept(lexer, "backward");
    if (!named_natural(p, "batch", &a->batch) || !named_natural(p, "heads", &a->heads) || !named_natural(p, "rows", &a->rows) ||
        !named_natural(p, "keys", &a->keys) || !named_natural(p, "head_dim", &a->head_dim))
        return false;
    a->causal = ir_lex_accept(lexer, "causal");
    if (!ir_lex_expect(lexer, "scale") || !ir_lex_real(lexer, &a->scale, &nan_bits) || !ir_lex_expect(lexer, "dropout") ||
        !ir_lex_real(lexer, &a->dropout, &nan_bits) || !ir_lex_expect(lexer, "site") || !ir_lex_integer(lexer, 0, UINT32_MAX, &site) ||
        !ir_lex_expect(lexer, "gradients") || !dtype(p, &a->grad_dtype))
        return false;
    a->site = (uint32_t)site;
    return named_views(p, views, COUNT_OF(views));
}

static bool scatter(parser *p, kl_scatter *s)
{
    const named_view views[] = { { "target", &s->target, 3 }, { "indices", &s->indices, 1 }, { "updates", &s->updates, 3 } };
    return dtype(p, &s->dtype) && named_natural(p, "pre", &s->pre) && named_natural(p, "positions", &s->positions) &&
           named_natural(p, "rows", &s->rows) && named_natural(p, "post", &s->post) && named_views(p, views, COUNT_OF(views));
}

static bool kernels(parser *p, kl_sequence *list);

static bool repeat(parser *p, kl_repeat *repeat)
{
    kl_sequence body = { .arena = p->program->arena };
    if (!name_of(p, "r", INT_MAX - 1, &repeat->id) || !named_natural(p, "count", &repeat->count))
        return false;
    repeat->reverse = ir_lex_accept(&p->lexer, "reverse");
    p->program->n_repeats = MAX(p->program->n_repeats, repeat->id + 1);
    if (p->program->n_repeats > p->program->n_ids + 1)       /* each repeat is a kernel: nobody can ask for a large table */
        return ir_lex_wrong(&p->lexer, "r%d: expected a number below that of the kernels before it", repeat->id);
    if (p->depth == MAX_DEPTH)
        return ir_lex_wrong(&p->lexer, "repeats within repeats, more than %d deep", MAX_DEPTH);
    p->depth++;
    if (!ir_lex_expect(&p->lexer, "{") || !kernels(p, &body))
        return false;
    p->depth--;
    repeat->body = body.at;
    repeat->n_body = body.n;
    return ir_lex_expect(&p->lexer, "}");
}

static bool kernel(parser *p, kl_sequence *list)
{
    ir_lexer *lexer = &p->lexer;
    kl_kernel *k = ARENA_NEW(p->program->arena, kl_kernel, 1);
    const char *text;
    size_t len;
    int id;
    k->place = line_place(p);
    if (!name_of(p, "k", INT_MAX, &id) || !ir_lex_expect(lexer, ":") || !ir_lex_word(lexer, "a kind of kernel", &text, &len))
        return false;
    k->id = p->program->n_ids++;
    if (id != k->id)
        return ir_lex_wrong(lexer, "expected k%d", k->id);
    if (!ir_lex_quoted(lexer, p->program->arena, &k->name))
        return false;
    kl_append(list, k);
    if (ir_lex_is_word(text, len, "loop")) {
        k->kind = KL_LOOP;
        return loop(p, &k->loop);
    }
    if (ir_lex_is_word(text, len, "list")) {
        k->kind = KL_LIST;
        return list_of_loops(p, &k->list);
    }
    if (ir_lex_is_word(text, len, "contraction")) {
        k->kind = KL_CONTRACTION;
        return contraction(p, &k->contraction);
    }
    if (ir_lex_is_word(text, len, "attention")) {
        k->kind = KL_ATTENTION;
        k->attention = ARENA_NEW(p->program->arena, kl_attention, 1);
        return attention(p, k->attention);
    }
    if (ir_lex_is_word(text, len, "scatter")) {
        k->kind = KL_SCATTER;
        return scatter(p, &k->scatter);
    }
    if (ir_lex_is_word(text, len, "repeat")) {
        k->kind = KL_REPEAT;
        return repeat(p, &k->repeat);
    }
    return ir_lex_wrong(lexer, "expected loop, list, contraction, attention, scatter or repeat, got '%.*s'", (int)MIN(len, 40), text);
}

static bool kernels(parser *p, kl_sequence *list)
{
    while (ir_lex_at_text(&p->lexer, "k"))
        if (!kernel(p, list))
            return false;
    return true;
}

/* -- programs ----------------------------------------------------------------------------------------------------------- */

static bool program(parser *p)
{
    ir_lexer *lexer = &p->lexer;
    kl_program *program = p->program;
    kl_sequence list = { .arena = program->arena };
    base_text why = {0};
    if (!ir_lex_expect(lexer, "kernels") || !ir_lex_quoted(lexer, program->arena, &program->name) ||
        !named_natural(p, "arena", &program->memory.arena_bytes) || !named_natural(p, "workspace", &program->memory.workspace_bytes) ||
        !ir_lex_expect(lexer, "{"))
        return false;
    while (ir_lex_at_text(lexer, "b"))
        if (!buffer(p))
            return false;
    if (!kernels(p, &list) || !ir_lex_expect(lexer, "}"))
        return false;
    ir_lex_skip_space(lexer);
    if (lexer->at != lexer->len)
        return ir_lex_wrong(lexer, "text after the kernels");
    program->kernels = list.at;
    program->n_kernels = list.n;
    bool good = kl_verify(program, &why) || ir_lex_wrong(lexer, "%s", why.at);
    base_text_free(&why);
    return good;
}

kl_program *kl_parse(const char *file, const char *text, size_t len)
{
    base_arena *arena = base_arena_new();
    parser p = { .lexer = { .file = file, .text = text, .len = len, .line = 1 } };
    p.program = ARENA_NEW(arena, kl_program, 1);
    p.program->arena = arena;
    if (program(&p))
        return p.program;
    kl_program_free(p.program);
    return NULL;
}
