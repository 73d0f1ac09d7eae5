/* What is decided about a generated product before a number is computed: how it is cut into tasks, which operands are packed, which
 * micro-kernels there are; and that LLVM keeps their accumulators in registers. Results: test_gemm.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend_cpu/gemm.h"

static cpu_machine this_machine(void)
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    return machine;
}

/* -- plans ------------------------------------------------------------------------------------------------------------ */

/* Threads begin with neighbouring tasks, equally many each: these are equal to a tile a row of tasks, whatever tiles go into the shape. */
static void tasks_are_even(void **state)
{
    (void)state;
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, NULL));
    for (int64_t m = 256; m < 2000; m += 157)
        for (int64_t n = 256; n < 3000; n += 331)
            for (int lines = 0; lines < 2; lines++) {
                cpu_gemm_shape shape = { .isa = machine.isa, .dtype = IR_F32, .a = { true, !lines, true }, .b = { true, false, true }, .batch = 1, .m = m, .n = n, .k = 500 };
                cpu_gemm_plan plan = cpu_gemm_make_plan(&shape, &machine, &cpu_gemm_default_tuning);
                int64_t tasks = plan.row_tasks * plan.column_tasks, height = plan.tile.heights[0], width = plan.tile.columns;
                assert_true(tasks > 1 && tasks % 2 == 0);
                int64_t done = 0, half = 0;
                for (int64_t i = 0; i < tasks; i++) {
                    int64_t row = i % plan.row_tasks, column = i / plan.row_tasks;
                    int64_t rows = cpu_gemm_task_begin(row + 1, plan.row_tasks, m, height) - cpu_gemm_task_begin(row, plan.row_tasks, m, height);
                    int64_t columns = cpu_gemm_task_begin(column + 1, plan.column_tasks, n, width) - cpu_gemm_task_begin(column, plan.column_tasks, n, width);
                    assert_true(rows > 0 && rows <= plan.task_rows && columns > 0 && columns <= plan.task_columns);
                    done += rows * columns;
                    half += i < tasks / 2 ? rows * columns : 0;
                }
                assert_int_equal(done, m * n);
                int64_t most = MAX(height * n, width * m);
                if (2 * half - done > 2 * most || done - 2 * half > 2 * most)
                    fail_msg("%ldx%ld: the first half of %ld tasks has %ld of %ld", (long)m, (long)n, (long)tasks, (long)half, (long)done);
            }
}

/* Twelve rows at one place of a way of a first-level cache of eight. */
static void rows_that_collide_are_packed(void **state)
{
    (void)state;
    cpu_machine machine = this_machine();
    if (machine.isa < CPU_AVX512 || machine.isa == CPU_AMX)
        skip();
    machine.l1d_bytes = 32 << 10;
    cpu_gemm_shape shape = { .isa = machine.isa, .dtype = IR_F32, .a = { true, true, true, 12288 }, .b = { true, true, true, 12288 }, .batch = 1, .m = 256, .n = 768, .k = 3072 };
    assert_int_equal(cpu_gemm_make_plan(&shape, &machine, &cpu_gemm_default_tuning).a_way, CPU_GEMM_SHARED);
    shape.n = 32;                                /* not for so few columns */
    assert_int_equal(cpu_gemm_make_plan(&shape, &machine, &cpu_gemm_default_tuning).a_way, CPU_GEMM_DIRECT);
    shape.n = 768, shape.a.line_bytes = 6144;    /* six rows at a place */
    assert_int_equal(cpu_gemm_make_plan(&shape, &machine, &cpu_gemm_default_tuning).a_way, CPU_GEMM_DIRECT);
    shape.a.line_bytes = 12288 + 64;
    assert_int_equal(cpu_gemm_make_plan(&shape, &machine, &cpu_gemm_default_tuning).a_way, CPU_GEMM_DIRECT);
}

/* Half a vector ends C where that is enough, and where it is quicker than a whole one. */
static void narrow_kernels_end_c(void **state)
{
    (void)state;
    static const struct { int64_t n; int f32, pairs, f64; } expected[] = {
        {1, 8, 8, 4}, {8, 8, 8, 0}, {9, 0, 0, 0}, {16, 0, 0, 0}, {17, 0, 24, 4}, {24, 0, 24, 0}, {25, 0, 0, 0}, {32, 0, 0, 0}, {65, 8, 8, 4}, {97, 8, 8, 4}};
    for (size_t i = 0; i < COUNT_OF(expected); i++) {
        assert_int_equal(cpu_gemm_narrow_of(CPU_AVX512, IR_F32, expected[i].n), expected[i].f32);
        assert_int_equal(cpu_gemm_narrow_of(CPU_AVX512BF16, IR_BF16, expected[i].n), expected[i].pairs);
        assert_int_equal(cpu_gemm_narrow_of(CPU_AVX512, IR_BF16, expected[i].n), expected[i].f32);
        assert_int_equal(cpu_gemm_narrow_of(CPU_AMX, IR_F64, expected[i].n), expected[i].f64);
        assert_int_equal(cpu_gemm_narrow_of(CPU_AMX, IR_BF16, expected[i].n), 0);
        assert_int_equal(cpu_gemm_narrow_of(CPU_AVX2, IR_F32, expected[i].n), 0);
    }
}

/* -- registers -------------------------------------------------------------------------------------------------------- */

/* The text of a file, for free. */
static char *text_of_file(const char *path)
{
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t size = 0;
    if (!file || getdelim(&text, &size, '\0', file) < 0)
        fail_msg("%s: cannot be read", path);
    fclose(file);
    return text;
}

/* The micro-kernels of a dtype as assembly, for free. */
static char *micro_assembly(cpu_isa isa, ir_dtype dtype)
{
    char folder[] = "/tmp/rax-gemm-XXXXXX", path[64];
    static const char *const dumps[] = {"gemm.ll", "gemm.opt.ll", "gemm.s"};
    cpu_machine machine;
    base_bytes object;
    assert_non_null(mkdtemp(folder));
    assert_true(cpu_machine_detect(&machine, cpu_isa_name(isa)));
    cpu_jit *jit = cpu_jit_new(&machine);
    cpu_jit_set_dump(jit, folder);
    LLVMContextRef context = LLVMContextCreate();
    LLVMModuleRef module = cpu_jit_module(jit, "gemm", context);
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    cpu_gemm_emit_micro(module, isa, dtype);
    for (int columns = tile.lanes / 2; columns < tile.columns; columns += tile.lanes)
        if (cpu_gemm_narrow_of(isa, dtype, columns))
            cpu_gemm_emit_narrow(module, isa, dtype, columns);
    if (!cpu_jit_compile(jit, module, &object))
        fail_msg("%s", base_error());
    base_bytes_free(&object);
    LLVMDisposeModule(module);
    LLVMContextDispose(context);
    cpu_jit_free(jit);
    snprintf(path, sizeof path, "%s/gemm.s", folder);
    char *text = text_of_file(path);
    for (size_t i = 0; i < COUNT_OF(dumps); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, dumps[i]);
        remove(path);
    }
    rmdir(folder);
    return text;
}

typedef struct { int loops; char spilling[64]; } k_loops;      /* spilling: the function of one that touches the stack; "": none does */

/* Walks assembly line by line. A loop that has no other in it goes from a label to the jump back to it, no label between; those with
 * multiply-adds are the loops over K. Where a function has a frame pointer, what it stores may lie by that, too. */
static k_loops find_k_loops(char *assembly)
{
    k_loops found = {0};
    char function[64] = "", label[64] = "", *rest = assembly;
    bool framed = false, touched = false, multiplies = false;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        size_t name = strcspn(line, ":");
        if (line[name] == ':' && strcspn(line, " \t#") > name) {
            bool local = line[0] == '.';
            snprintf(local ? label : function, sizeof label, "%.*s", (int)name, line);
            framed &= local;
            touched = multiplies = false;
            continue;
        }
        framed |= strstr(line, "%rsp, %rbp") != NULL;
        multiplies |= strstr(line, "fmadd") || strstr(line, "dpbf16ps") || strstr(line, "mulp");
        touched |= strstr(line, "(%rsp") || (framed && strstr(line, "(%rbp"));
        const char *target = strstr(line, ".LBB");
        if (line[strspn(line, "\t ")] != 'j' || !target || strcmp(target, label) != 0 || !multiplies)
            continue;
        found.loops++;
        if (touched)
            memcpy(found.spilling, function, sizeof function);
    }
    return found;
}

static void loops_over_k_stay_in_registers(void **state)
{
    (void)state;
#if !defined(__x86_64__)
    skip();
#endif
    char spilled[] = "f:\n\tpushq %rbp\n\tmovq %rsp, %rbp\n.LBB0_1:\n\tvfmadd231ps -64(%rbp), %ymm1, %ymm2\n\tjne\t.LBB0_1\n"
                     "g:\n\tvmovups %ymm1, (%rsp)\n.LBB1_1:\n\tvfmadd231ps (%rbp), %ymm1, %ymm2\n\tjne\t.LBB1_1\n";
    k_loops found = find_k_loops(spilled);
    assert_int_equal(found.loops, 2);
    assert_string_equal(found.spilling, "f");
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (int i = 0; i < 3; i++) {
            static const ir_dtype dtypes[] = {IR_F32, IR_F64, IR_BF16};
            cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtypes[i]);
            int functions = cpu_gemm_has_tiles(isa, dtypes[i]) ? 1 : 2 * (tile.n_heights + 1);
            for (int columns = tile.lanes / 2; columns < tile.columns; columns += tile.lanes)
                functions += cpu_gemm_narrow_of(isa, dtypes[i], columns) == 0 ? 0 : base_divide_up(tile.n_heights, CPU_GEMM_NARROW_STEP) + 1;
            char *assembly = micro_assembly(isa, dtypes[i]);
            found = find_k_loops(assembly);
            if (found.loops < functions || *found.spilling)
                fail_msg("%s, %s: expected %d loops over K or more, and no stack in them; found %d, stack in %s", cpu_isa_name(isa), ir_dtype_name(dtypes[i]),
                         functions, found.loops, *found.spilling ? found.spilling : "none");
            free(assembly);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks_are_even),
        cmocka_unit_test(rows_that_collide_are_packed),
        cmocka_unit_test(narrow_kernels_end_c),
        cmocka_unit_test(loops_over_k_stay_in_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
