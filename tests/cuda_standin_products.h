/* The stand-in's cuBLASLt, a part of cuda_standin.h: products in three plain loops, with their epilogues, and the functions that they are described, chosen and queued by. */
#ifndef TESTS_CUDA_STANDIN_PRODUCTS_H
#define TESTS_CUDA_STANDIN_PRODUCTS_H

/* -- numbers and matrices ----------------------------------------------------------------------------------------------------- */

static double number_at(const char *at, int type, int64_t i)
{
    return type == CUDA_R_F64 ? ((const double *)(const void *)at)[i] : type == CUDA_R_BF16 ? ir_bf16_to_f32(((const uint16_t *)(const void *)at)[i]) : ((const float *)(const void *)at)[i];
}

static void put_number(char *at, int type, int64_t i, double x)
{
    if (type == CUDA_R_F64)
        ((double *)(void *)at)[i] = x;
    else if (type == CUDA_R_BF16)
        ((uint16_t *)(void *)at)[i] = ir_f32_to_bf16((float)x);
    else
        ((float *)(void *)at)[i] = (float)x;
}

static size_t type_bytes(int type) { return type == CUDA_R_F64 ? 8 : type == CUDA_R_BF16 ? 2 : 4; }

static size_t matrix_bytes(const struct cuda_layout_opaque *l)
{
    return (size_t)((int64_t)(l->batch - 1) * l->stride + (int64_t)(l->columns - 1) * l->leading + (int64_t)l->rows) * type_bytes(l->type);
}
static bool lie_apart(const char *a, const struct cuda_layout_opaque *la, const char *b, const struct cuda_layout_opaque *lb)
{
    return a + matrix_bytes(la) <= b || b + matrix_bytes(lb) <= a;
}

static void check_matrix(const char *at, const struct cuda_layout_opaque *l, const char *what)
{
    STANDIN_CHECK(l->leading >= (int64_t)l->rows && l->batch >= 1, "%s of a product: %llu rows, %lld from column to column", what, (unsigned long long)l->rows, (long long)l->leading);
    STANDIN_CHECK(block_of(at, matrix_bytes(l), false), "%s of a product lies outside of memory", what);
}

static double tanh_gelu(double x) { return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x))); }
static double tanh_gelu_slope(double x)
{
    double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.79788456080286536 * (1 + 0.134145 * x * x);
}

/* An element of an operand: to ten bits where the product is in TF32. */
static double operand_at(const stream_op *op, const char *at, int type, int64_t i)
{
    float x = (float)number_at(at, type, i);
    uint32_t bits;
    if (op->desc.compute != CUDA_COMPUTE_TF32)
        return number_at(at, type, i);
    memcpy(&bits, &x, 4);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&x, &bits, 4);
    return x;
}

/* Column by column, as cuBLASLt has it. */
static void do_product(const stream_op *op)
{
    int64_t m = (int64_t)op->d.rows, n = (int64_t)op->d.columns, k = (int64_t)(op->desc.transpose_a ? op->a.rows : op->a.columns);
    STANDIN_CHECK((int64_t)(op->desc.transpose_a ? op->a.columns : op->a.rows) == m && (int64_t)(op->desc.transpose_b ? op->b.rows : op->b.columns) == n &&
                  (int64_t)(op->desc.transpose_b ? op->b.columns : op->b.rows) == k, "the operands of a product do not fit");
    double *a = malloc(sizeof(double) * (size_t)(m * k)), *sum = malloc(sizeof(double) * (size_t)m), *bias_sum = calloc((size_t)MAX(m, n), sizeof(double));
    int type = op->d.type, epilogue = op->desc.epilogue & ~CUDA_EPILOGUE_NONE;
    for (int64_t batch = 0; batch < op->d.batch; batch++) {
        for (int64_t j = 0; j < k; j++)
            for (int64_t i = 0; i < m; i++)
                a[j * m + i] = operand_at(op, op->pa, op->a.type, batch * op->a.stride + (op->desc.transpose_a ? i * op->a.leading + j : j * op->a.leading + i));
        for (int64_t j = 0; j < n; j++) {
            memset(sum, 0, sizeof(double) * (size_t)m);
            for (int64_t p = 0; p < k; p++) {
                double b = operand_at(op, op->pb, op->b.type, batch * op->b.stride + (op->desc.transpose_b ? p * op->b.leading + j : j * op->b.leading + p));
                for (int64_t i = 0; i < m; i++)
                    sum[i] += a[p * m + i] * b;
                if (epilogue & CUDA_EPILOGUE_SUM_B)
                    bias_sum[j] += b;
            }
            for (int64_t i = 0; i < m; i++) {
                int64_t at = batch * op->d.stride + j * op->d.leading + i, aux_at = j * op->desc.aux_leading + i;
                double x = op->alpha * sum[i];
                if (epilogue & CUDA_EPILOGUE_BIAS)
                    x += number_at(op->desc.bias, type, i);
                if ((epilogue & CUDA_EPILOGUE_AUX) && (epilogue & CUDA_EPILOGUE_GELU))
                    put_number(op->desc.aux, type, aux_at, x);
                if (epilogue & CUDA_EPILOGUE_GELU)
                    x = tanh_gelu(x);
                if (epilogue & CUDA_EPILOGUE_GELU_GRADIENT)
                    x *= tanh_gelu_slope(number_at(op->desc.aux, type, aux_at));
                if (epilogue & CUDA_EPILOGUE_BIAS_GRADIENT)
                    bias_sum[i] += x;
                if (op->beta != 0)
                    x += op->beta * number_at(op->pc, type, batch * op->c.stride + j * op->c.leading + i);
                put_number(op->to, type, at, x);
            }
        }
    }
    for (int64_t p = 0; p < k && (epilogue & CUDA_EPILOGUE_SUM_A); p++)
        for (int64_t i = 0; i < m; i++)
            bias_sum[i] += a[p * m + i];
    int64_t n_sums = epilogue & (CUDA_EPILOGUE_BIAS_GRADIENT | CUDA_EPILOGUE_SUM_A) ? m : epilogue & CUDA_EPILOGUE_SUM_B ? n : 0;
    for (int64_t i = 0; i < n_sums; i++)
        put_number(op->desc.bias, type, i, bias_sum[i]);
    free(a);
    free(sum);
    free(bias_sum);
}

/* -- cuBLASLt ------------------------------------------------------------------------------------------------------------------------ */

static int si_blas_version(void) { return 130000; }
static int si_blas_new(cuda_blas *blas) { return *blas = (cuda_blas)&standin, 0; }
static int si_blas_free(cuda_blas blas) { return blas ? 0 : 1; }
static int si_product_new(cuda_product_desc *desc, int compute, int scale)
{
    STANDIN_CHECK(((compute == CUDA_COMPUTE_F32 || compute == CUDA_COMPUTE_TF32) && scale == CUDA_R_F32) || (compute == CUDA_COMPUTE_F64 && scale == CUDA_R_F64), "a product in type %d, scaled in %d", compute, scale);
    *desc = calloc(1, sizeof **desc);
    (*desc)->compute = compute, (*desc)->epilogue = CUDA_EPILOGUE_NONE;
    return 0;
}
static int si_product_free(cuda_product_desc desc) { return free(desc), 0; }
static int si_product_set(cuda_product_desc desc, int attribute, const void *value, size_t bytes)
{
    const struct { int attribute; void *to; size_t bytes; } known[] = {
        { CUDA_PRODUCT_TRANSPOSE_A, &desc->transpose_a, 4 }, { CUDA_PRODUCT_TRANSPOSE_B, &desc->transpose_b, 4 }, { CUDA_PRODUCT_EPILOGUE, &desc->epilogue, 4 },
        { CUDA_PRODUCT_BIAS, &desc->bias, 8 }, { CUDA_PRODUCT_AUX, &desc->aux, 8 }, { CUDA_PRODUCT_AUX_LEADING, &desc->aux_leading, 8 } };
    void *to = NULL;
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i].attribute == attribute && known[i].bytes == bytes)
            to = known[i].to;
    STANDIN_CHECK(to, "attribute %d of a product in %zu bytes", attribute, bytes);
    return memcpy(to, value, bytes), 0;
}
static int si_layout_new(cuda_layout *layout, int type, uint64_t rows, uint64_t columns, int64_t leading)
{
    *layout = calloc(1, sizeof **layout);
    **layout = (struct cuda_layout_opaque){ .type = type, .rows = rows, .columns = columns, .leading = leading, .batch = 1 };
    return 0;
}
static int si_layout_free(cuda_layout layout) { return free(layout), 0; }
static int si_layout_set(cuda_layout layout, int attribute, const void *value, size_t bytes)
{
    STANDIN_CHECK((attribute == CUDA_LAYOUT_BATCH && bytes == 4) || (attribute == CUDA_LAYOUT_BATCH_STRIDE && bytes == 8), "attribute %d of a layout", attribute);
    return memcpy(attribute == CUDA_LAYOUT_BATCH ? (void *)&layout->batch : (void *)&layout->stride, value, bytes), 0;
}
static int si_preference_new(cuda_preference *preference) { return *preference = (cuda_preference)&standin, 0; }
static int si_preference_free(cuda_preference preference) { return preference ? 0 : 1; }
static int si_preference_set(cuda_preference preference, int attribute, const void *value, size_t bytes)
{
    STANDIN_CHECK(preference && value && bytes == (attribute == CUDA_PREFERENCE_WORKSPACE ? 8u : 4u), "preference %d", attribute);
    return 0;
}
static int si_product_algorithms(cuda_blas blas, cuda_product_desc desc, cuda_layout a, cuda_layout b, cuda_layout c, cuda_layout d, cuda_preference preference, int wanted,
                                 cuda_algorithm *found, int *n_found)
{
    STANDIN_CHECK(blas && desc && a && b && c && d && preference && wanted >= 1, "a question for algorithms without all that it needs");
    int epilogue = desc->epilogue, gradient = CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_GELU_GRADIENT;
    STANDIN_CHECK(epilogue == CUDA_EPILOGUE_NONE || epilogue == CUDA_EPILOGUE_SUM_A || epilogue == CUDA_EPILOGUE_SUM_B || epilogue == gradient || epilogue == (gradient | CUDA_EPILOGUE_BIAS_GRADIENT) ||
                  (epilogue & ~(CUDA_EPILOGUE_BIAS | CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX)) == 0, "epilogue %d", epilogue);
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_ANY_BIAS) || desc->bias, "an epilogue whose vector is aligned somehow");
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_AUX) || (desc->aux && desc->aux_leading % 8 == 0 && desc->aux_leading >= (int64_t)d->rows && d->batch == 1), "an auxiliary matrix of %lld",
                  (long long)desc->aux_leading);
    standin.questions++;
    standin.asked_epilogues |= epilogue;
    if (epilogue & standin.refused_epilogue)
        return *n_found = 0, 15;
    *n_found = MIN(wanted, 3);
    for (int i = 0; i < *n_found; i++)
        found[i] = (cuda_algorithm){ .algorithm.data = { 4711 + (uint64_t)i }, .workspace_bytes = 1000 };
    return 0;
}
static int si_product(cuda_blas blas, cuda_product_desc desc, const void *alpha, const void *a, cuda_layout a_layout, const void *b, cuda_layout b_layout, const void *beta,
                      const void *c, cuda_layout c_layout, void *d, cuda_layout d_layout, const cuda_algorithm_bytes *algorithm, void *workspace, size_t workspace_bytes, cuda_stream stream)
{
    STANDIN_CHECK(blas && stream == streams && algorithm->data[0] - 4711 < 3, "a product that is none");
    STANDIN_CHECK(block_of(workspace, workspace_bytes, false), "the workspace of a product lies outside of memory");
    check_matrix(a, a_layout, "the first operand");
    check_matrix(b, b_layout, "the second operand");
    check_matrix(c, c_layout, "what is added to a product");
    check_matrix(d, d_layout, "the result");
    STANDIN_CHECK(c_layout->type == d_layout->type && c_layout->rows == d_layout->rows && c_layout->columns == d_layout->columns && c_layout->batch == d_layout->batch,
                  "what is added to a product is another matrix than its result");
    STANDIN_CHECK(c == d ? c_layout == d_layout : block_of(c, 0, false) != block_of(d, 0, false) || lie_apart(c, c_layout, d, d_layout),
                  "what is added to a product lies partly in its result");
    int epilogue = desc->epilogue;
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_ANY_BIAS) || block_of(desc->bias, (epilogue & CUDA_EPILOGUE_SUM_B ? d_layout->columns : d_layout->rows) * type_bytes(d_layout->type), false),
                  "the vector of a product lies outside of memory");
    STANDIN_CHECK(!(epilogue & (CUDA_EPILOGUE_SUM_A | CUDA_EPILOGUE_SUM_B)) || (d_layout->type == CUDA_R_F32 && d_layout->batch == 1), "sums of the operands of several products, or in bf16");
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_AUX) || ((uintptr_t)desc->aux % 16 == 0 &&
                  block_of(desc->aux, ((d_layout->columns - 1) * (uint64_t)desc->aux_leading + d_layout->rows) * type_bytes(d_layout->type), false)), "the auxiliary matrix of a product");
    standin.epilogues |= epilogue;
    stream_op *op = queue(DO_PRODUCT, stream);
    op->algorithm = (int)algorithm->data[0];
    bool f64 = desc->compute == CUDA_COMPUTE_F64;
    op->desc = *desc, op->a = *a_layout, op->b = *b_layout, op->c = *c_layout, op->d = *d_layout, op->pa = a, op->pb = b, op->pc = c, op->to = d;
    op->alpha = f64 ? *(const double *)alpha : *(const float *)alpha;
    op->beta = f64 ? *(const double *)beta : *(const float *)beta;
    return 0;
}

#endif
