/* Random words of KL_RANDOM: Philox4x32-10 by common.cu, the same words as everywhere. Four neighbours that begin at a multiple of four are one
 * block of the generator; elsewhere each neighbour makes its block and takes its word. */
#include "backend_cuda/expressions.h"

void cuda_write_random(cuda_expressions *x, base_text *text, const char *indent, int i)
{
    const kl_expr *e = &x->loop->exprs[i];
    if (x->random_run[i]) {
        base_text_add(text, "%sint e%d[V]; for (int j = 0; j < V; j += 4) { const rax_words w = rax_philox((rax_u64)(p%d + ", indent, i, x->param[i]);
        cuda_write_place(x, text, &e->view, true, "rax_i64");
        base_text_add(text, ") >> 2, (rax_u32)p%d, (rax_u32)e%d, (rax_u32)e%d, (rax_u32)e%d);", x->site[i], e->args[2], e->args[0], e->args[1]);
        base_text_add(text, " for (int q = 0; q < 4; q++) e%d[j + q] = (int)w.word[q]; }\n", i);
        return;
    }
    if (x->lanes[i])
        base_text_add(text, "%sint e%d[V]; EACH e%d[j] = ", indent, i, i);
    else
        base_text_add(text, "%sconst int e%d = ", indent, i);
    base_text_add(text, "(int)rax_word((rax_u64)(p%d + ", x->param[i]);
    cuda_write_place(x, text, &e->view, x->lanes[i], "rax_i64");
    base_text_add(text, "), (rax_u32)p%d, (rax_u32)%s, (rax_u32)%s, (rax_u32)%s);\n", x->site[i], cuda_operand(x, e->args[2]), cuda_operand(x, e->args[0]),
                  cuda_operand(x, e->args[1]));
}
