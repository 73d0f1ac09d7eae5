# What a start needs: libraries are opened when they are needed, and a warm cache needs none of the large ones.
bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR"
    export RAX_CACHE_DIR="$PWD/cache"
    unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA RAX_PRODUCTS
    CONFIG="$BATS_TEST_DIRNAME/fixtures/golden/odd-widths/config.json"
}

train() { "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=1 --eval_interval=0 "$@"; }

# without PATTERN COMMAND...: runs it where no library whose name has the pattern can be opened. It cannot be a shell function.
without() {
    local pattern=$1
    shift
    cat >without.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
void *dlopen(const char *name, int flags)
{
    void *(*next)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    return next(name && strstr(name, getenv("WITHOUT")) ? "/nowhere/it-is-not-there.so" : name, flags);
}
END
    [ -f without.so ] || cc -shared -fPIC -o without.so without.c -ldl
    WITHOUT=$pattern LD_PRELOAD="$PWD/without.so" "$@"
}

# The sanitizers' runtime has to come first, and a build may link LLVM.
can_do_without() {
    ! ldd "$RAX_BIN" | grep -qE 'libasan|libtsan|libLLVM' || skip "built with a sanitizer, or with LLVM linked"
}

@test "neither LLVM, OpenBLAS nor libcurl is loaded with the program" {
    can_do_without
    run -0 ldd "$RAX_BIN"
    ! grep -qE 'libLLVM|libopenblas|libcurl' <<<"$output"
}

@test "a machine without LLVM is told so in one line" {
    can_do_without
    run -1 --separate-stderr without LLVM "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=1 --eval_interval=0
    [ -z "$output" ]
    echo "$stderr"
    [ "$(grep -vc '^\[RAX\]' <<<"$stderr")" -eq 1 ]
    grep -q '^rax: compiling needs libLLVM.*it-is-not-there' <<<"$stderr"
}

@test "code in the cache runs without LLVM" {
    can_do_without
    train >first
    without LLVM "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=1 --eval_interval=0 >second
    [ "$(sed 's/, time.*//' first)" = "$(sed 's/, time.*//' second)" ]
}

@test "a warm start opens none of the libraries" {
    can_do_without
    train >/dev/null
    LD_DEBUG=files "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=1 --eval_interval=0 >/dev/null 2>opened
    grep -q libm opened
    ! grep -qE 'libLLVM|libcurl' opened
    "$RAX_BIN" info | grep -q '^cpu .*generic' || ! grep -q libopenblas opened
}

@test "products that only OpenBLAS takes say so where it is missing" {
    can_do_without
    run -1 --separate-stderr env RAX_PRODUCTS=openblas bash -c "$(declare -f without); without openblas '$RAX_BIN' train '$CONFIG' --out_dir=out --max_iters=1 --eval_interval=0"
    echo "$stderr"
    grep -q '^rax: products of this kind need OpenBLAS, which cannot be had: ' <<<"$stderr"
}
