/* For backends whose products take less than the list says: what is done to an operand, or with the product, goes into a loop beside it.
 *
 *     contraction a: cast(load x)  b: load w  c: gelu(product + load bias) -> y
 *
 *     loop          cast(load x) -> t                       kl_split_operand
 *     contraction   a: load t  b: load w  c: product -> u
 *     loop          gelu(load u + load bias) -> y           kl_split_epilogue
 *
 * Where the epilogue stores the product itself, that is u. */
#include "ir/kernels.h"

#include <string.h>

static kl_kernel *new_loop(kl_program *program, const kl_kernel *from, const char *name)
{
    kl_kernel *kernel = ARENA_NEW(program->arena, kl_kernel, 1);
    *kernel = (kl_kernel){ .kind = KL_LOOP, .name = name, .place = from->place };
    return kernel;
}

/* A row-major buffer over batch, rows, columns. */
static kl_view new_matrix(kl_program *program, const kl_kernel *kernel, int64_t rows, int64_t columns, ir_dtype dtype)
{
    const kl_contraction *c = &kernel->contraction;
    kl_view view = {0};
    int64_t dense = 1;
    for (int i = c->n_batch + 1; i >= 0; i--) {
        view.stride[i] = dense;
        dense *= i > c->n_batch ? columns : i == c->n_batch ? rows : c->batch[i];
    }
    view.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_TEMP, .dtype = dtype, .count = dense, .donated = -1, .place = kernel->place });
    return view;
}

kl_kernel *kl_split_operand(kl_program *program, kl_kernel *kernel, bool is_b, ir_dtype dtype)
{
    kl_contraction *c = &kernel->contraction;
    kl_loop *operand = is_b ? &c->b : &c->a;
    kl_kernel *copy = new_loop(program, kernel, "operand");
    kl_view matrix = new_matrix(program, kernel, is_b ? c->k : c->m, is_b ? c->n : c->k, dtype);
    copy->loop = kl_copy_loop(program->arena, operand, 1);
    kl_output *out = &copy->loop.outputs[0];
    if (copy->loop.exprs[out->expr].dtype != dtype) {
        kl_expr cast = { .kind = KL_OP, .op = OP_cast, .dtype = dtype, .n_args = 1, .args = { out->expr }, .view.buffer = -1,
                         .row = copy->loop.exprs[out->expr].row };
        copy->loop.exprs[copy->loop.n_exprs] = cast;
        out->expr = copy->loop.n_exprs++;
    }
    out->kind = KL_STORE;
    out->view = matrix;
    *operand = kl_copy_loop(program->arena, operand, 0);
    operand->n_exprs = 1;
    operand->exprs[0] = (kl_expr){ .kind = KL_LOAD, .dtype = dtype, .view = matrix };
    operand->outputs[0].expr = 0;
    kl_merge_axes(&copy->loop);
    return copy;
}

/* The product as it is, in a matrix that somebody wants anyway: no other one has to be made. The epilogue may not read what lies there. */
static const kl_output *stored_product(const kl_program *program, const kl_contraction *c)
{
    const kl_loop *loop = &c->c;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        bool plain = o->kind == KL_STORE && !o->accumulate && loop->exprs[o->expr].kind == KL_PRODUCT && !o->view.n_dynamic &&
                     (c->n == 1 || o->view.stride[c->n_batch + 1] == 1) && (c->m == 1 || o->view.stride[c->n_batch] >= c->n);
        for (int j = 0; plain && j < loop->n_exprs; j++)
            plain = loop->exprs[j].kind != KL_LOAD || kl_memory_of(program, loop->exprs[j].view.buffer) != kl_memory_of(program, o->view.buffer);
        if (plain)
            return o;
    }
    return NULL;
}

kl_kernel *kl_split_epilogue(kl_program *program, kl_kernel *kernel)
{
    base_arena *arena = program->arena;
    kl_contraction *c = &kernel->contraction;
    ir_dtype dtype = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    kl_kernel *rest = new_loop(program, kernel, "epilogue");
    const kl_output *stored = stored_product(program, c);
    kl_view matrix = stored ? stored->view : new_matrix(program, kernel, c->m, c->n, dtype);
    rest->loop = kl_copy_loop(arena, &c->c, 0);
    for (int i = 0; i < rest->loop.n_exprs; i++)
        if (rest->loop.exprs[i].kind == KL_PRODUCT)
            rest->loop.exprs[i] = (kl_expr){ .kind = KL_LOAD, .dtype = dtype, .view = matrix };
    if (stored) {
        int at = (int)(stored - c->c.outputs);
        rest->loop.n_outputs--;
        memmove(&rest->loop.outputs[at], &rest->loop.outputs[at + 1], sizeof(kl_output) * (size_t)(rest->loop.n_outputs - at));
    }
    c->c.n_exprs = c->c.n_outputs = 1;
    c->c.exprs = ARENA_NEW(arena, kl_expr, 1);
    c->c.outputs = ARENA_NEW(arena, kl_output, 1);
    c->c.exprs[0] = (kl_expr){ .kind = KL_PRODUCT, .dtype = dtype, .view.buffer = -1 };
    c->c.outputs[0] = (kl_output){ .kind = KL_STORE, .view = matrix };
    kl_merge_axes(&rest->loop);
    return rest;
}

static void rewrite_list(kl_program *program, kl_kernel ***kernels, int *n, kl_rewrite *rewrite, void *context)
{
    kl_sequence into = { .arena = program->arena };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*kernels)[i];
        switch (kernel->kind) {
        case KL_CONTRACTION:
            rewrite(context, program, kernel, &into);
            break;
        case KL_REPEAT:
            rewrite_list(program, &kernel->repeat.body, &kernel->repeat.n_body, rewrite, context);
            kl_append(&into, kernel);
            break;
        case KL_LOOP:
        case KL_LIST:
        case KL_ATTENTION:
        case KL_SCATTER:
            kl_append(&into, kernel);
            break;
        }
    }
    *kernels = into.at;
    *n = into.n;
}

void kl_rewrite_products(kl_program *program, kl_rewrite *rewrite, void *context)
{
    rewrite_list(program, &program->kernels, &program->n_kernels, rewrite, context);
}
