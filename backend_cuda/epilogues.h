/* Epilogues of products: what cuBLASLt has of them. Between contraction.c, legalise.c and epilogues.c. */
#ifndef CUDA_EPILOGUES_H
#define CUDA_EPILOGUES_H

#include "backend_cuda/backend.h"

/* bits: of CUDA_EPILOGUE_*. */
typedef struct {
    bool fits;
    int bits;
    ir_dtype result;
    const kl_output *d;
    const kl_view *added, *bias, *aux;     /* or NULL; added: a matrix; bias: what is added to each row, or where a sum goes: of the result's rows, or of an operand */
} cuda_epilogue;

cuda_epilogue cuda_epilogue_of(const kl_program *program, const kl_contraction *c);

/* Where the product stores gelu(u) and another function of u that only loops read: it stores u in its place, and they compute the function, if `takes` takes the product
 * so. Returns a loop that is to stand before the product, or NULL. behind: where not NULL the product stores u alone, in bf16, and gelu is made of it by a loop that is to
 * stand behind the product. */
typedef bool cuda_taker(void *context, const kl_program *program, const kl_contraction *c);
kl_kernel *cuda_store_operand(kl_program *program, kl_kernel *kernel, cuda_taker *takes, void *context, kl_kernel **behind);
/* Of a product whose result is bf16 and that adds a vector in f32: it adds the vector rounded to bf16, as cuBLASLt has it, if `takes` takes it so. Returns the loop that rounds, which is
 * to stand before the product, or NULL. */
kl_kernel *cuda_narrow_bias(kl_program *p, kl_kernel *kernel, cuda_taker *takes, void *context);
/* Of a product whose result is bf16: the sum of its rows leaves it, and is made of the result. Returns the loop that is to stand after it, or NULL. */
kl_kernel *cuda_split_sum(kl_program *program, kl_kernel *kernel);
/* operand_sums.c: sums of a matrix's rows become sums of an operand, of products that `takes` takes so. */
void cuda_sum_operands(kl_program *program, cuda_taker *takes, void *context);

#endif
