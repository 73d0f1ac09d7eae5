/* Programs of random loops, for the tests of backends: a few loops each, over all sorts of index spaces. */
#ifndef TESTS_RANDOM_LOOPS_H
#define TESTS_RANDOM_LOOPS_H

#include "tests/random_kernels.h"

enum { LOOPS = 6 };

static int64_t draw_extent(writer *w)
{
    static const int64_t extents[] = { 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 130 };
    return extents[draw(w, (int)COUNT_OF(extents))];
}

static void draw_space(writer *w)
{
    kl_loop *loop = w->loop;
    int64_t total = 1;
    loop->n_axes = 1 + draw(w, 4);
    loop->n_outer = draw(w, loop->n_axes + 1);
    if (loop->n_outer == loop->n_axes)
        loop->n_outer--;
    for (int i = 0; i < loop->n_axes; i++) {
        int64_t extent = draw_extent(w);
        while (total * extent > 9000)
            extent = (extent + 1) / 2;
        total *= loop->extent[i] = extent;
    }
    if (draw(w, 12) == 0) {                                            /* columns enough to be cut, of few rows */
        for (int i = 0; i < loop->n_axes; i++)
            loop->extent[i] = MIN(loop->extent[i], 3);
        loop->extent[loop->n_axes - 1] = 2500 + draw(w, 3000);
    }
}

static kl_loop *new_loop(kl_program *p)
{
    kl_kernel *kernel = new_kernel(p, KL_LOOP);
    kernel->loop.exprs = ARENA_NEW(p->arena, kl_expr, MOST_EXPRS);
    kernel->loop.outputs = ARENA_NEW(p->arena, kl_output, 4);
    return &kernel->loop;
}

static void draw_content(writer *w)
{
    for (int n = 2 + draw(w, 4); n > 0 && w->loop->n_exprs < MOST_EXPRS - 32; n--)
        add_something(w);
    for (int n = 1 + draw(w, 3); n > 0; n--)
        add_output(w, w->loop->n_exprs - 1 - draw(w, MIN(w->loop->n_exprs, 6)));
}

static kl_program *random_program(uint64_t seed)
{
    kl_program *p = new_program(LOOPS);
    writer w = { .dice = { seed }, .program = p };
    for (int i = 0; i < LOOPS; i++) {
        w.loop = new_loop(p);
        draw_space(&w);
        draw_content(&w);
    }
    kl_renumber(p);
    return p;
}

/* One loop over and over, with other extents: most of them have one form. */
MAYBE_UNUSED static kl_program *random_lists(uint64_t seed)
{
    kl_program *p = new_program(LOOPS);
    writer extents = { .dice = { seed + 1000 }, .program = p };
    int n_axes = 1 + draw(&extents, 3), n_outer = draw(&extents, n_axes);
    for (int i = 0; i < LOOPS; i++) {
        writer w = { .dice = { seed }, .program = p, .loop = new_loop(p) };
        w.loop->n_axes = n_axes;
        w.loop->n_outer = n_outer;
        for (int j = 0; j < n_axes; j++)
            w.loop->extent[j] = draw(&extents, 4) ? 2 + draw(&extents, n_axes == 1 ? 3000 : 20) : draw_extent(&extents);
        draw_content(&w);
    }
    kl_renumber(p);
    return p;
}

/* Of each row r: out[r,c] = x[r] + y[r,c], and x[r] = -x[r] in place: who reads x[r] must have done so before it is written. The seed is how long a row is. */
MAYBE_UNUSED static kl_program *negated_rows(uint64_t seed)
{
    enum { ROWS = 9 };
    int64_t columns = (int64_t)seed;
    kl_program *p = new_program(1);
    writer w = { .program = p, .loop = new_loop(p) };
    *w.loop = (kl_loop){ .n_axes = 2, .n_outer = 1, .extent = { ROWS, columns }, .exprs = w.loop->exprs, .outputs = w.loop->outputs };
    kl_view row = { .buffer = add_buffer(&w, KL_PARAM, IR_F32, ROWS), .stride = { 1, 0 } };
    kl_view all = { .buffer = add_buffer(&w, KL_PARAM, IR_F32, ROWS * columns), .stride = { columns, 1 } };
    int x = add_expr(&w, (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = row }), y = add_expr(&w, (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = all });
    int sum = add_op(&w, OP_add, IR_F32, 2, x, y, 0), negated = add_op(&w, OP_neg, IR_F32, 1, x, 0, 0);
    int in_place = row.buffer;
    all.buffer = add_buffer(&w, KL_RESULT, IR_F32, ROWS * columns);
    row.buffer = add_buffer(&w, KL_RESULT, IR_F32, ROWS);
    p->buffers[row.buffer].donated = p->buffers[in_place].index;
    w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = sum, .view = all };
    w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = negated, .view = row };
    kl_renumber(p);
    return p;
}

#endif
