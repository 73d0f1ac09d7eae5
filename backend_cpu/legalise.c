/* Looks at the list once before memory is planned, and splits off what the chosen algorithms cannot take: an operand that OpenBLAS
 * cannot read becomes a loop that writes it out and a plain operand; an epilogue becomes a plain product and a loop that reads it.
 *
 *     contraction a: cast(load x)  b: load w  c: gelu(product + load bias) -> y
 *
 *     loop          cast(load x) -> t
 *     contraction   a: load t  b: load w  c: product -> u
 *     loop          gelu(load u + load bias) -> y
 */
#include "backend_cpu/contraction.h"

#include <stdlib.h>
#include <string.h>

typedef struct { kl_program *program; kl_kernel **at; int n, cap; } list;

static void append(list *l, kl_kernel *kernel)
{
    if (l->n == l->cap) {
        l->cap = MAX(16, 2 * l->cap);
        kl_kernel **more = ARENA_NEW(l->program->arena, kl_kernel *, l->cap);
        if (l->n)
            memcpy(more, l->at, sizeof *more * (size_t)l->n);
        l->at = more;
    }
    l->at[l->n++] = kernel;
}

static kl_kernel *new_loop(list *l, const kl_kernel *from, const char *name)
{
    kl_kernel *kernel = ARENA_NEW(l->program->arena, kl_kernel, 1);
    *kernel = (kl_kernel){ .kind = KL_LOOP, .name = name, .place = from->place };
    return kernel;
}

/* A row-major buffer over batch, rows, columns. */
static kl_view new_matrix(list *l, const kl_kernel *kernel, int64_t rows, int64_t columns, ir_dtype dtype)
{
    const kl_contraction *c = &kernel->contraction;
    kl_view view = {0};
    int64_t dense = 1;
    for (int i = c->n_batch + 1; i >= 0; i--) {
        view.stride[i] = dense;
        dense *= i > c->n_batch ? columns : i == c->n_batch ? rows : c->batch[i];
    }
    view.buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_TEMP, .dtype = dtype, .count = dense, .donated = -1, .place = kernel->place });
    return view;
}

static kl_loop copy_of(base_arena *arena, const kl_loop *from, int more_exprs)
{
    kl_loop loop = *from;
    loop.exprs = ARENA_NEW(arena, kl_expr, from->n_exprs + more_exprs);
    loop.outputs = ARENA_NEW(arena, kl_output, from->n_outputs);
    memcpy(loop.exprs, from->exprs, sizeof(kl_expr) * (size_t)from->n_exprs);
    memcpy(loop.outputs, from->outputs, sizeof(kl_output) * (size_t)from->n_outputs);
    return loop;
}

/* The operand becomes a matrix in memory, of the dtype that products are made in. */
static void write_out(list *l, kl_kernel *kernel, kl_loop *operand, int64_t rows, int64_t columns, ir_dtype dtype)
{
    base_arena *arena = l->program->arena;
    kl_kernel *copy = new_loop(l, kernel, "operand");
    kl_view matrix = new_matrix(l, kernel, rows, columns, dtype);
    copy->loop = copy_of(arena, operand, 1);
    kl_output *out = &copy->loop.outputs[0];
    if (copy->loop.exprs[out->expr].dtype != dtype) {
        kl_expr cast = { .kind = KL_OP, .op = OP_cast, .dtype = dtype, .n_args = 1, .args = { out->expr }, .view.buffer = -1,
                         .row = copy->loop.exprs[out->expr].row };
        copy->loop.exprs[copy->loop.n_exprs] = cast;
        out->expr = copy->loop.n_exprs++;
    }
    out->kind = KL_STORE;
    out->view = matrix;
    *operand = copy_of(arena, operand, 0);
    operand->n_exprs = 1;
    operand->exprs[0] = (kl_expr){ .kind = KL_LOAD, .dtype = dtype, .view = matrix };
    operand->outputs[0].expr = 0;
    kl_merge_axes(&copy->loop);
    append(l, copy);
}

/* What is made of the product goes into a loop of its own, which reads it from memory. */
static kl_kernel *split_epilogue(list *l, kl_kernel *kernel, ir_dtype dtype)
{
    base_arena *arena = l->program->arena;
    kl_contraction *c = &kernel->contraction;
    kl_kernel *rest = new_loop(l, kernel, "epilogue");
    kl_view matrix = new_matrix(l, kernel, c->m, c->n, dtype);
    rest->loop = copy_of(arena, &c->c, 0);
    for (int i = 0; i < rest->loop.n_exprs; i++)
        if (rest->loop.exprs[i].kind == KL_PRODUCT)
            rest->loop.exprs[i] = (kl_expr){ .kind = KL_LOAD, .dtype = dtype, .view = matrix };
    c->c.n_exprs = c->c.n_outputs = 1;
    c->c.exprs = ARENA_NEW(arena, kl_expr, 1);
    c->c.outputs = ARENA_NEW(arena, kl_output, 1);
    c->c.exprs[0] = (kl_expr){ .kind = KL_PRODUCT, .dtype = dtype, .view.buffer = -1 };
    c->c.outputs[0] = (kl_output){ .kind = KL_STORE, .view = matrix };
    kl_merge_axes(&rest->loop);
    return rest;
}

static void legalise_for_generated(list *l, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    ir_dtype wide = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    c->algorithm = CPU_PRODUCT_GENERATED;
    kl_kernel *rest = cpu_gemm_takes_epilogue(c) ? NULL : split_epilogue(l, kernel, wide);
    append(l, kernel);
    if (rest)
        append(l, rest);
}

static void legalise_for_openblas(list *l, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    ir_dtype wide = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    c->algorithm = CPU_PRODUCT_OPENBLAS;
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_A))
        write_out(l, kernel, &c->a, c->m, c->k, wide);
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_B))
        write_out(l, kernel, &c->b, c->k, c->n, wide);
    c->dtype = wide;
    kl_kernel *rest = cpu_blas_takes_epilogue(c) ? NULL : split_epilogue(l, kernel, wide);
    append(l, kernel);
    if (rest)
        append(l, rest);
}

static void legalise_list(kl_program *program, bool generated, kl_kernel ***kernels, int *n)
{
    list l = { .program = program };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*kernels)[i];
        switch (kernel->kind) {
        case KL_CONTRACTION:
            (generated ? legalise_for_generated : legalise_for_openblas)(&l, kernel);
            break;
        case KL_REPEAT:
            legalise_list(program, generated, &kernel->repeat.body, &kernel->repeat.n_body);
            append(&l, kernel);
            break;
        case KL_LOOP:
        case KL_LIST:
        case KL_ATTENTION:
        case KL_SCATTER:
            append(&l, kernel);
            break;
        }
    }
    *kernels = l.at;
    *n = l.n;
}

/* The generated GEMM wherever there are vector units that it was written for. RAX_PRODUCTS=openblas or generated says otherwise: for
 * tests, and to compare the two. */
static bool choose_generated(const cpu_machine *machine)
{
    const char *forced = getenv("RAX_PRODUCTS");
    return forced ? !strcmp(forced, "generated") : machine->isa >= CPU_AVX2;
}

void cpu_legalise(kl_program *program, const cpu_machine *machine)
{
    bool generated = choose_generated(machine);
    if (generated)
        kl_fuse_epilogues(program);
    legalise_list(program, generated, &program->kernels, &program->n_kernels);
    kl_list_loops(program);
    kl_renumber(program);
}
