/* A sum that a loop makes of a product, a matrix and a row vector, and stores on its way to something else, becomes the product's, which cuBLASLt makes as it goes:
 *
 *     t = a b                                       y = a b + bias + x
 *     loop: y = t + bias + x, rows of norm(y)       loop: rows of norm(y)
 *
 * Fusion has put the sum into the loop that reads it, for it could not know where the product ends in it for nothing: t is neither written nor read. Done before
 * epilogues are fused, by a loop that holds the sum alone. */
#include "backend_cuda/backend.h"

/* What the sum is of, by number of terms: the product's elements, a matrix's, a vector's. */
typedef struct { int products, matrices, vectors; } terms;

static bool is_vector(const kl_loop *loop, const kl_view *view)
{
    bool vector = view->n_dynamic == 0 && view->stride[loop->n_axes - 1] == 1;
    for (int a = 0; a < loop->n_axes - 1; a++)
        vector &= view->stride[a] == 0 || loop->extent[a] == 1;
    return vector;
}

static bool add_terms(const kl_loop *loop, int expr, int t, int64_t count, terms *of, bool *inside)
{
    const kl_expr *e = &loop->exprs[expr];
    if (e->dtype != IR_F32 || inside[expr])
        return false;
    inside[expr] = true;
    if (e->kind == KL_LOAD) {
        bool whole = kl_is_row_major(loop, &e->view, count), vector = !whole && is_vector(loop, &e->view);
        of->products += whole && e->view.buffer == t;
        of->matrices += whole && e->view.buffer != t;
        of->vectors += vector;
        return whole || vector;
    }
    return e->kind == KL_OP && e->op == OP_add && add_terms(loop, e->args[0], t, count, of, inside) && add_terms(loop, e->args[1], t, count, of, inside);
}

/* Of a sum nothing is read but the whole, and its loads of other matrices and vectors. */
static bool is_apart(const kl_loop *loop, int sum, int t, const bool *inside)
{
    for (int i = 0; i < loop->n_exprs; i++)
        for (int a = 0; a < loop->exprs[i].n_args; a++) {
            int arg = loop->exprs[i].args[a];
            bool part = inside[arg] && arg != sum && (loop->exprs[arg].kind != KL_LOAD || loop->exprs[arg].view.buffer == t);
            if (part && !inside[i])
                return false;
        }
    for (int i = 0; i < loop->n_outputs; i++)
        if (inside[loop->outputs[i].expr] && loop->outputs[i].expr != sum)
            return false;
    return true;
}

/* The output that stores such a sum, or -1. */
static int find_sum(const kl_uses *u, const kl_loop *loop, int t, int64_t count, bool *inside)
{
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        terms of = {0};
        for (int j = 0; j < loop->n_exprs; j++)
            inside[j] = false;
        if (o->kind == KL_STORE && !o->accumulate && u->program->buffers[o->view.buffer].kind == KL_TEMP && u->writes[o->view.buffer] == 1 && kl_is_row_major(loop, &o->view, count) &&
            add_terms(loop, o->expr, t, count, &of, inside) && of.products == 1 && of.matrices == 1 && of.vectors <= 1 && is_apart(loop, o->expr, t, inside))
            return i;
    }
    return -1;
}

static bool has_dynamic_outputs(const kl_loop *loop)
{
    bool dynamic = false;
    for (int i = 0; i < loop->n_outputs; i++)
        dynamic |= loop->outputs[i].view.n_dynamic > 0;
    return dynamic;
}

/* The loop that makes the sum of what the product before stores, and nothing else; the kernel then reads it. NULL: there is none. */
static kl_kernel *split_sum(kl_program *p, const kl_uses *u, const kl_kernel *product, kl_kernel *kernel)
{
    const kl_contraction *c = &product->contraction;
    const kl_output *stored = &c->c.outputs[0];
    if (product->kind != KL_CONTRACTION || kernel->kind != KL_LOOP || c->c.n_outputs != 1 || stored->kind != KL_STORE || stored->accumulate || c->c.exprs[stored->expr].kind != KL_PRODUCT ||
        c->dtype == IR_F64 || has_dynamic_outputs(&kernel->loop))
        return NULL;
    int t = stored->view.buffer;
    int64_t count = p->buffers[t].count;
    kl_loop *loop = &kernel->loop;
    bool *inside = ARENA_NEW(p->arena, bool, loop->n_exprs + 1);
    if (p->buffers[t].kind != KL_TEMP || u->writes[t] != 1 || u->reads[t] != 1 || !kl_is_row_major(&c->c, &stored->view, count))
        return NULL;
    int at = find_sum(u, loop, t, count, inside);
    if (at < 0 || loop->n_outputs < 2)
        return NULL;
    kl_output o = loop->outputs[at];
    kl_kernel *sum = ARENA_NEW(p->arena, kl_kernel, 1);
    *sum = (kl_kernel){ .kind = KL_LOOP, .name = "add", .place = kernel->place };
    sum->loop = kl_copy_loop(p->arena, loop, 0);
    sum->loop.n_outer = 0;
    sum->loop.n_outputs = 1;
    sum->loop.outputs[0] = (kl_output){ .kind = KL_STORE, .expr = o.expr, .view = o.view };
    kl_tidy_exprs(p->arena, &sum->loop);
    kl_loop rest = kl_copy_loop(p->arena, loop, 0);
    rest.exprs[o.expr] = (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = o.view };
    rest.n_outputs = 0;
    for (int i = 0; i < loop->n_outputs; i++)
        if (i != at)
            rest.outputs[rest.n_outputs++] = loop->outputs[i];
    kl_tidy_exprs(p->arena, &rest);
    *loop = rest;
    return sum;
}

static void split_in(kl_program *p, const kl_uses *u, kl_kernel ***list, int *n)
{
    kl_sequence into = { .arena = p->arena };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*list)[i], *sum = i > 0 ? split_sum(p, u, (*list)[i - 1], kernel) : NULL;
        if (kernel->kind == KL_REPEAT)
            split_in(p, u, &kernel->repeat.body, &kernel->repeat.n_body);
        kl_append(&into, sum);
        kl_append(&into, kernel);
    }
    *list = into.at;
    *n = into.n;
}

void cuda_split_residuals(kl_program *program)
{
    kl_uses u = kl_count_uses(program);
    split_in(program, &u, &program->kernels, &program->n_kernels);
}
