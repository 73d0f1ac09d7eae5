/* Attention: none is kept whole yet, so that the passes decompose it and no list has one. */
#include "backend_cuda/backend.h"

bool cuda_attention_takes(ir_dtype dtype, int64_t head_dim)
{
    (void)dtype, (void)head_dim;
    return false;
}

bool cuda_plan_attention(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    (void)c, (void)plan;
    return base_fail(BASE_FAILURE, "device cuda: k%d: there is no kernel for attention of head size %lld", kernel->id, (long long)kernel->attention.head_dim);
}
