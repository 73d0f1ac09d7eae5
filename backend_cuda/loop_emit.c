/* A loop's kernel as CUDA C. Its form, where rows have sums of their own and over all rows:
 *
 *     for (row ...) {                                  each group its rows
 *         row values
 *         float a3 = 0;                                level 0: what is summed along the row
 *         for (it ...) { columns; e1, e2; a3 += e2 }
 *         const float e3 = rax_warp_sum_f32(a3);
 *         for (it ...) { columns; e1, e4; stores; s0[it][j] += e4 }         the last level: outputs
 *     }
 *     sums of the groups, added in order, to workspace
 *
 * In a list the same text serves loops of any extents: bx is the number of the block in its own loop.
 * The last level goes back along a row that is read again: what was read last is the likeliest to be in the cache, and what is in shared memory was read first.
 * A level computes anew what it needs of the levels before. The sum of exp(x - m), m being the maximum of x along the row, is of m's level: it is made of what m is so far, and
 * rescaled where m grows (Milakov and Gimelshein, Online normalizer calculation for softmax). What it reads again the thread has kept of its row, in registers or in shared
 * memory, where there is room; the rest is read from the cache. Sums over rows of which a thread has one place take a few rows for a batch. */
#include "backend_cuda/loops.h"

#include <stdio.h>

static const char *number(const cuda_loop *l, int64_t value) { return cuda_number(l->x->writer, value, l->x->index_type); }

/* x2, x1, x0 from a number that counts through axes from..to, the last fastest. */
static void write_indices(const cuda_loop *l, base_text *text, const char *indent, const char *counter, int from, int to)
{
    int64_t stride = 1;
    for (int i = to - 1; i >= from; i--) {
        base_text_add(text, "%sconst %s x%d = %s", indent, l->x->index_type, i, counter);
        if (i < to - 1)
            base_text_add(text, " / %s", number(l, stride));
        if (i > from)
            base_text_add(text, " %% %s", number(l, l->loop.extent[i]));
        base_text_add(text, ";\n");
        stride *= MAX(l->loop.extent[i], 1);
    }
}

/* -- passes ----------------------------------------------------------------------------------------------------------------- */

/* A pass goes along a row by batches of places, which it reads before it computes of them:
 *
 *     for (batch ...) {
 *         rax_f32x4 h0[BATCH];
 *         for (b ...) { columns; h0[b] = memory }
 *         for (b ...) { columns; e0 = h0[b]; ... }
 *     }
 *
 * or, where the row is in registers, all of which is read before the first, by iterations. */
static void begin_columns(cuda_loop *l, base_text *text, int batch)
{
    const char *type = l->x->index_type;
    if (l->unrolled)
        base_text_add(text, "        RAX_UNROLL\n        for (int it = 0; it < ITERATIONS; it++) {\n");
    else if (batch > 1)
        base_text_add(text, "        RAX_UNROLL\n        for (int b = 0; b < %d; b++) {\n            const int it = batch * %d + b;\n", batch, batch);
    else
        base_text_add(text, "        {\n");
    base_text_add(text, "            const %s column = first_column + ((%s)it * GROUP + lane) * V;\n            if (column < end_column) {\n", type, type);
    write_indices(l, text, "                ", "column", l->loop.n_outer, l->loop.n_axes);
    cuda_forget_place(l->x);
}

static void end_columns(cuda_loop *l, base_text *text)
{
    base_text_add(text, "            }\n        }\n");
    cuda_forget_place(l->x);
}

static void read_ahead(cuda_loop *l, base_text *text, int batch)
{
    bool any = false;
    for (int i = 0; i < l->loop.n_exprs; i++)
        any |= l->x->held[i];
    if (!any)
        return;
    begin_columns(l, text, batch);
    for (int i = 0; i < l->loop.n_exprs; i++)
        if (l->x->held[i])
            cuda_write_ahead(l->x, text, "                ", i);
    end_columns(l, text);
}

static void begin_row(cuda_loop *l, base_text *text)
{
    if (l->row_batch)
        base_text_add(text, "    RAX_UNROLL\n    for (int r = 0; r < %d; r++) {\n        const %s row = rows + r * GROUPS;\n        if (row >= end_row) break;\n",
                      l->row_batch, l->x->index_type);
    write_indices(l, text, "        ", "row", 0, l->loop.n_outer);
}

/* All of a row that is in registers: first of all, for what is computed for the whole row may have to wait for memory, too. */
static void read_row(cuda_loop *l, base_text *text)
{
    for (int i = 0; i < l->loop.n_exprs; i++)
        for (int d = 0; l->x->held[i] && d < l->loop.exprs[i].view.n_dynamic; d++)
            cuda_write_expression(l->x, text, "        ", l->loop.exprs[i].view.dynamic[d].expr);
    l->x->held_at = l->row_batch ? "r" : "it";
    read_ahead(l, text, 1);
}

/* Of the reductions of a level, or the outputs, the last. unroll: registers go by `it`. back: from the end of the row. Returns how many places a batch has. */
static int begin_pass(cuda_loop *l, base_text *text, int pass, bool unroll, bool back)
{
    int batch = l->unrolled ? 1 : l->batch[pass];
    char number[16];
    if (l->unrolled)
        return batch;
    l->x->held_at = batch > 1 ? "b" : "0";
    if (unroll || l->iterations_are_code)
        base_text_add(text, unroll || (batch == 1 && l->iterations <= 8) ? "        RAX_UNROLL\n" : batch == 1 ? "        RAX_UNROLL_4\n" : "");
    if (batch > 1)
        base_text_add(text, back ? "        for (int batch = (ITERATIONS - 1) / %d; batch >= 0; batch--) {\n" : "        for (int batch = 0; batch * %d < ITERATIONS; batch++) {\n",
                      batch);
    else
        base_text_add(text, back ? "        for (int it = ITERATIONS - 1; it >= 0; it--) {\n" : "        for (int it = 0; it < ITERATIONS; it++) {\n");
    snprintf(number, sizeof number, "%d", batch);
    for (int i = 0; i < l->loop.n_exprs; i++) {
        l->x->held[i] = cuda_is_read_ahead(l, pass, i);
        if (l->x->held[i])
            cuda_write_held(l->x, text, "        ", i, number);
    }
    read_ahead(l, text, batch);
    return batch;
}

static void end_pass(const cuda_loop *l, base_text *text) { base_text_add(text, l->unrolled ? "" : "        }\n"); }

/* Row values of this level: all that they need is there. */
static void write_row_values(cuda_loop *l, base_text *text, int level)
{
    for (int i = 0; i < l->loop.n_exprs; i++)
        if (l->level[i] == level && l->x->uniform[i] && l->loop.exprs[i].kind != KL_REDUCE)
            cuda_write_expression(l->x, text, "        ", i);
}

/* -- reductions along a row ----------------------------------------------------------------------------------------------- */

static const char *identity_of(const kl_expr *e, ir_dtype of)
{
    if (e->op == OP_reduce_sum)
        return "0";
    return of == IR_I32 ? "-2147483647 - 1" : "-RAX_INFINITY";
}

/* Whether a sum goes by this maximum so far. */
static bool has_sum_below(const cuda_loop *l, int most)
{
    bool has = false;
    for (int i = 0; i < l->loop.n_exprs; i++)
        has |= l->level[i] >= 0 && l->most[i] == most;
    return has;
}

static bool is_reduced(const cuda_loop *l, int i, int level) { return l->loop.exprs[i].kind == KL_REDUCE && l->level[i] == level + 1; }

/* What the threads of a group have made of a row becomes one value, all of a block's between two waits. below: the sums of exp(x - m), which need m; or the others. */
static void write_together(const cuda_loop *l, base_text *text, int level, bool below)
{
    bool block = l->group == l->threads;
    for (int step = 0; step < 3 && l->group > 1; step++)
        for (int i = 0, slot = 0; i < l->loop.n_exprs; i++) {
            const kl_expr *e = &l->loop.exprs[i];
            if (!is_reduced(l, i, level) || (l->most[i] >= 0) != below)
                continue;
            const char *suffix = cuda_suffix(l->loop.exprs[e->args[0]].dtype), *what = e->op == OP_reduce_sum ? "sum" : "most";
            if (e->op == OP_argmax) {
                if (step == 0)
                    base_text_add(text, "        a%d = rax_%s_argmax_%s(a%d%s);\n", i, block ? "block" : "warp", suffix, i, block ? ", scratch" : "");
                continue;
            }
            if (slot++ == 0 && block && step > 0)
                base_text_add(text, "        rax_block_wait();\n");
            if (step == 0 && l->across)
                base_text_add(text, "        a%d = rax_across_%s_%s(a%d, scratch, GROUPS);\n", i, what, suffix, i);
            else if (step == 0)
                base_text_add(text, "        a%d = rax_warp_%s_%s(a%d);\n", i, what, suffix, i);
            else if (block && step == 1)
                base_text_add(text, "        rax_leave_%s_%s(a%d, scratch + %d);\n", what, suffix, i, 32 * (slot - 1));
            else if (block)
                base_text_add(text, "        a%d = rax_take_%s_%s(scratch + %d);\n", i, what, suffix, 32 * (slot - 1));
        }
}

/* Doubles, 32 for what a block's warps leave of a value; an argmax, and a sum of a block, take 64, and a value of each thread as many as there are. */
static int scratch_of(const cuda_loop *l)
{
    int most = l->across ? l->threads / 32 : 2;
    for (int level = 0; level < l->n_levels; level++) {
        int n = 0;
        for (int i = 0; i < l->loop.n_exprs; i++)
            n += is_reduced(l, i, level);
        most = MAX(most, n);
    }
    return 32 * most;
}

/* The maxima of a batch, and then sums of exp(x - m) by the greatest so far, which they are rescaled to once a batch. */
static void write_sums_below(cuda_loop *l, base_text *text, int level, int batch)
{
    const kl_loop *loop = &l->loop;
    int n = 0;
    for (int i = 0; i < loop->n_exprs; i++)
        if (is_reduced(l, i, level) && has_sum_below(l, i)) {
            base_text_add(text, "        const %s o%d = a%d;\n", cuda_register_type(loop->exprs[i].dtype), i, i);
            n++;
        }
    if (n == 0)
        return;
    begin_columns(l, text, batch);
    for (int i = 0; i < loop->n_exprs; i++)
        if (is_reduced(l, i, level) && has_sum_below(l, i)) {
            int of = loop->exprs[i].args[0];
            cuda_write_expression(l->x, text, "                ", of);
            base_text_add(text, "                EACH a%d = rax_most_%s(a%d, %s);\n", i, cuda_suffix(loop->exprs[of].dtype), i, cuda_operand(l->x, of));
        }
    end_columns(l, text);
    for (int i = 0; i < loop->n_exprs; i++)
        if (is_reduced(l, i, level) && l->most[i] >= 0)
            base_text_add(text, "        a%d = rax_rescale_%s(a%d, o%d, a%d);\n", i, cuda_suffix(loop->exprs[i].dtype), i, l->most[i], l->most[i]);
    begin_columns(l, text, batch);
    for (int i = 0; i < loop->n_exprs; i++)
        if (is_reduced(l, i, level) && l->most[i] >= 0) {
            const kl_expr *e = &loop->exprs[i];
            int of = loop->exprs[l->most[i]].args[0];
            cuda_write_expression(l->x, text, "                ", of);
            base_text_add(text, "                EACH a%d = rax_sum_%s(a%d, rax_exp_below_%s(%s - a%d));\n",
                          i, cuda_suffix(e->dtype), i, cuda_suffix(e->dtype), cuda_operand(l->x, of), l->most[i]);
        }
    end_columns(l, text);
}

static void write_reductions(cuda_loop *l, base_text *text, int level)
{
    const kl_loop *loop = &l->loop;
    int n = 0;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        if (!is_reduced(l, i, level))
            continue;
        ir_dtype of = loop->exprs[e->args[0]].dtype;
        if (e->op == OP_argmax)
            base_text_add(text, "        rax_best_%s a%d;\n        a%d.value = 0, a%d.at = -1;\n", cuda_suffix(of), i, i, i);
        else
            base_text_add(text, "        %s a%d = %s;\n", cuda_register_type(of), i, identity_of(e, of));
        n++;
    }
    if (n == 0)
        return;
    int batch = begin_pass(l, text, level, false, false);
    write_sums_below(l, text, level, batch);
    begin_columns(l, text, batch);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        if (!is_reduced(l, i, level) || l->most[i] >= 0 || has_sum_below(l, i))
            continue;
        const char *suffix = cuda_suffix(loop->exprs[e->args[0]].dtype);
        cuda_write_expression(l->x, text, "                ", e->args[0]);
        const char *value = cuda_operand(l->x, e->args[0]);
        if (e->op == OP_argmax)
            base_text_add(text, "                EACH { rax_best_%s t; t.value = %s; t.at = (int)(column + j); a%d = rax_better_%s(a%d, t); }\n", suffix, value, i, suffix, i);
        else
            base_text_add(text, "                EACH a%d = rax_%s_%s(a%d, %s);\n", i, e->op == OP_reduce_sum ? "sum" : "most", suffix, i, value);
    }
    end_columns(l, text);
    end_pass(l, text);
    for (int i = 0; i < loop->n_exprs; i++)
        if (is_reduced(l, i, level) && has_sum_below(l, i))
            base_text_add(text, "        const %s o%d = a%d;\n", cuda_register_type(loop->exprs[i].dtype), i, i);
    write_together(l, text, level, false);
    for (int i = 0; i < loop->n_exprs && l->group > 1; i++)
        if (is_reduced(l, i, level) && l->most[i] >= 0)
            base_text_add(text, "        a%d = rax_rescale_%s(a%d, o%d, a%d);\n", i, cuda_suffix(loop->exprs[i].dtype), i, l->most[i], l->most[i]);
    write_together(l, text, level, true);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        if (!is_reduced(l, i, level))
            continue;
        if (e->op == OP_argmax)
            base_text_add(text, "        const int e%d = a%d.at < 0 ? 0 : a%d.at;\n", i, i, i);
        else
            base_text_add(text, "        const %s e%d = %s(a%d);\n", cuda_register_type(e->dtype), i, e->dtype == IR_BF16 ? "rax_round_bf16" : "", i);
        l->x->written_down[i] = true;
    }
}

/* -- outputs ---------------------------------------------------------------------------------------------------------------- */

static bool is_outer_sum(const cuda_loop *l, int i) { return l->loop.outputs[i].kind == KL_SUM_OUTER; }

static const char *sum_of(const cuda_loop *l, int i) { return cuda_suffix(l->loop.exprs[l->loop.outputs[i].expr].dtype); }

/* A row's number may have the place of one that all of the row's threads read: is there one that they may be about to read, no reduction having come between? */
static bool reads_rows_late(const cuda_loop *l)
{
    bool late = false;
    for (int i = 0; i < l->loop.n_exprs; i++)
        late |= l->loop.exprs[i].kind == KL_LOAD && l->x->uniform[i] && l->level[i] == l->n_levels - 1;
    return late && l->group > 1;
}

static void write_outputs(cuda_loop *l, base_text *text)
{
    const kl_loop *loop = &l->loop;
    const char *type = l->x->index_type, *indent = "                ";
    bool by_row = false, by_column = false;
    for (int i = 0; i < loop->n_outputs; i++) {
        by_row |= l->by_row[i];
        by_column |= !l->by_row[i];
    }
    if (by_column) {
        int batch = begin_pass(l, text, l->n_levels - 1, l->in_registers && kl_count_outputs(loop, KL_SUM_OUTER) > 0, l->n_levels > 1);
        begin_columns(l, text, batch);
        for (int i = 0; i < loop->n_outputs; i++) {
            const kl_output *o = &loop->outputs[i];
            if (l->by_row[i])
                continue;
            cuda_write_expression(l->x, text, indent, o->expr);
            for (int d = 0; d < o->view.n_dynamic; d++)
                cuda_write_expression(l->x, text, indent, o->view.dynamic[d].expr);
        }
        for (int i = 0; i < loop->n_outputs; i++) {                /* after all reads: an output may have an operand's place */
            const kl_output *o = &loop->outputs[i];
            const char *value = cuda_operand(l->x, o->expr);
            if (l->by_row[i])
                continue;
            if (o->kind == KL_STORE)
                cuda_write_store(l->x, text, indent, i, false);
            else if (o->kind == KL_SUM_ALL)
                base_text_add(text, "%sEACH s%d = rax_sum_%s(s%d, %s);\n", indent, i, sum_of(l, i), i, value);
            else if (l->in_registers)
                base_text_add(text, "%sEACH s%d[it][j] = rax_sum_%s(s%d[it][j], %s);\n", indent, i, sum_of(l, i), i, value);
            else
                base_text_add(text, "%sEACH { %s *to = p%d + ((%s)block * %s + column + j); *to = row == first_row ? %s : rax_sum_%s(*to, %s); }\n", indent,
                              cuda_register_type(loop->exprs[o->expr].dtype), l->partial[i], type, number(l, l->columns), value, sum_of(l, i), value);
        }
        end_columns(l, text);
        end_pass(l, text);
    }
    if (!by_row)
        return;
    if (reads_rows_late(l))
        base_text_add(text, "        %s();\n", l->group == l->threads || l->across ? "rax_block_wait" : "rax_warp_wait");
    base_text_add(text, "        if (lane == 0 && segment == 0) {\n");
    for (int i = 0; i < loop->n_outputs; i++)
        if (l->by_row[i]) {
            const kl_output *o = &loop->outputs[i];
            cuda_write_expression(l->x, text, "            ", o->expr);
            for (int d = 0; d < o->view.n_dynamic; d++)
                cuda_write_expression(l->x, text, "            ", o->view.dynamic[d].expr);
        }
    for (int i = 0; i < loop->n_outputs; i++)
        if (l->once[i])
            cuda_write_store(l->x, text, "            ", i, true);
        else if (l->by_row[i])
            base_text_add(text, "            s%d = rax_sum_%s(s%d, %s);\n", i, sum_of(l, i), i, cuda_operand(l->x, loop->outputs[i].expr));
    base_text_add(text, "        }\n");
}

/* -- sums of a block ---------------------------------------------------------------------------------------------------------- */

static void declare_sums(cuda_loop *l, base_text *text)
{
    for (int i = 0; i < l->loop.n_outputs; i++) {
        const char *type = cuda_register_type(l->loop.exprs[l->loop.outputs[i].expr].dtype);
        if (l->loop.outputs[i].kind == KL_SUM_ALL)
            base_text_add(text, "    %s s%d = 0;\n", type, i);
        else if (is_outer_sum(l, i) && l->in_registers)
            base_text_add(text, "    %s s%d[ITERATIONS][V];\n    RAX_UNROLL\n    for (int it = 0; it < ITERATIONS; it++) EACH s%d[it][j] = 0;\n", type, i, i);
    }
}

/* Of the first neighbours of a block's places, and the second: a warp reads eight of either from different banks. */
static int places_apart(const cuda_loop *l) { return l->threads + 8; }

/* A column's sum over the groups of the block, in their order. Where there are several, each thread adds up a column of an iteration. */
static void write_outer_sum(cuda_loop *l, base_text *text, int i)
{
    const char *type = cuda_register_type(l->loop.exprs[l->loop.outputs[i].expr].dtype), *suffix = sum_of(l, i), *index = l->x->index_type;
    base_text_add(text, "    RAX_UNROLL\n    for (int it = 0; it < ITERATIONS; it++) {\n");
    if (l->group > 1 && l->group < l->threads) {
        CHECK(l->group * l->V <= l->threads, "expected a thread for each of %d columns, got %d", l->group * l->V, l->threads);
        int lies = places_apart(l);
        base_text_add(text, "        rax_block_wait();\n        EACH ((%s *)groups)[j * %d + threadIdx.x] = s%d[it][j];\n        rax_block_wait();\n", type, lies, i);
        base_text_add(text, "        if (threadIdx.x < GROUP * V) {\n            const %s *of = (%s *)groups + threadIdx.x %% V * %d + threadIdx.x / V;\n"
                      "            %s sum = of[0];\n", type, type, lies, type);
        base_text_add(text, "            for (int g = 1; g < GROUPS; g++) sum = rax_sum_%s(sum, of[g * GROUP]);\n"
                      "            const %s column = first_column + (%s)it * GROUP * V + threadIdx.x;\n", suffix, index, index);
    } else {
        base_text_add(text, "        EACH {\n            const %s column = first_column + ((%s)it * GROUP + lane) * V + j;\n            %s sum = s%d[it][j];\n",
                      index, index, type, i);
        if (l->group == 1)
            base_text_add(text, "            sum = rax_block_sum_%s(sum, scratch);\n", suffix);
    }
    base_text_add(text, "            if (%scolumn < end_column) p%d[(%s)block * %s + column] = sum;\n        }\n    }\n", l->group == 1 ? "group == 0 && " : "",
                  l->partial[i], index, number(l, l->columns));
}

static void write_sums(cuda_loop *l, base_text *text)
{
    for (int i = 0; i < l->loop.n_outputs; i++)
        if (l->loop.outputs[i].kind == KL_SUM_ALL)
            base_text_add(text, "    s%d = rax_block_sum_%s(s%d, scratch);\n    if (threadIdx.x == 0) p%d[bx] = s%d;\n", i, sum_of(l, i), i, l->partial[i], i);
        else if (is_outer_sum(l, i) && l->in_registers)
            write_outer_sum(l, text, i);
}

/* -- rows that are kept --------------------------------------------------------------------------------------------------------- */

static void declare_kept(cuda_loop *l, base_text *text)
{
    size_t offset = 0;
    char n[16] = "ITERATIONS";
    if (l->row_batch)
        snprintf(n, sizeof n, "%d", l->row_batch);
    for (int i = 0; i < l->loop.n_exprs; i++) {
        if (l->unrolled && l->x->held[i])
            cuda_write_held(l->x, text, "        ", i, n);
        if (!l->x->kept[i])
            continue;
        cuda_write_kept(l->x, text, i, offset);
        offset += (size_t)(l->V * ir_dtype_bytes(l->loop.exprs[i].dtype));
    }
}

/* -- the kernel ----------------------------------------------------------------------------------------------------------------- */

void cuda_write_loop(cuda_loop *l, base_text *text)
{
    const char *type = l->x->index_type;
    bool shared = false, groups = false, wide = false;
    for (int i = 0; i < l->loop.n_exprs; i++)
        shared |= l->loop.exprs[i].kind == KL_REDUCE && (l->group == l->threads || l->across);
    for (int i = 0; i < l->loop.n_outputs; i++) {
        shared |= l->loop.outputs[i].kind != KL_STORE;
        groups |= is_outer_sum(l, i) && l->group > 1 && l->group < l->threads;
        wide |= l->loop.exprs[l->loop.outputs[i].expr].dtype == IR_F64;
    }
    if (!l->x->writer->listed)
        base_text_add(text, "    const unsigned bx = blockIdx.x;\n");
    base_text_add(text, "    enum { V = %d, GROUP = %d, GROUPS = %d };\n", l->V, l->group, l->threads / l->group);
    if (l->iterations_are_code)
        base_text_add(text, "    enum { ITERATIONS = %lld };\n", (long long)MAX(l->iterations, 1));
    else
        base_text_add(text, "    const int ITERATIONS = %s;\n", cuda_number(l->x->writer, MAX(l->iterations, 1), "int"));
    if (l->kept_iterations)
        base_text_add(text, "    enum { THREADS = %d, KEPT = %lld };\n    RAX_DYNAMIC_SHARED(memory);\n", l->threads, (long long)l->kept_iterations);
    if (shared)
        base_text_add(text, "    RAX_SHARED double scratch[%d];\n", scratch_of(l));
    if (groups)
        base_text_add(text, "    RAX_SHARED %s groups[%d];\n", wide ? "double" : "float", places_apart(l) * l->V);
    base_text_add(text, l->across ? "    const int lane = threadIdx.x / GROUPS, group = threadIdx.x %% GROUPS;\n"
                        : l->group == l->threads ? "    const int lane = threadIdx.x, group = 0;\n" : "    const int lane = threadIdx.x %% GROUP, group = threadIdx.x / GROUP;\n");
    const char *segments = cuda_number(l->x->writer, MAX(l->segments, 1), "unsigned"), *segment = number(l, l->segment), *columns = number(l, l->columns);
    base_text_add(text, "    const %s segment = bx %% %s, block = bx / %s;\n", type, segments, segments);
    base_text_add(text, "    const %s first_column = segment * %s, end_column = first_column + %s < %s ? first_column + %s : %s;\n",
                  type, segment, segment, columns, segment, columns);
    const char *rows = number(l, l->rows), *rows_per_block = number(l, l->rows_per_block);
    base_text_add(text, "    const %s first_row = block * %s, end_row = first_row + %s < %s ? first_row + %s : %s;\n",
                  type, rows_per_block, rows_per_block, rows, rows_per_block, rows);
    declare_sums(l, text);
    if (l->row_batch) {
        base_text_add(text, "    for (%s rows = first_row + group; rows < end_row; rows += %d * GROUPS) {\n", type, l->row_batch);
        declare_kept(l, text);
        begin_row(l, text);
        read_row(l, text);
        base_text_add(text, "    }\n");
        for (int i = 0; i < l->loop.n_exprs; i++)
            l->x->written_down[i] = false;
        begin_row(l, text);
    } else {
        base_text_add(text, "    for (%s row = first_row + group; row < end_row; row += GROUPS) {\n", type);
        begin_row(l, text);
        declare_kept(l, text);
        if (l->unrolled)
            read_row(l, text);
    }
    for (int level = 0; level < l->n_levels; level++) {
        write_row_values(l, text, level);
        write_reductions(l, text, level);
    }
    write_outputs(l, text);
    base_text_add(text, l->row_batch ? "    }\n    }\n" : "    }\n");
    write_sums(l, text);
}
