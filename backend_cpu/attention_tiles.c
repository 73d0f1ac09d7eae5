/* The pieces of attention between its products, each a function of one record (attention.h): straight loops of vectors
 * over tiles that lie in the first- or second-level cache.
 *
 * Keys are taken two at a time: four vectors (two keys by W queries) keep the arithmetic units busy through the latency
 * of exp, and with bf16 in pairs two keys are what one unit of the next product holds. The loops over keys come three times:
 * for the keys that all lanes see, with masks for those at the diagonal and for a last odd key, and where the diagonal has left
 * the first vector, for the other alone. */
#include "backend_cpu/attention.h"
#include "backend_cpu/expressions.h"
#include "backend_cpu/gemm_emit.h"

#include <float.h>
#include <math.h>

enum { VECTORS = 2, MAX_CARRIED = 8 };

typedef struct {
    emitter e;
    const cpu_attention_class *class;
    bool pairs, across;                              /* operands of products are bf16 in pairs; out and dq lie across */
    int sum_bytes, row_bytes;                        /* of an element of scores, of W of them */
    LLVMTypeRef vector;                              /* of the type of sums */
    value record, scale, scores, gradients, pair_rows, keep, keys, diagonal;       /* of cpu_attention_block */
    value most[VECTORS], lse[VECTORS], delta[VECTORS], keep_scale;
} piece;

static piece begin(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = {.e = begin_function(module, isa, class->dtype, name, "p"), .class = class};
    p.pairs = cpu_gemm_unit_of(isa, class->dtype).k_per_unit == 2;
    p.across = cpu_gemm_has_tiles(isa, class->dtype);
    p.sum_bytes = class->dtype == IR_F64 ? 8 : 4;
    p.row_bytes = VECTORS * p.e.v.lanes * p.sum_bytes;
    p.vector = cpu_vtype(&p.e.v, p.e.sum);
    p.record = LLVMGetParam(p.e.function, 0);
    return p;
}

/* -- values ------------------------------------------------------------------------------------------------------------ */

static value add(const piece *p, value a, value b) { return LLVMBuildFAdd(p->e.v.builder, a, b, ""); }
static value sub(const piece *p, value a, value b) { return LLVMBuildFSub(p->e.v.builder, a, b, ""); }
static value mul(const piece *p, value a, value b) { return LLVMBuildFMul(p->e.v.builder, a, b, ""); }
static value choose(const piece *p, value condition, value a, value b)
{
    return LLVMBuildSelect(p->e.v.builder, condition, a, b, "");
}
static value negate(const piece *p, value a) { return LLVMBuildFNeg(p->e.v.builder, a, ""); }
static value zero(const piece *p) { return LLVMConstNull(p->vector); }

/* What becomes bf16 need not be more exact. */
static value power_of_2(const piece *p, value x)
{
    return p->class->dtype == IR_BF16 ? cpu_vexp2_rough(&p->e.v, x) : cpu_vexp2_below(&p->e.v, x);
}

static value greater_of(const piece *p, value a, value b)          /* NaN in b is passed over: it shows in the sum */
{
    return choose(p, LLVMBuildFCmp(p->e.v.builder, LLVMRealOGT, b, a, ""), b, a);
}

/* A double of the record, in all lanes. */
static value factor_field(const piece *p, size_t offset)
{
    value x = load_field(&p->e, p->record, offset, LLVMDoubleTypeInContext(p->e.v.context));
    return cpu_vsplat(&p->e.v, p->e.sum == LLVMTypeOf(x) ? x : LLVMBuildFPTrunc(p->e.v.builder, x, p->e.sum, ""));
}

/* Vector j of a row of sums. */
static value sums_at(const piece *p, value row, int j)
{
    return advance(&p->e, row, constant(&p->e, j * p->row_bytes / VECTORS));
}
static value load_sums(const piece *p, value row, int j) { return cpu_vload(&p->e.v, p->e.sum, sums_at(p, row, j), NULL); }
static void store_sums(const piece *p, value x, value row, int j) { cpu_vstore(&p->e.v, x, sums_at(p, row, j), NULL); }

static value row_of(const piece *p, value base, value key)
{
    return advance(&p->e, base, imul_constant(&p->e, key, p->row_bytes));
}

/* Elements of memory in the type of sums. */
static value load_elements(const piece *p, value at, value mask)
{
    value x = cpu_vload(&p->e.v, cpu_memory_type(p->e.v.context, p->class->dtype), at, mask);
    return p->class->dtype == IR_BF16 ? cpu_vf32_from_bf16(&p->e.v, x) : x;
}

/* -- loops over keys --------------------------------------------------------------------------------------------------- */

/* A loop that carries values from round to round: they come back as they are inside, and after its end as they are
 * there. */
typedef struct { counted_loop loop; block before; int n; value initial[MAX_CARRIED], inside[MAX_CARRIED]; } carrying_loop;

static carrying_loop begin_carrying(const emitter *e, value from, value to, int64_t step, int n, value *carried)
{
    carrying_loop l = {.before = LLVMGetInsertBlock(e->v.builder), .n = n};
    l.loop = begin_loop(e, from, to, step);
    for (int i = 0; i < n; i++) {
        l.initial[i] = carried[i];
        carried[i] = l.inside[i] = LLVMBuildPhi(e->v.builder, LLVMTypeOf(carried[i]), "");
        LLVMAddIncoming(l.inside[i], &l.initial[i], &l.before, 1);
    }
    return l;
}

static void end_carrying(const emitter *e, carrying_loop *l, value *carried)
{
    block last = LLVMGetInsertBlock(e->v.builder);
    for (int i = 0; i < l->n; i++)
        LLVMAddIncoming(l->inside[i], &carried[i], &last, 1);
    end_loop(e, &l->loop);
    for (int i = 0; i < l->n; i++) {
        value after = LLVMBuildPhi(e->v.builder, LLVMTypeOf(carried[i]), "");
        LLVMAddIncoming(after, (value[]){l->initial[i], carried[i]}, (block[]){l->before, last}, 2);
        carried[i] = after;
    }
}

/* Two keys: mask[q][j] are the lanes of vector j that see key + q; NULL where all do. Vectors before first see none. */
typedef struct { value key, mask[2][VECTORS]; int first; } two_keys;
typedef void visit_keys(piece *p, const two_keys *at, value *carried);

static value lane_numbers(const piece *p, int first)
{
    value index[MAX_LANES];
    for (int i = 0; i < p->e.v.lanes; i++)
        index[i] = LLVMConstInt(p->e.i32, (unsigned)(first + i), 0);
    return LLVMConstVector(index, (unsigned)p->e.v.lanes);
}

/* Lane i sees key if i >= key - diagonal, and if there is such a key. */
static void make_masks(const piece *p, value key, value *mask)
{
    LLVMBuilderRef builder = p->e.v.builder;
    value width = constant(&p->e, VECTORS * p->e.v.lanes), none = constant(&p->e, 0), first = isub(&p->e, key, p->diagonal);
    first = lesser(&p->e, first, width);
    first = choose(p, is_less(&p->e, first, none), none, first);
    first = choose(p, is_less(&p->e, key, p->keys), first, width);
    value firsts = cpu_vsplat(&p->e.v, LLVMBuildTrunc(builder, first, p->e.i32, ""));
    for (int j = 0; j < VECTORS; j++)
        mask[j] = LLVMBuildICmp(builder, LLVMIntUGE, lane_numbers(p, j * p->e.v.lanes), firsts, "");
}

static void each_two_keys(piece *p, int n_carried, value *carried, visit_keys *visit)
{
    const emitter *e = &p->e;
    LLVMBuilderRef builder = e->v.builder;
    value none = constant(e, 0), full = lesser(e, iadd_constant(e, p->diagonal, 1), p->keys);
    full = choose(p, is_less(e, full, none), none, full);
    full = LLVMBuildAnd(builder, full, constant(e, -2), "");
    carrying_loop seen = begin_carrying(e, none, full, 2, n_carried, carried);
    visit(p, &(two_keys){.key = seen.loop.i}, carried);
    end_carrying(e, &seen, carried);

    value from = full;
    for (int first = 0; first < VECTORS; first++) {
        value to = first + 1 < VECTORS ? lesser(e, iadd_constant(e, full, (first + 1) * e->v.lanes), p->keys) : p->keys;
        carrying_loop rest = begin_carrying(e, from, to, 2, n_carried, carried);
        two_keys at = {.key = rest.loop.i, .first = first};
        for (int q = 0; q < 2; q++)
            make_masks(p, iadd_constant(e, at.key, q), at.mask[q]);
        visit(p, &at, carried);
        end_carrying(e, &rest, carried);
        from = to;
    }
}

/* The dropout mask of vector j against a key. */
static value keep_mask(const piece *p, value key, int j)
{
    LLVMBuilderRef builder = p->e.v.builder;
    unsigned lanes = (unsigned)p->e.v.lanes;
    value at = advance(&p->e, p->keep, iadd_constant(&p->e, imul_constant(&p->e, key, VECTORS * 2), j * 2));
    value bits = LLVMBuildTrunc(builder, LLVMBuildLoad2(builder, p->e.i16, at, ""),
                                LLVMIntTypeInContext(p->e.v.context, lanes), "");
    return LLVMBuildBitCast(builder, bits, LLVMVectorType(LLVMInt1TypeInContext(p->e.v.context), lanes), "");
}

/* Pairs of bf16: from lane a on, and from lane b on, of x and y side by side. */
static value interleaved(const piece *p, value x, value y, int a, int b) { return cpu_vinterleaved(&p->e.v, x, y, 1, a, b, 2 * p->e.v.lanes); }

/* x[q][j] of two keys as operand A of a product over keys: in place of their rows, or in pairs [key/2][W]. */
static void store_over_keys(const piece *p, value x[2][VECTORS], value base, value key)
{
    const cpu_vector_env *v = &p->e.v;
    value row = row_of(p, base, p->pairs ? LLVMBuildLShr(v->builder, key, constant(&p->e, 1), "") : key);
    for (int j = 0; j < VECTORS; j++) {
        if (p->pairs) {
            value both = cpu_vbf16_from_two(v, x[0][j], x[1][j]);
            both = interleaved(p, both, LLVMGetPoison(LLVMTypeOf(both)), 0, v->lanes);
            cpu_vstore(v, both, sums_at(p, row, j), NULL);
            continue;
        }
        for (int q = 0; q < 2; q++) {
            value y = p->class->dtype == IR_BF16 ? cpu_vf32_from_bf16(v, cpu_vbf16_from_f32(v, x[q][j])) : x[q][j];
            store_sums(p, y, advance(&p->e, row, constant(&p->e, q * p->row_bytes)), j);
        }
    }
}

/* The same as operand A of a product over queries, which are pairs as they lie: rows of bf16 are half as long, in place
 * still. With pairs not NULL over keys, too, there. */
static void store_over_queries(const piece *p, value x[2][VECTORS], value base, value pairs, value key)
{
    if (!p->pairs) {
        store_over_keys(p, x, base, key);
        return;
    }
    const cpu_vector_env *v = &p->e.v;
    value rows[2];
    for (int q = 0; q < 2; q++) {
        rows[q] = cpu_vbf16_from_two(v, x[q][0], x[q][1]);
        cpu_vstore(v, rows[q], advance(&p->e, base, imul_constant(&p->e, iadd_constant(&p->e, key, q), p->row_bytes / 2)), NULL);
    }
    for (int j = 0; pairs && j < VECTORS; j++) {
        value row = row_of(p, pairs, LLVMBuildLShr(v->builder, key, constant(&p->e, 1), ""));
        value both = interleaved(p, rows[0], rows[1], j * v->lanes, (VECTORS + j) * v->lanes);
        cpu_vstore(v, both, sums_at(p, row, j), NULL);
    }
}

static void load_block(piece *p)
{
    p->scores = POINTER_FIELD(&p->e, p->record, cpu_attention_block, scores);
    p->keys = FIELD(&p->e, p->record, cpu_attention_block, keys);
    p->diagonal = FIELD(&p->e, p->record, cpu_attention_block, diagonal);
    p->scale = factor_field(p, offsetof(cpu_attention_block, scale));
    if (p->class->dropout)
        p->keep = POINTER_FIELD(&p->e, p->record, cpu_attention_block, keep);
}

/* -- softmax ----------------------------------------------------------------------------------------------------------- */

static void visit_maximum(piece *p, const two_keys *at, value *carried)
{
    for (int q = 0; q < 2; q++)
        for (int j = at->first; j < VECTORS; j++) {
            value x = mul(p, load_sums(p, row_of(p, p->scores, iadd_constant(&p->e, at->key, q)), j), p->scale);
            if (at->mask[q][j])
                x = choose(p, at->mask[q][j], x, cpu_vconst(&p->e.v, x, -INFINITY));
            carried[q * VECTORS + j] = greater_of(p, carried[q * VECTORS + j], x);
        }
}

static void visit_exp(piece *p, const two_keys *at, value *carried)
{
    value x[2][VECTORS] = {{zero(p)}, {zero(p)}};
    for (int q = 0; q < 2; q++)
        for (int j = at->first; j < VECTORS; j++) {
            value key = iadd_constant(&p->e, at->key, q), score = load_sums(p, row_of(p, p->scores, key), j);
            /* Rounded as the maximum was, so that no difference is above 0 and the greatest is 0, whatever the scale. */
            value y = power_of_2(p, sub(p, mul(p, score, p->scale), p->most[j]));
            if (at->mask[q][j])
                y = choose(p, at->mask[q][j], y, zero(p));
            carried[q * VECTORS + j] = add(p, carried[q * VECTORS + j], y);
            x[q][j] = p->class->dropout ? choose(p, keep_mask(p, key, j), y, zero(p)) : y;
        }
    store_over_keys(p, x, p->scores, at->key);
}

/* outputs[panel][row][:] *= factors[row], for what was summed up against a smaller maximum; where queries lie across,
 * *= factors[:]. */
static void emit_rescale(piece *p)
{
    const emitter *e = &p->e;
    value outputs = POINTER_FIELD(e, p->record, cpu_attention_block, outputs),
          factors = POINTER_FIELD(e, p->record, cpu_attention_block, factors);
    value panels = FIELD(e, p->record, cpu_attention_block, panels),
          panel_bytes = FIELD(e, p->record, cpu_attention_block, panel_bytes);
    counted_loop over_panels = begin_loop(e, constant(e, 0), panels, 1);
    value panel = advance(e, outputs, imul(e, over_panels.i, panel_bytes));
    counted_loop rows = begin_loop(e, constant(e, 0), constant(e, VECTORS * e->v.lanes), 1);
    value factor = LLVMBuildLoad2(e->v.builder, e->sum, advance(e, factors, imul_constant(e, rows.i, p->sum_bytes)), "");
    value row = row_of(p, panel, rows.i);
    for (int j = 0; j < VECTORS; j++) {
        value sums = load_sums(p, row, j);
        store_sums(p, mul(p, sums, p->across ? load_sums(p, factors, j) : cpu_vsplat(&e->v, factor)), row, j);
    }
    end_loop(e, &rows);
    end_loop(e, &over_panels);
}

void cpu_attention_emit_softmax(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    LLVMBuilderRef builder = e->v.builder;
    load_block(&p);
    value most = POINTER_FIELD(e, p.record, cpu_attention_block, most),
          sum = POINTER_FIELD(e, p.record, cpu_attention_block, sum);
    value factors = POINTER_FIELD(e, p.record, cpu_attention_block, factors),
          first = FIELD(e, p.record, cpu_attention_block, first);
    block start = new_block(e), again = new_block(e), go_on = new_block(e), rescale = new_block(e), end = new_block(e);
    value carried[2 * VECTORS];

    /* The maximum begins with the least finite number, from which even -inf has a distance. */
    for (int i = 0; i < 2 * VECTORS; i++)
        carried[i] = cpu_vconst(&e->v, zero(&p), class->dtype == IR_F64 ? -DBL_MAX : -FLT_MAX);
    each_two_keys(&p, 2 * VECTORS, carried, visit_maximum);
    for (int j = 0; j < VECTORS; j++)
        p.most[j] = greater_of(&p, carried[j], carried[VECTORS + j]);
    LLVMBuildCondBr(builder, LLVMBuildICmp(builder, LLVMIntNE, first, constant(e, 0), ""), start, again);

    go_on_at(e, again);
    value raised[VECTORS], new_most[VECTORS], old_sum[VECTORS], any = NULL;
    LLVMTypeRef bits = LLVMIntTypeInContext(e->v.context, (unsigned)e->v.lanes);
    for (int j = 0; j < VECTORS; j++) {
        value old = load_sums(&p, most, j);
        new_most[j] = greater_of(&p, old, p.most[j]);
        value factor = cpu_vexp2_below(&e->v, sub(&p, old, new_most[j]));
        old_sum[j] = mul(&p, load_sums(&p, sum, j), factor);
        store_sums(&p, factor, factors, j);
        raised[j] = LLVMBuildBitCast(builder, LLVMBuildFCmp(builder, LLVMRealUNE, old, new_most[j], ""), bits, "");
        any = any ? LLVMBuildOr(builder, any, raised[j], "") : raised[j];
    }
    block from_again = LLVMGetInsertBlock(builder);
    LLVMBuildCondBr(builder, LLVMBuildICmp(builder, LLVMIntNE, any, LLVMConstNull(bits), ""), rescale, go_on);
    go_on_at(e, rescale);
    emit_rescale(&p);
    block from_rescale = LLVMGetInsertBlock(builder);
    LLVMBuildBr(builder, go_on);
    go_on_at(e, start);
    LLVMBuildBr(builder, go_on);

    go_on_at(e, go_on);
    block from[] = {start, from_again, from_rescale};
    for (int j = 0; j < VECTORS; j++) {
        value begun = LLVMBuildPhi(builder, p.vector, ""), summed = LLVMBuildPhi(builder, p.vector, "");
        LLVMAddIncoming(begun, (value[]){p.most[j], new_most[j], new_most[j]}, from, COUNT_OF(from));
        LLVMAddIncoming(summed, (value[]){zero(&p), old_sum[j], old_sum[j]}, from, COUNT_OF(from));
        p.most[j] = begun, carried[j] = summed, carried[VECTORS + j] = zero(&p);
    }
    for (int j = 0; j < VECTORS; j++)
        store_sums(&p, p.most[j], most, j);
    each_two_keys(&p, 2 * VECTORS, carried, visit_exp);
    for (int j = 0; j < VECTORS; j++)
        store_sums(&p, add(&p, carried[j], carried[VECTORS + j]), sum, j);
    LLVMBuildBr(builder, end);
    go_on_at(e, end);
    end_function(&p.e);
}

void cpu_attention_emit_close(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    value most = POINTER_FIELD(e, p.record, cpu_attention_close, most),
          sum = POINTER_FIELD(e, p.record, cpu_attention_close, sum);
    value factors = POINTER_FIELD(e, p.record, cpu_attention_close, factors),
          lse = POINTER_FIELD(e, p.record, cpu_attention_close, lse);
    value keep_scale = factor_field(&p, offsetof(cpu_attention_close, keep_scale));
    for (int j = 0; j < VECTORS; j++) {
        value total = load_sums(&p, sum, j);
        store_sums(&p, LLVMBuildFDiv(e->v.builder, keep_scale, total, ""), factors, j);
        value natural = mul(&p, load_sums(&p, most, j), cpu_vconst(&e->v, total, M_LN2));
        store_sums(&p, add(&p, natural, cpu_vlog(&e->v, total)), lse, j);
    }
    end_function(&p.e);
}

/* -- the gradient of softmax ------------------------------------------------------------------------------------------- */

/* p = exp(score - lse), as a power of 2; the gradient of the score is p (dp - delta), where dp is that of p before dropout. */
static void visit_gradient(piece *p, const two_keys *at, value *carried)
{
    (void)carried;
    value probability[2][VECTORS] = {{zero(p)}, {zero(p)}}, gradient[2][VECTORS] = {{zero(p)}, {zero(p)}};
    for (int q = 0; q < 2; q++)
        for (int j = at->first; j < VECTORS; j++) {
            value key = iadd_constant(&p->e, at->key, q), score = load_sums(p, row_of(p, p->scores, key), j);
            value dp = load_sums(p, row_of(p, p->gradients, key), j), mask = at->mask[q][j];
            value x = power_of_2(p, cpu_vfma(&p->e.v, score, p->scale, negate(p, p->lse[j])));
            value kept = p->class->dropout ? keep_mask(p, key, j) : NULL;
            if (kept)
                dp = choose(p, kept, mul(p, dp, p->keep_scale), zero(p));
            value dx = mul(p, x, sub(p, dp, p->delta[j]));
            if (mask)
                x = choose(p, mask, x, zero(p)), dx = choose(p, mask, dx, zero(p));
            probability[q][j] = kept ? choose(p, kept, x, zero(p)) : x;
            gradient[q][j] = dx;
        }
    store_over_queries(p, probability, p->scores, NULL, at->key);
    store_over_queries(p, gradient, p->gradients, p->pair_rows, at->key);
}

/* lse is rounded a few times, so that probabilities are off by a factor of 2 from scores of some millions on, whatever is done here; at
 * 2^31 they would be infinite. There lse is raised by as much as it may be too small. */
static value at_least_the_greatest(const piece *p, value lse)
{
    const cpu_vector_env *v = &p->e.v;
    value size = cpu_vabs(v, lse), far = LLVMBuildFCmp(v->builder, LLVMRealOGT, size, cpu_vconst(v, size, 0x1p24), "");
    return choose(p, far, cpu_vfma(v, size, cpu_vconst(v, size, 0x1p-21), lse), lse);
}

void cpu_attention_emit_gradient(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    load_block(&p);
    p.gradients = POINTER_FIELD(e, p.record, cpu_attention_block, gradients);
    p.pair_rows = POINTER_FIELD(e, p.record, cpu_attention_block, pairs);
    value lse = POINTER_FIELD(e, p.record, cpu_attention_block, lse),
          delta = POINTER_FIELD(e, p.record, cpu_attention_block, delta);
    if (class->dropout)
        p.keep_scale = factor_field(&p, offsetof(cpu_attention_block, keep_scale));
    for (int j = 0; j < VECTORS; j++)
        p.lse[j] = at_least_the_greatest(&p, mul(&p, load_sums(&p, lse, j), cpu_vconst(&e->v, zero(&p), M_LOG2E))), p.delta[j] = load_sums(&p, delta, j);
    each_two_keys(&p, 0, NULL, visit_gradient);
    end_function(&p.e);
}

/* -- rows -------------------------------------------------------------------------------------------------------------- */

/* Columns from 0 to columns, so many at a time: whole steps, then what is left under a mask. left: the columns from this one on; NULL: all
 * of a step. */
typedef void visit_columns(piece *p, value column, value left, value *carried, void *context);

static void each_column(piece *p, value columns, int step, int n, value *carried, visit_columns *visit, void *context)
{
    const emitter *e = &p->e;
    value whole = LLVMBuildAnd(e->v.builder, columns, constant(e, -step), "");
    carrying_loop full = begin_carrying(e, constant(e, 0), whole, step, n, carried);
    visit(p, full.loop.i, NULL, carried, context);
    end_carrying(e, &full, carried);
    carrying_loop rest = begin_carrying(e, whole, columns, step, n, carried);
    visit(p, rest.loop.i, isub(e, columns, rest.loop.i), carried, context);
    end_carrying(e, &rest, carried);
}

/* The lanes from first on that are left; NULL: all. */
static value mask_of(const piece *p, const cpu_vector_env *v, value left, int first)
{
    value count = left && first > 0 ? iadd_constant(&p->e, left, -first) : left, none = constant(&p->e, 0);
    if (left && first > 0)
        count = choose(p, is_less(&p->e, count, none), none, count);
    return left ? cpu_vmask(v, count) : NULL;
}

typedef struct { value from, panel_bytes, to, row_stride, factors, factor_stride, rows; } stored_rows;

/* W columns of all rows. Two vectors of sums are one of bf16. */
static void store_columns(piece *p, value column, value left, value *carried, void *context)
{
    (void)carried;
    const emitter *e = &p->e;
    const stored_rows *s = context;
    ir_dtype stored = p->class->stored;
    int lanes = e->v.lanes, bytes = ir_dtype_bytes(stored);
    bool both = stored == IR_BF16 && p->pairs;
    cpu_vector_env wide = e->v;
    wide.lanes *= 2;
    value panel = LLVMBuildLShr(e->v.builder, column, constant(e, __builtin_ctz((unsigned)(VECTORS * lanes))), "");
    value from = advance(e, s->from, imul(e, panel, s->panel_bytes)), to = advance(e, s->to, imul_constant(e, column, bytes));
    value mask[VECTORS], all = both ? mask_of(p, &wide, left, 0) : NULL;
    for (int j = 0; j < VECTORS && !both; j++)
        mask[j] = mask_of(p, &e->v, left, j * lanes);
    counted_loop rows = begin_loop(e, constant(e, 0), s->rows, 1);
    value factor = LLVMBuildLoad2(e->v.builder, e->sum, advance(e, s->factors, imul(e, rows.i, s->factor_stride)), "");
    value row = row_of(p, from, rows.i), at = advance(e, to, imul(e, rows.i, s->row_stride)), x[VECTORS], factors = cpu_vsplat(&e->v, factor);
    for (int j = 0; j < VECTORS; j++)
        x[j] = mul(p, load_sums(p, row, j), factors);
    if (both)
        cpu_vstore(&wide, cpu_vbf16_from_two(&e->v, x[0], x[1]), at, all);
    for (int j = 0; j < VECTORS && !both; j++) {
        value y = stored == IR_BF16 ? cpu_vbf16_from_f32(&e->v, x[j]) : x[j];
        cpu_vstore(&e->v, y, advance(e, at, constant(e, j * lanes * bytes)), mask[j]);
    }
    end_loop(e, &rows);
}

void cpu_attention_emit_store(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    CHECK(class->stored == IR_BF16 || cpu_memory_type(e->v.context, class->stored) == e->sum,
          "expected %s to be stored as it is or as bf16, got %s", ir_dtype_name(class->dtype),
          ir_dtype_name(class->stored));
    stored_rows rows = {
        POINTER_FIELD(e, p.record, cpu_attention_store, from), FIELD(e, p.record, cpu_attention_store, panel_bytes),
        POINTER_FIELD(e, p.record, cpu_attention_store, to),
        imul_constant(e, FIELD(e, p.record, cpu_attention_store, row_stride), ir_dtype_bytes(class->stored)),
        POINTER_FIELD(e, p.record, cpu_attention_store, factors),
        imul_constant(e, FIELD(e, p.record, cpu_attention_store, factor_stride), p.sum_bytes),
        FIELD(e, p.record, cpu_attention_store, rows) };
    each_column(&p, FIELD(e, p.record, cpu_attention_store, columns), VECTORS * e->v.lanes, 0, NULL, store_columns, &rows);
    end_function(&p.e);
}

/* Squares of as many columns and rows as there are lanes: columns lie down in memory, and are transposed. */
void cpu_attention_emit_store_across(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    int lanes = e->v.lanes;
    value from = POINTER_FIELD(e, p.record, cpu_attention_store, from),
          to = POINTER_FIELD(e, p.record, cpu_attention_store, to);
    value n_rows = FIELD(e, p.record, cpu_attention_store, rows), n_columns = FIELD(e, p.record, cpu_attention_store, columns);
    value factors = POINTER_FIELD(e, p.record, cpu_attention_store, factors), none = constant(e, 0);
    value row_stride = imul_constant(e, FIELD(e, p.record, cpu_attention_store, row_stride), ir_dtype_bytes(class->stored));
    counted_loop rows = begin_loop(e, none, n_rows, lanes);
    value row_offset = imul_constant(e, rows.i, p.sum_bytes), factor = cpu_vload(&e->v, e->sum, advance(e, factors, row_offset), NULL);
    counted_loop columns = begin_loop(e, none, n_columns, lanes);
    value square[MAX_LANES], at = advance(e, row_of(&p, from, columns.i), row_offset);
    for (int i = 0; i < lanes; i++)
        square[i] = mul(&p, cpu_vload(&e->v, e->sum, row_of(&p, at, constant(e, i)), NULL), factor);
    emit_transpose(e, square);
    value line = advance(e, to, imul(e, rows.i, row_stride));
    line = advance(e, line, imul_constant(e, columns.i, ir_dtype_bytes(class->stored)));
    value left = isub(e, n_columns, columns.i);
    for (int i = 0; i < lanes; i++) {
        value exists = is_less(e, iadd_constant(e, rows.i, i), n_rows), mask = cpu_vmask(&e->v, choose(&p, exists, left, none));
        value x = class->stored == IR_BF16 ? cpu_vbf16_from_f32(&e->v, square[i]) : square[i];
        cpu_vstore(&e->v, x, line, mask);
        line = advance(e, line, row_stride);
    }
    end_loop(e, &columns);
    end_loop(e, &rows);
    end_function(&p.e);
}

typedef struct { value a, b; } two_rows;

static void dot_columns(piece *p, value column, value left, value *carried, void *context)
{
    const emitter *e = &p->e;
    const two_rows *rows = context;
    value offset = imul_constant(e, column, ir_dtype_bytes(p->class->dtype)), a = advance(e, rows->a, offset), b = advance(e, rows->b, offset);
    cpu_vector_env v = e->v;
    v.lanes *= p->pairs ? 2 : 1;
    value mask = mask_of(p, &v, left, 0);
    value x = p->pairs ? cpu_vload(&v, e->i16, a, mask) : load_elements(p, a, mask);
    value y = p->pairs ? cpu_vload(&v, e->i16, b, mask) : load_elements(p, b, mask);
    carried[0] = p->pairs ? cpu_vdot_pairs(&v, x, y, carried[0]) : cpu_vfma(&v, x, y, carried[0]);
}

void cpu_attention_emit_dots(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    int bytes = ir_dtype_bytes(class->dtype);
    value a = POINTER_FIELD(e, p.record, cpu_attention_dots, a), b = POINTER_FIELD(e, p.record, cpu_attention_dots, b);
    value a_stride = imul_constant(e, FIELD(e, p.record, cpu_attention_dots, a_stride), bytes);
    value b_stride = imul_constant(e, FIELD(e, p.record, cpu_attention_dots, b_stride), bytes);
    value columns = FIELD(e, p.record, cpu_attention_dots, columns),
          to = POINTER_FIELD(e, p.record, cpu_attention_dots, to);
    counted_loop rows = begin_loop(e, constant(e, 0), FIELD(e, p.record, cpu_attention_dots, rows), 1);
    two_rows at = {advance(e, a, imul(e, rows.i, a_stride)), advance(e, b, imul(e, rows.i, b_stride))};
    value sum = zero(&p);
    each_column(&p, columns, e->v.lanes * (p.pairs ? 2 : 1), 1, &sum, dot_columns, &at);
    value dot = cpu_vsum(&e->v, sum);
    LLVMBuildStore(e->v.builder, dot, advance(e, to, imul_constant(e, rows.i, p.sum_bytes)));
    end_loop(e, &rows);
    end_function(&p.e);
}

/* -- dropout ----------------------------------------------------------------------------------------------------------- */

/* Philox4x32-10 (ir/philox.c) in 64-bit lanes, of which only the lower halves count: so a product of 32 bits by 32 is one
 * instruction, and its upper half one shift. */
static void philox(const piece *p, value counter, value key_low, value key_high, value third, value fourth, value word[4])
{
    LLVMBuilderRef builder = p->e.v.builder;
    value low32 = cpu_vsplat(&p->e.v, constant(&p->e, 0xffffffff)), shift = cpu_vsplat(&p->e.v, constant(&p->e, 32));
    value c[4] = {counter, LLVMBuildLShr(builder, counter, shift, ""), cpu_vsplat(&p->e.v, third),
                  cpu_vsplat(&p->e.v, fourth)};
    value m0 = cpu_vsplat(&p->e.v, constant(&p->e, 0xD2511F53)), m1 = cpu_vsplat(&p->e.v, constant(&p->e, 0xCD9E8D57));
    for (int round = 0; round < 10; round++) {
        value p0 = LLVMBuildMul(builder, LLVMBuildAnd(builder, c[0], low32, ""), m0, "");
        value p1 = LLVMBuildMul(builder, LLVMBuildAnd(builder, c[2], low32, ""), m1, "");
        value k0 = cpu_vsplat(&p->e.v, iadd_constant(&p->e, key_low, (int64_t)round * 0x9E3779B9));
        value k1 = cpu_vsplat(&p->e.v, iadd_constant(&p->e, key_high, (int64_t)round * 0xBB67AE85));
        value x = LLVMBuildXor(builder, LLVMBuildXor(builder, LLVMBuildLShr(builder, p1, shift, ""), c[1], ""), k0, "");
        value y = LLVMBuildXor(builder, LLVMBuildXor(builder, LLVMBuildLShr(builder, p0, shift, ""), c[3], ""), k1, "");
        c[0] = x, c[1] = p1, c[2] = y, c[3] = p0;
    }
    for (int i = 0; i < 4; i++)
        word[i] = LLVMBuildAnd(builder, c[i], low32, "");
}

static value word_field(const piece *p, size_t offset)
{
    return LLVMBuildZExt(p->e.v.builder, load_field(&p->e, p->record, offset, p->e.i32), p->e.i64, "");
}

/* A lane's elements are consecutive, key by key, but begin at any word of a block of four: words of this block and the next
 * are moved up lane by lane, first by two words, then by one. */
void cpu_attention_emit_keep(LLVMModuleRef module, cpu_isa isa, const cpu_attention_class *class, const char *name)
{
    piece p = begin(module, isa, class, name);
    const emitter *e = &p.e;
    LLVMBuilderRef builder = e->v.builder;
    unsigned lanes = (unsigned)e->v.lanes;
    value keep = POINTER_FIELD(e, p.record, cpu_attention_keep, keep), keys = FIELD(e, p.record, cpu_attention_keep, keys);
    value first = FIELD(e, p.record, cpu_attention_keep, first),
          stride = FIELD(e, p.record, cpu_attention_keep, query_stride);
    value seed_low = word_field(&p, offsetof(cpu_attention_keep, seed)),
          seed_high = word_field(&p, offsetof(cpu_attention_keep, seed) + 4);
    value site = word_field(&p, offsetof(cpu_attention_keep, site)),
          counter = word_field(&p, offsetof(cpu_attention_keep, counter));
    value threshold = cpu_vsplat(&e->v, word_field(&p, offsetof(cpu_attention_keep, threshold)));
    LLVMTypeRef i64s = cpu_vtype(&e->v, e->i64), bits = LLVMIntTypeInContext(e->v.context, lanes);

    counted_loop vectors = begin_loop(e, constant(e, 0), constant(e, VECTORS), 1);
    value query = LLVMBuildZExt(builder, lane_numbers(&p, 0), i64s, "");
    query = iadd(e, query, cpu_vsplat(&e->v, imul_constant(e, vectors.i, lanes)));
    value element = imul(e, query, cpu_vsplat(&e->v, stride));
    element = iadd(e, cpu_vsplat(&e->v, first), element);
    value from = LLVMBuildLShr(builder, element, cpu_vconst(&e->v, element, 2), "");
    value by[2];                                     /* lanes that begin at an odd word, and in the upper two */
    for (int i = 0; i < 2; i++) {
        value bit = LLVMBuildAnd(builder, element, cpu_vconst(&e->v, element, 1 << i), "");
        by[i] = LLVMBuildICmp(builder, LLVMIntNE, bit, LLVMConstNull(i64s), "");
    }

    value words[5] = {from};                         /* the next block's number, and this block's words */
    philox(&p, from, seed_low, seed_high, site, counter, words + 1);
    carrying_loop groups = begin_carrying(e, constant(e, 0), keys, 4, COUNT_OF(words), words);
    value word[8], next = iadd(e, words[0], cpu_vconst(&e->v, from, 1));
    for (int i = 0; i < 4; i++)
        word[i] = words[1 + i];
    philox(&p, next, seed_low, seed_high, site, counter, word + 4);
    words[0] = next;
    for (int i = 0; i < 4; i++)
        words[1 + i] = word[4 + i];
    for (int i = 0; i < 5; i++)
        word[i] = choose(&p, by[1], word[i + 2], word[i]);
    for (int i = 0; i < 4; i++) {
        value x = choose(&p, by[0], word[i + 1], word[i]);
        value kept = LLVMBuildBitCast(builder, LLVMBuildICmp(builder, LLVMIntUGE, x, threshold, ""), bits, "");
        kept = lanes == 16 ? kept : LLVMBuildZExt(builder, kept, e->i16, "");
        value place = imul_constant(e, iadd_constant(e, groups.loop.i, i), VECTORS * 2);
        place = iadd(e, place, imul_constant(e, vectors.i, 2));
        LLVMBuildStore(builder, kept, advance(e, keep, place));
    }
    end_carrying(e, &groups, words);
    end_loop(e, &vectors);
    end_function(&p.e);
}
