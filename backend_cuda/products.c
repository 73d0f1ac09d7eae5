/* Products by cuBLASLt: descriptors, what is asked of choices.c, and the call.
 *
 * cuBLASLt thinks in columns: d^T = b^T a^T, so that its first operand is b, and its rows are our columns. */
#include "backend_cuda/backend.h"

/* doubtful: what of an epilogue a loop may be faster at. */
enum { BLAS_WORKSPACE = 32 << 20, DOUBTFUL = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_SUMS };

/* Bytes that an address is surely a multiple of, up to 256: a choice of algorithm must hold in every iteration of a repeat. */
static uint32_t alignment(const kl_program *p, cuda_arg arg, ir_dtype dtype)
{
    int64_t bits = 256 | arg.value, size = ir_dtype_bytes(dtype);
    for (int b = arg.buffer; b >= 0 && b < p->n_buffers && p->buffers[b].kind == KL_MOVING; b = p->buffers[b].base)
        bits |= p->buffers[b].offset * size | p->buffers[b].step * size;
    return (uint32_t)MIN(bits & -bits, 256);
}

/* -- descriptors ----------------------------------------------------------------------------------------------------------- */

static int blas_type(ir_dtype dtype) { return dtype == IR_F64 ? CUDA_R_F64 : dtype == IR_BF16 ? CUDA_R_BF16 : CUDA_R_F32; }

static bool layout(const cuda_device *device, cuda_layout *to, ir_dtype dtype, int64_t rows, int64_t columns, int64_t leading, int64_t batch, int64_t stride)
{
    const cuda_library *l = cuda_device_library(device);
    int32_t count = (int32_t)batch;
    return cuda_blas_ok(l->layout_new(to, blas_type(dtype), (uint64_t)rows, (uint64_t)columns, leading), "cublasLtMatrixLayoutCreate") &&
           cuda_blas_ok(l->layout_set(*to, CUDA_LAYOUT_BATCH, &count, sizeof count), "the batch of a product") &&
           cuda_blas_ok(l->layout_set(*to, CUDA_LAYOUT_BATCH_STRIDE, &stride, sizeof stride), "the batch of a product");
}

static bool set(const cuda_device *device, cuda_product_desc desc, int attribute, const void *value, size_t bytes, const char *what)
{
    return cuda_blas_ok(cuda_device_library(device)->product_set(desc, attribute, value, bytes), what);
}

static bool set_places(const cuda_device *device, const cuda_product *p, cuda_product_desc desc, const void *bias, const void *aux)
{
    return ((p->epilogue & CUDA_EPILOGUE_ANY_BIAS) == 0 || set(device, desc, CUDA_PRODUCT_BIAS, &bias, sizeof bias, "a bias")) &&
           ((p->epilogue & CUDA_EPILOGUE_AUX) == 0 || set(device, desc, CUDA_PRODUCT_AUX, &aux, sizeof aux, "gelu's operand"));
}

/* cuBLASLt wants c and d of one place in one layout. */
static bool is_in_place(const cuda_product *p) { return p->c.buffer == p->d.buffer && p->c.value == p->d.value; }

static bool describe(const cuda_device *device, const cuda_product *p, cuda_ready *ready)
{
    const cuda_library *l = cuda_device_library(device);
    bool f64 = p->operands == IR_F64;
    int32_t transpose_a = p->b_transposed, transpose_b = p->a_transposed, epilogue = p->epilogue;
    return cuda_blas_ok(l->product_new(&ready->desc, f64 ? CUDA_COMPUTE_F64 : p->tf32 ? CUDA_COMPUTE_TF32 : CUDA_COMPUTE_F32, f64 ? CUDA_R_F64 : CUDA_R_F32), "cublasLtMatmulDescCreate") &&
           set(device, ready->desc, CUDA_PRODUCT_TRANSPOSE_A, &transpose_a, sizeof transpose_a, "a transposed operand") &&
           set(device, ready->desc, CUDA_PRODUCT_TRANSPOSE_B, &transpose_b, sizeof transpose_b, "a transposed operand") &&
           set(device, ready->desc, CUDA_PRODUCT_EPILOGUE, &epilogue, sizeof epilogue, "an epilogue") &&
           ((p->epilogue & CUDA_EPILOGUE_AUX) == 0 || set(device, ready->desc, CUDA_PRODUCT_AUX_LEADING, &p->aux_leading, sizeof p->aux_leading, "gelu's operand")) &&
           layout(device, &ready->a, p->operands, p->b_transposed ? p->k : p->n, p->b_transposed ? p->n : p->k, p->b_leading, p->batch, p->b_batch) &&
           layout(device, &ready->b, p->operands, p->a_transposed ? p->m : p->k, p->a_transposed ? p->k : p->m, p->a_leading, p->batch, p->a_batch) &&
           (!p->adds || is_in_place(p) || layout(device, &ready->c, p->result, p->n, p->m, p->c_leading, p->batch, p->c_batch)) &&
           layout(device, &ready->d, p->result, p->n, p->m, p->d_leading, p->batch, p->d_batch);
}

/* -- algorithms ----------------------------------------------------------------------------------------------------------- */

/* Bytes from the first element to the last. */
static size_t span(int64_t rows, int64_t columns, int64_t leading, int64_t batch, int64_t stride, ir_dtype dtype)
{
    return (size_t)(((batch - 1) * stride + (rows - 1) * leading + columns) * ir_dtype_bytes(dtype));
}

/* The addresses of the vector and of the auxiliary matrix are not known yet: the heuristic looks at how they are aligned. */
static bool choose(cuda_device *device, const kl_program *program, const cuda_product *p, const cuda_ready *ready, float left_ms, size_t loop_bytes, cuda_choice *choice)
{
    const cuda_library *l = cuda_device_library(device);
    uint64_t workspace = BLAS_WORKSPACE;
    uint32_t reductions = CUDA_REDUCTION_IN_COMPUTE_TYPE;          /* where k is cut, parts are added in f32, in one order; 0, no cut, is always one of them */
    uint32_t a = alignment(program, p->a, p->operands), b = alignment(program, p->b, p->operands), d = alignment(program, p->d, p->result), c = p->adds ? alignment(program, p->c, p->result) : d;
    uint32_t bias = alignment(program, p->bias, p->result), aux = alignment(program, p->aux, p->result);
    cuda_preference preference = NULL;
    base_text key = {0};
    const int64_t numbers[] = { p->m, p->n, p->k, p->batch, p->a_leading, p->b_leading, p->d_leading, p->a_batch, p->b_batch, p->d_batch, p->operands, p->result, p->a_transposed,
                                p->b_transposed, p->adds, p->c_leading, p->c_batch, p->tf32, p->epilogue, p->aux_leading, b, a, c, d, bias, aux };
    if (!set_places(device, p, ready->desc, (void *)(uintptr_t)bias, (void *)(uintptr_t)aux) || !cuda_blas_ok(l->preference_new(&preference), "cublasLtMatmulPreferenceCreate"))
        return false;
    const struct { int attribute; const void *value; size_t bytes; } wishes[] = {
        { CUDA_PREFERENCE_WORKSPACE, &workspace, sizeof workspace }, { CUDA_PREFERENCE_REDUCTIONS, &reductions, sizeof reductions }, { CUDA_PREFERENCE_ALIGN_A, &b, sizeof b },
        { CUDA_PREFERENCE_ALIGN_B, &a, sizeof a }, { CUDA_PREFERENCE_ALIGN_C, &c, sizeof c }, { CUDA_PREFERENCE_ALIGN_D, &d, sizeof d } };
    bool wished = true;
    for (size_t i = 0; wished && i < COUNT_OF(wishes); i++)
        wished = cuda_blas_ok(l->preference_set(preference, wishes[i].attribute, wishes[i].value, wishes[i].bytes), "cublasLtMatmulPreferenceSetAttribute");
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        base_text_add(&key, "%s%lld", i ? " " : "", (long long)numbers[i]);
    cuda_question q = { .key = key.at, .product = p, .ready = ready, .preference = preference,
                        .a_bytes = p->a_transposed ? span(p->k, p->m, p->a_leading, p->batch, p->a_batch, p->operands) : span(p->m, p->k, p->a_leading, p->batch, p->a_batch, p->operands),
                        .b_bytes = p->b_transposed ? span(p->n, p->k, p->b_leading, p->batch, p->b_batch, p->operands) : span(p->k, p->n, p->b_leading, p->batch, p->b_batch, p->operands),
                        .c_bytes = p->adds ? span(p->m, p->n, p->c_leading, p->batch, p->c_batch, p->result) : 0,
                        .d_bytes = span(p->m, p->n, p->d_leading, p->batch, p->d_batch, p->result),
                        .bias_bytes = p->epilogue & CUDA_EPILOGUE_ANY_BIAS ? span(1, p->epilogue & CUDA_EPILOGUE_SUM_B ? p->m : p->n, 0, 1, 0, p->result) : 0,
                        .aux_bytes = p->epilogue & CUDA_EPILOGUE_AUX ? span(p->m, p->n, p->aux_leading, 1, 0, p->result) : 0, .workspace_bytes = BLAS_WORKSPACE,
                        .left_ms = left_ms, .loop_bytes = loop_bytes };
    bool chosen = wished && cuda_choose_algorithm(device, &q, choice);
    l->preference_free(preference);
    base_text_free(&key);
    return chosen;
}

/* What is left of a product where a loop makes what is doubtful of its epilogue, as legalise.c and operand_sums.c have it, and the bytes that the loop reads and writes: an operand; or
 * in bf16 gelu's operand, which the product leaves, and gelu; or else the product in f32, what is made of it, and the auxiliary matrix. */
static cuda_product left_of(const cuda_product *p, size_t *loop_bytes)
{
    cuda_product left = *p;
    int64_t result = ir_dtype_bytes(p->result), count = p->m * p->n * p->batch;
    left.epilogue = CUDA_EPILOGUE_NONE;
    left.bias = left.aux = (cuda_arg){ .buffer = -1 };
    left.aux_leading = 0;
    if (p->epilogue & CUDA_EPILOGUE_SUMS) {
        *loop_bytes = (size_t)(p->k * (p->epilogue & CUDA_EPILOGUE_SUM_A ? p->n : p->m) * ir_dtype_bytes(p->operands));
    } else if (p->epilogue & CUDA_EPILOGUE_GELU && p->epilogue & CUDA_EPILOGUE_AUX && p->result == IR_BF16) {
        left.d = p->aux, left.d_leading = left.c_leading = p->aux_leading;
        if (p->epilogue & CUDA_EPILOGUE_BIAS)
            left.epilogue = CUDA_EPILOGUE_BIAS, left.bias = p->bias;
        *loop_bytes = (size_t)(2 * count * result);
    } else {
        left.result = IR_F32;
        left.d = (cuda_arg){ .buffer = -1 }, left.d_leading = left.c_leading = p->n, left.d_batch = left.c_batch = p->batch > 1 ? p->m * p->n : 0;
        *loop_bytes = (size_t)(count * (4 + result + (p->epilogue & CUDA_EPILOGUE_AUX ? result : 0)));
    }
    return left;
}

/* With tuning on, first what it is to be compared with. */
static bool ask(cuda_device *device, const kl_program *program, const cuda_product *p, cuda_ready *ready, cuda_choice *choice)
{
    cuda_choice left = {0};
    size_t loop_bytes = 0;
    if (p->epilogue & DOUBTFUL && cuda_choices_tune(cuda_device_choices(device))) {
        cuda_ready of_left = {0};
        cuda_product other = left_of(p, &loop_bytes);
        bool asked = describe(device, &other, &of_left) && choose(device, program, &other, &of_left, 0, 0, &left);
        cuda_ready_free(device, &of_left);
        if (!asked)
            return false;
    }
    return describe(device, p, ready) && choose(device, program, p, ready, left.ms, loop_bytes, choice);
}

/* -- products ---------------------------------------------------------------------------------------------------------------- */

bool cuda_ready_product(cuda_device *device, const kl_program *program, const cuda_product *p, cuda_ready *ready)
{
    cuda_choice choice = {0};
    if (!ask(device, program, p, ready, &choice))
        return false;
    if (choice.standing == CUDA_NO_PRODUCT)
        return base_fail(BASE_FAILURE, "device cuda: cuBLASLt has no algorithm for %lld x %lld x %lld in %s, epilogue %d", (long long)p->m, (long long)p->n, (long long)p->k,
                         ir_dtype_name(p->operands), p->epilogue);
    ready->algorithm = choice.algorithm.algorithm;
    ready->workspace_bytes = choice.algorithm.workspace_bytes;
    return true;
}

void cuda_ready_free(cuda_device *device, cuda_ready *ready)
{
    const cuda_library *l = cuda_device_library(device);
    if (ready->desc)
        l->product_free(ready->desc);
    if (ready->a)
        l->layout_free(ready->a);
    if (ready->b)
        l->layout_free(ready->b);
    if (ready->c)
        l->layout_free(ready->c);
    if (ready->d)
        l->layout_free(ready->d);
    *ready = (cuda_ready){0};
}

cuda_standing cuda_product_standing(cuda_device *device, const kl_program *program, const cuda_product *p)
{
    cuda_ready ready = {0};
    cuda_choice choice = {0};
    bool asked = ask(device, program, p, &ready, &choice);
    cuda_ready_free(device, &ready);
    base_error_clear();
    return asked ? choice.standing : CUDA_NO_PRODUCT;
}

bool cuda_multiply(cuda_device *device, const cuda_product *p, const cuda_ready *ready, const cuda_places *at)
{
    static const float one = 1, zero = 0;
    static const double one64 = 1, zero64 = 0;
    bool f64 = p->operands == IR_F64;
    const void *alpha = f64 ? (const void *)&one64 : &one, *beta = p->adds ? alpha : f64 ? (const void *)&zero64 : &zero;
    return set_places(device, p, ready->desc, at->bias, at->aux) &&
           cuda_blas_ok(cuda_device_library(device)->product(cuda_device_blas(device), ready->desc, alpha, at->b, ready->a, at->a, ready->b, beta, p->adds ? at->c : at->d,
                                                             ready->c && at->c != at->d ? ready->c : ready->d, at->d, ready->d, &ready->algorithm, at->workspace, ready->workspace_bytes, cuda_device_stream(device)), "cublasLtMatmul");
}
