/* Looks at the list once before memory is planned: what cuBLASLt has no epilogue for leaves the product again, and an operand that is no strided
 * matrix is written out. */
#include "backend_cuda/epilogues.h"

#include <stdlib.h>
#include <string.h>

enum { EARLY_BYTES = 16 << 20 };          /* what a card writes in about the time that a launch takes it */

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

static bool says(const char *what)
{
    const char *forced = getenv("RAX_PRODUCTS");
    return forced && !strcmp(forced, what);
}

/* gelu's epilogues with an auxiliary matrix are for cards that gain by them: on sm_80 and sm_89 a loop of its own is faster (llm.c found it so), but for products of which tuning has found
 * otherwise. RAX_PRODUCTS=epilogues or plain says otherwise, whatever was timed; plain leaves out sums of operands, too. */
static bool gains_by_gelu(cuda_device *device) { return cuda_device_machine(device)->major >= 9; }
static bool may_gelu(cuda_device *device) { return says("epilogues") || (!says("plain") && (gains_by_gelu(device) || cuda_choices_are_timed(cuda_device_choices(device)))); }

/* The product as it is, by an algorithm that cuBLASLt has, unless it was timed and a loop is faster. */
static bool takes(void *device, const kl_program *program, const kl_contraction *c)
{
    cuda_product product;
    if (!cuda_product_of(program, c, &product))
        return false;
    bool gelu = product.epilogue & CUDA_EPILOGUE_AUX;
    if (gelu && !may_gelu(device))
        return false;
    if (product.m * product.n * product.batch == 0)
        return true;
    cuda_standing standing = cuda_product_standing(device, program, &product);
    return says("epilogues") ? standing != CUDA_NO_PRODUCT : standing == CUDA_TIMED || (standing == CUDA_BY_HEURISTIC && (!gelu || gains_by_gelu(device)));
}

/* What is done to the product, in as few passes over memory as cuBLASLt can. */
static void legalise_epilogue(cuda_device *device, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    bool gelu = may_gelu(device);
    kl_kernel *behind = NULL;
    if (gelu)
        kl_append(into, cuda_store_operand(program, kernel, takes, device, NULL));
    kl_append(into, cuda_store_operand(program, kernel, takes, device, &behind));
    kl_append(into, cuda_narrow_bias(program, kernel, takes, device));
    kl_contraction whole = *c;
    kl_kernel *sum = gelu ? cuda_split_sum(program, kernel) : NULL;
    bool fits = takes(device, program, c);
    if (!fits && sum)
        *c = whole, sum = NULL;
    kl_kernel *rest = fits ? sum : kl_split_epilogue(program, kernel);
    kl_append(into, kernel);
    kl_append(into, rest);
    kl_append(into, behind);
}

static void legalise_contraction(void *context, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    if (c->k == 0) {
        become_loop(kernel);
        kl_append(into, kernel);
        return;
    }
    if (!cuda_blas_takes_operand(c, false))
        kl_append(into, kl_split_operand(program, kernel, false, c->dtype));
    if (!cuda_blas_takes_operand(c, true))
        kl_append(into, kl_split_operand(program, kernel, true, c->dtype));
    legalise_epilogue(context, program, kernel, into);
}

void cuda_legalise(kl_program *program, cuda_device *device)
{
    cuda_split_residuals(program);
    kl_fuse_epilogues(program);
    kl_narrow_stores(program, true);
    kl_rewrite_products(program, legalise_contraction, device);
    if (!says("plain"))
        cuda_sum_operands(program, takes, device);
    kl_list_loops(program, EARLY_BYTES);
    cuda_hoist_scalars(program);
    cuda_join_scalars(program);
    kl_renumber(program);
}
