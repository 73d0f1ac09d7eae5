/* Attention of the kernel list's interpreter: the formulas of composites.c on one head after another, in f64, rounded to the operands'
 * dtype where those cast: the weights before they meet v, and the gradient of the scores.
 *
 *     s = scale q k^T, -inf where masked      lse = log sum exp s      p = exp(s - lse)      out = drop(p) v
 *     dv = drop(p)^T dout      ds = p (drop(dout v^T) - sum(dout out) + dlse)      dq = scale ds k      dk = scale ds^T q */
#include "ir/run_kernels.h"

#include <math.h>
#include <string.h>

/* One head: matrices of doubles, row-major. */
typedef struct {
    const kl_machine *machine;
    const kl_attention *a;
    int64_t batch, head;
    double *q, *k, *v, *out, *lse, *dout, *dlse;
    double *p, *dropped, *ds;             /* rows x keys */
    double *product;                      /* max(rows, keys) x head_dim */
} head;

static double rounded(ir_dtype dtype, double x)
{
    return dtype == IR_F64 ? x : dtype == IR_F32 ? (double)(float)x : (double)ir_bf16_to_f32(ir_f32_to_bf16((float)x));
}

static char *element(const head *h, const kl_view *view, ir_dtype dtype, int64_t row, int64_t column)
{
    int64_t at = view->offset + h->batch * view->stride[0] + h->head * view->stride[1] + row * view->stride[2] + column * view->stride[3];
    return kl_address(h->machine, view->buffer) + at * ir_dtype_bytes(dtype);
}

static void read_matrix(const head *h, const kl_view *view, ir_dtype dtype, int64_t rows, int64_t columns, double *to)
{
    if (view->buffer < 0)
        return;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const char *at = element(h, view, dtype, i, j);
            float narrow;
            uint16_t half;
            if (dtype == IR_F64) {
                memcpy(&to[i * columns + j], at, 8);
            } else if (dtype == IR_F32) {
                memcpy(&narrow, at, 4);
                to[i * columns + j] = narrow;
            } else {
                memcpy(&half, at, 2);
                to[i * columns + j] = ir_bf16_to_f32(half);
            }
        }
}

static void write_matrix(const head *h, const kl_view *view, ir_dtype dtype, int64_t rows, int64_t columns, const double *from)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            char *at = element(h, view, dtype, i, j);
            double x = from[i * columns + j];
            float narrow = (float)x;
            uint16_t half = ir_f32_to_bf16(narrow);
            memcpy(at, dtype == IR_F64 ? (void *)&x : dtype == IR_F32 ? (void *)&narrow : (void *)&half, (size_t)ir_dtype_bytes(dtype));
        }
}

/* c = factor a b, a of m x k, b of k x n; at and bt say which are given transposed. */
static void multiply(double *c, const double *a, bool at, const double *b, bool bt, int64_t m, int64_t n, int64_t k, double factor)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (at ? a[p * m + i] : a[i * k + p]) * (bt ? b[j * k + p] : b[p * n + j]);
            c[i * n + j] = factor * sum;
        }
}

/* Row-major element i of [batch, head, row, key] is kept where its random word is at least dropout * 2^32. */
static void drop(const head *h, const double *from, double *to)
{
    const kl_attention *a = h->a;
    int64_t count = a->rows * a->keys;
    memcpy(to, from, sizeof *to * (size_t)count);
    if (a->dropout == 0)
        return;
    uint32_t key[2], counter[4] = { 0, 0, a->site, 0 }, word[4];
    const char *seed = kl_address(h->machine, a->seed.buffer);
    memcpy(&key[0], seed + 4 * a->seed.offset, 4);
    memcpy(&key[1], seed + 4 * (a->seed.offset + a->seed.stride[0]), 4);
    memcpy(&counter[3], kl_address(h->machine, a->counter.buffer) + 4 * a->counter.offset, 4);
    double threshold = floor(a->dropout * 0x1p32);
    for (int64_t i = 0; i < count; i++) {
        uint64_t at = (uint64_t)((h->batch * a->heads + h->head) * count + i);
        counter[0] = (uint32_t)(at >> 2);
        counter[1] = (uint32_t)(at >> 34);
        ir_philox(counter, key, word);
        to[i] = word[at & 3] >= threshold ? from[i] / (1 - a->dropout) : 0;
    }
}

static void scores(const head *h)
{
    const kl_attention *a = h->a;
    multiply(h->p, h->q, false, h->k, true, a->rows, a->keys, a->head_dim, a->scale);
    for (int64_t i = 0; i < a->rows && a->causal; i++)
        for (int64_t j = 0; j < a->keys; j++)
            if (j > i + a->keys - a->rows)
                h->p[i * a->keys + j] = -INFINITY;
}

static void weights_from_lse(const head *h)
{
    for (int64_t i = 0; i < h->a->rows; i++)
        for (int64_t j = 0; j < h->a->keys; j++)
            h->p[i * h->a->keys + j] = exp(h->p[i * h->a->keys + j] - h->lse[i]);
}

static void round_all(const head *h, double *x)
{
    for (int64_t i = 0; i < h->a->rows * h->a->keys; i++)
        x[i] = rounded(h->a->dtype, x[i]);
}

static void forward(const head *h, ir_dtype wide)
{
    const kl_attention *a = h->a;
    for (int64_t i = 0; i < a->rows; i++) {
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < a->keys; j++)
            most = fmax(most, h->p[i * a->keys + j]);
        for (int64_t j = 0; j < a->keys; j++)
            sum += exp(h->p[i * a->keys + j] - most);
        h->lse[i] = most + log(sum);
    }
    weights_from_lse(h);
    drop(h, h->p, h->dropped);
    round_all(h, h->dropped);
    multiply(h->product, h->dropped, false, h->v, false, a->rows, a->head_dim, a->keys, 1);
    write_matrix(h, &a->out, a->dtype, a->rows, a->head_dim, h->product);
    write_matrix(h, &a->lse, wide, a->rows, 1, h->lse);
}

static void backward(const head *h)
{
    const kl_attention *a = h->a;
    weights_from_lse(h);
    drop(h, h->p, h->dropped);
    round_all(h, h->dropped);
    multiply(h->product, h->dropped, true, h->dout, false, a->keys, a->head_dim, a->rows, 1);
    write_matrix(h, &a->dv, a->grad_dtype, a->keys, a->head_dim, h->product);

    multiply(h->dropped, h->dout, false, h->v, true, a->rows, a->keys, a->head_dim, 1);
    drop(h, h->dropped, h->ds);
    for (int64_t i = 0; i < a->rows; i++) {
        double delta = -h->dlse[i];
        for (int64_t d = 0; d < a->head_dim; d++)
            delta += h->dout[i * a->head_dim + d] * h->out[i * a->head_dim + d];
        for (int64_t j = 0; j < a->keys; j++)
            h->ds[i * a->keys + j] = h->p[i * a->keys + j] * (h->ds[i * a->keys + j] - delta);
    }
    round_all(h, h->ds);
    multiply(h->product, h->ds, false, h->k, false, a->rows, a->head_dim, a->keys, a->scale);
    write_matrix(h, &a->dq, a->grad_dtype, a->rows, a->head_dim, h->product);
    multiply(h->product, h->ds, true, h->q, false, a->keys, a->head_dim, a->rows, a->scale);
    write_matrix(h, &a->dk, a->grad_dtype, a->keys, a->head_dim, h->product);
}

void kl_run_attention(const kl_machine *machine, const kl_attention *a)
{
    head h = { .machine = machine, .a = a };
    base_arena *arena = base_arena_new();
    ir_dtype wide = a->dtype == IR_F64 ? IR_F64 : IR_F32;
    int64_t of_rows = a->rows * a->head_dim, of_keys = a->keys * a->head_dim, square = a->rows * a->keys;
    h.q = ARENA_NEW(arena, double, of_rows);
    h.k = ARENA_NEW(arena, double, of_keys);
    h.v = ARENA_NEW(arena, double, of_keys);
    h.out = ARENA_NEW(arena, double, of_rows);
    h.dout = ARENA_NEW(arena, double, of_rows);
    h.lse = ARENA_NEW(arena, double, a->rows);
    h.dlse = ARENA_NEW(arena, double, a->rows);
    h.p = ARENA_NEW(arena, double, square);
    h.dropped = ARENA_NEW(arena, double, square);
    h.ds = ARENA_NEW(arena, double, square);
    h.product = ARENA_NEW(arena, double, MAX(of_rows, of_keys));
    for (h.batch = 0; h.batch < a->batch; h.batch++)
        for (h.head = 0; h.head < a->heads; h.head++) {
            read_matrix(&h, &a->q, a->dtype, a->rows, a->head_dim, h.q);
            read_matrix(&h, &a->k, a->dtype, a->keys, a->head_dim, h.k);
            read_matrix(&h, &a->v, a->dtype, a->keys, a->head_dim, h.v);
            scores(&h);
            if (!a->backward) {
                forward(&h, wide);
                continue;
            }
            read_matrix(&h, &a->out, a->dtype, a->rows, a->head_dim, h.out);
            read_matrix(&h, &a->lse, wide, a->rows, 1, h.lse);
            read_matrix(&h, &a->dout, a->dtype, a->rows, a->head_dim, h.dout);
            read_matrix(&h, &a->dlse, wide, a->rows, 1, h.dlse);
            backward(&h);
        }
    base_arena_free(arena);
}
