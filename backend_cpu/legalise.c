/* Looks at the list once before memory is planned, and splits off what the chosen algorithms cannot take: an operand that OpenBLAS
 * cannot read becomes a loop that writes it out and a plain operand; an epilogue becomes a plain product and a loop that reads it
 * (ir/split_products.c).
 */
#include "backend_cpu/contraction.h"

#include <stdlib.h>
#include <string.h>

typedef struct { kl_program *program; kl_kernel **at; int n, cap; } list;

static void append(list *l, kl_kernel *kernel)
{
    if (l->n == l->cap) {
        l->cap = MAX(16, 2 * l->cap);
        kl_kernel **more = ARENA_NEW(l->program->arena, kl_kernel *, l->cap);
        if (l->n)
            memcpy(more, l->at, sizeof *more * (size_t)l->n);
        l->at = more;
    }
    l->at[l->n++] = kernel;
}

static void legalise_for_generated(list *l, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    c->algorithm = CPU_PRODUCT_GENERATED;
    kl_kernel *rest = cpu_gemm_takes_epilogue(c) ? NULL : kl_split_epilogue(l->program, kernel);
    append(l, kernel);
    if (rest)
        append(l, rest);
}

static void legalise_for_openblas(list *l, kl_kernel *kernel)
{
    kl_contraction *c = &kernel->contraction;
    ir_dtype wide = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    c->algorithm = CPU_PRODUCT_OPENBLAS;
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_A))
        append(l, kl_split_operand(l->program, kernel, false, wide));
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_B))
        append(l, kl_split_operand(l->program, kernel, true, wide));
    c->dtype = wide;
    kl_kernel *rest = cpu_blas_takes_epilogue(c) ? NULL : kl_split_epilogue(l->program, kernel);
    append(l, kernel);
    if (rest)
        append(l, rest);
}

static void legalise_list(kl_program *program, bool generated, kl_kernel ***kernels, int *n)
{
    list l = { .program = program };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*kernels)[i];
        switch (kernel->kind) {
        case KL_CONTRACTION:
            (generated ? legalise_for_generated : legalise_for_openblas)(&l, kernel);
            break;
        case KL_REPEAT:
            legalise_list(program, generated, &kernel->repeat.body, &kernel->repeat.n_body);
            append(&l, kernel);
            break;
        case KL_LOOP:
        case KL_LIST:
        case KL_ATTENTION:
        case KL_SCATTER:
            append(&l, kernel);
            break;
        }
    }
    *kernels = l.at;
    *n = l.n;
}

/* The generated GEMM wherever there are vector units that it was written for. RAX_PRODUCTS=openblas or generated says otherwise: for
 * tests, and to compare the two. */
static bool choose_generated(const cpu_machine *machine)
{
    const char *forced = getenv("RAX_PRODUCTS");
    return forced ? !strcmp(forced, "generated") : machine->isa >= CPU_AVX2;
}

void cpu_legalise(kl_program *program, const cpu_machine *machine)
{
    bool generated = choose_generated(machine);
    if (generated)
        kl_fuse_epilogues(program);
    legalise_list(program, generated, &program->kernels, &program->n_kernels);
    kl_list_loops(program);
    kl_renumber(program);
}
