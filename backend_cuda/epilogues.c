/* What cuBLASLt does to a product on its way to memory, found in what the kernel list says is done.
 *
 *     store  product (+ b[n]) (+ c[m,n])                     bias, and a matrix to begin with: a residual, or what is accumulated into
 *     store  gelu(u), u = product (+ b[n]); and perhaps u    gelu, with u as auxiliary output
 *     store  product gelu'(u); and perhaps its sum by rows   gelu's gradient, with the bias gradient
 *     store  product (+ c[m,n]); an operand summed over k    the bias gradient of an operand
 *
 * Functions are known by what they compute: an expression of one value is tried at some points. gelu is the tanh form, which is what cuBLASLt has; the other one
 * differs by 5e-4.
 *
 * The list has the product stored beside gelu(u), or gelu'(u), whose readers add the bias again, or multiply. cuda_store_operand makes it store u, and every
 * reader compute gelu' of it. Vectors and u have the type of the result, so that with a result in bf16 u and the bias are rounded to it. */
#include "backend_cuda/epilogues.h"
#include "ir/composites.h"

#include <math.h>
#include <string.h>

enum { POINTS = 33, LEADING_MULTIPLE = 8, AUX_BYTES = 16 };

/* -- functions of one value ------------------------------------------------------------------------------------------------- */

/* An op of the table over rows of points. */
static void apply(const kl_expr *e, const float (*value)[POINTS], float *y)
{
    ir_type type = ir_type_of(IR_F32, 1, (int64_t[]){ POINTS });
    ir_array array[KL_MAX_ARGS], result = { type, y };
    const ir_array *args[KL_MAX_ARGS];
    ir_node node = { .op = e->op, .type = type, .n_args = e->n_args };
    for (int i = 0; i < e->n_args; i++) {
        array[i] = (ir_array){ type, (void *)(uintptr_t)value[e->args[i]] };
        args[i] = &array[i];
    }
    ir_op_table[e->op].reference(&node, args, &result);
}

/* Whether expr is f of expression `leaf` and of nothing else, as far as some points tell; any function where f is NULL. */
static bool is_function(const kl_loop *loop, int expr, int leaf, double (*f)(double))
{
    float (*value)[POINTS] = base_alloc(sizeof *value * (size_t)(expr + 1));
    bool *known = base_alloc(sizeof *known * (size_t)(expr + 1));
    for (int i = 0; i <= expr; i++) {
        const kl_expr *e = &loop->exprs[i];
        known[i] = i == leaf || (e->dtype == IR_F32 && (e->kind == KL_VALUE || e->kind == KL_OP));
        for (int j = 0; i != leaf && e->kind == KL_OP && j < e->n_args; j++)
            known[i] &= known[e->args[j]];
        if (i != leaf && e->kind == KL_OP && known[i])
            apply(e, (const float (*)[POINTS])value, value[i]);
        for (int j = 0; (i == leaf || e->kind == KL_VALUE) && j < POINTS; j++)
            value[i][j] = i == leaf ? 0.375f * (float)(j - POINTS / 2) : (float)e->value;
    }
    bool is = known[expr];
    for (int j = 0; f && is && j < POINTS; j++)
        is = fabs((double)value[expr][j] - f((double)value[leaf][j])) < 2e-5;
    base_free(value);
    base_free(known);
    return is;
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(IR_GELU_SCALE * (x + IR_GELU_CUBIC * x * x * x))); }
static double gelu_gradient(double x)
{
    double t = tanh(IR_GELU_SCALE * (x + IR_GELU_CUBIC * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * IR_GELU_SCALE * (1 + 3 * IR_GELU_CUBIC * x * x);
}

/* -- parts -------------------------------------------------------------------------------------------------------------------- */

/* A store's value before its conversion to bf16. */
static int wide(const kl_loop *loop, int expr)
{
    const kl_expr *e = &loop->exprs[expr];
    return e->kind == KL_OP && e->op == OP_cast && e->dtype == IR_BF16 ? e->args[0] : expr;
}

/* A load of this dtype, in f32: its own number, or -1. */
static int load_of(const kl_loop *loop, int expr, ir_dtype dtype)
{
    const kl_expr *e = &loop->exprs[expr];
    if (dtype == IR_BF16 && e->kind == KL_OP && e->op == OP_cast && e->dtype == IR_F32)
        e = &loop->exprs[expr = e->args[0]];
    return e->kind == KL_LOAD && e->dtype == dtype && e->view.n_dynamic == 0 ? expr : -1;
}

static bool is_vector(const kl_contraction *c, const kl_view *view)
{
    bool vector = c->n == 1 || view->stride[c->n_batch + 1] == 1;
    for (int a = 0; a <= c->n_batch; a++)
        vector &= c->c.extent[a] == 1 || view->stride[a] == 0;
    return vector;
}

static bool is_product(const kl_loop *loop, int expr) { return loop->exprs[expr].kind == KL_PRODUCT; }

static bool is_dense(const kl_contraction *c, const kl_view *view)
{
    int64_t down = view->stride[c->n_batch], along = view->stride[c->n_batch + 1];
    return view->n_dynamic == 0 && view->buffer >= 0 && (c->n == 1 || along == 1) && (c->m == 1 || down >= c->n);
}

/* The loads that are added to a product: a vector's and a matrix's, or -1. */
typedef struct { int bias, matrix; } terms;

static bool add_terms(const kl_contraction *c, int expr, ir_dtype dtype, terms *t, int *products)
{
    const kl_expr *e = &c->c.exprs[expr];
    int load = load_of(&c->c, expr, dtype);
    if (is_product(&c->c, expr))
        return ++*products == 1;
    if (load >= 0) {
        const kl_view *view = &c->c.exprs[load].view;
        int *of = is_vector(c, view) ? &t->bias : is_dense(c, view) ? &t->matrix : NULL;
        if (!of || *of >= 0)
            return false;
        *of = load;
        return true;
    }
    return e->kind == KL_OP && e->op == OP_add && e->dtype == IR_F32 && add_terms(c, e->args[0], dtype, t, products) && add_terms(c, e->args[1], dtype, t, products);
}

/* The product, alone or in a sum with a vector and a matrix of this dtype. */
static bool is_sum(const kl_contraction *c, int expr, ir_dtype dtype, terms *t)
{
    int products = 0;
    *t = (terms){ -1, -1 };
    return (c->dtype != IR_F64 || is_product(&c->c, expr)) && add_terms(c, expr, dtype, t, &products) && products == 1;
}

/* product, or product + vector, whose load is then *bias. */
static bool is_biased(const kl_contraction *c, int expr, ir_dtype dtype, int *bias)
{
    terms t;
    bool is = is_sum(c, expr, dtype, &t) && t.matrix < 0;
    *bias = t.bias;
    return is;
}

/* The expressions below expr that gelu may be a function of: the one sum, or the product itself. */
static int gelu_operand(const kl_contraction *c, int expr, double (*f)(double), ir_dtype dtype, int *bias)
{
    for (int i = expr - 1; i >= 0; i--)
        if (c->c.exprs[i].dtype == IR_F32 && is_biased(c, i, dtype, bias) && is_function(&c->c, expr, i, f))
            return i;
    return -1;
}

/* Of a matrix beside the result: one matrix, and what cuBLASLt asks of its rows. */
static bool can_be_aux(const kl_program *p, const kl_contraction *c, const kl_view *view, ir_dtype dtype)
{
    return kl_matrices(c) == 1 && is_dense(c, view) && p->buffers[view->buffer].kind != KL_MOVING && c->m > 1 && view->stride[c->n_batch] % LEADING_MULTIPLE == 0 &&
           view->offset * ir_dtype_bytes(dtype) % AUX_BYTES == 0;
}

/* -- epilogues ---------------------------------------------------------------------------------------------------------------- */

static bool find_gradient(const kl_program *p, const kl_contraction *c, int value, cuda_epilogue *e)
{
    const kl_expr *v = &c->c.exprs[value];
    for (int i = 0; i < 2 && v->kind == KL_OP && v->op == OP_mul; i++)
        for (int j = v->args[i]; is_product(&c->c, v->args[1 - i]) && j >= 0; j--) {
            int load = load_of(&c->c, j, e->result);
            if (load >= 0 && is_function(&c->c, v->args[i], j, gelu_gradient) && can_be_aux(p, c, &c->c.exprs[load].view, e->result)) {
                e->aux = &c->c.exprs[load].view;
                e->bits = CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_GELU_GRADIENT;
                return true;
            }
        }
    return false;
}

/* The outputs beside the result: gelu's operand, or the sum of the rows. */
static bool find_second(const kl_program *p, const kl_contraction *c, int value, int operand, cuda_epilogue *e)
{
    const kl_output *o = &c->c.outputs[0] == e->d ? &c->c.outputs[1] : &c->c.outputs[0];
    if (c->c.n_outputs == 1)
        return true;
    if (c->c.n_outputs > 2 || o->accumulate || o->view.n_dynamic || c->c.exprs[o->expr].dtype != e->result)
        return false;
    if (e->bits & CUDA_EPILOGUE_GELU && o->kind == KL_STORE && wide(&c->c, o->expr) == operand && can_be_aux(p, c, &o->view, e->result)) {
        e->bits |= CUDA_EPILOGUE_AUX;
        e->aux = &o->view;
        return true;
    }
    if (e->bits & CUDA_EPILOGUE_GELU_GRADIENT && o->kind == KL_SUM_OUTER && o->expr == value && is_vector(c, &o->view)) {
        e->bits |= CUDA_EPILOGUE_BIAS_GRADIENT;
        e->bias = &o->view;
        return true;
    }
    return false;
}

/* A matrix is read where the result is written, or from memory of its own. */
static bool may_add(const kl_program *p, const kl_view *from, const kl_view *to)
{
    int from_root = kl_root_buffer(p, from->buffer), to_root = kl_root_buffer(p, to->buffer);
    bool moves = from_root != from->buffer || to_root != to->buffer;
    return !kl_share_memory(p, from_root, to_root) || (kl_same_view(from, to) && (from->buffer == to->buffer || !moves));
}

static cuda_epilogue epilogue_at(const kl_program *p, const kl_contraction *c, const kl_output *d)
{
    int value = wide(&c->c, d->expr), operand = -1;
    terms t;
    cuda_epilogue e = { .d = d, .result = c->c.exprs[d->expr].dtype };
    bool converts = value != d->expr, fits = d->kind == KL_STORE && is_dense(c, &d->view) && !(converts && (c->dtype != IR_BF16 || d->accumulate));
    if (!fits)
        return e;
    e.added = d->accumulate ? &d->view : NULL;
    if (is_sum(c, value, e.result, &t)) {
        fits = t.matrix < 0 || (!d->accumulate && may_add(p, &c->c.exprs[t.matrix].view, &d->view));
        e.added = fits && t.matrix >= 0 ? &c->c.exprs[t.matrix].view : e.added;
    } else if (c->dtype == IR_F64 || d->accumulate) {
        fits = false;
    } else if ((operand = gelu_operand(c, value, gelu, e.result, &t.bias)) >= 0) {
        e.bits = CUDA_EPILOGUE_GELU;
    } else {
        fits = find_gradient(p, c, value, &e);
    }
    if (fits && t.bias >= 0 && !(e.bits & CUDA_EPILOGUE_GELU_GRADIENT)) {
        e.bits |= CUDA_EPILOGUE_BIAS;
        e.bias = &c->c.exprs[t.bias].view;
    }
    e.fits = fits && find_second(p, c, value, operand, &e);
    e.bits = e.bits ? e.bits : CUDA_EPILOGUE_NONE;
    return e;
}

/* A sum of one operand over k is of the result's type, and all that is done. */
static void find_operand_sum(const kl_contraction *c, cuda_epilogue *e)
{
    bool of_a = c->a.n_outputs > 1, of_b = c->b.n_outputs > 1;
    if (!of_a && !of_b)
        return;
    e->fits &= of_a != of_b && e->bits == CUDA_EPILOGUE_NONE && e->result == IR_F32 && c->dtype != IR_F64 && kl_matrices(c) == 1;
    e->bits = of_b ? CUDA_EPILOGUE_SUM_A : CUDA_EPILOGUE_SUM_B;
    e->bias = of_b ? &c->b.outputs[1].view : &c->a.outputs[1].view;
}

cuda_epilogue cuda_epilogue_of(const kl_program *p, const kl_contraction *c)
{
    cuda_epilogue e = {0};
    for (int i = 0; i < c->c.n_outputs && !e.fits; i++)
        e = epilogue_at(p, c, &c->c.outputs[i]);
    find_operand_sum(c, &e);
    return e;
}

/* -- gelu's operand in place of its derivative ------------------------------------------------------------------------------------ */

/* Behind the others: kl_tidy_exprs puts it before its users. */
static int add_expr(kl_loop *loop, kl_expr e)
{
    e.row = e.kind == KL_LOAD ? e.row : true;
    for (int i = 0; i < e.n_args; i++)
        e.row &= loop->exprs[e.args[i]].row;
    loop->exprs[loop->n_exprs] = e;
    return loop->n_exprs++;
}

static int add_cast(kl_loop *loop, int expr, ir_dtype dtype)
{
    return add_expr(loop, (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = dtype, .n_args = 1, .args = { expr }, .view.buffer = -1 });
}

/* What was stored in a buffer was expression `value` of `from`, and from now on it is the `leaf` of it, in this dtype. Where bias is not NULL, `value` is the product
 * and `leaf` its sum with the vector: readers may only want that sum. */
typedef struct { base_arena *arena; int buffer; ir_dtype dtype; const kl_loop *from; int value, leaf; const kl_view *bias; int64_t n, leading, offset; } replacement;

static bool is_of_buffer(const kl_loop *loop, int i, int buffer) { return loop->exprs[i].kind == KL_LOAD && loop->exprs[i].view.buffer == buffer; }

/* At every index the element of the vector is the one of the matrix's column. */
static bool is_by_column(const replacement *r, const kl_loop *loop, const kl_view *matrix, const kl_view *vector)
{
    int64_t reach = 0;
    if (matrix->n_dynamic || vector->n_dynamic || matrix->offset != r->offset || vector->offset != r->bias->offset)
        return false;
    for (int a = 0; a < loop->n_axes; a++) {
        if (loop->extent[a] == 1)
            continue;
        bool down = matrix->stride[a] % r->leading == 0;
        if (vector->stride[a] != (down ? 0 : matrix->stride[a]) || matrix->stride[a] < 0)
            return false;
        reach += down ? 0 : matrix->stride[a] * (loop->extent[a] - 1);
    }
    return reach < r->n;
}

/* The load that expression i adds the vector to, or -1. */
static int summed(const replacement *r, const kl_loop *loop, int i)
{
    const kl_expr *e = &loop->exprs[i];
    for (int k = 0; k < 2 && r->bias && e->kind == KL_OP && e->op == OP_add; k++) {
        const kl_expr *vector = &loop->exprs[e->args[1 - k]];
        if (is_of_buffer(loop, e->args[k], r->buffer) && vector->kind == KL_LOAD && vector->dtype == IR_F32 && vector->view.buffer == r->bias->buffer &&
            is_by_column(r, loop, &loop->exprs[e->args[k]].view, &vector->view))
            return e->args[k];
    }
    return -1;
}

static bool can_replace(const replacement *r, const kl_loop *loop)
{
    for (int i = 0; i < loop->n_exprs; i++)
        for (int j = 0; j < loop->exprs[i].n_args; j++)
            if (r->bias && is_of_buffer(loop, loop->exprs[i].args[j], r->buffer) && summed(r, loop, i) < 0)
                return false;
    for (int i = 0; i < loop->n_outputs; i++)
        if (r->bias && is_of_buffer(loop, loop->outputs[i].expr, r->buffer))
            return false;
    return true;
}

/* `value` of what expression i loads. */
static int function_of(kl_loop *loop, const replacement *r, int i)
{
    int *name = ARENA_NEW(r->arena, int, r->value + 1);
    for (int j = 0; j <= r->value; j++) {
        kl_expr f = r->from->exprs[j];
        if (j == r->leaf) {
            name[j] = i;
        } else if (f.kind == KL_VALUE || is_function(r->from, j, r->leaf, NULL)) {
            for (int k = 0; k < f.n_args; k++)
                f.args[k] = name[f.args[k]];
            name[j] = add_expr(loop, f);
        }
    }
    return name[r->value];
}

static void replace(const replacement *r, kl_loop *loop)
{
    int n = 0;
    for (int i = 0; i < loop->n_exprs; i++)
        n += is_of_buffer(loop, i, r->buffer);
    if (n == 0)
        return;
    kl_loop made = kl_copy_loop(r->arena, loop, n * (r->value + 2));
    int *now = ARENA_NEW(r->arena, int, loop->n_exprs);
    for (int i = 0; i < loop->n_exprs; i++) {
        int sum = summed(r, loop, i);
        now[i] = sum >= 0 ? now[sum] : i;
        if (is_of_buffer(loop, i, r->buffer)) {
            made.exprs[i].dtype = r->dtype;
            now[i] = r->dtype == IR_BF16 ? add_cast(&made, i, IR_F32) : i;
            now[i] = r->bias ? now[i] : function_of(&made, r, now[i]);
        }
    }
    for (int i = 0; i < loop->n_exprs; i++)
        if (now[i] != i)
            kl_redirect_expr(r->arena, &made, loop->n_exprs, i, now[i]);
    kl_tidy_exprs(r->arena, &made);
    *loop = made;
}

/* In all loops: whether they can do with it, and then that they do. */
static bool replace_in(const replacement *r, kl_kernel *const *kernels, int n, bool dry)
{
    bool can = true;
    for (int i = 0; i < n; i++) {
        kl_kernel *k = kernels[i];
        kl_loop *three[] = { &k->contraction.a, &k->contraction.b, &k->contraction.c }, *one[] = { &k->loop };
        kl_loop **loops = k->kind == KL_CONTRACTION ? three : one;
        for (int j = 0; j < (k->kind == KL_CONTRACTION ? 3 : k->kind == KL_LOOP); j++) {
            can &= can_replace(r, loops[j]);
            if (!dry)
                replace(r, loops[j]);
        }
        if (k->kind == KL_REPEAT)
            can &= replace_in(r, k->repeat.body, k->repeat.n_body, dry);
    }
    return can;
}

typedef struct { int buffer, writes, others; } uses;

static void count_use(void *context, const kl_access *access)
{
    uses *u = context;
    u->writes += access->view->buffer == u->buffer && access->write;
    u->others += access->view->buffer == u->buffer && !access->loop;
}

/* Written once, and read by loops. */
static bool is_for_loops(kl_program *p, int buffer)
{
    uses u = { buffer, 0, 0 };
    for (int i = 0; i < p->n_kernels; i++)
        kl_visit_all(p->kernels[i], count_use, &u);
    for (int i = 0; i < p->n_buffers; i++)
        u.others += p->buffers[i].kind == KL_MOVING && p->buffers[i].base == buffer;
    return u.writes == 1 && u.others == 0;
}

/* Has `loop`, a copy of the product's epilogue with room for two expressions more, add the row vector in bf16, which the loop makes that is to stand before the product. */
static kl_kernel *round_bias(kl_program *p, const kl_kernel *product, kl_loop *loop, int bias)
{
    const kl_contraction *c = &product->contraction;
    kl_kernel *kernel = ARENA_NEW(p->arena, kl_kernel, 1);
    kl_expr *e = ARENA_NEW(p->arena, kl_expr, 2);
    kl_output *o = ARENA_NEW(p->arena, kl_output, 1);
    int buffer = kl_add_buffer(p, (kl_buffer){ .kind = KL_TEMP, .dtype = IR_BF16, .count = c->n, .donated = -1, .place = product->place });
    kl_view from = c->c.exprs[bias].view;
    e[0] = (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = { .buffer = from.buffer, .offset = from.offset, .stride = { 1 } } };
    e[1] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = IR_BF16, .n_args = 1, .args = { 0 }, .view.buffer = -1 };
    o[0] = (kl_output){ .kind = KL_STORE, .expr = 1, .view = { .buffer = buffer, .stride = { 1 } } };
    *kernel = (kl_kernel){ .kind = KL_LOOP, .name = "bias", .place = product->place,
                           .loop = { .n_axes = 1, .extent = { c->n }, .n_exprs = 2, .exprs = e, .n_outputs = 1, .outputs = o } };
    from.buffer = buffer;
    from.offset = 0;
    kl_expr load = { .kind = KL_LOAD, .dtype = IR_BF16, .view = from, .row = c->n == 1 };
    int readers = loop->n_exprs, rounded = add_expr(loop, load);
    kl_redirect_expr(p->arena, loop, readers, bias, add_cast(loop, rounded, IR_F32));
    return kernel;
}

kl_kernel *cuda_narrow_bias(kl_program *p, kl_kernel *kernel, cuda_taker *takes, void *context)
{
    kl_contraction *c = &kernel->contraction, tried = *c;
    const kl_expr *e = c->c.n_outputs == 1 ? &c->c.exprs[c->c.outputs[0].expr] : NULL;
    terms t;
    if (!e || e->dtype != IR_BF16 || !is_sum(c, wide(&c->c, c->c.outputs[0].expr), IR_F32, &t) || t.bias < 0 || t.matrix >= 0)
        return NULL;
    tried.c = kl_copy_loop(p->arena, &c->c, 2);
    kl_kernel *before = round_bias(p, kernel, &tried.c, t.bias);
    kl_tidy_exprs(p->arena, &tried.c);
    if (!takes(context, p, &tried))
        return NULL;
    *c = tried;
    return before;
}

/* Leaves the product what it stores of expression u in bf16, which is output `at`, and the other one, which is made of u, to a loop that reads it. */
static kl_kernel *split_function(kl_program *p, const kl_kernel *product, kl_contraction *c, int at, int u)
{
    kl_kernel *rest = ARENA_NEW(p->arena, kl_kernel, 1);
    *rest = (kl_kernel){ .kind = KL_LOOP, .name = "gelu", .place = product->place, .loop = kl_copy_loop(p->arena, &c->c, 2) };
    kl_loop *loop = &rest->loop;
    int readers = loop->n_exprs, load = add_expr(loop, (kl_expr){ .kind = KL_LOAD, .dtype = IR_BF16, .view = c->c.outputs[at].view });
    kl_redirect_expr(p->arena, loop, readers, u, add_cast(loop, load, IR_F32));
    loop->outputs[0] = loop->outputs[1 - at];
    loop->n_outputs = 1;
    kl_tidy_exprs(p->arena, loop);
    kl_merge_axes(loop);
    c->c.outputs[0] = c->c.outputs[at];
    c->c.n_outputs = 1;
    kl_tidy_exprs(p->arena, &c->c);
    return rest;
}

kl_kernel *cuda_store_operand(kl_program *p, kl_kernel *kernel, cuda_taker *takes, void *context, kl_kernel **behind)
{
    kl_contraction *c = &kernel->contraction, tried = *c;
    int bias = -1, operand = -1, which = -1;
    kl_kernel *rest = NULL;
    for (int i = 0; i < c->c.n_outputs && c->c.n_outputs == 2 && which < 0; i++)
        if (c->c.outputs[i].kind == KL_STORE && (operand = gelu_operand(c, wide(&c->c, c->c.outputs[i].expr), gelu, IR_F32, &bias)) >= 0)
            which = i;
    if (which < 0)
        return NULL;
    const kl_output *d = &c->c.outputs[which], *other = &c->c.outputs[1 - which];
    const kl_buffer *b = &p->buffers[other->view.buffer];
    ir_dtype result = c->c.exprs[d->expr].dtype;
    bool plain = bias >= 0 && is_product(&c->c, other->expr);
    kl_buffer_kind vector = bias >= 0 ? p->buffers[c->c.exprs[bias].view.buffer].kind : KL_CONST;
    if ((plain && vector != KL_PARAM && vector != KL_CONST) || (behind && result != IR_BF16))          /* the vector is the same for every reader */
        return NULL;
    kl_loop from = c->c;
    replacement how = { p->arena, other->view.buffer, result, &from, other->expr, operand, plain ? &from.exprs[bias].view : NULL, c->n, other->view.stride[c->n_batch], other->view.offset };
    if (other->kind != KL_STORE || other->accumulate || b->kind != KL_TEMP || b->dtype != IR_F32 || (other->expr == operand && result == IR_F32) || how.leading < c->n ||
        (!plain && !is_function(&c->c, other->expr, operand, NULL)) || !is_for_loops(p, other->view.buffer) || !replace_in(&how, p->kernels, p->n_kernels, true))
        return NULL;
    tried.c = kl_copy_loop(p->arena, &c->c, 3);
    kl_kernel *before = bias >= 0 && result == IR_BF16 ? round_bias(p, kernel, &tried.c, bias) : NULL;
    tried.c.outputs[1 - which].expr = result == IR_BF16 ? add_cast(&tried.c, operand, IR_BF16) : operand;
    if (behind)
        rest = split_function(p, kernel, &tried, 1 - which, operand);
    else
        kl_tidy_exprs(p->arena, &tried.c);
    if (!takes(context, p, &tried))
        return NULL;
    *c = tried;
    p->buffers[how.buffer].dtype = result;
    replace_in(&how, p->kernels, p->n_kernels, false);
    if (behind)
        *behind = rest;
    return before;
}

/* -- sums of a result in bf16 ------------------------------------------------------------------------------------------------------ */

kl_kernel *cuda_split_sum(kl_program *p, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    const kl_output *d = &c->c.outputs[0], *sum = &c->c.outputs[1];
    if (c->c.n_outputs != 2)
        return NULL;
    if (d->kind != KL_STORE)
        d = &c->c.outputs[1], sum = &c->c.outputs[0];
    if (d->kind != KL_STORE || d->accumulate || c->c.exprs[d->expr].dtype != IR_BF16 || sum->kind != KL_SUM_OUTER || sum->expr != wide(&c->c, d->expr))
        return NULL;
    kl_kernel *rest = ARENA_NEW(p->arena, kl_kernel, 1);
    kl_expr *e = ARENA_NEW(p->arena, kl_expr, 2);
    kl_output *o = ARENA_NEW(p->arena, kl_output, 2);
    *rest = (kl_kernel){ .kind = KL_LOOP, .name = "sum", .place = kernel->place, .loop = c->c };
    e[0] = (kl_expr){ .kind = KL_LOAD, .dtype = IR_BF16, .view = d->view };
    e[1] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = IR_F32, .n_args = 1, .args = { 0 }, .view.buffer = -1 };
    o[0] = *sum;
    o[0].expr = 1;
    o[1] = *d;
    rest->loop.n_exprs = 2, rest->loop.exprs = e;
    rest->loop.n_outputs = 1, rest->loop.outputs = o;
    c->c.n_outputs = 1, c->c.outputs = &o[1];
    kl_merge_axes(&rest->loop);
    return rest;
}
