/* The CUDA libraries as the backend sees them: one struct of functions, made from driver.def, filled by dlopen when a GPU is asked for.
 * The types are declared here, as the driver's own ABI has them, so that no CUDA toolkit is needed to build. */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include "base/base.h"

typedef struct cuda_context_opaque *cuda_context;
typedef struct cuda_stream_opaque *cuda_stream;
typedef struct cuda_event_opaque *cuda_event;
typedef struct cuda_graph_opaque *cuda_graph;
typedef struct cuda_graph_exec_opaque *cuda_graph_exec;
typedef struct cuda_module_opaque *cuda_module;
typedef struct cuda_function_opaque *cuda_function;
typedef struct cuda_source_opaque *cuda_source;
typedef struct cuda_blas_opaque *cuda_blas;
typedef struct cuda_product_desc_opaque *cuda_product_desc;
typedef struct cuda_layout_opaque *cuda_layout;
typedef struct cuda_preference_opaque *cuda_preference;
typedef unsigned long long cuda_pointer;
/* The libraries' enums, as they are passed. */
typedef int cuda_status, cuda_attribute, cuda_function_attribute, cuda_capture_mode, cuda_type, cuda_compute, cuda_product_attribute, cuda_layout_attribute, cuda_preference_attribute;

/* cublasLtMatmulAlgo_t and cublasLtMatmulHeuristicResult_t. */
typedef struct { uint64_t data[8]; } cuda_algorithm_bytes;
typedef struct { cuda_algorithm_bytes algorithm; size_t workspace_bytes; int status; float waves; int reserved[4]; } cuda_algorithm;

/* Numbers of the libraries' enums. */
enum {
    CUDA_ATTRIBUTE_MULTIPROCESSORS = 16, CUDA_ATTRIBUTE_MAJOR = 75, CUDA_ATTRIBUTE_MINOR = 76, CUDA_ATTRIBUTE_SHARED_OPTIN = 97,
    CUDA_FUNCTION_DYNAMIC_SHARED = 8,
    CUDA_STREAM_NON_BLOCKING = 1, CUDA_EVENT_TIMING = 0, CUDA_EVENT_NO_TIMING = 2, CUDA_EVENT_EXTERNAL = 1, CUDA_CAPTURE_RELAXED = 2,
    CUDA_OUT_OF_MEMORY = 2, CUDA_NO_DEVICE = 100,
    CUDA_R_F32 = 0, CUDA_R_F64 = 1, CUDA_R_BF16 = 14,
    CUDA_COMPUTE_F32 = 68, CUDA_COMPUTE_F64 = 70, CUDA_COMPUTE_TF32 = 77,
    CUDA_PRODUCT_TRANSPOSE_A = 3, CUDA_PRODUCT_TRANSPOSE_B = 4, CUDA_PRODUCT_EPILOGUE = 7, CUDA_PRODUCT_BIAS = 8, CUDA_PRODUCT_AUX = 11,
    CUDA_PRODUCT_AUX_LEADING = 12,
    CUDA_EPILOGUE_NONE = 1, CUDA_EPILOGUE_BIAS = 4, CUDA_EPILOGUE_BIAS_GRADIENT = 16, CUDA_EPILOGUE_GELU = 32, CUDA_EPILOGUE_GELU_GRADIENT = 64, CUDA_EPILOGUE_AUX = 128,
    CUDA_EPILOGUE_SUM_A = 256, CUDA_EPILOGUE_SUM_B = 512,                  /* of the library's operands, the first of which is our b */
    CUDA_EPILOGUE_SUMS = CUDA_EPILOGUE_SUM_A | CUDA_EPILOGUE_SUM_B,
    CUDA_EPILOGUE_ANY_BIAS = CUDA_EPILOGUE_BIAS | CUDA_EPILOGUE_BIAS_GRADIENT | CUDA_EPILOGUE_SUMS,      /* bits of one number; NONE stands for none of them */
    CUDA_LAYOUT_BATCH = 5, CUDA_LAYOUT_BATCH_STRIDE = 6,
    CUDA_PREFERENCE_WORKSPACE = 1, CUDA_PREFERENCE_REDUCTIONS = 3, CUDA_PREFERENCE_ALIGN_A = 5, CUDA_PREFERENCE_ALIGN_B = 6, CUDA_PREFERENCE_ALIGN_C = 7, CUDA_PREFERENCE_ALIGN_D = 8,
    CUDA_REDUCTION_IN_COMPUTE_TYPE = 2
};
#define CUDA_LAUNCH_POINTER ((void *)1)
#define CUDA_LAUNCH_SIZE    ((void *)2)
#define CUDA_LAUNCH_END     ((void *)0)

typedef struct {
#define LIBRARY(name, files, source)
#define FUNCTION(name, symbol, parameters) int (*name) parameters;
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
} cuda_library;

/* The libraries, opened at the first call. NULL and base_error, which says in one line what is missing. */
const cuda_library *cuda_library_open(void);
/* For tests: what cuda_library_open gives from now on; NULL: the machine's own again. */
void cuda_library_use(const cuda_library *library);
/* One library alone, "nvrtc": its functions are set in *library. False and base_error. */
bool cuda_library_load(const char *name, cuda_library *library);

#endif
