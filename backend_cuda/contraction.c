/* Products: which of them cuBLASLt takes as they are, and what it is asked for.
 *
 * Operands are strided matrices, one of whose last two strides is 1. The epilogue is the product, its conversion to bf16, the addition of a
 * row vector, and += in f32. Batch axes that do not merge into one stride are products of their own. */
#include "backend_cuda/backend.h"

#include <string.h>

enum { MOST_PRODUCTS = 1024 };

/* rows x columns with one stride 1 and the other no smaller than what it steps over. */
static bool is_matrix(const kl_view *view, int row_axis, int64_t rows, int64_t columns)
{
    int64_t down = view->stride[row_axis], along = view->stride[row_axis + 1];
    bool row_major = (columns == 1 || along == 1) && (rows == 1 || down >= columns);
    bool column_major = (rows == 1 || down == 1) && (columns == 1 || along >= rows);
    return view->n_dynamic == 0 && (row_major || column_major);
}

static int outer_products(const kl_contraction *c)
{
    double n = 1;
    for (int i = 0; i + 1 < c->n_batch; i++)
        n *= (double)c->batch[i];
    return n <= MOST_PRODUCTS;
}

bool cuda_blas_takes_operand(const kl_contraction *c, bool is_b)
{
    const kl_loop *loop = is_b ? &c->b : &c->a;
    const kl_expr *e = &loop->exprs[loop->outputs[0].expr];
    return e->kind == KL_LOAD && e->dtype == c->dtype && outer_products(c) &&
           is_matrix(&e->view, c->n_batch, is_b ? c->k : c->m, is_b ? c->n : c->k);
}

/* The row vector that is added to the product: its load, or NULL. */
static const kl_expr *bias_of(const kl_contraction *c, const kl_expr *sum)
{
    for (int i = 0; i < 2; i++) {
        const kl_expr *e = &c->c.exprs[sum->args[i]], *other = &c->c.exprs[sum->args[1 - i]];
        bool vector = other->kind == KL_PRODUCT && e->kind == KL_LOAD && e->dtype == IR_F32 && !e->view.n_dynamic && (c->n == 1 || e->view.stride[c->n_batch + 1] == 1);
        for (int a = 0; a <= c->n_batch; a++)
            vector &= c->c.extent[a] == 1 || e->view.stride[a] == 0;
        if (vector)
            return e;
    }
    return NULL;
}

typedef struct { bool fits; const kl_expr *bias; } epilogue;

static epilogue epilogue_of(const kl_contraction *c)
{
    const kl_output *o = &c->c.outputs[0];
    const kl_expr *e = &c->c.exprs[o->expr];
    int64_t down = o->view.stride[c->n_batch], along = o->view.stride[c->n_batch + 1];
    if (c->c.n_outputs != 1 || o->kind != KL_STORE || o->view.n_dynamic || o->view.buffer < 0 || !outer_products(c) || !(c->n == 1 || along == 1) || !(c->m == 1 || down >= c->n))
        return (epilogue){0};
    if (e->kind == KL_PRODUCT)
        return (epilogue){ true, NULL };
    if (e->kind == KL_OP && e->op == OP_cast && e->dtype == IR_BF16 && c->dtype == IR_BF16 && !o->accumulate)
        return (epilogue){ c->c.exprs[e->args[0]].kind == KL_PRODUCT, NULL };
    if (e->kind == KL_OP && e->op == OP_add && e->dtype == IR_F32 && c->dtype != IR_F64) {
        const kl_expr *bias = bias_of(c, e);
        return (epilogue){ bias != NULL, bias };
    }
    return (epilogue){0};
}

bool cuda_blas_takes_epilogue(const kl_contraction *c) { return epilogue_of(c).fits; }

/* -- planning ---------------------------------------------------------------------------------------------------------------- */

static void set_operand(const kl_view *view, int row_axis, int64_t rows, int64_t columns, bool *transposed, int64_t *leading)
{
    int64_t down = view->stride[row_axis], along = view->stride[row_axis + 1];
    *transposed = !((columns == 1 || along == 1) && (rows == 1 || down >= columns));
    *leading = *transposed ? (columns == 1 ? rows : along) : rows == 1 ? columns : down;
}

/* Axes of the batch that are one for all three: batch stride of the last one, and the others to be gone through. */
typedef struct { int n; int64_t extent[KL_MAX_AXES], stride[3][KL_MAX_AXES]; } batches;

static batches merged(const kl_contraction *c, const kl_view *const view[3])
{
    batches b = {0};
    for (int i = 0; i < c->n_batch; i++) {
        if (c->batch[i] == 1)
            continue;
        bool joins = b.n > 0;
        for (int v = 0; joins && v < 3; v++)
            joins = b.stride[v][b.n - 1] == view[v]->stride[i] * c->batch[i];
        if (!joins)
            b.extent[b.n++] = 1;
        b.extent[b.n - 1] *= c->batch[i];
        for (int v = 0; v < 3; v++)
            b.stride[v][b.n - 1] = view[v]->stride[i];
    }
    return b;
}

bool cuda_plan_contraction(cuda_compiler *compiler, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_contraction *c = &kernel->contraction;
    const kl_output *out = &c->c.outputs[0];
    const kl_view *view[3] = { &c->a.exprs[c->a.outputs[0].expr].view, &c->b.exprs[c->b.outputs[0].expr].view, &out->view };
    epilogue e = epilogue_of(c);
    CHECK(e.fits && cuda_blas_takes_operand(c, false) && cuda_blas_takes_operand(c, true), "k%d: expected a product that is legal", kernel->id);
    ir_dtype result = c->c.exprs[out->expr].dtype, dtype[3] = { c->dtype, c->dtype, result };
    cuda_product p = { .m = c->m, .n = c->n, .k = c->k, .batch = 1, .operands = c->dtype, .result = result, .accumulate = out->accumulate, .bias.buffer = -1 };
    set_operand(view[0], c->n_batch, c->m, c->k, &p.a_transposed, &p.a_leading);
    set_operand(view[1], c->n_batch, c->k, c->n, &p.b_transposed, &p.b_leading);
    p.d_leading = c->m == 1 ? c->n : out->view.stride[c->n_batch];
    batches b = merged(c, view);
    int64_t outer = 1;
    if (b.n > 0) {
        p.batch = b.extent[b.n - 1];
        p.a_batch = b.stride[0][b.n - 1], p.b_batch = b.stride[1][b.n - 1], p.d_batch = b.stride[2][b.n - 1];
    }
    for (int i = 0; i + 1 < b.n; i++)
        outer *= b.extent[i];
    if (e.bias)
        p.bias = (cuda_arg){ e.bias->view.buffer, e.bias->view.offset * 4 };
    for (int64_t i = 0; i < outer && c->m * c->n * p.batch > 0; i++) {
        int64_t offset[3] = { view[0]->offset, view[1]->offset, view[2]->offset }, rest = i;
        for (int axis = b.n - 2; axis >= 0; axis--) {
            for (int v = 0; v < 3; v++)
                offset[v] += rest % b.extent[axis] * b.stride[v][axis];
            rest /= b.extent[axis];
        }
        p.a = (cuda_arg){ view[0]->buffer, offset[0] * ir_dtype_bytes(dtype[0]) };
        p.b = (cuda_arg){ view[1]->buffer, offset[1] * ir_dtype_bytes(dtype[1]) };
        p.d = (cuda_arg){ view[2]->buffer, offset[2] * ir_dtype_bytes(dtype[2]) };
        *cuda_step_add(compiler, plan) = (cuda_step){ .is_product = true, .product = p };
    }
    plan->how = e.bias ? "cublaslt, bias" : "cublaslt";
    return true;
}
