/* The generated product against a plain loop: bit for bit where the chain of roundings is known (f32 and f64, and bf16 on ISAs
 * that widen it), else within a tolerance; for each ISA that the machine has, all layouts and dtypes, sizes of 0 and 1, primes
 * and tails, batches, prologues and epilogues; with 1, 2 and 3 threads; with blocks as chosen and shrunk; operands that end where
 * memory does, and guards round every result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend_cpu/gemm.h"

/* -- what is tried ---------------------------------------------------------------------------------------------------- */

/* Of the product's operands and result. WIDE: operands are f32 in memory and rounded to bf16 while packing. */
typedef enum { F32, F64, BF16, WIDE, KINDS } kind;
static const char *const kind_names[] = {"f32", "f64", "bf16", "f32 as bf16"};
static const ir_dtype kind_dtype[] = {IR_F32, IR_F64, IR_BF16, IR_BF16}, kind_memory[] = {IR_F32, IR_F64, IR_BF16, IR_F32};

/* Which axis of A and of B lies side by side; neither. */
typedef enum { ALONG_LINES, ALONG_K, STRIDED } lie;
static const char *const lie_names[] = {"lines", "k", "strided"};

typedef enum { PLAIN, ACCUMULATE, TO_BF16, SUMS, STORES } store;
static const char *const store_names[] = {"plain", "accumulate", "to bf16", "sums"};

typedef struct {
    cpu_isa isa;
    kind kind;
    lie a, b;
    bool norm;                               /* A: (x - mean[row]) * scale[row] * weight[k] + bias[k]; B: times 2 */
    store store;
    int64_t m, n, k, batch[2];
    int threads;
    const cpu_gemm_tuning *tuning;
} trial;

static const cpu_gemm_tuning small_blocks = {.depth = 32, .tasks = 5, .task_flops = 1, .local_rows = 40, .small_bytes = 64};
static const cpu_gemm_tuning packed = {.depth = 48, .tasks = 3, .task_flops = 1000, .local_rows = 1000, .pack_a = true, .share_b = true};
static const cpu_gemm_tuning shared_a = {.depth = 48, .tasks = 4, .task_flops = 1000, .local_rows = 1000, .share_a = true};

static bool fused(cpu_isa isa)               /* has a fused multiply-add */
{
#if defined(__x86_64__)
    bool may_lack = true;
#else
    bool may_lack = false;
#endif
    return isa != CPU_GENERIC || !may_lack;
}

/* -- the callbacks ---------------------------------------------------------------------------------------------------- */

typedef struct { const float *mean, *scale, *weight, *bias; } norm_data;

static LLVMValueRef pointer_at(const cpu_vector_env *v, LLVMValueRef record, size_t offset)
{
    LLVMTypeRef i8 = LLVMInt8TypeInContext(v->context), pointer = LLVMPointerTypeInContext(v->context, 0);
    LLVMValueRef at = LLVMConstInt(LLVMInt64TypeInContext(v->context), offset, 0);
    return LLVMBuildLoad2(v->builder, pointer, LLVMBuildGEP2(v->builder, i8, record, &at, 1, ""), "");
}

/* table[index], or the lanes from there on. */
static LLVMValueRef table_at(const cpu_gemm_source *at, size_t offset, bool lanes, LLVMValueRef index)
{
    const cpu_vector_env *v = at->vector;
    LLVMTypeRef f32 = LLVMFloatTypeInContext(v->context);
    LLVMValueRef pointer = LLVMBuildGEP2(v->builder, f32, pointer_at(v, at->user, offset), &index, 1, "");
    return lanes ? cpu_vload(v, f32, pointer, at->mask) : cpu_vsplat(v, LLVMBuildLoad2(v->builder, f32, pointer, ""));
}

static LLVMValueRef load_norm(void *context, const cpu_gemm_source *at)
{
    const cpu_vector_env *v = at->vector;
    LLVMValueRef x = cpu_gemm_load_plain(context, at);
    if (at->source_dtype == IR_BF16)
        x = cpu_vf32_from_bf16(v, x);
    LLVMValueRef mean = table_at(at, offsetof(norm_data, mean), !at->along_k, at->line);
    LLVMValueRef scale = table_at(at, offsetof(norm_data, scale), !at->along_k, at->line);
    LLVMValueRef weight = table_at(at, offsetof(norm_data, weight), at->along_k, at->k);
    LLVMValueRef bias = table_at(at, offsetof(norm_data, bias), at->along_k, at->k);
    x = LLVMBuildFMul(v->builder, LLVMBuildFSub(v->builder, x, mean, ""), scale, "");
    return LLVMBuildFAdd(v->builder, LLVMBuildFMul(v->builder, x, weight, ""), bias, "");
}

static LLVMValueRef load_double(void *context, const cpu_gemm_source *at)
{
    LLVMValueRef x = cpu_gemm_load_plain(context, at);
    if (at->source_dtype == IR_BF16)
        x = cpu_vf32_from_bf16(at->vector, x);
    return LLVMBuildFAdd(at->vector->builder, x, x, "");
}

/* C = sum; columns: the sum over rows of C and of its square; rows: of C. */
typedef struct { cpu_gemm_c c; float *row_sums; int64_t tiles; int64_t rows; } sums_data;

static void store_sums(void *context, const cpu_gemm_place *at, LLVMValueRef sum, LLVMValueRef *columns, LLVMValueRef *rows)
{
    cpu_gemm_store_plain(context, at, sum, NULL, NULL);
    columns[0] = rows[0] = sum;
    columns[1] = LLVMBuildFMul(at->vector->builder, sum, sum, "");
}

static void store_row_sums(void *context, const cpu_gemm_place *at, LLVMValueRef tile, LLVMValueRef *sums)
{
    (void)context;
    LLVMBuilderRef b = at->vector->builder;
    LLVMTypeRef i8 = LLVMInt8TypeInContext(at->vector->context), i64 = LLVMTypeOf(tile);
    LLVMValueRef tiles_at = LLVMConstInt(i64, offsetof(sums_data, tiles), 0), rows_at = LLVMConstInt(i64, offsetof(sums_data, rows), 0);
    LLVMValueRef tiles = LLVMBuildLoad2(b, i64, LLVMBuildGEP2(b, i8, at->user, &tiles_at, 1, ""), "");
    LLVMValueRef rows = LLVMBuildLoad2(b, i64, LLVMBuildGEP2(b, i8, at->user, &rows_at, 1, ""), "");
    LLVMValueRef index = LLVMBuildAdd(b, LLVMBuildMul(b, at->batch, rows, ""), at->row, "");
    index = LLVMBuildAdd(b, LLVMBuildMul(b, index, tiles, ""), tile, "");
    LLVMBuildStore(b, sums[0], LLVMBuildGEP2(b, LLVMTypeOf(sums[0]), pointer_at(at->vector, at->user, offsetof(sums_data, row_sums)), &index, 1, ""));
}

/* -- compiling, once an ISA and kind ---------------------------------------------------------------------------------- */

static struct { cpu_code *code; cpu_machine machine; } compiled[CPU_ISA_COUNT][KINDS];

static void pack_name(char name[32], cpu_gemm_side side, lie lie, bool prologue)
{
    snprintf(name, 32, "pack_%c_%s%s", side == CPU_GEMM_A ? 'a' : 'b', lie_names[lie], prologue ? "_prologue" : "");
}

static void emit_narrow(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    for (int columns = tile.lanes / 2; columns < tile.columns; columns += tile.lanes)
        if (cpu_gemm_narrow_of(isa, dtype, columns))
            cpu_gemm_emit_narrow(module, isa, dtype, columns);
}

/* Of sums in f64, f64 alone. */
static bool stores_directly(cpu_isa isa, kind kind, ir_dtype c)
{
    return !cpu_gemm_has_tiles(isa, kind_dtype[kind]) && (kind == F64 ? c == IR_F64 : c == IR_F32 || c == IR_BF16);
}

static void emit_all(LLVMModuleRef module, cpu_isa isa, kind kind)
{
    char name[32];
    ir_dtype dtype = kind_dtype[kind];
    cpu_gemm_prologue norm = {NULL, load_norm}, twice = {NULL, load_double};
    cpu_gemm_emit_micro(module, isa, dtype);
    emit_narrow(module, isa, dtype);
    for (ir_dtype c = IR_F32; c <= IR_BF16; c++)
        if (stores_directly(isa, kind, c))
            cpu_gemm_emit_direct(module, isa, dtype, c);
    for (lie lie = ALONG_LINES; lie <= STRIDED; lie++)
        for (cpu_gemm_side side = CPU_GEMM_A; side <= CPU_GEMM_B; side++)
            for (int prologue = 0; prologue < (kind == F64 ? 1 : 2); prologue++) {
                cpu_gemm_pack_class class = { isa, dtype, side, lie != ALONG_LINES, lie != STRIDED, kind_memory[kind],
                                              prologue ? side == CPU_GEMM_A ? &norm : &twice : NULL };
                pack_name(name, side, lie, prologue);
                cpu_gemm_emit_pack(module, &class, name);
            }
    ir_dtype c = kind == F64 ? IR_F64 : IR_F32;
    cpu_gemm_store_class plain = {c, false}, accumulate = {c, true}, half = {IR_BF16, false};
    cpu_gemm_finish finish[STORES] = {
        [PLAIN] = {.context = &plain, .element = cpu_gemm_store_plain},
        [ACCUMULATE] = {.context = &accumulate, .element = cpu_gemm_store_plain},
        [TO_BF16] = {.context = &half, .element = cpu_gemm_store_plain},
        [SUMS] = {.context = &plain, .element = store_sums, .column_sums = 2, .row_sums = 1, .row_end = store_row_sums}};
    for (store s = PLAIN; s < STORES; s++)
        if (kind != F64 || s == PLAIN || s == ACCUMULATE)
            cpu_gemm_emit_epilogue(module, isa, dtype, &finish[s], store_names[s]);
}

static cpu_code *code_of(cpu_isa isa, kind kind, cpu_machine *machine)
{
    if (compiled[isa][kind].code == NULL) {
        assert_true(cpu_machine_detect(&compiled[isa][kind].machine, cpu_isa_name(isa)));
        cpu_jit *jit = cpu_jit_new(&compiled[isa][kind].machine);
        cpu_jit_set_verify(jit, true);
        LLVMContextRef context = LLVMContextCreate();
        LLVMModuleRef module = cpu_jit_module(jit, "gemm", context);
        emit_all(module, isa, kind);
        base_bytes object;
        if (!cpu_jit_compile(jit, module, &object) || (compiled[isa][kind].code = cpu_code_load(&object, 1, NULL, 0)) == NULL)
            fail_msg("%s", base_error());
        base_bytes_free(&object);
        LLVMDisposeModule(module);
        LLVMContextDispose(context);
        cpu_jit_free(jit);
    }
    *machine = compiled[isa][kind].machine;
    return compiled[isa][kind].code;
}

static int free_code(void **state)
{
    (void)state;
    for (int isa = 0; isa < CPU_ISA_COUNT; isa++)
        for (int kind = 0; kind < KINDS; kind++)
            cpu_code_free(compiled[isa][kind].code);
    return 0;
}

static void find(const cpu_code *code, const char *name, void *to)
{
    void *at = cpu_code_find(code, name);
    assert_non_null(at);
    memcpy(to, &at, sizeof at);
}

/* -- numbers ---------------------------------------------------------------------------------------------------------- */

static uint32_t random_state = 1;
static float next_random(void)               /* within 1 of 0, of 12 bits, so that sums are not all inexact */
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 20) * 0x1p-11f - 1;
}

static float as_f32(uint16_t half) { uint32_t b = (uint32_t)half << 16; float x; memcpy(&x, &b, 4); return x; }
static uint16_t as_bf16(float x)
{
    uint32_t b;
    memcpy(&b, &x, 4);
    return isnan(x) ? 0x7fc0 : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

static void set_element(void *at, ir_dtype dtype, int64_t i, double x)
{
    if (dtype == IR_F64) ((double *)at)[i] = x;
    else if (dtype == IR_F32) ((float *)at)[i] = (float)x;
    else ((uint16_t *)at)[i] = as_bf16((float)x);
}

static double element(const void *at, ir_dtype dtype, int64_t i)
{
    return dtype == IR_F64 ? ((const double *)at)[i] : dtype == IR_F32 ? (double)((const float *)at)[i] : (double)as_f32(((const uint16_t *)at)[i]);
}

/* lines x k elements in every batch, with a gap after each line, batch and between strided elements. Gaps hold NaN; the last
 * element is the last of a page, and the next page cannot be read. */
enum { GUARD = 64 };
typedef struct { void *block, *at; size_t bytes; int64_t line, k, batch[2]; ir_dtype dtype; } matrix;

static matrix new_matrix(ir_dtype dtype, lie lie, int64_t lines, int64_t k, const int64_t *batch)
{
    matrix x = {.dtype = dtype};
    int64_t step = lie == STRIDED ? 3 : 1;
    if (lie == ALONG_LINES)
        x.line = 1, x.k = lines + 3, x.batch[1] = k * x.k + 5;
    else
        x.k = step, x.line = k * step + 3, x.batch[1] = lines * x.line + 5;
    x.batch[0] = x.batch[1] * batch[1] + 7;
    int64_t last = (batch[0] - 1) * x.batch[0] + (batch[1] - 1) * x.batch[1] + (lines - 1) * x.line + (k - 1) * x.k;
    int64_t count = k > 0 ? last + 1 : 0, page = sysconf(_SC_PAGESIZE), used = count * ir_dtype_bytes(dtype);
    x.bytes = (size_t)((used + page - 1) / page * page + page);
    x.block = mmap(NULL, x.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(x.block != MAP_FAILED);
    assert_int_equal(mprotect((char *)x.block + x.bytes - page, (size_t)page, PROT_NONE), 0);
    x.at = (char *)x.block + x.bytes - page - used;
    for (int64_t i = 0; i < count; i++)
        set_element(x.at, dtype, i, NAN);
    for (int64_t b = 0; b < batch[0] * batch[1]; b++)
        for (int64_t l = 0; l < lines; l++)
            for (int64_t i = 0; i < k; i++)
                set_element(x.at, dtype, b / batch[1] * x.batch[0] + b % batch[1] * x.batch[1] + l * x.line + i * x.k, (double)next_random());
    return x;
}

/* -- the plain loop --------------------------------------------------------------------------------------------------- */

typedef struct { matrix a, b; norm_data norm; } operands;

static double operand_element(const trial *t, const operands *o, bool is_a, int64_t batch, int64_t line, int64_t k)
{
    const matrix *x = is_a ? &o->a : &o->b;
    int64_t at = batch / t->batch[1] * x->batch[0] + batch % t->batch[1] * x->batch[1] + line * x->line + k * x->k;
    float y = (float)element(x->at, x->dtype, at);
    if (t->kind == F64)
        return element(x->at, x->dtype, at);
    if (t->norm && is_a)
        y = (y - o->norm.mean[line]) * o->norm.scale[line] * o->norm.weight[k] + o->norm.bias[k];
    else if (t->norm)
        y += y;
    return kind_dtype[t->kind] == IR_BF16 ? (double)as_f32(as_bf16(y)) : (double)y;
}

/* The element of C before the epilogue. Pairs of dpbf16ps and TDPBF16PS are added in another order. */
static double product_element(const trial *t, const operands *o, int64_t batch, int64_t i, int64_t j, double *size)
{
    double sum64 = 0;
    float sum32 = 0;
    *size = 0;
    for (int64_t k = 0; k < t->k; k++) {
        double a = operand_element(t, o, true, batch, i, k), b = operand_element(t, o, false, batch, j, k);
        *size += fabs(a * b);
        if (t->kind == F64) sum64 = fused(t->isa) ? fma(a, b, sum64) : sum64 + a * b;
        else sum32 = fused(t->isa) ? fmaf((float)a, (float)b, sum32) : sum32 + (float)a * (float)b;
    }
    return t->kind == F64 ? sum64 : (double)sum32;
}

/* -- one trial -------------------------------------------------------------------------------------------------------- */

typedef struct { const cpu_gemm *gemm; cpu_pool *pool; cpu_tasks tasks[CPU_GEMM_PHASES]; char *scratch[3]; } walk;

static void walk_phases(void *context, int thread, int n_threads)
{
    walk *w = context;
    (void)n_threads;
    for (int phase = 0; phase < w->gemm->plan.phases; phase++) {
        for (int64_t task; (task = cpu_next_task(&w->tasks[phase], 1)) < w->gemm->plan.tasks[phase]; )
            cpu_gemm_run(w->gemm, phase, task, w->scratch[thread]);
        cpu_barrier(w->pool);
    }
}

static void run_with_threads(const cpu_gemm *gemm, int threads)
{
    walk w = {.gemm = gemm, .pool = cpu_pool_new(threads)};
    enum { CANARY = 64 };
    size_t bytes = gemm->plan.scratch_bytes;
    for (int i = 0; i < threads; i++) {
        w.scratch[i] = base_alloc(bytes + CANARY);
        memset(w.scratch[i], 0xff, bytes + CANARY);
    }
    for (int i = 0; i < CPU_GEMM_PHASES; i++)
        cpu_tasks_reset(&w.tasks[i]);
    cpu_pool_run(w.pool, walk_phases, &w);
    for (int i = 0; i < threads; i++) {
        for (int j = 0; j < CANARY; j++)
            assert_int_equal((unsigned char)w.scratch[i][bytes + (size_t)j], 0xff);
        base_free(w.scratch[i]);
    }
    cpu_pool_free(w.pool);
}

static const char *describe(const trial *t, char text[256])
{
    snprintf(text, 256, "%s %s, %ldx%ldx%ld, batch %ldx%ld, a %s, b %s%s, store %s, %d threads, %s", cpu_isa_name(t->isa), kind_names[t->kind],
             (long)t->m, (long)t->n, (long)t->k, (long)t->batch[0], (long)t->batch[1], lie_names[t->a], lie_names[t->b], t->norm ? ", prologues" : "",
             store_names[t->store], t->threads,
             t->tuning == &small_blocks ? "small blocks" : t->tuning == &packed ? "packed" : t->tuning == &shared_a ? "A shared" : "usual blocks");
    return text;
}

static float *random_table(int64_t count)
{
    float *table = base_alloc((size_t)(count + 1) * sizeof *table);
    for (int64_t i = 0; i < count; i++)
        table[i] = next_random();
    return table;
}

static void check_sums(const trial *t, const cpu_gemm *gemm, const sums_data *data, ir_dtype dtype)
{
    char text[256];
    int64_t batches = t->batch[0] * t->batch[1], block_rows = gemm->plan.task_rows;
    double total = 0, total_size = 0;
    for (int64_t j = 0; j < t->n; j++) {
        double sum = 0, square = 0, size = 0;
        for (int64_t r = 0; r < batches * t->m; r++) {
            double c = element(data->c.at, dtype, r / t->m * data->c.batch_stride + r % t->m * data->c.row_stride + j);
            sum += c, square += c * c, size += fabs(c);
        }
        total += square, total_size += square;
        double got = (double)((float *)gemm->sums[0].to)[j * 2] - 3;
        if (!(fabs(got - sum) <= 1e-6 * (size + 3) * (double)(1 + batches * t->m / block_rows)))
            fail_msg("%s: column sum %ld: expected %g, got %g", describe(t, text), (long)j, sum, got);
    }
    if (!(fabs((double)*(float *)gemm->sums[1].to - total) <= 1e-5 * (total_size + 1)))
        fail_msg("%s: sum of squares: expected %g, got %g", describe(t, text), total, (double)*(float *)gemm->sums[1].to);
    int64_t width = cpu_gemm_tile_of(t->isa, kind_dtype[t->kind]).columns;
    for (int64_t r = 0; r < batches * t->m; r++)
        for (int64_t tile = 0; tile < data->tiles; tile++) {
            double sum = 0, size = 0, got = (double)data->row_sums[r * data->tiles + tile];
            for (int64_t j = tile * width; j < MIN(t->n, (tile + 1) * width); j++) {
                double c = element(data->c.at, dtype, r / t->m * data->c.batch_stride + r % t->m * data->c.row_stride + j);
                sum += c, size += fabs(c);
            }
            if (!(fabs(got - sum) <= 1e-6 * size + 1e-9))
                fail_msg("%s: row %ld, tile %ld: expected sum %g, got %g", describe(t, text), (long)r, (long)tile, sum, got);
        }
}

/* Runs t, compares with the plain loop, and returns the bytes of C (the caller frees). */
static void *check(const trial *t, size_t *c_bytes)
{
    char text[256], name[32];
    cpu_machine machine;
    cpu_code *code = code_of(t->isa, t->kind, &machine);
    random_state = 99;
    ir_dtype dtype = kind_dtype[t->kind], memory = kind_memory[t->kind];
    operands o = {new_matrix(memory, t->a, t->m, t->k, t->batch), new_matrix(memory, t->b, t->n, t->k, t->batch),
                  {random_table(t->m), random_table(t->m), random_table(t->k), random_table(t->k)}};
    int64_t batches = t->batch[0] * t->batch[1];
    bool plain = !t->norm && memory == dtype;

    cpu_gemm gemm = {.batch_axes = 2, .batch = {t->batch[0], t->batch[1]}};
    cpu_gemm_shape shape = {
        .isa = t->isa, .dtype = dtype, .a = {plain, t->a != ALONG_LINES, t->a != STRIDED}, .b = {plain, t->b != ALONG_LINES, t->b != STRIDED},
        .column_sums = t->store == SUMS ? 2 : 0, .batch = batches, .m = t->m, .n = t->n, .k = t->k};
    gemm.plan = cpu_gemm_make_plan(&shape, &machine, t->tuning);
    cpu_gemm_find_micro(&gemm.code, code, t->isa, dtype);
    if (gemm.plan.narrow)
        cpu_gemm_find_narrow(&gemm.code, code, t->isa, dtype, gemm.plan.narrow);
    ir_dtype c_dtype = t->store == TO_BF16 ? IR_BF16 : t->kind == F64 ? IR_F64 : IR_F32;
    if ((t->store == PLAIN || t->store == TO_BF16) && stores_directly(t->isa, t->kind, c_dtype))
        cpu_gemm_find_direct(&gemm.code, code, dtype, c_dtype);
    pack_name(name, CPU_GEMM_A, t->a, t->norm);
    find(code, name, &gemm.code.pack_a);
    pack_name(name, CPU_GEMM_B, t->b, t->norm);
    find(code, name, &gemm.code.pack_b);
    find(code, store_names[t->store], &gemm.code.epilogue);
    gemm.a = (cpu_gemm_operand){o.a.at, o.a.line, o.a.k, {o.a.batch[0], o.a.batch[1]}, ir_dtype_bytes(memory), &o.norm};
    gemm.b = (cpu_gemm_operand){o.b.at, o.b.line, o.b.k, {o.b.batch[0], o.b.batch[1]}, ir_dtype_bytes(memory), &o.norm};

    /* C: gaps and guards hold 77, elements 0.5. */
    int64_t row_stride = t->n + 5, batch_stride = t->m * row_stride + 3, count = batches * batch_stride;
    *c_bytes = (size_t)((count + 2 * GUARD) * ir_dtype_bytes(c_dtype));
    void *block = base_alloc(*c_bytes), *c = (char *)block + GUARD * ir_dtype_bytes(c_dtype);
    for (int64_t i = -GUARD; i < count + GUARD; i++)
        set_element(c, c_dtype, i, 77);
    for (int64_t r = 0; r < batches * t->m; r++)
        for (int64_t j = 0; j < t->n; j++)
            set_element(c, c_dtype, r / t->m * batch_stride + r % t->m * row_stride + j, 0.5);
    sums_data data = {.c = {c, row_stride, batch_stride}, .rows = t->m};
    data.tiles = (t->n + cpu_gemm_tile_of(t->isa, dtype).columns - 1) / cpu_gemm_tile_of(t->isa, dtype).columns;
    data.row_sums = base_alloc((size_t)(batches * t->m * data.tiles) * sizeof(float));
    gemm.user = &data;
    gemm.n_touched = 1;
    gemm.touched[0] = (cpu_gemm_operand){c, row_stride, 1, {batch_stride * t->batch[1], batch_stride}, ir_dtype_bytes(c_dtype), NULL};
    float *columns = base_alloc((size_t)(2 * t->n) * sizeof *columns), squares = 1e9f;
    for (int64_t j = 0; j < 2 * t->n; j++)
        columns[j] = 3;
    gemm.sums[0] = (cpu_gemm_sum){columns, 2, true, false};
    gemm.sums[1] = (cpu_gemm_sum){&squares, 1, false, true};
    char *workspace = base_alloc(gemm.plan.workspace_bytes + 64);
    memset(workspace, 0xff, gemm.plan.workspace_bytes + 64);
    gemm.workspace = workspace;

    run_with_threads(&gemm, t->threads);

    for (int i = 0; i < 64; i++)
        assert_int_equal((unsigned char)workspace[gemm.plan.workspace_bytes + (size_t)i], 0xff);
    bool exact = dtype != IR_BF16 || t->isa < CPU_AVX512BF16;
    for (int64_t r = 0; r < batches * t->m; r++)
        for (int64_t j = 0; j < t->n; j++) {
            double size, sum = product_element(t, &o, r / t->m, r % t->m, j, &size);
            double expected = sum + (t->store == ACCUMULATE ? 0.5 : 0), got = element(c, c_dtype, r / t->m * batch_stride + r % t->m * row_stride + j);
            if (t->kind != F64) expected = (double)(float)expected;
            if (c_dtype == IR_BF16) expected = (double)as_f32(as_bf16((float)expected));
            double tolerance = exact ? 0 : 2e-7 * size * sqrt((double)t->k) + (c_dtype == IR_BF16 ? 0.008 * fabs(expected) : 0);
            if (!(fabs(got - expected) <= tolerance))
                fail_msg("%s: C[%ld,%ld,%ld]: expected %.9g, got %.9g, tolerance %.2g", describe(t, text), (long)(r / t->m), (long)(r % t->m), (long)j,
                         expected, got, tolerance);
        }
    for (int64_t i = -GUARD; i < count + GUARD; i++) {
        bool gap = i < 0 || i >= count || i % batch_stride >= t->m * row_stride || i % batch_stride % row_stride >= t->n;
        if (gap && element(c, c_dtype, i) != 77)
            fail_msg("%s: written outside of C, at element %ld", describe(t, text), (long)i);
    }
    if (t->store == SUMS)
        check_sums(t, &gemm, &data, c_dtype);

    munmap(o.a.block, o.a.bytes), munmap(o.b.block, o.b.bytes);
    base_free((void *)o.norm.mean), base_free((void *)o.norm.scale), base_free((void *)o.norm.weight), base_free((void *)o.norm.bias);
    base_free(data.row_sums), base_free(columns), base_free(workspace);
    return block;
}

static void check_only(const trial *t)
{
    size_t bytes;
    base_free(check(t, &bytes));
}

/* -- the tests -------------------------------------------------------------------------------------------------------- */

static cpu_machine this_machine(void)
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    return machine;
}

static const int64_t sizes[][3] = {{1, 1, 1}, {1, 33, 7}, {13, 17, 1}, {12, 32, 48}, {37, 65, 129}, {5, 3, 2}, {48, 16, 33}, {25, 96, 64}, {3, 40, 0}, {31, 23, 20}};

/* The layouts, by turns: all nine pairs come up for every ISA and kind. */
static void layouts_and_sizes(void **state)
{
    (void)state;
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (kind kind = F32; kind < KINDS; kind++)
            for (size_t s = 0; s < COUNT_OF(sizes); s++)
                for (int layout = 0; layout < 9; layout++) {
                    trial t = {.isa = isa, .kind = kind, .a = layout / 3, .b = layout % 3, .m = sizes[s][0], .n = sizes[s][1], .k = sizes[s][2],
                               .batch = {1, 1}, .threads = 1, .tuning = &cpu_gemm_default_tuning};
                    check_only(&t);
                    t.tuning = &small_blocks, t.threads = 2;
                    check_only(&t);
                    t.tuning = (layout + (int)s) % 2 ? &packed : &shared_a;
                    check_only(&t);
                }
}

static void prologues(void **state)
{
    (void)state;
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (kind kind = F32; kind < KINDS; kind++)
            for (size_t s = 0; s < COUNT_OF(sizes) && kind != F64; s++)
                for (int layout = 0; layout < 9; layout++) {
                    trial t = {.isa = isa, .kind = kind, .a = layout / 3, .b = layout % 3, .norm = true, .m = sizes[s][0], .n = sizes[s][1],
                               .k = sizes[s][2], .batch = {1, 1}, .threads = 2, .tuning = layout % 2 ? &small_blocks : &cpu_gemm_default_tuning};
                    check_only(&t);
                }
}

static void epilogues(void **state)
{
    (void)state;
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (kind kind = F32; kind < KINDS; kind++)
            for (store store = PLAIN; store < STORES; store++)
                for (size_t s = 0; s < COUNT_OF(sizes); s++) {
                    if (kind == F64 && store != PLAIN && store != ACCUMULATE)
                        continue;
                    trial t = {.isa = isa, .kind = kind, .a = ALONG_K, .b = ALONG_LINES, .store = store, .m = sizes[s][0], .n = sizes[s][1],
                               .k = sizes[s][2], .batch = {1, 1}, .threads = 2, .tuning = s % 2 ? &small_blocks : &cpu_gemm_default_tuning};
                    check_only(&t);
                }
}

static void batches(void **state)
{
    (void)state;
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (kind kind = F32; kind < KINDS; kind++)
            for (int layout = 0; layout < 9; layout++) {
                trial t = {.isa = isa, .kind = kind, .a = layout / 3, .b = layout % 3, .store = kind == F64 ? PLAIN : SUMS, .m = 14, .n = 35, .k = 40,
                           .batch = {2, 3}, .threads = 3, .tuning = layout % 3 == 0 ? &small_blocks : layout % 3 == 1 ? &packed : &cpu_gemm_default_tuning};
                check_only(&t);
            }
}

/* Shapes large enough for the usual blocks to be several, each way of cutting. */
static void large_shapes(void **state)
{
    (void)state;
    static const int64_t large[][3] = {{300, 200, 700}, {1100, 90, 130}, {70, 1000, 530}, {130, 70, 2100}, {60, 50, 4000}, {40, 70, 7000}};
    for (kind kind = F32; kind < KINDS; kind++)
        for (size_t s = 0; s < COUNT_OF(large); s++) {
            trial t = {.isa = this_machine().own_isa, .kind = kind, .a = s % 3, .b = (s + kind) % 3, .m = large[s][0], .n = large[s][1], .k = large[s][2],
                       .batch = {1, 1}, .threads = 2, .tuning = &cpu_gemm_default_tuning};
            check_only(&t);
        }
}

static void same_bits_for_any_threads_and_blocks(void **state)
{
    (void)state;
    const cpu_gemm_tuning *tunings[] = {&cpu_gemm_default_tuning, &small_blocks, &packed, &shared_a};
    for (cpu_isa isa = CPU_GENERIC; isa <= this_machine().best_isa; isa++)
        for (kind kind = F32; kind < KINDS; kind++) {
            void *first = NULL;
            size_t bytes;
            for (int i = 0; i < 12; i++) {
                trial t = {.isa = isa, .kind = kind, .a = ALONG_K, .b = ALONG_LINES, .m = 70, .n = 80, .k = 200, .batch = {1, 1},
                           .threads = 1 + i % 3, .tuning = tunings[i / 3]};
                void *c = check(&t, &bytes);
                if (first == NULL) {
                    first = c;
                    continue;
                }
                char text[256];
                if (memcmp(first, c, bytes) != 0)
                    fail_msg("%s: other bits than with 1 thread and usual blocks", describe(&t, text));
                base_free(c);
            }
            base_free(first);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_and_sizes),
        cmocka_unit_test(prologues),
        cmocka_unit_test(epilogues),
        cmocka_unit_test(batches),
        cmocka_unit_test(large_shapes),
        cmocka_unit_test(same_bits_for_any_threads_and_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, free_code);
}
