/* Products: which of them cuBLASLt takes as they are, and what it is asked for.
 *
 * Operands are strided matrices, one of whose last two strides is 1; the epilogue is one of epilogues.c. Batch axes that do not merge into one stride
 * are products of their own. */
#include "backend_cuda/epilogues.h"

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

/* -- planning ---------------------------------------------------------------------------------------------------------------- */

static void set_operand(const kl_view *view, int row_axis, int64_t rows, int64_t columns, bool *transposed, int64_t *leading)
{
    int64_t down = view->stride[row_axis], along = view->stride[row_axis + 1];
    *transposed = !((columns == 1 || along == 1) && (rows == 1 || down >= columns));
    *leading = *transposed ? (columns == 1 ? rows : along) : rows == 1 ? columns : down;
}

/* Axes of the batch that are one for all four: batch stride of the last one, and the others to be gone through. */
enum { A, B, C, D, MATRICES };
typedef struct { int n; int64_t extent[KL_MAX_AXES], stride[MATRICES][KL_MAX_AXES]; } batches;

static batches merged(const kl_contraction *c, const kl_view *const view[MATRICES])
{
    batches b = {0};
    for (int i = 0; i < c->n_batch; i++) {
        if (c->batch[i] == 1)
            continue;
        bool joins = b.n > 0;
        for (int v = 0; joins && v < MATRICES; v++)
            joins = b.stride[v][b.n - 1] == view[v]->stride[i] * c->batch[i];
        if (!joins)
            b.extent[b.n++] = 1;
        b.extent[b.n - 1] *= c->batch[i];
        for (int v = 0; v < MATRICES; v++)
            b.stride[v][b.n - 1] = view[v]->stride[i];
    }
    return b;
}

/* The product, or the first of those that its batch axes make; b: the axes. */
static bool first_product(const kl_contraction *c, const cuda_epilogue *e, cuda_product *p, batches *b)
{
    const kl_expr *a_load = &c->a.exprs[c->a.outputs[0].expr], *b_load = &c->b.exprs[c->b.outputs[0].expr];
    if (!e->fits || !outer_products(c) || !cuda_blas_takes_operand(c, false) || !cuda_blas_takes_operand(c, true))
        return false;
    const kl_view *view[MATRICES] = { &a_load->view, &b_load->view, e->added ? e->added : &e->d->view, &e->d->view };
    *p = (cuda_product){ .m = c->m, .n = c->n, .k = c->k, .batch = 1, .operands = c->dtype, .result = e->result, .adds = e->added, .epilogue = e->bits,
                         .tf32 = c->dtype == IR_F32 && cuda_wants_tf32(), .bias.buffer = -1, .aux.buffer = -1 };
    set_operand(view[A], c->n_batch, c->m, c->k, &p->a_transposed, &p->a_leading);
    set_operand(view[B], c->n_batch, c->k, c->n, &p->b_transposed, &p->b_leading);
    p->c_leading = c->m == 1 ? c->n : view[C]->stride[c->n_batch];
    p->d_leading = c->m == 1 ? c->n : view[D]->stride[c->n_batch];
    *b = merged(c, view);
    if (b->n > 0) {
        p->batch = b->extent[b->n - 1];
        p->a_batch = b->stride[A][b->n - 1], p->b_batch = b->stride[B][b->n - 1], p->c_batch = b->stride[C][b->n - 1], p->d_batch = b->stride[D][b->n - 1];
    }
    int64_t operand = ir_dtype_bytes(c->dtype), result = ir_dtype_bytes(e->result);
    p->a = (cuda_arg){ view[A]->buffer, view[A]->offset * operand };
    p->b = (cuda_arg){ view[B]->buffer, view[B]->offset * operand };
    p->c = (cuda_arg){ view[C]->buffer, view[C]->offset * result };
    p->d = (cuda_arg){ view[D]->buffer, view[D]->offset * result };
    if (e->bias)
        p->bias = (cuda_arg){ e->bias->buffer, e->bias->offset * result };
    if (e->aux)
        p->aux = (cuda_arg){ e->aux->buffer, e->aux->offset * result }, p->aux_leading = e->aux->stride[c->n_batch];
    return true;
}

bool cuda_product_of(const kl_program *program, const kl_contraction *c, cuda_product *product)
{
    cuda_epilogue e = cuda_epilogue_of(program, c);
    batches b;
    return first_product(c, &e, product, &b);
}

bool cuda_plan_contraction(cuda_compiler *compiler, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_contraction *c = &kernel->contraction;
    cuda_epilogue e = cuda_epilogue_of(compiler->program, c);
    cuda_product first;
    batches b;
    bool legal = first_product(c, &e, &first, &b);
    CHECK(legal, "k%d: expected a product that is legal", kernel->id);
    int64_t outer = 1, operand = ir_dtype_bytes(c->dtype), result = ir_dtype_bytes(e.result), size[MATRICES] = { operand, operand, result, result };
    for (int i = 0; i + 1 < b.n; i++)
        outer *= b.extent[i];
    for (int64_t i = 0; i < outer && c->m * c->n * first.batch > 0; i++) {
        cuda_product p = first;
        int64_t rest = i, offset[MATRICES] = {0};
        for (int axis = b.n - 2; axis >= 0; axis--) {
            for (int v = 0; v < MATRICES; v++)
                offset[v] += rest % b.extent[axis] * b.stride[v][axis] * size[v];
            rest /= b.extent[axis];
        }
        p.a.value += offset[A], p.b.value += offset[B], p.c.value += offset[C], p.d.value += offset[D];
        *cuda_step_add(compiler, plan) = (cuda_step){ .is_product = true, .product = p };
    }
    plan->how = base_arena_text(compiler->arena, "cublaslt%s%s%s%s%s%s%s", first.tf32 ? ", tf32" : "", first.adds ? ", sum" : "", e.bits & CUDA_EPILOGUE_BIAS ? ", bias" : "", e.bits & CUDA_EPILOGUE_GELU ? ", gelu" : "",
                                e.bits & CUDA_EPILOGUE_GELU_GRADIENT ? ", gelu gradient" : "", e.bits & CUDA_EPILOGUE_BIAS_GRADIENT ? ", bias gradient" : "",
                                e.bits & CUDA_EPILOGUE_SUMS ? ", operand's sum" : "");
    return true;
}
