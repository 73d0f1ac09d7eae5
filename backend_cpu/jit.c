/* LLVM modules -> object code, through LLVM's C API (releases 15 to 22). The only file of the runtime that calls LLVM.
 *
 * A module holds kernels that are vector code already, so the passes are few: those that clean up after a generator (values
 * kept in memory, the same address computed twice, code that moves out of a loop), and none that looks for vectors, unrolls
 * or inlines by estimate. What makes the speed of a kernel is decided below the passes, by the attributes that prepare()
 * sets.
 *
 * Objects, not modules, are what is kept, on disk and in memory: loading is loader.c's work. Here is only ORC's way of doing
 * it, for architectures that loader.c does not know. */
#include "backend_cpu/runtime.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Core.h>
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <llvm/Config/llvm-config.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct cpu_jit {
    cpu_machine machine;
    LLVMTargetRef target;
    char *triple, *cpu, *features, *layout;
    char vector_bits[8];                     /* "512" */
    bool verify;
    char *dump_folder;                       /* NULL: none */
};

/* From 18 on instcombine, named in a pipeline, ends the process where it finds no fixpoint in one round; there and only
 * there it has to be told not to. */
#if LLVM_VERSION_MAJOR >= 18
#define INSTCOMBINE "instcombine<no-verify-fixpoint>"
#else
#define INSTCOMBINE "instcombine"
#endif

/* always-inline: helpers (vector exp ...) that a kernel's module carries along */
static const char pass_pipeline[] =
    "always-inline,globaldce,"
    "function(sroa,early-cse<memssa>,simplifycfg," INSTCOMBINE ",loop-mssa(licm),early-cse<memssa>,dce)";

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
/* The library is not instrumented: the sanitizer sees its locks but not the atomics that order what they do not. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "race:libLLVM\n"; }
#endif

const char *cpu_jit_version(void) { return LLVM_VERSION_STRING; }

base_key cpu_cache_key(const cpu_machine *machine, const void *text, size_t size)
{
    char compiler[256];
    snprintf(compiler, sizeof compiler, "llvm %s cpu %s", cpu_jit_version(), machine->digest);
    return base_cache_key(compiler, text, size);
}

/* -- the target ------------------------------------------------------------------------------------------------------- */

static void initialize_llvm(void)
{
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
    LLVMInitializeNativeAsmParser();         /* of inline assembly */
}

static char *take_message(char *message)
{
    char *copy = base_strdup(message ? message : "");
    LLVMDisposeMessage(message);
    return copy;
}

/* At the CPU's own level code is for this very CPU, tuning included. Its features are asked for beside its name: a hypervisor
 * may hide some that the name implies. Another level is a machine that any CPU of that level could be. */
static void choose_cpu(cpu_jit *jit)
{
    static const char *const levels[CPU_ISA_COUNT] = {
        [CPU_GENERIC] = "x86-64", [CPU_AVX2] = "x86-64-v3", [CPU_AVX512] = "x86-64-v4", [CPU_AVX512BF16] = "x86-64-v4",
        [CPU_AMX] = "x86-64-v4" };
    static const char *const features[CPU_ISA_COUNT] = {
        [CPU_GENERIC] = "", [CPU_AVX2] = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
        [CPU_AVX512] = "+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+fma",
        [CPU_AVX512BF16] = "+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+fma,+avx512bf16",
        [CPU_AMX] = "+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+fma,+avx512bf16,+amx-tile,+amx-bf16" };
    cpu_isa isa = jit->machine.isa;

#if defined(__x86_64__)
    if (isa != jit->machine.own_isa || isa == CPU_GENERIC) {
        jit->cpu = base_strdup(levels[isa]);
        jit->features = base_strdup(features[isa]);
        return;
    }
#else
    (void)levels, (void)features, (void)isa;
#endif
    jit->cpu = take_message(LLVMGetHostCPUName());
    jit->features = take_message(LLVMGetHostCPUFeatures());
}

/* Position-independent and small: code and constants of a load lie in one block, what is outside is reached by GOT and
 * stubs. */
static LLVMTargetMachineRef target_machine(const cpu_jit *jit)
{
    return LLVMCreateTargetMachine(jit->target, jit->triple, jit->cpu, jit->features, LLVMCodeGenLevelDefault,
                                   LLVMRelocPIC, LLVMCodeModelSmall);
}

cpu_jit *cpu_jit_new(const cpu_machine *machine)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char *message = NULL;

    if (!cpu_llvm_open())
        return NULL;
    pthread_once(&once, initialize_llvm);
    cpu_jit *jit = base_alloc(sizeof *jit);
    jit->machine = *machine;
    jit->triple = take_message(LLVMGetDefaultTargetTriple());
    choose_cpu(jit);
    snprintf(jit->vector_bits, sizeof jit->vector_bits, "%d", machine->f32_lanes * 32);

    LLVMTargetMachineRef tm = NULL;
    if (LLVMGetTargetFromTriple(jit->triple, &jit->target, &message) == 0)
        tm = target_machine(jit);
    if (!tm) {
        base_fail(BASE_FAILURE, "LLVM %s has no code generator for %s%s%s", LLVM_VERSION_STRING, jit->triple,
                  message ? ": " : "", message ? message : "");
        LLVMDisposeMessage(message);
        cpu_jit_free(jit);
        return NULL;
    }
    LLVMTargetDataRef data = LLVMCreateTargetDataLayout(tm);
    jit->layout = take_message(LLVMCopyStringRepOfTargetData(data));
    LLVMDisposeTargetData(data);
    LLVMDisposeTargetMachine(tm);

    return jit;
}

void cpu_jit_free(cpu_jit *jit)
{
    if (!jit)
        return;
    base_free(jit->triple);
    base_free(jit->cpu);
    base_free(jit->features);
    base_free(jit->layout);
    base_free(jit->dump_folder);
    base_free(jit);
}

void cpu_jit_set_verify(cpu_jit *jit, bool verify) { jit->verify = verify; }

void cpu_jit_set_dump(cpu_jit *jit, const char *folder)
{
    base_free(jit->dump_folder);
    jit->dump_folder = folder ? base_strdup(folder) : NULL;
}

LLVMModuleRef cpu_jit_module(const cpu_jit *jit, const char *name, LLVMContextRef llvm)
{
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext(name, llvm);
    LLVMSetTarget(module, jit->triple);
    LLVMSetDataLayout(module, jit->layout);
    return module;
}

/* -- one module ------------------------------------------------------------------------------------------------------- */

static void set_attribute(LLVMValueRef function, const char *key, const char *value)
{
    LLVMContextRef llvm = LLVMGetModuleContext(LLVMGetGlobalParent(function));
    LLVMAttributeRef a = LLVMCreateStringAttribute(llvm, key, (unsigned)strlen(key), value, (unsigned)strlen(value));
    LLVMAddAttributeAtIndex(function, LLVMAttributeFunctionIndex, a);
}

/* A function without its own target-cpu and target-features has no instructions beyond SSE2 whatever the target machine
 * says to the rest; without the two widths LLVM splits vectors of 512 bits on CPUs that it holds to prefer 256. nounwind
 * saves unwind tables. */
static void prepare(const cpu_jit *jit, LLVMModuleRef module)
{
    static const char nounwind[] = "nounwind";
    unsigned kind = LLVMGetEnumAttributeKindForName(nounwind, sizeof nounwind - 1);

    LLVMSetTarget(module, jit->triple);
    LLVMSetDataLayout(module, jit->layout);
    for (LLVMValueRef f = LLVMGetFirstFunction(module); f; f = LLVMGetNextFunction(f)) {
        if (LLVMIsDeclaration(f))
            continue;
        set_attribute(f, "target-cpu", jit->cpu);
        set_attribute(f, "target-features", jit->features);
        set_attribute(f, "prefer-vector-width", jit->vector_bits);
        set_attribute(f, "min-legal-vector-width", jit->vector_bits);
        LLVMAddAttributeAtIndex(f, LLVMAttributeFunctionIndex,
                                LLVMCreateEnumAttribute(LLVMGetModuleContext(module), kind, 0));
    }
}

/* The first error that LLVM reports while it compiles (inline assembly, registers that do not suffice): it would otherwise
 * print it and end the process. */
static void keep_diagnostic(LLVMDiagnosticInfoRef info, void *context)
{
    char **first = context;
    if (LLVMGetDiagInfoSeverity(info) != LLVMDSError || *first)
        return;
    *first = take_message(LLVMGetDiagInfoDescription(info));
}

/* One line of what LLVM says in several. */
static bool llvm_failed(const char *module, const char *what, const char *message)
{
    int len = (int)strcspn(message, "\n");
    return base_fail(BASE_FAILURE, "module %s: %s: %.*s", module, what, len, message);
}

static char *dump_path(const cpu_jit *jit, const char *module, const char *suffix)
{
    base_text path = {0};
    base_text_add(&path, "%s/", jit->dump_folder);
    for (const char *c = module; *c; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-_.", *c);
        base_text_add(&path, "%c", plain ? *c : '_');
    }
    base_text_add(&path, "%s", suffix);
    return base_text_take(&path);
}

static bool write_dump(const cpu_jit *jit, const char *module, const char *suffix, const char *text, size_t size)
{
    char *path = dump_path(jit, module, suffix);
    FILE *file = fopen(path, "w");
    bool written = file && fwrite(text, 1, size, file) == size;
    if (file && fclose(file) != 0)
        written = false;
    if (!written)
        base_fail(BASE_FAILURE, "%s: %s", path, strerror(errno));
    base_free(path);
    return written;
}

static bool dump_ir(const cpu_jit *jit, LLVMModuleRef module, const char *name, const char *suffix)
{
    if (!jit->dump_folder)
        return true;
    char *text = LLVMPrintModuleToString(module);
    bool written = write_dump(jit, name, suffix, text, strlen(text));
    LLVMDisposeMessage(text);
    return written;
}

static bool optimise(LLVMModuleRef module, const char *name, LLVMTargetMachineRef tm)
{
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMErrorRef error = LLVMRunPasses(module, pass_pipeline, tm, options);
    LLVMDisposePassBuilderOptions(options);
    if (!error)
        return true;
    char *message = LLVMGetErrorMessage(error);
    llvm_failed(name, "passes", message);
    LLVMDisposeErrorMessage(message);
    return false;
}

/* Emitting runs passes that change the module; text is therefore emitted from a copy. */
static bool emit(LLVMModuleRef module, const char *name, LLVMTargetMachineRef tm, LLVMCodeGenFileType type, base_bytes *bytes)
{
    LLVMMemoryBufferRef buffer = NULL;
    char *message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(tm, module, type, &message, &buffer)) {
        llvm_failed(name, "code generation", message ? message : "refused");
        LLVMDisposeMessage(message);
        return false;
    }
    bytes->size = LLVMGetBufferSize(buffer);
    bytes->at = base_alloc(bytes->size);
    memcpy(bytes->at, LLVMGetBufferStart(buffer), bytes->size);
    LLVMDisposeMemoryBuffer(buffer);
    return true;
}

static bool dump_assembly(const cpu_jit *jit, LLVMModuleRef module, const char *name, LLVMTargetMachineRef tm)
{
    if (!jit->dump_folder)
        return true;
    base_bytes text = {0};
    LLVMModuleRef copy = LLVMCloneModule(module);
    bool written = emit(copy, name, tm, LLVMAssemblyFile, &text) && write_dump(jit, name, ".s", text.at, text.size);
    LLVMDisposeModule(copy);
    base_bytes_free(&text);
    return written;
}

static bool compile_with(const cpu_jit *jit, LLVMTargetMachineRef tm, LLVMModuleRef module, base_bytes *object)
{
    size_t len;
    const char *name = LLVMGetModuleIdentifier(module, &len);
    LLVMContextRef llvm = LLVMGetModuleContext(module);
    LLVMDiagnosticHandler handler = LLVMContextGetDiagnosticHandler(llvm);
    void *handler_context = LLVMContextGetDiagnosticContext(llvm);
    char *diagnostic = NULL, *message = NULL;

    *object = (base_bytes){0};
    prepare(jit, module);
    if (!dump_ir(jit, module, name, ".ll"))
        return false;
    if (jit->verify && LLVMVerifyModule(module, LLVMReturnStatusAction, &message)) {
        llvm_failed(name, "the verifier", message);
        LLVMDisposeMessage(message);
        return false;
    }
    LLVMDisposeMessage(message);

    LLVMContextSetDiagnosticHandler(llvm, keep_diagnostic, &diagnostic);
    bool compiled = optimise(module, name, tm) && dump_ir(jit, module, name, ".opt.ll") &&
                    dump_assembly(jit, module, name, tm) && emit(module, name, tm, LLVMObjectFile, object);
    if (diagnostic)
        compiled = llvm_failed(name, "code generation", diagnostic);
    LLVMContextSetDiagnosticHandler(llvm, handler, handler_context);
    base_free(diagnostic);
    if (!compiled)
        base_bytes_free(object);
    return compiled;
}

bool cpu_jit_compile(const cpu_jit *jit, LLVMModuleRef module, base_bytes *object)
{
    LLVMTargetMachineRef tm = target_machine(jit);
    bool compiled = compile_with(jit, tm, module, object);
    LLVMDisposeTargetMachine(tm);
    return compiled;
}

/* -- many modules ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const cpu_jit *jit;
    int n;
    cpu_build *build;
    void *context;
    base_bytes *objects;
    cpu_tasks tasks;
    pthread_mutex_t lock;                    /* of what follows */
    int failed;                              /* the least that did, or n */
    base_error_kind kind;
    char *error;                             /* its message, carried to the caller's thread */
} many;

static void keep_failure(many *m, int i)
{
    pthread_mutex_lock(&m->lock);
    if (i < m->failed) {
        m->failed = i;
        m->kind = base_error_kind_of();
        base_free(m->error);
        m->error = base_strdup(base_error());
    }
    pthread_mutex_unlock(&m->lock);
}

/* A context a module: an object then depends on nothing that was compiled before it on the same thread. */
static void build_and_compile(many *m, int i, LLVMTargetMachineRef tm)
{
    char name[32];
    snprintf(name, sizeof name, "unit%d", i);
    LLVMContextRef llvm = LLVMContextCreate();
    LLVMModuleRef module = cpu_jit_module(m->jit, name, llvm);
    if (!m->build(m->context, i, module) || !compile_with(m->jit, tm, module, &m->objects[i]))
        keep_failure(m, i);
    LLVMDisposeModule(module);
    LLVMContextDispose(llvm);
}

static void *compile_main(void *argument)
{
    many *m = argument;
    LLVMTargetMachineRef tm = target_machine(m->jit);
    for (int64_t i; (i = cpu_next_task(&m->tasks, 1)) < m->n; )
        build_and_compile(m, (int)i, tm);
    LLVMDisposeTargetMachine(tm);
    return NULL;
}

/* Plain threads, not the pool's: compiling is long, rare, and takes locks of its own. One that the system does not give is
 * done without. */
bool cpu_jit_compile_many(const cpu_jit *jit, int n, cpu_build *build, void *context, int threads, base_bytes *objects)
{
    many m = { .jit = jit, .n = n, .build = build, .context = context, .objects = objects, .failed = n };
    pthread_mutex_init(&m.lock, NULL);
    memset(objects, 0, sizeof *objects * (size_t)n);
    if (threads <= 0)
        threads = base_usable_cpus();
    threads = MIN(threads, n);

    pthread_t *others = base_alloc(sizeof(pthread_t) * (size_t)MAX(threads, 1));
    int started = 0;
    while (started < threads - 1 && pthread_create(&others[started], NULL, compile_main, &m) == 0)
        started++;
    if (n > 0)
        compile_main(&m);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], NULL);
    base_free(others);
    pthread_mutex_destroy(&m.lock);

    if (m.failed == n)
        return true;
    for (int i = 0; i < n; i++)
        base_bytes_free(&objects[i]);
    base_fail(m.kind, "%s", m.error);
    base_free(m.error);
    return false;
}

/* -- loading through ORC ---------------------------------------------------------------------------------------------- */

typedef struct { cpu_code code; LLVMOrcLLJITRef jit; } orc_code;

static bool orc_failed(LLVMErrorRef error)
{
    char *message = LLVMGetErrorMessage(error);
    base_fail(BASE_FAILURE, "ORC: %.*s", (int)strcspn(message, "\n"), message);
    LLVMDisposeErrorMessage(message);
    return false;
}

static void *orc_find(const cpu_code *code, const char *name)
{
    LLVMOrcExecutorAddress address = 0;
    LLVMErrorRef error = LLVMOrcLLJITLookup(((const orc_code *)code)->jit, &address, name);
    if (error)
        LLVMConsumeError(error);
    return (void *)(uintptr_t)address;
}

static void orc_free(cpu_code *code)
{
    orc_code *c = (orc_code *)code;
    if (c->jit) {
        LLVMErrorRef error = LLVMOrcDisposeLLJIT(c->jit);
        if (error)
            LLVMConsumeError(error);
    }
    base_free(c);
}

/* ORC takes each name once, and what the caller names goes before the C library. */
static bool define_externals(LLVMOrcLLJITRef jit, const cpu_symbol *externals, int n_externals)
{
    int n_runtime, n = 0;
    const cpu_symbol *runtime = cpu_runtime_functions(&n_runtime);
    const cpu_symbol **all = base_alloc(sizeof *all * (size_t)(n_externals + n_runtime));
    for (int i = 0; i < n_externals + n_runtime; i++) {
        const cpu_symbol *s = i < n_externals ? &externals[i] : &runtime[i - n_externals];
        int seen = 0;
        while (seen < n && strcmp(all[seen]->name, s->name) != 0)
            seen++;
        if (seen == n)
            all[n++] = s;
    }

    LLVMOrcCSymbolMapPairs pairs = base_alloc(sizeof *pairs * (size_t)n);
    for (int i = 0; i < n; i++) {
        pairs[i].Name = LLVMOrcLLJITMangleAndIntern(jit, all[i]->name);
        pairs[i].Sym.Address = (LLVMOrcExecutorAddress)(uintptr_t)all[i]->address;
        pairs[i].Sym.Flags.GenericFlags = LLVMJITSymbolGenericFlagsExported | LLVMJITSymbolGenericFlagsCallable;
    }
    LLVMOrcMaterializationUnitRef unit = LLVMOrcAbsoluteSymbols(pairs, (size_t)n);
    LLVMErrorRef error = LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(jit), unit);
    if (error)
        LLVMOrcDisposeMaterializationUnit(unit);
    base_free(pairs);
    base_free(all);
    return error ? orc_failed(error) : true;
}

cpu_code *cpu_code_load_orc(const base_bytes *objects, int n, const cpu_symbol *externals, int n_externals)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialize_llvm);

    orc_code *c = base_alloc(sizeof *c);
    c->code = (cpu_code){ .find = orc_find, .free = orc_free };
    LLVMErrorRef error = LLVMOrcCreateLLJIT(&c->jit, NULL);
    if (error) {
        c->jit = NULL;
        orc_failed(error);
        orc_free(&c->code);
        return NULL;
    }
    bool added = define_externals(c->jit, externals, n_externals);
    for (int i = 0; added && i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "object%d", i);
        LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(objects[i].at, objects[i].size, name);
        error = LLVMOrcLLJITAddObjectFile(c->jit, LLVMOrcLLJITGetMainJITDylib(c->jit), buffer);   /* takes buffer, also on error */
        c->code.bytes += objects[i].size;
        if (error)
            added = orc_failed(error);
    }
    if (added)
        return &c->code;
    orc_free(&c->code);
    return NULL;
}
