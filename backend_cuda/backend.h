/* backend_cuda/: from a kernel list to launches on an NVIDIA GPU.
 *
 * In: a kernel list, as backend_cpu takes it. Out: a list of launches, one CUDA graph. Includes ir/ and base/ alone; the CUDA libraries are
 * declared in driver.h and opened at run time.
 *
 *   legalise.c       splits off what cuBLASLt cannot take
 *   loops.c          how a loop is shared out to blocks and threads; loop_emit.c writes the kernel
 *   expressions.c    the text of a kernel's expressions; random.c of random words among them
 *   contraction.c    products: what cuBLASLt is asked for, epilogues.c with what epilogue, operand_sums.c with what sum of an operand; products.c asks
 *   attention.c, scatter.c
 *   writer.c         a kernel's text and parameters; lists of loops as one launch
 *   requests.c       code by its text: from the process, the disk, or NVRTC
 *   execute.c        launches in order, captured as a graph
 *   machine.c        the device: memory, copies, streams
 *   choices.c        which algorithm a product takes, by heuristic or by table
 *   profile.c        a run timed launch by launch; peak.c: what the device can do
 *   driver.c         the libraries
 *   device/          CUDA C that is no kernel's own: the beginning of all, attention, scatter
 *   backend.c        the whole way, and what the process keeps
 *
 * A kernel kind plugs in by one planner: it looks at a kernel and says which launches it is, as a cuda_plan. Planning calls no CUDA function
 * and needs no device but its properties. */
#ifndef CUDA_BACKEND_H
#define CUDA_BACKEND_H

#include "backend_cuda/driver.h"
#include "base/object_cache.h"
#include "ir/backend.h"
#include "ir/kernels.h"

/* -- machine.c -------------------------------------------------------------------------------------------------------- */

typedef struct {
    char name[128];
    int major, minor;             /* compute capability */
    int multiprocessors;
    size_t shared_bytes;          /* that a block may have */
    size_t params_bytes;          /* that a kernel may take */
    int target;                   /* architecture that kernels are compiled for, 90; not newer than the card's */
    bool target_is_ptx;           /* for the driver to compile to the end */
    int driver_version;
} cuda_machine;

typedef struct cuda_device cuda_device;
/* Opens libraries and device 0. NULL and base_error in one line: what is missing. */
cuda_device *cuda_device_open(void);
void cuda_device_close(cuda_device *device);                 /* NULL is fine */
void cuda_device_enter(cuda_device *device);                 /* before calls from a thread that may be new */
const cuda_machine *cuda_device_machine(const cuda_device *device);
const cuda_library *cuda_device_library(const cuda_device *device);
cuda_stream cuda_device_stream(const cuda_device *device);
cuda_blas cuda_device_blas(const cuda_device *device);
/* RAX_CUDA_BLOCKING: every launch is waited for, so that one that fails can be named. */
bool cuda_is_blocking(void);
/* The table that products look their algorithm up in; NULL: none. The device's to close. */
typedef struct cuda_choices cuda_choices;
void cuda_device_use_choices(cuda_device *device, cuda_choices *choices);
cuda_choices *cuda_device_choices(const cuda_device *device);
/* False and base_error where the library returned an error; what: "cuLaunchKernel of layer_norm". */
bool cuda_ok(const cuda_device *device, int error, const char *what);
bool cuda_blas_ok(int status, const char *what);            /* the same for cuBLASLt's */

/* Device memory, 256-byte aligned, zeroed. NULL and base_error: what was asked, what is free. */
void *cuda_memory_new(cuda_device *device, size_t bytes);
void cuda_memory_free(cuda_device *device, void *memory);
size_t cuda_memory_available(const cuda_device *device);
/* Up to a multiple of what parts of a block are aligned to. */
static inline size_t cuda_rounded(size_t bytes) { return (bytes + 255) & ~(size_t)255; }
/* Upload returns once from may be written again: the bytes are there before what is started from now on, and arrive while runs that do not
 * touch them go on. Download when the bytes have arrived. */
bool cuda_upload(cuda_device *device, void *to, const void *from, size_t bytes);
bool cuda_download(cuda_device *device, void *to, const void *from, size_t bytes);
bool cuda_wait(cuda_device *device);                          /* for everything */
/* Upload in the order of the stream, into memory that is no tensor's. */
bool cuda_put(cuda_device *device, void *to, const void *from, size_t bytes);
/* What a run leaves in a place of up to CUDA_EARLY_BYTES is copied to the host behind it, so that reading it later does not wait for runs
 * that were started since. Between a run's launch and its end. */
enum { CUDA_EARLY_BYTES = 64 };
bool cuda_copy_early(cuda_device *device, const void *from, size_t bytes);
/* A run is on its way; n addresses of memory that it reads and writes. */
bool cuda_run_end(cuda_device *device, int n, void *const *addresses);

/* -- how a kernel runs ------------------------------------------------------------------------------------------------- */

/* An address, value bytes into a buffer (program->n_buffers is the workspace), or where buffer is -1 the value itself. */
typedef struct { int buffer; int64_t value; } cuda_arg;

typedef struct { int code; int64_t grid; int threads; size_t shared_bytes; int n_args; cuda_arg *args; } cuda_launch;

/* d = a b (+ c), row-major with any leading strides; a[m,k], b[k,n], c[m,n], d[m,n]; batches by strides. Strides in elements. c may be d itself. The epilogue is bits
 * of CUDA_EPILOGUE_*: x + bias[n], or into bias the sum of the result's rows, or that over k of b (SUM_A) or of a (SUM_B, bias[m]); gelu (tanh) of that, whose operand goes to aux[m,n]; or the product with gelu's
 * derivative at aux. c, bias and aux are of the result's dtype. */
typedef struct {
    int64_t m, n, k, batch;
    ir_dtype operands, result;
    bool a_transposed, b_transposed;                          /* a is stored [k,m], b [n,k] */
    int64_t a_leading, b_leading, c_leading, d_leading, a_batch, b_batch, c_batch, d_batch;
    bool adds, tf32;                                          /* adds: there is a c */
    int epilogue;
    int64_t aux_leading;
    cuda_arg a, b, c, d, bias, aux;                           /* buffer -1: none */
} cuda_product;

typedef struct { bool is_product; cuda_launch launch; cuda_product product; } cuda_step;
typedef struct {
    int n_steps, cap_steps;
    cuda_step *steps;
    size_t workspace_bytes;       /* of this kernel's steps, of no content before */
    const char *how;              /* for the compile trace */
} cuda_plan;

/* -- one compilation ----------------------------------------------------------------------------------------------------- */

typedef struct { const char *name, *text; const char *kernel; } cuda_request;
typedef struct {
    const cuda_machine *machine;
    kl_program *program;
    base_arena *arena;            /* of the compiled program */
    int n_requests, cap_requests;
    cuda_request *requests;
} cuda_compiler;

/* -- writer.c -------------------------------------------------------------------------------------------------------------- */

/* A kernel as it is written. */
typedef struct {
    cuda_compiler *compiler;
    base_text defines, body;      /* defines: what a device/ file is to know */
    int n_args, cap_args;
    cuda_arg *args;
    const char **types;           /* of its parameters, in C; "float": the bits of one */
    bool listed;                  /* numbers are parameters too */
} cuda_writer;

/* Each declares a parameter, "p3", and returns its number. type: what it points to. */
int cuda_param_view(cuda_writer *w, const kl_view *view, ir_dtype dtype, bool written);
int cuda_param_bytes(cuda_writer *w, int buffer, int64_t bytes, const char *type);
int cuda_param_value(cuda_writer *w, int64_t value);                       /* a rax_i64 */
/* A number as the text has it: "768", or where listed a parameter of this type. */
const char *cuda_number(cuda_writer *w, int64_t value, const char *type);
/* Makes the text a request and the launch a step, and frees the writer. device: name of the device/ file that it needs beside common, or NULL. */
void cuda_launch_add(cuda_writer *w, cuda_plan *plan, const kl_kernel *kernel, const char *device, int64_t grid, int threads, size_t shared_bytes);
/* n kernels of the same text, with so many blocks each, as one launch (several, where the table is longer than parameters may be). In a body "bx" is the
 * number of its block. Frees nothing. */
void cuda_launch_add_list(const cuda_writer *w, int n, const int64_t *blocks, cuda_plan *plan, const kl_kernel *kernel, int threads);
bool cuda_same_text(const cuda_writer *a, const cuda_writer *b);
void cuda_writer_free(cuda_writer *w);
cuda_step *cuda_step_add(cuda_compiler *compiler, cuda_plan *plan);
/* Room in the kernel's workspace: bytes from its beginning. */
int64_t cuda_workspace(cuda_plan *plan, int64_t bytes);

/* The text of device/NAME.cu. */
const char *cuda_device_text(const char *name);
/* The number of the request for a function of this text, where @ stands for its name. */
int cuda_request_add(cuda_compiler *compiler, const char *defines, const char *text, const char *device, const char *kernel);

/* -- planners ------------------------------------------------------------------------------------------------------------ */

/* plan is {0} to begin with. False and base_error where the kernel cannot be had. */
typedef bool cuda_planner(cuda_compiler *compiler, const kl_kernel *kernel, cuda_plan *plan);
cuda_planner cuda_plan_loop, cuda_plan_list;                /* loops.c */
cuda_planner cuda_plan_contraction;        /* contraction.c */
cuda_planner cuda_plan_attention;          /* attention.c */
cuda_planner cuda_plan_scatter;            /* scatter.c */

/* -- legalise.c, contraction.c -------------------------------------------------------------------------------------------- */

void cuda_legalise(kl_program *program, cuda_device *device);         /* which is asked what cuBLASLt has algorithms for */
void cuda_hoist_scalars(kl_program *program);                         /* hoist_scalars.c */
void cuda_join_scalars(kl_program *program);                          /* join_scalars.c */
void cuda_split_residuals(kl_program *program);                       /* residuals.c */
bool cuda_blas_takes_operand(const kl_contraction *c, bool is_b);
/* What cuBLASLt is asked for, of several the first; false where it has no such product. */
bool cuda_product_of(const kl_program *program, const kl_contraction *c, cuda_product *product);
/* What attention's kernels are written for; the passes decompose the others. */
bool cuda_attention_takes(ir_dtype dtype, int64_t head_dim);

/* -- products.c ------------------------------------------------------------------------------------------------------------ */

/* A product's descriptors and algorithm; c is NULL where there is none, or it is d. {0} to begin with; freed whether or not it could be made. */
typedef struct { cuda_product_desc desc; cuda_layout a, b, c, d; cuda_algorithm_bytes algorithm; size_t workspace_bytes; } cuda_ready;
typedef struct { void *a, *b, *c, *d, *bias, *aux, *workspace; } cuda_places;        /* c: where the product adds one */
bool cuda_ready_product(cuda_device *device, const kl_program *program, const cuda_product *p, cuda_ready *ready);
void cuda_ready_free(cuda_device *device, cuda_ready *ready);
/* apart: the table says that a loop makes what the epilogue does faster; its algorithm is there all the same. */
typedef enum { CUDA_NO_PRODUCT, CUDA_BY_HEURISTIC, CUDA_TIMED, CUDA_APART } cuda_standing;
cuda_standing cuda_product_standing(cuda_device *device, const kl_program *program, const cuda_product *p);
bool cuda_multiply(cuda_device *device, const cuda_product *p, const cuda_ready *ready, const cuda_places *at);

/* -- requests.c ------------------------------------------------------------------------------------------------------------ */

typedef struct cuda_store cuda_store;
typedef struct { int functions, compiled; size_t bytes; cuda_function *function; } cuda_fetched;   /* function by request */
cuda_store *cuda_store_new(cuda_device *device, const char *cache_dir);
void cuda_store_free(cuda_store *store);                      /* NULL is fine */
const char *cuda_store_folder(const cuda_store *store);
/* False and base_error, with the compiler's message; the source is kept where the message says. */
bool cuda_store_fetch(cuda_store *store, cuda_compiler *compiler, const char *dump_dir, cuda_fetched *fetched);
/* One request's source for NVRTC, whole, and its cubin for an architecture, or its PTX; for tests too. */
char *cuda_request_source(const cuda_request *request);       /* the caller frees it */
bool cuda_compile_source(const cuda_library *library, const char *source, const char *name, int architecture, bool ptx, base_bytes *code);

/* -- execute.c ------------------------------------------------------------------------------------------------------------- */

typedef struct cuda_execution cuda_execution;
/* plans by kernel id. All are borrowed until it is freed. host_params: the last so many parameters lie in host memory. */
cuda_execution *cuda_execution_new(cuda_device *device, const cuda_compiler *compiler, const cuda_plan *plans, const cuda_fetched *fetched, int host_params);
bool cuda_execution_allocate(cuda_execution *execution);
void cuda_execution_free(cuda_execution *execution);
bool cuda_execute(cuda_execution *execution, void *const *params, void *const *results);
size_t cuda_execution_bytes(const cuda_execution *execution);
size_t cuda_execution_workspace(const cuda_execution *execution);
int cuda_execution_launches(const cuda_execution *execution);  /* in a run, repeats unrolled */

/* From now on runs are timed, and waited for. */
void cuda_execution_profile(cuda_execution *execution, int traced_runs);
void cuda_execution_read_profile(const cuda_execution *execution, ir_profile *profile);

/* -- profile.c, peak.c --------------------------------------------------------------------------------------------------------- */

typedef struct cuda_profile cuda_profile;
cuda_profile *cuda_profile_new(cuda_device *device, int n_kernels, int traced_runs);
void cuda_profile_free(cuda_profile *profile);                /* NULL is fine */
/* While a run is captured or issued: at its beginning, and behind each launch of a kernel. */
bool cuda_profile_begin(cuda_profile *profile, bool captured);
bool cuda_profile_mark(cuda_profile *profile, int kernel, bool first_launch);
bool cuda_profile_add_run(cuda_profile *profile);             /* waits for the run that was launched last */
void cuda_profile_read(const cuda_profile *profile, ir_profile *into);

bool cuda_measure_peak(cuda_device *device, ir_peak *peak);
/* Numbers in (-1, 1), over and over the same half a megabyte. */
bool cuda_fill_with_noise(cuda_device *device, ir_dtype dtype, void *memory, size_t bytes);

/* -- choices.c ------------------------------------------------------------------------------------------------------------------- */

/* What cuBLASLt is asked; key: all that an answer depends on but card and version, as text of one line. ready: but for the algorithm. left: where a loop may make
 * what the epilogue does, the product that is left then, as it was timed, and the bytes that the loop goes through. */
typedef struct {
    const char *key;
    const cuda_product *product;
    const cuda_ready *ready;
    cuda_preference preference;
    size_t a_bytes, b_bytes, c_bytes, d_bytes, bias_bytes, aux_bytes, workspace_bytes;       /* of the product's, from the first element to the last; that it may take */
    float left_ms;                                           /* 0: there is nothing to compare with */
    size_t loop_bytes;
} cuda_question;
/* ms: as it was timed in this process, or 0. */
typedef struct { cuda_algorithm algorithm; cuda_standing standing; float ms; } cuda_choice;
/* folder: "" for none. tunes: products are timed, and the table is written. */
cuda_choices *cuda_choices_open(const char *folder, const cuda_machine *machine, int blas_version, bool tunes);
void cuda_choices_close(cuda_choices *choices);               /* NULL is fine */
const char *cuda_choices_digest(const cuda_choices *choices); /* "" for an empty table */
bool cuda_choices_tune(const cuda_choices *choices);
bool cuda_choices_are_timed(const cuda_choices *choices);     /* some are, or will be; NULL: none */
/* False and base_error. */
bool cuda_choose_algorithm(cuda_device *device, const cuda_question *question, cuda_choice *answer);

/* -- backend.c --------------------------------------------------------------------------------------------------------------- */

extern const ir_backend cuda_backend;
/* The backend's compile from the kernel list on, which it takes; for tests. */
ir_executable *cuda_compile_list(kl_program *list, const ir_compile_options *options, ir_compile_report *report);
const cuda_compiler *cuda_last_compiler(const ir_executable *executable);
cuda_device *cuda_backend_device(void);                       /* NULL before configure */
bool cuda_wants_tf32(void);                                   /* products in f32 round their operands to TF32's ten bits */

#endif
