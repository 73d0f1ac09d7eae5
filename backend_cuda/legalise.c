/* Looks at the list once before memory is planned: what cuBLASLt has no epilogue for leaves the product again, and an operand that is no strided
 * matrix is written out. */
#include "backend_cuda/backend.h"

#include <string.h>

typedef struct { kl_program *program; kl_kernel **at; int n, cap; } list;

static void append(list *l, kl_kernel *kernel)
{
    if (!kernel)
        return;
    if (l->n == l->cap) {
        l->cap = MAX(16, 2 * l->cap);
        kl_kernel **more = ARENA_NEW(l->program->arena, kl_kernel *, l->cap);
        if (l->n)
            memcpy(more, l->at, sizeof *more * (size_t)l->n);
        l->at = more;
    }
    l->at[l->n++] = kernel;
}

/* A sum over nothing: what is made of the product is made of zeros. */
static void become_loop(kl_kernel *kernel)
{
    kl_loop loop = kernel->contraction.c;
    for (int i = 0; i < loop.n_exprs; i++)
        if (loop.exprs[i].kind == KL_PRODUCT)
            loop.exprs[i] = (kl_expr){ .kind = KL_VALUE, .dtype = loop.exprs[i].dtype, .view.buffer = -1 };
    kernel->kind = KL_LOOP;
    kernel->loop = loop;
}

static void legalise_contraction(list *l, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    if (c->k == 0) {
        become_loop(kernel);
        append(l, kernel);
        return;
    }
    if (!cuda_blas_takes_operand(c, false))
        append(l, kl_split_operand(l->program, kernel, false, c->dtype));
    if (!cuda_blas_takes_operand(c, true))
        append(l, kl_split_operand(l->program, kernel, true, c->dtype));
    kl_kernel *rest = cuda_blas_takes_epilogue(c) ? NULL : kl_split_epilogue(l->program, kernel);
    append(l, kernel);
    append(l, rest);
}

static void legalise_list(kl_program *program, kl_kernel ***kernels, int *n)
{
    list l = { .program = program };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*kernels)[i];
        switch (kernel->kind) {
        case KL_CONTRACTION:
            legalise_contraction(&l, kernel);
            break;
        case KL_REPEAT:
            legalise_list(program, &kernel->repeat.body, &kernel->repeat.n_body);
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

void cuda_legalise(kl_program *program)
{
    kl_fuse_epilogues(program);
    legalise_list(program, &program->kernels, &program->n_kernels);
    kl_renumber(program);
}
