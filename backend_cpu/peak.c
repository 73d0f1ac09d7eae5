/* What the machine can do, measured: multiply-adds on registers alone, by the instructions that products use at the ISA in force, and
 * memory that no cache holds, read and updated in place as an optimizer does. All threads at once, as in a step.
 *
 * The code is generated: what was compiled with the program knows no instruction set beyond the least. A rate is that of the best
 * of several rounds: what the others lost went to somebody else on the machine. */
#include "backend_cpu/peak.h"

#include <string.h>

#include "backend_cpu/gemm_emit.h"

/* -- the code ------------------------------------------------------------------------------------------------------------ */

/* As many sums as hide the latency of a multiply-add (4 cycles, 2 a cycle) and leave registers for its operands: 24 of 32 registers,
 * 12 of 16. */
enum { MAX_SUMS = 24, FEW_SUMS = 12, TILES = 4, TILE_FLOPS = 2 * 16 * 16 * 32, PACES = 4 };

static int sums_of(cpu_isa isa) { return isa >= CPU_AVX512 ? MAX_SUMS : FEW_SUMS; }
static bool has_pairs(cpu_isa isa) { return cpu_gemm_unit_of(isa, IR_BF16).k_per_unit == 2; }

/* Of one turn of the loop. Where bf16 is widened before it is multiplied, its peak is that of f32. */
static double turn_flops(const cpu_machine *machine, ir_dtype dtype)
{
    if (dtype == IR_BF16 && cpu_gemm_has_tiles(machine->isa, dtype))
        return TILES * TILE_FLOPS;
    return 2.0 * sums_of(machine->isa) * machine->f32_lanes * (dtype == IR_BF16 && has_pairs(machine->isa) ? 2 : 1);
}

static value call_intrinsic(const emitter *e, const char *name, value *args, unsigned n)
{
    value function = LLVMGetIntrinsicDeclaration(e->v.module, LLVMLookupIntrinsicID(name, strlen(name)), NULL, 0);
    LLVMTypeRef type = LLVMGlobalGetValueType(function), parameters[4];
    LLVMGetParamTypes(type, parameters);
    for (unsigned i = 0; i < n; i++)
        if (LLVMTypeOf(args[i]) != parameters[i])
            args[i] = LLVMBuildBitCast(e->v.builder, args[i], parameters[i], "");
    return LLVMBuildCall2(e->v.builder, type, function, args, n, "");
}

/* do { ... } while (++i < turns) */
typedef struct { value i, turns; block before, body; } turning;

static turning begin_turns(const emitter *e, value turns)
{
    turning t = { .turns = turns, .before = LLVMGetInsertBlock(e->v.builder), .body = new_block(e) };
    LLVMBuildBr(e->v.builder, t.body);
    go_on_at(e, t.body);
    t.i = LLVMBuildPhi(e->v.builder, e->i64, "");
    return t;
}

static void end_turns(const emitter *e, const turning *t)
{
    value next = iadd_constant(e, t->i, 1), zero = constant(e, 0);
    block last = LLVMGetInsertBlock(e->v.builder), after = new_block(e);
    LLVMAddIncoming(t->i, (value[]){ zero, next }, (block[]){ t->before, last }, 2);
    LLVMBuildCondBr(e->v.builder, is_less(e, next, t->turns), t->body, after);
    go_on_at(e, after);
}

/* void (turns, at): sum[i] += a * b for all i, turns times. a and b are read from at, so that nothing is known of them; the sums go
 * there in the end. */
static void emit_vectors(LLVMModuleRef module, const cpu_machine *machine, const char *name, bool pairs)
{
    emitter e = begin_function(module, machine->isa, IR_F32, name, "ip");
    LLVMTypeRef vector = cpu_vtype(&e.v, e.sum);
    value at = LLVMGetParam(e.function, 1), a = cpu_vload(&e.v, e.sum, at, NULL);
    value b = cpu_vload(&e.v, e.sum, advance(&e, at, constant(&e, 64)), NULL), sum[MAX_SUMS], next[MAX_SUMS];
    int n = sums_of(machine->isa);
    turning t = begin_turns(&e, LLVMGetParam(e.function, 0));
    for (int i = 0; i < n; i++)
        sum[i] = LLVMBuildPhi(e.v.builder, vector, "");
    for (int i = 0; i < n; i++) {
        next[i] = pairs ? call_intrinsic(&e, "llvm.x86.avx512bf16.dpbf16ps.512", (value[]){ sum[i], a, b }, 3) : cpu_vfma(&e.v, a, b, sum[i]);
        LLVMAddIncoming(sum[i], (value[]){ LLVMConstNull(vector), next[i] }, (block[]){ t.before, t.body }, 2);
    }
    end_turns(&e, &t);
    for (int i = 0; i < n; i++)
        cpu_vstore(&e.v, next[i], advance(&e, at, constant(&e, 64 * i)), NULL);
    end_function(&e);
}

/* The same on four tiles; at begins with a configuration of tiles. */
static void emit_tiles(LLVMModuleRef module, const cpu_machine *machine, const char *name)
{
    emitter e = begin_function(module, machine->isa, IR_BF16, name, "ip");
    value at = LLVMGetParam(e.function, 1);
    LLVMTypeRef i8 = LLVMInt8TypeInContext(e.v.context);
    value tile[8];
    for (unsigned i = 0; i < 8; i++)
        tile[i] = LLVMConstInt(i8, i, 0);
    call_intrinsic(&e, "llvm.x86.ldtilecfg", &at, 1);
    for (int i = 0; i < 8; i++)
        call_intrinsic(&e, "llvm.x86.tilezero", &tile[i], 1);
    turning t = begin_turns(&e, LLVMGetParam(e.function, 0));
    for (int i = 0; i < TILES; i++)
        call_intrinsic(&e, "llvm.x86.tdpbf16ps", (value[]){ tile[i], tile[4 + i / 2], tile[6 + i % 2] }, 3);
    end_turns(&e, &t);
    call_intrinsic(&e, "llvm.x86.tilerelease", NULL, 0);
    end_function(&e);
}

/* void (turns, at): PACES vectors a turn are read and added up; or read, multiplied by what at begins with, and written back. */
static void emit_stream(LLVMModuleRef module, const cpu_machine *machine, const char *name, bool update)
{
    emitter e = begin_function(module, machine->isa, IR_F32, name, "ip");
    LLVMTypeRef vector = cpu_vtype(&e.v, e.sum);
    value at = LLVMGetParam(e.function, 1), factor = cpu_vload(&e.v, e.sum, at, NULL), sum[PACES], next[PACES], x[PACES];
    int64_t bytes = machine->f32_lanes * 4;
    turning t = begin_turns(&e, LLVMGetParam(e.function, 0));
    for (int i = 0; i < PACES; i++)
        sum[i] = LLVMBuildPhi(e.v.builder, vector, "");
    value here = advance(&e, at, imul_constant(&e, t.i, PACES * bytes));
    for (int i = 0; i < PACES; i++) {
        x[i] = cpu_vload(&e.v, e.sum, advance(&e, here, constant(&e, i * bytes)), NULL);
        next[i] = LLVMBuildFAdd(e.v.builder, sum[i], x[i], "");
        LLVMAddIncoming(sum[i], (value[]){ LLVMConstNull(vector), next[i] }, (block[]){ t.before, t.body }, 2);
    }
    for (int i = 0; update && i < PACES; i++) {
        value y = LLVMBuildFMul(e.v.builder, x[i], factor, "");
        cpu_vstore(&e.v, y, advance(&e, here, constant(&e, i * bytes)), NULL);
    }
    end_turns(&e, &t);
    value all = next[0];
    for (int i = 1; i < PACES; i++)
        all = LLVMBuildFAdd(e.v.builder, all, next[i], "");
    cpu_vstore(&e.v, update ? factor : all, at, NULL);
    end_function(&e);
}

typedef void peak_function(int64_t turns, void *at);
typedef struct { peak_function *f32, *bf16, *read, *update; } peak_code;

static bool build(void *context, int i, LLVMModuleRef module)
{
    const cpu_machine *machine = context;
    (void)i;
    emit_vectors(module, machine, "peak_f32", false);
    if (cpu_gemm_has_tiles(machine->isa, IR_BF16))
        emit_tiles(module, machine, "peak_bf16");
    else
        emit_vectors(module, machine, "peak_bf16", has_pairs(machine->isa));
    emit_stream(module, machine, "peak_read", false);
    emit_stream(module, machine, "peak_update", true);
    return true;
}

static cpu_code *generate(const cpu_machine *machine, peak_code *functions)
{
    cpu_jit *jit = cpu_jit_new(machine);
    base_bytes object = {0};
    cpu_code *code = NULL;
    if (jit && cpu_jit_compile_many(jit, 1, build, (void *)machine, 1, &object) && (code = cpu_code_load(&object, 1, NULL, 0))) {
        functions->f32 = (peak_function *)cpu_code_find(code, "peak_f32");
        functions->bf16 = (peak_function *)cpu_code_find(code, "peak_bf16");
        functions->read = (peak_function *)cpu_code_find(code, "peak_read");
        functions->update = (peak_function *)cpu_code_find(code, "peak_update");
    }
    base_bytes_free(&object);
    cpu_jit_free(jit);
    return code;
}

/* -- running it ------------------------------------------------------------------------------------------------------------- */

enum { ROUNDS = 7, ROUND_NS = 10000000, SCRATCH_BYTES = 4096 };

typedef struct { peak_function *function; cpu_pool *pool; int64_t turns; char *at; size_t stride; int rounds; double best_ns; } trial;

/* Thread 0 takes the time from one barrier to the next: that of the slowest thread. */
static void run_trial(void *context, int thread, int n_threads)
{
    trial *t = context;
    for (int i = 0; i < t->rounds; i++) {
        if (n_threads > 1)
            cpu_barrier(t->pool);
        int64_t start = base_now_ns();
        t->function(t->turns, t->at + t->stride * (size_t)thread);
        if (n_threads > 1)
            cpu_barrier(t->pool);
        double ns = (double)(base_now_ns() - start);
        if (thread == 0 && (i == 0 || ns < t->best_ns))
            t->best_ns = ns;
    }
}

static double best_ns(cpu_pool *pool, peak_function *function, int64_t turns, char *at, size_t stride, int rounds)
{
    trial t = { .function = function, .pool = pool, .turns = turns, .at = at, .stride = stride, .rounds = rounds };
    cpu_pool_run(pool, run_trial, &t);
    return MAX(t.best_ns, 1);
}

/* Flops, or bytes, a nanosecond on all threads: as many turns as fill a round. */
static double rate(cpu_pool *pool, peak_function *function, double of_turn, char *at)
{
    int64_t turns = 1000;
    while (best_ns(pool, function, turns, at, SCRATCH_BYTES, 1) < ROUND_NS / 4.0 && turns < (int64_t)1 << 40)
        turns *= 2;
    turns *= 4;
    return of_turn * (double)turns * cpu_pool_threads(pool) / best_ns(pool, function, turns, at, SCRATCH_BYTES, ROUNDS);
}

/* Rows of 64 bytes, 16 of them; all eight tiles. */
static void configure_tiles(char *at)
{
    at[0] = 1;
    for (int i = 0; i < 8; i++) {
        at[16 + 2 * i] = 64;
        at[48 + i] = 16;
    }
}

static bool measure_arithmetic(const cpu_machine *machine, cpu_pool *pool, const peak_code *code, ir_peak *peak)
{
    int threads = cpu_pool_threads(pool);
    char *at = base_alloc((size_t)threads * SCRATCH_BYTES);
    peak->f32_gflops = rate(pool, code->f32, turn_flops(machine, IR_F32), at);
    memset(at, 0, (size_t)threads * SCRATCH_BYTES);
    for (int i = 0; cpu_gemm_has_tiles(machine->isa, IR_BF16) && i < threads; i++)
        configure_tiles(at + (size_t)i * SCRATCH_BYTES);
    peak->bf16_gflops = rate(pool, code->bf16, turn_flops(machine, IR_BF16), at);
    base_free(at);
    return true;
}

/* Twice the shared cache, where the machine has that much to spare. */
static size_t stream_bytes(const cpu_machine *machine)
{
    enum { LEAST = 64 << 20, MOST = 1 << 30 };
    size_t wanted = MIN(MAX(2 * machine->l3_bytes, (size_t)4 * LEAST), (size_t)MOST), spare = base_memory_now().available_bytes / 4;
    return MAX(MIN(wanted, spare), (size_t)LEAST);
}

static bool measure_memory(const cpu_machine *machine, cpu_pool *pool, const peak_code *code, ir_peak *peak)
{
    int threads = cpu_pool_threads(pool);
    size_t turn = (size_t)machine->f32_lanes * 4 * PACES, turns = stream_bytes(machine) / (size_t)threads / turn, own = turns * turn;
    char *at = base_try_alloc(own * (size_t)threads);
    if (!at)
        return base_fail(BASE_FAILURE, "peak: %zu MB to measure memory with were refused by the system", own * (size_t)threads >> 20);
    best_ns(pool, code->update, (int64_t)turns, at, own, 1);               /* touches it */
    double bytes = (double)own * threads;
    peak->read_gbs = bytes / best_ns(pool, code->read, (int64_t)turns, at, own, 3);
    peak->update_gbs = 2 * bytes / best_ns(pool, code->update, (int64_t)turns, at, own, 3);
    base_free(at);
    return true;
}

bool cpu_measure_peak(const cpu_machine *machine, cpu_pool *pool, ir_peak *peak)
{
    peak_code functions = {0};
    cpu_code *code = generate(machine, &functions);
    *peak = (ir_peak){ .threads = cpu_pool_threads(pool) };
    bool measured = code && measure_arithmetic(machine, pool, &functions, peak) && measure_memory(machine, pool, &functions, peak);
    cpu_code_free(code);
    return measured;
}
