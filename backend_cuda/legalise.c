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

/* The product as it is, by an algorithm that cuBLASLt has. */
static bool takes(void *device, const kl_program *program, const kl_contraction *c)
{
    cuda_product product;
    return cuda_product_of(program, c, &product) &&
           (product.m * product.n * product.batch == 0 || cuda_product_exists(device, program, &product));
}

/* What is done to the product, in as few passes over memory as cuBLASLt can. gelu's epilogues are for cards that gain by them: on sm_80 and sm_89 a loop of its own is
 * faster (llm.c found it so). RAX_PRODUCTS=epilogues or plain says otherwise; plain leaves out sums of operands, too. */
static bool says(const char *what)
{
    const char *forced = getenv("RAX_PRODUCTS");
    return forced && !strcmp(forced, what);
}

static bool wants_gelu(cuda_device *device) { return says("epilogues") || (!says("plain") && cuda_device_machine(device)->major >= 9); }

static void legalise_epilogue(cuda_device *device, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    bool gelu = wants_gelu(device);
    kl_kernel *behind = NULL;
    if (gelu)
        kl_append(into, cuda_store_operand(program, kernel, takes, device, NULL));
    kl_append(into, cuda_store_operand(program, kernel, takes, device, &behind));
    kl_append(into, cuda_narrow_bias(program, kernel, takes, device));
    kl_contraction whole = *c;
    kl_kernel *sum = gelu ? cuda_split_sum(program, kernel) : NULL;
    bool fits = (gelu || !(cuda_epilogue_of(program, c).bits & CUDA_EPILOGUE_AUX)) && takes(device, program, c);
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
    kl_renumber(program);
}
