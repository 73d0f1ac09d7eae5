/* What a cached call costs by itself: trees as large as those of GPT-2 124M's step, of 148 leaves and twice as many, whose tensors are small, for
 * the cost is a leaf's, not an element's. The time is that from entering the call to the first kernel, as rax itself takes it: of calls one after
 * another, and of calls between which something else goes through memory, as a step of training does, so that the caches hold nothing of a call. */
#include "bench/bench.h"

#include <stdio.h>

enum { LEAVES = 148, CALLS = 64, ELSEWHERE = 64 << 20, LINE = 64 };

typedef struct { char *elsewhere; rax_fn *fn; rax_tree params, moments; rax_tensor x, loss; } caller;

/* (params, moments, x, step) -> (params, moments, loss): all but one leaf stays as it is. */
static void step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0), next = rax_tree_like(params);
    rax_tensor loss = rax_add(rax_sum(rax_leaf(params, 0), RAX_ALL_AXES), rax_cast(rax_arg_tensor(in, 3), RAX_F32));
    for (int i = 0; i < rax_tree_size(params); i++)
        rax_set_leaf(next, i, i ? rax_leaf(params, i) : rax_add(rax_leaf(params, i), rax_arg_tensor(in, 2)));
    rax_return_tree(out, 0, next);
    rax_return_tree(out, 1, rax_arg_tree(in, 1));
    rax_return_tensor(out, 2, loss);
}

static bool call(caller *c, int number)
{
    rax_value args[] = { rax_pass_tree(c->params), rax_pass_tree(c->moments), rax_pass_tensor(c->x), rax_pass_number(number) };
    rax_into results[] = { rax_into_tree(&c->params), rax_into_tree(&c->moments), rax_into_tensor(&c->loss) };
    return rax_call(c->fn, args, results);
}

/* The median of as many calls as rax remembers. */
static bool sample(void *context, double *ms)
{
    caller *c = context;
    for (int i = 0; i <= CALLS; i++) {
        for (size_t at = 0; c->elsewhere && at < ELSEWHERE; at += LINE)
            c->elsewhere[at]++;
        if (!call(c, i))
            return false;
    }
    *ms = rax_stats(c->fn).check_us * 1e-3;
    return true;
}

static void end(void *context)
{
    caller *c = context;
    rax_function_free(c->fn);
    rax_tree_free(c->params);
    rax_tree_free(c->moments);
    rax_tensor_free(c->x);
    rax_tensor_free(c->loss);
    rax_free(c->elsewhere);
    rax_free(c);
}

static rax_tree tree(int leaves)
{
    rax_tree made = rax_tree_new();
    bool added = true;
    for (int i = 0; added && i < leaves; i++)
        added = rax_tree_add(made, rax_tensor_new(RAX_F32, RAX_SHAPE(8)), "leaf.%d", i);
    if (added)
        return made;
    rax_tree_free(made);
    return RAX_NO_TREE;
}

static bench_case case_of(bool cold)
{
    caller *c = rax_alloc(sizeof *c);
    *c = (caller){ .fn = rax_function(step, "dispatch", "params: tree, moments: tree, x: f32[8], step: i32"), .params = tree(LEAVES),
                   .moments = tree(2 * LEAVES), .x = rax_tensor_new(RAX_F32, RAX_SHAPE(8)), .elsewhere = cold ? rax_alloc(ELSEWHERE) : NULL };
    bench_case made = { .bound = BENCH_NOTHING, .sample = sample, .free = end, .context = c };
    snprintf(made.name, sizeof made.name, "dispatch/148 x 3 tensors%s", cold ? ", cold" : "");
    return made;
}

bool bench_dispatch(bench *b)
{
    bench_case cases[] = { case_of(false), case_of(true) };
    return bench_measure(b, 2, cases);
}
