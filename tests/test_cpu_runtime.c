/* What the CPU backend stands on: the machine, compiling, loading, its keys in the cache of objects.
 * One test alone: build/tests/test_cpu_runtime 'loader*' */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Linker.h>

#include "backend_cpu/runtime.h"
#include "tests/scratch.h"

/* -- machine ---------------------------------------------------------------------------------------------------------- */

static void machine_is_detected(void **state)
{
    (void)state;
    cpu_machine m;
    assert_true(cpu_machine_detect(&m, ""));
    assert_int_equal(m.isa, m.own_isa);
    assert_true(m.cpus >= 1 && m.name[0]);
    assert_true(m.l1d_bytes >= 4096 && m.l2_bytes >= m.l1d_bytes && m.l3_bytes > 0);
    assert_true(m.f32_lanes == 4 || m.f32_lanes == 8 || m.f32_lanes == 16);
    assert_int_equal(strlen(m.digest), 32);
    base_memory memory = base_memory_now();
    assert_true(memory.total_bytes >= memory.available_bytes && memory.available_bytes > 0);
}

static void machine_levels_by_name(void **state)
{
    (void)state;
    static const int lanes[CPU_ISA_COUNT] = {4, 8, 16, 16, 16};
    cpu_machine best, m;
    assert_true(cpu_machine_detect(&best, ""));
    for (int i = 0; i < CPU_ISA_COUNT; i++) {
        bool can = i <= (int)best.best_isa;
        assert_int_equal(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)), can);
        if (!can) {
            assert_int_equal(base_error_kind_of(), BASE_MISTAKE);
            assert_non_null(strstr(base_error(), cpu_isa_name((cpu_isa)i)));
            continue;
        }
        assert_int_equal(m.isa, i);
        assert_int_equal(m.f32_lanes, lanes[i]);
        assert_int_equal(strcmp(m.digest, best.digest) == 0, m.isa == best.isa);
    }
    assert_false(cpu_machine_detect(&m, "sse9"));
    assert_string_equal(base_error(), "isa: expected generic, avx2, avx512, avx512bf16 or amx, got \"sse9\"");
    assert_int_equal(base_error_kind_of(), BASE_MISTAKE);

    setenv("RAX_ISA", "generic", 1);
    assert_true(cpu_machine_detect(&m, NULL));
    assert_int_equal(m.isa, CPU_GENERIC);
    setenv("RAX_ISA", "sse9", 1);
    assert_false(cpu_machine_detect(&m, NULL));
    assert_string_equal(base_error(), "RAX_ISA: expected generic, avx2, avx512, avx512bf16 or amx, got \"sse9\"");
    unsetenv("RAX_ISA");
}

/* -- compiling -------------------------------------------------------------------------------------------------------- */

/* A module with what kernels have: vectors, a constant pool, a jump table, static data, calls and data outside. V is the
 * vector type, L the lanes. */
static const char kernels_ir[] =
    "@count = internal global i32 0\n"
    "@limits = internal constant [3 x double] [double 1.5, double 2.5, double 4.5]\n"
    "@host_value = external global float\n"
    "declare float @host_twice(float)\n"
    "declare float @expf(float)\n"
    "declare V @llvm.fma.vLf32(V, V, V)\n"
    "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)\n"
    "define void @axpy(ptr %x, ptr %y, i64 %n) {\n"        /* y = x * RAMP + y; n is a multiple of L */
    "entry: br label %loop\n"
    "loop: %i = phi i64 [0, %entry], [%next, %loop]\n"
    "  %px = getelementptr float, ptr %x, i64 %i\n  %py = getelementptr float, ptr %y, i64 %i\n"
    "  %vx = load V, ptr %px, align 4\n  %vy = load V, ptr %py, align 4\n"
    "  %r = call V @llvm.fma.vLf32(V %vx, V RAMP, V %vy)\n"
    "  store V %r, ptr %py, align 4\n  %next = add i64 %i, L\n  %more = icmp ult i64 %next, %n\n"
    "  br i1 %more, label %loop, label %done\n"
    "done: ret void }\n"
    "define float @outside(float %x) {\n"
    "  %e = call float @expf(float %x)\n  %t = call float @host_twice(float %x)\n  %h = load float, ptr @host_value\n"
    "  %p = fmul float %t, %h\n  %s = fadd float %e, %p\n  ret float %s }\n"
    "define void @clear(ptr %at, i64 %size) { call void @llvm.memset.p0.i64(ptr %at, i8 0, i64 %size, i1 false) ret void }\n"
    "define double @limit(i64 %i) { %p = getelementptr [3 x double], ptr @limits, i64 0, i64 %i\n"
    "  %v = load double, ptr %p\n  ret double %v }\n"
    "define i32 @next() { %c = load i32, ptr @count\n  %d = add i32 %c, 1\n  store i32 %d, ptr @count\n  ret i32 %d }\n"
    "define i32 @choose(i32 %i, i32 %v) {\n"
    "  switch i32 %i, label %z [i32 0, label %a i32 1, label %b i32 2, label %c i32 3, label %d i32 4, label %e i32 5, label %f]\n"
    "a: %ra = add i32 %v, 7\n ret i32 %ra\nb: %rb = mul i32 %v, %v\n ret i32 %rb\nc: %rc = call i32 @next()\n ret i32 %rc\n"
    "d: %rd = xor i32 %v, 85\n ret i32 %rd\ne: %re = shl i32 %v, 3\n ret i32 %re\nf: %rf = sdiv i32 %v, 3\n ret i32 %rf\n"
    "z: ret i32 -1 }\n";

/* Another object, which calls the first. */
static const char caller_ir[] =
    "declare i32 @choose(i32, i32)\n"
    "define i32 @choose_twice(i32 %i, i32 %v) { %a = call i32 @choose(i32 %i, i32 %v)\n"
    "  %b = call i32 @choose(i32 %i, i32 %a)\n  ret i32 %b }\n";

static float host_value = 10;
static float host_twice(float x) { return 2 * x; }
static const cpu_symbol externals[] = { { "host_value", &host_value }, { "host_twice", (void *)host_twice } };
enum { EXTERNALS = COUNT_OF(externals) };

static float ramp(int lane) { return 0.5f + (float)lane; }

/* The text with V, L and RAMP, as words, replaced. */
static char *for_lanes(const char *ir, int lanes)
{
    base_text text = {0};
    for (const char *c = ir; *c; ) {
        if (strncmp(c, "RAMP", 4) == 0) {
            for (int i = 0; i < lanes; i++)
                base_text_add(&text, "%sfloat %.1f", i ? ", " : "<", ramp(i));
            base_text_add(&text, ">");
            c += 4;
        } else if (strncmp(c, "V ", 2) == 0 || strncmp(c, "V,", 2) == 0 || strncmp(c, "V)", 2) == 0) {
            base_text_add(&text, "<%d x float>", lanes);
            c++;
        } else if (*c == 'L') {
            base_text_add(&text, "%d", lanes);
            c++;
        } else {
            base_text_add(&text, "%c", *c++);
        }
    }
    return base_text_take(&text);
}

static void add_ir(LLVMModuleRef module, const char *ir)
{
    LLVMModuleRef part;
    char *message = NULL;
    LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(ir, strlen(ir), "test");
    if (LLVMParseIRInContext(LLVMGetModuleContext(module), buffer, &part, &message))
        fail_msg("LLVM: %s in:\n%s", message, ir);
    LLVMSetTarget(part, LLVMGetTarget(module));
    LLVMSetDataLayout(part, LLVMGetDataLayoutStr(module));
    assert_int_equal(LLVMLinkModules2(module, part), 0);
}

static bool build_kernels(void *context, int i, LLVMModuleRef module)
{
    const cpu_machine *machine = context;
    char *ir = for_lanes(i == 0 ? kernels_ir : caller_ir, machine->f32_lanes);
    add_ir(module, ir);
    base_free(ir);
    return true;
}

static void compile_kernels(const char *isa, base_bytes objects[2])
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, isa));
    cpu_jit *jit = cpu_jit_new(&machine);
    assert_non_null(jit);
    cpu_jit_set_verify(jit, true);
    if (!cpu_jit_compile_many(jit, 2, build_kernels, &machine, 2, objects))
        fail_msg("%s", base_error());
    cpu_jit_free(jit);
}

typedef void axpy_fn(const float *x, float *y, int64_t n);
typedef float outside_fn(float x);
typedef void clear_fn(void *at, int64_t size);
typedef double limit_fn(int64_t i);
typedef int choose_fn(int i, int v);

static void check_kernels(const cpu_code *code, int lanes, const char *where)
{
    enum { N = 64 };
    static const int chosen[7] = {107, 10000, 1, 49, 800, 33, -1}, twice[7] = {114, 100000000, 3, 100, 6400, 11, -1};
    axpy_fn *axpy = (axpy_fn *)cpu_code_find(code, "axpy");
    outside_fn *outside = (outside_fn *)cpu_code_find(code, "outside");
    clear_fn *clear = (clear_fn *)cpu_code_find(code, "clear");
    limit_fn *limit = (limit_fn *)cpu_code_find(code, "limit");
    choose_fn *choose = (choose_fn *)cpu_code_find(code, "choose"), *both = (choose_fn *)cpu_code_find(code, "choose_twice");
    if (!axpy || !outside || !clear || !limit || !choose || !both)
        fail_msg("%s: expected every function to be found", where);
    assert_null(cpu_code_find(code, "no_such_function"));
    assert_null(cpu_code_find(code, "count"));

    float x[N], y[N + 1];
    for (int i = 0; i < N; i++) {
        x[i] = 0.1f * (float)i;
        y[i] = 3;
    }
    y[N] = 42;
    axpy(x, y, N);
    for (int i = 0; i < N; i++) {
        float expected = fmaf(x[i], ramp(i % lanes), 3);
        if (y[i] != expected)
            fail_msg("%s: axpy[%d]: expected %.9g, got %.9g", where, i, expected, y[i]);
    }
    assert_true(y[N] == 42);
    host_value = 10;
    assert_true(outside(0.25f) == expf(0.25f) + 5);
    host_value = 20;
    assert_true(outside(0.25f) == expf(0.25f) + 10);
    clear(x, sizeof x);
    for (int i = 0; i < N; i++)
        assert_true(x[i] == 0);
    assert_true(limit(0) == 1.5 && limit(2) == 4.5);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(choose(i, 100), chosen[i]);
        assert_int_equal(both(i, 100), twice[i]);
    }
}

static void each_level_compiles(void **state)
{
    (void)state;
    cpu_machine best;
    assert_true(cpu_machine_detect(&best, ""));
    for (int i = 0; i <= (int)best.best_isa; i++) {
        base_bytes objects[2];
        cpu_machine m;
        assert_true(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)));
        compile_kernels(cpu_isa_name((cpu_isa)i), objects);
        cpu_code *own = cpu_code_load(objects, 2, externals, EXTERNALS);
        if (!own)
            fail_msg("%s", base_error());
        check_kernels(own, m.f32_lanes, cpu_isa_name((cpu_isa)i));
        cpu_code *orc = cpu_code_load_orc(objects, 2, externals, EXTERNALS);
        if (!orc)
            fail_msg("%s", base_error());
        check_kernels(orc, m.f32_lanes, "ORC");
        assert_true(cpu_code_bytes(own) > 0 && cpu_code_bytes(orc) > 0);
        cpu_code_free(own);
        cpu_code_free(orc);
        base_bytes_free(&objects[0]);
        base_bytes_free(&objects[1]);
    }
    cpu_code_free(NULL);
}

/* The widths that a level has are used whole, and none above: the trap of the missing attributes. */
static void levels_use_their_vectors(void **state)
{
    (void)state;
    static const char *const registers[CPU_ISA_COUNT] = {"%xmm", "%ymm", "%zmm", "%zmm", "%zmm"};
    cpu_machine best;
    assert_true(cpu_machine_detect(&best, ""));
#if !defined(__x86_64__)
    skip();
#endif
    for (int i = 0; i <= (int)best.best_isa; i++) {
        cpu_machine m;
        base_bytes object;
        size_t size;
        assert_true(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)));
        cpu_jit *jit = cpu_jit_new(&m);
        cpu_jit_set_dump(jit, scratch);
        LLVMContextRef llvm = LLVMContextCreate();
        LLVMModuleRef module = cpu_jit_module(jit, "dump/of a kernel", llvm);
        assert_true(build_kernels(&m, 0, module));
        assert_true(cpu_jit_compile(jit, module, &object));
        char *ir = read_file(in_scratch("dump_of_a_kernel.ll"), &size);
        assert_non_null(strstr(ir, "define void @axpy"));
        char *optimised = read_file(in_scratch("dump_of_a_kernel.opt.ll"), &size);
        assert_non_null(strstr(optimised, "\"prefer-vector-width\""));
        char *assembly = read_file(in_scratch("dump_of_a_kernel.s"), &size);
        for (int r = 0; r < CPU_AVX512BF16; r++) {                /* scalars are in xmm at every level */
            bool expected = r == 0 || strcmp(registers[r], registers[i]) == 0;
            if ((strstr(assembly, registers[r]) != NULL) != expected)
                fail_msg("%s: %s registers: expected %s", cpu_isa_name((cpu_isa)i), registers[r], expected ? "some" : "none");
        }
        base_free(ir);
        base_free(optimised);
        base_free(assembly);
        base_bytes_free(&object);

        cpu_jit_set_dump(jit, in_scratch("no-such-folder"));
        assert_false(cpu_jit_compile(jit, module, &object));
        assert_non_null(strstr(base_error(), "no-such-folder/dump_of_a_kernel.ll: No such file"));
        LLVMDisposeModule(module);
        LLVMContextDispose(llvm);
        cpu_jit_free(jit);
    }
}

/* Module i has function f<i>, which returns i; those named in `bad` fail. */
typedef struct { int bad[3]; } batch;

static bool build_numbered(void *context, int i, LLVMModuleRef module)
{
    const batch *b = context;
    char ir[128];
    for (size_t k = 0; k < COUNT_OF(b->bad); k++)
        if (b->bad[k] == i)
            return base_fail(BASE_MISTAKE, "module %d is bad", i);
    snprintf(ir, sizeof ir, "define i32 @f%d() { ret i32 %d }", i, i);
    add_ir(module, ir);
    return true;
}

static void many_modules_compile_in_parallel(void **state)
{
    (void)state;
    enum { MODULES = 23 };
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    batch all = { .bad = {-1, -1, -1} }, some = { .bad = {17, 5, 9} };
    base_bytes alone[MODULES], together[MODULES];
    assert_true(cpu_jit_compile_many(jit, MODULES, build_numbered, &all, 1, alone));
    assert_true(cpu_jit_compile_many(jit, MODULES, build_numbered, &all, 3, together));
    for (int i = 0; i < MODULES; i++) {
        assert_int_equal(alone[i].size, together[i].size);
        assert_memory_equal(alone[i].at, together[i].at, alone[i].size);
    }
    cpu_code *code = cpu_code_load(together, MODULES, NULL, 0);
    assert_non_null(code);
    for (int i = 0; i < MODULES; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", i);
        int (*f)(void) = (int (*)(void))cpu_code_find(code, name);
        assert_non_null(f);
        assert_int_equal(f(), i);
        base_bytes_free(&alone[i]);
        base_bytes_free(&together[i]);
    }
    cpu_code_free(code);

    for (int threads = 1; threads <= 3; threads++) {
        assert_false(cpu_jit_compile_many(jit, MODULES, build_numbered, &some, threads, together));
        assert_string_equal(base_error(), "module 5 is bad");
        assert_int_equal(base_error_kind_of(), BASE_MISTAKE);
        for (int i = 0; i < MODULES; i++)
            assert_null(together[i].at);
    }
    assert_true(cpu_jit_compile_many(jit, 0, build_numbered, &all, 0, together));
    cpu_jit_free(jit);
    code = cpu_code_load(NULL, 0, NULL, 0);
    assert_non_null(code);
    assert_null(cpu_code_find(code, "f0"));
    cpu_code_free(code);
}

static bool build_text(void *context, int i, LLVMModuleRef module)
{
    add_ir(module, ((const char *const *)context)[i]);
    return true;
}

static void what_llvm_rejects_is_an_error(void **state)
{
    (void)state;
    static const char *const assembly[] = {
        "define void @f() { call void asm sideeffect \"no such instruction\", \"\"() ret void }" };
    cpu_machine machine;
    base_bytes object;
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    cpu_jit_set_verify(jit, true);
    assert_false(cpu_jit_compile_many(jit, 1, build_text, (void *)assembly, 1, &object));
    assert_int_equal(base_error_kind_of(), BASE_FAILURE);
    assert_non_null(strstr(base_error(), "module unit0: code generation:"));
    assert_null(object.at);

    LLVMContextRef llvm = LLVMContextCreate();
    LLVMModuleRef module = cpu_jit_module(jit, "unfinished", llvm);
    LLVMValueRef f = LLVMAddFunction(module, "f", LLVMFunctionType(LLVMVoidTypeInContext(llvm), NULL, 0, 0));
    LLVMAppendBasicBlockInContext(llvm, f, "entry");             /* ends in nothing */
    assert_false(cpu_jit_compile(jit, module, &object));
    assert_non_null(strstr(base_error(), "module unfinished: the verifier:"));
    LLVMDisposeModule(module);
    LLVMContextDispose(llvm);
    cpu_jit_free(jit);
}

/* -- loading ---------------------------------------------------------------------------------------------------------- */

static void loader_names_what_is_missing(void **state)
{
    (void)state;
    static const char *const missing[] = { "declare void @nobody()\ndefine void @f() { call void @nobody() ret void }",
                                           "define void @f() { ret void }", "define void @f() { ret void }",
                                           ("declare extern_weak void @nobody()\n"
                                            "define i1 @f() { %r = icmp eq ptr @nobody, null\n ret i1 %r }") };
    cpu_machine machine;
    base_bytes objects[4];
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    assert_true(cpu_jit_compile_many(jit, 4, build_text, (void *)missing, 1, objects));
#if defined(__x86_64__)
    assert_null(cpu_code_load(&objects[0], 1, externals, EXTERNALS));
    assert_string_equal(base_error(), "object 0: nothing defines nobody");
    assert_int_equal(base_error_kind_of(), BASE_FAILURE);
    assert_null(cpu_code_load(&objects[1], 2, NULL, 0));
    assert_string_equal(base_error(), "objects define f twice");
    cpu_code *code = cpu_code_load(&objects[3], 1, NULL, 0);     /* a weak symbol that nothing defines is 0 */
    assert_non_null(code);
    assert_true(((bool (*)(void))cpu_code_find(code, "f"))());
    cpu_code_free(code);
#endif
    for (int i = 0; i < 4; i++)
        base_bytes_free(&objects[i]);
    cpu_jit_free(jit);
}

#if defined(__x86_64__)

static uint64_t random_state = 1;
static uint64_t draw(uint64_t below)         /* xorshift64: the same draws in every run */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

/* A damaged object is linked or refused, and never read or written beyond its bounds (AddressSanitizer watches: the bytes
 * lie in a block of exactly their size). Nothing of it runs. */
static void load_damaged(const base_bytes objects[2], base_bytes damaged)
{
    base_bytes exact[2] = { { base_alloc(damaged.size), damaged.size }, objects[1] };
    if (damaged.size)
        memcpy(exact[0].at, damaged.at, damaged.size);
    cpu_code *code = cpu_code_load(exact, 2, externals, EXTERNALS);
    if (!code) {
        assert_int_equal(base_error_kind_of(), BASE_FAILURE);
        assert_true(base_error()[0]);
    }
    cpu_code_free(code);
    base_free(exact[0].at);
}

static void loader_bears_truncation(void **state)
{
    (void)state;
    base_bytes objects[2];
    compile_kernels("", objects);
    for (size_t size = 0; size < objects[0].size; size++)
        load_damaged(objects, (base_bytes){ objects[0].at, size });
    assert_null(cpu_code_load(&(base_bytes){ objects[0].at, 63 }, 1, NULL, 0));
    assert_string_equal(base_error(), "object 0 of 63 bytes: shorter than an ELF header");
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

static void loader_bears_damage(void **state)
{
    (void)state;
    static const uint64_t extremes[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX,
                                        1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    base_bytes objects[2];
    compile_kernels("", objects);
    size_t size = objects[0].size;
    unsigned char *bytes = base_alloc(size);
    uint64_t sections_at;
    memcpy(&sections_at, (char *)objects[0].at + 40, 8);          /* e_shoff; they are the last thing in the file */

    /* Every field that can be, of 1, 2, 4 and 8 bytes, with every extreme. */
    for (size_t at = 0; at < size; at++)
        for (size_t width = 1; width <= 8; width *= 2)
            for (size_t e = 0; e < COUNT_OF(extremes) && at % width == 0 && at + width <= size; e++) {
                memcpy(bytes, objects[0].at, size);
                memcpy(bytes + at, &extremes[e], width);
                load_damaged(objects, (base_bytes){ bytes, size });
            }
    /* And anything anywhere. */
    for (int round = 0; round < 20000; round++) {
        memcpy(bytes, objects[0].at, size);
        for (uint64_t k = 1 + draw(4); k > 0; k--) {
            size_t at = draw(4) ? draw(size) : (size_t)(sections_at + draw(size - sections_at));
            bytes[at] = draw(3) ? (unsigned char)draw(256) : (unsigned char)(bytes[at] ^ (1u << draw(8)));
        }
        load_damaged(objects, (base_bytes){ bytes, size });
    }
    base_free(bytes);
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

static void loader_writes_a_perf_map(void **state)
{
    (void)state;
    base_bytes objects[2];
    char path[64];
    size_t size;
    compile_kernels("", objects);
    snprintf(path, sizeof path, "/tmp/perf-%ld.map", (long)getpid());
    setenv("RAX_PERF", "1", 1);
    cpu_code *code = cpu_code_load(objects, 2, externals, EXTERNALS);
    unsetenv("RAX_PERF");
    assert_non_null(code);
    char *map = read_file(path, &size), start[32];
    snprintf(start, sizeof start, "%llx ", (unsigned long long)(uintptr_t)cpu_code_find(code, "axpy"));
    assert_non_null(strstr(map, " axpy\n"));
    assert_non_null(strstr(map, start));
    unlink(path);
    base_free(map);
    cpu_code_free(code);
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

#endif

/* -- the cache -------------------------------------------------------------------------------------------------------- */

static bool same_key(base_key a, base_key b) { return a.high == b.high && a.low == b.low; }

static void cache_keys_tell_apart(void **state)
{
    (void)state;
    cpu_machine m, generic;
    assert_true(cpu_machine_detect(&m, ""));
    assert_true(cpu_machine_detect(&generic, "generic"));
    base_key key = cpu_cache_key(&m, "text", 4);
    assert_true(same_key(key, cpu_cache_key(&m, "text", 4)));
    assert_false(same_key(key, cpu_cache_key(&m, "texT", 4)));
    assert_false(same_key(key, cpu_cache_key(&m, "text", 3)));
    if (generic.isa != m.isa)
        assert_false(same_key(key, cpu_cache_key(&generic, "text", 4)));
    m.cpus++;
    assert_true(same_key(key, cpu_cache_key(&m, "text", 4)));     /* any number of threads runs the same code */
}

static void cached_object_loads(void **state)
{
    (void)state;
    cpu_machine m;
    base_bytes objects[2], again[2];
    assert_true(cpu_machine_detect(&m, ""));
    compile_kernels("", objects);
    base_cache *cache = base_cache_open(in_scratch("objects"), 0);
    for (int i = 0; i < 2; i++) {
        base_key key = cpu_cache_key(&m, &i, sizeof i);
        base_cache_put(cache, key, objects[i].at, objects[i].size);
        assert_true(base_cache_get(cache, key, &again[i]));
        base_bytes_free(&objects[i]);
    }
    cpu_code *code = cpu_code_load(again, 2, externals, EXTERNALS);
    assert_non_null(code);
    check_kernels(code, m.f32_lanes, "from the cache");
    cpu_code_free(code);
    base_bytes_free(&again[0]);
    base_bytes_free(&again[1]);
    base_cache_close(cache);
}

/* -- all of it -------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machine_is_detected),
        cmocka_unit_test(machine_levels_by_name),
        cmocka_unit_test(each_level_compiles),
        cmocka_unit_test(levels_use_their_vectors),
        cmocka_unit_test(many_modules_compile_in_parallel),
        cmocka_unit_test(what_llvm_rejects_is_an_error),
        cmocka_unit_test(loader_names_what_is_missing),
#if defined(__x86_64__)
        cmocka_unit_test(loader_bears_truncation),
        cmocka_unit_test(loader_bears_damage),
        cmocka_unit_test(loader_writes_a_perf_map),
#endif
        cmocka_unit_test(cache_keys_tell_apart),
        cmocka_unit_test(cached_object_loads),
        cmocka_unit_test(nothing_leaks),
    };
    unsetenv("RAX_ISA");
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
