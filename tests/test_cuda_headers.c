/* What backend_cuda/driver.h and driver.def declare of the CUDA libraries, against the libraries' own headers and, as far as no GPU is needed, against the libraries
 * themselves, where they are installed: every function's type, every number, every struct; and that cuBLASLt takes each attribute in the size that it is given in. */
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

#if __has_include(<cuda.h>) && __has_include(<nvrtc.h>) && __has_include(<cublasLt.h>)

#include <cublasLt.h>
#include <cuda.h>
#include <nvrtc.h>

/* -- functions ------------------------------------------------------------------------------------------------------------ */

/* The rows once more, in the headers' own types. Each library has its own enum of errors. */
typedef struct { const char *name; bool same; } function_row;
#define cuda_context CUcontext
#define cuda_stream CUstream
#define cuda_event CUevent
#define cuda_graph CUgraph
#define cuda_graph_exec CUgraphExec
#define cuda_module CUmodule
#define cuda_function CUfunction
#define cuda_pointer CUdeviceptr
#define cuda_status CUresult
#define cuda_attribute CUdevice_attribute
#define cuda_function_attribute CUfunction_attribute
#define cuda_capture_mode CUstreamCaptureMode
#define cuda_source nvrtcProgram
#define cuda_blas cublasLtHandle_t
#define cuda_product_desc cublasLtMatmulDesc_t
#define cuda_layout cublasLtMatrixLayout_t
#define cuda_preference cublasLtMatmulPreference_t
#define cuda_type cudaDataType
#define cuda_compute cublasComputeType_t
#define cuda_product_attribute cublasLtMatmulDescAttributes_t
#define cuda_layout_attribute cublasLtMatrixLayoutAttribute_t
#define cuda_preference_attribute cublasLtMatmulPreferenceAttributes_t
#define cuda_algorithm cublasLtMatmulHeuristicResult_t
#define cuda_algorithm_bytes cublasLtMatmulAlgo_t
static const function_row functions[] = {
#define LIBRARY(name, files, source)
#define RETURNS(type, symbol, parameters) __builtin_types_compatible_p(__typeof__(symbol), type parameters)
#define FUNCTION(name, symbol, parameters) { #symbol, RETURNS(CUresult, symbol, parameters) || RETURNS(nvrtcResult, symbol, parameters) || RETURNS(cublasStatus_t, symbol, parameters) || \
                                                      RETURNS(size_t, symbol, parameters) },
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
};
#undef cuda_context
#undef cuda_stream
#undef cuda_event
#undef cuda_graph
#undef cuda_graph_exec
#undef cuda_module
#undef cuda_function
#undef cuda_pointer
#undef cuda_status
#undef cuda_attribute
#undef cuda_function_attribute
#undef cuda_capture_mode
#undef cuda_source
#undef cuda_blas
#undef cuda_product_desc
#undef cuda_layout
#undef cuda_preference
#undef cuda_type
#undef cuda_compute
#undef cuda_product_attribute
#undef cuda_layout_attribute
#undef cuda_preference_attribute
#undef cuda_algorithm
#undef cuda_algorithm_bytes

static void test_functions(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(functions); i++)
        if (!functions[i].same)
            fail_msg("%s: driver.def declares it otherwise than the library's header", functions[i].name);
}

/* -- numbers and structs -------------------------------------------------------------------------------------------------- */

static void test_numbers(void **state)
{
    static const struct { const char *name; long long here, there; } numbers[] = {
#define NUMBER(here, there) { #here, (long long)(here), (long long)(there) }
        NUMBER(CUDA_ATTRIBUTE_MULTIPROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), NUMBER(CUDA_ATTRIBUTE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        NUMBER(CUDA_ATTRIBUTE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR), NUMBER(CUDA_ATTRIBUTE_SHARED_OPTIN, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        NUMBER(CUDA_FUNCTION_DYNAMIC_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), NUMBER(CUDA_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING),
        NUMBER(CUDA_EVENT_TIMING, CU_EVENT_DEFAULT), NUMBER(CUDA_EVENT_NO_TIMING, CU_EVENT_DISABLE_TIMING), NUMBER(CUDA_EVENT_EXTERNAL, CU_EVENT_RECORD_EXTERNAL),
        NUMBER(CUDA_CAPTURE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED), NUMBER(CUDA_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY), NUMBER(CUDA_NO_DEVICE, CUDA_ERROR_NO_DEVICE),
        NUMBER(CUDA_R_F32, CUDA_R_32F), NUMBER(CUDA_R_F64, CUDA_R_64F), NUMBER(CUDA_R_BF16, CUDA_R_16BF), NUMBER(CUDA_COMPUTE_F32, CUBLAS_COMPUTE_32F),
        NUMBER(CUDA_COMPUTE_F64, CUBLAS_COMPUTE_64F), NUMBER(CUDA_COMPUTE_TF32, CUBLAS_COMPUTE_32F_FAST_TF32), NUMBER(CUDA_PRODUCT_TRANSPOSE_A, CUBLASLT_MATMUL_DESC_TRANSA),
        NUMBER(CUDA_PRODUCT_TRANSPOSE_B, CUBLASLT_MATMUL_DESC_TRANSB), NUMBER(CUDA_PRODUCT_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE),
        NUMBER(CUDA_PRODUCT_BIAS, CUBLASLT_MATMUL_DESC_BIAS_POINTER), NUMBER(CUDA_PRODUCT_AUX, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER),
        NUMBER(CUDA_PRODUCT_AUX_LEADING, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD), NUMBER(CUDA_EPILOGUE_NONE, CUBLASLT_EPILOGUE_DEFAULT), NUMBER(CUDA_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS),
        NUMBER(CUDA_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU), NUMBER(CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_BIAS),
        NUMBER(CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX, CUBLASLT_EPILOGUE_GELU_AUX), NUMBER(CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS),
        NUMBER(CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX, CUBLASLT_EPILOGUE_DGELU),
        NUMBER(CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS_GRADIENT, CUBLASLT_EPILOGUE_DGELU_BGRAD),
        NUMBER(CUDA_EPILOGUE_SUM_A, CUBLASLT_EPILOGUE_BGRADA), NUMBER(CUDA_EPILOGUE_SUM_B, CUBLASLT_EPILOGUE_BGRADB),
        NUMBER(CUDA_LAYOUT_BATCH, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT), NUMBER(CUDA_LAYOUT_BATCH_STRIDE, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET),
        NUMBER(CUDA_PREFERENCE_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES), NUMBER(CUDA_PREFERENCE_REDUCTIONS, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK),
        NUMBER(CUDA_PREFERENCE_ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES), NUMBER(CUDA_PREFERENCE_ALIGN_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES),
        NUMBER(CUDA_PREFERENCE_ALIGN_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES), NUMBER(CUDA_PREFERENCE_ALIGN_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES),
        NUMBER(CUDA_REDUCTION_IN_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), NUMBER(CUDA_LAUNCH_POINTER, CU_LAUNCH_PARAM_BUFFER_POINTER),
        NUMBER(CUDA_LAUNCH_SIZE, CU_LAUNCH_PARAM_BUFFER_SIZE), NUMBER(CUDA_LAUNCH_END, CU_LAUNCH_PARAM_END), NUMBER(sizeof(cuda_algorithm_bytes), sizeof(cublasLtMatmulAlgo_t)),
        NUMBER(sizeof(cuda_algorithm), sizeof(cublasLtMatmulHeuristicResult_t)), NUMBER(offsetof(cuda_algorithm, algorithm), offsetof(cublasLtMatmulHeuristicResult_t, algo)),
        NUMBER(offsetof(cuda_algorithm, workspace_bytes), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize)),
        NUMBER(offsetof(cuda_algorithm, status), offsetof(cublasLtMatmulHeuristicResult_t, state)), NUMBER(offsetof(cuda_algorithm, waves), offsetof(cublasLtMatmulHeuristicResult_t, wavesCount)),
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (numbers[i].here != numbers[i].there)
            fail_msg("%s: expected %lld, as the library's header has it, got %lld", numbers[i].name, numbers[i].there, numbers[i].here);
}

#else

static void test_functions(void **state) { (void)state, print_message("# the headers of CUDA are not here\n"), skip(); }
static void test_numbers(void **state) { test_functions(state); }

#endif

/* -- cuBLASLt's descriptors --------------------------------------------------------------------------------------------------- */

static int refused_calls;
static int one_algorithm(cuda_blas blas, cuda_product_desc desc, cuda_layout a, cuda_layout b, cuda_layout c, cuda_layout d, cuda_preference preference, int wanted, cuda_algorithm *found, int *n)
{
    (void)blas, (void)wanted;
    refused_calls += !(desc && a && b && c && d && preference);
    found[0] = (cuda_algorithm){0};
    return *n = 1, 0;
}

/* Descriptors, layouts and preferences are the library's own, which checks attributes and their sizes; it is not asked for an algorithm, which takes a GPU. */
static void test_attributes(void **state)
{
    enum { EVERYTHING = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS };
    static const struct { ir_dtype operands, result; int64_t batch; bool tf32; int epilogue; bool adds; } cases[] = {
        { IR_F32, IR_F32, 1, false, CUDA_EPILOGUE_NONE }, { IR_F32, IR_F32, 12, true, CUDA_EPILOGUE_NONE }, { IR_BF16, IR_F32, 2, false, CUDA_EPILOGUE_BIAS, true }, { IR_F64, IR_F64, 1, false, CUDA_EPILOGUE_NONE },
        { IR_BF16, IR_F32, 3, false, CUDA_EPILOGUE_NONE }, { IR_BF16, IR_BF16, 1, false, EVERYTHING }, { IR_F32, IR_F32, 1, false, EVERYTHING },
        { IR_F32, IR_F32, 1, false, CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS_GRADIENT },
        { IR_BF16, IR_F32, 1, false, CUDA_EPILOGUE_SUM_A, true }, { IR_BF16, IR_F32, 1, false, CUDA_EPILOGUE_SUM_B } };
    cuda_library real, mixed = standin_library;
    kl_program program = {0};
    (void)state;
    if (!cuda_library_load("cublaslt", &real)) {
        print_message("# %s\n", base_error());
        base_error_clear();
        skip();
    }
    mixed.product_new = real.product_new, mixed.product_free = real.product_free, mixed.product_set = real.product_set;
    mixed.layout_new = real.layout_new, mixed.layout_free = real.layout_free, mixed.layout_set = real.layout_set;
    mixed.preference_new = real.preference_new, mixed.preference_free = real.preference_free, mixed.preference_set = real.preference_set;
    mixed.product_algorithms = one_algorithm;
    cuda_library_use(&mixed);
    cuda_device *device = cuda_device_open();
    assert_non_null(device);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        cuda_product p = { .m = 64, .n = 40, .k = 24, .batch = cases[i].batch, .operands = cases[i].operands, .result = cases[i].result, .a_leading = 24, .b_leading = 40, .d_leading = 40,
                           .a_batch = 64 * 24, .b_batch = 24 * 40, .d_batch = 64 * 40, .tf32 = cases[i].tf32, .epilogue = cases[i].epilogue, .aux_leading = 40,
                           .adds = cases[i].adds, .c_leading = 48, .c_batch = 64 * 48, .c.buffer = -1 };
        cuda_ready ready = {0};
        if (!cuda_ready_product(device, &program, &p, &ready))
            fail_msg("case %zu: %s", i, base_error());
        cuda_ready_free(device, &ready);
    }
    int32_t narrow = 1;
    cuda_product_desc desc = NULL;                       /* the library does look at sizes */
    assert_int_equal(real.product_new(&desc, CUDA_COMPUTE_F32, CUDA_R_F32), 0);
    assert_int_not_equal(real.product_set(desc, CUDA_PRODUCT_AUX_LEADING, &narrow, sizeof narrow), 0);
    real.product_free(desc);
    assert_int_equal(refused_calls, 0);
    cuda_device_close(device);
    cuda_library_use(NULL);
    n_streams = 0;
}

/* -- NVRTC's two outputs ------------------------------------------------------------------------------------------------------ */

static void test_outputs(void **state)
{
    const char *source = "extern \"C\" __global__ void f(float *x) { x[threadIdx.x] = 1; }\n";
    cuda_library nvrtc;
    base_bytes code;
    int n = 0, targets[64], newest = 0;
    (void)state;
    if (!nvrtc_is_here(&nvrtc))
        skip();
    assert_true(nvrtc.compiler_n_targets(&n) == 0 && n > 0 && n <= 64 && nvrtc.compiler_targets(targets) == 0);
    for (int i = 0; i < n; i++)
        newest = MAX(newest, targets[i]);
    assert_true(cuda_compile_source(&nvrtc, source, "f", newest, false, &code) && !memcmp(code.at, "\177ELF", 4));
    base_bytes_free(&code);
    assert_true(cuda_compile_source(&nvrtc, source, "f", newest, true, &code) && strstr(code.at, ".visible .entry f("));
    base_bytes_free(&code);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_functions), cmocka_unit_test(test_numbers), cmocka_unit_test(test_attributes), cmocka_unit_test(test_outputs) };
    return cmocka_run_group_tests_name("what is declared of the CUDA libraries", tests, NULL, NULL);
}
