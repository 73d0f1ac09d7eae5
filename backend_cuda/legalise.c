/* Looks at the list once before memory is planned: what cuBLASLt has no epilogue for leaves the product again, and an operand that is no strided
 * matrix is written out. */
#include "backend_cuda/backend.h"

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

static void legalise_contraction(void *context, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    (void)context;
    if (c->k == 0) {
        become_loop(kernel);
        kl_append(into, kernel);
        return;
    }
    if (!cuda_blas_takes_operand(c, false))
        kl_append(into, kl_split_operand(program, kernel, false, c->dtype));
    if (!cuda_blas_takes_operand(c, true))
        kl_append(into, kl_split_operand(program, kernel, true, c->dtype));
    kl_kernel *rest = cuda_blas_takes_epilogue(c) ? NULL : kl_split_epilogue(program, kernel);
    kl_append(into, kernel);
    kl_append(into, rest);
}

void cuda_legalise(kl_program *program)
{
    kl_fuse_epilogues(program);
    kl_rewrite_products(program, legalise_contraction, NULL);
    kl_renumber(program);
}
